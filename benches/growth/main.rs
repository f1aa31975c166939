//! Growth: what 1, 10, …, 100,000 connections get and cost.
//!
//! `cargo bench --bench growth` measures; without `--bench`, as `cargo test --bench growth` runs it, it only
//! shows that everything works. Clients are processes of their own, as many as the limit of open files
//! demands, and so are the servers where that is to be had. Each measurement has a fresh server, and in
//! each round all servers take turns.
//!
//! It prints tables in Markdown; `--output` writes them, the figure, and all measurements as CSV and JSON.
#![allow(clippy::print_stderr, reason = "it says how far it is")]

mod clients;
mod kernel;
mod servers;
mod tables;
mod unread;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use clap::Parser;
use evecho::Transport;
use evecho::client::compare::{self, Measurement, Report, Scene, Spread, Trial};
use evecho::client::load::{self, Length, Mode};
use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use clients::Clients;
use kernel::{Grown, Kernel};
use servers::{Candidate, Processes, blame, evecho, usage};
use unread::Unread;

/// What growing numbers of connections get and cost
#[derive(Parser)]
struct Args {
    /// How many connections that talk: one measurement for each number
    #[arg(
        short,
        long,
        value_name = "NUMBER,...",
        value_delimiter = ',',
        default_value = "1,10,100,1000,10000,100000"
    )]
    connections: Vec<u32>,
    /// How many idle connections
    #[arg(
        short,
        long,
        value_name = "NUMBER,...",
        value_delimiter = ',',
        default_value = "10000,100000"
    )]
    idle: Vec<u32>,
    /// How many connections over which nothing is read
    #[arg(
        short,
        long,
        value_name = "NUMBER,...",
        value_delimiter = ',',
        default_value = "1,10,100,1000,10000"
    )]
    unread: Vec<u32>,
    /// Another echo server, of one process; may be given several times
    #[arg(long, value_name = "NAME=COMMAND", value_parser = servers::peer)]
    peer: Vec<Candidate>,
    /// How many rounds; in each of them the servers take turns
    #[arg(short, long, value_name = "NUMBER", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure so many milliseconds, or 100 µs for each connection, whichever is longer
    #[arg(short, long, value_name = "MS", default_value = "1000")]
    time: u32,
    /// Write growth.md, growth.svg, growth.csv and growth.json into this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Measure: set by cargo bench
    #[arg(long, hide = true)]
    bench: bool,
    /// Only show that it works
    #[arg(long, hide = true)]
    test: bool,
    /// Be a client of another of these
    #[arg(long, hide = true)]
    client: bool,
}

/// Descriptors that a process needs beside its connections.
const SPARE_FILES: u64 = 128;
/// How long a reply may take: with so many connections, each waits for all others.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long idle connections are watched, and how many of them ask then.
const SILENCE: Duration = Duration::from_secs(3);
const ASKED: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = Args::parse();
    evecho::raise_open_file_limit()?;
    if args.client {
        clients::run();
        return Ok(());
    }
    if args.test || !args.bench {
        (args.connections, args.idle, args.unread) = (vec![1, 10], vec![10], vec![1, 3]);
        (args.rounds, args.time) = (1, 20);
    }
    if let Some(directory) = &args.output {
        fs::create_dir_all(directory)?;
    }
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let mut growth = Growth::new(&args, u32::try_from(files.saturating_sub(SPARE_FILES))?);
    for &connections in &args.idle {
        growth.idle(connections);
    }
    for &connections in &args.unread {
        eprintln!("event-loop, {connections} connections over which nothing is read");
        growth.unread.push(unread::measure(&growth.candidates[0], connections));
    }
    for round in 0..args.rounds as usize {
        for &connections in &args.connections {
            growth.load(round, connections);
        }
    }
    let text = tables::all(&growth);
    println!("{text}");
    if let Some(directory) = &args.output {
        growth.write(&text, directory)?;
    }
    Ok(())
}

