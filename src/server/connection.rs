//! The life of one TCP stream, whatever carries it: open, flushing, lingering, over.
//!
//! A connection does what its readiness allows and no more than one read a turn. What it may hold is
//! bounded: unsent output is the answer to one read, and while there is some, nothing is read.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::ops::{AddAssign, Sub};
use std::sync::Arc;
use std::time::Duration;

use log::kv::Value;
use log::{Level, debug, log_enabled};

use super::clock::Moment;
use super::memory::{Held, Memory, NoRoom};
use super::peer::Peer;
use super::story;
use crate::protocol::{Context, FrameError, Reply, Scratch, Service, Session, Verdict};
use crate::stats::{Counter, Stats};
use crate::units::{self, count};

/// What a connection needs of its stream.
pub(crate) trait Stream: Read + Write {
    /// Sends our FIN: nothing more will be written (shutdown(2) with `SHUT_WR`).
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Our end of it.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// How long a connection that we close may go on sending before it is cut off.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(2);
/// How many bytes a connection that we close may go on sending before it is cut off.
pub(crate) const LINGER_BYTES: u32 = 1 << 20;
/// How many of them are read and dropped in a turn.
const LINGER_READ: usize = 16 << 10;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The peer sent its FIN, and got all it was owed.
    Peer,
    /// The peer sent an RST.
    Reset,
    /// Nothing came for the idle timeout.
    Idle,
    /// The server is shutting down.
    Drain,
    /// The peer sent a frame that is too long.
    FrameTooLong,
    /// The peer ended its side inside a frame.
    FrameTruncated,
    /// The service, or [`Protocol::once`](crate::Protocol::once), was done with it.
    Service,
    /// The service panicked.
    Panicked,
    /// There was no room to keep what it is owed, or what it had sent of a frame.
    NoRoom,
    /// Anything else that the system said of this stream.
    Failed(ErrorKind),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Peer => f.write_str("by the peer's FIN"),
            CloseReason::Reset => f.write_str("by the peer's RST"),
            CloseReason::Idle => f.write_str("by us: idle"),
            CloseReason::Drain => f.write_str("by us: draining"),
            CloseReason::FrameTooLong => f.write_str("by us: a frame longer than allowed"),
            CloseReason::FrameTruncated => f.write_str("by us: the stream ended inside a frame"),
            CloseReason::Service => f.write_str("by us: the service was done"),
            CloseReason::Panicked => f.write_str("by us: the service panicked"),
            CloseReason::NoRoom => f.write_str("by us: no room for what it needs"),
            CloseReason::Failed(kind) => write!(f, "by an error: {kind}"),
        }
    }
}

impl CloseReason {
    /// Its name in the fields of the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            CloseReason::Peer => "peer_fin",
            CloseReason::Reset => "reset",
            CloseReason::Idle => "idle",
            CloseReason::Drain => "draining",
            CloseReason::FrameTooLong => "frame_too_long",
            CloseReason::FrameTruncated => "frame_truncated",
            CloseReason::Service => "service",
            CloseReason::Panicked => "panic",
            CloseReason::NoRoom => "no_room",
            CloseReason::Failed(_) => "error",
        }
    }

    /// What the system said of the stream.
    fn error(&self) -> Option<&ErrorKind> {
        match self {
            CloseReason::Failed(kind) => Some(kind),
            _ => None,
        }
    }

    /// The counter of connections that ended so.
    pub(crate) fn counter(self, stats: &Stats) -> &Counter {
        match self {
            CloseReason::Peer => &stats.closed_by_peer,
            CloseReason::Reset => &stats.closed_by_reset,
            CloseReason::Idle => &stats.closed_idle,
            CloseReason::Drain => &stats.closed_draining,
            CloseReason::FrameTooLong | CloseReason::FrameTruncated => &stats.closed_by_frame_error,
            CloseReason::Service => &stats.closed_by_service,
            CloseReason::Panicked => &stats.closed_by_panic,
            CloseReason::NoRoom => &stats.closed_for_memory,
            CloseReason::Failed(_) => &stats.closed_by_error,
        }
    }
}

impl From<NoRoom> for CloseReason {
    fn from(_: NoRoom) -> Self {
        CloseReason::NoRoom
    }
}

