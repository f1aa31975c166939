//! The one place where datagrams meet the system: recvmsg(2) and sendmmsg(2), with their control data.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use log::debug;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{cmsghdr, in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmsg,
    sendmmsg, setsockopt, sockopt,
};

use socket2::SockRef;

use super::neighbours;
use super::socket::set_send_buffer_size;

/// The Discard Protocol (RFC 863): its port sends nothing.
const DISCARD: u16 = 9;

/// What datagrams come from and go to.
pub(crate) trait Socket {
    /// Receives a datagram, or a run of equal ones in one piece, into the beginning of `room`.
    fn receive(&mut self, room: &mut [u8]) -> Result<Received, Errno>;

    /// Sends `pieces` back on `route`: as one datagram, or cut into datagrams of `segment` bytes,
    /// the last of which may be shorter.
    fn send(
        &mut self,
        pieces: &[IoSlice<'_>],
        segment: Option<u16>,
        route: &Route,
    ) -> Result<(), Errno>;

    /// Lets answers use the whole send buffer, or no more than half of it, as in the beginning.
    fn use_reserve(&mut self, whole: bool);

    /// Neighbours that the kernel is looking for: answers to them stay in the send buffer.
    fn missing_neighbours(&mut self) -> Vec<IpAddr>;

    /// Leaves the port, with all that waits here: what comes from now on is for the other sockets on
    /// the port, if there are some (SO_REUSEPORT).
    fn leave(&mut self);

    /// The address of ours that a datagram on `route` was sent to.
    fn local_addr(&self, route: &Route) -> io::Result<SocketAddr>;
}

/// A datagram, or a run of equal ones, as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) length: usize,
    /// The length of each of a run but the last.
    pub(crate) segment: Option<usize>,
    pub(crate) truncated: bool,
    pub(crate) arrival: Arrival,
    pub(crate) route: Route,
}

/// How a datagram came, as far as that decides whether it may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Whether it was sent to an address of ours: not to a group or to everyone.
    pub(crate) to_us_alone: bool,
    /// What is left of its hop limit, where that is known.
    pub(crate) hop_limit: Option<u8>,
}

/// Where a datagram came from and went to: the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// As the socket has it: IPv4-mapped where the socket is an IPv6 one.
    pub(crate) peer: SocketAddr,
    pub(crate) local: Option<Local>,
}

/// Which of our addresses a datagram was sent to, where the socket has several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Local {
    V4([u8; 4]),
    /// With the index of its interface where the address is link-local, else 0 (RFC 3542, 6.2).
    V6([u8; 16], u32),
}

/// A bound, non-blocking UDP socket.
pub(crate) struct BoundSocket {
    socket: UdpSocket,
    /// Whether it has several addresses, so that replies have to name theirs.
    wildcard: bool,
    /// Half of the send buffer, in bytes as setsockopt(2) takes them.
    half_buffer: usize,
    /// Room for what comes beside a datagram.
    control: Vec<u8>,
    headers: Headers,
}

impl BoundSocket {
    /// Takes the socket; `offload` becomes false where the kernel has no segmentation offload.
    pub(crate) fn new(socket: UdpSocket, offload: &mut bool) -> Self {
        // A kernel that knows one of the two knows both (udp(7)). Who had the socket before may have
        // wanted it otherwise.
        *offload = setsockopt(&socket, sockopt::UdpGroSegment, offload).is_ok() && *offload;
        let address = socket.local_addr().ok();
        // The system shows twice what it was asked for (socket(7)).
        let half_buffer = SockRef::from(&socket).send_buffer_size().unwrap_or(0) / 4;
        let mut socket = BoundSocket {
            half_buffer,
            wildcard: address.is_none_or(|address| address.ip().is_unspecified()),
            headers: Headers::new(address.is_some_and(|address| address.is_ipv6())),
            control: cmsg_space!(in_pktinfo, in6_pktinfo, i32, i32),
            socket,
        };
        socket.use_reserve(false);
        socket
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What a thread that has nothing else to do waits for.
    pub(crate) fn poll_fd(&self, events: PollFlags) -> PollFd<'_> {
        PollFd::new(self.socket.as_fd(), events)
    }
}

