//! What a run is asked to do: plain values, defaults and the rules that they keep.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use crate::client::message::HEADER;
use crate::client::pattern::{BINARY_LINES, BINARY_UPPER, Pattern};
use crate::client::target::Target;
use crate::client::{nanoseconds, socket};
use crate::config::MAX_MAX_FRAME;
use crate::error::Transport;
use crate::protocol::{Framing, MAX_DATAGRAM};

/// How the connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mode {
    /// Each connection keeps [`Config::depth`] messages in flight, and sends the next when one
    /// comes back.
    PingPong,
    /// Each connection sends as fast as it can and reads as fast as it can. TCP only.
    Stream,
    /// Each connection carries one message and is then closed: connect, send, read it back,
    /// half-close, wait for the server's FIN, close; then the next one. TCP only.
    Churn,
    /// Every connection echoes one message, stays silent for the run's time and echoes one
    /// message more. TCP only.
    Idle,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Length {
    /// After this time.
    #[serde(rename = "time_ns", with = "nanoseconds")]
    Time(Duration),
    /// After this number of messages, over all connections.
    Messages(u64),
}

/// What a run is asked to do. [`Config::new`] has defaults for all but the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Config {
    /// TCP or UDP.
    pub transport: Transport,
    /// The server.
    pub address: SocketAddr,
    /// The name of the server, which is resolved again where a UDP socket is replaced. Default: none, the address
    /// stays.
    #[serde(skip)]
    pub target: Option<Target>,
    /// How the connections are used. Default: ping-pong.
    pub mode: Mode,
    /// TCP connections, or UDP sockets: at least 1. Default: 50.
    pub connections: u32,
    /// Whether each connection has a message echoed as it opens, and only few do so at the same time: a
    /// short backlog is not overrun, and the server has begun to serve each of them. Ping-pong over TCP
    /// only. Default: no.
    #[serde(default)]
    pub greet: bool,
    /// Bytes in a message: at least 1 (UDP: 16, for the sequence number, to 65,507). In stream
    /// mode, the most that one write sends. Default: 64.
    pub size: usize,
    /// How the end of a message is marked in a TCP stream: a line feed, or a length before it, come on
    /// top of its size. With a mark, the size is at most 16 MiB. Default: not at all.
    #[serde(default)]
    pub framing: Framing,
    /// The bytes that messages are made of. Default: text. Reports of earlier versions do not say.
    #[serde(default = "before_there_was_a_choice")]
    pub pattern: Pattern,
    /// Whether the service is one that answers in upper case. Default: no, the same bytes.
    #[serde(default)]
    pub upper: bool,
    /// Messages in flight on each connection in ping-pong without a rate: 1 to 65,535. Default: 1.
    pub depth: u16,
    /// When the measured part ends. Default: after 10 s.
    pub length: Length,
    /// Load before the measured part. Default: none.
    #[serde(rename = "warmup_ns", with = "nanoseconds")]
    pub warmup: Duration,
    /// Messages (churn: connections) a second over all connections, which take turns. Each is
    /// sent when it is due, whatever is still out: it waits only until its stream has taken those
    /// before it, and while 65,536 messages are out on each connection (churn: while all
    /// connections are open). Latencies start when a message was due. The client polls, instead of
    /// sleeping, shortly before a message is due and for up to 2 ms while a reply is expected.
    /// Default: none, the next message goes out when one has come back.
    pub rate: Option<f64>,
    /// How long a reply may take. A UDP message is then given up, and the next one sent. TCP
    /// connections wait on, until nothing at all has come for this long. Default: 5 s, over UDP
    /// 500 ms.
    #[serde(rename = "timeout_ns", with = "nanoseconds")]
    pub timeout: Duration,
    /// The client's own addresses, used in turn; each has the local ports of the system, on Linux
    /// some 28,000, for one server address. Default: the system's choice. Where one address would
    /// not have enough ports (churn, and over 10,000 connections), it is 127.0.0.2 to 127.0.0.65
    /// for a server in 127.0.0.0/8, and else all addresses that are on the same interface and in
    /// the same network as the system's choice.
    pub sources: Vec<IpAddr>,
    /// Threads that share the connections, each with an event loop of its own: at least 1, and no
    /// more than connections. Default: 1.
    pub threads: u32,
    /// How long an interval of the measured part is, of which [`Progress`](super::Progress) tells.
    /// Default: 1 s.
    #[serde(rename = "every_ns", with = "nanoseconds")]
    pub every: Duration,
}

fn before_there_was_a_choice() -> Pattern {
    Pattern::Binary
}

/// A thread looks this often whether an interval is over.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// More connections than this are opened slowly from one source address: of its 28,000 ports Linux takes
/// every other first, and when these are gone, it looks at all of them before each connection.
pub const MOST_PER_SOURCE: u32 = 10_000;

