//! What to ping, and how.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::Summary;
use crate::client::pattern::{BINARY_LINES, BINARY_UPPER, Pattern};
use crate::client::target::Target;
use crate::error::Transport;
use crate::protocol::{Framing, MAX_DATAGRAM};

/// A code point has six bits (RFC 2474).
const HIGHEST_DSCP: u8 = 63;

/// What to ping, and how. Made by [`Config::new`], then changed field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The server.
    pub target: Target,
    /// What carries the pings. Default: what the target names, or TCP.
    pub transport: Transport,
    /// The address of this machine that pings are sent from. Default: what the system chooses.
    pub source: Option<IpAddr>,
    /// The code point (DSCP, RFC 2474) that pings leave with, 0 to 63. Default: what the system has.
    pub dscp: Option<u8>,
    /// Where a ping, and its reply, ends in a TCP stream. Default: nowhere, a reply is as long as its
    /// ping. A datagram is a ping of its own.
    pub framing: Framing,
    /// The bytes of which pings are made. Default: text.
    pub pattern: Pattern,
    /// Whether the service is one that answers in upper case. Default: no, the same bytes.
    pub upper: bool,
    /// How many pings are sent; with a deadline, how many have to be answered. Default: there is no
    /// end.
    pub count: Option<u64>,
    /// How long the run lasts at most, whatever has been sent and answered. Default: no limit.
    pub deadline: Option<Duration>,
    /// The time from one ping to the next, a day at most. Zero sends each as soon as the one before
    /// is answered or given up. Default: 1 s.
    pub interval: Duration,
    /// The length of each. Default: 56 bytes.
    pub size: Size,
    /// How long connecting may take, and after what time a ping counts as lost, a day at most.
    /// Default: 1 s.
    pub wait: Duration,
    /// Whether each ping that the one before has not been answered for is told, before it is sent.
    /// Default: no.
    pub report_outstanding: bool,
}

impl Config {
    /// The defaults for a server.
    pub fn new(mut target: Target) -> Self {
        Self {
            transport: target.take_transport().unwrap_or(Transport::Tcp),
            target,
            source: None,
            dscp: None,
            framing: Framing::Raw,
            pattern: Pattern::Text,
            upper: false,
            count: None,
            deadline: None,
            interval: Duration::from_secs(1),
            size: Size(56),
            wait: Duration::from_secs(1),
            report_outstanding: false,
        }
    }

    /// Checks that the fields fit together.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), ConfigError> {
        match (self.pattern, self.framing) {
            (Pattern::Binary, _) if self.upper => Err(ConfigError::BinaryUpper),
            (Pattern::Binary, Framing::Lines) if self.transport == Transport::Tcp => {
                Err(ConfigError::BinaryLines)
            }
            _ if self.dscp.is_some_and(|dscp| dscp > HIGHEST_DSCP) => Err(ConfigError::Dscp),
            _ if self.source.is_some_and(|source| !self.target.may_have(source.is_ipv4())) => {
                Err(ConfigError::SourceFamily)
            }
            _ => Ok(()),
        }
    }

    /// Whether enough was answered for the server to be called healthy: one ping or, with a count
    /// and a deadline, as many as the count. The rule of `ping(8)`.
    pub fn is_met_by(&self, summary: &Summary) -> bool {
        summary.received >= self.deadline.and(self.count).unwrap_or(1)
    }
}

/// The length of a ping in bytes, headers of TCP, UDP and IP not counted, nor what frames it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(usize);

impl Size {
    /// The shortest: a header of 16 bytes, and 8 bytes of the pattern to tell messages apart.
    pub const MIN: usize = 24;
    /// The longest: what a UDP datagram over IPv4 holds.
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

/// A rule that a [`Config`] breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfigError {
    /// The binary pattern has line feeds, which would end a line.
    BinaryLines,
    /// The binary pattern has no upper case.
    BinaryUpper,
    /// The code point is over 63.
    Dscp,
    /// The server has no address of the family of the source address.
    SourceFamily,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BinaryLines => BINARY_LINES,
            Self::BinaryUpper => BINARY_UPPER,
            Self::Dscp => "a code point (DSCP) is a number from 0 to 63",
            Self::SourceFamily => {
                "the source address must be of the same family (IPv4 or IPv6) as the server's"
            }
        })
    }
}

impl std::error::Error for ConfigError {}
