//! What the two blocking designs share: threads that wait in the system for what they need next, and
//! how they are told to stop.
//!
//! The thread that runs the server only controls: it sleeps in the poll that brings signals and stops.
//! One thread accepts clients ([`Backlog`]), and each UDP socket has a thread to itself, since nobody
//! who waits for a stream can look at a datagram. A stream is served by the same
//! [`Connection`](super::connection::Connection) as in the event loop ([`Client`]); it is told that
//! everything is ready, and then its reads and writes wait.
//!
//! A thread that waits cannot be asked anything, so each way of waiting needs a way to be woken:
//! - for a client or a datagram: poll(2), beside a pipe that is closed when the server is to stop;
//! - for a slot: a condition variable;
//! - for bytes: shutdown(2) by somebody else, which looks like the peer's FIN to who reads. Our side
//!   cannot linger after that: a client that is still sending when it is asked to leave gets an RST.

mod backlog;
mod client;
mod clients;

pub(super) use backlog::Backlog;
pub(super) use client::Client;

use std::io::{self, PipeReader, PipeWriter};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use mio::{Events, Poll};
use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout};

use self::clients::{Clients, Phase};
use super::Server;
use super::admission::Rules;
use super::clock::{Clock, Moment, round_up};
use super::control::{self, Control, Handle, Step, Stop};
use super::guard::Guard;
use super::netem::Netem;
use super::story::{self, Awaited};
use super::udp::Endpoint;
use crate::protocol::Service;
use crate::sys::datagram::DatagramSocket;
use crate::sys::wait;

/// How often it is looked whether there is something to tell of what strangers caused.
const REPORT_GAP: Duration = Duration::from_secs(10);

/// Runs a blocking design, which has `rules` for its clients. What it does with those who come is
/// `serve`, on a thread of its own; `make` makes the service of each conversation.
pub(super) fn run<V: Service, F: FnMut() -> V + Clone + Send + 'static>(
    server: Server,
    rules: Rules,
    make: F,
    serve: impl FnOnce(Backlog<'_>, F) -> io::Result<()> + Send,
) -> io::Result<()> {
    let Server { config, sockets, poll, control, stats, .. } = server;
    let guard = &Mutex::new(super::guard_of(&config, &sockets));
    let clients = &Clients::new(rules, Arc::clone(&stats));
    let (until_stop, open_until_stop) = io::pipe()?;
    let (failures, reports) = channel();
    let report = Report { failures: Some(failures), handle: control.handle() };
    let controller =
        Controller { poll, events: Events::with_capacity(8), control, reports, clients };
    thread::scope(|scope| {
        let start = move || {
            if !sockets.listeners.is_empty() {
                let (stop, make) = (until_stop.try_clone()?, make.clone());
                let backlog = Backlog::new(sockets.listeners, config.hand_over, stop, clients)?;
                spawn(scope, "accept", report.clone(), move || serve(backlog, make))?;
            }
            for (index, socket) in sockets.datagrams.into_iter().enumerate() {
                let (stop, stats) = (until_stop.try_clone()?, Arc::clone(&stats));
                let (make, netem) = (make.clone(), Netem::new(&config.impairments, index));
                spawn(scope, "udp", report.clone(), move || {
                    let socket = DatagramSocket::new(socket, config.udp_offload)?;
                    let datagrams = Endpoint::new(socket, make, netem, stats);
                    answer(datagrams, config.hand_over, &stop, guard, clients)
                })?;
            }
            Ok(())
        };
        let outcome = start().and_then(|()| controller.run(open_until_stop));
        // Whatever the outcome: nobody is waited for any more.
        control::log_cut(clients.enter(Phase::Over));
        clients.report();
        outcome
    })
}

/// Starts a thread that reports how it ends.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    report: Report,
    work: impl FnOnce() -> io::Result<()> + Send + 'scope,
) -> io::Result<()> {
    let work = move || report.send(work());
    thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).map(drop)
}

/// What a thread tells the controlling one: why it failed, and, by going, that it has ended.
#[derive(Clone)]
struct Report {
    failures: Option<Sender<io::Error>>,
    handle: Handle,
}

impl Report {
    fn send(self, outcome: io::Result<()>) {
        if let (Err(error), Some(failures)) = (outcome, &self.failures) {
            // Where nobody listens any more, the server has ended already.
            let _ = failures.send(error);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(failures) = &self.failures
        {
            let _ = failures.send(io::Error::other("a thread of the server panicked"));
        }
        self.failures = None;
        self.handle.wake();
    }
}

/// The thread that runs the server: it waits for signals, handles and the end.
struct Controller<'a> {
    poll: Poll,
    events: Events,
    control: Control,
    reports: Receiver<io::Error>,
    clients: &'a Clients,
}