impl From<FrameError> for CloseReason {
    fn from(error: FrameError) -> Self {
        match error {
            // Its length is logged and not kept: a connection is small on purpose.
            FrameError::TooLong { .. } => CloseReason::FrameTooLong,
            FrameError::Truncated => CloseReason::FrameTruncated,
            FrameError::NoRoom => CloseReason::NoRoom,
        }
    }
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // EPIPE and, of shutdown(2), ENOTCONN: the peer's RST came while we were not reading.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected => {
                CloseReason::Reset
            }
            kind => CloseReason::Failed(kind),
        }
    }
}

/// What an event says of a stream: hints, until a read or write tells.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has closed at least its side, or sent urgent data: a short read is not the last one.
    pub(crate) closed: bool,
}

/// In 32 bits of these, five days: a connection is small on purpose.
const PAUSE_UNIT: Duration = Duration::from_micros(100);

/// What was read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Reads that brought bytes; the end of the stream is none.
    pub(crate) reads: u32,
    pub(crate) writes: u32,
    /// Writes that the socket took only a part of.
    pub(crate) short_writes: u32,
    /// How long nothing was read because the output was not taken, in units of [`PAUSE_UNIT`].
    pub(crate) paused: u32,
}

impl Traffic {
    /// Adds it to the counters.
    pub(crate) fn count(self, stats: &Stats) {
        stats.bytes_in.add(self.bytes_in);
        stats.bytes_out.add(self.bytes_out);
        stats.reads.add(self.reads.into());
        stats.writes.add(self.writes.into());
        stats.short_writes.add(self.short_writes.into());
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Traffic) {
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
        self.reads = self.reads.saturating_add(more.reads);
        self.writes = self.writes.saturating_add(more.writes);
        self.short_writes = self.short_writes.saturating_add(more.short_writes);
        self.paused = self.paused.saturating_add(more.paused);
    }
}

impl Sub for Traffic {
    type Output = Traffic;

    fn sub(self, before: Traffic) -> Traffic {
        Traffic {
            bytes_in: self.bytes_in - before.bytes_in,
            bytes_out: self.bytes_out - before.bytes_out,
            reads: self.reads - before.reads,
            writes: self.writes - before.writes,
            short_writes: self.short_writes - before.short_writes,
            paused: self.paused - before.paused,
        }
    }
}

/// The turn of a connection that is over gives the reason instead of going on.
pub(crate) type Turn<T = ()> = Result<T, CloseReason>;

/// Names a connection in events: its slot, and which of the connections that had the slot it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionId {
    pub(crate) slot: u32,
    /// Never 0.
    pub(crate) generation: u32,
}

/// What a connection remembers of the ready queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It stands on a queue.
    Queued,
    /// It does not, and asked for little when it had its last turn.
    Sparse,
    /// It does not, and asked for much.
    Greedy,
}

/// One TCP stream and its conversation.
pub(crate) struct Connection<S, V> {
    stream: S,
    /// The number of the connection, of all that were accepted. It tells this connection from others
    /// that have the same slot at other times.
    pub(crate) generation: u32,
    peer: Peer,
    session: Session<V>,
    /// What the socket would not take yet. Boxed, and gone as soon as it is sent.
    unsent: Option<Box<Unsent>>,
    phase: Phase,
    ready: Readiness,
    pub(crate) standing: Standing,
    opened: Moment,
    /// When the last byte moved, or, once we are closing, when we began to.
    active: Moment,
    traffic: Traffic,
}

struct Unsent {
    bytes: Held,
    sent: usize,
    since: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing more is read; it ends when the output is sent.
    Flushing(CloseReason),
    /// Our FIN is out; what still comes is dropped, so that it cannot cause an RST that would
    /// overtake our last bytes.
    Lingering(CloseReason, u32),
}

