//! One server under one trial: started, loaded, watched, ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::report::{Measurement, Silence};
use super::{Config, Contender, Trial};
use crate::client::Cancel;
use crate::client::load::{self, Length, Mode, Phase};
use crate::client::pattern;
use crate::client::process::{ServerProcess, Start, Usage};
use crate::client::target::Transport;

/// How long the idle connections are watched.
const SILENCE: Duration = Duration::from_millis(300);
/// A slow client is stuck when it could not send for so long.
const STUCK: Duration = Duration::from_millis(20);

/// What closes its connections as it dies is dead after so long.
const DYING: Duration = Duration::from_millis(100);

/// What came of it.
pub(super) enum TrialResult {
    Measured(Measurement),
    /// Why it could not be measured: a sentence without a full stop.
    Failed(String),
    /// The caller wanted no more.
    Stopped,
}

/// Puts a fresh process of the server under the trial.
pub(super) fn measure(
    config: &Config,
    contender: &Contender,
    trial: Trial,
    cancel: &Cancel,
) -> Result<TrialResult, load::Error> {
    let start = Start {
        supervisor: config.supervisor.clone(),
        transport: Transport::Tcp,
        patience: config.timeout,
        ..Start::default()
    };
    let mut server = match contender.command.start(&start) {
        Ok(server) => server,
        Err(error) => return Ok(TrialResult::Failed(error.sentence())),
    };
    let mut crowd = Crowd::default();
    if let Err(fault) = crowd.gather(trial, &server, config.timeout) {
        return Ok(TrialResult::Failed(blame(&mut server, fault)));
    }
    let load = load_of(config, trial, server.address());
    let mut watch = Watch { pid: server.pid(), begin: None, end: None };
    let report = load::run(&load, cancel, |progress| watch.look(progress));
    let report = match report {
        Ok(report) => report,
        Err(error @ load::Error::Unreachable { .. }) => {
            return Ok(TrialResult::Failed(blame(&mut server, error.to_string())));
        }
        Err(error) => return Err(error),
    };
    if report.stopped {
        return Ok(TrialResult::Stopped);
    }
    if let Some(fault) = fault_of(&report) {
        return Ok(TrialResult::Failed(blame(&mut server, fault)));
    }
    match watch.measurement(&report, crowd.silence) {
        Some(measurement) => Ok(TrialResult::Measured(measurement)),
        None => Ok(TrialResult::Failed(blame(&mut server, "its process is gone".to_owned()))),
    }
}

/// The load of a trial, beside what [`Crowd`] does.
fn load_of(config: &Config, trial: Trial, address: SocketAddr) -> load::Config {
    let mut load = load::Config::new(Transport::Tcp, address);
    load.size = config.size;
    load.length = Length::Time(config.time);
    load.warmup = config.warmup;
    load.timeout = config.timeout;
    load.connections = trial.connections();
    match trial {
        Trial::Connections { .. } | Trial::Slow { .. } => load.depth = config.depth,
        Trial::Idle { .. } => load.connections = 1,
        Trial::Short { .. } => load.mode = Mode::Churn,
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
        (Some(first), _) => Some(format!("fails: {first}")),
        (None, 0) => Some("answers nothing".to_owned()),
        (None, _) => None,
    }
}

/// It serves some, and others not.
fn answers(served: u32, of: u32) -> String {
    match served {
        0 => format!("answers none of {of} connections"),
        _ => format!("answers {served} of {of} connections, the others wait"),
    }
}

/// Puts the end of the process before what followed from it.
fn blame(server: &mut ServerProcess, fault: String) -> String {
    match (server.wait(DYING), server.last_words()) {
        (None, _) => fault,
        (Some(status), words) if words.is_empty() => format!("died ({status}): {fault}"),
        (Some(status), words) => format!("died ({status}), saying '{words}': {fault}"),
    }
}

/// Looks at the process where the load stands still, so that looking delays nothing.
struct Watch {
    pid: u32,
    begin: Option<(Usage, u64)>,
    end: Option<(Usage, u64)>,
}

