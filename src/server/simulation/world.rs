//! The world as the server meets it: a kernel whose events are edges, and peers of every habit.
//!
//! An edge is told once. The kernel makes a new one for new data, a FIN, an RST, a client in the
//! backlog, and for space only after a write was refused: whoever forgets one waits for ever.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;

use super::random::Random;
use super::script::answers_one_read;
use crate::protocol::Verdict;
use crate::protocol::oracle::Expected;
use crate::server::clock::Moment;
use crate::server::connection::{LINGER_BYTES, LINGER_TIME, Readiness, Stream};
use crate::server::streams::{Listener, Rules, Token};

/// What one seed plays.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) rules: Rules,
    pub(super) upper: bool,
    /// An event tells of the direction that it is about and no more; else of all that is so by then.
    pub(super) one_direction: bool,
    /// One call in so many goes wrong; none at 0.
    pub(super) trouble: usize,
    /// A step takes up to 2 to the power of this in nanoseconds.
    pub(super) pace: usize,
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
    script: Vec<u8>,
    /// How much the kernel keeps for a server that does not read, and for a peer that does not.
    inbound: usize,
    outbound: usize,

    // From the peer: sent is what the kernel has, read what the server took of it.
    pub(super) sent: usize,
    pub(super) read: usize,
    /// The peer's urgent mark: a read stops in front of it (tcp(7)).
    mark: Option<usize>,
    pub(super) fin_sent: bool,
    pub(super) fin_read: bool,
    /// The stream has failed, with this.
    pub(super) failed: Option<ErrorKind>,
    /// The peer has closed both directions: what the server writes is met with an RST.
    gone: bool,
    /// How much of what was sent the server had been told of at its last event.
    announced: usize,

    // From the server: written is what the kernel has, taken what the peer read of it.
    pub(super) written: usize,
    pub(super) taken: usize,
    /// What the server tried to write and could not.
    pub(super) unsent: usize,
    /// It was told so, and is owed an edge.
    pub(super) blocked: bool,
    pub(super) fin_at: Option<Moment>,
    lingered: usize,
    pub(super) eof_taken: bool,
    /// An RST of the server's kernel has reached the peer: what it had not read is lost.
    pub(super) reset_taken: bool,

    // At the server.
    pub(super) token: Option<Token>,
    pub(super) accepted: bool,
    pub(super) dropped: bool,
    /// Why the peer may go without a part of its answer.
    pub(super) excuse: Option<&'static str>,
    pub(super) edges: Edges,
    pub(super) moved_at: Moment,
    /// The last call about it.
    pub(super) asked_at: Moment,

    // In this turn.
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
            announced: 0,
            written: 0,
            taken: 0,
            unsent: 0,
            blocked: false,
            fin_at: None,
            lingered: 0,
            eof_taken: false,
            reset_taken: false,
            token: None,
            accepted: false,
            dropped: false,
            excuse: None,
            edges: Edges::default(),
            moved_at: Moment::default(),
            asked_at: Moment::default(),
            calls: 0,
            reads: 0,
            bytes: 0,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.token.is_some() && !self.dropped
    }

    /// Whether a read would tell the server something.
    pub(super) fn is_readable(&self) -> bool {
        self.failed.is_some() || self.sent > self.read || (self.fin_sent && !self.fin_read)
    }

    /// Whether nothing but the peer's FIN ends the conversation.
    pub(super) fn ends_with_the_peer(&self) -> bool {
        self.expected.verdict == Verdict::Continue
    }

    fn room_to_write(&self) -> usize {
        self.outbound - (self.written - self.taken).min(self.outbound)
    }

    /// The readiness that an event would show now.
    fn readiness(&self) -> Readiness {
        let urgent = self.mark.is_some_and(|mark| (self.read..self.sent).contains(&mark));
        let failed = self.failed.is_some();
        Readiness {
            readable: self.is_readable(),
            writable: failed || self.room_to_write() > self.outbound / 3,
            closed: failed || self.fin_sent || urgent,
        }
    }

    /// Tells of space, where that was asked for by a write that was refused.
    fn wake_writer(&mut self) {
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
}

/// What the kernel counted, to hold against the server's counters.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub(super) struct Tally {
    pub(super) registered: u64,
    pub(super) refused: u64,
    pub(super) closed: u64,
    pub(super) aborted: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) short_writes: u64,
    pub(super) stale: u64,
    pub(super) accepts_in_turn: usize,
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
    /// The first turn after that.
    pub(super) drain_over_at: Option<Moment>,
    /// For each client that a listener hands out, another one comes to it.
    pub(super) flooded: Option<usize>,
    /// Nothing goes wrong any more, and nothing is late.
    pub(super) calm: bool,
    /// Tokens that name nobody.
    pub(super) old_tokens: Vec<Token>,
    /// What the server did and should not have done.
    pub(super) violations: Vec<String>,
}

