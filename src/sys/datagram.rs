//! UDP sockets: datagrams with their control messages.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{self, IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use log::debug;
use mio::net::UdpSocket;
use nix::sys::socket::{MsgFlags, SockaddrStorage, recvmsg};
use socket2::SockRef;

use super::Errno;
use super::socket::{Lost, Refused};
use super::system::datagram::{ControlData, REPLIES_WAIT, set_offload};
use super::system::neighbours;
use super::system::socket::{SHOWN, dropped, set_send_buffer_size};

/// The Discard Protocol (RFC 863): its port sends nothing.
const DISCARD: u16 = 9;

/// Bytes for the control messages of a datagram: ours take 100, and the owner of an inherited socket may have
/// asked for others, such as times.
const CONTROL: usize = 512;

/// After how many bytes, the kernel's own included, it looks what was dropped: no queue of ours is that short,
/// and one that was empty in between was never full.
const LOOK_EVERY: usize = 64 << 10;
/// Bytes that the kernel needs for a datagram besides its own, at least.
const OVERHEAD: usize = 512;

/// Receives and sends datagrams, without waiting.
pub(crate) trait Socket {
    /// Receives a datagram, or a run of equal ones in one piece, into the beginning of `buffer`.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, Errno>;

    /// Sends `pieces` back on `route`: as one datagram, or cut into datagrams of `segment` bytes,
    /// the last of which may be shorter.
    fn send(
        &mut self,
        pieces: &[IoSlice<'_>],
        segment: Option<u16>,
        route: &Route,
    ) -> Result<(), Errno>;

    /// Whether the kernel cuts what is sent into segments.
    fn offloads(&self) -> bool;

    /// Lets replies use the whole send buffer, or half of it, as in the beginning.
    fn use_reserve(&mut self, whole: bool);

    /// Neighbours that the kernel is looking for: replies to them stay in the send buffer.
    fn missing_neighbours(&mut self) -> Vec<IpAddr>;

    /// Leaves the port with the datagrams that are queued here: later ones go to the other sockets on
    /// the port, if there are any (SO_REUSEPORT).
    fn leave(&mut self);
}

/// A datagram, or a run of equal ones in one piece, as it was received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received {
    /// Bytes in the buffer, of all datagrams together.
    pub(crate) length: usize,
    /// The length of each datagram but the last; all of `length` where there is only one.
    pub(crate) segment: usize,
    /// Whether the buffer was too short, so that its end is lost.
    pub(crate) truncated: bool,
    /// Whether it was sent to a broadcast or multicast address.
    pub(crate) to_group: bool,
    /// What is left of its hop limit, where that is known.
    pub(crate) hop_limit: Option<u8>,
    /// How many datagrams the kernel was found to have dropped, for want of room in the queue.
    pub(crate) missed: u32,
    /// The way back.
    pub(crate) route: Route,
}

/// Where a datagram came from and was sent to: the way of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// As the socket has it: IPv4-mapped where the socket is an IPv6 one.
    pub(crate) peer: SocketAddr,
    /// Our address, where the socket has several.
    pub(crate) local: Option<IpAddr>,
    /// The index of the interface of `local` where that is link-local, else 0 (RFC 3542, 6.2).
    pub(crate) interface: u32,
}

/// A bound UDP socket.
pub(crate) struct DatagramSocket {
    socket: UdpSocket,
    offload: bool,
    /// Whether it has several addresses, so that replies have to name theirs.
    wildcard: bool,
    /// Half of the send buffer, in bytes as setsockopt(2) takes them.
    half_buffer: usize,
    /// How many datagrams the kernel had dropped at the last look. It wraps.
    dropped: u32,
    /// Bytes received since the last look, or since the queue was empty, with the kernel's own.
    unseen: usize,
    /// Buffer for the control messages of a receive.
    control: Vec<u8>,
    control_data: ControlData,
}

