//! `evecho load`: load an echo server, verify what comes back, and measure.

mod status;
mod text;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use clap::error::ErrorKind;

use super::output::Output;
use super::{CommandResult, TargetArgs, cancel_at_signals, units, usage};
use evecho::client::load::{self, Config, Length, Mode};
use evecho::client::target::{Target, Transport};

use status::Status;
pub(super) use status::json;
pub(super) use text::describe;

/// Load an echo server, verify every byte that comes back, and measure.
///
/// The exit code is 0 when messages came back and nothing was wrong. It is 1 when nothing came back,
/// when anything was wrong (lost, cut, duplicated, corrupted, reordered, late, unanswered or
/// closed), or when a message that was due at the --rate was never sent.
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
    #[arg(short, long, value_name = "NUMBER", default_value = "50")]
    connections: u32,
    /// Bytes in each message; in stream mode, in each write [default: 64, in stream mode 64k]
    #[arg(short, long, value_name = "SIZE", value_parser = units::size)]
    size: Option<u64>,
    /// Messages in flight on each connection: the depth, not the duration, which is --time
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
    /// Threads that share the connections, or auto for one for each CPU
    #[arg(long, value_name = "NUMBER", default_value = "1", value_parser = threads)]
    threads: u32,
    /// Print a line for each interval of this length; with --json, a line of JSON
    #[arg(long, value_name = "TIME", value_parser = units::timeout)]
    every: Option<Duration>,
    /// Print the report as a line of JSON, with times in nanoseconds; evecho merge adds up several
    #[arg(long)]
    json: bool,
}

/// Reads a number of threads.
fn threads(text: &str) -> Result<u32, String> {
    match text {
        "auto" => Ok(std::thread::available_parallelism()
            .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX))),
        _ => match text.parse() {
            Ok(0) | Err(_) => Err("give a number, at least 1, or auto".to_owned()),
            Ok(number) => Ok(number),
        },
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
    let (as_json, every) = (args.json, args.every);
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
    let mut status = Status::new(&config, every.is_some(), as_json)?;
    let report = load::run(&config, &cancel, |progress| status.hear(progress));
    status.end()?;
    let report = report?;
    let text = match as_json {
        true => json("report", &report) + "\n",
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
        // With fewer connections, some threads would have none.
        config.threads = self.threads.min(self.connections.max(1));
        config.every = self.every.unwrap_or(config.every);
        if let Err(invalid) = config.check() {
            usage(Some("load"), ErrorKind::ValueValidation, &invalid.to_string());
        }
        (target, config)
    }
}
