//! The story of each connection and datagram, and of the turns of the event loop: a line for what each
//! system call did, and for who waits for what. At level trace, for people who learn.
//!
//! Who tells it passes what it knows anyway. Where that level is off, a line costs a comparison.

use std::fmt;
use std::time::Duration;

use log::{LevelFilter, trace};
use mio::Events;

use super::connection::Readiness;
use super::peer::Peer;
use crate::units::{self, count};

/// Logs a line, where this level is shown. What that takes is out of the way of those who do not tell.
#[inline]
fn tell(line: impl FnOnce()) {
    #[cold]
    #[inline(never)]
    fn aside(line: impl FnOnce()) {
        line();
    }
    if log::max_level() >= LevelFilter::Trace {
        aside(line);
    }
}

// ---- the event loop

/// What ended a wait of the event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WokenBy {
    /// It did not wait: there is something left to do.
    Work,
    /// An event came before it would have slept.
    Polling,
    /// An event came while it slept.
    Event,
    /// A deadline has passed.
    Deadline,
    /// A signal's handler has run; its event comes next.
    Interrupt,
}

impl WokenBy {
    /// Its name in the fields of the log.
    fn name(self) -> &'static str {
        match self {
            WokenBy::Work => "work",
            WokenBy::Polling => "polling",
            WokenBy::Event => "event",
            WokenBy::Deadline => "deadline",
            WokenBy::Interrupt => "interrupt",
        }
    }
}

impl fmt::Display for WokenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WokenBy::Work => "the loop goes on with what it has left",
            WokenBy::Polling => "the loop polls instead of sleeping",
            WokenBy::Event => "the loop wakes up",
            WokenBy::Deadline => "the loop wakes up at a deadline",
            WokenBy::Interrupt => "the loop wakes up, interrupted by a signal",
        })
    }
}

/// The loop asks for events, and sleeps until there is one, or for so long.
#[inline]
pub(super) fn sleeps(most: Option<Duration>) {
    tell(move || {
        trace!(
            event = "sleeping",
            timeout_ns = most.map(units::nanoseconds);
            "the loop sleeps until there is an event{}",
            fmt::from_fn(|f| most.map_or(Ok(()), |most| write!(f, ", for at most {}", units::time(most))))
        )
    });
}

/// The loop has a turn, with these events.
#[inline]
pub(super) fn wakes(by: WokenBy, events: &Events) {
    tell(move || {
        trace!(
            event = "woken",
            by = by.name(),
            events = events.iter().count();
            "{by}: {}",
            count(events.iter().count(), "event")
        )
    });
}

/// A signal has come.
#[inline]
pub(super) fn signal_is_ready() {
    tell(move || trace!(event = "ready", what = "signal"; "event: a signal has come"));
}

/// Another thread has something to say.
#[inline]
pub(super) fn handle_is_ready() {
    tell(
        move || trace!(event = "ready", what = "handle"; "event: another thread has woken the loop"),
    );
}

/// Somebody waits in the backlog of a listener.
#[inline]
pub(super) fn listener_is_ready(index: usize) {
    tell(move || {
        trace!(
            event = "ready",
            what = "listener",
            index = index;
            "event: somebody waits in the backlog of listener {index}"
        )
    });
}

/// Somebody waits at the port for monitors.
#[inline]
pub(super) fn monitor_is_ready() {
    tell(
        move || trace!(event = "ready", what = "monitor"; "event: somebody waits at the port for monitors"),
    );
}

/// A UDP socket has a datagram, or room for answers.
#[inline]
pub(super) fn socket_is_ready(index: usize, readiness: Readiness) {
    let Readiness { readable, writable, closed: _ } = readiness;
    tell(move || {
        trace!(
            event = "ready",
            what = "udp_socket",
            index = index,
            readable = readable,
            writable = writable;
            "event: UDP socket {index} is {readiness}"
        )
    });
}

/// A connection can be read or written, or nears its end.
#[inline]
pub(super) fn connection_is_ready(peer: &Peer, readiness: Readiness) {
    let Readiness { readable, writable, closed } = readiness;
    tell(move || {
        trace!(
            event = "ready",
            what = "connection",
            peer:%,
            readable = readable,
            writable = writable,
            closed = closed;
            "event: {peer} is {readiness}"
        )
    });
}

