//! One client, served to its end by the thread that it is given.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::clients::{Phase, Slot};
use crate::protocol::{Scratch, Service, Session};
use crate::server::connection::{self, CloseReason, Connection, Readiness, Turn};
use crate::server::memory::{CHUNK, Memory};
use crate::server::story;

/// The room for the reads of a connection, in bytes, at first. It doubles when a read fills it, up to what the
/// event loop has, as long as there is memory for it: that is what a thread per client costs most of,
/// and most clients say little.
const FIRST_ROOM: usize = 4 << 10;

/// A client that is in a slot. The stream is closed before the slot is free.
pub(in crate::server) struct Client<'a> {
    stream: Arc<TcpStream>,
    slot: Slot<'a>,
}

/// Everything at once: a read or write that is not ready waits.
const READY: Readiness = Readiness { readable: true, writable: true, closed: true };

impl<'a> Client<'a> {
    pub(super) fn new(stream: Arc<TcpStream>, slot: Slot<'a>) -> Self {
        Client { stream, slot }
    }

    /// Serves the client to its end, however long that takes.
    pub(in crate::server) fn serve<V: Service>(self, service: V) {
        let clients = self.slot.clients;
        let session = Session::new(clients.rules.protocol, service);
        let stream = Waiting { client: &self, fin_sent: false };
        let Slot { number, peer, .. } = self.slot;
        let mut connection = Connection::new(stream, number, peer, session, clients.clock().now());
        let mut work = Workspace::new(&clients.memory);
        let mut turn = clients.rules.idle_timeout.map_or(Ok(()), |time| self.allow(time));
        if turn.is_ok() {
            turn = connection.open(&mut work.scratch, &clients.memory, clients.clock().now());
            connection.traffic().count(&clients.stats);
        }
        let reason = loop {
            if let Err(reason) = turn {
                break reason;
            }
            let before = connection.traffic();
            turn = self.turn(&mut connection, &mut work);
            work.count();
            (connection.traffic() - before).count(&clients.stats);
        };
        connection.end(reason, &clients.memory, clients.clock().now());
        drop(work);
        clients.ended(peer, reason);
        drop(self);
        // Counted last: a connection that counts as closed is gone, with all that it held.
        reason.counter(&clients.stats).increment();
    }

    /// Waits for bytes and answers them.
    fn turn<V: Service>(
        &self,
        connection: &mut Connection<Waiting<'_>, V>,
        work: &mut Workspace<'_>,
    ) -> Turn {
        let clients = self.slot.clients;
        let (memory, clock) = (&clients.memory, clients.clock());
        connection.hint(READY);
        let Workspace { room, scratch, .. } = work;
        let read = connection.receive(room, scratch, memory, None, clock.now())?;
        let now = clock.now();
        if read > 0 {
            connection.answer(&room[..read], scratch, memory, now)?;
        }
        if read == room.len() && read < CHUNK {
            work.double_room();
        }
        let closing = connection.deadline(None).is_some();
        if !connection.can_act() {
            // It has waited for as long as it may, or was cut.
            match clients.phase() >= Phase::Asked && !closing {
                true => connection.close(CloseReason::Drain, now)?,
                false => connection.give_up(now)?,
            }
        }
        // From here on there is an end to waiting, whatever comes in the meantime.
        match connection.deadline(None) {
            Some(deadline) if deadline <= now => {
                self.allow(Duration::ZERO)?;
                connection.expire()
            }
            Some(deadline) => self.allow(deadline - now),
            None => Ok(()),
        }
    }

    /// Lets each read and write wait for so long, and no longer.
    fn allow(&self, time: Duration) -> Turn {
        // None is zero for the system: it would wait for ever.
        let time = time.max(Duration::from_micros(1));
        self.stream.set_read_timeout(Some(time))?;
        self.stream.set_write_timeout(Some(time))?;
        Ok(())
    }
}

/// What the thread of a client works with. Beyond the first room it counts as memory that is held.
struct Workspace<'a> {
    room: Vec<u8>,
    scratch: Scratch,
    memory: &'a Memory,
    counted: usize,
}

impl<'a> Workspace<'a> {
    fn new(memory: &'a Memory) -> Self {
        Workspace { room: vec![0; FIRST_ROOM], scratch: Scratch::default(), memory, counted: 0 }
    }

    /// Doubles the room for reads, if there is memory for that.
    fn double_room(&mut self) {
        let more = self.room.len();
        if more <= self.memory.growth() && self.room.try_reserve_exact(more).is_ok() {
            self.room.resize(2 * more, 0);
        }
    }

    /// Counts what it has become. Where nothing is free it goes back to what it was at first.
    fn count(&mut self) {
        if self.memory.free() == 0 {
            self.room.truncate(FIRST_ROOM);
            self.room.shrink_to_fit();
            self.scratch = Scratch::default();
        }
        let counted = self.room.capacity() - FIRST_ROOM + self.scratch.held();
        self.memory.adjust(self.counted, counted);
        self.counted = counted;
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        self.memory.adjust(self.counted, 0);
    }
}

/// A stream on which reads and writes wait. It would block (so that the connection sees what it sees
/// in the event loop) where it has waited for as long as it may, or was cut.
struct Waiting<'a> {
    client: &'a Client<'a>,
    fin_sent: bool,
}

impl Waiting<'_> {
    /// Whether nothing more is to be read: then an end of the stream may be our own doing.
    fn is_asked(&self) -> bool {
        !self.fin_sent && self.client.slot.clients.phase() >= Phase::Asked
    }
}

impl Read for Waiting<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.is_asked() {
            return Err(ErrorKind::WouldBlock.into());
        }
        story::waits_to_read(&self.client.slot.peer);
        match (&*self.client.stream).read(room) {
            Ok(0) if self.is_asked() => Err(ErrorKind::WouldBlock.into()),
            outcome => outcome,
        }
    }
}

impl Write for Waiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        story::waits_to_write(&self.client.slot.peer, bytes.len());
        match (&*self.client.stream).write(bytes) {
            Err(_) if self.client.slot.clients.phase() == Phase::Over => {
                Err(ErrorKind::WouldBlock.into())
            }
            outcome => outcome,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl connection::Stream for Waiting<'_> {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.fin_sent = true;
        match self.client.stream.shutdown(Shutdown::Write) {
            // It is shut down already.
            Err(_) if self.client.slot.clients.phase() == Phase::Over => Ok(()),
            outcome => outcome,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.client.stream.local_addr()
    }
}
