//! All TCP connections of the event loop: accept, the slab, whose turn it is, deadlines.
//!
//! It decides and does not wait. What it needs of the world (a stream, a listener, the time) comes in
//! from outside, so that a simulation can stand in for it.

use std::collections::TryReserveError;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use slab::Slab;

use super::admission::{ACCEPT_RETRY, AcceptError, Admission, Rules};
use super::clock::Moment;
use super::connection::{
    CloseReason, Connection, ConnectionId, Readiness, Standing, Stream, Traffic, Turn,
};
use super::memory::{CHUNK, Memory};
use super::peer::Peer;
use super::ready::{Queue, ReadyQueues, SMALL_TURN, SPARSE_READ};
use super::story;
use crate::protocol::{Scratch, Service, Session};
use crate::stats::Stats;

/// What the connections need of a listener.
pub(crate) trait Listener {
    type Stream: Stream;

    /// Takes a connection from the backlog, if one is there.
    fn accept(&mut self) -> io::Result<(Self::Stream, SocketAddr)>;

    /// Asks for the events of a stream: both interests, edge-triggered, once and for all.
    fn register(&mut self, stream: &mut Self::Stream, id: ConnectionId) -> io::Result<()>;
}

/// With less room left than this, what was read is answered first.
const SMALLEST_ROOM: usize = 16 << 10;
/// So many connections are read before the first of them is answered.
const BATCH: usize = 64;
/// So many connections are accepted in a turn.
pub(crate) const ACCEPTS_PER_TURN: usize = 64;
/// So many turns' worth of the backlog, when a drain begins: 4096, the usual net.core.somaxconn.
const LAST_ACCEPT_TURNS: usize = 64;
/// Deadlines are looked at no more often than this: they are not exact.
pub(crate) const SWEEP_GAP: Duration = Duration::from_millis(10);

/// All TCP connections of an event loop.
pub(crate) struct Connections<L: Listener, V> {
    rules: Rules,
    /// Makes the service of a connection.
    make: Box<dyn FnMut() -> V>,
    stats: Arc<Stats>,
    acceptor: Acceptor<L>,
    slab: Slab<Connection<L::Stream, V>>,
    admission: Admission,
    last_generation: u32,
    ready: ReadyQueues,
    /// When to look at deadlines next.
    sweep_at: Option<Moment>,
    draining: Option<Drain>,
    /// What moved in this turn.
    traffic: Traffic,
    memory: Arc<Memory>,
    /// Lent to reads: many small ones share it, a large one may have it all.
    room: Box<[u8]>,
    batch: Vec<Read>,
    scratch: Scratch,
}

/// A read that waits for its answer.
struct Read {
    slot: u32,
    start: usize,
    end: usize,
}

#[derive(Debug, Clone, Copy)]
struct Drain {
    /// The connections that are still open then are closed.
    until: Moment,
    over: bool,
}

/// The listeners, and whether they are asked.
struct Acceptor<L> {
    listeners: Vec<ReadyListener<L>>,
    pause: Option<Pause>,
    /// The one that is asked first in this turn.
    first: usize,
}

struct ReadyListener<L> {
    inner: L,
    /// Somebody may be waiting in the backlog.
    ready: bool,
}

/// Accept has stopped: the edge that announced the backlog is gone, so we have to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// Until one of our slots frees.
    Full,
    /// Until one of our slots frees, or this time has come.
    Starved { retry_at: Moment },
}

impl Pause {
    fn starved(now: Moment) -> Self {
        Pause::Starved { retry_at: now + ACCEPT_RETRY }
    }
}

impl<L: Listener, V: Service> Connections<L, V> {
    /// What a connection takes in the slab, in bytes.
    const SLOT: usize = size_of::<Option<Connection<L::Stream, V>>>();

    pub(crate) fn new(
        listeners: Vec<L>,
        rules: Rules,
        make: impl FnMut() -> V + 'static,
        stats: Arc<Stats>,
    ) -> Self {
        let listeners = listeners
            .into_iter()
            .map(|listener| ReadyListener { inner: listener, ready: false })
            .collect();
        Connections {
            rules,
            make: Box::new(make),
            acceptor: Acceptor { listeners, pause: None, first: 0 },
            slab: Slab::new(),
            admission: Admission::new(&rules, Arc::clone(&stats)),
            last_generation: 0,
            ready: ReadyQueues::default(),
            sweep_at: None,
            draining: None,
            traffic: Traffic::default(),
            memory: Arc::new(Memory::new(rules.max_buffered, Arc::clone(&stats))),
            stats,
            room: vec![0; CHUNK].into_boxed_slice(),
            batch: Vec::with_capacity(BATCH),
            scratch: Scratch::default(),
        }
    }