impl DatagramSocket {
    /// Takes a bound socket. It uses segmentation offload where that is wanted and the kernel has it.
    pub(crate) fn new(socket: net::UdpSocket, offload: bool) -> io::Result<Self> {
        // By fcntl(2), which every sandbox has.
        SockRef::from(&socket).set_nonblocking(true)?;
        // A kernel that knows one of the two knows both (udp(7)). An inherited socket may have it set.
        let set = set_offload(&socket, offload);
        let address = socket.local_addr().ok();
        if let (Err(error), true, Some(address)) = (set, offload, address) {
            let lost = Lost::Comfort("each datagram is received and sent alone");
            Refused { what: "UDP_GRO", lost, error: error.into() }.log(address);
        }
        let half_buffer = SockRef::from(&socket).send_buffer_size().unwrap_or(0) / SHOWN / 2;
        let mut socket = DatagramSocket {
            socket: UdpSocket::from_std(socket),
            offload: set.unwrap_or(false),
            wildcard: address.is_none_or(|address| address.ip().is_unspecified()),
            half_buffer,
            dropped: 0,
            unseen: 0,
            control: vec![0; CONTROL],
            control_data: ControlData::new(address.is_some_and(|address| address.is_ipv6())),
        };
        socket.use_reserve(false);
        Ok(socket)
    }

    /// What it is bound to, where that is known.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// How many datagrams the kernel has dropped since the last look. It looks once in a while: a queue that is
    /// full has more bytes than that.
    fn newly_dropped(&mut self, length: usize) -> u32 {
        self.unseen += length + OVERHEAD;
        if self.unseen < LOOK_EVERY {
            return 0;
        }
        self.unseen = 0;
        let total = dropped(&self.socket).unwrap_or(self.dropped);
        total.wrapping_sub(std::mem::replace(&mut self.dropped, total))
    }

    /// The socket to register with mio.
    pub(crate) fn source(&mut self) -> &mut UdpSocket {
        &mut self.socket
    }
}

impl AsFd for DatagramSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Socket for DatagramSocket {
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, Errno> {
        let DatagramSocket { socket, control, control_data, unseen, .. } = self;
        let received = try_io(socket, || {
            let mut buffer = [IoSliceMut::new(buffer)];
            let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
            let message = recvmsg::<SockaddrStorage>(fd, &mut buffer, Some(control), flags)?;
            let peer = message.address.as_ref().and_then(socket_address);
            let mut received = Received::new(message.bytes, peer.ok_or(Errno::EAFNOSUPPORT)?);
            received.truncated = message.flags.contains(MsgFlags::MSG_TRUNC);
            // Control messages that were cut are an error here: without them there is no way back.
            message.cmsgs()?.for_each(|control| control_data.take(&mut received, control));
            Ok(received)
        });
        if let Err(Errno::EAGAIN) = received {
            *unseen = 0;
        }
        let mut received = received.map_err(|error| match error {
            Errno::ECONNABORTED if has_lost_port(socket) => Errno::ESHUTDOWN,
            error => error,
        })?;
        if !self.wildcard {
            received.route.local = None;
        }
        received.missed = self.newly_dropped(received.length);
        Ok(received)
    }

