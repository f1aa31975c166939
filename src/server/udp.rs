//! UDP: receive a batch, answer a batch.
//!
//! Each datagram gets one of the same length back (RFC 862), from the address that it was sent to.
//! What is received stands in one buffer, one after the other, so that answers to one peer are often
//! one piece of it, and leave in one call: as one datagram, or with segmentation offload (udp(7),
//! UDP_SEGMENT) as a run of equal ones, which the kernel cuts where the peer had cut them. The same
//! offload on receive (UDP_GRO) hands over such a run in one piece.
//!
//! Pure but for its [`Socket`]: `now` is an argument.

mod fairness;
mod held;
mod impaired;
mod neighbours;
mod route;
mod send_queue;
#[cfg(test)]
mod tests;

pub(super) use neighbours::Neighbours;
pub(super) use route::Unjoinable;

use std::io::IoSlice;
use std::net::UdpSocket;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, error, warn};
use nix::poll::{PollFd, PollFlags};

use self::fairness::Fairness;
use self::held::Answer;
use self::impaired::Impaired;
use self::send_queue::{Call, Joining, MAX_SEGMENTS, Piece, Place, SendQueue};
use super::clock::Moment;
use super::fate::Fates;
use super::guard::{Guard, Refusal};
use super::peer::Peer;
use super::rate_limited::RateLimited;
use super::story;
use crate::protocol::{Context, MAX_DATAGRAM, Scratch, Service, reply_to_datagram};
use crate::stats::Stats;
use crate::sys::Errno;
use crate::sys::datagram::{BoundSocket, Received, Route, Socket};

/// No datagram of any address family is longer, nor a run of them that comes in one piece.
pub(super) const MAX_RECEIVE: usize = 65_535;
/// How much longer a datagram may be over IPv6, whose length does not count its header (RFC 8200).
const IPV4_HEADER: usize = 20;
/// The longest segment that is joined unasked: what fits an Ethernet frame under IPv6 and a tunnel.
pub(super) const MAX_JOINED_SEGMENT: usize = 1_420;
/// So many datagrams, or runs of them, are received in a turn.
pub(super) const BATCH: usize = 64;
/// No more is received in a turn after so many datagrams: each may need a call of its own.
pub(super) const MAX_TURN: usize = 8 * BATCH;
/// So many turns at the most, when a socket is to be closed.
const LAST_TURNS: usize = 64;
/// Room for what a turn receives: a batch of Ethernet size, or four of any size.
pub(super) const ROOM: usize = 4 * MAX_RECEIVE;
/// How long answers wait for room in the send buffer: a link of 100 Mbit/s sends 250 KB meanwhile.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(20);
/// How long a full send buffer is taken for full before it is looked at again, without a wait.
pub(super) const STUCK_FOR: Duration = Duration::from_millis(100);
/// So many errors in a row are no accidents.
pub(super) const MAX_FAILURES: u32 = 8;
/// How long the socket is left alone when receiving fails again and again.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// A send may be repeated so often because of something that is not about it.
const REPEATS: usize = 16;

/// One UDP socket of a server.
pub(super) struct Endpoint<S, V> {
    socket: S,
    /// Makes the service of a datagram.
    make: Box<dyn FnMut() -> V>,
    stats: Arc<Stats>,
    readable: bool,
    outlet: Outlet,
    neighbours: Neighbours,
    /// Whether runs of equal datagrams leave in one call.
    offload: bool,
    unjoinable: Unjoinable,
    /// What was received, one after the other.
    room: Box<[u8]>,
    /// Replies that are not what was received, one after the other.
    written: Vec<u8>,
    scratch: Scratch,
    /// How much of the room is used.
    used: usize,
    /// Those that have not left yet.
    queue: SendQueue,
    /// What becomes of answers on purpose.
    impaired: Option<Impaired>,
    fairness: Fairness,
    /// Whether they wait for a moment, so that everyone has a turn.
    holding: bool,
    /// Errors in receiving since it last went well.
    failures: u32,
    /// The socket is left alone until then.
    resume_at: Option<Moment>,
    /// Nothing is received any more.
    closed: bool,
    warnings: Warnings,
    /// What happened in this turn.
    tally: Tally,
}

/// The way out: the send buffer, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outlet {
    /// There may be room: what finds none waits.
    Open,
    /// There is none. Answers wait, in their order, and nothing is received meanwhile.
    Full { until: Moment },
    /// Waiting was in vain: somebody's answers stay in the buffer, as those to a neighbour that does
    /// not exist. Such neighbours get no more, and the others have the reserve. What finds no room there
    /// is dropped.
    Stuck { until: Moment },
    /// Perhaps it is over. What finds no room has the reserve again, without a wait.
    Recovering { until: Moment },
}

