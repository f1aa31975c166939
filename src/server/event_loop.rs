//! The event loop: one thread, one poll, all sockets. It talks to everything and decides little.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use log::trace;
use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry};
use socket2::SockRef;

use super::Server;
use super::admission::Rules;
use super::announce;
use super::clock::{Clock, Moment};
use super::connection::{self, Readiness, Shared};
use super::connections::{self, Connections};
use super::guard::Guard;
#[cfg(feature = "daemon")]
use super::monitor;
use super::netem::Netem;
use super::ready::ConnectionId;
#[cfg(feature = "daemon")]
use super::shutdown::Handle;
use super::shutdown::{self, Shutdown, Stage};
use super::udp::{Endpoint, Responder};
use crate::busy_poll::{BusyPoll, Wait};
use crate::protocol::Service;
use crate::stats::Stats;
use crate::sys::STREAM_INTEREST;
use crate::sys::datagram::DatagramSocket;
use crate::sys::socket::{self, reset_stream_options};
use crate::units::{self, count};

/// How many events are asked for at a time.
const EVENTS: usize = 1024;
/// The budget of a pass: after this time, new events and datagrams come before further connections.
const PASS: Duration = Duration::from_millis(1);
/// The same, for what has come by the time all connections are closed.
const LAST_PASS: Duration = Duration::from_millis(100);
/// After this many turns the clock is read. For a short message that takes as long as the session does.
const TURNS: u32 = 4;
/// The random sequence of streams, beside those of UDP sockets.
const STREAMS: usize = Token::SOCKETS;

/// What an event is about. In mio's token, the upper half is a connection's generation, which is never
/// 0, and the lower one its slot, the highest bit of which is set for a monitor's; the few others have
/// the upper half 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// A handle, signals or interfaces.
    Shutdown(mio::Token),
    Listener(usize),
    Datagrams(usize),
    Connection(ConnectionId),
    MonitorListener,
    Monitor(ConnectionId),
}

impl Token {
    /// Listeners and datagram sockets: more than anyone binds.
    const SOCKETS: usize = 1 << 16;
    const OF_MONITOR: u32 = 1 << 31;
}

impl From<Token> for mio::Token {
    fn from(token: Token) -> Self {
        mio::Token(match token {
            Token::Shutdown(token) => token.0,
            Token::Listener(index) => Token::SOCKETS + index,
            Token::Datagrams(index) => 2 * Token::SOCKETS + index,
            Token::MonitorListener => 3 * Token::SOCKETS,
            Token::Connection(ConnectionId { slot, generation }) => {
                (generation as usize) << 32 | slot as usize
            }
            Token::Monitor(ConnectionId { slot, generation }) => {
                (generation as usize) << 32 | (slot | Token::OF_MONITOR) as usize
            }
        })
    }
}

impl From<mio::Token> for Token {
    fn from(mio::Token(token): mio::Token) -> Self {
        let (generation, slot) = ((token >> 32) as u32, token as u32);
        match (generation, token / Token::SOCKETS) {
            (0, 0) => Token::Shutdown(mio::Token(token)),
            (0, 1) => Token::Listener(token - Token::SOCKETS),
            (0, 2) => Token::Datagrams(token - 2 * Token::SOCKETS),
            (0, _) => Token::MonitorListener,
            _ if slot & Token::OF_MONITOR == 0 => {
                Token::Connection(ConnectionId { slot, generation })
            }
            _ => Token::Monitor(ConnectionId { slot: slot ^ Token::OF_MONITOR, generation }),
        }
    }
}

/// A listener that registers what it accepts.
struct Listener {
    listener: TcpListener,
    /// Whether what it accepts lacks its options.
    set_accepted: bool,
    registry: Registry,
    /// What the events of its connections are about.
    token: fn(ConnectionId) -> Token,
}

impl Listener {
    /// Registers the listener under `own`.
    fn new(
        listener: std::net::TcpListener,
        set_accepted: bool,
        poll: &Poll,
        own: Token,
        token: fn(ConnectionId) -> Token,
    ) -> io::Result<Self> {
        SockRef::from(&listener).set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, own.into(), Interest::READABLE)?;
        Ok(Listener { listener, set_accepted, registry: poll.registry().try_clone()?, token })
    }
}

impl connections::Listener for Listener {
    type Stream = TcpStream;

    fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, address) = self.listener.accept()?;
        if self.set_accepted {
            // What is refused was logged for the listener.
            reset_stream_options(&SockRef::from(&stream));
        }
        Ok((stream, address))
    }

    fn register(&mut self, stream: &mut TcpStream, id: ConnectionId) -> io::Result<()> {
        self.registry.register(stream, (self.token)(id).into(), STREAM_INTEREST)
    }
}

