//! A timer that wakes a poll.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Wakes a poll to the microsecond (timerfd_create(2)): epoll's own timeout counts in milliseconds.
#[derive(Debug)]
pub(crate) struct Timer {
    timer: TimerFd,
    /// What it is set to.
    armed: u64,
}

impl Timer {
    /// Wakes `registry`'s poll with `token`.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let fd = timer.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(Self { timer, armed: 0 })
    }

    /// Wakes the poll at `at`, nanoseconds on the same clock as `now`. Returns the timeout for the poll, `most` or less.
    pub(crate) fn arm(&mut self, at: u64, now: u64, most: u64) -> io::Result<u64> {
        if self.armed == at {
            return Ok(most);
        }
        self.armed = at;
        let wait = Duration::from_nanos(at.saturating_sub(now).max(1));
        let expiration = Expiration::OneShot(wait.into());
        self.timer.set(expiration, TimerSetTimeFlags::empty())?;
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_wakes_the_poll() {
        let mut poll = mio::Poll::new().unwrap();
        let mut timer = Timer::new(poll.registry(), Token(7)).unwrap();
        let mut events = mio::Events::with_capacity(1);
        for at in [1_000_000, 2_000_000] {
            assert_eq!(timer.arm(at, at - 1_000_000, 7).unwrap(), 7);
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(events.iter().any(|event| event.token() == Token(7)));
        }
    }
}
