//! Binds the sockets of a server, or takes over bound ones, and sets their options.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::address::BindAddress;
use crate::config::Config;
use crate::error::{AdoptError, BindError, Purpose};
use crate::sys::OwnedFd;
use crate::sys::socket::{lacks_ipv6, listen, set_datagram_options, set_stream_options};

/// The bound sockets of a server, still blocking.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) datagrams: Vec<UdpSocket>,
}

/// The most tries to find a port that is free for TCP and for UDP.
const PICKS: usize = 32;
/// The backlog of the port for monitors.
#[cfg(feature = "daemon")]
const MONITOR_BACKLOG: u32 = 1024;

/// Binds all addresses that `config` names, on one port.
pub(crate) fn bind(config: &Config) -> Result<Sockets, BindError> {
    let picked = config.port == 0 || config.bind.iter().any(|one| one.port == Some(0));
    let mut tries = if picked { PICKS } else { 1 };
    loop {
        tries -= 1;
        match bind_all(config) {
            // The system picked a port that only some of the sockets can have.
            Err(error) if error.source.kind() == ErrorKind::AddrInUse && tries > 0 => {}
            outcome => return outcome,
        }
    }
}

fn bind_all(config: &Config) -> Result<Sockets, BindError> {
    let mut sockets = Sockets { listeners: Vec::new(), datagrams: Vec::new() };
    let everywhere = config.bind.is_empty().then(wildcard);
    // The port of all addresses that have none of their own, once the system has picked it.
    let mut common_port = config.port;
    for address in everywhere.iter().chain(&config.bind) {
        let mut bound = address.with_port(address.port.unwrap_or(common_port));
        if config.transport.tcp() {
            let listener = TcpListener::from(open(config, Purpose::Tcp, bound)?);
            bound = listener.local_addr().unwrap_or(bound);
            sockets.listeners.push(listener);
        }
        if config.transport.udp() {
            let socket = UdpSocket::from(open(config, Purpose::Udp, bound)?);
            bound = socket.local_addr().unwrap_or(bound);
            sockets.datagrams.push(socket);
        }
        if address.port.is_none() {
            common_port = bound.port();
        }
    }
    // Clients can connect only once everything is bound.
    for listener in &sockets.listeners {
        listen(listener, config.backlog).map_err(|source| {
            let address = listener.local_addr().unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into());
            BindError { purpose: Purpose::Tcp, address, source }
        })?;
    }
    Ok(sockets)
}

/// Every interface: IPv4 and IPv6, or IPv4 where this machine has no IPv6.
fn wildcard() -> BindAddress {
    match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Err(error) if lacks_ipv6(&error) => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Opens and binds one socket. Where no address is given, an IPv6 one is for IPv4, too.
fn open(config: &Config, purpose: Purpose, address: SocketAddr) -> Result<Socket, BindError> {
    let is_tcp = purpose == Purpose::Tcp;
    let open = || {
        let kind = if is_tcp { Type::STREAM } else { Type::DGRAM };
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(!config.bind.is_empty())?;
        }
        socket.set_reuse_port(config.reuse_port)?;
        if is_tcp {
            // A listener may be bound while connections of an earlier process are in TIME_WAIT.
            socket.set_reuse_address(true)?;
            set_stream_options(&socket)?;
        } else {
            set_datagram_options(&socket, address.is_ipv6())?;
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    open().map_err(|source| BindError { purpose, address, source })
}

/// Binds the port for monitors. No other process shares it, even if several share the server's port: each
/// has metrics of its own.
#[cfg(feature = "daemon")]
pub(crate) fn bind_monitor(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        set_stream_options(&socket)?;
        socket.bind(&address.into())?;
        listen(&socket, MONITOR_BACKLOG)?;
        Ok(socket.into())
    };
    bind().map_err(|source| BindError { purpose: Purpose::Metrics, address, source })
}

/// Takes over sockets that were bound elsewhere. Sets every option again, except those that have to be set
/// before binding.
pub(crate) fn adopt(
    config: &Config,
    sockets: impl IntoIterator<Item = OwnedFd>,
) -> Result<Sockets, AdoptError> {
    let mut adopted = Sockets { listeners: Vec::new(), datagrams: Vec::new() };
    for (index, fd) in sockets.into_iter().enumerate() {
        let socket = Socket::from(fd);
        match adopt_one(config, index, &socket)? {
            Type::STREAM => adopted.listeners.push(socket.into()),
            _ => adopted.datagrams.push(socket.into()),
        }
    }
    Ok(adopted)
}

/// Checks what one socket is, and sets its options. Returns its type.
fn adopt_one(config: &Config, index: usize, socket: &Socket) -> Result<Type, AdoptError> {
    let wrong = |reason| AdoptError::new(index, reason, None);
    let refused = |reason| move |error| AdoptError::new(index, reason, Some(error));
    let asked = refused("its type and address cannot be read");
    let kind = socket.r#type().map_err(asked)?;
    let address = socket.local_addr().map_err(asked)?.as_socket();
    let address = address.ok_or(wrong("it is neither IPv4 nor IPv6"))?;
    if address.port() == 0 {
        return Err(wrong("it is not bound"));
    }
    if socket.peer_addr().is_ok() {
        return Err(wrong("it is connected"));
    }
    socket.set_cloexec(true).map_err(asked)?;
    let protocol = socket.protocol().map_err(asked)?;
    match (kind, protocol) {
        (Type::STREAM, Some(Protocol::TCP | Protocol::MPTCP)) => {
            set_stream_options(socket).map_err(refused("it does not take the options of TCP"))?;
            listen(socket, config.backlog).map_err(refused("it cannot listen"))?;
        }
        (Type::DGRAM, Some(Protocol::UDP)) => set_datagram_options(socket, address.is_ipv6())
            .map_err(refused("it does not take the options of UDP"))?,
        _ => return Err(wrong("it is neither TCP nor UDP")),
    }
    Ok(kind)
}
