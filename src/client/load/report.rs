//! What came of a run.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::Config;
use super::counts::Counts;
use super::faults::Errors;
use crate::client::histogram::Histogram;
use crate::client::nanoseconds;

/// What came of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The version of evecho that made it.
    pub version: String,
    /// How many runs it adds up: 1, unless it comes from [`Report::merge`].
    pub runs: u32,
    /// What was asked for.
    pub config: Config,
    /// Connections (UDP: sockets) that were opened before the load began.
    pub opened: u32,
    /// Connections on which no message came back in the measured part. Churn knows none.
    pub starved: u32,
    /// Messages a second on the connection with the fewest of them. Churn knows none.
    pub slowest: Option<f64>,
    /// Messages a second on the connection with the most of them. Churn knows none.
    pub fastest: Option<f64>,
    /// Length of the measured part: when a number of messages was asked for, until the last of
    /// them came back.
    #[serde(rename = "duration_ns", with = "nanoseconds")]
    pub duration: Duration,
    /// Messages (churn: connections) that came back in the measured part, whole, correct and in
    /// order. When a number of messages was asked for, those begun before are left out.
    pub messages: u64,
    /// The bytes of these messages.
    pub bytes: u64,
    /// Messages a second.
    pub rate: f64,
    /// How long the messages took that were begun in the measured part, also those that came back
    /// after its end; in stream mode, and when there was none, nothing.
    pub latency: Option<Latency>,
    /// What was wrong, by kind, from the first connection to the last byte.
    pub errors: Errors,
    /// A sentence about the first fault.
    pub first_error: Option<String>,
    /// Messages that were due at the asked rate and never sent: the server, or the client, did
    /// not keep up.
    pub unsent: u64,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// All that `latency` is made of; as JSON, in the V2 format of HdrHistogram, compressed and
    /// in base64.
    #[serde(rename = "histogram")]
    pub(super) times: Histogram,
}

impl Report {
    /// Adds up reports of runs of the same load that went on at the same time, from several
    /// machines, say: counts, rates and histograms are exact sums, and the latencies are those of
    /// all messages. The duration is the longest.
    ///
    /// # Errors
    ///
    /// When there is none, or when they differ in transport, mode, size, depth, or in having a
    /// rate: their sums would mean nothing.
    pub fn merge(reports: impl IntoIterator<Item = Self>) -> Result<Self, MergeError> {
        let mut reports = reports.into_iter();
        let mut sum = reports.next().ok_or(MergeError(WhyNot::Nothing))?;
        for other in reports {
            sum.config.add(&other.config).map_err(|what| MergeError(WhyNot::Differ(what)))?;
            sum.runs += other.runs;
            sum.opened += other.opened;
            sum.starved += other.starved;
            sum.slowest = either(sum.slowest, other.slowest, f64::min);
            sum.fastest = either(sum.fastest, other.fastest, f64::max);
            sum.duration = sum.duration.max(other.duration);
            sum.messages += other.messages;
            sum.bytes += other.bytes;
            sum.rate += other.rate;
            sum.errors.add(&other.errors);
            sum.first_error = sum.first_error.or(other.first_error);
            sum.unsent += other.unsent;
            sum.stopped |= other.stopped;
            sum.times.add(&other.times);
        }
        sum.latency = Latency::of(&sum.times, sum.unsent);
        sum.version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(sum)
    }

    /// Whether something came back, nothing was wrong, and all that was due was sent.
    pub fn is_clean(&self) -> bool {
        self.messages > 0 && self.errors.total() == 0 && self.unsent == 0
    }
}

/// One of two where both are known, else none.
fn either(one: Option<f64>, other: Option<f64>, pick: fn(f64, f64) -> f64) -> Option<f64> {
    Some(pick(one?, other?))
}

/// Why reports cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeError(WhyNot);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhyNot {
    Nothing,
    Differ(&'static str),
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            WhyNot::Nothing => write!(f, "there is no report to add"),
            WhyNot::Differ(what) => write!(
                f,
                "the reports are of different loads, which cannot be added: they differ in {what}"
            ),
        }
    }
}

impl std::error::Error for MergeError {}

