//! Grades any echo server: each rule that it has to keep is a case with a name, a source and an
//! outcome.
//!
//! ```
//! use evecho::client::Cancel;
//! use evecho::client::check::{self, Config, Subject};
//!
//! let server = evecho::Server::bind(evecho::Config::loopback())?.spawn()?;
//! let mut config = Config::new(Subject::Address(server.local_addrs()[0].into()));
//! config.only = vec!["tcp-bytes".parse()?, "udp-empty".parse()?];
//! let report = check::run(&config, &Cancel::default(), |_case| {})?;
//! assert!(report.all_passed(), "{report:#}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The cases run one after the other, since several of them measure. None leaves the host that
//! was named, and those that forge datagrams never leave loopback.

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
use std::fs;
use std::io::ErrorKind::ConnectionRefused;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde::Serialize;

use self::context::{Context, Probe};
use self::stream::TcpClient;
use super::Cancel;
use super::cancel::Deadline;
use super::harness::{STOPPED, Stop};
use super::process::{ServerCommand, ServerProcess, Start, StartError, Usage};
use super::socket::{self, listens};
use super::target::{Attempt, LONGEST_WAIT};
use crate::error::{ParseError, Transport};
use crate::sys::tool;

pub(super) use self::tcp::remark_on_nagle;
pub use super::harness::{Error, Outcome, Subject};

/// Every case, in the order in which they run.
pub fn cases() -> impl Iterator<Item = &'static Case> {
    [tcp::CASES, udp::CASES, process::CASES, loops::CASES, upper::CASES].into_iter().flatten()
}

/// What a server is expected to reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Expected {
    /// The same bytes (RFC 862).
    Echo,
    /// Text in Unicode upper case; bytes that are not UTF-8 unchanged.
    Upper,
}

/// What to grade, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The server.
    pub subject: Subject,
    /// The process of a server that runs on this machine, to look at.
    pub pid: Option<u32>,
    /// What it is expected to reply. Default: the same bytes.
    pub service: Expected,
    /// The only transport to grade; both, as far as the server has them, when `None`.
    pub transport: Option<Transport>,
    /// Whether it ends each TCP connection after the first message. Cases that need more of one are
    /// skipped. Default: no.
    pub once: bool,
    /// The cases to run; all when empty.
    pub only: Vec<Filter>,
    /// The cases to leave out.
    pub skip: Vec<Filter>,
    /// How long one case may wait, in all, for what it expects; over a day counts as a day. Default: 10 s.
    pub timeout: Duration,
    /// See [`Start::supervisor`].
    pub supervisor: Vec<OsString>,
}

impl Config {
    /// Grades all of `subject` as an echo server.
    pub fn new(mut subject: Subject) -> Self {
        let transport = match &mut subject {
            Subject::Address(target) => target.take_transport(),
            Subject::Command(_) => None,
        };
        Self {
            subject,
            pid: None,
            service: Expected::Echo,
            transport,
            once: false,
            only: Vec::new(),
            skip: Vec::new(),
            timeout: Duration::from_secs(10),
            supervisor: Vec::new(),
        }
    }

