//! `evecho ping`: round-trip times of an echo server, and what is wrong with its echo.
//!
//! Every ping is a message of its own with a sequence number and a checked pattern, so that loss,
//! repetition, reordering and damage are told apart. The tracker decides what a reply is; the loop
//! here owns the socket and the clock.
//!
//! Over TCP all pings go through one connection. If that ends, or if its bytes are out of step (a
//! reply was cut, or is not recognisable), the pings that are out are lost with it, and the next one
//! connects anew: a server that restarts shows as loss, and then as replies.

mod link;
mod tracker;

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use serde::Serialize;

use super::target::{self, Target, Transport};
use super::wait;
use crate::protocol::MAX_DATAGRAM;
use link::Link;
use tracker::Tracker;
pub use tracker::{Reply, Summary, Times};

/// The length of a ping in bytes, headers of TCP, UDP and IP not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(usize);

impl Size {
    /// The shortest: a header of 16 bytes, and 8 bytes of the pattern to tell messages apart.
    pub const MIN: usize = 24;
    /// The longest: what a UDP datagram over IPv4 holds (RFC 768, RFC 791).
    pub const MAX: usize = MAX_DATAGRAM;

    /// Checks a length in bytes: `None` outside [`Size::MIN`] and [`Size::MAX`].
    ///
    /// ```
    /// use evecho::client::ping::Size;
    ///
    /// assert_eq!(Size::new(56).map(Size::bytes), Some(56));
    /// assert!(Size::new(23).is_none() && Size::new(65_508).is_none());
    /// ```
    pub fn new(bytes: usize) -> Option<Self> {
        (Self::MIN..=Self::MAX).contains(&bytes).then_some(Self(bytes))
    }

    /// The length in bytes.
    pub fn bytes(self) -> usize {
        self.0
    }
}

/// The longest interval and the longest wait. What is longer is cut to it.
pub const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What to ping, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// The server.
    pub target: Target,
    /// What carries the pings.
    pub transport: Transport,
    /// How many pings are sent; without it, there is no end.
    pub count: Option<u64>,
    /// The time from one ping to the next. Zero sends each as soon as the one before is answered
    /// or given up.
    pub interval: Duration,
    /// The length of each.
    pub size: Size,
    /// How long connecting may take, and after what time a ping counts as lost.
    pub wait: Duration,
}

/// What happens, as it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first connection stands.
    Start {
        /// The address that answered.
        address: SocketAddr,
        /// What carries the pings.
        transport: Transport,
        /// The length of each in bytes.
        size: usize,
    },
    /// Something came back.
    Reply(Reply),
    /// A ping has had no reply and is given up.
    Lost {
        /// Its number: the first is 1.
        seq: u64,
        /// What failed. Without it, the time was over.
        reason: Option<String>,
    },
    /// The connection has ended; the next ping connects anew.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// A new connection stands.
    Connected {
        /// The address that answered.
        address: SocketAddr,
    },
}

/// Why nothing could be pinged: one sentence.
#[derive(Debug)]
pub enum Error {
    /// The server cannot be reached at all.
    Target(target::Error),
    /// The system refused something that a socket needs.
    Socket(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(error) => error.fmt(f),
            Self::Socket(error) => write!(f, "the connection failed: {error}"),
        }
    }
}

impl std::error::Error for Error {}

