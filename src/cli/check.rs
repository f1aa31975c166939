//! `evecho check`: grades an echo server.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::{ArgGroup, ValueEnum};
use evecho::client::Cancel;
use evecho::client::check::{self, CASES, CaseReport, Config, Group, Outcome, Report};
use evecho::client::check::{Service, Subject};
use evecho::client::process::ServerCommand;
use evecho::client::target::{Target, Transport};
use evecho::units::time;
use serde::Serialize;

use super::output::Output;
use super::{CommandResult, FamilyArgs, cancel_at_signals, supervise, units};

/// Grade any echo server by the rules that it must follow
///
/// Each rule is a case with a name and a source (RFC, manual page or advisory). A case passes,
/// fails, is skipped with the reason, or is not graded because the server is gone. The exit code is 0
/// when cases passed and none failed, 1 when one failed, was not graded, or all were skipped, and 2
/// on usage.
///
/// Some cases measure, so nobody else should use the server at the time. Cases that look at its process
/// need --pid or --start. Cases that forge datagrams need root, and a server on loopback.
#[derive(clap::Args)]
#[command(override_usage = "evecho check [OPTIONS] <HOST[:PORT]>\n       \
                            evecho check [OPTIONS] --start <COMMAND>\n       \
                            evecho check --list")]
#[command(group = ArgGroup::new("subject").args(["target", "start", "list"]).required(true))]
pub(crate) struct Args {
    /// Server to grade; without a port it is 12000
    #[arg(value_name = "HOST[:PORT]", conflicts_with = "start")]
    target: Option<Target>,
    #[command(flatten)]
    family: FamilyArgs,
    /// Also look at this process, which is the server, on this machine
    #[arg(long, requires = "target", conflicts_with = "start")]
    pid: Option<u32>,
    /// Start the server to grade, on loopback; {port} in the command stands for its port
    #[arg(long, value_name = "COMMAND")]
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
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = pattern)]
    only: Vec<String>,
    /// Leave out these cases
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = pattern)]
    skip: Vec<String>,
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
    /// Test Anything Protocol, version 14
    Tap,
    /// One JSON document
    Json,
}

fn pattern(text: &str) -> Result<String, String> {
    if CASES.iter().any(|case| case.is_among(&[text.to_owned()])) {
        return Ok(text.to_owned());
    }
    Err("no case has a name that starts like this; --list shows the names".to_owned())
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
        let target = self.target.clone().map(|target| self.family.apply(target));
        let subject = match (&target, self.pid, &self.start) {
            (Some(target), Some(pid), _) => Subject::Process(target.clone(), pid),
            (Some(target), None, _) => Subject::Address(target.clone()),
            (None, _, Some(command)) => Subject::Command(command.clone()),
            (None, _, None) => return Ok(None),
        };
        let mut config = Config::new(subject);
        config.service = self.service();
        config.transport = match (self.tcp_only, self.udp_only) {
            (true, _) => Some(Transport::Tcp),
            (_, true) => Some(Transport::Udp),
            _ => None,
        };
        config.once = self.once;
        config.only.clone_from(&self.only);
        config.skip.clone_from(&self.skip);
        config.timeout = self.timeout;
        config.supervisor = supervise::words()?;
        Ok(Some(config))
    }

    fn service(&self) -> Service {
        if self.upper { Service::Upper } else { Service::Echo }
    }
}

/// Grades the server and prints what was found.
pub(crate) fn run(args: &Args) -> CommandResult {
    let mut out = Output::new(anstream::stdout());
    let Some(config) = args.config()?.filter(|_| !args.list) else {
        list(&mut out, args)?;
        return Ok(ExitCode::SUCCESS);
    };
    // Cases hold hundreds of connections. Where this fails, those that need more say so.
    let _ = evecho::raise_open_file_limit();
    let cancel = cancel_at_signals()?;
    let report = match args.format {
        Format::Text => text(&mut out, &config, &cancel)?,
        Format::Tap => tap(&mut out, &config, &cancel)?,
        Format::Json => {
            let report = check::run(&config, &cancel, |_| {})?;
            serde_json::to_writer_pretty(&mut out, &Document::of(&report))?;
            writeln!(out)?;
            report
        }
    };
    if out.is_closed() && report.not_graded > 0 {
        // Nobody reads on: no verdict, and not a word.
        return Ok(ExitCode::from(1));
    }
    if report.passed + report.failed == 0 {
        return Err("nothing was graded: none of the chosen cases applies to this server".into());
    }
    Ok(ExitCode::from(u8::from(!report.all_passed())))
}

/// The JSON document: the report and who made it.
#[derive(Serialize)]
struct Document<'a> {
    evecho: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

impl<'a> Document<'a> {
    fn of(report: &'a Report) -> Self {
        Self { evecho: env!("CARGO_PKG_VERSION"), report }
    }
}

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const ODD: Style = AnsiColor::Yellow.on_default();

/// How wide the names are printed: the longest is `tcp-half-close-empty`.
const NAME: usize = 20;