    /// The cases that this config asks for, in the order in which they run.
    pub fn cases(&self) -> impl Iterator<Item = &'static Case> {
        cases().filter(|case| {
            (case.group != Group::Upper || self.service == Expected::Upper)
                && (self.only.is_empty() || case.is_among(&self.only))
                && !case.is_among(&self.skip)
        })
    }

    /// Whether a case needs this transport, or whichever the server has.
    fn asks(&self, transport: Transport) -> bool {
        let may_use = |case: &Case| case.uses(transport) || !BOTH.iter().any(|&one| case.uses(one));
        self.transport.map_or_else(|| self.cases().any(may_use), |only| only == transport)
    }

    /// The transport that all cases need, if there is one.
    fn awaited(&self) -> Option<Transport> {
        let all_use = |transport: &Transport| self.cases().all(|case| case.uses(*transport));
        self.transport.or_else(|| BOTH.into_iter().find(all_use))
    }

    fn start(&self, transport: Option<Transport>, cancel: &Cancel) -> Start {
        Start {
            cancel: cancel.clone(),
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
    needs: &'static [Need],
    run: fn(&Context<'_>) -> Result<(), Stop>,
}

/// The head of a case; its rule, its source and its code follow.
const fn case(group: Group, name: &'static str, needs: &'static [Need]) -> Case {
    Case { name, group, rule: "", source: "", needs, run: |_| unreachable!("each case has code") }
}

impl Case {
    const fn rule(self, rule: &'static str) -> Self {
        Self { rule, ..self }
    }

    const fn source(self, source: &'static str) -> Self {
        Self { source, ..self }
    }

    const fn run(self, run: fn(&Context<'_>) -> Result<(), Stop>) -> Self {
        Self { run, ..self }
    }

    fn uses(&self, transport: Transport) -> bool {
        self.needs.contains(&match transport {
            Transport::Tcp => Need::Tcp,
            Transport::Udp => Need::Udp,
        })
    }

    /// Whether one of these chooses it.
    pub fn is_among(&self, filters: &[Filter]) -> bool {
        filters.iter().any(|Filter(start)| self.name.starts_with(start))
    }
}

/// Chooses cases by the beginning of their names, and at least one: `tcp`, `udp-re*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

/// A final `*` changes nothing.
impl FromStr for Filter {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let start = text.trim_end_matches('*');
        if cases().any(|case| case.name.starts_with(start)) {
            return Ok(Self(start.to_owned()));
        }
        Err(ParseError::new(format!("no case has a name that starts with '{text}'")))
    }
}

/// What has to be there for a case to say anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Tcp,
    Udp,
    /// A connection that carries more than one message.
    Lasting,
    Loopback,
    /// The server's process, to look at.
    Process,
    /// A server of the case's own, to start and end.
    Start,
    /// A server that answers a client, if it has TCP.
    Served,
    /// A server that does not serve one TCP client at a time.
    Several,
}

impl Need {
    /// Why it is not there; `None` when it is.
    fn missing(self, context: &Context<'_>) -> Option<String> {
        let Context { config, probe, pid, .. } = context;
        let because = |failed: &Option<Attempt>| {
            failed.as_ref().map_or("not asked for".to_owned(), Attempt::to_string)
        };
        let (there, why) = match self {
            Self::Tcp => (probe.tcp, &*format!("no TCP: {}", because(&probe.no_tcp))),
            Self::Udp => (probe.udp, &*format!("no UDP: {}", because(&probe.no_udp))),
            Self::Lasting => {
                (!config.once, "needs a connection that lasts beyond its first message")
            }
            Self::Loopback => (probe.address.ip().is_loopback(), "done on loopback only"),
            Self::Process => match tool::tells_of_processes() {
                Ok(()) => (pid.is_some(), "needs the server's process, which is not known"),
                Err(error) => return Some(error.to_string()),
            },
            Self::Start => (
                matches!(config.subject, Subject::Command(_)),
                "needs a server of its own, which was not asked for",
            ),
            Self::Served | Self::Several => match context.served() {
                Err(why) => (false, &*format!("needs a server that answers a client: {why}")),
                Ok(several) => (
                    *several || self == Self::Served,
                    "needs a server that serves several clients at once",
                ),
            },
        };
        (!there).then(|| why.to_owned())
    }
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
    /// What is worth to be known about the server beside the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// How long it took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
}

/// All that a run found.
///
/// `{}` prints how many cases ended how, in one line; `{:#}` prints the cases, too, that failed or were not
/// graded.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Where the server was asked.
    pub address: SocketAddr,
    /// How it was started, where it was; `{port}` stands for its port.
    pub command: Option<String>,
    /// What it was expected to reply.
    pub service: Expected,
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

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, passed, failed, skipped, not_graded, .. } = self;
        write!(f, "{address}: {passed} passed, {failed} failed, {skipped} skipped")?;
        if *not_graded > 0 {
            write!(f, ", {not_graded} not graded")?;
        }
        let shown = if f.alternate() { &self.cases[..] } else { &[] };
        for CaseReport { name, outcome, .. } in shown {
            match outcome {
                Outcome::Failed { expected, seen } => {
                    write!(f, "\n{name} failed: expected: {expected}; seen: {seen}")?;
                }
                Outcome::NotGraded { reason } => write!(f, "\n{name} not graded: {reason}")?,
                Outcome::Passed | Outcome::Skipped { .. } => {}
            }
        }
        Ok(())
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Runs the cases that `config` asks for, and calls `progress` as soon as one has ended. After
/// `cancel` the case that runs ends too, and the report has those that ran.
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
    let mut grader = Grader::set_up(config, cancel)?;
    let mut cases = Vec::new();
    for case in config.cases() {
        if cancel.is_cancelled() {
            grader.lost = Lost::all(STOPPED);
        }
        let report = grader.grade(case)?;
        progress(&report);
        cases.push(report);
    }
    let [passed, failed, skipped, not_graded] =
        Outcome::count(cases.iter().map(|case| &case.outcome));
    Ok(Report {
        address: grader.probe.address,
        command: match &config.subject {
            Subject::Command(command) => Some(command.to_string()),
            Subject::Address(_) => None,
        },
        service: config.service,
        tcp: grader.probe.tcp,
        udp: grader.probe.udp,
        passed,
        failed,
        skipped,
        not_graded,
        took: began.elapsed(),
        cases,
    })
}