/// Where another process has the socket too, epoll would not forget it with our descriptor (epoll(7)).
impl Drop for Listener {
    fn drop(&mut self) {
        // Nothing is lost where this fails: events without a listener are ignored.
        let _ = self.registry.deregister(&mut self.listener);
    }
}

impl connection::Stream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }

    fn is_unacknowledged(&self) -> bool {
        socket::is_unacknowledged(self)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpStream::local_addr(self)
    }
}

/// What looks at the server from outside: one more service, with limits and counters of its own.
struct Monitors {
    connections: Connections<Listener, Box<dyn Service>>,
    /// Counts a pass: its time, and its events.
    count_pass: Box<dyn Fn(Duration, usize)>,
}

/// Everything that the one thread owns.
struct EventLoop<V> {
    poll: Poll,
    events: Events,
    shutdown: Shutdown,
    connections: Connections<Listener, V>,
    /// By the index in their tokens.
    datagrams: BTreeMap<usize, Endpoint<DatagramSocket, V>>,
    monitors: Option<Monitors>,
    guard: Guard,
    busy_poll: BusyPoll,
    clock: Clock,
    stats: Arc<Stats>,
    hand_over: bool,
}

/// Runs the server. `make_service` makes the service of each conversation.
pub(super) fn run<V: Service + 'static>(
    mut server: Server,
    make_service: impl FnMut() -> V + Clone + 'static,
) -> io::Result<()> {
    announce::first_lines(&mut server);
    EventLoop::new(server, make_service)?.run()
}

impl<V: Service> EventLoop<V> {
    fn new(server: Server, make_service: impl FnMut() -> V + Clone + 'static) -> io::Result<Self> {
        let guard = server.guard();
        #[cfg(feature = "daemon")]
        let monitors = server
            .monitor
            .and_then(Result::ok)
            .map(|listener| monitors(&server.poll, listener, server.shutdown.handle()))
            .transpose()?;
        #[cfg(not(feature = "daemon"))]
        let monitors = None;
        let Server { config, sockets, poll, shutdown, stats, .. } = server;
        let mut listeners = Vec::new();
        for (index, listener) in sockets.listeners.into_iter().enumerate() {
            let own = Token::Listener(index);
            let set_accepted = sockets.set_accepted;
            listeners.push(Listener::new(listener, set_accepted, &poll, own, Token::Connection)?);
        }
        let (mut datagrams, queues) = (BTreeMap::new(), sockets.datagrams.len());
        for (index, socket) in sockets.datagrams.into_iter().enumerate() {
            let netem = Netem::new(&config.impairments, index, queues);
            let socket = DatagramSocket::new(socket, config.udp_offload)?;
            let (bound, make_service) = (socket.local_addr(), make_service.clone());
            let responder = Responder::new(make_service, bound, netem, Arc::clone(&stats));
            let mut endpoint = Endpoint::new(socket, responder);
            endpoint.register(poll.registry(), Token::Datagrams(index).into())?;
            datagrams.insert(index, endpoint);
        }
        let netem = Netem::new(&config.impairments, STREAMS, queues).filter(Netem::delays);
        let shared = Shared::new(Rules::of(&config), Arc::clone(&stats), netem);
        let connections = Connections::new(listeners, make_service, shared);
        Ok(EventLoop {
            poll,
            events: Events::with_capacity(EVENTS),
            shutdown,
            connections,
            datagrams,
            monitors,
            guard,
            busy_poll: BusyPoll::new(config.busy_poll),
            clock: Clock::start(),
            stats,
            hand_over: config.hand_over,
        })
    }

    /// Serves until it is told to stop and all connections have ended.
    fn run(mut self) -> io::Result<()> {
        self.shutdown.begin(self.clock.now());
        let mut stage = Stage::Serving;
        loop {
            self.wait()?;
            let now = self.clock.now();
            let events = self.dispatch(now);
            while let Some(begins) = self.shutdown.advance(now) {
                stage = begins;
                match begins {
                    Stage::Draining => self.drain(now),
                    Stage::Closing => self.close(now),
                    _ => {}
                }
            }
            // Before deadlines are looked at: what lingers was cut off, too.
            if stage == Stage::Over {
                break;
            }
            for datagrams in self.datagrams.values_mut() {
                datagrams.turn(&mut self.guard, now);
            }
            self.remove_datagrams(Endpoint::is_gone);
            let (clock, mut turns) = (self.clock, 0_u32);
            self.connections.pass(now, || {
                turns += 1;
                turns.is_multiple_of(TURNS) && clock.now() - now >= PASS
            });
            self.serve_monitors(now, events);
            if stage >= Stage::Draining && self.is_done() {
                break;
            }
        }
        let now = self.clock.now();
        self.datagrams.values_mut().for_each(|one| one.end(&mut self.guard, now));
        Shutdown::log_cut(self.connections.cut_all(now));
        self.shutdown.outcome()
    }

