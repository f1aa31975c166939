//! Those who are being served, each in a slot.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use super::Client;
use crate::server::admission::{ACCEPT_RETRY, AcceptError, Admission, Rules};
use crate::server::clock::{Clock, Moment};
use crate::server::connection::CloseReason;
use crate::server::memory::Memory;
use crate::server::peer::Peer;
use crate::server::story::{self, Awaited};
use crate::stats::Stats;

/// How far the server's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    /// No new clients, but for those in the backlog. Those who are here may finish.
    Draining,
    /// Whoever is still here is told to leave.
    Asked,
    /// Nobody is waited for any more.
    Over,
}

/// The clients of a server, and what all of its threads know.
pub(in crate::server) struct Clients {
    pub(super) rules: Rules,
    pub(super) stats: Arc<Stats>,
    pub(super) memory: Arc<Memory>,
    clock: Clock,
    /// A [`Phase`]; changes under the lock of `slots`.
    phase: AtomicU8,
    slots: Mutex<Slots>,
    /// A client has left, or the phase has changed.
    changed: Condvar,
}

struct Slots {
    streams: Slab<Arc<TcpStream>>,
    admission: Admission,
    /// The number of the last client that was taken in.
    last_number: u32,
    /// How many have left.
    left: u64,
    /// Whether anyone waits for `changed`.
    awaited: bool,
}

impl Clients {
    pub(super) fn new(rules: Rules, stats: Arc<Stats>) -> Self {
        let slots = Slots {
            streams: Slab::new(),
            admission: Admission::new(&rules, Arc::clone(&stats)),
            last_number: 0,
            left: 0,
            awaited: false,
        };
        Clients {
            rules,
            memory: Arc::new(Memory::new(rules.max_buffered, Arc::clone(&stats))),
            stats,
            clock: Clock::start(),
            phase: AtomicU8::new(Phase::Serving as u8),
            slots: Mutex::new(slots),
            changed: Condvar::new(),
        }
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            2 => Phase::Asked,
            _ => Phase::Over,
        }
    }

    /// Enters a phase and wakes all whom it concerns; how many clients are here.
    pub(super) fn enter(&self, phase: Phase) -> usize {
        let slots = self.lock();
        self.phase.store(phase as u8, Ordering::Release);
        for (_, stream) in &slots.streams {
            wake(stream, phase);
        }
        self.changed.notify_all();
        slots.streams.len()
    }

    /// A connection has ended.
    pub(super) fn ended(&self, peer: Peer, reason: CloseReason) {
        self.lock().admission.incidents().end(peer, reason, self.clock.now());
    }

    /// Tells of what is over; of everything once the server ends.
    pub(super) fn report(&self) {
        let now = if self.phase() == Phase::Over { Moment::LAST } else { self.clock.now() };
        self.lock().admission.incidents().report(now);
    }

    /// Waits until there is a slot for a client; false when there is to be none any more.
    pub(super) fn wait_for_slot(&self) -> bool {
        let mut slots = self.lock();
        let full = |slots: &Slots| slots.streams.len() >= self.rules.max_connections;
        if full(&slots) && self.phase() == Phase::Serving {
            let open = slots.streams.len();
            slots.admission.pause_full(open, self.clock.now());
            story::waits_for(Awaited::Slot);
            self.begin_wait(&mut slots);
            let waits = |slots: &mut Slots| full(slots) && self.phase() == Phase::Serving;
            slots = self.changed.wait_while(slots, waits).unwrap_or_else(PoisonError::into_inner);
            self.end_wait(&mut slots);
        }
        !full(&slots)
    }

    /// Waits until somebody has left, or for a while. False when there is no use in another try.
    pub(super) fn wait_for_resources(&self) -> bool {
        story::waits_for(Awaited::Resources);
        let mut slots = self.lock();
        self.begin_wait(&mut slots);
        let left = slots.left;
        let waits = |slots: &mut Slots| slots.left == left && self.phase() == Phase::Serving;
        let waited = self.changed.wait_timeout_while(slots, ACCEPT_RETRY, waits);
        self.end_wait(&mut waited.unwrap_or_else(PoisonError::into_inner).0);
        self.phase() == Phase::Serving
    }

    fn begin_wait(&self, slots: &mut Slots) {
        slots.awaited = true;
        self.stats.accept_paused.store(true, Ordering::Relaxed);
    }

    fn end_wait(&self, slots: &mut Slots) {
        slots.awaited = false;
        self.stats.accept_paused.store(false, Ordering::Relaxed);
    }

    /// Tells of a thread that could not be started, then waits until another try may do better.
    pub(super) fn wait_for_thread(&self, error: &io::Error) -> bool {
        let mut slots = self.lock();
        let open = slots.streams.len();
        slots.admission.pause_starved(error, open, self.clock.now());
        drop(slots);
        self.wait_for_resources()
    }

    /// What to do after accept(2) has failed.
    pub(super) fn judge(&self, error: &io::Error) -> AcceptError {
        let mut slots = self.lock();
        let open = slots.streams.len();
        slots.admission.judge(error, open, self.clock.now())
    }

    /// Takes a client in, unless its source has as many connections as it may have.
    pub(super) fn admit(&self, stream: TcpStream, peer: Peer) -> Option<Client<'_>> {
        let mut slots = self.lock();
        if !slots.admission.admit(peer, self.clock.now()) {
            return None;
        }
        slots.last_number = slots.last_number.checked_add(1).unwrap_or(1);
        let stream = Arc::new(stream);
        let key = slots.streams.insert(Arc::clone(&stream));
        // Whoever enters a phase wakes those who are here.
        wake(&stream, self.phase());
        story::accepted(&peer);
        self.stats.accepted.increment();
        Some(Client::new(stream, Slot { clients: self, key, number: slots.last_number, peer }))
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing is left half-done where a thread could panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the thread of a stream, so that it sees the phase.
fn wake(stream: &TcpStream, phase: Phase) {
    // An error here says that the peer has cut it already.
    let _ = match phase {
        Phase::Serving | Phase::Draining => Ok(()),
        Phase::Asked => stream.shutdown(Shutdown::Read),
        Phase::Over => stream.shutdown(Shutdown::Both),
    };
}

/// A place among those who are served.
pub(super) struct Slot<'a> {
    pub(super) clients: &'a Clients,
    /// Of the connection, of all that were accepted.
    pub(super) number: u32,
    pub(super) peer: Peer,
    key: usize,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut slots = self.clients.lock();
        drop(slots.streams.remove(self.key));
        slots.admission.leave(self.peer);
        slots.left += 1;
        if slots.awaited {
            self.clients.changed.notify_all();
        }
    }
}
