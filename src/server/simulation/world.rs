//! The world as the server meets it: a kernel whose events are edges, and peers of every habit.
//!
//! An edge is told once. The kernel makes a new one for new data, a FIN, an RST, a client in the
//! backlog, and for space only after a write was refused: a server that forgets one waits for ever.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use super::random::Random;
use crate::protocol::Verdict;
use crate::protocol::oracle::Expected;
use crate::server::admission::Rules;
use crate::server::clock::Moment;
use crate::server::connection::Readiness;
use crate::server::ready::ConnectionId;

/// What one seed plays.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) rules: Rules,
    pub(super) upper: bool,
    /// How long replies are delayed on purpose, more or less.
    pub(super) delay: Duration,
    /// An event tells of the direction that it is about and no more; else of all that is so by then.
    pub(super) one_direction: bool,
    /// One call in this number goes wrong; none at 0.
    pub(super) trouble: usize,
    /// A step takes up to 2 to the power of this in nanoseconds.
    pub(super) pace: usize,
    /// In one pause of this number, nothing runs for a long time: a suspended machine, a frozen group.
    pub(super) stalls: usize,
    /// How many events one poll brings at most.
    pub(super) events: usize,
    /// More descriptors than this are not to be had.
    pub(super) descriptors: usize,
}

/// What a peer does with its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Habit {
    /// Sends, reads along, half-closes, reads to the end.
    Steady,
    /// The same, reading a few bytes at a time.
    Slow,
    /// Sends and half-closes before it reads anything.
    Late,
    /// Sends an RST somewhere on the way.
    Resetting,
    /// Closes somewhere on the way, read or not.
    Closing,
    /// Vanishes from the network somewhere on the way.
    Vanishing,
    /// Sends some, and stays without a word.
    Silent,
    /// Never reads.
    Deaf,
}

impl Habit {
    pub(super) const ALL: [Habit; 8] = [
        Habit::Steady,
        Habit::Slow,
        Habit::Late,
        Habit::Resetting,
        Habit::Closing,
        Habit::Vanishing,
        Habit::Silent,
        Habit::Deaf,
    ];

    /// Whether it is owed every byte.
    pub(super) fn behaves(self) -> bool {
        matches!(self, Habit::Steady | Habit::Slow | Habit::Late)
    }
}

/// Edges that have not been told yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Edges {
    pub(super) read: bool,
    pub(super) write: bool,
}

/// One connection, both ends of it.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) habit: Habit,
    pub(super) address: SocketAddr,
    pub(super) expected: Expected,
    pub(super) script: Vec<u8>,
    /// How much the kernel keeps for a server that does not read, and for a peer that does not.
    pub(super) inbound: usize,
    pub(super) outbound: usize,

    // From the peer: sent is what the kernel has, read what the server took of it.
    pub(super) sent: usize,
    pub(super) read: usize,
    /// The peer's urgent mark: a read stops in front of it (tcp(7)).
    pub(super) mark: Option<usize>,
    pub(super) fin_sent: bool,
    pub(super) fin_read: bool,
    /// The stream has failed, with this.
    pub(super) failed: Option<ErrorKind>,
    /// The peer has closed both directions: what the server writes is met with an RST.
    pub(super) gone: bool,

    // From the server: written is what the kernel has, taken what the peer read of it.
    pub(super) written: usize,
    pub(super) taken: usize,
    /// What the server tried to write and could not.
    pub(super) unsent: usize,
    /// It was told so, and is owed an edge.
    pub(super) blocked: bool,
    pub(super) fin_at: Option<Moment>,
    pub(super) lingered: usize,
    pub(super) eof_taken: bool,
    /// An RST of the server's kernel has reached the peer: what it had not read is lost.
    pub(super) reset_taken: bool,

    // At the server.
    pub(super) connection_id: Option<ConnectionId>,
    pub(super) accepted: bool,
    pub(super) dropped: bool,
    /// Why the peer may go without a part of its reply.
    pub(super) excuse: Option<&'static str>,
    pub(super) edges: Edges,
    pub(super) moved_at: Moment,
    /// The last call about it.
    pub(super) asked_at: Moment,
    /// When a read or write found nothing to do, if that was the last thing it found.
    pub(super) blocked_at: Option<Moment>,

    // In this pass.
    pub(super) calls: usize,
    pub(super) reads: usize,
    pub(super) bytes: usize,
}

