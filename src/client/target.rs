//! The server that a tool talks to: `HOST:PORT`, resolved to all its addresses, which are tried in
//! turn.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, ToSocketAddrs, UdpSocket};
use std::str::FromStr;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use crate::config::DEFAULT_PORT;
use crate::sys::socket::is_not_now;
use crate::units;

/// The longest time that a tool waits for one thing, a day; a longer timeout is cut to it.
pub const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// What carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// A stream of bytes.
    Tcp,
    /// Datagrams.
    Udp,
}

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
/// It reads as `HOST` or `HOST:PORT`; without a port it is 12000. An IPv6 address stands in brackets
/// and may have a zone: `[fe80::1%eth0]:7`.
///
/// ```
/// use evecho::client::target::Target;
///
/// let target: Target = "[::1]:7".parse().unwrap();
/// assert_eq!((target.host(), target.port()), ("::1", 7));
/// assert_eq!(target.to_string(), "[::1]:7");
/// assert_eq!("localhost".parse::<Target>().unwrap().port(), 12000);
/// assert!("::1:7".parse::<Target>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    host: String,
    port: u16,
    family: Family,
}

impl Target {
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

    /// All addresses of the target, in the order in which the system prefers them (RFC 6724).
    ///
    /// # Errors
    ///
    /// When the name is unknown or has no address of the family, when there is no such zone, or when
    /// the system's resolver has no answer within `timeout`.
    pub fn addresses(&self, timeout: Duration) -> Result<Vec<SocketAddr>, Error> {
        let found = match self.literal() {
            Some(address) => address.map(|address| vec![address]),
            None => self.resolve(timeout.min(LONGEST_WAIT)),
        };
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
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Some(Ok(SocketAddr::new(ip, self.port)));
        }
        let (address, zone) = self.host.split_once('%')?;
        let ip: Ipv6Addr = address.parse().ok()?;
        let index = zone.parse().or_else(|_| if_nametoindex(zone)).map_err(|_| {
            io::Error::other(format!("this machine has no network interface '{zone}'"))
        });
        Some(index.map(|index| SocketAddrV6::new(ip, self.port, 0, index).into()))
    }

    /// Asks the system's resolver.
    fn resolve(&self, timeout: Duration) -> io::Result<Vec<SocketAddr>> {
        // The resolver cannot be interrupted: it gets a thread, and we stop waiting for that.
        let (host, port) = (self.host.clone(), self.port);
        let (sender, answer) = mpsc::sync_channel(1);
        thread::Builder::new()
            .spawn(move || sender.send((host.as_str(), port).to_socket_addrs()))?;
        let found =
            answer.recv_timeout(timeout).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        Ok(found.collect())
    }

    /// Connects over TCP to the first address that accepts. The name, and each address that is
    /// left, get an equal share of the time that is left.
    ///
    /// # Errors
    ///
    /// When the name does not resolve, or no address accepts within `timeout`.
    pub fn connect_tcp(&self, timeout: Duration) -> Result<TcpStream, Error> {
        self.try_each(Transport::Tcp, timeout, |address, share, _| {
            TcpStream::connect_timeout(&address, share)
        })
    }

    /// A UDP socket that is connected to the target. Where the target has several addresses, it
    /// is the first that echoes a small datagram; a single address is not asked.
    ///
    /// # Errors
    ///
    /// When the name does not resolve, or no address can be connected or answers in `timeout`.
    pub fn connect_udp(&self, timeout: Duration) -> Result<UdpSocket, Error> {
        self.try_each(Transport::Udp, timeout, |address, share, single| {
            let socket = udp_socket(address)?;
            if !single {
                await_echo(&socket, share)?;
            }
            Ok(socket)
        })
    }

    /// The address to use: the only one or, of several, the first that accepts a TCP connection
    /// or echoes a datagram.
    ///
    /// # Errors
    ///
    /// When the name does not resolve or, of several addresses, none answers within `timeout`.
    pub fn choose(&self, transport: Transport, timeout: Duration) -> Result<SocketAddr, Error> {
        self.try_each(transport, timeout, |address, share, single| match transport {
            _ if single => Ok(address),
            Transport::Tcp => TcpStream::connect_timeout(&address, share).map(|_| address),
            Transport::Udp => await_echo(&udp_socket(address)?, share).map(|()| address),
        })
    }

    /// Calls `attempt` with each address, its share of the time, and whether it is the only one,
    /// until one works out.
    fn try_each<T>(
        &self,
        transport: Transport,
        timeout: Duration,
        mut attempt: impl FnMut(SocketAddr, Duration, bool) -> io::Result<T>,
    ) -> Result<T, Error> {
        let timeout = timeout.min(LONGEST_WAIT);
        let deadline = Instant::now() + timeout;
        let addresses = self.addresses(timeout)?;
        let mut tried = Vec::new();
        for (index, &address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (addresses.len() - index) as u32;
            match attempt(address, share.max(Duration::from_millis(1)), addresses.len() == 1) {
                Ok(done) => return Ok(done),
                Err(error) => tried.push(Attempt::new(address, transport, timeout, &error)),
            }
        }
        Err(Error::Unreachable { target: self.clone(), tried })
    }
}

