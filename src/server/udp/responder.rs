//! Replies to datagrams, one after the other: the guard, the service, and what becomes of a reply on
//! purpose. The same for all designs.

use std::io::{self, ErrorKind, IoSlice, PipeReader};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::{Level, debug, log_enabled, trace, warn};

use super::MAX_RECEIVE;
use crate::error::Transport;
use crate::protocol::{
    Context, MAX_DATAGRAM, Scratch, Service, guarded, reply_to_datagram, try_copy,
};
use crate::server::clock::{Clock, Moment};
use crate::server::guard::{Guard, Refusal, Refusals};
use crate::server::netem::{Delayed, Netem};
use crate::server::peer::Peer;
use crate::server::rate_limited::RateLimited;
use crate::server::sockets::note_gone;
use crate::stats::Stats;
use crate::sys::Errno;
use crate::sys::datagram::{DatagramSocket, Received, Route, Socket};
use crate::sys::socket::is_lasting;
use crate::sys::wait::until_readable;
use crate::units::count;

/// How much longer a datagram may be over IPv6, whose length does not count its header (RFC 8200).
const IPV4_HEADER: usize = 20;
/// Errors in a row after which receiving pauses.
pub(in crate::server) const MAX_FAILURES: u32 = 8;
/// How long it pauses.
pub(in crate::server) const RETRY: Duration = Duration::from_millis(100);

/// Serves the datagrams of one socket.
pub(in crate::server) struct Responder<V> {
    make_service: Box<dyn FnMut() -> V>,
    /// What the socket is bound to, where that is known.
    bound: Option<SocketAddr>,
    scratch: Scratch,
    /// What becomes of replies on purpose.
    netem: Option<Netem>,
    pub(super) refusals: Refusals,
    pub(super) errors: Errors,
    pub(super) stats: Arc<Stats>,
}

impl<V: Service> Responder<V> {
    pub(in crate::server) fn new(
        make_service: impl FnMut() -> V + 'static,
        bound: Option<SocketAddr>,
        netem: Option<Netem>,
        stats: Arc<Stats>,
    ) -> Self {
        Responder {
            make_service: Box::new(make_service),
            bound,
            scratch: Scratch::default(),
            netem,
            refusals: Refusals::default(),
            errors: Errors::default(),
            stats,
        }
    }

    /// Serves what was received: each datagram of `bytes`. `send` is given the replies that leave
    /// now, with the place of the datagram that each replies to.
    pub(in crate::server) fn serve(
        &mut self,
        received: &Received,
        bytes: &[u8],
        guard: &mut Guard,
        now: Moment,
        mut send: impl FnMut(&[u8], Range<usize>),
    ) {
        let peer = Peer::from(received.route.peer);
        if log_enabled!(Level::Trace) {
            trace_received(peer, received);
        }
        self.stats.udp_received.add(received.count() as u64);
        self.stats.udp_bytes_in.add(received.length as u64);
        if received.missed > 0 {
            self.errors.note_missed(received.missed, &self.stats, now);
        }
        if let Err(refusal) = guard.admit(peer, received) {
            return self.refusals.note(refusal, peer, received.count(), &self.stats, now);
        }
        for place in received.datagrams(0) {
            let request = &bytes[place.clone()];
            let send = |reply: &[u8]| send(reply, place.clone());
            let served = guard
                .admit_datagram(peer, now)
                .and_then(|()| self.reply(request, peer, received.route, guard, now, send));
            if let Err(refusal) = served {
                self.refusals.note(refusal, peer, 1, &self.stats, now);
            }
        }
    }

