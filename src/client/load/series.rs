//! How a run went over time, in bounded memory.

use std::time::Duration;

use super::report::{Interval, Latency, per_second};

/// The intervals of a run, put together once there are many.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) points: Vec<Interval>,
    /// How many intervals a point stands for, and how many of these the last one has.
    each: u32,
    last: u32,
}

impl Default for Series {
    fn default() -> Self {
        Self { points: Vec::new(), each: 1, last: 1 }
    }
}

impl Series {
    const MOST: usize = 240;

    pub(super) fn push(&mut self, interval: Interval) {
        if let Some(point) = self.points.last_mut()
            && self.last < self.each
        {
            *point = point.until(&interval);
            self.last += 1;
            return;
        }
        if self.points.len() == Self::MOST {
            self.points = self.points.chunks(2).map(|pair| pair[0].until(&pair[1])).collect();
            self.each *= 2;
        }
        self.points.push(interval);
        self.last = 1;
    }
}

impl Interval {
    /// From the beginning of this one to the end of the next.
    fn until(&self, next: &Self) -> Self {
        let messages = self.messages + next.messages;
        Self {
            from: self.from,
            to: next.to,
            messages,
            bytes: self.bytes + next.bytes,
            rate: per_second(messages, next.to.saturating_sub(self.from)),
            latency: match (self.latency, next.latency) {
                (Some(one), Some(other)) => Some(one.worse(&other, [self, next])),
                (one, other) => one.or(other),
            },
            errors: self.errors + next.errors,
            unsent: self.unsent.saturating_add(next.unsent),
        }
    }
}

impl Latency {
    /// The percentiles of both together are no higher.
    fn worse(&self, other: &Self, [ours, theirs]: [&Interval; 2]) -> Self {
        // What has no time was never sent, which is later than all others.
        let later = |one: Option<Duration>, other: Option<Duration>| Some(one?.max(other?));
        let sum = [(self, ours), (other, theirs)]
            .map(|(latency, interval)| latency.mean.as_secs_f64() * interval.messages as f64);
        let messages = (ours.messages + theirs.messages).max(1);
        Self {
            min: self.min.min(other.min),
            mean: Duration::from_secs_f64(sum.iter().sum::<f64>() / messages as f64),
            p50: later(self.p50, other.p50),
            p90: later(self.p90, other.p90),
            p99: later(self.p99, other.p99),
            p999: later(self.p999, other.p999),
            max: later(self.max, other.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::load::faults::Errors;
    use crate::client::load::report::Counts;

    #[test]
    fn a_run_of_any_length_has_a_bounded_series_of_all_that_it_counted() {
        let mut series = Series::default();
        let at = |index| Duration::from_secs(index);
        let interval = |index| {
            let errors = Errors { stray: 1, ..Errors::default() };
            let mut counts = Counts { messages: 1 + index % 2, errors, ..Counts::default() };
            (0..counts.messages).for_each(|_| counts.times.record(1_000 * index));
            counts.unsent = u64::from(index == 999);
            Interval::of(at(index), at(index + 1), &counts, 10)
        };
        for count in 1..=1_000 {
            series.push(interval(count - 1));
            let points = &series.points;
            assert_eq!((points[0].from, points[points.len() - 1].to), (at(0), at(count)));
            assert!(points.windows(2).all(|pair| pair[0].to == pair[1].from));
            assert_eq!(points.iter().map(|point| point.errors).sum::<u64>(), count);
            assert_eq!(points.len() as u64, if count <= 240 { count } else { points.len() as u64 });
        }
        assert_eq!(series.points.len(), 125);
        let first = series.points[0];
        assert_eq!((first.to, first.messages, first.bytes, first.rate), (at(8), 12, 120, 1.5));
        let latency = first.latency.unwrap();
        let micros = |time: Option<Duration>| time.unwrap().as_micros();
        assert_eq!((latency.min.as_nanos(), micros(latency.p50)), (1, 7));
        assert_eq!(latency.mean.as_nanos() / 10, (2 * (1 + 3 + 5 + 7) + 2 + 4 + 6) * 100 / 12);
        assert_eq!(series.points[124].latency.unwrap().p99, None);
    }
}