/// Pings until the count is sent and each ping is answered or given up, until `stop` becomes
/// readable, or until `report`, which is told each event, breaks off.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use std::time::Duration;
///
/// use evecho::client::ping::{self, Config, Size};
/// use evecho::client::target::Transport;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config {
///     target: "localhost:12000".parse()?,
///     transport: Transport::Udp,
///     count: Some(10),
///     interval: Duration::from_millis(100),
///     size: Size::new(56).expect("within its bounds"),
///     wait: Duration::from_secs(1),
/// };
/// let summary = ping::run(&config, None, |_| ControlFlow::Continue(()))?;
/// println!("{} of {} came back", summary.received, summary.sent);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When the first connection fails. A later one is an [`Event`].
pub fn run(
    config: &Config,
    stop: Option<BorrowedFd<'_>>,
    report: impl FnMut(&Event) -> ControlFlow<()>,
) -> Result<Summary, Error> {
    let config = &Config {
        interval: config.interval.min(LONGEST),
        wait: config.wait.min(LONGEST),
        ..config.clone()
    };
    let link = Link::open(&config.target, config.transport, config.size, config.wait)?;
    let key = RandomState::new().build_hasher().finish();
    let address = link.peer();
    let mut pinger = Pinger {
        config,
        tracker: Tracker::new(config.size, config.wait, key),
        link: Some(link),
        address,
        next: Instant::now(),
        report,
    };
    let size = config.size.bytes();
    let mut flow = pinger.report(Event::Start { address, transport: config.transport, size });
    while flow.is_continue() && !pinger.done() {
        flow = pinger.turn(stop)?;
    }
    Ok(pinger.tracker.summary())
}

struct Pinger<'a, F> {
    config: &'a Config,
    tracker: Tracker,
    /// Over TCP, none while the connection is lost.
    link: Option<Link>,
    /// Who was connected to last.
    address: SocketAddr,
    /// When the next ping is due.
    next: Instant,
    report: F,
}

