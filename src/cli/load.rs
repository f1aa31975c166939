//! `evecho load`: load an echo server, verify what comes back, and measure.

mod status;
mod sweep;
mod text;

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use clap::error::ErrorKind;

use super::figure::Figure;
use super::output::{Output, complain, sentence};
use super::ping::PatternArg;
use super::serve::FramingArg;
use super::{CommandResult, TargetArgs, check_source, units, usage};
use evecho::client::Cancel;
use evecho::client::load::{self, Config, Length, Mode, Report, Watch};
use evecho::client::target::Target;

use status::{Status, json};
use text::{describe, headline};

/// Load an echo server, verify every byte that comes back, and measure.
///
/// The exit code is 0 when messages came back and nothing was wrong. It is 1 when nothing came back,
/// when anything was wrong (lost, reordered, duplicates, late, corrupt, cut, stray, unanswered
/// or closed), when a message that was due at the --rate was never sent, or when no local port was
/// left for a connection: what was measured until then is reported.
///
/// In churn, a latency lasts until the server's FIN; connecting is its handshake, and the exchange is from there
/// until the message is back.
///
/// Latencies are of the messages that came back; in percentiles, messages that were never sent or had no
/// good reply count as later than all of these ("never"). Over a network, an evecho server answers 10,000
/// datagrams a second to each source: see its --udp-rate.
///
/// Ctrl-C ends the run and prints the report so far. SIGUSR1 prints a line of it and goes on.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Send datagrams; those that do not come back within --timeout are lost
    #[arg(short, long)]
    udp: bool,
    /// How the connections are used
    #[arg(short, long, value_enum, default_value = "ping-pong")]
    mode: ModeArg,
    /// How many connections (with --udp, sockets) at the same time
    #[arg(short, long, value_name = "NUMBER", default_value = "50", value_parser = units::count(1, u32::MAX))]
    connections: u32,
    /// Bytes in each message; in stream mode, in each write [default: 64, in stream mode 64k]
    #[arg(short, long, value_name = "SIZE", value_parser = units::size)]
    size: Option<usize>,
    /// How the end of a message is marked in a TCP stream [default: raw]
    #[arg(short, long, value_enum)]
    framing: Option<FramingArg>,
    /// What the messages are made of
    #[arg(long, value_enum, default_value_t = PatternArg::Text)]
    pattern: PatternArg,
    /// Expect the answers in upper case
    #[arg(long)]
    upper: bool,
    /// Messages in flight on each connection without --rate: the depth, not the duration, which
    /// is --time
    #[arg(short, long, value_name = "NUMBER", default_value = "1", value_parser = units::depth)]
    depth: u16,
    /// Measure for this time [default: 10s; with --sweep, 2s for each rate]
    #[arg(short, long, value_name = "TIME", value_parser = units::duration)]
    time: Option<Duration>,
    /// Measure this many messages, instead of a time
    #[arg(short = 'n', long, value_name = "NUMBER", conflicts_with = "time", value_parser = units::count(1, u64::MAX))]
    messages: Option<u64>,
    /// Load for this time before measuring [default: 0; with --sweep, a quarter of --time]
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    warmup: Option<Duration>,
    /// Send this many messages a second over all connections, each when it is due, whatever is
    /// still out; each latency then starts when the message was due
    #[arg(short, long, value_name = "NUMBER", value_parser = units::rate)]
    rate: Option<f64>,
    /// How long a connection or a reply may take [default: 5s, with --udp 500ms]
    #[arg(long, value_name = "TIME", value_parser = units::timeout)]
    timeout: Option<Duration>,
    /// Source addresses to use in turn [default: in churn and over 10,000 connections, those of the
    /// interface; on loopback, 64]
    ///
    /// Towards one server each has the ports of net.ipv4.ip_local_port_range, 28,232 unless that was changed,
    /// and TCP keeps a port for a minute after its connection.
    #[arg(long, value_name = "ADDRESS,...", value_delimiter = ',', value_parser = units::address)]
    from: Vec<IpAddr>,
    /// Threads that share the connections, or auto for one for each CPU
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = threads)]
    threads: u32,
    /// Report what this process and its descendants use: the server's, on this machine
    #[arg(long, value_name = "PID", conflicts_with = "sweep", value_parser = units::number(1, i32::MAX as u32))]
    pid: Option<u32>,
    /// Print a line for each interval of this length; with --json, a line of JSON
    #[arg(long, value_name = "TIME", value_parser = units::timeout)]
    every: Option<Duration>,
    /// Print the report as a line of JSON, with times in nanoseconds; evecho merge adds up several
    #[arg(long)]
    json: bool,
    /// Load at rate after rate, from 1000/s or --rate on, up to the knee of the server: the highest
    /// rate at which 99 % come back in the same time, and p99 is at most 10 times its median at lower
    /// rates. How long it takes at the longest is said first. The exit code is 0 when the knee is
    /// found, and nothing was wrong at rates that were kept
    #[arg(long, conflicts_with_all = ["messages", "every", "pid"])]
    sweep: bool,
    /// Draw the report into this file, as SVG: latency by percentile; rate, p50, p99 and errors over
    /// time; with --sweep, latency over the rate
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    figure: Option<PathBuf>,
}

/// How many points a figure has over time, unless they were closer together than this.
const POINTS: u32 = 50;
const CLOSEST: Duration = Duration::from_millis(20);

