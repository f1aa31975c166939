//! The UDP endpoint in a random world: peers of every kind and every path to them, a kernel with
//! edge-triggered events, calls that fail in every way that they can.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::random::Random;
use super::udp_kernel::{
    Incoming, Path, PeerModel, Settings, SimulatedSocket, Tally, UdpWorld, replies,
};
use crate::impairments::{Impairments, Probability};
use crate::protocol::{Context, Flow, Message, Replies, Service};
use crate::server::clock::Moment;
use crate::server::guard::Guard;
use crate::server::netem::Netem;
use crate::server::udp::{
    BATCH, BUFFER, Endpoint, MAX_FAILURES, MAX_RECEIVE, MAX_TURN, RETRY, Responder,
};
use crate::stats::Stats;
use crate::sys::Errno;
use crate::sys::datagram::Received;

/// Source ports that get no reply.
const GUARDED: [u16; 2] = [7, 12_000];

/// Sends the replies that [`replies`] lists.
#[derive(Clone, Copy)]
struct Table;

impl Service for Table {
    fn serve(&mut self, message: Message<'_>, sender: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        for reply in replies(message.bytes()) {
            if reply == message.bytes() {
                sender.echo();
            } else {
                sender.send(&reply);
            }
        }
        Flow::Continue
    }
}

/// The server under test, and the world around it.
struct UdpBench {
    world: Rc<RefCell<UdpWorld>>,
    endpoint: Endpoint<SimulatedSocket, Table>,
    guard: Guard,
    stats: Arc<Stats>,
    /// Number of datagrams received before the endpoint was closed.
    closed_after: Option<u64>,
}

/// Plays a random history.
pub(super) fn play(mut random: Random) {
    let steps = random.size(250);
    let mut bench = UdpBench::new(random);
    for _ in 0..steps {
        bench.step();
        bench.check();
    }
    // Some servers end here, some of them at once.
    let end = bench.world.borrow_mut().random.below(4);
    if end < 2 {
        bench.close();
    }
    if end == 0 {
        return bench.end();
    }
    bench.settle();
}

impl UdpBench {
    fn new(mut random: Random) -> Self {
        let settings = Settings {
            offload: !random.one_in(4),
            trouble: random.pick(&[0, 4, 10, 50]),
            send_buffer: random.pick(&[1, 3_000, 60_000, 400_000]),
        };
        // One remote host where there is a limit: two could meet in a bucket.
        let rate = NonZeroU32::new(random.pick(&[0, 0, 1, 100, 10_000]));
        let hosts = if rate.is_some() { 1 } else { 3 };
        let count = 1 + random.size(20);
        let peers = (0..count).map(|index| peer(&mut random, index, hosts)).collect();
        let guard = || Guard::new(GUARDED.to_vec(), rate);
        let impairments = impairments(&mut random);
        let netem = || Netem::new(&impairments, 0, 1);
        let world = UdpWorld::new(random, settings, peers, guard(), netem());
        let world = Rc::new(RefCell::new(world));
        let stats = Arc::new(Stats::default());
        let socket = SimulatedSocket(Rc::clone(&world));
        let responder = Responder::new(|| Table, None, netem(), Arc::clone(&stats));
        let endpoint = Endpoint::new(socket, responder);
        UdpBench { world, endpoint, guard: guard(), stats, closed_after: None }
    }

    fn close(&mut self) {
        self.closed_after = Some(self.world.borrow().tally.received);
        self.endpoint.close();
        self.check();
    }

    /// The drain is over: all that was owed is sent, or is dropped and counted.
    fn end(&mut self) {
        let now = {
            let mut world = self.world.borrow_mut();
            world.begin_turn();
            world.hasten();
            world.now
        };
        self.endpoint.end(&mut self.guard, now);
        self.world.borrow_mut().drop_all();
        self.check();
        assert!(self.endpoint.is_done());
    }

    /// Has one thing happen.
    fn step(&mut self) {
        let mut world = self.world.borrow_mut();
        match world.random.below(16) {
            0..5 => arrive(&mut world),
            5 => {
                // A burst, mostly of one peer.
                for _ in 0..world.random.size(150) {
                    arrive(&mut world);
                }
            }
            6 | 7 => {
                let time = Duration::from_nanos(1 << world.random.below(33));
                world.pass(time);
            }
            8 => {
                // Paths change.
                let world = &mut *world;
                let peer = world.random.below(world.peers.len());
                world.peers[peer].path = path(&mut world.random);
            }
            9 if world.settings.trouble > 0 => {
                world.pending_error = Some(Errno::ECONNREFUSED);
                world.read_edge = true;
            }
            10 if world.settings.trouble > 0 && world.random.one_in(8) => {
                let time = Duration::from_millis(1 << world.random.below(12));
                (world.broken_until, world.broken_calls) = (Some(world.now + time), 0);
            }
            _ => {
                drop(world);
                self.iterate();
            }
        }
    }

