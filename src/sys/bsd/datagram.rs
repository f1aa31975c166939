//! Control messages of datagrams: where they were sent to, and their hop limit (ip(4), ip6(4)).

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket as BoundSocket};
use std::os::fd::AsRawFd;

use mio::net::UdpSocket;
use nix::ifaddrs::getifaddrs;
use nix::libc::{in6_addr, in6_pktinfo};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, sendmsg};

use super::own;
use crate::sys::datagram::{Received, Route};

/// Whether replies wait in the send buffer of a socket: it only bounds the size of a datagram (sosend_dgram).
pub(crate) const REPLIES_WAIT: bool = false;

/// How many addresses of this machine are remembered.
const REMEMBERED: usize = 64;

/// Neither system joins datagrams.
pub(crate) fn set_offload(_socket: &BoundSocket, _wanted: bool) -> nix::Result<bool> {
    Ok(false)
}

/// What control messages need between two calls.
pub(crate) struct ControlData {
    /// Addresses that datagrams were sent to, and whether they are those of a broadcast, which the system does not
    /// tell.
    known: Vec<(Ipv4Addr, bool)>,
}

impl ControlData {
    /// For a socket of either family.
    pub(crate) fn new(_ipv6: bool) -> Self {
        ControlData { known: Vec::new() }
    }

    /// Sends a message on a route. It is not cut.
    pub(crate) fn send(
        &mut self,
        socket: &UdpSocket,
        pieces: &[IoSlice<'_>],
        _segment: Option<u16>,
        route: &Route,
    ) -> nix::Result<()> {
        let (fd, to) = (socket.as_raw_fd(), SockaddrStorage::from(route.peer));
        let send = |controls: &[ControlMessage<'_>]| {
            sendmsg(fd, pieces, controls, MsgFlags::empty(), Some(&to)).map(drop)
        };
        match route.local.map(own::leaving_from) {
            None => send(&[]),
            Some(IpAddr::V4(ip)) => own::with_source(ip, |control| send(&[control])),
            Some(IpAddr::V6(ip)) => {
                let ipi6_addr = in6_addr { s6_addr: ip.octets() };
                let info = in6_pktinfo { ipi6_addr, ipi6_ifindex: route.interface };
                send(&[ControlMessage::Ipv6PacketInfo(&info)])
            }
        }
    }

    /// Takes a control message.
    pub(crate) fn take(&mut self, received: &mut Received, control: ControlMessageOwned) {
        match control {
            ControlMessageOwned::Ipv4RecvDstAddr(address) => {
                let address = Ipv4Addr::from(address.s_addr.to_ne_bytes());
                received.to_group |= self.is_group(address);
                received.route.local = Some(address.into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                received.to_group |= match address.to_canonical() {
                    IpAddr::V4(address) => self.is_group(address),
                    IpAddr::V6(address) => address.is_multicast(),
                };
                received.route.local = Some(address.into());
                received.route.interface =
                    if address.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            }
            control => received.hop_limit = own::hop_limit(&control).or(received.hop_limit),
        }
    }

    fn is_group(&mut self, address: Ipv4Addr) -> bool {
        if let Some(&(_, is_group)) = self.known.iter().find(|(known, _)| *known == address) {
            return is_group;
        }
        let is_group = address.is_multicast() || address.is_broadcast() || is_broadcast(address);
        self.known.truncate(REMEMBERED - 1);
        self.known.insert(0, (address, is_group));
        is_group
    }
}

/// Whether it is the broadcast address of an interface (getifaddrs(3)).
fn is_broadcast(address: Ipv4Addr) -> bool {
    let broadcasts = getifaddrs().into_iter().flatten().filter_map(|one| one.broadcast);
    broadcasts.into_iter().any(|one| one.as_sockaddr_in().is_some_and(|one| one.ip() == address))
}
