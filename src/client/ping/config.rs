//! What to ping, and how.

use std::fmt;
use std::time::Duration;

use super::Summary;
use crate::client::target::{Target, Transport};
use crate::protocol::{Framing, MAX_DATAGRAM};

/// What to ping, and how. Made by [`Config::new`], then changed field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// The server.
    pub target: Target,
    /// What carries the pings. Default: TCP.
    pub transport: Transport,
    /// Where a ping, and its reply, ends in a TCP stream. Default: nowhere, a reply is as long as its
    /// ping. A datagram is a ping of its own.
    pub framing: Framing,
    /// The bytes of which pings are made. Default: ASCII.
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
    pub fn new(target: Target) -> Self {
        Self {
            target,
            transport: Transport::Tcp,
            framing: Framing::Raw,
            pattern: Pattern::Ascii,
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

/// Of which bytes pings are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Lower-case letters and digits: every server of text understands them.
    #[default]
    Ascii,
    /// All byte values: shows who cares about what they are.
    Binary,
}

/// A rule that a [`Config`] breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfigError {
    /// The binary pattern has line feeds, which would end a line.
    BinaryLines,
    /// The binary pattern has no upper case.
    BinaryUpper,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BinaryLines => {
                "a binary pattern cannot be framed in lines: it has line feeds in it"
            }
            Self::BinaryUpper => "a binary pattern has no upper case: use the ASCII pattern",
        })
    }
}

impl std::error::Error for ConfigError {}