impl Socket for BoundSocket {
    fn receive(&mut self, room: &mut [u8]) -> Result<Received, Errno> {
        let mut room = [IoSliceMut::new(room)];
        let message = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut room,
            Some(&mut self.control),
            MsgFlags::empty(),
        )?;
        let peer = message.address.as_ref().and_then(socket_address).ok_or(Errno::EAFNOSUPPORT)?;
        let mut received = Received {
            length: message.bytes,
            segment: None,
            truncated: message.flags.contains(MsgFlags::MSG_TRUNC),
            arrival: Arrival { to_us_alone: true, hop_limit: None },
            route: Route { peer, local: None },
        };
        // Control data that were cut would be an error here: without them there is no way back.
        for control in message.cmsgs()? {
            received.note(control);
        }
        if !self.wildcard {
            received.route.local = None;
        }
        Ok(received)
    }

    fn send(
        &mut self,
        pieces: &[IoSlice<'_>],
        segment: Option<u16>,
        route: &Route,
    ) -> Result<(), Errno> {
        self.headers.send(&self.socket, pieces, segment, route)
    }

    fn use_reserve(&mut self, whole: bool) {
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

    /// The kernel passes over a connected socket when it looks for one that is not.
    fn leave(&mut self) {
        let Ok(mut nobody) = self.socket.local_addr() else { return };
        if nobody.ip().is_unspecified() {
            nobody.set_ip(match nobody {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        nobody.set_port(DISCARD);
        // Where this fails, what still comes is lost when the socket is closed.
        let _ = self.socket.connect(nobody);
    }

    fn local_addr(&self, route: &Route) -> io::Result<SocketAddr> {
        let bound = self.socket.local_addr()?;
        let ip = match route.local {
            None => bound.ip(),
            Some(Local::V4(octets)) => octets.into(),
            Some(Local::V6(octets, _)) => octets.into(),
        };
        Ok(SocketAddr::new(ip.to_canonical(), bound.port()))
    }
}

impl Received {
    /// Takes what stood beside the datagram (udp(7), ip(7), ipv6(7)).
    fn note(&mut self, control: ControlMessageOwned) {
        match control {
            ControlMessageOwned::UdpGroSegments(size) => self.segment = usize::try_from(size).ok(),
            // For a datagram to a group or to everyone, the second is an address of ours all the same.
            // Where the datagram came before the option was set, it is not known.
            ControlMessageOwned::Ipv4PacketInfo(in_pktinfo { ipi_addr, ipi_spec_dst, .. }) => {
                let (to, ours) = (ipi_addr.s_addr, ipi_spec_dst.s_addr);
                self.arrival.to_us_alone &= ours == to || ours == 0;
                // An IPv6 socket says it the other way, too.
                self.route.local.get_or_insert(Local::V4(to.to_ne_bytes()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                self.arrival.to_us_alone &= !address.is_multicast();
                let interface = if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                self.route.local = Some(Local::V6(address.octets(), interface));
            }
            ControlMessageOwned::Ipv4Ttl(left) | ControlMessageOwned::Ipv6HopLimit(left) => {
                self.arrival.hop_limit = u8::try_from(left).ok();
            }
            _ => {}
        }
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v6 = address.as_sockaddr_in6().map(|&address| SocketAddrV6::from(address).into());
    v6.or_else(|| address.as_sockaddr_in().map(|&address| SocketAddrV4::from(address).into()))
}

/// Headers for sending, made once: nix would otherwise allocate control data for each message.
struct Headers {
    /// Alone, and no address to leave from.
    bare: MultiHeaders<SockaddrStorage>,
    segmented: MultiHeaders<SockaddrStorage>,
    from: MultiHeaders<SockaddrStorage>,
    from_segmented: MultiHeaders<SockaddrStorage>,
}

impl Headers {
    fn new(ipv6: bool) -> Self {
        let (from, from_segmented) = if ipv6 {
            (alone::<in6_pktinfo>(), cmsg_space!(in6_pktinfo, u16))
        } else {
            (alone::<in_pktinfo>(), cmsg_space!(in_pktinfo, u16))
        };
        Headers {
            bare: MultiHeaders::preallocate(1, None),
            segmented: MultiHeaders::preallocate(1, Some(cmsg_space!(u16))),
            from: MultiHeaders::preallocate(1, Some(from)),
            from_segmented: MultiHeaders::preallocate(1, Some(from_segmented)),
        }
    }

    /// Sends `pieces` back on `route`, cut into datagrams of `segment` bytes where that is given.
    fn send(
        &mut self,
        socket: &UdpSocket,
        pieces: &[IoSlice<'_>],
        segment: Option<u16>,
        route: &Route,
    ) -> Result<(), Errno> {
        let (v4, v6);
        let from = match route.local {
            None => None,
            Some(Local::V4(address)) => {
                v4 = in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(address) },
                    ipi_addr: in_addr { s_addr: 0 },
                };
                Some(ControlMessage::Ipv4PacketInfo(&v4))
            }
            Some(Local::V6(s6_addr, ipi6_ifindex)) => {
                v6 = in6_pktinfo { ipi6_addr: in6_addr { s6_addr }, ipi6_ifindex };
                Some(ControlMessage::Ipv6PacketInfo(&v6))
            }
        };
        let segments = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        let to = [Some(SockaddrStorage::from(route.peer))];
        let pieces = [pieces];
        let send = |headers, controls: &[ControlMessage<'_>]| {
            sendmmsg(socket.as_raw_fd(), headers, &pieces, to, controls, MsgFlags::empty())
                .map(drop)
        };
        match (from, segments) {
            (None, None) => send(&mut self.bare, &[]),
            (None, Some(segments)) => send(&mut self.segmented, &[segments]),
            (Some(from), None) => send(&mut self.from, &[from]),
            (Some(from), Some(segments)) => send(&mut self.from_segmented, &[from, segments]),
        }
    }
}

/// Room for one control message without the padding behind it, which would only make the kernel
/// allocate: control data of up to 36 bytes stand on its stack.
fn alone<T>() -> Vec<u8> {
    Vec::with_capacity(size_of::<cmsghdr>() + size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Transport};
    use crate::sys::socket::REPLY_HOP_LIMIT;

    const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

    /// A socket as the server has it, its address, and whether it is an IPv6 one.
    fn bound(bind: &[IpAddr]) -> (BoundSocket, SocketAddr) {
        let mut config = Config::default();
        let bind = bind.iter().map(|&ip| ip.into()).collect();
        (config.port, config.bind, config.transport) = (0, bind, Transport::Udp);
        let socket = crate::server::sockets::bind(&config).unwrap().datagrams.remove(0);
        let address = socket.local_addr().unwrap();
        (BoundSocket::new(socket, &mut true), address)
    }

    /// The socket receives what is sent to `to`, and answers it.
    fn exchange(socket: &mut BoundSocket, port: u16, to: Ipv4Addr) -> (Received, UdpSocket) {
        let client = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        client.set_broadcast(true).unwrap();
        client.send_to(b"question", (to, port)).unwrap();
        let mut room = [0; 100];
        let received = socket.receive(&mut room).unwrap();
        assert_eq!(&room[..received.length], b"question");
        (received, client)
    }

    /// What waits is received and answered, and what comes later goes to the other socket on the port.
    #[test]
    fn who_leaves_the_port_keeps_what_waits() {
        for bind in [&[][..], &[Ipv4Addr::UNSPECIFIED.into()], &[LOOPBACK.into()]] {
            let mut config = Config::default();
            let bind = bind.iter().map(|&ip: &IpAddr| ip.into()).collect();
            (config.bind, config.port, config.reuse_port) = (bind, 0, true);
            config.transport = Transport::Udp;
            let socket = |config: &Config| {
                let socket = crate::server::sockets::bind(config).unwrap().datagrams.remove(0);
                socket.set_nonblocking(true).unwrap();
                socket
            };
            let one = socket(&config);
            let address = one.local_addr().unwrap();
            config.port = address.port();
            let mut sockets = [one, socket(&config)].map(|one| BoundSocket::new(one, &mut false));
            let clients: Vec<UdpSocket> =
                (0..64).map(|_| UdpSocket::bind((LOOPBACK, 0)).unwrap()).collect();
            let ask = || {
                for client in &clients {
                    client.send_to(b"question", (LOOPBACK, address.port())).unwrap();
                }
            };
            let answer = |socket: &mut BoundSocket| {
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

    fn everywhere() -> [(BoundSocket, SocketAddr); 2] {
        [bound(&[]), bound(&[Ipv4Addr::UNSPECIFIED.into()])]
    }

    /// One address to leave from is control data of 36 bytes at the most, which stand on the kernel's
    /// stack (___sys_sendmsg): this holds only as long as nix takes the capacity for the length, and
    /// wants no padding behind the last message.
    #[test]
    fn an_address_to_leave_from_takes_no_allocation() {
        assert_eq!(alone::<in6_pktinfo>().capacity(), 36);
        assert!(alone::<in_pktinfo>().capacity() <= 36);
        for (mut socket, address) in everywhere() {
            let to = Ipv4Addr::new(127, 3, 2, 1);
            let (received, client) = exchange(&mut socket, address.port(), to);
            assert_ne!(received.route.local, None);
            // More than once, since the headers are used again.
            for segment in [None, Some(3), None, Some(3)] {
                socket.send(&[IoSlice::new(b"answer")], segment, &received.route).unwrap();
                let mut room = [0; 100];
                for part in if segment.is_some() { &["ans", "wer"][..] } else { &["answer"] } {
                    let (length, from) = client.recv_from(&mut room).unwrap();
                    assert_eq!(&room[..length], part.as_bytes());
                    assert_eq!(from, SocketAddr::from((to, address.port())));
                }
            }
        }
    }

    /// So that no server of this kind answers it.
    #[test]
    fn an_answer_is_known_by_its_hop_limit() {
        let localhost = |ip: &str| [ip.parse().unwrap()];
        for (bind, ip) in [(&[][..], "127.0.0.1"), (&localhost("127.0.0.1"), "127.0.0.1")] {
            let ((mut one, address), (mut other, other_address)) = (bound(bind), bound(bind));
            let ip = ip.parse().unwrap();
            let (received, _client) = exchange(&mut one, address.port(), ip);
            assert_ne!(received.arrival.hop_limit, Some(REPLY_HOP_LIMIT));
            let peer =
                if other_address.is_ipv6() { IpAddr::V6(ip.to_ipv6_mapped()) } else { ip.into() };
            let route = Route { peer: (peer, other_address.port()).into(), local: None };
            one.send(&[IoSlice::new(b"answer")], None, &route).unwrap();
            let received = other.receive(&mut [0; 100]).unwrap();
            assert_eq!(received.arrival.hop_limit, Some(REPLY_HOP_LIMIT));
        }
        let Ok(client) = UdpSocket::bind("[::1]:0") else { return };
        let (mut socket, address) = bound(&[]);
        client.send_to(b"question", ("::1", address.port())).unwrap();
        let received = socket.receive(&mut [0; 100]).unwrap();
        let (mut other, other_address) = bound(&[]);
        let peer = (received.route.peer.ip(), other_address.port()).into();
        socket.send(&[IoSlice::new(b"answer")], None, &Route { peer, ..received.route }).unwrap();
        let received = other.receive(&mut [0; 100]).unwrap();
        assert_eq!(received.arrival.hop_limit, Some(REPLY_HOP_LIMIT));
    }

    #[test]
    fn a_broadcast_is_told_from_a_question_to_us() {
        let port = |address: &SocketAddr| address.port();
        for (mut socket, address) in everywhere() {
            let (received, _) = exchange(&mut socket, port(&address), LOOPBACK);
            assert!(received.arrival.to_us_alone);
            let everyone = Ipv4Addr::new(127, 255, 255, 255);
            let (received, _) = exchange(&mut socket, port(&address), everyone);
            assert!(!received.arrival.to_us_alone, "{address}");
        }
        let everyone = Ipv4Addr::new(127, 255, 255, 255);
        let (mut socket, address) = bound(&[everyone.into()]);
        let (received, _) = exchange(&mut socket, port(&address), everyone);
        assert!(!received.arrival.to_us_alone);
    }

    /// Who has one address need not name it.
    #[test]
    fn a_socket_with_one_address_leaves_from_there() {
        let (mut socket, address) = bound(&[LOOPBACK.into()]);
        let (received, client) = exchange(&mut socket, address.port(), LOOPBACK);
        assert_eq!(received.route.local, None);
        for segment in [None, Some(8)] {
            socket.send(&[IoSlice::new(b"question")], segment, &received.route).unwrap();
            assert_eq!(client.recv_from(&mut [0; 100]).unwrap(), (8, address));
        }
    }
}
