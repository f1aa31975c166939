//! How a running server is told to stop, and to say how it is doing.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use super::clock::Moment;
use super::connection::LINGER_TIME;
use super::notify::Notifier;
use crate::config::Config;
use crate::stats::{Snapshot, Stats};
use crate::sys::signals::{Request, Signals};
use crate::units;

/// The token of a handle that wants to be heard.
pub(super) const WAKE: Token = Token(0);
/// The token of signals.
pub(super) const SIGNAL: Token = Token(1);

/// Stops a running server from elsewhere, and reads its counters. Clones are of the same server.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waker: Waker,
    /// The server runs: everything is polled.
    running: AtomicBool,
    stop: AtomicU8,
    /// The drain has begun.
    draining: AtomicBool,
    stats: Arc<Stats>,
}

/// How far a server has been told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    No,
    /// After the delay: no new clients; those who are here may finish.
    Drain,
    /// At once.
    Now,
}

/// The log target of the counters that a signal asked for: a log that is otherwise quiet shows it.
const REPORT_TARGET: &str = "evecho::report";

/// When a drain does what. Everything is over when the timeout is, from the drain's beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drain {
    /// Who has not left by then is asked to, by our FIN.
    pub(super) ask_at: Moment,
    /// Who has not left by then is cut off.
    pub(super) end_at: Moment,
    ask_after: Duration,
    timeout: Duration,
}

impl Drain {
    /// A drain that begins now. The last quarter of the time, but no more than a connection may linger, is for
    /// those who leave only when asked.
    fn begin(timeout: Duration, now: Moment) -> Self {
        let ask_after = timeout - LINGER_TIME.min(timeout / 4);
        Drain { ask_at: now + ask_after, end_at: now + timeout, ask_after, timeout }
    }

    /// Says what comes, with so many connections open.
    pub(super) fn log(&self, open: usize) {
        let Drain { ask_after, timeout, .. } = self;
        let s = if open == 1 { "" } else { "s" };
        log::info!(
            event = "draining",
            open = open,
            ask_after_ns = units::nanoseconds(*ask_after),
            timeout_ns = units::nanoseconds(*timeout);
            "draining: {open} connection{s} may finish; after {ask_after:?} the server closes its side, after {timeout:?} it cuts off what is left"
        );
    }
}

/// What a server that may have been told to stop does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It goes on as it is.
    GoOn,
    /// It begins to drain.
    Drain(Drain),
    /// It ends, whoever is still here.
    End,
}

/// The way to the end. Who is told to stop serves everybody for a while, though it is not ready any
/// more: others need time to notice. Then it drains.
#[derive(Debug)]
struct Ending {
    delay: Duration,
    timeout: Duration,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Delayed { until: Moment },
    Draining { end_at: Moment },
}

impl Ending {
    fn step(&mut self, stop: Stop, now: Moment) -> Step {
        match (stop, self.stage) {
            (Stop::Now, _) => return Step::End,
            (Stop::Drain, Stage::Serving) => {
                self.stage = Stage::Delayed { until: now + self.delay };
            }
            _ => {}
        }
        match self.stage {
            Stage::Delayed { until } if now >= until => {
                let drain = Drain::begin(self.timeout, now);
                self.stage = Stage::Draining { end_at: drain.end_at };
                Step::Drain(drain)
            }
            Stage::Draining { end_at } if now >= end_at => Step::End,
            _ => Step::GoOn,
        }
    }

    /// When there is a step to take, whatever happens.
    fn deadline(&self) -> Option<Moment> {
        match self.stage {
            Stage::Serving => None,
            Stage::Delayed { until } => Some(until),
            Stage::Draining { end_at } => Some(end_at),
        }
    }
}

/// Says how many connections did not end by themselves, where there are any.
pub(super) fn log_cut(connections: usize) {
    match connections {
        0 => {}
        1 => log::warn!(
            event = "cut_off",
            connections = 1;
            "1 connection was cut off: it had not ended in time"
        ),
        _ => log::warn!(
            event = "cut_off",
            connections = connections;
            "{connections} connections were cut off: they had not ended in time"
        ),
    }
}