    /// Plays one pass of the loop; false where it would sleep instead.
    fn iterate(&mut self) -> bool {
        let event = self.world.borrow_mut().poll();
        if let Some((readable, writable)) = event {
            self.endpoint.hint(readable, writable);
        }
        let now = self.world.borrow().now;
        let due = self.endpoint.deadline().is_some_and(|at| at <= now);
        if event.is_none() && !self.endpoint.can_act() && !due {
            self.check_asleep();
            return false;
        }
        self.turn(now);
        true
    }

    fn turn(&mut self, now: Moment) {
        let before = {
            let mut world = self.world.borrow_mut();
            world.begin_turn();
            (world.broken_calls, world.tally.errors)
        };
        self.endpoint.turn(&mut self.guard, now);
        if self.endpoint.has_sent_all() {
            let mut world = self.world.borrow_mut();
            world.release_in_turn();
            world.note_sent_all();
        }
        self.world.borrow_mut().pass(Duration::from_micros(1));
        let world = self.world.borrow();
        let Tally { receives_in_turn, sends_in_turn, .. } = world.tally;
        assert!(receives_in_turn <= BATCH, "{receives_in_turn} receives in a turn");
        // What waited, and what came: each may be refused as part of a run and then be sent alone, and there
        // are a few repeats.
        assert!(sends_in_turn <= 8 * MAX_TURN, "{sends_in_turn} sends in a turn");
        let broken = world.broken_calls - before.0;
        assert!(broken <= u64::from(MAX_FAILURES), "{broken} tries that fail in a turn");
    }

    /// After every step.
    fn check(&self) {
        let world = self.world.borrow();
        assert!(world.violations.is_empty(), "{:#?}", world.violations);
        let (stats, tally) = (self.stats.snapshot(), world.tally);
        let netem = world.netem_stats.snapshot();
        for (name, counter, happened) in [
            ("udp_received", stats.udp_received, tally.received),
            ("udp_bytes_in", stats.udp_bytes_in, tally.bytes_in),
            ("udp_answered", stats.udp_answered, tally.answered),
            ("udp_bytes_out", stats.udp_bytes_out, tally.bytes_out),
            ("udp_truncated", stats.udp_truncated, tally.truncated),
            ("udp_guarded", stats.udp_guarded, tally.guarded),
            ("udp_rate_limited", stats.udp_rate_limited, tally.limited),
            ("udp_too_long", stats.udp_too_long, tally.too_long),
            ("udp_dropped", stats.udp_dropped, tally.dropped),
            ("udp_lost", stats.udp_lost, netem.udp_lost),
            ("udp_duplicated", stats.udp_duplicated, netem.udp_duplicated),
            ("udp_reordered", stats.udp_reordered, netem.udp_reordered),
            ("udp_corrupted", stats.udp_corrupted, netem.udp_corrupted),
            ("udp_overflowed", stats.udp_overflowed, 0),
            ("udp_errors", stats.udp_errors, tally.errors),
        ] {
            assert_eq!(counter, happened, "{name}");
        }
        // The buffer, what a service wrote to the requests of a turn, and the list of it.
        let held = self.endpoint.held();
        assert!(held <= 4 * BUFFER + 8 * MAX_RECEIVE, "{held} bytes held");
        let waiting = world.peers.iter().any(|peer| !peer.owed.is_empty());
        assert!(
            !waiting || self.endpoint.can_act() || self.endpoint.deadline().is_some(),
            "replies are forgotten"
        );
        assert!(!waiting || !self.endpoint.is_done(), "done with replies to send");
        // Eight tries, then one in each pause.
        let broken_for = world.broken_until.map(|until| until - world.now);
        if broken_for.is_some() {
            let tries = u64::from(MAX_FAILURES) + 1 + (1 << 12) / RETRY.as_millis() as u64;
            assert!(world.broken_calls <= tries, "{} tries that fail", world.broken_calls);
        }
    }

    /// When the loop would sleep: nothing that could be done may be left.
    fn check_asleep(&self) {
        let world = self.world.borrow();
        let woken = self.endpoint.deadline().is_some();
        let all_received = world.incoming.is_empty() || self.closed_after.is_some();
        assert!(all_received || woken, "asleep with datagrams to receive");
        let owed = world.peers.iter().any(|peer| !peer.owed.is_empty());
        assert!(!owed || woken, "asleep with replies to send");
        // Those that wait for room come before those that are delayed.
        let (delayed, deadline) = (world.next_delayed(), self.endpoint.deadline());
        let wakes_by = |at| owed || deadline.is_some_and(|deadline| deadline <= at);
        assert!(delayed.is_none_or(wakes_by), "asleep when a reply is due");
    }

