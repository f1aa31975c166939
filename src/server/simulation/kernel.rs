//! What the server calls: accept, read, write, and what they return here.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;

use super::script::answers_one_read;
use super::world::{Edges, Wire, World};
use crate::config::MIN_MAX_BUFFERED;
use crate::protocol::Framing;
use crate::server::admission::Rules;
use crate::server::connection::Stream;
use crate::server::connections::Listener;
use crate::server::ending::{LINGER_BYTES, LINGER_TIME};
use crate::server::ready::ConnectionId;
use crate::sys::Errno;

impl World {
    fn violation(&mut self, wire: usize, what: impl std::fmt::Display) {
        self.violations.push(format!("{what}; wire {wire}: {:?}", self.wires[wire].brief()));
    }

    fn trouble(&mut self) -> bool {
        !self.calm && self.settings.trouble > 0 && self.random.one_in(self.settings.trouble)
    }

    /// Peers do not wait until the server is done with its pass.
    pub(super) fn meanwhile(&mut self) {
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

    /// A read or write that would have to wait.
    fn would_block<T>(&mut self, id: usize) -> io::Result<T> {
        self.wires[id].blocked_at = Some(self.now);
        Err(ErrorKind::WouldBlock.into())
    }

    fn accept(&mut self, index: usize) -> io::Result<(usize, SocketAddr)> {
        self.tally.accepts_in_pass += 1;
        self.meanwhile();
        if self.backlogs[index].shut_down {
            return Err(Errno::EINVAL.into());
        }
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

    fn register(&mut self, id: usize, connection_id: ConnectionId) -> io::Result<()> {
        if self.trouble() {
            self.starved = true;
            self.wires[id].excuse = Some("not registered");
            self.tally.not_registered += 1;
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
        wire.connection_id = Some(connection_id);
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
            self.violation(id, "a read into an empty buffer, whose 0 looks like a FIN");
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
            return self.would_block(id);
        }
        wire.blocked_at = None;
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
        self.tally.reads += u64::from(length > 0);
        self.tally.bytes_in += length as u64;
        Ok(length)
    }

    fn write(&mut self, id: usize, bytes: &[u8]) -> io::Result<usize> {
        self.called(id);
        let wire = &self.wires[id];
        let rest = &wire.expected.bytes[wire.written..];
        if !rest.starts_with(bytes) {
            self.violation(id, format!("{} bytes that are not the reply", bytes.len()));
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
            return self.would_block(id);
        }
        let mut length = bytes.len().min(free);
        if self.trouble() {
            length = 1 + self.random.below(length);
        }
        let now = self.now;
        let wire = &mut self.wires[id];
        wire.written += length;
        wire.blocked_at = None;
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
            // A frame that cannot grow ends the connection as one that is too long does.
            let full = (!self.has_memory_for_all()).then_some("no memory");
            match self.excuse(id).or(full) {
                Some(excuse) => self.wires[id].excuse = Some(excuse),
                None => self.violation(id, "a FIN for no reason"),
            }
        }
        self.wires[id].fin_at = Some(self.now);
        Ok(())
    }

    /// Whether the budget is enough for all that is read, so that no connection may end for want of
    /// memory.
    pub(super) fn has_memory_for_all(&self) -> bool {
        let Rules { protocol, max_buffered, .. } = self.settings.rules;
        protocol.framing == Framing::Raw && max_buffered >= MIN_MAX_BUFFERED
    }

    /// Why the server may end a connection that is not done.
    fn excuse(&self, id: usize) -> Option<&'static str> {
        let wire = &self.wires[id];
        let still = self.now - wire.moved_at;
        // It has looked just now.
        let looked = wire.blocked_at == Some(self.now);
        if self.settings.rules.idle_timeout.is_some_and(|time| still >= time) && looked {
            return Some("idle");
        }
        (self.drain_until.is_some_and(|until| self.now >= until)).then_some("drained")
    }

    fn close(&mut self, id: usize) {
        self.starved = false;
        let Some(connection_id) = self.wires[id].connection_id else {
            self.close_unserved(id);
            return;
        };
        self.old_ids.push(connection_id);
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
        if self.may_be_displaced() {
            return Ok(Some("displaced"));
        }
        let Some(fin_at) = wire.fin_at else {
            if wire.fin_read && wire.has_all_written() && wire.unsent == 0 {
                return Ok(None);
            }
            // A peer that takes nothing of a reply that is to be the last one.
            let last = !wire.ends_with_the_peer();
            let stuck = last && wire.unsent > 0 && self.now - wire.moved_at >= LINGER_TIME;
            let full = wire.unsent > 0 && !self.has_memory_for_all();
            if wire.unsent > 0 && !wire.blocked && !full {
                return Err("closed with a reply that the peer would have taken");
            }
            let excuse = self.excuse(id).or(stuck.then_some("stuck"));
            let excuse = excuse.or(full.then_some("no memory"));
            return excuse.map(Some).ok_or("closed for no reason");
        };
        if wire.fin_read {
            return Ok(wire.excuse);
        }
        let enough = self.now - fin_at >= LINGER_TIME || wire.lingered > LINGER_BYTES as usize;
        let drained = self.drain_until.is_some_and(|until| self.now >= until + LINGER_TIME);
        if enough || drained { Ok(wire.excuse.or(Some("lingered"))) } else { Err("did not linger") }
    }

    /// Whether a newcomer may be about to get the place of another.
    fn may_be_displaced(&self) -> bool {
        let Rules { newcomers_first, max_connections, .. } = self.settings.rules;
        newcomers_first
            && self.wires.iter().filter(|wire| wire.is_open()).count() >= max_connections
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

// ---- handles that the server holds

/// A listener of the world.
pub(super) struct SimulatedListener {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) index: usize,
}

/// The server's end of a wire.
pub(super) struct Socket {
    world: Rc<RefCell<World>>,
    id: usize,
}

impl Listener for SimulatedListener {
    type Stream = Socket;

    fn local_addr(&self) -> Option<SocketAddr> {
        None
    }

    fn accept(&mut self) -> io::Result<(Socket, SocketAddr)> {
        let (id, address) = self.world.borrow_mut().accept(self.index)?;
        Ok((Socket { world: Rc::clone(&self.world), id }, address))
    }

    fn register(&mut self, stream: &mut Socket, connection_id: ConnectionId) -> io::Result<()> {
        self.world.borrow_mut().register(stream.id, connection_id)
    }
}

impl Drop for SimulatedListener {
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

    fn is_unacknowledged(&self) -> bool {
        let world = self.world.borrow();
        world.wires[self.id].taken < world.wires[self.id].written
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.world.borrow_mut().called(self.id);
        Ok(([10, 0, 1, 1], 7).into())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Ok(mut world) = self.world.try_borrow_mut() {
            world.close(self.id);
        }
    }
}
