//! One server under one trial: started, loaded, watched, ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::report::{Measurement, Silence};
use super::{Config, Contender, Scene, Trial};
use crate::client::Cancel;
use crate::client::cancel::Deadline;
use crate::client::check::remark_on_nagle;
use crate::client::load::{self, Length, Mode, Watch};
use crate::client::pattern::Alphabet::{self, Letters};
use crate::client::process::{ServerProcess, Start, StartError, Usage};
use crate::client::socket;
use crate::client::target::FULL_QUEUE;
use crate::error::Transport;
use crate::sys::socket::{is_not_now, listen_overflows};
use crate::units::{count, grouped};

/// How long the idle connections are watched.
const SILENCE: Duration = Duration::from_millis(300);
/// A slow client is stuck when it could not send for so long.
const STUCK: Duration = Duration::from_millis(20);

/// A median so long, in microseconds, may be that of a delayed acknowledgement, which takes 40 ms.
const DELAYED: f64 = 20e3;

/// A server that closes its connections as it dies is dead after this time, also on a busy machine.
const DYING: Duration = Duration::from_secs(1);

/// What was measured, or why it could not be: a sentence without a full stop, which says nothing
/// about the server when the run was cancelled.
pub(super) type TrialResult = Result<Measurement, String>;

/// Puts a fresh process of the server under the trial.
pub(super) fn measure(
    config: &Config,
    contender: &Contender,
    trial: Trial,
    cancel: &Cancel,
) -> Result<TrialResult, load::Error> {
    let server = match start(config, contender, cancel) {
        Ok(server) => server,
        Err(error) => return Ok(Err(error.to_string())),
    };
    match measure_server(config, &server, trial, cancel) {
        Ok(measurement) => Ok(Ok(measurement)),
        Err(Fault::OfServer(sentence)) => Ok(Err(sentence)),
        Err(Fault::OrEnd(sentence)) => Ok(Err(blame(&server, sentence))),
        Err(Fault::OfLoad(error)) => Err(error),
    }
}

/// Why a server was not measured.
enum Fault {
    /// What it did wrong. Of what comes after that, clients that leave are the cause.
    OfServer(String),
    /// The same, and the end of its process may be behind it.
    OrEnd(String),
    /// The load could not be put on it.
    OfLoad(load::Error),
}

pub(super) fn start(
    config: &Config,
    contender: &Contender,
    cancel: &Cancel,
) -> Result<ServerProcess, StartError> {
    contender.command.start(&Start {
        supervisor: config.supervisor.clone(),
        transport: Some(config.transport),
        patience: config.timeout,
        cancel: cancel.clone(),
        ..Start::default()
    })
}

fn measure_server(
    config: &Config,
    server: &ServerProcess,
    trial: Trial,
    cancel: &Cancel,
) -> Result<Measurement, Fault> {
    let (_clients, silence) = crowd(trial, server, config, cancel)?;
    let load = load_of(config, trial, server.address());
    let overflows = listen_overflows();
    let watch = Watch::new(server.pid()).or_else(|error| Watch::blind(server.pid(), error));
    let gone = || Fault::OrEnd("its process is gone".to_owned());
    let mut watch = watch.map_err(|_| gone())?;
    let report = load::run(&load, cancel, |progress| watch.look(progress)).map_err(unreached)?;
    if report.stopped {
        return Err(Fault::OrEnd(report.ended.unwrap_or_else(|| "stopped".to_owned())));
    }
    if let Some(fault) = fault_of(&report) {
        let is_full = trial.scene == Scene::Short && listen_overflows() > overflows;
        let sentence = if is_full { format!("{fault}; {FULL_QUEUE}") } else { fault };
        let may_be_end = report.errors.closed > 0 || report.errors.failed > 0;
        return Err(if may_be_end { Fault::OrEnd } else { Fault::OfServer }(sentence));
    }
    let mut measurement = measurement(&watch, &report, silence).ok_or_else(gone)?;
    if config.transport == Transport::Tcp && measurement.p50_us >= DELAYED {
        let deadline = cancel.within(config.timeout);
        let remark = remark_on_nagle(server.address(), config.size, deadline);
        measurement.remark = remark.ok().flatten();
    }
    Ok(measurement)
}

/// Why no load was put on a server.
fn unreached(error: load::Error) -> Fault {
    let load::Error::Unreachable { error, opened, asked, wrong } = error else {
        return Fault::OfLoad(error);
    };
    let is_late = error.is_timeout();
    let sentence = match wrong {
        Some(wrong) => fails(&wrong),
        None if is_late => answers(opened, asked),
        None => error.fact().to_string(),
    };
    if is_late { Fault::OfServer(sentence) } else { Fault::OrEnd(sentence) }
}

/// The load of a trial, beside what its [`crowd`] does.
fn load_of(config: &Config, trial: Trial, address: SocketAddr) -> load::Config {
    let mut load = load::Config::new(config.transport, address);
    load.size = config.size;
    load.upper = config.upper;
    load.length = Length::Time(config.time);
    load.warmup = config.warmup;
    load.timeout = config.timeout;
    load.connections = trial.connections;
    load.greet = config.transport == Transport::Tcp && trial.scene != Scene::Short;
    match trial.scene {
        Scene::Connections | Scene::Slow => load.depth = config.depth,
        Scene::Idle => load.connections = 1,
        Scene::Short => load.mode = Mode::Churn,
    }
    load
}

