//! Binds the sockets of a server, or takes over bound ones, and sets their options.

use std::io::{self, ErrorKind};
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
    let ports = config.bind.iter().map(|address| address.port().unwrap_or(config.port));
    let picked = config.port == 0 || ports.into_iter().any(|port| port == 0);
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
    let everywhere = config.bind.is_empty();
    let wildcard = [BindAddress::from(Ipv6Addr::UNSPECIFIED)];
    // The port of all addresses that have none of their own, once the system has picked it.
    let mut common_port = config.port;
    for address in if everywhere { &wildcard[..] } else { &config.bind } {
        let mut port = address.port().unwrap_or(common_port);
        if config.transport.tcp() {
            let listener: TcpListener =
                open(config, Type::STREAM, address.with_port(port), everywhere)?.into();
            port = listener.local_addr().map_or(port, |address| address.port());
            sockets.listeners.push(listener);
        }
        if config.transport.udp() {
            let socket: UdpSocket =
                open(config, Type::DGRAM, address.with_port(port), everywhere)?.into();
            port = socket.local_addr().map_or(port, |address| address.port());
            sockets.datagrams.push(socket);
        }
        if address.port().is_none() {
            common_port = port;
        }
    }
    // Clients can connect only once everything is bound.
    for listener in &sockets.listeners {
        listen(listener, config.backlog).map_err(|source| {
            let any = (Ipv4Addr::UNSPECIFIED, 0).into();
            let address = listener.local_addr().unwrap_or(any);
            BindError { purpose: Purpose::Tcp, address, source }
        })?;
    }
    Ok(sockets)
}

/// Opens one socket; `everywhere` falls back to IPv4 where there is no IPv6.
fn open(
    config: &Config,
    kind: Type,
    address: SocketAddr,
    everywhere: bool,
) -> Result<Socket, BindError> {
    let purpose = if kind == Type::STREAM { Purpose::Tcp } else { Purpose::Udp };
    let failed = |address| move |source| BindError { purpose, address, source };
    let outcome = open_at(config, kind, address, everywhere);
    match outcome {
        Err(error) if everywhere && lacks_ipv6(&error) => {
            let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            open_at(config, kind, address, everywhere).map_err(failed(address))
        }
        outcome => outcome.map_err(failed(address)),
    }
}

/// Binds the port for monitors. No other process shares it, even if several share the server's port: each
/// has metrics of its own.
#[cfg(feature = "daemon")]
pub(crate) fn bind_monitor(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
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
        let kind = adopt_one(config, &socket)
            .map_err(|(reason, source)| AdoptError::new(index, reason, source))?;
        match kind {
            Type::STREAM => adopted.listeners.push(socket.into()),
            _ => adopted.datagrams.push(socket.into()),
        }
    }
    Ok(adopted)
}

/// Checks what one socket is, and sets its options. Returns its type.
fn adopt_one(config: &Config, socket: &Socket) -> Result<Type, (&'static str, Option<io::Error>)> {
    let asked = |error| ("its type and address cannot be read", Some(error));
    let refused = |why| move |error| (why, Some(error));
    let kind = socket.r#type().map_err(asked)?;
    let address = socket.local_addr().map_err(asked)?.as_socket();
    let address = address.ok_or(("it is neither IPv4 nor IPv6", None))?;
    if address.port() == 0 {
        return Err(("it is not bound", None));
    }
    if socket.peer_addr().is_ok() {
        return Err(("it is connected", None));
    }
    socket.set_cloexec(true).map_err(asked)?;
    let protocol = socket.protocol().map_err(asked)?;
    match kind {
        _ if ![Protocol::TCP, Protocol::MPTCP, Protocol::UDP].map(Some).contains(&protocol) => {
            return Err(("it is neither TCP nor UDP", None));
        }
        Type::STREAM => {
            set_stream_options(socket).map_err(refused("it does not take the options of TCP"))?;
            listen(socket, config.backlog).map_err(refused("it cannot listen"))?;
        }
        Type::DGRAM => set_datagram_options(socket, address.is_ipv6())
            .map_err(refused("it does not take the options of UDP"))?,
        _ => return Err(("it is neither TCP nor UDP", None)),
    }
    Ok(kind)
}

fn open_at(
    config: &Config,
    kind: Type,
    address: SocketAddr,
    everywhere: bool,
) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(!everywhere)?;
    }
    if config.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if kind == Type::STREAM {
        // A listener may be bound while connections of an earlier process are in TIME_WAIT.
        socket.set_reuse_address(true)?;
        set_stream_options(&socket)?;
    } else {
        set_datagram_options(&socket, address.is_ipv6())?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
