//! The server that a tool talks to: `HOST:PORT`, resolved to all its addresses.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::Cancel;
use super::cancel::{Deadline, TICK};
use crate::address::{BindAddress, host_and_port, literal};
use crate::config::DEFAULT_PORT;
use crate::error::{ParseError, Transport};
use crate::sys::socket::{is_unreachable, listen_overflows};
use crate::units;

pub use super::cancel::LONGEST_WAIT;

/// Which addresses of a name are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Family {
    /// All of them.
    #[default]
    Any,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

impl Family {
    fn has(self, address: &SocketAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// The name or address of a server and its port, not yet resolved.
///
/// It reads as `HOST` or `HOST:PORT`; without a port it is 12000. A scheme, `tcp://` or `udp://`, and a
/// slash at the end may stand around it. An IPv6 address may have a zone, and needs its brackets in front
/// of a port alone: `::1:7` is an address, and port 12000.
///
/// ```
/// use evecho::client::target::Target;
///
/// let target: Target = "[::1]:7".parse()?;
/// assert_eq!((target.host(), target.port()), ("::1", 7));
/// for text in ["localhost", "::1", "fe80::1%eth0", "[fe80::1%eth0]:7", "tcp://localhost:7", "UDP://[::1]/"] {
///     text.parse::<Target>()?;
/// }
/// assert_eq!("::1:7".parse::<Target>()?.to_string(), "[::1:7]:12000");
/// # Ok::<(), evecho::ParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    transport: Option<Transport>,
    host: String,
    port: u16,
    family: Family,
}

impl Target {
    /// Takes off the scheme, and returns the transport that it named. The configurations of the tools do
    /// so, and have the transport in a field of their own.
    pub fn take_transport(&mut self) -> Option<Transport> {
        self.transport.take()
    }

    /// The name or address, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port: 1 to 65,535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same server, reached over this family only.
    #[must_use]
    pub fn with_family(self, family: Family) -> Self {
        Self { family, ..self }
    }

    /// Whether it may have an address of IPv4, or else of IPv6.
    pub(super) fn may_have(&self, ipv4: bool) -> bool {
        let family = if ipv4 { Family::V4 } else { Family::V6 };
        let named = self.literal().and_then(Result::ok);
        (self.family == Family::Any || self.family == family)
            && named.is_none_or(|address| family.has(&address))
    }

    /// All addresses of the target, in the order in which the system prefers them (RFC 6724).
    ///
    /// # Errors
    ///
    /// When the name is unknown or has no address of the family, when there is no such zone, when the
    /// system refuses a thread, or when its resolver has no answer within `timeout`, or before the run is
    /// cancelled.
    pub fn addresses(&self, timeout: Duration, cancel: &Cancel) -> Result<Vec<SocketAddr>, Error> {
        let found = match self.literal() {
            Some(address) => address.map(|address| vec![address]),
            None => self.resolve(cancel.within(timeout))?,
        };
        if found.is_err() && cancel.is_cancelled() {
            return Err(Error::Stopped(self.clone()));
        }
        let mut addresses = Vec::new();
        for address in found.map_err(|error| Error::unknown(self, timeout, &error))? {
            if self.family.has(&address) && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            let reason = match self.family {
                Family::Any => "it has no address",
                Family::V4 => "it has no IPv4 address",
                Family::V6 => "it has no IPv6 address",
            };
            return Err(Error::unknown(self, timeout, &io::Error::other(reason)));
        }
        Ok(addresses)
    }

    /// The address, where the host is one and no name.
    fn literal(&self) -> Option<io::Result<SocketAddr>> {
        let address = literal(&self.host)?;
        Some(address.map(|address| address.with_port(self.port)).map_err(io::Error::other))
    }

