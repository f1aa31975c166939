//! Clients of every kind at once, on real sockets: whoever behaves gets exactly its bytes, and
//! nothing is left of the others.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::{Client, TestServer, assert_same, config_with, pattern, udp, wait_until};
use evecho::protocol::{Echo, Upper};
use evecho::{Config, Framing, Service};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Each of so many threads is one client after the other.
const THREADS: u64 = 8;
/// So many of every kind, from each thread.
const CLIENTS: usize = 3;
const MAX_FRAME: u32 = 4_000;
/// More memory than this is not kept for nothing.
const SLACK: usize = 256 << 10;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What a storm has done, to hold against the server's counters.
#[derive(Default)]
struct Done {
    connections: AtomicU64,
    resets: AtomicU64,
    frame_errors: AtomicU64,
    datagrams: AtomicU64,
}

/// One thread's clients.
struct Storm<'a> {
    address: SocketAddr,
    framed: bool,
    /// From a seed: the same in each run.
    random: u64,
    done: &'a Done,
    /// Datagrams that find no room are dropped by the system: one is on its way at a time.
    datagrams: &'a Mutex<UdpSocket>,
}

#[test]
fn a_storm_of_clients_leaves_nothing_behind() {
    storms(Config::loopback(), Echo);
    // As little memory as there may be: whoever behaves gets all its bytes all the same.
    let mut little = Config::loopback();
    little.limits.max_buffered = 1 << 20;
    storms(little, Echo);
    let lines = config_with(|config| {
        config.protocol.framing = Framing::Lines;
        config.protocol.max_frame = MAX_FRAME;
    });
    storms(lines, Upper::default());
}

