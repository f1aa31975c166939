//! What the two blocking designs share: a client served as in a textbook, the backlog, datagrams, and
//! how their threads are told to stop.
//!
//! A thread that blocks cannot be asked anything, so each kind of wait needs a way to be woken:
//! - for a client or a datagram: poll(2), beside a pipe whose other end is closed when the drain begins;
//! - for a slot: a condition variable;
//! - for bytes of a client: shutdown(2) by another thread, which looks like the peer's FIN to the reader.
//!   Our side cannot linger after that: a client that is still sending then gets an RST.
//!
//! What they do worse than the event loop, beside what is said of each: each client has a buffer of its
//! own, so that memory is bounded for each and not in total (`max_buffered` is the event loop's); and the
//! kernel's scheduler, not the server, decides which client is served next.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, Scope};
use std::time::Duration;

use log::trace;
use mio::{Events, Poll};
use slab::Slab;

use super::Server;
use super::admission::{ACCEPT_RETRY, AcceptError, Admission, Rules};
use super::clock::{Clock, Moment};
use super::ending::{self, CloseReason, LINGER_BYTES, LINGER_TIME, Summary, Traffic};
use super::incidents::{Lack, MaxSetBy};
use super::netem::Netem;
use super::peer::Peer;
use super::shutdown::{Handle, Shutdown, Stage};
use super::udp::Responder;
use crate::protocol::{Context, Reply, Scratch, Service, Session};
use crate::stats::Stats;
use crate::sys::datagram::DatagramSocket;
use crate::sys::wait::until_readable;

/// What a thread reads at once.
const BUFFER: usize = 16 << 10;
/// What a read or write fails with that has waited for as long as it may (SO_RCVTIMEO, SO_SNDTIMEO).
const TIMED_OUT: ErrorKind = ErrorKind::WouldBlock;
/// How often the controlling thread looks whether there is something to log.
const REPORT_GAP: Duration = Duration::from_secs(10);

/// What accept(2) returns.
type Accepted = io::Result<(TcpStream, SocketAddr)>;
/// What a thread of the server does until it ends.
type Work<'a> = Box<dyn FnOnce() -> io::Result<()> + Send + 'a>;