    /// Asks the system's resolver; what that says.
    fn resolve(&self, deadline: Deadline<'_>) -> Result<io::Result<Vec<SocketAddr>>, Error> {
        // The resolver cannot be interrupted: it gets a thread, and we stop waiting for that.
        let (host, port) = (self.host.clone(), self.port);
        let (sender, answer) = mpsc::sync_channel(1);
        thread::Builder::new()
            .spawn(move || sender.send((host.as_str(), port).to_socket_addrs()))
            .map_err(|error| Error::NoThread { target: self.clone(), error })?;
        loop {
            match answer.recv_timeout(deadline.left().min(TICK)) {
                Ok(found) => return Ok(found.map(Iterator::collect)),
                Err(RecvTimeoutError::Timeout) if !deadline.is_over() => {}
                Err(_) => return Ok(Err(io::ErrorKind::TimedOut.into())),
            }
        }
    }
}

impl FromStr for Target {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (scheme, rest) =
            text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
        let transport = match scheme.map(str::to_ascii_lowercase).as_deref() {
            None => None,
            Some("tcp") => Some(Transport::Tcp),
            Some("udp") => Some(Transport::Udp),
            Some(scheme) => {
                return Err(ParseError::new(format!(
                    "'{text}' has the scheme '{scheme}'; write tcp:// or udp:// or neither"
                )));
            }
        };
        let (host, port) = host_and_port(rest.strip_suffix('/').unwrap_or(rest))?;
        if port == Some(0) {
            return Err(ParseError::new(format!("'{text}' has port 0, where no server listens")));
        }
        let port = port.unwrap_or(DEFAULT_PORT);
        Ok(Self { transport, host: host.to_owned(), port, family: Family::Any })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { transport, host, port, .. } = self;
        if let Some(transport) = transport {
            write!(f, "{}://", transport.name().to_ascii_lowercase())?;
        }
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        let host = BindAddress { port: None, ..address.into() }.to_string();
        Self { transport: None, host, port: address.port(), family: Family::Any }
    }
}

/// Why a target cannot be reached: one sentence that says what was tried and what to do.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The name has no address.
    Unknown {
        /// The server.
        target: Target,
        /// What the resolver said.
        reason: String,
    },
    /// The system refuses the thread that asks the resolver.
    NoThread {
        /// The server.
        target: Target,
        /// What the system said.
        error: io::Error,
    },
    /// No address of the target answered.
    Unreachable {
        /// The server.
        target: Target,
        /// Each address that was tried, in order: never empty.
        tried: Vec<Attempt>,
    },
    /// The run was cancelled before the server was reached.
    Stopped(Target),
}

impl Error {
    fn unknown(target: &Target, timeout: Duration, error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::TimedOut => {
                format!("the resolver did not answer within {}", units::time(timeout))
            }
            _ => {
                let text = error.to_string();
                text.strip_prefix("failed to lookup address information: ")
                    .map_or(text.clone(), str::to_owned)
            }
        };
        Self::Unknown { target: target.clone(), reason }
    }

    /// What was tried and how it failed, without what to do about it.
    pub fn fact(&self) -> impl fmt::Display {
        fmt::from_fn(move |f| match self {
            Self::Unknown { target, reason } => {
                write!(f, "cannot resolve '{}': {reason}", target.host)
            }
            Self::NoThread { target, error } => {
                write!(f, "cannot start a thread to resolve '{}': {error}", target.host)
            }
            Self::Unreachable { target, tried } => {
                if target.literal().is_none() {
                    write!(f, "cannot reach {target}: ")?;
                }
                for (index, attempt) in tried.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{attempt}")?;
                }
                Ok(())
            }
            Self::Stopped(target) => write!(f, "stopped before {target} was reached"),
        })
    }

    /// Whether an answer was waited for in vain.
    pub(super) fn is_timeout(&self) -> bool {
        let last = |tried: &Vec<Attempt>| tried.last().map(|attempt| attempt.kind);
        matches!(self, Self::Unreachable { tried, .. } if last(tried) == Some(io::ErrorKind::TimedOut))
    }

    /// Says how a tool failed that talked to one address by itself.
    pub(super) fn unreachable(
        address: SocketAddr,
        transport: Transport,
        timeout: Duration,
        error: &io::Error,
    ) -> Self {
        let tried = vec![Attempt::new(address, transport, timeout, error)];
        Self::Unreachable { target: address.into(), tried }
    }
}

/// One address that could not be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// The address.
    pub address: SocketAddr,
    /// How it failed.
    pub kind: io::ErrorKind,
    /// The rest of the sentence that the address begins.
    reason: String,
    /// What to do about it.
    advice: &'static str,
}

