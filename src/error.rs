//! What can go wrong, each as one sentence: texts, configurations, sockets, the server.

use std::error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;

/// Why a text cannot be read as a configuration value: one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError(String);

impl ParseError {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        ParseError(sentence.into())
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl error::Error for ParseError {}

/// Why a configuration is invalid: one sentence, which names the field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(sentence: impl Into<String>) -> Self {
        ConfigError(sentence.into())
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid configuration: {}", self.0)
    }
}

impl error::Error for ConfigError {}

/// Why a socket could not be bound: one sentence that says what to do. The error of the system is its
/// [`source`](std::error::Error::source).
#[derive(Debug)]
pub struct BindError {
    pub(crate) purpose: Purpose,
    pub(crate) address: SocketAddr,
    pub(crate) source: io::Error,
}

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Tcp,
    Udp,
    #[cfg(feature = "daemon")]
    Metrics,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError { purpose, address, source } = self;
        let (name, another, higher, one) = match purpose {
            Purpose::Tcp => ("TCP", "another `port`", "a higher `port`", "`bind` one"),
            Purpose::Udp => ("UDP", "another `port`", "a higher `port`", "`bind` one"),
            #[cfg(feature = "daemon")]
            Purpose::Metrics => (
                "`metrics`",
                "another one for `metrics`",
                "a higher one for `metrics`",
                "give `metrics` one",
            ),
        };
        write!(f, "cannot listen on {address} ({name})")?;
        match source.kind() {
            ErrorKind::AddrInUse => write!(
                f,
                ": another process has that port; stop it, or choose {another} (0 picks a free one)"
            ),
            ErrorKind::PermissionDenied => {
                write!(f, ": ports below 1024 need CAP_NET_BIND_SERVICE, or choose {higher}")
            }
            ErrorKind::AddrNotAvailable => {
                write!(f, ": this machine has no such address; {one} of those that 'ip addr' shows")
            }
            _ => Ok(()),
        }
    }
}

impl error::Error for BindError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(feature = "daemon")]
impl AdoptError {
    pub(crate) fn new(index: usize, why: &'static str) -> Self {
        AdoptError { index, why, source: None }
    }
}

/// Why a socket that was bound elsewhere cannot be served: one sentence. The error of the system,
/// where there is one, is its [`source`](std::error::Error::source).
#[derive(Debug)]
pub struct AdoptError {
    pub(crate) index: usize,
    pub(crate) why: &'static str,
    pub(crate) source: Option<io::Error>,
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AdoptError { index, why, source: _ } = self;
        write!(
            f,
            "cannot serve the inherited socket {index}: {why}; TCP listeners and UDP sockets that are bound can be served"
        )
    }
}

impl error::Error for AdoptError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

/// Why a server does not start, or ends early.
///
/// Shows one sentence for people; the error of the system behind it is its
/// [`source`](std::error::Error::source), which the sentence does not repeat.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is invalid.
    Config(ConfigError),
    /// A socket cannot be bound.
    Bind(BindError),
    /// A socket that was bound elsewhere cannot be served.
    Adopt(AdoptError),
    /// The system gives no poll, waker or signals.
    Poll(io::Error),
    /// The system refuses what the server cannot go on without, as to poll.
    Run(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(error) => error.fmt(f),
            Error::Bind(error) => error.fmt(f),
            Error::Adopt(error) => error.fmt(f),
            Error::Poll(_) => f.write_str("the server cannot be set up"),
            Error::Run(_) => f.write_str("the server cannot go on"),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            // Shown as they are: what is behind them is behind this.
            Error::Config(error) => error.source(),
            Error::Bind(error) => error.source(),
            Error::Adopt(error) => error.source(),
            Error::Poll(error) | Error::Run(error) => Some(error),
        }
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::Config(error)
    }
}

impl From<AdoptError> for Error {
    fn from(error: AdoptError) -> Self {
        Error::Adopt(error)
    }
}

impl From<BindError> for Error {
    fn from(error: BindError) -> Self {
        Error::Bind(error)
    }
}
