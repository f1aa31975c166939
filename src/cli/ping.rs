//! `evecho ping`: round-trip times, as `ping(8)` shows them.

use std::fmt;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::output::Output;
use super::{CommandResult, TargetArgs, units};
use evecho::client::ping::{self, Config, Event, LONGEST, Reply, Size, Summary};
use evecho::client::target::{Target, Transport};
use evecho::units::{milliseconds, time};

/// Measure round-trip times, and tell loss, duplicates, reordering and corruption apart.
///
/// Ends after --count pings or at Ctrl-C, with a summary. The exit code is 0 when at least one ping
/// was echoed, unharmed and in time, and 1 when none was: as a health check, use -c 1 -q.
///
/// Over TCP all pings share one connection. When it ends, what was on its way is lost, and the next
/// ping connects anew.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Send each ping as a datagram
    #[arg(short, long)]
    udp: bool,
    /// Send this many pings; without it, until Ctrl-C
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Time from one ping to the next; 0 sends each as soon as the one before is answered
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Bytes in each ping, 24 to 65507
    #[arg(short, long, value_name = "SIZE", default_value = "56", value_parser = size)]
    size: Size,
    /// Give up on a ping, or on connecting, after this time
    #[arg(short = 'W', long, value_name = "TIME", default_value = "1s")]
    #[arg(value_parser = units::timeout)]
    wait: Duration,
    /// Print only the summary
    #[arg(short, long)]
    quiet: bool,
    /// Print each event, and the summary, as a line of JSON, with times in nanoseconds
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    units::duration(text).and_then(|time| {
        if time > LONGEST { Err("the longest interval is 1day".to_owned()) } else { Ok(time) }
    })
}

fn size(text: &str) -> Result<Size, String> {
    let bytes = units::size(text)?;
    usize::try_from(bytes)
        .ok()
        .and_then(Size::new)
        .ok_or_else(|| format!("a ping has {} to {} bytes", Size::MIN, Size::MAX))
}

/// Pings as the flags say.
pub(crate) fn run(args: Args) -> CommandResult {
    let config = Config {
        target: args.target.into(),
        transport: if args.udp { Transport::Udp } else { Transport::Tcp },
        count: args.count,
        interval: args.interval,
        size: args.size,
        wait: args.wait,
    };
    let stop = stop_signal()?;
    let start = Instant::now();
    let mut printer = Printer::new(&config, args.quiet, args.json);
    let summary = ping::run(&config, Some(stop.as_fd()), |event| printer.event(event))?;
    printer.summary(&summary, start.elapsed());
    printer.written?;
    if summary.received == 0 {
        if printer.output.is_closed() && config.count.is_none() {
            return Ok(ExitCode::from(1));
        }
        return Err(nothing_came(&config, &summary, printer.trouble).into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Becomes readable at SIGINT or SIGTERM. A second one ends the program at once.
fn stop_signal() -> io::Result<UnixStream> {
    let (stop, sender) = UnixStream::pair()?;
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let code = 128 + signal;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&stopping))?;
        signal_hook::flag::register(signal, Arc::clone(&stopping))?;
        signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
    }
    Ok(stop)
}

fn nothing_came(config: &Config, summary: &Summary, trouble: Option<String>) -> String {
    let target = &config.target;
    match trouble {
        Some(trouble) => format!("no ping came back whole: {trouble}"),
        None if summary.lost > 0 => format!(
            "{target} did not answer within {}; is an echo server running there, and on that port?",
            time(config.wait)
        ),
        None => format!("{target} had not answered when the run ended"),
    }
}

/// Writes events and the summary to standard output.
struct Printer<'a> {
    config: &'a Config,
    output: Output,
    quiet: bool,
    json: bool,
    peer: String,
    /// What failed last, apart from time running out.
    trouble: Option<String>,
    /// How writing went; a reader that went away is a clean end.
    written: io::Result<()>,
}

impl<'a> Printer<'a> {
    fn new(config: &'a Config, quiet: bool, json: bool) -> Self {
        let peer = config.target.to_string();
        let output = Output::plain();
        Self { config, output, quiet, json, peer, trouble: None, written: Ok(()) }
    }

