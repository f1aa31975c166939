//! `evecho states`: shows how both ends of a connection change state.

mod text;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use evecho::client::Cancel;
use evecho::client::process::ServerCommand;
use evecho::client::states::{
    self, Config, Needs, Outcome, Progress, Report, SCENARIOS, Scenario, ScenarioReport, Subject,
};
use evecho::client::target::Target;
use evecho::{Design, Framing, Transport};

use super::figure::Figure;
use super::output::{BAD, BOLD, DIM, GOOD, ODD, Output};
use super::serve::{DesignArg, FramingArg};
use super::{CommandResult, FamilyArgs, supervise, units, usage};
use text::Text;

/// The names of all scenarios.
pub(crate) fn scenario_names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|scenario| scenario.name).collect()
}

/// Show how both ends of a TCP connection change state, step by step
///
/// A scenario is played against a server, call by call. After each call it shows what the kernel has: the
/// state and the queues of both ends, and what waits to be accepted. Each step has a sentence on why it is
/// so, and where that is written. Without HOST:PORT it starts a server of its own for each scenario.
///
/// A scenario waits for the states that it shows, and fails where they do not come. What a server is not made
/// for is not shown, with the reason. The exit code is 0 when something was shown and nothing failed, 1
/// when something failed, nothing could be shown or it was stopped, and 2 on usage.
#[derive(clap::Args)]
#[command(override_usage = "evecho states [OPTIONS] [HOST:PORT] [SCENARIO...]\n       \
                            evecho states [OPTIONS] --start <COMMAND> [SCENARIO...]\n       \
                            evecho states --list")]
pub(crate) struct Args {
    /// A server that runs, and the scenarios to show; without a name, all
    #[arg(value_name = "HOST:PORT|SCENARIO")]
    words: Vec<Word>,
    #[command(flatten)]
    family: FamilyArgs,
    /// Start this server for each scenario, on loopback; {port} in the command stands for its port
    #[arg(long, value_name = "COMMAND", value_hint = clap::ValueHint::CommandString)]
    start: Option<ServerCommand>,
    /// Design of the server of its own [default: the one that a scenario is about, or event-loop]
    #[arg(long, value_enum, conflicts_with = "start")]
    design: Option<DesignArg>,
    /// How the end of a message is marked in the scenario echo; the server has to do the same
    #[arg(long, value_enum, default_value_t = FramingArg::Raw)]
    #[arg(num_args = 0..=1, default_missing_value = "lines")]
    framing: FramingArg,
    /// Most time that a state may take to come
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::timeout)]
    timeout: Duration,
    /// Show the segments as they are on the wire, with their numbers; this takes CAP_NET_RAW, or a network
    /// of its own, which it makes where it starts the server
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = Segments::Auto)]
    #[arg(num_args = 0..=1, default_missing_value = "always", require_equals = true)]
    segments: Segments,
    /// Show sequence numbers as they are on the wire, and not since the SYN
    #[arg(long)]
    absolute: bool,
    /// Draw what was shown as ladders, time going down: SVG
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    figure: Option<PathBuf>,
    /// Wait for Enter after each step
    #[arg(long, conflicts_with = "json")]
    step: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// List the scenarios, and show none
    #[arg(long)]
    list: bool,
}

/// Whether segments are seen on the wire.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Segments {
    /// Where that is possible
    Auto,
    /// Always, or it ends
    Always,
    /// Never: those are shown that make such a change of states
    Never,
}

impl Segments {
    /// Sees to it that segments are seen, if they are to be. Where they cannot be, and need not, it says why.
    fn prepare(self, config: &mut Config) -> Result<Option<String>, String> {
        if self == Self::Never {
            return Ok(None);
        }
        let starts_server = matches!(config.subject, Subject::Command(_));
        let seen = match states::sees_segments() {
            Err(error) if starts_server => own_network().map_err(|_| error),
            seen => seen,
        };
        config.segments = seen.is_ok();
        let Err(error) = seen else { return Ok(None) };
        let also = if starts_server { ", also in namespaces of its own" } else { "" };
        let why = format!(
            "seeing segments on the wire takes CAP_NET_RAW, which the system refuses{also} ({error})"
        );
        if self == Self::Always { Err(why) } else { Ok(Some(why)) }
    }
}

