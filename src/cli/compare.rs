//! `evecho compare`: the three designs, and any other echo server, under the same load.

use std::collections::HashSet;
use std::env;
use std::fmt::{Display, Write as _};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use evecho::client::Cancel;
use evecho::client::compare::{
    self, Cell, Config, Contender, Measurement, Progress, Report, Scene, Spread, Trial, Waits,
};
use evecho::client::process::MemoryKind;
use evecho::units::{count, rounded, time};
use evecho::{Design, Transport};
use serde::Serialize;

use super::output::Output;
use super::progress::ProgressLine;
use super::serve::DesignArg;
use super::{CommandResult, supervise, units, usage};

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
    /// Designs of evecho to compare; without a value, none
    #[arg(
        long,
        value_enum,
        num_args = 0..=1,
        value_delimiter = ',',
        default_value = "event-loop,threaded,iterative"
    )]
    design: Vec<DesignArg>,
    /// Another echo server to compare, like socat='socat TCP-LISTEN:{port},fork PIPE'; may be
    /// given several times
    #[arg(long, value_name = "NAME=COMMAND")]
    peer: Vec<Contender>,
    /// How many lasting connections: one measurement for each number
    #[arg(short, long, value_name = "NUMBER,...", value_delimiter = ',', default_value = "1,10,100,1000", value_parser = units::count(1, u32::MAX))]
    connections: Vec<u32>,
    /// Compare over UDP, with a socket for each connection, and leave out the other measurements
    #[arg(short, long)]
    udp: bool,
    /// Bytes in each message
    #[arg(short, long, value_name = "SIZE", default_value = "64", value_parser = units::size)]
    size: usize,
    /// Compare servers that answer in upper case: those of evecho with --service upper
    #[arg(long)]
    upper: bool,
    /// Messages in flight on each lasting connection
    #[arg(short, long, value_name = "NUMBER", default_value = "1", value_parser = units::depth)]
    depth: u16,
    /// How many rounds; in each of them the servers take turns
    #[arg(short, long, value_name = "NUMBER", default_value = "5", value_parser = units::count(1, u32::MAX))]
    rounds: u32,
    /// Measure each server for this time in each round
    #[arg(short, long, value_name = "TIME", default_value = "400ms", value_parser = units::timeout)]
    time: Duration,
    /// Leave out the other measurements: with a slow client, idle clients, short connections
    #[arg(long)]
    no_scenes: bool,
    /// How long a reply, or the start of a server, may take
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = units::timeout)]
    timeout: Duration,
    /// Write compare.svg, compare.csv and compare.json into this directory, and waits.svg: which of six
    /// clients waits for which, where one is slow
    #[arg(short, long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    output: Option<PathBuf>,
}

/// In fewer rounds than this, an order may well be chance.
const CLEAR: usize = 3;
/// More CPUs than this in use by others make a comparison doubtful.
const BUSY: f64 = 0.2;

/// The scenes behind the plain load.
const SCENES: [Trial; 3] = [
    Trial { scene: Scene::Slow, connections: 100 },
    Trial { scene: Scene::Idle, connections: 1_000 },
    Trial { scene: Scene::Short, connections: 10 },
];

/// Compares, and prints what came of it.
pub(crate) fn run(args: Args) -> CommandResult {
    let output = args.output.clone();
    let cannot =
        |directory: &Path, error| format!("cannot write into '{}': {error}", directory.display());
    if let Some(directory) = &output {
        // Before minutes of work, not after.
        try_files(directory).map_err(|error| cannot(directory, error))?;
    }
    // The servers inherit the limit.
    evecho::raise_open_file_limit()?;
    let config = config(args)?;
    let cancel = Cancel::at_signals()?;
    let mut status = Status { line: ProgressLine::new(), round: 0 };
    let report = compare::run(&config, &cancel, |progress| status.show(progress));
    status.line.clear();
    let report = report?;
    Output::plain().write_all(describe(&report).as_bytes())?;
    if let Some(directory) = &output {
        let waits = if report.stopped { vec![] } else { compare::waits(&config, &cancel) };
        write_files(&report, &waits, directory).map_err(|error| cannot(directory, error))?;
    }
    Ok(ExitCode::from(u8::from(report.stopped || !report.measured_all())))
}

