//! `evecho ping`: round-trip times, as `ping(8)` shows them, and a health check.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use clap::error::ErrorKind;
use serde::Serialize;

use super::figure::Figure;
use super::output::{Output, complain, json, sentence};
use super::serve::FramingArg;
use super::{CommandResult, TargetArgs, check_source, flag_at_sigusr1, units, usage};
use evecho::client::Cancel;
use evecho::client::ping::{
    self, Config, ConfigError, Event, Pattern, Progress, Reason, Reply, Size, Summary,
};
use evecho::client::target::LONGEST_WAIT;
use evecho::units::{milliseconds, time};

/// Measure round-trip times, and find loss, duplicates, reordering and corruption.
///
/// Goes on while the server is not there, with a line for each try, and connects again when it is
/// back. After a few losses in a row it resolves the name again and takes a new connection or, over UDP,
/// a new socket: a server that has moved is found. Ends after --count pings, at the --deadline or at Ctrl-C,
/// with a summary; SIGUSR1 prints the summary so far.
///
/// The shortest, mean and longest time, mdev and jitter are of the pings that were answered. In percentiles,
/// a ping that was lost, or had a damaged reply, counts as later than all of these: one that falls on it is
/// "never" (null in JSON).
///
/// The exit code is 0 when a ping was answered, whole and in time (with --count and --deadline: when
/// that many were), 1 when not, and 2 on wrong usage or when this machine fails. For a health check
/// use -c 1 -q; to wait until a server is up, -c 1 -w 60.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Send each ping as a datagram
    #[arg(short, long)]
    udp: bool,
    /// How the end of a ping is marked in a TCP stream [default: raw]
    #[arg(short, long, value_enum)]
    framing: Option<FramingArg>,
    /// Send this many pings; with --deadline, until this many are answered
    #[arg(short, long, value_name = "NUMBER", value_parser = units::count(1, u64::MAX))]
    count: Option<u64>,
    /// End after this time, whatever was sent and answered
    #[arg(short = 'w', long, value_name = "TIME", value_parser = units::timeout)]
    deadline: Option<Duration>,
    /// Time from one ping to the next; 0 sends each as soon as the one before is answered
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Bytes in each ping, 24 to 65507
    #[arg(short, long, value_name = "SIZE", default_value = "56", value_parser = size)]
    size: Size,
    /// What the pings are made of
    #[arg(long, value_enum, default_value_t = PatternArg::Text)]
    pattern: PatternArg,
    /// Expect the replies in upper case
    #[arg(long)]
    upper: bool,
    /// Give up on a ping, or on connecting, after this time
    #[arg(short = 'W', long, value_name = "TIME", default_value = "1s")]
    #[arg(value_parser = units::timeout)]
    wait: Duration,
    /// Before each ping, say when the one before has no reply yet
    #[arg(short = 'O', long)]
    outstanding: bool,
    /// Print the time before each line, in seconds since 1970
    #[arg(short = 'D', long)]
    timestamps: bool,
    /// Print only the summary
    #[arg(short, long)]
    quiet: bool,
    /// Send from this address of this machine
    #[arg(long, value_name = "ADDRESS", visible_alias = "source", value_parser = units::address)]
    from: Option<IpAddr>,
    /// Mark what is sent with this code point: 0 to 63, or a name like ef, cs6, af41
    #[arg(long, value_name = "DSCP", value_parser = dscp)]
    dscp: Option<u8>,
    /// Draw round-trip times over time, with losses, into this file, as SVG
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    figure: Option<PathBuf>,
    /// Print each event, and the summary, as a line of JSON, with times in nanoseconds
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum PatternArg {
    /// Lower-case letters and digits
    #[value(alias = "ascii")]
    Text,
    /// All byte values
    Binary,
}