impl<S: Stream, V: Service> Connection<S, V> {
    pub(crate) fn new(
        stream: S,
        generation: u32,
        peer: Peer,
        session: Session<V>,
        now: Moment,
    ) -> Self {
        Connection {
            stream,
            generation,
            peer,
            session,
            unsent: None,
            phase: Phase::Open,
            // A new stream can be written; whether it can be read, an event will tell.
            ready: Readiness { readable: false, writable: true, closed: false },
            standing: Standing::Sparse,
            opened: now,
            active: now,
            traffic: Traffic::default(),
        }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// When the last byte moved, or when it began to close.
    pub(crate) fn active(&self) -> Moment {
        self.active
    }

    /// Remembers an event. Readiness goes away only when a read or write finds it gone.
    pub(crate) fn hint(&mut self, hint: Readiness) {
        self.ready.readable |= hint.readable;
        self.ready.writable |= hint.writable;
        self.ready.closed |= hint.closed;
    }

    /// Whether there is something to do that does not have to wait for an event.
    pub(crate) fn can_act(&self) -> bool {
        if self.unsent.is_some() { self.ready.writable } else { self.ready.readable }
    }

    /// The first thing to do: greets the peer, where the service has something to say.
    pub(crate) fn open(
        &mut self,
        scratch: &mut Scratch,
        memory: &Arc<Memory>,
        now: Moment,
    ) -> Turn {
        let answer = self.converse(memory, |session, _, context| session.open(scratch, context));
        self.conclude(answer, memory, now)
    }

    /// How much it may read in a turn, given its share of the memory: what is dropped needs none.
    pub(crate) fn read_limit(&self, share: usize) -> usize {
        match self.phase {
            Phase::Lingering(..) => LINGER_READ,
            Phase::Open | Phase::Flushing(_) => share,
        }
    }

    /// The first half of a turn: sends what is left over, then reads once into `room`. The number of
    /// bytes read, all of which want an answer; 0 where there is nothing to answer.
    pub(crate) fn receive(
        &mut self,
        room: &mut [u8],
        scratch: &mut Scratch,
        memory: &Arc<Memory>,
        idle_timeout: Option<Duration>,
        now: Moment,
    ) -> Turn<usize> {
        self.flush(now)?;
        if self.unsent.is_some() || !self.ready.readable {
            return self.found_nothing(idle_timeout, now);
        }
        let most = match self.phase {
            Phase::Lingering(..) => LINGER_READ,
            Phase::Open | Phase::Flushing(_) => usize::MAX,
        };
        let most = room.len().min(most);
        let room = &mut room[..most];
        let read = match self.stream.read(room) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                story::read_would_block(&self.peer);
                self.ready.readable = false;
                return self.found_nothing(idle_timeout, now);
            }
            // Still ready: the ready queue brings it back.
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        // A read that did not fill its room emptied the socket (epoll(7)), unless a FIN is behind it,
        // or an urgent byte (tcp(7)).
        if read < room.len() && !self.ready.closed {
            self.ready.readable = false;
        }
        story::read(&self.peer, read, room.len());
        self.traffic.reads = self.traffic.reads.saturating_add(u32::from(read > 0));
        self.traffic.bytes_in += read as u64;
        match self.phase {
            Phase::Lingering(reason, _) if read == 0 => Err(reason),
            Phase::Lingering(reason, left) => {
                let read = u32::try_from(read).unwrap_or(u32::MAX);
                self.phase = Phase::Lingering(reason, left.checked_sub(read).ok_or(reason)?);
                Ok(0)
            }
            _ if read == 0 => {
                self.finish(scratch, memory, now)?;
                Ok(0)
            }
            _ => {
                self.active = now;
                Ok(read)
            }
        }
    }

    /// The second half of a turn: answers what was read.
    pub(crate) fn answer(
        &mut self,
        input: &[u8],
        scratch: &mut Scratch,
        memory: &Arc<Memory>,
        now: Moment,
    ) -> Turn {
        let answer = self.converse(memory, |session, room, context| {
            session.receive(input, room, scratch, context)
        });
        story::answered(&self.peer, answer.bytes.len());
        self.conclude(answer, memory, now)
    }

