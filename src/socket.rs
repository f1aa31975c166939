//! Binds the sockets of a server with their options, and hands them over.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::address::BindAddress;
use crate::config::{ANSWER_HOP_LIMIT, Config};

/// The bound sockets of a server, blocking as yet.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) datagrams: Vec<UdpSocket>,
}

/// Why a socket could not be bound: one sentence that says what to do. The error of the system is its
/// [`source`](std::error::Error::source).
#[derive(Debug)]
pub struct BindError {
    purpose: Purpose,
    address: SocketAddr,
    source: io::Error,
}

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Tcp,
    Udp,
    #[cfg(feature = "daemon")]
    Metrics,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError { purpose, address, source } = self;
        let (name, another, higher, one) = match purpose {
            Purpose::Tcp => ("TCP", "another `port`", "a higher `port`", "`bind` one"),
            Purpose::Udp => ("UDP", "another `port`", "a higher `port`", "`bind` one"),
            #[cfg(feature = "daemon")]
            Purpose::Metrics => (
                "`metrics`",
                "another one for `metrics`",
                "a higher one for `metrics`",
                "give `metrics` one",
            ),
        };
        write!(f, "cannot listen on {address} ({name})")?;
        match source.kind() {
            ErrorKind::AddrInUse => write!(
                f,
                ": another process has that port; stop it, or choose {another} (0 picks a free one)"
            ),
            ErrorKind::PermissionDenied => {
                write!(f, ": ports below 1024 need CAP_NET_BIND_SERVICE, or choose {higher}")
            }
            ErrorKind::AddrNotAvailable => {
                write!(f, ": this machine has no such address; {one} of those that 'ip addr' shows")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// How often a port that the system picked for TCP may turn out to be taken for UDP.
const PICKS: usize = 32;
/// What is asked for; the system gives at most net.core.rmem_max and net.core.wmem_max. A burst waits
/// here, and on the way out what is for neighbours that do not answer: 208 KiB for each.
const DATAGRAM_BUFFER: usize = 4 << 20;

/// How many monitors may wait to be accepted.
#[cfg(feature = "daemon")]
const MONITOR_BACKLOG: u32 = 1024;

/// Binds all that `config` names, on one port.
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
    // Once the system has picked it, the port of all that have none of their own.
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
    // Nobody gets in before everything is bound.
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
    let no_ipv6 = |error: &io::Error| {
        use nix::errno::Errno::{EADDRNOTAVAIL, EAFNOSUPPORT};
        error
            .raw_os_error()
            .is_some_and(|code| [EADDRNOTAVAIL as i32, EAFNOSUPPORT as i32].contains(&code))
    };
    match outcome {
        Err(error) if everywhere && no_ipv6(&error) => {
            let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
            open_at(config, kind, address, everywhere).map_err(failed(address))
        }
        outcome => outcome.map_err(failed(address)),
    }
}

/// Binds the port for monitors. It is this process's alone, also where others share the server's port:
/// each has metrics of its own.
#[cfg(feature = "daemon")]
pub(crate) fn bind_monitor(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        stream_options(&socket)?;
        socket.bind(&address.into())?;
        listen(&socket, MONITOR_BACKLOG)?;
        Ok(socket.into())
    };
    bind().map_err(|source| BindError { purpose: Purpose::Metrics, address, source })
}

/// Takes over sockets that were bound elsewhere. Each gets every option again, but for those that had
/// to be set before it was bound.
pub(crate) fn adopt(
    config: &Config,
    sockets: impl IntoIterator<Item = OwnedFd>,
) -> Result<Sockets, AdoptError> {
    let mut adopted = Sockets { listeners: Vec::new(), datagrams: Vec::new() };
    for (index, fd) in sockets.into_iter().enumerate() {
        let socket = Socket::from(fd);
        match adopt_one(config, &socket).map_err(|(why, source)| AdoptError {
            index,
            why,
            source,
        })? {
            Type::STREAM => adopted.listeners.push(socket.into()),
            _ => adopted.datagrams.push(socket.into()),
        }
    }
    Ok(adopted)
}

/// The sockets that a service manager passes to this process (sd_listen_fds(3)), for
/// [`Server::adopt`](crate::Server::adopt). None where it passes none, or where LISTEN_PID names another
/// process.
///
/// To be called once, before the process has threads: it takes LISTEN_PID and LISTEN_FDS from the
/// environment, so that children do not take the sockets for theirs.
///
/// # Errors
///
/// A sentence that says which one is neither TCP nor UDP.
#[cfg(feature = "daemon")]
pub fn inherited_sockets() -> Result<Vec<OwnedFd>, AdoptError> {
    let said = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u64>().ok());
    if let Some(count) = said.filter(|&count| count > open_file_limit()) {
        let index = usize::try_from(count).unwrap_or(usize::MAX) - 1;
        return Err(AdoptError::new(index, "LISTEN_FDS counts more than can be open"));
    }
    let mut passed = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        sockets.push(match (passed.take_tcp_listener(index), passed.take_udp_socket(index)) {
            (Ok(Some(listener)), _) => listener.into(),
            (_, Ok(Some(socket))) => socket.into(),
            _ => return Err(AdoptError::new(index, "it is neither a TCP nor a UDP socket")),
        });
    }
    Ok(sockets)
}

