//! What the two blocking designs share: a client served as in a textbook, the backlog, datagrams, and
//! how their threads are told to stop.
//!
//! A thread that blocks cannot be asked anything, so each kind of wait needs a way to be woken:
//! - for a client or a datagram: poll(2), beside a pipe whose other end is closed when the drain begins;
//! - for a slot: a condition variable;
//! - for bytes of a client: shutdown(2) by another thread, which looks like the peer's FIN to the reader.
//!   Our side lingers only until the client has acknowledged all: one that is still sending then gets an
//!   RST.
//!
//! What they do worse than the event loop, beside what is said of each: each client has a buffer of its
//! own, so that memory is bounded for each and not in total (`max_buffered` is the event loop's); and the
//! kernel's scheduler, not the server, decides which client is served next.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, Builder, Scope};
use std::time::Duration;

use log::trace;
use mio::{Events, Poll};
use slab::Slab;
use socket2::SockRef;

use super::Server;
use super::admission::{ACCEPT_RETRY, AcceptError, Admission, Rules};
use super::clock::{Clock, Moment};
use super::ending::{self, CloseReason, LINGER_BYTES, LINGER_TIME, Summary, Traffic};
use super::incidents::{Lack, MaxSetBy};
use super::netem::Netem;
use super::peer::Peer;
use super::shutdown::{Handle, Shutdown, Stage};
use super::sockets::{Sockets, note_gone};
use super::udp::Responder;
use crate::error::Transport;
use crate::protocol::{Context, Framing, Reply, Scratch, Service, Session, guarded, try_copy};
use crate::stats::Stats;
use crate::sys::datagram::DatagramSocket;
use crate::sys::socket::{self, is_lasting_for_accept, reset_stream_options, set_timeouts};
use crate::sys::wait::until_readable;
use crate::sys::{Errno, limits};