    /// Has the session answer, within the memory that is free.
    fn converse<'a>(
        &mut self,
        memory: &Memory,
        ask: impl FnOnce(&mut Session<V>, usize, &Context<'_>) -> Reply<'a>,
    ) -> Reply<'a> {
        let local = || self.stream.local_addr();
        let context = Context::stream(self.generation, self.peer.into(), &local);
        let held = self.session.held();
        let answer = ask(&mut self.session, memory.growth(), &context);
        memory.adjust(held, self.session.held());
        answer
    }

    /// Sends an answer, and does what follows from it.
    fn conclude(&mut self, answer: Reply<'_>, memory: &Arc<Memory>, now: Moment) -> Turn {
        let reason = match answer.verdict {
            Verdict::Continue => None,
            Verdict::Close => Some(CloseReason::Service),
            Verdict::Finished => Some(CloseReason::Peer),
            Verdict::Broken(error) => {
                let reason = CloseReason::from(error);
                debug!(
                    event = "frame_broken",
                    peer:% = self.peer,
                    reason = reason.name();
                    "{}: {error}",
                    self.peer
                );
                Some(reason)
            }
            Verdict::Panicked => Some(CloseReason::Panicked),
        };
        self.send(answer.bytes, memory, now)?;
        match reason {
            // It is to end anyway.
            _ if self.phase != Phase::Open => self.advance(),
            None => Ok(()),
            Some(reason) => self.close(reason, now),
        }
    }

    /// Our side wants to end it: what is owed is still sent, then our FIN, then we linger.
    pub(crate) fn close(&mut self, reason: CloseReason, now: Moment) -> Turn {
        if !matches!(self.phase, Phase::Lingering(..)) {
            // Where the peer's FIN was read already, lingering finds it again and is over at once.
            self.ready.readable |= self.phase != Phase::Open;
            self.phase = Phase::Flushing(reason);
            self.active = now;
        }
        self.advance()
    }

    /// When [`expire`](Self::expire) is due, if nothing moves before.
    pub(crate) fn deadline(&self, idle_timeout: Option<Duration>) -> Option<Moment> {
        match self.phase {
            Phase::Open | Phase::Flushing(CloseReason::Peer) => {
                idle_timeout.map(|time| self.active + time)
            }
            Phase::Flushing(_) | Phase::Lingering(..) => Some(self.active + LINGER_TIME),
        }
    }

    /// Its deadline has passed. That only means to look once more: what came while nobody looked was
    /// in time. A turn that finds nothing then is the last one.
    pub(crate) fn expire(&mut self) -> Turn {
        if let Phase::Lingering(reason, _) = self.phase {
            return Err(reason);
        }
        self.ready.writable |= self.unsent.is_some();
        self.ready.readable |= self.unsent.is_none();
        Ok(())
    }

    /// Nothing moved for as long as it may: ends it.
    pub(crate) fn give_up(&mut self, now: Moment) -> Turn {
        match self.phase {
            Phase::Open if self.unsent.is_none() => self.close(CloseReason::Idle, now),
            // The peer does not take what it is owed: a FIN would tell it that this was all.
            Phase::Open | Phase::Flushing(CloseReason::Peer) => Err(CloseReason::Idle),
            Phase::Flushing(reason) | Phase::Lingering(reason, _) => Err(reason),
        }
    }

    /// A turn found nothing to read, and no way to send what is left over.
    fn found_nothing(&mut self, idle_timeout: Option<Duration>, now: Moment) -> Turn<usize> {
        if self.deadline(idle_timeout).is_some_and(|deadline| now >= deadline) {
            self.give_up(now)?;
        }
        Ok(0)
    }

    /// It is over: tells the service, and gives back what it holds.
    pub(crate) fn end(mut self, reason: CloseReason, memory: &Memory, now: Moment) {
        let local = || self.stream.local_addr();
        self.session.close(&Context::stream(self.generation, self.peer.into(), &local));
        memory.adjust(self.session.held(), 0);
        if log_enabled!(Level::Debug) {
            self.summary(reason, now).log();
        }
    }

    /// The peer has sent its FIN: it still gets all it is owed.
    fn finish(&mut self, scratch: &mut Scratch, memory: &Arc<Memory>, now: Moment) -> Turn {
        let answer = self.converse(memory, |session, _, context| session.finish(scratch, context));
        self.ready.readable = false;
        self.phase = Phase::Flushing(match answer.verdict {
            Verdict::Broken(error) => error.into(),
            Verdict::Panicked => CloseReason::Panicked,
            Verdict::Continue | Verdict::Close | Verdict::Finished => CloseReason::Peer,
        });
        self.active = now;
        self.conclude(answer, memory, now)
    }

    fn send(&mut self, bytes: Cow<'_, [u8]>, memory: &Arc<Memory>, now: Moment) -> Turn {
        let sent = self.write(&bytes)?;
        if sent < bytes.len() {
            let (bytes, sent) = match bytes {
                Cow::Owned(bytes) => (Held::own(bytes, memory)?, sent),
                Cow::Borrowed(bytes) => (Held::copy(&bytes[sent..], memory)?, 0),
            };
            self.unsent = Some(Box::new(Unsent { bytes, sent, since: now }));
        }
        Ok(())
    }

    /// Sends what the socket would not take before.
    fn flush(&mut self, now: Moment) -> Turn {
        if !self.ready.writable {
            return Ok(());
        }
        let Some(mut unsent) = self.unsent.take() else { return Ok(()) };
        let sent = self.write(&unsent.bytes[unsent.sent..])?;
        unsent.sent += sent;
        // Only a drain does not wait for a peer that takes its answer bit by bit.
        if sent > 0 && self.phase != Phase::Flushing(CloseReason::Drain) {
            self.active = now;
        }
        if unsent.sent < unsent.bytes.len() {
            self.unsent = Some(unsent);
            return Ok(());
        }
        let paused = (now - unsent.since).as_micros() / PAUSE_UNIT.as_micros();
        let paused = u32::try_from(paused).unwrap_or(u32::MAX);
        self.traffic.paused = self.traffic.paused.saturating_add(paused);
        self.advance()
    }

    /// Writes until all is taken or the socket takes no more.
    fn write(&mut self, bytes: &[u8]) -> Turn<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.stream.write(&bytes[sent..]) {
                Ok(0) => return Err(CloseReason::Failed(ErrorKind::WriteZero)),
                Ok(taken) => {
                    story::wrote(&self.peer, taken, bytes.len() - sent);
                    self.traffic.writes = self.traffic.writes.saturating_add(1);
                    self.traffic.bytes_out += taken as u64;
                    sent += taken;
                    if sent < bytes.len() {
                        self.traffic.short_writes = self.traffic.short_writes.saturating_add(1);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    story::write_would_block(&self.peer);
                    self.ready.writable = false;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sent)
    }

    /// Goes on with closing, once nothing is left to send.
    fn advance(&mut self) -> Turn {
        match self.phase {
            Phase::Flushing(_) if self.unsent.is_some() => Ok(()),
            Phase::Flushing(CloseReason::Peer) => Err(CloseReason::Peer),
            // Both sides are done: there is nothing to linger for.
            Phase::Flushing(reason @ CloseReason::FrameTruncated) => Err(reason),
            Phase::Flushing(reason) => {
                self.stream.shutdown_write()?;
                story::shut_down(&self.peer);
                self.phase = Phase::Lingering(reason, LINGER_BYTES);
                Ok(())
            }
            Phase::Open | Phase::Lingering(..) => Ok(()),
        }
    }
}

