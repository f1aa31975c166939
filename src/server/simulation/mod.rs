//! The server's connections in a random world: peers of every habit, a kernel that tells everything
//! once, calls that fail in every way that they can.
//!
//! Every seed is one history, and so is the input of a fuzzer.

mod invariants;
mod kernel;
mod peers;
mod random;
#[cfg(test)]
mod scenarios;
mod script;
#[cfg(test)]
mod seeds;
mod udp;
mod udp_kernel;
mod world;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use self::invariants::Bench;
use self::kernel::SimulatedListener;
use self::peers::Happening;
use self::random::Random;
use self::world::{Backlog, Habit, Settings, Tally, Wire, World};
use super::admission::Rules;
use super::clock::Moment;
use super::connection::Shared;
use super::connections::Connections;
use super::incidents::MaxSetBy;
use super::netem::Netem;
use super::ready::Queue;
use crate::impairments::Impairments;
use crate::protocol::oracle::Expected;
use crate::protocol::{Context, Echo, Flow, Framing, Message, Protocol, Replies, Service, Upper};
use crate::stats::Stats;

/// Plays the history that these bytes decide.
#[cfg(fuzzing)]
pub(crate) fn play_chosen(input: &[u8]) {
    play_with(Random::chosen(input));
}

/// Plays the history of datagrams that these bytes decide.
#[cfg(fuzzing)]
pub(crate) fn play_datagrams_chosen(input: &[u8]) {
    udp::play(Random::chosen(input));
}

fn play_with(mut random: Random) {
    let settings = settings(&mut random);
    if settings.upper {
        Bench::new(settings, random, Upper::default()).play();
    } else {
        Bench::new(settings, random, Echo).play();
    }
}

fn settings(random: &mut Random) -> Settings {
    let protocol = Protocol {
        framing: random.pick(&[Framing::Raw, Framing::Lines, Framing::LengthPrefixed]),
        max_frame: random.pick(&[8, 100, 4_000, 70_000]),
        once: random.one_in(5),
    };
    let max_connections = random.pick(&[1, 3, 10, 1_000]);
    Settings {
        rules: Rules {
            protocol,
            max_connections,
            max_set_by: MaxSetBy::Config,
            peers: "clients",
            per_source_connections: NonZeroUsize::new(random.pick(&[0, 0, 1, 4])),
            idle_timeout: random
                .pick(&[None, None, Some(2_000), Some(5_000_000)])
                .map(Duration::from_micros),
            max_buffered: random.pick(&[64 << 20, 1 << 20, 100_000, 1_000]),
            memory_setting: None,
            newcomers_first: max_connections == 3,
        },
        upper: random.one_in(2),
        delay: Duration::from_micros(random.pick(&[0, 0, 0, 1, 5_000, 3_000_000])),
        one_direction: random.one_in(2),
        pace: random.pick(&[10, 20, 26, 32]),
        stalls: random.pick(&[0, 0, 20, 200]),
        events: random.pick(&[1, 4, 64, usize::MAX]),
        trouble: random.pick(&[0, 3, 10, 50]),
        descriptors: random.pick(&[2, 5, usize::MAX, usize::MAX]),
    }
}

