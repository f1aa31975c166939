//! The load engine: keeps an echo server busy, verifies every byte that comes back, and measures.
//!
//! [`run()`] takes a plain [`Config`] and ends in a plain [`Report`]. It prints nothing, takes no
//! signal and keeps no state, so that the command line, benches and tests all use it.
//!
//! ```
//! use evecho::Transport;
//! use evecho::client::Cancel;
//! use evecho::client::load::{self, Config, Length};
//!
//! let server = evecho::Server::bind(evecho::Config::loopback())?.spawn()?;
//! let mut config = Config::new(Transport::Tcp, server.local_addrs()[0]);
//! config.connections = 4;
//! config.length = Length::Messages(100);
//! let report = load::run(&config, &Cancel::default(), |_progress| {})?;
//! assert_eq!((report.messages, report.errors.total()), (100, 0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The modules: `config` what is asked for, `worker` the phases of a run (open, warm up, measure,
//! drain) and its event loop, one for each thread, `crew` what the threads share, `run` what a worker
//! shares with the ways to keep a server busy, `tcp`, `churn` and `udp`, `schedule` when messages
//! are due, `socket` a connection that sends its messages (in `frames` or as they are) and checks
//! their echoes, `cost` what all this costs the client and the server, `watch` a look at the latter, `stream` what is
//! wrong with an echo over TCP, `faults` the kinds of that, `ports` how many local ports a run takes,
//! `report` what came of it, `origin` when and where, `series` how it went over time, `figure` its
//! drawing. Over UDP, the tracker that `ping` uses finds what is wrong.

mod churn;
mod config;
mod cost;
mod crew;
mod faults;
mod figure;
mod frames;
mod origin;
mod ports;
mod report;
mod run;
mod schedule;
mod series;
mod socket;
mod stream;
pub mod sweep;
mod tcp;
mod udp;
mod watch;
mod worker;

use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

pub use super::pattern::Pattern;
pub use config::{Config, Length, MOST_PER_SOURCE, Mode};
pub use cost::{ClientUsage, ServerUsage};
pub use faults::Errors;
pub(super) use figure::{NUMBERS, TIMES};
pub use figure::{svg, sweep_svg};
pub use origin::Origin;
pub use ports::Ports;
pub use report::{Interval, Latency, Part, Phase, Progress, Report};
pub(super) use socket::check_room;
pub use watch::Watch;

use super::Cancel;
use super::histogram::Histogram;
use super::{socket as sockets, target};
use crate::error::Transport;
use crate::units;
use config::Share;
use crew::Crew;
use report::{Counts, per_second};
use run::Run;
use worker::{Listener, Worker};

/// Puts load on a server as `config` asks and reports what came of it.
///
/// `progress` is called when a phase begins, about ten times a second, and once for each interval.
/// After `cancel` the run ends at once, and what is still out then is no fault.
///
/// A host that wants more connections than the soft limit of open files allows raises that first,
/// with [`raise_open_file_limit`](crate::raise_open_file_limit).
///
/// # Errors
///
/// When the configuration does not fit together, the limit of open files is too low, the server
/// cannot be reached or the system refuses a socket. A fault of the server once the run is under
/// way is not an error: [`Report::errors`] counts it. Nor is the lack of local ports, once something
/// is measured: [`Report::ended`] tells of it.
pub fn run(
    config: &Config,
    cancel: &Cancel,
    mut progress: impl FnMut(&Progress),
) -> Result<Report, Error> {
    config.check()?;
    check_room(config.connections)?;
    let config = &Config { sources: config.effective_sources(), ..config.clone() };
    let shares: Vec<Share> = (0..config.threads).map(|thread| config.share(thread)).collect();
    let crew = Crew::new(config, cancel, shares.len());
    let mut runs = thread::scope(|scope| {
        let (ours, others) = shares.split_first().expect("there is at least one thread");
        let crew = &crew;
        let start = |share| {
            let work = move || work(share, crew, None);
            let thread = thread::Builder::new().spawn_scoped(scope, work);
            let what = "start a thread for its share of the connections";
            // Those that run already do not wait for it.
            thread.inspect_err(|_| crew.fail()).map_err(|error| Error::System { what, error })
        };
        let others = others.iter().map(start).collect::<Result<Vec<_>, Error>>()?;
        let ours = work(ours, crew, Some(&mut progress));
        let others =
            others.into_iter().map(|other| other.join().unwrap_or_else(|p| resume_unwind(p)));
        std::iter::once(ours).chain(others).collect::<Result<Vec<Run>, Error>>()
    })?;
    let ended = runs.iter_mut().find_map(|run| run.ended.take());
    let report = conclude(crew, runs, &mut progress);
    match ended {
        Some(error) if report.messages == 0 => Err(error),
        Some(error) => Ok(Report { ended: Some(error.to_string()), ..report }),
        None => Ok(report),
    }
}