fn config(mut args: Args) -> Result<Config, Box<dyn std::error::Error>> {
    let contenders = contenders(&args)?;
    args.connections.sort_unstable();
    args.connections.dedup();
    let plain = |connections| Trial { scene: Scene::Connections, connections };
    let mut trials: Vec<Trial> = args.connections.into_iter().map(plain).collect();
    if !args.no_scenes && !args.udp {
        trials.extend(SCENES);
    }
    let mut config = Config::new(contenders, trials);
    config.transport = if args.udp { Transport::Udp } else { Transport::Tcp };
    config.rounds = args.rounds;
    config.time = args.time;
    config.size = args.size;
    config.upper = args.upper;
    config.depth = args.depth;
    config.timeout = args.timeout;
    config.supervisor = supervise::words();
    Ok(config)
}

/// The designs and the peers, each with a name of its own.
fn contenders(args: &Args) -> Result<Vec<Contender>, Box<dyn std::error::Error>> {
    let program = supervise::program()?;
    let service = if args.upper { " --service upper" } else { "" };
    let mut contenders = Vec::new();
    for &design in &args.design {
        let design = Design::from(design);
        let command = format!(
            "{program} --port {{port}} --bind 127.0.0.1 --quiet{service} --design {design}"
        );
        let mut contender = Contender::new(design.to_string(), command.parse()?);
        contender.version = Some(env!("CARGO_PKG_VERSION").to_owned());
        contenders.push(contender);
    }
    contenders.extend(args.peer.iter().cloned());
    if contenders.is_empty() {
        let sentence = "there is no server to compare: give a --design or a --peer";
        usage(Some("compare"), ErrorKind::MissingRequiredArgument, sentence);
    }
    let mut names = HashSet::new();
    if let Some(twice) = contenders.iter().find(|contender| !names.insert(&contender.name)) {
        let sentence =
            format!("two servers are called '{}': give each a name of its own", twice.name);
        usage(Some("compare"), ErrorKind::ValueValidation, &sentence);
    }
    Ok(contenders)
}

/// Says how far the comparison is: in a line that changes, or else in a line for each round.
struct Status {
    line: ProgressLine,
    round: u32,
}

impl Status {
    fn show(&mut self, progress: &Progress<'_>) {
        let Progress { done, total, round, name, trial, .. } = *progress;
        let percent = 100 * done / total.max(1);
        if self.line.is_visible() {
            self.line.show(&format!("{percent} % round {round}: {name}, {trial}"));
        } else if round > self.round {
            // Nothing to write to is no reason to end.
            let _ = writeln!(io::stderr(), "round {round}, {percent} % done");
        }
        self.round = round;
    }
}

/// The JSON document: the report and what made it.
#[derive(Serialize)]
struct Document<'a> {
    command: Vec<String>,
    rounds_done: u32,
    #[serde(flatten)]
    report: &'a Report,
    waits: &'a [Waits],
}

/// What is written, and where.
const FILES: [&str; 4] = ["compare.json", "compare.csv", "compare.svg", "waits.svg"];

/// Whether the files can be written. What is there stays, and what is not there is not there afterwards.
fn try_files(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    FILES.map(|name| directory.join(name)).iter().try_for_each(|path| {
        let is_new = !path.try_exists()?;
        fs::File::options().append(true).create(true).open(path)?;
        if is_new { fs::remove_file(path) } else { Ok(()) }
    })
}

fn write_files(report: &Report, waits: &[Waits], directory: &Path) -> io::Result<()> {
    let rounds_done = report.rounds_done();
    let document = Document { command: env::args().collect(), rounds_done, report, waits };
    let [json, csv, svg, waits_svg] = FILES.map(|name| directory.join(name));
    fs::write(json, serde_json::to_string_pretty(&document)? + "\n")?;
    fs::write(csv, report.csv())?;
    compare::svg(report).map_or(Ok(()), |figure| fs::write(svg, figure))?;
    compare::waits_svg(report, waits).map_or(Ok(()), |figure| fs::write(waits_svg, figure))
}

// ---- the table

/// The report for people.
fn describe(report: &Report) -> String {
    let name = report.servers.iter().map(|server| server.name.chars().count()).max().unwrap_or(0);
    let mut text = heading(report, name);
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
    text += &memory(report);
    text += &remarks(report);
    text += &orders(report);
    if report.machine.busy_cpus > BUSY {
        let _ = write!(
            text,
            "\nOther programs kept {:.1} of {} busy when this began: end them, and compare again.\n",
            report.machine.busy_cpus,
            count(report.machine.cpus, "CPU")
        );
    }
    if report.stopped {
        text += "\nStopped early.\n";
    }
    text
}