/// How long messages took. As JSON, in nanoseconds.
///
/// A message that was due and never sent took longer than all that were measured: where a
/// percentile falls on one of these, there is no time to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Latency {
    /// The shortest.
    #[serde(rename = "min_ns", with = "nanoseconds")]
    pub min: Duration,
    /// The mean of those that came back.
    #[serde(rename = "mean_ns", with = "nanoseconds")]
    pub mean: Duration,
    /// The median.
    #[serde(rename = "p50_ns", with = "nanoseconds::option")]
    pub p50: Option<Duration>,
    /// 90 % took no longer.
    #[serde(rename = "p90_ns", with = "nanoseconds::option")]
    pub p90: Option<Duration>,
    /// 99 % took no longer.
    #[serde(rename = "p99_ns", with = "nanoseconds::option")]
    pub p99: Option<Duration>,
    /// 99.9 % took no longer.
    #[serde(rename = "p999_ns", with = "nanoseconds::option")]
    pub p999: Option<Duration>,
    /// The longest.
    #[serde(rename = "max_ns", with = "nanoseconds::option")]
    pub max: Option<Duration>,
}

impl Latency {
    /// Of the times that were measured, and messages that were never sent. Nothing when none was
    /// measured.
    pub(in crate::client) fn of(times: &Histogram, unsent: u64) -> Option<Self> {
        let measured = times.count();
        let percentile = |share: f64| {
            let rank = ((measured + unsent) as f64 * share).ceil() as u64;
            (rank <= measured).then(|| times.percentile(rank as f64 / measured as f64))
        };
        (measured > 0).then(|| Self {
            min: times.min(),
            mean: times.mean(),
            p50: percentile(0.5),
            p90: percentile(0.9),
            p99: percentile(0.99),
            p999: percentile(0.999),
            max: percentile(1.0),
        })
    }
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Connections are being opened.
    Opening,
    /// Load that is not measured.
    WarmUp,
    /// The measured part.
    Measuring,
    /// Nothing new is sent; what is out has to come back.
    Draining,
    /// Nothing is out any more, and nothing is closed yet.
    Over,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress {
    /// Where it stands.
    pub phase: Phase,
    /// Since its beginning, the opening of connections included.
    pub elapsed: Duration,
    /// Connections open so far.
    pub opened: u32,
    /// Messages that came back so far, warm-up included.
    pub messages: u64,
    /// Faults seen so far.
    pub errors: u64,
    /// The interval of the measured part that is just over, where this call is about one: each is
    /// told once, the last one when the run is over.
    pub interval: Option<Interval>,
    /// All intervals so far.
    pub so_far: Option<Interval>,
}

/// A part of the measured part of a run. What the intervals count adds up to what the report has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Interval {
    /// When it began, since the measured part began.
    #[serde(rename = "from_ns", with = "nanoseconds")]
    pub from: Duration,
    /// When it ended.
    #[serde(rename = "to_ns", with = "nanoseconds")]
    pub to: Duration,
    /// Messages that came back, whole, correct and in order.
    pub messages: u64,
    /// The bytes of these messages.
    pub bytes: u64,
    /// Messages a second.
    pub rate: f64,
    /// How long messages took that came back; in the last interval, also after its end.
    pub latency: Option<Latency>,
    /// Faults of all kinds; those before the measured part count in the first interval, those
    /// after it in the last one.
    pub errors: u64,
    /// Messages that were due and never sent; known when the run is over.
    pub unsent: u64,
}

impl Interval {
    pub(super) fn of(from: Duration, to: Duration, counts: &Counts, size: usize) -> Self {
        let &Counts { messages, ref times, errors, unsent } = counts;
        Self {
            from,
            to,
            messages,
            bytes: messages * size as u64,
            rate: per_second(messages, to.saturating_sub(from)),
            latency: Latency::of(times, unsent),
            errors,
            unsent,
        }
    }
}

/// How many a second; none in no time.
pub(super) fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_sent_is_later_than_all_that_was_measured() {
        let mut times = Histogram::new();
        (1..=90).for_each(|time| times.record(time));
        let all = Latency::of(&times, 0).unwrap();
        let ns = |time| Some(Duration::from_nanos(time));
        assert_eq!((all.p50, all.p90, all.p99, all.max), (ns(45), ns(81), ns(90), ns(90)));
        let with_unsent = Latency::of(&times, 10).unwrap();
        let Latency { p50, p90, p99, max, .. } = with_unsent;
        assert_eq!((p50, p90, p99, max), (ns(50), ns(90), None, None));
        assert_eq!(Latency::of(&times, u64::MAX / 2).unwrap().p50, None);
        assert_eq!(Latency::of(&Histogram::new(), 10), None);
    }
}
