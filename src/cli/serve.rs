//! `evecho`: serve.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use clap::error::ErrorKind;
use evecho::protocol::{Name, Upper, Who};
use evecho::{
    AdoptError, BindAddress, Config, Design, Error, Framing, GuardPorts, ParseError, Probability,
    Server, ServiceManager, Transport,
};
use log::{LevelFilter, error, warn};

use super::CommandResult;
use super::check_config;
use super::environment::Environment;
use super::log::Format;
use super::output::{is_read_by_journald, sentence};
use super::units::{self, count, number};

/// The server's flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print what would be served, with which limits and for which clients, or what is wrong, and exit
    ///
    /// Binds nothing, so that it can be tried beside a server that runs. The exit code is 0 if the configuration is
    /// valid. Whether addresses are there and ports are free, only a start tells.
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    sockets: SocketArgs,
    #[command(flatten)]
    conversation: ConversationArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    impairments: ImpairmentArgs,
    #[command(flatten)]
    how: DesignArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Where to listen")]
struct SocketArgs {
    /// TCP and UDP port; 0 picks a free one and prints it
    #[arg(short, long, env = "EVECHO_PORT", default_value_t = 12000, value_parser = number(0, u16::MAX))]
    port: u16,
    /// Bind this address; may be given several times [default: every interface, IPv4 and IPv6]
    ///
    /// An IP address or a host name, with a port if it is not --port: 127.0.0.1, ::1,
    /// localhost, 127.0.0.1:7, '[::1]:7', fe80::1%eth0.
    ///
    /// :: is every address, IPv6 and IPv4, whatever net.ipv6.bindv6only says. It is for IPv6 alone beside an IPv4
    /// address on the same port, and for IPv4 alone where there is no IPv6. 0.0.0.0 is every IPv4 address.
    #[arg(long, value_name = "ADDR[:PORT]", env = "EVECHO_BIND", value_delimiter = ',', value_parser = bound)]
    bind: Vec<Bound>,
    /// Serve TCP only
    #[arg(long, env = "EVECHO_TCP_ONLY")]
    tcp_only: bool,
    /// Serve UDP only
    #[arg(long, env = "EVECHO_UDP_ONLY")]
    udp_only: bool,
    /// Connections that may wait to be accepted, as far as the system allows
    #[arg(long, value_name = "N", env = "EVECHO_BACKLOG", default_value_t = 4096, value_parser = count(0, u32::MAX))]
    backlog: u32,
    /// Let several processes share the port (SO_REUSEPORT)
    #[arg(long, env = "EVECHO_REUSE_PORT")]
    reuse_port: bool,
    /// Serve monitors here over HTTP: /metrics (Prometheus), /livez and /readyz [default: off]
    ///
    /// An IP address or a host name, and a port; port 0 picks a free one and prints it. '[::]:12100' is every address,
    /// IPv6 and IPv4, as with --bind; 0.0.0.0:12100 is every IPv4 address. Any client that reaches it can read all
    /// counters: choose an address of this machine, such as 127.0.0.1:12100, or of a private network. For the event loop only.
    #[arg(long, value_name = "ADDR:PORT", env = "EVECHO_METRICS", value_parser = monitored)]
    metrics: Option<SocketAddr>,
}

/// The address of the port for monitors: the first of a name that has several.
fn monitored(text: &str) -> Result<SocketAddr, String> {
    if text.trim_start_matches(':').parse::<u16>().is_ok() {
        return Err(
            "give an address, too: 127.0.0.1:12100; or '[::]:12100' for every address".to_owned()
        );
    }
    let addresses = BindAddress::resolve(text).map_err(|error| error.to_string())?;
    let address = addresses.first().and_then(BindAddress::socket_addr);
    address.ok_or_else(|| {
        "give a port, too: 127.0.0.1:12100, localhost:12100, '[::1]:12100'".to_owned()
    })
}

/// The addresses that one `--bind` means: a name may have several.
#[derive(Clone)]
struct Bound(Vec<BindAddress>);

