//! Time as the server counts it.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant};

/// A point in time: nanoseconds since the server started, for 584 years. Half the size of an
/// [`Instant`], and a test can name one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment(u64);

impl Moment {
    /// Later than anything that happens.
    pub(crate) const LAST: Moment = Moment(u64::MAX);

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

/// An episode of one kind of trouble. However often it happens, it is logged twice at most: when it
/// begins and, with a count, when it is over.
#[derive(Debug, Default)]
pub(crate) struct Episode {
    span: Option<Span>,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    first: Moment,
    last: Moment,
    times: u64,
}

impl Episode {
    /// An episode is over when nothing has happened for this time.
    const GAP: Duration = Duration::from_secs(10);
    /// An episode that lasts longer than this is logged again.
    const LONGEST: Duration = Duration::from_secs(600);

    /// Notes that it happened; true when a new episode begins.
    pub(crate) fn begins(&mut self, now: Moment) -> bool {
        match &mut self.span {
            Some(span) if now < span.end() => {
                span.last = now;
                span.times += 1;
                false
            }
            span => {
                *span = Some(Span { first: now, last: now, times: 1 });
                true
            }
        }
    }

    /// When it is over, unless it goes on.
    pub(crate) fn end(&self) -> Option<Moment> {
        self.span.map(|span| span.end())
    }

    /// Ends the episode where it is over by `now`: how often the trouble was, if more than once.
    pub(crate) fn over(&mut self, now: Moment) -> Option<u64> {
        let span = self.span.take_if(|span| now >= span.end())?;
        (span.times > 1).then_some(span.times)
    }
}

impl Span {
    fn end(&self) -> Moment {
        (self.last + Episode::GAP).min(self.first + Episode::LONGEST)
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
    fn moments_are_so_far_from_the_start() {
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
    fn the_poll_counts_in_milliseconds() {
        for (micros, millis) in [(0, 0), (1, 1), (1_000, 1), (1_001, 2)] {
            let rounded = round_up(Duration::from_micros(micros));
            assert_eq!(rounded, Duration::from_millis(millis), "{micros}");
        }
    }

    #[test]
    fn an_episode_lasts_until_a_gap() {
        let start = Moment::default();
        let mut episode = Episode::default();
        assert!(episode.begins(start));
        assert!(!episode.begins(start + Duration::from_secs(9)));
        assert!(!episode.begins(start + Duration::from_secs(18)));
        assert!(episode.begins(start + Duration::from_secs(28)));
    }

    #[test]
    fn an_episode_that_is_over_tells_how_often() {
        let at = |seconds| Moment::default() + Duration::from_secs(seconds);
        let mut episode = Episode::default();
        assert_eq!((episode.end(), episode.over(at(9))), (None, None));
        assert!(episode.begins(at(0)));
        assert_eq!((episode.end(), episode.over(at(9))), (Some(at(10)), None));
        assert!(!episode.begins(at(9)));
        assert_eq!((episode.over(at(18)), episode.over(at(19))), (None, Some(2)));
        assert_eq!((episode.end(), episode.over(at(99))), (None, None));
        // Once is told of already.
        assert!(episode.begins(at(100)));
        assert_eq!(episode.over(at(110)), None);
        assert_eq!(episode.end(), None);
    }

    #[test]
    fn trouble_without_end_is_told_of_again() {
        let mut episode = Episode::default();
        let begins = (0..1_200).filter(|&second| {
            let now = Moment::default() + Duration::from_secs(second);
            assert!(episode.over(now).is_none_or(|times| times == 600));
            episode.begins(now)
        });
        assert_eq!(begins.count(), 2);
    }
}