impl Watch {
    fn look(&mut self, progress: &load::Progress) {
        let look = || Some((Usage::of(self.pid).ok()?, progress.messages));
        match progress.phase {
            Phase::Measuring if self.begin.is_none() => self.begin = look(),
            Phase::Over if self.end.is_none() => self.end = look(),
            _ => {}
        }
    }

    fn measurement(&self, report: &load::Report, silence: Option<Silence>) -> Option<Measurement> {
        let ((before, first), (after, last)) = (self.begin?, self.end?);
        let latency = report.latency?;
        let each = |what: f64| what / (last - first).max(1) as f64;
        let switched = switches(&after).saturating_sub(switches(&before));
        // Threads that have ended since have taken their count along.
        let is_known = report.config.mode != Mode::Churn;
        Some(Measurement {
            messages_per_second: report.rate,
            p50_us: latency.p50?.as_secs_f64() * 1e6,
            p99_us: latency.p99?.as_secs_f64() * 1e6,
            cpu_us_per_message: each(after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6),
            switches_per_message: is_known.then(|| each(switched as f64)),
            threads: after.threads as f64,
            resident_bytes: after.resident as f64,
            silence,
        })
    }
}

fn switches(usage: &Usage) -> u64 {
    usage.voluntary_switches + usage.involuntary_switches
}

/// Those who are there before the load comes.
#[derive(Default)]
struct Crowd {
    clients: Vec<TcpStream>,
    silence: Option<Silence>,
}

impl Crowd {
    fn gather(
        &mut self,
        trial: Trial,
        server: &ServerProcess,
        timeout: Duration,
    ) -> Result<(), String> {
        match trial {
            Trial::Connections { .. } | Trial::Short { .. } => Ok(()),
            Trial::Slow { .. } => {
                let client = stuck_client(server.address(), timeout);
                let client = client.map_err(|error| format!("the slow client: {error}"))?;
                self.clients.push(client);
                Ok(())
            }
            Trial::Idle { connections } => {
                for index in 0..connections {
                    let client = greeted_client(server.address(), index, timeout);
                    let client = client.map_err(|error| match error.kind() {
                        ErrorKind::WouldBlock | ErrorKind::TimedOut => answers(index, connections),
                        _ => format!("idle connection {}: {error}", index + 1),
                    })?;
                    self.clients.push(client);
                }
                self.silence =
                    Some(watch_silence(server.pid()).map_err(|error| error.to_string())?);
                Ok(())
            }
        }
    }
}

/// A client that sends until nothing more is taken, and never reads.
fn stuck_client(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect_timeout(&address, timeout)?;
    client.set_nonblocking(true)?;
    let begin = Instant::now();
    let mut sent = begin;
    // A server that takes everything is not held up, and a slow client cannot be played to it.
    while sent.elapsed() < STUCK && begin.elapsed() < timeout {
        match client.write(pattern::slice(0, 0, 64 << 10)) {
            Ok(_) => sent = Instant::now(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(client)
}

/// A client that has had one message answered.
fn greeted_client(address: SocketAddr, index: u32, timeout: Duration) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect_timeout(&address, timeout)?;
    client.set_read_timeout(Some(timeout))?;
    client.write_all(pattern::slice(index, 0, 64))?;
    let mut answer = [0; 64];
    client.read_exact(&mut answer)?;
    pattern::verify(index, 0, &answer).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(client)
}

/// What the server does while nobody says anything.
fn watch_silence(pid: u32) -> io::Result<Silence> {
    // What it still had to do about the last message is done.
    std::thread::sleep(STUCK);
    let before = Usage::of(pid)?;
    let begin = Instant::now();
    std::thread::sleep(SILENCE);
    let after = Usage::of(pid)?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Silence {
        cpu_percent: after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds * 100.0,
        switches_per_second: switches(&after).saturating_sub(switches(&before)) as f64 / seconds,
    })
}
