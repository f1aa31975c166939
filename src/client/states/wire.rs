//! What goes over the wire: the kernel copies each packet to a socket of ours (packet(7)), which takes CAP_NET_RAW.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use etherparse::{LaxNetSlice, LaxSlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns,
};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::report::{Header, Icmp, Remark, Segment, Side};

/// What is kept of a packet: all of its headers.
const HEADERS: usize = 256;
/// Room for the packets that come between two looks.
const QUEUE: usize = 8 << 20;
/// Every packet, whatever protocol it has (ETH_P_ALL), in the byte order of the network.
const ALL: i32 = 3_u16.to_be() as i32;
/// A packet that leaves (PACKET_OUTGOING), and an interface that hands it to this machine again (ARPHRD_LOOPBACK).
const OUTGOING: u8 = 4;
const LOOPBACK: u16 = 772;

/// The packets to and from the port of a server.
pub(super) struct Wire {
    socket: Socket,
    server: SocketAddr,
    /// When the first segment was seen.
    began: Cell<Option<Duration>>,
    /// Packets that were not asked for yet.
    packets: RefCell<Vec<Packet>>,
    /// What each side of a connection has sent, by the client's address.
    sent: RefCell<HashMap<SocketAddr, [Sent; 2]>>,
}

/// When a packet was seen, its headers and its length.
type Packet = (Duration, Vec<u8>, usize);

/// What a side has sent so far.
#[derive(Clone, Copy, Default)]
struct Sent {
    /// Its initial sequence number, once its SYN was seen.
    first: u32,
    /// The sequence number that comes next.
    next: Option<u32>,
    /// The shift of its window (RFC 7323, 2).
    scale: u8,
}

impl Wire {
    /// # Errors
    ///
    /// Without the right to see packets.
    pub(super) fn open(server: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ALL)))?;
        socket.attach_filter(&of_port(server.port()))?;
        socket.set_recv_buffer_size(QUEUE)?;
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        socket.set_nonblocking(true)?;
        let (began, packets, sent) = Default::default();
        Ok(Self { socket, server, began, packets, sent })
    }

    /// Takes the packets from the kernel, whose room for them is small.
    pub(super) fn collect(&self) -> io::Result<()> {
        while let Some(packet) = self.receive()? {
            self.packets.borrow_mut().push(packet);
        }
        Ok(())
    }

    /// The segments of these clients since it was asked last.
    pub(super) fn take(&self, clients: &[SocketAddr]) -> io::Result<Vec<Segment>> {
        self.collect()?;
        let packets = self.packets.take();
        let segment = |packet: &Packet| self.segment(packet, clients);
        Ok(packets.iter().filter_map(segment).collect())
    }

    /// On loopback each packet comes twice: as it leaves, and as it arrives.
    fn receive(&self) -> io::Result<Option<Packet>> {
        loop {
            let mut bytes = vec![0; HEADERS];
            let mut space = nix::cmsg_space!(TimeSpec);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_TRUNC;
            let fd = self.socket.as_raw_fd();
            let message = match recvmsg::<LinkAddr>(fd, &mut parts, Some(&mut space), flags) {
                Ok(message) => message,
                Err(error) => match io::Error::from(error) {
                    error if error.kind() == ErrorKind::Interrupted => continue,
                    error if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                    error => return Err(error),
                },
            };
            let is_second = message
                .address
                .is_some_and(|from| from.hatype() == LOOPBACK && from.pkttype() != OUTGOING);
            let stamp = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
                _ => None,
            });
            let length = message.bytes;
            if !is_second {
                bytes.truncate(length);
                return Ok(Some((stamp.unwrap_or_default(), bytes, length)));
            }
        }
    }

    /// What the packet is, if it is one of these clients'.
    fn segment(&self, packet: &Packet, clients: &[SocketAddr]) -> Option<Segment> {
        let &(at, ref bytes, length) = packet;
        let packet = LaxSlicedPacket::from_ip(bytes).ok()?;
        let (from, to, headers) = addresses(packet.net.as_ref()?)?;
        let place = |from, to| self.place(from, to, clients);
        let (mut header, mut icmp) = (None, None);
        let mut of_icmp = |kind, code, quoted: &[u8]| {
            icmp = Some(Icmp { kind, code });
            about(quoted, place).map(|(client, side)| (client, side, "ICMP".into()))
        };
        let (client, side, what) = match packet.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => {
                let (client, side) =
                    place((from, tcp.source_port()), (to, tcp.destination_port()))?;
                let length = length.saturating_sub(headers + tcp.header_slice().len()) as u32;
                header = Some(self.header(tcp, length, clients[client - 1], side));
                (client, side, what(tcp, length))
            }
            TransportSlice::Udp(udp) => {
                let (client, side) =
                    place((from, udp.source_port()), (to, udp.destination_port()))?;
                (client, side, bytes_of(length.saturating_sub(headers + UDP_HEADER) as u32))
            }
            TransportSlice::Icmpv4(one) => of_icmp(one.type_u8(), one.code_u8(), one.payload())?,
            TransportSlice::Icmpv6(one) => of_icmp(one.type_u8(), one.code_u8(), one.payload())?,
            TransportSlice::Igmp(_) => return None,
        };
        let began = self.began.get().unwrap_or(at);
        self.began.set(Some(began));
        Some(Segment { client, from: side, what, at: Some(at.saturating_sub(began)), header, icmp })
    }

    /// The number of the client, and the side that sent what goes between these addresses.
    fn place(&self, from: End, to: End, clients: &[SocketAddr]) -> Option<(usize, Side)> {
        let (from, to) = (SocketAddr::from(from), SocketAddr::from(to));
        let (side, client, server) = match same(to, self.server) {
            true => (Side::Client, from, to),
            false => (Side::Server, to, from),
        };
        let number = clients.iter().position(|one| same(*one, client))? + 1;
        same(server, self.server).then_some((number, side))
    }

    fn header(&self, tcp: &TcpSlice<'_>, length: u32, client: SocketAddr, side: Side) -> Header {
        let mut sent = self.sent.borrow_mut();
        let [near, far] = sent.entry(client).or_default();
        let (own, other) = if side == Side::Client { (near, *far) } else { (far, *near) };
        header(tcp, length, own, other)
    }
}

