//! The three designs side by side, under the same client, with every byte checked.
//!
//! Each is served in this process, by threads of its own, and driven by the load engine from another:
//! on a machine with few CPUs the client takes its share. An iteration is one message (or one
//! connection), and opening the connections is not measured.
//!
//! The iterative design is compared where it can be: with one connection, or with connections that
//! end. Of several that stay it serves the first and no other, and a client that waits for the others
//! waits for ever; `iterative` shows that first.
#![allow(clippy::unwrap_used, missing_docs, reason = "a bench that cannot go on fails")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::{TestServer, config_with};
use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use evecho::Design;
use evecho::Transport;
use evecho::client::Cancel;
use evecho::client::load::{self, Length, Mode, Report};

const DESIGNS: [Design; 3] = [Design::EventLoop, Design::Threaded, Design::Iterative];
const CONNECTIONS: [u32; 4] = [1, 10, 100, 1_000];
/// The name of a size, the bytes, and how many messages are in flight when they are pipelined.
const SIZES: [(&str, usize, u16); 2] = [("64B", 64, 16), ("16KiB", 16 << 10, 4)];

fn server(design: Design) -> TestServer {
    evecho::raise_open_file_limit().unwrap();
    TestServer::start(config_with(|config| config.design = design))
}

fn load(server: &TestServer, transport: Transport) -> load::Config {
    load::Config::new(transport, server.address())
}

/// Runs a load that ends by itself.
fn run(load: &load::Config) -> Report {
    load::run(load, &Cancel::default(), |_| {}).unwrap()
}

/// A message waits for those before it: with fewer than this from each connection, a run would time
/// the wait and not the work.
const FEWEST_EACH: u64 = 20;

/// The time that so many messages take, which all have to come back as they went; of a longer run,
/// where so few would say little.
fn timed(load: &load::Config, messages: u64) -> Duration {
    let enough = messages.max(FEWEST_EACH * u64::from(load.connections));
    let mut load = load.clone();
    load.length = Length::Messages(enough);
    let report = run(&load);
    assert!(report.is_clean(), "{:?}: {:?}", report.errors, report.first_error);
    assert_eq!(report.bytes, enough * load.size as u64);
    report.duration.mul_f64(messages as f64 / enough as f64)
}

/// One design under one load.
fn bench(c: &mut Criterion, group: &str, id: BenchmarkId, load: &load::Config) {
    let mut group = c.benchmark_group(group);
    // A message costs the same however many there are.
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::ElementsAndBytes { elements: 1, bytes: load.size as u64 });
    group.bench_function(id, |b| b.iter_custom(|messages| timed(load, messages)));
}

fn connections_that_stay(c: &mut Criterion) {
    for (name, size, in_flight) in SIZES {
        for (way, depth) in [("ping-pong", 1), ("pipelined", in_flight)] {
            for connections in CONNECTIONS {
                for design in DESIGNS {
                    if design == Design::Iterative && connections > 1 {
                        continue;
                    }
                    let server = server(design);
                    // Until everyone has been served: the kernel takes connections in long before a
                    // thread has been started for each of them.
                    let warmup = Duration::from_micros(200) * connections;
                    let mut load = load(&server, Transport::Tcp);
                    (load.connections, load.warmup) = (connections, warmup);
                    (load.size, load.depth) = (size, depth);
                    let id = BenchmarkId::new(design.to_string(), connections);
                    bench(c, &format!("tcp {way} {name}"), id, &load);
                }
            }
        }
    }
}

fn connections_that_end(c: &mut Criterion) {
    for connections in [1, 10] {
        for design in DESIGNS {
            let server = server(design);
            let mut load = load(&server, Transport::Tcp);
            (load.connections, load.mode) = (connections, Mode::Churn);
            let id = BenchmarkId::new(design.to_string(), connections);
            bench(c, "tcp connect-exchange-close 64B", id, &load);
        }
    }
}

fn datagrams(c: &mut Criterion) {
    for (name, size, in_flight) in SIZES {
        for (way, depth) in [("ping-pong", 1), ("pipelined", in_flight)] {
            for design in DESIGNS {
                let server = server(design);
                let mut load = load(&server, Transport::Udp);
                (load.connections, load.size, load.depth) = (1, size, depth);
                bench(c, &format!("udp {way} {name}"), BenchmarkId::from_parameter(design), &load);
            }
        }
    }
}

/// What the iterative design does where it cannot be compared: nothing that could be timed, so this
/// proves it instead, once.
fn iterative(_: &mut Criterion) {
    let server = server(Design::Iterative);
    let timeout = Duration::from_millis(100);
    let mut load = load(&server, Transport::Tcp);
    load.connections = 10;
    (load.length, load.timeout) = (Length::Time(timeout), timeout);
    let report = run(&load);
    assert_eq!((report.opened, report.starved, report.errors.unanswered), (10, 9, 9));
    println!(
        "iterative, 10 connections that stay: {} of them open, {} of them without an answer; not compared\n",
        report.opened, report.starved
    );
}

fn quick() -> Criterion {
    evecho::raise_open_file_limit().expect("a process may raise its soft limit to its hard one");
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1_500))
}

criterion_group! {
    name = benches;
    config = quick();
    targets = iterative, connections_that_stay, connections_that_end, datagrams
}
criterion_main!(benches);
