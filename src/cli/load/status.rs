//! What a load tells while it goes on.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use evecho::client::load::{Config, Interval, Latency, Phase, Progress};
use evecho::units::{grouped, milliseconds};
use serde::Serialize;

use crate::cli::flag_at_sigusr1;
use crate::cli::output::{Output, complain};

/// What is told while the load goes on.
pub(super) struct Status<'a> {
    config: &'a Config,
    /// Intervals are asked for: as JSON, if that is, and else for people.
    intervals: bool,
    json: bool,
    /// Where the line changes: standard output for intervals, else standard error.
    terminal: bool,
    shown: Option<Progress>,
    /// The report so far is asked for.
    asked: Arc<AtomicBool>,
    written: io::Result<()>,
    output: Output,
}

impl<'a> Status<'a> {
    /// How often the line changes.
    const EVERY: Duration = Duration::from_millis(500);

    /// SIGUSR1 asks for the report so far.
    pub(super) fn new(config: &'a Config, intervals: bool, json: bool) -> io::Result<Self> {
        let asked = flag_at_sigusr1()?;
        let terminal = match intervals {
            true => !json && io::stdout().is_terminal(),
            false => io::stderr().is_terminal(),
        };
        let (shown, written, output) = (None, Ok(()), Output::plain());
        Ok(Self { config, intervals, json, terminal, shown, asked, written, output })
    }

    pub(super) fn hear(&mut self, progress: &Progress) {
        if let Some(interval) = progress.interval.filter(|_| self.intervals) {
            let text = self.describe(&interval);
            if self.written.is_ok() {
                self.written =
                    self.output.write_all(text.as_bytes()).and_then(|()| self.output.flush());
            }
        }
        if let Some(so_far) = &progress.so_far
            && self.asked.swap(false, Ordering::Relaxed)
        {
            complain(&format!("so far: {}", line(so_far).trim_start()));
        }
        if !self.intervals {
            self.show(progress);
        }
    }

    /// A line for an interval; on a terminal it takes the place of the one before.
    fn describe(&self, interval: &Interval) -> String {
        match (self.json, self.terminal) {
            (true, _) => json("interval", interval) + "\n",
            (false, true) => format!("\r\x1b[K{}", line(interval)),
            (false, false) => line(interval) + "\n",
        }
    }

    fn show(&mut self, progress: &Progress) {
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
                format!("{} of {} connections open", progress.opened, self.config.connections)
            }
            Phase::WarmUp => format!("{}/s, warming up", grouped(rate as u64)),
            Phase::Measuring => format!("{}/s", grouped(rate as u64)),
            Phase::Draining | Phase::Over => "waiting for the last replies".to_owned(),
        };
        // A terminal that went away is no reason to end the run.
        let _ = write!(io::stderr(), "\r\x1b[K{seconds:.1}s: {what}{errors}");
    }

    /// Ends the line, and tells how writing went.
    pub(super) fn end(mut self) -> io::Result<()> {
        if self.terminal && self.intervals {
            self.output.write_all(b"\n")?;
        } else if self.terminal && self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        self.written
    }
}

/// An object with what it is about.
pub(in crate::cli) fn json(event: &'static str, value: &impl Serialize) -> String {
    #[derive(Serialize)]
    struct Line<'a, T> {
        event: &'static str,
        #[serde(flatten)]
        value: &'a T,
    }
    serde_json::to_string(&Line { event, value })
        .expect("reports have string keys and no failing parts")
}

/// An interval in a line of fixed columns and units.
fn line(interval: &Interval) -> String {
    let Interval { to, rate, latency, errors, .. } = interval;
    let of = |pick: fn(&Latency) -> Option<Duration>| match latency.as_ref().and_then(pick) {
        Some(time) => milliseconds(time).to_string(),
        None => "-".to_owned(),
    };
    let [p50, p99, max] = [of(|all| all.p50), of(|all| all.p99), of(|all| all.max)];
    let (seconds, rate) = (to.as_secs_f64(), grouped(*rate as u64).to_string());
    format!(
        "{seconds:>8.3} s {rate:>11}/s  p50 {p50:>9} ms  p99 {p99:>9} ms  max {max:>9} ms  \
         {errors} errors"
    )
}