    fn send(
        &mut self,
        pieces: &[IoSlice<'_>],
        segment: Option<u16>,
        route: &Route,
    ) -> Result<(), Errno> {
        let DatagramSocket { socket, control_data, .. } = self;
        try_io(socket, || control_data.send(socket, pieces, segment, route))
    }

    fn offloads(&self) -> bool {
        self.offload
    }

    fn use_reserve(&mut self, whole: bool) {
        if !REPLIES_WAIT {
            return;
        }
        let size = if whole { 2 * self.half_buffer } else { self.half_buffer };
        if let Err(error) = set_send_buffer_size(&SockRef::from(&self.socket), size) {
            debug!(
                event = "send_buffer_unchanged",
                errno = error.raw_os_error();
                "the send buffer stays as it is: {error}"
            );
        }
    }

    fn missing_neighbours(&mut self) -> Vec<IpAddr> {
        neighbours::missing_neighbours().unwrap_or_else(|error| {
            debug!(
                event = "neighbours_unknown",
                errno = error.raw_os_error();
                "the kernel does not tell which neighbours are missing: {error}"
            );
            Vec::new()
        })
    }

    /// Connects the socket to a port that sends nothing: the kernel passes over a connected socket when
    /// it looks for one that is not.
    fn leave(&mut self) {
        let Ok(mut silent) = self.socket.local_addr() else { return };
        silent.set_port(DISCARD);
        // To connect(2), an unspecified address is this machine. Where this fails, what still comes is lost
        // when the socket is closed.
        let _ = self.socket.connect(silent);
    }
}

/// Whether a socket that was destroyed from outside has lost its port, so that nothing comes any more. It
/// keeps one that was not picked by the system.
fn has_lost_port(socket: &UdpSocket) -> bool {
    // The kernel may not be done with it: to set an option waits for that.
    let _ = socket.broadcast().and_then(|is_on| socket.set_broadcast(is_on));
    socket.local_addr().is_ok_and(|bound| bound.port() == 0)
}

/// Makes a call such that mio sees where it would block, and tells when it would not any more.
fn try_io<T>(socket: &UdpSocket, call: impl FnOnce() -> nix::Result<T>) -> nix::Result<T> {
    let outcome = socket.try_io(|| call().map_err(io::Error::from));
    outcome.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
}

impl Received {
    /// One datagram from `peer`, with nothing known beside it.
    pub(crate) fn new(length: usize, peer: SocketAddr) -> Self {
        let route = Route { peer, local: None, interface: 0 };
        let (segment, truncated, to_group, hop_limit) = (length, false, false, None);
        Received { length, segment, truncated, to_group, hop_limit, missed: 0, route }
    }

    /// Whether it came as a run of several datagrams.
    pub(crate) fn is_run(&self) -> bool {
        self.segment < self.length
    }

    /// How many datagrams it is.
    pub(crate) fn count(&self) -> usize {
        if self.is_run() { self.length.div_ceil(self.segment) } else { 1 }
    }

    /// The place of each datagram in a buffer where the first one begins at `start`.
    pub(crate) fn datagrams(&self, start: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let Received { length, segment, .. } = *self;
        let place = move |offset| start + offset..start + length.min(offset + segment);
        (0..self.count()).map(move |index| place(index * segment))
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v6 = address.as_sockaddr_in6().map(|&address| SocketAddrV6::from(address).into());
    v6.or_else(|| address.as_sockaddr_in().map(|&address| SocketAddrV4::from(address).into()))
}

#[cfg(test)]
mod tests {
    use std::iter;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use socket2::{Domain, Type};

    use super::*;
    use crate::sys::socket::{REPLY_HOP_LIMIT, set_datagram_options};

    const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

    /// A socket with the options of the server's; `ipv6` takes IPv4, too.
    fn socket(address: SocketAddr) -> net::UdpSocket {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(false).unwrap();
        }
        socket.set_reuse_port(true).unwrap();
        assert!(set_datagram_options(&socket, address.is_ipv6()).is_empty());
        socket.bind(&address.into()).unwrap();
        socket.into()
    }

    /// Such a socket on any port, and its address.
    fn bound(ip: impl Into<IpAddr>) -> (DatagramSocket, SocketAddr) {
        let socket = socket(SocketAddr::new(ip.into(), 0));
        let address = socket.local_addr().unwrap();
        (DatagramSocket::new(socket, true).unwrap(), address)
    }

    /// The socket receives what is sent to `to`.
    fn exchange(
        socket: &mut DatagramSocket,
        port: u16,
        to: Ipv4Addr,
    ) -> (Received, net::UdpSocket) {
        let client = net::UdpSocket::bind((LOOPBACK, 0)).unwrap();
        client.set_broadcast(true).unwrap();
        client.send_to(b"question", (to, port)).unwrap();
        let mut buffer = [0; 100];
        let received = socket.receive(&mut buffer).unwrap();
        assert_eq!(&buffer[..received.length], b"question");
        (received, client)
    }