impl<S, V: Service> Connection<S, V> {
    /// What moved so far.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    fn summary(&self, reason: CloseReason, now: Moment) -> Summary {
        let unsent = self.unsent.as_deref();
        let waiting = unsent.map_or(Duration::ZERO, |unsent| now - unsent.since);
        Summary {
            peer: self.peer,
            reason,
            traffic: self.traffic,
            unsent: unsent.map_or(0, |unsent| unsent.bytes.len() - unsent.sent),
            paused: PAUSE_UNIT.saturating_mul(self.traffic.paused) + waiting,
            open: now - self.opened,
        }
    }
}

/// What there is to say of a connection that has ended.
struct Summary {
    peer: Peer,
    reason: CloseReason,
    traffic: Traffic,
    /// Bytes that the peer has not taken.
    unsent: usize,
    /// How long nothing was read because the output was not taken.
    paused: Duration,
    open: Duration,
}

impl Summary {
    fn log(&self) {
        let Summary { peer, reason, traffic, unsent, paused, open } = self;
        debug!(
            event = "closed",
            peer:%,
            reason = reason.name(),
            error = reason.error().map(Value::from_debug),
            bytes_in = traffic.bytes_in,
            bytes_out = traffic.bytes_out,
            reads = traffic.reads,
            writes = traffic.writes,
            short_writes = traffic.short_writes,
            unsent = unsent,
            paused_ns = units::nanoseconds(*paused),
            open_ns = units::nanoseconds(*open);
            "{self}"
        );
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { peer, reason, traffic, unsent, paused, open } = self;
        let Traffic { bytes_in, bytes_out, reads, writes, short_writes, .. } = *traffic;
        write!(f, "{peer} closed {reason}: {bytes_in} bytes in {}, ", count(reads, "read"))?;
        write!(f, "{bytes_out} bytes out in {} ({short_writes} short), ", count(writes, "write"))?;
        if *unsent > 0 {
            write!(f, "{unsent} bytes unsent, ")?;
        }
        let (paused, open) = (units::time(*paused), units::time(*open));
        write!(f, "paused {paused} by back-pressure, open {open}")
    }
}

#[cfg(any(test, fuzzing))]
impl<S, V: Service> Connection<S, V> {
    /// The bytes that it holds on the heap: output not taken, and the beginning of a frame.
    pub(crate) fn held(&self) -> usize {
        self.unsent.as_ref().map_or(0, |unsent| unsent.bytes.capacity()) + self.session.held()
    }

    /// The bytes of output that wait for the socket.
    pub(crate) fn unsent(&self) -> usize {
        self.unsent.as_ref().map_or(0, |unsent| unsent.bytes.len() - unsent.sent)
    }
}

#[cfg(test)]
mod tests;