    // ---- waiting

    /// Waits for events: not at all while there is something to do, else polling for as long as that
    /// has been paying, then asleep.
    fn wait(&mut self) -> io::Result<()> {
        let (by, sentence) = if self.can_act() {
            shutdown::poll(&mut self.poll, &mut self.events, Some(Duration::ZERO))?;
            ("work", "the loop goes on with what it has left")
        } else {
            let start = self.clock.now();
            match self.busy_poll(start)? {
                true => ("polling", "the loop polls instead of sleeping"),
                false => self.sleep(start)?,
            }
        };
        trace!(
            event = "woken",
            by = by,
            events = self.events.iter().count();
            "{sentence}: {}",
            count(self.events.iter().count(), "event")
        );
        Ok(())
    }

    /// Whether there is something to do at once.
    fn can_act(&self) -> bool {
        self.shutdown.can_act()
            || self.connections.can_act()
            || self.datagrams.values().any(Endpoint::can_act)
            || self.monitors.as_ref().is_some_and(|monitors| monitors.connections.can_act())
    }

    /// Asks for events again and again, while that has been paying; whether some came in time.
    fn busy_poll(&mut self, start: Moment) -> io::Result<bool> {
        let mut waited = Duration::ZERO;
        while waited < self.busy_poll.window() {
            shutdown::poll(&mut self.poll, &mut self.events, Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                let how = if waited.is_zero() { Wait::AtOnce } else { Wait::Win };
                self.stats.busy_poll_wins.add((how == Wait::Win).into());
                self.busy_poll.learn(how, waited);
                return Ok(true);
            }
            waited = self.clock.now() - start;
        }
        Ok(false)
    }

    /// Sleeps until there is an event or a deadline; what ended it, as a name and a sentence.
    fn sleep(&mut self, start: Moment) -> io::Result<(&'static str, &'static str)> {
        let deadline = self.deadline();
        let timeout = deadline.map(|deadline| deadline - self.clock.now());
        trace!(
            event = "sleeping",
            timeout_ns = timeout.map(units::nanoseconds);
            "the loop sleeps until there is an event{}",
            fmt::from_fn(|f| match timeout {
                Some(most) => write!(f, ", for at most {}", units::time(most)),
                None => Ok(()),
            })
        );
        shutdown::poll(&mut self.poll, &mut self.events, timeout)?;
        let now = self.clock.now();
        let how = if self.busy_poll.window().is_zero() { Wait::Slept } else { Wait::Loss };
        self.stats.busy_poll_losses.add((how == Wait::Loss).into());
        self.busy_poll.learn(how, now - start);
        Ok(match deadline {
            _ if !self.events.is_empty() => ("event", "the loop wakes up"),
            Some(deadline) if now >= deadline => ("deadline", "the loop wakes up at a deadline"),
            _ => ("interrupt", "the loop wakes up, interrupted by a signal"),
        })
    }

    fn deadline(&self) -> Option<Moment> {
        let datagrams = self.datagrams.values().filter_map(Endpoint::deadline);
        let monitors = self.monitors.as_ref().and_then(|monitors| monitors.connections.deadline());
        let others = [self.connections.deadline(), self.shutdown.deadline(), monitors];
        datagrams.chain(others.into_iter().flatten()).min()
    }

    // ---- events

    /// Hands each event to what it is about; how many there were. Nothing is read or written yet.
    fn dispatch(&mut self, now: Moment) -> usize {
        let mut count = 0;
        for event in &self.events {
            count += 1;
            match event.token().into() {
                Token::Connection(id) => self.connections.hint(id, readiness(event), now),
                Token::Datagrams(index) => {
                    let readiness = readiness(event);
                    trace_socket_ready(index, readiness);
                    if let Some(datagrams) = self.datagrams.get_mut(&index) {
                        datagrams.hint(readiness.readable, readiness.writable);
                        if event.is_read_closed() {
                            datagrams.note_shut_down();
                        }
                    }
                }
                Token::Listener(index) => {
                    trace!(
                        event = "ready",
                        what = "listener",
                        index = index;
                        "event: clients wait in the backlog of listener {index}"
                    );
                    self.connections.hint_backlog(index);
                }
                Token::Shutdown(token) => self.shutdown.take_event(token),
                Token::MonitorListener => {
                    shutdown::trace_ready("monitor", "clients wait at the port for monitors");
                    if let Some(Monitors { connections, .. }) = &mut self.monitors {
                        connections.hint_backlog(0);
                    }
                }
                Token::Monitor(id) => {
                    if let Some(Monitors { connections, .. }) = &mut self.monitors {
                        connections.hint(id, readiness(event), now);
                    }
                }
            }
        }
        count
    }