/// One line for what happens again and again.
#[derive(Debug, Default)]
struct Warnings {
    receiving: RateLimited,
    sending: RateLimited,
    stuck: RateLimited,
    limited: RateLimited,
    panicked: RateLimited,
    too_long: bool,
}

impl Warnings {
    fn answer_too_long(&mut self, peer: Peer, length: usize, longest: usize) {
        if !std::mem::replace(&mut self.too_long, true) {
            warn!(
                event = "answer_too_long",
                peer:%,
                bytes = length,
                longest = longest;
                "an answer of {length} bytes to {peer} is not sent: a datagram has at most {longest}; further ones are counted"
            );
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    received: usize,
    answered: usize,
    bytes_in: usize,
    bytes_out: usize,
}

impl<V: Service> Endpoint<BoundSocket, V> {
    /// Takes a bound, non-blocking socket.
    pub(super) fn bound(
        socket: UdpSocket,
        make: impl FnMut() -> V + 'static,
        mut offload: bool,
        stats: Arc<Stats>,
    ) -> Self {
        let socket = BoundSocket::new(socket, &mut offload);
        Endpoint::new(socket, make, offload, stats)
    }

    /// The socket, for who polls it.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// For a thread that has nothing else to do, and waits until [`Endpoint::deadline`].
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        self.socket.poll_fd(self.awaited())
    }
}

impl<S: Socket, V: Service> Endpoint<S, V> {
    pub(super) fn new(
        socket: S,
        make: impl FnMut() -> V + 'static,
        offload: bool,
        stats: Arc<Stats>,
    ) -> Self {
        Endpoint {
            socket,
            make: Box::new(make),
            stats,
            readable: false,
            outlet: Outlet::Open,
            neighbours: Neighbours::default(),
            offload,
            unjoinable: Unjoinable::new(),
            room: vec![0; ROOM].into_boxed_slice(),
            written: Vec::new(),
            scratch: Scratch::default(),
            used: 0,
            queue: SendQueue::new(),
            impaired: None,
            fairness: Fairness::default(),
            holding: false,
            failures: 0,
            resume_at: None,
            closed: false,
            warnings: Warnings::default(),
            tally: Tally::default(),
        }
    }

    /// Impairs its answers, where there is something to decide.
    pub(super) fn impair(mut self, fates: Option<Fates>) -> Self {
        self.impaired = fates.map(Impaired::new);
        self
    }

    /// An event of the socket.
    pub(super) fn hint(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        if writable && matches!(self.outlet, Outlet::Full { .. }) {
            self.outlet = Outlet::Open;
        }
    }

    /// Whether there is something to do at once.
    pub(super) fn can_act(&self) -> bool {
        match self.outlet {
            Outlet::Full { .. } => false,
            _ => !self.queue.is_empty() || self.may_receive(),
        }
    }

    /// When there is something to do, whatever happens.
    pub(super) fn deadline(&self) -> Option<Moment> {
        match self.outlet {
            Outlet::Full { until } => Some(until),
            _ => [self.resume_at, self.next_held()].into_iter().flatten().min(),
        }
    }

    /// Sends what had to wait, then receives and answers one batch.
    pub(super) fn turn(&mut self, guard: &mut Guard, now: Moment) {
        self.resume_at = self.resume_at.filter(|&at| now < at);
        if !self.holding {
            self.send(now);
        }
        if self.holding || self.queue.is_empty() {
            self.take_batch(guard, now);
        }
        self.count();
    }

    /// The last turns of a socket: it leaves the port, receives what is in the queue, and answers as
    /// much as it takes.
    pub(super) fn finish(&mut self, guard: &mut Guard, now: Moment) {
        self.socket.leave();
        self.hint(true, true);
        for _ in 0..LAST_TURNS {
            self.holding = false;
            self.turn(guard, now);
        }
    }

    /// Receives nothing any more. What was received is still answered.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether it is closed, and nothing waits to be sent.
    pub(super) fn is_done(&self) -> bool {
        self.closed && self.queue.is_empty() && self.next_held().is_none()
    }

    /// The event without which nothing can be done before the deadline.
    fn awaited(&self) -> PollFlags {
        match self.outlet {
            Outlet::Full { .. } => PollFlags::POLLOUT,
            _ if self.closed || self.resume_at.is_some() => PollFlags::empty(),
            _ => PollFlags::POLLIN,
        }
    }

