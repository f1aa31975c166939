//! Binds the sockets of a server, or takes over bound ones, and sets their options.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use log::error;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::reach::Local;
use crate::address::BindAddress;
use crate::config::Config;
use crate::error::{AdoptError, BindError, Setting, Transport};
use crate::stats::Stats;
use crate::sys::OwnedFd;
use crate::sys::cause::{self, Call, Remedy, Situation};
use crate::sys::socket::{
    Lost::{Comfort, Promise},
    Refused, SHARE_PORT, SHARES_WHEN_BOUND, is_listening, listen, protocol, reset_datagram_options,
    reset_stream_options, set_datagram_options, set_stream_options, share_port,
};

/// The bound sockets of a server, still blocking.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) datagrams: Vec<UdpSocket>,
    /// What they do without, to be logged.
    pub(crate) refused: Vec<(SocketAddr, Refused)>,
    /// Whether accepted streams lack options of the listeners: those that waited before the listeners were
    /// adopted have none, and what a listener refuses a stream may take, as with MPTCP.
    pub(crate) set_accepted: bool,
}

/// The most tries to find a port that is free for TCP and for UDP.
const PICKS: usize = 32;
/// The backlog of the port for monitors.
#[cfg(feature = "daemon")]
const MONITOR_BACKLOG: u32 = 1024;

/// Binds all addresses that `config` names, on one port.
pub(crate) fn bind(config: &Config) -> Result<Sockets, BindError> {
    let ports = config.addresses().into_iter().map(|address| address.port());
    let (picked, named): (Vec<u16>, Vec<u16>) = ports.partition(|&port| port == 0);
    let mut tries = if picked.is_empty() { 1 } else { PICKS };
    // Ports that the system picked, and that only some of the sockets can have. They stay bound: the system
    // prefers some of its ports, and would pick the same ones again.
    let mut tried = Vec::new();
    loop {
        tries -= 1;
        let mut sockets = Sockets::default();
        match bind_all(config, &mut sockets) {
            Err(error) if error.source.kind() == ErrorKind::AddrInUse && tries > 0 => {
                let is_picked = |local: Local| !named.contains(&local.address.port());
                sockets.listeners.retain(|socket| Local::of(socket).is_some_and(is_picked));
                tried.append(&mut sockets.listeners);
            }
            outcome => return outcome.map(|()| sockets),
        }
    }
}

fn bind_all(config: &Config, sockets: &mut Sockets) -> Result<(), BindError> {
    let mut listeners = Vec::new();
    let addresses = config.bound();
    // The port of all addresses that have none of their own, once the system has picked it.
    let mut common_port = config.port;
    for address in &*addresses {
        let mut wanted = Wanted {
            transport: None,
            address: address.with_port(address.port.unwrap_or(common_port)),
            ipv4: Ipv4::beside(address, &addresses, config.port),
            picked: address.port.unwrap_or(config.port) == 0,
            reuse_port: config.reuse_port,
        };
        for transport in [Transport::Tcp, Transport::Udp] {
            wanted.transport = Some(transport);
            if config.serves(transport)
                && let Some(bound) = wanted.bind(sockets)?
            {
                let address = sockets.push(transport, bound);
                wanted.address.set_port(address.port());
                if transport == Transport::Tcp {
                    listeners.push(Wanted { address, ..wanted });
                }
            }
        }
        if address.port.is_none() {
            common_port = wanted.address.port();
        }
    }
    // Clients can connect only once everything is bound.
    for (listener, wanted) in sockets.listeners.iter().zip(listeners) {
        listen(listener, config.backlog).map_err(|source| {
            let mut others = sockets.locals(Transport::Tcp);
            others.retain(|other| other.address != wanted.address);
            wanted.refused(&others, (Call::Listen, source))
        })?;
    }
    Ok(())
}

/// What a server binds, as far as its config tells; port 0 stands for a free one.
pub(super) fn planned(config: &Config) -> Vec<Local> {
    let addresses = config.addresses();
    let has_ipv4 = |port| addresses.iter().any(|one| one.is_ipv4() && one.port() == port);
    let local = |&address: &SocketAddr| Local { address, only_v6: has_ipv4(address.port()) };
    addresses.iter().map(local).collect()
}

/// Binds the port for monitors. No other process shares it, even if several share the server's port: each
/// has metrics of its own.
#[cfg(feature = "daemon")]
pub(crate) fn bind_monitor(
    address: SocketAddr,
    sockets: &Sockets,
) -> Result<TcpListener, BindError> {
    let address = BindAddress::from(address).with_port(address.port());
    let picked = address.port() == 0;
    let wanted =
        Wanted { transport: None, address, ipv4: Ipv4::Included, picked, reuse_port: false };
    // What it does without is of no concern to monitors.
    let bound = wanted.bind(sockets)?;
    let Bound { socket, .. } = bound.expect("only beside other sockets nothing is left");
    let failed = |source| wanted.refused(&sockets.locals(Transport::Tcp), (Call::Listen, source));
    listen(&socket, MONITOR_BACKLOG).map_err(failed)?;
    Ok(socket.into())
}

