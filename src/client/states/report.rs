//! What a run found: plain values that can be written as JSON.

use std::borrow::Cow;
use std::fmt;
use std::iter;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::client::harness::Outcome;

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

/// As in JSON.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
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
    /// How often it has sent again what is not acknowledged.
    pub retransmissions: u8,
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
        retransmissions: 0,
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

/// The side that sends a segment, or calls something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Side {
    Client,
    Server,
}

/// A segment that went from one end to the other, or a datagram, or an ICMP message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Segment {
    /// The number of the client on whose connection it went: 1 is the first.
    pub client: usize,
    /// The side that sent it.
    pub from: Side,
    /// What it was, like SYN+ACK.
    pub what: Cow<'static, str>,
    /// When it was seen, in nanoseconds since the first segment of the scenario's connections to this server.
    /// Otherwise it is what makes such a change of states, as a rule.
    #[serde(rename = "at_ns", serialize_with = "crate::client::nanoseconds::serialize")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Duration>,
    /// The fields of a segment that was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    /// What an ICMP message that was seen says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
}

/// The fields of a segment (RFC 9293, 3.1), as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Header {
    /// The control bits that are set, by their names.
    pub flags: Vec<&'static str>,
    /// The sequence number.
    pub sequence: u32,
    /// The sequence number since the initial one, which is that of the SYN.
    pub relative_sequence: u32,
    /// The acknowledgement number, with the control bit ACK.
    pub acknowledgement: Option<u32>,
    /// The same since the initial sequence number of the other side.
    pub relative_acknowledgement: Option<u32>,
    /// The window in bytes: scaled, as both sides have agreed to (RFC 7323, 2).
    pub window: u32,
    /// Bytes of data.
    pub length: u32,
    /// The options of a SYN, as tcpdump names them.
    pub options: Vec<String>,
    /// What there is to say of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<Remark>,
}

/// A message about a datagram that did not reach a socket (RFC 792; RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Icmp {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// Its code, which says more.
    pub code: u8,
}

/// As tcpdump and ping name it, where it is about a port.
impl fmt::Display for Icmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, code } = self;
        // Those of ICMP and of ICMPv6.
        if matches!((kind, code), (3, 3) | (1, 4)) {
            f.write_str("port unreachable, ")?;
        }
        write!(f, "type {kind}, code {code}")
    }
}

/// What a segment is beside its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Remark {
    /// A part of it, or all, was sent before: a retransmission.
    Again,
    /// It asks for an acknowledgement: a probe of a window that is zero (RFC 9293, 3.8.6.1), or a keepalive.
    Probe,
}

/// Both ends of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Connection {
    /// The address of the client.
    pub address: SocketAddr,
    /// The client's end.
    pub client: End,
    /// The server's end; `None` when it is not on this machine, where it cannot be seen.
    pub server: Option<End>,
}

/// What was called, and what it made of both ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// What was called, as in C, and which side called it.
    pub calls: Vec<String>,
    /// The segments that went between the ends, in their order; of many, the first and the last.
    pub segments: Vec<Segment>,
    /// How many segments between these were left out.
    pub segments_left_out: usize,
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
    /// How it ended: what JSON calls `shown` has passed, and what was skipped or not graded is `not shown`.
    #[serde(flatten, serialize_with = "in_words")]
    pub outcome: Outcome,
}

fn in_words<S: Serializer>(outcome: &Outcome, to: S) -> Result<S::Ok, S::Error> {
    let (word, details) = match outcome {
        Outcome::Passed => ("shown", vec![]),
        Outcome::Failed { expected, seen } => {
            ("failed", vec![("expected", &**expected), ("seen", seen)])
        }
        Outcome::Skipped { reason } | Outcome::NotGraded { reason } => {
            ("not shown", vec![("reason", &**reason)])
        }
    };
    to.collect_map(iter::once(("outcome", word)).chain(details))
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
        let [shown, failed, skipped, not_graded] =
            Outcome::count(scenarios.iter().map(|one| &one.outcome));
        Self { shown, failed, not_shown: skipped + not_graded, stopped, scenarios }
    }

    /// Whether scenarios were shown, none failed, and the run was not stopped.
    pub fn is_good(&self) -> bool {
        self.shown > 0 && self.failed == 0 && !self.stopped
    }
}