fn storms(config: Config, service: impl Service + Clone + Send + 'static) {
    let framed = config.protocol.framing == Framing::Lines;
    let max_buffered = config.limits.max_buffered;
    let server = TestServer::with_service(config, service);
    let datagrams = Mutex::new(udp(server.address()));
    let done = Done::default();
    let mut bystander = server.connect();
    done.connections.fetch_add(1, Ordering::Relaxed);
    let storm = |seed| Storm {
        address: server.address(),
        framed,
        random: seed,
        done: &done,
        datagrams: &datagrams,
    };
    wait_until("accepted", || server.stats().open() == 1);
    let descriptors = open_files();
    let mut allocated = None;
    for round in 0..3 {
        thread::scope(|scope| {
            let rage = |index| {
                let mut storm = storm(1 + round * THREADS + index);
                scope.spawn(move || storm.rage())
            };
            let raging: Vec<_> = (0..THREADS).map(rage).collect();
            // What all of them hold together is bounded, at any time.
            while raging.iter().any(|storm| !storm.is_finished()) {
                let held = server.stats().buffered;
                assert!(held <= max_buffered, "{held} bytes held");
                thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        wait_until("all are gone", || server.stats().open() == 1);
        assert_eq!(server.stats().buffered, 0);
        // A connection is counted as closed a moment before its descriptor is.
        wait_until("no descriptor is left over", || open_files() == descriptors);
        // The first storm takes what the later ones use again.
        let most = *allocated.get_or_insert_with(allocated_bytes) + SLACK;
        wait_until("no memory is left over", || allocated_bytes() < most);
        bystander.send(b"quiet\n");
        bystander.expect(if framed { b"QUIET\n" } else { b"quiet\n" });
    }
    drop(bystander);
    let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (connections, datagrams) = (counted(&done.connections), counted(&done.datagrams));
    let stats = server.stop();
    assert_eq!((stats.accepted, stats.closed()), (connections, connections), "{stats}");
    assert_eq!((stats.udp_received, stats.udp_answered), (datagrams, datagrams), "{stats}");
    assert_eq!(stats.closed_by_frame_error, counted(&done.frame_errors), "{stats}");
    assert!(stats.closed_by_reset <= counted(&done.resets), "{stats}");
    let others = stats.closed_for_memory
        + stats.closed_by_error
        + stats.closed_idle
        + stats.accept_errors
        + stats.udp_errors;
    assert_eq!(others, 0, "{stats}");
}

impl Storm<'_> {
    /// Clients of every kind, in an order that only the seed knows.
    fn rage(&mut self) {
        let kinds: [fn(&mut Self); 10] = [
            Self::converse,
            Self::half_close,
            Self::write_bytes,
            Self::flood,
            Self::read_slowly,
            Self::come_and_go,
            Self::reset,
            Self::never_read,
            Self::break_the_framing,
            Self::exchange_datagrams,
        ];
        let mut clients = kinds.repeat(CLIENTS);
        while !clients.is_empty() {
            let index = self.below(clients.len());
            clients.swap_remove(index)(self);
        }
    }

    /// SplitMix64.
    fn below(&mut self, end: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn connect(&self) -> Client {
        self.connect_with(None)
    }

    fn connect_with(&self, receive_buffer: Option<usize>) -> Client {
        self.done.connections.fetch_add(1, Ordering::Relaxed);
        Client::connect_with(self.address, None, receive_buffer)
    }

    /// Something to say, up to so many bytes, that ends with a whole line.
    fn words(&mut self, most: usize) -> Vec<u8> {
        let length = 1 + self.below(most);
        let mut bytes = pattern(self.random, length);
        if self.framed {
            for (index, byte) in bytes.iter_mut().enumerate() {
                let ends = index % (MAX_FRAME as usize / 2) == 999 || *byte < 8;
                *byte = if ends { b'\n' } else { b'a' + *byte % 26 };
            }
            bytes.push(b'\n');
        }
        bytes
    }

    fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        if self.framed { bytes.to_ascii_uppercase() } else { bytes.to_vec() }
    }

    // ---- those who behave

    fn converse(&mut self) {
        let mut client = self.connect();
        for _ in 0..20 {
            let bytes = self.words(10_000);
            client.send(&bytes);
            client.expect(&self.answer(&bytes));
        }
    }

    fn half_close(&mut self) {
        let mut client = self.connect();
        let mut bytes = self.words(30_000);
        // The last line needs no line feed then.
        bytes.extend(b"last");
        client.send(&bytes);
        client.half_close();
        assert_same(&client.rest(), &self.answer(&bytes));
    }

    fn write_bytes(&mut self) {
        let mut client = self.connect();
        let bytes = self.words(200);
        for byte in bytes.chunks(1) {
            client.send(byte);
        }
        client.half_close();
        assert_same(&client.rest(), &self.answer(&bytes));
    }

    /// Sends as fast as it can, and reads at the same time.
    fn flood(&mut self) {
        let (client, bytes) = (self.connect(), self.words(2_000_000));
        self.send_and_read(client, &bytes, 1 << 20);
    }

    fn read_slowly(&mut self) {
        let (client, bytes) = (self.connect_with(Some(2_000)), self.words(60_000));
        self.send_and_read(client, &bytes, 700);
    }

    fn send_and_read(&self, mut client: Client, bytes: &[u8], piece: usize) {
        let mut sender = Client(client.0.try_clone().unwrap());
        let mut room = vec![0; piece];
        let mut read = Vec::new();
        thread::scope(|scope| {
            scope.spawn(move || {
                sender.send(bytes);
                sender.half_close();
            });
            while let Some(length) = Some(client.0.read(&mut room).unwrap()).filter(|&n| n > 0) {
                read.extend_from_slice(&room[..length]);
            }
        });
        assert_same(&read, &self.answer(bytes));
    }

    fn exchange_datagrams(&mut self) {
        let sizes = [0, 1, 1 + self.below(1_472), 1_473 + self.below(60_000), 65_507];
        let mut bytes = pattern(self.random, 65_507);
        if self.framed {
            bytes.iter_mut().for_each(|byte| *byte = b'a' + *byte % 26);
        }
        let socket = self.datagrams.lock().unwrap();
        for size in sizes {
            assert_eq!(socket.send(&bytes[..size]).unwrap(), size);
            let mut room = vec![0; 65_536];
            let length = socket.recv(&mut room).unwrap();
            assert_same(&room[..length], &self.answer(&bytes[..size]));
            self.done.datagrams.fetch_add(1, Ordering::Relaxed);
        }
    }

    // ---- those who do not

    fn come_and_go(&mut self) {
        drop(self.connect());
    }

    fn reset(&mut self) {
        let mut client = self.connect();
        let bytes = self.words(20_000);
        client.send(&bytes);
        if self.below(2) == 0 {
            client.expect(&self.answer(&bytes)[..1]);
        }
        self.done.resets.fetch_add(1, Ordering::Relaxed);
        client.reset();
    }

    fn never_read(&mut self) {
        let mut client = self.connect();
        let bytes = self.words(50_000);
        client.0.set_nonblocking(true).unwrap();
        // As much as the sockets take at once.
        while client.0.write(&bytes).is_ok() {}
        self.done.resets.fetch_add(1, Ordering::Relaxed);
    }

    fn break_the_framing(&mut self) {
        if !self.framed {
            return self.come_and_go();
        }
        let mut client = self.connect();
        let mut bytes = self.words(3_000);
        let answer = self.answer(&bytes);
        bytes.extend(vec![b'x'; MAX_FRAME as usize + self.below(50_000)]);
        client.send(&bytes);
        assert_same(&client.rest(), &answer);
        self.done.frame_errors.fetch_add(1, Ordering::Relaxed);
    }
}

fn open_files() -> usize {
    std::fs::read_dir("/dev/fd").unwrap().count()
}

/// What this process has now, server and clients alike.
fn allocated_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}
