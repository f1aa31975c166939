//! `evecho states`: shows how both ends of a connection change state.

use std::fmt::Write as _;
use std::io::{self, BufRead, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::error::ErrorKind;
use evecho::client::Cancel;
use evecho::client::process::{CommandError, ServerCommand};
use evecho::client::states::{
    self, Config, End, Needs, Outcome, Own, Progress, Report, SCENARIOS, Scenario, ScenarioReport,
    Segment, Side, State, Step, Subject,
};
use evecho::client::target::Target;
use evecho::{Design, Framing};
use serde::Serialize;

use super::output::Output;
use super::serve::{DesignArg, FramingArg};
use super::{CommandResult, FamilyArgs, cancel_at_signals, supervise, units, usage};

/// Show how both ends of a TCP connection change state, step by step
///
/// A scenario is played against a server, call by call. After each call it shows what the kernel has: the
/// state and the queues of both ends, and who waits to be accepted. Each step has a sentence on why it is
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
    #[arg(long, value_name = "COMMAND")]
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

/// A server, or the name of a scenario.
#[derive(Clone)]
enum Word {
    Server(Target),
    Scenario(&'static Scenario),
}

impl FromStr for Word {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(scenario) = Scenario::named(text) {
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
                    target = Some(self.family.apply(server.clone()))
                }
                Word::Server(_) => wrong("the server, HOST:PORT, goes before the scenarios"),
            }
        }
        let subject = match (target, &self.start) {
            (Some(_), Some(_)) => wrong(
                "HOST:PORT is a server that runs, and --start starts another: give one of them",
            ),
            (Some(_), None) if self.design.is_some() => {
                wrong("HOST:PORT is a server that runs: its design is what it is")
            }
            (Some(target), None) => Subject::Address(target),
            (None, Some(command)) => Subject::Command(command.clone()),
            (None, None) => Subject::Own(own(self.family.ipv6)?),
        };
        let mut config = Config::new(subject);
        config.scenarios = scenarios;
        config.design = self.design.map(Design::from);
        config.framing = self.framing.into();
        config.timeout = self.timeout;
        config.supervisor = supervise::words()?;
        Ok(config)
    }
}

fn wrong(sentence: &str) -> ! {
    usage(Some("states"), ErrorKind::ArgumentConflict, sentence)
}

/// This program again, as a server on loopback.
fn own(ipv6: bool) -> Result<Own, Box<dyn std::error::Error>> {
    let program = std::env::current_exe()?;
    let program = program.to_str().and_then(|program| shlex::try_quote(program).ok());
    let program = program.ok_or("the path of evecho is not text: move it elsewhere")?.into_owned();
    let bind = if ipv6 { "::1" } else { "127.0.0.1" };
    Ok(Own(Arc::new(move |needs| own_command(&program, bind, needs))))
}

fn own_command(program: &str, bind: &str, needs: &Needs) -> Result<ServerCommand, CommandError> {
    let framing = match needs.framing {
        Framing::Lines => "lines",
        Framing::LengthPrefixed => "length",
        _ => "raw",
    };
    let mut command = format!(
        "{program} --port {{port}} --bind {bind} --tcp-only --quiet --design {} --framing {framing}",
        needs.design
    );
    let numbers = [("--backlog", needs.backlog), ("--max-connections", needs.max_connections)];
    for (flag, number) in numbers {
        if let Some(number) = number {
            let _ = write!(command, " {flag} {number}");
        }
    }
    if needs.once {
        command += " --once";
    }
    command.parse()
}