fn text(
    out: &mut Output<impl Write>,
    config: &Config,
    cancel: &Cancel,
) -> Result<Report, Box<dyn std::error::Error>> {
    let mut lines = Lines { group: None, loss: None };
    let mut written = Ok(());
    let report = check::run(config, cancel, |case| {
        if written.is_ok() {
            written = lines.write(out, case);
        }
        cancel_unread(out, cancel);
    })?;
    written?;
    let Report { passed, failed, skipped, not_graded, address, took, .. } = &report;
    let style = if report.all_passed() { GOOD } else { BAD };
    let not_graded = match not_graded {
        0 => String::new(),
        count => format!(", {count} not graded"),
    };
    writeln!(
        out,
        "\n{style}{address}: {passed} passed, {failed} failed, {skipped} skipped{not_graded}\
         {style:#} {DIM}({}){DIM:#}",
        time(*took)
    )?;
    let from_outside = matches!(config.subject, Subject::Address(_));
    if from_outside && report.cases.iter().any(is_about_process) {
        writeln!(out, "{DIM}With --pid or --start, its process is graded too.{DIM:#}")?;
    }
    Ok(report)
}

/// Whether a case was skipped that looks at the server's process.
fn is_about_process(case: &CaseReport) -> bool {
    case.group == Group::Process && matches!(case.outcome, Outcome::Skipped { .. })
}

/// What the lines before say.
struct Lines {
    group: Option<Group>,
    /// Why cases are not graded.
    loss: Option<String>,
}

impl Lines {
    fn write(&mut self, out: &mut impl Write, report: &CaseReport) -> io::Result<()> {
        if self.group.replace(report.group) != Some(report.group) {
            writeln!(out, "{BOLD}{}{BOLD:#}", report.group)?;
        }
        let name = report.name;
        match &report.outcome {
            Outcome::NotGraded { reason } if self.loss.as_ref() != Some(reason) => {
                self.loss = Some(reason.clone());
                writeln!(out, "  {BAD}none{BAD:#} {name:NAME$} not graded: {reason}")
            }
            Outcome::NotGraded { .. } => {
                writeln!(out, "  {BAD}none{BAD:#} {name:NAME$} {DIM}not graded either{DIM:#}")
            }
            _ => text_case(out, report),
        }
    }
}

fn text_case(out: &mut impl Write, report: &CaseReport) -> io::Result<()> {
    let CaseReport { name, rule, source, .. } = report;
    match &report.outcome {
        Outcome::Passed => writeln!(out, "  {GOOD}pass{GOOD:#} {name:NAME$} {DIM}{rule}{DIM:#}"),
        Outcome::Skipped { reason } => {
            writeln!(out, "  {ODD}skip{ODD:#} {name:NAME$} {DIM}{reason}{DIM:#}")
        }
        Outcome::Failed { expected, seen } => writeln!(
            out,
            "  {BAD}FAIL{BAD:#} {name:NAME$} {rule}\n       expected: {expected}\n       \
             seen:     {BOLD}{seen}{BOLD:#}\n       {DIM}source:   {source}{DIM:#}"
        ),
        _ => Ok(()),
    }
}

/// Grades no further once nobody reads it.
fn cancel_unread(out: &Output<impl Write>, cancel: &Cancel) {
    if out.is_closed() {
        cancel.cancel();
    }
}

fn tap(
    out: &mut Output<impl Write>,
    config: &Config,
    cancel: &Cancel,
) -> Result<Report, Box<dyn std::error::Error>> {
    let mut number = 0;
    let mut written =
        writeln!(out, "TAP version 14\n1..{}", config.cases().count()).map_err(Into::into);
    let report = check::run(config, cancel, |case| {
        number += 1;
        if written.is_ok() {
            written = tap_case(out, number, case);
        }
        cancel_unread(out, cancel);
    })?;
    written?;
    Ok(report)
}

fn tap_case(
    out: &mut impl Write,
    number: usize,
    case: &CaseReport,
) -> Result<(), Box<dyn std::error::Error>> {
    let name = case.name;
    match &case.outcome {
        Outcome::Passed => writeln!(out, "ok {number} - {name}")?,
        Outcome::Skipped { reason } => {
            writeln!(out, "ok {number} - {name} # SKIP {}", reason.replace('\n', " "))?;
        }
        Outcome::Failed { expected, seen } => {
            writeln!(out, "not ok {number} - {name}\n  ---")?;
            let lines = [
                ("rule", case.rule),
                ("source", case.source),
                ("expected", expected),
                ("seen", seen),
            ];
            for (key, value) in lines {
                // A JSON string is a YAML string too.
                writeln!(out, "  {key}: {}", serde_json::to_string(value)?)?;
            }
            writeln!(out, "  ...")?;
        }
        Outcome::NotGraded { reason } => {
            let reason = serde_json::to_string(reason)?;
            writeln!(out, "not ok {number} - {name}\n  ---\n  not graded: {reason}\n  ...")?;
        }
        _ => {}
    }
    Ok(())
}

/// The cases, those of the upper-case service always among them.
fn list(out: &mut impl Write, args: &Args) -> io::Result<()> {
    let chosen = CASES.iter().filter(|case| {
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
