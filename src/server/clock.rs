//! The time since the server started.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

/// A point in time: nanoseconds since the server started, for 584 years. Half the size of an [`Instant`],
/// and a test can make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Later than any other moment.
    pub(crate) const LAST: Moment = Moment(u64::MAX);

    /// Nanoseconds since the start.
    pub(crate) fn nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The time from the earlier one; zero when that is not earlier.
impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A clock, which starts with the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::default() + self.start.elapsed()
    }
}

/// Rounds up to a millisecond, the unit of epoll_wait(2): waking early would be in vain.
pub(crate) fn round_up(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_nanoseconds_from_the_start() {
        let start = Moment::default();
        let later = start + Duration::from_nanos(7);
        assert_eq!((start.nanos(), later.nanos()), (0, 7));
        assert_eq!((later - start, start - later), (Duration::from_nanos(7), Duration::ZERO));
        assert_eq!(start + Duration::MAX, Moment::LAST);
    }

    #[test]
    fn the_clock_goes_on() {
        let clock = Clock::start();
        let first = clock.now();
        while clock.now() == first {}
        assert!(clock.now() - first < Duration::from_secs(3_600));
    }

    #[test]
    fn timeouts_are_rounded_up_to_milliseconds() {
        for (micros, millis) in [(0, 0), (1, 1), (1_000, 1), (1_001, 2)] {
            let rounded = round_up(Duration::from_micros(micros));
            assert_eq!(rounded, Duration::from_millis(millis), "{micros}");
        }
    }
}