/// A UDP socket with a port of its own that is connected to `address`.
pub(super) fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    Ok(socket)
}

/// Sends a small datagram until something comes back, at most for `timeout`.
fn await_echo(socket: &UdpSocket, timeout: Duration) -> io::Result<()> {
    const PROBE: &[u8] = b"evecho: are you there?\n";
    let deadline = Instant::now() + timeout;
    let mut reply = [0; PROBE.len() + 1];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some((timeout / 4).max(Duration::from_millis(1)).min(left)))?;
        socket.send(PROBE)?;
        match socket.recv(&mut reply) {
            // The same bytes, or what another service makes of them: somebody is there.
            Ok(_) => return Ok(()),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a socket with a timeout says when the time is over, or a signal came in between.
fn is_timeout(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut || is_not_now(error)
}

impl FromStr for Target {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = |why| ParseError { text: text.to_owned(), why };
        let (host, port) = match text.rsplit_once(':') {
            // The colons of an address in brackets, and no port behind it.
            Some((_, after)) if after.contains(']') => (text, DEFAULT_PORT),
            None => (text, DEFAULT_PORT),
            Some((host, port)) => match port.parse() {
                Ok(0) | Err(_) => {
                    return Err(wrong("has no port from 1 to 65535 after its last colon"));
                }
                Ok(port) => (host, port),
            },
        };
        let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
            None if host.contains(':') => {
                return Err(wrong("has colons in its host: an IPv6 address stands in brackets"));
            }
            None if host.is_empty() => return Err(wrong("names no host")),
            None if host.contains(|c: char| c.is_whitespace() || "[]/@".contains(c)) => {
                return Err(wrong("is not a host name or address and a port"));
            }
            None => host,
            Some(inner) => {
                let inner = inner.ok_or_else(|| wrong("has a bracket that does not close"))?;
                let address = inner.split_once('%').map_or(inner, |(address, _zone)| address);
                if address.parse::<Ipv6Addr>().is_err() {
                    return Err(wrong("has something other than an IPv6 address in brackets"));
                }
                inner
            }
        };
        Ok(Self { host: host.to_owned(), port, family: Family::Any })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            SocketAddr::V6(address) if address.scope_id() != 0 => {
                format!("{}%{}", address.ip(), address.scope_id())
            }
            address => address.ip().to_string(),
        };
        Self { host, port: address.port(), family: Family::Any }
    }
}

/// A text that is neither `HOST` nor `HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    text: String,
    why: &'static str,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, why } = self;
        write!(f, "'{text}' {why}; write HOST or HOST:PORT, like localhost:7 or [::1]:7")
    }
}

impl std::error::Error for ParseError {}

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
    /// No address of the target answered.
    Unreachable {
        /// The server.
        target: Target,
        /// Each address that was tried, in order: never empty.
        tried: Vec<Attempt>,
    },
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
            Self::Unreachable { target, tried } => {
                if tried.iter().any(|attempt| attempt.address.to_string() != target.to_string()) {
                    write!(f, "cannot reach {target}: ")?;
                }
                for (index, attempt) in tried.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{}{}", attempt.address, attempt.reason)?;
                }
                Ok(())
            }
        })
    }

    /// Says how a tool failed that talked to one address by itself.
    pub fn unreachable(
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
}

impl Attempt {
    fn new(
        address: SocketAddr,
        transport: Transport,
        timeout: Duration,
        error: &io::Error,
    ) -> Self {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
        let kind = if is_timeout(error) { io::ErrorKind::TimedOut } else { error.kind() };
        let reason = match kind {
            ConnectionRefused if transport == Transport::Udp => {
                ": nothing listens on that UDP port (ICMP port unreachable)".to_owned()
            }
            ConnectionRefused => " refused the connection".to_owned(),
            io::ErrorKind::TimedOut => {
                format!(" did not answer within {}", units::time(timeout))
            }
            HostUnreachable | NetworkUnreachable => " cannot be reached from here".to_owned(),
            _ => format!(" failed ({error})"),
        };
        Self { address, kind, reason }
    }

    fn advice(&self) -> &'static str {
        use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, TimedOut};
        match self.kind {
            ConnectionRefused => "is a server running there, and on that port?",
            TimedOut => "check the host, the port and any firewall on the way",
            AddrNotAvailable => "no local port is free: give more source addresses, or wait",
            _ => "check the address and the route to it",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = match self {
            Self::Unknown { .. } => "check the name or give an address",
            Self::Unreachable { tried, .. } => tried.last().map_or("", Attempt::advice),
        };
        write!(f, "{}; {advice}", self.fact())
    }
}