fn bound(text: &str) -> Result<Bound, ParseError> {
    BindAddress::resolve(text).map(Bound)
}

#[derive(clap::Args)]
#[command(next_help_heading = "What to reply")]
struct ConversationArgs {
    /// What to reply
    #[arg(long, env = "EVECHO_SERVICE", value_enum, default_value_t = ServiceArg::Echo)]
    service: ServiceArg,
    /// Name of this server in the replies of --service who: 1 to 64 letters, digits, '.', '_' and '-'
    #[arg(long, env = "EVECHO_NAME")]
    name: Option<Name>,
    /// How the end of a message is marked in a TCP stream; each datagram is a message
    #[arg(long, env = "EVECHO_FRAMING", value_enum, default_value_t = FramingArg::Raw)]
    framing: FramingArg,
    /// Longest frame that is served: a longer one ends the connection
    #[arg(long, value_name = "SIZE", env = "EVECHO_MAX_FRAME", default_value = "64k", value_parser = units::size)]
    max_frame: usize,
    /// Reply to the first message of a connection, then close it
    #[arg(long, env = "EVECHO_ONCE")]
    once: bool,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Most TCP connections at a time; others wait in the backlog [default: what the limit on open files allows]
    ///
    /// The threaded design also needs a thread for each. The iterative design serves one at a time,
    /// whatever this says.
    #[arg(long, value_name = "N", env = "EVECHO_MAX_CONNECTIONS", value_parser = count(NonZeroUsize::MIN, NonZeroUsize::MAX))]
    max_connections: Option<NonZeroUsize>,
    /// Leave this many descriptors free for other purposes
    #[arg(long, value_name = "N", env = "EVECHO_SPARE_FILES", default_value_t = 32, value_parser = count(0, usize::MAX))]
    spare_files: usize,
    /// Most TCP connections at a time from one IPv4 address or IPv6 /64; others are closed [default: no limit]
    ///
    /// The iterative design serves one at a time, whatever this says.
    #[arg(long, value_name = "N", env = "EVECHO_PER_SOURCE_CONNECTIONS", value_parser = count(NonZeroUsize::MIN, NonZeroUsize::MAX))]
    per_source_connections: Option<NonZeroUsize>,
    /// Close a connection when no bytes have moved for this time; 0 never does
    #[arg(long, value_name = "TIME", env = "EVECHO_IDLE_TIMEOUT", default_value = "0", value_parser = units::duration)]
    idle_timeout: Duration,
    /// Keep serving for this time after SIGTERM or SIGINT, before the drain; a second signal ends at once
    ///
    /// For load balancers that take a while to notice that the server is not ready any more.
    #[arg(long, value_name = "TIME", env = "EVECHO_DRAIN_DELAY", default_value = "0", value_parser = units::duration)]
    drain_delay: Duration,
    /// Longest time of the drain, up to the exit; a second signal ends at once
    ///
    /// No new clients are accepted, and open connections may finish. In the last quarter of the time (at most 2 s) the server
    /// closes its side of those that are still open.
    #[arg(long, value_name = "TIME", env = "EVECHO_DRAIN_TIMEOUT", default_value = "8s", value_parser = units::duration)]
    drain_timeout: Duration,
    /// Most memory that all TCP connections of the event loop hold together; near this limit, reads get smaller
    ///
    /// This is for replies that clients have not read yet or that wait for --delay, and for frames that are not
    /// complete. A connection that needs more when nothing is left is closed. In the other designs each client has
    /// a buffer of 16 KiB and at most one frame, and their sum is bounded by --max-connections alone.
    #[arg(long, value_name = "SIZE", env = "EVECHO_MAX_BUFFERED", default_value = "64m", value_parser = units::size)]
    max_buffered: usize,
    /// Most UDP replies per second to one remote IPv4 address or IPv6 /64; 0 is no limit
    #[arg(long, value_name = "N", env = "EVECHO_UDP_RATE", default_value_t = 10_000, value_parser = units::limit)]
    udp_rate: u32,
    /// Ignore datagrams from these source ports, besides our own; or 'none'
    #[arg(long, value_name = "PORTS", env = "EVECHO_GUARD_PORTS", default_value_t)]
    guard_ports: GuardPorts,
}