/// An event is about a connection that has ended.
#[inline]
pub(super) fn event_is_stale() {
    tell(
        move || trace!(event = "ready", what = "nothing"; "event: of a connection that has ended"),
    );
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

// ---- the threads of the blocking designs

/// A thread waits for something that is nobody's in particular.
#[inline]
pub(super) fn waits_for(what: Awaited) {
    tell(move || trace!(event = "waiting", what = what.name(); "waits for {what}"));
}

/// What a thread may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    Client,
    Slot,
    Resources,
    Threads,
    Datagram,
    Signal,
}

impl Awaited {
    /// Its name in the fields of the log.
    fn name(self) -> &'static str {
        match self {
            Awaited::Client => "client",
            Awaited::Slot => "slot",
            Awaited::Resources => "resources",
            Awaited::Threads => "threads",
            Awaited::Datagram => "datagram",
            Awaited::Signal => "signal",
        }
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Awaited::Client => "the next client",
            Awaited::Slot => "a client to leave",
            Awaited::Resources => "a client to leave, or for another try",
            Awaited::Threads => "the threads of its clients",
            Awaited::Datagram => "a datagram",
            Awaited::Signal => "a signal, or for a thread that ends",
        })
    }
}

/// A thread waits for bytes of its client.
#[inline]
pub(super) fn waits_to_read(peer: &Peer) {
    tell(move || trace!(event = "waiting", what = "bytes", peer:%; "{peer}: waits for bytes"));
}

/// A thread writes, which waits while the send buffer is full.
#[inline]
pub(super) fn waits_to_write(peer: &Peer, bytes: usize) {
    tell(move || {
        trace!(
            event = "waiting",
            what = "room",
            peer:%,
            bytes = bytes;
            "{peer}: writes {}, and waits until the send buffer has taken them",
            count(bytes, "byte")
        )
    });
}

// ---- a connection

/// Nobody waits in a backlog any more.
#[inline]
pub(super) fn accept_would_block() {
    tell(
        move || trace!(event = "would_block", call = "accept"; "accept would block: nobody else waits in the backlog"),
    );
}

/// A connection was taken from the backlog, and is served.
#[inline]
pub(super) fn accepted(peer: &Peer) {
    tell(move || trace!(event = "accepted", peer:%; "{peer}: accepted"));
}

/// Bytes were read; none of them: the peer has closed its side.
#[inline]
pub(super) fn read(peer: &Peer, bytes: usize, room: usize) {
    if bytes == 0 {
        tell(
            move || trace!(event = "end_of_stream", peer:%; "{peer}: read the end of the stream: the peer's FIN"),
        );
        return;
    }
    tell(move || {
        trace!(
            event = "read",
            peer:%,
            bytes = bytes,
            room = room;
            "{peer}: read {}, with room for {room}",
            count(bytes, "byte")
        )
    });
}

/// Nothing is there to be read.
#[inline]
pub(super) fn read_would_block(peer: &Peer) {
    tell(
        move || trace!(event = "would_block", call = "read", peer:%; "{peer}: read would block: nothing more has come"),
    );
}

/// The service has answered what was read.
#[inline]
pub(super) fn answered(peer: &Peer, bytes: usize) {
    tell(
        move || trace!(event = "answered", peer:%, bytes = bytes; "{peer}: the answer has {}", count(bytes, "byte")),
    );
}

/// The socket took bytes: all of them, or a part.
#[inline]
pub(super) fn wrote(peer: &Peer, bytes: usize, of: usize) {
    tell(move || {
        trace!(
            event = "wrote",
            peer:%,
            bytes = bytes,
            of = of;
            "{peer}: wrote {bytes} of {}",
            count(of, "byte")
        )
    });
}

/// The send buffer is full.
#[inline]
pub(super) fn write_would_block(peer: &Peer) {
    tell(move || {
        trace!(
            event = "would_block",
            call = "write",
            peer:%;
            "{peer}: write would block: the send buffer is full, and nothing is read until it has room"
        )
    });
}

/// We have closed our side.
#[inline]
pub(super) fn shut_down(peer: &Peer) {
    tell(move || {
        trace!(
            event = "shutdown",
            peer:%;
            "{peer}: shut down our side: our FIN. What still comes is dropped, until the peer's FIN"
        )
    });
}