impl From<PatternArg> for Pattern {
    fn from(pattern: PatternArg) -> Self {
        match pattern {
            PatternArg::Text => Self::Text,
            PatternArg::Binary => Self::Binary,
        }
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        time if time > LONGEST_WAIT => Err("the longest interval is a day, 24h".to_owned()),
        time => Ok(time),
    }
}

fn size(text: &str) -> Result<Size, String> {
    let bytes = units::size(text)?;
    Size::new(bytes).ok_or_else(|| format!("a ping has {} to {} bytes", Size::MIN, Size::MAX))
}

/// The code points that have names (RFC 8622, 2474, 2597, 5865, 3246), beside the classes.
const NAMED: [(&str, u8); 5] = [("le", 1), ("be", 0), ("df", 0), ("va", 44), ("ef", 46)];

fn dscp(text: &str) -> Result<u8, String> {
    let name = text.to_ascii_lowercase();
    let named = || NAMED.iter().find(|(known, _)| *known == name).map(|&(_, point)| point);
    let class = || match (name.get(..2)?, name.get(2..)?.as_bytes()) {
        ("cs", &[class @ b'0'..=b'7']) => Some((class - b'0') << 3),
        ("af", &[class @ b'1'..=b'4', level @ b'1'..=b'3']) => {
            Some(((class - b'0') << 3) + ((level - b'0') << 1))
        }
        _ => None,
    };
    let number = || text.parse().ok().filter(|point| *point <= 63);
    named().or_else(class).or_else(number).ok_or_else(|| {
        "give a number from 0 to 63, or a name: ef, va, le, df, cs0 to cs7, af11 to af43".to_owned()
    })
}

impl Args {
    /// The checked configuration.
    fn config(self) -> Config {
        let framing = self.framing.map(|_| "--framing");
        let (target, transport) = self.target.resolve("ping", self.udp, framing);
        let mut config = Config::new(target);
        config.transport = transport;
        config.source = self.from;
        config.dscp = self.dscp;
        config.framing = self.framing.map_or(config.framing, Into::into);
        config.pattern = self.pattern.into();
        config.upper = self.upper;
        config.count = self.count;
        config.deadline = self.deadline;
        config.interval = self.interval;
        config.size = self.size;
        config.wait = self.wait;
        config.report_outstanding = self.outstanding;
        if let Err(error) = config.check() {
            let flags = match error {
                ConfigError::BinaryLines => "--pattern binary and --framing lines: ",
                ConfigError::BinaryUpper => "--pattern binary and --upper: ",
                ConfigError::SourceFamily => "--from: ",
                _ => "",
            };
            usage(Some("ping"), ErrorKind::ArgumentConflict, &format!("{flags}{error}"));
        }
        config
    }
}

/// Pings as the flags say. Unlike those of other commands, the exit code tells that nothing answered
/// (1) from everything else that can go wrong (2).
pub(crate) fn run(args: Args) -> CommandResult {
    ping(args).or_else(|error| {
        complain(&sentence(&*error));
        Ok(ExitCode::from(2))
    })
}

fn ping(args: Args) -> CommandResult {
    let figure = Figure::open(args.figure.as_deref())?;
    let mut printer = Printer {
        output: Output::plain(),
        quiet: args.quiet,
        json: args.json,
        timestamps: args.timestamps,
        config: args.config(),
        peer: None,
        headed: false,
        trouble: None,
        start: Instant::now(),
    };
    let config = printer.config.clone();
    config.source.map_or(Ok(()), check_source)?;
    let (cancel, report) = (Cancel::at_signals()?, flag_at_sigusr1()?);
    let summary = ping::run(&config, &cancel, |progress| {
        printer.progress(progress);
        if report.swap(false, Ordering::Relaxed) {
            printer.summary(&progress.summary());
        }
        printer.cancel_unread(&cancel);
    })?;
    printer.summary(&summary);
    if let Some(figure) = figure {
        figure.write(&ping::svg(&config, &summary))?;
    }
    let unread = printer.is_unread();
    printer.output.conclude(|_| Ok(()))?;
    if config.is_met_by(&summary) {
        return Ok(ExitCode::SUCCESS);
    }
    if !unread {
        complain(&unanswered(&config, &summary, printer.trouble.as_ref()));
    }
    let ours = matches!(printer.trouble, Some((Reason::Failed, _)));
    Ok(ExitCode::from(if ours { 2 } else { 1 }))
}

