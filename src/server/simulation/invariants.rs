//! What has to be so after every step, whatever happened before.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::Asking;
use super::kernel::SimulatedListener;
use super::world::{Edges, Wire, World};
use crate::protocol::{Service, Verdict};
use crate::server::admission::{ACCEPT_RETRY, Rules};
use crate::server::budget::MAX_READ;
use crate::server::clock::Moment;
use crate::server::connection::Standing;
use crate::server::connections::{ACCEPTS_PER_PASS, Connections, SWEEP_GAP};
use crate::server::ending::LINGER_TIME;
use crate::server::ready::{ConnectionId, Queue};
use crate::stats::Stats;

/// The server under test, and the world around it.
pub(super) struct Bench<V> {
    pub(super) world: Rc<RefCell<World>>,
    pub(super) connections: Connections<SimulatedListener, Asking<V>>,
    pub(super) stats: Arc<Stats>,
}

impl<V: Service + Clone> Bench<V> {
    /// At any time.
    pub(super) fn check(&self) {
        self.note_delayed();
        let world = self.world.borrow();
        assert!(world.violations.is_empty(), "{:#?}", world.violations);
        let open = world.wires.iter().filter(|wire| wire.is_open());
        assert_eq!(self.connections.open(), open.clone().count(), "connections that stand");
        assert!(
            self.connections.open() <= world.settings.rules.max_connections,
            "too many are open"
        );
        let ready = self.connections.ready();
        let mut held = 0;
        for wire in open {
            let id = wire.connection_id.expect("an open wire has an id");
            let connection = self.connections.connection(id).expect("an open wire is served");
            let times = ready.iter().filter(|&ready| ready == id).count();
            let is_queued = connection.standing == Standing::Queued;
            assert_eq!(times, usize::from(is_queued), "times on the ready queues: {id:?}");
            held += connection.held();
            assert_eq!(connection.unsent(), wire.unsent, "unsent output: {:?}", wire.brief());
            // Not forgotten: it stands on a ready queue, or time or an edge is still to come.
            let owes = connection.unsent() > 0;
            let can_move = !self.wakes_for_delays(&world)
                && if owes { !wire.blocked } else { wire.is_readable() };
            assert!(
                !can_move || is_queued || wire.edges != Edges::default(),
                "forgotten: {:?}",
                wire.brief()
            );
        }
        assert_eq!(held, self.connections.held(), "what all of them hold");
        let max_buffered = world.settings.rules.max_buffered;
        assert!(held <= max_buffered, "{held} bytes held");
    }

    /// What is delayed is owed before the world sees a write of it.
    fn note_delayed(&self) {
        let mut world = self.world.borrow_mut();
        let now = world.now;
        for wire in world.wires.iter_mut().filter(|wire| wire.is_open()) {
            let connection = wire.connection_id.and_then(|id| self.connections.connection(id));
            if let Some(connection) = connection.filter(|one| one.is_delayed(now)) {
                wire.unsent = connection.unsent();
            }
        }
    }

    /// After a pass that found these on the ready queues, and was over before the last of them where
    /// `cut` says so.
    pub(super) fn check_pass(&self, queued: &[Vec<ConnectionId>; 2], cut: bool) {
        self.check();
        let world = self.world.borrow();
        assert!(world.tally.accepts_in_pass <= ACCEPTS_PER_PASS, "accepts in a pass");
        for wire in &world.wires {
            assert!(
                wire.reads <= 1 && wire.bytes <= MAX_READ,
                "read in a pass: {:?}",
                wire.brief()
            );
            if wire.is_open() {
                let id = wire.connection_id.expect("an open wire has an id");
                let has_a_turn = self.connections.ready().iter().any(|ready| ready == id);
                let connection = self.connections.connection(id).expect("an open wire is served");
                let owes = connection.unsent() > 0;
                if !connection.is_delayed(world.now) {
                    check_deadlines(&world, wire, has_a_turn, owes);
                }
                let done = wire.fin_read && !owes;
                assert!(!done || has_a_turn, "answered and not closed: {:?}", wire.brief());
            }
        }
        for (queue, before) in [Queue::Sparse, Queue::Greedy].into_iter().zip(queued) {
            let had_theirs = check_order(&world, before);
            let waiting = &before[had_theirs..];
            assert!(waiting.is_empty() || cut, "no turn for {waiting:?}");
            assert!(had_theirs > 0 || before.is_empty(), "none of {queue:?} was served");
            // They keep their place.
            let now = self.connections.ready().of(queue);
            assert!(now.iter().take(waiting.len()).eq(waiting), "{waiting:?} lost their place");
        }
        self.check_counters(&world);
    }

