//! All TCP connections of an event loop: accept, the slab, turns, deadlines.
//!
//! It decides and does not wait. What it needs of the world (a stream, a listener, the time) comes in
//! from outside, so that a simulation can stand in for it.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use log::trace;
use slab::Slab;

use super::admission::{ACCEPT_RETRY, AcceptError, Admission};
use super::budget::MAX_READ;
use super::clock::Moment;
use super::connection::{Connection, Readiness, Shared, Standing, Stream, Turn};
use super::ending::{CloseReason, Summary, Traffic};
use super::incidents::Lack;
use super::peer::Peer;
use super::ready::{ConnectionId, Queue, ReadyQueues, SPARSE_READ};
use super::sockets::note_gone;
use crate::error::Transport;
use crate::protocol::{Scratch, Service, Session, guarded};
use crate::sys::limits;
use crate::sys::socket::is_lasting_for_accept;

/// What the connections need of a listener.
pub(crate) trait Listener {
    type Stream: Stream;

    /// The address that it is bound to, where that is known.
    fn local_addr(&self) -> Option<SocketAddr>;

    /// Takes a connection from the backlog, if one is there.
    fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)>;

    /// Asks for the events of a stream: both interests, edge-triggered, once and for all.
    fn register(&mut self, stream: &mut Self::Stream, id: ConnectionId) -> io::Result<()>;
}

/// How many connections are accepted in a pass.
pub(crate) const ACCEPTS_PER_PASS: usize = 64;
/// How many passes' worth of the backlog a drain takes: 4096, the usual net.core.somaxconn.
const LAST_ACCEPT_PASSES: usize = 64;
/// Deadlines are looked at no more often than this: they are not exact.
pub(crate) const SWEEP_GAP: Duration = Duration::from_millis(10);

/// All TCP connections of an event loop.
pub(crate) struct Connections<L: Listener, V> {
    /// None is one that is gone.
    listeners: Vec<Option<ReadyListener<L>>>,
    /// The listener that is asked first in this pass.
    first: usize,
    /// Whether accept has stopped.
    pause: Option<Pause>,
    admission: Admission,
    make_service: Box<dyn FnMut() -> V>,
    slab: Slab<Connection<L::Stream, V>>,
    last_generation: u32,
    ready: ReadyQueues,
    /// When to look at all deadlines next, and when that was done last.
    sweep_at: Option<Moment>,
    swept_at: Moment,
    shared: Shared,
    /// Lent to the reads of each turn.
    buffer: Box<[u8]>,
    scratch: Scratch,
}

struct ReadyListener<L> {
    inner: L,
    /// Clients may be waiting in the backlog.
    ready: bool,
}

/// Why accept has stopped. The edge that announced the backlog is gone, so this has to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// Until a slot frees.
    Full,
    /// Until a slot frees, or this time has come.
    Starved { retry_at: Moment },
}

impl<L: Listener, V: Service> Connections<L, V> {
    /// What a connection takes in the slab, in bytes.
    const SLOT: usize = size_of::<Option<Connection<L::Stream, V>>>();

    pub(crate) fn new(
        listeners: Vec<L>,
        make_service: impl FnMut() -> V + 'static,
        shared: Shared,
    ) -> Self {
        let listeners =
            listeners.into_iter().map(|inner| Some(ReadyListener { inner, ready: false }));
        Connections {
            listeners: listeners.collect(),
            first: 0,
            pause: None,
            admission: Admission::new(&shared.rules, shared.stats.clone()),
            make_service: Box::new(make_service),
            slab: Slab::new(),
            last_generation: 0,
            ready: ReadyQueues::default(),
            sweep_at: None,
            swept_at: Moment::default(),
            shared,
            buffer: vec![0; MAX_READ].into_boxed_slice(),
            scratch: Scratch::default(),
        }
    }

    /// An event says that clients wait in a listener's backlog.
    pub(crate) fn hint_backlog(&mut self, listener: usize) {
        if let Some(Some(listener)) = self.listeners.get_mut(listener) {
            listener.ready = true;
        }
    }