/// Runs a blocking design, which can have `most` clients and serves them with `serve`, on a thread of
/// its own. Each UDP socket has another one. This thread only controls.
pub(super) fn run<V: Service, F: FnMut() -> V + Clone + Send + 'static>(
    server: Server,
    (most, set_by): (usize, MaxSetBy),
    make_service: F,
    serve: impl FnOnce(Backlog<'_>, F) -> io::Result<()> + Send,
) -> io::Result<()> {
    let rules = Rules::of(&server.config).at_most(most, set_by);
    let guard = &Mutex::new(server.guard());
    let Server { config, sockets, poll, shutdown, stats, .. } = server;
    let (listeners, hand_over) = (sockets.listeners, config.hand_over);
    let (until_drain, drain) = io::pipe()?;
    let admission = Admission::new(&rules, Arc::clone(&stats));
    let slots = Slots { streams: Slab::new(), admission, last_number: 0, drain: Some(drain) };
    let (slots, changed) = (Mutex::new(slots), Condvar::new());
    let (handle, clock) = (shutdown.handle(), Clock::start());
    let clients = &Clients { rules, stats, handle, clock, until_drain, slots, changed };
    let mut works: Vec<(&str, Work<'_>)> = Vec::new();
    for (index, socket) in sockets.datagrams.into_iter().enumerate() {
        let netem = Netem::new(&config.impairments, index);
        let make_service = make_service.clone();
        let work = move || {
            let socket = DatagramSocket::new(socket, false)?;
            let (bound, stats) = (socket.local_addr(), Arc::clone(&clients.stats));
            let responder = Responder::new(make_service, bound, netem, stats);
            responder.serve_each(socket, guard, clients.clock, &clients.until_drain, hand_over)
        };
        works.push(("udp", Box::new(work)));
    }
    if !listeners.is_empty() {
        // A thread that waits for one of several cannot wait inside accept(2). Accepted streams block.
        listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
        let backlog = Backlog { listeners, clients, hand_over, failure: None };
        works.push(("accept", Box::new(move || serve(backlog, make_service))));
    }
    thread::scope(|scope| {
        let outcome = control(scope, poll, shutdown, clients, works);
        // Whatever the outcome: no client is waited for any longer.
        let open = clients.wake(Stage::Over);
        clients.lock().admission.incidents.report(Moment::LAST);
        outcome.inspect(|()| Shutdown::log_cut(open))
    })
}

/// Starts a thread for each work. Then it waits for signals, handles, and the end of these threads.
fn control<'a>(
    scope: &'a Scope<'a, '_>,
    mut poll: Poll,
    mut shutdown: Shutdown,
    clients: &'a Clients,
    works: Vec<(&str, Work<'a>)>,
) -> io::Result<()> {
    let (mut events, mut threads) = (Events::with_capacity(8), works.len());
    let (ended, outcomes) = channel();
    for (name, work) in works {
        let ended = ended.clone();
        let work = move || {
            let panicked = |_| Err(io::Error::other("a thread of the server panicked"));
            // Where this fails, the controlling thread has ended already.
            let _ = ended.send(catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked));
            clients.handle.wake();
        };
        Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
    }
    shutdown.begin(clients.clock.now());
    while threads > 0 {
        let now = clients.clock.now();
        while let Some(stage) = shutdown.advance(now) {
            if stage == Stage::Over {
                return Ok(());
            }
            let open = clients.wake(stage);
            if stage == Stage::Draining {
                shutdown.log_drain(open);
            }
        }
        clients.lock().admission.incidents.report(now);
        trace!(event = "waiting", what = "signal"; "waits for a signal, or for a thread that ends");
        shutdown.wait(&mut poll, &mut events, now, REPORT_GAP)?;
        for outcome in outcomes.try_iter() {
            outcome?;
            threads -= 1;
        }
    }
    Ok(())
}

// ---- clients

/// The clients of a server, and what all of its threads know.
struct Clients {
    rules: Rules,
    stats: Arc<Stats>,
    handle: Handle,
    clock: Clock,
    /// Can be read once the drain has begun.
    until_drain: PipeReader,
    slots: Mutex<Slots>,
    /// A client has left, or a stage has begun.
    changed: Condvar,
}

struct Slots {
    streams: Slab<Arc<TcpStream>>,
    admission: Admission,
    /// The number of the last client that was admitted.
    last_number: u32,
    /// The other end of [`Clients::until_drain`].
    drain: Option<PipeWriter>,
}

impl Clients {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing is left half-done where a thread could panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes all threads that a new stage concerns; how many clients there are.
    fn wake(&self, stage: Stage) -> usize {
        let mut slots = self.lock();
        slots.drain.take_if(|_| stage >= Stage::Draining);
        let direction = if stage == Stage::Over { Direction::Both } else { Direction::Read };
        for (_, stream) in slots.streams.iter().filter(|_| stage >= Stage::Closing) {
            // An error here says that the peer has cut it already.
            let _ = stream.shutdown(direction);
        }
        self.changed.notify_all();
        slots.streams.len()
    }

    /// Waits until a client leaves or a stage begins, for at most `time`. Accept is paused meanwhile.
    fn pause(&self, slots: MutexGuard<'_, Slots>, time: Duration) {
        self.stats.accept_paused.store(true, Relaxed);
        drop(self.changed.wait_timeout(slots, time));
        self.stats.accept_paused.store(false, Relaxed);
    }

