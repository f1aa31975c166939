//! `evecho ping`: round-trip times of an echo server, and what is wrong with its echo.
//!
//! Every ping is a message of its own with a sequence number and a checked pattern, so that loss,
//! repetition, reordering and damage are told apart. The tracker decides what a reply is; the loop
//! here owns the socket and the clock.
//!
//! Over TCP all pings go through one connection. While there is none, each ping tries to connect
//! first, and is lost with the reason when that fails: a server that is not there yet, or restarts,
//! shows as loss, and then as replies. A connection whose bytes are out of step (a reply was cut, or
//! is not recognisable) is given up, and the pings that are out are lost with it.

mod config;
mod event;
mod link;
mod message;
mod tracker;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use nix::poll::PollFlags;

use super::Cancel;
use super::target::{self, LONGEST_WAIT, Transport};
use super::wait::{self, TICK};
use crate::protocol::Framing;
use crate::random;
use link::{Link, OpenError, Opening};
use message::Messages;
use tracker::Tracker;

pub use config::{Config, ConfigError, Pattern, Size};
pub use event::{Event, Reason};
pub use tracker::{Reply, Summary, Times};

/// What a run tells while it goes on.
pub struct Progress<'a> {
    /// What happened; nothing about ten times a second, so that whoever listens gets a turn.
    pub event: Option<&'a Event>,
    tracker: &'a Tracker,
}

impl Progress<'_> {
    /// What has come of all pings so far.
    pub fn summary(&self) -> Summary {
        self.tracker.summary()
    }
}

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("event", &self.event).finish_non_exhaustive()
    }
}

/// Why nothing could be pinged. That the server is not there is none: see [`Event::Lost`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is invalid.
    Config(ConfigError),
    /// The system refused something that a socket needs.
    Socket(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(_) => f.write_str("invalid configuration"),
            Self::Socket(_) => f.write_str("the socket failed"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::Socket(error) => Some(error),
        }
    }
}

/// Pings until the count is sent and each ping is answered or given up, until the deadline, or until
/// `cancel`. `progress` is told each event.
///
/// ```no_run
/// use std::time::Duration;
///
/// use evecho::client::Cancel;
/// use evecho::client::ping::{self, Config};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = Config::new("localhost:12000".parse()?);
/// config.count = Some(10);
/// config.interval = Duration::from_millis(100);
/// let summary = ping::run(&config, &Cancel::default(), |progress| {
///     println!("{:?}", progress.event);
/// })?;
/// println!("{} of {} came back", summary.received, summary.sent);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When the configuration is invalid, or the system refuses what every run needs. A server that
/// cannot be reached is an [`Event`].
pub fn run(
    config: &Config,
    cancel: &Cancel,
    progress: impl FnMut(&Progress<'_>),
) -> Result<Summary, Error> {
    config.check().map_err(Error::Config)?;
    let config = &Config {
        interval: config.interval.min(LONGEST_WAIT),
        wait: config.wait.min(LONGEST_WAIT),
        ..config.clone()
    };
    let key = random::draw();
    let start = Instant::now();
    let mut pinger = Pinger {
        config,
        tracker: Tracker::new(Messages::new(config, key), config.wait),
        connection: Connection::None,
        address: None,
        next: start,
        end: config.deadline.and_then(|deadline| start.checked_add(deadline)),
        told: start,
        progress,
    };
    pinger.tell(Event::Start { transport: config.transport, size: config.size.bytes() });
    while !pinger.done() && !pinger.late() && !cancel.is_cancelled() {
        pinger.turn()?;
    }
    for seq in pinger.tracker.outstanding().collect::<Vec<_>>() {
        pinger.tell(Event::Outstanding { seq });
    }
    Ok(pinger.tracker.summary())
}

enum Connection {
    None,
    Opening(Opening),
    Open(Link),
}

struct Pinger<'a, F> {
    config: &'a Config,
    tracker: Tracker,
    connection: Connection,
    /// Who was connected to last.
    address: Option<SocketAddr>,
    /// When the next ping is due.
    next: Instant,
    /// When the run is over, whatever has come.
    end: Option<Instant>,
    /// When whoever listens had the last turn.
    told: Instant,
    progress: F,
}

