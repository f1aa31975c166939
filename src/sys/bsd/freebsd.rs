//! What FreeBSD has and macOS has not.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
#[cfg(feature = "client")]
use std::time::Duration;

use nix::libc::{self, in_addr};
#[cfg(feature = "client")]
use nix::poll::PollFd;
use nix::sys::socket::{ControlMessage, ControlMessageOwned};
#[cfg(feature = "client")]
use nix::sys::time::TimeSpec;
#[cfg(feature = "client")]
use socket2::{Domain, Type};
use socket2::{Protocol, Socket};

use crate::sys::socket::{Lost, Row};

/// The option that lets sockets share a port, and the kernel distribute clients among them (setsockopt(2)).
pub(crate) const SHARE_PORT: &str = "SO_REUSEPORT_LB";

/// Whether a socket that is bound can still be made to share its port: it joins the others at bind(2)
/// (in_pcbinslbgrouphash).
pub(crate) const SHARES_WHEN_BOUND: bool = false;

/// Lets other sockets with the same option have the port.
pub(crate) fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port_lb(true)
}

/// Flags of send(2): a peer that is gone is an error, and no signal.
#[cfg(feature = "client")]
pub(crate) const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL;

/// Opens a socket that does not block.
#[cfg(feature = "client")]
pub(crate) fn open(domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    Socket::new(domain, kind.nonblocking(), Some(protocol))
}

/// The protocol of a socket, if the system tells it.
pub(crate) fn protocol(socket: &Socket) -> Option<Protocol> {
    socket.protocol().ok()?
}

/// The options of a stream, beside those that all systems have: the send buffer alone bounds what is kept.
pub(crate) fn stream_options(_socket: &Socket, _unread: Lost) -> Vec<Row> {
    Vec::new()
}

/// Whether the send queue of a stream holds something. It is not known, so it may.
pub(crate) fn is_unacknowledged(_stream: &impl AsFd) -> bool {
    true
}

/// The address that a message names: an IPv6 socket takes an IPv4-mapped one (udp_v4mapped_pktinfo).
pub(super) fn leaving_from(ip: IpAddr) -> IpAddr {
    ip
}

/// Calls `send` with the control message for an IPv4 address to leave from (ip(4)).
pub(super) fn with_source<T>(ip: Ipv4Addr, send: impl FnOnce(ControlMessage<'_>) -> T) -> T {
    let address = in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
    send(ControlMessage::Ipv4SendSrcAddr(&address))
}

/// The hop limit, if the message has it.
pub(super) fn hop_limit(control: &ControlMessageOwned) -> Option<u8> {
    match *control {
        ControlMessageOwned::Ipv4Ttl(left) => Some(left),
        ControlMessageOwned::Ipv6HopLimit(left) => u8::try_from(left).ok(),
        _ => None,
    }
}

/// What poll(2) says of a socket that was shut down.
pub(crate) const SHUT_DOWN: libc::c_short = libc::POLLRDHUP;

/// Waits for at most `time`, which counts in nanoseconds: how many descriptors are ready.
#[cfg(feature = "client")]
pub(crate) fn poll(watched: &mut [PollFd<'_>], time: Duration) -> nix::Result<i32> {
    nix::poll::ppoll(watched, Some(TimeSpec::from_duration(time)), None)
}
