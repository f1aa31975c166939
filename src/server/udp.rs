//! Datagrams: receive a batch, answer a batch.
//!
//! Each datagram gets one of the same length back (RFC 862), from the address that it was sent to.
//! What is received stands in one buffer, one after the other, so that answers to one peer are often
//! one piece of it, and leave in one call: as one datagram, or with segmentation offload (udp(7),
//! UDP_SEGMENT) as a run of equal ones, which the kernel cuts where the peer had cut them. The same
//! offload on receive (UDP_GRO) hands over such a run in one piece.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use log::{debug, info, warn};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_pktinfo, in6_pktinfo};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmsg,
    sendmmsg, setsockopt, sockopt,
};

use self::replies::{Call, Joining, Local, MAX_SEGMENTS, Piece, Place, Replies, Route};
use super::clock::{Episode, Moment};
use super::guard::{Guard, Refusal};
use super::peer::Peer;
use crate::protocol::{Scratch, Service, Session};
use crate::stats::Stats;

mod replies;

/// No datagram of any address family is longer, nor a run of them that comes in one piece.
const MAX_RECEIVE: usize = 65_535;
/// The longest segment that is joined unasked: what fits an Ethernet frame under IPv6 and a tunnel.
const MAX_JOINED_SEGMENT: usize = 1_420;
/// So many datagrams, or runs of them, are received in a turn.
const BATCH: usize = 64;
/// So many turns at the most, when a socket is to be closed.
const LAST_TURNS: usize = 64;
/// Room for what a turn receives: a batch of Ethernet size, or four of any size.
const ROOM: usize = 4 * MAX_RECEIVE;

/// One UDP socket of a server.
pub(super) struct Datagrams<V> {
    socket: UdpSocket,
    session: Session<V>,
    stats: Arc<Stats>,
    readable: bool,
    writable: bool,
    /// Whether runs of equal datagrams leave in one call.
    join: bool,
    /// What was received, one after the other.
    room: Box<[u8]>,
    control: Vec<u8>,
    /// Replies that are not what was received, one after the other.
    written: Vec<u8>,
    scratch: Scratch,
    /// Those that have not left yet.
    replies: Replies,
    outbox: Outbox,
    limited: Episode,
    /// What happened in this turn.
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    received: usize,
    answered: usize,
    bytes_in: usize,
    bytes_out: usize,
}

/// A datagram, or a run of equal ones, as it came.
struct Received {
    length: usize,
    /// The length of each of a run but the last.
    segment: Option<usize>,
    truncated: bool,
    route: Route,
}

impl<V: Service> Datagrams<V> {
    /// Takes a bound, non-blocking socket.
    pub(super) fn new(
        socket: UdpSocket,
        session: Session<V>,
        offload: bool,
        stats: Arc<Stats>,
    ) -> Self {
        // A kernel that knows one of the two knows both (udp(7)).
        let offload = offload && setsockopt(&socket, sockopt::UdpGroSegment, &true).is_ok();
        let outbox = Outbox::new(&socket);
        Datagrams {
            socket,
            session,
            stats,
            readable: false,
            writable: true,
            join: offload,
            room: vec![0; ROOM].into_boxed_slice(),
            control: cmsg_space!(in_pktinfo, in6_pktinfo, i32),
            written: Vec::new(),
            scratch: Scratch::default(),
            replies: Replies::new(),
            outbox,
            limited: Episode::default(),
            tally: Tally::default(),
        }
    }

    /// An event of the socket.
    pub(super) fn hint(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Whether there is something to do at once.
    pub(super) fn can_act(&self) -> bool {
        if self.is_waiting() { self.writable } else { self.readable }
    }

    /// Sends what had to wait, then receives and answers one batch.
    pub(super) fn turn(&mut self, guard: &mut Guard, now: Moment) {
        if !self.can_act() {
            return;
        }
        if self.is_waiting() {
            self.send();
        }
        if !self.is_waiting() {
            self.receive(guard, now);
            self.send();
        }
        self.count();
    }

    fn count(&mut self) {
        let Tally { received, answered, bytes_in, bytes_out } = std::mem::take(&mut self.tally);
        self.stats.udp_received.add(received as u64);
        self.stats.udp_answered.add(answered as u64);
        self.stats.udp_bytes_in.add(bytes_in as u64);
        self.stats.udp_bytes_out.add(bytes_out as u64);
    }

    /// Answers what is in the queue, and no more than the socket takes: the last turns of a socket.
    pub(super) fn finish(&mut self, guard: &mut Guard, now: Moment) {
        for _ in 0..LAST_TURNS {
            self.turn(guard, now);
        }
    }

    /// What a thread that has nothing else to do waits for.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        let events = if self.is_waiting() { PollFlags::POLLOUT } else { PollFlags::POLLIN };
        PollFd::new(self.socket.as_fd(), events)
    }