/// What to say of a server on this machine that lets connections wait for TCP to try again.
pub(super) const FULL_QUEUE: &str = "its queue of new connections was full (ListenOverflows has risen): it \
                                     accepts slowly, or its backlog is short";

/// [`listen_overflows`] before the first connection of this process.
static OVERFLOWS: OnceLock<u64> = OnceLock::new();

/// Is called before a connection, so that an [`Attempt`] can tell a full queue from a silent host.
pub(super) fn note_overflows() {
    OVERFLOWS.get_or_init(listen_overflows);
}

/// Whether a queue of a listener has been full since then, and this may be the listener.
pub(super) fn has_overflowed(address: SocketAddr) -> bool {
    let is_local = || UdpSocket::bind(SocketAddr::new(address.ip(), 0)).is_ok();
    OVERFLOWS.get().is_some_and(|&before| listen_overflows() > before) && is_local()
}

impl Attempt {
    pub(super) fn new(
        address: SocketAddr,
        transport: Transport,
        timeout: Duration,
        error: &io::Error,
    ) -> Self {
        use io::ErrorKind::{
            AddrInUse, ConnectionRefused, HostUnreachable, InvalidInput, NetworkUnreachable,
            PermissionDenied, TimedOut,
        };
        const SERVER: &str = "is a server running there, and on that port?";
        const WAY: &str = "check the host, the port and any firewall on the way";
        const ROUTE: &str = "check the address and the route to it";
        const PORTS: &str = "use more source addresses, or wait: TCP keeps a port for a minute after its connection";
        let is_unreachable = is_unreachable(error);
        let (reason, advice) = match error.kind() {
            ConnectionRefused if transport == Transport::Udp => {
                (": nothing listens on that UDP port (ICMP port unreachable)".to_owned(), SERVER)
            }
            ConnectionRefused => (" refused the connection".to_owned(), SERVER),
            TimedOut => {
                let is_full = transport == Transport::Tcp && has_overflowed(address);
                let reason = format!(" did not answer within {}", units::time(timeout));
                (reason, if is_full { FULL_QUEUE } else { WAY })
            }
            InvalidInput if is_without_zone(address) => {
                (" needs its interface, as in fe80::1%eth0".to_owned(), ROUTE)
            }
            // A route of the type blackhole gives EINVAL, and of the type prohibit EACCES (ip-route(8)).
            HostUnreachable | NetworkUnreachable | InvalidInput => {
                (" cannot be reached from here".to_owned(), ROUTE)
            }
            PermissionDenied if is_unreachable => {
                let reason = " cannot be reached: this machine forbids it (a route, a firewall, \
                              a sandbox, or a broadcast address)";
                (reason.to_owned(), ROUTE)
            }
            AddrInUse => (format!(" cannot be connected to: {error}"), PORTS),
            _ if is_unreachable => (format!(" cannot be reached from here ({error})"), ROUTE),
            _ => (format!(" failed ({error})"), ROUTE),
        };
        let kind = if is_unreachable { HostUnreachable } else { error.kind() };
        Self { address, kind, reason, advice }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address, self.reason)
    }
}

/// Whether the interface of a link-local address is not said (RFC 4007).
fn is_without_zone(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = match self {
            Self::Unknown { .. } => "check the name or give an address",
            Self::NoThread { .. } => "raise the limit on processes, or give an address",
            Self::Unreachable { tried, .. } => tried.last().map_or("", |attempt| attempt.advice),
            Self::Stopped(_) => return self.fact().fmt(f),
        };
        write!(f, "{}; {advice}", self.fact())
    }
}