/// The part of one thread.
fn work<'r, 'a>(
    share: &'r Share,
    crew: &'a Crew<'a>,
    progress: Option<Listener<'a>>,
) -> Result<Run<'r>, Error> {
    let config = &share.config;
    let _guard = FailAtPanic(crew);
    let run = Worker::new(share, crew, progress).and_then(|worker| {
        match (config.transport, config.mode) {
            (Transport::Udp, _) => worker.measure(udp::Udp::new(config, crew.cancel)),
            (_, Mode::Churn) => worker.measure(churn::Churn::new(share)),
            (_, Mode::Idle) => worker.idle(tcp::Tcp::new(config)),
            (_, Mode::PingPong | Mode::Stream) => worker.measure(tcp::Tcp::new(config)),
        }
    });
    run.inspect_err(|_| crew.fail())
}

/// Keeps the others from waiting for a thread that has panicked.
struct FailAtPanic<'a>(&'a Crew<'a>);

impl Drop for FailAtPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail();
        }
    }
}

/// Adds up what the threads have done, and reports the last interval.
fn conclude(crew: Crew<'_>, runs: Vec<Run<'_>>, progress: &mut dyn FnMut(&Progress)) -> Report {
    let (start, duration) = measured(&runs);
    let since_start = Duration::from_nanos(crew.now().saturating_sub(start));
    let began = UNIX_EPOCH.elapsed().unwrap_or_default().saturating_sub(since_start);
    crew.report(progress, Phase::Over, duration);
    let config = used(crew.config);
    let ports = crew.ports();
    let (total, intervals) = crew.into_total();
    // In churn a connection has one message.
    let lasting = runs.iter().filter(|_| config.mode != Mode::Churn);
    let by_connection = || lasting.clone().flat_map(|run| &run.by_connection).copied();
    let share = |messages: Option<u64>| messages.map(|messages| per_second(messages, duration));
    let client = runs.iter().fold(ClientUsage::default(), |all, run| all.and(&run.client));
    let mut errors = Errors::default();
    runs.iter().for_each(|run| errors.add(&run.faults.errors));
    let sum = |number: fn(&Run<'_>) -> u64| runs.iter().map(number).sum();
    let stopped = runs.iter().any(|run| run.stopped);
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runs: vec![Origin::new(&config, began, duration)],
        opened: runs.iter().map(|run| run.opened).sum(),
        starved: by_connection().filter(|&messages| messages == 0).count() as u32,
        slowest: share(by_connection().min()),
        fastest: share(by_connection().max()),
        duration,
        messages: total.messages,
        bytes: total.messages * config.size as u64,
        rate: per_second(total.messages, duration),
        latency: Latency::of(&total.times, total.unsent.saturating_add(errors.without_reply())),
        connecting: part(&runs, |run| &run.connecting),
        exchange: part(&runs, |run| &run.exchange),
        send_delay: part(&runs, |run| &run.send_delay),
        bound_met: sum(|run| run.bound_met),
        replaced: sum(|run| run.replaced),
        blocked: sum(|run| run.blocked),
        ports,
        ended: shortfall(&config, duration, &total, &errors).filter(|_| !stopped),
        errors,
        client: Some(client),
        server: None,
        stopped,
        first_error: runs.into_iter().find_map(|run| run.faults.first),
        unsent: total.unsent,
        intervals,
        times: total.times,
        config,
    }
}

