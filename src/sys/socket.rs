//! Options of sockets, and the meaning of their errors.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::Duration;

use log::{Level, log};
use nix::sys::socket::{SetSockOpt, getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};
use socket2::{SockRef, Socket};

use super::Errno;

/// The size to ask for; the system gives at most net.core.rmem_max and net.core.wmem_max. Bursts wait in
/// these buffers, and replies to absent neighbours: 208 KiB for each.
const DATAGRAM_BUFFER: usize = 4 << 20;

/// Bytes that the kernel takes from the server and has not sent: all that it keeps for a peer that does not
/// read, since such a peer has acknowledged what was sent. It does not limit what is on the way.
const STREAM_UNSENT: u32 = 64 << 10;
/// The size to ask for, for each direction of a stream: what a peer can make the kernel keep, twice, since the
/// kernel counts its own overhead too (socket(7)). Enough for 50 Mbit/s over a path of 100 ms. Left to itself,
/// the kernel goes up to net.ipv4.tcp_rmem and tcp_wmem: 4 to 32 MiB.
const STREAM_BUFFER: usize = 512 << 10;

/// The hop limit that UDP replies leave with (IP_TTL, IPV6_UNICAST_HOPS).
///
/// No client starts with this value: systems start with 64, 128 or 255, and no path is 55 hops long.
/// A server that receives such a reply recognises and ignores it, so that two servers of this kind cannot
/// be made to reply to each other, on any ports.
pub(crate) const REPLY_HOP_LIMIT: u8 = 200;

/// An option or a call that the system refuses, and that a socket is served without.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) what: &'static str,
    pub(crate) lost: Lost,
    pub(crate) error: io::Error,
}

