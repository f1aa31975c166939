//! Opens the client's sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::Error;
use super::config::{Config, Mode};
use crate::client::target::{self, Transport};

/// Descriptors that the process needs besides the connections: standard streams, the poll, and
/// what the caller has open.
const SPARE_FILES: u64 = 64;

/// Checks that the limit of open files leaves room for `connections`.
pub(in crate::client) fn check_room(connections: u32) -> Result<(), Error> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| Error::System {
        what: "look up the limit of open files",
        error: error.into(),
    })?;
    let [allowed, possible] = [soft, hard].map(|limit| limit.saturating_sub(SPARE_FILES));
    if u64::from(connections) > allowed {
        return Err(Error::TooManyConnections { asked: connections, allowed, possible });
    }
    Ok(())
}

/// Opens sockets to one server, from its source addresses in turn.
#[derive(Debug)]
pub(super) struct Opener {
    address: SocketAddr,
    transport: Transport,
    /// Messages go out at once. A connection with a single message has nothing to wait for.
    nodelay: bool,
    sources: Vec<IpAddr>,
    turn: usize,
}

impl Opener {
    pub(super) fn new(config: &Config, first: u32) -> Self {
        let Config { address, transport, .. } = *config;
        let nodelay = transport == Transport::Tcp && config.mode != Mode::Churn;
        Self {
            address,
            transport,
            nodelay,
            sources: config.effective_sources(),
            turn: first as usize,
        }
    }

    /// A socket that does not block and is connected, or, over TCP, about to be.
    pub(super) fn open(&mut self) -> io::Result<Socket> {
        let (kind, protocol) = match self.transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
        };
        let domain = Domain::for_address(self.address);
        let socket = Socket::new(domain, kind.nonblocking(), Some(protocol))?;
        if self.nodelay {
            socket.set_tcp_nodelay(true)?;
        }
        if !self.sources.is_empty() {
            let source = self.sources[self.turn % self.sources.len()];
            self.turn += 1;
            // The port is chosen at connect, when the server's address is known: then only all
            // four together have to be unique. See ip(7).
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&self.address.into()) {
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EINPROGRESS as i32) => {}
            outcome => outcome?,
        }
        Ok(socket)
    }
}

/// The error of a run that cannot reach its server.
pub(super) fn unreachable(config: &Config, opened: u32, error: &io::Error) -> Error {
    let error = target::Error::unreachable(config.address, config.transport, config.timeout, error);
    Error::Unreachable { error, opened, asked: config.connections }
}
