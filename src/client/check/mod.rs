//! Grades any echo server: each rule that it has to keep is a case with a name, a source and an
//! outcome.
//!
//! ```no_run
//! use evecho::client::Cancel;
//! use evecho::client::check::{self, Config, Subject};
//!
//! let config = Config::new(Subject::Address("localhost:7".parse().unwrap()));
//! let report = check::run(&config, &Cancel::default(), |case| println!("{}: {:?}", case.name, case.outcome))?;
//! assert!(report.all_passed());
//! # Ok::<(), check::Error>(())
//! ```
//!
//! The cases run one after the other, since several of them measure. None leaves the host that
//! was named, and those that forge datagrams never leave loopback.

mod cases;
mod context;
mod datagram;
mod loops;
mod process;
mod seen;
mod stream;
mod tcp;
mod udp;
mod upper;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::context::{Context, Probe};
use super::Cancel;
use super::process::{ServerCommand, ServerProcess, Start, StartError, Usage, listens};
use super::target::{self, LONGEST_WAIT, Target, Transport};

pub use self::cases::CASES;

/// What is graded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Subject {
    /// A server at an address, seen from outside.
    Address(Target),
    /// A server at an address of this machine, and its process, which is looked at.
    Process(Target, u32),
    /// A server that is started, on loopback, as often as a case needs a fresh one.
    Command(ServerCommand),
}

/// What the server does with what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Service {
    /// Sends it back (RFC 862).
    Echo,
    /// Sends it back in Unicode upper case; bytes that are not UTF-8 unchanged.
    Upper,
}

/// What to grade, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The server.
    pub subject: Subject,
    /// What it is for.
    pub service: Service,
    /// The only transport to grade; both, as far as the server has them, when `None`.
    pub transport: Option<Transport>,
    /// Whether it ends each TCP connection after the first message. Cases that need more of one are
    /// skipped. Default: no.
    pub once: bool,
    /// Names, or beginnings of names, of the cases to run; all when empty.
    pub only: Vec<String>,
    /// Names, or beginnings of names, of the cases to leave out.
    pub skip: Vec<String>,
    /// How long one case may wait, in all, for what it expects; over a day counts as a day.
    pub timeout: Duration,
    /// See [`Start::supervisor`].
    pub supervisor: Vec<OsString>,
}

impl Config {
    /// The default patience with a case.
    pub const TIMEOUT: Duration = Duration::from_secs(10);

    /// Grades all of `subject` as an echo server.
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            service: Service::Echo,
            transport: None,
            once: false,
            only: Vec::new(),
            skip: Vec::new(),
            timeout: Self::TIMEOUT,
            supervisor: Vec::new(),
        }
    }

    /// The cases that this config asks for, in the order in which they run.
    pub fn cases(&self) -> impl Iterator<Item = &'static Case> {
        CASES.iter().filter(|case| {
            (case.group != Group::Upper || self.service == Service::Upper)
                && (self.only.is_empty() || case.is_among(&self.only))
                && !case.is_among(&self.skip)
        })
    }

    fn start(&self, transport: Transport) -> Start {
        Start {
            supervisor: self.supervisor.clone(),
            transport,
            patience: self.timeout,
            ..Start::default()
        }
    }
}

/// Cases that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Group {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// What the server uses, and how it behaves as a process.
    Process,
    /// Datagrams that must not be answered.
    Loop,
    /// The upper-case service.
    Upper,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Process => "Process",
            Self::Loop => "Loops",
            Self::Upper => "Upper case",
        })
    }
}

/// One rule that a server keeps or breaks.
#[derive(Debug)]
pub struct Case {
    /// Its name, which does not change from version to version.
    pub name: &'static str,
    /// Where it belongs.
    pub group: Group,
    /// What the server has to do, with the thresholds that decide.
    pub rule: &'static str,
    /// Where the rule comes from: RFC and section, manual page or advisory.
    pub source: &'static str,
    needs: Needs,
    run: fn(&Context<'_>) -> Result<(), Stop>,
}

impl Case {
    /// Whether one of the patterns is its name or the beginning of it; a final `*` is ignored.
    pub fn is_among(&self, patterns: &[String]) -> bool {
        patterns.iter().any(|pattern| self.name.starts_with(pattern.trim_end_matches('*')))
    }
}

/// What has to be there for a case to say anything.
#[derive(Clone, Copy, Debug)]
struct Needs {
    tcp: bool,
    /// A TCP connection that carries more than one message.
    lasting: bool,
    udp: bool,
    loopback: bool,
    process: Access,
}

/// How close the grader is to the server's process; each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    None,
    /// It can be looked at.
    Look,
    /// It can be started and ended.
    Start,
}

impl Needs {
    /// Why a case cannot be run against this server; `None` when it can.
    fn missing(&self, context: &Context<'_>) -> Option<String> {
        let probe = &context.probe;
        if self.tcp && !probe.tcp {
            return Some(format!("no TCP: {}", probe.no_tcp));
        }
        if self.udp && !probe.udp {
            return Some(format!("no UDP: {}", probe.no_udp));
        }
        if self.lasting && context.config.once {
            return Some("needs a connection that lasts beyond its first message".to_owned());
        }
        if self.loopback && !probe.address.ip().is_loopback() {
            return Some("done on loopback only".to_owned());
        }
        if self.process > context.access() {
            return Some(match self.process {
                Access::Start => "needs a server of its own, which was not asked for".to_owned(),
                _ => "needs the server's process, which is not known".to_owned(),
            });
        }
        None
    }
}