/// What was wrong, if anything was.
fn fault_of(report: &load::Report) -> Option<String> {
    let errors = &report.errors;
    let opened = report.opened;
    // Nothing wrong with what came back, but for some there was nothing.
    if errors.total() == errors.unanswered && report.starved > 0 && errors.total() > 0 {
        return Some(answers(opened.saturating_sub(report.starved), opened));
    }
    match (&report.first_error, report.messages) {
        (Some(first), _) => Some(fails(first)),
        (None, 0) => Some("answers nothing".to_owned()),
        (None, _) => None,
    }
}

/// What came back was wrong, and how.
fn fails(first: &str) -> String {
    format!("fails: {first}")
}

/// It serves some, and others not.
fn answers(served: u32, of: u32) -> String {
    match served {
        0 => format!("answers none of {}", count(of, "connection")),
        _ => format!(
            "answers {} of {}, the others wait",
            grouped(served.into()),
            count(of, "connection")
        ),
    }
}

/// Puts the end of the process before what followed from it.
fn blame(server: &ServerProcess, fault: String) -> String {
    match (server.wait(DYING), server.last_words()) {
        (None, _) => fault,
        (Some(status), words) if words.is_empty() => format!("died ({status}): {fault}"),
        (Some(status), words) => format!("died ({status}), saying '{words}': {fault}"),
    }
}

fn measurement(
    watch: &Watch,
    report: &load::Report,
    silence: Option<Silence>,
) -> Option<Measurement> {
    let (begin, end) = watch.looks()?;
    let (before, after) = (begin.usage, end.usage);
    let (latency, memory) = (report.latency?, after.memory());
    let each = |what: f64| what / (end.messages - begin.messages).max(1) as f64;
    let switched = switches(&after).saturating_sub(switches(&before));
    // Threads that have ended since have taken their count along.
    let is_known = report.config.mode != Mode::Churn && after.processes > 0;
    Some(Measurement {
        messages_per_second: report.rate,
        p50_us: latency.p50?.as_secs_f64() * 1e6,
        p99_us: latency.p99?.as_secs_f64() * 1e6,
        cpu_us_per_message: each(after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6),
        switches_per_message: is_known.then(|| each(switched as f64)),
        threads: after.threads as f64,
        memory_bytes: memory.bytes as f64,
        memory_kind: memory.kind,
        processes: after.processes as f64,
        silence,
        remark: None,
    })
}

fn switches(usage: &Usage) -> u64 {
    usage.voluntary_switches + usage.involuntary_switches
}

/// The connections that are there before the load comes, and what the server does while they are silent.
fn crowd(
    trial: Trial,
    server: &ServerProcess,
    config: &Config,
    cancel: &Cancel,
) -> Result<(Vec<TcpStream>, Option<Silence>), Fault> {
    let (address, connections) = (server.address(), trial.connections);
    match trial.scene {
        Scene::Connections | Scene::Short => Ok((vec![], None)),
        Scene::Slow => {
            let client = stuck_client(address, cancel.within(config.timeout));
            Ok((
                vec![client.map_err(|error| Fault::OrEnd(format!("the slow client: {error}")))?],
                None,
            ))
        }
        Scene::Idle => {
            let clients = (0..connections).map(|index| {
                let deadline = cancel.within(config.timeout);
                let client = socket::tcp(address, None, deadline).and_then(|mut client| {
                    exchange(&mut client, index, config.replies(), deadline).map(|()| client)
                });
                client.map_err(|error| match error.kind() {
                    ErrorKind::TimedOut => Fault::OfServer(answers(index, connections)),
                    _ => Fault::OrEnd(format!("idle connection {}: {error}", index + 1)),
                })
            });
            let clients = clients.collect::<Result<_, _>>()?;
            match watch_silence(server.pid(), cancel) {
                Err(error) if error.kind() == ErrorKind::Unsupported => Ok((clients, None)),
                Err(error) => Err(Fault::OrEnd(error.to_string())),
                Ok(silence) => Ok((clients, Some(silence))),
            }
        }
    }
}

/// A client that sends until nothing more is taken, and never reads.
fn stuck_client(address: SocketAddr, deadline: Deadline<'_>) -> io::Result<TcpStream> {
    let mut client = socket::tcp(address, None, deadline)?;
    // A server that takes everything is not held up, and a slow client cannot be played to it.
    while !deadline.is_over() && deadline.sooner(STUCK).is_ready(&client, PollFlags::POLLOUT)? {
        match client.write(Letters.slice(0, 0, 64 << 10)) {
            Err(error) if !is_not_now(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(client)
}

/// Has one message answered.
pub(super) fn exchange(
    client: &mut TcpStream,
    index: u32,
    replies: Alphabet,
    deadline: Deadline<'_>,
) -> io::Result<()> {
    client.write_all(Letters.slice(index, 0, 64))?;
    let mut answer = Vec::with_capacity(64);
    let read = deadline.reader(&*client).take(64).read_to_end(&mut answer);
    // Wrong bytes say more than the lack of others.
    replies.verify(index, 0, &answer).map_err(io::Error::other)?;
    match read? {
        64 => Ok(()),
        _ => Err(ErrorKind::UnexpectedEof.into()),
    }
}

/// What the server does while no client says anything.
fn watch_silence(pid: u32, cancel: &Cancel) -> io::Result<Silence> {
    // What it still had to do about the last message is done.
    cancel.sleep(STUCK);
    let before = Usage::of(pid)?;
    let begin = Instant::now();
    cancel.sleep(SILENCE);
    let after = Usage::of(pid)?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Silence {
        cpu_percent: after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds * 100.0,
        switches_per_second: switches(&after).saturating_sub(switches(&before)) as f64 / seconds,
    })
}