#[derive(clap::Args)]
#[command(next_help_heading = "A bad path on purpose (as tc-netem(8))")]
struct ImpairmentArgs {
    /// Drop this share of replies, such as 30%; UDP only
    #[arg(long, value_name = "PERCENT", env = "EVECHO_LOSS", default_value_t)]
    loss: Probability,
    /// Delay each reply by this time; UDP, and TCP with the event loop
    ///
    /// Over TCP, nothing else is read from a connection while its reply waits, so that the server behaves as one
    /// that takes this long for what it reads at a time.
    #[arg(long, value_name = "TIME", env = "EVECHO_DELAY", default_value = "0", value_parser = units::duration)]
    delay: Duration,
    /// Make the delay up to this much shorter or longer
    #[arg(long, value_name = "TIME", env = "EVECHO_JITTER", default_value = "0", value_parser = units::duration)]
    jitter: Duration,
    /// Send this share of replies twice; UDP only
    #[arg(long, value_name = "PERCENT", env = "EVECHO_DUPLICATE", default_value_t)]
    duplicate: Probability,
    /// Send this share of replies without the delay, so that they overtake others; UDP only
    #[arg(long, value_name = "PERCENT", env = "EVECHO_REORDER", default_value_t)]
    reorder: Probability,
    /// Flip one bit in this share of replies; UDP only
    #[arg(long, value_name = "PERCENT", env = "EVECHO_CORRUPT", default_value_t)]
    corrupt: Probability,
    /// Seed of the random generator: the same seed does the same to the same replies [default: random, and logged]
    #[arg(long, value_name = "N", env = "EVECHO_SEED", value_parser = number(0, u64::MAX))]
    seed: Option<u64>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "How to run")]
