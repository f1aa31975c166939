//! The event loop: one thread, one poll, all sockets. It talks to everything and decides little.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry};

use super::Server;
use super::admission::Rules;
use super::busy_poll::{BusyPoll, Wait};
use super::clock::{Clock, Moment, round_up};
use super::connection::{self, ConnectionId, Readiness};
use super::connections::{self, Connections};
use super::control::{self, Control, Drain, Step, poll};
use super::delayed::{DelayedListener, Delays};
use super::guard::Guard;
use super::monitor::Passes;
use super::netem::Netem;
use super::story::{self, WokenBy};
use super::udp::Endpoint;
use crate::config::Config;
use crate::protocol::Service;
use crate::stats::Stats;
use crate::sys::datagram::DatagramSocket;

/// So many events are asked for at a time.
const EVENTS: usize = 1024;
/// After this time, new events and datagrams are looked at before the connections go on.
const PASS: Duration = Duration::from_millis(1);
/// Streams draw from their own random sequence, beside that of each UDP socket.
const NETEM_OF_STREAMS: usize = Token::SOCKETS;

/// What an event is about. In mio's token, the upper half is a connection's generation, which is never
/// 0, and the lower one its slot, the highest bit of which is set for a monitor's; the few others have
/// the upper half 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Wake,
    Signal,
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
            Token::Wake => control::WAKE.0,
            Token::Signal => control::SIGNAL.0,
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
        match (token >> 32, token & 0xffff_ffff) {
            (0, wake) if wake == control::WAKE.0 => Token::Wake,
            (0, signal) if signal == control::SIGNAL.0 => Token::Signal,
            (0, socket) if socket < 2 * Token::SOCKETS => Token::Listener(socket - Token::SOCKETS),
            (0, socket) if socket < 3 * Token::SOCKETS => {
                Token::Datagrams(socket - 2 * Token::SOCKETS)
            }
            (0, _) => Token::MonitorListener,
            (generation, slot) => {
                let (slot, generation) = (slot as u32, generation as u32);
                match slot & Token::OF_MONITOR {
                    0 => Token::Connection(ConnectionId { slot, generation }),
                    bit => Token::Monitor(ConnectionId { slot: slot ^ bit, generation }),
                }
            }
        }
    }
}

/// A listener that registers what it accepts.
pub(super) struct Listener {
    listener: TcpListener,
    registry: Registry,
    /// What the events of its connections are about.
    token: fn(ConnectionId) -> Token,
}

impl Listener {
    /// Has `poll` tell who waits, as an event about `own`.
    fn new(
        listener: std::net::TcpListener,
        poll: &Poll,
        own: Token,
        token: fn(ConnectionId) -> Token,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        poll.registry().register(&mut listener, own.into(), Interest::READABLE)?;
        Ok(Listener { listener, registry: poll.registry().try_clone()?, token })
    }
}

impl connections::Listener for Listener {
    type Stream = TcpStream;

    fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.listener.accept()
    }

    fn register(&mut self, stream: &mut TcpStream, id: ConnectionId) -> io::Result<()> {
        let all = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        self.registry.register(stream, (self.token)(id).into(), all)
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

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpStream::local_addr(self)
    }
}

/// Connections of monitors, which have limits and counters of their own.
struct Monitors {
    connections: Connections<Listener, Box<dyn Service>>,
    passes: Rc<Passes>,
}

/// Everything that the one thread owns.
struct EventLoop<L: connections::Listener, V> {
    poll: Poll,
    events: Events,
    control: Control,
    connections: Connections<L, V>,
    /// What the peers of delayed streams sent.
    delays: Option<Rc<RefCell<Delays>>>,
    datagrams: Vec<Endpoint<DatagramSocket, V>>,
    monitors: Option<Monitors>,
    /// The turn that is counted for them: when it began, and its events.
    turn: Option<(Moment, usize)>,
    guard: Guard,
    busy_poll: BusyPoll,
    clock: Clock,
    stats: Arc<Stats>,
    hand_over: bool,
    draining: bool,
}

/// Runs the server. `make` makes the service of each conversation.
pub(super) fn run<V: Service + 'static>(
    server: Server,
    mut make: impl FnMut() -> V + Clone + 'static,
) -> io::Result<()> {
    let clock = Clock::start();
    let Config { impairments, limits, .. } = &server.config;
    let Some(netem) = Netem::new(impairments, NETEM_OF_STREAMS).filter(Netem::delays) else {
        return EventLoop::new(server, clock, make, None, |listener| listener)?.run();
    };
    let delays = Delays::new(netem, move || clock.now(), limits.max_buffered);
    let delays = Rc::new(RefCell::new(delays));
    // This loop has other streams than the usual one, which pays nothing for it.
    let make = move || Box::new(make()) as Box<dyn Service>;
    let delayed = Some(Rc::clone(&delays));
    EventLoop::new(server, clock, make, delayed, |listener| {
        DelayedListener::new(listener, &delays)
    })?
    .run()
}