/// A socket to bind.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// None for the port for monitors.
    transport: Option<Transport>,
    address: SocketAddr,
    ipv4: Ipv4,
    /// Whether the system picks the port.
    picked: bool,
    reuse_port: bool,
}

/// A socket that is bound, and what it does without.
struct Bound {
    socket: Socket,
    address: SocketAddr,
    without: Vec<Refused>,
}

/// What has the IPv4 addresses of the port that `::` is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ipv4 {
    /// The same socket. Where there is no IPv6, it is 0.0.0.0.
    Included,
    /// Others have some of them.
    Others,
    /// Another one has all of them: where there is no IPv6, nothing is left.
    Wildcard,
}

impl Ipv4 {
    /// Those of these addresses that are on the same port as this one.
    fn beside(address: &BindAddress, all: &[BindAddress], port: u16) -> Ipv4 {
        let port = |address: &BindAddress| address.port.unwrap_or(port);
        let same = all.iter().filter(|other| port(other) == port(address));
        let ips = same.map(|other| other.with_port(0).ip()).filter(IpAddr::is_ipv4);
        let kinds = ips.map(|ip| if ip.is_unspecified() { Ipv4::Wildcard } else { Ipv4::Others });
        kinds.max().unwrap_or(Ipv4::Included)
    }
}

impl Wanted {
    /// Opens and binds the socket. `None` where nothing is left for it.
    fn bind(mut self, own: &Sockets) -> Result<Option<Bound>, BindError> {
        let mut outcome = self.open();
        if let Err((call, error)) = &outcome
            && self.address.ip() == Ipv6Addr::UNSPECIFIED
            && cause::lacks_ipv6(*call, error)
        {
            match self.ipv4 {
                Ipv4::Included => {
                    self.address = (Ipv4Addr::UNSPECIFIED, self.address.port()).into();
                    outcome = self.open();
                }
                Ipv4::Others => {}
                Ipv4::Wildcard => return Ok(None),
            }
        }
        let own = || own.locals(self.transport.unwrap_or(Transport::Tcp));
        outcome.map(Some).map_err(|failed| self.refused(&own(), failed))
    }

    /// A port that the system picks is shared only once it is bound, where that can be: it would otherwise pick one
    /// that another server shares already.
    fn open(&self) -> Result<Bound, (Call, io::Error)> {
        let address = self.address;
        let failed = |call| move |error| (call, error);
        let is_tcp = self.transport != Some(Transport::Udp);
        let kind = if is_tcp { Type::STREAM } else { Type::DGRAM };
        let socket = Socket::new(Domain::for_address(address), kind, None);
        let socket = socket.map_err(failed(Call::Socket))?;
        let mut without = Vec::new();
        if address.is_ipv6() {
            // Whatever net.ipv6.bindv6only says.
            let lost = Promise("the system decides whether clients are served over IPv4");
            let outcome = socket.set_only_v6(self.ipv4 != Ipv4::Included);
            without.extend(Refused::of([("IPV6_V6ONLY", lost, outcome)]));
        }
        let late = self.picked && SHARES_WHEN_BOUND;
        let share = |now| {
            let share = self.reuse_port && now;
            let outcome = if share { share_port(&socket) } else { Ok(()) };
            Refused::of([(SHARE_PORT, Promise("no other process shares the port"), outcome)])
        };
        without.extend(share(!late));
        without.extend(match is_tcp {
            true => set_listener_options(&socket),
            false => set_datagram_options(&socket, address.is_ipv6()),
        });
        socket.bind(&address.into()).map_err(failed(Call::Bind))?;
        without.extend(share(late));
        let address = Local::of(&socket).map_or(address, |local| local.address);
        Ok(Bound { socket, address, without })
    }

    /// Why the socket cannot be had, beside these of our own.
    fn refused(&self, own: &[Local], (call, source): (Call, io::Error)) -> BindError {
        let &Wanted { transport, address, .. } = self;
        let (situation, detail) = self.situation(own, &source);
        let (remedy, cause) = cause::cause(call, &source, situation).unzip();
        let setting = match (remedy, transport) {
            (None | Some(Remedy::Elsewhere), _) => None,
            (_, None) => Some(Setting::Metrics),
            (Some(Remedy::Port), _) => Some(Setting::Port),
            (Some(Remedy::Address), _) => Some(Setting::Bind),
        };
        let cause = cause.map(|cause| cause.replace("{}", &detail));
        BindError { transport, address, cause, setting, source }
    }

    /// What is known beside the error, and the detail of a sentence.
    fn situation(&self, own: &[Local], error: &io::Error) -> (Situation, String) {
        let address = self.address;
        if error.kind() != ErrorKind::AddrInUse {
            return cause::situation(error, address);
        }
        let local = Local { address, only_v6: self.ipv4 != Ipv4::Included };
        let shares = self.reuse_port && !self.picked;
        match own.iter().find(|other| !shares && other.overlaps(&local)) {
            Some(other) => (Situation::Own, other.address.to_string()),
            None if self.picked => (Situation::Picked, String::new()),
            None if shares => (Situation::Shared, String::new()),
            None if self.transport.is_some() => (Situation::Alone, String::new()),
            None => (Situation::Plain, String::new()),
        }
    }
}