    /// Has the service reply to one datagram.
    fn reply(
        &mut self,
        request: &[u8],
        peer: Peer,
        route: Route,
        guard: &mut Guard,
        now: Moment,
        mut send: impl FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        let local = || {
            let bound = self.bound.ok_or(ErrorKind::Unsupported)?;
            let ip = route.local.unwrap_or(bound.ip()).to_canonical();
            Ok(SocketAddr::new(ip, bound.port()))
        };
        let context = Context::asking(None, peer.into(), &local);
        let replies = guarded(&mut self.make_service)
            .and_then(|service| reply_to_datagram(service, request, &mut self.scratch, &context))
            .map_err(|_| Refusal::Panic)?;
        if replies.panicked_at_end() {
            self.refusals.note_panic_at_end(peer, &self.stats, now);
        }
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
            match &mut self.netem {
                None => send(reply),
                Some(netem) => {
                    let admit = || guard.admit_reply(peer, 0, bytes, now).is_ok();
                    netem.enqueue(reply, route, now, &self.stats, admit);
                }
            }
        }
        Ok(())
    }

    /// Whether the socket is gone. To be asked until it is.
    pub(super) fn is_gone(&self) -> bool {
        let Some(error) = &self.errors.lasting else { return false };
        note_gone(Transport::Udp, self.bound, error, &self.stats);
        true
    }

    /// Serves a socket on a thread of its own, as in a textbook: receives a datagram, replies, and waits for
    /// the next one. When `until_drain` is closed, it replies to what is queued and ends; unless
    /// `hand_over` says that the next server has the socket.
    pub(in crate::server) fn serve_each(
        mut self,
        mut socket: DatagramSocket,
        guard: &Mutex<Guard>,
        clock: Clock,
        until_drain: &PipeReader,
        hand_over: bool,
    ) -> io::Result<()> {
        let (mut buffer, mut draining) = (vec![0; MAX_RECEIVE], false);
        while !(draining && hand_over) {
            let now = clock.now();
            self.send_due(&mut socket, now);
            let received = {
                let mut guard = guard.lock().unwrap_or_else(PoisonError::into_inner);
                self.serve_next(&mut socket, &mut buffer, &mut guard, now)
            };
            if self.is_gone() {
                return Ok(());
            }
            if received {
                continue;
            }
            if draining {
                break;
            }
            trace!(event = "waiting", what = "datagram"; "waits for a datagram");
            let resume_at = self.errors.resume_at.take();
            let wake_at = [self.next_at(), resume_at].into_iter().flatten().min();
            // What cannot be received stays readable.
            let sockets = if resume_at.is_some() { &[][..] } else { &[&socket] };
            let woken = until_readable(sockets, until_drain, wake_at.map(|at| at - now))?;
            draining = woken.stopped;
            if woken.shut_down {
                self.errors.note_shut_down();
            }
            if draining && !hand_over {
                socket.leave();
            }
        }
        self.hasten();
        self.send_due(&mut socket, clock.now());
        Ok(())
    }

    /// Receives a datagram, and replies; false where none is there. Never waits: what the send buffer
    /// has no room for is dropped, since UDP may lose, and the others are not to wait for it.
    fn serve_next(
        &mut self,
        socket: &mut impl Socket,
        buffer: &mut [u8],
        guard: &mut Guard,
        now: Moment,
    ) -> bool {
        let received = socket.receive(buffer);
        match received {
            Ok(received) => {
                self.errors.note_success();
                let (mut replies, mut dropped) = (Vec::<Vec<u8>>::new(), 0);
                let bytes = &buffer[..received.length];
                self.serve(&received, bytes, guard, now, |reply, _| match try_copy(reply) {
                    Ok(copy) if replies.try_reserve(1).is_ok() => replies.push(copy),
                    _ => dropped += 1,
                });
                if dropped > 0 {
                    self.note_dropped(&received.route, dropped, now);
                }
                replies.iter().for_each(|reply| self.send(socket, reply, &received.route, now));
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => self.errors.note_receive(error, &self.stats, now),
        }
        received.is_ok()
    }

    /// Sends the replies that were delayed until now.
    fn send_due(&mut self, socket: &mut impl Socket, now: Moment) {
        while let Some(Delayed { route, bytes, .. }) = self.take_due(now) {
            self.send(socket, &bytes, &route, now);
        }
    }

    fn send(&mut self, socket: &mut impl Socket, reply: &[u8], route: &Route, now: Moment) {
        let (peer, bytes) = (Peer::from(route.peer), reply.len());
        let mut outcome = socket.send(&[IoSlice::new(reply)], None, route);
        if let Err(Errno::EINTR | Errno::ECONNREFUSED) = outcome {
            // The second is what an earlier datagram met.
            outcome = socket.send(&[IoSlice::new(reply)], None, route);
        }
        match outcome {
            Ok(()) => {
                trace_sent(peer, bytes, 1);
                self.stats.udp_answered.increment();
                self.stats.udp_bytes_out.add(bytes as u64);
            }
            Err(Errno::EAGAIN) => self.note_dropped(route, 1, now),
            Err(error) => self.errors.note_send(error, peer, 1, &self.stats, now),
        }
    }

    /// Lets what is delayed on purpose leave before it is time.
    pub(in crate::server) fn hasten(&mut self) {
        self.netem.iter_mut().for_each(Netem::hasten);
    }

    /// Notes replies for which the send buffer, or this process, has no room.
    pub(super) fn note_dropped(&mut self, route: &Route, replies: usize, now: Moment) {
        self.refusals.note(Refusal::Dropped, route.peer.into(), replies, &self.stats, now);
    }

    /// When the next reply leaves that is delayed on purpose.
    pub(in crate::server) fn next_at(&self) -> Option<Moment> {
        self.netem.as_ref().and_then(Netem::next_at)
    }

    /// Takes the next reply that was delayed until now.
    pub(in crate::server) fn take_due(&mut self, now: Moment) -> Option<Delayed> {
        self.netem.as_mut()?.dequeue(now)
    }
}