/// Reads a number of threads.
fn threads(text: &str) -> Result<u32, String> {
    match text {
        "auto" => Ok(std::thread::available_parallelism()
            .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))),
        _ => units::number(1, u32::MAX)(text)
            .map_err(|_| "give a whole number, at least 1, like 4, or auto".to_owned()),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArg {
    /// Send the next message when one comes back
    PingPong,
    /// Send and receive as fast as possible
    Stream,
    /// Connect, exchange one message, half-close, wait for the server's FIN, close, again
    Churn,
    /// Echo one message on each connection, be silent for --time, echo one more
    Idle,
}

/// Runs the load that the flags ask for.
pub(crate) fn run(args: Args) -> CommandResult {
    let (as_json, every, pid, is_sweep) = (args.json, args.every, args.pid, args.sweep);
    let figure = Figure::open(args.figure.as_deref())?;
    let (target, mut config) = args.config();
    // The connections may need it; when it fails and they do, the run says so.
    let _ = evecho::raise_open_file_limit();
    config.sources.iter().try_for_each(|&source| check_source(source))?;
    let cancel = Cancel::at_signals()?;
    config.address = target.choose(config.transport, config.timeout, &cancel)?;
    config.target = Some(target.clone());
    check(&config);
    if is_sweep {
        return sweep::run(&config, &target, &cancel, figure, as_json);
    }
    let mut watch = pid.map(watch).transpose()?;
    let mut status = Status::new(&config, every.is_some(), as_json)?;
    let report = load::run(&config, &cancel, |progress| {
        watch.iter_mut().for_each(|watch| watch.look(progress));
        status.hear(progress);
    });
    status.end()?;
    let mut report = report.map_err(|error| with_flag(&sentence(&error)))?;
    report.server = watch.as_ref().and_then(Watch::used);
    if let Some(figure) = figure {
        let headline = headline(&report, &target);
        let (title, name) = headline.split_once(": ").unwrap_or((&headline, ""));
        figure.write(&load::svg(title, &[(name, &report)]))?;
    }
    let code = print(&report, &target, as_json)?;
    if let Some(pid) = pid.filter(|_| watch.is_some_and(|watch| watch.has_ended())) {
        return Err(format!("process {pid} ended meanwhile: what it used is not known").into());
    }
    Ok(code)
}

fn watch(pid: u32) -> Result<Watch, String> {
    Watch::new(pid).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => format!("--pid {pid}: this process is hidden: {error}"),
        _ => format!("--pid {pid}: there is no such process"),
    })
}

/// Prints a report, and grades it.
pub(super) fn print(report: &Report, target: &Target, as_json: bool) -> CommandResult {
    let text = match as_json {
        true => json("report", report) + "\n",
        false => describe(report, target),
    };
    Output::plain().write_all(text.as_bytes())?;
    if let Some(sentence) = &report.ended {
        complain(&with_flag(sentence));
    }
    Ok(ExitCode::from(u8::from(!report.is_clean())))
}

/// A sentence of the library, with the flag that helps.
fn with_flag(sentence: &str) -> String {
    sentence.replace("use more source addresses", "use more source addresses (--from)")
}

/// Ends the process when the configuration is invalid.
fn check(config: &Config) {
    if let Err(invalid) = config.check() {
        usage(Some("load"), ErrorKind::ValueValidation, &invalid.to_string());
    }
}

impl Args {
    /// The configuration, checked as far as it can be before the server's address is known.
    fn config(self) -> (Target, Config) {
        let mode = self.mode.to_possible_value().expect("no mode is skipped");
        let mode = format!("--mode {}", mode.get_name());
        let framing = self.framing.map(|_| "--framing");
        let streams = (!matches!(self.mode, ModeArg::PingPong)).then_some(&*mode).or(framing);
        let (target, transport) = self.target.resolve("load", self.udp, streams);
        // The rule about families waits for the server's address.
        let unknown = self.from.first().map_or(IpAddr::from([0, 0, 0, 0]), |&source| source);
        let mut config = Config::new(transport, SocketAddr::new(unknown, target.port()));
        config.mode = match self.mode {
            ModeArg::PingPong => Mode::PingPong,
            ModeArg::Stream => Mode::Stream,
            ModeArg::Churn => Mode::Churn,
            ModeArg::Idle => Mode::Idle,
        };
        config.size = match (self.size, config.mode) {
            (Some(size), _) => size,
            (None, Mode::Stream) => 64 << 10,
            (None, _) => config.size,
        };
        config.connections = self.connections;
        config.framing = self.framing.map_or(config.framing, Into::into);
        config.pattern = self.pattern.into();
        config.upper = self.upper;
        config.depth = self.depth;
        let time = self.time.unwrap_or(Duration::from_secs(if self.sweep { 2 } else { 10 }));
        config.length = self.messages.map_or(Length::Time(time), Length::Messages);
        let warmup = if self.sweep { time / 4 } else { Duration::ZERO };
        config.warmup = self.warmup.unwrap_or(warmup);
        config.rate = self.rate.or(self.sweep.then_some(load::sweep::FIRST_RATE));
        config.timeout = self.timeout.unwrap_or(config.timeout);
        config.sources = self.from;
        // With fewer connections, some threads would have none.
        config.threads = self.threads.min(self.connections.max(1));
        config.every = self.every.unwrap_or(match (self.figure, config.length) {
            (Some(_), Length::Time(time)) => (time / POINTS).clamp(CLOSEST, config.every),
            (Some(_), _) => 4 * CLOSEST,
            (None, _) => config.every,
        });
        check(&config);
        (target, config)
    }
}