/// All that is measured.
#[derive(Serialize)]
struct Growth {
    command: Vec<String>,
    #[serde(flatten)]
    report: Report,
    idle: Vec<Idle>,
    unread: Vec<Unread>,
    /// Connections that a process has room for.
    room: u32,
    #[serde(skip)]
    candidates: Vec<Candidate>,
    #[serde(skip)]
    config: compare::Config,
}

/// What idle connections cost.
#[derive(Serialize)]
struct Idle {
    server: String,
    processes: u32,
    connections: u32,
    /// Why there is nothing of what follows.
    fault: Option<String>,
    #[serde(flatten)]
    cost: Option<Cost>,
}

#[derive(Serialize)]
struct Cost {
    /// Resident memory for each, in bytes.
    memory_bytes: f64,
    /// What the kernel has for the server's end of each, in bytes; only root may know.
    kernel_bytes: Option<f64>,
    /// Kernel caches that grew by an object or more for each, for both ends.
    caches: Vec<Grown>,
    /// The buffers of all of them together, in bytes.
    buffer_bytes: f64,
    /// CPU time of the server in a second of silence, in microseconds.
    silent_cpu_us: f64,
    /// How long answers took after the silence, in microseconds.
    answer_us: [f64; 3],
}

fn trial(connections: u32) -> Trial {
    Trial { scene: Scene::Connections, connections }
}

impl Growth {
    fn new(args: &Args, room: u32) -> Growth {
        let mut candidates = vec![
            evecho("event-loop", "--design event-loop", Processes::AsNeeded),
            evecho("2 event-loops", "--design event-loop", Processes::Exactly(2)),
            evecho("threaded", "--design threaded", Processes::One),
        ];
        candidates.extend(args.peer.iter().cloned());
        let contenders = candidates.iter().map(|candidate| candidate.contender.clone());
        let trials = args.connections.iter().map(|&connections| trial(connections)).collect();
        let mut config = compare::Config::new(contenders.collect(), trials);
        (config.rounds, config.time) = (args.rounds, Duration::from_millis(args.time.into()));
        let report = Report::new(&config);
        Growth {
            command: std::env::args().collect(),
            report,
            idle: Vec::new(),
            unread: Vec::new(),
            room,
            candidates,
            config,
        }
    }

    /// Puts every server under the load of so many connections.
    fn load(&mut self, round: usize, connections: u32) {
        for step in 0..self.candidates.len() {
            let candidate = &self.candidates[(round + step) % self.candidates.len()];
            let name = &candidate.contender.name;
            let cell = self.report.cell(name, trial(connections));
            if cell.fault.is_some() {
                continue;
            }
            eprintln!("round {}: {name}, {connections} connections", round + 1);
            match load(candidate, &self.config, connections, self.room) {
                Ok(measurement) => cell.rounds.push(measurement),
                Err(fault) => cell.fault = Some(fault),
            }
        }
    }

    /// Looks at every server with so many idle connections.
    fn idle(&mut self, connections: u32) {
        for candidate in &self.candidates {
            let server = candidate.contender.name.clone();
            eprintln!("{server}, {connections} idle connections");
            let processes = candidate.processes.for_connections(connections, self.room);
            let cost = processes.clone().and_then(|processes| {
                idle(candidate, &self.config, connections, processes, self.room)
            });
            let (cost, fault) = match cost {
                Ok(cost) => (Some(cost), None),
                Err(fault) => (None, Some(fault)),
            };
            self.idle.push(Idle {
                server,
                processes: processes.unwrap_or(0),
                connections,
                fault,
                cost,
            });
        }
    }

    fn write(&self, text: &str, directory: &Path) -> Result<(), Box<dyn Error>> {
        fs::write(directory.join("growth.md"), text)?;
        fs::write(directory.join("growth.csv"), self.report.csv())?;
        fs::write(directory.join("growth.json"), serde_json::to_string_pretty(self)? + "\n")?;
        if let Some(svg) = compare::svg(&self.report) {
            fs::write(directory.join("growth.svg"), svg)?;
        }
        Ok(())
    }
}

