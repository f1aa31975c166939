//! Histories in which one thing is driven to its end.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use super::invariants::Bench;
use super::random::Random;
use super::world::{Habit, Settings, Wire, World};
use crate::protocol::oracle::Expected;
use crate::protocol::{Echo, Framing, Protocol};
use crate::server::admission::Rules;
use crate::server::budget::MAX_READ;
use crate::server::connection::Standing;
use crate::server::connections::ACCEPTS_PER_PASS;
use crate::server::incidents::MaxSetBy;
use crate::server::ready::Queue;

fn settings() -> Settings {
    Settings {
        rules: Rules {
            protocol: Protocol::default(),
            max_connections: 1_000,
            max_set_by: MaxSetBy::Config,
            peers: "clients",
            per_source_connections: None,
            idle_timeout: None,
            max_buffered: 64 << 20,
            memory_setting: None,
            newcomers_first: false,
        },
        upper: false,
        delay: Duration::ZERO,
        one_direction: false,
        trouble: 0,
        pace: 20,
        stalls: 0,
        events: 1024,
        descriptors: usize::MAX,
    }
}

fn bench(settings: Settings) -> Bench<Echo> {
    let bench = Bench::new(settings, Random::new(0), Echo);
    bench.world.borrow_mut().calm = true;
    bench
}

impl Bench<Echo> {
    /// A client that sends this to the listener of that index.
    fn client(&self, index: usize, habit: Habit, script: &[u8]) {
        let mut world = self.world.borrow_mut();
        let Settings { rules, upper, .. } = world.settings;
        let expected = Expected::new(rules.protocol, upper, script);
        let address = SocketAddr::from(([192, 0, 2, 1], 5_000));
        let buffers = (script.len() + 1, script.len() + 1);
        world.connect(index, Wire::new(habit, address, script.to_vec(), expected, buffers));
    }
}

#[test]
fn clients_in_the_backlog_are_served_when_a_drain_begins() {
    let mut bench = bench(settings());
    for _ in 0..3 * ACCEPTS_PER_PASS {
        bench.client(0, Habit::Steady, b"hello");
    }
    bench.drain(Duration::from_secs(1));
    assert_eq!(bench.connections.open(), 3 * ACCEPTS_PER_PASS);
    bench.settle();
    bench.check_settled();
    assert_eq!(bench.stats.snapshot().closed_by_peer, 3 * ACCEPTS_PER_PASS as u64);
}

#[test]
fn clients_in_the_backlog_are_left_to_the_next_server() {
    let mut bench = bench(settings());
    bench.client(0, Habit::Steady, b"in time");
    assert!(bench.iterate());
    bench.client(0, Habit::Steady, b"too late");
    let until = bench.world.borrow().now + Duration::from_secs(1);
    bench.world.borrow_mut().drain_until = Some(until);
    bench.connections.close_listeners();
    bench.settle();
    assert_eq!(bench.stats.snapshot().closed_by_peer, 1);
    let accepted: Vec<bool> = bench.world.borrow().wires.iter().map(|wire| wire.accepted).collect();
    assert_eq!(accepted, [true, false]);
}

#[test]
fn a_listener_that_is_shut_down_is_closed_and_the_other_one_served() {
    let mut bench = bench(settings());
    bench.world.borrow_mut().backlogs[0].shut_down = true;
    bench.client(0, Habit::Steady, b"hello");
    bench.client(1, Habit::Steady, b"hello");
    bench.settle();
    bench.client(1, Habit::Steady, b"hello again");
    bench.settle();
    bench.check_settled();
    assert!(bench.world.borrow().backlogs[0].closed);
    let stats = bench.stats.snapshot();
    assert_eq!((stats.sockets_gone, stats.accept_pauses, stats.closed_by_peer), (1, 0, 2));
}

#[test]
fn the_buffer_is_lent_to_one_read_after_the_other() {
    // Lines of very different length.
    let mut settings = settings();
    settings.rules.protocol.framing = Framing::Lines;
    settings.rules.protocol.max_frame = 1 << 20;
    let mut bench = bench(settings);
    for index in 0..150 {
        let line = vec![b'a' + index as u8 % 26; [1, 100, 20_000, MAX_READ + 1][index % 4]];
        bench.client(0, Habit::Steady, &[&line[..], b"\nlast"].concat());
    }
    bench.settle();
    bench.check_settled();
    assert_eq!(bench.stats.snapshot().closed_by_peer, 150);
}

