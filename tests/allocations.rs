//! Messages cost no allocation, on any path.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::alloc::System;
use std::fmt::Debug;
use std::io::{Read, Write};

use common::{Client, TestServer, config_with};
use evecho::protocol::{Echo, Upper, Who};
use evecho::{Config, Framing, Service};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MESSAGES: usize = 1_000;

/// Counts what a thousand exchanges allocate in this process, server and client alike. The first
/// ones are not counted: buffers find their size then.
fn allocations(mut exchange: impl FnMut()) -> usize {
    (0..100).for_each(|_| exchange());
    let region = Region::new(ALLOCATOR);
    (0..MESSAGES).for_each(|_| exchange());
    let change = region.change();
    change.allocations + change.reallocations
}

fn who_is_not_allocated_for() {
    let config = config_with(|config| config.protocol.framing = Framing::Lines);
    let who = Who::new(config.protocol, None);
    let server = TestServer::with_service(config, who);
    let Client(mut stream) = server.connect();
    let mut line = [0; Who::LONGEST];
    let counted = allocations(|| {
        stream.write_all(b"?\n").unwrap();
        let length = stream.read(&mut line).unwrap();
        assert_eq!(line[length - 1], b'\n');
    });
    assert_eq!(counted, 0, "lines");
    let socket = server.udp();
    let counted = allocations(|| {
        socket.send(&[b'?'; Who::LONGEST]).unwrap();
        socket.recv(&mut line).unwrap();
    });
    assert_eq!(counted, 0, "datagrams");
}

/// One test, since the allocator is the whole process's.
#[test]
fn messages_are_not_allocated_for() {
    who_is_not_allocated_for();
    messages_to_are_not_allocated_for(Echo);
    messages_to_are_not_allocated_for(Upper::default());
}

fn messages_to_are_not_allocated_for(service: impl Service + Clone + Send + Debug + 'static) {
    for framing in [Framing::Raw, Framing::Lines, Framing::LengthPrefixed] {
        let config = config_with(|config| config.protocol.framing = framing);
        let server = TestServer::with_service(config, service.clone());
        let Client(mut stream) = server.connect();
        let (message, mut answer) = (b"\0\0\0\x06A LINE\n".as_slice(), [0; 11]);
        let message = if framing == Framing::LengthPrefixed { &message[..10] } else { message };
        let counted = allocations(|| {
            stream.write_all(message).unwrap();
            stream.read_exact(&mut answer[..message.len()]).unwrap();
            assert_eq!(&answer[..message.len()], message);
        });
        assert_eq!(counted, 0, "{service:?} {framing:?}");
    }
    for udp_offload in [true, false] {
        for bind in [Config::loopback().bind, vec![]] {
            let config = config_with(|config| {
                (config.udp_offload, config.bind) = (udp_offload, bind);
            });
            let server = TestServer::with_service(config, service.clone());
            let socket = common::udp(([127, 0, 0, 1], server.address().port()).into());
            let mut answer = [0; 64];
            let counted = allocations(|| {
                // Two of a size: a run, where runs are made.
                socket.send(b"DATAGRAM").unwrap();
                socket.send(b"DATAGRAM").unwrap();
                for _ in 0..2 {
                    let length = socket.recv(&mut answer).unwrap();
                    assert_eq!(&answer[..length], b"DATAGRAM");
                }
            });
            assert_eq!(counted, 0, "{service:?}, offload {udp_offload}");
        }
    }
}