// ---- what the server calls

impl World {
    fn violation(&mut self, wire: usize, what: impl std::fmt::Display) {
        self.violations.push(format!("{what}; wire {wire}: {:?}", self.wires[wire].brief()));
    }

    fn trouble(&mut self) -> bool {
        !self.calm && self.settings.trouble > 0 && self.random.one_in(self.settings.trouble)
    }

    /// Peers do not wait for the server to be done with its turn.
    fn meanwhile(&mut self) {
        if !self.calm && !self.wires.is_empty() && self.random.one_in(8) {
            let wire = self.random.below(self.wires.len());
            self.act(wire);
        }
    }

    pub(super) fn has_no_descriptors(&self) -> bool {
        let held = self.wires.iter().filter(|wire| wire.accepted && !wire.dropped);
        held.count() >= self.settings.descriptors
    }

    fn called(&mut self, id: usize) {
        self.meanwhile();
        self.wires[id].calls += 1;
        self.wires[id].asked_at = self.now;
    }

    fn accept(&mut self, index: usize) -> io::Result<(usize, SocketAddr)> {
        self.tally.accepts_in_turn += 1;
        self.meanwhile();
        let shortage = if self.has_no_descriptors() {
            Some(Errno::EMFILE)
        } else if self.trouble() {
            Some(self.random.pick(&[Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]))
        } else {
            None
        };
        if let Some(errno) = shortage {
            self.starved = true;
            return Err(errno.into());
        }
        let Some(&id) = self.backlogs[index].waiting.front() else {
            return Err(Errno::EAGAIN.into());
        };
        if self.trouble() {
            self.tally.aborted += 1;
            self.backlogs[index].waiting.pop_front();
            self.wires[id].excuse = Some("aborted");
            return Err(self.random.pick(&[Errno::ECONNABORTED, Errno::EPROTO]).into());
        }
        self.backlogs[index].waiting.pop_front();
        if self.flooded == Some(index) {
            assert!(self.wires.len() < 20_000, "accept does not end while clients come");
            let Wire { habit, address, .. } = self.wires[id];
            let expected = self.wires[id].expected.clone();
            self.connect(index, Wire::new(habit, address, Vec::new(), expected, (1, 1)));
        }
        self.wires[id].accepted = true;
        self.wires[id].moved_at = self.now;
        Ok((id, self.wires[id].address))
    }

    fn register(&mut self, id: usize, token: Token) -> io::Result<()> {
        if self.trouble() {
            self.starved = true;
            self.wires[id].excuse = Some("not registered");
            return Err(Errno::ENOSPC.into());
        }
        let same =
            |wire: &&Wire| wire.is_open() && wire.address.ip() == self.wires[id].address.ip();
        let count = self.wires.iter().filter(same).count();
        if self.settings.rules.per_source_connections.is_some_and(|limit| count >= limit.get()) {
            self.violation(id, "more connections than a source may have");
        }
        self.tally.registered += 1;
        let wire = &mut self.wires[id];
        wire.token = Some(token);
        // epoll_ctl(2) tells at once what is so already.
        wire.edges = Edges { read: wire.is_readable(), write: true };
        Ok(())
    }

    fn read(&mut self, id: usize, room: &mut [u8]) -> io::Result<usize> {
        self.called(id);
        if self.wires[id].unsent > 0 {
            self.violation(id, "a read while output is pending");
        }
        if room.is_empty() {
            self.violation(id, "a read into no room, whose 0 looks like a FIN");
        }
        if let Some(kind) = self.wires[id].failed {
            return Err(kind.into());
        }
        if self.trouble() {
            return Err(ErrorKind::Interrupted.into());
        }
        let now = self.now;
        let wire = &mut self.wires[id];
        let stop = wire.mark.filter(|&mark| (wire.read + 1..wire.sent).contains(&mark));
        let length = (stop.unwrap_or(wire.sent) - wire.read).min(room.len());
        if length == 0 && !wire.fin_sent {
            return Err(ErrorKind::WouldBlock.into());
        }
        room[..length].copy_from_slice(&wire.script[wire.read..wire.read + length]);
        if wire.read == 0 && answers_one_read(self.settings.rules.protocol) {
            wire.expected.bytes.truncate(length);
        }
        wire.read += length;
        wire.fin_read |= length == 0;
        if wire.fin_at.is_some() {
            wire.lingered += length;
        } else {
            wire.moved_at = now;
        }
        wire.reads += 1;
        wire.bytes += length;
        self.tally.reads += 1;
        self.tally.bytes_in += length as u64;
        Ok(length)
    }

