//! What came of a run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use super::config::Config;
use super::cost::{ClientUsage, ServerUsage};
use super::faults::Errors;
use super::origin::{self, Origin};
use super::ports::Ports;
use crate::client::histogram::Histogram;
use crate::client::nanoseconds;

/// What came of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// The version of evecho that made it.
    pub version: String,
    /// The runs that it adds up: one, unless it comes from [`Report::merge`].
    pub runs: Vec<Origin>,
    /// What was asked for, and the source addresses that were used. Of several runs, the connections and
    /// threads are the most at any one time, and the rate is the mean over `duration`.
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
    /// them came back. Of several runs, the time in which at least one of them went on.
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
    /// Churn: how long the handshake took of each connection that `latency` counts.
    #[serde(default)]
    pub connecting: Option<Part>,
    /// Churn: how long it then took until the whole message was back. What is left of `latency` is the time until
    /// it was begun, and that until the server's FIN came.
    #[serde(default)]
    pub exchange: Option<Part>,
    /// At a rate: how late messages were sent after they were due, of those that were; `latency` has it, too.
    #[serde(default)]
    pub send_delay: Option<Part>,
    /// At a rate: how often 65,536 messages were out on a connection, which is the most; what was
    /// due then waited, or was never sent.
    #[serde(default)]
    pub bound_met: u64,
    /// How often a UDP socket was replaced by one with another port, since datagrams in a row were lost and
    /// nothing came back for a second.
    #[serde(default)]
    pub replaced: u64,
    /// At a rate: how often a message was due and no connection could take it: streams were full, or, in
    /// churn, all connections open.
    #[serde(default)]
    pub blocked: u64,
    /// Over TCP, the most local ports that were taken at one time, where their number is known.
    #[serde(default)]
    pub ports: Option<Ports>,
    /// What was wrong, by kind, from the first connection to the last byte.
    pub errors: Errors,
    /// A sentence about the first fault.
    pub first_error: Option<String>,
    /// What the client needed itself; nothing in reports of earlier versions.
    #[serde(default)]
    pub client: Option<ClientUsage>,
    /// What the server's process used, where a [`Watch`](super::Watch) was told of the run. Of several runs,
    /// where one has it.
    #[serde(default)]
    pub server: Option<ServerUsage>,
    /// Messages that were due at the asked rate and never sent: the server, or the client, did
    /// not keep up.
    pub unsent: u64,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// The measured part from its beginning to its end, in up to 240 intervals of
    /// [`Config::every`], or of as many of these as it takes: the percentiles of such a one are the
    /// highest among them. None in the sum of several runs.
    #[serde(default)]
    pub intervals: Vec<Interval>,
    /// Why it could not go on until its end, if it could not: a sentence.
    #[serde(default)]
    pub ended: Option<String>,
    /// All that `latency` is made of; as JSON, in the V2 format of HdrHistogram, compressed and
    /// in base64.
    #[serde(rename = "histogram")]
    pub(super) times: Histogram,
}

impl Report {
    /// Adds up reports of runs of the same load, from several machines, say: counts and histograms are
    /// exact sums, and the latencies are those of all messages. The rate is that of all messages over the
    /// time in which runs went on, so those that did not overlap do not count as if they had. The clocks
    /// of the machines have to agree.
    ///
    /// # Errors
    ///
    /// When there is none, when they differ in transport, mode, size, depth, or in having a rate: their
    /// sums would mean nothing. When a run is in two of them.
    pub fn merge(reports: impl IntoIterator<Item = Self>) -> Result<Self, Error> {
        let mut reports = reports.into_iter();
        let mut sum = reports.next().ok_or(Error::Invalid("there is no report to add"))?;
        for other in reports {
            sum.config.add(&other.config)?;
            if let Some(twice) = other.runs.iter().find(|run| sum.runs.contains(run)) {
                return Err(Error::Twice { host: twice.host.clone() });
            }
            sum.runs.extend(other.runs);
            sum.opened = sum.opened.saturating_add(other.opened);
            sum.starved = sum.starved.saturating_add(other.starved);
            sum.slowest = either(sum.slowest, other.slowest, f64::min);
            sum.fastest = either(sum.fastest, other.fastest, f64::max);
            sum.messages = sum.messages.saturating_add(other.messages);
            sum.bytes = sum.bytes.saturating_add(other.bytes);
            sum.errors.add(&other.errors);
            sum.first_error = sum.first_error.or(other.first_error);
            sum.unsent = sum.unsent.saturating_add(other.unsent);
            sum.client = sum.client.zip(other.client).map(|(ours, theirs)| ours.and(&theirs));
            sum.server = sum.server.xor(other.server);
            sum.stopped |= other.stopped;
            sum.ended = sum.ended.or(other.ended);
            sum.connecting = both(sum.connecting, other.connecting, Part::add);
            sum.exchange = both(sum.exchange, other.exchange, Part::add);
            sum.ports = both(sum.ports, other.ports, Ports::add);
            sum.times.add(&other.times);
            sum.intervals.clear();
            sum.send_delay = both(sum.send_delay, other.send_delay, Part::add);
            sum.bound_met = sum.bound_met.saturating_add(other.bound_met);
            sum.replaced = sum.replaced.saturating_add(other.replaced);
            sum.blocked = sum.blocked.saturating_add(other.blocked);
        }
        let runs = &sum.runs;
        sum.duration = origin::covered(runs);
        sum.rate = per_second(sum.messages, sum.duration);
        sum.config.connections = origin::most(runs, |run| run.connections);
        sum.config.threads = origin::most(runs, |run| run.threads);
        sum.config.rate = origin::mean_rate(runs).or(sum.config.rate);
        sum.latency = Latency::of(&sum.times, sum.without_time());
        sum.version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(sum)
    }