/// Errors of the calls of a socket.
#[derive(Debug, Default)]
pub(in crate::server) struct Errors {
    /// How often receiving has failed in a row.
    receives: u32,
    /// What no retry cures: the socket is gone.
    pub(super) lasting: Option<io::Error>,
    /// Nothing is received before.
    pub(in crate::server) resume_at: Option<Moment>,
    receiving: RateLimited,
    missing: RateLimited,
    sending: RateLimited,
}

impl Errors {
    /// Notes that receiving went well, or found nothing.
    pub(in crate::server) fn note_success(&mut self) {
        self.receives = 0;
    }

    /// Notes that the socket was shut down, for receiving at least.
    pub(super) fn note_shut_down(&mut self) {
        self.lasting = Some(io::Error::other("it was shut down"));
    }

    /// Notes that a receive failed: because of what an earlier reply met on its way, or for good.
    #[cold]
    pub(in crate::server) fn note_receive(&mut self, error: Errno, stats: &Stats, now: Moment) {
        stats.udp_errors.increment();
        if is_lasting(error) {
            self.lasting = Some(error.into());
            return;
        }
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

    /// Notes datagrams that found the queue of the socket full.
    #[cold]
    fn note_missed(&mut self, datagrams: u32, stats: &Stats, now: Moment) {
        stats.udp_missed.add(datagrams.into());
        if self.missing.begins((), now) {
            warn!(
                event = "missed",
                datagrams = datagrams;
                "the kernel dropped {}, since the queue of the UDP socket was full: the server is too slow for them, or net.core.rmem_max is too small for their bursts; further ones are counted",
                count(datagrams as usize, "datagram")
            );
        }
    }

    /// Notes replies that cannot be sent, because of their peer, the network or a packet filter.
    #[cold]
    pub(in crate::server) fn note_send(
        &mut self,
        error: Errno,
        peer: Peer,
        replies: usize,
        stats: &Stats,
        now: Moment,
    ) {
        stats.udp_errors.add(replies as u64);
        if is_lasting(error) {
            self.lasting = Some(error.into());
            return;
        }
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
pub(super) fn trace_sent(peer: Peer, bytes: usize, datagrams: usize) {
    trace!(
        event = "sent",
        peer:%,
        bytes = bytes,
        datagrams = datagrams;
        "{peer}: sent {} in {}",
        count(bytes, "byte"),
        count(datagrams, "datagram")
    );
}
