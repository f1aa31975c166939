//! UDP: receive a batch, reply to it, send the replies.
//!
//! Each datagram gets one of the same length back (RFC 862), from the address that it was sent to.
//! Datagrams are received into one buffer, one after the other, so that replies to one peer are often one
//! piece of it, and leave in one call: as one datagram, or with segmentation offload (udp(7),
//! UDP_SEGMENT) as a run of equal ones, which the kernel cuts where the peer had cut them. The same
//! offload on receive (UDP_GRO) hands over such a run in one piece.
//!
//! Pure but for its [`Socket`]: `now` is an argument.

mod outlet;
mod send_queue;
#[cfg(test)]
mod tests;

pub(super) use outlet::MAX_WAIT;
#[cfg(any(test, fuzzing))]
pub(super) use outlet::Neighbours;
#[cfg(any(test, fuzzing))]
pub(super) use send_queue::REFUSED_FOR;

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use log::{Level, debug, log_enabled, trace, warn};

use self::outlet::{NoRoom, Outlet};
use self::send_queue::{Call, MAX_SEGMENTS, SendQueue};
use super::clock::Moment;
use super::guard::{Guard, Refusal, Refusals};
use super::netem::{Delayed, Netem};
use super::peer::Peer;
use super::rate_limited::RateLimited;
use crate::protocol::{Context, MAX_DATAGRAM, Scratch, Service, reply_to_datagram};
use crate::stats::Stats;
use crate::sys::Errno;
use crate::sys::datagram::{DatagramSocket, Received, Socket};
use crate::units::{self, count};

/// No datagram of any address family is longer, nor a run of them that comes in one piece.
pub(super) const MAX_RECEIVE: usize = 65_535;
/// How much longer a datagram may be over IPv6, whose length does not count its header (RFC 8200).
const IPV4_HEADER: usize = 20;
/// The longest segment that is joined unasked: what fits an Ethernet frame under IPv6 and a tunnel.
pub(super) const MAX_JOINED_SEGMENT: usize = 1_420;
/// Receives in a turn, of a datagram or a run each.
pub(super) const BATCH: usize = 64;
/// Datagrams after which a turn receives no more: each may need a call of its own.
pub(super) const MAX_TURN: usize = 8 * BATCH;
/// Turns of a socket that is about to be closed.
const LAST_TURNS: usize = 64;
/// Size of the buffer for what a turn receives: a batch of Ethernet size, or four of any size.
pub(super) const BUFFER: usize = 4 * MAX_RECEIVE;
/// Errors in a row after which receiving pauses.
pub(super) const MAX_FAILURES: u32 = 8;
/// How long it pauses.
pub(super) const RETRY: Duration = Duration::from_millis(100);
/// How often a call may be repeated for an error that is not about it.
const REPEATS: usize = 16;

/// One UDP socket of a server.
pub(super) struct Endpoint<S, V> {
    socket: S,
    /// Makes the service of each datagram.
    make: Box<dyn FnMut() -> V>,
    stats: Arc<Stats>,
    readable: bool,
    /// Receives no more.
    closed: bool,
    /// What was received, one after the other.
    buffer: Box<[u8]>,
    scratch: Scratch,
    /// The replies to what was received.
    queue: SendQueue,
    /// The send buffer, as far as it is known.
    outlet: Outlet,
    /// What becomes of replies on purpose.
    netem: Option<Netem>,
    refusals: Refusals,
    errors: Errors,
}

/// Errors of the calls of a socket.
#[derive(Debug, Default)]
struct Errors {
    /// How often receiving has failed in a row.
    receives: u32,
    /// Nothing is received before.
    resume_at: Option<Moment>,
    receiving: RateLimited,
    sending: RateLimited,
}

impl<V: Service> Endpoint<DatagramSocket, V> {
    pub(super) fn socket(&mut self) -> &mut DatagramSocket {
        &mut self.socket
    }

    /// Whether replies wait for room, and nothing is received meanwhile.
    pub(super) fn is_full(&self) -> bool {
        self.outlet.is_full()
    }
}

impl<S: Socket, V: Service> Endpoint<S, V> {
    /// Serves `socket`, with what `make` makes for each datagram.
    pub(super) fn new(
        socket: S,
        make: impl FnMut() -> V + 'static,
        netem: Option<Netem>,
        stats: Arc<Stats>,
    ) -> Self {
        Endpoint {
            queue: SendQueue::new(socket.offloads()),
            socket,
            make: Box::new(make),
            stats,
            readable: false,
            closed: false,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            scratch: Scratch::default(),
            outlet: Outlet::default(),
            netem,
            refusals: Refusals::default(),
            errors: Errors::default(),
        }
    }

    /// Notes an event of the socket.
    pub(super) fn hint(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        if writable {
            self.outlet.note_writable();
        }
    }

    /// Whether a turn has something to do at once.
    pub(super) fn can_act(&self) -> bool {
        !self.outlet.is_full() && (!self.queue.is_empty() || self.may_receive())
    }

