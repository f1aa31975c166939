//! How a running server is told to stop, and to say how it is doing.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use mio::{Events, Poll, Token, Waker};

use super::clock::Moment;
use super::connection::LINGER_TIME;
use super::signals::{Request, Signals};
use crate::stats::{Snapshot, Stats};

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
    stop: AtomicU8,
    stats: Arc<Stats>,
}

/// How far a server has been told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    No,
    /// No new clients; those who are here may finish.
    Drain,
    /// At once.
    Now,
}

/// The log target of the counters that a signal asked for: a log that is otherwise quiet shows it.
const REPORT_TARGET: &str = "evecho::report";

/// When a drain does what. Everything is over when the timeout is, from the signal on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    /// Who has not left by then is asked to, by our FIN.
    pub(super) ask_at: Moment,
    /// Who has not left by then is cut off.
    pub(super) end_at: Moment,
    ask_after: Duration,
    timeout: Duration,
}

impl Drain {
    /// Begins a drain. The last quarter of the time, but no more than a connection may linger, is for
    /// those who leave only when asked.
    pub(super) fn begin(timeout: Duration, now: Moment) -> Self {
        let ask_after = timeout - LINGER_TIME.min(timeout / 4);
        Drain { ask_at: now + ask_after, end_at: now + timeout, ask_after, timeout }
    }

    /// Says what comes, with so many connections open.
    pub(super) fn log(&self, open: usize) {
        let Drain { ask_after, timeout, .. } = self;
        let s = if open == 1 { "" } else { "s" };
        log::info!(
            "draining: {open} connection{s} may finish; after {ask_after:?} the server closes its side, after {timeout:?} it cuts off what is left"
        );
    }
}

/// Says how many connections did not end by themselves, where there are any.
pub(super) fn log_cut(connections: usize) {
    match connections {
        0 => {}
        1 => log::warn!("1 connection was cut off: it had not ended in time"),
        _ => log::warn!("{connections} connections were cut off: they had not ended in time"),
    }
}

impl Handle {
    /// Tells the server to drain: no new clients, those who are here may finish, up to
    /// [`Limits::drain_timeout`](crate::Limits::drain_timeout). Does not wait. Once it drains, or has
    /// ended, this changes nothing.
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
            log::error!("cannot wake the server: {error}");
        }
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
    /// A signal has begun the drain: the next one ends it.
    stop_signal: bool,
}

impl Control {
    /// Registers a waker with `poll`, and the signals of the process where they are ours to take.
    pub(super) fn new(poll: &Poll, with_signals: bool, stats: Arc<Stats>) -> io::Result<Self> {
        let waker = Waker::new(poll.registry(), WAKE)?;
        let signals = match with_signals {
            false => None,
            true => Some(Signals::take(poll.registry(), SIGNAL)?),
        };
        let shared = Shared { waker, stop: AtomicU8::new(0), stats };
        Ok(Control { handle: Handle { shared: Arc::new(shared) }, signals, stop_signal: false })
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes the signals that have come; to be called when the signal token has an event.
    pub(super) fn take_signals(&mut self) {
        for request in self.signals.iter_mut().flat_map(Signals::requests) {
            match request {
                // For whoever watches the log, at whatever level: somebody asked.
                Request::Report => log::info!(target: REPORT_TARGET, "{:#}", self.handle.stats()),
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
}