/// What is lost without it, as the end of a sentence.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lost {
    /// Comfort or speed.
    Comfort(&'static str),
    /// What the server promises.
    Promise(&'static str),
}

use Lost::{Comfort, Promise};

/// An option, what is lost without it, and the outcome of setting it.
type Row = (&'static str, Lost, io::Result<()>);

/// Without it, a datagram does not show the address that it was sent to.
const NO_ADDRESS: Lost = Promise(
    "replies may leave from another address than was asked, and broadcasts and multicasts are answered",
);
/// Without it, replies of servers of this kind are not told from requests, ...
const NO_HOP_LIMIT: Lost = Promise("it may answer the replies of another echo server, without end");
/// ... nor are its own.
const USUAL_HOP_LIMIT: Lost = Promise("another echo server may answer its replies, without end");

impl Refused {
    /// Those of these options that were refused.
    pub(crate) fn of(rows: impl IntoIterator<Item = Row>) -> Vec<Refused> {
        let refused =
            |(what, lost, outcome): Row| outcome.err().map(|error| Refused { what, lost, error });
        rows.into_iter().filter_map(refused).collect()
    }

    /// Logs what the socket at this address lacks: a promise as a warning.
    pub(crate) fn log(&self, address: impl Display) {
        let Refused { what, lost, error } = self;
        let (level, lost) = match lost {
            Comfort(lost) => (Level::Info, lost),
            Promise(lost) => (Level::Warn, lost),
        };
        log!(
            level,
            event = "done_without",
            what = what,
            address:%,
            errno = error.raw_os_error();
            "{address} is served without {what}, which the system refuses: {lost} ({error})"
        );
    }
}

/// Sets the options of a TCP listener, which accepted streams inherit: no call per connection. A stream that
/// has not inherited them is given them alone.
pub(crate) fn set_stream_options(socket: &Socket) -> Vec<Refused> {
    let unread = Comfort("the kernel keeps more for a peer that does not read");
    let receive = || socket.set_recv_buffer_size(STREAM_BUFFER);
    let send = || socket.set_send_buffer_size(STREAM_BUFFER);
    Refused::of([
        // Otherwise the second half of a reply that does not fit one segment waits for the peer's delayed
        // acknowledgement.
        (
            "TCP_NODELAY",
            Comfort("the last segment of a reply may take 40 ms more"),
            socket.set_tcp_nodelay(true),
        ),
        // Detects that a peer has vanished (RFC 1122, 4.2.3.6).
        (
            "SO_KEEPALIVE",
            Comfort("only an idle timeout ends the connection of a peer that has vanished"),
            socket.set_keepalive(true),
        ),
        // Urgent data are bytes of the stream, and are echoed like the others (RFC 6093).
        (
            "SO_OOBINLINE",
            Promise("urgent bytes may be left out of replies"),
            socket.set_out_of_band_inline(true),
        ),
        ("TCP_NOTSENT_LOWAT", unread, socket.set_tcp_notsent_lowat(STREAM_UNSENT)),
        ("SO_RCVBUF", unread, grow(socket.recv_buffer_size(), STREAM_BUFFER, &receive)),
        ("SO_SNDBUF", unread, grow(socket.send_buffer_size(), STREAM_BUFFER, &send)),
    ])
}

/// Sets the size of a buffer, unless it is larger: the system returns twice what it was asked for (socket(7)),
/// and an inherited socket may have more on purpose.
fn grow(found: io::Result<usize>, size: usize, set: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    if found.is_ok_and(|found| found >= 2 * size) { Ok(()) } else { set() }
}

/// Sets the options of a listener that another process has made, or of a stream that comes from one. What
/// that process has set for itself is taken back.
pub(crate) fn reset_stream_options(socket: &Socket) -> Vec<Refused> {
    let mut refused = Refused::of([
        ("SO_LINGER", Promise("connections may end with an RST"), socket.set_linger(None)),
        ("TCP_CORK", Comfort("replies may leave late"), socket.set_tcp_cork(false)),
        ("SO_RCVLOWAT", Promise("short messages may wait"), set(socket, ReceiveLowWater, &1)),
    ]);
    refused.extend(set_stream_options(socket));
    refused
}

/// Has reads and writes of a connection wait for no longer than `time`.
pub(crate) fn set_timeouts(socket: &Socket, time: Option<Duration>) -> Vec<Refused> {
    let endless = Promise("the idle timeout ends no connection");
    Refused::of([
        ("SO_RCVTIMEO", endless, socket.set_read_timeout(time)),
        ("SO_SNDTIMEO", endless, socket.set_write_timeout(time)),
    ])
}

/// Sets the options of a UDP socket.
///
/// Each datagram comes with the address that it was sent to: the reply leaves from there, unless it was a
/// broadcast, which only the IPv4 option shows. Replies have a hop limit of their own, and each datagram
/// comes with its hop limit (ip(7), ipv6(7)).
pub(crate) fn set_datagram_options(socket: &Socket, ipv6: bool) -> Vec<Refused> {
    let receive = || socket.set_recv_buffer_size(DATAGRAM_BUFFER);
    let send = || set_send_buffer_size(socket, DATAGRAM_BUFFER);
    let mut rows = vec![
        (
            "SO_RCVBUF",
            Comfort("more datagrams of a burst are lost"),
            grow(socket.recv_buffer_size(), DATAGRAM_BUFFER, &receive),
        ),
        (
            "SO_SNDBUF",
            Comfort("more replies to a burst are dropped"),
            grow(socket.send_buffer_size(), DATAGRAM_BUFFER, &send),
        ),
    ];
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
    Refused::of(rows)
}

/// Sets the options of a UDP socket that another process has made, and takes back what that process has set
/// for itself.
pub(crate) fn reset_datagram_options(socket: &Socket, ipv6: bool) -> Vec<Refused> {
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
    let mut refused = Refused::of(rows);
    refused.extend(set_datagram_options(socket, ipv6));
    refused
}

fn set<O: SetSockOpt>(socket: &Socket, option: O, value: &O::Val) -> io::Result<()> {
    Ok(setsockopt(socket, option, value)?)
}

/// Sets the send buffer to `size` where the process may (CAP_NET_ADMIN), else to as much as the system
/// allows.
pub(super) fn set_send_buffer_size(socket: &Socket, size: usize) -> io::Result<()> {
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

/// How many datagrams the kernel has dropped, for want of room in the queue of a socket. It wraps.
pub(super) fn dropped(socket: &impl AsFd) -> Option<u32> {
    const SK_MEMINFO_DROPS: usize = 8;
    getsockopt(socket, MemInfo).ok().map(|memory| memory[SK_MEMINFO_DROPS])
}

/// Whether the send queue of a stream holds something: the peer has not acknowledged all that was sent, our
/// FIN included.
pub(crate) fn is_unacknowledged(stream: &impl AsFd) -> bool {
    const SK_MEMINFO_WMEM_QUEUED: usize = 5;
    getsockopt(stream, MemInfo).is_ok_and(|memory| memory[SK_MEMINFO_WMEM_QUEUED] > 0)
}

/// Makes a socket listen, or changes the backlog of one that listens.
pub(crate) fn listen<'a>(listener: impl Into<SockRef<'a>>, backlog: u32) -> io::Result<()> {
    listener.into().listen(i32::try_from(backlog).unwrap_or(i32::MAX))
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

/// Whether an error of a socket or a pipe only means "not now".
pub(crate) fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Whether an error of connect(2), send(2) or recv(2) says that no way leads to the peer: there is no route, the
/// host does not answer for its address, or a route or a firewall of this machine refuses (ip-route(8): a
/// prohibited one has EACCES, a black hole EINVAL; a firewall EPERM).
#[cfg(feature = "client")]
pub(crate) fn is_unreachable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ENETUNREACH
                | Errno::EHOSTUNREACH
                | Errno::ENETDOWN
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EACCES
                | Errno::EPERM
                | Errno::EINVAL
        )
    )
}

