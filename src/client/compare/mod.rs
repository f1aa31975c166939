//! Compares servers under the same load: which answers how much, how soon, and at what cost.
//!
//! [`run`] starts each server as a child process, puts it under a [`Trial`], ends it, and goes on to
//! the next server: a round has every trial of every server, and there are several rounds, so that
//! what drifts on the machine drifts for all. Every byte that comes back is verified.
//!
//! The modules: `trial` one server under one trial, `report` what came of all of them, `figure` the
//! report as a drawing.

mod figure;
mod report;
mod trial;

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use figure::svg;
pub use report::{Cell, Machine, Measurement, Report, Server, Silence, Spread};

use super::process::ServerCommand;
use super::{Cancel, load};

/// A server that takes part.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Contender {
    /// What it is called in the report: each has a name of its own.
    pub name: String,
    /// How it is started.
    pub command: ServerCommand,
    /// Its version, where that is known.
    pub version: Option<String>,
}

impl Contender {
    /// A server of this name, started by this command.
    pub fn new(name: impl Into<String>, command: ServerCommand) -> Self {
        Self { name: name.into(), command, version: None }
    }
}

/// What the servers are put under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "trial")]
#[non_exhaustive]
pub enum Trial {
    /// So many connections that stay, each with messages in flight all the time.
    Connections {
        /// How many.
        connections: u32,
    },
    /// One client that sends all it can and never reads, and after it so many others that behave.
    Slow {
        /// How many others.
        connections: u32,
    },
    /// So many connections that say nothing after a first message, and one that talks.
    Idle {
        /// How many are silent.
        connections: u32,
    },
    /// So many clients that connect, exchange one message, close, and connect again.
    Short {
        /// How many at a time.
        connections: u32,
    },
}

impl Trial {
    /// The connections that the trial is about.
    pub fn connections(self) -> u32 {
        match self {
            Trial::Connections { connections }
            | Trial::Slow { connections }
            | Trial::Idle { connections }
            | Trial::Short { connections } => connections,
        }
    }
}

/// `3 connections`, `one slow client before 100 others`.
impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trial::Connections { connections: 1 } => f.write_str("1 connection"),
            Trial::Connections { connections } => write!(f, "{connections} connections"),
            Trial::Slow { connections } => {
                write!(f, "one slow client before {connections} others")
            }
            Trial::Idle { connections } => write!(f, "one client among {connections} idle ones"),
            Trial::Short { connections } => {
                write!(f, "{connections} clients, each message a connection")
            }
        }
    }
}

/// What a comparison is asked to do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Who takes part.
    pub contenders: Vec<Contender>,
    /// What they are put under, in this order.
    pub trials: Vec<Trial>,
    /// How often each server is put under each trial: at least 1. Default: 5.
    pub rounds: u32,
    /// How long each trial is measured. Default: 400 ms.
    pub time: Duration,
    /// Load before that. Default: 150 ms, time for a thread to start for each of a thousand
    /// connections.
    pub warmup: Duration,
    /// Bytes in a message: at least 1. Default: 64.
    pub size: usize,
    /// Messages in flight on each connection that stays: at least 1. Default: 1.
    pub depth: u16,
    /// How long a reply, or the start of a server, may take. Default: 1 s.
    pub timeout: Duration,
    /// See [`Start::supervisor`](super::process::Start::supervisor). Default: none.
    pub supervisor: Vec<OsString>,
}

impl Config {
    /// The defaults, for these servers under these trials.
    pub fn new(contenders: Vec<Contender>, trials: Vec<Trial>) -> Self {
        Self {
            contenders,
            trials,
            rounds: 5,
            time: Duration::from_millis(400),
            warmup: Duration::from_millis(150),
            size: 64,
            depth: 1,
            timeout: Duration::from_secs(1),
            supervisor: Vec::new(),
        }
    }
}

/// How far a comparison has come: what is about to be measured.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// Measurements before this one.
    pub done: u32,
    /// Measurements in all, unless some are left out because the server failed.
    pub total: u32,
    /// The round, from 1 on.
    pub round: u32,
    /// The server's name.
    pub name: &'a str,
    /// What it is put under.
    pub trial: Trial,
}

/// Puts every server under every trial, round after round.
///
/// A server that fails at something is not put under that trial again; the rest goes on.
/// `progress` hears of every measurement before it begins. After `cancel` the report has what was
/// measured so far. Call it from a thread that lives on: the servers end with it.
///
/// # Errors
///
/// When a config is none, or the system does not let this process have so many connections.
pub fn run(
    config: &Config,
    cancel: &Cancel,
    mut progress: impl FnMut(&Progress<'_>),
) -> Result<Report, load::Error> {
    // Before anyone is blamed for it. The slow client is one more.
    let most = config.trials.iter().map(|trial| trial.connections() + 1).max();
    load::check_room(most.unwrap_or(0))?;
    let mut report = Report::new(config);
    let contenders = config.contenders.len();
    let total = config.rounds * (config.trials.len() * contenders) as u32;
    let mut done = 0;
    for round in 0..config.rounds {
        for &trial in &config.trials {
            for step in 0..contenders {
                // Nobody is always the first, or always behind the same one.
                let contender = &config.contenders[(round as usize + step) % contenders];
                let cell = report.cell(&contender.name, trial);
                if cell.fault.is_none() {
                    let name = &contender.name;
                    progress(&Progress { done, total, round: round + 1, name, trial });
                    match trial::measure(config, contender, trial, cancel)? {
                        trial::TrialResult::Measured(measurement) => cell.rounds.push(measurement),
                        trial::TrialResult::Failed(fault) => cell.fault = Some(fault),
                        trial::TrialResult::Stopped => {
                            report.stopped = true;
                            return Ok(report);
                        }
                    }
                }
                done += 1;
            }
        }
    }
    Ok(report)
}