    /// When a turn has something to do without an event.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let others = || [self.errors.resume_at, self.next_delayed()].into_iter().flatten().min();
        self.outlet.deadline().or_else(others)
    }

    /// Sends what had to wait; then receives one batch, and replies to it.
    pub(super) fn turn(&mut self, guard: &mut Guard, now: Moment) {
        self.errors.resume_at = self.errors.resume_at.filter(|&at| now < at);
        self.send(now);
        if !self.queue.is_empty() {
            return;
        }
        self.queue.clear();
        // Delayed replies that are due go before those to later datagrams.
        if self.may_receive() && self.next_delayed().is_none_or(|at| now < at) {
            self.receive(guard, now);
        }
        self.release(now);
        self.send(now);
    }

    /// Has the last turns of a socket: it leaves the port, and the datagrams in its queue get replies as
    /// far as the send buffer takes them.
    pub(super) fn finish(&mut self, guard: &mut Guard, now: Moment) {
        self.socket.leave();
        self.hint(true, true);
        for _ in 0..LAST_TURNS {
            self.turn(guard, now);
        }
    }

    /// Receives nothing any more. What was received is still answered.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether it is closed, and nothing waits to be sent.
    pub(super) fn is_done(&self) -> bool {
        self.closed && self.queue.is_empty() && self.next_delayed().is_none()
    }

    fn may_receive(&self) -> bool {
        self.readable && self.errors.resume_at.is_none() && !self.closed
    }

    /// When the next delayed reply leaves.
    fn next_delayed(&self) -> Option<Moment> {
        self.netem.as_ref().and_then(Netem::next_at)
    }

    // ---- receive

    /// Receives a batch, and puts the replies to it into the queue.
    fn receive(&mut self, guard: &mut Guard, now: Moment) {
        let (mut used, mut datagrams) = (0, 0);
        for _ in 0..BATCH {
            let full = self.buffer.len() - used < MAX_RECEIVE || self.queue.is_full();
            if full || datagrams >= MAX_TURN {
                return;
            }
            match self.socket.receive(&mut self.buffer[used..]) {
                Ok(received) => {
                    self.errors.receives = 0;
                    datagrams += received.count();
                    self.take(&received, used, guard, now);
                    used += received.length;
                }
                Err(Errno::EAGAIN) => {
                    trace!(
                        event = "would_block",
                        call = "receive";
                        "receive would block: no other datagram has come"
                    );
                    self.errors.receives = 0;
                    self.readable = false;
                    return;
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.stats.udp_errors.increment();
                    self.errors.note_receive(error, now);
                    if self.errors.resume_at.is_some() {
                        return;
                    }
                }
            }
        }
    }

    /// Replies to each datagram of what was received at `start` of the buffer.
    fn take(&mut self, received: &Received, start: usize, guard: &mut Guard, now: Moment) {
        let peer = Peer::from(received.route.peer);
        if log_enabled!(Level::Trace) {
            trace_received(peer, received);
        }
        self.stats.udp_received.add(received.count() as u64);
        self.stats.udp_bytes_in.add(received.length as u64);
        if received.truncated {
            let count = received.count();
            return self.refusals.note(Refusal::Truncated, peer, count, &self.stats, now);
        }
        for place in received.datagrams(start) {
            let answered = guard
                .admit(peer, received, now)
                .and_then(|()| self.reply(place, peer, received, guard, now));
            if let Err(refusal) = answered {
                self.refusals.note(refusal, peer, 1, &self.stats, now);
            }
        }
    }

    /// Has the service reply to the datagram at this place of the buffer.
    fn reply(
        &mut self,
        place: Range<usize>,
        peer: Peer,
        received: &Received,
        guard: &mut Guard,
        now: Moment,
    ) -> Result<(), Refusal> {
        let request = &self.buffer[place.clone()];
        let (route, is_run) = (received.route, received.is_run());
        let local = || self.socket.local_addr(&route);
        let context = Context::datagram(peer.into(), &local);
        let replies = reply_to_datagram((self.make)(), request, &mut self.scratch, &context)
            .map_err(|_| Refusal::Panic)?;
        let mut refuse = |refusal| self.refusals.note(refusal, peer, 1, &self.stats, now);
        if replies.withheld() {
            refuse(Refusal::TooShort);
        }
        let longest = if peer.is_ipv4() { MAX_DATAGRAM } else { MAX_DATAGRAM + IPV4_HEADER };
        let mut paid = request.len();
        for reply in replies {
            let bytes = reply.len();
            if bytes > longest {
                refuse(Refusal::TooLong { bytes, longest });
                continue;
            }
            // The bytes of the request pay for one of the replies.
            guard.admit_reply(peer, std::mem::take(&mut paid), bytes, now)?;
            if let Some(netem) = &mut self.netem {
                let admit = || guard.admit_reply(peer, 0, bytes, now).is_ok();
                netem.enqueue(reply, route, now, &self.stats, admit);
            } else if std::ptr::eq(reply, request) {
                self.queue.push_received(place.clone(), route, is_run);
            } else {
                self.queue.push_written(reply, route, is_run);
            }
        }
        Ok(())
    }

    /// Puts the delayed replies that are due into the queue, as many as a turn may send.
    fn release(&mut self, now: Moment) {
        let Some(netem) = &mut self.netem else { return };
        for _ in 0..MAX_TURN {
            if self.queue.is_full() {
                return;
            }
            let Some(Delayed { route, bytes }) = netem.dequeue(now) else { return };
            self.queue.push_written(&bytes, route, false);
        }
    }

    // ---- send

    /// Sends the replies in the queue, each run in one call, until one has to wait.
    fn send(&mut self, now: Moment) {
        self.outlet.advance(&mut self.socket, now);
        let mut repeats = REPEATS;
        while !self.outlet.is_full()
            && let Some(call) = self.queue.next_call(now)
        {
            if !self.outlet.admits(call.route.peer.ip(), &mut self.socket, now) {
                self.drop_replies(&call, now);
                continue;
            }
            let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS];
            let used = self.queue.gather(&call, &self.buffer, &mut slices);
            match self.socket.send(&slices[..used], call.segment, &call.route) {
                Ok(()) => self.note_sent(&call, now),
                // The second is what an earlier datagram met.
                Err(Errno::EINTR | Errno::ECONNREFUSED) if repeats > 0 => {
                    repeats -= 1;
                    continue;
                }
                Err(Errno::EAGAIN) => self.note_no_room(&call, now),
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
                    self.queue.note_refused(&call.route, now);
                }
                Err(error) => {
                    self.stats.udp_errors.add(call.count as u64);
                    self.errors.note_send(error, call.route.peer.into(), now);
                    self.queue.advance(&call);
                }
            }
            repeats = REPEATS;
        }
    }

    fn note_sent(&mut self, call: &Call, now: Moment) {
        if log_enabled!(Level::Trace) {
            trace_sent(call);
        }
        self.outlet.note_sent(call.route.peer.ip(), now);
        self.stats.udp_answered.add(call.count as u64);
        self.stats.udp_bytes_out.add(call.length as u64);
        self.queue.advance(call);
    }

    /// Decides what becomes of replies that find the send buffer full.
    #[cold]
    fn note_no_room(&mut self, call: &Call, now: Moment) {
        let peer = Peer::from(call.route.peer);
        trace!(
            event = "would_block",
            call = "send",
            peer:%;
            "{peer}: send would block: the send buffer is full"
        );
        match self.outlet.note_no_room(&mut self.socket, now) {
            NoRoom::Wait => {
                self.stats.udp_paused.increment();
                trace!(
                    event = "waiting",
                    what = "room",
                    peer:%,
                    timeout_ns = units::nanoseconds(MAX_WAIT);
                    "{peer}: the answer waits for room, for at most {}",
                    units::time(MAX_WAIT)
                );
            }
            NoRoom::Retry => {}
            NoRoom::Drop => self.drop_replies(call, now),
        }
    }

    /// Drops replies: UDP may lose, and the others are not to wait for these.
    fn drop_replies(&mut self, call: &Call, now: Moment) {
        let peer = call.route.peer.into();
        self.refusals.note(Refusal::Dropped, peer, call.count, &self.stats, now);
        self.queue.advance(call);
    }
}