/// Sets the code point that packets leave with, 0 to 63 (RFC 2474): the upper six bits of IP_TOS or IPV6_TCLASS.
#[cfg(feature = "client")]
pub(crate) fn set_dscp(socket: &Socket, ipv6: bool, code_point: u8) -> io::Result<()> {
    let class = u32::from(code_point) << 2;
    if ipv6 { socket.set_tclass_v6(class) } else { socket.set_tos_v4(class) }
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
    use nix::sys::socket::{MsgFlags, recvmsg};
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    while recvmsg::<()>(std::os::fd::AsRawFd::as_raw_fd(socket), &mut [], None, flags).is_ok() {}
}

/// Whether no retry cures an error of a socket: it was shut down, is no socket any more, or the system
/// lacks the call.
pub(crate) fn is_lasting(error: Errno) -> bool {
    matches!(
        error,
        Errno::EPIPE | Errno::ESHUTDOWN | Errno::EBADF | Errno::ENOTSOCK | Errno::ENOSYS
    )
}

/// Whether no retry cures an error of accept(2): also one of a socket that does not listen any more.
pub(crate) fn is_lasting_for_accept(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    code.is_some_and(|code| code == Errno::EINVAL || is_lasting(code))
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    /// What is accepted by a listener with the options, after `change`.
    fn accepted(change: impl FnOnce(&Socket)) -> (Socket, TcpStream) {
        let listener = Socket::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        change(&listener);
        assert!(set_stream_options(&listener).is_empty());
        let listener = TcpListener::from(listener);
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0.into(), client)
    }

    #[test]
    fn accepted_connections_have_bounded_buffers() {
        let (stream, _client) = accepted(|_| ());
        assert_eq!(stream.tcp_notsent_lowat().unwrap(), STREAM_UNSENT);
        assert!(stream.recv_buffer_size().unwrap() <= 2 * STREAM_BUFFER);
        assert!(stream.send_buffer_size().unwrap() <= 2 * STREAM_BUFFER);
    }

    #[test]
    fn larger_buffers_of_an_inherited_listener_stay() {
        let set = |socket: &Socket, size| {
            setsockopt(socket, sockopt::RcvBufForce, &size).is_ok()
                && setsockopt(socket, sockopt::SndBufForce, &size).is_ok()
        };
        let (size, mut forced) = (3 * STREAM_BUFFER, false);
        let (stream, _client) = accepted(|listener| forced = set(listener, size));
        if !forced {
            return println!("skipped: only root may have buffers of any size");
        }
        let sizes = (stream.recv_buffer_size().unwrap(), stream.send_buffer_size().unwrap());
        assert_eq!(sizes, (2 * size, 2 * size));
    }
}