    /// When the next answer leaves of those that are held back on purpose.
    pub(super) fn next_held(&self) -> Option<Moment> {
        self.impaired.as_ref().and_then(Impaired::next_at)
    }

    /// Receives a batch, or what has come since to the one that is held, and answers it.
    fn take_batch(&mut self, guard: &mut Guard, now: Moment) {
        if self.holding {
            // Nobody may have asked for events meanwhile.
            self.readable = true;
        } else {
            self.clear_batch();
        }
        self.release(now);
        // What was received before goes first.
        let is_late = self.next_held().is_some_and(|at| at <= now);
        if self.may_receive() && !is_late {
            self.receive(guard, now);
        }
        // While there is more to receive, nobody waits for nothing.
        self.holding = !self.readable && !self.queue.is_empty() && self.fairness.holds(now);
        if !self.holding {
            self.fairness.release();
            self.send(now);
        }
    }

    fn clear_batch(&mut self) {
        self.queue.clear();
        self.used = 0;
        self.written.clear();
        self.written.shrink_to(ROOM);
    }

    /// Lets those go that were held back on purpose until now, as many as a turn may answer.
    fn release(&mut self, now: Moment) {
        let Some(impaired) = &mut self.impaired else { return };
        for _ in 0..MAX_TURN {
            if self.written.len() >= ROOM {
                return;
            }
            let Some(Answer { route, bytes }) = impaired.pop(now) else { return };
            let start = self.written.len();
            self.written.extend_from_slice(&bytes);
            let bytes = start..self.written.len();
            let joining = Joining::of(&bytes, false, Peer::from(route.peer));
            self.queue.push(Piece { place: Place::Written, bytes }, route, joining);
        }
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_holding(&self) -> bool {
        self.holding
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn has_sent_all(&self) -> bool {
        self.queue.is_empty()
    }

    /// The bytes that are held on the heap, by capacity.
    #[cfg(any(test, fuzzing))]
    pub(super) fn held(&self) -> usize {
        self.room.len() + self.written.capacity() + self.queue.held() + self.neighbours.held()
    }

    fn may_receive(&self) -> bool {
        self.readable && self.resume_at.is_none() && !self.closed
    }

    fn count(&mut self) {
        let Tally { received, answered, bytes_in, bytes_out } = std::mem::take(&mut self.tally);
        self.stats.udp_received.add(received as u64);
        self.stats.udp_answered.add(answered as u64);
        self.stats.udp_bytes_in.add(bytes_in as u64);
        self.stats.udp_bytes_out.add(bytes_out as u64);
    }

    // ---- receive

    fn receive(&mut self, guard: &mut Guard, now: Moment) {
        for _ in 0..BATCH {
            let full = self.room.len() - self.used < MAX_RECEIVE || self.written.len() >= ROOM;
            if full || self.tally.received >= MAX_TURN {
                return;
            }
            match self.socket.receive(&mut self.room[self.used..]) {
                Ok(received) => {
                    self.failures = 0;
                    self.fairness.note(received.route.peer, now);
                    let bytes = self.used..self.used + received.length;
                    self.used = bytes.end;
                    self.answer(received, bytes, guard, now);
                }
                Err(Errno::EAGAIN) => {
                    story::receive_would_block();
                    self.failures = 0;
                    self.readable = false;
                    return;
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.note_failure(error, now);
                    if self.resume_at.is_some() {
                        return;
                    }
                }
            }
        }
    }

    /// Receiving has failed: because of what an earlier datagram of ours met on its way, or for good.
    fn note_failure(&mut self, error: Errno, now: Moment) {
        self.stats.udp_errors.increment();
        self.failures += 1;
        if self.failures < MAX_FAILURES {
            debug!(
                event = "receive_failed",
                errno = error as i32;
                "cannot receive a datagram: {error}"
            );
            return;
        }
        self.resume_at = Some(now + RETRY);
        if self.warnings.receiving.begins((), now) {
            warn!(
                event = "receive_failed",
                errno = error as i32;
                "cannot receive datagrams: {error}; the next tries are every {RETRY:?}"
            );
        }
    }

    /// Answers each datagram of what was received at `bytes` of the room.
    fn answer(&mut self, received: Received, bytes: Range<usize>, guard: &mut Guard, now: Moment) {
        let Received { length, segment, truncated, arrival, route } = received;
        let segment = segment.filter(|&segment| (1..length).contains(&segment));
        let (size, count) = segment.map_or((length, 1), |size| (size, length.div_ceil(size)));
        let peer = Peer::from(route.peer);
        story::received(&peer, length, count);
        self.tally.received += count;
        self.tally.bytes_in += length;
        if truncated {
            self.stats.udp_truncated.add(count as u64);
            debug!(
                event = "not_answered",
                peer:%,
                reason = "truncated";
                "{peer} is not answered: the datagram was cut when it was received"
            );
            return;
        }
        for index in 0..count {
            let start = bytes.start + index * size;
            let end = bytes.end.min(start + size);
            let answered = guard
                .admit(peer, arrival, now)
                .and_then(|()| self.reply(start..end, segment.is_some(), route, peer, guard, now));
            if let Err(refusal) = answered {
                self.note_refusal(peer, refusal, now);
            }
        }
    }

    fn note_refusal(&mut self, peer: Peer, refusal: Refusal, now: Moment) {
        if refusal != Refusal::Rate {
            self.stats.udp_guarded.increment();
        } else {
            self.stats.udp_rate_limited.increment();
            if self.warnings.limited.begins((), now) {
                warn!(
                    event = "not_answered",
                    peer:%,
                    reason = refusal.name(),
                    setting = "udp_rate";
                    "{peer} has reached the limit for one source: what it sends beyond that is not answered"
                );
            }
        }
        debug!(
            event = "not_answered",
            peer:%,
            reason = refusal.name();
            "{peer} is not answered: {refusal}"
        );
    }

    /// Has the service answer one datagram.
    fn reply(
        &mut self,
        bytes: Range<usize>,
        came_joined: bool,
        route: Route,
        peer: Peer,
        guard: &mut Guard,
        now: Moment,
    ) -> Result<(), Refusal> {
        let input = &self.room[bytes.clone()];
        let local = || self.socket.local_addr(&route);
        let context = Context::datagram(peer.into(), &local);
        let Ok(replies) = reply_to_datagram((self.make)(), input, &mut self.scratch, &context)
        else {
            self.stats.udp_panics.increment();
            if self.warnings.panicked.begins((), now) {
                error!(
                    event = "not_answered",
                    peer:%,
                    reason = "panic";
                    "the service panicked on a datagram from {peer}, which is not answered"
                );
            }
            return Ok(());
        };
        if replies.withheld() {
            self.stats.udp_too_short.increment();
            debug!(
                event = "not_answered",
                peer:%,
                reason = "too_short";
                "{peer} is not answered: the answer would be longer than the datagram"
            );
        }
        let longest = if peer.is_ipv4() { MAX_DATAGRAM } else { MAX_DATAGRAM + IPV4_HEADER };
        let mut question = input.len();
        for reply in replies {
            if reply.len() > longest {
                self.stats.udp_too_long.increment();
                self.warnings.answer_too_long(peer, reply.len(), longest);
                debug!(
                    event = "not_answered",
                    peer:%,
                    reason = "too_long";
                    "{peer} is not answered: the answer is longer than a datagram can be"
                );
                continue;
            }
            // What was sent to us counts for one of the answers.
            guard.admit_answer(peer, std::mem::take(&mut question), reply.len(), now)?;
            let mut leave = |answer: &[u8]| {
                let (place, bytes) = if std::ptr::eq(answer, input) {
                    (Place::Room, bytes.clone())
                } else {
                    let start = self.written.len();
                    self.written.extend_from_slice(answer);
                    (Place::Written, start..self.written.len())
                };
                let joining = Joining::of(&bytes, came_joined, peer);
                self.queue.push(Piece { place, bytes }, route, joining);
            };
            let Some(impaired) = &mut self.impaired else {
                leave(reply);
                continue;
            };
            let admit = || guard.admit_answer(peer, 0, reply.len(), now).is_ok();
            impaired.pass(reply, route, now, &self.stats, admit, leave);
        }
        Ok(())
    }

    // ---- send

    fn send(&mut self, now: Moment) {
        self.look_at_outlet(now);
        let mut repeats = REPEATS;
        while let Some(call) =
            self.queue.next_call(|route| self.offload && !self.unjoinable.holds(route, now))
        {
            if matches!(self.outlet, Outlet::Full { .. }) {
                return;
            }
            if self.is_in_vain(&call.route, now) {
                self.drop_late(call, now);
                continue;
            }
            let outcome = self.make(call);
            // The second is what an earlier datagram met.
            if let Err(Errno::EINTR | Errno::ECONNREFUSED) = outcome
                && repeats > 0
            {
                repeats -= 1;
                continue;
            }
            repeats = REPEATS;
            match outcome {
                Ok(()) => self.note_sent(call, now),
                Err(Errno::EAGAIN) => self.note_full(call, now),
                Err(error @ (Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE))
                    if call.segment.is_some() =>
                {
                    debug!(
                        event = "offload_failed",
                        peer:% = Peer::from(call.route.peer),
                        errno = error as i32;
                        "datagrams to {} are sent one by one from here on: {error}",
                        Peer::from(call.route.peer)
                    );
                    self.unjoinable.remember(&call.route, now);
                }
                Err(error) => self.give_up(call, error, now),
            }
        }
    }

    /// Time may have changed what is known of the send buffer.
    fn look_at_outlet(&mut self, now: Moment) {
        match self.outlet {
            Outlet::Full { until } if until <= now => self.take_reserve(now),
            Outlet::Stuck { until } if until <= now => {
                self.socket.use_reserve(false);
                self.outlet = Outlet::Recovering { until: now + STUCK_FOR };
            }
            Outlet::Recovering { until } if until <= now => self.outlet = Outlet::Open,
            _ => {}
        }
    }

    fn take_reserve(&mut self, now: Moment) {
        self.socket.use_reserve(true);
        self.outlet = Outlet::Stuck { until: now + STUCK_FOR };
    }

    /// An answer found no room: it waits, is sent again at once, or is dropped.
    fn note_full(&mut self, call: Call, now: Moment) {
        let peer = Peer::from(call.route.peer);
        story::send_would_block(&peer);
        match self.outlet {
            Outlet::Open | Outlet::Full { .. } => {
                story::answers_wait(&peer, MAX_WAIT);
                self.outlet = Outlet::Full { until: now + MAX_WAIT };
                self.stats.udp_paused.increment();
            }
            Outlet::Recovering { .. } => self.take_reserve(now),
            Outlet::Stuck { .. } => self.drop_late(call, now),
        }
    }

    /// Whether an answer would only stay in a buffer that others need.
    fn is_in_vain(&mut self, route: &Route, now: Moment) -> bool {
        if self.outlet == Outlet::Open {
            return false;
        }
        let missing = || self.socket.missing_neighbours();
        !self.neighbours.may_answer(route.peer.ip(), now, missing)
    }

    fn make(&mut self, call: Call) -> Result<(), Errno> {
        let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS];
        let mut used = 0;
        for (slice, Piece { place, bytes }) in slices.iter_mut().zip(self.queue.pieces(call)) {
            let buffer = match place {
                Place::Room => &self.room,
                Place::Written => self.written.as_slice(),
            };
            *slice = IoSlice::new(&buffer[bytes]);
            used += 1;
        }
        self.socket.send(&slices[..used], call.segment, &call.route)
    }

    fn note_sent(&mut self, call: Call, now: Moment) {
        if self.outlet != Outlet::Open {
            self.neighbours.note_sent(call.route.peer.ip(), now);
        }
        story::sent(&call.route.peer, call.length, call.count);
        self.tally.answered += call.count;
        self.tally.bytes_out += call.length;
        self.queue.advance(call);
    }

    /// UDP may lose; nobody else is to wait for this.
    fn drop_late(&mut self, call: Call, now: Moment) {
        self.stats.udp_dropped.add(call.count as u64);
        if self.warnings.stuck.begins((), now) {
            warn!(
                event = "send_buffer_full";
                "the send buffer is full of answers that the network does not take: those to neighbours that do not exist are dropped, and those without room"
            );
        }
        let peer = Peer::from(call.route.peer);
        debug!(
            event = "not_answered",
            peer:%,
            reason = "dropped";
            "{peer} is not answered: the network does not take the answer"
        );
        self.queue.advance(call);
    }

    /// An answer cannot be sent: that is between the peer, the network and whoever filters it.
    fn give_up(&mut self, call: Call, error: Errno, now: Moment) {
        self.stats.udp_errors.add(call.count as u64);
        let peer = Peer::from(call.route.peer);
        if self.warnings.sending.begins((), now) {
            let hint = if error == Errno::EPERM { " (a packet filter?)" } else { "" };
            warn!(
                event = "send_failed",
                peer:%,
                errno = error as i32;
                "cannot answer {peer}: {error}{hint}; further errors are counted"
            );
        } else {
            debug!(
                event = "send_failed",
                peer:%,
                errno = error as i32;
                "cannot answer {peer}: {error}"
            );
        }
        self.queue.advance(call);
    }
}
