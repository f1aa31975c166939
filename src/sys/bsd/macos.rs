//! What macOS has and FreeBSD has not.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
#[cfg(feature = "client")]
use std::time::Duration;

use nix::libc::{self, in_addr, in_pktinfo};
#[cfg(feature = "client")]
use nix::poll::{PollFd, PollTimeout};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, getsockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
#[cfg(feature = "client")]
use socket2::{Domain, Type};
use socket2::{Protocol, Socket};

use crate::sys::socket::{Lost, Row, STREAM_UNSENT, set};

/// The option that lets sockets share a port: the kernel gives all clients to one of them.
pub(crate) const SHARE_PORT: &str = "SO_REUSEPORT";

/// Whether a socket that is bound can still be made to share its port: the next bind(2) asks for the option (in_pcbbind).
pub(crate) const SHARES_WHEN_BOUND: bool = true;

/// Lets other sockets with the same option have the port.
pub(crate) fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

/// Flags of send(2): SO_NOSIGPIPE does it.
#[cfg(feature = "client")]
pub(crate) const SEND_FLAGS: i32 = 0;

/// Opens a socket that does not block.
#[cfg(feature = "client")]
pub(crate) fn open(domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(domain, kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The protocol of a socket, which the system does not tell.
pub(crate) fn protocol(_socket: &Socket) -> Option<Protocol> {
    None
}

/// The options of a stream, beside those that all systems have.
pub(crate) fn stream_options(socket: &Socket, unread: Lost) -> Vec<Row> {
    vec![
        ("TCP_NOTSENT_LOWAT", unread, set(socket, NotSentLowWater, &(STREAM_UNSENT as i32))),
        (
            "SO_NOSIGPIPE",
            Lost::Comfort("a program that does not ignore SIGPIPE ends with a client"),
            socket.set_nosigpipe(true),
        ),
    ]
}

/// Whether the send queue of a stream holds something: the peer has not acknowledged all that was sent.
pub(crate) fn is_unacknowledged(stream: &impl AsFd) -> bool {
    getsockopt(stream, SendQueue).is_ok_and(|bytes| bytes > 0)
}

/// The address that a message names: for an IPv4-mapped one, it is the IPv4 address (udp_check_pktinfo).
pub(super) fn leaving_from(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// Calls `send` with the control message for an IPv4 address to leave from (udp_check_pktinfo).
pub(super) fn with_source<T>(ip: Ipv4Addr, send: impl FnOnce(ControlMessage<'_>) -> T) -> T {
    let info = in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        ipi_addr: in_addr { s_addr: 0 },
    };
    send(ControlMessage::Ipv4PacketInfo(&info))
}

/// The hop limit, if the message has it: a byte for IPv4, a number for IPv6.
pub(super) fn hop_limit(control: &ControlMessageOwned) -> Option<u8> {
    let ControlMessageOwned::Unknown(message) = control else { return None };
    let (header, bytes) = (&message.cmsg_header, &message.data_bytes);
    match (header.cmsg_level, header.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_RECVTTL) => bytes.first().copied(),
        (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
            u8::try_from(i32::from_ne_bytes(*bytes.first_chunk()?)).ok()
        }
        _ => None,
    }
}

/// What poll(2) says of a socket that was shut down.
pub(crate) const SHUT_DOWN: libc::c_short = libc::POLLHUP;

/// Waits for at most `time`, to the next millisecond: how many descriptors are ready.
#[cfg(feature = "client")]
pub(crate) fn poll(watched: &mut [PollFd<'_>], time: Duration) -> nix::Result<i32> {
    let millis = time.as_micros().div_ceil(1_000);
    nix::poll::poll(watched, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX))
}

/// netinet/tcp.h.
const TCP_NOTSENT_LOWAT: libc::c_int = 0x201;

sockopt_impl!(
    /// Bytes that a socket takes without having sent them (tcp(4)).
    NotSentLowWater, SetOnly, libc::IPPROTO_TCP, TCP_NOTSENT_LOWAT, i32
);
sockopt_impl!(
    /// Bytes in the send buffer (getsockopt(2)).
    SendQueue, GetOnly, libc::SOL_SOCKET, libc::SO_NWRITE, i32
);