/// Checks one socket by what it is, and sets its options; which type it has.
fn adopt_one(config: &Config, socket: &Socket) -> Result<Type, (&'static str, Option<io::Error>)> {
    let asked = |error| ("it cannot be asked what it is", Some(error));
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
            stream_options(socket).map_err(refused("it does not take the options of TCP"))?;
            listen(socket, config.backlog).map_err(refused("it cannot listen"))?;
        }
        Type::DGRAM => datagram_options(socket, address)
            .map_err(refused("it does not take the options of UDP"))?,
        _ => return Err(("it is neither TCP nor UDP", None)),
    }
    Ok(kind)
}

#[cfg(feature = "daemon")]
impl AdoptError {
    fn new(index: usize, why: &'static str) -> Self {
        AdoptError { index, why, source: None }
    }
}

/// Why a socket that was bound elsewhere cannot be served: one sentence. The error of the system,
/// where there is one, is its [`source`](std::error::Error::source).
#[derive(Debug)]
pub struct AdoptError {
    index: usize,
    why: &'static str,
    source: Option<io::Error>,
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AdoptError { index, why, source: _ } = self;
        write!(
            f,
            "cannot serve the inherited socket {index}: {why}; TCP listeners and UDP sockets that are bound can be served"
        )
    }
}

impl std::error::Error for AdoptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
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
        stream_options(&socket)?;
    } else {
        datagram_options(&socket, address)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Accepted sockets inherit all of these: no call per connection.
fn stream_options(socket: &Socket) -> io::Result<()> {
    // Without it, the second half of an answer that does not fit one segment waits for the peer's
    // delayed acknowledgement.
    socket.set_tcp_nodelay(true)?;
    // Finds out in time that a peer has vanished (RFC 1122, 4.2.3.6).
    socket.set_keepalive(true)?;
    // Urgent data are bytes of the stream, which is answered as it comes (RFC 6093).
    socket.set_out_of_band_inline(true)
}

fn datagram_options(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    // The system shows twice what it was asked for (socket(7)). Whoever bound the socket may have
    // asked for more.
    if socket.recv_buffer_size()? < 2 * DATAGRAM_BUFFER {
        socket.set_recv_buffer_size(DATAGRAM_BUFFER)?;
    }
    if socket.send_buffer_size()? < 2 * DATAGRAM_BUFFER {
        set_send_buffer_size(socket, DATAGRAM_BUFFER)?;
    }
    prepare_datagrams(socket, address.is_ipv6())
}

/// Where the process may (CAP_NET_ADMIN), as much as is asked for; else as much as the system allows.
pub(crate) fn set_send_buffer_size(socket: &Socket, size: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::SndBufForce, &size)
        .map_err(io::Error::from)
        .or_else(|_| socket.set_send_buffer_size(size))
}

fn listen<'a>(listener: impl Into<SockRef<'a>>, backlog: u32) -> io::Result<()> {
    listener.into().listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// Has each datagram tell which address it was sent to, so that the reply can leave from there, or
/// there is none, since it was a broadcast: only the IPv4 option tells that. Has our answers leave with
/// a hop limit of their own, and each datagram tell its own (ip(7), ipv6(7)).
fn prepare_datagrams(socket: &Socket, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true)?;
        setsockopt(socket, sockopt::Ipv6Ttl, &ANSWER_HOP_LIMIT.into())?;
    }
    if !ipv6 || !socket.only_v6()? {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(socket, sockopt::Ipv4RecvTtl, &true)?;
        setsockopt(socket, sockopt::Ipv4Ttl, &ANSWER_HOP_LIMIT.into())?;
    }
    Ok(())
}

/// Whether an error of a socket or a pipe only says "not now".
pub(crate) fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Raises the soft limit on open files (RLIMIT_NOFILE) of this process to the hard one.
///
/// # Errors
///
/// Where the system does not allow it; the limit is as it was.
pub fn raise_open_file_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// How many files this process may still open: the limit, less those that are open.
pub(crate) fn files_left() -> usize {
    usize::try_from(open_file_limit()).unwrap_or(usize::MAX).saturating_sub(open_files())
}

/// How many files this process has open.
pub(crate) fn open_files() -> usize {
    // Since Linux 6.2 the folder says it (proc_pid_fd(5)). To list many files takes milliseconds.
    match fs::metadata("/proc/self/fd").map(|folder| folder.size()) {
        Ok(files @ 1..) => usize::try_from(files).unwrap_or(usize::MAX),
        // One of them is the folder that is read. Where it cannot be read: the standard ones.
        _ => fs::read_dir("/proc/self/fd").map_or(3, |files| files.count().saturating_sub(1)),
    }
}

/// How many files this process may open.
pub(crate) fn open_file_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(limit, _)| limit)
}