    /// Monitors come last, one of them in each pass. The pass ends here, and is counted for them.
    fn serve_monitors(&mut self, now: Moment, events: usize) {
        let Some(Monitors { connections, count_pass }) = &mut self.monitors else { return };
        if connections.can_act() || connections.deadline().is_some_and(|at| now >= at) {
            connections.pass(now, || true);
        }
        count_pass(self.clock.now() - now, events);
    }

    // ---- shutdown

    /// Stops accepting. What waits in a socket of ours is still served, unless the next server has the
    /// socket.
    fn drain(&mut self, now: Moment) {
        if !self.hand_over {
            self.connections.take_backlog(now);
            self.datagrams.values_mut().for_each(|one| one.finish(&mut self.guard, now));
        }
        self.connections.close_listeners();
        self.datagrams.values_mut().for_each(Endpoint::close);
        self.shutdown.log_drain(self.connections.open());
    }

    /// Closes those UDP sockets.
    fn remove_datagrams(&mut self, which: impl Fn(&Endpoint<DatagramSocket, V>) -> bool) {
        let EventLoop { datagrams, poll, .. } = self;
        for (_, mut datagrams) in datagrams.extract_if(.., |_, one| which(one)) {
            datagrams.deregister(poll.registry());
        }
    }

    /// Closes our side of all connections. No reply waits for its time any more.
    fn close(&mut self, now: Moment) {
        let clock = self.clock;
        self.connections.close_all(now, || clock.now() - now >= LAST_PASS);
        self.datagrams.values_mut().for_each(Endpoint::hasten);
    }

    /// Whether the drain is done. UDP sockets are closed once all that was received is answered.
    fn is_done(&mut self) -> bool {
        if self.datagrams.values().all(Endpoint::is_done) {
            self.remove_datagrams(|_| true);
        }
        self.connections.open() == 0 && self.datagrams.is_empty()
    }
}

/// The monitors that come to `listener`, which look at the server of this handle.
#[cfg(feature = "daemon")]
fn monitors(poll: &Poll, listener: std::net::TcpListener, handle: Handle) -> io::Result<Monitors> {
    let listener = Listener::new(listener, false, poll, Token::MonitorListener, Token::Monitor)?;
    let (rules, stats, passes) = (monitor::rules(), Arc::default(), monitor::Passes::default());
    let service = monitor::service(handle, passes.clone());
    let connections = Connections::new(vec![listener], service, Shared::new(rules, stats, None));
    let count_pass = Box::new(move |time, events| passes.record(time, events));
    Ok(Monitors { connections, count_pass })
}

fn trace_socket_ready(index: usize, readiness: Readiness) {
    trace!(
        event = "ready",
        what = "udp_socket",
        index = index,
        readable = readiness.readable,
        writable = readiness.writable;
        "event: UDP socket {index} is {readiness}"
    );
}

fn readiness(event: &Event) -> Readiness {
    let failed = event.is_error();
    let closed = event.is_read_closed() || event.is_write_closed() || failed;
    Readiness {
        readable: event.is_readable() || closed,
        writable: event.is_writable() || closed,
        // A read stops in front of an urgent byte, whatever is behind it.
        closed: closed || event.is_priority(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_from_mio_as_they_went() {
        let connection = |slot, generation| Token::Connection(ConnectionId { slot, generation });
        for token in [
            Token::Shutdown(mio::Token(0)),
            Token::Shutdown(mio::Token(2)),
            Token::Listener(0),
            Token::Listener(Token::SOCKETS - 1),
            Token::Datagrams(0),
            Token::Datagrams(7),
            connection(0, 1),
            connection(u32::MAX >> 1, u32::MAX),
            Token::MonitorListener,
            Token::Monitor(ConnectionId { slot: 0, generation: 1 }),
            Token::Monitor(ConnectionId { slot: u32::MAX >> 1, generation: u32::MAX }),
            Token::Datagrams(Token::SOCKETS - 1),
        ] {
            assert_eq!(Token::from(mio::Token::from(token)), token);
        }
    }
}