impl Controller<'_> {
    /// Waits until all threads have ended, or are not to be waited for any longer. Closing the pipe
    /// wakes every thread that polls its other end, now and later.
    fn run(mut self, open_until_stop: PipeWriter) -> io::Result<()> {
        self.control.begin(self.clients.clock().now());
        let drain = loop {
            let now = self.clients.clock().now();
            match self.control.step(now) {
                Step::GoOn => {}
                Step::Drain(drain) => break drain,
                Step::End => return Ok(()),
            }
            self.wait(now + REPORT_GAP)?;
            self.clients.report();
            if self.is_over()? {
                return Ok(());
            }
        };
        // In this order, so that who is woken by the pipe sees the phase.
        let open = self.clients.enter(Phase::Draining);
        drop(open_until_stop);
        drain.log(open);
        if !self.is_over_by(drain.ask_at)? {
            self.clients.enter(Phase::Asked);
            self.is_over_by(drain.end_at)?;
        }
        Ok(())
    }

    /// Waits until a time, or until it is over before.
    fn is_over_by(&mut self, end: Moment) -> io::Result<bool> {
        while self.clients.clock().now() < end {
            if self.is_over()? {
                return Ok(true);
            }
            self.wait(end)?;
        }
        Ok(false)
    }

    /// Waits for a signal, a handle or a report, up to a time, or for the next step before that.
    fn wait(&mut self, until: Moment) -> io::Result<()> {
        let until = self.control.deadline().map_or(until, |deadline| deadline.min(until));
        let timeout = round_up(until - self.clients.clock().now());
        story::waits_for(Awaited::Signal);
        control::poll(&mut self.poll, &mut self.events, Some(timeout))?;
        if self.events.iter().any(|event| event.token() == control::SIGNAL) {
            self.control.take_signals();
        }
        self.control.turn(self.clients.clock().now());
        Ok(())
    }

    /// Whether all threads have ended, or nobody is to be waited for.
    fn is_over(&self) -> io::Result<bool> {
        match self.reports.try_recv() {
            Ok(error) => Err(error),
            Err(TryRecvError::Disconnected) => Ok(true),
            Err(TryRecvError::Empty) => Ok(self.control.stop() == Stop::Now),
        }
    }
}

/// Answers the datagrams of a socket, until the server is to stop; then those that wait in it, unless
/// the next server has it.
fn answer<V: Service>(
    mut datagrams: Endpoint<DatagramSocket, V>,
    hand_over: bool,
    until_stop: &PipeReader,
    guard: &Mutex<Guard>,
    clients: &Clients,
) -> io::Result<()> {
    let guard = || guard.lock().unwrap_or_else(PoisonError::into_inner);
    let clock = clients.clock();
    while clients.phase() == Phase::Serving {
        datagrams.turn(&mut guard(), clock.now());
        if datagrams.can_act() {
            continue;
        }
        wait_for_datagrams(&mut datagrams, Some(until_stop), clock)?;
    }
    if !hand_over {
        datagrams.finish(&mut guard(), clock.now());
    }
    datagrams.close();
    while !datagrams.is_done() && clients.phase() < Phase::Over {
        datagrams.turn(&mut guard(), clock.now());
        if !datagrams.is_done() && !datagrams.can_act() {
            wait_for_datagrams(&mut datagrams, None, clock)?;
        }
    }
    Ok(())
}

/// Waits until a socket has something to do, or the server is to stop.
fn wait_for_datagrams<V: Service>(
    datagrams: &mut Endpoint<DatagramSocket, V>,
    until_stop: Option<&PipeReader>,
    clock: Clock,
) -> io::Result<()> {
    let left = datagrams.deadline().map(|deadline| deadline - clock.now());
    match until_stop {
        Some(stop) if !datagrams.is_full() => {
            story::waits_for(Awaited::Datagram);
            wait::until_readable(&[&*datagrams.socket()], stop, left)?;
        }
        _ => thread::sleep(left.unwrap_or_default()),
    }
    datagrams.hint(true, true);
    Ok(())
}

/// Waits for an event of any of them, for so long at the most. Being interrupted is one.
fn wait_for_any(all: &mut [PollFd<'_>], most: Option<Duration>) -> io::Result<()> {
    let timeout =
        most.map(|most| PollTimeout::try_from(round_up(most)).unwrap_or(PollTimeout::MAX));
    match nix::poll::poll(all, timeout.unwrap_or(PollTimeout::NONE)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
