//! Options of sockets that only Linux has, and those that it sets in its own way.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
#[cfg(feature = "client")]
use socket2::{Domain, SockRef, Type};
use socket2::{Protocol, Socket};

use crate::sys::Errno;
use crate::sys::socket::Lost::{self, Comfort, Promise};
use crate::sys::socket::{
    NO_ADDRESS, NO_HOP_LIMIT, REPLY_HOP_LIMIT, Row, STREAM_UNSENT, USUAL_HOP_LIMIT, set,
};

/// How many times the size that was asked for a buffer the system shows (socket(7)).
pub(crate) const SHOWN: usize = 2;

/// The option that lets sockets share a port, and the kernel distribute clients among them (socket(7)).
pub(crate) const SHARE_PORT: &str = "SO_REUSEPORT";

/// Whether a socket that is bound can still be made to share its port.
pub(crate) const SHARES_WHEN_BOUND: bool = true;

/// Lets other sockets with the same option have the port.
pub(crate) fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

/// Opens a socket that does not block.
#[cfg(feature = "client")]
pub(crate) fn open(domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    Socket::new(domain, kind.nonblocking(), Some(protocol))
}

/// Has this side acknowledge as late as it may, as in a conversation that has lasted for a while (tcp(7)).
#[cfg(feature = "client")]
pub(crate) fn acknowledge_late(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_tcp_quickack(false);
}

/// Has the port be chosen at connect(2), and not at bind(2) (ip(7)). Where that cannot be, as in gVisor, bind(2)
/// chooses it.
#[cfg(feature = "client")]
pub(crate) fn choose_port_late(socket: &Socket) {
    let _ = set(socket, sockopt::IpBindAddressNoPort, &true);
}

