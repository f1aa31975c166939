//! `evecho compare`: the three designs, and any other echo server, under the same load.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use evecho::Design;
use evecho::client::compare::{
    self, Cell, Config, Contender, Measurement, Progress, Report, Spread, Trial,
};
use evecho::client::process::{CommandError, ServerCommand};
use evecho::units::{grouped, time};
use serde::Serialize;

use super::output::Output;
use super::serve::DesignArg;
use super::{CommandResult, cancel_at_signals, supervise, units, usage};

/// Compare echo servers under the same load: the three designs of evecho, and any others
///
/// Each server is started on loopback, loaded and ended, in several rounds in which all take turns,
/// and every byte that comes back is verified. The table has the messages per second, the median (p50)
/// and p99 of the latency, and what each server used: CPU, switches between threads, memory.
///
/// When a server dies, answers wrong bytes or leaves clients without an answer, its row says so, and
/// the comparison goes on. Ctrl-C ends it and prints what was measured so far.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Designs of evecho to compare
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "event-loop,threaded,iterative"
    )]
    design: Vec<DesignArg>,
    /// Another echo server to compare, like socat='socat TCP-LISTEN:{port},fork PIPE'; may be
    /// given several times
    #[arg(long, value_name = "NAME=COMMAND", value_parser = peer)]
    peer: Vec<Contender>,
    /// How many lasting connections: one measurement for each number
    #[arg(short, long, value_name = "NUMBER,...", value_delimiter = ',', default_value = "1,10,100,1000", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Vec<u32>,
    /// Bytes in each message
    #[arg(short, long, value_name = "SIZE", default_value = "64", value_parser = units::size)]
    size: u64,
    /// Messages in flight on each lasting connection
    #[arg(short, long, value_name = "NUMBER", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    depth: u16,
    /// How many rounds; in each of them the servers take turns
    #[arg(short, long, value_name = "NUMBER", default_value = "5", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure each server for this time in each round
    #[arg(short, long, value_name = "TIME", default_value = "400ms", value_parser = units::timeout)]
    time: Duration,
    /// Leave out the other measurements: with a slow client, idle clients, short connections
    #[arg(long)]
    no_scenes: bool,
    /// How long a reply, or the start of a server, may take
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = units::timeout)]
    timeout: Duration,
    /// Write compare.svg, compare.csv and compare.json into this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// In fewer rounds than this, an order may well be chance.
const CLEAR: u32 = 3;
/// More CPUs than this in use by others make a comparison doubtful.
const BUSY: f64 = 0.2;

/// The scenes behind the plain load.
const SCENES: [Trial; 3] = [
    Trial::Slow { connections: 100 },
    Trial::Idle { connections: 1_000 },
    Trial::Short { connections: 10 },
];

/// Reads `NAME=COMMAND`.
fn peer(text: &str) -> Result<Contender, String> {
    let Some((name, command)) = text.split_once('=').filter(|(name, _)| !name.trim().is_empty())
    else {
        return Err(format!("'{text}' has no name: write NAME='COMMAND with {{port}}'"));
    };
    let command = command.parse().map_err(|error: CommandError| error.to_string())?;
    Ok(Contender::new(name.trim(), command))
}

/// Compares, and prints what came of it.
pub(crate) fn run(args: Args) -> CommandResult {
    let output = args.output.clone();
    if let Some(directory) = &output {
        // Before minutes of work, not after.
        fs::create_dir_all(directory)
            .map_err(|error| format!("cannot write into '{}': {error}", directory.display()))?;
    }
    // The servers inherit the limit.
    evecho::raise_open_file_limit()?;
    let config = config(args)?;
    let cancel = cancel_at_signals()?;
    let mut status = Status { terminal: io::stderr().is_terminal(), round: 0 };
    let report = compare::run(&config, &cancel, |progress| status.show(progress));
    status.clear();
    let report = report?;
    Output::plain().write_all(describe(&report).as_bytes())?;
    if let Some(directory) = &output {
        write_files(&report, directory)
            .map_err(|error| format!("cannot write into '{}': {error}", directory.display()))?;
    }
    Ok(ExitCode::from(u8::from(report.stopped || !report.measured_all())))
}

