//! Compares servers under the same load: which answers how much, how soon, and at what cost.
//!
//! [`run`] starts each server as a child process, puts it under a [`Trial`], ends it, and goes on to
//! the next server: a round has every trial of every server, and there are several rounds, so that
//! what drifts on the machine drifts for all. Every byte that comes back is verified.
//!
//! ```no_run
//! use evecho::client::Cancel;
//! use evecho::client::compare::{self, Config, Scene, Trial};
//!
//! let servers = vec!["evecho=evecho -p {port}".parse()?, "socat=socat TCP-LISTEN:{port},fork PIPE".parse()?];
//! let trials = vec![Trial { scene: Scene::Connections, connections: 100 }];
//! let report = compare::run(&Config::new(servers, trials), &Cancel::default(), |_| {})?;
//! print!("{}", report.csv());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The modules: `trial` one server under one trial, `report` what came of all of them, `figure` the
//! report as a drawing, `waits` who waits for whom where one client is slow.

mod figure;
mod report;
mod trial;
mod waits;

use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

pub use figure::svg;
pub use report::{Cell, Machine, Measurement, Report, Silence, Spread};
pub use waits::{Visit, Waits, waits, waits_svg};

use super::pattern::{Alphabet, Pattern};
use super::process::ServerCommand;
use super::{Cancel, load};
use crate::error::{ParseError, Transport};
use crate::units::count;

/// A server that takes part.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Contender {
    /// What it is called in the report: each has a name of its own.
    pub name: String,
    /// How it is started: with flags, and without variables of evecho in its environment.
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

/// Reads `NAME=COMMAND`.
impl FromStr for Contender {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, command) = text.split_once('=').unwrap_or(("", text));
        if name.trim().is_empty() {
            let sentence = format!("'{text}' has no name: write NAME='COMMAND with {{port}}'");
            return Err(ParseError::new(sentence));
        }
        Ok(Self::new(name.trim(), command.parse()?))
    }
}

/// What the servers are put under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Trial {
    /// What the clients do.
    #[serde(rename = "trial")]
    pub scene: Scene,
    /// How many of them there are, beside one that is not like the others.
    pub connections: u32,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Scene {
    /// Connections stay, each with messages in flight all the time.
    Connections,
    /// One client sends all it can and never reads, and after it come others that behave.
    Slow,
    /// Connections say nothing after a first message, and one more talks.
    Idle,
    /// Clients connect, exchange one message, close, and connect again.
    Short,
}

/// `3 connections`, `one slow client before 100 others`.
impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scene, connections } = self;
        match scene {
            Scene::Connections => count(*connections, "connection").fmt(f),
            Scene::Slow => write!(f, "one slow client before {}", count(*connections, "other")),
            Scene::Idle => write!(f, "one client among {}", count(*connections, "idle one")),
            Scene::Short => {
                write!(f, "{}, each message a connection", count(*connections, "client"))
            }
        }
    }
}

/// As in JSON.
impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// What a comparison is asked to do.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// TCP, or UDP, where connections are sockets of the client and all trials but
    /// [`Scene::Connections`] fail. Default: TCP.
    pub transport: Transport,
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
    /// Whether the servers answer in upper case. Default: no, the same bytes.
    pub upper: bool,
    /// Messages in flight on each connection that stays: at least 1. Default: 1.
    pub depth: u16,
    /// How long a reply, or the start of a server, may take. A connection that finds the server's queue
    /// full is tried again by TCP after 1 s. Default: 3 s.
    pub timeout: Duration,
    /// See [`Start::supervisor`](super::process::Start::supervisor). Default: none.
    pub supervisor: Vec<OsString>,
}

impl Config {
    /// The defaults, for these servers under these trials.
    pub fn new(contenders: Vec<Contender>, trials: Vec<Trial>) -> Self {
        Self {
            transport: Transport::Tcp,
            contenders,
            trials,
            rounds: 5,
            time: Duration::from_millis(400),
            warmup: Duration::from_millis(150),
            size: 64,
            upper: false,
            depth: 1,
            timeout: Duration::from_secs(3),
            supervisor: Vec::new(),
        }
    }

    /// The bytes of replies to messages of text.
    fn replies(&self) -> Alphabet {
        Pattern::Text.replies(self.upper)
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
/// When a config is none, or the system does not let this process have that number of connections.
pub fn run(
    config: &Config,
    cancel: &Cancel,
    mut progress: impl FnMut(&Progress<'_>),
) -> Result<Report, load::Error> {
    // Before anyone is blamed for it. The slow client is one more.
    let most = config.trials.iter().map(|trial| trial.connections + 1).max();
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
                        Ok(measurement) => cell.rounds.push(measurement),
                        Err(_) if cancel.is_cancelled() => {
                            report.stopped = true;
                            return Ok(report);
                        }
                        Err(fault) => cell.fault = Some(fault),
                    }
                }
                done += 1;
            }
        }
    }
    Ok(report)
}