/// What was measured and where, and the names of the columns behind those of the servers.
fn heading(report: &Report, name: usize) -> String {
    let Report { machine, transport, size, depth, .. } = report;
    let time = time(Duration::from_secs_f64(report.seconds));
    let rounds = match report.rounds_done() {
        done if done == report.rounds => done.to_string(),
        done => format!("{done} of {}", report.rounds),
    };
    let spread = match report.cells.iter().any(|cell| cell.rounds.len() > 1) {
        true => "; the median, and ± half of the spread",
        false => "",
    };
    let answers = if report.upper { ", answered in upper case" } else { "" };
    let over = columns(["messages", "p50", "p99", "CPU per", "switches", "", ""]);
    let under = columns(["per second", "", "", "message", "/message", "threads", "memory"]);
    format!(
        "{size}-byte messages over {}{answers}, {depth} in flight on each connection. Rounds: {rounds}, of {time} \
         each{spread}.\n{}, {}, {} MiB, {}, evecho {}; the client shares the \
         machine.\n\n{}\n{}\n",
        transport.name(),
        machine.cpu,
        count(machine.cpus, "CPU"),
        machine.memory >> 20,
        machine.kernel,
        report.version,
        format!("  {:name$}  {over}", "").trim_end(),
        format!("  {:name$}  {under}", "").trim_end(),
    )
}

fn columns(cells: [impl Display; 7]) -> String {
    let [rate, p50, p99, cpu, switches, threads, memory] = cells;
    format!("{rate:>17}  {p50:>7} {p99:>7}  {cpu:>8}  {switches:>8}  {threads:>7}  {memory:>9}")
}

/// The numbers of a server under a trial.
fn row(cell: &Cell) -> String {
    let median = |of: fn(&Measurement) -> f64| cell.spread(of).map_or(0.0, |spread| spread.median);
    let micros = |of| time(Duration::from_secs_f64(median(of) / 1e6)).to_string();
    let rate = cell.spread(|m| m.messages_per_second);
    let rate = rate.map_or(String::new(), |rate| {
        let spread = match cell.rounds.len() {
            1 => String::new(),
            _ => format!("±{:>3.0} %", rate.percent()),
        };
        format!("{} {spread:6}", rounded(rate.median))
    });
    let switches = Spread::of(cell.rounds.iter().filter_map(|m| m.switches_per_message));
    // Only Linux tells what a process uses.
    let is_known = median(|m| m.processes) > 0.0;
    let known = |text| if is_known { text } else { "-".to_owned() };
    let mut row = columns([
        rate,
        micros(|m| m.p50_us),
        micros(|m| m.p99_us),
        known(micros(|m| m.cpu_us_per_message)),
        switches.map_or("-".to_owned(), |each| format!("{:.2}", each.median)),
        known(median(|m| m.threads).to_string()),
        known(format!("{:.1} MiB", median(|m| m.memory_bytes) / f64::from(1 << 20))),
    ]);
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

/// How the memory of several processes was counted, where there were some.
fn memory(report: &Report) -> String {
    let several = |m: &&Measurement| m.processes > 1.0;
    let measured = report.cells.iter().flat_map(|cell| &cell.rounds).filter(several);
    let kinds: Vec<MemoryKind> = measured.map(|m| m.memory_kind).collect();
    let sentence = match kinds.first() {
        None => return String::new(),
        Some(_) if kinds.contains(&MemoryKind::Rss) => {
            "Rss (the kernel does not show Pss): pages that they share count in each"
        }
        Some(_) => "Pss: pages that they share count once",
    };
    format!("\nMemory of several processes is the sum of their {sentence}.\n")
}

/// Why messages of servers take long, once for each.
fn remarks(report: &Report) -> String {
    let remark = |server: &Contender| {
        let cells = report.cells.iter().filter(|cell| cell.server == server.name);
        let remark = cells.flat_map(|cell| &cell.rounds).find_map(|m| m.remark.as_ref())?;
        Some(format!("\n{}: {remark}.\n", server.name))
    };
    report.servers.iter().filter_map(remark).collect()
}

/// Who answered more than whom, as far as every round says the same.
fn orders(report: &Report) -> String {
    let mut text = String::new();
    for trial in report.trials() {
        let rate = |cell: &Cell| cell.spread(|m| m.messages_per_second);
        let mut cells: Vec<(&str, Spread)> = report
            .cells_of(trial)
            .filter(|cell| cell.fault.is_none() && cell.rounds.len() >= CLEAR)
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
