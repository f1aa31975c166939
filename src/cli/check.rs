//! `evecho check`: grades an echo server.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgGroup, ValueEnum, ValueHint};
use evecho::Transport;
use evecho::client::Cancel;
use evecho::client::check::{
    self, CaseReport, Config, Expected, Filter, Group, Outcome, Report, Subject,
};
use evecho::client::process::ServerCommand;
use evecho::client::target::Target;
use evecho::units::time;

use super::output::{BAD, BOLD, DIM, GOOD, ODD, Output, sentence};
use super::{CommandResult, FamilyArgs, supervise, transport, units};

/// Grade any echo server by the rules that it must follow
///
/// Each rule is a case with a name and a source (RFC, manual page or advisory). A case passes,
/// fails, is skipped with the reason, or is not graded because the server is gone or was still
/// answering when the time was over. The exit code is 0 when cases passed and none failed, 1 when
/// one failed, was not graded, or all were skipped, and 2 on usage.
///
/// Some cases measure, so no other client should use the server at the time. Cases that look at its process
/// need --pid or --start. Cases that forge datagrams need root, and a server on loopback.
#[derive(clap::Args)]
#[command(override_usage = "evecho check [OPTIONS] <HOST[:PORT]>\n       \
                            evecho check [OPTIONS] --start <COMMAND>\n       \
                            evecho check --list")]
#[command(group = ArgGroup::new("subject").args(["target", "start", "list"]).required(true))]
pub(crate) struct Args {
    /// Server to grade; without a port it is 12000, and with tcp:// or udp:// in front that transport alone
    #[arg(value_name = "HOST[:PORT]", conflicts_with = "start", value_hint = ValueHint::Hostname)]
    target: Option<Target>,
    #[command(flatten)]
    family: FamilyArgs,
    /// Also look at this process, which is the server, on this machine
    #[arg(long, requires = "target", conflicts_with = "start", value_parser = units::number(1, u32::MAX))]
    pid: Option<u32>,
    /// Start the server to grade, on loopback; {port} in the command stands for its port
    #[arg(long, value_name = "COMMAND", value_hint = ValueHint::CommandString)]
    start: Option<ServerCommand>,
    /// Grade the upper-case service
    #[arg(long)]
    upper: bool,
    /// The server ends each TCP connection after the first message: skip what needs more
    #[arg(long)]
    once: bool,
    /// Grade TCP only
    #[arg(long, conflicts_with = "udp_only")]
    tcp_only: bool,
    /// Grade UDP only
    #[arg(long)]
    udp_only: bool,
    /// Run only these cases, by name or by the start of a name, like tcp or 'udp-re*'
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = filter)]
    only: Vec<Filter>,
    /// Leave out these cases
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = filter)]
    skip: Vec<Filter>,
    /// Most time that one case may wait
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    timeout: Duration,
    /// How to print the result
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// List the cases with their rules and sources, and run none
    #[arg(long)]
    list: bool,
}

/// How the outcome is printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people, grouped
    Text,
    /// Test Anything Protocol, version 13, as prove(1) reads it
    Tap,
    /// One JSON document
    Json,
}

fn filter(text: &str) -> Result<Filter, String> {
    text.parse().map_err(|error| format!("{error}; --list shows the names"))
}

fn timeout(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        Duration::ZERO => Err("the timeout must be above 0, like 10s".to_owned()),
        timeout => Ok(timeout),
    }
}

impl Args {
    /// The checked config; `None` when there is nothing to run.
    fn config(&self) -> io::Result<Option<Config>> {
        let mut target = self.target.clone().map(|target| self.family.apply(target));
        let tcp = self.tcp_only.then_some(Transport::Tcp);
        let asked = tcp.or(self.udp_only.then_some(Transport::Udp));
        let transport = target.as_mut().map_or(asked, |target| transport("check", target, asked));
        let subject = match (target, &self.start) {
            (Some(target), _) => Subject::Address(target),
            (None, Some(command)) => Subject::Command(command.clone()),
            (None, None) => return Ok(None),
        };
        let mut config = Config::new(subject);
        config.pid = self.pid;
        config.service = if self.upper { Expected::Upper } else { Expected::Echo };
        config.transport = transport;
        config.once = self.once;
        config.only.clone_from(&self.only);
        config.skip.clone_from(&self.skip);
        config.timeout = self.timeout;
        config.supervisor = supervise::words();
        Ok(Some(config))
    }
}

/// Grades the server and prints what was found.
pub(crate) fn run(args: &Args) -> CommandResult {
    let mut out = Output::new(anstream::stdout());
    let Some(config) = args.config()?.filter(|_| !args.list) else {
        list(&mut out, args)?;
        return Ok(ExitCode::SUCCESS);
    };
    let graded = grade(&mut out, &config, args.format);
    if let (Format::Tap, Err(error)) = (args.format, &graded) {
        // A program reads standard output alone.
        writeln!(out, "Bail out! {}", sentence(&**error).replace('\n', " "))?;
    }
    graded
}