/// The only word of the command line of a try; see [`own_network`].
pub(super) const OWN_NETWORK: &str = "__own-network";

/// Moves this process into a network of its own, in which it sees segments. A process that has failed half-way
/// would have no network at all, so another one tries it first.
fn own_network() -> io::Result<()> {
    let mut this = Command::new(supervise::this());
    let quiet = this.arg(OWN_NETWORK).stdin(Stdio::null()).stderr(Stdio::null());
    if !quiet.status()?.success() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    states::enter_own_network()
}

/// The try.
pub(super) fn try_own_network() -> CommandResult {
    states::enter_own_network()?;
    states::sees_segments()?;
    Ok(ExitCode::SUCCESS)
}

/// A server, or the name of a scenario.
#[derive(Clone)]
enum Word {
    Server(Target),
    Scenario(&'static Scenario),
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == text) {
            return Ok(Self::Scenario(scenario));
        }
        // A name alone could be a host too: it is taken for a scenario that is misspelt.
        if text.contains([':', '.']) || text == "localhost" || text.parse::<IpAddr>().is_ok() {
            return text.parse().map(Self::Server).map_err(|error| format!("{error}"));
        }
        Err("no scenario has this name, and a server is HOST:PORT; --list shows the names"
            .to_owned())
    }
}

impl Args {
    fn config(&self) -> Result<Config, Box<dyn std::error::Error>> {
        let (mut target, mut scenarios) = (None, Vec::new());
        for (index, word) in self.words.iter().enumerate() {
            match word {
                Word::Scenario(scenario) => scenarios.push(*scenario),
                Word::Server(server) if index == 0 => {
                    let mut server = self.family.apply(server.clone());
                    if server.take_transport() == Some(Transport::Udp) {
                        wrong("states are those of TCP connections: UDP has none");
                    }
                    target = Some(server);
                }
                Word::Server(_) => wrong("the server, HOST:PORT, goes before the scenarios"),
            }
        }
        let mut config = Config::new(match (target, &self.start) {
            (Some(_), Some(_)) => wrong(
                "HOST:PORT is a server that runs, and --start starts another: give one of them",
            ),
            (Some(_), None) if self.design.is_some() => {
                wrong("HOST:PORT is a server that runs: its design is what it is")
            }
            (Some(target), None) => Subject::Address(target),
            (None, Some(command)) => Subject::Command(command.clone()),
            (None, None) => Subject::Command(own(self.family.ipv6)?),
        });
        config.arguments = self.start.is_none().then_some(arguments);
        config.scenarios = scenarios;
        config.design = self.design.map(Design::from);
        config.framing = self.framing.into();
        config.timeout = self.timeout;
        config.supervisor = supervise::words();
        Ok(config)
    }
}

fn wrong(sentence: &str) -> ! {
    usage(Some("states"), ErrorKind::ArgumentConflict, sentence)
}

/// This program again, as a server on loopback.
fn own(ipv6: bool) -> Result<ServerCommand, Box<dyn std::error::Error>> {
    let program = supervise::program()?;
    let bind = if ipv6 { "::1" } else { "127.0.0.1" };
    Ok(format!("{program} --port {{port}} --bind {bind} --tcp-only --quiet").parse()?)
}

fn arguments(needs: &Needs) -> Vec<String> {
    let framing = match needs.framing {
        Framing::Lines => "lines",
        Framing::LengthPrefixed => "length",
        _ => "raw",
    };
    let mut arguments = vec![format!("--design={}", needs.design), format!("--framing={framing}")];
    arguments.extend(needs.backlog.map(|backlog| format!("--backlog={backlog}")));
    arguments.extend(needs.max_connections.map(|most| format!("--max-connections={most}")));
    arguments.extend(needs.once.then(|| "--once".to_owned()));
    arguments
}

