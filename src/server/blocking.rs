//! What the two blocking designs share: threads that wait in the system for what they need next, and
//! how they are told to stop.
//!
//! The thread that runs the server only controls: it sleeps in the poll that brings signals and stops.
//! One thread takes clients from the backlog, and each UDP socket has a thread to itself, since nobody
//! who waits for a stream can look at a datagram. A stream is served by the same [`Connection`] as in
//! the event loop; it is told that everything is ready, and then its reads and writes wait.
//!
//! A thread that waits cannot be asked anything, so each way of waiting needs a way to be woken:
//! - for a client or a datagram: poll(2), beside a pipe that is closed when the server is to stop;
//! - for a slot: a condition variable;
//! - for bytes: shutdown(2) by somebody else, which looks like the peer's FIN to who reads. Our side
//!   cannot linger after that: a client that is still sending when the drain is over gets an RST.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::info;
use mio::{Events, Poll};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use slab::Slab;

use super::Server;
use super::admission::{ACCEPT_RETRY, AcceptError, Admission, MaxSetBy, Rules};
use super::clock::{Clock, Moment, round_up};
use super::connection::{self, CloseReason, Connection, LINGER_TIME, Readiness, Turn};
use super::control::{Control, Handle, SIGNAL, Stop, poll as poll_events};
use super::guard::Guard;
use super::peer::Peer;
use super::udp::Datagrams;
use crate::protocol::{Scratch, Service, Session};
use crate::stats::Stats;

/// The room for the reads of a connection, at first. It doubles when a read fills it, up to what the
/// event loop has: memory is what a thread per client costs most of, and most clients say little.
const FIRST_ROOM: usize = 4 << 10;
const MOST_ROOM: usize = 256 << 10;

/// Runs a blocking design for up to `most` clients at a time. What it does with those who come is
/// `serve`, on a thread of its own.
pub(super) fn run<V: Service + Clone + Send>(
    server: Server,
    service: V,
    most: usize,
    set_by: MaxSetBy,
    serve: impl FnOnce(Backlog<'_>, V) -> io::Result<()> + Send,
) -> io::Result<()> {
    let Server { config, sockets, poll, control, stats } = server;
    let guard = Mutex::new(super::guard_of(&config, &sockets));
    let rules = Rules::of(&config).at_most(most, set_by);
    let (until_stop, open_until_stop) = io::pipe()?;
    let shared = Shared::new(rules, stats, control.handle(), open_until_stop);
    thread::scope(|scope| {
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let start_tcp = |listeners, service| {
            let backlog = Backlog::new(listeners, until_stop.try_clone()?, &shared)?;
            let (shared, done) = (&shared, Done::later(&shared));
            let work = move || {
                let _done = done;
                shared.note(serve(backlog, service));
            };
            spawn("accept").spawn_scoped(scope, work).map(drop)
        };
        let start_udp = |socket: UdpSocket, service| {
            socket.set_nonblocking(true)?;
            let session = Session::new(config.protocol, service);
            let (until_stop, guard, shared) = (until_stop.try_clone()?, &guard, &shared);
            let work = move || {
                let stats = Arc::clone(&shared.stats);
                let datagrams = Datagrams::new(socket, session, config.udp_offload, stats);
                shared.note(answer(datagrams, &until_stop, guard, shared));
            };
            spawn("udp").spawn_scoped(scope, work).map(drop)
        };
        let start = || {
            if !sockets.listeners.is_empty() {
                start_tcp(sockets.listeners, service.clone())?;
            }
            sockets.datagrams.into_iter().try_for_each(|socket| start_udp(socket, service.clone()))
        };
        let outcome =
            start().and_then(|()| shared.control(poll, control, config.limits.drain_timeout));
        // Whatever the outcome: nobody is waited for any more.
        shared.enter(Phase::Over);
        outcome
    })
}

/// How far the server's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// No new clients, but for those in the backlog. Those who are here may finish.
    Draining,
    /// The drain is over: whoever is still here is told to leave.
    Cut,
    /// Nobody is waited for any more.
    Over,
}

/// What all threads of a server know.
pub(super) struct Shared {
    rules: Rules,
    stats: Arc<Stats>,
    clock: Clock,
    /// Wakes the controlling thread.
    handle: Handle,
    /// A [`Phase`]; changes under the lock of `clients`.
    phase: AtomicU8,
    clients: Mutex<Clients>,
    /// A client has left, or the phase has changed.
    changed: Condvar,
    /// Nobody takes clients from the backlog any more, and all of them have left.
    done: AtomicBool,
}

