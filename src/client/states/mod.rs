//! Shows how both ends of a TCP connection change state: scenarios that are played against a server, call by
//! call, and after each call what the kernel has.
//!
//! ```no_run
//! use evecho::client::Cancel;
//! use evecho::client::states::{self, Config, Progress, Subject};
//!
//! let config = Config::new(Subject::Address("localhost:7".parse().unwrap()));
//! let report = states::run(&config, &Cancel::default(), |progress| {
//!     if let Progress::Step(step) = progress {
//!         println!("{:?}: {:?}", step.calls, step.connections);
//!     }
//! })?;
//! assert!(report.is_good());
//! # Ok::<(), states::Error>(())
//! ```
//!
//! A scenario waits until it sees the states that it teaches. Where they do not come, it fails, and says what
//! it saw. What a server is not made for is not shown, with the reason.

mod fact;
mod kernel;
mod report;
mod scenarios;
mod stage;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Cancel;
use super::process::{CommandError, ServerCommand, Start, StartError};
use super::target::{self, LONGEST_WAIT, Target, Transport};
use crate::config::Design;
use crate::protocol::Framing;

use self::kernel::Kernel;
use self::stage::{Book, Stage};

pub use self::report::{
    Connection, End, Listener, Outcome, Report, ScenarioReport, Segment, Side, State, Step,
};
pub use self::scenarios::SCENARIOS;

/// The server that scenarios are played against.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Subject {
    /// One that runs. When it is on another machine, only our own end is seen.
    Address(Target),
    /// One that is started, on loopback, for each scenario.
    Command(ServerCommand),
    /// An evecho, which is started for each scenario in the way that it needs.
    Own(Own),
}

/// The command of an evecho on loopback that is as a scenario needs it.
#[derive(Clone)]
pub struct Own(pub Arc<OwnCommand>);

type OwnCommand = dyn Fn(&Needs) -> Result<ServerCommand, CommandError> + Send + Sync;

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own")
    }
}

/// What a scenario needs of a server.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Needs {
    /// How it is built.
    pub design: Design,
    /// How it marks the end of a message.
    pub framing: Framing,
    /// Whether it closes each connection after the first message.
    pub once: bool,
    /// Its backlog; as it comes, when `None`.
    pub backlog: Option<u32>,
    /// How many clients it serves at a time; as it comes, when `None`.
    pub max_connections: Option<u32>,
}

/// What to show, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The server.
    pub subject: Subject,
    /// The scenarios, in their order; all when empty.
    pub scenarios: Vec<&'static Scenario>,
    /// The only design of [`Subject::Own`]. When `None`, the event loop, but for scenarios that
    /// are about another one.
    pub design: Option<Design>,
    /// The framing that the echo is shown with. What is not about messages needs [`Framing::Raw`].
    pub framing: Framing,
    /// How long a state may take to come; over a day counts as a day.
    pub timeout: Duration,
    /// See [`Start::supervisor`].
    pub supervisor: Vec<OsString>,
}

impl Config {
    /// The default patience with a state.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// Shows every scenario with `subject`.
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            scenarios: Vec::new(),
            design: None,
            framing: Framing::Raw,
            timeout: Self::TIMEOUT,
            supervisor: Vec::new(),
        }
    }
}

/// A lesson about the states of a connection.
pub struct Scenario {
    /// Its name, which does not change from version to version.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    play: fn(&Context<'_>) -> Result<(), Stop>,
}

impl Scenario {
    /// The scenario with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scenario").field(&self.name).finish()
    }
}