    fn write(&mut self, id: usize, bytes: &[u8]) -> io::Result<usize> {
        self.called(id);
        let wire = &self.wires[id];
        let rest = &wire.expected.bytes[wire.written..];
        if !rest.starts_with(bytes) {
            self.violation(id, format!("{} bytes that are not the answer", bytes.len()));
        }
        if self.wires[id].fin_at.is_some() {
            self.violation(id, "a write after our FIN");
        }
        if let Some(kind) = self.wires[id].failed {
            return Err(self.random.pick(&[kind, ErrorKind::BrokenPipe]).into());
        }
        if self.trouble() {
            return Err(ErrorKind::Interrupted.into());
        }
        let free = if self.wires[id].gone { bytes.len() } else { self.wires[id].room_to_write() };
        if free == 0 || self.trouble() {
            self.wires[id].blocked = true;
            self.wires[id].unsent = bytes.len();
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut length = bytes.len().min(free);
        if self.trouble() {
            length = 1 + self.random.below(length);
        }
        let now = self.now;
        let wire = &mut self.wires[id];
        wire.written += length;
        wire.blocked = false;
        wire.unsent = bytes.len() - length;
        wire.moved_at = now;
        if wire.gone {
            self.fail(id, ErrorKind::ConnectionReset);
        }
        self.tally.writes += 1;
        self.tally.bytes_out += length as u64;
        self.tally.short_writes += u64::from(length < bytes.len());
        Ok(length)
    }

    fn shutdown_write(&mut self, id: usize) -> io::Result<()> {
        self.called(id);
        if self.wires[id].failed.is_some() {
            return Err(ErrorKind::NotConnected.into());
        }
        let wire = &self.wires[id];
        if wire.unsent > 0 {
            self.violation(id, "a FIN before the output was sent");
        } else if wire.fin_at.is_some() {
            self.violation(id, "a second FIN");
        } else if wire.ends_with_the_peer() || !wire.has_all_written() {
            match self.excuse(id) {
                Some(excuse) => self.wires[id].excuse = Some(excuse),
                None => self.violation(id, "a FIN for no reason"),
            }
        }
        self.wires[id].fin_at = Some(self.now);
        Ok(())
    }

    /// Why the server may end a connection that is not done.
    fn excuse(&self, id: usize) -> Option<&'static str> {
        let wire = &self.wires[id];
        let still = self.now - wire.moved_at;
        let known = wire.unsent == 0 && wire.announced > wire.read;
        if self.settings.rules.idle_timeout.is_some_and(|time| still >= time) && !known {
            return Some("idle");
        }
        (self.drain_until.is_some_and(|until| self.now >= until)).then_some("drained")
    }

    fn close(&mut self, id: usize) {
        self.starved = false;
        let Some(token) = self.wires[id].token else {
            self.close_unserved(id);
            return;
        };
        self.old_tokens.push(token);
        self.tally.closed += 1;
        match self.reason_to_close(id) {
            Ok(excuse) => self.wires[id].excuse = excuse,
            Err(what) => self.violation(id, what),
        }
        let wire = &mut self.wires[id];
        wire.dropped = true;
        // tcp(7): closing with unread data sends an RST, which overtakes what the peer has not read.
        wire.reset_taken |= wire.sent > wire.read;
    }

    /// Whether the server may let go of a connection now; and why, where the peer is owed more.
    fn reason_to_close(&self, id: usize) -> Result<Option<&'static str>, &'static str> {
        let wire = &self.wires[id];
        if wire.failed.is_some() {
            return Ok(Some("failed"));
        }
        let Some(fin_at) = wire.fin_at else {
            if wire.fin_read && wire.has_all_written() && wire.unsent == 0 {
                return Ok(None);
            }
            // A peer that takes nothing of an answer that is to be the last one.
            let last = !wire.ends_with_the_peer();
            let stuck = last && wire.unsent > 0 && self.now - wire.moved_at >= LINGER_TIME;
            let excuse = self.excuse(id).or(stuck.then_some("stuck"));
            return excuse.map(Some).ok_or("closed for no reason");
        };
        if wire.fin_read {
            return Ok(wire.excuse);
        }
        let enough = self.now - fin_at >= LINGER_TIME || wire.lingered > LINGER_BYTES as usize;
        let drained = self.drain_until.is_some_and(|until| self.now >= until + LINGER_TIME);
        if enough || drained { Ok(wire.excuse.or(Some("lingered"))) } else { Err("did not linger") }
    }

