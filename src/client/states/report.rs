//! What a run found: plain values that can be written as JSON.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

/// The state of one end of a connection (RFC 9293, 3.3.2), by the names of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs, reason = "the names are those of the RFC, and of tcp_states.h")]
pub enum State {
    Established,
    SynSent,
    /// SYN-RECEIVED.
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    /// The kernel has no such end any more, or not yet.
    Closed,
    CloseWait,
    LastAck,
    Listen,
    Closing,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Closed => "CLOSED",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
        })
    }
}

/// One end of a connection, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct End {
    /// Its state.
    pub state: State,
    /// Bytes that have arrived and were not read yet. A FIN counts as one.
    pub receive_queue: u32,
    /// Bytes that were written and not acknowledged yet. A FIN counts as one.
    pub send_queue: u32,
    /// Whether a process has a descriptor for it: not before accept(2), and not after close(2).
    pub owned: bool,
    /// Whether it waits for the other end to open its window, which was zero, and probes that
    /// (RFC 9293, 3.8.6.1).
    pub zero_window: bool,
}

impl End {
    pub(super) const CLOSED: Self = Self {
        state: State::Closed,
        receive_queue: 0,
        send_queue: 0,
        owned: false,
        zero_window: false,
    };

    /// Whether the kernel has connected it, and the server has not accepted it.
    pub fn waits_to_be_accepted(&self) -> bool {
        !self.owned && matches!(self.state, State::Established | State::CloseWait)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.state)?;
        if self.state == State::Closed {
            return Ok(());
        }
        let Self { receive_queue, send_queue, .. } = self;
        write!(f, " (receive queue {receive_queue}, send queue {send_queue}")?;
        if self.waits_to_be_accepted() {
            f.write_str(", not accepted")?;
        }
        f.write_str(if self.zero_window { ", zero window)" } else { ")" })
    }
}

/// A listening socket, as the kernel has it; of several that share an address, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Listener {
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// The backlog that listen(2) was given, as far as the system allows it.
    pub backlog: u32,
    /// How many may wait: on Linux, one more than the backlog.
    pub room: u32,
}

/// Who sends a segment, or calls something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Side {
    Client,
    Server,
}

/// A segment that made a state change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Segment {
    /// The number of the client on whose connection it went: 1 is the first.
    pub client: usize,
    /// Who sent it.
    pub from: Side,
    /// What it was, like SYN+ACK.
    pub what: &'static str,
}

/// Both ends of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Connection {
    /// The address of the client.
    pub address: SocketAddr,
    /// The client's end.
    pub client: End,
    /// The server's end; `None` when it is not on this machine, where nobody can look at it.
    pub server: Option<End>,
}

/// What was called, and what it made of both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// What was called, as in C, and who called it.
    pub calls: Vec<String>,
    /// The segments that went between the ends, in their order.
    pub segments: Vec<Segment>,
    /// The server's address.
    pub address: SocketAddr,
    /// Whether the server's end, too, is our own: the step shows in slow motion what a server does.
    pub own_listener: bool,
    /// All connections of the scenario, in the order of their clients.
    pub connections: Vec<Connection>,
    /// The server's listening socket; `None` when there is none on this machine.
    pub listener: Option<Listener>,
    /// Why it is so, in one or two sentences.
    pub why: String,
    /// Where that is written: RFC and section, or manual page.
    pub source: &'static str,
}

/// How a scenario ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// Every state that it teaches was seen.
    Shown,
    /// One was not.
    Failed {
        /// What should have been seen.
        expected: String,
        /// What was seen instead.
        seen: String,
    },
    /// This server does not do what the scenario shows.
    #[serde(rename = "not shown")]
    NotShown {
        /// Why.
        reason: String,
    },
}

/// A scenario, its steps and how it ended.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ScenarioReport {
    /// The name of the scenario.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Its steps, up to where it ended.
    pub steps: Vec<Step>,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// How many scenarios were shown.
    pub shown: usize,
    /// How many failed.
    pub failed: usize,
    /// How many were not shown.
    pub not_shown: usize,
    /// Whether the run was stopped early.
    pub stopped: bool,
    /// The scenarios, in the order in which they were played.
    pub scenarios: Vec<ScenarioReport>,
}

impl Report {
    pub(super) fn of(scenarios: Vec<ScenarioReport>, stopped: bool) -> Self {
        let count =
            |is: fn(&Outcome) -> bool| scenarios.iter().filter(|one| is(&one.outcome)).count();
        Self {
            shown: count(|outcome| matches!(outcome, Outcome::Shown)),
            failed: count(|outcome| matches!(outcome, Outcome::Failed { .. })),
            not_shown: count(|outcome| matches!(outcome, Outcome::NotShown { .. })),
            stopped,
            scenarios,
        }
    }

    /// Whether scenarios were shown, none failed, and the run was not stopped.
    pub fn is_good(&self) -> bool {
        self.shown > 0 && self.failed == 0 && !self.stopped
    }
}