impl Handle {
    /// Tells the server to drain: no new clients, those who are here may finish, up to
    /// [`Limits::drain_timeout`](crate::Limits::drain_timeout). For
    /// [`Limits::drain_delay`](crate::Limits::drain_delay) before that, it only is not
    /// [ready](Handle::is_ready). Does not wait. Once it drains, or has ended, this changes nothing.
    pub fn drain(&self) {
        self.stop(Stop::Drain);
    }

    /// Tells the server to end at once: clients that are here are cut off. Does not wait.
    pub fn abort(&self) {
        self.stop(Stop::Now);
    }

    fn stop(&self, stop: Stop) {
        self.shared.stop.fetch_max(stop as u8, Ordering::Release);
        self.wake();
    }

    /// Ends the wait of the thread that controls the server.
    pub(super) fn wake(&self) {
        if let Err(error) = self.shared.waker.wake() {
            log::error!(
                event = "wake_failed",
                errno = error.raw_os_error();
                "cannot wake the server: {error}"
            );
        }
    }

    /// Whether new clients are welcome, as a readiness probe wants to know: the server runs, and has
    /// not been told to stop. It may serve them all the same: see
    /// [`Limits::drain_delay`](crate::Limits::drain_delay).
    pub fn is_ready(&self) -> bool {
        let Shared { running, stop, .. } = &*self.shared;
        running.load(Ordering::Acquire) && stop.load(Ordering::Acquire) == Stop::No as u8
    }

    /// Why new clients are not welcome, where they are not.
    #[cfg(feature = "daemon")]
    pub(super) fn unready(&self) -> Option<&'static str> {
        if self.is_ready() {
            return None;
        }
        let Shared { running, draining, .. } = &*self.shared;
        Some(if draining.load(Ordering::Acquire) {
            "draining: no new clients are accepted"
        } else if running.load(Ordering::Acquire) {
            "told to stop: clients are served until the drain begins"
        } else {
            "not running"
        })
    }

    /// The counters as they stand.
    pub fn stats(&self) -> Snapshot {
        self.shared.stats.snapshot()
    }
}

/// The server's side of its handles, and its signals.
#[derive(Debug)]
pub(super) struct Control {
    handle: Handle,
    signals: Option<Signals>,
    /// A signal has told us to stop: the next one ends everything.
    stop_signal: bool,
    ending: Ending,
    notifier: Option<Notifier>,
}

impl Control {
    /// Registers a waker with `poll`, and the signals of the process where they are ours to take.
    pub(super) fn new(poll: &Poll, config: &Config, stats: Arc<Stats>) -> io::Result<Self> {
        let waker = Waker::new(poll.registry(), WAKE)?;
        let signals = match config.signals {
            false => None,
            true => Some(Signals::take(poll.registry(), SIGNAL)?),
        };
        let stop = AtomicU8::new(Stop::No as u8);
        let [running, draining] = [(); 2].map(|()| AtomicBool::new(false));
        let shared = Arc::new(Shared { waker, running, stop, draining, stats });
        let (delay, timeout) = (config.limits.drain_delay, config.limits.drain_timeout);
        let ending = Ending { delay, timeout, stage: Stage::Serving };
        Ok(Control {
            handle: Handle { shared },
            signals,
            stop_signal: false,
            ending,
            notifier: config.service_manager.as_ref().map(Notifier::new),
        })
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What is served, in a sentence, for the service manager.
    pub(super) fn set_status(&mut self, status: String) {
        if let Some(notifier) = &mut self.notifier {
            notifier.status = status;
        }
    }

    /// Everything is polled.
    pub(super) fn begin(&mut self, now: Moment) {
        self.handle.shared.running.store(true, Ordering::Release);
        if let Some(notifier) = &mut self.notifier {
            notifier.ready(now);
        }
    }

    /// To be called again and again, and at the deadline: the service manager hears of it.
    pub(super) fn turn(&mut self, now: Moment) {
        if let Some(notifier) = &mut self.notifier {
            notifier.turn(now);
        }
    }

    /// What to do now, by what we have been told; to be called when something was told, and at the
    /// deadline.
    pub(super) fn step(&mut self, now: Moment) -> Step {
        self.turn(now);
        let before = self.ending.stage;
        let step = self.ending.step(self.stop(), now);
        if let Step::Drain(_) = step {
            self.handle.shared.draining.store(true, Ordering::Release);
        }
        let Ending { delay, timeout, stage } = self.ending;
        if before == Stage::Serving && stage != Stage::Serving {
            if matches!(stage, Stage::Delayed { .. }) {
                log::info!(
                    event = "told_to_stop",
                    delay_ns = units::nanoseconds(delay);
                    "told to stop: not ready any more, and serving on for {delay:?}"
                );
            }
            if let Some(notifier) = &mut self.notifier {
                notifier.stopping(delay.saturating_add(timeout), now);
            }
        }
        step
    }

    /// When there is a step to take, or the service manager has to hear of us, whatever happens.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let notifier = self.notifier.as_ref().and_then(Notifier::deadline);
        [self.ending.deadline(), notifier].into_iter().flatten().min()
    }

