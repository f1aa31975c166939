//! The load engine: keeps an echo server busy from one thread, verifies every byte that comes
//! back, and measures.
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
//! drain) and its event loop, `run` what it shares with the ways to keep a server busy, `tcp`,
//! `churn` and `udp`, `schedule` when messages are due in the open loop, `stream` and `datagram`
//! what is wrong with an echo, `report` what came of it.

mod churn;
mod config;
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

pub use config::{Config, Invalid, Length, Mode};
pub use faults::Errors;
pub use report::{Latency, Phase, Progress, Report};
pub(super) use socket::check_room;

use super::target::{self, Transport};
use super::{Cancel, histogram::nanoseconds};

/// Puts load on a server as `config` asks and reports what came of it.
///
/// `progress` is called when a phase begins and about ten times a second. After `cancel` the run
/// ends at once, and what is still out then is no fault.
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
    let worker = worker::Worker::new(config, cancel, &mut progress)?;
    match (config.transport, config.mode) {
        (Transport::Udp, _) => worker.measure(udp::Udp::new(config)),
        (_, Mode::Churn) => worker.measure(churn::Churn::new(config)),
        (_, Mode::Idle) => worker.idle(tcp::Tcp::new(config)),
        (_, Mode::PingPong | Mode::Stream) => worker.measure(tcp::Tcp::new(config)),
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
            Self::System { what, error } => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}