    fn close_unserved(&mut self, id: usize) {
        let address = self.wires[id].address.ip();
        let same = self.wires.iter().filter(|wire| wire.is_open() && wire.address.ip() == address);
        let full =
            self.settings.rules.per_source_connections.is_some_and(|n| same.count() >= n.get());
        if self.wires[id].excuse.is_some() {
            // It could not be registered: accept is paused for that.
            self.starved = true;
        } else if full {
            self.tally.refused += 1;
            self.wires[id].excuse = Some("refused");
        } else {
            self.violation(id, "a client turned away for no reason");
        }
        self.wires[id].dropped = true;
        self.wires[id].reset_taken = true;
    }
}

// ---- what peers do

impl World {
    /// A client connects.
    pub(super) fn connect(&mut self, index: usize, wire: Wire) {
        let backlog = &mut self.backlogs[index];
        if !backlog.closed {
            backlog.waiting.push_back(self.wires.len());
            backlog.edge = true;
            self.wires.push(wire);
        }
    }

    /// One peer does something that is in its nature.
    pub(super) fn act(&mut self, id: usize) {
        if self.wires[id].failed.is_some() || self.wires[id].gone {
            return;
        }
        let habit = self.wires[id].habit;
        let most = if habit == Habit::Slow { 16 } else { 1 << self.random.below(19) };
        let length = 1 + self.random.below(most);
        match self.random.below(if habit == Habit::Late { 2 } else { 4 }) {
            0 | 1 => self.send(id, length),
            2 if habit == Habit::Deaf => {}
            2 => self.take(id, length),
            _ if self.random.below(8) > 0 => self.wires[id].wake_writer(),
            _ => match habit {
                Habit::Resetting => self.fail(id, ErrorKind::ConnectionReset),
                Habit::Vanishing => self.fail(id, ErrorKind::TimedOut),
                Habit::Closing => self.leave(id),
                _ => {}
            },
        }
    }

    /// One peer does all that it can.
    pub(super) fn act_in_full(&mut self, id: usize) {
        if self.wires[id].failed.is_none() && !self.wires[id].gone {
            self.send(id, usize::MAX);
            if self.wires[id].habit != Habit::Deaf {
                self.take(id, usize::MAX);
            }
            self.wires[id].wake_writer();
        }
    }

    fn send(&mut self, id: usize, length: usize) {
        let urgent = self.random.one_in(16);
        let wire = &mut self.wires[id];
        let silent = matches!(wire.habit, Habit::Silent | Habit::Vanishing);
        let end = if silent { wire.script.len() / 2 } else { wire.script.len() };
        let free = wire.inbound - (wire.sent - wire.read).min(wire.inbound);
        let length = length.min(free).min(end - wire.sent.min(end));
        if wire.fin_sent || (length == 0 && (silent || wire.sent < end)) {
            return;
        }
        if wire.dropped {
            // Data for nobody are met with an RST; a FIN is not.
            wire.reset_taken |= length > 0;
            wire.fin_sent |= length == 0;
            return;
        }
        if length == 0 {
            wire.fin_sent = true;
        } else {
            wire.sent += length;
            if urgent {
                wire.mark = Some(wire.sent - 1 - (length - 1) / 2);
            }
        }
        wire.edges.read = true;
    }

    fn take(&mut self, id: usize, length: usize) {
        let wire = &mut self.wires[id];
        if wire.reset_taken {
            return;
        }
        wire.taken += length.min(wire.written - wire.taken);
        wire.eof_taken = wire.taken == wire.written && (wire.dropped || wire.fin_at.is_some());
        wire.wake_writer();
    }

    fn fail(&mut self, id: usize, kind: ErrorKind) {
        let wire = &mut self.wires[id];
        wire.failed = Some(kind);
        wire.blocked = false;
        wire.edges = Edges { read: true, write: true };
    }

    fn leave(&mut self, id: usize) {
        if self.wires[id].written > self.wires[id].taken {
            return self.fail(id, ErrorKind::ConnectionReset);
        }
        let Settings { rules, upper, .. } = self.settings;
        let wire = &mut self.wires[id];
        wire.script.truncate(wire.sent);
        if wire.read == 0 || !answers_one_read(rules.protocol) {
            wire.expected = Expected::new(rules.protocol, upper, &wire.script);
        }
        wire.gone = true;
        wire.fin_sent = true;
        wire.edges.read = true;
        wire.wake_writer();
    }
}