    #[test]
    fn a_run_is_cut_where_the_peer_had_cut_it() {
        let peer = (LOOPBACK, 9).into();
        for (length, segment, expected) in [
            (0, 0, &[(5, 5)][..]),
            (7, 7, &[(5, 12)]),
            (7, 3, &[(5, 8), (8, 11), (11, 12)]),
            (6, 3, &[(5, 8), (8, 11)]),
        ] {
            let received = Received { segment, ..Received::new(length, peer) };
            let places = received.datagrams(5).map(|place| (place.start, place.end));
            assert_eq!(places.collect::<Vec<_>>(), expected);
            assert_eq!((received.count(), received.is_run()), (expected.len(), expected.len() > 1));
        }
    }

    /// What is queued is received and answered, and what comes later goes to the other socket on the port.
    #[test]
    fn a_socket_that_leaves_the_port_keeps_what_is_queued() {
        for ip in [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into(), LOOPBACK.into()] {
            let ip: IpAddr = ip;
            let one = socket(SocketAddr::new(ip, 0));
            let address = one.local_addr().unwrap();
            let mut sockets =
                [one, socket(address)].map(|one| DatagramSocket::new(one, false).unwrap());
            let clients: Vec<net::UdpSocket> =
                (0..64).map(|_| net::UdpSocket::bind((LOOPBACK, 0)).unwrap()).collect();
            let ask = || {
                for client in &clients {
                    client.send_to(b"question", (LOOPBACK, address.port())).unwrap();
                }
            };
            let answer = |socket: &mut DatagramSocket| {
                let mut count = 0;
                while let Ok(Received { route, .. }) = socket.receive(&mut [0; 100]) {
                    socket.send(&[IoSlice::new(b"answer")], None, &route).unwrap();
                    count += 1;
                }
                count
            };
            ask();
            sockets[0].leave();
            ask();
            let [left, stayed] = sockets.each_mut().map(answer);
            assert!((1..64).contains(&left), "{left} of 64");
            assert_eq!(left + stayed, 128);
            for client in clients {
                for _ in 0..2 {
                    let (length, from) = client.recv_from(&mut [0; 100]).unwrap();
                    assert_eq!((length, from), (6, (LOOPBACK, address.port()).into()));
                }
            }
        }
    }

    #[test]
    fn what_the_kernel_drops_is_told_of_once() {
        let (mut socket, address) = bound(LOOPBACK);
        let client = net::UdpSocket::bind((LOOPBACK, 0)).unwrap();
        for _ in 0..2 {
            (0..10_000).for_each(|_| _ = client.send_to(&[0; 1_000], address).unwrap());
            let received = iter::from_fn(|| socket.receive(&mut [0; 1_000]).ok());
            let add = |(number, missed), one: Received| (number + 1, missed + one.missed);
            let (number, missed) = received.fold((0, 0), add);
            assert!(missed > 0);
            assert_eq!(number + missed, 10_000);
        }
    }

    /// An unregistered socket is as good as another: a thread that blocks uses one.
    #[test]
    fn a_socket_without_a_datagram_would_block() {
        let (mut socket, address) = bound(LOOPBACK);
        let mut receive = || socket.receive(&mut [0; 100]).map(|received| received.length);
        assert_eq!(receive(), Err(Errno::EAGAIN));
        let client = net::UdpSocket::bind((LOOPBACK, 0)).unwrap();
        client.send_to(b"question", address).unwrap();
        assert_eq!((receive(), receive()), (Ok(8), Err(Errno::EAGAIN)));
    }

    /// mio announces the next datagram once it has seen that there was none, with any selector.
    #[test]
    fn events_come_again_after_a_receive_would_block() {
        let (mut socket, address) = bound(LOOPBACK);
        let (mut poll, mut events) = (mio::Poll::new().unwrap(), mio::Events::with_capacity(8));
        let registry = poll.registry();
        registry.register(socket.source(), mio::Token(0), mio::Interest::READABLE).unwrap();
        let client = net::UdpSocket::bind((LOOPBACK, 0)).unwrap();
        for round in 0..3 {
            client.send_to(b"question", address).unwrap();
            poll.poll(&mut events, Some(std::time::Duration::from_secs(60))).unwrap();
            assert!(events.iter().any(mio::event::Event::is_readable), "round {round}");
            assert!(socket.receive(&mut [0; 100]).is_ok());
            assert_eq!(socket.receive(&mut [0; 100]).map(drop), Err(Errno::EAGAIN));
        }
        poll.registry().deregister(socket.source()).unwrap();
    }