fn config(args: Args) -> Result<Config, Box<dyn std::error::Error>> {
    let program = env::current_exe()?;
    let mut contenders = Vec::new();
    for design in args.design {
        let command = design_command(&program, design.into())?;
        let mut contender = Contender::new(Design::from(design).to_string(), command);
        contender.version = Some(env!("CARGO_PKG_VERSION").to_owned());
        contenders.push(contender);
    }
    contenders.extend(args.peer);
    for (index, contender) in contenders.iter().enumerate() {
        if contenders[..index].iter().any(|other| other.name == contender.name) {
            usage(
                Some("compare"),
                ErrorKind::ValueValidation,
                &format!(
                    "two servers are called '{}': give each a name of its own",
                    contender.name
                ),
            );
        }
    }
    let mut connections = args.connections;
    connections.sort_unstable();
    connections.dedup();
    let plain = connections.into_iter().map(|connections| Trial::Connections { connections });
    let scenes = if args.no_scenes { &[][..] } else { &SCENES };
    let mut config = Config::new(contenders, plain.chain(scenes.iter().copied()).collect());
    config.rounds = args.rounds;
    config.time = args.time;
    config.size = usize::try_from(args.size).unwrap_or(usize::MAX);
    config.depth = args.depth;
    config.timeout = args.timeout;
    config.supervisor = supervise::words()?;
    Ok(config)
}

/// This program again, as a server.
fn design_command(program: &Path, design: Design) -> Result<ServerCommand, String> {
    let program = program.to_str().and_then(|program| shlex::try_quote(program).ok());
    let program = program.ok_or("the path of evecho is not text: move it elsewhere")?;
    format!("{program} --port {{port}} --bind 127.0.0.1 --quiet --design {design}")
        .parse()
        .map_err(|error: CommandError| error.to_string())
}

/// What tells how far the comparison is: a line on a terminal that changes, else a line a round.
struct Status {
    terminal: bool,
    round: u32,
}

