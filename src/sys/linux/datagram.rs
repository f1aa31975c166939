//! Control messages of datagrams, and sending with sendmmsg(2).

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket as BoundSocket};
use std::os::fd::AsRawFd;

use mio::net::UdpSocket;
use nix::cmsg_space;
use nix::libc::{cmsghdr, in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg,
    sendmsg, setsockopt, sockopt,
};

use crate::sys::Errno;
use crate::sys::datagram::{Received, Route};
use crate::sys::socket::{Lost, Refused};

/// Whether replies wait in the send buffer of a socket, as those to a neighbour that the kernel looks for do.
pub(crate) const REPLIES_WAIT: bool = true;

/// Has the kernel join datagrams that it receives (udp(7)). Returns whether it does, and cuts what is sent.
pub(crate) fn set_offload(socket: &BoundSocket, wanted: bool) -> nix::Result<bool> {
    setsockopt(socket, sockopt::UdpGroSegment, &wanted).map(|()| wanted)
}

/// What control messages need between two calls.
pub(crate) struct ControlData {
    /// Headers for sending, made once: nix would otherwise allocate control data for each message.
    headers: [MultiHeaders<SockaddrStorage>; 4],
    /// Whether sendmmsg(2) may be called, once that is known.
    has_sendmmsg: Option<bool>,
}

impl ControlData {
    /// For a socket of either family.
    pub(crate) fn new(ipv6: bool) -> Self {
        ControlData { headers: headers(ipv6), has_sendmmsg: None }
    }

    /// Sends a message on a route, cut into segments.
    pub(crate) fn send(
        &mut self,
        socket: &UdpSocket,
        pieces: &[IoSlice<'_>],
        segment: Option<u16>,
        route: &Route,
    ) -> nix::Result<()> {
        let (v4, v6);
        let from = match route.local {
            None => None,
            Some(IpAddr::V4(ip)) => {
                v4 = in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
                    ipi_addr: in_addr { s_addr: 0 },
                };
                Some(ControlMessage::Ipv4PacketInfo(&v4))
            }
            Some(IpAddr::V6(ip)) => {
                let ipi6_addr = in6_addr { s6_addr: ip.octets() };
                v6 = in6_pktinfo { ipi6_addr, ipi6_ifindex: route.interface };
                Some(ControlMessage::Ipv6PacketInfo(&v6))
            }
        };
        let segments = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        let to = [Some(SockaddrStorage::from(route.peer))];
        let ControlData { headers: [bare, segmented, routed, both], has_sendmmsg } = self;
        let mut send = |headers, controls: &[ControlMessage<'_>]| {
            send_one(socket, headers, pieces, controls, &to, has_sendmmsg)
        };
        match (from, segments) {
            (None, None) => send(bare, &[]),
            (None, Some(segments)) => send(segmented, &[segments]),
            (Some(from), None) => send(routed, &[from]),
            (Some(from), Some(segments)) => send(both, &[from, segments]),
        }
    }

