//! Round trips as a drawing: their times over the run, and what was lost.

use std::iter::{once, repeat};
use std::ops::AddAssign;
use std::time::Duration;

use super::{Config, Summary};
use crate::client::load::{NUMBERS, TIMES};
use crate::client::plot::{self, Curve, Panel};
use crate::units::{grouped, nanoseconds, time};

/// How many buckets a run has at most; where it would have more, each two become one.
const MOST: usize = 400;
/// More losses than this are spikes without a mark.
const MARKED: usize = 30;
/// The time of the first buckets, in nanoseconds.
const FINEST: u64 = 1_000_000;

/// What came of the pings over the run, by the time when they were sent, in bounded memory.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    /// The time of a bucket, in nanoseconds.
    width: u64,
    buckets: Vec<Bucket>,
}

impl Default for Series {
    fn default() -> Self {
        Self { width: FINEST, buckets: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bucket {
    /// How many pings came back, how long they took together, and the longest of them.
    received: u32,
    sum: Duration,
    longest: Duration,
    missed: u32,
}

impl AddAssign for Bucket {
    fn add_assign(&mut self, other: Self) {
        self.received += other.received;
        self.sum += other.sum;
        self.longest = self.longest.max(other.longest);
        self.missed += other.missed;
    }
}

impl Series {
    /// Counts a ping that was sent at `sent`, in nanoseconds of the run, by the time that it took; without one
    /// it was lost, or its reply was damaged.
    pub(super) fn count(&mut self, sent: u64, time: Option<Duration>) {
        while sent / self.width >= MOST as u64 {
            self.width *= 2;
            let pair = |pair: &[Bucket]| {
                let mut sum = pair[0];
                pair[1..].iter().for_each(|&other| sum += other);
                sum
            };
            self.buckets = self.buckets.chunks(2).map(pair).collect();
        }
        let index = (sent / self.width) as usize;
        if self.buckets.len() <= index {
            self.buckets.resize(index + 1, Bucket::default());
        }
        self.buckets[index] += match time {
            Some(time) => Bucket { received: 1, sum: time, longest: time, missed: 0 },
            None => Bucket { missed: 1, ..Bucket::default() },
        };
    }

    /// Each bucket that is not empty, with its middle in seconds.
    fn places(&self) -> impl Iterator<Item = (f64, &Bucket)> {
        let width = Duration::from_nanos(self.width).as_secs_f64();
        let places = self.buckets.iter().enumerate();
        places
            .map(move |(index, bucket)| ((index as f64 + 0.5) * width, bucket))
            .filter(|(_, bucket)| bucket.received + bucket.missed > 0)
    }

    /// A time of each bucket, in nanoseconds; none, where all pings were lost.
    fn times(&self, of: fn(&Bucket) -> Duration) -> Vec<(f64, [f64; 3])> {
        let time = |bucket: &Bucket| match bucket.received {
            0 => f64::NAN,
            _ => nanoseconds(of(bucket)) as f64,
        };
        self.places().map(|(x, bucket)| (x, [time(bucket); 3])).collect()
    }

    /// A line for each bucket with losses, as high between these ends as the share of the lost.
    fn losses(&self, [low, high]: [f64; 2]) -> Vec<Curve> {
        let lost = self.places().filter(|(_, bucket)| bucket.missed > 0).map(|(x, bucket)| {
            let share = f64::from(bucket.missed) / f64::from(bucket.missed + bucket.received);
            (x, low * (high / low).powf(share))
        });
        let lost: Vec<(f64, f64)> = lost.collect();
        let curve = |points| Curve { series: 1, dashed: false, points };
        if lost.len() <= MARKED {
            return lost.iter().map(|&(x, top)| curve(vec![(x, [low, top, top])])).collect();
        }
        let spike = |&(x, top): &(f64, f64)| [low, top, low].map(|y| (x, [y; 3]));
        vec![curve(lost.iter().flat_map(spike).collect())]
    }
}

/// Draws the round trips of a run over time, with its losses, as SVG.
pub fn svg(config: &Config, summary: &Summary) -> String {
    let series = &summary.series;
    let curve = |dashed, points| Curve { series: 0, dashed, points };
    let mean = |bucket: &Bucket| bucket.sum / bucket.received;
    let (longest, mean) = (series.times(|bucket| bucket.longest), series.times(mean));
    let is_merged = series.places().any(|(_, bucket)| bucket.received > 1);
    let mut curves = series.losses(decades(mean.iter().chain(&longest)));
    curves.extend(is_merged.then(|| curve(true, longest)));
    curves.push(curve(false, mean));
    let title = match is_merged {
        true => "Round-trip time: mean, and longest (dashed)",
        false => "Round-trip time",
    };
    let panel = Panel { title, below: "seconds", across: NUMBERS, up: TIMES, curves };
    let headline = format!("Pings of {} over {}", config.target, config.transport.name());
    let names = ["round-trip time", "lost, or damaged"];
    plot::svg(&headline, &names, &[panel], &notes(summary, is_merged))
}

/// The ends of an axis in decades that holds all values, of which there may be none.
fn decades<'a>(points: impl Iterator<Item = &'a (f64, [f64; 3])> + Clone) -> [f64; 2] {
    let values = points.map(|&(_, [_, y, _])| y.log10());
    let low = values.clone().reduce(f64::min).unwrap_or(5.5).floor();
    let high = values.reduce(f64::max).unwrap_or(5.5).ceil().max(low + 1.0);
    [low, high].map(|place| 10_f64.powf(place))
}

fn notes(summary: &Summary, is_merged: bool) -> Vec<String> {
    let Summary { sent, received, lost, .. } = summary;
    let [sent, received, lost] = [sent, received, lost].map(|&count| grouped(count));
    let mut counts = format!("{sent} sent, {received} received, {lost} lost");
    for ((reason, count), sign) in summary.lost_by.iter().zip(once(":").chain(repeat(","))) {
        counts += &format!("{sign} {} {reason}", grouped(*count));
    }
    let mut notes = vec![counts + "."];
    if is_merged {
        let width = time(Duration::from_nanos(summary.series.width));
        notes.push(format!("Each point is {width}. A line of losses is as high as their share."));
    }
    notes.push(format!(
        "Pings are drawn at the time when they were sent. evecho {}.",
        env!("CARGO_PKG_VERSION")
    ));
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_run_of_any_length_has_few_buckets_that_hold_all() {
        let mut series = Series::default();
        for second in 0..100_000 {
            let time = (second % 5 > 0).then(|| MS * (second % 5));
            series.count(u64::from(second) * 1_000_000_000, time);
            assert!(series.buckets.len() <= MOST);
        }
        let mut sum = Bucket::default();
        series.buckets.iter().for_each(|&bucket| sum += bucket);
        let all = Bucket { received: 80_000, sum: 200_000 * MS, longest: 4 * MS, missed: 20_000 };
        assert_eq!(sum, all);
        let places: Vec<f64> = series.places().map(|(x, _)| x).collect();
        assert!(places.is_sorted() && places.last().is_some_and(|&last| last > 99_000.0));
    }

    #[test]
    fn pings_of_a_short_run_stand_where_they_were_sent() {
        let mut series = Series::default();
        // The second one is lost, and known to be so after the third has come back.
        for (second, time) in [(0, Some(MS)), (2, Some(3 * MS)), (1, None)] {
            series.count(second * 1_000_000_000, time);
        }
        let places: Vec<(f64, u32)> =
            series.places().map(|(x, bucket)| (x.round(), bucket.missed)).collect();
        assert_eq!(places, [(0.0, 0), (1.0, 1), (2.0, 0)]);
        let [loss] = &series.losses([1e6, 1e7])[..] else { panic!("it is one loss") };
        assert_eq!(loss.points[0].1, [1e6, 1e7, 1e7]);
    }

    #[test]
    fn an_axis_has_whole_decades() {
        let ends = |values: &[f64]| {
            let points: Vec<_> = values.iter().map(|&y| (0.0, [y; 3])).collect();
            decades(points.iter())
        };
        assert_eq!(ends(&[2e4, 3e6]), [1e4, 1e7]);
        assert_eq!(ends(&[]), [1e5, 1e6]);
        assert_eq!(ends(&[1e5]), [1e5, 1e6]);
    }
}