/// Has a stream block that a listener has accepted which does not: it does already (accept(2)).
pub(crate) fn block_accepted(_stream: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// The protocol of a socket, if the system tells it: Multipath TCP is TCP (RFC 8684).
pub(crate) fn protocol(socket: &Socket) -> Option<Protocol> {
    let protocol = socket.protocol().ok()??;
    Some(if protocol == Protocol::MPTCP { Protocol::TCP } else { protocol })
}

/// The host is not on the network.
pub(crate) const OFF_NETWORK: Option<Errno> = Some(Errno::ENONET);

/// The options of a stream, beside those that all systems have.
pub(crate) fn stream_options(socket: &Socket, unread: Lost) -> Vec<Row> {
    vec![("TCP_NOTSENT_LOWAT", unread, socket.set_tcp_notsent_lowat(STREAM_UNSENT))]
}

/// The options of a stream of another process, to be taken back.
pub(crate) fn foreign_stream_options(socket: &Socket) -> Vec<Row> {
    vec![
        ("TCP_CORK", Comfort("replies may leave late"), socket.set_tcp_cork(false)),
        ("SO_RCVLOWAT", Promise("short messages may wait"), set(socket, ReceiveLowWater, &1)),
    ]
}

/// The options that have each datagram show where it was sent to, and its hop limit (ip(7), ipv6(7)). A broadcast
/// is shown by the IPv4 option alone.
pub(crate) fn datagram_options(socket: &Socket, ipv6: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    if ipv6 {
        rows.extend([
            ("IPV6_RECVPKTINFO", NO_ADDRESS, set(socket, sockopt::Ipv6RecvPacketInfo, &true)),
            ("IPV6_RECVHOPLIMIT", NO_HOP_LIMIT, set(socket, sockopt::Ipv6RecvHopLimit, &true)),
            (
                "IPV6_UNICAST_HOPS",
                USUAL_HOP_LIMIT,
                set(socket, sockopt::Ipv6Ttl, &REPLY_HOP_LIMIT.into()),
            ),
        ]);
    }
    if !ipv6 || !socket.only_v6().unwrap_or(false) {
        rows.extend([
            ("IP_PKTINFO", NO_ADDRESS, set(socket, sockopt::Ipv4PacketInfo, &true)),
            ("IP_RECVTTL", NO_HOP_LIMIT, set(socket, sockopt::Ipv4RecvTtl, &true)),
            ("IP_TTL", USUAL_HOP_LIMIT, set(socket, sockopt::Ipv4Ttl, &REPLY_HOP_LIMIT.into())),
        ]);
    }
    rows
}

/// The options of a UDP socket of another process, to be taken back.
pub(crate) fn foreign_datagram_options(socket: &Socket, ipv6: bool) -> Vec<Row> {
    // Errors would wait to be read, and wake each poll(2).
    let lost = Comfort("errors that its owner has asked for may take time");
    let one = Promise("a reply may leave as several datagrams, or joined with another one");
    let mut rows = vec![
        ("IP_RECVERR", lost, set(socket, sockopt::Ipv4RecvErr, &false)),
        ("UDP_SEGMENT", one, set(socket, sockopt::UdpGsoSegment, &0)),
        ("UDP_CORK", one, set(socket, UdpCork, &false)),
    ];
    if ipv6 {
        rows.push(("IPV6_RECVERR", lost, set(socket, sockopt::Ipv6RecvErr, &false)));
    }
    rows
}

/// Sets the receive buffer to as much as the system allows, up to `size`.
pub(crate) fn set_receive_buffer_size(socket: &Socket, size: usize) -> io::Result<()> {
    socket.set_recv_buffer_size(size)
}

/// Sets the send buffer to `size` where the process may (CAP_NET_ADMIN), else to as much as the system
/// allows.
pub(crate) fn set_send_buffer_size(socket: &Socket, size: usize) -> io::Result<()> {
    setsockopt(socket, sockopt::SndBufForce, &size)
        .map_err(io::Error::from)
        .or_else(|_| socket.set_send_buffer_size(size))
}

sockopt_impl!(
    /// How many bytes a read waits for (socket(7)).
    ReceiveLowWater, SetOnly, libc::SOL_SOCKET, libc::SO_RCVLOWAT, i32
);
sockopt_impl!(
    /// Keeps what is sent, to send it as one datagram (udp(7)).
    UdpCork, SetOnly, libc::IPPROTO_UDP, libc::UDP_CORK, bool
);
sockopt_impl!(
    /// The memory of a socket (include/uapi/linux/sock_diag.h).
    MemInfo, GetOnly, libc::SOL_SOCKET, libc::SO_MEMINFO, [u32; 9]
);

/// What the kernel says of the memory of a socket. None where that is cut short, as by QEMU's user-mode emulation,
/// of which nix makes a panic: it is asked no more.
fn memory(socket: &impl AsFd) -> Option<[u32; 9]> {
    static IS_CUT_SHORT: AtomicBool = AtomicBool::new(false);
    if IS_CUT_SHORT.load(Ordering::Relaxed) {
        return None;
    }
    let memory = catch_unwind(AssertUnwindSafe(|| getsockopt(socket, MemInfo).ok()));
    memory.unwrap_or_else(|_| {
        IS_CUT_SHORT.store(true, Ordering::Relaxed);
        None
    })
}

/// How many datagrams the kernel has dropped, for want of room in the queue of a socket. It wraps.
pub(crate) fn dropped(socket: &impl AsFd) -> Option<u32> {
    const SK_MEMINFO_DROPS: usize = 8;
    memory(socket).map(|memory| memory[SK_MEMINFO_DROPS])
}

/// Whether the send queue of a stream holds something: the peer has not acknowledged all that was sent, our
/// FIN included.
pub(crate) fn is_unacknowledged(stream: &impl AsFd) -> bool {
    const SK_MEMINFO_WMEM_QUEUED: usize = 5;
    memory(stream).is_some_and(|memory| memory[SK_MEMINFO_WMEM_QUEUED] > 0)
}

/// How often a connection found the queue of a listener in this network namespace full, so far, and had
/// to be tried again or was lost (TcpExtListenOverflows, nstat(8)); 0 where that is not counted.
#[cfg(feature = "client")]
pub(crate) fn listen_overflows() -> u64 {
    let text = std::fs::read_to_string("/proc/net/netstat").unwrap_or_default();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    let mut counts = names.split(' ').zip(values.split(' '));
    let found = counts.find(|(name, _)| *name == "ListenOverflows");
    found.and_then(|(_, count)| count.parse().ok()).unwrap_or(0)
}

/// Has a UDP socket fail, too, when its peer cannot be reached, and not only when the peer refuses (ip(7)).
/// Each such error is then kept until [`drop_errors`].
#[cfg(feature = "client")]
pub(crate) fn report_errors(socket: &Socket, ipv6: bool) -> io::Result<()> {
    match ipv6 {
        true => set(socket, sockopt::Ipv6RecvErr, &true),
        false => set(socket, sockopt::Ipv4RecvErr, &true),
    }
}

/// Drops the errors that a socket keeps, of which each wakes poll(2) until it is taken.
#[cfg(feature = "client")]
pub(crate) fn drop_errors(socket: &Socket) {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{MsgFlags, recvmsg};

    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let take = || recvmsg::<()>(socket.as_raw_fd(), &mut [], None, flags);
    // QEMU's user-mode emulation makes no call where there is no buffer, and says that it went well.
    while take().is_ok_and(|message| message.flags.contains(MsgFlags::MSG_ERRQUEUE)) {}
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::sys::socket::{STREAM_BUFFER, set_stream_options};

    #[test]
    fn accepted_connections_have_a_bound_for_what_is_not_sent() {
        let listener = Socket::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        assert!(set_stream_options(&listener).is_empty());
        let listener = TcpListener::from(listener);
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Socket::from(listener.accept().unwrap().0);
        assert_eq!(stream.tcp_notsent_lowat().unwrap(), STREAM_UNSENT);
    }

    #[test]
    fn larger_buffers_of_an_inherited_listener_stay() {
        let size = 3 * STREAM_BUFFER;
        let listener = Socket::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        if setsockopt(&listener, sockopt::RcvBufForce, &size).is_err()
            || setsockopt(&listener, sockopt::SndBufForce, &size).is_err()
        {
            return println!("skipped: only root may have buffers of any size");
        }
        assert!(set_stream_options(&listener).is_empty());
        let listener = TcpListener::from(listener);
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Socket::from(listener.accept().unwrap().0);
        let sizes = (stream.recv_buffer_size().unwrap(), stream.send_buffer_size().unwrap());
        assert_eq!(sizes, (2 * size, 2 * size));
    }
}
