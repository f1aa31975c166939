//! Time as the server counts it.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

/// A point in time: nanoseconds since the server started, for 584 years. Half the size of an
/// [`Instant`], and a test can name one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Nanoseconds since the start.
    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to here; zero when `earlier` is not earlier.
    pub(crate) fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Moment) -> Duration {
        self.since(earlier)
    }
}

/// Tells the time.
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

/// Turns a stream of the same trouble into one log line: what happens within a gap of the last time
/// belongs to the same episode.
#[derive(Debug, Default)]
pub(crate) struct Episode {
    last: Option<Moment>,
}

impl Episode {
    /// An episode is over after this time without trouble.
    const GAP: Duration = Duration::from_secs(10);

    /// Notes the trouble; true where a new episode begins with it.
    pub(crate) fn begins(&mut self, now: Moment) -> bool {
        let last = self.last.replace(now);
        last.is_none_or(|last| now.since(last) > Self::GAP)
    }
}

/// To the next millisecond, which is what epoll_wait(2) counts in: waking early would be for nothing.
pub(crate) fn round_up(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_episode_lasts_until_a_gap() {
        let start = Moment::default();
        let mut episode = Episode::default();
        assert!(episode.begins(start));
        assert!(!episode.begins(start + Duration::from_secs(9)));
        assert!(!episode.begins(start + Duration::from_secs(18)));
        assert!(episode.begins(start + Duration::from_secs(29)));
    }
}