struct DesignArgs {
    /// Design of the server
    #[arg(long, env = "EVECHO_DESIGN", value_enum, default_value_t = DesignArg::EventLoop)]
    design: DesignArg,
    /// Poll for up to this time before sleeping, as long as this finds new messages; 0 switches it off
    ///
    /// For the event loop only: the threads of the other designs always sleep at once.
    #[arg(long, value_name = "TIME", env = "EVECHO_BUSY_POLL", default_value = "50us", value_parser = units::duration)]
    busy_poll: Duration,
    /// Receive and send each datagram alone, without segmentation offload
    #[arg(long, env = "EVECHO_NO_UDP_OFFLOAD")]
    no_udp_offload: bool,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Log (on standard error; RUST_LOG overrides)")]
struct LogArgs {
    /// Format of the log
    #[arg(long, value_name = "FORMAT", env = "EVECHO_LOG_FORMAT", value_enum, default_value_t = LogFormatArg::Auto)]
    log_format: LogFormatArg,
    /// Log more: -v how each connection ended, -vv each step
    #[arg(short, long, env = "EVECHO_VERBOSE", action = clap::ArgAction::Count, value_parser = number(0, u8::MAX))]
    verbose: u8,
    /// Log errors only, whatever -v says
    #[arg(short, long, env = "EVECHO_QUIET")]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormatArg {
    /// As text; under journald without times, which it adds, and with levels as it reads them
    Auto,
    /// For people
    Text,
    /// For programs: one JSON object per line
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
enum ServiceArg {
    /// The same bytes (RFC 862)
    Echo,
    /// Text in Unicode upper case; bytes that are not UTF-8 unchanged
    Upper,
    /// The addresses of client and server, and the name of the server: a line of JSON
    Who,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum FramingArg {
    /// No messages: bytes as they come
    Raw,
    /// Lines: each ends with a line feed
    Lines,
    /// Frames: a length in four bytes, big-endian, then the payload
    Length,
}

impl From<FramingArg> for Framing {
    fn from(framing: FramingArg) -> Self {
        match framing {
            FramingArg::Raw => Self::Raw,
            FramingArg::Lines => Self::Lines,
            FramingArg::Length => Self::LengthPrefixed,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DesignArg {
    /// One thread, one poll loop, nothing blocks
    EventLoop,
    /// A thread for each connection, and one for UDP
    Threaded,
    /// One client at a time while the others wait, and a thread for UDP
    Iterative,
}

impl From<DesignArg> for Design {
    fn from(design: DesignArg) -> Design {
        match design {
            DesignArg::EventLoop => Design::EventLoop,
            DesignArg::Threaded => Design::Threaded,
            DesignArg::Iterative => Design::Iterative,
        }
    }
}

/// Runs the server until a signal ends it.
pub(crate) fn run(args: Args, environment: &Environment) -> CommandResult {
    // First of all: it changes the environment, which no other thread may read meanwhile.
    let inherited = evecho::inherited_sockets();
    // Before there is a thread, which keeps them.
    evecho::inherited::block_signals()?;
    let format = args.log.format();
    let level = args.log.level();
    // What a check finds is printed even where the log of the server would be quiet.
    let level = if args.check_config { level.max(LevelFilter::Warn) } else { level };
    super::log::start(level, format, environment);
    let result = serve(args, inherited, environment);
    match (result.as_ref().map_err(|error| sentence(&**error)), format) {
        (Ok(_), _) => {}
        (Err(failed), Format::Text) => super::log::complain(&failed),
        // A program that reads the log line by line reads this too.
        (Err(failed), Format::Json | Format::Journal) => error!(event = "failed"; "{failed}"),
    }
    super::log::flush();
    result.or(Ok(ExitCode::from(1)))
}

fn serve(
    args: Args,
    inherited: Result<Vec<OwnedFd>, AdoptError>,
    environment: &Environment,
) -> CommandResult {
    for sentence in &environment.ignored {
        warn!(event = "variable_ignored"; "{sentence}");
    }
    if let Err(error) = evecho::raise_open_file_limit() {
        warn!(
            event = "open_files_unchanged",
            errno = error.raw_os_error();
            "the limit on open files stays as it is: {error}"
        );
    }
    if let Some(seconds) = evecho::inherited::cpu_limit() {
        warn!(
            event = "cpu_time_limited",
            seconds = seconds;
            "the kernel ends this server after {seconds} s of CPU time (RLIMIT_CPU, ulimit -t)"
        );
    }
    let sockets = inherited?;
    let check_config = args.check_config;
    let (service, name) = (args.conversation.service, args.conversation.name.clone());
    let config = config(args, environment);
    if !sockets.is_empty() {
        refuse_to_bind(environment);
    }
    if check_config {
        let preview = refused(Server::preview(config.clone(), &sockets), environment)?;
        let service = describe(service, name.as_ref());
        let set_by = environment.names();
        check_config::print(&config, &service, &preview, !sockets.is_empty(), &set_by)?;
        return Ok(ExitCode::SUCCESS);
    }
    let protocol = config.protocol;
    let server = refused(set_up(config, sockets), environment)?;
    match service {
        ServiceArg::Echo => server.run(),
        ServiceArg::Upper => server.run_with(Upper::default()),
        ServiceArg::Who => server.run_with(Who::new(protocol, name.as_ref())),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// A service in a few words.
fn describe(service: ServiceArg, name: Option<&Name>) -> String {
    match (service, name) {
        (ServiceArg::Echo, _) => "echo".to_owned(),
        (ServiceArg::Upper, _) => "upper".to_owned(),
        (ServiceArg::Who, Some(name)) => format!("who, named {name}"),
        (ServiceArg::Who, None) => "who".to_owned(),
    }
}

/// Flags that say what to bind.
const BINDING: [&str; 5] = ["port", "bind", "tcp-only", "udp-only", "reuse-port"];

/// What could be set up, or the sentence of what could not. Ends the process if the config is wrong.
fn refused<T>(
    outcome: Result<T, Error>,
    environment: &Environment,
) -> Result<T, Box<dyn std::error::Error>> {
    outcome.map_err(|error| match error {
        Error::Config(_) => {
            super::usage(None, ErrorKind::ValueValidation, &environment.sentence(&error))
        }
        _ => environment.sentence(&error).into(),
    })
}

/// Ends the process if a flag says what to bind, while the sockets are inherited.
fn refuse_to_bind(environment: &Environment) {
    if let Some(flag) = BINDING.into_iter().find(|flag| environment.gives(flag)) {
        let sentence = format!(
            "{} says what to bind, but the sockets are inherited (LISTEN_FDS) and already bound: leave it out, and set it where they are bound, such as in a socket unit",
            environment.name(flag)
        );
        super::usage(None, ErrorKind::ArgumentConflict, &sentence);
    }
}

/// Binds sockets, unless some are inherited. Those stay open when this process ends, in the process that
/// passed them.
fn set_up(mut config: Config, inherited: Vec<OwnedFd>) -> Result<Server, Error> {
    if inherited.is_empty() {
        return Server::bind(config);
    }
    config.hand_over = true;
    Server::adopt(config, inherited)
}

impl LogArgs {
    fn format(&self) -> Format {
        match self.log_format {
            LogFormatArg::Auto if is_read_by_journald() => Format::Journal,
            LogFormatArg::Auto | LogFormatArg::Text => Format::Text,
            LogFormatArg::Json => Format::Json,
        }
    }

    fn level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Error,
            (false, 0) => LevelFilter::Info,
            (false, 1) => LevelFilter::Debug,
            (false, _) => LevelFilter::Trace,
        }
    }
}

fn config(args: Args, environment: &Environment) -> Config {
    let Args { sockets, conversation, limits, impairments, how, log: _, check_config: _ } = args;
    let mut config = Config::default();
    config.design = how.design.into();
    config.port = sockets.port;
    config.bind = sockets.bind.into_iter().flat_map(|Bound(addresses)| addresses).collect();
    config.transport = transport(sockets.tcp_only, sockets.udp_only, environment);
    config.backlog = sockets.backlog;
    config.reuse_port = sockets.reuse_port;
    config.metrics = sockets.metrics;
    config.protocol.framing = conversation.framing.into();
    // The library refuses what is too long.
    config.protocol.max_frame = u32::try_from(conversation.max_frame).unwrap_or(u32::MAX);
    config.protocol.once = conversation.once;
    config.limits.max_connections = limits.max_connections;
    config.limits.spare_files = limits.spare_files;
    config.limits.per_source_connections = limits.per_source_connections;
    config.limits.idle_timeout = Some(limits.idle_timeout).filter(|time| !time.is_zero());
    config.limits.drain_delay = limits.drain_delay;
    config.limits.drain_timeout = limits.drain_timeout;
    config.limits.max_buffered = limits.max_buffered;
    config.limits.udp_rate = NonZeroU32::new(limits.udp_rate);
    config.limits.guard_ports = limits.guard_ports;
    let ImpairmentArgs { loss, delay, jitter, duplicate, reorder, corrupt, seed } = impairments;
    config.impairments.loss = loss;
    config.impairments.delay = delay;
    config.impairments.jitter = jitter;
    config.impairments.duplicate = duplicate;
    config.impairments.reorder = reorder;
    config.impairments.corrupt = corrupt;
    config.impairments.seed = seed;
    config.busy_poll = how.busy_poll;
    config.udp_offload = !how.no_udp_offload;
    config.signals = true;
    config.service_manager = ServiceManager::from_env();
    config
}

fn transport(tcp_only: bool, udp_only: bool, environment: &Environment) -> Option<Transport> {
    if tcp_only && udp_only {
        let [tcp, udp] = ["tcp-only", "udp-only"].map(|flag| environment.name(flag));
        let sentence = format!("{tcp} and {udp} leave nothing to serve; give one of them");
        super::usage(None, ErrorKind::ArgumentConflict, &sentence);
    }
    tcp_only.then_some(Transport::Tcp).or(udp_only.then_some(Transport::Udp))
}
