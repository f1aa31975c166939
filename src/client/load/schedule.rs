//! The open loop's schedule: when each message is due, whatever became of the ones before.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Messages at a rate: one every so often, from the start on. What is due is computed, never kept.
/// Times are nanoseconds of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// From one message of this schedule to the next.
    period: f64,
    /// From the start to its first.
    offset: f64,
    start: u64,
    /// Messages that were taken to be sent.
    taken: u64,
    /// Messages in all.
    count: u64,
    /// Nothing is due after this.
    end: u64,
}

impl Schedule {
    /// The part of `thread`, which is one of `threads`, in `rate` messages a second: they take
    /// turns. It begins with [`Schedule::begin`].
    pub(super) fn new(rate: f64, thread: u32, threads: u32) -> Self {
        let period = 1e9 / rate * f64::from(threads);
        let offset = 1e9 / rate * f64::from(thread);
        Self { period, offset, start: 0, taken: 0, count: 0, end: u64::MAX }
    }

    /// The first of all messages is due at `start`, and `count` are of this schedule.
    pub(super) fn begin(&mut self, start: u64, count: u64) {
        *self = Self { start, taken: 0, count, end: u64::MAX, ..*self };
    }

    /// Nothing is due after `end`.
    pub(super) fn end(&mut self, end: u64) {
        self.end = end;
    }

    /// When the next message is due; `None` when no more will be.
    pub(super) fn next(&self) -> Option<u64> {
        let at = self.start.saturating_add((self.offset + self.taken as f64 * self.period) as u64);
        (self.taken < self.count && at <= self.end).then_some(at)
    }

    /// Takes the next message, if it is due by `now`: when it was due.
    pub(super) fn take(&mut self, now: u64) -> Option<u64> {
        let at = self.next().filter(|&at| at <= now)?;
        self.taken += 1;
        Some(at)
    }

    /// Gives the last of [`Schedule::take`] back.
    pub(super) fn put_back(&mut self) {
        self.taken -= 1;
    }

    /// How many messages were due by `now` and are not taken.
    pub(super) fn backlog(&self, now: u64) -> u64 {
        let elapsed = now.min(self.end).saturating_sub(self.start) as f64 - self.offset;
        let due = if elapsed < 0.0 { 0 } else { (elapsed / self.period) as u64 + 1 };
        due.min(self.count).saturating_sub(self.taken)
    }
}

/// Wakes the poll when a message is due, to the microsecond: the poll's own timeout knows
/// milliseconds only.
#[derive(Debug)]
pub(super) struct Timer {
    timer: TimerFd,
    /// What it is set to.
    armed: u64,
}

impl Timer {
    /// Wakes `registry`'s poll with `token`.
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let fd = timer.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(Self { timer, armed: 0 })
    }

    /// Wakes the poll at `at`.
    pub(super) fn arm(&mut self, at: u64, now: u64) -> io::Result<()> {
        if self.armed == at {
            return Ok(());
        }
        self.armed = at;
        let wait = Duration::from_nanos(at.saturating_sub(now).max(1));
        let expiration = Expiration::OneShot(wait.into());
        Ok(self.timer.set(expiration, TimerSetTimeFlags::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(schedule: &mut Schedule, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take(now)).collect()
    }

    #[test]
    fn messages_are_due_at_the_rate_and_not_before() {
        let mut schedule = Schedule::new(4.0, 0, 1);
        schedule.begin(1_000, u64::MAX);
        assert_eq!((schedule.take(999), schedule.next()), (None, Some(1_000)));
        assert_eq!(schedule.backlog(500_001_000), 3);
        let due = taken(&mut schedule, 1_000_001_000);
        assert_eq!(due, [1_000, 250_001_000, 500_001_000, 750_001_000, 1_000_001_000]);
        assert_eq!(schedule.backlog(1_000_001_000), 0);
        schedule.put_back();
        assert_eq!(schedule.backlog(1_000_001_000), 1);
        assert_eq!(schedule.next(), Some(1_000_001_000));
    }

    #[test]
    fn a_schedule_ends_by_number_or_by_time() {
        let mut schedule = Schedule::new(1000.0, 0, 1);
        schedule.begin(0, 3);
        assert_eq!(schedule.backlog(u64::MAX), 3);
        assert_eq!(taken(&mut schedule, u64::MAX), [0, 1_000_000, 2_000_000]);
        assert_eq!(schedule.next(), None);
        schedule.begin(0, u64::MAX);
        schedule.end(1_500_000);
        assert_eq!(schedule.backlog(u64::MAX), 2);
        assert_eq!(taken(&mut schedule, u64::MAX), [0, 1_000_000]);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn threads_take_turns() {
        let mut all = Vec::new();
        for thread in 0..3 {
            let mut schedule = Schedule::new(1000.0, thread, 3);
            schedule.begin(500, 2);
            assert_eq!(schedule.backlog(1_500_500), if thread < 2 { 1 } else { 0 });
            all.extend(taken(&mut schedule, u64::MAX));
        }
        all.sort_unstable();
        assert_eq!(all, [500, 1_000_500, 2_000_500, 3_000_500, 4_000_500, 5_000_500]);
    }

    #[test]
    fn a_rate_beyond_all_measure_is_counted_not_kept() {
        let mut schedule = Schedule::new(1e18, 0, 1);
        schedule.begin(0, u64::MAX);
        schedule.end(1_000);
        assert_eq!(schedule.take(0), Some(0));
        let backlog = schedule.backlog(5_000);
        assert!(backlog.abs_diff(1_000_000_000_000) < 10, "{backlog}");
    }

    #[test]
    fn the_timer_wakes_the_poll() {
        let mut poll = mio::Poll::new().unwrap();
        let mut timer = Timer::new(poll.registry(), Token(7)).unwrap();
        let mut events = mio::Events::with_capacity(1);
        for at in [1_000_000, 2_000_000] {
            timer.arm(at, at - 1_000_000).unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(events.iter().any(|event| event.token() == Token(7)));
        }
    }
}
