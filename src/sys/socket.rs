//! Options of sockets, and the meaning of their errors.

use std::io::{self, ErrorKind};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, Socket};

use super::Errno;

/// The size to ask for; the system gives at most net.core.rmem_max and net.core.wmem_max. Bursts wait in
/// these buffers, and replies to absent neighbours: 208 KiB for each.
const DATAGRAM_BUFFER: usize = 4 << 20;

/// The hop limit that UDP replies leave with (IP_TTL, IPV6_UNICAST_HOPS).
///
/// No client starts with this value: systems start with 64, 128 or 255, and no path is 55 hops long.
/// A server that receives such a reply recognises and ignores it, so that two servers of this kind cannot
/// be made to reply to each other, on any ports.
pub(crate) const REPLY_HOP_LIMIT: u8 = 200;

/// Sets the options of a TCP listener. Accepted sockets inherit all of them: no call per connection.
pub(crate) fn set_stream_options(socket: &Socket) -> io::Result<()> {
    // Otherwise the second half of a reply that does not fit one segment waits for the peer's delayed
    // acknowledgement.
    socket.set_tcp_nodelay(true)?;
    // Detects that a peer has vanished (RFC 1122, 4.2.3.6).
    socket.set_keepalive(true)?;
    // Urgent data are bytes of the stream, and are echoed like the others (RFC 6093).
    socket.set_out_of_band_inline(true)
}

/// Sets the options of a UDP socket.
///
/// Each datagram comes with the address that it was sent to: the reply leaves from there, unless it was a
/// broadcast, which only the IPv4 option shows. Replies have a hop limit of their own, and each datagram
/// comes with its hop limit (ip(7), ipv6(7)).
pub(crate) fn set_datagram_options(socket: &Socket, ipv6: bool) -> io::Result<()> {
    // The system returns twice what it was asked for (socket(7)). An inherited socket may have more.
    if socket.recv_buffer_size()? < 2 * DATAGRAM_BUFFER {
        socket.set_recv_buffer_size(DATAGRAM_BUFFER)?;
    }
    if socket.send_buffer_size()? < 2 * DATAGRAM_BUFFER {
        set_send_buffer_size(socket, DATAGRAM_BUFFER)?;
    }
    if ipv6 {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true)?;
        setsockopt(socket, sockopt::Ipv6Ttl, &REPLY_HOP_LIMIT.into())?;
    }
    if !ipv6 || !socket.only_v6()? {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(socket, sockopt::Ipv4RecvTtl, &true)?;
        setsockopt(socket, sockopt::Ipv4Ttl, &REPLY_HOP_LIMIT.into())?;
    }
    Ok(())
}

/// Sets the send buffer to `size` where the process may (CAP_NET_ADMIN), else to as much as the system
/// allows.
pub(super) fn set_send_buffer_size(socket: &Socket, size: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::SndBufForce, &size)
        .map_err(io::Error::from)
        .or_else(|_| socket.set_send_buffer_size(size))
}

/// Makes a socket listen, or changes the backlog of one that listens.
pub(crate) fn listen<'a>(listener: impl Into<SockRef<'a>>, backlog: u32) -> io::Result<()> {
    listener.into().listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// Whether an error of a socket or a pipe only means "not now".
pub(crate) fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Whether an IPv6 socket could not be made because this machine has no IPv6.
pub(crate) fn lacks_ipv6(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT))
}

/// Whether an error of accept(2) is about the connection that it would have returned, and not about
/// the listener or this process.
pub(crate) fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ECONNABORTED
                | Errno::EINTR
                | Errno::EPROTO
                | Errno::ENOPROTOOPT
                | Errno::EOPNOTSUPP
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::ENONET
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ETIMEDOUT
        )
    )
}
