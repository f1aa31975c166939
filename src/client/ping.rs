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
//!
//! A connection, or a UDP socket, through which several pings in a row were lost is given up, too: the server
//! may have moved, while the name still had its former address and the path knows the port (NAT).

mod config;
mod event;
mod figure;
mod link;
mod summary;

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::Cancel;
use super::cancel::{Deadline, TICK};
use super::message::Messages;
use super::target::{self, LONGEST_WAIT};
use super::tracker::Tracker;
use crate::error::Transport;
use crate::protocol::Framing;
use crate::{random, units};
use link::Link;
use summary::Counts;

pub use super::pattern::Pattern;
pub use super::tracker::Reply;
pub use config::{Config, ConfigError, Size};
pub use event::{Event, Reason};
pub use figure::svg;
pub use summary::{Summary, Times};

/// What a run tells while it goes on.
#[derive(Debug)]
pub struct Progress<'a> {
    /// What happened; nothing about ten times a second, so that the listener gets a turn, except while
    /// it connects.
    pub event: Option<&'a Event>,
    counts: &'a Counts,
    tracker: &'a Tracker,
}

impl Progress<'_> {
    /// What has come of all pings so far.
    pub fn summary(&self) -> Summary {
        self.counts.summary(self.tracker)
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
/// ```
/// use std::time::Duration;
///
/// use evecho::client::Cancel;
/// use evecho::client::ping::{self, Config};
///
/// let server = evecho::Server::bind(evecho::Config::loopback())?.spawn()?;
/// let mut config = Config::new(server.local_addrs()[0].into());
/// config.count = Some(10);
/// config.interval = Duration::from_millis(1);
/// let summary = ping::run(&config, &Cancel::default(), |progress| {
///     println!("{:?}", progress.event);
/// })?;
/// assert_eq!((summary.sent, summary.received), (10, 10));
/// # Ok::<(), Box<dyn std::error::Error>>(())
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
    let &Config { size, pattern, upper, wait, .. } = config;
    let messages = Messages { size: size.bytes(), pattern, upper, key: random::draw() };
    let start = Instant::now();
    let mut pinger = Pinger {
        config,
        cancel,
        tracker: Tracker::new(messages, wait),
        counts: Counts::default(),
        start,
        link: None,
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
    Ok(pinger.counts.summary(&pinger.tracker))
}

struct Pinger<'a, F> {
    config: &'a Config,
    cancel: &'a Cancel,
    tracker: Tracker,
    counts: Counts,
    start: Instant,
    link: Option<Link>,
    /// When the next ping is due.
    next: Instant,
    /// When the run is over, whatever has come.
    end: Option<Instant>,
    /// When the listener had its last turn.
    told: Instant,
    progress: F,
}

