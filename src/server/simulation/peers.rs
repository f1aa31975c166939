//! What happens to the server: what peers do, and the events that tell of it.

use std::io::ErrorKind;
use std::time::Duration;

use super::script::answers_one_read;
use super::world::{Edges, Habit, Settings, Wire, World};
use crate::protocol::oracle::Expected;
use crate::server::connection::Readiness;
use crate::server::ready::ConnectionId;

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

    pub(super) fn send(&mut self, id: usize, length: usize) {
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
            // Data for a socket that is gone are met with an RST; a FIN is not.
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

    pub(super) fn fail(&mut self, id: usize, kind: ErrorKind) {
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
    Connection(ConnectionId, Readiness),
}

impl World {
    /// Takes the edges that are to be told now, and adds what is none.
    pub(super) fn poll(&mut self) -> Vec<Happening> {
        let mut events = Vec::new();
        let most = self.settings.events;
        for index in 0..self.backlogs.len() {
            if self.backlogs[index].edge && events.len() < most && !self.is_late() {
                self.backlogs[index].edge = false;
                events.push(Happening::Backlog(index));
            }
        }
        for id in 0..self.wires.len() {
            if self.wires[id].is_open()
                && self.wires[id].edges != Edges::default()
                && events.len() < most
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
                let connection_id = wire.connection_id.expect("an open wire has an id");
                events.push(Happening::Connection(connection_id, readiness));
            }
        }
        if !self.calm {
            self.add_nonsense(&mut events);
        }
        events
    }

    pub(super) fn is_late(&mut self) -> bool {
        !self.calm && self.random.one_in(6)
    }

    /// Events without cause, and events of connections that are gone.
    fn add_nonsense(&mut self, events: &mut Vec<Happening>) {
        if self.random.one_in(8) && !self.old_ids.is_empty() {
            let old = self.old_ids[self.random.below(self.old_ids.len())];
            self.tally.stale += 1;
            let all = Readiness { readable: true, writable: true, closed: true };
            events.insert(self.random.below(events.len() + 1), Happening::Connection(old, all));
        }
        if self.random.one_in(8) && !self.wires.is_empty() {
            let id = self.random.below(self.wires.len());
            let [readable, writable, closed] = [0; 3].map(|_: u8| self.random.one_in(2));
            if let (true, Some(connection_id)) =
                (self.wires[id].is_open(), self.wires[id].connection_id)
            {
                events.push(Happening::Connection(
                    connection_id,
                    Readiness { readable, writable, closed },
                ));
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

    /// Between any two steps, time may jump.
    pub(super) fn may_stall(&mut self) {
        if !self.calm && self.settings.stalls > 0 && self.random.one_in(self.settings.stalls) {
            let nanos = 1_u64 << (20 + self.random.below(16));
            self.now = self.now + Duration::from_nanos(nanos);
        }
    }

    /// A pass begins; whether the drain is so far that all connections are closed.
    pub(super) fn begin_pass(&mut self) -> bool {
        self.tally.accepts_in_pass = 0;
        for wire in &mut self.wires {
            (wire.calls, wire.reads, wire.bytes) = (0, 0, 0);
        }
        let closes =
            self.closed_at.is_none() && self.drain_until.is_some_and(|until| self.now >= until);
        if closes {
            self.closed_at = Some(self.now);
        }
        closes
    }
}