    /// Messages that were due and never sent, or that had no good reply. In percentiles they count as
    /// later than all that came back.
    pub fn without_time(&self) -> u64 {
        self.unsent.saturating_add(self.errors.without_reply())
    }

    /// Whether something came back, nothing was wrong, all that was due was sent, and the run could go on until its
    /// end.
    pub fn is_clean(&self) -> bool {
        self.messages > 0 && self.errors.total() == 0 && self.unsent == 0 && self.ended.is_none()
    }
}

/// How long one part of each latency took.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Part {
    /// Its percentiles.
    #[serde(flatten)]
    pub latency: Latency,
    /// All times, as in [`Report`].
    #[serde(rename = "histogram")]
    times: Histogram,
}

impl Part {
    /// Nothing when no time was measured.
    pub(super) fn of(times: Histogram) -> Option<Self> {
        Latency::of(&times, 0).map(|latency| Self { latency, times })
    }

    fn add(&mut self, other: &Self) {
        self.times.add(&other.times);
        self.latency = Latency::of(&self.times, 0).unwrap_or(self.latency);
    }
}

/// The sum of two that may be missing.
fn both<T>(one: Option<T>, other: Option<T>, add: fn(&mut T, &T)) -> Option<T> {
    match (one, other) {
        (Some(mut sum), Some(other)) => {
            add(&mut sum, &other);
            Some(sum)
        }
        (one, other) => one.or(other),
    }
}

/// One of two where both are known, else none.
fn either(one: Option<f64>, other: Option<f64>, pick: fn(f64, f64) -> f64) -> Option<f64> {
    Some(pick(one?, other?))
}

/// How long messages took. As JSON, in nanoseconds.
///
/// A message that was due and never sent, or that had no good reply (it was lost, unanswered, corrupt or
/// cut, before the measured part, too), took longer than all that were measured: where a percentile falls
/// on one of these, there is no time to tell.
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
    /// Of the times that were measured, and messages that have none. Nothing when none was measured.
    pub(in crate::client) fn of(times: &Histogram, without_time: u64) -> Option<Self> {
        let percentile = |share| percentile(times, without_time, share);
        (times.count() > 0).then(|| Self {
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

/// The time that this share of all messages, 0 to 1, did not exceed; `None` where it falls on one that
/// has none.
pub(super) fn percentile(times: &Histogram, without_time: u64, share: f64) -> Option<Duration> {
    let measured = times.count();
    let rank = (measured.saturating_add(without_time) as f64 * share).ceil() as u64;
    // In the middle of its share, so that rounding does not lead to the next one.
    (rank <= measured).then(|| times.percentile((rank.max(1) as f64 - 0.5) / measured as f64))
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
    /// Over TCP, the local ports that the run takes, where their number is known.
    pub ports: Option<Ports>,
    /// The interval of the measured part that is just over, where this call is about one: each is
    /// reported once, the last one when the run is over.
    pub interval: Option<Interval>,
    /// All intervals so far.
    pub so_far: Option<Interval>,
}

/// A part of the measured part of a run. What the intervals count adds up to what the report has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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

/// What was counted in a part of the measured time.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) messages: u64,
    /// How long messages took.
    pub(super) times: Histogram,
    /// Faults.
    pub(super) errors: Errors,
    /// Messages that were due and never sent.
    pub(super) unsent: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.times.add(&other.times);
        self.errors.add(&other.errors);
        self.unsent = self.unsent.saturating_add(other.unsent);
    }
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
            latency: Latency::of(times, unsent.saturating_add(errors.without_reply())),
            errors: errors.total(),
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
    fn what_has_no_time_is_later_than_all_that_was_measured() {
        let mut times = Histogram::default();
        (1..=90).for_each(|time| times.record(time));
        let all = Latency::of(&times, 0).unwrap();
        let ns = |time| Some(Duration::from_nanos(time));
        assert_eq!((all.p50, all.p90, all.p99, all.max), (ns(45), ns(81), ns(90), ns(90)));
        let with_missing = Latency::of(&times, 10).unwrap();
        let Latency { p50, p90, p99, max, .. } = with_missing;
        assert_eq!((p50, p90, p99, max), (ns(50), ns(90), None, None));
        assert_eq!(Latency::of(&times, u64::MAX).unwrap().p50, None);
        assert_eq!(Latency::of(&Histogram::default(), 10), None);
    }
}
