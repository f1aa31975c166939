//! What came of a run.

use std::time::Duration;

use serde::Serialize;

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
    /// order. Those that were begun before it are left out, but for stream mode.
    pub messages: u64,
    /// The bytes of these messages.
    pub bytes: u64,
    /// Messages a second.
    pub rate: f64,
    /// How long the messages took; in stream mode, and when there was none, nothing. Messages of
    /// the measured part that came back after its end are included here.
    pub latency: Option<Latency>,
    /// What was wrong, by kind, from the first connection to the last byte.
    pub errors: Errors,
    /// A sentence about the first fault.
    pub first_error: Option<String>,
    /// Messages that were due at the asked rate but not sent: the server, or the client, did
    /// not keep up.
    pub unsent: u64,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
}

impl Report {
    /// Whether something came back and nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.messages > 0 && self.errors.total() == 0
    }
}

/// How long messages took. As JSON, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// The shortest.
    #[serde(rename = "min_ns", serialize_with = "nanoseconds")]
    pub min: Duration,
    /// The mean.
    #[serde(rename = "mean_ns", serialize_with = "nanoseconds")]
    pub mean: Duration,
    /// The median.
    #[serde(rename = "p50_ns", serialize_with = "nanoseconds")]
    pub p50: Duration,
    /// 90 % took no longer.
    #[serde(rename = "p90_ns", serialize_with = "nanoseconds")]
    pub p90: Duration,
    /// 99 % took no longer.
    #[serde(rename = "p99_ns", serialize_with = "nanoseconds")]
    pub p99: Duration,
    /// 99.9 % took no longer.
    #[serde(rename = "p999_ns", serialize_with = "nanoseconds")]
    pub p999: Duration,
    /// The longest.
    #[serde(rename = "max_ns", serialize_with = "nanoseconds")]
    pub max: Duration,
}

impl Latency {
    /// Nothing when none was recorded.
    pub(super) fn of(times: &Histogram) -> Option<Self> {
        (times.count() > 0).then(|| Self {
            min: times.min(),
            mean: times.mean(),
            p50: times.percentile(0.5),
            p90: times.percentile(0.9),
            p99: times.percentile(0.99),
            p999: times.percentile(0.999),
            max: times.max(),
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