// ---- events

/// An event, as the poller hands it out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Happening {
    Backlog(usize),
    Connection(Token, Readiness),
}

impl World {
    /// Takes the edges that are to be told now, and adds what is none.
    pub(super) fn poll(&mut self) -> Vec<Happening> {
        let mut events = Vec::new();
        for index in 0..self.backlogs.len() {
            if self.backlogs[index].edge && !self.is_late() {
                self.backlogs[index].edge = false;
                events.push(Happening::Backlog(index));
            }
        }
        for id in 0..self.wires.len() {
            if self.wires[id].is_open()
                && self.wires[id].edges != Edges::default()
                && !self.is_late()
            {
                let one_direction = self.settings.one_direction;
                let wire = &mut self.wires[id];
                let Edges { read, write } = std::mem::take(&mut wire.edges);
                let mut readiness = wire.readiness();
                if one_direction {
                    readiness.readable &= read;
                    readiness.closed &= read;
                    readiness.writable = write;
                }
                if readiness.readable {
                    wire.announced = wire.sent;
                }
                let token = wire.token.expect("an open wire has a token");
                events.push(Happening::Connection(token, readiness));
            }
        }
        if !self.calm {
            self.add_nonsense(&mut events);
        }
        events
    }

    fn is_late(&mut self) -> bool {
        !self.calm && self.random.one_in(6)
    }

    /// Events without cause, and events of those who are gone.
    fn add_nonsense(&mut self, events: &mut Vec<Happening>) {
        if self.random.one_in(8) && !self.old_tokens.is_empty() {
            let old = self.old_tokens[self.random.below(self.old_tokens.len())];
            self.tally.stale += 1;
            let all = Readiness { readable: true, writable: true, closed: true };
            events.insert(self.random.below(events.len() + 1), Happening::Connection(old, all));
        }
        if self.random.one_in(8) && !self.wires.is_empty() {
            let id = self.random.below(self.wires.len());
            let [readable, writable, closed] = [0; 3].map(|_: u8| self.random.one_in(2));
            if let (true, Some(token)) = (self.wires[id].is_open(), self.wires[id].token) {
                events.push(Happening::Connection(token, Readiness { readable, writable, closed }));
            }
        }
        if self.random.one_in(8) {
            events.push(Happening::Backlog(self.random.below(self.backlogs.len() + 1)));
        }
    }

    pub(super) fn pass_time(&mut self) {
        let nanos = 1_u64 << self.random.below(self.settings.pace);
        self.now = self.now + Duration::from_nanos(nanos);
    }

    pub(super) fn begin_turn(&mut self) {
        self.tally.accepts_in_turn = 0;
        if self.drain_until.is_some_and(|until| self.now >= until) {
            self.drain_over_at.get_or_insert(self.now);
        }
        for wire in &mut self.wires {
            (wire.calls, wire.reads, wire.bytes) = (0, 0, 0);
        }
    }
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
                .field("token", &self.token)
                .field("dropped", &self.dropped)
                .field("excuse", &self.excuse)
                .field("edges", &self.edges)
                .field("eof, reset taken", &(self.eof_taken, self.reset_taken))
                .finish()
        })
    }
}

// ---- handles that the server holds

/// A listener of the world.
pub(super) struct Door {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) index: usize,
}

/// The server's end of a wire.
pub(super) struct Socket {
    world: Rc<RefCell<World>>,
    id: usize,
}

impl Listener for Door {
    type Stream = Socket;

    fn accept(&mut self) -> io::Result<(Socket, SocketAddr)> {
        let (id, address) = self.world.borrow_mut().accept(self.index)?;
        Ok((Socket { world: Rc::clone(&self.world), id }, address))
    }

    fn register(&mut self, stream: &mut Socket, token: Token) -> io::Result<()> {
        self.world.borrow_mut().register(stream.id, token)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Not while a violation unwinds.
        let Ok(mut world) = self.world.try_borrow_mut() else { return };
        let backlog = &mut world.backlogs[self.index];
        backlog.closed = true;
        for id in std::mem::take(&mut backlog.waiting) {
            world.wires[id].excuse = Some("never accepted");
        }
    }
}

impl Read for Socket {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.world.borrow_mut().read(self.id, room)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.world.borrow_mut().write(self.id, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Socket {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.world.borrow_mut().shutdown_write(self.id)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Ok(mut world) = self.world.try_borrow_mut() {
            world.close(self.id);
        }
    }
}