/// Why a case ended early.
#[derive(Clone, Debug)]
enum Stop {
    Failed { expected: String, seen: String },
    Skipped { reason: String },
}

impl Stop {
    fn failed(expected: impl Into<String>, seen: impl Into<String>) -> Self {
        Self::Failed { expected: expected.into(), seen: seen.into() }
    }

    fn skipped(reason: impl Into<String>) -> Self {
        Self::Skipped { reason: reason.into() }
    }
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outcome {
    /// The server keeps the rule.
    Passed,
    /// It does not.
    Failed {
        /// What the rule asks for.
        expected: String,
        /// What the server did.
        seen: String,
    },
    /// The case says nothing about this server.
    Skipped {
        /// Why.
        reason: String,
    },
    /// The case would have been run, but could not be.
    #[serde(rename = "not graded")]
    NotGraded {
        /// Why.
        reason: String,
    },
}

/// A case and how it ended.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CaseReport {
    /// The name of the case.
    pub name: &'static str,
    /// Where it belongs.
    pub group: Group,
    /// What the server has to do.
    pub rule: &'static str,
    /// Where the rule comes from.
    pub source: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
}

/// All that a run found.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Where the server was asked.
    pub address: SocketAddr,
    /// How it was started, where it was; `{port}` stands for its port.
    pub command: Option<String>,
    /// What it is for.
    pub service: Service,
    /// Whether it was graded over TCP.
    pub tcp: bool,
    /// Whether it was graded over UDP.
    pub udp: bool,
    /// How many cases passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many were skipped.
    pub skipped: usize,
    /// How many were not graded.
    pub not_graded: usize,
    /// How long the run took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// The cases, in the order in which they ran.
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// Whether cases passed, and none failed or was not graded.
    pub fn all_passed(&self) -> bool {
        self.passed > 0 && self.failed == 0 && self.not_graded == 0
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Why a run could not begin, or could not go on: one sentence.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The name does not resolve, or its only address is not reached.
    Target(target::Error),
    /// The server cannot be started.
    Start(StartError),
    /// The server's process cannot be looked at.
    Pid(u32, io::Error),
    /// Nothing answers over any transport that is to be graded.
    Nothing(Target),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(error) => error.fmt(f),
            Self::Start(error) => error.fmt(f),
            Self::Pid(pid, _) => {
                write!(f, "cannot look at process {pid}, which should be the server's")
            }
            Self::Nothing(target) => write!(
                f,
                "nothing listens at {target}; is a server running there, and on that port?"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Target(error) => error.source(),
            Self::Start(error) => error.source(),
            Self::Pid(_, error) => Some(error),
            Self::Nothing(_) => None,
        }
    }
}

/// Runs the cases that `config` asks for, and calls `progress` as soon as one has ended. After
/// `cancel` no other case begins, and the report has those that ran.
///
/// # Errors
///
/// When the server cannot be reached or started at all. What it does wrong is in the report.
pub fn run(
    config: &Config,
    cancel: &Cancel,
    mut progress: impl FnMut(&CaseReport),
) -> Result<Report, Error> {
    let began = Instant::now();
    let config = &Config { timeout: config.timeout.min(LONGEST_WAIT), ..config.clone() };
    let mut grader = Grader::set_up(config)?;
    let mut cases = Vec::new();
    for case in config.cases() {
        if cancel.is_cancelled() {
            grader.lost = Lost::all("the run was stopped");
        }
        let report = grader.grade(case);
        progress(&report);
        cases.push(report);
    }
    let count = |is: fn(&Outcome) -> bool| cases.iter().filter(|case| is(&case.outcome)).count();
    Ok(Report {
        address: grader.probe.address,
        command: match &config.subject {
            Subject::Command(command) => Some(command.to_string()),
            Subject::Address(_) | Subject::Process(..) => None,
        },
        service: config.service,
        tcp: grader.probe.tcp,
        udp: grader.probe.udp,
        passed: count(|outcome| matches!(outcome, Outcome::Passed)),
        failed: count(|outcome| matches!(outcome, Outcome::Failed { .. })),
        skipped: count(|outcome| matches!(outcome, Outcome::Skipped { .. })),
        not_graded: count(|outcome| matches!(outcome, Outcome::NotGraded { .. })),
        took: began.elapsed(),
        cases,
    })
}

/// The server under test, and what is known about it.
struct Grader<'a> {
    config: &'a Config,
    probe: Probe,
    server: Option<ServerProcess>,
    lost: Lost,
}

/// Why the server cannot be asked any more, over each transport.
#[derive(Default)]
struct Lost {
    tcp: Option<String>,
    udp: Option<String>,
}

impl Lost {
    fn all(reason: &str) -> Self {
        Self { tcp: Some(reason.to_owned()), udp: Some(reason.to_owned()) }
    }

