//! The sockets of all tools: none of them blocks, and what is waited for ends with a [`Deadline`].

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use socket2::{Domain, Protocol, Socket, Type};

use super::Cancel;
use super::cancel::Deadline;
use super::target::{self, Attempt, Error, Target};
use crate::error::Transport;
use crate::sys::cause::{Call, explained};
use crate::sys::local;
use crate::sys::socket::{choose_port_late, is_not_now, open, set_dscp};

/// A socket that does not block, for options before it is connected.
pub(super) fn new(address: SocketAddr, transport: Transport) -> io::Result<Socket> {
    let (kind, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    open(Domain::for_address(address), kind, protocol)
}

/// Connects it or, over TCP, begins to.
///
/// # Errors
///
/// Those of connect(2), but for the lack of a local port: that is [`io::ErrorKind::AddrInUse`], and says how many
/// ports there are.
pub(super) fn begin(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    target::note_overflows();
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => Ok(()),
        Err(error) if found_no_port(&error, address) => Err(no_port()),
        outcome => outcome,
    }
}

/// Whether connect(2) found no local port. To a UDP socket it says EAGAIN, and to TCP EADDRNOTAVAIL, as it does
/// where this machine has no address that goes with that one: then it says so to UDP, too.
fn found_no_port(error: &io::Error, address: SocketAddr) -> bool {
    let is = |error: &io::Error, errno| error.raw_os_error() == Some(errno as i32);
    is(error, Errno::EAGAIN)
        || is(error, Errno::EADDRNOTAVAIL)
            && new(address, Transport::Udp)
                .and_then(|probe| probe.connect(&address.into()))
                .err()
                .is_none_or(|error| !is(&error, Errno::EADDRNOTAVAIL))
}

/// The error of a socket that finds no local port.
pub(super) fn no_port() -> io::Error {
    let sentence = match local::ports() {
        Some(ports) => format!(
            "all {ports} local ports that an address has (net.ipv4.ip_local_port_range) are taken"
        ),
        None => "all local ports are taken".to_owned(),
    };
    io::Error::new(io::ErrorKind::AddrInUse, sentence)
}

/// Whether a socket of ours found no local port, in which no server has a part.
pub(super) fn lacks_port(error: &io::Error) -> bool {
    // The system's own is about a port that was asked for.
    error.kind() == io::ErrorKind::AddrInUse && error.raw_os_error().is_none()
}

/// The address of this machine from which the system reaches `address`.
pub(super) fn source_towards(address: SocketAddr) -> Option<IpAddr> {
    let local = udp(address).and_then(|socket| socket.local_addr());
    local.ok().map(|local| local.ip())
}

/// All addresses from which `address` can be reached in the same way. A link-local one is no address without its
/// interface, and others may not be used yet.
pub(super) fn sources_towards(address: SocketAddr) -> Vec<IpAddr> {
    let beside = source_towards(address).map(local::addresses_beside).unwrap_or_default();
    let is_usable = |&ip: &IpAddr| bind_udp(SocketAddr::new(ip, 0)).is_ok();
    beside.into_iter().filter(is_usable).collect()
}

/// Has a socket send from an address of this machine. Its port is chosen at connect, when the peer's address
/// is known, where the system can wait so long: then only all four together have to be unique (ip(7)).
pub(super) fn send_from(socket: &Socket, source: IpAddr) -> io::Result<()> {
    choose_port_late(socket);
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// What packets leave this machine with; by default, what the system chooses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SourceOptions {
    /// Their source address.
    pub(super) source: Option<IpAddr>,
    /// Their code point (DSCP), 0 to 63.
    pub(super) dscp: Option<u8>,
}

impl SourceOptions {
    /// A socket that is connected to `address` or, over TCP, about to be.
    fn connect(self, address: SocketAddr, transport: Transport) -> io::Result<Socket> {
        let socket = new(address, transport).map_err(|error| explained(Call::Socket, error))?;
        if transport == Transport::Tcp {
            socket.set_tcp_nodelay(true)?;
        }
        if let Some(dscp) = self.dscp {
            set_dscp(&socket, address.is_ipv6(), dscp)?;
        }
        if let Some(source) = self.source {
            send_from(&socket, source)?;
        }
        begin(&socket, address)?;
        Ok(socket)
    }
}

/// Waits until a TCP connection is there.
fn established(socket: &Socket, deadline: Deadline<'_>) -> io::Result<()> {
    if !deadline.is_ready(socket, PollFlags::POLLOUT)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    socket.take_error()?.map_or(Ok(()), Err)
}

