//! What a case is given: whom to ask, how long to wait, and the payloads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::datagram::UdpClient;
use super::seen::Expecting;
use super::stream::TcpClient;
use super::{Access, Config, Error, Service, Stop, Subject};
use crate::client::pattern;
use crate::client::process::{ServerProcess, Usage, listens};
use crate::client::target::{Target, Transport};

/// What is known about the server before the first case.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) address: SocketAddr,
    /// Its address in the other family, whether it listens there or not.
    pub(super) sibling: Option<SocketAddr>,
    pub(super) tcp: bool,
    pub(super) udp: bool,
    /// Why it is not graded over TCP, or over UDP, where it is not.
    pub(super) no_tcp: &'static str,
    pub(super) no_udp: &'static str,
}

impl Probe {
    /// Finds the first of the target's addresses that listens.
    pub(super) fn target(target: &Target, config: &Config) -> Result<Self, Error> {
        let addresses = target.addresses(config.timeout).map_err(Error::Target)?;
        let share = config.timeout / addresses.len() as u32;
        let probes = addresses.iter().map(|&address| {
            let other =
                addresses.iter().copied().find(|other| other.is_ipv4() != address.is_ipv4());
            Self::of(address, other.or_else(|| loopback_sibling(address)), config, share)
        });
        probes
            .into_iter()
            .find(|probe| probe.tcp || probe.udp)
            .ok_or_else(|| Error::Nothing(target.clone()))
    }

    /// Looks at a server that has just begun to listen on loopback.
    pub(super) fn started(address: SocketAddr, config: &Config) -> Self {
        // Its other transport may be bound a moment later than the first.
        const A_MOMENT: Duration = Duration::from_millis(500);
        let deadline = Instant::now() + A_MOMENT;
        loop {
            let probe = Self::of(address, loopback_sibling(address), config, config.timeout);
            if config.transport.is_some() || probe.udp || Instant::now() >= deadline {
                return probe;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn of(
        address: SocketAddr,
        sibling: Option<SocketAddr>,
        config: &Config,
        share: Duration,
    ) -> Self {
        let graded = |transport| config.transport.is_none_or(|only| only == transport);
        let tcp = graded(Transport::Tcp) && TcpStream::connect_timeout(&address, share).is_ok();
        let udp = graded(Transport::Udp) && has_udp(address, share);
        let why = |graded| if graded { "nothing listens there" } else { "not asked for" };
        let no_tcp = why(graded(Transport::Tcp));
        let no_udp = why(graded(Transport::Udp));
        Self { address, sibling, tcp, udp, no_tcp, no_udp }
    }
}

/// The same port of the same machine's loopback in the other family.
fn loopback_sibling(address: SocketAddr) -> Option<SocketAddr> {
    let ip: IpAddr = match address.ip() {
        ip if !ip.is_loopback() => return None,
        IpAddr::V4(_) => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
    };
    Some(SocketAddr::new(ip, address.port()))
}

/// On loopback a socket is there when a datagram is not refused, even if it never answers. From
/// elsewhere only an answer tells.
fn has_udp(address: SocketAddr, patience: Duration) -> bool {
    if address.ip().is_loopback() {
        return listens(address, Transport::Udp);
    }
    const TRIES: u32 = 3;
    (0..TRIES).any(|_| {
        let deadline = Instant::now() + patience.min(Duration::from_secs(1)) / TRIES;
        let client = UdpClient::to(address, deadline);
        client.is_ok_and(|client| client.send(b"EVECHO?").is_ok() && client.receive().is_ok())
    })
}

/// A case's view of the server. It is made anew for each case.
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) probe: &'a Probe,
    /// When the case gives up.
    pub(super) deadline: Instant,
    pid: Option<u32>,
}

impl<'a> Context<'a> {
    pub(super) fn new(config: &'a Config, probe: &'a Probe, pid: Option<u32>) -> Self {
        Self { config, probe, deadline: Instant::now() + config.timeout, pid }
    }