/// It says all that it knows: what the system said is a part of the sentence, and no source.
impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const LONG: Duration = Duration::from_secs(20);

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn hosts_read_as_people_write_them() {
        for (text, host, port) in [
            ("localhost:7", "localhost", 7),
            ("127.0.0.1:65535", "127.0.0.1", 65535),
            ("[::1]:12000", "::1", 12000),
            ("[fe80::1%lo]:1", "fe80::1%lo", 1),
        ] {
            let target = target(text);
            assert_eq!((target.host(), target.port()), (host, port));
            assert_eq!(target.to_string(), text);
        }
    }

    #[test]
    fn a_host_without_a_port_is_port_12000() {
        for (text, whole) in [
            ("localhost", "localhost:12000"),
            ("127.0.0.1", "127.0.0.1:12000"),
            ("[::1]", "[::1]:12000"),
            ("[fe80::1%lo]", "[fe80::1%lo]:12000"),
        ] {
            assert_eq!(target(text), target(whole), "{text}");
        }
    }

    #[test]
    fn a_zone_is_an_interface_by_name_or_number() {
        let zones = ["[fe80::1%lo]:7", "[fe80::1%1]:7"].map(|text| {
            let [SocketAddr::V6(address)] = target(text).addresses(LONG).unwrap()[..] else {
                panic!("{text} has one address")
            };
            assert_eq!((address.ip().to_string(), address.port()), ("fe80::1".to_owned(), 7));
            address.scope_id()
        });
        assert_eq!(zones, [1, 1], "lo is the first interface of every machine");
        let error = target("[fe80::1%nowhere]:7").addresses(LONG).unwrap_err().to_string();
        assert!(error.contains("no network interface 'nowhere'"), "{error}");
        let address: SocketAddr = "[fe80::1%1]:7".parse().unwrap();
        assert_eq!(Target::from(address).addresses(LONG).unwrap(), [address]);
    }

    #[test]
    fn a_family_keeps_the_other_away() {
        let localhost = target("localhost:7").with_family(Family::V4);
        assert_eq!(localhost.addresses(LONG).unwrap(), ["127.0.0.1:7".parse().unwrap()]);
        for (text, family, reason) in [
            ("127.0.0.1:7", Family::V6, "it has no IPv6 address"),
            ("[::1]:7", Family::V4, "it has no IPv4 address"),
        ] {
            let error = target(text).with_family(family).addresses(LONG).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn what_is_no_host_and_port_is_explained() {
        for (text, why) in [
            ("localhost:", "no port from 1 to 65535"),
            ("localhost:0", "no port from 1 to 65535"),
            ("localhost:65536", "no port from 1 to 65535"),
            (":7", "no host"),
            ("", "no host"),
            ("::1:7", "brackets"),
            ("::1", "brackets"),
            ("[]", "other than an IPv6 address"),
            ("[::1]7", "does not close"),
            ("[::1:7", "does not close"),
            ("[localhost]:7", "other than an IPv6 address"),
            ("http://host:7", "colons"),
            ("user@host:7", "not a host name"),
            ("a b:7", "not a host name"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("HOST:PORT"), "{text}: {error}");
        }
    }

    #[test]
    fn a_name_has_all_its_addresses_once() {
        let addresses = target("localhost:7").addresses(LONG).unwrap();
        assert!(addresses.contains(&"127.0.0.1:7".parse().unwrap()), "{addresses:?}");
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
    }

    #[test]
    fn a_wrong_name_ends_in_a_sentence() {
        let error = target("nobody.invalid:7").connect_tcp(LONG).unwrap_err().to_string();
        assert!(error.starts_with("cannot resolve 'nobody.invalid': "), "{error}");
        assert!(error.ends_with("; check the name or give an address"), "{error}");
    }

    #[test]
    fn the_address_that_listens_is_found_among_several() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let target = target(&format!("localhost:{}", address.port()));
        assert_eq!(target.connect_tcp(LONG).unwrap().peer_addr().unwrap(), address);
        assert_eq!(target.choose(Transport::Tcp, LONG).unwrap(), address);
    }

    #[test]
    fn a_refused_port_says_so() {
        // Bound and not listening: nobody else gets the port, and connecting is refused.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let error = Target::from(address).connect_tcp(LONG).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{address} refused the connection; is a server running there, and on that port?"
            )
        );
    }

    #[test]
    fn every_attempt_is_named() {
        let error = Error::Unreachable {
            target: target("name:7"),
            tried: ["[::1]:7", "127.0.0.1:7"]
                .map(|address| {
                    let timed_out = io::ErrorKind::TimedOut.into();
                    let address = address.parse().unwrap();
                    Attempt::new(address, Transport::Tcp, Duration::from_secs(2), &timed_out)
                })
                .to_vec(),
        };
        assert_eq!(
            error.to_string(),
            "cannot reach name:7: [::1]:7 did not answer within 2 s, 127.0.0.1:7 did not answer \
             within 2 s; check the host, the port and any firewall on the way"
        );
    }

    #[test]
    fn a_silent_server_is_given_up_over_udp() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let socket = udp_socket(address).unwrap();
        let error = await_echo(&socket, Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // A single address is not asked.
        assert!(Target::from(address).connect_udp(LONG).is_ok());
    }
}