    /// An event of a connection, which may be gone by now.
    pub(crate) fn hint(&mut self, id: ConnectionId, readiness: Readiness, now: Moment) {
        match self.slab.get_mut(id.slot as usize) {
            Some(connection) if connection.generation == id.generation => {
                connection.hint(readiness);
                if let Standing::Waits(queue) = connection.standing {
                    self.enqueue(id.slot, queue, now);
                }
            }
            _ => {
                trace!(event = "ready", what = "nothing"; "event: of a connection that has ended");
                self.shared.stats.stale_events.increment();
            }
        }
    }

    /// Whether there is something to do at once.
    pub(crate) fn can_act(&self) -> bool {
        let can_accept = || self.listeners.iter().flatten().any(|listener| listener.ready);
        !self.ready.is_empty() || (self.pause.is_none() && can_accept())
    }

    /// When a pass is due even if no event comes.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let retry = match self.pause {
            Some(Pause::Starved { retry_at }) => Some(retry_at),
            _ => None,
        };
        [self.sweep_at, retry, self.admission.incidents.deadline()].into_iter().flatten().min()
    }

    /// Does what can be done: each ready connection has one turn, the ones that ask for little first.
    /// `is_over` is asked after each turn, and ends the queue; of each queue one is served in any case.
    pub(crate) fn pass(&mut self, now: Moment, mut is_over: impl FnMut() -> bool) {
        self.accept(now);
        self.sweep(now);
        self.admission.incidents.report(now);
        // A connection that comes back on a queue has had its turn.
        let queues =
            [Queue::Sparse, Queue::Greedy].map(|queue| (queue, self.ready.of(queue).len()));
        for (queue, length) in queues {
            for _ in 0..length {
                let id = self.ready.pop(queue).expect("a queue only grows in a pass");
                self.serve(id, queue, now);
                if is_over() {
                    break;
                }
            }
        }
        self.scratch.trim();
        self.shared.stats.accept_paused.store(self.pause.is_some(), Ordering::Relaxed);
    }

    /// Accepts what waits in the backlog, as far as it is not endless, and nothing after that.
    pub(crate) fn take_backlog(&mut self, now: Moment) {
        self.listeners.iter_mut().flatten().for_each(|listener| listener.ready = true);
        for _ in 0..LAST_ACCEPT_PASSES {
            self.accept(now);
        }
    }

    /// Stops accepting. Open connections may finish.
    pub(crate) fn close_listeners(&mut self) {
        self.listeners.clear();
        self.pause = None;
    }

    /// Closes our side of every connection, once what it is owed is sent. Before that, each ready connection
    /// has a last turn, as in a [`pass`](Self::pass), and no reply waits for its time any more.
    pub(crate) fn close_all(&mut self, now: Moment, is_over: impl FnMut() -> bool) {
        self.shared.netem = None;
        self.for_each(now, |connection| connection.hasten(now));
        self.pass(now, is_over);
        self.for_each(now, |connection| connection.close(CloseReason::Drain, now));
    }

    /// Ends all connections at once; how many these were.
    pub(crate) fn cut_all(&mut self, now: Moment) -> usize {
        let open = self.open();
        for slot in self.slots() {
            if self.slab.contains(slot as usize) {
                self.remove(slot, CloseReason::Drain, now);
            }
        }
        self.admission.incidents.report(Moment::LAST);
        open
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.slab.len()
    }

    // ---- accept

    fn accept(&mut self, now: Moment) {
        if let Some(Pause::Starved { retry_at }) = self.pause
            && now >= retry_at
        {
            self.pause = None;
        }
        let mut budget = self.accepts_per_pass();
        let count = self.listeners.len();
        // Each goes first in its turn, so that a flood at one does not shut out the others.
        self.first = (self.first + 1) % count.max(1);
        for index in (self.first..count).chain(0..self.first) {
            while budget > 0
                && self.pause.is_none()
                && self.listeners[index].as_ref().is_some_and(|listener| listener.ready)
            {
                budget -= 1;
                self.accept_one(index, now);
            }
        }
    }

    /// How many are accepted in a pass. A newcomer has a turn before others can take its place.
    fn accepts_per_pass(&self) -> usize {
        match self.shared.rules.newcomers_first {
            true => (self.shared.rules.max_connections / 4).clamp(1, ACCEPTS_PER_PASS),
            false => ACCEPTS_PER_PASS,
        }
    }

    fn is_full(&self) -> bool {
        self.slab.len() >= self.shared.rules.max_connections
    }

    /// Takes one client from the backlog, if there is a slot for it.
    fn accept_one(&mut self, index: usize, now: Moment) {
        let open = self.slab.len();
        if self.is_full() && !self.shared.rules.newcomers_first {
            self.pause = Some(Pause::Full);
            return self.admission.pause(Lack::Slots(self.shared.rules.max_set_by), open, now);
        }
        if self.reserve_slot().is_err() {
            self.pause_starved(now);
            let error = ErrorKind::OutOfMemory.into();
            return self.admission.pause(Lack::Resources(&error), open, now);
        }
        let Some(listener) = &mut self.listeners[index] else { return };
        match listener.inner.accept() {
            Ok((stream, address)) => self.admit(index, stream, address.into(), now),
            Err(error) if is_lasting_for_accept(&error) => {
                let address = listener.inner.local_addr();
                note_gone(Transport::Tcp, address, &error, &self.shared.stats);
                self.listeners[index] = None;
            }
            Err(error) => match self.admission.judge(&error, open, now) {
                AcceptError::Empty => {
                    trace!(
                        event = "would_block",
                        call = "accept";
                        "accept would block: the backlog is empty"
                    );
                    listener.ready = false;
                }
                AcceptError::Connection => {}
                AcceptError::Starved => self.pause_starved(now),
            },
        }
    }

    fn pause_starved(&mut self, now: Moment) {
        self.pause = Some(Pause::Starved { retry_at: now + ACCEPT_RETRY });
    }

    /// Makes sure that there is memory to serve one more.
    fn reserve_slot(&mut self) -> Result<(), ErrorKind> {
        let slots = self.slab.len() + 1;
        self.ready.reserve(slots).map_err(|_| ErrorKind::OutOfMemory)?;
        self.admission.reserve().map_err(|_| ErrorKind::OutOfMemory)?;
        if self.slab.capacity() < slots {
            // A slab doubles, and cannot be asked to try.
            if (2 * slots * Self::SLOT) as u64 > limits::address_space_left() {
                return Err(ErrorKind::OutOfMemory);
            }
            self.slab.reserve(slots);
        }
        Ok(())
    }

    fn admit(&mut self, index: usize, mut stream: L::Stream, peer: Peer, now: Moment) {
        if !self.admission.admit(peer, now) {
            return;
        }
        if self.is_full() {
            self.end_idlest(now);
        }
        // Skips 0 when it wraps: that is for tokens that are no connection's.
        self.last_generation = self.last_generation.checked_add(1).unwrap_or(1);
        let generation = self.last_generation;
        let entry = self.slab.vacant_entry();
        let id = ConnectionId { slot: slot(entry.key()), generation };
        let listener = self.listeners[index].as_mut().expect("it has just accepted");
        if let Err(error) = listener.inner.register(&mut stream, id) {
            drop(stream);
            self.admission.not_registered(peer, &error, self.slab.len(), now);
            return self.pause_starved(now);
        }
        trace!(event = "accepted", peer:%; "{peer}: accepted");
        self.shared.stats.accepted.increment();
        let Ok(service) = guarded(&mut self.make_service) else {
            drop(stream);
            let (reason, open) = (CloseReason::Panicked, Duration::ZERO);
            let summary = Summary { peer, reason, traffic: Traffic::default(), unsent: 0, open };
            return self.note_end(&summary, now);
        };
        let session = Session::new(self.shared.rules.protocol, service);
        let connection = entry.insert(Connection::new(stream, generation, peer, session, now));
        let turn = connection.open(&mut self.scratch, &mut self.shared, now);
        self.settle(id.slot, turn, now);
    }

    /// Ends the connection on which nothing has moved for longest; of several, the oldest. It is one of
    /// those whose request has not come whole, if they have more than half of the slots, and else one of
    /// the others: neither a flood of connections nor one of unfinished requests gets all.
    fn end_idlest(&mut self, now: Moment) {
        let in_request = self.slab.iter().filter(|(_, one)| one.is_in_request()).count();
        let from_these = in_request > self.shared.rules.max_connections / 2;
        let rank = |one: &Connection<_, _>| {
            (one.is_in_request() != from_these, one.active, one.generation)
        };
        let idlest = self.slab.iter().min_by_key(|(_, one)| rank(one));
        if let Some((key, _)) = idlest {
            self.remove(slot(key), CloseReason::Idle, now);
        }
    }

    // ---- turns

    /// Puts a connection on a ready queue, unless it is there or has nothing to do.
    fn enqueue(&mut self, slot: u32, queue: Queue, now: Moment) {
        let connection = &mut self.slab[slot as usize];
        if connection.standing != Standing::Queued && connection.can_act(now) {
            connection.standing = Standing::Queued;
            self.ready.push(queue, ConnectionId { slot, generation: connection.generation });
        }
    }

    /// Gives a connection its turn, unless it is gone.
    fn serve(&mut self, id: ConnectionId, queue: Queue, now: Moment) {
        let open = self.slab.len();
        let Some(connection) = self.slab.get_mut(id.slot as usize) else { return };
        if connection.generation != id.generation {
            return;
        }
        connection.standing = Standing::Waits(Queue::Sparse);
        let share = self.shared.budget.read_size(open);
        let share = if queue == Queue::Sparse { share.min(SPARSE_READ) } else { share };
        let buffer = &mut self.buffer[..connection.read_limit(share)];
        let turn = connection.turn(buffer, &mut self.scratch, &mut self.shared, now);
        self.settle(id.slot, turn, now);
    }

    /// After a turn: the connection waits for its next one, or is over.
    fn settle(&mut self, slot: u32, turn: Turn, now: Moment) {
        match turn {
            Ok(()) => {
                let connection = &self.slab[slot as usize];
                if let Some(at) = connection.deadline(self.shared.rules.idle_timeout, now) {
                    self.note_deadline(at);
                }
                self.enqueue(slot, Queue::Greedy, now);
            }
            Err(reason) => self.remove(slot, reason, now),
        }
    }

    fn remove(&mut self, slot: u32, reason: CloseReason, now: Moment) {
        let connection = self.slab.remove(slot as usize);
        let summary = connection.end(reason, &self.shared, now);
        self.note_end(&summary, now);
    }

    /// Notes that a connection is gone, with all that it held.
    fn note_end(&mut self, summary: &Summary, now: Moment) {
        let &Summary { peer, reason, .. } = summary;
        self.admission.leave(peer);
        self.admission.incidents.end(peer, reason, now);
        summary.log();
        reason.counter(&self.shared.stats).increment();
        // Its descriptor and its slot are free with it.
        self.pause = None;
    }

    // ---- deadlines

    /// Remembers that a connection has a deadline.
    fn note_deadline(&mut self, at: Moment) {
        // A delayed reply leaves at its time, more or less.
        let gap = if self.shared.netem.is_some() { SWEEP_GAP / 10 } else { SWEEP_GAP };
        let at = at.max(self.swept_at + gap);
        self.sweep_at = Some(self.sweep_at.map_or(at, |sweep_at| sweep_at.min(at)));
    }

    /// Looks at all deadlines, once one of them has passed.
    fn sweep(&mut self, now: Moment) {
        if self.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        (self.sweep_at, self.swept_at) = (None, now);
        let idle_timeout = self.shared.rules.idle_timeout;
        self.for_each(now, |connection| connection.expire(idle_timeout, now));
    }

    /// All slots that there is memory for; not all of them have a connection.
    fn slots(&self) -> Range<u32> {
        0..slot(self.slab.capacity())
    }

    fn for_each(
        &mut self,
        now: Moment,
        mut act: impl FnMut(&mut Connection<L::Stream, V>) -> Turn,
    ) {
        for slot in self.slots() {
            if let Some(connection) = self.slab.get_mut(slot as usize) {
                let turn = act(connection);
                self.settle(slot, turn, now);
            }
        }
    }
}

/// The slot with this key.
fn slot(key: usize) -> u32 {
    u32::try_from(key).expect("descriptors are fewer than 2^32")
}

#[cfg(any(test, fuzzing))]
impl<L: Listener, V> Connections<L, V> {
    /// What all of them hold.
    pub(crate) fn held(&self) -> usize {
        self.shared.budget.held()
    }

    /// Those that can act.
    pub(crate) fn ready(&self) -> &ReadyQueues {
        &self.ready
    }

    /// The connection that an id names, if it is still open.
    pub(crate) fn connection(&self, id: ConnectionId) -> Option<&Connection<L::Stream, V>> {
        let connection = self.slab.get(id.slot as usize);
        connection.filter(|connection| connection.generation == id.generation)
    }
}