/// It says all that it knows: what the system said is a part of the sentence, and no source.
impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn targets_read_as_people_write_them() {
        for (text, whole) in [
            ("localhost", "localhost:12000"),
            ("localhost:7", "localhost:7"),
            ("localhost/", "localhost:12000"),
            ("127.0.0.1", "127.0.0.1:12000"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
            ("::1", "[::1]:12000"),
            ("fd77::2", "[fd77::2]:12000"),
            ("::1:7", "[::1:7]:12000"),
            ("[::1]", "[::1]:12000"),
            ("[::1]:12000", "[::1]:12000"),
            ("fe80::1%lo", "[fe80::1%lo]:12000"),
            ("[fe80::1%lo]:7", "[fe80::1%lo]:7"),
            ("tcp://localhost:7", "tcp://localhost:7"),
            ("udp://[::1]:7/", "udp://[::1]:7"),
            ("TCP://fe80::1%lo/", "tcp://[fe80::1%lo]:12000"),
            ("Udp://localhost", "udp://localhost:12000"),
        ] {
            assert_eq!(target(text).to_string(), whole, "{text}");
        }
    }

    #[test]
    fn a_scheme_names_the_transport() {
        let mut udp = target("udp://localhost:7");
        assert_eq!(udp.take_transport(), Some(Transport::Udp));
        assert_eq!((udp.take_transport(), udp), (None, target("localhost:7")));
    }

    proptest! {
        #[test]
        fn a_target_is_read_as_it_is_printed(
            text in "((tcp|UDP)://)?([a-z0-9.-]{1,9}|\\[?[0-9a-f:]{2,9}(%[a-z0-9]{1,4})?\\]?)(:[0-9]{1,6})?/?|.{0,20}",
        ) {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse(), Ok(target));
            }
        }
    }

    #[test]
    fn a_zone_is_an_interface_by_name_or_number() {
        let zones = ["[fe80::1%lo]:7", "[fe80::1%1]:7"].map(|text| {
            let [SocketAddr::V6(address)] =
                target(text).addresses(LONG, &Cancel::default()).unwrap()[..]
            else {
                panic!("{text} has one address")
            };
            assert_eq!((address.ip().to_string(), address.port()), ("fe80::1".to_owned(), 7));
            address.scope_id()
        });
        assert_eq!(zones, [1, 1], "lo is the first interface of every machine");
        let error = target("[fe80::1%nowhere]:7")
            .addresses(LONG, &Cancel::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no network interface 'nowhere'"), "{error}");
        let address: SocketAddr = "[fe80::1%1]:7".parse().unwrap();
        assert_eq!(Target::from(address).addresses(LONG, &Cancel::default()).unwrap(), [address]);
    }

    #[test]
    fn a_family_keeps_the_other_away() {
        let localhost = target("localhost:7").with_family(Family::V4);
        assert_eq!(
            localhost.addresses(LONG, &Cancel::default()).unwrap(),
            ["127.0.0.1:7".parse().unwrap()]
        );
        for (text, family, reason) in [
            ("127.0.0.1:7", Family::V6, "it has no IPv6 address"),
            ("[::1]:7", Family::V4, "it has no IPv4 address"),
        ] {
            let error = target(text)
                .with_family(family)
                .addresses(LONG, &Cancel::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn what_is_no_target_is_explained() {
        for (text, why) in [
            ("localhost:0", "port 0"),
            ("localhost:70000", "no port up to 65535"),
            ("", "no host"),
            ("[::1:7", "brackets that do not enclose"),
            ("http://host:7", "tcp:// or udp://"),
            ("udp://", "no host"),
            ("tcp://udp://host", "a path"),
            ("host:7/path", "a path"),
            ("user@host:7", "a user"),
            ("a b:7", "white space"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_has_all_its_addresses_once() {
        let addresses = target("localhost:7").addresses(LONG, &Cancel::default()).unwrap();
        assert!(addresses.contains(&"127.0.0.1:7".parse().unwrap()), "{addresses:?}");
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
    }

    #[test]
    fn every_attempt_is_named() {
        let error = Error::Unreachable {
            target: target("name:7"),
            tried: ["[2001:db8::1]:7", "192.0.2.1:7"]
                .map(|address| {
                    let timed_out = io::ErrorKind::TimedOut.into();
                    let address = address.parse().unwrap();
                    Attempt::new(address, Transport::Tcp, Duration::from_secs(2), &timed_out)
                })
                .to_vec(),
        };
        assert_eq!(
            error.to_string(),
            "cannot reach name:7: [2001:db8::1]:7 did not answer within 2 s, 192.0.2.1:7 did not answer \
             within 2 s; check the host, the port and any firewall on the way"
        );
    }
}