/// Those who are being served.
struct Clients {
    streams: Slab<Arc<TcpStream>>,
    admission: Admission,
    /// How many have left.
    left: u64,
    /// Whether anyone waits for `changed`.
    awaited: bool,
    /// Why the server cannot go on.
    failure: Option<io::Error>,
    /// The end of a pipe that is closed when the server is to stop: the other end then polls as hung
    /// up, for everyone, for good.
    open_until_stop: Option<PipeWriter>,
}

impl Shared {
    fn new(rules: Rules, stats: Arc<Stats>, handle: Handle, open_until_stop: PipeWriter) -> Self {
        let clients = Clients {
            streams: Slab::new(),
            admission: Admission::new(&rules, Arc::clone(&stats)),
            left: 0,
            awaited: false,
            failure: None,
            open_until_stop: Some(open_until_stop),
        };
        Shared {
            rules,
            stats,
            clock: Clock::start(),
            handle,
            phase: AtomicU8::new(Phase::Serving as u8),
            clients: Mutex::new(clients),
            changed: Condvar::new(),
            done: AtomicBool::new(true),
        }
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            2 => Phase::Cut,
            _ => Phase::Over,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        // Nothing is left half-done where a thread could panic.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- the controlling thread

    /// Waits to be told to stop, then for the end.
    fn control(
        &self,
        mut poll: Poll,
        mut control: Control,
        drain_timeout: Duration,
    ) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        let mut phase_ends: Option<Moment> = None;
        loop {
            let timeout = phase_ends.map(|end| round_up(end - self.clock.now()));
            poll_events(&mut poll, &mut events, timeout)?;
            if events.iter().any(|event| event.token() == SIGNAL) {
                control.take_signals();
            }
            let now = self.clock.now();
            match control.stop() {
                Stop::Now => return Ok(()),
                Stop::Drain if phase_ends.is_none() => {
                    let open = self.enter(Phase::Draining);
                    info!("draining: {open} connections may go on for {drain_timeout:?}");
                    phase_ends = Some(now + drain_timeout);
                }
                Stop::Drain | Stop::No => {}
            }
            if let Some(error) = self.lock().failure.take() {
                return Err(error);
            }
            match phase_ends {
                Some(_) if self.done.load(Ordering::Acquire) => return Ok(()),
                Some(end) if now >= end && self.phase() == Phase::Cut => return Ok(()),
                Some(end) if now >= end => {
                    self.enter(Phase::Cut);
                    phase_ends = Some(now + LINGER_TIME);
                }
                _ => {}
            }
        }
    }

    /// Enters a phase and wakes all whom it concerns; how many connections are open.
    fn enter(&self, phase: Phase) -> usize {
        let mut clients = self.lock();
        self.phase.store(phase as u8, Ordering::Release);
        clients.open_until_stop = None;
        for (_, stream) in &clients.streams {
            cut(stream, phase);
        }
        self.changed.notify_all();
        clients.streams.len()
    }

    /// The outcome of a thread's work, of which only a failure matters.
    fn note(&self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            self.lock().failure.get_or_insert(error);
            self.handle.wake();
        }
    }

    // ---- slots

    /// Waits until there is a slot for a client; false when there is to be none any more.
    fn wait_for_slot(&self) -> bool {
        let mut clients = self.lock();
        let full = |clients: &Clients| clients.streams.len() >= self.rules.max_connections;
        if full(&clients) && self.phase() == Phase::Serving {
            clients.awaited = true;
            let open = clients.streams.len();
            clients.admission.pause_full(open, self.clock.now());
            let waits = |clients: &mut Clients| full(clients) && self.phase() == Phase::Serving;
            clients =
                self.changed.wait_while(clients, waits).unwrap_or_else(PoisonError::into_inner);
            clients.awaited = false;
        }
        !full(&clients)
    }

    /// There is no thread for a client: waits as where there is no descriptor. False when there is no
    /// use in another try.
    pub(super) fn wait_for_thread(&self, error: &io::Error) -> bool {
        let mut clients = self.lock();
        let open = clients.streams.len();
        clients.admission.pause_starved(error, open, self.clock.now());
        drop(clients);
        self.wait_for_resources()
    }

    /// What to do after accept(2) has failed.
    fn judge(&self, error: &io::Error) -> AcceptError {
        let mut clients = self.lock();
        let open = clients.streams.len();
        clients.admission.judge(error, open, self.clock.now())
    }

    /// Waits until somebody has left, or for a while. False when there is no use in another try.
    fn wait_for_resources(&self) -> bool {
        let mut clients = self.lock();
        clients.awaited = true;
        let left = clients.left;
        let waits = |clients: &mut Clients| clients.left == left && self.phase() == Phase::Serving;
        let (mut clients, _) = self
            .changed
            .wait_timeout_while(clients, ACCEPT_RETRY, waits)
            .unwrap_or_else(PoisonError::into_inner);
        clients.awaited = false;
        self.phase() == Phase::Serving
    }

    /// Takes a client in, unless its source has as many connections as it may have.
    fn admit(&self, stream: TcpStream, peer: Peer) -> Option<Client<'_>> {
        let mut clients = self.lock();
        if !clients.admission.admit(peer, self.clock.now()) {
            return None;
        }
        let stream = Arc::new(stream);
        let key = clients.streams.insert(Arc::clone(&stream));
        // Whoever cuts, cuts those who are here.
        cut(&stream, self.phase());
        self.stats.accepted.increment();
        Some(Client { stream, peer, slot: Slot { shared: self, key, peer } })
    }
}