    /// An event says that somebody waits in a listener's backlog.
    pub(crate) fn hint_backlog(&mut self, listener: usize) {
        if let Some(listener) = self.acceptor.listeners.get_mut(listener) {
            listener.ready = true;
        }
    }

    /// An event of a connection, which may be gone by now.
    pub(crate) fn hint(&mut self, id: ConnectionId, readiness: Readiness) {
        match self.slab.get_mut(id.slot as usize) {
            Some(connection) if connection.generation == id.generation => {
                story::connection_is_ready(connection.peer(), readiness);
                connection.hint(readiness);
                let queue = match connection.standing {
                    Standing::Greedy => Queue::Greedy,
                    Standing::Sparse | Standing::Queued => Queue::Sparse,
                };
                self.enqueue(id.slot, queue);
            }
            _ => {
                story::event_is_stale();
                self.stats.stale_events.increment();
            }
        }
    }

    /// Whether there is something to do at once.
    pub(crate) fn can_act(&self) -> bool {
        !self.ready.is_empty() || (self.acceptor.pause.is_none() && self.can_accept())
    }

    /// When a turn is due even if no event comes.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        let retry = match self.acceptor.pause {
            Some(Pause::Starved { retry_at }) => Some(retry_at),
            _ => None,
        };
        let drain = self.draining.filter(|drain| !drain.over).map(|drain| drain.until);
        let report = self.admission.next_report();
        [self.sweep_at, retry, drain, report].into_iter().flatten().min()
    }

    /// Does what can be done, each connection getting one read and no more, until `is_over` says that
    /// others are to be looked at in between. It is asked between two batches.
    ///
    /// Of those who ask for much, one batch is served in any case.
    pub(crate) fn turn(&mut self, now: Moment, mut is_over: impl FnMut() -> bool) {
        self.accept(now);
        self.sweep(now);
        self.admission.incidents().report(now);
        // Who comes back on a queue has had its turn.
        let queues =
            [Queue::Sparse, Queue::Greedy].map(|queue| (queue, self.ready.of(queue).len()));
        for (queue, mut left) in queues {
            loop {
                left -= self.serve_batch(queue, left, now);
                if left == 0 || is_over() {
                    break;
                }
            }
        }
        self.scratch.trim();
        std::mem::take(&mut self.traffic).count(&self.stats);
        self.stats.accept_paused.store(self.acceptor.pause.is_some(), Ordering::Relaxed);
    }

    /// Takes the rest of the backlog.
    pub(crate) fn take_backlog(&mut self, now: Moment) {
        for listener in &mut self.acceptor.listeners {
            listener.ready = true;
        }
        for _ in 0..LAST_ACCEPT_TURNS {
            self.accept(now);
        }
    }

    /// Lets nobody in any more. Who is here may go on until `until`.
    pub(crate) fn drain(&mut self, until: Moment) {
        self.acceptor.listeners.clear();
        self.acceptor.pause = None;
        self.draining = Some(Drain { until, over: false });
    }

    /// Ends all connections at once; how many these were.
    pub(crate) fn cut(&mut self, now: Moment) -> usize {
        let slots: Vec<usize> = self.slab.iter().map(|(slot, _)| slot).collect();
        for &slot in &slots {
            let slot = u32::try_from(slot).expect("slots fit ids");
            self.remove(slot, CloseReason::Drain, now);
        }
        self.admission.incidents().report_all();
        slots.len()
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.slab.len()
    }

    // ---- accept

    fn can_accept(&self) -> bool {
        self.acceptor.listeners.iter().any(|listener| listener.ready)
    }

    fn accept(&mut self, now: Moment) {
        if let Some(Pause::Starved { retry_at }) = self.acceptor.pause
            && now >= retry_at
        {
            self.acceptor.pause = None;
        }
        let mut budget = self.accepts_per_turn();
        let count = self.acceptor.listeners.len();
        // Each goes first in its turn, so that a flood at one does not shut out the others.
        self.acceptor.first = (self.acceptor.first + 1) % count.max(1);
        for index in (self.acceptor.first..count).chain(0..self.acceptor.first) {
            while budget > 0
                && self.acceptor.pause.is_none()
                && self.acceptor.listeners[index].ready
            {
                budget -= 1;
                if self.is_full() && !self.rules.newcomers_first {
                    self.acceptor.pause = Some(Pause::Full);
                    self.admission.pause_full(self.slab.len(), now);
                } else if self.reserve_slot().is_err() {
                    let error = ErrorKind::OutOfMemory.into();
                    self.admission.pause_starved(&error, self.slab.len(), now);
                    self.acceptor.pause = Some(Pause::starved(now));
                } else {
                    self.accept_one(index, now);
                }
            }
        }
    }

    /// How many are accepted in a turn. A newcomer has a turn before others can take its place.
    fn accepts_per_turn(&self) -> usize {
        match self.rules.newcomers_first {
            true => (self.rules.max_connections / 2).clamp(1, ACCEPTS_PER_TURN),
            false => ACCEPTS_PER_TURN,
        }
    }

    fn is_full(&self) -> bool {
        self.slab.len() >= self.rules.max_connections
    }

    /// Makes sure that there is memory to serve one more: else it waits in the backlog.
    fn reserve_slot(&mut self) -> Result<(), TryReserveError> {
        let slots = self.slab.len() + 1;
        self.ready.reserve(slots)?;
        if self.slab.capacity() < slots {
            // A slab cannot be asked to try. It doubles; whether it can, this tells.
            Vec::<u8>::new().try_reserve_exact(2 * slots * Self::SLOT)?;
            self.slab.reserve(slots);
        }
        Ok(())
    }

    fn accept_one(&mut self, index: usize, now: Moment) {
        let listener = &mut self.acceptor.listeners[index];
        match listener.inner.accept() {
            Ok((stream, address)) => self.admit(index, stream, address.into(), now),
            Err(error) => match self.admission.judge(&error, self.slab.len(), now) {
                AcceptError::Empty => {
                    story::accept_would_block();
                    listener.ready = false;
                }
                AcceptError::Connection => {}
                AcceptError::Starved => self.acceptor.pause = Some(Pause::starved(now)),
            },
        }
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
        let slot = u32::try_from(entry.key()).expect("descriptors are fewer than 2^32");
        let id = ConnectionId { slot, generation };
        if let Err(error) = self.acceptor.listeners[index].inner.register(&mut stream, id) {
            drop(stream);
            self.admission.not_registered(peer, &error, self.slab.len(), now);
            self.acceptor.pause = Some(Pause::starved(now));
            return;
        }
        let session = Session::new(self.rules.protocol, (self.make)());
        let connection = entry.insert(Connection::new(stream, generation, peer, session, now));
        story::accepted(&peer);
        self.stats.accepted.increment();
        let before = connection.traffic();
        let turn = connection.open(&mut self.scratch, &self.memory, now);
        self.settle(slot, before, turn, now);
    }

    /// Ends the connection on which nothing has moved for longest; of several, the oldest.
    fn end_idlest(&mut self, now: Moment) {
        let idlest = self.slab.iter().min_by_key(|(_, one)| (one.active(), one.generation));
        if let Some((slot, _)) = idlest {
            self.remove(u32::try_from(slot).expect("slots fit ids"), CloseReason::Idle, now);
        }
    }

    // ---- turns of a connection

    /// Puts a connection on a ready queue, unless it is there or has nothing to do.
    fn enqueue(&mut self, slot: u32, queue: Queue) {
        if let Some(connection) = self.slab.get_mut(slot as usize)
            && connection.standing != Standing::Queued
            && connection.can_act()
        {
            connection.standing = Standing::Queued;
            self.ready.push(queue, ConnectionId { slot, generation: connection.generation });
        }
    }

    /// The next ones of a queue have their turn: `most` of them, a batch, or as many as the room has
    /// reads for. How many these were.
    fn serve_batch(&mut self, queue: Queue, most: usize, now: Moment) -> usize {
        let room = self.memory.batch_room();
        let share = match queue {
            Queue::Sparse => self.memory.read_room(self.slab.len()).min(SPARSE_READ),
            Queue::Greedy => self.memory.read_room(self.slab.len()),
        };
        let (mut count, mut used) = (0, 0);
        while count < most.min(BATCH) && room - used >= share.min(SMALLEST_ROOM) {
            let id = self.ready.pop(queue).expect("a queue only grows in a turn");
            used += self.receive(id, used..room, share, now);
            count += 1;
        }
        self.answer_batch(now);
        count
    }

    /// The first half of a connection's turn, with a share of this part of the room; the bytes that it
    /// took.
    fn receive(
        &mut self,
        id: ConnectionId,
        room: Range<usize>,
        share: usize,
        now: Moment,
    ) -> usize {
        let ConnectionId { slot, generation } = id;
        let Some(connection) = self.slab.get_mut(slot as usize) else { return 0 };
        if connection.generation != generation {
            return 0;
        }
        connection.standing = Standing::Sparse;
        let before = connection.traffic();
        let start = room.start;
        let length = room.len().min(connection.read_limit(share));
        let received = connection.receive(
            &mut self.room[start..start + length],
            &mut self.scratch,
            &self.memory,
            self.rules.idle_timeout,
            now,
        );
        let length = *received.as_ref().unwrap_or(&0);
        if length > SMALL_TURN {
            connection.standing = Standing::Greedy;
        }
        if length > 0 {
            self.account(slot, before);
            self.batch.push(Read { slot, start, end: start + length });
        } else {
            self.settle(slot, before, received.map(drop), now);
        }
        length
    }

    /// The second half of the turn of all who were read.
    fn answer_batch(&mut self, now: Moment) {
        let mut batch = std::mem::take(&mut self.batch);
        for Read { slot, start, end } in batch.drain(..) {
            let connection =
                self.slab.get_mut(slot as usize).expect("only its own turn removes a connection");
            let before = connection.traffic();
            let turn =
                connection.answer(&self.room[start..end], &mut self.scratch, &self.memory, now);
            self.settle(slot, before, turn, now);
        }
        self.batch = batch;
    }

    /// After a turn: the connection waits for its next one, or is over.
    fn settle(&mut self, slot: u32, before: Traffic, turn: Turn, now: Moment) {
        self.account(slot, before);
        match turn {
            Ok(()) => {
                let connection = &self.slab[slot as usize];
                if let Some(deadline) = connection.deadline(self.rules.idle_timeout) {
                    self.sweep_no_later_than(deadline);
                }
                self.enqueue(slot, Queue::Greedy);
            }
            Err(reason) => self.remove(slot, reason, now),
        }
    }

    fn account(&mut self, slot: u32, before: Traffic) {
        self.traffic += self.slab[slot as usize].traffic() - before;
    }

    fn remove(&mut self, slot: u32, reason: CloseReason, now: Moment) {
        let connection = self.slab.remove(slot as usize);
        self.admission.leave(*connection.peer());
        self.admission.incidents().end(*connection.peer(), reason, now);
        connection.end(reason, &self.memory, now);
        // Counted last: a connection that counts as closed is gone, with all that it held.
        reason.counter(&self.stats).increment();
        // Its descriptor and its slot are free with it.
        self.acceptor.pause = None;
    }

    // ---- deadlines

    fn sweep_no_later_than(&mut self, deadline: Moment) {
        self.sweep_at = Some(self.sweep_at.map_or(deadline, |at| at.min(deadline)));
    }

    /// Ends what is overdue.
    fn sweep(&mut self, now: Moment) {
        if let Some(drain) = &mut self.draining
            && !drain.over
            && now >= drain.until
        {
            drain.over = true;
            self.for_each(now, |connection| connection.close(CloseReason::Drain, now));
        }
        if self.sweep_at.is_some_and(|at| now >= at) {
            let idle_timeout = self.rules.idle_timeout;
            self.for_each(now, |connection| match connection.deadline(idle_timeout) {
                Some(deadline) if now >= deadline => connection.expire(),
                _ => Ok(()),
            });
            let next = self.slab.iter().filter_map(|(_, c)| c.deadline(idle_timeout)).min();
            self.sweep_at = next.map(|next| next.max(now + SWEEP_GAP));
        }
    }

    fn for_each(
        &mut self,
        now: Moment,
        mut act: impl FnMut(&mut Connection<L::Stream, V>) -> Turn,
    ) {
        let slots: Vec<usize> = self.slab.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let connection = &mut self.slab[slot];
            let before = connection.traffic();
            let turn = act(connection);
            self.settle(u32::try_from(slot).expect("slots fit tokens"), before, turn, now);
        }
    }
}

#[cfg(any(test, fuzzing))]
impl<L: Listener, V> Connections<L, V> {
    /// What all of them hold.
    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
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
