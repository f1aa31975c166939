//! Options of sockets, as macOS and FreeBSD have them.

use std::io;
use std::net::TcpStream;

use nix::sys::socket::sockopt;
use nix::{libc, setsockopt_impl, sockopt_impl};
use socket2::Socket;

#[cfg(feature = "client")]
pub(crate) use super::own::open;
pub(crate) use super::own::{
    SHARE_PORT, SHARES_WHEN_BOUND, is_unacknowledged, protocol, share_port, stream_options,
};
use crate::sys::Errno;
use crate::sys::socket::Lost::{Comfort, Promise};
use crate::sys::socket::{NO_ADDRESS, NO_HOP_LIMIT, REPLY_HOP_LIMIT, Row, USUAL_HOP_LIMIT, set};

/// How many times the size that was asked for a buffer the system shows.
pub(crate) const SHOWN: usize = 1;

/// The host is not on the network: Linux alone says so.
pub(crate) const OFF_NETWORK: Option<Errno> = None;

/// The smallest buffer to ask for: more than a datagram and its control messages, since macOS says that a larger one
/// would block, for ever (quinn-udp, MIN_SAFE_SNDBUF).
const SMALLEST_BUFFER: usize = 128 << 10;

/// Has a stream block that a listener has accepted which does not: on macOS it has inherited that (accept(2)).
pub(crate) fn block_accepted(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)
}

/// The options of a stream of another process, to be taken back.
pub(crate) fn foreign_stream_options(socket: &Socket) -> Vec<Row> {
    vec![
        ("TCP_NOPUSH", Comfort("replies may leave late"), set(socket, NoPush, &false)),
        ("SO_RCVLOWAT", Promise("short messages may wait"), set(socket, ReceiveLowWater, &1)),
    ]
}

/// The options that have each datagram show where it was sent to, and its hop limit (ip(4), ip6(4)). An IPv6 socket
/// that takes IPv4, too, shows both as IPv6 ones, and has no hop limit for IPv4.
pub(crate) fn datagram_options(socket: &Socket, ipv6: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    if ipv6 {
        rows.extend([
            ("IPV6_RECVPKTINFO", NO_ADDRESS, set(socket, sockopt::Ipv6RecvPacketInfo, &true)),
            ("IPV6_RECVHOPLIMIT", NO_HOP_LIMIT, set(socket, ReceiveHopLimit, &true)),
            (
                "IPV6_UNICAST_HOPS",
                USUAL_HOP_LIMIT,
                set(socket, sockopt::Ipv6Ttl, &REPLY_HOP_LIMIT.into()),
            ),
        ]);
    } else {
        rows.extend([
            ("IP_RECVDSTADDR", NO_ADDRESS, set(socket, sockopt::Ipv4RecvDstAddr, &true)),
            ("IP_RECVTTL", NO_HOP_LIMIT, set(socket, ReceiveTtl, &true)),
        ]);
    }
    if !ipv6 || !socket.only_v6().unwrap_or(false) {
        rows.push(("IP_TTL", USUAL_HOP_LIMIT, socket.set_ttl_v4(REPLY_HOP_LIMIT.into())));
    }
    rows
}

/// The options of a UDP socket of another process, to be taken back: there are none.
pub(crate) fn foreign_datagram_options(_socket: &Socket, _ipv6: bool) -> Vec<Row> {
    Vec::new()
}

/// Sets the receive buffer to as much as the system allows, up to `size`.
pub(crate) fn set_receive_buffer_size(socket: &Socket, size: usize) -> io::Result<()> {
    halving(size, |size| socket.set_recv_buffer_size(size))
}

/// Sets the send buffer to as much as the system allows, up to `size`.
pub(crate) fn set_send_buffer_size(socket: &Socket, size: usize) -> io::Result<()> {
    halving(size, |size| socket.set_send_buffer_size(size))
}

/// Sets a size, or half of it, and so on: one over kern.ipc.maxsockbuf is refused, not reduced (ENOBUFS).
fn halving(size: usize, set: impl Fn(usize) -> io::Result<()>) -> io::Result<()> {
    let mut outcome = set(size);
    let mut half = size / 2;
    while outcome.is_err() && half >= SMALLEST_BUFFER {
        outcome = set(half);
        half /= 2;
    }
    outcome
}

/// How many datagrams the kernel has dropped, for want of room in the queue of a socket: it counts them for all
/// sockets together.
pub(crate) fn dropped<S>(_socket: &S) -> Option<u32> {
    None
}

/// How often a connection found the queue of a listener full: only sysctl(3) tells.
#[cfg(feature = "client")]
pub(crate) fn listen_overflows() -> u64 {
    0
}

/// It does from the beginning (tcp(4), net.inet.tcp.delayed_ack).
#[cfg(feature = "client")]
pub(crate) fn acknowledge_late(_stream: &TcpStream) {}

/// The port is chosen at bind(2).
#[cfg(feature = "client")]
pub(crate) fn choose_port_late(_socket: &Socket) {}

/// A connected UDP socket fails when its peer cannot be reached, without being asked to (udp(4)).
#[cfg(feature = "client")]
pub(crate) fn report_errors(_socket: &Socket, _ipv6: bool) -> io::Result<()> {
    Ok(())
}

/// A socket keeps one error, which the next call takes.
#[cfg(feature = "client")]
pub(crate) fn drop_errors(_socket: &Socket) {}

sockopt_impl!(
    /// How many bytes a read waits for (setsockopt(2)).
    ReceiveLowWater, SetOnly, libc::SOL_SOCKET, libc::SO_RCVLOWAT, i32
);
sockopt_impl!(
    /// Keeps what is sent until a segment is full (tcp(4)).
    NoPush, SetOnly, libc::IPPROTO_TCP, libc::TCP_NOPUSH, bool
);
sockopt_impl!(
    /// Has each datagram show its hop limit (ip(4)).
    ReceiveTtl, SetOnly, libc::IPPROTO_IP, libc::IP_RECVTTL, bool
);
sockopt_impl!(
    /// Has each datagram show its hop limit (ip6(4)).
    ReceiveHopLimit, SetOnly, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, bool
);
