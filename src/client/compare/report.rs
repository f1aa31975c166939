//! What came of a comparison: every measurement, and what they have in common.

use std::fmt::Write;

use serde::Serialize;

use super::{Config, Contender, Trial};
use crate::client::process::MemoryKind;
use crate::error::Transport;
use crate::sys::tool;

/// What came of a comparison.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Where it was made.
    pub machine: Machine,
    /// The version of evecho.
    pub version: &'static str,
    /// Seconds since 1970, UTC, when it began.
    pub began: u64,
    /// TCP or UDP.
    pub transport: Transport,
    /// How often each server was to be put under each trial.
    pub rounds: u32,
    /// How long each was measured, in seconds.
    pub seconds: f64,
    /// Bytes in a message.
    pub size: usize,
    /// Whether the servers were to answer in upper case.
    pub upper: bool,
    /// Messages in flight on each connection.
    pub depth: u16,
    /// The servers and how they were started, in the order of the table.
    pub servers: Vec<Contender>,
    /// What was measured, trial by trial, and in each server by server.
    pub cells: Vec<Cell>,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

/// The machine that everything ran on.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Machine {
    /// What the processor calls itself.
    pub cpu: String,
    /// CPUs that may be used.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// The kernel and its release.
    pub kernel: String,
    /// CPUs that were busy with other things just before: the more, the less the numbers say.
    pub busy_cpus: f64,
}

/// One server under one trial.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Cell {
    /// The server's name.
    pub server: String,
    /// What it was put under.
    #[serde(flatten)]
    pub trial: Trial,
    /// One measurement a round.
    pub rounds: Vec<Measurement>,
    /// Why there are no more of them: a sentence about what the server did.
    pub fault: Option<String>,
}

/// What was measured of one server under one trial in one round.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Measurement {
    /// Messages that came back per second, whole, correct and in order.
    pub messages_per_second: f64,
    /// The median time of a message, in microseconds.
    pub p50_us: f64,
    /// The 99th percentile, in microseconds.
    pub p99_us: f64,
    /// CPU time of the server for each message, in microseconds.
    pub cpu_us_per_message: f64,
    /// How often a thread of the server gave up its CPU, or lost it, for each message. Unknown where
    /// threads may have ended in the meantime.
    pub switches_per_message: Option<f64>,
    /// Threads of the server.
    pub threads: f64,
    /// Memory of the server in bytes, as `memory_kind` says.
    pub memory_bytes: f64,
    /// How that was counted: of several processes, in one of two ways.
    pub memory_kind: MemoryKind,
    /// Processes of the server.
    pub processes: f64,
    /// What it did while its idle connections were silent, where there were such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
    /// Why its messages take long, where that is known to be no work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

/// What a server did while no client said anything.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Silence {
    /// Share of one CPU.
    pub cpu_percent: f64,
    /// How often a thread of the server gave up its CPU, or lost it, per second.
    pub switches_per_second: f64,
}

/// A value in several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The lowest.
    pub low: f64,
    /// The one in the middle; of an even number, the mean of the two.
    pub median: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// Of the values; `None` when there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Spread { low, median, high })
    }

    /// Half of the way from the lowest to the highest, in percent of the median.
    pub fn percent(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / self.median * 50.0 }
    }

    /// Whether every value is above every one of `other`: the order is clear.
    pub fn is_clearly_above(&self, other: &Spread) -> bool {
        self.low > other.high
    }
}

impl Cell {
    /// One value of all rounds.
    pub fn spread(&self, value: impl Fn(&Measurement) -> f64) -> Option<Spread> {
        Spread::of(self.rounds.iter().map(value))
    }
}

impl Report {
    /// Whether every server was measured at least once: it started, and answered what it was asked.
    pub fn measured_all(&self) -> bool {
        let measured = |server: &Contender| {
            self.cells.iter().any(|cell| cell.server == server.name && !cell.rounds.is_empty())
        };
        self.servers.iter().all(measured)
    }

    /// How many rounds every server has been through, but for those that failed. 0 when it was stopped
    /// in the first.
    pub fn rounds_done(&self) -> u32 {
        let good = self.cells.iter().filter(|cell| cell.fault.is_none());
        let done = good.map(|cell| cell.rounds.len() as u32).min();
        if self.stopped { done.unwrap_or(0) } else { self.rounds }
    }

