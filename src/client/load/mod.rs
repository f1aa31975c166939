//! The load engine: keeps an echo server busy, verifies every byte that comes back, and measures.
//!
//! [`run()`] takes a plain [`Config`] and ends in a plain [`Report`]. It prints nothing, takes no
//! signal and keeps no state, so that the command line, benches and tests all use it.
//!
//! ```
//! use std::io::{self, Read, Write};
//! use std::net::TcpListener;
//! use evecho::client::Cancel;
//! use evecho::client::load::{self, Config, Length};
//! use evecho::client::target::Transport;
//!
//! // A server for one connection.
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! std::thread::spawn(move || -> io::Result<u64> {
//!     let (mut stream, _) = listener.accept()?;
//!     io::copy(&mut stream.try_clone()?, &mut stream)
//! });
//!
//! let mut config = Config::new(Transport::Tcp, address);
//! config.connections = 1;
//! config.length = Length::Messages(100);
//! let report = load::run(&config, &Cancel::default(), |_progress| {})?;
//! assert_eq!((report.messages, report.errors.total()), (100, 0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The modules: `config` what is asked for, `worker` the phases of a run (open, warm up, measure,
//! drain) and its event loop, one for each thread, `crew` what the threads share, `run` what a worker
//! shares with the ways to keep a server busy, `tcp`, `churn` and `udp`, `schedule` when messages
//! are due in the open loop, `stream` and `datagram` what is wrong with an echo, `report` what came
//! of it.

mod churn;
mod config;
mod counts;
mod crew;
mod datagram;
mod faults;
mod report;
mod run;
mod schedule;
mod socket;
mod stream;
mod tcp;
mod udp;
mod worker;

use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

pub use config::{Config, Invalid, Length, MOST_PER_SOURCE, Mode};
pub use faults::Errors;
pub use report::{Interval, Latency, MergeError, Phase, Progress, Report};
pub(super) use socket::check_room;

use super::Cancel;
use super::target::{self, Transport};
use config::Share;
use crew::Crew;
use report::per_second;
use worker::{Listener, Part, Worker};

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
/// way is not an error: [`Report::errors`] counts it.
pub fn run(
    config: &Config,
    cancel: &Cancel,
    mut progress: impl FnMut(&Progress),
) -> Result<Report, Error> {
    config.check()?;
    check_room(config.connections)?;
    let shares: Vec<Share> = (0..config.threads).map(|thread| config.share(thread)).collect();
    let crew = Crew::new(config, cancel, shares.len());
    let parts = thread::scope(|scope| {
        let (ours, others) = shares.split_first().expect("there is at least one thread");
        let others: Vec<_> =
            others.iter().map(|share| scope.spawn(|| work(share, &crew, None))).collect();
        let ours = work(ours, &crew, Some(&mut progress));
        let others =
            others.into_iter().map(|other| other.join().unwrap_or_else(|p| resume_unwind(p)));
        std::iter::once(ours).chain(others).collect::<Result<Vec<Part>, Error>>()
    })?;
    Ok(conclude(crew, parts, &mut progress))
}

/// The part of one thread.
fn work<'a>(
    share: &'a Share,
    crew: &'a Crew<'a>,
    progress: Option<Listener<'a>>,
) -> Result<Part, Error> {
    let (config, first) = (&share.config, share.first);
    let _guard = FailAtPanic(crew);
    let part = Worker::new(share, crew, progress).and_then(|worker| {
        match (config.transport, config.mode) {
            (Transport::Udp, _) => worker.measure(udp::Udp::new(config, first)),
            (_, Mode::Churn) => worker.measure(churn::Churn::new(config, first)),
            (_, Mode::Idle) => worker.idle(tcp::Tcp::new(config, first)),
            (_, Mode::PingPong | Mode::Stream) => worker.measure(tcp::Tcp::new(config, first)),
        }
    });
    part.inspect_err(|_| crew.fail())
}

/// Nobody waits for a thread that has panicked.
struct FailAtPanic<'a>(&'a Crew<'a>);

impl Drop for FailAtPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.fail();
        }
    }
}

/// Adds up what the threads have done, and tells of the last interval.
fn conclude(crew: Crew<'_>, parts: Vec<Part>, progress: &mut dyn FnMut(&Progress)) -> Report {
    let start = parts.iter().map(|part| part.start).min().unwrap_or(0);
    let end = parts.iter().map(|part| part.end).max().unwrap_or(0);
    let duration = Duration::from_nanos(end.saturating_sub(start));
    let elapsed = Duration::from_nanos(crew.now());
    worker::report(&crew, progress, Phase::Over, elapsed, duration);
    let config = crew.config.clone();
    let total = crew.into_total();
    let by_connection = || parts.iter().flat_map(|part| &part.by_connection).copied();
    let keeps_connections = config.mode != Mode::Churn;
    let share = |messages: Option<u64>| {
        messages.filter(|_| keeps_connections).map(|messages| per_second(messages, duration))
    };
    let mut errors = Errors::default();
    parts.iter().for_each(|part| errors.add(&part.errors));
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runs: 1,
        opened: parts.iter().map(|part| part.opened).sum(),
        starved: by_connection().filter(|&messages| keeps_connections && messages == 0).count()
            as u32,
        slowest: share(by_connection().min()),
        fastest: share(by_connection().max()),
        duration,
        messages: total.messages,
        bytes: total.messages * config.size as u64,
        rate: per_second(total.messages, duration),
        latency: Latency::of(&total.times, total.unsent),
        errors,
        stopped: parts.iter().any(|part| part.stopped),
        first_error: parts.into_iter().find_map(|part| part.first_error),
        unsent: total.unsent,
        times: total.times,
        config,
    }
}

/// Why there is no report: one sentence that says what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The configuration does not fit together.
    Invalid(Invalid),
    /// The system does not let the process have so many sockets.
    TooManyConnections {
        /// How many were asked for.
        asked: u32,
        /// How many the soft limit of open files allows.
        allowed: u64,
        /// How many the hard limit allows.
        possible: u64,
    },
    /// The server cannot be reached.
    Unreachable {
        /// How it was tried.
        error: target::Error,
        /// How many connections had been opened before.
        opened: u32,
        /// How many were asked for.
        asked: u32,
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
            Self::Invalid(invalid) => invalid.fmt(f),
            Self::TooManyConnections { asked, allowed, possible } => {
                let limit = if allowed < possible { "soft" } else { "hard" };
                write!(
                    f,
                    "{asked} connections are over the limit of open files, which leaves room for \
                     {allowed}; raise the {limit} limit, or ask for fewer"
                )
            }
            Self::Unreachable { error, opened: 0, .. } => error.fmt(f),
            Self::Unreachable { error, opened, asked } => {
                write!(f, "only {opened} of {asked} connections opened: {error}")
            }
            Self::System { what, .. } => write!(f, "cannot {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Invalid(_) | Self::TooManyConnections { .. } => None,
            // The sentence is that of the cause.
            Self::Unreachable { error, .. } => error.source(),
            Self::System { error, .. } => Some(error),
        }
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}
