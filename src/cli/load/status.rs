//! What a load reports while it goes on.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evecho::client::load::{Config, Interval, Latency, Phase, Ports, Progress};
use evecho::units::{count, grouped, milliseconds, rounded};
use serde::Serialize;

use crate::cli::flag_at_sigusr1;
use crate::cli::output::{self, Output, complain};
use crate::cli::progress::ProgressLine;

use super::text::low_ports;

/// Reports while the load goes on.
pub(super) struct Status<'a> {
    config: &'a Config,
    /// Intervals are asked for: as JSON, if that is, and else for people.
    intervals: bool,
    json: bool,
    /// How far the run is, unless intervals tell.
    line: ProgressLine,
    shown: Option<Progress>,
    /// Whether the lack of ports was warned of.
    warned: bool,
    /// The report so far is asked for.
    asked: Arc<AtomicBool>,
    output: Output,
}

impl<'a> Status<'a> {
    /// How often the line changes.
    const EVERY: Duration = Duration::from_millis(500);

    /// SIGUSR1 asks for the report so far.
    pub(super) fn new(config: &'a Config, intervals: bool, json: bool) -> io::Result<Self> {
        let asked = flag_at_sigusr1()?;
        let (line, output) = (ProgressLine::new(), Output::plain());
        let (shown, warned) = (None, false);
        Ok(Self { config, intervals, json, line, shown, warned, asked, output })
    }

    pub(super) fn hear(&mut self, progress: &Progress) {
        if let Some(interval) = progress.interval.filter(|_| self.intervals) {
            let text = if self.json { json("interval", &interval) } else { describe(&interval) };
            self.output.report(|output| {
                writeln!(output, "{text}")?;
                output.flush()
            });
        }
        if let Some(ports) = progress.ports.filter(Ports::are_low)
            && !std::mem::replace(&mut self.warned, true)
        {
            self.line.clear();
            complain(&low_ports(&ports));
        }
        if let Some(so_far) = &progress.so_far
            && self.asked.swap(false, Ordering::Relaxed)
        {
            self.line.clear();
            complain(&format!("so far: {}", describe(so_far).trim_start()));
        }
        if !self.intervals {
            self.show(progress);
        }
    }

    fn show(&mut self, progress: &Progress) {
        let before = self.shown.map_or(Duration::ZERO, |shown| shown.elapsed);
        let since = progress.elapsed.saturating_sub(before);
        if since < Self::EVERY {
            return;
        }
        let messages = progress.messages - self.shown.map_or(0, |shown| shown.messages);
        self.shown = Some(*progress);
        let rate = rounded(messages as f64 / since.as_secs_f64());
        let seconds = progress.elapsed.as_secs_f64();
        let errors = match progress.errors {
            0 => String::new(),
            errors => format!(", {}", count(errors, "error")),
        };
        let what = match progress.phase {
            Phase::Opening => {
                let all = count(self.config.connections, "connection");
                format!("{} of {all} open", grouped(progress.opened.into()))
            }
            Phase::WarmUp => format!("{rate}/s, warming up"),
            Phase::Measuring => format!("{rate}/s"),
            Phase::Draining | Phase::Over => "waiting for the last replies".to_owned(),
        };
        self.line.show(&format!("{seconds:.1}s: {what}{errors}"));
    }

    /// Takes the line back, and tells how writing went.
    pub(super) fn end(mut self) -> io::Result<()> {
        self.line.clear();
        self.output.conclude(|_| Ok(()))
    }
}

/// An object with what it is about.
pub(super) fn json(event: &'static str, value: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Line<'a, T> {
        event: &'static str,
        #[serde(flatten)]
        value: &'a T,
    }
    output::json(&Line { event, value })
}

/// An interval in a line of fixed columns and units, which fits on 80 columns.
fn describe(interval: &Interval) -> String {
    let Interval { to, rate, latency, errors, .. } = interval;
    let of = |pick: fn(&Latency) -> Option<Duration>| match latency.as_ref().and_then(pick) {
        Some(time) => milliseconds(time).to_string(),
        None => "-".to_owned(),
    };
    let [p50, p99, max] = [of(|all| all.p50), of(|all| all.p99), of(|all| all.max)];
    let (seconds, rate) = (to.as_secs_f64(), rounded(*rate).to_string());
    let errors = count(*errors, "error");
    format!("{seconds:>8.3} s {rate:>10}/s  p50 p99 max {p50:>7} {p99:>8} {max:>8} ms  {errors}")
}
