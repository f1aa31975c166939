//! Options of sockets, and the meaning of their errors.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::time::Duration;

use log::{Level, log};
use nix::sys::socket::{SetSockOpt, getsockopt, setsockopt, sockopt};
use socket2::{SockRef, Socket};

use super::Errno;
use super::system::socket::{
    OFF_NETWORK, SHOWN, datagram_options, foreign_datagram_options, foreign_stream_options,
    set_receive_buffer_size, set_send_buffer_size, stream_options,
};
pub(crate) use super::system::socket::{
    SHARE_PORT, SHARES_WHEN_BOUND, block_accepted, is_unacknowledged, protocol, share_port,
};
#[cfg(feature = "client")]
pub(crate) use super::system::socket::{
    acknowledge_late, choose_port_late, drop_errors, listen_overflows, open, report_errors,
};

/// The size to ask for; the system gives at most net.core.rmem_max and net.core.wmem_max. Bursts wait in
/// these buffers, and replies to absent neighbours: 208 KiB for each.
const DATAGRAM_BUFFER: usize = 4 << 20;

/// Bytes that the kernel takes from the server and has not sent: all that it keeps for a peer that does not
/// read, since such a peer has acknowledged what was sent. It does not limit what is on the way.
#[cfg(not(target_os = "freebsd"))]
pub(super) const STREAM_UNSENT: u32 = 64 << 10;
/// The size to ask for, for each direction of a stream: what a peer can make the kernel keep, twice, since the
/// kernel counts its own overhead too (socket(7)). Enough for 50 Mbit/s over a path of 100 ms. Left to itself,
/// the kernel goes up to net.ipv4.tcp_rmem and tcp_wmem: 4 to 32 MiB.
pub(super) const STREAM_BUFFER: usize = 512 << 10;

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
pub(super) type Row = (&'static str, Lost, io::Result<()>);

/// Without it, a datagram does not show the address that it was sent to.
pub(super) const NO_ADDRESS: Lost = Promise(
    "replies may leave from another address than was asked, and broadcasts and multicasts are answered",
);
/// Without it, replies of servers of this kind are not told from requests, ...
pub(super) const NO_HOP_LIMIT: Lost =
    Promise("it may answer the replies of another echo server, without end");
/// ... nor are its own.
pub(super) const USUAL_HOP_LIMIT: Lost =
    Promise("another echo server may answer its replies, without end");

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
    let mut rows = stream_options(socket, unread);
    rows.extend([
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
        ("SO_RCVBUF", unread, grow(socket.recv_buffer_size(), STREAM_BUFFER, &receive)),
        ("SO_SNDBUF", unread, grow(socket.send_buffer_size(), STREAM_BUFFER, &send)),
    ]);
    Refused::of(rows)
}

/// Sets the size of a buffer, unless it is larger: an inherited socket may have more on purpose.
fn grow(found: io::Result<usize>, size: usize, set: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    if found.is_ok_and(|found| found >= SHOWN * size) { Ok(()) } else { set() }
}

/// Sets the options of a listener that another process has made, or of a stream that comes from one. What
/// that process has set for itself is taken back.
pub(crate) fn reset_stream_options(socket: &Socket) -> Vec<Refused> {
    let mut rows = foreign_stream_options(socket);
    rows.push(("SO_LINGER", Promise("connections may end with an RST"), socket.set_linger(None)));
    let mut refused = Refused::of(rows);
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
/// broadcast. Replies have a hop limit of their own, and each datagram comes with its hop limit.
pub(crate) fn set_datagram_options(socket: &Socket, ipv6: bool) -> Vec<Refused> {
    let receive = || set_receive_buffer_size(socket, DATAGRAM_BUFFER);
    let send = || set_send_buffer_size(socket, DATAGRAM_BUFFER);
    let mut rows = datagram_options(socket, ipv6);
    rows.extend([
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
    ]);
    Refused::of(rows)
}

/// Sets the options of a UDP socket that another process has made, and takes back what that process has set
/// for itself.
pub(crate) fn reset_datagram_options(socket: &Socket, ipv6: bool) -> Vec<Refused> {
    let mut refused = Refused::of(foreign_datagram_options(socket, ipv6));
    refused.extend(set_datagram_options(socket, ipv6));
    refused
}

pub(crate) fn set<O: SetSockOpt>(socket: &Socket, option: O, value: &O::Val) -> io::Result<()> {
    Ok(setsockopt(socket, option, value)?)
}

/// Makes a socket listen, or changes the backlog of one that listens.
pub(crate) fn listen<'a>(listener: impl Into<SockRef<'a>>, backlog: u32) -> io::Result<()> {
    listener.into().listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// Whether a socket listens (SO_ACCEPTCONN).
pub(crate) fn is_listening(socket: &Socket) -> bool {
    getsockopt(socket, sockopt::AcceptConn).unwrap_or(false)
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
    let code = error.raw_os_error().map(Errno::from_raw);
    let refuses = [Errno::EACCES, Errno::EPERM, Errno::EINVAL];
    code.is_some_and(|code| is_of_network(code) || refuses.contains(&code))
}

/// Sets the code point that packets leave with, 0 to 63 (RFC 2474): the upper six bits of IP_TOS or IPV6_TCLASS.
#[cfg(feature = "client")]
pub(crate) fn set_dscp(socket: &Socket, ipv6: bool, code_point: u8) -> io::Result<()> {
    let class = u32::from(code_point) << 2;
    if ipv6 { socket.set_tclass_v6(class) } else { socket.set_tos_v4(class) }
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
/// the listener or this process. Without a code, the system returned a connection without an address: the client
/// was gone (macOS).
pub(crate) fn is_about_one_connection(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else { return error.kind() == ErrorKind::InvalidInput };
    let code = Errno::from_raw(code);
    let of_connection = matches!(
        code,
        Errno::ECONNABORTED
            | Errno::EINTR
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::EOPNOTSUPP
            | Errno::ETIMEDOUT
    );
    of_connection || is_of_network(code)
}

/// Whether an error says that no way leads to the peer.
fn is_of_network(code: Errno) -> bool {
    matches!(code, Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EHOSTDOWN)
        || Some(code) == OFF_NETWORK
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn accepted_connections_have_bounded_buffers() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(set_stream_options(&SockRef::from(&listener)).is_empty());
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Socket::from(listener.accept().unwrap().0);
        assert!(stream.recv_buffer_size().unwrap() <= SHOWN * STREAM_BUFFER);
        assert!(stream.send_buffer_size().unwrap() <= SHOWN * STREAM_BUFFER);
    }
}