impl<L: connections::Listener, V: Service> EventLoop<L, V> {
    fn new(
        server: Server,
        clock: Clock,
        make: impl FnMut() -> V + Clone + 'static,
        delays: Option<Rc<RefCell<Delays>>>,
        listener_of: impl Fn(Listener) -> L,
    ) -> io::Result<Self> {
        let Server { config, sockets, poll, control, stats, .. } = server;
        let guard = super::guard_of(&config, &sockets);
        let rules = Rules::of(&config);
        let mut listeners = Vec::new();
        for (index, listener) in sockets.listeners.into_iter().enumerate() {
            let own = Token::Listener(index);
            listeners.push(listener_of(Listener::new(listener, &poll, own, Token::Connection)?));
        }
        let mut datagrams = Vec::new();
        for (index, socket) in sockets.datagrams.into_iter().enumerate() {
            let mut socket = DatagramSocket::new(socket, config.udp_offload)?;
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(socket.source(), Token::Datagrams(index).into(), both)?;
            let netem = Netem::new(&config.impairments, index);
            datagrams.push(Endpoint::new(socket, make.clone(), netem, Arc::clone(&stats)));
        }
        #[cfg(feature = "daemon")]
        let monitors = match server.monitor {
            None => None,
            Some(listener) => {
                let own = Token::MonitorListener;
                let listener = Listener::new(listener, &poll, own, Token::Monitor)?;
                let passes = Rc::<Passes>::default();
                let service = super::monitor::service(control.handle(), Rc::clone(&passes));
                let (rules, stats) = (super::monitor::rules(), Arc::default());
                Some(Monitors {
                    connections: Connections::new(vec![listener], rules, service, stats),
                    passes,
                })
            }
        };
        #[cfg(not(feature = "daemon"))]
        let monitors = None;
        Ok(EventLoop {
            poll,
            events: Events::with_capacity(EVENTS),
            control,
            connections: Connections::new(listeners, rules, make, Arc::clone(&stats)),
            delays,
            datagrams,
            monitors,
            turn: None,
            guard,
            busy_poll: BusyPoll::new(config.busy_poll),
            clock,
            stats,
            hand_over: config.hand_over,
            draining: false,
        })
    }

    /// Serves until it is told to stop and everyone has left.
    fn run(mut self) -> io::Result<()> {
        self.control.begin(self.clock.now());
        loop {
            let woken_by = self.wait()?;
            story::wakes(woken_by, &self.events);
            let events = self.dispatch();
            let now = self.clock.now();
            self.end_turn(now);
            self.turn = self.monitors.is_some().then_some((now, events));
            self.wake_delayed(now);
            let mut step = self.control.step(now);
            if let Step::Drain(drain) = step {
                self.drain(drain, now);
                step = self.control.step(now);
            }
            // Before those who linger are let go: they did not leave either.
            if step == Step::End {
                break;
            }
            for datagrams in &mut self.datagrams {
                datagrams.turn(&mut self.guard, now);
            }
            let clock = self.clock;
            self.connections.turn(now, || clock.now() - now >= PASS);
            self.answer_monitors(now);
            self.close_sockets();
            if self.draining && self.connections.open() == 0 && self.datagrams.is_empty() {
                break;
            }
        }
        control::log_cut(self.connections.cut(self.clock.now()));
        Ok(())
    }