/// Plays the scenarios, and prints what is to be seen.
pub(crate) fn run(args: &Args) -> CommandResult {
    let mut out = Output::new(anstream::stdout());
    if args.list {
        for Scenario { name, about, .. } in &SCENARIOS {
            writeln!(out, "{BOLD}{name:14}{BOLD:#} {about}")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let config = args.config()?;
    let cancel = cancel_at_signals()?;
    let report = if args.json {
        let report = states::run(&config, &cancel, |_| {})?;
        let document = Document { evecho: env!("CARGO_PKG_VERSION"), report: &report };
        serde_json::to_writer_pretty(&mut out, &document)?;
        writeln!(out)?;
        report
    } else {
        text(&mut out, &config, &cancel, args.step)?
    };
    Ok(ExitCode::from(u8::from(!report.is_good())))
}

/// The JSON document: the report and who made it.
#[derive(Serialize)]
struct Document<'a> {
    evecho: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

// ---- for people

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const ODD: Style = AnsiColor::Yellow.on_default();

fn text(
    out: &mut Output<impl Write>,
    config: &Config,
    cancel: &Cancel,
    step: bool,
) -> Result<Report, Box<dyn std::error::Error>> {
    let mut written = Ok(());
    let mut steps = 0;
    let report = states::run(config, cancel, |progress| {
        if written.is_ok() {
            written = match progress {
                Progress::Begins(scenario) => {
                    steps = 0;
                    writeln!(out, "{BOLD}{}{BOLD:#}: {}\n", scenario.name, scenario.about)
                }
                Progress::Step(taken) => {
                    steps += 1;
                    write_step(out, steps, taken).and_then(|()| match step {
                        true => wait_for_enter(cancel),
                        false => Ok(()),
                    })
                }
                Progress::Ended(report) => write_outcome(out, report),
                _ => Ok(()),
            };
        }
        if out.is_closed() {
            cancel.cancel();
        }
    })?;
    written?;
    let Report { shown, failed, not_shown, .. } = report;
    let style = if report.is_good() { GOOD } else { BAD };
    let stopped = if report.stopped { "; stopped early" } else { "" };
    writeln!(
        out,
        "{style}{shown} shown, {failed} failed, {not_shown} not shown{stopped}{style:#}"
    )?;
    Ok(report)
}

/// Enter, or the end of the input; Ctrl-C with Enter ends the run.
fn wait_for_enter(cancel: &Cancel) -> io::Result<()> {
    if cancel.is_cancelled() {
        return Ok(());
    }
    let mut terminal = io::stderr();
    // Nobody to tell is no reason to end.
    let _ = write!(terminal, "Enter: the next step ").and_then(|()| terminal.flush());
    io::stdin().lock().read_line(&mut String::new()).map(|_| ())
}

fn write_outcome(out: &mut impl Write, report: &ScenarioReport) -> io::Result<()> {
    let name = report.name;
    match &report.outcome {
        Outcome::Shown => writeln!(out, "{GOOD}{name}: shown{GOOD:#}\n"),
        Outcome::Failed { expected, seen } => writeln!(
            out,
            "{BAD}{name}: FAILED{BAD:#}\n  expected: {expected}\n  seen:     {seen}\n"
        ),
        Outcome::NotShown { reason } => writeln!(out, "{ODD}{name}: not shown: {reason}{ODD:#}\n"),
        _ => Ok(()),
    }
}

/// How wide lines are.
const WIDTH: usize = 100;
/// Where the text of a step begins.
const INDENT: usize = 3;
/// How wide the columns are: a state and what is odd about it, a queue, the arrows.
const CLIENT: usize = 22;
const SERVER: usize = 25;
const QUEUE: usize = 8;
const ARROW: usize = 13;

fn write_step(out: &mut impl Write, number: usize, step: &Step) -> io::Result<()> {
    let slowly = step.own_listener.then_some("in slow motion, with a listener of our own:");
    let calls = slowly.into_iter().chain(step.calls.iter().map(String::as_str));
    for (index, call) in calls.enumerate() {
        let number = if index == 0 { format!("{number}.") } else { String::new() };
        writeln!(out, "{BOLD}{number:INDENT$}{call}{BOLD:#}")?;
    }
    if !step.connections.is_empty() {
        write_connections(out, step)?;
    }
    if let Some(listener) = &step.listener {
        let (waiting, room) = (listener.waiting, listener.room);
        writeln!(out, "{:INDENT$}LISTEN, {waiting} waiting to be accepted, room for {room}", "")?;
    }
    let why = format!("{} [{}]", step.why, step.source.replace(' ', UNBROKEN));
    for line in wrap(&why, WIDTH - INDENT) {
        writeln!(out, "{:INDENT$}{DIM}{line}{DIM:#}", "")?;
    }
    writeln!(out)
}

fn write_connections(out: &mut impl Write, step: &Step) -> io::Result<()> {
    let client = match &step.connections[..] {
        [only] => format!("client {}", only.address),
        _ => "client".to_owned(),
    };
    let (server, queues) = match step.connections.iter().any(|one| one.server.is_some()) {
        true => (format!("server {}", step.address), ["recv-q", "send-q"]),
        false => ("server, on another machine".to_owned(), [""; 2]),
    };
    let heading = format!(
        "{:INDENT$}   {client:CLIENT$}{:>QUEUE$}{:>QUEUE$} {:ARROW$} {server:SERVER$}{:>QUEUE$}{:>QUEUE$}",
        "", "recv-q", "send-q", "", queues[0], queues[1]
    );
    writeln!(out, "{DIM}{}{DIM:#}", heading.trim_end())?;
    for (index, connection) in step.connections.iter().enumerate() {
        let client = index + 1;
        let mut arrows = step.segments.iter().filter(|one| one.client == client).map(arrow);
        let first = arrows.next().unwrap_or_default();
        let near = cells(&connection.client, CLIENT);
        let far = connection.server.as_ref().map(|end| cells(end, SERVER)).unwrap_or_default();
        let row = format!("{:INDENT$}{client:2} {near} {first:ARROW$} {far}", "");
        writeln!(out, "{}", row.trim_end())?;
        for arrow in arrows {
            writeln!(out, "{:BEFORE_ARROW$}{arrow}", "")?;
        }
    }
    Ok(())
}

const BEFORE_ARROW: usize = INDENT + 3 + CLIENT + 2 * QUEUE + 1;

/// State and queues of an end.
fn cells(end: &End, width: usize) -> String {
    let mut state = end.state.to_string();
    if end.waits_to_be_accepted() {
        state += ", not accepted";
    } else if end.zero_window {
        state += ", window 0";
    }
    if end.state == State::Closed {
        return format!("{state:width$}{:1$}", "", 2 * QUEUE);
    }
    format!("{state:width$}{:QUEUE$}{:QUEUE$}", end.receive_queue, end.send_queue)
}

/// A segment as an arrow.
fn arrow(segment: &Segment) -> String {
    const LINE: usize = ARROW - 1;
    let what = format!(" {} ", segment.what);
    match segment.from {
        Side::Client => format!("{what:-^LINE$}>"),
        Side::Server => format!("<{what:-^LINE$}"),
    }
}

/// A space where no line ends.
const UNBROKEN: &str = "\u{a0}";

/// The lines of a text that are at most so wide.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let line = lines.last_mut().expect("there is always one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.iter().map(|line| line.replace(UNBROKEN, " ")).collect()
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
        for (text, why) in [("half-closed", "--list"), ("", "--list"), ("a:b:7", "brackets")] {
            let Err(error) = text.parse::<Word>() else { panic!("{text} is nothing") };
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_server_of_its_own_is_as_it_is_needed() {
        let mut needs = Needs::default();
        let command = own_command("'the program'", "::1", &needs).unwrap().words(7).join(" ");
        assert_eq!(
            command,
            "the program --port 7 --bind ::1 --tcp-only --quiet --design event-loop --framing raw"
        );
        (needs.once, needs.backlog) = (true, Some(1));
        let command = own_command("evecho", "::1", &needs).unwrap().words(7).join(" ");
        assert!(command.ends_with(" --backlog 1 --once"), "{command}");
    }

    #[test]
    fn lines_are_as_wide_as_they_may_be() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("overlong one", 4), ["overlong", "one"]);
        assert_eq!(wrap("one two\u{a0}three", 7), ["one", "two three"]);
        assert_eq!(wrap("", 4), [""]);
    }
}