    /// Whether some answers of the last batch have not left yet.
    fn is_waiting(&self) -> bool {
        !self.replies.is_empty()
    }

    // ---- receive

    fn receive(&mut self, guard: &mut Guard, now: Moment) {
        self.replies.clear();
        self.written.clear();
        let mut used = 0;
        for _ in 0..BATCH {
            if self.room.len() - used < MAX_RECEIVE {
                return;
            }
            let room = &mut self.room[used..];
            match receive_one(self.socket.as_raw_fd(), room, &mut self.control) {
                Ok(received) => {
                    let bytes = used..used + received.length;
                    used = bytes.end;
                    self.answer(received, bytes, guard, now);
                }
                Err(Errno::EAGAIN) => {
                    self.readable = false;
                    return;
                }
                Err(Errno::EINTR) => {}
                // What an earlier datagram of ours met on its way.
                Err(error) => {
                    self.stats.udp_errors.increment();
                    debug!("receiving a datagram: {error}");
                }
            }
        }
    }

    /// Answers each datagram of what was received at `bytes` of the room.
    fn answer(&mut self, received: Received, bytes: Range<usize>, guard: &mut Guard, now: Moment) {
        let Received { length, segment, truncated, route } = received;
        let segment = segment.filter(|&segment| (1..length).contains(&segment));
        let (size, count) = segment.map_or((length, 1), |size| (size, length.div_ceil(size)));
        self.tally.received += count;
        self.tally.bytes_in += length;
        if truncated {
            self.stats.udp_truncated.add(count as u64);
            return;
        }
        let peer = Peer::from(route.peer);
        for index in 0..count {
            let start = bytes.start + index * size;
            let end = bytes.end.min(start + size);
            match guard.admit(peer, now) {
                Ok(()) => self.reply(start..end, segment.is_some(), route, peer),
                Err(Refusal::Rate) => {
                    self.stats.udp_rate_limited.increment();
                    if self.limited.begins(now) {
                        warn!(
                            "{peer} sends more datagrams than one source has answered (--udp-rate): further ones are dropped"
                        );
                    }
                }
                Err(Refusal::Port | Refusal::NotUnicast) => {
                    self.stats.udp_guarded.increment();
                    debug!("{peer} is not answered: its port or address could begin a loop");
                }
            }
        }
    }

    /// Has the service answer one datagram.
    fn reply(&mut self, bytes: Range<usize>, came_joined: bool, route: Route, peer: Peer) {
        let input = &self.room[bytes.clone()];
        let reply = self.session.datagram(input, &mut self.scratch);
        let (place, bytes) = if std::ptr::eq(reply, input) {
            (Place::Room, bytes)
        } else {
            let start = self.written.len();
            self.written.extend_from_slice(reply);
            (Place::Written, start..self.written.len())
        };
        let joining = if came_joined {
            Joining::AsItCame
        } else if bytes.len() <= MAX_JOINED_SEGMENT || peer.is_loopback() {
            Joining::Unasked
        } else {
            Joining::Never
        };
        self.replies.push(Piece { place, bytes }, route, joining);
    }

    // ---- send

    fn send(&mut self) {
        while self.writable
            && let Some(call) = self.replies.next_call(self.join)
        {
            match self.make(call) {
                Ok(()) => self.note_sent(call),
                Err(Errno::EAGAIN) => {
                    self.writable = false;
                    self.stats.udp_paused.increment();
                }
                Err(Errno::EINTR) => {}
                Err(error @ (Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE))
                    if call.segment.is_some() =>
                {
                    self.send_unjoined(call, error);
                }
                Err(error) => self.give_up(call, error),
            }
        }
    }

    /// A joined run was refused. If its first datagram alone is not, joining is to blame, and is over
    /// with for good.
    fn send_unjoined(&mut self, joined: Call, refusal: Errno) {
        let first = self.replies.next_call(false).expect("the run is still there");
        match self.make(first) {
            Ok(()) => {
                self.join = false;
                info!(
                    "UDP segmentation offload is off from here on: {refusal} for a run of datagrams that go one by one"
                );
                self.note_sent(first);
            }
            Err(Errno::EAGAIN) => self.writable = false,
            Err(Errno::EINTR) => {}
            Err(error) => self.give_up(joined, error),
        }
    }

