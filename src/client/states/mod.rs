//! Shows how both ends of a TCP connection change state: scenarios that are played against a server, call by
//! call, and after each call what the kernel has.
//!
//! ```no_run
//! use evecho::client::Cancel;
//! use evecho::client::states::{self, Config, Progress, Subject};
//!
//! let config = Config::new(Subject::Address("localhost:7".parse()?));
//! let report = states::run(&config, &Cancel::default(), |progress| {
//!     if let Progress::Step(step) = progress {
//!         println!("{:?}: {:?}", step.calls, step.connections);
//!     }
//! })?;
//! assert!(report.is_good());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A scenario waits until it sees the states that it teaches. Where they do not come, it fails, and says what
//! it saw. What a server is not made for is not shown, with the reason.

mod fact;
mod figure;
mod kernel;
mod namespace;
mod nature;
mod report;
mod scenarios;
mod stage;
mod wire;

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::Cancel;
use super::harness::Stop;
use super::process::Start;
use super::target::{LONGEST_WAIT, Target};
use crate::config::Design;
use crate::protocol::Framing;

pub(super) use self::kernel::Kernel;
use self::nature::Nature;
use self::stage::{Book, Stage};
use self::wire::Wire;

pub use super::harness::{Error, Outcome, Subject};

pub use self::namespace::enter_own_network;
pub use self::report::{
    Connection, End, Header, Icmp, Listener, Remark, Report, ScenarioReport, Segment, Side, State,
    Step,
};
pub use self::scenarios::SCENARIOS;

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
    /// The server. When one that runs is on another machine, only our own end is seen.
    pub subject: Subject,
    /// The arguments after which the command is a server as a scenario needs it. `None` when the command
    /// has none: what it is not made for is not shown.
    pub arguments: Option<fn(&Needs) -> Vec<String>>,
    /// The scenarios, in their order; all when empty.
    pub scenarios: Vec<&'static Scenario>,
    /// The only design to show with `arguments`. When `None`, the event loop, but for scenarios that
    /// are about another one.
    pub design: Option<Design>,
    /// The framing that the echo is shown with. What is not about messages needs [`Framing::Raw`].
    pub framing: Framing,
    /// How long a state may take to come; over a day counts as a day. Default: 10 s.
    pub timeout: Duration,
    /// Whether the segments are seen on the wire, for which [`sees_segments`] tells whether that is possible.
    /// Otherwise those that make such a change of states are shown. Default: false.
    pub segments: bool,
    /// See [`Start::supervisor`].
    pub supervisor: Vec<OsString>,
}

impl Config {
    /// Shows every scenario with `subject`.
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            arguments: None,
            scenarios: Vec::new(),
            design: None,
            framing: Framing::Raw,
            timeout: Duration::from_secs(10),
            segments: false,
            supervisor: Vec::new(),
        }
    }
}

/// A lesson about the states of a connection.
#[derive(Debug)]
pub struct Scenario {
    /// Its name, which does not change from version to version.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    play: fn(&Context<'_>) -> Result<(), Stop>,
}

/// The head of a scenario; what it shows follows.
const fn scenario(name: &'static str, play: fn(&Context<'_>) -> Result<(), Stop>) -> Scenario {
    Scenario { name, about: "", play }
}

impl Scenario {
    const fn about(self, about: &'static str) -> Self {
        Self { about, ..self }
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
        segments: config.segments,
        touched: Cell::new(false),
        steps: RefCell::default(),
        observe: RefCell::new(&mut observe),
    };
    let reached = match &config.subject {
        Subject::Address(target) => Some(reach(target, &book)?),
        Subject::Command(_) => None,
    };
    let ended = match reached {
        Some((address, true)) if !book.listens_on(address).map_err(Error::Kernel)? => {
            Some(SERVED_ONE)
        }
        _ => None,
    };
    let context =
        Context { config, book: &book, reached, nature: OnceCell::new(), ended: Cell::new(ended) };
    let chosen = match &config.scenarios[..] {
        [] => SCENARIOS.iter().collect(),
        chosen => chosen.to_vec(),
    };
    let reports = chosen.into_iter().map(|scenario| context.play(scenario));
    let reports = reports.collect::<Result<_, _>>()?;
    Ok(Report::of(reports, cancel.is_cancelled()))
}

/// Whether this process can see segments on the wire: it takes CAP_NET_RAW (packet(7)).
///
/// # Errors
///
/// Why not.
pub fn sees_segments() -> io::Result<()> {
    Wire::open((Ipv4Addr::LOCALHOST, 0).into()).map(drop)
}

/// The address to use, and whether the server's end of a connection can be seen.
fn reach(target: &Target, book: &Book<'_>) -> Result<(SocketAddr, bool), Error> {
    /// On this machine that end is there by the time that connect(2) returns, or in a moment.
    const A_MOMENT: Duration = Duration::from_millis(200);
    let (client, peer) = target.connect_tcp(book.timeout, book.cancel).map_err(Error::Target)?;
    let local = client.local_addr().map_err(Error::Kernel)?;
    let look = || match book.kernel.end(peer, local) {
        Ok(End::CLOSED) if !peer.ip().to_canonical().is_loopback() => None,
        end => Some(end),
    };
    let end = book.cancel.within(A_MOMENT).find(look).transpose().map_err(Error::Kernel)?;
    Ok((peer, end.is_some()))
}

