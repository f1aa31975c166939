//! One TCP connection: flush what is left, read once, reply, write; and how it closes.
//!
//! A connection does what its readiness allows and no more than one read a turn. What it may hold is
//! bounded: output is the reply to one read, and while there is some, nothing is read.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, trace};

use super::admission::Rules;
use super::budget::Budget;
use super::clock::Moment;
use super::ending::{
    CloseReason, LINGER_BYTES, LINGER_TIME, Summary, Traffic, trace_reply, trace_shutdown,
};
use super::netem::Netem;
use super::peer::Peer;
use super::ready::{Queue, SMALL_TURN};
use crate::protocol::{Context, Reply, Scratch, Service, Session, Verdict, try_box};
use crate::stats::Stats;
use crate::sys::SHORT_READ_EMPTIES;

/// What a connection needs of its stream.
pub(crate) trait Stream: Read + Write {
    /// Sends our FIN: nothing more will be written (shutdown(2) with `SHUT_WR`).
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Whether the peer has yet to acknowledge some of what was sent, after our FIN.
    fn is_unacknowledged(&self) -> bool;

    /// Our end of it.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// How many bytes a turn that lingers reads and drops at most.
const LINGER_READ: usize = 16 << 10;

/// What an event says of a stream: hints, until a read or write tells.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The peer has closed at least its side, or sent urgent data: a short read is not the last one.
    pub(crate) closed: bool,
}

/// A turn that is the last one gives the reason.
pub(crate) type Turn = Result<(), CloseReason>;

/// What all connections share, lent to each turn.
pub(crate) struct Shared {
    pub(crate) rules: Rules,
    pub(crate) stats: Arc<Stats>,
    pub(crate) budget: Budget,
    /// Delays replies on purpose.
    pub(crate) netem: Option<Netem>,
}

/// Where a connection stands among those that can act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// On a ready queue.
    Queued,
    /// On none. It read this much or little in its last turn, and an event puts it on that queue.
    Waits(Queue),
}

impl Shared {
    pub(crate) fn new(rules: Rules, stats: Arc<Stats>, netem: Option<Netem>) -> Self {
        let budget = Budget::new(rules.max_buffered, Arc::clone(&stats));
        Shared { rules, stats, budget, netem }
    }
}

/// One TCP stream and its conversation.
pub(crate) struct Connection<S, V> {
    stream: S,
    /// The number of the connection, of all that were accepted. It tells this connection from others
    /// that have the same slot at other times.
    pub(crate) generation: u32,
    pub(crate) peer: Peer,
    session: Session<V>,
    /// What is owed to the peer. Boxed, and gone as soon as it is sent.
    output: Option<Box<[Output; 1]>>,
    phase: Phase,
    ready: Readiness,
    pub(crate) standing: Standing,
    traffic: Traffic,
    opened: Moment,
    /// When the last byte moved, when a delayed reply may leave, or when we began to close.
    pub(crate) active: Moment,
}

