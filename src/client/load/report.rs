//! What came of a run.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::config::Config;
use super::faults::Errors;
use super::nanoseconds;
use crate::client::histogram::Histogram;

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was asked for.
    pub config: Config,
    /// Connections (UDP: sockets) that were opened before the load began.
    pub opened: u32,
    /// Connections on which no message came back in the measured part. Churn knows none.
    pub starved: u32,
    /// Length of the measured part: when a number of messages was asked for, until the last of
    /// them came back.
    #[serde(rename = "duration_ns", serialize_with = "nanoseconds")]
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
}

impl Report {
    /// Whether something came back, nothing was wrong, and all that was due was sent.
    pub fn is_clean(&self) -> bool {
        self.messages > 0 && self.errors.total() == 0 && self.unsent == 0
    }
}

/// How long messages took. As JSON, in nanoseconds.
///
/// A message that was due and never sent took longer than all that were measured: where a
/// percentile falls on one of these, there is no time to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Latency {
    /// The shortest.
    #[serde(rename = "min_ns", serialize_with = "nanoseconds")]
    pub min: Duration,
    /// The mean of those that came back.
    #[serde(rename = "mean_ns", serialize_with = "nanoseconds")]
    pub mean: Duration,
    /// The median.
    #[serde(rename = "p50_ns", serialize_with = "optional_nanoseconds")]
    pub p50: Option<Duration>,
    /// 90 % took no longer.
    #[serde(rename = "p90_ns", serialize_with = "optional_nanoseconds")]
    pub p90: Option<Duration>,
    /// 99 % took no longer.
    #[serde(rename = "p99_ns", serialize_with = "optional_nanoseconds")]
    pub p99: Option<Duration>,
    /// 99.9 % took no longer.
    #[serde(rename = "p999_ns", serialize_with = "optional_nanoseconds")]
    pub p999: Option<Duration>,
    /// The longest.
    #[serde(rename = "max_ns", serialize_with = "optional_nanoseconds")]
    pub max: Option<Duration>,
}

impl Latency {
    /// Of the times that were measured, and messages that were never sent. Nothing when none was
    /// measured.
    pub(super) fn of(times: &Histogram, unsent: u64) -> Option<Self> {
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

fn optional_nanoseconds<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => nanoseconds(time, serializer),
        None => serializer.serialize_none(),
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
