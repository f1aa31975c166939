//! A rate-limited log: however often something happens, one line when it begins and, with a count, one when
//! it is over. Counters have each of them, and at debug level each has a line.

use std::time::Duration;

use super::clock::Moment;

/// One kind of event that peers or the system can cause at any rate. It is over when it has not happened
/// for [`GAP`](Self::GAP), and begins anew after [`LONGEST`](Self::LONGEST).
#[derive(Debug)]
pub(crate) struct RateLimited<T = ()> {
    span: Option<Span<T>>,
}

#[derive(Debug)]
struct Span<T> {
    first: Moment,
    last: Moment,
    times: u64,
    latest: T,
}

impl<T> Default for RateLimited<T> {
    fn default() -> Self {
        RateLimited { span: None }
    }
}

impl<T> RateLimited<T> {
    const GAP: Duration = Duration::from_secs(10);
    const LONGEST: Duration = Duration::from_secs(600);

    /// Counts the event, and keeps `latest` for the line at the end. Returns whether it begins, and is
    /// to be logged now.
    pub(crate) fn begins(&mut self, latest: T, now: Moment) -> bool {
        match &mut self.span {
            Some(span) if now < span.end() => {
                (span.last, span.latest) = (now, latest);
                span.times += 1;
                false
            }
            span => {
                *span = Some(Span { first: now, last: now, times: 1, latest });
                true
            }
        }
    }

    /// When it is over, unless it happens again.
    pub(crate) fn end(&self) -> Option<Moment> {
        self.span.as_ref().map(Span::end)
    }

    /// Ends it if it is over by `now`. Returns what to log: the number of times and the latest, if it
    /// happened more than once.
    pub(crate) fn over(&mut self, now: Moment) -> Option<(u64, T)> {
        let span = self.span.take_if(|span| now >= span.end())?;
        (span.times > 1).then_some((span.times, span.latest))
    }
}

impl<T> Span<T> {
    fn end(&self) -> Moment {
        (self.last + RateLimited::<T>::GAP).min(self.first + RateLimited::<T>::LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::default() + Duration::from_secs(seconds)
    }

    #[test]
    fn an_event_lasts_until_a_gap() {
        let mut log = RateLimited::default();
        let begins = [0, 9, 18, 28].map(|second| log.begins((), at(second)));
        assert_eq!(begins, [true, false, false, true]);
    }

    #[test]
    fn its_end_has_a_count_and_the_latest() {
        let mut log = RateLimited::default();
        assert_eq!((log.end(), log.over(at(9))), (None, None));
        assert!(log.begins("first", at(0)));
        assert_eq!((log.end(), log.over(at(9))), (Some(at(10)), None));
        assert!(!log.begins("second", at(9)));
        assert_eq!((log.over(at(18)), log.over(at(19))), (None, Some((2, "second"))));
        assert_eq!((log.end(), log.over(at(99))), (None, None));
        // A single one has been logged already.
        assert!(log.begins("third", at(100)));
        assert_eq!((log.over(at(110)), log.end()), (None, None));
    }

    #[test]
    fn an_event_without_end_is_logged_again() {
        let mut log = RateLimited::default();
        let begins = (0..1_200).map(at).filter(|&now| {
            assert!(log.over(now).is_none_or(|(times, ())| times == 600));
            log.begins((), now)
        });
        assert_eq!(begins.count(), 2);
    }
}