    pub(super) fn access(&self) -> Access {
        match &self.config.subject {
            Subject::Address(_) => Access::None,
            Subject::Process(..) => Access::Look,
            Subject::Command(_) => Access::Start,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.probe.address
    }

    /// What the server has to answer to `bytes`.
    pub(super) fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        match self.config.service {
            Service::Echo => bytes.to_vec(),
            Service::Upper => upper(bytes),
        }
    }

    /// A connection to the server that gives up when the case does.
    pub(super) fn connect(&self) -> Result<TcpClient, Stop> {
        TcpClient::connect(self.address(), self.deadline).expecting("the connection is accepted")
    }

    /// A connection whose receive buffer is small, so that it is soon full when not read.
    pub(super) fn connect_narrow(&self) -> Result<TcpClient, Stop> {
        TcpClient::connect_narrow(self.address(), self.deadline)
            .expecting("the connection is accepted")
    }

    /// A UDP socket that asks the server.
    pub(super) fn udp_client(&self) -> Result<UdpClient, Stop> {
        UdpClient::to(self.address(), self.deadline).expecting("a socket to send datagrams from")
    }

    /// One exchange on a connection of its own or, without TCP, of one datagram.
    pub(super) fn is_served(&self) -> Result<(), Stop> {
        let bytes = payload(0, 100);
        let exchange = if self.probe.tcp {
            self.connect()?.exchange(&bytes)
        } else {
            self.udp_client()?.exchange(&bytes)
        };
        exchange.expecting("a new client is answered")
    }

    /// What the server uses now.
    pub(super) fn usage(&self) -> Result<Usage, Stop> {
        let pid = self.pid.expect("the case needs the process");
        usage_of(pid)
    }

    /// The same view of another, fresh server.
    pub(super) fn of(&self, server: &ServerProcess, probe: &'a Probe) -> Self {
        Self { pid: Some(server.pid()), probe, ..*self }
    }

    /// Starts a server for this case alone, with at most `descriptors` open files.
    pub(super) fn start(&self, descriptors: Option<u64>) -> Result<(ServerProcess, Probe), Stop> {
        let Subject::Command(command) = &self.config.subject else {
            return Err(Stop::skipped("needs a server of its own, which was not asked for"));
        };
        let transport = if self.probe.tcp { Transport::Tcp } else { Transport::Udp };
        let start = super::Start { descriptors, ..self.config.start(transport) };
        let server = command
            .start(&start)
            .map_err(|error| Stop::skipped(format!("no fresh server: {}", error.sentence())))?;
        let address = server.address();
        let probe = Probe { address, sibling: loopback_sibling(address), ..self.probe.clone() };
        Ok((server, probe))
    }
}

/// What a process uses, or that it is gone.
fn usage_of(pid: u32) -> Result<Usage, Stop> {
    Usage::of(pid).map_err(|error| {
        Stop::failed("the server goes on serving", format!("process {pid}: {error}"))
    })
}

/// `length` bytes that differ from place to place and from stream to stream, all of them
/// printable and none a small letter, so that the upper-case service echoes them too.
pub(super) fn payload(stream: u32, length: usize) -> Vec<u8> {
    let period = pattern::PERIOD.min(length);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(pattern::slice(stream, 0, period).iter().map(|byte| b' ' + (byte & 0x3f)));
    while bytes.len() < length {
        bytes.extend_from_within(..period.min(length - bytes.len()));
    }
    bytes
}

/// The upper-case service, plainly.
pub(super) fn upper(bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        answer.extend_from_slice(chunk.valid().to_uppercase().as_bytes());
        answer.extend_from_slice(chunk.invalid());
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_fixed_points_of_the_upper_case_service() {
        let bytes = payload(3, 300_000);
        assert_eq!(bytes.len(), 300_000);
        assert_eq!(upper(&bytes), bytes);
        assert_ne!(payload(4, 100), bytes[..100]);
    }

    #[test]
    fn upper_leaves_what_is_no_text() {
        assert_eq!(upper("straße, ǆ".as_bytes()), "STRASSE, Ǆ".as_bytes());
        assert_eq!(upper(b"a\xffb\xe2\x82c"), b"A\xffB\xe2\x82C");
        assert_eq!(upper(b""), b"");
    }
}