    /// Admits a client that was accepted. Otherwise says what to do: where its source has as many
    /// connections as it may have, and where accept has failed.
    fn admit(&self, accepted: Accepted) -> Result<Client<'_>, AcceptError> {
        let (mut slots, since) = (self.lock(), self.clock.now());
        let open = slots.streams.len();
        let (stream, address) =
            accepted.map_err(|error| slots.admission.judge(&error, open, since))?;
        let (stream, peer) = (Arc::new(stream), Peer::from(address));
        if !slots.admission.admit(peer, since) {
            return Err(AcceptError::Connection);
        }
        slots.last_number = slots.last_number.checked_add(1).unwrap_or(1);
        let (key, number) = (slots.streams.insert(Arc::clone(&stream)), slots.last_number);
        trace!(event = "accepted", peer:%; "{peer}: accepted");
        self.stats.accepted.increment();
        Ok(Client { clients: self, stream, peer, key, number, traffic: Traffic::default(), since })
    }
}

/// A client that was admitted.
pub(super) struct Client<'a> {
    clients: &'a Clients,
    stream: Arc<TcpStream>,
    peer: Peer,
    /// Its slot, and its number of all that were admitted.
    key: usize,
    pub(super) number: u32,
    traffic: Traffic,
    /// When it was admitted.
    since: Moment,
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let mut slots = self.clients.lock();
        slots.streams.remove(self.key);
        slots.admission.leave(self.peer);
        self.clients.changed.notify_all();
    }
}

impl Client<'_> {
    /// Serves the client to its end, however long that takes.
    pub(super) fn serve<V: Service>(mut self, service: V) {
        let (clients, peer) = (self.clients, self.peer);
        let stream = Arc::clone(&self.stream);
        let local = || stream.local_addr();
        let context = Context::stream(self.number, peer.into(), &local);
        let mut session = Session::new(clients.rules.protocol, service);
        let reason = match self.converse(&mut session, &context) {
            Ok(reason) => reason,
            Err(error) if error.kind() == TIMED_OUT => CloseReason::Idle,
            Err(_) if clients.handle.stage() == Stage::Over => CloseReason::Drain,
            Err(error) => error.into(),
        };
        session.close(&context);
        clients.stats.buffered.fetch_sub(session.held(), Relaxed);
        let now = clients.clock.now();
        Summary { peer, reason, traffic: self.traffic, unsent: 0, open: now - self.since }.log();
        clients.lock().admission.incidents.end(peer, reason, now);
        drop((stream, self));
        // Counted last: a connection that counts as closed is gone, with all that it held.
        reason.counter(&clients.stats).increment();
    }

    /// Reads, replies, and writes, until we close our side. An error ends both sides at once.
    fn converse<V: Service>(
        &mut self,
        session: &mut Session<V>,
        context: &Context<'_>,
    ) -> io::Result<CloseReason> {
        let (mut buffer, mut scratch) = (vec![0; BUFFER], Scratch::default());
        let (Clients { rules, stats, handle, .. }, peer) = (self.clients, self.peer);
        self.stream.set_read_timeout(rules.idle_timeout)?;
        self.stream.set_write_timeout(rules.idle_timeout)?;
        let mut end = self.reply(session.open(&mut scratch, context))?;
        while end.is_none() && handle.stage() < Stage::Closing {
            trace!(event = "waiting", what = "bytes", peer:%; "{peer}: waits for bytes");
            match (&*self.stream).read(&mut buffer) {
                // No FIN: another thread has shut the stream down, since the stage began.
                Ok(0) if handle.stage() >= Stage::Closing => {}
                Ok(read) => {
                    self.traffic.count_read(&peer, read, BUFFER, stats);
                    stats.buffered.fetch_sub(session.held(), Relaxed);
                    let reply = match &buffer[..read] {
                        [] => session.finish(&mut scratch, context),
                        input => session.receive(input, usize::MAX, &mut scratch, context),
                    };
                    stats.buffered.fetch_add(session.held(), Relaxed);
                    end = self.reply(reply)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == TIMED_OUT => end = Some(CloseReason::Idle),
                Err(error) => return Err(error),
            }
        }
        self.close(end.unwrap_or(CloseReason::Drain))
    }

    /// Writes a reply: waits until the send buffer has taken all of it. Where it is the last one, says why.
    fn reply(&mut self, Reply { bytes, verdict }: Reply<'_>) -> io::Result<Option<CloseReason>> {
        let (peer, length) = (self.peer, bytes.len());
        if length > 0 {
            ending::trace_reply(&peer, length);
            trace!(event = "waiting", what = "room", peer:%, bytes = length; "{peer}: waits for room in the send buffer");
            (&*self.stream).write_all(&bytes)?;
            self.traffic.count_write(&peer, length, length, &self.clients.stats);
        }
        Ok(CloseReason::of(verdict))
    }

    /// Sends our FIN. Then it reads and drops what still comes, for a bounded time and size, so that it
    /// cannot cause an RST that would overtake our last bytes.
    fn close(&mut self, reason: CloseReason) -> io::Result<CloseReason> {
        if reason.ends_both_sides() || self.clients.handle.stage() == Stage::Over {
            return Ok(reason);
        }
        self.stream.shutdown(Direction::Write)?;
        ending::trace_shutdown(&self.peer);
        let end = self.clients.clock.now() + LINGER_TIME;
        let (mut buffer, mut left) = (vec![0; BUFFER], LINGER_BYTES as usize);
        while left > 0 {
            // None is zero for the system: it would wait for ever.
            let time = (end - self.clients.clock.now()).max(Duration::from_micros(1));
            self.stream.set_read_timeout(Some(time))?;
            let read = match (&*self.stream).read(&mut buffer) {
                Err(error) if error.kind() == TIMED_OUT => break,
                outcome => outcome?,
            };
            self.traffic.count_read(&self.peer, read, buffer.len(), &self.clients.stats);
            left = if read > 0 { left.saturating_sub(read) } else { 0 };
        }
        Ok(reason)
    }
}