#[test]
fn a_flood_at_one_listener_does_not_shut_out_the_other() {
    let mut bench = bench(settings());
    bench.world.borrow_mut().flooded = Some(0);
    for _ in 0..ACCEPTS_PER_PASS {
        bench.client(0, Habit::Silent, b"");
    }
    bench.client(1, Habit::Steady, b"hello");
    let quiet = ACCEPTS_PER_PASS;
    for _ in 0..2 {
        assert!(bench.iterate());
    }
    assert!(bench.world.borrow().wires[quiet].accepted);
}

#[test]
fn a_drain_begins_though_clients_never_stop_to_come() {
    let mut settings = settings();
    settings.rules.per_source_connections = NonZeroUsize::new(1);
    let mut bench = bench(settings);
    bench.world.borrow_mut().flooded = Some(0);
    bench.client(0, Habit::Silent, b"");
    bench.drain(Duration::from_secs(1));
    assert_eq!(bench.connections.open(), 1);
}

#[test]
fn a_client_that_asks_for_little_does_not_wait_for_those_that_ask_for_much() {
    let mut bench = bench(settings());
    bench.world.borrow_mut().short_passes = true;
    let (greedy, much) = (200, vec![b'x'; 2 * MAX_READ]);
    for _ in 0..greedy {
        bench.client(0, Habit::Steady, &much);
    }
    bench.client(0, Habit::Steady, b"pingpong");
    let passes = |bench: &mut Bench<Echo>, until: &dyn Fn(&Wire, usize) -> bool| {
        for pass in 0..10_000 {
            if until(&bench.world.borrow().wires[greedy], pass) {
                return pass;
            }
            assert!(bench.iterate());
        }
        panic!("never")
    };
    passes(&mut bench, &|ping, _| ping.accepted);
    for wire in 0..greedy {
        bench.world.borrow_mut().act_in_full(wire);
    }
    // By then they all have had a turn, and go on.
    passes(&mut bench, &|_, pass| pass == greedy);
    // Whether it comes for the first time or again.
    for written in [4, 8] {
        bench.world.borrow_mut().send(greedy, 4);
        assert_eq!(passes(&mut bench, &|ping, _| ping.written == written), 1);
    }
    bench.settle();
    bench.check_settled();
}

#[test]
fn of_much_that_comes_at_once_little_is_read_at_first() {
    let mut bench = bench(settings());
    bench.client(0, Habit::Steady, &[b'x'; 100_000]);
    while !bench.world.borrow().wires[0].accepted {
        assert!(bench.iterate());
    }
    bench.world.borrow_mut().send(0, 100_000);
    bench.world.borrow_mut().wires[0].mark = None;
    for bytes in [16 << 10, 100_000 - (16 << 10)] {
        assert!(bench.iterate());
        assert_eq!(bench.world.borrow().wires[0].bytes, bytes);
    }
}

#[test]
fn what_a_connection_asked_for_is_remembered() {
    let mut bench = bench(settings());
    bench.client(0, Habit::Steady, &[b'x'; 10_000]);
    while !bench.world.borrow().wires[0].accepted {
        assert!(bench.iterate());
    }
    // The first of them in one read, which empties the socket.
    for (bytes, queue) in [(5_000, Queue::Greedy), (4, Queue::Sparse), (4_096, Queue::Sparse)] {
        bench.world.borrow_mut().send(0, bytes);
        bench.world.borrow_mut().wires[0].mark = None;
        assert!(bench.iterate());
        let id = bench.world.borrow().wires[0].connection_id.unwrap();
        let standing = bench.connections.connection(id).unwrap().standing;
        assert_eq!(standing, Standing::Waits(queue), "{bytes}");
    }
}

#[test]
fn a_newcomer_gets_the_place_of_the_idlest_where_it_comes_first() {
    for newcomers_first in [false, true] {
        let mut settings = settings();
        settings.rules.newcomers_first = newcomers_first;
        settings.rules.max_connections = 2;
        let mut bench = bench(settings);
        let come = |bench: &mut Bench<Echo>| {
            bench.client(0, Habit::Silent, b"hello");
            while bench.iterate() {}
            let mut world = bench.world.borrow_mut();
            world.now = world.now + Duration::from_secs(1);
        };
        (0..2).for_each(|_| come(&mut bench));
        // The first one moves, so that the second one is the idlest.
        bench.world.borrow_mut().send(0, 5);
        while bench.iterate() {}
        come(&mut bench);
        let open = |world: &World| -> Vec<bool> {
            world.wires.iter().map(|wire| wire.accepted && !wire.dropped).collect()
        };
        let expected = [true, !newcomers_first, newcomers_first];
        assert_eq!(open(&bench.world.borrow()), expected, "{newcomers_first}");
        let stats = bench.stats.snapshot();
        assert_eq!(stats.closed_idle, u64::from(newcomers_first));
        assert_eq!(stats.accept_paused, !newcomers_first);
    }
}