/// Why the exit code is not 0, in one sentence.
fn unanswered(config: &Config, summary: &Summary, trouble: Option<&(Reason, String)>) -> String {
    let target = &config.target;
    if let (Some(count), Some(_), 1..) = (config.count, config.deadline, summary.received) {
        let received = summary.received;
        return format!("{target} answered {received} of {count} pings before the deadline");
    }
    match trouble {
        Some((Reason::Corrupt | Reason::Cut, detail)) => {
            format!("no ping came back whole: {target} {detail}")
        }
        Some((Reason::Timeout, _)) => format!(
            "{target} did not answer within {}; is an echo server running there, and on that port?",
            time(config.wait)
        ),
        Some((_, detail)) => format!("no ping was answered: {detail}"),
        None => format!("{target} had not answered when the run ended"),
    }
}

/// Writes events and the summary to standard output.
struct Printer {
    output: Output,
    quiet: bool,
    json: bool,
    timestamps: bool,
    config: Config,
    /// The server's address.
    peer: Option<String>,
    /// Whether the first line is written. It waits for the address.
    headed: bool,
    /// What failed last.
    trouble: Option<(Reason, String)>,
    start: Instant,
}

impl Printer {
    fn progress(&mut self, progress: &Progress<'_>) {
        let Some(event) = progress.event else { return };
        if let (Some(reason), false) = (event.reason(), matches!(event, Event::Disconnected { .. }))
        {
            let detail = match event {
                Event::Lost { detail, .. } => detail,
                Event::Reply(Reply::Corrupt { upper_case: true, .. }) => {
                    "answers in upper case: expect that with --upper"
                }
                _ => "does not send back what it receives",
            };
            self.trouble = Some((reason, detail.to_owned()));
        }
        match (self.quiet, self.json) {
            (true, _) => {}
            (false, true) => self.write(&json(&Line::new(event, self.timestamps))),
            (false, false) => self.describe(event),
        }
    }

    /// Ends a run that has no end once its output is closed; any other comes to its verdict.
    fn cancel_unread(&self, cancel: &Cancel) {
        if self.is_unread() || self.output.has_failed() {
            cancel.cancel();
        }
    }

    fn is_unread(&self) -> bool {
        let endless = self.config.count.is_none() && self.config.deadline.is_none();
        self.output.is_closed() && endless
    }

    fn write(&mut self, text: &str) {
        self.output.report(|output| writeln!(output, "{text}"));
    }

    fn describe(&mut self, event: &Event) {
        let first = !self.headed;
        if let Event::Connected { address, .. } = event {
            self.peer = Some(address.to_string());
        }
        if first && !matches!(event, Event::Start { .. }) {
            self.headed = true;
            let header = self.header();
            self.write(&header);
        }
        let line = match event {
            Event::Connected { address, local } if !first => {
                format!("connected to {address} from {local}")
            }
            Event::Reply(reply) => self.describe_reply(reply),
            Event::Lost { seq, reason: Reason::Timeout, detail } if detail.is_empty() => {
                format!("seq={seq}: no reply within {}", time(self.config.wait))
            }
            Event::Lost { seq, detail, .. } => format!("seq={seq}: {detail}"),
            Event::Outstanding { seq } => format!("seq={seq}: no reply yet"),
            Event::Disconnected { detail, .. } => format!("{detail}; the next ping connects again"),
            _ => return,
        };
        let stamp = match self.timestamps {
            true => format!("[{:.6}] ", seconds_since_1970()),
            false => String::new(),
        };
        self.write(&format!("{stamp}{line}"));
    }