impl Config {
    /// The defaults, for the server at `address`.
    pub fn new(transport: Transport, address: SocketAddr) -> Self {
        Self {
            transport,
            address,
            target: None,
            mode: Mode::PingPong,
            connections: 50,
            greet: false,
            size: 64,
            framing: Framing::Raw,
            pattern: Pattern::Text,
            upper: false,
            depth: 1,
            length: Length::Time(Duration::from_secs(10)),
            warmup: Duration::ZERO,
            rate: None,
            timeout: match transport {
                Transport::Tcp => Duration::from_secs(5),
                Transport::Udp => Duration::from_millis(500),
            },
            sources: Vec::new(),
            threads: 1,
            every: Duration::from_secs(1),
        }
    }

    /// Whether the values fit together.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Error> {
        let udp = self.transport == Transport::Udp;
        let ping_pong = self.mode == Mode::PingPong;
        let (framed, binary) = (self.framing != Framing::Raw, self.pattern == Pattern::Binary);
        let has_schedule = matches!(self.mode, Mode::PingPong | Mode::Churn);
        let rules = [
            (self.connections == 0, "there must be at least 1 connection"),
            (self.size == 0, "the size must be at least 1 byte"),
            (self.size > 1 << 30, "the size must be at most 1 GiB"),
            (
                udp && !(HEADER..=MAX_DATAGRAM).contains(&self.size),
                "over UDP the size must be from 16 bytes, for the sequence number, to 65507",
            ),
            (udp && framed, "over UDP a datagram is a message: no framing"),
            (
                framed && self.size > MAX_MAX_FRAME as usize,
                "with a framing, the size must be at most 16 MiB",
            ),
            (binary && self.framing == Framing::Lines, BINARY_LINES),
            (binary && self.upper, BINARY_UPPER),
            (self.depth == 0, "the depth must be at least 1 message in flight"),
            (self.depth > 1 && !ping_pong, "a depth over 1 is for ping-pong only"),
            (udp && !ping_pong, "over UDP the mode must be ping-pong"),
            (self.greet && (udp || !ping_pong), "to greet, the mode must be ping-pong over TCP"),
            (self.rate.is_some() && !has_schedule, "a rate is for ping-pong and churn only"),
            (
                self.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)),
                "the rate must be above 0",
            ),
            (self.length == Length::Messages(0), "there must be at least 1 message"),
            (self.length == Length::Time(Duration::ZERO), "the time must be above 0"),
            (
                self.mode == Mode::Idle && !matches!(self.length, Length::Time(_)),
                "idle mode needs a time in which connections are silent, not a number of messages",
            ),
            (
                !(1..=self.connections).contains(&self.threads),
                "the number of threads must be from 1 to the number of connections",
            ),
            (self.every < SHORTEST_INTERVAL, "an interval must be at least 10 ms"),
            (self.timeout.is_zero(), "the timeout must be above 0"),
            (
                self.sources.iter().any(|source| source.is_ipv4() != self.address.is_ipv4()),
                "source addresses must be of the same family (IPv4 or IPv6) as the server's address",
            ),
        ];
        let broken = rules.iter().find(|(is_broken, _)| *is_broken);
        broken.map_or(Ok(()), |(_, rule)| Err(Error::Invalid(rule)))
    }

    /// Adds the number of messages of another load of the same kind. What depends on when it was (the
    /// connections, the threads and the rate) is left as it is.
    pub(super) fn add(&mut self, other: &Self) -> Result<(), Error> {
        for (same, what) in [
            (self.transport == other.transport, "their transport"),
            (self.mode == other.mode, "their mode"),
            (self.size == other.size, "the size of their messages"),
            (self.depth == other.depth, "their depth"),
            (self.framing == other.framing, "their framing"),
            (self.pattern == other.pattern, "the pattern of their messages"),
            (self.upper == other.upper, "the case of their answers"),
            (self.rate.is_some() == other.rate.is_some(), "having a rate or none"),
        ] {
            if !same {
                return Err(Error::Different(what));
            }
        }
        self.length = match (self.length, other.length) {
            (Length::Messages(ours), Length::Messages(theirs)) => {
                Length::Messages(ours.saturating_add(theirs))
            }
            (Length::Time(ours), Length::Time(theirs)) => Length::Time(ours.max(theirs)),
            _ => return Err(Error::Different("having a time or a number of messages")),
        };
        let new = other.sources.iter().filter(|source| !self.sources.contains(source));
        let new: Vec<IpAddr> = new.copied().collect();
        self.sources.extend(new);
        Ok(())
    }

    /// The part of a thread: its share of the connections, and of a number of messages.
    pub(super) fn share(&self, thread: u32) -> Share {
        // What does not divide goes to the first threads, one to each.
        let part = |all: u64| {
            let threads = u64::from(self.threads);
            all / threads + u64::from(u64::from(thread) < all % threads)
        };
        let connections = part(self.connections.into()) as u32;
        let extra = thread.min(self.connections % self.threads);
        let first = thread * (self.connections / self.threads) + extra;
        let length = match self.length {
            Length::Messages(count) => Length::Messages(part(count)),
            Length::Time(time) => Length::Time(time),
        };
        Share { thread, first, config: Self { connections, length, ..self.clone() } }
    }

    /// The source addresses to use in turn; none leaves the choice to the system.
    pub(super) fn effective_sources(&self) -> Vec<IpAddr> {
        let many = self.mode == Mode::Churn || self.connections > MOST_PER_SOURCE;
        if !self.sources.is_empty() || !many {
            return self.sources.clone();
        }
        match self.address.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => {
                (2..=65).map(|last| IpAddr::from([127, 0, 0, last])).collect()
            }
            _ => socket::sources_towards(self.address),
        }
    }
}