/// Plays the scenarios, and prints what is to be seen.
pub(crate) fn run(args: &Args) -> CommandResult {
    let mut out = Output::new(anstream::stdout());
    if args.list {
        write_list(&mut out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut config = args.config()?;
    // Before any thread is started: a process with threads cannot enter a namespace of users.
    let unseen = args.segments.prepare(&mut config)?;
    let figure = Figure::open(args.figure.as_deref())?;
    let cancel = Cancel::at_signals()?;
    // A descriptor of our own: the standard one keeps a buffer, and `poll` cannot see into it.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut input = BufReader::new(cancel.reader(input));
    let mut text = Text::new(args.absolute);
    let report = states::run(&config, &cancel, |progress| {
        out.follow(&cancel, |out| match progress {
            _ if args.json => Ok(()),
            Progress::Begins(scenario) => {
                text.begin();
                writeln!(out, "{BOLD}{}{BOLD:#}: {}\n", scenario.name, scenario.about)
            }
            Progress::Step(step) => {
                text.write_step(out, step)?;
                if args.step { wait_for_enter(&mut input) } else { Ok(()) }
            }
            Progress::Ended(report) => write_outcome(out, report),
            _ => Ok(()),
        });
    })?;
    out.conclude(|out| match args.json {
        true => out.json(&report),
        false => {
            write_counts(out, &report)?;
            unseen.iter().try_for_each(|why| {
                writeln!(out, "{DIM}The segments were not seen, but follow from calls and states: {why}{DIM:#}")
            })
        }
    })?;
    if let Some(figure) = figure {
        figure.write(&report.figure())?;
    }
    Ok(ExitCode::from(u8::from(!report.is_good())))
}

fn write_list(out: &mut impl Write) -> io::Result<()> {
    SCENARIOS.iter().try_for_each(|Scenario { name, about, .. }| {
        writeln!(out, "{BOLD}{name:14}{BOLD:#} {about}")
    })
}

fn write_counts(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let Report { shown, failed, not_shown, .. } = report;
    let style = if report.is_good() { GOOD } else { BAD };
    let stopped = if report.stopped { "; stopped early" } else { "" };
    writeln!(out, "{style}{shown} shown, {failed} failed, {not_shown} not shown{stopped}{style:#}")
}

/// Enter, the end of the input, or the end of the run.
fn wait_for_enter(input: &mut impl BufRead) -> io::Result<()> {
    let mut terminal = io::stderr();
    // A terminal that cannot be written to is no reason to end.
    let _ = write!(terminal, "Enter: the next step ").and_then(|()| terminal.flush());
    input.read_line(&mut String::new()).map(|_| ())
}

fn write_outcome(out: &mut impl Write, report: &ScenarioReport) -> io::Result<()> {
    let name = report.name;
    match &report.outcome {
        Outcome::Passed => writeln!(out, "{GOOD}{name}: shown{GOOD:#}\n"),
        Outcome::Failed { expected, seen } => writeln!(
            out,
            "{BAD}{name}: FAILED{BAD:#}\n  expected: {expected}\n  seen:     {seen}\n"
        ),
        Outcome::Skipped { reason } | Outcome::NotGraded { reason } => {
            writeln!(out, "{ODD}{name}: not shown: {reason}{ODD:#}\n")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_server_or_a_scenario() {
        for text in ["localhost:7", "127.0.0.1", "[::1]:7", "host.example", "localhost"] {
            assert!(matches!(text.parse(), Ok(Word::Server(_))), "{text}");
        }
        for Scenario { name, .. } in &SCENARIOS {
            let Ok(Word::Scenario(found)) = name.parse() else { panic!("{name} is a scenario") };
            assert_eq!(found.name, *name);
        }
        for (text, why) in [("half-closed", "--list"), ("", "--list"), ("a:b:7", "several colons")]
        {
            let Err(error) = text.parse::<Word>() else { panic!("{text} is nothing") };
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_server_of_its_own_is_as_it_is_needed() {
        let mut needs = Needs::default();
        assert_eq!(arguments(&needs), ["--design=event-loop", "--framing=raw"]);
        (needs.once, needs.backlog) = (true, Some(1));
        assert_eq!(arguments(&needs)[2..], ["--backlog=1", "--once"]);
    }
}