    /// Lets all go well, until nothing is left to do: every reply that was owed is sent, or was dropped
    /// and counted.
    fn settle(&mut self) {
        self.world.borrow_mut().calm = true;
        for _ in 0..100_000 {
            if self.iterate() {
                self.check();
                continue;
            }
            let mut world = self.world.borrow_mut();
            let now = world.now;
            let next = [self.endpoint.deadline(), world.next_departure()];
            let Some(next) = next.into_iter().flatten().min() else {
                match self.closed_after {
                    None => assert!(world.incoming.is_empty()),
                    Some(received) => assert_eq!(world.tally.received, received),
                }
                assert_eq!(self.endpoint.is_done(), self.closed_after.is_some());
                assert!(world.peers.iter().all(|peer| peer.owed.is_empty()));
                assert_eq!(world.next_delayed(), None);
                return;
            };
            world.pass((next - now).max(Duration::from_nanos(1)));
        }
        panic!("it does not settle: {:?}", self.stats.snapshot());
    }
}

/// Usually none.
fn impairments(random: &mut Random) -> Impairments {
    let mut impairments = Impairments::default();
    if random.one_in(3) {
        let mut often = || -> Probability {
            random.pick(&["0%", "0%", "10%", "50%", "100%"]).parse().expect("a percentage")
        };
        impairments.loss = often();
        impairments.duplicate = often();
        impairments.corrupt = often();
        impairments.reorder = often();
        impairments.delay = Duration::from_micros(random.pick(&[0, 1, 500, 100_000]));
        impairments.jitter = impairments.delay / random.pick(&[1, 3, 1_000_000]);
        impairments.seed = Some(random.below(1 << 30) as u64);
    }
    impairments
}

fn peer(random: &mut Random, index: usize, hosts: usize) -> PeerModel {
    let host = random.below(hosts) as u8;
    let (ip, asks): (IpAddr, Vec<(IpAddr, u32)>) = match random.below(6) {
        0 => {
            let asks = [[127, 0, 0, 1], [127, 0, 0, 2]].map(|ip| (ip.into(), 0));
            ([127, 0, 0, 1].into(), asks.into())
        }
        1 if hosts > 1 => {
            let link_local = |end| IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, end]);
            let asks = [2, 3].map(|interface| (link_local(1), interface));
            (link_local(100 + u16::from(host)), asks.into())
        }
        _ => ([192, 0, 2, host].into(), vec![([192, 0, 2, 100].into(), 0)]),
    };
    let port = match random.below(20) {
        0 => random.pick(&GUARDED),
        // The guard does not know of it.
        1 if index == 0 => 0,
        _ => 1_024 + index as u16,
    };
    let ip = if random.one_in(40) && hosts > 1 { [224, 0, 0, 1].into() } else { ip };
    let path = if random.one_in(2) { Path::Clear } else { path(random) };
    PeerModel { address: SocketAddr::new(ip, port), asks, path, owed: Default::default() }
}

fn path(random: &mut Random) -> Path {
    let slow = Duration::from_micros(random.pick(&[1, 100, 5_000, 100_000]));
    let refused = Path::Refused(random.pick(&[
        Errno::EPERM,
        Errno::ENETUNREACH,
        Errno::EHOSTUNREACH,
        Errno::ENOBUFS,
    ]));
    let narrow = Path::Narrow(random.pick(&[100, 1_252]));
    random.pick(&[Path::Clear, Path::Slow(slow), Path::Dead, narrow, Path::WithoutOffload, refused])
}

/// A datagram comes, or a run of equal ones.
fn arrive(world: &mut UdpWorld) {
    if world.incoming.len() > 2_000 {
        return;
    }
    let peer = if world.random.one_in(2) { 0 } else { world.random.below(world.peers.len()) };
    let random = &mut world.random;
    let most = random.pick(&[0, 1, 8, 64, 64, 64, 64, 600, 1_420, 1_421]);
    let most = if random.one_in(80) { random.pick(&[30_000, 65_507]) } else { most };
    let length = if random.one_in(3) { random.size(most.max(1)).min(most) } else { most };
    let mut bytes = vec![0; length];
    // Different from those of others, as far as the length allows it.
    let mark = random.below(1 << 16) as u32;
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = (mark as usize >> (8 * (place % 3))) as u8 ^ place as u8;
    }
    if let Some(first) = bytes.first_mut() {
        *first = if random.one_in(4) { random.pick(b"ntgs") } else { b'e' };
    }
    let segment = length;
    if world.settings.offload && (1..30_000).contains(&length) && random.one_in(8) {
        let count = (2 + random.size(62)).min(MAX_RECEIVE / length);
        let last = random.below(length) + 1;
        bytes = bytes.repeat(count);
        bytes.truncate(length * (count - 1) + last);
    }
    let hop_limit =
        random.pick(&[None, Some(64), Some(64), Some(64), Some(128), Some(255), Some(199)]);
    let to_group = random.one_in(20);
    let truncated = random.one_in(60);
    let asks = &world.peers[peer].asks;
    let (local, interface) = asks[random.below(asks.len())];
    let mut received = Received::new(bytes.len(), world.peers[peer].address);
    (received.route.local, received.route.interface) = (Some(local), interface);
    let received = Received { segment, truncated, to_group, hop_limit, ..received };
    world.incoming.push_back(Incoming { peer, bytes, received });
    world.read_edge = true;
}