    fn header(&self) -> String {
        let transport = self.config.transport.name();
        let peer = self.peer.as_ref().map_or(String::new(), |peer| format!(" ({peer})"));
        let size = self.config.size.bytes();
        format!("PING {}{peer} over {transport}: {size} bytes", self.config.target)
    }

    fn describe_reply(&self, reply: &Reply) -> String {
        match reply {
            Reply::Corrupt { .. } | Reply::Cut { .. } | Reply::Stray => reply.to_string(),
            _ => {
                let peer = self.peer.as_deref().unwrap_or("?");
                format!("{} bytes from {peer}: {reply}", self.config.size.bytes())
            }
        }
    }

    fn summary(&mut self, summary: &Summary) {
        let text = if self.json {
            json(&SummaryLine { event: "summary", target: self.config.target.to_string(), summary })
        } else {
            let blank = if self.quiet { "" } else { "\n" };
            let text = describe_summary(summary, self.start.elapsed());
            format!("{blank}--- {} ping statistics ---\n{text}", self.config.target)
        };
        self.write(&text);
    }
}

/// An event as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    event: &'a Event,
    /// Replies that are none have a reason too, as what is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<f64>,
}

impl<'a> Line<'a> {
    fn new(event: &'a Event, timestamps: bool) -> Self {
        let reason = event.reason().filter(|_| matches!(event, Event::Reply(_)));
        Self { event, reason, timestamp: timestamps.then(seconds_since_1970) }
    }
}

/// As exact as `ping -D`, to a microsecond.
fn seconds_since_1970() -> f64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    time.as_micros() as f64 / 1e6
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    event: &'static str,
    target: String,
    #[serde(flatten)]
    summary: &'a Summary,
}

fn describe_summary(summary: &Summary, elapsed: Duration) -> String {
    let Summary { sent, received, lost, .. } = summary;
    let percent = format!("{:.4}", summary.loss_percent);
    let percent = percent.trim_end_matches('0').trim_end_matches('.');
    let mut text = format!("{sent} sent, {received} received, {lost} lost ({percent}%)");
    for (count, what) in [
        (summary.waiting, "still on the way"),
        (summary.reordered, "reordered"),
        (summary.duplicates, "duplicate"),
        (summary.late, "late"),
        (summary.corrupt, "corrupt"),
        (summary.cut, "cut"),
        (summary.stray, "stray"),
    ] {
        text += &match (count, what) {
            (0, _) => continue,
            (_, "duplicate") => format!(", {}", evecho::units::count(count, what)),
            _ => format!(", {count} {what}"),
        };
    }
    text += &format!(", in {} ms", elapsed.as_millis());
    let lost_by = summary.lost_by.iter().map(|(reason, count)| format!("{count} {reason}"));
    if *lost > 0 {
        text += &format!("\nlost: {}", lost_by.collect::<Vec<_>>().join(", "));
    }
    if let Some(times) = &summary.times {
        let latency = &times.latency;
        let [min, avg, mdev] = [latency.min, latency.mean, times.mdev].map(milliseconds);
        let max = milliseconds(latency.max.unwrap_or_default());
        text += &format!("\nrtt min/avg/max/mdev = {min}/{avg}/{max}/{mdev} ms");
        if let Some(jitter) = times.jitter {
            text += &format!(", jitter {} ms", milliseconds(jitter));
        }
        let never = || "never".to_owned();
        let [p50, p90, p99] = [latency.p50, latency.p90, latency.p99]
            .map(|time| time.map_or_else(never, |time| milliseconds(time).to_string()));
        text += &format!("\nrtt p50/p90/p99 = {p50}/{p90}/{p99} ms");
        let missing = summary.sent - summary.waiting - summary.received;
        if missing > 0 {
            text += &format!(": of all, with {missing} lost or damaged as the longest");
        }
    }
    text
}