fn grade(out: &mut Output<impl Write>, config: &Config, format: Format) -> CommandResult {
    // Cases hold hundreds of connections. Where this fails, those that need more say so.
    let _ = evecho::raise_open_file_limit();
    let cancel = Cancel::at_signals()?;
    if format == Format::Tap {
        writeln!(out, "TAP version 13\n1..{}", config.cases().count())?;
    }
    let mut lines = Lines::default();
    let report = check::run(config, &cancel, |case| {
        out.follow(&cancel, |out| match format {
            Format::Text => lines.text(out, case),
            Format::Tap => lines.tap(out, case),
            Format::Json => Ok(()),
        });
    })?;
    out.conclude(|out| match format {
        Format::Text => summary(out, config, &report),
        Format::Tap => Ok(()),
        Format::Json => out.json(&report),
    })?;
    if out.is_closed() && report.not_graded > 0 {
        // The reader has gone: no verdict, and not a word.
        return Ok(ExitCode::from(1));
    }
    if report.passed + report.failed == 0 {
        return Err("nothing was graded: none of the chosen cases applies to this server".into());
    }
    Ok(ExitCode::from(u8::from(!report.all_passed())))
}

/// How wide the names are printed: the longest is `tcp-half-close-empty`.
const NAME: usize = 20;

/// The last line for people.
fn summary(out: &mut impl Write, config: &Config, report: &Report) -> io::Result<()> {
    let style = if report.all_passed() { GOOD } else { BAD };
    let took = time(report.took);
    writeln!(out, "\n{style}{report}{style:#} {DIM}({took}){DIM:#}")?;
    let from_outside = matches!(config.subject, Subject::Address(_)) && config.pid.is_none();
    if from_outside && report.cases.iter().any(is_about_process) {
        writeln!(out, "{DIM}With --pid or --start, its process is graded too.{DIM:#}")?;
    }
    Ok(())
}

/// Whether a case was skipped that looks at the server's process.
fn is_about_process(case: &CaseReport) -> bool {
    case.group == Group::Process && matches!(case.outcome, Outcome::Skipped { .. })
}

/// What the lines before say.
#[derive(Default)]
struct Lines {
    count: usize,
    group: Option<Group>,
    /// Why cases are not graded.
    loss: Option<String>,
}

impl Lines {
    fn text(&mut self, out: &mut impl Write, report: &CaseReport) -> io::Result<()> {
        let CaseReport { name, group, rule, source, .. } = report;
        if self.group.replace(*group) != Some(*group) {
            writeln!(out, "{BOLD}{group}{BOLD:#}")?;
        }
        match &report.outcome {
            Outcome::Passed => {
                writeln!(out, "  {GOOD}pass{GOOD:#} {name:NAME$} {DIM}{rule}{DIM:#}")
            }
            Outcome::Skipped { reason } => {
                writeln!(out, "  {ODD}skip{ODD:#} {name:NAME$} {DIM}{reason}{DIM:#}")
            }
            Outcome::Failed { expected, seen } => writeln!(
                out,
                "  {BAD}FAIL{BAD:#} {name:NAME$} {rule}\n       expected: {expected}\n       \
                 seen:     {BOLD}{seen}{BOLD:#}\n       {DIM}source:   {source}{DIM:#}"
            ),
            Outcome::NotGraded { reason } if self.loss.as_ref() != Some(reason) => {
                self.loss = Some(reason.clone());
                writeln!(out, "  {BAD}none{BAD:#} {name:NAME$} not graded: {reason}")
            }
            Outcome::NotGraded { .. } => {
                writeln!(out, "  {BAD}none{BAD:#} {name:NAME$} {DIM}not graded either{DIM:#}")
            }
            _ => Ok(()),
        }?;
        report
            .remark
            .iter()
            .try_for_each(|remark| writeln!(out, "       {ODD}remark:{ODD:#}   {remark}"))
    }

    fn tap(&mut self, out: &mut impl Write, case: &CaseReport) -> io::Result<()> {
        self.count += 1;
        let CaseReport { name, rule, source, outcome, .. } = case;
        let details = match outcome {
            Outcome::Failed { expected, seen } => {
                vec![("rule", *rule), ("source", source), ("expected", expected), ("seen", seen)]
            }
            Outcome::NotGraded { reason } => vec![("reason", &**reason)],
            _ => vec![],
        };
        let not = if details.is_empty() { "" } else { "not " };
        write!(out, "{not}ok {} - {name}", self.count)?;
        if let Outcome::Skipped { reason } = outcome {
            write!(out, " # SKIP {}", reason.replace('\n', " "))?;
        }
        writeln!(out)?;
        if let Some(remark) = &case.remark {
            writeln!(out, "# remark: {remark}")?;
        }
        if details.is_empty() {
            return Ok(());
        }
        writeln!(out, "  ---")?;
        for (key, value) in details {
            // A JSON string is a YAML string too.
            writeln!(out, "  {key}: {}", serde_json::to_string(value)?)?;
        }
        writeln!(out, "  ...")
    }
}

/// The cases, those of the upper-case service always among them.
fn list(out: &mut impl Write, args: &Args) -> io::Result<()> {
    let chosen = check::cases().filter(|case| {
        (args.only.is_empty() || case.is_among(&args.only)) && !case.is_among(&args.skip)
    });
    let mut group = None;
    for case in chosen {
        if group.replace(case.group) != Some(case.group) {
            writeln!(out, "{BOLD}{}{BOLD:#}", case.group)?;
        }
        writeln!(
            out,
            "  {:NAME$} {}\n  {:NAME$} {DIM}{}{DIM:#}",
            case.name, case.rule, "", case.source
        )?;
    }
    Ok(())
}