// ---- accept

/// The listeners of a blocking design, as one.
pub(super) struct Backlog<'a> {
    listeners: Vec<TcpListener>,
    clients: &'a Clients,
    /// What waits here when the drain begins is left to the next server.
    hand_over: bool,
    /// What has failed after accept(2), and is dealt with as if that had.
    pub(super) failure: Option<io::Error>,
}

impl<'a> Backlog<'a> {
    /// Waits for the next client, when there is a slot for it; `None` when no more are to be served.
    pub(super) fn accept(&mut self) -> io::Result<Option<Client<'a>>> {
        let clients = self.clients;
        let last = if self.hand_over { Stage::NotReady } else { Stage::Draining };
        while clients.handle.stage() <= last {
            let mut slots = clients.lock();
            let (open, now) = (slots.streams.len(), clients.clock.now());
            if open >= clients.rules.max_connections && clients.handle.stage() < Stage::Draining {
                slots.admission.pause(Lack::Slots(clients.rules.max_set_by), open, now);
                trace!(event = "waiting", what = "slot"; "waits for a client to leave");
                clients.pause(slots, REPORT_GAP);
                continue;
            }
            drop(slots);
            let accepted = self.failure.take().map_or_else(|| self.try_accept(), Err);
            match clients.admit(accepted) {
                Ok(client) => return Ok(Some(client)),
                Err(AcceptError::Connection) => {}
                // The backlog is empty, or would have to wait: what comes now is too late.
                Err(_) if clients.handle.stage() >= Stage::Draining => break,
                Err(AcceptError::Starved) => {
                    trace!(event = "waiting", what = "resources"; "waits for a client to leave, or for another try");
                    clients.pause(clients.lock(), ACCEPT_RETRY);
                }
                Err(AcceptError::Empty) => {
                    trace!(event = "waiting", what = "client"; "waits for the next client");
                    until_readable(&self.listeners, &clients.until_drain, None)?;
                }
            }
        }
        Ok(None)
    }

    /// Takes a client from the first listener that has one. Each is asked first in its turn.
    fn try_accept(&mut self) -> Accepted {
        self.listeners.rotate_left(1);
        let mut outcomes = self.listeners.iter().map(TcpListener::accept);
        let is_empty = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
        let first = outcomes.find(|outcome| !outcome.as_ref().is_err_and(is_empty));
        first.unwrap_or(Err(ErrorKind::WouldBlock.into()))
    }
}