/// Loads a fresh server over so many connections.
fn load(
    candidate: &Candidate,
    config: &compare::Config,
    connections: u32,
    room: u32,
) -> Result<Measurement, String> {
    let processes = candidate.processes.for_connections(connections, room)?;
    let server = candidate.start(processes)?;
    let mut load = load::Config::new(Transport::Tcp, server.address());
    // A round of all connections takes longer, the more there are.
    let time = config.time.max(Duration::from_micros(100) * connections);
    (load.connections, load.size, load.timeout) = (connections, config.size, TIMEOUT);
    (load.length, load.warmup) = (Length::Time(time), time / 2);
    let measure = || -> Result<Measurement, String> {
        let mut clients = Clients::start(&load, room)?;
        let before = usage(&server)?;
        clients.go_on()?;
        let messages = clients.await_done()?;
        let after = usage(&server)?;
        clients.go_on()?;
        let report = clients.report()?;
        if !report.is_clean() {
            let starved = format!("{} of {connections} connections had no answer", report.starved);
            return Err(report.first_error.unwrap_or(starved));
        }
        let each = |what: f64| what / messages as f64;
        let switches = |usage: &evecho::client::process::Usage| {
            usage.voluntary_switches + usage.involuntary_switches
        };
        let micros =
            |time: Option<Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6);
        let mut measurement = Measurement::default();
        measurement.messages_per_second = report.rate;
        measurement.p50_us = micros(report.latency.and_then(|latency| latency.p50));
        measurement.p99_us = micros(report.latency.and_then(|latency| latency.p99));
        measurement.cpu_us_per_message =
            each(after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6);
        measurement.switches_per_message =
            Some(each(switches(&after).saturating_sub(switches(&before)) as f64));
        measurement.threads = after.threads as f64;
        let memory = after.memory();
        (measurement.memory_bytes, measurement.memory_kind) = (memory.bytes as f64, memory.kind);
        measurement.processes = memory.processes as f64;
        Ok(measurement)
    };
    measure().map_err(|fault| blame(&server, fault))
}

/// Opens so many connections to a fresh server, which have one message answered each, and looks at what
/// they cost while nobody says anything, and at the first answers after that.
fn idle(
    candidate: &Candidate,
    config: &compare::Config,
    connections: u32,
    processes: u32,
    room: u32,
) -> Result<Cost, String> {
    let server = candidate.start(processes)?;
    let mut load = load::Config::new(Transport::Tcp, server.address());
    (load.connections, load.size, load.timeout) = (connections, config.size, TIMEOUT);
    load.mode = Mode::Idle;
    let measure = || -> Result<Cost, String> {
        let (memory, kernel) = (usage(&server)?.memory(), Kernel::now());
        let mut clients = Clients::start(&load, room)?;
        // What follows from the last message is over.
        thread::sleep(SILENCE / 10);
        let (begin, before) = (Instant::now(), usage(&server)?);
        thread::sleep(SILENCE);
        let cpu = usage(&server)?.cpu.saturating_sub(before.cpu).as_secs_f64();
        let seconds = begin.elapsed().as_secs_f64();
        let after = Kernel::now();
        let answers = clients.ask(ASKED)?.into_iter().map(|time| time.as_secs_f64() * 1e6);
        let answers = Spread::of(answers).ok_or("nobody was asked")?;
        let grown = before.memory().bytes as f64 - memory.bytes as f64;
        Ok(Cost {
            memory_bytes: grown / f64::from(connections),
            kernel_bytes: after.server_end_since(&kernel, connections),
            caches: after.grown_since(&kernel, connections),
            buffer_bytes: kernel::tcp_buffers(),
            silent_cpu_us: cpu / seconds * 1e6,
            answer_us: [answers.low, answers.median, answers.high],
        })
    };
    measure().map_err(|fault| blame(&server, fault))
}