/// Wakes the thread of a stream, so that it sees the phase.
fn cut(stream: &TcpStream, phase: Phase) {
    // An error here says that the peer has cut it already.
    let _ = match phase {
        Phase::Serving | Phase::Draining => Ok(()),
        Phase::Cut => stream.shutdown(Shutdown::Read),
        Phase::Over => stream.shutdown(Shutdown::Both),
    };
}

/// Tells the controlling thread, when it goes, that the work is done.
struct Done<'a>(&'a Shared);

impl<'a> Done<'a> {
    fn later(shared: &'a Shared) -> Self {
        shared.done.store(false, Ordering::Release);
        Done(shared)
    }
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
        self.0.handle.wake();
    }
}

/// Where clients wait until they are served.
pub(super) struct Backlog<'a> {
    listeners: Vec<TcpListener>,
    until_stop: PipeReader,
    shared: &'a Shared,
    /// The listener that is asked first: each in turn.
    first: usize,
}

impl<'a> Backlog<'a> {
    fn new(
        listeners: Vec<TcpListener>,
        until_stop: PipeReader,
        shared: &'a Shared,
    ) -> io::Result<Self> {
        // Who waits for one of several cannot wait inside accept(2). What is accepted blocks.
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        Ok(Backlog { listeners, until_stop, shared, first: 0 })
    }

    pub(super) fn shared(&self) -> &'a Shared {
        self.shared
    }

    /// Waits for the next client, and for a slot to put it in; `None` when no more are to be served.
    pub(super) fn next(&mut self) -> io::Result<Option<Client<'a>>> {
        let shared = self.shared;
        while shared.wait_for_slot() && shared.phase() < Phase::Cut {
            match self.accept() {
                Ok((stream, address)) => {
                    if let Some(client) = shared.admit(stream, address.into()) {
                        return Ok(Some(client));
                    }
                }
                Err(error) => match shared.judge(&error) {
                    AcceptError::Connection => {}
                    AcceptError::Starved if shared.wait_for_resources() => {}
                    AcceptError::Empty if shared.phase() == Phase::Serving => self.wait()?,
                    // Who comes now comes too late.
                    AcceptError::Empty | AcceptError::Starved => break,
                },
            }
        }
        Ok(None)
    }

    /// Takes a client from the first listener that has one.
    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let count = self.listeners.len();
        for step in 0..count {
            let index = (self.first + step) % count;
            match self.listeners[index].accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                outcome => {
                    self.first = index + 1;
                    return outcome;
                }
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Waits until a listener has a client, or the server is to stop.
    fn wait(&self) -> io::Result<()> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut all = vec![readable(self.until_stop.as_fd())];
        all.extend(self.listeners.iter().map(|listener| readable(listener.as_fd())));
        wait_for_any(&mut all)
    }
}

/// Waits for an event of any of them. Being interrupted is one.
fn wait_for_any(all: &mut [PollFd<'_>]) -> io::Result<()> {
    match nix::poll::poll(all, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A client that is in a slot. The stream is closed before the slot is free.
pub(super) struct Client<'a> {
    stream: Arc<TcpStream>,
    peer: Peer,
    slot: Slot<'a>,
}

/// A place among those who are served.
struct Slot<'a> {
    shared: &'a Shared,
    key: usize,
    peer: Peer,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut clients = self.shared.lock();
        drop(clients.streams.remove(self.key));
        clients.admission.leave(self.peer);
        clients.left += 1;
        if clients.awaited {
            self.shared.changed.notify_all();
        }
    }
}

/// Everything at once: who blocks finds out by waiting.
const READY: Readiness = Readiness { readable: true, writable: true, closed: true };