    fn check_counters(&self, world: &World) {
        let (stats, tally) = (self.stats.snapshot(), &world.tally);
        let counted = [
            ("accepted", stats.accepted, tally.registered),
            ("refused", stats.refused, tally.refused),
            ("registration_errors", stats.registration_errors, tally.not_registered),
            ("closed", stats.closed(), tally.closed),
            ("open", stats.open(), self.connections.open() as u64),
            ("accept_errors", stats.accept_errors, tally.aborted),
            ("bytes_in", stats.bytes_in, tally.bytes_in),
            ("bytes_out", stats.bytes_out, tally.bytes_out),
            ("reads", stats.reads, tally.reads),
            ("writes", stats.writes, tally.writes),
            ("short_writes", stats.short_writes, tally.short_writes),
            ("stale_events", stats.stale_events, tally.stale),
        ];
        for (name, counter, happened) in counted {
            assert_eq!(counter, happened, "{name}");
        }
    }

    /// Whether replies may be delayed, and the loop wakes up for them.
    fn wakes_for_delays(&self, world: &World) -> bool {
        !world.settings.delay.is_zero() && self.connections.deadline().is_some()
    }

    /// When the loop would sleep: nothing that could be done may be left.
    pub(super) fn check_asleep(&self) {
        let world = self.world.borrow();
        for wire in world.wires.iter().filter(|wire| wire.is_open()) {
            let id = wire.connection_id.expect("an open wire has an id");
            let connection = self.connections.connection(id).expect("an open wire is served");
            let waits = wire.edges != Edges::default()
                || self.wakes_for_delays(&world)
                || if connection.unsent() > 0 { wire.blocked } else { !wire.is_readable() };
            assert!(waits, "asleep with {:?}", wire.brief());
        }
        let Rules { max_connections, newcomers_first, .. } = world.settings.rules;
        let full = self.connections.open() >= max_connections && !newcomers_first;
        assert!(self.connections.open() <= max_connections, "too many are open");
        let retried = self.connections.deadline().is_some_and(|at| at <= world.now + ACCEPT_RETRY);
        for backlog in &world.backlogs {
            let waits =
                backlog.waiting.is_empty() || backlog.edge || full || (world.starved && retried);
            assert!(waits, "asleep with {} in a backlog", backlog.waiting.len());
        }
    }

    /// When nothing can happen any more.
    pub(super) fn check_settled(&self) {
        let world = self.world.borrow();
        for wire in world.wires.iter().filter(|wire| wire.habit.behaves()) {
            let whole = wire.taken == wire.expected.bytes.len() && wire.eof_taken;
            let waits = !wire.accepted && self.connections.open() > 0;
            assert!(whole || waits || wire.excuse.is_some(), "short of bytes: {:?}", wire.brief());
        }
        let calm = world.settings.rules.idle_timeout.is_none() && world.drain_until.is_none();
        if calm {
            self.check_reasons(&world);
        }
    }