    fn everywhere() -> [(DatagramSocket, SocketAddr); 2] {
        [bound(Ipv6Addr::UNSPECIFIED), bound(Ipv4Addr::UNSPECIFIED)]
    }

    #[test]
    fn replies_leave_from_the_address_that_was_asked() {
        for (mut socket, address) in everywhere() {
            let to = Ipv4Addr::new(127, 3, 2, 1);
            let (received, client) = exchange(&mut socket, address.port(), to);
            assert_ne!(received.route.local, None);
            // More than once, since the headers are used again.
            for segment in [None, Some(3), None, Some(3)] {
                socket.send(&[IoSlice::new(b"answer")], segment, &received.route).unwrap();
                let mut buffer = [0; 100];
                for part in if segment.is_some() { &["ans", "wer"][..] } else { &["answer"] } {
                    let (length, from) = client.recv_from(&mut buffer).unwrap();
                    assert_eq!(&buffer[..length], part.as_bytes());
                    assert_eq!(from, SocketAddr::from((to, address.port())));
                }
            }
        }
    }

    /// So that no server of this kind answers it.
    #[test]
    fn a_reply_is_known_by_its_hop_limit() {
        let any: IpAddr = Ipv6Addr::UNSPECIFIED.into();
        for bind in [any, LOOPBACK.into()] {
            let ((mut one, address), (mut other, other_address)) = (bound(bind), bound(bind));
            let (received, _client) = exchange(&mut one, address.port(), LOOPBACK);
            assert_ne!(received.hop_limit, Some(REPLY_HOP_LIMIT));
            let peer = if bind.is_ipv6() {
                IpAddr::V6(LOOPBACK.to_ipv6_mapped())
            } else {
                LOOPBACK.into()
            };
            let Received { route, .. } = Received::new(0, (peer, other_address.port()).into());
            one.send(&[IoSlice::new(b"answer")], None, &route).unwrap();
            let received = other.receive(&mut [0; 100]).unwrap();
            assert_eq!(received.hop_limit, Some(REPLY_HOP_LIMIT));
        }
        let Ok(client) = net::UdpSocket::bind("[::1]:0") else { return };
        let (mut socket, address) = bound(any);
        client.send_to(b"question", ("::1", address.port())).unwrap();
        let received = socket.receive(&mut [0; 100]).unwrap();
        let (mut other, other_address) = bound(any);
        let peer = (received.route.peer.ip(), other_address.port()).into();
        socket.send(&[IoSlice::new(b"answer")], None, &Route { peer, ..received.route }).unwrap();
        let received = other.receive(&mut [0; 100]).unwrap();
        assert_eq!(received.hop_limit, Some(REPLY_HOP_LIMIT));
    }

    #[test]
    fn a_broadcast_is_told_from_a_datagram_to_us() {
        let port = |address: &SocketAddr| address.port();
        for (mut socket, address) in everywhere() {
            let (received, _) = exchange(&mut socket, port(&address), LOOPBACK);
            assert!(!received.to_group);
            let broadcast = Ipv4Addr::new(127, 255, 255, 255);
            let (received, _) = exchange(&mut socket, port(&address), broadcast);
            assert!(received.to_group, "{address}");
        }
        let broadcast = Ipv4Addr::new(127, 255, 255, 255);
        let (mut socket, address) = bound(broadcast);
        let (received, _) = exchange(&mut socket, port(&address), broadcast);
        assert!(received.to_group);
    }

    /// A socket with one address need not name it.
    #[test]
    fn a_socket_with_one_address_leaves_from_there() {
        let (mut socket, address) = bound(LOOPBACK);
        let (received, client) = exchange(&mut socket, address.port(), LOOPBACK);
        assert_eq!(received.route.local, None);
        for segment in [None, Some(8)] {
            socket.send(&[IoSlice::new(b"question")], segment, &received.route).unwrap();
            assert_eq!(client.recv_from(&mut [0; 100]).unwrap(), (8, address));
        }
    }
}
