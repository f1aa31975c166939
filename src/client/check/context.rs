//! What a case is given: the server to ask, how long to wait, and the payloads.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::OnceLock;
use std::time::Duration;

use nix::poll::PollFlags;

use super::datagram::UdpClient;
use super::seen::Expecting;
use super::stream::TcpClient;
use super::{Config, Error, Expected, Subject};
use crate::client::Cancel;
use crate::client::cancel::Deadline;
use crate::client::harness::Stop;
use crate::client::pattern::{self, Alphabet};
use crate::client::process::{ServerProcess, Usage};
use crate::client::socket::{self, await_echo, listens_udp, udp};
use crate::client::target::{self, Attempt, Target};
use crate::error::Transport;

/// What is known about the server before the first case.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) address: SocketAddr,
    /// Its address in the other family, whether it listens there or not.
    pub(super) sibling: Option<SocketAddr>,
    pub(super) tcp: bool,
    pub(super) udp: bool,
    /// Why it is not there over TCP, or over UDP, where that is asked for.
    pub(super) no_tcp: Option<Attempt>,
    pub(super) no_udp: Option<Attempt>,
}

impl Probe {
    /// Finds the first of the target's addresses that listens.
    pub(super) fn target(target: &Target, config: &Config, cancel: &Cancel) -> Result<Self, Error> {
        let addresses = target.addresses(config.timeout, cancel).map_err(Error::Target)?;
        let share = config.timeout / addresses.len() as u32;
        let mut tried = Vec::new();
        for &address in &addresses {
            let other =
                addresses.iter().copied().find(|other| other.is_ipv4() != address.is_ipv4());
            let sibling = other.or_else(|| loopback_sibling(address));
            let probe = Self::of(address, sibling, config, share, cancel);
            // Then it is not known whether the server is there over both.
            let lacks_port = [&probe.no_tcp, &probe.no_udp]
                .map(|no| no.as_ref().is_some_and(|attempt| attempt.kind == ErrorKind::AddrInUse));
            if lacks_port == [false; 2] && (probe.tcp || probe.udp) {
                return Ok(probe);
            }
            tried.extend(probe.failures());
        }
        let target = target.clone();
        Err(Error::Target(match cancel.is_cancelled() {
            true => target::Error::Stopped(target),
            false => target::Error::Unreachable { target, tried },
        }))
    }

    /// Looks at a server that has just begun to listen on loopback.
    pub(super) fn started(address: SocketAddr, config: &Config, cancel: &Cancel) -> Self {
        // Its other transport may be bound a moment later than the first.
        const A_MOMENT: Duration = Duration::from_secs(1);
        let sibling = loopback_sibling(address);
        let look = || Self::of(address, sibling, config, config.timeout, cancel);
        let all = || Some(look()).filter(|probe| probe.no_tcp.is_none() && probe.no_udp.is_none());
        cancel.within(A_MOMENT).find(all).unwrap_or_else(look)
    }

    fn of(
        address: SocketAddr,
        sibling: Option<SocketAddr>,
        config: &Config,
        share: Duration,
        cancel: &Cancel,
    ) -> Self {
        let failure = |transport, share, asked: &dyn Fn(Deadline<'_>) -> io::Result<()>| {
            let asked = config.asks(transport).then(|| asked(cancel.within(share)));
            let attempt = |error| Attempt::new(address, transport, share, &error);
            (matches!(asked, Some(Ok(()))), asked.and_then(Result::err).map(attempt))
        };
        let (tcp, no_tcp) = failure(Transport::Tcp, share, &|deadline| {
            socket::tcp(address, None, deadline).map(drop)
        });
        let (udp, no_udp) =
            failure(Transport::Udp, share.min(SILENCE), &|deadline| find_udp(address, deadline));
        Self { address, sibling, tcp, udp, no_tcp, no_udp }
    }

    /// Why it is there over neither transport. Silence over UDP adds nothing to what TCP says.
    fn failures(self) -> impl Iterator<Item = Attempt> {
        let Self { no_tcp, no_udp, .. } = self;
        let no_udp = no_udp.filter(|udp| {
            let differs = |tcp: &Attempt| udp.kind != ErrorKind::TimedOut && udp != tcp;
            no_tcp.as_ref().is_none_or(differs)
        });
        no_tcp.into_iter().chain(no_udp)
    }
}

