//! The open loop's schedule: when the next message is due, whatever became of the ones before.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// A message is due every so often, from the start on. The timer wakes the poll to the
/// microsecond; the poll's own timeout knows milliseconds only.
#[derive(Debug)]
pub(super) struct Pace {
    timer: TimerFd,
    /// Nanoseconds from one message to the next.
    period: f64,
    start: u64,
    /// How many messages were due so far.
    count: u64,
    /// What the timer is set to.
    armed: u64,
}

impl Pace {
    /// For `rate` messages a second; the timer wakes `registry`'s poll with `token`.
    pub(super) fn new(rate: f64, registry: &Registry, token: Token) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let fd = timer.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(Self { timer, period: 1e9 / rate, start: 0, count: 0, armed: 0 })
    }

    /// The first message is due at `now`, in nanoseconds.
    pub(super) fn begin(&mut self, now: u64) {
        self.start = now;
        self.count = 0;
    }

    /// When the next message was due, if it was: it then counts as taken.
    pub(super) fn due(&mut self, now: u64) -> Option<u64> {
        let at = self.next();
        (at <= now).then(|| {
            self.count += 1;
            at
        })
    }

    /// Sets the timer to the next message.
    pub(super) fn arm(&mut self, now: u64) -> io::Result<()> {
        let at = self.next();
        if self.armed == at {
            return Ok(());
        }
        self.armed = at;
        let wait = Duration::from_nanos(at.saturating_sub(now).max(1));
        let expiration = Expiration::OneShot(wait.into());
        Ok(self.timer.set(expiration, TimerSetTimeFlags::empty())?)
    }

    fn next(&self) -> u64 {
        self.start + (self.count as f64 * self.period) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_the_rate_and_not_before() {
        let poll = mio::Poll::new().unwrap();
        let mut pace = Pace::new(4.0, poll.registry(), Token(0)).unwrap();
        pace.begin(1_000);
        assert_eq!(pace.due(999), None);
        let mut due = Vec::new();
        while let Some(at) = pace.due(1_000_001_000) {
            due.push(at);
        }
        assert_eq!(due, [1_000, 250_001_000, 500_001_000, 750_001_000, 1_000_001_000]);
    }

    #[test]
    fn the_timer_wakes_the_poll() {
        let mut poll = mio::Poll::new().unwrap();
        let mut pace = Pace::new(1000.0, poll.registry(), Token(7)).unwrap();
        pace.begin(0);
        let mut events = mio::Events::with_capacity(1);
        for now in 0..2 {
            while pace.due(now).is_some() {}
            pace.arm(now).unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(events.iter().any(|event| event.token() == Token(7)));
            pace.count += 1;
        }
    }
}
