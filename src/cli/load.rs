//! `evecho load`: keep an echo server busy, verify what it answers, and measure.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use clap::error::ErrorKind;

use super::output::Output;
use super::{CommandResult, TargetArgs, cancel_at_signals, units, usage};
use evecho::client::load::{self, Config, Latency, Length, Mode, Phase, Progress, Report};
use evecho::client::target::{Target, Transport};
use evecho::units::{grouped, throughput, time};

/// Keep an echo server busy, verify every byte that it answers, and measure.
///
/// The exit code is 0 when messages came back and nothing was wrong, and 1 when nothing came back
/// or anything was wrong: lost, cut, duplicated, corrupted, reordered, late, unanswered or closed.
/// Ctrl-C ends the run and prints the report so far.
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
    /// Connections (with --udp, sockets) side by side
    #[arg(short, long, value_name = "NUMBER", default_value = "50")]
    connections: u32,
    /// Bytes in each message; in stream mode, in each write [default: 64, in stream mode 64k]
    #[arg(short, long, value_name = "SIZE", value_parser = units::size)]
    size: Option<u64>,
    /// Messages in flight on each connection
    #[arg(short, long, value_name = "NUMBER", default_value = "1")]
    depth: u16,
    /// Measure for this time
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    time: Duration,
    /// Measure this many messages, instead of a time
    #[arg(short = 'n', long, value_name = "NUMBER", conflicts_with = "time")]
    messages: Option<u64>,
    /// Load for this time before measuring
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = units::duration)]
    warmup: Duration,
    /// Send this many messages a second over all connections, whether or not earlier ones have
    /// come back; each latency then starts when the message was due
    #[arg(short, long, value_name = "NUMBER")]
    rate: Option<f64>,
    /// How long a connection or a reply may take [default: 5s, with --udp 500ms]
    #[arg(long, value_name = "TIME", value_parser = units::timeout)]
    timeout: Option<Duration>,
    /// Source addresses to use in turn; each has some 28,000 ports
    #[arg(long, value_name = "ADDRESS,...", value_delimiter = ',')]
    from: Vec<IpAddr>,
    /// Print the report as JSON, with times in nanoseconds
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArg {
    /// Send the next message when one comes back
    PingPong,
    /// Send and receive as fast as it goes
    Stream,
    /// Connect, exchange one message, half-close, wait for the server's FIN, close, again
    Churn,
    /// Echo one message on each connection, be silent for --time, echo one more
    Idle,
}

/// Runs the load that the flags ask for.
pub(crate) fn run(args: Args) -> CommandResult {
    let json = args.json;
    let (target, mut config) = args.config();
    // The connections may need it; where it fails and they do, that is told.
    let _ = evecho::raise_open_file_limit();
    for source in &config.sources {
        if UdpSocket::bind((*source, 0)).is_err() {
            return Err(format!("--from {source}: this machine has no such address").into());
        }
    }
    let cancel = cancel_at_signals()?;
    config.address = target.choose(config.transport, config.timeout)?;
    if let Err(invalid) = config.check() {
        usage(Some("load"), ErrorKind::ValueValidation, &invalid.to_string());
    }
    let mut status = Status::new();
    let report = load::run(&config, &cancel, |progress| status.show(&config, progress));
    status.clear();
    let report = report?;
    let text = match json {
        true => serde_json::to_string(&report)? + "\n",
        false => describe(&report, &target),
    };
    Output::plain().write_all(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(!report.is_clean())))
}

impl Args {
    /// The configuration, checked as far as it can be before the server's address is known.
    fn config(self) -> (Target, Config) {
        if self.udp && !matches!(self.mode, ModeArg::PingPong) {
            let mode = self.mode.to_possible_value().expect("no mode is skipped");
            let sentence = format!(
                "--udp and --mode {} exclude each other: datagrams are sent one by one",
                mode.get_name()
            );
            usage(Some("load"), ErrorKind::ArgumentConflict, &sentence);
        }
        let target = Target::from(self.target);
        let transport = if self.udp { Transport::Udp } else { Transport::Tcp };
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
            (Some(size), _) => usize::try_from(size).unwrap_or(usize::MAX),
            (None, Mode::Stream) => 64 << 10,
            (None, _) => config.size,
        };
        config.connections = self.connections;
        config.depth = self.depth;
        config.length = self.messages.map_or(Length::Time(self.time), Length::Messages);
        config.warmup = self.warmup;
        config.rate = self.rate;
        config.timeout = self.timeout.unwrap_or(config.timeout);
        config.sources = self.from;
        if let Err(invalid) = config.check() {
            usage(Some("load"), ErrorKind::ValueValidation, &invalid.to_string());
        }
        (target, config)
    }
}

/// The line on a terminal that tells how far the run is.
struct Status {
    terminal: bool,
    shown: Option<Progress>,
}

