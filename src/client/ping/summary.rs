//! What has come of all pings.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::figure::Series;
use super::{Event, Reason};
use crate::client::histogram::{Histogram, nanoseconds};
use crate::client::load::{Errors, Latency};
use crate::client::tracker::{Reply, Tracker};
use crate::units;

/// What has come of all pings so far. Each ping that was sent was answered, is lost, has had a
/// damaged reply (corrupt or cut), or is still waiting.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Pings that were sent, and those for which no connection could be made.
    pub sent: u64,
    /// Pings that were echoed in time and unharmed.
    pub received: u64,
    /// Pings that got no reply in time, or no connection.
    pub lost: u64,
    /// The lost pings by what failed.
    pub lost_by: BTreeMap<Reason, u64>,
    /// Pings that still had time left when the run ended.
    pub waiting: u64,
    /// Pings that were answered after a later one.
    pub reordered: u64,
    /// Replies to pings that were answered before.
    pub duplicates: u64,
    /// Replies to pings that had been given up.
    pub late: u64,
    /// Replies with a wrong byte.
    pub corrupt: u64,
    /// Replies of a wrong length.
    pub cut: u64,
    /// Replies that answer none of the pings, or too damaged to tell which.
    pub stray: u64,
    /// Lost pings in percent of those that are not waiting.
    pub loss_percent: f64,
    /// Round-trip times of the received pings, if there are any.
    pub times: Option<Times>,
    /// How it went over time.
    #[serde(skip)]
    pub(super) series: Series,
}

/// Round-trip times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Times {
    /// The shortest, the mean and the longest are of the pings that were answered, as `ping(8)` has them.
    /// In percentiles, a ping that was lost, or had a damaged reply, counts as later than all of these.
    #[serde(flatten)]
    pub latency: Latency,
    /// The standard deviation, as `ping(8)` has it.
    #[serde(rename = "mdev_ns", serialize_with = "nanoseconds")]
    pub mdev: Duration,
    /// How much the times of two pings in a row differ, in the mean over all pairs of which both came back in
    /// order (the delay variation of RFC 3393). None without such a pair.
    #[serde(rename = "jitter_ns", serialize_with = "nanoseconds")]
    pub jitter: Option<Duration>,
}

/// What has come of all pings but those that are waiting.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) received: u64,
    lost_by: BTreeMap<Reason, u64>,
    errors: Errors,
    times: Stopwatch,
    series: Series,
}