/// Times of all threads together.
fn part<'r, 'a>(runs: &'r [Run<'a>], times: fn(&'r Run<'a>) -> &'r Histogram) -> Option<Part> {
    let mut all = Histogram::default();
    runs.iter().for_each(|run| all.add(times(run)));
    Part::of(all)
}

/// The configuration, with the source address that the system has chosen where none was given.
fn used(config: &Config) -> Config {
    let mut config = config.clone();
    if config.sources.is_empty() {
        config.sources.extend(sockets::source_towards(config.address));
    }
    config
}

/// When the first thread began to measure, and for how long any of them did.
fn measured(runs: &[Run<'_>]) -> (u64, Duration) {
    let ranges = || runs.iter().map(|run| run.window.range());
    let start = ranges().map(|range| range.start).min().unwrap_or(0);
    let end = ranges().map(|range| range.end).max().unwrap_or(0);
    (start, Duration::from_nanos(end.saturating_sub(start)))
}

/// Why a run that was not stopped ended before all that was asked for, if it did.
fn shortfall(
    config: &Config,
    duration: Duration,
    total: &Counts,
    errors: &Errors,
) -> Option<String> {
    let asked = match config.length {
        // An idle run is measured until its last message came back.
        Length::Time(time) => {
            (duration < time && config.mode != Mode::Idle).then(|| units::time(time).to_string())
        }
        // Each that was begun has come back, or is a fault.
        Length::Messages(count) => (total.messages.saturating_add(errors.total()) < count)
            .then(|| units::count(count, "message").to_string()),
    };
    let why = match errors.closed {
        0 => "nothing came back any more",
        _ => "the server had closed its connections",
    };
    asked.map(|asked| match total.messages {
        0 => format!("the load ended before a message came back whole: {why}"),
        _ => format!("the load ended early, after {} of {asked}: {why}", units::time(duration)),
    })
}

/// Why there is no report: one sentence that says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// What was asked for does not fit together: the rule that it breaks.
    Invalid(&'static str),
    /// The reports to merge are of different loads: what they differ in.
    Different(&'static str),
    /// The limit of open files is too low for the connections.
    TooManyConnections {
        /// How many were asked for.
        asked: u32,
        /// How many the soft limit of open files allows.
        allowed: u64,
        /// How many the hard limit allows.
        possible: u64,
    },
    /// A run is in two of the reports to merge.
    Twice {
        /// The machine that it ran on.
        host: String,
    },
    /// The server cannot be reached.
    Unreachable {
        /// How it was tried.
        error: target::Error,
        /// How many connections had been opened before.
        opened: u32,
        /// How many were asked for.
        asked: u32,
        /// A sentence about the first wrong bytes that came before, if some did.
        wrong: Option<String>,
    },
    /// The system refused something else.
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(rule) => f.write_str(rule),
            Self::Different(what) => write!(
                f,
                "the reports are of different loads, which cannot be added: they differ in {what}"
            ),
            Self::Twice { host } => write!(
                f,
                "a run on {host} is in two of the reports, and would count twice: give each once"
            ),
            Self::TooManyConnections { asked, allowed, possible } => {
                let limit = if allowed < possible { "soft" } else { "hard" };
                write!(
                    f,
                    "{asked} connections are over the limit of open files, which leaves room for \
                     {allowed}; raise the {limit} limit, or ask for fewer"
                )
            }
            Self::Unreachable { error, wrong: Some(wrong), .. } => {
                write!(f, "{wrong}; then: {error}")
            }
            Self::Unreachable { error, opened: 0, .. } => error.fmt(f),
            Self::Unreachable { error, opened, asked, .. } => {
                write!(f, "only {opened} of {asked} connections opened: {error}")
            }
            Self::System { what, .. } => write!(f, "cannot {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { error, .. } => Some(error),
            _ => None,
        }
    }
}
