//! The errors of the crate, each one sentence, and what they name: settings and transports.

use std::error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

macro_rules! settings {
    ($($name:ident $field:literal,)*) => {
        /// A setting of a server that an error or a record of the log is about: a field of
        /// [`Config`](crate::Config) or of a struct in it.
        ///
        /// Prints as the name of the field.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Setting {
            $(#[doc = concat!("`", $field, "`")] $name,)*
        }

        impl Setting {
            /// All settings.
            pub const ALL: &'static [Setting] = &[$(Setting::$name,)*];

            /// The name of the field.
            pub const fn field(self) -> &'static str {
                match self {
                    $(Setting::$name => $field,)*
                }
            }
        }
    };
}

settings! {
    Port "port",
    Bind "bind",
    Metrics "metrics",
    MaxFrame "max_frame",
    MaxConnections "max_connections",
    PerSourceConnections "per_source_connections",
    MaxBuffered "max_buffered",
    UdpRate "udp_rate",
    Loss "loss",
    Delay "delay",
    Jitter "jitter",
    Duplicate "duplicate",
    Reorder "reorder",
    Corrupt "corrupt",
    BusyPoll "busy_poll",
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field())
    }
}

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "client", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "client", serde(rename_all = "lowercase"))]
pub enum Transport {
    /// A stream of bytes.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Transport {
    /// `TCP` or `UDP`.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
        }
    }
}

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

/// Why a configuration is invalid: a setting, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    setting: Setting,
    reason: String,
}

impl ConfigError {
    pub(crate) fn new(setting: Setting, reason: impl Into<String>) -> Self {
        ConfigError { setting, reason: reason.into() }
    }

    /// The setting that is wrong.
    pub fn setting(&self) -> Setting {
        self.setting
    }

    /// What is wrong with it and what to do, without the name of the setting.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid configuration: `{}`: {}", self.setting, self.reason)
    }
}

impl error::Error for ConfigError {}

/// Why a socket could not be bound: one sentence that says what to do. The error of the system is its
/// [`source`](std::error::Error::source).
#[derive(Debug)]
pub struct BindError {
    /// None for the port for monitors.
    pub(crate) transport: Option<Transport>,
    pub(crate) address: SocketAddr,
    /// Why, where more is known than the error says.
    pub(crate) cause: Option<String>,
    pub(crate) setting: Option<Setting>,
    pub(crate) source: io::Error,
}

impl BindError {
    /// The setting to change, if one helps.
    pub fn setting(&self) -> Option<Setting> {
        self.setting
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purpose = self.transport.map_or("metrics", Transport::name);
        write!(f, "cannot listen on {} ({purpose})", self.address)?;
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, ": {cause}"))
    }
}

impl error::Error for BindError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Why a socket that was bound elsewhere cannot be served: one sentence. The error of the system, if
/// there is one, is its [`source`](std::error::Error::source).
#[derive(Debug)]
pub struct AdoptError {
    index: usize,
    reason: &'static str,
    source: Option<io::Error>,
}

impl AdoptError {
    pub(crate) fn new(index: usize, reason: &'static str, source: Option<io::Error>) -> Self {
        AdoptError { index, reason, source }
    }
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AdoptError { index, reason, source: _ } = self;
        write!(
            f,
            "cannot serve the inherited socket {index}: {reason}; give TCP listeners and UDP sockets that are bound"
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
/// Prints as one sentence. The error of the system behind it is its
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
    /// The system gives no poll, waker, signals or thread.
    Setup(io::Error),
    /// The system refuses what the server cannot go on without, as to poll, or none of its sockets is left.
    Run(io::Error),
}

impl Error {
    /// The setting that is wrong or that helps, if there is one.
    pub fn setting(&self) -> Option<Setting> {
        match self {
            Error::Config(error) => Some(error.setting()),
            Error::Bind(error) => error.setting(),
            Error::Adopt(_) | Error::Setup(_) | Error::Run(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Config(error) => error.fmt(f),
            Error::Bind(error) => error.fmt(f),
            Error::Adopt(error) => error.fmt(f),
            Error::Setup(_) => f.write_str("the server cannot be set up"),
            Error::Run(_) => f.write_str("the server cannot go on"),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            // Printed as they are: their source is the source of this.
            Error::Config(error) => error.source(),
            Error::Bind(error) => error.source(),
            Error::Adopt(error) => error.source(),
            Error::Setup(error) | Error::Run(error) => Some(error),
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
