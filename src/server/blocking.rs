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
use std::mem::take;
use std::net::{Shutdown as Direction, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, Scope};
use std::time::Duration;

use log::trace;
use mio::Events;
use slab::Slab;
use socket2::SockRef;

use super::Server;
use super::admission::{ACCEPT_RETRY, AcceptError, Admission, Rules};
use super::announce;
use super::clock::{Clock, Moment};
use super::ending::{self, CloseReason, LINGER_BYTES, LINGER_TIME, Summary, Traffic};
use super::incidents::Lack;
use super::netem::Netem;
use super::peer::Peer;
use super::shutdown::{Handle, Shutdown, Stage};
use super::sockets::note_gone;
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

/// What a thread of the server does until it ends.
type Work<'a> = Box<dyn FnOnce() -> io::Result<()> + Send + 'a>;

/// Runs a blocking design, which serves clients with `serve`, on a thread of its own. Each UDP socket has
/// another one. This thread only controls.
pub(super) fn run<V: Service, F: FnMut() -> V + Clone + Send + 'static>(
    mut server: Server,
    make_service: F,
    serve: impl FnOnce(Backlog<'_>, F) -> io::Result<()> + Send,
) -> io::Result<()> {
    let (clients, guard) = (&Clients::new(&server)?, &Mutex::new(server.guard()));
    let (listeners, datagrams) =
        (take(&mut server.sockets.listeners), take(&mut server.sockets.datagrams));
    let (mut works, queues) = (Vec::<(&str, Work<'_>)>::new(), datagrams.len());
    let hand_over = server.config.hand_over;
    for (index, socket) in datagrams.into_iter().enumerate() {
        let netem = Netem::new(&server.config.impairments, index, queues);
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
        let backlog = Backlog::new(listeners, &mut server, clients)?;
        works.push(("accept", Box::new(move || serve(backlog, make_service))));
    }
    thread::scope(|scope| {
        let outcome = control(scope, &mut server, clients, works);
        // Whatever the outcome: those that have not ended do so now, and no client is waited for any longer.
        clients.handle.abort();
        let open = clients.wake(Stage::Over);
        clients.lock().admission.incidents.report(Moment::LAST);
        outcome.inspect(|()| Shutdown::log_cut(open))
    })
}

/// Starts a thread for each work, and announces the server once all are there. Then it waits for signals, handles,
/// and the end of these threads.
fn control<'a>(
    scope: &'a Scope<'a, '_>,
    server: &mut Server,
    clients: &'a Clients,
    works: Vec<(&str, Work<'a>)>,
) -> io::Result<()> {
    let (mut left, (ended, outcomes)) = (works.len(), channel());
    // No thread gets this lock before the first lines are logged.
    let first_lines = clients.lock();
    for (name, work) in works {
        let ended = ended.clone();
        let work = move || {
            drop(clients.lock());
            let panicked = |_| Err(io::Error::other("a thread of the server panicked"));
            // Where this fails, the controlling thread has ended already.
            let _ = ended.send(catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked));
            clients.handle.wake();
        };
        let thread = Builder::new().name(name.to_owned()).spawn_scoped(scope, work);
        thread.map_err(no_thread)?;
    }
    announce::first_lines(server);
    drop(first_lines);
    let Server { poll, shutdown, .. } = server;
    let mut events = Events::with_capacity(8);
    shutdown.begin(clients.clock.now());
    while left > 0 {
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
        shutdown.wait(poll, &mut events, now, REPORT_GAP)?;
        for outcome in outcomes.try_iter() {
            outcome?;
            left -= 1;
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
}

struct Slots {
    streams: Slab<Arc<TcpStream>>,
    admission: Admission,
    /// The other end of [`Clients::until_drain`].
    drain: Option<PipeWriter>,
}

impl Clients {
    fn new(server: &Server) -> io::Result<Clients> {
        let (rules, stats) = (Rules::of(&server.config), Arc::clone(&server.stats));
        let (until_drain, drain) = io::pipe()?;
        let admission = Admission::new(&rules, Arc::clone(&stats));
        let slots = Slots { streams: Slab::new(), admission, drain: Some(drain) };
        Ok(Clients {
            rules,
            limited: limits::address_space_left() < u64::MAX,
            stats,
            handle: server.handle(),
            clock: Clock::start(),
            until_drain,
            slots: Mutex::new(slots),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing is left half-done where a thread could panic.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes that a limit on address space leaves: an allocation that fails in a client's thread may end
    /// the process.
    fn space_left(&self) -> u64 {
        if self.limited { limits::address_space_left() } else { u64::MAX }
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
}

/// A client that was admitted. It is read and written as a stream, and counts what moves.
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

impl Client<'_> {
    /// Serves the client to its end, however long that takes.
    pub(super) fn serve<V: Service>(mut self, make_service: impl FnOnce() -> V) {
        let Ok(service) = guarded(make_service) else { return self.end(CloseReason::Panicked) };
        let (clients, stream) = (self.clients, Arc::clone(&self.stream));
        let local = || stream.local_addr();
        let context = Context::asking(Some(self.number), self.peer.into(), &local);
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

    /// Reads, replies, and writes, until we close our side. An error ends both sides at once.
    fn converse<V: Service>(
        &mut self,
        session: &mut Session<V>,
        context: &Context<'_>,
    ) -> io::Result<CloseReason> {
        let (clients, peer) = (self.clients, self.peer);
        // Not on the stack, which the kernel takes back from a thread that ends.
        let Ok(mut buffer) = try_copy(&[0; BUFFER]) else { return Ok(CloseReason::OverBudget) };
        let mut scratch = Scratch::default();
        let mut end = self.reply(session.open(&mut scratch, context), None)?;
        let reason = loop {
            if let Some(reason) = end {
                break reason;
            }
            // What has come by the time we close has a reply, as far as one read takes it.
            let is_last = clients.handle.stage() >= Stage::Closing;
            trace!(event = "waiting", what = "bytes", peer:%; "{peer}: waits for bytes");
            end = match self.read(&mut buffer) {
                // No FIN: another thread has shut the stream down, since the stage began.
                Ok(0) if clients.handle.stage() >= Stage::Closing => Some(CloseReason::Drain),
                Ok(read) => {
                    let (held, room) = (session.held(), clients.space_left() / 8);
                    let reply = match &buffer[..read] {
                        [] => session.finish(&mut scratch, context),
                        // It may grow by a part of what is left, so that others still find some.
                        input => session.receive(input, room as usize, &mut scratch, context),
                    };
                    clients.stats.buffered.fetch_add(session.held().wrapping_sub(held), Relaxed);
                    let end = self.reply(reply, session.begun())?;
                    end.or(is_last.then_some(CloseReason::Drain))
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => None,
                Err(error) if error.kind() == TIMED_OUT => Some(CloseReason::Idle),
                Err(error) => return Err(error),
            };
        };
        self.close(reason).map(|()| reason)
    }

    /// Writes a reply. Where it is the last one, says why. `begun` is what the session keeps of a frame.
    fn reply(
        &mut self,
        Reply { bytes, verdict }: Reply<'_>,
        begun: Option<(usize, Framing)>,
    ) -> io::Result<Option<CloseReason>> {
        ending::trace_reply(&self.peer, bytes.len(), begun);
        self.write_all(&bytes)?;
        Ok(CloseReason::of(verdict))
    }

    /// Sends our FIN, and reads and drops what still comes, so that it cannot cause an RST that would
    /// overtake our last bytes: for a bounded time and, once these are acknowledged, a bounded size.
    fn close(&mut self, reason: CloseReason) -> io::Result<()> {
        let clients = self.clients;
        let stage = || clients.handle.stage();
        if reason.ends_both_sides() || stage() == Stage::Over {
            return Ok(());
        }
        // Where another thread has shut the other side down, the kernel has an RST for what comes after our
        // FIN, and a read does not wait.
        let fin_is_last = stage() == Stage::Closing;
        if !fin_is_last {
            self.shut_down()?;
        }
        let end = clients.clock.now() + LINGER_TIME;
        let (mut buffer, mut left) = ([0; 4 << 10], LINGER_BYTES as usize);
        while left > 0 || socket::is_unacknowledged(&*self.stream) {
            let time = end - clients.clock.now();
            // Without a bound, it does not wait at all.
            if time.is_zero() || self.stream.set_read_timeout(Some(time)).is_err() {
                break;
            }
            let read = match self.read(&mut buffer) {
                Err(error) if error.kind() == TIMED_OUT => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                outcome => outcome?,
            };
            if read == 0 {
                if stage() != Stage::Closing || !socket::is_unacknowledged(&*self.stream) {
                    break;
                }
                thread::sleep(time.min(LINGER_GAP));
            }
            left = left.saturating_sub(read);
        }
        if fin_is_last { self.shut_down() } else { Ok(()) }
    }

    fn shut_down(&self) -> io::Result<()> {
        self.stream.shutdown(Direction::Write)?;
        ending::trace_shutdown(&self.peer);
        Ok(())
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
}

impl Read for Client<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = (&*self.stream).read(buffer)?;
        // Once we close, the end may be that of the other thread's shutdown.
        if read > 0 || self.clients.handle.stage() < Stage::Closing {
            self.traffic.count_read(&self.peer, read, buffer.len(), &self.clients.stats);
        }
        Ok(read)
    }
}

impl Write for Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (Clients { clock, stats, .. }, peer) = (self.clients, self.peer);
        self.unsent = bytes.len();
        trace!(event = "waiting", what = "room", peer:%, bytes = self.unsent; "{peer}: waits for room in the send buffer");
        let start = clock.now();
        let outcome = (&*self.stream).write(bytes);
        self.traffic.count_pause(clock.now() - start);
        let taken = outcome?;
        self.traffic.count_write(&peer, taken, self.unsent, stats);
        self.unsent -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let mut slots = self.clients.lock();
        slots.streams.remove(self.key);
        slots.admission.leave(self.peer);
        self.clients.changed.notify_all();
    }
}

// ---- accept

/// The listeners of a blocking design, as one.
pub(super) struct Backlog<'a> {
    listeners: Vec<TcpListener>,
    /// Whether what they accept lacks their options.
    set_accepted: bool,
    clients: &'a Clients,
    /// The number of the last client that was admitted.
    last_number: u32,
    /// What waits here when the drain begins is left to the next server.
    hand_over: bool,
    /// What has failed after accept(2), and is dealt with as if that had.
    pub(super) failure: Option<io::Error>,
}

impl<'a> Backlog<'a> {
    fn new(
        listeners: Vec<TcpListener>,
        server: &mut Server,
        clients: &'a Clients,
    ) -> io::Result<Self> {
        let (set_accepted, hand_over) = (server.sockets.set_accepted, server.config.hand_over);
        for listener in &listeners {
            // A thread that waits for one of several cannot wait inside accept(2). Accepted streams block.
            SockRef::from(listener).set_nonblocking(true)?;
            let refused = set_timeouts(&SockRef::from(listener), clients.rules.idle_timeout);
            if let (Ok(address), Some(_)) = (listener.local_addr(), clients.rules.idle_timeout) {
                server.sockets.refused.extend(refused.into_iter().map(|one| (address, one)));
            }
        }
        Ok(Backlog { listeners, set_accepted, clients, last_number: 0, hand_over, failure: None })
    }

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
            let accepted = match self.failure.take() {
                Some(error) => Err(error),
                None if clients.space_left() < LEAST_SPACE => Err(Errno::ENOMEM.into()),
                None => self.try_accept(),
            };
            let error = match accepted.map(|accepted| self.admit(accepted)) {
                Ok(None) => continue,
                Ok(client) => return Ok(client),
                Err(_) if self.listeners.is_empty() => break,
                Err(error) => error,
            };
            let verdict = clients.lock().admission.judge(&error, open, now);
            match verdict {
                AcceptError::Connection => {}
                // The backlog is empty, or would have to wait: what comes now is too late.
                _ if clients.handle.stage() >= Stage::Draining => break,
                AcceptError::Starved => {
                    trace!(event = "waiting", what = "resources"; "waits for a client to leave, or for another try");
                    clients.pause(clients.lock(), ACCEPT_RETRY);
                }
                AcceptError::Empty => {
                    trace!(event = "waiting", what = "client"; "waits for the next client");
                    until_readable(&self.listeners, &clients.until_drain, None)?;
                }
            }
        }
        Ok(None)
    }

    /// Takes a client from the next listener that has one. One that fails for good is gone.
    fn try_accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
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
                    let (stream, address) = accepted?;
                    socket::block_accepted(&stream)?;
                    // What is refused of these was logged for the listener.
                    if self.set_accepted {
                        reset_stream_options(&SockRef::from(&stream));
                    }
                    set_timeouts(&SockRef::from(&stream), self.clients.rules.idle_timeout);
                    return Ok((stream, address));
                }
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Admits a client, unless its source has as many connections as it may have.
    fn admit(&mut self, (stream, address): (TcpStream, SocketAddr)) -> Option<Client<'a>> {
        let (clients, peer) = (self.clients, Peer::from(address));
        let (mut slots, since) = (clients.lock(), clients.clock.now());
        if !slots.admission.admit(peer, since) {
            return None;
        }
        self.last_number = self.last_number.checked_add(1).unwrap_or(1);
        let (stream, number) = (Arc::new(stream), self.last_number);
        let key = slots.streams.insert(Arc::clone(&stream));
        trace!(event = "accepted", peer:%; "{peer}: accepted");
        clients.stats.accepted.increment();
        let (traffic, unsent) = (Traffic::default(), 0);
        Some(Client { clients, stream, peer, key, number, traffic, unsent, since })
    }
}