    /// Takes the signals that have come; to be called when the signal token has an event.
    pub(super) fn take_signals(&mut self) {
        for request in self.signals.iter_mut().flat_map(Signals::requests) {
            match request {
                // For whoever watches the log, at whatever level: somebody asked.
                Request::Report => {
                    let stats = self.handle.stats();
                    stats.log(REPORT_TARGET, "counters", format_args!("{stats:#}"));
                }
                Request::Stop if self.stop_signal => self.handle.abort(),
                Request::Stop => {
                    self.stop_signal = true;
                    self.handle.drain();
                }
            }
        }
    }

    /// How far we have been told to stop, by signals and handles together.
    pub(super) fn stop(&self) -> Stop {
        match self.handle.shared.stop.load(Ordering::Acquire) {
            0 => Stop::No,
            1 => Stop::Drain,
            _ => Stop::Now,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.handle.shared.running.store(false, Ordering::Release);
    }
}

/// Asks for events; being interrupted is the same as none.
pub(super) fn poll(
    poll: &mut Poll,
    events: &mut Events,
    timeout: Option<Duration>,
) -> io::Result<()> {
    match poll.poll(events, timeout) {
        Err(error) if error.kind() == ErrorKind::Interrupted => {
            events.clear();
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_is_over_when_its_timeout_is() {
        let now = Moment::default() + Duration::from_secs(100);
        for (timeout, ask_after) in [(8_000, 6_000), (3_600_000, 3_598_000), (100, 75), (0, 0)] {
            let drain = Drain::begin(Duration::from_millis(timeout), now);
            assert_eq!(drain.ask_at - now, Duration::from_millis(ask_after));
            assert_eq!(drain.end_at - now, Duration::from_millis(timeout));
        }
    }

    fn ending(delay: u64, timeout: u64) -> Ending {
        let [delay, timeout] = [delay, timeout].map(Duration::from_millis);
        Ending { delay, timeout, stage: Stage::Serving }
    }

    fn at(millis: u64) -> Moment {
        Moment::default() + Duration::from_millis(millis)
    }

    #[test]
    fn everybody_is_served_until_the_delay_is_over() {
        let mut ending = ending(5_000, 8_000);
        assert_eq!((ending.step(Stop::No, at(1_000)), ending.deadline()), (Step::GoOn, None));
        let told = ending.step(Stop::Drain, at(2_000));
        assert_eq!((told, ending.deadline()), (Step::GoOn, Some(at(7_000))));
        // To be told again changes nothing.
        assert_eq!(ending.step(Stop::Drain, at(6_999)), Step::GoOn);
        let drain = Drain::begin(Duration::from_secs(8), at(7_001));
        assert_eq!(ending.step(Stop::Drain, at(7_001)), Step::Drain(drain));
        assert_eq!((drain.end_at, ending.deadline()), (at(15_001), Some(at(15_001))));
        assert_eq!(ending.step(Stop::Drain, at(15_000)), Step::GoOn);
        assert_eq!(ending.step(Stop::Drain, at(15_001)), Step::End);
    }

    #[test]
    fn without_a_delay_the_drain_begins_at_once_and_without_time_it_is_over_at_once() {
        let mut ending = ending(0, 0);
        assert!(matches!(ending.step(Stop::Drain, at(1)), Step::Drain(_)));
        assert_eq!(ending.step(Stop::Drain, at(1)), Step::End);
    }

    #[test]
    fn who_is_told_to_end_at_once_does_at_any_time() {
        for told in [0, 1, 2] {
            let mut ending = ending(1_000, 1_000);
            for step in 0..told {
                ending.step(Stop::Drain, at(1_000 * step));
            }
            assert_eq!(ending.step(Stop::Now, at(1_001)), Step::End);
        }
    }
}