#[test]
fn newcomers_have_a_turn_before_their_place_is_taken() {
    for (max_connections, per_pass) in [(4, 1), (8, 2)] {
        let mut settings = settings();
        settings.rules.newcomers_first = true;
        settings.rules.max_connections = max_connections;
        let mut bench = bench(settings);
        for _ in 0..20 {
            bench.client(0, Habit::Silent, b"");
        }
        // All in one moment: then the oldest has to go.
        for accepted in (per_pass..=20_usize).step_by(per_pass) {
            let first_open = accepted.saturating_sub(max_connections);
            assert!(bench.iterate());
            let world = bench.world.borrow();
            let is_open = |wire: &Wire| wire.accepted && !wire.dropped;
            let open: Vec<usize> = (0..20).filter(|&wire| is_open(&world.wires[wire])).collect();
            assert_eq!(open, (first_open..accepted).collect::<Vec<_>>());
        }
    }
}

#[test]
fn newcomers_and_unfinished_requests_have_half_of_the_slots_each() {
    let mut settings = settings();
    settings.rules.newcomers_first = true;
    settings.rules.max_connections = 4;
    settings.rules.protocol.framing = Framing::Lines;
    let mut bench = bench(settings);
    let mut come = |bytes: &[u8]| {
        bench.client(0, Habit::Silent, bytes);
        while bench.iterate() {}
        let last = bench.world.borrow().wires.len() - 1;
        bench.world.borrow_mut().send(last, bytes.len());
        while bench.iterate() {}
        let mut world = bench.world.borrow_mut();
        world.now = world.now + Duration::from_secs(1);
        let is_open = |wire: &Wire| wire.accepted && !wire.dropped;
        (0..world.wires.len()).filter(|&id| is_open(&world.wires[id])).collect::<Vec<_>>()
    };
    come(b"GET");
    for _ in 1..9 {
        come(b"");
    }
    assert_eq!(come(b""), [0, 7, 8, 9]);
    assert_eq!(come(b"GET"), [0, 8, 9, 10]);
    assert_eq!(come(b"GET"), [0, 9, 10, 11]);
    assert_eq!(come(b"GET"), [9, 10, 11, 12]);
    assert_eq!(come(b""), [9, 11, 12, 13]);
}

#[test]
fn connections_that_are_left_in_the_end_are_cut_off_and_counted() {
    let mut bench = bench(settings());
    for _ in 0..3 {
        bench.client(0, Habit::Silent, b"");
    }
    while bench.connections.open() < 3 {
        assert!(bench.iterate());
    }
    let now = {
        let mut world = bench.world.borrow_mut();
        world.drain_until = Some(world.now);
        world.wires.iter_mut().for_each(|wire| wire.excuse = Some("drained"));
        world.now
    };
    assert_eq!((bench.connections.cut_all(now), bench.connections.open()), (3, 0));
    assert_eq!(bench.stats.snapshot().closed_draining, 3);
}

#[test]
fn a_delayed_reply_leaves_at_its_time_and_all_of_it_comes() {
    let delay = Duration::from_millis(100);
    let mut bench = bench(Settings { delay, ..settings() });
    bench.client(0, Habit::Steady, b"hello");
    while !bench.world.borrow().wires[0].accepted {
        assert!(bench.iterate());
    }
    bench.world.borrow_mut().send(0, 5);
    bench.world.borrow_mut().wires[0].mark = None;
    while bench.iterate() {}
    let asked = bench.world.borrow().now;
    let deadline = bench.connections.deadline().unwrap();
    assert!((delay / 2..=delay * 3 / 2).contains(&(deadline - asked)), "{:?}", deadline - asked);
    assert_eq!(bench.world.borrow().wires[0].written, 0);
    bench.world.borrow_mut().now = deadline;
    assert!(bench.iterate());
    assert_eq!(bench.world.borrow().wires[0].written, 5);
    bench.settle();
    bench.check_settled();
    assert_eq!(bench.stats.snapshot().closed_by_peer, 1);
}