impl Wire {
    pub(super) fn new(
        habit: Habit,
        address: SocketAddr,
        script: Vec<u8>,
        expected: Expected,
        (inbound, outbound): (usize, usize),
    ) -> Self {
        Wire {
            habit,
            address,
            expected,
            script,
            inbound,
            outbound,
            sent: 0,
            read: 0,
            mark: None,
            fin_sent: false,
            fin_read: false,
            failed: None,
            gone: false,
            written: 0,
            taken: 0,
            unsent: 0,
            blocked: false,
            fin_at: None,
            lingered: 0,
            eof_taken: false,
            reset_taken: false,
            connection_id: None,
            accepted: false,
            dropped: false,
            excuse: None,
            edges: Edges::default(),
            moved_at: Moment::default(),
            asked_at: Moment::default(),
            blocked_at: None,
            calls: 0,
            reads: 0,
            bytes: 0,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection_id.is_some() && !self.dropped
    }

    /// Whether a read would tell the server something.
    pub(super) fn is_readable(&self) -> bool {
        self.failed.is_some() || self.sent > self.read || (self.fin_sent && !self.fin_read)
    }

    /// Whether nothing but the peer's FIN ends the conversation.
    pub(super) fn ends_with_the_peer(&self) -> bool {
        self.expected.verdict == Verdict::Finished
    }

    pub(super) fn room_to_write(&self) -> usize {
        self.outbound - (self.written - self.taken).min(self.outbound)
    }

    /// The readiness that an event would show now.
    pub(super) fn readiness(&self) -> Readiness {
        let urgent = self.mark.is_some_and(|mark| (self.read..self.sent).contains(&mark));
        let failed = self.failed.is_some();
        Readiness {
            readable: self.is_readable(),
            writable: failed || self.room_to_write() > self.outbound / 3,
            closed: failed || self.fin_sent || urgent,
        }
    }

    /// Tells of space, where that was asked for by a write that was refused.
    pub(super) fn wake_writer(&mut self) {
        if self.blocked && self.room_to_write() > self.outbound / 3 {
            self.blocked = false;
            self.edges.write = true;
        }
    }
}

/// A listener's queue.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pub(super) waiting: VecDeque<usize>,
    pub(super) edge: bool,
    pub(super) closed: bool,
    /// Its owner has shut the listener down.
    pub(super) shut_down: bool,
}

/// What the kernel counted, to hold against the server's counters.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub(super) struct Tally {
    pub(super) registered: u64,
    pub(super) refused: u64,
    pub(super) not_registered: u64,
    pub(super) closed: u64,
    pub(super) aborted: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) short_writes: u64,
    pub(super) stale: u64,
    pub(super) accepts_in_pass: usize,
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) now: Moment,
    pub(super) settings: Settings,
    pub(super) backlogs: Vec<Backlog>,
    pub(super) wires: Vec<Wire>,
    pub(super) tally: Tally,
    /// Accept was refused for want of something, and no connection has left since.
    pub(super) starved: bool,
    pub(super) drain_until: Option<Moment>,
    /// When the server closed its side after that.
    pub(super) closed_at: Option<Moment>,
    /// For each client that a listener hands out, another one comes to it.
    pub(super) flooded: Option<usize>,
    /// A pass of the loop is over as soon as it may be.
    pub(super) short_passes: bool,
    /// Nothing goes wrong any more, and nothing is late.
    pub(super) calm: bool,
    /// Ids of connections that are gone.
    pub(super) old_ids: Vec<ConnectionId>,
    /// What the server did and should not have done.
    pub(super) violations: Vec<String>,
}

impl Wire {
    pub(super) fn has_all_written(&self) -> bool {
        self.written == self.expected.bytes.len()
    }

    /// What a message about it shows.
    pub(super) fn brief(&self) -> impl std::fmt::Debug + use<'_> {
        std::fmt::from_fn(|f| {
            f.debug_struct("Wire")
                .field("habit", &self.habit)
                .field("verdict", &self.expected.verdict)
                .field("script", &self.script.len())
                .field("sent", &self.sent)
                .field("read", &self.read)
                .field("mark", &self.mark)
                .field("fin sent, read", &(self.fin_sent, self.fin_read))
                .field("failed", &self.failed)
                .field("expected", &self.expected.bytes.len())
                .field("written", &self.written)
                .field("taken", &self.taken)
                .field("unsent", &self.unsent)
                .field("blocked", &self.blocked)
                .field("fin_at", &self.fin_at)
                .field("moved_at", &self.moved_at)
                .field("connection_id", &self.connection_id)
                .field("dropped", &self.dropped)
                .field("excuse", &self.excuse)
                .field("edges", &self.edges)
                .field("eof, reset taken", &(self.eof_taken, self.reset_taken))
                .finish()
        })
    }
}