    fn event(&mut self, event: &Event) -> ControlFlow<()> {
        match event {
            Event::Start { address, .. } | Event::Connected { address } => {
                self.peer = address.to_string();
            }
            Event::Lost { reason: Some(reason), .. } => self.trouble = Some(reason.clone()),
            Event::Disconnected { reason } => self.trouble = Some(reason.clone()),
            Event::Reply(Reply::Corrupt { .. } | Reply::Cut { .. }) => {
                self.trouble = Some("what came back was damaged".to_owned());
            }
            Event::Reply(_) | Event::Lost { reason: None, .. } => {}
        }
        if !self.quiet {
            let text = if self.json { json(event) } else { self.describe(event) };
            self.write(&text);
        }
        // A run that has an end comes to its verdict without a reader too.
        let unread = self.output.is_closed() && self.config.count.is_none();
        match unread || self.written.is_err() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn write(&mut self, text: &str) {
        if self.written.is_ok() {
            self.written = writeln!(self.output, "{text}");
        }
    }

    fn describe(&self, event: &Event) -> String {
        match event {
            Event::Start { address, transport, size } => {
                let transport = match transport {
                    Transport::Tcp => "TCP",
                    Transport::Udp => "UDP",
                };
                format!("PING {} ({address}) over {transport}: {size} bytes", self.config.target)
            }
            Event::Reply(reply) => self.describe_reply(reply),
            Event::Lost { seq, reason: None } => {
                let wait = time(self.config.wait);
                format!("seq={seq}: no reply within {wait}")
            }
            Event::Lost { seq, reason: Some(reason) } => format!("seq={seq}: lost: {reason}"),
            Event::Disconnected { reason } => format!("{reason}; the next ping connects anew"),
            Event::Connected { address } => format!("connected to {address}"),
        }
    }

    fn describe_reply(&self, reply: &Reply) -> String {
        let size = self.config.size.bytes();
        let named = |seq: &Option<u64>| seq.map_or("seq=?".to_owned(), |seq| format!("seq={seq}"));
        let (seq, time, remark) = match reply {
            Reply::Echo { seq, time, reordered: false } => (seq, time, ""),
            Reply::Echo { seq, time, reordered: true } => (seq, time, " (reordered)"),
            Reply::Duplicate { seq, time } => (seq, time, " (duplicate)"),
            Reply::Late { seq, time } => (seq, time, " (late: counted as lost)"),
            Reply::Corrupt { seq, byte } => {
                return format!("{}: corrupt: byte {byte} of {size} differs", named(seq));
            }
            Reply::Cut { seq, bytes } => {
                return format!("{}: cut: {bytes} bytes came back, {size} were sent", named(seq));
            }
            Reply::Stray => return "a reply to no recent ping".to_owned(),
        };
        format!(
            "{size} bytes from {}: seq={seq} time={} ms{remark}",
            self.peer,
            milliseconds(*time)
        )
    }

    fn summary(&mut self, summary: &Summary, elapsed: Duration) {
        let text = if self.json {
            json(&SummaryLine { event: "summary", target: &self.config.target, summary })
        } else {
            let blank = if self.quiet { "" } else { "\n" };
            format!("{blank}--- {} ping statistics ---\n{}", self.config.target, {
                describe_summary(summary, elapsed)
            })
        };
        self.write(&text);
    }
}

#[derive(Serialize)]
struct SummaryLine<'a> {
    event: &'static str,
    #[serde(serialize_with = "shown")]
    target: &'a Target,
    #[serde(flatten)]
    summary: &'a Summary,
}

fn shown<S: serde::Serializer>(value: &impl fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("these types have string keys and no failing parts")
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
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text += &format!(", in {} ms", elapsed.as_millis());
    if let Some(times) = &summary.times {
        let [min, avg, max, mdev] = [times.min, times.avg, times.max, times.mdev].map(milliseconds);
        let [p50, p90, p99] = [times.p50, times.p90, times.p99].map(milliseconds);
        text += &format!("\nrtt min/avg/max/mdev = {min}/{avg}/{max}/{mdev} ms");
        text += &format!("\nrtt p50/p90/p99 = {p50}/{p90}/{p99} ms");
    }
    text
}