impl Counts {
    /// Counts what became of a ping that was sent at `sent`, in nanoseconds of the run.
    pub(super) fn count(&mut self, event: &Event, sent: u64) {
        match event {
            Event::Lost { reason, .. } => {
                self.errors.lost += 1;
                self.series.count(sent, None);
                *self.lost_by.entry(*reason).or_default() += 1;
            }
            Event::Reply(reply) => {
                self.errors.count(reply);
                match reply {
                    Reply::Echo { seq, time, .. } => {
                        self.received += 1;
                        self.times.record(*seq, *time);
                        self.series.count(sent, Some(*time));
                    }
                    Reply::Corrupt { .. } | Reply::Cut { .. } => self.series.count(sent, None),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    pub(super) fn summary(&self, tracker: &Tracker) -> Summary {
        let (sent, waiting) = (tracker.sent(), tracker.waiting());
        let Errors { lost, reordered, duplicates, late, corrupt, cut, stray, .. } = self.errors;
        Summary {
            sent,
            received: self.received,
            lost,
            lost_by: self.lost_by.clone(),
            waiting,
            reordered,
            duplicates,
            late,
            corrupt,
            cut,
            stray,
            loss_percent: lost as f64 * 100.0 / (sent - waiting).max(1) as f64,
            times: self.times.times(self.errors.without_reply()),
            series: self.series.clone(),
        }
    }
}

/// Adds up round-trip times.
#[derive(Debug, Default)]
struct Stopwatch {
    histogram: Histogram,
    min: Duration,
    max: Duration,
    sum: f64,
    sum_of_squares: f64,
    /// The last ping that came back, and its time.
    last: Option<(u64, Duration)>,
    /// How many pairs of pings in a row came back, and the sum of their differences.
    pairs: u64,
    differences: f64,
}

impl Stopwatch {
    fn record(&mut self, seq: u64, time: Duration) {
        if let Some((_, before)) = self.last.filter(|&(last, _)| last + 1 == seq) {
            self.pairs += 1;
            self.differences += time.abs_diff(before).as_secs_f64();
        }
        self.last = Some((seq, time));
        self.min = if self.histogram.count() == 0 { time } else { self.min.min(time) };
        self.max = self.max.max(time);
        self.sum += time.as_secs_f64();
        self.sum_of_squares += time.as_secs_f64().powi(2);
        self.histogram.record(units::nanoseconds(time));
    }

    /// `without_time` pings were lost, or had a damaged reply.
    fn times(&self, without_time: u64) -> Option<Times> {
        let count = self.histogram.count() as f64;
        let latency = Latency::of(&self.histogram, without_time)?;
        let mean = self.sum / count;
        let variance = (self.sum_of_squares / count - mean * mean).max(0.0);
        // The histogram rounds up; what is shortest and longest is known exactly.
        let within = |time: Option<Duration>| time.map(|time| time.clamp(self.min, self.max));
        Some(Times {
            latency: Latency {
                min: self.min,
                mean: Duration::from_secs_f64(mean).clamp(self.min, self.max),
                p50: within(latency.p50),
                p90: within(latency.p90),
                p99: within(latency.p99),
                p999: within(latency.p999),
                max: Some(self.max),
            },
            mdev: Duration::from_secs_f64(variance.sqrt()),
            jitter: (self.pairs > 0)
                .then(|| Duration::from_secs_f64(self.differences / self.pairs as f64)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::message::Messages;
    use crate::client::pattern::Pattern;
    use crate::client::ping::Reason;

    const MS: Duration = Duration::from_millis(1);

    fn summary(sent: u64, events: &[Event]) -> Summary {
        let messages = Messages { size: 24, pattern: Pattern::Text, upper: false, key: 1 };
        let mut tracker = Tracker::new(messages, MS);
        (0..sent).for_each(|_| tracker.send(0, 0));
        let mut counts = Counts::default();
        for event in events {
            counts.count(event, 0);
            if let Event::Lost { seq, .. } = event {
                assert_eq!(tracker.give_up(), Some(*seq));
            }
        }
        counts.summary(&tracker)
    }

    fn echo(seq: u64, time: Duration) -> Event {
        Event::Reply(Reply::Echo { seq, time, reordered: false })
    }

    #[test]
    fn each_event_is_counted_as_what_it_is() {
        let lost = Event::Lost { seq: 1, reason: Reason::Timeout, detail: String::new() };
        let late = Event::Reply(Reply::Late { seq: 1, time: MS });
        let seen = summary(3, &[lost, late, echo(2, MS)]);
        assert_eq!((seen.sent, seen.waiting, seen.received), (3, 2, 1));
        assert_eq!((seen.lost, seen.late, seen.duplicates, seen.reordered), (1, 1, 0, 0));
        assert_eq!(seen.lost_by, [(Reason::Timeout, 1)].into());
        assert_eq!(seen.loss_percent, 100.0);
        let none = summary(0, &[]);
        assert_eq!((none.loss_percent, none.times), (0.0, None));
    }

    #[test]
    fn jitter_is_of_pings_in_a_row() {
        let jitter = |pings: &[(u64, u32)]| {
            let echoes: Vec<Event> = pings.iter().map(|&(seq, ms)| echo(seq, MS * ms)).collect();
            summary(9, &echoes).times.and_then(|times| times.jitter)
        };
        assert_eq!(jitter(&[(1, 5)]), None);
        // Neither a lost ping nor a reordered one is of a pair.
        assert_eq!(jitter(&[(1, 5), (3, 50), (2, 500)]), None);
        assert_eq!(jitter(&[(1, 5), (2, 9), (3, 7), (5, 90), (6, 93)]), Some(3 * MS));
    }

    #[test]
    fn times_are_added_up_as_ping_does() {
        let echoes: Vec<Event> = (1..=100).map(|seq| echo(seq, MS * seq as u32)).collect();
        let Times { latency, mdev, jitter } = summary(100, &echoes).times.unwrap();
        assert_eq!((latency.min, latency.max), (MS, Some(100 * MS)));
        let near = |time: Duration, ms: f64| {
            assert!((time.as_secs_f64() * 1e3 / ms - 1.0).abs() < 0.002, "{time:?} is not {ms} ms");
        };
        near(latency.mean, 50.5);
        // The standard deviation of 1 to n is the root of (n² - 1) / 12.
        near(mdev, (9999.0_f64 / 12.0).sqrt());
        near(jitter.unwrap(), 1.0);
        near(latency.p50.unwrap(), 50.0);
        near(latency.p90.unwrap(), 90.0);
        near(latency.p99.unwrap(), 99.0);

        let lost = |seq| Event::Lost { seq, reason: Reason::Timeout, detail: String::new() };
        let lossy: Vec<Event> = (1..=9).map(lost).chain(echoes[9..].iter().cloned()).collect();
        let Times { latency, .. } = summary(100, &lossy).times.unwrap();
        assert_eq!((latency.p99, latency.p999, latency.max), (None, None, Some(100 * MS)));
        near(latency.p50.unwrap(), 59.0);
        near(latency.p90.unwrap(), 99.0);
    }
}