impl Client<'_> {
    /// Serves the client to its end, however long that takes.
    pub(super) fn serve<V: Service>(self, service: V) {
        let shared = self.slot.shared;
        let session = Session::new(shared.rules.protocol, service);
        let stream = Waiting { client: &self, fin_sent: false };
        let mut connection = Connection::new(stream, 0, self.peer, session, shared.clock.now());
        let (mut room, mut scratch) = (vec![0; FIRST_ROOM], Scratch::default());
        let mut turn = shared.rules.idle_timeout.map_or(Ok(()), |time| self.allow(time));
        let end = loop {
            if let Err(end) = turn {
                break end;
            }
            let before = connection.traffic();
            turn = self.turn(&mut connection, &mut room, &mut scratch);
            (connection.traffic() - before).count(&shared.stats);
        };
        connection.log_close(end, shared.clock.now());
        drop(connection);
        drop(self);
        // Of what counts as closed, nothing is left.
        end.counter(&shared.stats).increment();
    }

    /// Waits for bytes and answers them.
    fn turn<V: Service>(
        &self,
        connection: &mut Connection<Waiting<'_>, V>,
        room: &mut Vec<u8>,
        scratch: &mut Scratch,
    ) -> Turn {
        let shared = self.slot.shared;
        connection.hint(READY);
        let read = connection.receive(room, scratch, None, shared.clock.now())?;
        let now = shared.clock.now();
        if read > 0 {
            connection.answer(&room[..read], scratch, now)?;
        }
        if read == room.len() && read < MOST_ROOM {
            room.resize(2 * read, 0);
        }
        let closing = connection.deadline(None).is_some();
        if !connection.can_act() {
            // It has waited for as long as it may, or was cut.
            match shared.phase() >= Phase::Cut && !closing {
                true => connection.close(CloseReason::Drain, now)?,
                false => connection.give_up(now)?,
            }
        }
        // From here on there is an end to waiting, whatever comes in the meantime.
        match connection.deadline(None) {
            Some(deadline) if deadline <= now => {
                self.allow(Duration::ZERO)?;
                connection.expire()
            }
            Some(deadline) => self.allow(deadline - now),
            None => Ok(()),
        }
    }

    /// Lets each read and write wait for so long, and no longer.
    fn allow(&self, time: Duration) -> Turn {
        // None is zero for the system: it would wait for ever.
        let time = time.max(Duration::from_micros(1));
        self.stream.set_read_timeout(Some(time))?;
        self.stream.set_write_timeout(Some(time))?;
        Ok(())
    }
}

/// A stream on which reads and writes wait. It would block (so that the connection sees what it sees
/// in the event loop) where it has waited for as long as it may, or was cut.
struct Waiting<'a> {
    client: &'a Client<'a>,
    fin_sent: bool,
}

impl Waiting<'_> {
    /// Whether nothing more is to be read: then an end of the stream may be our own doing.
    fn is_cut(&self) -> bool {
        !self.fin_sent && self.client.slot.shared.phase() >= Phase::Cut
    }
}

impl Read for Waiting<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.is_cut() {
            return Err(ErrorKind::WouldBlock.into());
        }
        match (&*self.client.stream).read(room) {
            Ok(0) if self.is_cut() => Err(ErrorKind::WouldBlock.into()),
            outcome => outcome,
        }
    }
}

impl Write for Waiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (&*self.client.stream).write(bytes) {
            Err(_) if self.client.slot.shared.phase() == Phase::Over => {
                Err(ErrorKind::WouldBlock.into())
            }
            outcome => outcome,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl connection::Stream for Waiting<'_> {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.fin_sent = true;
        self.client.stream.shutdown(Shutdown::Write)
    }
}

/// Answers the datagrams of a socket, until the server is to stop.
fn answer<V: Service>(
    mut datagrams: Datagrams<V>,
    until_stop: &PipeReader,
    guard: &Mutex<Guard>,
    shared: &Shared,
) -> io::Result<()> {
    let guard = || guard.lock().unwrap_or_else(PoisonError::into_inner);
    while shared.phase() == Phase::Serving {
        if datagrams.can_act() {
            datagrams.turn(&mut guard(), shared.clock.now());
            continue;
        }
        let stop = PollFd::new(until_stop.as_fd(), PollFlags::POLLIN);
        let mut both = [datagrams.poll_fd(), stop];
        wait_for_any(&mut both)?;
        let events = both[0].revents().unwrap_or(PollFlags::all());
        let failed = events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
        let readable = failed || events.contains(PollFlags::POLLIN);
        datagrams.hint(readable, failed || events.contains(PollFlags::POLLOUT));
    }
    datagrams.hint(true, true);
    datagrams.finish(&mut guard(), shared.clock.now());
    Ok(())
}