    /// Why a case cannot be run, which needs this, of a server that had what the probe found.
    fn prevents(&self, needs: Needs, probe: &Probe) -> Option<&String> {
        let all_lost = (!probe.tcp || self.tcp.is_some()) && (!probe.udp || self.udp.is_some());
        let tcp = self.tcp.as_ref().filter(|_| needs.tcp || all_lost);
        tcp.or(self.udp.as_ref().filter(|_| needs.udp || all_lost))
    }
}

impl<'a> Grader<'a> {
    fn set_up(config: &'a Config) -> Result<Self, Error> {
        let (probe, server) = match &config.subject {
            Subject::Address(target) => (Probe::target(target, config)?, None),
            Subject::Process(target, pid) => {
                Usage::of(*pid).map_err(|error| Error::Pid(*pid, error))?;
                (Probe::target(target, config)?, None)
            }
            Subject::Command(command) => {
                let first = config.transport.unwrap_or(Transport::Tcp);
                let server = command.start(&config.start(first)).map_err(Error::Start)?;
                (Probe::started(server.address(), config), Some(server))
            }
        };
        Ok(Self { config, probe, server, lost: Lost::default() })
    }

    fn grade(&mut self, case: &'static Case) -> CaseReport {
        let began = Instant::now();
        let outcome = self.outcome(case);
        let Case { name, group, rule, source, .. } = *case;
        CaseReport { name, group, rule, source, outcome, took: began.elapsed() }
    }

    fn outcome(&mut self, case: &'static Case) -> Outcome {
        let context = Context::new(self.config, &self.probe, self.pid());
        if let Some(reason) = case.needs.missing(&context) {
            return Outcome::Skipped { reason };
        }
        if let Some(reason) = self.lost.prevents(case.needs, &self.probe) {
            return Outcome::NotGraded { reason: reason.clone() };
        }
        let outcome = match (case.run)(&context) {
            Ok(()) => Outcome::Passed,
            Err(Stop::Failed { expected, seen }) => Outcome::Failed { expected, seen },
            Err(Stop::Skipped { reason }) => Outcome::Skipped { reason },
        };
        if self.server.is_some() {
            return self.replace_the_dead(&outcome).unwrap_or(outcome);
        }
        if matches!(outcome, Outcome::Failed { .. }) {
            self.notice_a_loss(case);
        }
        outcome
    }

    fn pid(&self) -> Option<u32> {
        match (&self.config.subject, &self.server) {
            (Subject::Process(_, pid), _) => Some(*pid),
            (_, server) => server.as_ref().map(ServerProcess::pid),
        }
    }

    /// A server that nobody can start again, and that refuses clients now, is lost.
    fn notice_a_loss(&mut self, case: &Case) {
        let reason = |transport| {
            Some(format!("nothing listens over {transport} any more since {}", case.name))
        };
        if self.probe.tcp && self.lost.tcp.is_none() && refuses(self.probe.address) {
            self.lost.tcp = reason("TCP");
        }
        // Elsewhere a loss on the way cannot be told from that.
        let is_known = self.probe.udp && self.probe.address.ip().is_loopback();
        if is_known && self.lost.udp.is_none() && !listens(self.probe.address, Transport::Udp) {
            self.lost.udp = reason("UDP");
        }
    }

    /// When the case has ended the server, that is its outcome, and the next gets a new one.
    fn replace_the_dead(&mut self, outcome: &Outcome) -> Option<Outcome> {
        let (Subject::Command(command), Some(server)) = (&self.config.subject, &self.server) else {
            return None;
        };
        let transport = if self.probe.tcp { Transport::Tcp } else { Transport::Udp };
        let status = death(server, transport, outcome, self.config.timeout)?;
        let seen = match server.last_words() {
            words if words.is_empty() => format!("it ended ({status}) and said nothing"),
            words => format!("it ended ({status}) and said: {words}"),
        };
        match command.start(&self.config.start(transport)) {
            Ok(server) => {
                self.probe = Probe::started(server.address(), self.config);
                self.server = Some(server);
            }
            Err(error) => {
                self.lost = Lost::all(&format!("it cannot be started again: {}", error.sentence()))
            }
        }
        Some(Outcome::Failed { expected: "the server goes on serving".to_owned(), seen })
    }
}

/// Whether connections are refused: a server that is only slow takes them, or does not answer.
fn refuses(address: SocketAddr) -> bool {
    const PATIENCE: Duration = Duration::from_secs(1);
    TcpStream::connect_timeout(&address, PATIENCE)
        .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// How a server ended in a case. Its connections close a moment before it can be waited for.
fn death(
    server: &ServerProcess,
    transport: Transport,
    outcome: &Outcome,
    patience: Duration,
) -> Option<ExitStatus> {
    const A_MOMENT: Duration = Duration::from_millis(100);
    match outcome {
        Outcome::Failed { .. } => server.wait(A_MOMENT).or_else(|| {
            let dying = !listens(server.address(), transport);
            dying.then(|| server.wait(patience)).flatten()
        }),
        _ => server.ended(),
    }
}