    fn make(&mut self, call: Call) -> nix::Result<()> {
        let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS];
        let mut used = 0;
        for (slice, Piece { place, bytes }) in slices.iter_mut().zip(self.replies.pieces(call)) {
            let buffer = match place {
                Place::Room => &self.room,
                Place::Written => self.written.as_slice(),
            };
            *slice = IoSlice::new(&buffer[bytes]);
            used += 1;
        }
        self.outbox.send(&self.socket, &slices[..used], call.segment, &call.route)
    }

    /// An answer cannot be sent: that is between the peer, the network and whoever filters it.
    fn give_up(&mut self, call: Call, error: Errno) {
        self.stats.udp_errors.add(call.count as u64);
        debug!("sending a datagram: {error}");
        self.replies.advance(call);
    }

    fn note_sent(&mut self, call: Call) {
        self.tally.answered += call.count;
        self.tally.bytes_out += call.length;
        self.replies.advance(call);
    }
}

/// Receives one datagram, or one run of them.
fn receive_one(fd: RawFd, room: &mut [u8], control: &mut [u8]) -> nix::Result<Received> {
    let mut room = [IoSliceMut::new(room)];
    let message = recvmsg::<SockaddrStorage>(fd, &mut room, Some(control), MsgFlags::empty())?;
    let peer = message.address.as_ref().and_then(socket_address).ok_or(Errno::EAFNOSUPPORT)?;
    let mut received = Received {
        length: message.bytes,
        segment: None,
        truncated: message.flags.contains(MsgFlags::MSG_TRUNC),
        route: Route { peer, local: None },
    };
    // Control data that were cut would be an error here: without them there is no way back.
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::UdpGroSegments(size) => {
                received.segment = usize::try_from(size).ok()
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                received.route.local = Some(Local::V4(info.ipi_spec_dst.s_addr.to_ne_bytes()));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                received.route.local = Some(Local::V6(info.ipi6_addr.s6_addr));
            }
            _ => {}
        }
    }
    Ok(received)
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v6 = address.as_sockaddr_in6().map(|&address| SocketAddrV6::from(address).into());
    v6.or_else(|| address.as_sockaddr_in().map(|&address| SocketAddrV4::from(address).into()))
}

/// Headers for sending, made once: nix would otherwise allocate control data for each message.
struct Outbox {
    /// Alone, and no address to leave from.
    bare: MultiHeaders<SockaddrStorage>,
    segmented: MultiHeaders<SockaddrStorage>,
    from: MultiHeaders<SockaddrStorage>,
    from_segmented: MultiHeaders<SockaddrStorage>,
}

impl Outbox {
    fn new(socket: &UdpSocket) -> Self {
        let ipv6 = socket.local_addr().is_ok_and(|address| address.is_ipv6());
        let (from, from_segmented) = if ipv6 {
            // Without the padding behind it, which only would make the kernel allocate: control data
            // of up to 36 bytes stand on its stack.
            let header = size_of::<nix::libc::cmsghdr>();
            let bare = Vec::with_capacity(header + size_of::<in6_pktinfo>());
            (bare, cmsg_space!(in6_pktinfo, u16))
        } else {
            (cmsg_space!(in_pktinfo), cmsg_space!(in_pktinfo, u16))
        };
        Outbox {
            bare: MultiHeaders::preallocate(1, None),
            segmented: MultiHeaders::preallocate(1, Some(cmsg_space!(u16))),
            from: MultiHeaders::preallocate(1, Some(from)),
            from_segmented: MultiHeaders::preallocate(1, Some(from_segmented)),
        }
    }

    /// Sends `bytes` back on `route`, cut into datagrams of `segment` bytes where that is given.
    fn send(
        &mut self,
        socket: &UdpSocket,
        bytes: &[IoSlice<'_>],
        segment: Option<u16>,
        route: &Route,
    ) -> nix::Result<()> {
        let (v4, v6);
        let from = match route.local {
            None => None,
            Some(Local::V4(address)) => {
                let s_addr = u32::from_ne_bytes(address);
                let (spec_dst, addr) =
                    (nix::libc::in_addr { s_addr }, nix::libc::in_addr { s_addr: 0 });
                v4 = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: spec_dst, ipi_addr: addr };
                Some(ControlMessage::Ipv4PacketInfo(&v4))
            }
            Some(Local::V6(s6_addr)) => {
                v6 = in6_pktinfo { ipi6_addr: nix::libc::in6_addr { s6_addr }, ipi6_ifindex: 0 };
                Some(ControlMessage::Ipv6PacketInfo(&v6))
            }
        };
        let segments = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        let to = [Some(SockaddrStorage::from(route.peer))];
        let bytes = [bytes];
        let send = |headers, controls: &[ControlMessage<'_>]| {
            sendmmsg(socket.as_raw_fd(), headers, &bytes, to, controls, MsgFlags::empty()).map(drop)
        };
        match (from, segments) {
            (None, None) => send(&mut self.bare, &[]),
            (None, Some(segments)) => send(&mut self.segmented, &[segments]),
            (Some(from), None) => send(&mut self.from, &[from]),
            (Some(from), Some(segments)) => send(&mut self.from_segmented, &[from, segments]),
        }
    }
}