const ENDED: &str = "the server has ended";
const SERVED_ONE: &str =
    "the server has ended after its first client, which was there to see whether it listens";

/// What a scenario is given.
struct Context<'a> {
    config: &'a Config,
    book: &'a Book<'a>,
    /// The server that runs, and whether its ends can be seen.
    reached: Option<(SocketAddr, bool)>,
    /// What a server is that is not made for each scenario, once it was asked.
    nature: OnceCell<Nature>,
    /// Why nothing more is shown, once the server that ran does so no more.
    ended: Cell<Option<&'static str>>,
}

impl<'a> Context<'a> {
    fn play(&self, scenario: &'static Scenario) -> Result<ScenarioReport, Error> {
        (self.book.observe.borrow_mut())(Progress::Begins(scenario));
        let cancel = self.book.cancel;
        self.book.touched.set(false);
        let ended = match (cancel.is_cancelled(), self.ended.get()) {
            (true, _) => Err(Stop::stopped()),
            (_, Some(why)) => Err(Stop::skipped(why)),
            _ => self.outlive((scenario.play)(self)),
        };
        let ended = match ended {
            // Its waits were cut short.
            Err(_) if cancel.is_cancelled() => Err(Stop::stopped()),
            ended => ended,
        };
        let outcome = Outcome::of(ended, scenario.about)?;
        let steps = self.book.steps.take();
        let Scenario { name, about, .. } = *scenario;
        let report = ScenarioReport { name, about, steps, outcome };
        (self.book.observe.borrow_mut())(Progress::Ended(&report));
        Ok(report)
    }

    /// How a scenario ended, which no server should end with.
    fn outlive(&self, ended: Result<(), Stop>) -> Result<(), Stop> {
        let Some((address, true)) = self.reached else { return ended };
        if self.book.kernel.listener(address).map_err(Stop::kernel)?.is_some() {
            return ended;
        }
        self.ended.set(Some(ENDED));
        match ended {
            // It has served a client before, and no other since.
            Ok(()) if !self.book.touched.get() => Ok(()),
            Err(_) if !self.book.touched.get() => Err(Stop::skipped(ENDED)),
            Err(Stop::Failed { expected, seen }) => {
                Err(Stop::Failed { expected, seen: format!("{seen}; {ENDED}") })
            }
            _ => Err(Stop::failed("the server goes on for other clients", "it has ended")),
        }
    }

    /// A stage with the server, which has to answer as a scenario needs it.
    fn stage(&self, needs: &Needs) -> Result<Stage<'a>, Stop> {
        let mut stage = self.any_stage(needs)?;
        if self.is_own() {
            return Ok(stage);
        }
        let nature = match self.nature.get() {
            Some(nature) => nature,
            None => {
                let mut found = Nature::of(stage.address, self.config.framing, self.book)?;
                if let Subject::Command(_) = self.config.subject {
                    found.single = !self.book.listens_on(stage.address).map_err(Stop::kernel)?;
                    stage = self.any_stage(needs)?;
                }
                self.nature.get_or_init(|| found)
            }
        };
        if let Some(other) = &nature.other {
            return Err(other.stop());
        }
        if nature.once && !needs.once {
            return Err(Stop::skipped("this server closes after its first answer"));
        }
        (stage.upper, stage.single) = (nature.upper, nature.single);
        Ok(stage)
    }

    /// A stage with the server: the one that runs, or a fresh one, where that can be as it is needed.
    fn any_stage(&self, needs: &Needs) -> Result<Stage<'a>, Stop> {
        let command = match (&self.config.subject, self.config.arguments) {
            (Subject::Address(_), _) => {
                let (address, seen) = self.reached.expect("it was reached before");
                return Ok(Stage::new(self.book, address, seen, None));
            }
            (Subject::Command(command), None) => command.clone(),
            (Subject::Command(command), Some(arguments)) => command.with(arguments(needs)),
        };
        let start = Start {
            patience: self.book.timeout,
            supervisor: self.config.supervisor.clone(),
            cancel: self.book.cancel.clone(),
            // Of a server for a single client, a client that looks would be that.
            look: |address, _, _| {
                let listener = Kernel::open().and_then(|kernel| kernel.listener(address));
                listener.is_ok_and(|listener| listener.is_some())
            },
            ..Start::default()
        };
        let server = command.start(&start).map_err(|error| Stop::Fatal(Error::Start(error)))?;
        Ok(Stage::new(self.book, server.address(), true, Some(server)))
    }

    /// Whether the server is made for each scenario.
    fn is_own(&self) -> bool {
        let Config { subject, arguments, .. } = self.config;
        matches!(subject, Subject::Command(_)) && arguments.is_some()
    }

    /// What a scenario needs that is about no design.
    fn needs(&self) -> Needs {
        Needs { design: self.config.design.unwrap_or_default(), ..Needs::default() }
    }

    /// The framing is that of a server that runs: what is not about messages is not shown with it.
    fn needs_raw(&self) -> Result<Needs, Stop> {
        if !self.is_own() && self.config.framing != Framing::Raw {
            return Err(Stop::skipped("it is shown without a framing"));
        }
        Ok(self.needs())
    }
}