impl Status {
    fn show(&mut self, progress: &Progress<'_>) {
        let Progress { done, total, round, name, trial, .. } = *progress;
        let mut out = io::stderr();
        // Nobody to tell is no reason to end.
        let _ = if self.terminal {
            write!(out, "\r\x1b[K{} % round {round}: {name}, {trial}", 100 * done / total.max(1))
        } else if round > self.round {
            writeln!(out, "round {round}, {} % done", 100 * done / total.max(1))
        } else {
            Ok(())
        };
        self.round = round;
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// The JSON document: the report and what made it.
#[derive(Serialize)]
struct Document<'a> {
    command: Vec<String>,
    #[serde(flatten)]
    report: &'a Report,
}

fn write_files(report: &Report, directory: &Path) -> io::Result<()> {
    let document = Document { command: env::args().collect(), report };
    let json = serde_json::to_string_pretty(&document)? + "\n";
    fs::write(directory.join("compare.json"), json)?;
    fs::write(directory.join("compare.csv"), report.csv())?;
    if let Some(svg) = compare::svg(report) {
        fs::write(directory.join("compare.svg"), svg)?;
    }
    Ok(())
}

// ---- the table

/// The report for people.
fn describe(report: &Report) -> String {
    let name = report.servers.iter().map(|server| server.name.chars().count()).max().unwrap_or(0);
    let mut text = heading(report);
    for trial in report.trials() {
        let _ = writeln!(text, "\n{trial}");
        for cell in report.cells_of(trial) {
            let _ = write!(text, "  {:<name$}  ", cell.server);
            let row = if cell.rounds.is_empty() { String::new() } else { row(cell) };
            text += match &cell.fault {
                None if cell.rounds.is_empty() => "not measured".to_owned(),
                None => row,
                Some(fault) if cell.rounds.is_empty() => fault.clone(),
                Some(fault) => format!("{row}; then: {fault}"),
            }
            .trim_end();
            text.push('\n');
        }
    }
    text += &orders(report);
    if report.machine.busy_cpus > BUSY {
        let _ = write!(
            text,
            "\nOther programs kept {:.1} of {} CPUs busy when this began: end them, and compare again.\n",
            report.machine.busy_cpus, report.machine.cpus
        );
    }
    if report.stopped {
        text += "\nStopped early.\n";
    }
    text
}

fn heading(report: &Report) -> String {
    let machine = &report.machine;
    let name = report.servers.iter().map(|server| server.name.chars().count()).max().unwrap_or(0);
    format!(
        "{}-byte messages, {} in flight on each connection. Rounds: {}, of {} each; the median, and ± half \
         of the spread.\n{}, {} CPUs, {} MiB, {}, evecho {}; the client shares the machine.\n\n\
         {:name$}    {:>17}  {:>7} {:>7}  {:>8}  {:>8}  {:>7}  {:>9}\n\
         {:name$}    {:>17}  {:>7} {:>7}  {:>8}  {:>8}  {:>7}  {:>9}\n",
        report.size,
        report.depth,
        report.rounds,
        time(Duration::from_secs_f64(report.seconds)),
        machine.cpu,
        machine.cpus,
        machine.memory >> 20,
        machine.kernel,
        report.version,
        "",
        "messages",
        "p50",
        "p99",
        "CPU per",
        "switches",
        "",
        "resident",
        "",
        "per second",
        "",
        "",
        "message",
        "/message",
        "threads",
        "memory",
    )
}

/// The numbers of a server under a trial.
fn row(cell: &Cell) -> String {
    let median = |of: fn(&Measurement) -> f64| cell.spread(of).map_or(0.0, |spread| spread.median);
    let micros = |us: f64| time(Duration::from_secs_f64(us / 1e6));
    let rate = cell.spread(|m| m.messages_per_second);
    let rate = rate.map_or(String::new(), |rate| {
        format!("{} ±{:>3.0} %", grouped(rate.median as u64), rate.percent())
    });
    let switches = Spread::of(cell.rounds.iter().filter_map(|m| m.switches_per_message));
    let switches = switches.map_or("-".to_owned(), |each| format!("{:.2}", each.median));
    let mut row = format!(
        "{rate:>17}  {:>7} {:>7}  {:>8}  {switches:>8}  {:>7}  {:>5.1} MiB",
        micros(median(|m| m.p50_us)),
        micros(median(|m| m.p99_us)),
        micros(median(|m| m.cpu_us_per_message)),
        median(|m| m.threads),
        median(|m| m.resident_bytes) / f64::from(1 << 20),
    );
    let silence = || cell.rounds.iter().filter_map(|m| m.silence.as_ref());
    if let (Some(cpu), Some(switches)) = (
        Spread::of(silence().map(|silence| silence.cpu_percent)),
        Spread::of(silence().map(|silence| silence.switches_per_second)),
    ) {
        let (cpu, switches) = (cpu.median, switches.median);
        let _ = write!(row, "  (all silent: {cpu:.1} % CPU, {switches:.0} switches/s)");
    }
    row
}

/// Who answered more than whom, as far as every round says the same.
fn orders(report: &Report) -> String {
    let mut text = String::new();
    if report.rounds < CLEAR {
        return text;
    }
    for trial in report.trials() {
        let rate = |cell: &Cell| cell.spread(|m| m.messages_per_second);
        let mut cells: Vec<(&str, Spread)> = report
            .cells_of(trial)
            .filter(|cell| cell.fault.is_none())
            .filter_map(|cell| Some((cell.server.as_str(), rate(cell)?)))
            .collect();
        cells.sort_by(|(_, a), (_, b)| b.median.total_cmp(&a.median));
        let Some(((first, _), rest)) = cells.split_first().filter(|(_, rest)| !rest.is_empty())
        else {
            continue;
        };
        let mut line = format!("  {trial}: {first}");
        for ((_, above), (name, below)) in cells.iter().zip(rest) {
            let sign = if above.is_clearly_above(below) { ">" } else { "≈" };
            let _ = write!(line, " {sign} {name}");
        }
        text += &(line + "\n");
    }
    if text.is_empty() {
        return text;
    }
    format!("\nMessages per second (>: more in every round; ≈: not clearly more):\n{text}")
}
