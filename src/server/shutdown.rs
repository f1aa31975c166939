//! From serving to the end: one stage, which handles, signals, probes and all designs read.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use log::{error, info, trace, warn};
use mio::{Events, Poll, Token, Waker};

use super::clock::{Moment, round_up};
use super::ending::LINGER_TIME;
use super::notify::Notifier;
use super::sockets::Sockets;
use crate::config::Config;
use crate::stats::{Snapshot, Stats};
use crate::sys::interfaces::Interfaces;
use crate::sys::signals::{Request, Signals};
use crate::units;

/// The token of a handle that has something to say.
const WAKE: Token = Token(0);
/// The token of signals.
const SIGNAL: Token = Token(1);
/// The token of network interfaces, of which some have changed.
const INTERFACES: Token = Token(2);

/// The log target of the counters that a signal asked for: shown at every level.
const REPORT_TARGET: &str = "evecho::report";

/// How far the life of a server has come. It only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Starting,
    Serving,
    /// Told to stop, and serving on: others need time to notice that it is not ready.
    NotReady,
    /// No new clients. Open connections may finish.
    Draining,
    /// Connections that are still open are closed by us.
    Closing,
    /// Connections that are still open are cut off.
    Over,
}

impl Stage {
    const ALL: [Stage; 6] = [
        Stage::Starting,
        Stage::Serving,
        Stage::NotReady,
        Stage::Draining,
        Stage::Closing,
        Stage::Over,
    ];
}

/// Stops a running server from elsewhere, and reads its counters. Clones are of the same server.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waker: Waker,
    /// A [`Stage`], by its place in [`Stage::ALL`].
    stage: AtomicU8,
    stats: Arc<Stats>,
}

impl Handle {
    /// Tells the server to drain: no new clients; open connections may finish, up to
    /// [`Limits::drain_timeout`](crate::Limits::drain_timeout). For
    /// [`Limits::drain_delay`](crate::Limits::drain_delay) before that, it only is not
    /// [ready](Handle::is_ready). Does not wait. Once it drains, or has ended, this changes nothing.
    pub fn drain(&self) {
        self.raise(Stage::NotReady);
        self.wake();
    }

    /// Tells the server to end at once: open connections are cut off. Does not wait.
    pub fn abort(&self) {
        self.raise(Stage::Over);
        self.wake();
    }

    /// Whether new clients are welcome, as a readiness probe wants to know: the server runs, has
    /// all of its sockets, and has not been told to stop. It may serve them all the same: see
    /// [`Limits::drain_delay`](crate::Limits::drain_delay).
    pub fn is_ready(&self) -> bool {
        self.stage() == Stage::Serving && self.sockets_gone() == 0
    }

    fn sockets_gone(&self) -> u64 {
        self.shared.stats.sockets_gone.count()
    }

    /// The counters now, read one after the other while the server goes on.
    ///
    /// What comes in is counted before the reply to it leaves: a client that has its reply finds its
    /// connection in `accepted`, its bytes in `bytes_in`, and its datagram in `udp_received`. What goes out
    /// is counted right after the system call that sends it (`writes`, `bytes_out`, `udp_answered`), and the
    /// end of a connection once everything of it is gone (`closed_…`): these can lag behind what a client
    /// sees. They are exact once the server has ended: [`RunningServer::stop`](crate::RunningServer::stop).
    pub fn stats(&self) -> Snapshot {
        self.shared.stats.snapshot()
    }

    /// Why new clients are not welcome, where they are not.
    #[cfg(feature = "daemon")]
    pub(super) fn unready(&self) -> Option<&'static str> {
        match self.stage() {
            Stage::Serving if self.sockets_gone() > 0 => {
                Some("a socket is gone, as the log says; the others are served")
            }
            Stage::Serving => None,
            Stage::NotReady => Some("told to stop: clients are served until the drain begins"),
            Stage::Draining | Stage::Closing => Some("draining: no new clients are accepted"),
            Stage::Starting | Stage::Over => Some("not running"),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        Stage::ALL[usize::from(self.shared.stage.load(Ordering::Acquire))]
    }

    fn raise(&self, stage: Stage) {
        self.shared.stage.fetch_max(stage as u8, Ordering::AcqRel);
    }

    /// Ends the wait of the thread that runs the server.
    pub(super) fn wake(&self) {
        if let Err(error) = self.shared.waker.wake() {
            error!(
                event = "wake_failed",
                errno = error.raw_os_error();
                "cannot wake the server: {error}"
            );
        }
    }
}