/// An address of IP, and a port.
type End = (IpAddr, u16);

/// The bytes of a header of UDP.
const UDP_HEADER: usize = 8;

/// Where an ICMP message belongs that quotes a datagram: to what has sent that.
fn about(
    quoted: &[u8],
    place: impl Fn(End, End) -> Option<(usize, Side)>,
) -> Option<(usize, Side)> {
    let quoted = LaxSlicedPacket::from_ip(quoted).ok()?;
    let (from, to, _) = addresses(quoted.net.as_ref()?)?;
    let TransportSlice::Udp(udp) = quoted.transport? else { return None };
    let (client, sender) = place((from, udp.source_port()), (to, udp.destination_port()))?;
    let side = if sender == Side::Client { Side::Server } else { Side::Client };
    Some((client, side))
}

/// Source and destination of a packet, and the bytes of its headers that stand before the segment.
fn addresses(net: &LaxNetSlice<'_>) -> Option<(IpAddr, IpAddr, usize)> {
    match net {
        LaxNetSlice::Ipv4(packet) => {
            let header = packet.header();
            let (from, to) = (header.source_addr(), header.destination_addr());
            Some((from.into(), to.into(), header.slice().len()))
        }
        LaxNetSlice::Ipv6(packet) => {
            let (header, extensions) = (packet.header(), packet.extensions().slice());
            let (from, to) = (header.source_addr(), header.destination_addr());
            Some((from.into(), to.into(), header.slice().len() + extensions.len()))
        }
        LaxNetSlice::Arp(_) => None,
    }
}

/// The same address, whatever its notation and its zone.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

/// What a segment is, in a word or two.
fn what(tcp: &TcpSlice<'_>, length: u32) -> Cow<'static, str> {
    match length {
        _ if tcp.rst() => "RST".into(),
        _ if tcp.syn() && tcp.ack() => "SYN+ACK".into(),
        _ if tcp.syn() => "SYN".into(),
        0 if tcp.fin() => "FIN".into(),
        0 => "ACK".into(),
        _ if tcp.fin() && length > 1 => format!("{length} bytes+FIN").into(),
        _ => bytes_of(length),
    }
}

fn bytes_of(length: u32) -> Cow<'static, str> {
    match length {
        1 => "1 byte".into(),
        _ => format!("{length} bytes").into(),
    }
}