    /// Each end is counted as what it was.
    fn check_reasons(&self, world: &World) {
        let stats = self.stats.snapshot();
        let (mut peer, mut frame, mut service, mut failed) = (0, 0, 0, 0);
        let (mut no_memory, mut frame_or_no_memory, mut displaced) = (0, 0, 0);
        for wire in world.wires.iter().filter(|wire| wire.connection_id.is_some()) {
            match wire.expected.verdict {
                _ if wire.failed.is_some() => failed += 1,
                _ if !wire.dropped => {}
                _ if wire.excuse == Some("no memory") => no_memory += 1,
                _ if wire.excuse == Some("displaced") => displaced += 1,
                Verdict::Broken(_) if world.has_memory_for_all() => frame += 1,
                // Which of the two was first cannot be seen.
                Verdict::Broken(_) => frame_or_no_memory += 1,
                Verdict::Close => service += 1,
                Verdict::Finished => peer += 1,
                other => panic!("no conversation ends with {other:?}"),
            }
        }
        let either = stats.closed_by_frame_error + stats.closed_for_memory;
        for (name, counter, at_least, more) in [
            ("closed_by_peer", stats.closed_by_peer, peer, 0),
            ("closed_by_service", stats.closed_by_service, service, 0),
            ("closed_by_frame_error", stats.closed_by_frame_error, frame, frame_or_no_memory),
            ("closed_for_memory", stats.closed_for_memory, no_memory, frame_or_no_memory),
            ("either of the two", either, frame + no_memory + frame_or_no_memory, 0),
        ] {
            let possible = at_least..=at_least + failed + more + displaced;
            assert!(possible.contains(&counter), "{name}: {counter}, not {possible:?}");
        }
        // A client that left of its own accord while all places were taken looks the same, and one that
        // failed may have been displaced before the server noticed.
        let excused = |wire: &&Wire| wire.excuse == Some("displaced");
        let excused = world.wires.iter().filter(excused).count() as u64;
        assert!(stats.closed_idle + stats.closed_draining <= excused);
        let vanished = |wire: &&Wire| wire.failed == Some(ErrorKind::TimedOut);
        let vanished = world.wires.iter().filter(vanished).count() as u64;
        assert!(stats.closed_by_error <= vanished, "closed_by_error: {}", stats.closed_by_error);
    }
}

/// Those that had their turn come before those that did not; how many had.
fn check_order(world: &World, before: &[ConnectionId]) -> usize {
    let served = |id: &ConnectionId| {
        let wire = world.wires.iter().find(|wire| wire.connection_id == Some(*id));
        wire.is_none_or(|wire| wire.calls > 0 || wire.dropped)
    };
    let count = before.iter().take_while(|id| served(id)).count();
    // The sweep may have ended some of the others.
    for id in before[count..].iter().filter(|id| served(id)) {
        let wire = world.wires.iter().find(|wire| wire.connection_id == Some(*id));
        assert!(
            wire.is_none_or(|wire| wire.dropped || wire.fin_at == Some(world.now)),
            "out of turn: {id:?}"
        );
    }
    count
}

/// No later than they are due, give or take the gap between two looks at them.
fn check_deadlines(world: &World, wire: &Wire, has_a_turn: bool, owes: bool) {
    let overdue = |since: Moment, time| world.now > since + time + SWEEP_GAP && !has_a_turn;
    if let Some(fin_at) = wire.fin_at {
        assert!(!overdue(fin_at, LINGER_TIME), "lingers too long: {:?}", wire.brief());
    } else if let Some(closed_at) = world.closed_at {
        assert!(owes, "not closed: {:?}", wire.brief());
        assert!(!overdue(closed_at, LINGER_TIME), "stays after the drain: {:?}", wire.brief());
    } else if let Some(time) = world.settings.rules.idle_timeout {
        let ending = owes && !wire.ends_with_the_peer();
        let time = if ending { time.max(LINGER_TIME) } else { time };
        // What is about to be looked at is not idle yet.
        let since = (wire.moved_at + time).max(wire.asked_at);
        let known = wire.edges != Edges::default();
        assert!(known || !overdue(since, Duration::ZERO), "idle for too long: {:?}", wire.brief());
    }
}
