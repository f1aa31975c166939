//! What [`check`](super::check) and [`states`](super::states) have in common: a server that runs or is
//! started, items (cases, scenarios) that are run against it one after the other, and how each ended.

use std::fmt;
use std::io;

use serde::Serialize;

use super::process::{ServerCommand, StartError};
use super::target::{self, Target};

/// The server under test.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Subject {
    /// One that runs.
    Address(Target),
    /// One that is started, on loopback, as often as a fresh one is needed.
    Command(ServerCommand),
}

/// How an item ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// The server did what it should.
    Passed,
    /// It did not.
    Failed {
        /// What it should have done.
        expected: String,
        /// What it did.
        seen: String,
    },
    /// The item says nothing about this server.
    Skipped {
        /// Why.
        reason: String,
    },
    /// The item would have been run, but could not be.
    #[serde(rename = "not graded")]
    NotGraded {
        /// Why.
        reason: String,
    },
}

impl Outcome {
    /// The outcome of what ended like this. Where it does not say what it expected, that is its `rule`.
    pub(super) fn of(ended: Result<(), Stop>, rule: &str) -> Result<Self, Error> {
        match ended {
            Ok(()) => Ok(Self::Passed),
            Err(Stop::Failed { expected, seen }) => {
                Ok(Self::Failed { expected: expected.unwrap_or_else(|| rule.to_owned()), seen })
            }
            Err(Stop::Skipped { reason }) => Ok(Self::Skipped { reason }),
            Err(Stop::NotGraded { reason }) => Ok(Self::NotGraded { reason }),
            Err(Stop::Fatal(error)) => Err(error),
        }
    }

    /// How many passed, failed, were skipped and were not graded.
    pub(super) fn count<'a>(outcomes: impl Iterator<Item = &'a Self>) -> [usize; 4] {
        let mut counts = [0; 4];
        for outcome in outcomes {
            let place = match outcome {
                Self::Passed => 0,
                Self::Failed { .. } => 1,
                Self::Skipped { .. } => 2,
                Self::NotGraded { .. } => 3,
            };
            counts[place] += 1;
        }
        counts
    }
}

/// Why an item ended early.
#[derive(Debug)]
pub(super) enum Stop {
    Failed {
        /// `None` where it is the rule itself.
        expected: Option<String>,
        seen: String,
    },
    Skipped {
        reason: String,
    },
    NotGraded {
        reason: String,
    },
    /// No other can be run either.
    Fatal(Error),
}

impl Stop {
    pub(super) fn failed(expected: impl Into<String>, seen: impl Into<String>) -> Self {
        Self::Failed { expected: Some(expected.into()), seen: seen.into() }
    }

    /// The rule itself is broken.
    pub(super) fn broken(seen: impl Into<String>) -> Self {
        Self::Failed { expected: None, seen: seen.into() }
    }

    pub(super) fn skipped(reason: impl Into<String>) -> Self {
        Self::Skipped { reason: reason.into() }
    }

    #[allow(dead_code, reason = "of the tools, only states calls it")]
    pub(super) fn stopped() -> Self {
        Self::skipped(STOPPED)
    }

    #[allow(dead_code, reason = "of the tools, only states calls it")]
    pub(super) fn kernel(error: io::Error) -> Self {
        Self::Fatal(Error::Kernel(error))
    }

    pub(super) fn thread(error: io::Error) -> Self {
        Self::Fatal(Error::Thread(error))
    }
}

/// What was seen, or why the item was not run.
impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { seen: text, .. }
            | Self::Skipped { reason: text }
            | Self::NotGraded { reason: text } => f.write_str(text),
            Self::Fatal(error) => error.fmt(f),
        }
    }
}

/// Why items are not run any more after a [`Cancel`](super::Cancel).
pub(super) const STOPPED: &str = "the run was stopped";

/// Goes on when the rule is `kept`.
pub(super) fn ensure(kept: bool, seen: impl FnOnce() -> String) -> Result<(), Stop> {
    if kept { Ok(()) } else { Err(Stop::broken(seen())) }
}

/// Why a run could not begin, or could not go on: one sentence.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The name does not resolve, or none of its addresses is reached.
    Target(target::Error),
    /// The server cannot be started.
    Start(StartError),
    /// The server's process cannot be looked at.
    Pid(u32, io::Error),
    /// The kernel does not show its sockets.
    Kernel(io::Error),
    /// The system refuses a thread.
    Thread(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(error) => error.fmt(f),
            Self::Start(error) => error.fmt(f),
            Self::Thread(_) => f.write_str("cannot start a thread for a client"),
            Self::Pid(pid, _) => {
                write!(f, "cannot look at process {pid}, which should be the server's")
            }
            Self::Kernel(error) => write!(
                f,
                "the kernel does not show its sockets (sock_diag: {error}); a sandbox may forbid it"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Pid(_, error) | Self::Thread(error) => Some(error),
            _ => None,
        }
    }
}