/// The fields of a segment. What its side has sent before tells whether it is new.
fn header(tcp: &TcpSlice<'_>, length: u32, own: &mut Sent, other: Sent) -> Header {
    let options: Vec<_> = tcp.options_iterator().map_while(Result::ok).collect();
    let (sequence, acknowledgement) = (tcp.sequence_number(), tcp.acknowledgment_number());
    let mut scale = own.scale;
    if tcp.syn() {
        let shift = options.iter().find_map(|option| match option {
            TcpOptionElement::WindowScale(shift) => Some(*shift),
            _ => None,
        });
        // The window of a SYN is not scaled (RFC 7323, 2.2).
        (own.first, own.scale, scale) = (sequence, shift.unwrap_or(0), 0);
    }
    let space = length + u32::from(tcp.syn()) + u32::from(tcp.fin());
    let end = sequence.wrapping_add(space);
    // Numbers are compared modulo 2^32 (RFC 9293, 3.4).
    let is_before = |one: u32, other: u32| (one.wrapping_sub(other) as i32) < 0;
    let next = own.next.unwrap_or(sequence);
    let remark = match is_before(sequence, next) && !tcp.rst() {
        true if space > 0 => Some(Remark::Again),
        true => Some(Remark::Probe),
        false => None,
    };
    own.next = Some(if is_before(end, next) { next } else { end });
    Header {
        flags: flags(tcp),
        sequence,
        relative_sequence: sequence.wrapping_sub(own.first),
        acknowledgement: tcp.ack().then_some(acknowledgement),
        relative_acknowledgement: tcp.ack().then(|| acknowledgement.wrapping_sub(other.first)),
        window: u32::from(tcp.window_size()) << scale.min(14),
        length,
        options: options.iter().filter(|_| tcp.syn()).filter_map(option).collect(),
        remark,
    }
}

/// The control bits, as RFC 9293 names them.
fn flags(tcp: &TcpSlice<'_>) -> Vec<&'static str> {
    let bits = [
        (tcp.cwr(), "CWR"),
        (tcp.ece(), "ECE"),
        (tcp.urg(), "URG"),
        (tcp.syn(), "SYN"),
        (tcp.fin(), "FIN"),
        (tcp.rst(), "RST"),
        (tcp.psh(), "PSH"),
        (tcp.ack(), "ACK"),
    ];
    bits.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect()
}

/// An option of a SYN.
fn option(option: &TcpOptionElement) -> Option<String> {
    Some(match option {
        TcpOptionElement::MaximumSegmentSize(bytes) => format!("mss {bytes}"),
        TcpOptionElement::WindowScale(shift) => format!("wscale {shift}"),
        TcpOptionElement::SelectiveAcknowledgementPermitted => "sackOK".to_owned(),
        TcpOptionElement::Timestamp(..) => "TS".to_owned(),
        TcpOptionElement::Noop | TcpOptionElement::SelectiveAcknowledgement(..) => return None,
    })
}

/// What passes alone: segments and datagrams from or to a port, and ICMP. Instructions of the classic BPF, for a
/// packet that begins with its IP header.
fn of_port(port: u16) -> [SockFilter; 22] {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_HALF_AFTER_HEADER: u16 = 0x48;
    const LOAD_HEADER_LENGTH: u16 = 0xb1;
    const AND: u16 = 0x54;
    const IS: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ICMP: u32 = 1;
    const TCP: u32 = 6;
    const UDP: u32 = 17;
    const ICMPV6: u32 = 58;
    let port = u32::from(port);
    [
        (LOAD_BYTE, 0, 0, 0),
        (AND, 0, 0, 0xf0),
        (IS, 0, 9, 0x40),
        // IPv4: the protocol, then the ports behind a header of any length.
        (LOAD_BYTE, 0, 0, 9),
        (IS, 16, 0, ICMP),
        (IS, 1, 0, UDP),
        (IS, 0, 13, TCP),
        (LOAD_HEADER_LENGTH, 0, 0, 0),
        (LOAD_HALF_AFTER_HEADER, 0, 0, 0),
        (IS, 11, 0, port),
        (LOAD_HALF_AFTER_HEADER, 0, 0, 2),
        (IS, 9, 8, port),
        // IPv6, without extension headers.
        (LOAD_BYTE, 0, 0, 6),
        (IS, 7, 0, ICMPV6),
        (IS, 1, 0, UDP),
        (IS, 0, 4, TCP),
        (LOAD_HALF, 0, 0, 40),
        (IS, 3, 0, port),
        (LOAD_HALF, 0, 0, 42),
        (IS, 1, 0, port),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, u32::MAX),
    ]
    .map(|(code, yes, no, value)| SockFilter::new(code, yes, no, value))
}