    /// Waits for events: not at all while there is something to do, else polling for as long as that
    /// has been paying, then asleep.
    fn wait(&mut self) -> io::Result<WokenBy> {
        let monitors = self.monitors.as_ref().map(|monitors| &monitors.connections);
        if self.connections.can_act()
            || self.datagrams.iter().any(Endpoint::can_act)
            || monitors.is_some_and(Connections::can_act)
        {
            poll(&mut self.poll, &mut self.events, Some(Duration::ZERO))?;
            return Ok(WokenBy::Work);
        }
        let start = self.clock.now();
        self.end_turn(start);
        let window = self.busy_poll.window();
        let mut waited = Duration::ZERO;
        while waited < window {
            poll(&mut self.poll, &mut self.events, Some(Duration::ZERO))?;
            if !self.events.is_empty() {
                let how = if waited.is_zero() { Wait::AtOnce } else { Wait::Win };
                if how == Wait::Win {
                    self.stats.busy_poll_wins.increment();
                }
                self.busy_poll.learn(how, waited);
                return Ok(WokenBy::Polling);
            }
            waited = self.clock.now() - start;
        }
        let deadlines = self.datagrams.iter().filter_map(Endpoint::deadline);
        let monitors = self.monitors.as_ref().and_then(|monitors| monitors.connections.deadline());
        let delays = self.delays.as_ref().and_then(|delays| delays.borrow().deadline());
        let others = [self.connections.deadline(), self.control.deadline(), monitors, delays];
        let deadline = deadlines.chain(others.into_iter().flatten()).min();
        let timeout = deadline.map(|deadline| round_up(deadline - self.clock.now()));
        story::sleeps(timeout);
        poll(&mut self.poll, &mut self.events, timeout)?;
        let how = if window.is_zero() { Wait::Slept } else { Wait::Loss };
        if how == Wait::Loss {
            self.stats.busy_poll_losses.increment();
        }
        let now = self.clock.now();
        self.busy_poll.learn(how, now - start);
        Ok(match deadline {
            _ if !self.events.is_empty() => WokenBy::Event,
            Some(deadline) if now >= deadline => WokenBy::Deadline,
            _ => WokenBy::Interrupt,
        })
    }

    /// Hands events to whom they are about; how many these were. Nothing is read or written yet.
    fn dispatch(&mut self) -> usize {
        let mut count = 0;
        for event in &self.events {
            count += 1;
            match event.token().into() {
                // Whoever woke us has said why: see `Control::step`.
                Token::Wake => story::handle_is_ready(),
                Token::Signal => {
                    story::signal_is_ready();
                    self.control.take_signals();
                }
                Token::Listener(index) => {
                    story::listener_is_ready(index);
                    self.connections.hint_backlog(index);
                }
                Token::Datagrams(index) => {
                    if let Some(datagrams) = self.datagrams.get_mut(index) {
                        let readiness = readiness(event);
                        story::socket_is_ready(index, readiness);
                        let Readiness { readable, writable, .. } = readiness;
                        datagrams.hint(readable, writable);
                    }
                }
                Token::Connection(id) => self.connections.hint(id, readiness(event)),
                Token::MonitorListener => {
                    story::monitor_is_ready();
                    if let Some(Monitors { connections, .. }) = &mut self.monitors {
                        connections.hint_backlog(0);
                    }
                }
                Token::Monitor(id) => {
                    if let Some(Monitors { connections, .. }) = &mut self.monitors {
                        connections.hint(id, readiness(event));
                    }
                }
            }
        }
        count
    }

    /// The turn that is counted ends here.
    fn end_turn(&mut self, now: Moment) {
        if let (Some((start, events)), Some(monitors)) = (self.turn.take(), &self.monitors) {
            monitors.passes.record(now - start, events);
        }
    }

    /// Who looks at the server from outside comes last: a batch of them, and then the others again.
    fn answer_monitors(&mut self, now: Moment) {
        if let Some(Monitors { connections, .. }) = &mut self.monitors
            && (connections.can_act() || connections.deadline().is_some_and(|at| now >= at))
        {
            connections.turn(now, || true);
        }
    }

    /// Streams whose peers' bytes have been held back until now are readable.
    fn wake_delayed(&mut self, now: Moment) {
        let Some(delays) = &self.delays else { return };
        let next = || delays.borrow_mut().pop(now);
        for id in std::iter::from_fn(next) {
            let readiness = Readiness { readable: true, writable: false, closed: true };
            self.connections.hint(id, readiness);
        }
    }

    /// Lets nobody in any more. Who waits in a socket of ours is still served, unless the next server
    /// has the socket.
    fn drain(&mut self, drain: Drain, now: Moment) {
        self.draining = true;
        if !self.hand_over {
            self.connections.take_backlog(now);
        }
        self.connections.drain(drain.ask_at);
        for datagrams in &mut self.datagrams {
            if !self.hand_over {
                datagrams.finish(&mut self.guard, now);
            }
            datagrams.close();
        }
        drain.log(self.connections.open());
    }

    /// In a drain: closes the UDP sockets, once all that was received is answered.
    fn close_sockets(&mut self) {
        if self.draining && self.datagrams.iter().all(Endpoint::is_done) {
            for mut datagrams in self.datagrams.drain(..) {
                // As for listeners.
                let _ = self.poll.registry().deregister(datagrams.socket().source());
            }
        }
    }
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
            Token::Wake,
            Token::Signal,
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