impl Status {
    /// How often the line changes.
    const EVERY: Duration = Duration::from_millis(500);

    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, config: &Config, progress: &Progress) {
        let before = self.shown.map_or(Duration::ZERO, |shown| shown.elapsed);
        let since = progress.elapsed.saturating_sub(before);
        if !self.terminal || since < Self::EVERY {
            return;
        }
        let messages = progress.messages - self.shown.map_or(0, |shown| shown.messages);
        self.shown = Some(*progress);
        let rate = messages as f64 / since.as_secs_f64();
        let seconds = progress.elapsed.as_secs_f64();
        let errors = match progress.errors {
            0 => String::new(),
            count => format!(", {} errors", grouped(count)),
        };
        let what = match progress.phase {
            Phase::Opening => {
                format!("{} of {} connections open", progress.opened, config.connections)
            }
            Phase::WarmUp => format!("{}/s, warming up", grouped(rate as u64)),
            Phase::Measuring => format!("{}/s", grouped(rate as u64)),
            Phase::Draining | Phase::Over => "waiting for the last replies".to_owned(),
        };
        // A terminal that went away is no reason to end the run.
        let _ = write!(io::stderr(), "\r\x1b[K{seconds:.1}s: {what}{errors}");
    }

    fn clear(&self) {
        if self.terminal && self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// The report for people.
fn describe(report: &Report, target: &Target) -> String {
    let mut text = headline(report, target);
    let duration = report.duration.as_secs_f64();
    let what = if report.config.mode == Mode::Churn { "connections" } else { "messages" };
    text += &format!("\n  {:<13}{} in {duration:.2}s", what, grouped(report.messages));
    if report.config.mode != Mode::Idle && report.messages > 0 {
        let bytes = report.bytes as f64 / duration;
        text += &format!(": {}/s, {} each way", grouped(report.rate as u64), throughput(bytes));
    }
    if let Some(latency) = &report.latency {
        text += &format!("\n  {:<13}{}", "latency", describe_latency(latency));
    }
    text += &format!("\n  {:<13}{}\n", "errors", describe_errors(report));
    for remark in remarks(report) {
        text += &format!("  {remark}\n");
    }
    text
}

fn headline(report: &Report, target: &Target) -> String {
    let Config { transport, address, mode, connections, size, depth, .. } = report.config;
    let mut text = match (transport, mode) {
        (Transport::Udp, _) => format!("UDP ping-pong with {target}"),
        (Transport::Tcp, Mode::PingPong) => format!("TCP ping-pong with {target}"),
        (Transport::Tcp, Mode::Stream) => format!("TCP streams to {target}"),
        (Transport::Tcp, Mode::Churn) => format!("TCP connections to {target}, opened and closed"),
        (Transport::Tcp, Mode::Idle) => format!("Idle TCP connections to {target}"),
    };
    if target.to_string() != address.to_string() {
        text += &format!(" ({address})");
    }
    let sockets = if transport == Transport::Udp { "sockets" } else { "connections" };
    text += &format!(": {} {sockets}, {size} bytes a message", grouped(connections.into()));
    if mode == Mode::PingPong {
        text += &format!(", {depth} in flight on each");
    }
    if let Some(rate) = report.config.rate {
        text += &format!(", {rate}/s asked for");
    }
    if report.stopped {
        text += "; stopped early";
    }
    text
}

fn describe_latency(latency: &Latency) -> String {
    let Latency { mean, p50, p90, p99, p999, max, .. } = *latency;
    let percentiles = [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)];
    let mut text = format!("mean {}", time(mean));
    for (name, value) in percentiles {
        text += &match value {
            Some(value) => format!(", {name} {}", time(value)),
            None => format!(", {name} never sent"),
        };
    }
    text
}

fn describe_errors(report: &Report) -> String {
    let seen: Vec<String> = report
        .errors
        .kinds()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{} {kind}", grouped(count)))
        .collect();
    match (&report.first_error, seen.is_empty()) {
        (_, true) => "none".to_owned(),
        (Some(first), false) => format!("{}; the first: {first}", seen.join(", ")),
        (None, false) => seen.join(", "),
    }
}

/// What a reader should know besides, and what to do about it.
fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    if report.messages == 0 && report.errors.total() == 0 {
        remarks.push("Nothing came back: is it an echo server?".to_owned());
    }
    if report.unsent > 0 {
        remarks.push(format!(
            "{} messages were due and never sent, which counts as later than all others: ask for \
             a lower --rate, or allow more --connections or --depth.",
            grouped(report.unsent)
        ));
    }
    if report.starved > 0 && report.messages > 0 && report.rate > 0.0 {
        let of = grouped(report.config.connections.into());
        remarks.push(format!(
            "{} of {of} connections got nothing back in the measured part: the server may \
             serve them one after the other, or the run was short.",
            grouped(report.starved.into())
        ));
    }
    remarks
}