/// Counts and logs that a socket is gone: an error that no retry cures.
pub(super) fn note_gone(
    transport: Transport,
    address: Option<SocketAddr>,
    error: &io::Error,
    stats: &Stats,
) {
    stats.sockets_gone.increment();
    let transport = transport.name();
    let address = address.map_or_else(|| "a socket".to_owned(), |address| address.to_string());
    error!(
        event = "socket_gone",
        transport = transport,
        address = address.as_str(),
        errno = error.raw_os_error();
        "{address} ({transport}) is gone, and not served any more: {error}"
    );
}

/// Sets the options of a listener that is to be bound.
fn set_listener_options(socket: &Socket) -> Vec<Refused> {
    // A listener may be bound while connections of an earlier process are in TIME_WAIT.
    let lost = Comfort("after a restart the port may be in use for a minute");
    let reuse = [("SO_REUSEADDR", lost, socket.set_reuse_address(true))];
    Refused::of(reuse).into_iter().chain(set_stream_options(socket)).collect()
}

impl Sockets {
    /// All of them.
    pub(super) fn each(&self) -> impl Iterator<Item = SockRef<'_>> {
        let listeners = self.listeners.iter().map(SockRef::from);
        listeners.chain(self.datagrams.iter().map(SockRef::from))
    }

    /// Takes a socket that is bound, and returns its address.
    fn push(&mut self, transport: Transport, bound: Bound) -> SocketAddr {
        let Bound { socket, address, without } = bound;
        self.set_accepted |= transport == Transport::Tcp && !without.is_empty();
        self.refused.extend(without.into_iter().map(|refused| (address, refused)));
        match transport {
            Transport::Tcp => self.listeners.push(socket.into()),
            Transport::Udp => self.datagrams.push(socket.into()),
        }
        address
    }

    /// The addresses of one transport.
    fn locals(&self, transport: Transport) -> Vec<Local> {
        match transport {
            Transport::Tcp => self.listeners.iter().filter_map(Local::of).collect(),
            Transport::Udp => self.datagrams.iter().filter_map(Local::of).collect(),
        }
    }
}

/// Takes over sockets that were bound elsewhere. Sets every option again, except those that have to be set
/// before binding.
pub(crate) fn adopt(
    config: &Config,
    sockets: impl IntoIterator<Item = OwnedFd>,
) -> Result<Sockets, AdoptError> {
    let mut adopted = Sockets { set_accepted: true, ..Sockets::default() };
    for (index, fd) in sockets.into_iter().enumerate() {
        adopted.adopt(config, index, fd.into())?;
    }
    Ok(adopted)
}

impl Sockets {
    /// Sets the options of one socket, after a look at what it is.
    fn adopt(&mut self, config: &Config, index: usize, socket: Socket) -> Result<(), AdoptError> {
        let failed = |reason| move |error| AdoptError::new(index, reason, Some(error));
        let (transport, address) = inspect(index, &socket)?;
        socket.set_cloexec(true).map_err(failed("its descriptor cannot be changed"))?;
        let without = match transport {
            Transport::Tcp => {
                let mut without = reset_stream_options(&socket);
                let listening = listen(&socket, config.backlog);
                if listening.is_err() && !is_listening(&socket) {
                    return listening.map_err(failed("it cannot listen"));
                }
                let lost = Comfort("its backlog stays as it was");
                without.extend(Refused::of([("listen", lost, listening)]));
                self.listeners.push(socket.into());
                without
            }
            Transport::Udp => {
                let without = reset_datagram_options(&socket, address.is_ipv6());
                self.datagrams.push(socket.into());
                without
            }
        };
        self.refused.extend(without.into_iter().map(|refused| (address, refused)));
        Ok(())
    }
}

/// What a socket is that was bound elsewhere, and its address. Changes nothing.
pub(super) fn inspect(
    index: usize,
    socket: &Socket,
) -> Result<(Transport, SocketAddr), AdoptError> {
    let wrong = |reason| AdoptError::new(index, reason, None);
    let asked = |error| AdoptError::new(index, "its type and address cannot be read", Some(error));
    let kind = socket.r#type().map_err(asked)?;
    let address = socket.local_addr().map_err(asked)?.as_socket();
    let address = address.ok_or(wrong("it is neither IPv4 nor IPv6"))?;
    if address.port() == 0 {
        return Err(wrong("it is not bound"));
    }
    if socket.peer_addr().is_ok() {
        return Err(wrong("it is connected"));
    }
    // Where the system does not tell the protocol, it is the usual one.
    match (kind, protocol(socket)) {
        (Type::STREAM, None | Some(Protocol::TCP)) => Ok((Transport::Tcp, address)),
        (Type::DGRAM, None | Some(Protocol::UDP)) => Ok((Transport::Udp, address)),
        _ => Err(wrong("it is neither TCP nor UDP")),
    }
}