/// A TCP connection that has begun and sends at once, with a receive buffer of this size.
pub(super) fn begin_tcp(
    address: SocketAddr,
    receive_buffer: Option<usize>,
) -> io::Result<TcpStream> {
    let socket = new(address, Transport::Tcp)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(length) = receive_buffer {
        socket.set_recv_buffer_size(length)?;
    }
    begin(&socket, address)?;
    Ok(socket.into())
}

/// The same, once it is there.
pub(super) fn tcp(
    address: SocketAddr,
    receive_buffer: Option<usize>,
    deadline: Deadline<'_>,
) -> io::Result<TcpStream> {
    let socket = Socket::from(begin_tcp(address, receive_buffer)?);
    established(&socket, deadline)?;
    Ok(socket.into())
}

/// The same from a local address, which other sockets with SO_REUSEADDR may have, too.
#[allow(dead_code, reason = "of the tools, only states calls it")]
pub(super) fn tcp_from(
    local: SocketAddr,
    address: SocketAddr,
    deadline: Deadline<'_>,
) -> io::Result<TcpStream> {
    let socket = new(address, Transport::Tcp)?;
    socket.set_reuse_address(true)?;
    socket.bind(&local.into())?;
    begin(&socket, address)?;
    established(&socket, deadline)?;
    Ok(socket.into())
}

/// A UDP socket with a port of its own that is connected to `address`.
pub(super) fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    SourceOptions::default().connect(address, Transport::Udp).map(UdpSocket::from)
}

/// A UDP socket that is bound to `from`; with port 0, to a port that is free.
pub(super) fn bind_udp(from: SocketAddr) -> io::Result<UdpSocket> {
    let socket = new(from, Transport::Udp)?;
    match socket.bind(&from.into()) {
        Err(error) if from.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {
            Err(no_port())
        }
        bound => bound.map(|()| socket.into()),
    }
}

/// The length of the next datagram, and its sender; `None` when the time is over.
pub(super) fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    deadline: Deadline<'_>,
) -> io::Result<Option<(usize, SocketAddr)>> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if is_not_now(&error) => {}
            received => return received.map(Some),
        }
        if !deadline.is_ready(socket, PollFlags::POLLIN)? {
            return Ok(None);
        }
    }
}

/// Whether a loopback address is listened on: a connection is accepted, or a datagram is not
/// refused. On loopback the refusal is there before send(2) returns.
pub(super) fn listens(address: SocketAddr, transport: Transport, deadline: Deadline<'_>) -> bool {
    match transport {
        Transport::Tcp => tcp(address, None, deadline.sooner(Duration::from_secs(1))).is_ok(),
        Transport::Udp => listens_udp(address, deadline).is_ok(),
    }
}

/// The same over UDP, with the refusal as an error.
pub(super) fn listens_udp(address: SocketAddr, deadline: Deadline<'_>) -> io::Result<()> {
    let socket = bind_udp(SocketAddr::new(address.ip(), 0))?;
    socket.connect(address)?;
    socket.send(b"?")?;
    let refused = socket.take_error()?;
    // An answer is taken, so that it does not meet a port that is closed already.
    let _ = receive(&socket, &mut [0], deadline.sooner(Duration::from_millis(50)));
    refused.map_or(Ok(()), Err)
}