/// What a thread reads at once.
const BUFFER: usize = 16 << 10;
/// What a read or write fails with that has waited for as long as it may (SO_RCVTIMEO, SO_SNDTIMEO).
const TIMED_OUT: ErrorKind = ErrorKind::WouldBlock;
/// How often a thread looks for more of a client that has been asked to leave.
const LINGER_GAP: Duration = Duration::from_millis(10);
/// Accept pauses where a limit on address space leaves less than this: a client takes some 300 KiB.
const LEAST_SPACE: u64 = 4 << 20;
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
    let (addresses, reach) = (server.local_addrs(), server.sockets.reach());
    let Server { config, sockets, poll, shutdown, stats, .. } = server;
    let Sockets { listeners, datagrams, set_accepted, refused } = sockets;
    let hand_over = config.hand_over;
    let clients = &Clients::new(rules, stats, shutdown.handle())?;
    let (mut works, queues) = (Vec::<(&str, Work<'_>)>::new(), datagrams.len());
    for (index, socket) in datagrams.into_iter().enumerate() {
        let netem = Netem::new(&config.impairments, index, queues);
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
        listeners.iter().try_for_each(|listener| SockRef::from(listener).set_nonblocking(true))?;
        let backlog = Backlog { listeners, set_accepted, clients, hand_over, failure: None };
        works.push(("accept", Box::new(move || serve(backlog, make_service))));
    }
    thread::scope(|scope| {
        let announce = |shutdown: &mut Shutdown| {
            Server::announce(&config, (&addresses, reach), &refused, shutdown)
        };
        let outcome = control(scope, poll, shutdown, clients, works, announce);
        // Those that have not ended do so now.
        let outcome = outcome.inspect_err(|_| {
            clients.handle.abort();
            clients.announced.call_once(|| ());
        });
        // Whatever the outcome: no client is waited for any longer.
        let open = clients.wake(Stage::Over);
        clients.lock().admission.incidents.report(Moment::LAST);
        outcome.inspect(|()| Shutdown::log_cut(open))
    })
}

/// Starts a thread for each work, and announces the server once all are there. Then it waits for signals, handles,
/// and the end of these threads.
fn control<'a>(
    scope: &'a Scope<'a, '_>,
    mut poll: Poll,
    mut shutdown: Shutdown,
    clients: &'a Clients,
    works: Vec<(&str, Work<'a>)>,
    announce: impl FnOnce(&mut Shutdown),
) -> io::Result<()> {
    let (mut events, mut threads) = (Events::with_capacity(8), works.len());
    let (ended, outcomes) = channel();
    for (name, work) in works {
        let ended = ended.clone();
        let work = move || {
            clients.announced.wait();
            let panicked = |_| Err(io::Error::other("a thread of the server panicked"));
            // Where this fails, the controlling thread has ended already.
            let _ = ended.send(catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked));
            clients.handle.wake();
        };
        let thread = Builder::new().name(name.to_owned()).spawn_scoped(scope, work);
        thread.map_err(no_thread)?;
    }
    clients.announced.call_once(|| announce(&mut shutdown));
    shutdown.begin(clients.clock.now());
    while threads > 0 {
        let now = clients.clock.now();
        while let Some(stage) = shutdown.advance(now) {
            if stage == Stage::Over {
                return shutdown.outcome();
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
    shutdown.outcome()
}

/// Says what an error of the system is about.
pub(super) fn no_thread(error: io::Error) -> io::Error {
    io::Error::other(format!("no thread can be started: {error}"))
}

// ---- clients

/// The clients of a server, and what all of its threads know.
struct Clients {
    rules: Rules,
    /// Whether address space is limited.
    limited: bool,
    stats: Arc<Stats>,
    handle: Handle,
    clock: Clock,
    /// Can be read once the drain has begun.
    until_drain: PipeReader,
    slots: Mutex<Slots>,
    /// A client has left, or a stage has begun.
    changed: Condvar,
    /// The first lines are logged: the threads begin.
    announced: Once,
    timeouts_refused: Once,
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
    fn new(rules: Rules, stats: Arc<Stats>, handle: Handle) -> io::Result<Clients> {
        let (until_drain, drain) = io::pipe()?;
        let admission = Admission::new(&rules, Arc::clone(&stats));
        let slots = Slots { streams: Slab::new(), admission, last_number: 0, drain: Some(drain) };
        Ok(Clients {
            rules,
            limited: limits::address_space_left() < u64::MAX,
            stats,
            handle,
            clock: Clock::start(),
            until_drain,
            slots: Mutex::new(slots),
            changed: Condvar::new(),
            announced: Once::new(),
            timeouts_refused: Once::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing is left half-done where a thread could panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of memory by which one client may grow, so that others still find some: an eighth of what a
    /// limit on address space leaves.
    fn room(&self) -> usize {
        match self.limited {
            true => usize::try_from(limits::address_space_left() / 8).unwrap_or(usize::MAX),
            false => usize::MAX,
        }
    }

    /// An error where a limit on address space leaves too little for one more client: an allocation that fails
    /// in its thread may end the process.
    fn lacks_memory(&self) -> Option<io::Error> {
        let lacks = self.limited && limits::address_space_left() < LEAST_SPACE;
        lacks.then(|| Errno::ENOMEM.into())
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

    /// Has reads and writes wait for no longer than the idle timeout. Where the system refuses that, it is said
    /// once.
    fn set_timeouts(&self, stream: &TcpStream) {
        let timeout = self.rules.idle_timeout;
        let refused = set_timeouts(&SockRef::from(stream), timeout);
        // The socket of a client that is gone has no options any more (macOS).
        if let (Some(first), Some(_)) = (refused.first(), timeout)
            && let (Ok(address), Ok(_)) = (stream.local_addr(), stream.peer_addr())
        {
            self.timeouts_refused.call_once(|| first.log(address));
        }
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
        let (traffic, unsent) = (Traffic::default(), 0);
        Ok(Client { clients: self, stream, peer, key, number, traffic, unsent, since })
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
    /// Bytes of the last reply that the peer has not taken.
    unsent: usize,
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
    pub(super) fn serve<V: Service>(mut self, make_service: impl FnOnce() -> V) {
        let Ok(service) = guarded(make_service) else { return self.end(CloseReason::Panicked) };
        let (clients, peer) = (self.clients, self.peer);
        let stream = Arc::clone(&self.stream);
        let local = || stream.local_addr();
        let context = Context::asking(Some(self.number), peer.into(), &local);
        let mut session = Session::new(clients.rules.protocol, service);
        let reason = match self.converse(&mut session, &context) {
            Ok(reason) => reason,
            Err(error) if error.kind() == TIMED_OUT => CloseReason::Idle,
            Err(_) if clients.handle.stage() == Stage::Over => CloseReason::Drain,
            Err(error) => error.into(),
        };
        clients.stats.buffered.fetch_sub(session.held(), Relaxed);
        let closed = session.close(&context);
        drop(stream);
        self.end(if closed { reason } else { CloseReason::Panicked });
    }

    /// It is over: logged, gone, and counted.
    pub(super) fn end(self, reason: CloseReason) {
        let Client { clients, peer, traffic, unsent, since, .. } = self;
        let now = clients.clock.now();
        Summary { peer, reason, traffic, unsent, open: now - since }.log();
        clients.lock().admission.incidents.end(peer, reason, now);
        drop(self);
        // Counted last: a connection that counts as closed is gone, with all that it held.
        reason.counter(&clients.stats).increment();
    }

    /// Reads, replies, and writes, until we close our side. An error ends both sides at once.
    fn converse<V: Service>(
        &mut self,
        session: &mut Session<V>,
        context: &Context<'_>,
    ) -> io::Result<CloseReason> {
        let Ok(mut buffer) = try_copy(&[0; BUFFER]) else { return Ok(CloseReason::OverBudget) };
        let mut scratch = Scratch::default();
        let (Clients { stats, handle, .. }, peer) = (self.clients, self.peer);
        self.clients.set_timeouts(&self.stream);
        let mut end = self.reply(session.open(&mut scratch, context), None)?;
        let mut is_last = false;
        while end.is_none() && !is_last {
            // What has come by the time we close has a reply, as far as one read takes it.
            is_last = handle.stage() >= Stage::Closing;
            trace!(event = "waiting", what = "bytes", peer:%; "{peer}: waits for bytes");
            match (&*self.stream).read(&mut buffer) {
                // No FIN: another thread has shut the stream down, since the stage began.
                Ok(0) if handle.stage() >= Stage::Closing => break,
                Ok(read) => {
                    self.traffic.count_read(&peer, read, BUFFER, stats);
                    stats.buffered.fetch_sub(session.held(), Relaxed);
                    let reply = match &buffer[..read] {
                        [] => session.finish(&mut scratch, context),
                        input => session.receive(input, self.clients.room(), &mut scratch, context),
                    };
                    stats.buffered.fetch_add(session.held(), Relaxed);
                    end = self.reply(reply, session.begun())?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == TIMED_OUT => end = Some(CloseReason::Idle),
                Err(error) => return Err(error),
            }
        }
        self.close(end.unwrap_or(CloseReason::Drain))
    }

    /// Writes a reply. Where it is the last one, says why. `begun` is what the session keeps of a frame.
    fn reply(
        &mut self,
        Reply { bytes, verdict }: Reply<'_>,
        begun: Option<(usize, Framing)>,
    ) -> io::Result<Option<CloseReason>> {
        ending::trace_reply(&self.peer, bytes.len(), begun);
        let (clock, start) = (self.clients.clock, self.clients.clock.now());
        let written = self.write_all(&bytes);
        self.traffic.count_pause(clock.now() - start);
        written.map(|()| CloseReason::of(verdict))
    }

    /// Waits until the send buffer has taken all of it.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let peer = self.peer;
        self.unsent = bytes.len();
        while self.unsent > 0 {
            trace!(event = "waiting", what = "room", peer:%, bytes = self.unsent; "{peer}: waits for room in the send buffer");
            match (&*self.stream).write(&bytes[bytes.len() - self.unsent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    self.traffic.count_write(&peer, taken, self.unsent, &self.clients.stats);
                    self.unsent -= taken;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends our FIN, and reads and drops what still comes, so that it cannot cause an RST that would
    /// overtake our last bytes: for a bounded time and, once these are acknowledged, a bounded size.
    fn close(&mut self, reason: CloseReason) -> io::Result<CloseReason> {
        if reason.ends_both_sides() || self.clients.handle.stage() == Stage::Over {
            return Ok(reason);
        }
        // Where another thread has shut the other side down, the kernel has an RST for what comes after our
        // FIN, and a read does not wait.
        let is_shut = self.clients.handle.stage() == Stage::Closing;
        if !is_shut {
            self.shut_down()?;
        }
        let end = self.clients.clock.now() + LINGER_TIME;
        let (mut buffer, mut left) = ([0; 4 << 10], LINGER_BYTES as usize);
        while left > 0 || socket::is_unacknowledged(&*self.stream) {
            let time = end - self.clients.clock.now();
            // Without a bound, it does not wait at all.
            if time.is_zero() || self.stream.set_read_timeout(Some(time)).is_err() {
                break;
            }
            let read = match (&*self.stream).read(&mut buffer) {
                Err(error) if error.kind() == TIMED_OUT => break,
                outcome => outcome?,
            };
            let is_shut = self.clients.handle.stage() == Stage::Closing;
            if read == 0 && is_shut && socket::is_unacknowledged(&*self.stream) {
                thread::sleep(time.min(LINGER_GAP));
                continue;
            }
            self.traffic.count_read(&self.peer, read, buffer.len(), &self.clients.stats);
            if read == 0 {
                break;
            }
            left = left.saturating_sub(read);
        }
        if is_shut {
            self.shut_down()?;
        }
        Ok(reason)
    }

    fn shut_down(&self) -> io::Result<()> {
        self.stream.shutdown(Direction::Write)?;
        ending::trace_shutdown(&self.peer);
        Ok(())
    }
}

// ---- accept

/// The listeners of a blocking design, as one.
pub(super) struct Backlog<'a> {
    listeners: Vec<TcpListener>,
    /// Whether what they accept lacks their options.
    set_accepted: bool,
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
            let failure = self.failure.take().or_else(|| clients.lacks_memory());
            let accepted = failure.map_or_else(|| self.try_accept(), Err);
            if self.listeners.is_empty() {
                break;
            }
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

    /// Takes a client from the next listener that has one. One that fails for good is gone.
    fn try_accept(&mut self) -> Accepted {
        for _ in 0..self.listeners.len() {
            self.listeners.rotate_left(1);
            match self.listeners[0].accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if is_lasting_for_accept(&error) => {
                    let address = self.listeners[0].local_addr().ok();
                    note_gone(Transport::Tcp, address, &error, &self.clients.stats);
                    self.listeners.remove(0);
                    self.clients.handle.wake();
                    break;
                }
                accepted => {
                    let accepted = accepted.and_then(|(stream, address)| {
                        socket::block_accepted(&stream).map(|()| (stream, address))
                    });
                    if let (Ok((stream, _)), true) = (&accepted, self.set_accepted) {
                        // What is refused was logged for the listener.
                        reset_stream_options(&SockRef::from(stream));
                    }
                    return accepted;
                }
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }
}