/// What a run has come to.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A scenario begins.
    Begins(&'static Scenario),
    /// A step was taken, and what it should show was seen. The next one is taken when the closure returns.
    Step(&'a Step),
    /// A scenario has ended.
    Ended(&'a ScenarioReport),
}

/// Why a run could not begin, or could not go on: one sentence.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The name does not resolve, or nobody listens there.
    Target(target::Error),
    /// The server cannot be started.
    Start(StartError),
    /// There is no such command of our own.
    Command(CommandError),
    /// The kernel does not tell its sockets.
    Kernel(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(error) => error.fmt(f),
            Self::Start(error) => error.fmt(f),
            Self::Command(error) => error.fmt(f),
            Self::Kernel(error) => write!(
                f,
                "the kernel does not show its sockets (sock_diag: {error}); a sandbox may forbid it"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Target(error) => error.source(),
            Self::Start(error) => error.source(),
            Self::Command(_) | Self::Kernel(_) => None,
        }
    }
}

/// Why a scenario ended early.
#[derive(Debug)]
enum Stop {
    Failed {
        expected: String,
        seen: String,
    },
    NotShown {
        reason: String,
    },
    /// Nor will any other be shown.
    Fatal(Error),
}

impl Stop {
    fn failed(expected: impl Into<String>, seen: impl Into<String>) -> Self {
        Self::Failed { expected: expected.into(), seen: seen.into() }
    }

    fn not_shown(reason: impl Into<String>) -> Self {
        Self::NotShown { reason: reason.into() }
    }

    fn stopped() -> Self {
        Self::not_shown("the run was stopped")
    }

    fn kernel(error: io::Error) -> Self {
        Self::Fatal(Error::Kernel(error))
    }
}

/// Plays the scenarios that `config` asks for, and calls `observe` as it goes on. After `cancel` nothing
/// else is shown, and the report has what was.
///
/// # Errors
///
/// When the kernel does not show its sockets, or the server cannot be reached or started. A state that
/// does not come is in the report.
pub fn run(
    config: &Config,
    cancel: &Cancel,
    mut observe: impl FnMut(Progress<'_>),
) -> Result<Report, Error> {
    let timeout = config.timeout.min(LONGEST_WAIT);
    let book = Book {
        kernel: Kernel::open().map_err(Error::Kernel)?,
        cancel,
        timeout,
        steps: RefCell::default(),
        observe: RefCell::new(&mut observe),
    };
    let reached = match &config.subject {
        Subject::Address(target) => Some(reach(target, &book)?),
        Subject::Command(_) | Subject::Own(_) => None,
    };
    let context = Context { config, book: &book, reached };
    let all = || SCENARIOS.iter().collect();
    let chosen: Vec<_> =
        Some(config.scenarios.clone()).filter(|list| !list.is_empty()).unwrap_or_else(all);
    let mut reports = Vec::new();
    for scenario in chosen {
        reports.push(context.play(scenario)?);
    }
    Ok(Report::of(reports, cancel.is_cancelled()))
}

/// The address to use, and whether the server's end of a connection can be seen.
fn reach(target: &Target, book: &Book<'_>) -> Result<(SocketAddr, bool), Error> {
    /// On this machine that end is there by the time that connect(2) returns, or in a moment.
    const A_MOMENT: Duration = Duration::from_millis(200);
    let client = target.connect_tcp(book.timeout).map_err(Error::Target)?;
    let ends = |client: &TcpStream| Ok((client.local_addr()?, client.peer_addr()?));
    let (local, peer) = ends(&client).map_err(Error::Kernel)?;
    let deadline = Instant::now() + A_MOMENT;
    loop {
        let end = book.kernel.end(peer, local).map_err(Error::Kernel)?;
        let seen = end != End::CLOSED || peer.ip().to_canonical().is_loopback();
        if seen || Instant::now() >= deadline {
            return Ok((peer, seen));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// What a scenario is given.
struct Context<'a> {
    config: &'a Config,
    book: &'a Book<'a>,
    /// The server that runs, and whether its ends can be seen.
    reached: Option<(SocketAddr, bool)>,
}

impl<'a> Context<'a> {
    fn play(&self, scenario: &'static Scenario) -> Result<ScenarioReport, Error> {
        (self.book.observe.borrow_mut())(Progress::Begins(scenario));
        let stopped = self.book.cancel.is_cancelled().then(Stop::stopped);
        let outcome = match stopped.map_or_else(|| (scenario.play)(self), Err) {
            Ok(()) => Outcome::Shown,
            Err(Stop::Failed { expected, seen }) => Outcome::Failed { expected, seen },
            Err(Stop::NotShown { reason }) => Outcome::NotShown { reason },
            Err(Stop::Fatal(error)) => return Err(error),
        };
        let steps = self.book.steps.take();
        let Scenario { name, about, .. } = *scenario;
        let report = ScenarioReport { name, about, steps, outcome };
        (self.book.observe.borrow_mut())(Progress::Ended(&report));
        Ok(report)
    }

    /// A stage with the server: the one that runs, or a fresh one, where that can be as it is needed.
    fn stage(&self, needs: &Needs) -> Result<Stage<'a>, Stop> {
        let command = match &self.config.subject {
            Subject::Address(_) => {
                let (address, seen) = self.reached.expect("it was reached before");
                return Ok(Stage::new(self.book, address, seen, None));
            }
            Subject::Command(command) => command.clone(),
            Subject::Own(own) => {
                (own.0)(needs).map_err(|error| Stop::Fatal(Error::Command(error)))?
            }
        };
        let start = Start {
            transport: Transport::Tcp,
            patience: self.book.timeout,
            supervisor: self.config.supervisor.clone(),
            ..Start::default()
        };
        let server = command.start(&start).map_err(|error| Stop::Fatal(Error::Start(error)))?;
        Ok(Stage::new(self.book, server.address(), true, Some(server)))
    }

    /// Whether the server is made for each scenario.
    fn is_own(&self) -> bool {
        matches!(self.config.subject, Subject::Own(_))
    }

    /// What a scenario needs that is about no design.
    fn needs(&self) -> Needs {
        Needs { design: self.config.design.unwrap_or_default(), ..Needs::default() }
    }

    /// The framing is that of a server that runs: what is not about messages is not shown with it.
    fn needs_raw(&self) -> Result<Needs, Stop> {
        if !self.is_own() && self.config.framing != Framing::Raw {
            return Err(Stop::not_shown("it is shown without a framing"));
        }
        Ok(self.needs())
    }
}