/// What is owed to the peer, and when it may leave.
struct Output {
    /// Held of the budget, by capacity. Empty where there is no room for it, or no way to send it.
    bytes: Vec<u8>,
    /// How many bytes are not sent: the last ones.
    left: usize,
    /// When the socket refused it, or when it may leave.
    since: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing more is read; it ends when the output is sent.
    Flushing(CloseReason),
    /// Our FIN is out. What still comes is dropped, so that it cannot cause an RST that would overtake our
    /// last bytes: up to this number of bytes, and more while these are not acknowledged.
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
        // A new stream can be written; whether it can be read, an event will tell.
        let ready = Readiness { readable: false, writable: true, closed: false };
        Connection {
            stream,
            generation,
            peer,
            session,
            output: None,
            phase: Phase::Open,
            ready,
            standing: Standing::Waits(Queue::Sparse),
            traffic: Traffic::default(),
            opened: now,
            active: now,
        }
    }

    /// Remembers an event. Readiness goes away only when a read or write finds it gone.
    pub(crate) fn hint(&mut self, hint: Readiness) {
        let Readiness { readable, writable, closed } = hint;
        trace!(
            event = "ready",
            what = "connection",
            peer:% = self.peer,
            readable = readable,
            writable = writable,
            closed = closed;
            "event: {} is {hint}",
            self.peer
        );
        self.ready.readable |= readable;
        self.ready.writable |= writable;
        self.ready.closed |= closed;
    }

    /// Whether there is something to do that does not have to wait for an event, or for time.
    pub(crate) fn can_act(&self, now: Moment) -> bool {
        match self.output() {
            Some(output) => self.ready.writable && output.since <= now,
            None => self.ready.readable,
        }
    }

    /// Whether something came from the peer, and nothing was sent to it yet.
    pub(crate) fn is_in_request(&self) -> bool {
        self.traffic.bytes_in > 0 && self.traffic.bytes_out == 0
    }

    /// The first thing to do: greets the peer, where the service has something to say.
    pub(crate) fn open(&mut self, scratch: &mut Scratch, shared: &mut Shared, now: Moment) -> Turn {
        let reply =
            self.converse(&shared.budget, |session, _, context| session.open(scratch, context));
        self.reply(reply, shared, now)
    }

    /// How much it may read in a turn, given its share of the budget: what is dropped needs none.
    pub(crate) fn read_limit(&self, share: usize) -> usize {
        match self.phase {
            Phase::Lingering(..) => LINGER_READ,
            Phase::Open | Phase::Flushing(_) => share,
        }
    }

    /// One turn: sends what is left of the last reply; then reads once, and replies.
    pub(crate) fn turn(
        &mut self,
        buffer: &mut [u8],
        scratch: &mut Scratch,
        shared: &mut Shared,
        now: Moment,
    ) -> Turn {
        self.flush(shared, now)?;
        if self.output.is_some() || !self.ready.readable {
            return self.found_nothing(shared, now);
        }
        let read = match self.read(buffer, &shared.stats) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return self.found_nothing(shared, now);
            }
            // Still ready: the ready queue brings it back.
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let queue = if read > SMALL_TURN { Queue::Greedy } else { Queue::Sparse };
        self.standing = Standing::Waits(queue);
        if let Phase::Lingering(reason, left) = self.phase {
            let left = u32::try_from(read).ok().and_then(|read| left.checked_sub(read));
            let left = left.or_else(|| self.stream.is_unacknowledged().then_some(0));
            self.phase = Phase::Lingering(reason, left.filter(|_| read > 0).ok_or(reason)?);
            return Ok(());
        }
        self.active = now;
        let input = &buffer[..read];
        let reply = self.converse(&shared.budget, |session, budget, context| match input {
            [] => session.finish(scratch, context),
            input => session.receive(input, budget, scratch, context),
        });
        self.reply(reply, shared, now)
    }

    /// Has the session reply, within the memory that is free.
    fn converse<'a>(
        &mut self,
        budget: &Budget,
        ask: impl FnOnce(&mut Session<V>, usize, &Context<'_>) -> Reply<'a>,
    ) -> Reply<'a> {
        let local = || self.stream.local_addr();
        let context = Context::asking(Some(self.generation), self.peer.into(), &local);
        let held = self.session.held();
        let reply = ask(&mut self.session, budget.growth(), &context);
        budget.adjust(held, self.session.held());
        reply
    }

    /// Sends a reply, and closes where it is the last one.
    fn reply(&mut self, reply: Reply<'_>, shared: &mut Shared, now: Moment) -> Turn {
        let Reply { bytes, verdict, .. } = reply;
        let peer = self.peer;
        trace_reply(&peer, bytes.len(), self.session.begun());
        let reason = CloseReason::of(verdict);
        if let (Verdict::Broken(error), Some(reason)) = (verdict, reason) {
            debug!(event = "frame_broken", peer:%, reason = reason.name(); "{peer}: {error}");
        }
        self.send(bytes, shared, now)?;
        reason.map_or(Ok(()), |reason| self.close(reason, now))
    }

    /// Writes as much as the socket takes, unless a delay is wanted. What is left becomes the output.
    fn send(&mut self, bytes: Cow<'_, [u8]>, shared: &mut Shared, now: Moment) -> Turn {
        if bytes.is_empty() {
            return Ok(());
        }
        let delay = shared.netem.as_mut().map_or(Duration::ZERO, Netem::delay);
        let mut left = bytes.len();
        let written = match delay {
            Duration::ZERO => self.write(&bytes, &mut left, &shared.stats),
            _ => Ok(()),
        };
        if left == 0 {
            return Ok(());
        }
        let kept = written.and_then(|()| match bytes {
            Cow::Owned(bytes) => shared.budget.keep_owned(bytes),
            Cow::Borrowed(bytes) => shared.budget.keep(&bytes[bytes.len() - left..]),
        });
        let outcome = kept.as_ref().map(drop).map_err(|&reason| reason);
        let (bytes, since) = (kept.unwrap_or_default(), now + delay);
        let capacity = bytes.capacity();
        let Ok(output) = try_box(Output { bytes, left, since }) else {
            shared.budget.adjust(capacity, 0);
            return Err(CloseReason::OverBudget);
        };
        self.output = Some(output);
        // No time runs out while a reply is due.
        self.active = since;
        outcome
    }

    /// Sends the output, as far as the socket takes it.
    fn flush(&mut self, shared: &Shared, now: Moment) -> Turn {
        let may_leave =
            |output: &mut Box<[Output; 1]>| self.ready.writable && output[0].since <= now;
        let Some(mut boxed) = self.output.take_if(may_leave) else { return Ok(()) };
        let [output] = &mut *boxed;
        let before = output.left;
        let written = self.write(&output.bytes, &mut output.left, &shared.stats);
        // Only a drain does not wait for a peer that takes its reply bit by bit.
        if output.left < before && self.phase != Phase::Flushing(CloseReason::Drain) {
            self.active = now;
        }
        if output.left > 0 {
            self.output = Some(boxed);
            return written;
        }
        self.traffic.count_pause(now - output.since);
        shared.budget.adjust(output.bytes.capacity(), 0);
        self.advance()
    }

    /// A turn found nothing to read, and no way to send what is left. One whose deadline has passed is
    /// the last.
    fn found_nothing(&mut self, shared: &Shared, now: Moment) -> Turn {
        if self.deadline(shared.rules.idle_timeout, now).is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        match self.phase {
            Phase::Open if self.output.is_none() => self.close(CloseReason::Idle, now),
            // The peer does not take what it is owed: a FIN would tell it that this was all.
            Phase::Open | Phase::Flushing(CloseReason::PeerFin) => Err(CloseReason::Idle),
            Phase::Flushing(reason) | Phase::Lingering(reason, _) => Err(reason),
        }
    }

    // ---- the stream

    /// Reads once, and notes whether there may be more.
    fn read(&mut self, buffer: &mut [u8], stats: &Stats) -> io::Result<usize> {
        let peer = self.peer;
        let read = self.stream.read(buffer).inspect_err(|error| {
            if error.kind() == ErrorKind::WouldBlock {
                trace!(
                    event = "would_block",
                    call = "read",
                    peer:%;
                    "{peer}: read would block: nothing more has come"
                );
                self.ready.readable = false;
            }
        })?;
        // Unless a FIN is behind it, or an urgent byte (tcp(7)).
        if read < buffer.len() && SHORT_READ_EMPTIES && !self.ready.closed {
            self.ready.readable = false;
        }
        self.traffic.count_read(&peer, read, buffer.len(), stats);
        Ok(read)
    }

    /// Writes those that are `left` of the bytes, until all is taken or the socket takes no more.
    fn write(&mut self, bytes: &[u8], left: &mut usize, stats: &Stats) -> Turn {
        let peer = self.peer;
        while *left > 0 {
            match self.stream.write(&bytes[bytes.len() - *left..]) {
                Ok(0) => return Err(CloseReason::Failed(ErrorKind::WriteZero)),
                Ok(taken) => {
                    self.traffic.count_write(&peer, taken, *left, stats);
                    *left -= taken;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    trace!(
                        event = "would_block",
                        call = "write",
                        peer:%;
                        "{peer}: write would block: the send buffer is full, and nothing is read until it has room"
                    );
                    self.ready.writable = false;
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    // ---- closing

    /// Our side wants to end it: what is owed is still sent, then our FIN, then it lingers.
    pub(crate) fn close(&mut self, reason: CloseReason, now: Moment) -> Turn {
        if !matches!(self.phase, Phase::Lingering(..)) {
            // Where the peer's FIN was read already, lingering finds it again and is over at once.
            self.ready.readable |= self.phase != Phase::Open;
            self.phase = Phase::Flushing(reason);
            // Only a drain does not wait for a peer that does not read.
            self.active = if reason == CloseReason::Drain { now } else { self.active.max(now) };
        }
        self.advance()
    }

    /// Lets a delayed reply leave before it is time.
    pub(crate) fn hasten(&mut self, now: Moment) -> Turn {
        if let Some(output) = &mut self.output {
            output[0].since = output[0].since.min(now);
        }
        Ok(())
    }

    /// Goes on with closing, once nothing is left to send.
    fn advance(&mut self) -> Turn {
        match self.phase {
            Phase::Flushing(_) if self.output.is_some() => Ok(()),
            Phase::Flushing(reason) if reason.ends_both_sides() => Err(reason),
            Phase::Flushing(reason) => {
                self.stream.shutdown_write()?;
                trace_shutdown(&self.peer);
                self.phase = Phase::Lingering(reason, LINGER_BYTES);
                Ok(())
            }
            Phase::Open | Phase::Lingering(..) => Ok(()),
        }
    }

    /// When a turn is due even if no event comes: a delayed reply may leave, or nothing has moved for
    /// as long as it may.
    pub(crate) fn deadline(&self, idle_timeout: Option<Duration>, now: Moment) -> Option<Moment> {
        let release = self.output().map(|output| output.since).filter(|&at| at > now);
        let end = match self.phase {
            Phase::Open | Phase::Flushing(CloseReason::PeerFin) => {
                idle_timeout.map(|time| self.active + time)
            }
            Phase::Flushing(_) | Phase::Lingering(..) => Some(self.active + LINGER_TIME),
        };
        release.into_iter().chain(end).min()
    }

    /// Where its deadline has passed, has it look once more: what came unnoticed came in time.
    pub(crate) fn expire(&mut self, idle_timeout: Option<Duration>, now: Moment) -> Turn {
        if self.deadline(idle_timeout, now).is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        if let Phase::Lingering(reason, _) = self.phase {
            return Err(reason);
        }
        self.ready.writable |= self.output.is_some();
        self.ready.readable |= self.output.is_none();
        Ok(())
    }

    /// It is over: tells the service, and gives back what it holds. The reason is another one where the
    /// service panics.
    pub(crate) fn end(self, reason: CloseReason, shared: &Shared, now: Moment) -> Summary {
        let mut summary = self.summary(reason, now);
        shared.budget.adjust(self.held(), 0);
        let local = || self.stream.local_addr();
        let context = Context::asking(Some(self.generation), self.peer.into(), &local);
        if !self.session.close(&context) {
            summary.reason = CloseReason::Panicked;
        }
        summary
    }
}

impl<S, V: Service> Connection<S, V> {
    fn output(&self) -> Option<&Output> {
        self.output.as_deref().map(|[output]| output)
    }

    /// The bytes that it holds on the heap: output, and the beginning of a frame.
    pub(crate) fn held(&self) -> usize {
        self.output().map_or(0, |output| output.bytes.capacity()) + self.session.held()
    }

    /// The bytes of output that wait.
    pub(crate) fn unsent(&self) -> usize {
        self.output().map_or(0, |output| output.left)
    }

    /// Whether its output waits for time.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn is_delayed(&self, now: Moment) -> bool {
        self.output().is_some_and(|output| output.since > now)
    }

    fn summary(&self, reason: CloseReason, now: Moment) -> Summary {
        let (peer, mut traffic) = (self.peer, self.traffic);
        if let Some(output) = self.output() {
            traffic.count_pause(now - output.since);
        }
        Summary { peer, reason, traffic, unsent: self.unsent(), open: now - self.opened }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Readiness { readable, writable, closed } = *self;
        let all = [
            (readable, "readable"),
            (writable, "writable"),
            (closed, "closed (or has urgent data)"),
        ];
        let mut named = all.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name);
        f.write_str(named.next().unwrap_or("as it was"))?;
        named.try_for_each(|name| write!(f, ", {name}"))
    }
}

#[cfg(test)]
mod tests;