    /// One without measurements: for [`run`](super::run()), and for other ways to measure.
    #[doc(hidden)]
    pub fn new(config: &Config) -> Report {
        let names = || config.contenders.iter().map(|contender| contender.name.clone());
        let cell = |trial, server| Cell { server, trial, rounds: Vec::new(), fault: None };
        let cells = config.trials.iter();
        let cells = cells.flat_map(|&trial| names().map(move |server| cell(trial, server)));
        let now = std::time::UNIX_EPOCH.elapsed();
        Report {
            machine: Machine::this(),
            version: env!("CARGO_PKG_VERSION"),
            began: now.map_or(0, |time| time.as_secs()),
            transport: config.transport,
            rounds: config.rounds,
            seconds: config.time.as_secs_f64(),
            size: config.size,
            upper: config.upper,
            depth: config.depth,
            servers: config.contenders.clone(),
            cells: cells.collect(),
            stopped: false,
        }
    }

    /// The cell of a server under a trial.
    ///
    /// # Panics
    ///
    /// When the config had no such server, or no such trial.
    #[doc(hidden)]
    pub fn cell(&mut self, server: &str, trial: Trial) -> &mut Cell {
        let mut cells = self.cells.iter_mut();
        let found = cells.find(|cell| cell.server == server && cell.trial == trial);
        found.expect("every server has a cell for every trial")
    }

    /// The trials, in their order.
    pub fn trials(&self) -> Vec<Trial> {
        let mut trials: Vec<Trial> = self.cells.iter().map(|cell| cell.trial).collect();
        trials.dedup();
        trials
    }

    /// The cells of a trial, in the order of the servers.
    pub fn cells_of(&self, trial: Trial) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(move |cell| cell.trial == trial)
    }

    /// Every measurement in a line of its own, and every fault, with a line of names before them
    /// (RFC 4180).
    pub fn csv(&self) -> String {
        let mut csv = "trial,connections,server,round,messages_per_second,p50_us,p99_us,\
            cpu_us_per_message,switches_per_message,threads,processes,memory_bytes,memory_kind,silent_cpu_percent,\
            silent_switches_per_second,fault\r\n"
            .to_owned();
        for cell in &self.cells {
            let Trial { scene, connections } = cell.trial;
            let head = format!("{scene},{connections},{}", quoted(&cell.server));
            for (index, m) in cell.rounds.iter().enumerate() {
                let silence = m.silence.as_ref();
                let silence = silence.map_or(",".to_owned(), |silence| {
                    format!("{:.3},{:.1}", silence.cpu_percent, silence.switches_per_second)
                });
                // A String takes everything.
                let _ = write!(
                    csv,
                    "{head},{},{:.1},{:.2},{:.2},{:.4},{},{},{},{},{:?},{silence},\r\n",
                    index + 1,
                    m.messages_per_second,
                    m.p50_us,
                    m.p99_us,
                    m.cpu_us_per_message,
                    m.switches_per_message.map_or(String::new(), |each| format!("{each:.4}")),
                    m.threads,
                    m.processes,
                    m.memory_bytes,
                    m.memory_kind,
                );
            }
            if let Some(fault) = &cell.fault {
                let round = cell.rounds.len() + 1;
                let _ = write!(csv, "{head},{round},,,,,,,,,,,,{}\r\n", quoted(fault));
            }
        }
        csv
    }
}

/// A field of a CSV file.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

impl Machine {
    /// The one that this runs on; what it does not tell is empty, or zero.
    fn this() -> Machine {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        Machine {
            cpu: tool::cpu_name(),
            cpus,
            memory: tool::memory(),
            kernel: tool::kernel(),
            busy_cpus: tool::busy_share() * cpus as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_between_the_extremes() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(odd, Spread { low: 1.0, median: 2.0, high: 3.0 });
        assert_eq!(odd.percent(), 50.0);
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert!(Spread::of([4.0, 5.0]).unwrap().is_clearly_above(&odd));
        assert!(!Spread::of([3.0, 5.0]).unwrap().is_clearly_above(&odd));
    }

    #[test]
    fn a_field_with_a_comma_is_quoted() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