/// The server's side of its handles: which stage begins when, by handles, signals and time.
#[derive(Debug)]
pub(super) struct Shutdown {
    handle: Handle,
    delay: Duration,
    timeout: Duration,
    /// The stage that began last, and when the next one does by itself.
    begun: Stage,
    next_at: Option<Moment>,
    signals: Option<Signals>,
    /// A signal asked to stop: the next one ends everything.
    stop_signal: bool,
    notifier: Option<Notifier>,
    /// How many sockets are served, and the interfaces that some of them are bound to.
    sockets: usize,
    interfaces: Option<Interfaces>,
    /// The server stops since none of its sockets is left.
    bereft: bool,
}

impl Shutdown {
    /// Registers a waker with `poll`, and the signals of the process where the config wants them.
    pub(super) fn new(poll: &Poll, config: &Config, stats: Arc<Stats>) -> io::Result<Self> {
        let waker = Waker::new(poll.registry(), WAKE)?;
        let signals = match config.signals {
            false => None,
            true => Some(Signals::take(poll.registry(), SIGNAL)?),
        };
        let shared = Shared { waker, stage: AtomicU8::new(Stage::Starting as u8), stats };
        Ok(Shutdown {
            handle: Handle { shared: Arc::new(shared) },
            delay: config.limits.drain_delay,
            timeout: config.limits.drain_timeout,
            begun: Stage::Starting,
            next_at: None,
            signals,
            stop_signal: false,
            notifier: config.service_manager.as_ref().map(Notifier::new),
            sockets: 0,
            interfaces: None,
            bereft: false,
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

    /// Watches the sockets that are served: the server stops when all of them are gone.
    pub(super) fn watch(&mut self, sockets: &Sockets, poll: &Poll) {
        self.sockets = sockets.each().count();
        match Interfaces::watch(sockets.each(), poll.registry(), INTERFACES) {
            Ok(interfaces) => self.interfaces = interfaces,
            Err(error) => warn!(
                event = "interfaces_unwatched",
                errno = error.raw_os_error();
                "it will not be noticed if the interface of a socket is removed: {error}"
            ),
        }
    }

    /// Everything is polled: the server serves, unless it was told to stop before.
    pub(super) fn begin(&mut self, now: Moment) {
        self.handle.raise(Stage::Serving);
        self.begun = Stage::Serving;
        if let Some(notifier) = &mut self.notifier {
            notifier.ready(now);
        }
    }

    /// The next stage, if it begins by now; to be called until there is none, whenever the thread is
    /// awake. It also keeps the service manager informed.
    pub(super) fn advance(&mut self, now: Moment) -> Option<Stage> {
        if let Some(notifier) = &mut self.notifier {
            notifier.turn(now);
        }
        if self.is_bereft() {
            (self.bereft, self.delay) = (true, Duration::ZERO);
            self.handle.raise(Stage::NotReady);
        }
        let due = self.next_at.take_if(|at| *at <= now);
        if due.is_some() {
            self.handle.raise(Stage::ALL[self.begun as usize + 1]);
        }
        let stage = self.handle.stage();
        if stage <= self.begun {
            return None;
        }
        self.begun = stage;
        self.next_at = match stage {
            Stage::NotReady => Some(now + self.delay),
            Stage::Draining => Some(now + self.close_after()),
            // The drain is over in time, however late this is noticed.
            Stage::Closing => due.map(|at| at + (self.timeout - self.close_after())),
            Stage::Starting | Stage::Serving | Stage::Over => None,
        };
        if stage == Stage::NotReady {
            self.tell_of_stop(now);
        }
        // They keep the sockets open.
        self.interfaces.take_if(|_| stage >= Stage::Draining);
        Some(stage)
    }

    /// Whether no socket is left, though the server was not told to stop.
    fn is_bereft(&self) -> bool {
        let gone = self.handle.sockets_gone();
        self.begun == Stage::Serving && gone > 0 && gone >= self.sockets as u64
    }

    /// How the server has ended: with an error where it was not told to.
    pub(super) fn outcome(&self) -> io::Result<()> {
        match self.bereft || self.is_bereft() {
            true => Err(io::Error::other("none of its sockets is left")),
            false => Ok(()),
        }
    }

    /// Whether a stage has been asked for that has not begun.
    pub(super) fn can_act(&self) -> bool {
        self.handle.stage() > self.begun || self.is_bereft()
    }

    /// When the next stage begins, or the service manager has to be notified, whatever happens.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let notifier = self.notifier.as_ref().and_then(Notifier::deadline);
        [self.next_at, notifier].into_iter().flatten().min()
    }

    /// Takes an event of a handle, of signals or of interfaces.
    pub(super) fn take_event(&mut self, token: Token) {
        match token {
            SIGNAL => {
                trace_ready("signal", "a signal has come");
                self.take_signals();
            }
            INTERFACES => {
                trace_ready("interfaces", "network interfaces have changed");
                // Sockets whose interface has been removed are shut down.
                self.interfaces.iter_mut().for_each(Interfaces::shut_down_removed);
            }
            // What it has to say is the stage.
            _ => trace_ready("handle", "another thread has woken the loop"),
        }
    }

    /// Does what the signals that have come ask for.
    fn take_signals(&mut self) {
        for request in self.signals.iter_mut().flat_map(Signals::requests) {
            match request {
                Request::Report => {
                    let stats = self.handle.stats();
                    stats.log(REPORT_TARGET, "counters", format_args!("{stats:#}"));
                }
                Request::Reload => info!(
                    event = "not_reloaded";
                    "SIGHUP reloads nothing: settings are read at the start, and the log is standard error"
                ),
                Request::Stop if self.stop_signal => self.handle.raise(Stage::Over),
                Request::Stop => {
                    self.stop_signal = true;
                    self.handle.raise(Stage::NotReady);
                }
            }
        }
    }

    /// Waits for signals and handles, for a thread that does nothing else, until the deadline or for
    /// `most`.
    pub(super) fn wait(
        &mut self,
        poll: &mut Poll,
        events: &mut Events,
        now: Moment,
        most: Duration,
    ) -> io::Result<()> {
        let timeout = self.deadline().map_or(most, |at| most.min(at - now));
        self::poll(poll, events, Some(timeout))?;
        events.iter().for_each(|event| self.take_event(event.token()));
        Ok(())
    }

    /// How long a drain leaves connections alone. The last quarter of the time, but no more than a
    /// connection may linger, is for those that leave only when our side closes.
    fn close_after(&self) -> Duration {
        self.timeout - LINGER_TIME.min(self.timeout / 4)
    }

    fn tell_of_stop(&mut self, now: Moment) {
        let delay = self.delay;
        if !delay.is_zero() {
            info!(
                event = "told_to_stop",
                delay_ns = units::nanoseconds(delay);
                "told to stop: not ready any more, and serving on for {delay:?}"
            );
        }
        if let Some(notifier) = &mut self.notifier {
            notifier.stopping(delay.saturating_add(self.timeout), now);
        }
    }

    /// Logs that the drain begins, with this number of connections open.
    pub(super) fn log_drain(&self, open: usize) {
        let (close_after, timeout) = (self.close_after(), self.timeout);
        info!(
            event = "draining",
            open = open,
            ask_after_ns = units::nanoseconds(close_after),
            timeout_ns = units::nanoseconds(timeout);
            "draining: {} may finish; after {close_after:?} the server closes its side, after {timeout:?} it cuts off what is left",
            units::count(open as u64, "connection")
        );
    }

    /// Logs how many connections had not ended in the end, where there are any.
    pub(super) fn log_cut(connections: usize) {
        if connections > 0 {
            let verb = if connections == 1 { "was" } else { "were" };
            warn!(
                event = "cut_off",
                connections = connections;
                "{} {verb} cut off: not ended in time",
                units::count(connections as u64, "connection")
            );
        }
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.handle.raise(Stage::Over);
    }
}

/// Tells of an event of something that there is once.
pub(super) fn trace_ready(what: &'static str, sentence: &str) {
    trace!(event = "ready", what = what; "event: {sentence}");
}

/// Waits for events, up to `timeout`. A signal that interrupts the wait ends it without any.
pub(super) fn poll(
    poll: &mut Poll,
    events: &mut Events,
    timeout: Option<Duration>,
) -> io::Result<()> {
    match poll.poll(events, timeout.map(round_up)) {
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

    fn shutdown(delay: u64, timeout: u64) -> Shutdown {
        let mut config = Config::default();
        config.limits.drain_delay = Duration::from_millis(delay);
        config.limits.drain_timeout = Duration::from_millis(timeout);
        let mut shutdown = Shutdown::new(&Poll::new().unwrap(), &config, Arc::default()).unwrap();
        assert!(!shutdown.handle.is_ready());
        shutdown.begin(at(0));
        shutdown
    }

    fn at(millis: u64) -> Moment {
        Moment::default() + Duration::from_millis(millis)
    }

    /// All stages that begin by now.
    fn stages(shutdown: &mut Shutdown, now: Moment) -> Vec<Stage> {
        std::iter::from_fn(|| shutdown.advance(now)).collect()
    }

    #[test]
    fn stages_follow_each_other_by_the_clock() {
        let mut shutdown = shutdown(5_000, 8_000);
        let handle = shutdown.handle();
        assert_eq!((stages(&mut shutdown, at(1_000)), shutdown.deadline()), (vec![], None));
        assert!(handle.is_ready());
        handle.drain();
        assert!(!handle.is_ready());
        assert_eq!(stages(&mut shutdown, at(2_000)), [Stage::NotReady]);
        assert_eq!(shutdown.deadline(), Some(at(7_000)));
        // To be told again changes nothing.
        handle.drain();
        assert_eq!(stages(&mut shutdown, at(6_999)), []);
        assert_eq!(stages(&mut shutdown, at(7_001)), [Stage::Draining]);
        assert_eq!(shutdown.deadline(), Some(at(13_001)));
        assert_eq!(stages(&mut shutdown, at(13_500)), [Stage::Closing]);
        assert_eq!(stages(&mut shutdown, at(15_000)), []);
        assert_eq!(stages(&mut shutdown, at(15_001)), [Stage::Over]);
        assert_eq!((stages(&mut shutdown, at(99_000)), shutdown.deadline()), (vec![], None));
    }

    #[test]
    fn the_last_quarter_is_for_connections_that_leave_when_our_side_closes() {
        for (timeout, close_after) in [(8_000, 6_000), (3_600_000, 3_598_000), (100, 75), (0, 0)] {
            let after = shutdown(0, timeout).close_after();
            assert_eq!(after, Duration::from_millis(close_after));
        }
    }

    #[test]
    fn a_server_without_any_socket_drains_at_once_and_fails() {
        let mut shutdown = shutdown(5_000, 8_000);
        shutdown.sockets = 2;
        let stats = Arc::clone(&shutdown.handle.shared.stats);
        stats.sockets_gone.increment();
        assert!(!shutdown.handle().is_ready() && !shutdown.can_act());
        assert_eq!(stages(&mut shutdown, at(1)), []);
        assert!(shutdown.outcome().is_ok());
        stats.sockets_gone.increment();
        assert!(shutdown.can_act() && shutdown.outcome().is_err());
        assert_eq!(stages(&mut shutdown, at(2)), [Stage::NotReady, Stage::Draining]);
        assert!(shutdown.outcome().is_err());
        // What was told to stop may lose its sockets.
        let mut shutdown = self::shutdown(5_000, 8_000);
        shutdown.sockets = 1;
        shutdown.handle().drain();
        assert_eq!(stages(&mut shutdown, at(1)), [Stage::NotReady]);
        shutdown.handle.shared.stats.sockets_gone.increment();
        assert_eq!(stages(&mut shutdown, at(2)), []);
        assert!(shutdown.outcome().is_ok());
    }

    #[test]
    fn without_time_all_stages_begin_at_once() {
        let mut shutdown = shutdown(0, 0);
        shutdown.handle().drain();
        let all = [Stage::NotReady, Stage::Draining, Stage::Closing, Stage::Over];
        assert_eq!(stages(&mut shutdown, at(1)), all);
    }

    #[test]
    fn an_abort_ends_it_at_any_stage() {
        for told in 0..3 {
            let mut shutdown = shutdown(1_000, 1_000);
            let handle = shutdown.handle();
            if told > 0 {
                handle.drain();
                stages(&mut shutdown, at(1_000));
                stages(&mut shutdown, at(1_000 * told));
            }
            handle.abort();
            assert_eq!(stages(&mut shutdown, at(2_001)).last(), Some(&Stage::Over));
        }
    }

    #[test]
    fn a_server_that_was_told_to_stop_before_it_ran_drains() {
        let shutdown = Shutdown::new(&Poll::new().unwrap(), &Config::default(), Arc::default());
        let mut shutdown = shutdown.unwrap();
        shutdown.handle().drain();
        shutdown.begin(at(0));
        assert_eq!(stages(&mut shutdown, at(0)), [Stage::NotReady, Stage::Draining]);
        let handle = shutdown.handle();
        drop(shutdown);
        assert_eq!(handle.stage(), Stage::Over);
    }
}