/// The server under test, and what is known about it.
struct Grader<'a> {
    config: &'a Config,
    cancel: &'a Cancel,
    probe: Probe,
    server: Option<ServerProcess>,
    lost: Lost,
    /// See [`Context::served`].
    served: OnceLock<Result<bool, String>>,
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
    fn prevents(&self, needs: &[Need], probe: &Probe) -> Option<&String> {
        let all_lost = (!probe.tcp || self.tcp.is_some()) && (!probe.udp || self.udp.is_some());
        let tcp = self.tcp.as_ref().filter(|_| needs.contains(&Need::Tcp) || all_lost);
        tcp.or(self.udp.as_ref().filter(|_| needs.contains(&Need::Udp) || all_lost))
    }
}

impl<'a> Grader<'a> {
    fn set_up(config: &'a Config, cancel: &'a Cancel) -> Result<Self, Error> {
        let (probe, server) = match &config.subject {
            Subject::Address(target) => {
                if let Some(pid) = config.pid {
                    let all = Usage::of(pid).and_then(|_| fs::read_dir(format!("/proc/{pid}/fd")));
                    all.map_err(|error| Error::Pid(pid, error))?;
                }
                (Probe::target(target, config, cancel)?, None)
            }
            Subject::Command(command) => {
                let started = fresh_server(command, config, config.awaited(), cancel);
                let (probe, server) = started.map_err(Error::Start)?;
                (probe, Some(server))
            }
        };
        let (lost, served) = (Lost::default(), OnceLock::new());
        Ok(Self { config, cancel, probe, server, lost, served })
    }

    fn grade(&mut self, case: &'static Case) -> Result<CaseReport, Error> {
        let began = Instant::now();
        let remark = OnceLock::new();
        let outcome = self.outcome(case, &remark)?;
        let Case { name, group, rule, source, .. } = *case;
        let (remark, took) = (remark.into_inner(), began.elapsed());
        Ok(CaseReport { name, group, rule, source, outcome, remark, took })
    }

    fn outcome(
        &mut self,
        case: &'static Case,
        remark: &OnceLock<String>,
    ) -> Result<Outcome, Error> {
        let pid = self.server.as_ref().map(ServerProcess::pid).or(self.config.pid);
        let Self { config, ref probe, ref served, cancel, .. } = *self;
        let context = Context::new(config, probe, pid, served, remark, cancel);
        let gone = self.lost.prevents(case.needs, probe);
        // What is gone is not asked.
        let known = |need: &&Need| gone.is_none() || !matches!(need, Need::Served | Need::Several);
        let mut needs = case.needs.iter().filter(known);
        if let Some(reason) = needs.find_map(|need| need.missing(&context)) {
            return Ok(Outcome::Skipped { reason });
        }
        if let Some(reason) = gone {
            return Ok(Outcome::NotGraded { reason: reason.clone() });
        }
        // What is needed may have taken long to find out.
        let ended = (case.run)(&Context { deadline: cancel.within(config.timeout), ..context });
        // Its waits were cut short.
        if ended.is_err() && self.cancel.is_cancelled() {
            return Ok(Outcome::NotGraded { reason: STOPPED.to_owned() });
        }
        let outcome = Outcome::of(ended, case.rule)?;
        if self.server.is_some() {
            return Ok(self.replace_the_dead(&outcome).unwrap_or(outcome));
        }
        if matches!(outcome, Outcome::Failed { .. } | Outcome::NotGraded { .. }) {
            self.notice_a_loss(case);
        }
        Ok(outcome)
    }

    /// A server that cannot be started again, and that refuses clients now, is lost.
    fn notice_a_loss(&mut self, case: &Case) {
        let reason = |transport| {
            Some(format!("nothing listens over {transport} any more since {}", case.name))
        };
        const A_MOMENT: Duration = Duration::from_secs(1);
        let (address, deadline) = (self.probe.address, self.cancel.within(A_MOMENT));
        if self.probe.tcp && self.lost.tcp.is_none() && refuses(address, deadline) {
            self.lost.tcp = reason("TCP");
        }
        // Elsewhere a loss on the way cannot be told from that.
        let is_known = self.probe.udp && address.ip().is_loopback();
        if is_known && self.lost.udp.is_none() && !listens(address, Transport::Udp, deadline) {
            self.lost.udp = reason("UDP");
        }
    }