impl Errors {
    /// Notes that a receive failed: because of what an earlier reply met on its way, or for good.
    #[cold]
    fn note_receive(&mut self, error: Errno, now: Moment) {
        self.receives += 1;
        if self.receives < MAX_FAILURES {
            debug!(
                event = "receive_failed",
                errno = error as i32;
                "cannot receive a datagram: {error}"
            );
            return;
        }
        self.resume_at = Some(now + RETRY);
        if self.receiving.begins((), now) {
            warn!(
                event = "receive_failed",
                errno = error as i32;
                "cannot receive datagrams: {error}; the next tries are every {RETRY:?}"
            );
        }
    }

    /// Notes a reply that cannot be sent, because of its peer, the network or a packet filter.
    #[cold]
    fn note_send(&mut self, error: Errno, peer: Peer, now: Moment) {
        if self.sending.begins((), now) {
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
    }
}

#[cold]
fn trace_received(peer: Peer, received: &Received) {
    trace!(
        event = "received",
        peer:%,
        bytes = received.length,
        datagrams = received.count();
        "{peer}: received {} in {}",
        count(received.length, "byte"),
        count(received.count(), "datagram")
    );
}

#[cold]
fn trace_sent(call: &Call) {
    let peer = Peer::from(call.route.peer);
    trace!(
        event = "sent",
        peer:%,
        bytes = call.length,
        datagrams = call.count;
        "{peer}: sent {} in {}",
        count(call.length, "byte"),
        count(call.count, "datagram")
    );
}

#[cfg(any(test, fuzzing))]
impl<S, V> Endpoint<S, V> {
    pub(super) fn has_sent_all(&self) -> bool {
        self.queue.is_empty()
    }

    /// The bytes that are held on the heap, by capacity.
    pub(super) fn held(&self) -> usize {
        self.buffer.len() + self.queue.held() + self.outlet.held()
    }
}