/// The part of a run that one of its threads has.
#[derive(Debug)]
pub(super) struct Share {
    /// Which of the threads it is.
    pub(super) thread: u32,
    /// The number of its first connection, among all of the run.
    pub(super) first: u32,
    pub(super) config: Config,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp() -> Config {
        Config::new(Transport::Tcp, "127.0.0.1:7".parse().unwrap())
    }

    #[test]
    fn the_defaults_fit() {
        tcp().check().unwrap();
        Config::new(Transport::Udp, "[::1]:7".parse().unwrap()).check().unwrap();
    }

    #[test]
    fn every_rule_is_kept() {
        let udp = Config { transport: Transport::Udp, ..tcp() };
        let messages = Length::Messages(1);
        for (config, word) in [
            (Config { connections: 0, ..tcp() }, "connection"),
            (Config { size: 0, ..tcp() }, "byte"),
            (Config { size: usize::MAX, ..tcp() }, "GiB"),
            (Config { size: (16 << 20) + 1, framing: Framing::Lines, ..tcp() }, "16 MiB"),
            (Config { framing: Framing::Lines, ..udp.clone() }, "framing"),
            (Config { size: 15, ..udp.clone() }, "16"),
            (Config { size: 65_508, ..udp.clone() }, "65507"),
            (Config { framing: Framing::Lines, pattern: Pattern::Binary, ..tcp() }, "line feeds"),
            (Config { upper: true, pattern: Pattern::Binary, ..tcp() }, "upper case"),
            (Config { depth: 0, ..tcp() }, "in flight"),
            (Config { depth: 2, mode: Mode::Stream, ..tcp() }, "depth"),
            (Config { mode: Mode::Churn, ..udp }, "UDP"),
            (Config { rate: Some(1.0), mode: Mode::Idle, ..tcp() }, "rate"),
            (Config { rate: Some(0.0), ..tcp() }, "rate"),
            (Config { rate: Some(f64::NAN), ..tcp() }, "rate"),
            (Config { length: Length::Messages(0), ..tcp() }, "message"),
            (Config { length: Length::Time(Duration::ZERO), ..tcp() }, "time"),
            (Config { length: messages, mode: Mode::Idle, ..tcp() }, "time"),
            (Config { timeout: Duration::ZERO, ..tcp() }, "timeout"),
            (Config { threads: 0, ..tcp() }, "threads"),
            (Config { threads: 51, ..tcp() }, "threads"),
            (Config { every: Duration::from_millis(9), ..tcp() }, "interval"),
            (Config { sources: vec!["::1".parse().unwrap()], ..tcp() }, "family"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn shares_add_up() {
        let config = Config { connections: 10, threads: 4, length: Length::Messages(7), ..tcp() };
        let shares = [0, 1, 2, 3].map(|thread| config.share(thread));
        assert_eq!(shares.each_ref().map(|share| share.config.connections), [3, 3, 2, 2]);
        assert_eq!(shares.each_ref().map(|share| share.first), [0, 3, 6, 8]);
        let messages = [2, 2, 2, 1].map(Length::Messages);
        assert_eq!(shares.each_ref().map(|share| share.config.length), messages);
        let many = Config { connections: 1_000, threads: 512, ..tcp() }.share(511);
        assert_eq!((many.first, many.config.connections), (999, 1));
    }

    #[test]
    fn many_local_connections_get_many_sources() {
        assert!(tcp().effective_sources().is_empty());
        assert_eq!(Config { mode: Mode::Churn, ..tcp() }.effective_sources().len(), 64);
        assert_eq!(Config { connections: 30_000, ..tcp() }.effective_sources().len(), 64);
        let given = vec!["127.0.0.9".parse().unwrap()];
        let config = Config { mode: Mode::Churn, sources: given.clone(), ..tcp() };
        assert_eq!(config.effective_sources(), given);
    }
}