    /// When the case has ended the server, that is its outcome, and the next gets a new one.
    fn replace_the_dead(&mut self, outcome: &Outcome) -> Option<Outcome> {
        let (Subject::Command(command), Some(server)) = (&self.config.subject, &self.server) else {
            return None;
        };
        let transport = if self.probe.tcp { Transport::Tcp } else { Transport::Udp };
        let deadline = self.cancel.within(self.config.timeout);
        let status = death(server, transport, outcome, deadline)?;
        let ended = match server.last_words() {
            words if words.is_empty() => format!("it ended ({status}) and said nothing"),
            words => format!("it ended ({status}) and said: {words}"),
        };
        match fresh_server(command, self.config, Some(transport), self.cancel) {
            Ok((probe, server)) => (self.probe, self.server) = (probe, Some(server)),
            Err(error) => self.lost = Lost::all(&format!("it cannot be started again: {error}")),
        }
        // Some end when the case's clients leave, which have seen something else before.
        Some(match outcome.clone() {
            Outcome::Failed { expected, seen } => {
                Outcome::Failed { expected, seen: format!("{seen}; then {ended}") }
            }
            Outcome::NotGraded { reason } => Outcome::Failed {
                expected: LASTS.to_owned(),
                seen: format!("{reason}; then {ended}"),
            },
            _ => Outcome::Failed { expected: LASTS.to_owned(), seen: ended },
        })
    }
}

/// A fresh server, and what is known about it.
fn fresh_server(
    command: &ServerCommand,
    config: &Config,
    transport: Option<Transport>,
    cancel: &Cancel,
) -> Result<(Probe, ServerProcess), StartError> {
    let server = command.start(&config.start(transport, cancel))?;
    let probe = Probe::started(server.address(), config, cancel);
    let left = if probe.tcp || probe.udp { None } else { command.left(&server) };
    left.map_or(Ok((probe, server)), Err)
}

const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Udp];

const LASTS: &str = "the server goes on serving";

/// Whether connections are refused: a server that is only slow takes them, or does not answer.
fn refuses(address: SocketAddr, deadline: Deadline<'_>) -> bool {
    socket::tcp(address, None, deadline).is_err_and(|error| error.kind() == ConnectionRefused)
}

/// How a server ended in a case. The clients of the case have left: what ends when it notices that ends now, and its
/// connections close a moment before it can be waited for.
fn death(
    server: &ServerProcess,
    transport: Transport,
    outcome: &Outcome,
    deadline: Deadline<'_>,
) -> Option<ExitStatus> {
    const A_MOMENT: Duration = Duration::from_millis(100);
    let lives = match transport {
        Transport::Tcp => comes_to_rest(server.address(), deadline),
        Transport::Udp => *outcome == Outcome::Passed,
    };
    if lives {
        return server.ended();
    }
    server.wait(A_MOMENT).or_else(|| {
        let dying = !listens(server.address(), transport, deadline);
        dying.then(|| server.wait(deadline.left())).flatten()
    })
}

/// Whether the server ends a new connection as its client does: it has done all that came before, or does it beside.
fn comes_to_rest(address: SocketAddr, deadline: Deadline<'_>) -> bool {
    let deadline = deadline.sooner(Duration::from_secs(1));
    let ends = |mut client: TcpClient<'_>| client.finish().and_then(|()| client.expect_end());
    TcpClient::connect(address, deadline).and_then(ends).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_their_group() {
        let all: Vec<&Case> = cases().collect();
        for (index, case) in all.iter().enumerate() {
            let group = format!("{:?}-", case.group).to_lowercase();
            assert!(case.name.starts_with(&group), "{}", case.name);
            assert!(all[..index].iter().all(|other| other.name != case.name), "{}", case.name);
            assert!(!case.rule.is_empty() && !case.source.is_empty(), "{}", case.name);
        }
    }

    #[test]
    fn a_filter_chooses_a_case() {
        for text in ["tcp", "udp-re*", "process-exhaustion"] {
            let filter = text.parse::<Filter>().unwrap();
            assert!(cases().any(|case| case.is_among(std::slice::from_ref(&filter))));
        }
        let error = "tpc*".parse::<Filter>().unwrap_err().to_string();
        assert_eq!(error, "no case has a name that starts with 'tpc*'");
    }

    #[test]
    fn groups_stand_together() {
        assert!(cases().is_sorted_by_key(|case| case.group));
    }
}