/// How long an answer over UDP may take before the first case.
const SILENCE: Duration = Duration::from_secs(1);
/// How often a first client is answered before a second one counts as passed over.
const PASSED_OVER: u32 = 50;
/// How long the second one may take each time.
const LOOK: Duration = Duration::from_millis(40);

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
fn find_udp(address: SocketAddr, deadline: Deadline<'_>) -> io::Result<()> {
    match address.ip().is_loopback() {
        true => listens_udp(address, deadline),
        false => udp(address).and_then(|socket| await_echo(&socket, deadline)),
    }
}

/// A case's view of the server. It is made anew for each case.
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) probe: &'a Probe,
    /// When the case gives up.
    pub(super) deadline: Deadline<'a>,
    pub(super) pid: Option<u32>,
    /// See [`Self::served`].
    pub(super) served: &'a OnceLock<Result<bool, String>>,
    /// What is worth to be known about a server that keeps the rule.
    pub(super) remark: &'a OnceLock<String>,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        config: &'a Config,
        probe: &'a Probe,
        pid: Option<u32>,
        served: &'a OnceLock<Result<bool, String>>,
        remark: &'a OnceLock<String>,
        cancel: &'a Cancel,
    ) -> Self {
        let deadline = cancel.within(config.timeout);
        Self { config, probe, deadline, pid, served, remark }
    }

    pub(super) fn remark(&self, remark: String) {
        let _ = self.remark.set(remark);
    }

    /// Whether a second TCP client is answered while a first is connected: not so where the first is answered many
    /// times meanwhile, and the second as soon as the first has left. Or why not even the first is answered. It is
    /// asked once.
    pub(super) fn served(&self) -> &Result<bool, String> {
        self.served.get_or_init(|| {
            let deadline = self.deadline.cancel.within(self.config.timeout);
            let connect = || TcpClient::connect(self.address(), deadline);
            let Some(mut first) = self.probe.tcp.then(connect).and_then(Result::ok) else {
                return Ok(true);
            };
            let bytes = payload(50, 100);
            first.exchange(&bytes).map_err(|seen| seen.to_string())?;
            let waits_for_the_first = || -> Result<bool, Stop> {
                let mut second = connect()?;
                second.send(&bytes)?;
                let look = (self.config.timeout / 2 / PASSED_OVER).min(LOOK);
                for _ in 0..PASSED_OVER {
                    if second.wait(PollFlags::POLLIN, look) {
                        // What is not read would become an RST, which not every server survives.
                        let _ = second.converse(&[], &bytes);
                        return Ok(false);
                    }
                    first.exchange(&bytes[..10])?;
                }
                drop(first);
                second.converse(&[], &bytes).map(|()| true)
            };
            Ok(!waits_for_the_first().unwrap_or(false))
        })
    }

    pub(super) fn serves_one_by_one(&self) -> bool {
        *self.served() == Ok(false)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.probe.address
    }

    /// What the server has to answer to `bytes`.
    pub(super) fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        match self.config.service {
            Expected::Echo => bytes.to_vec(),
            Expected::Upper => upper(bytes),
        }
    }

    /// A connection to the server that gives up when the case does.
    pub(super) fn connect(&self) -> Result<TcpClient<'a>, Stop> {
        TcpClient::connect(self.address(), self.deadline).expecting("the connection is accepted")
    }

    /// A connection whose receive buffer is small, so that it is soon full when not read.
    pub(super) fn connect_narrow(&self) -> Result<TcpClient<'a>, Stop> {
        TcpClient::connect_with(self.address(), Some(4 << 10), self.deadline)
            .expecting("the connection is accepted")
    }

    /// A UDP socket that asks the server.
    pub(super) fn udp_client(&self) -> Result<UdpClient<'a>, Stop> {
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

    /// What the server uses now, or that it is gone.
    pub(super) fn usage(&self) -> Result<Usage, Stop> {
        let pid = self.pid.expect("the case needs the process");
        Usage::of(pid).map_err(|error| {
            Stop::failed("the server goes on serving", format!("process {pid}: {error}"))
        })
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
        let start = self.config.start(Some(transport), self.deadline.cancel);
        let start = super::Start { descriptors, ..start };
        let server = command
            .start(&start)
            .map_err(|error| Stop::skipped(format!("no fresh server: {error}")))?;
        let address = server.address();
        let probe = Probe { address, sibling: loopback_sibling(address), ..self.probe.clone() };
        Ok((server, probe))
    }
}

/// `length` bytes that differ from place to place and from stream to stream, none of them a small letter,
/// so that the upper-case service echoes them too.
pub(super) fn payload(stream: u32, length: usize) -> Vec<u8> {
    let period = pattern::PERIOD.min(length);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(Alphabet::Capitals.slice(stream, 0, period));
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