/// Sends a small datagram until something comes back.
pub(super) fn await_echo(socket: &UdpSocket, deadline: Deadline<'_>) -> io::Result<()> {
    const PROBE: &[u8] = b"evecho: are you there?\n";
    let turn = (deadline.left() / 4).max(Duration::from_millis(1));
    while !deadline.is_over() {
        socket.send(PROBE)?;
        // The same bytes, or what another service makes of them: something is there.
        if receive(socket, &mut [0; PROBE.len()], deadline.sooner(turn))?.is_some() {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

impl Target {
    /// The address to use: the only one or, of several, the first that accepts a TCP connection
    /// or echoes a datagram.
    ///
    /// # Errors
    ///
    /// When the name does not resolve, when of several addresses none answers within `timeout`, or
    /// when the run is cancelled before.
    pub fn choose(
        &self,
        transport: Transport,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<SocketAddr, Error> {
        self.try_each(transport, timeout, cancel, |address, deadline, single| match transport {
            _ if single => Ok(address),
            Transport::Tcp => tcp(address, None, deadline).map(|_| address),
            Transport::Udp => await_echo(&udp(address)?, deadline).map(|()| address),
        })
    }

    /// Connects over TCP to the first address that accepts, and returns that, too. The name, and each
    /// address that is left, get an equal share of the time that is left.
    pub(super) fn connect_tcp(
        &self,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<(TcpStream, SocketAddr), Error> {
        let options = SourceOptions::default();
        let (socket, peer) = self.connect(Transport::Tcp, options, timeout, cancel)?;
        Ok((socket.into(), peer))
    }

    /// The same over either transport: over UDP, to the address that [`Self::choose`] takes.
    pub(super) fn connect(
        &self,
        transport: Transport,
        options: SourceOptions,
        timeout: Duration,
        cancel: &Cancel,
    ) -> Result<(Socket, SocketAddr), Error> {
        self.try_each(transport, timeout, cancel, |address, deadline, single| {
            if transport == Transport::Udp && !single {
                await_echo(&options.connect(address, transport)?.into(), deadline)?;
            }
            let socket = options.connect(address, transport)?;
            if transport == Transport::Tcp {
                established(&socket, deadline)?;
            }
            let peer = socket.peer_addr()?.as_socket().unwrap_or(address);
            Ok((socket, peer))
        })
    }

    /// Calls `attempt` with each address, the end of its share of the time, and whether it is the
    /// only one, until one works out.
    fn try_each<T>(
        &self,
        transport: Transport,
        timeout: Duration,
        cancel: &Cancel,
        mut attempt: impl FnMut(SocketAddr, Deadline<'_>, bool) -> io::Result<T>,
    ) -> Result<T, Error> {
        let deadline = cancel.within(timeout);
        let addresses = self.addresses(timeout, cancel)?;
        let mut tried = Vec::new();
        for (index, &address) in addresses.iter().enumerate() {
            let share = deadline.left() / (addresses.len() - index) as u32;
            match attempt(address, cancel.within(share), addresses.len() == 1) {
                Ok(done) => return Ok(done),
                Err(_) if cancel.is_cancelled() => return Err(Error::Stopped(self.clone())),
                Err(error) => tried.push(Attempt::new(address, transport, timeout, &error)),
            }
        }
        Err(Error::Unreachable { target: self.clone(), tried })
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn sockets_leave_as_their_options_say() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = "127.0.0.9".parse().unwrap();
        let options = SourceOptions { source: Some(source), dscp: Some(46) };
        for transport in [Transport::Tcp, Transport::Udp] {
            let socket = options.connect(listener.local_addr().unwrap(), transport).unwrap();
            let local = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!((local.ip(), socket.tos_v4().unwrap()), (source, 46 << 2));
        }
    }

    #[test]
    fn listening_is_told_from_refusing() {
        let cancel = Cancel::default();
        let listens = |address, transport| listens(address, transport, cancel.within(LONG));
        // Both have the port, so that it is no other test's.
        let (tcp, udp) = loop {
            let tcp = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            tcp.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            let address = tcp.local_addr().unwrap().as_socket().unwrap();
            if let Ok(udp) = UdpSocket::bind(address) {
                break (tcp, udp);
            }
        };
        let address = udp.local_addr().unwrap();
        assert!(listens(address, Transport::Udp));
        assert!(!listens(address, Transport::Tcp));
        tcp.listen(1).unwrap();
        // Connected to itself, it takes nothing from others.
        udp.connect(address).unwrap();
        assert!(listens(address, Transport::Tcp));
        assert!(!listens(address, Transport::Udp));
    }

    #[test]
    fn the_address_that_listens_is_found_among_several() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let target: Target = format!("localhost:{}", address.port()).parse().unwrap();
        let cancel = Cancel::default();
        assert_eq!(target.connect_tcp(LONG, &cancel).unwrap().1, address);
        assert_eq!(target.choose(Transport::Tcp, LONG, &cancel).unwrap(), address);
    }

    #[test]
    fn a_refused_port_says_so() {
        // Bound and not listening: nothing else gets the port, and connecting is refused.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let target = Target::from(address);
        let error = target.connect_tcp(LONG, &Cancel::default()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{address} refused the connection; is a server running there, and on that port?"
            )
        );
    }

    #[test]
    fn a_wrong_name_ends_in_a_sentence() {
        let target: Target = "nobody.invalid:7".parse().unwrap();
        let error = target.connect_tcp(LONG, &Cancel::default()).unwrap_err().to_string();
        assert!(error.starts_with("cannot resolve 'nobody.invalid': "), "{error}");
        assert!(error.ends_with("; check the name or give an address"), "{error}");
    }

    #[test]
    fn a_silent_server_is_given_up_over_udp() {
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let cancel = Cancel::default();
        let socket = udp(address).unwrap();
        let deadline = cancel.within(Duration::from_millis(5));
        let error = await_echo(&socket, deadline).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // A single address is not asked.
        assert!(Target::from(address).choose(Transport::Udp, LONG, &cancel).is_ok());
    }
}