impl<F: FnMut(&Progress<'_>)> Pinger<'_, F> {
    fn tell(&mut self, event: Event) {
        (self.progress)(&Progress { event: Some(&event), tracker: &self.tracker });
    }

    /// Whether no further ping has to be sent.
    fn all_sent(&self) -> bool {
        // With a deadline, pings go on until so many are answered.
        let count = match self.config.deadline {
            Some(_) => self.tracker.received(),
            None => self.tracker.sent(),
        };
        self.config.count.is_some_and(|enough| count >= enough)
    }

    fn done(&self) -> bool {
        self.all_sent() && (self.tracker.waiting() == 0 || self.config.deadline.is_some())
    }

    fn late(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Whether nothing but time keeps the next ping from being sent.
    fn may_send(&self) -> bool {
        let in_turn = !self.config.interval.is_zero() || self.tracker.waiting() == 0;
        let free = match &self.connection {
            Connection::None => true,
            Connection::Opening(_) => false,
            Connection::Open(link) => !link.blocked(),
        };
        !self.all_sent() && in_turn && free && self.tracker.has_room()
    }

    /// Sends what is due, then waits for what comes first, and handles it.
    fn turn(&mut self) -> Result<(), Error> {
        if self.may_send() && self.next <= Instant::now() {
            self.send();
        }
        if self.done() {
            return Ok(());
        }
        let due = self.may_send().then_some(self.next);
        let deadlines = [due, self.tracker.deadline(), self.end, Some(self.told + TICK)];
        let watched = match &self.connection {
            Connection::None => None,
            Connection::Opening(opening) => Some(opening.watch()),
            Connection::Open(link) => Some(link.watch()),
        };
        let [ready] =
            wait::ready([watched], deadlines.into_iter().flatten().min()).map_err(Error::Socket)?;
        if ready != PollFlags::empty() {
            match &self.connection {
                Connection::Opening(_) => self.finish_opening(),
                _ => self.exchange(),
            }
        }
        self.expire();
        let now = Instant::now();
        if now >= self.told + TICK {
            self.told = now;
            (self.progress)(&Progress { event: None, tracker: &self.tracker });
        }
        Ok(())
    }

    /// Sends the next ping, or begins to connect for it where there is no connection.
    fn send(&mut self) {
        let now = Instant::now();
        self.next = (self.next + self.config.interval).max(now);
        match self.connection {
            Connection::None => match Opening::start(self.config) {
                Ok(opening) => self.connection = Connection::Opening(opening),
                Err(error) => self.lose_next(&OpenError::Socket(error)),
            },
            Connection::Opening(_) => {}
            Connection::Open(_) => self.send_now(),
        }
    }

    fn send_now(&mut self) {
        if self.config.report_outstanding {
            let before = self.tracker.sent();
            if self.tracker.is_waiting(before) {
                self.tell(Event::Outstanding { seq: before });
            }
        }
        let Connection::Open(link) = &mut self.connection else { return };
        let message = self.tracker.next();
        self.tracker.send(Instant::now());
        if let Err(error) = link.send(&message) {
            self.fail(&error);
        }
    }

    /// Sends the ping that the connection was made for.
    fn finish_opening(&mut self) {
        let Connection::Opening(opening) = &self.connection else { return };
        let Some(result) = opening.result() else { return };
        match result {
            Ok(link) => {
                let address = link.peer();
                self.address = Some(address);
                self.connection = Connection::Open(link);
                self.tell(Event::Connected { address });
                self.send_now();
            }
            Err(error) => {
                self.connection = Connection::None;
                self.lose_next(&error);
            }
        }
    }

    /// Gives up the next ping, for which there is no connection.
    fn lose_next(&mut self, error: &OpenError) {
        self.tracker.send(Instant::now());
        self.pause();
        self.lose(error.into(), &error.to_string());
    }

    /// Moves what the socket is ready for.
    fn exchange(&mut self) {
        let Connection::Open(link) = &mut self.connection else { return };
        if let Err(error) = link.flush() {
            return self.fail(&error);
        }
        loop {
            let Connection::Open(link) = &mut self.connection else { return };
            match link.receive() {
                Ok(None) => return,
                Ok(Some(bytes)) => self.receive(&bytes),
                Err(error) => return self.fail(&error),
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        self.give_up_late(now);
        let recognised = self.tracker.recognises(bytes);
        let reply = self.tracker.receive(bytes, now);
        self.tell(Event::Reply(reply));
        // Only where nothing marks its end does one message tell where the next begins.
        let unmarked =
            self.config.transport == Transport::Tcp && self.config.framing == Framing::Raw;
        if !recognised && unmarked {
            self.fall_out_of_step(Reason::Corrupt, "its bytes are out of step");
        }
    }

    /// Gives up the pings whose time is over and, over TCP, a connection that is stuck in the middle
    /// of a message.
    fn expire(&mut self) {
        let now = Instant::now();
        if self.tracker.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if let (Transport::Tcp, Connection::Open(link)) = (self.config.transport, &self.connection)
        {
            if link.partial().is_some_and(|partial| !self.tracker.has_time_for(partial, now)) {
                return self.fall_out_of_step(Reason::Cut, "the rest of a reply did not come");
            }
            if link.blocked() {
                return self.fall_out_of_step(Reason::Timeout, "it takes no more bytes");
            }
        }
        self.give_up_late(now);
    }

    fn give_up_late(&mut self, now: Instant) {
        while let Some(seq) = self.tracker.expire(now) {
            self.tell(Event::Lost { seq, reason: Reason::Timeout, detail: String::new() });
        }
    }

    /// What follows from an error of the socket: over TCP the end of the connection; over UDP (an
    /// ICMP message came) the loss of what is out.
    fn fail(&mut self, error: &io::Error) {
        let reason = Reason::from(error.kind());
        let Some(address) = self.address else { return };
        match (self.config.transport, reason) {
            (Transport::Udp, _) => {
                let wait = self.config.wait;
                let error = target::Error::unreachable(address, Transport::Udp, wait, error);
                self.pause();
                self.lose(reason, &error.fact().to_string());
            }
            (_, Reason::Closed) => {
                self.disconnect(reason, &format!("{address} closed the connection"));
            }
            (_, Reason::Reset) => {
                self.disconnect(reason, &format!("{address} reset the connection"));
            }
            (_, Reason::Cut) => self.fall_out_of_step(reason, &error.to_string()),
            _ => self.disconnect(reason, &format!("the connection to {address} failed: {error}")),
        }
    }

    /// Ends a TCP connection on which the next reply could not be told from this one.
    fn fall_out_of_step(&mut self, reason: Reason, why: &str) {
        if let Some(address) = self.address {
            self.disconnect(reason, &format!("gave up the connection to {address}: {why}"));
        }
    }

    fn disconnect(&mut self, reason: Reason, detail: &str) {
        let connection = std::mem::replace(&mut self.connection, Connection::None);
        if let Connection::Open(link) = connection
            && let Some(partial) = link.partial()
        {
            let reply = self.tracker.receive(partial, Instant::now());
            self.tell(Event::Reply(reply));
        }
        if self.tracker.waiting() > 0 {
            self.pause();
        }
        // With all sent and answered, nobody needs the connection any more.
        if !self.done() {
            self.tell(Event::Disconnected { reason, detail: detail.to_owned() });
        }
        self.lose(reason, detail);
    }

    /// Gives up every ping that is out.
    fn lose(&mut self, reason: Reason, detail: &str) {
        while let Some(seq) = self.tracker.give_up() {
            self.tell(Event::Lost { seq, reason, detail: detail.to_owned() });
        }
    }

    /// Where replies set the pace, a failure must not: the next ping waits as for a lost one.
    fn pause(&mut self) {
        if self.config.interval.is_zero() {
            self.next = Instant::now() + self.config.wait;
        }
    }
}
