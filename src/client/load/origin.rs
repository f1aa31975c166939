//! The runs that a report is made of: when and where each of them was.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::Config;
use crate::client::nanoseconds;
use crate::sys::host_name;

/// A run that a report is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Origin {
    /// The name of the machine that it ran on.
    pub host: String,
    /// The version of evecho that it ran with.
    pub version: String,
    /// When the measured part began, by the clock of that machine: the time since 1970 (UTC).
    #[serde(rename = "start_ns", with = "nanoseconds")]
    pub start: Duration,
    /// How long the measured part lasted.
    #[serde(rename = "duration_ns", with = "nanoseconds")]
    pub duration: Duration,
    /// How many connections were asked for.
    pub connections: u32,
    /// How many threads had them.
    pub threads: u32,
    /// Messages a second that were asked for, if a rate was.
    pub rate: Option<f64>,
}

impl Origin {
    /// A run on this machine, here and now.
    pub(super) fn new(config: &Config, start: Duration, duration: Duration) -> Self {
        let &Config { connections, threads, rate, .. } = config;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { host: host_name(), version, start, duration, connections, threads, rate }
    }

    /// When the measured part ended: the time since 1970 (UTC).
    pub fn end(&self) -> Duration {
        self.start.saturating_add(self.duration)
    }

    fn is_on(&self, at: Duration) -> bool {
        at == self.start || (self.start..self.end()).contains(&at)
    }
}

/// The time in which at least one of the runs went on.
pub(super) fn covered(runs: &[Origin]) -> Duration {
    let mut spans: Vec<_> = runs.iter().map(|run| (run.start, run.end())).collect();
    spans.sort_unstable();
    let (mut covered, mut until) = (Duration::ZERO, Duration::ZERO);
    for (start, end) in spans {
        covered = covered.saturating_add(end.saturating_sub(start.max(until)));
        until = until.max(end);
    }
    covered
}

/// The most that the runs had at any one time.
pub(super) fn most(runs: &[Origin], of: impl Fn(&Origin) -> u32) -> u32 {
    let at = |start| runs.iter().filter(move |run| run.is_on(start)).map(&of);
    let sums = runs.iter().map(|run| at(run.start).fold(0, u32::saturating_add));
    sums.max().unwrap_or(0)
}

/// Messages a second that were asked for, over the time in which runs went on.
pub(super) fn mean_rate(runs: &[Origin]) -> Option<f64> {
    let covered = covered(runs).as_secs_f64();
    let asked = runs.iter().map(|run| Some(run.rate? * run.duration.as_secs_f64()));
    (covered > 0.0).then_some(asked.sum::<Option<f64>>()? / covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, seconds: u64) -> Origin {
        let [start, duration] = [start, seconds].map(Duration::from_secs);
        let (host, version) = ("here".to_owned(), "1".to_owned());
        Origin { host, version, start, duration, connections: 3, threads: 1, rate: Some(1000.0) }
    }

    #[test]
    fn runs_add_up_as_far_as_they_overlap() {
        // Alone, at the same time, one within the other, one after the other, with a pause, partly.
        for (runs, seconds, connections, rate) in [
            (vec![run(5, 4)], 4, 3, 1000.0),
            (vec![run(5, 4), run(5, 4)], 4, 6, 2000.0),
            (vec![run(5, 4), run(6, 1)], 4, 6, 1250.0),
            (vec![run(5, 4), run(9, 1)], 5, 3, 1000.0),
            (vec![run(90, 1), run(5, 4)], 5, 3, 1000.0),
            (vec![run(5, 4), run(7, 4), run(8, 1)], 6, 9, 1500.0),
        ] {
            assert_eq!(covered(&runs), Duration::from_secs(seconds), "{runs:?}");
            assert_eq!(most(&runs, |run| run.connections), connections, "{runs:?}");
            assert_eq!(mean_rate(&runs), Some(rate), "{runs:?}");
        }
    }

    #[test]
    fn a_file_may_have_any_numbers() {
        let endless = Origin { duration: Duration::MAX, connections: u32::MAX, ..run(5, 4) };
        let runs = [endless.clone(), endless, run(0, 0)];
        assert_eq!(
            (covered(&runs), most(&runs, |run| run.connections)),
            (Duration::MAX - Duration::from_secs(5), u32::MAX)
        );
        assert_eq!((covered(&[]), most(&[], |_| 1), mean_rate(&[])), (Duration::ZERO, 0, None));
    }
}