impl<V: Service + Clone + 'static> Bench<V> {
    fn new(settings: Settings, random: Random, service: V) -> Self {
        let Settings { rules, delay, .. } = settings;
        let world = Rc::new(RefCell::new(World {
            random,
            now: Moment::default(),
            settings,
            backlogs: vec![Backlog::default(), Backlog::default()],
            wires: Vec::new(),
            tally: Tally::default(),
            starved: false,
            drain_until: None,
            closed_at: None,
            flooded: None,
            short_passes: false,
            calm: false,
            old_ids: Vec::new(),
            violations: Vec::new(),
        }));
        let listeners =
            (0..2).map(|index| SimulatedListener { world: Rc::clone(&world), index }).collect();
        let stats = Arc::new(Stats::default());
        let impairments =
            Impairments { delay, jitter: delay / 2, seed: Some(7), ..Impairments::default() };
        let shared = Shared::new(rules, Arc::clone(&stats), Netem::new(&impairments, 0, 1));
        let connections = Connections::new(listeners, move || Asking(service.clone()), shared);
        Bench { world, connections, stats }
    }

    fn play(mut self) {
        let (steps, clients) = {
            let random = &mut self.world.borrow_mut().random;
            let most = if random.one_in(10) { 200 } else { 12 };
            (random.size(600), 1 + random.size(most))
        };
        for _ in 0..steps {
            self.step(clients);
        }
        // Some servers are told to stop while replies are due.
        if self.world.borrow_mut().random.one_in(4) {
            self.drain_soon();
        }
        self.settle();
        self.check_settled();
        self.drain_out();
    }

    /// Something happens.
    fn step(&mut self, clients: usize) {
        let mut world = self.world.borrow_mut();
        world.may_stall();
        let present = world.wires.len();
        match world.random.below(16) {
            0..4 if present < clients => {
                let (index, wire) = client(&mut world);
                world.connect(index, wire);
            }
            0..8 if present > 0 => {
                let wire = world.random.below(present);
                world.act(wire);
            }
            8 | 9 => world.pass_time(),
            10 if world.random.one_in(60) => {
                drop(world);
                self.drain_soon();
            }
            _ => {
                drop(world);
                self.iterate();
            }
        }
    }

    /// One round of the loop; false where it would sleep instead.
    fn iterate(&mut self) -> bool {
        let events = {
            let mut world = self.world.borrow_mut();
            let events = world.poll();
            // Between the events and the turn that acts on them, too.
            world.may_stall();
            world.meanwhile();
            events
        };
        let now = self.world.borrow().now;
        let woken = !events.is_empty();
        for event in events {
            match event {
                Happening::Backlog(index) => self.connections.hint_backlog(index),
                Happening::Connection(connection_id, readiness) => {
                    self.connections.hint(connection_id, readiness, now);
                }
            }
        }
        self.check();
        let now = self.world.borrow().now;
        if !woken && !self.connections.can_act() && self.deadline().is_none_or(|at| at > now) {
            self.check_asleep();
            return false;
        }
        if self.world.borrow_mut().begin_pass() {
            self.connections.close_all(now, || false);
            self.world.borrow_mut().begin_pass();
        }
        let on = |queue| self.connections.ready().of(queue).iter().copied().collect();
        let queued = [on(Queue::Sparse), on(Queue::Greedy)];
        let (world, mut cut) = (Rc::clone(&self.world), false);
        self.connections.pass(now, || {
            let mut world = world.borrow_mut();
            cut |= world.short_passes || world.is_late();
            cut
        });
        self.check_pass(&queued, cut);
        true
    }

    /// When the loop wakes up, even if no event comes.
    fn deadline(&self) -> Option<Moment> {
        let world = self.world.borrow();
        let closing = world.drain_until.filter(|_| world.closed_at.is_none());
        [self.connections.deadline(), closing].into_iter().flatten().min()
    }

    /// Begins a drain, unless one has begun.
    fn drain_soon(&mut self) {
        let time = Duration::from_nanos(1 << self.world.borrow_mut().random.below(33));
        if self.world.borrow().drain_until.is_none() {
            self.drain(time);
        }
    }

    fn drain(&mut self, time: Duration) {
        let now = self.world.borrow().now;
        self.world.borrow_mut().drain_until = Some(now + time);
        self.connections.take_backlog(now);
        self.connections.close_listeners();
        self.check();
    }

    /// Lets all finish that can: nothing goes wrong any more.
    fn settle(&mut self) {
        self.world.borrow_mut().calm = true;
        let (mut alarms, mut at_alarm) = (0, self.progress());
        for _ in 0..100_000 {
            let before = self.progress();
            let wires = self.world.borrow().wires.len();
            for wire in 0..wires {
                self.world.borrow_mut().act_in_full(wire);
            }
            let awake = self.iterate();
            if awake || self.progress() != before {
                continue;
            }
            let Some(deadline) = self.deadline() else { return };
            // Asleep until then, and woken by the clock alone.
            let now = self.world.borrow().now.max(deadline);
            self.world.borrow_mut().now = now;
            // Accept tries for ever, where descriptors are too few for the clients that stay.
            alarms = if before == at_alarm { alarms + 1 } else { 0 };
            at_alarm = before;
            if alarms > 10 && self.world.borrow().has_no_descriptors() {
                return;
            }
        }
        panic!("it does not settle: {:?}", self.stats.snapshot());
    }

    /// What tells whether anything moves.
    fn progress(&self) -> (Tally, usize) {
        let world = self.world.borrow();
        (world.tally, world.wires.iter().map(|wire| wire.sent + wire.taken).sum())
    }

    /// The end of every history: all have to leave in time.
    fn drain_out(mut self) {
        if self.world.borrow().drain_until.is_none() {
            self.drain(Duration::from_secs(1));
        }
        self.settle();
        let world = self.world.borrow();
        let left = world.wires.iter().find(|wire| wire.is_open()).map(Wire::brief);
        assert!(left.is_none(), "stays for ever: {left:?}");
        assert!(world.wires.iter().all(|wire| !wire.accepted || wire.dropped));
        self.check_counters_at_the_end(&world);
    }

    fn check_counters_at_the_end(&self, world: &World) {
        let stats = self.stats.snapshot();
        assert_eq!((stats.open(), stats.closed()), (0, world.tally.registered));
    }
}

/// Asks for its address whenever it serves, so that the world sees that call, too.
pub(super) struct Asking<V>(V);

impl<V: Service> Service for Asking<V> {
    fn serve(
        &mut self,
        message: Message<'_>,
        replies: &mut Replies<'_>,
        context: &Context<'_>,
    ) -> Flow {
        assert_eq!(context.local().map(|address| address.port()).ok(), Some(7));
        self.0.serve(message, replies, context)
    }
}

/// A client that is about to connect, and to which listener.
fn client(world: &mut World) -> (usize, Wire) {
    let Settings { rules, upper, .. } = world.settings;
    let random = &mut world.random;
    let most = random.pick(&[8, 60, 1_000, 30_000, 400_000]);
    let script = script::script(random, rules.protocol, most);
    let expected = Expected::new(rules.protocol, upper, &script);
    let host = random.below(4) as u8;
    let address = SocketAddr::from(([10, 0, 0, host], 1_024 + random.below(60_000) as u16));
    let habit = if random.one_in(2) { random.pick(&Habit::ALL) } else { Habit::Steady };
    let sizes = [1, 7, 500, 20_000, 500_000];
    // Small ones take many turns.
    let least = script.len().max(expected.bytes.len()) / 200;
    let buffers = (random.pick(&sizes).max(least), random.pick(&sizes).max(least));
    (random.below(2), Wire::new(habit, address, script, expected, buffers))
}