impl<F: FnMut(&Event) -> ControlFlow<()>> Pinger<'_, F> {
    fn report(&mut self, event: Event) -> ControlFlow<()> {
        (self.report)(&event)
    }

    fn all_sent(&self) -> bool {
        self.config.count.is_some_and(|count| self.tracker.sent() >= count)
    }

    fn done(&self) -> bool {
        self.all_sent() && self.tracker.waiting() == 0
    }

    /// Whether nothing but time keeps the next ping from being sent.
    fn may_send(&self) -> bool {
        let in_turn = !self.config.interval.is_zero() || self.tracker.waiting() == 0;
        let blocked = self.link.as_ref().is_some_and(Link::blocked);
        !self.all_sent() && in_turn && !blocked && self.tracker.has_room()
    }

    /// Sends what is due, then waits for what comes first, and handles it.
    fn turn(&mut self, stop: Option<BorrowedFd<'_>>) -> Result<ControlFlow<()>, Error> {
        if self.may_send() && self.next <= Instant::now() && self.send().is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if self.done() {
            return Ok(ControlFlow::Continue(()));
        }
        let due = self.may_send().then_some(self.next);
        let deadline = due.into_iter().chain(self.tracker.deadline()).min();
        let watched =
            [stop.map(|stop| (stop, PollFlags::POLLIN)), self.link.as_ref().map(Link::watch)];
        let [stop, link] = wait::ready(watched, deadline).map_err(Error::Socket)?;
        if !stop.is_empty() {
            return Ok(ControlFlow::Break(()));
        }
        let flow = if link.is_empty() { ControlFlow::Continue(()) } else { self.exchange() };
        Ok(if flow.is_continue() { self.expire() } else { flow })
    }

    /// Sends the next ping, on a new connection where there is none.
    fn send(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        self.next = (self.next + self.config.interval).max(now);
        let message = self.tracker.message(self.tracker.sent() + 1);
        if self.link.is_none() {
            match self.connect() {
                Ok(flow) => flow?,
                Err(error) => {
                    self.tracker.send(now);
                    self.pause();
                    return self.lose(&error.to_string());
                }
            }
        }
        let link = self.link.as_mut().expect("it stands or was just made");
        self.tracker.send(Instant::now());
        match link.send(&message) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => self.fail(&error),
        }
    }

    fn connect(&mut self) -> Result<ControlFlow<()>, Error> {
        let Config { target, transport, size, wait, .. } = self.config;
        let link = Link::open(target, *transport, *size, *wait)?;
        self.address = link.peer();
        self.link = Some(link);
        Ok(self.report(Event::Connected { address: self.address }))
    }

    /// Moves what the socket is ready for.
    fn exchange(&mut self) -> ControlFlow<()> {
        let Some(link) = &mut self.link else { return ControlFlow::Continue(()) };
        if let Err(error) = link.flush() {
            return self.fail(&error);
        }
        loop {
            let Some(link) = &mut self.link else { return ControlFlow::Continue(()) };
            match link.receive() {
                Ok(None) => return ControlFlow::Continue(()),
                Ok(Some(bytes)) => {
                    let now = Instant::now();
                    while let Some(seq) = self.tracker.expire(now) {
                        (self.report)(&Event::Lost { seq, reason: None })?;
                    }
                    let recognised = self.tracker.recognises(bytes);
                    (self.report)(&Event::Reply(self.tracker.receive(bytes, now)))?;
                    if !recognised && self.config.transport == Transport::Tcp {
                        return self.fall_out_of_step("its bytes are out of step");
                    }
                }
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Gives up the pings whose time is over and, over TCP, a connection that is stuck in the middle
    /// of a message.
    fn expire(&mut self) -> ControlFlow<()> {
        let now = Instant::now();
        if self.tracker.deadline().is_none_or(|deadline| now < deadline) {
            return ControlFlow::Continue(());
        }
        if let (Transport::Tcp, Some(link)) = (self.config.transport, &self.link) {
            if !link.partial().is_empty() && !self.tracker.has_time_for(link.partial(), now) {
                return self.fall_out_of_step("the rest of a reply did not come");
            }
            if link.blocked() {
                return self.fall_out_of_step("it takes no more bytes");
            }
        }
        while let Some(seq) = self.tracker.expire(now) {
            self.report(Event::Lost { seq, reason: None })?;
        }
        ControlFlow::Continue(())
    }

    /// What follows from an error of the socket: over TCP the end of the connection; over UDP (an
    /// ICMP message came) the loss of what is out.
    fn fail(&mut self, error: &io::Error) -> ControlFlow<()> {
        match self.config.transport {
            Transport::Udp => {
                let reason = target::Error::unreachable(
                    self.address,
                    Transport::Udp,
                    self.config.wait,
                    error,
                )
                .to_string();
                self.pause();
                self.lose(&reason)
            }
            Transport::Tcp if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.disconnect(&format!("{} closed the connection", self.address))
            }
            Transport::Tcp => {
                self.disconnect(&format!("the connection to {} broke: {error}", self.address))
            }
        }
    }

    /// Ends a TCP connection on which the next reply could not be told from this one.
    fn fall_out_of_step(&mut self, why: &str) -> ControlFlow<()> {
        self.disconnect(&format!("gave up the connection to {}: {why}", self.address))
    }

    fn disconnect(&mut self, reason: &str) -> ControlFlow<()> {
        if let Some(link) = self.link.take()
            && !link.partial().is_empty()
        {
            let reply = self.tracker.receive(link.partial(), Instant::now());
            self.report(Event::Reply(reply))?;
        }
        self.pause();
        // With all sent and answered, nobody needs the connection any more.
        if !self.done() {
            self.report(Event::Disconnected { reason: reason.to_owned() })?;
        }
        self.lose("the connection ended")
    }

    /// Gives up every ping that is out.
    fn lose(&mut self, reason: &str) -> ControlFlow<()> {
        while let Some(seq) = self.tracker.give_up() {
            self.report(Event::Lost { seq, reason: Some(reason.to_owned()) })?;
        }
        ControlFlow::Continue(())
    }

    /// Where replies set the pace, a failure must not: the next ping waits as for a lost one.
    fn pause(&mut self) {
        if self.config.interval.is_zero() {
            self.next = Instant::now() + self.config.wait;
        }
    }
}
