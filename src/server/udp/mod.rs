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
mod responder;
mod send_queue;
#[cfg(test)]
mod tests;

pub(super) use outlet::MAX_WAIT;
#[cfg(any(test, fuzzing))]
pub(super) use outlet::Neighbours;
pub(super) use responder::Responder;
#[cfg(any(test, fuzzing))]
pub(super) use responder::{MAX_FAILURES, RETRY};
#[cfg(any(test, fuzzing))]
pub(super) use send_queue::REFUSED_FOR;

use std::io::{self, IoSlice};

use log::{Level, debug, log_enabled, trace};
use mio::{Interest, Registry, Token};

use self::outlet::{NoRoom, Outlet};
use self::responder::{Errors, trace_sent};
use self::send_queue::{Call, MAX_SEGMENTS, SendQueue};
use super::clock::Moment;
use super::guard::Guard;
use super::netem::Delayed;
use super::peer::Peer;
use crate::protocol::Service;
use crate::sys::Errno;
use crate::sys::datagram::{DatagramSocket, Received, Socket};
use crate::units;

/// No datagram of any address family is longer, nor a run of them that comes in one piece.
pub(super) const MAX_RECEIVE: usize = 65_535;
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
/// How often a call may be repeated for an error that is not about it.
const REPEATS: usize = 16;

/// One UDP socket of a server.
pub(super) struct Endpoint<S, V> {
    socket: S,
    responder: Responder<V>,
    readable: bool,
    /// Receives no more.
    closed: bool,
    /// What was received, one after the other.
    buffer: Box<[u8]>,
    /// The replies to what was received.
    queue: SendQueue,
    /// The send buffer, as far as it is known.
    outlet: Outlet,
}

impl<V: Service> Endpoint<DatagramSocket, V> {
    /// Registers the socket under `token`.
    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(self.socket.source(), token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Takes the socket out of the poll. Where another process has it too, epoll would not forget it with
    /// our descriptor (epoll(7)).
    pub(super) fn deregister(&mut self, registry: &Registry) {
        // Nothing is lost where this fails: events without a socket are ignored.
        let _ = registry.deregister(self.socket.source());
    }
}

impl<S: Socket, V: Service> Endpoint<S, V> {
    pub(super) fn new(socket: S, responder: Responder<V>) -> Self {
        Endpoint {
            queue: SendQueue::new(socket.offloads()),
            socket,
            responder,
            readable: false,
            closed: false,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            outlet: Outlet::default(),
        }
    }

    /// Notes an event of the socket.
    pub(super) fn hint(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        if writable {
            self.outlet.note_writable();
        }
    }

    /// Notes that the socket was shut down, for receiving at least.
    pub(super) fn note_shut_down(&mut self) {
        self.responder.errors.note_shut_down();
    }

    /// Whether the socket is gone, which is noted when that is found.
    pub(super) fn is_gone(&self) -> bool {
        self.responder.is_gone()
    }

    /// Whether a turn has something to do at once.
    pub(super) fn can_act(&self) -> bool {
        !self.outlet.is_full() && (!self.queue.is_empty() || self.may_receive())
    }

    /// When a turn has something to do without an event.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let others = || {
            [self.responder.errors.resume_at, self.responder.next_at()].into_iter().flatten().min()
        };
        self.outlet.deadline().or_else(others)
    }

    /// Sends what had to wait; then receives one batch, and replies to it.
    pub(super) fn turn(&mut self, guard: &mut Guard, now: Moment) {
        self.responder.errors.resume_at = self.responder.errors.resume_at.filter(|&at| now < at);
        self.send(now);
        if !self.queue.is_empty() {
            return;
        }
        self.queue.clear();
        // Delayed replies that are due go before those to later datagrams.
        if self.may_receive() && self.responder.next_at().is_none_or(|at| now < at) {
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

    /// Lets what is delayed on purpose leave before it is time.
    pub(super) fn hasten(&mut self) {
        self.responder.hasten();
    }

    /// Sends all that is left, as far as the send buffer takes it. The rest is dropped and counted.
    pub(super) fn end(&mut self, guard: &mut Guard, now: Moment) {
        self.close();
        self.hasten();
        while !self.is_done() {
            self.turn(guard, now);
            while self.outlet.is_full()
                && let Some(call) = self.queue.next_call(now)
            {
                self.drop_replies(&call, now);
            }
        }
    }

    /// Whether it is closed, and nothing waits to be sent.
    pub(super) fn is_done(&self) -> bool {
        self.closed && self.queue.is_empty() && self.responder.next_at().is_none()
    }

    fn may_receive(&self) -> bool {
        self.readable && self.responder.errors.resume_at.is_none() && !self.closed
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
                    self.responder.errors.note_success();
                    datagrams += received.count();
                    self.serve(&received, used, guard, now);
                    used += received.length;
                }
                Err(Errno::EAGAIN) => {
                    trace!(
                        event = "would_block",
                        call = "receive";
                        "receive would block: no other datagram has come"
                    );
                    self.responder.errors.note_success();
                    self.readable = false;
                    return;
                }
                Err(Errno::EINTR) => {}
                Err(error) => {
                    self.responder.errors.note_receive(error, &self.responder.stats, now);
                    let Errors { resume_at, lasting, .. } = &self.responder.errors;
                    if resume_at.is_some() || lasting.is_some() {
                        return;
                    }
                }
            }
        }
    }

    /// Puts the replies to what was received at `start` of the buffer into the queue.
    fn serve(&mut self, received: &Received, start: usize, guard: &mut Guard, now: Moment) {
        let Endpoint { responder, buffer, queue, .. } = self;
        let bytes = &buffer[start..start + received.length];
        let (route, is_run, mut dropped) = (received.route, received.is_run(), 0);
        responder.serve(received, bytes, guard, now, |reply, request| {
            let pushed = if std::ptr::eq(reply, &raw const bytes[request.clone()]) {
                queue.push_received(start + request.start..start + request.end, route, is_run)
            } else {
                queue.push_written(reply, route, is_run)
            };
            dropped += usize::from(pushed.is_err());
        });
        if dropped > 0 {
            responder.note_dropped(&route, dropped, now);
        }
    }

    /// Puts the delayed replies that are due into the queue, as many as a turn may send.
    fn release(&mut self, now: Moment) {
        for _ in 0..MAX_TURN {
            if self.queue.is_full() {
                return;
            }
            let Some(Delayed { route, bytes, .. }) = self.responder.take_due(now) else { return };
            if self.queue.push_written(&bytes, route, false).is_err() {
                self.responder.note_dropped(&route, 1, now);
            }
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
                    let peer = call.route.peer.into();
                    self.responder.errors.note_send(
                        error,
                        peer,
                        call.count,
                        &self.responder.stats,
                        now,
                    );
                    self.queue.advance(&call);
                }
            }
            repeats = REPEATS;
        }
    }

    fn note_sent(&mut self, call: &Call, now: Moment) {
        if log_enabled!(Level::Trace) {
            trace_sent(call.route.peer.into(), call.length, call.count);
        }
        self.outlet.note_sent(call.route.peer.ip(), now);
        self.responder.stats.udp_answered.add(call.count as u64);
        self.responder.stats.udp_bytes_out.add(call.length as u64);
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
                self.responder.stats.udp_paused.increment();
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
        self.responder.note_dropped(&call.route, call.count, now);
        self.queue.advance(call);
    }
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