    /// Takes a control message (udp(7), ip(7), ipv6(7)).
    pub(crate) fn take(&mut self, received: &mut Received, control: ControlMessageOwned) {
        match control {
            ControlMessageOwned::UdpGroSegments(size) => {
                let size =
                    usize::try_from(size).ok().filter(|size| (1..received.length).contains(size));
                received.segment = size.unwrap_or(received.length);
            }
            // For a datagram to a group, the second is an address of ours all the same. Where the
            // datagram came before the option was set, it is not known, and the address has to tell.
            ControlMessageOwned::Ipv4PacketInfo(in_pktinfo { ipi_addr, ipi_spec_dst, .. }) => {
                let [to, ours] = [ipi_addr, ipi_spec_dst]
                    .map(|address| Ipv4Addr::from(address.s_addr.to_ne_bytes()));
                let elsewhere = ours != to && !ours.is_unspecified();
                received.to_group |= elsewhere || to.is_multicast() || to.is_broadcast();
                // An IPv6 socket says it the other way, too.
                received.route.local.get_or_insert(to.into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                received.to_group |= address.is_multicast();
                received.route.local = Some(address.into());
                received.route.interface =
                    if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            }
            ControlMessageOwned::Ipv4Ttl(left) | ControlMessageOwned::Ipv6HopLimit(left) => {
                received.hop_limit = u8::try_from(left).ok();
            }
            _ => {}
        }
    }
}

/// Sends one message: by sendmmsg(2), since its headers are made once, or by sendmsg(2) where a sandbox
/// has only that. A packet filter, which refuses both, says nothing of either.
fn send_one(
    socket: &UdpSocket,
    headers: &mut MultiHeaders<SockaddrStorage>,
    pieces: &[IoSlice<'_>],
    controls: &[ControlMessage<'_>],
    to: &[Option<SockaddrStorage>; 1],
    has_sendmmsg: &mut Option<bool>,
) -> nix::Result<()> {
    let (fd, flags) = (socket.as_raw_fd(), MsgFlags::empty());
    let mut refused = Errno::ENOSYS;
    if *has_sendmmsg != Some(false) {
        let sent = sendmmsg(fd, headers, &[pieces], to, controls, flags).map(drop);
        match (*has_sendmmsg, sent) {
            (None, Err(error @ (Errno::ENOSYS | Errno::EPERM | Errno::EACCES))) => refused = error,
            _ => {
                *has_sendmmsg = has_sendmmsg.or(sent.ok().map(|()| true));
                return sent;
            }
        }
    }
    sendmsg(fd, pieces, controls, flags, to[0].as_ref())?;
    if has_sendmmsg.replace(false).is_none()
        && let Ok(address) = socket.local_addr()
    {
        let lost = Lost::Comfort("replies leave by sendmsg, which takes a little longer");
        Refused { what: "sendmmsg", lost, error: refused.into() }.log(address);
    }
    Ok(())
}

/// Headers without control messages, with segments, with an address to leave from, and with both.
fn headers(ipv6: bool) -> [MultiHeaders<SockaddrStorage>; 4] {
    let (routed, both) = if ipv6 {
        (alone::<in6_pktinfo>(), cmsg_space!(in6_pktinfo, u16))
    } else {
        (alone::<in_pktinfo>(), cmsg_space!(in_pktinfo, u16))
    };
    [None, Some(cmsg_space!(u16)), Some(routed), Some(both)]
        .map(|control| MultiHeaders::preallocate(1, control))
}

/// Allocates for one control message, without the padding behind it, which would only make the kernel
/// allocate: control data of up to 36 bytes fit on its stack.
fn alone<T>() -> Vec<u8> {
    Vec::with_capacity(size_of::<cmsghdr>() + size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

    #[test]
    fn an_impossible_segment_is_none() {
        for (said, segment) in [(0, 7), (3, 3), (7, 7), (8, 7), (-1, 7)] {
            let mut received = Received::new(7, (LOOPBACK, 9).into());
            ControlData::new(false).take(&mut received, ControlMessageOwned::UdpGroSegments(said));
            assert_eq!(received.segment, segment, "{said}");
        }
    }

    /// A datagram that came before the option was set does not show which address of ours it met.
    #[test]
    fn a_group_is_known_by_its_address_alone() {
        for (to, to_group) in [("224.0.0.1", true), ("255.255.255.255", true), ("127.0.0.1", false)]
        {
            let to: Ipv4Addr = to.parse().unwrap();
            let in_addr = |ip: Ipv4Addr| in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let (ipi_addr, ipi_spec_dst) = (in_addr(to), in_addr(Ipv4Addr::UNSPECIFIED));
            let mut received = Received::new(7, (LOOPBACK, 9).into());
            let info = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr };
            ControlData::new(false).take(&mut received, ControlMessageOwned::Ipv4PacketInfo(info));
            assert_eq!((received.to_group, received.route.local), (to_group, Some(to.into())));
        }
    }

    /// One address to leave from is control data of up to 36 bytes, which fit on the kernel's stack
    /// (___sys_sendmsg): this holds only as long as nix takes the capacity for the length, and wants no
    /// padding behind the last message.
    #[test]
    fn an_address_to_leave_from_takes_no_allocation() {
        assert_eq!(alone::<in6_pktinfo>().capacity(), 36);
        assert!(alone::<in_pktinfo>().capacity() <= 36);
    }
}