impl<F: FnMut(&Progress<'_>)> Pinger<'_, F> {
    fn tell(&mut self, event: Event) {
        self.counts.count(&event, self.when_sent(&event));
        self.progress(Some(&event));
    }

    /// When the ping that an event is about was sent; where that is not known, now.
    fn when_sent(&self, event: &Event) -> u64 {
        let now = self.now();
        match event {
            Event::Reply(Reply::Echo { time, .. }) => now.saturating_sub(units::nanoseconds(*time)),
            Event::Lost { seq, .. } => self.tracker.when_lost_was_sent(*seq).unwrap_or(now),
            _ => now,
        }
    }

    fn progress(&mut self, event: Option<&Event>) {
        let Self { counts, tracker, .. } = self;
        (self.progress)(&Progress { event, counts, tracker });
    }

    /// Nanoseconds since the start, which the tracker takes.
    fn now(&self) -> u64 {
        units::nanoseconds(self.start.elapsed())
    }

    /// Whether no further ping has to be sent.
    fn all_sent(&self) -> bool {
        // With a deadline, pings go on until this many are answered.
        let count = match self.config.deadline {
            Some(_) => self.counts.received,
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
        let free = !self.link.as_ref().is_some_and(Link::blocked);
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
        let expiry = self.tracker.deadline().map(|at| self.start + Duration::from_nanos(at));
        let tick = self.told + TICK;
        let first = [due, expiry, self.end].into_iter().flatten().fold(tick, Instant::min);
        let watched = self.link.as_ref().map(Link::watch);
        let [ready] =
            Deadline::new(Some(first), self.cancel).ready([watched]).map_err(Error::Socket)?;
        if ready != PollFlags::empty() {
            self.exchange();
        }
        self.expire();
        self.leave_deaf();
        let now = Instant::now();
        if now >= self.told + TICK {
            self.told = now;
            self.progress(None);
        }
        Ok(())
    }

    /// Sends the next ping, for which it connects where there is no connection.
    fn send(&mut self) {
        let now = Instant::now();
        self.next = (self.next + self.config.interval).max(now);
        if self.link.is_some() || self.connect() {
            self.send_now();
        }
    }

    /// Whether there is a connection now.
    fn connect(&mut self) -> bool {
        let left =
            self.end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        match Link::open(self.config, self.config.wait.min(left), self.cancel) {
            Ok(link) => {
                let (address, local) = (link.peer, link.local);
                self.link = Some(link);
                self.tracker.hear(self.now());
                self.tell(Event::Connected { address, local });
                return true;
            }
            // It ended as the run does.
            Err(_) if self.late() || self.cancel.is_cancelled() => {}
            Err(error) => self.lose_next(&error),
        }
        false
    }

    fn send_now(&mut self) {
        if self.config.report_outstanding {
            let before = self.tracker.sent();
            if self.tracker.outstanding().next_back() == Some(before) {
                self.tell(Event::Outstanding { seq: before });
            }
        }
        let now = self.now();
        let Some(link) = &mut self.link else { return };
        let mut message = vec![0; self.config.size.bytes()];
        self.tracker.write_next(&mut message);
        self.tracker.send(now, now);
        if let Err(error) = link.send(&message) {
            self.fail(&error);
        }
    }

    /// Gives up the next ping, for which there is no connection.
    fn lose_next(&mut self, error: &target::Error) {
        let now = self.now();
        self.tracker.send(now, now);
        self.pause();
        self.lose(error.into(), &error.fact().to_string());
    }

    /// Moves what the socket is ready for.
    fn exchange(&mut self) {
        let Some(link) = &mut self.link else { return };
        if let Err(error) = link.flush() {
            return self.fail(&error);
        }
        loop {
            let Some(link) = &mut self.link else { return };
            match link.receive() {
                Ok(None) => return,
                Ok(Some(bytes)) => self.receive(&bytes),
                Err(error) => return self.fail(&error),
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let now = self.now();
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
        let now = self.now();
        if self.tracker.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if let (Transport::Tcp, Some(link)) = (self.config.transport, &self.link) {
            if link.partial().is_some_and(|partial| !self.tracker.has_time_for(partial, now)) {
                return self.fall_out_of_step(Reason::Cut, "the rest of a reply did not come");
            }
            if link.blocked() {
                return self.fall_out_of_step(Reason::Timeout, "it takes no more bytes");
            }
        }
        self.give_up_late(now);
    }

    fn give_up_late(&mut self, now: u64) {
        while let Some(seq) = self.tracker.expire(now) {
            self.tell(Event::Lost { seq, reason: Reason::Timeout, detail: String::new() });
        }
    }

    /// What follows from an error of the socket: over TCP the end of the connection; over UDP (an
    /// ICMP message came) the loss of what is out.
    fn fail(&mut self, error: &io::Error) {
        let Some(address) = self.link.as_ref().map(|link| link.peer) else { return };
        let &Config { transport, wait, .. } = self.config;
        let known = target::Error::unreachable(address, transport, wait, error);
        let reason = Reason::from(&known);
        match (transport, reason) {
            (Transport::Udp, _) => {
                self.pause();
                self.lose(reason, &known.fact().to_string());
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
        if let Some(link) = &self.link {
            self.disconnect(reason, &format!("gave up the connection to {}: {why}", link.peer));
        }
    }

    /// Gives up a connection through which pings in a row were lost.
    fn leave_deaf(&mut self) {
        if let Some(link) = &self.link
            && self.tracker.is_deaf(self.now())
        {
            let row = self.tracker.row();
            let what = match self.config.transport {
                Transport::Tcp => "connection",
                Transport::Udp => "socket",
            };
            let peer = link.peer;
            let detail = format!("gave up the {what} to {peer}: {row} pings in a row were lost");
            self.disconnect(Reason::Timeout, &detail);
        }
    }

    fn disconnect(&mut self, reason: Reason, detail: &str) {
        if let Some(link) = self.link.take()
            && let Some(partial) = link.partial()
        {
            let reply = self.tracker.receive(partial, self.now());
            self.tell(Event::Reply(reply));
        }
        if self.tracker.waiting() > 0 {
            self.pause();
        }
        // With all sent and answered, the connection is no longer needed.
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
