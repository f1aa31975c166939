//! Asks the kernel which neighbours it is looking for (rtnetlink(7), RTM_GETNEIGH). Any process may ask.
//!
//! Parsed here: the netlink crates know the frame of these messages, but not what is in them, and a crate
//! that does is longer than the server.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::libc::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, RTM_GETNEIGH, RTM_NEWNEIGH};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::sys::Errno;

/// `struct nlmsghdr`: length, type, flags, number, port.
const HEADER: usize = 16;
/// `struct ndmsg` behind it: family, padding, interface, state, flags, type.
const NEIGHBOUR: usize = 12;
/// NUD_INCOMPLETE and NUD_FAILED: what is sent to it waits, or waits once more.
const MISSING: u16 = 0x01 | 0x20;
/// NDA_DST: the attribute that is the neighbour's address.
const ADDRESS: u16 = 1;
/// More than the kernel puts into one part of its reply (NLMSG_GOODSIZE).
const BUFFER: usize = 32 << 10;

/// Returns the neighbours, IPv4 and IPv6, whose link-layer address the kernel does not know.
pub(crate) fn missing_neighbours() -> io::Result<Vec<IpAddr>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    sendto(netlink.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let (mut missing, mut buffer) = (Vec::new(), vec![0; BUFFER]);
    loop {
        // Each part is there as soon as the one before it was read.
        match recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if read_part(&buffer[..length], &mut missing) => {}
            Ok(_) => return Ok(missing),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Asks for all of every family.
fn request() -> [u8; HEADER + NEIGHBOUR] {
    let mut request = [0; HEADER + NEIGHBOUR];
    request[..4].copy_from_slice(&((HEADER + NEIGHBOUR) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETNEIGH.to_ne_bytes());
    request[6..8].copy_from_slice(&((NLM_F_REQUEST | NLM_F_DUMP) as u16).to_ne_bytes());
    request
}

/// Takes the messages of one part of the reply; whether more is to come.
fn read_part(mut part: &[u8], missing: &mut Vec<IpAddr>) -> bool {
    while let (Some(length), Some(kind)) = (part.first_chunk(), u16_at(part, 4)) {
        let length = u32::from_ne_bytes(*length) as usize;
        let ends = [NLMSG_DONE, NLMSG_ERROR].contains(&i32::from(kind));
        if ends || length < HEADER || length > part.len() {
            return false;
        }
        if kind == RTM_NEWNEIGH {
            missing.extend(missing_neighbour(&part[HEADER..length]));
        }
        part = &part[length.next_multiple_of(4).min(part.len())..];
    }
    true
}

/// Returns the address of a neighbour that is missing.
fn missing_neighbour(message: &[u8]) -> Option<IpAddr> {
    let state = u16_at(message, 8)?;
    let mut attributes = message.get(NEIGHBOUR..).filter(|_| state & MISSING != 0)?;
    loop {
        let (length, kind) = (usize::from(u16_at(attributes, 0)?), u16_at(attributes, 2)?);
        let value = attributes.get(4..length)?;
        if kind == ADDRESS {
            let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
            return v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], place: usize) -> Option<u16> {
    bytes.get(place..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as the kernel writes it: an attribute that is of no interest, then the address.
    fn neighbour(state: u16, address: &[u8]) -> Vec<u8> {
        let mut body = vec![0; NEIGHBOUR];
        body[8..10].copy_from_slice(&state.to_ne_bytes());
        for (kind, value) in [(3u16, &[1, 2, 3, 4, 5][..]), (ADDRESS, address)] {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        message(RTM_NEWNEIGH, &body)
    }

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        message[..4].copy_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.extend(body);
        message
    }

    #[test]
    fn those_that_are_looked_for_are_missing() {
        let v6: IpAddr = "fe80::1:2".parse().unwrap();
        let IpAddr::V6(octets) = v6 else { unreachable!() };
        // INCOMPLETE, REACHABLE, FAILED, STALE.
        let part = [
            neighbour(0x01, &[192, 0, 2, 1]),
            neighbour(0x02, &[192, 0, 2, 2]),
            neighbour(0x20, &octets.octets()),
            neighbour(0x04, &octets.octets()),
        ];
        let mut missing = Vec::new();
        assert!(read_part(&part.concat(), &mut missing));
        assert_eq!(missing, [IpAddr::from([192, 0, 2, 1]), v6]);
        assert!(!read_part(&message(NLMSG_DONE as u16, &[0; 4]), &mut missing));
        assert!(!read_part(&message(NLMSG_ERROR as u16, &[0; 20]), &mut missing));
    }

    #[test]
    fn what_is_cut_anywhere_does_no_harm() {
        let whole = neighbour(0x01, &[192, 0, 2, 1]);
        for length in 0..whole.len() {
            let mut missing = Vec::new();
            read_part(&whole[..length], &mut missing);
            assert!(missing.is_empty(), "{length}");
            let mut shorter = whole.clone();
            shorter[..4].copy_from_slice(&(length as u32).to_ne_bytes());
            read_part(&shorter, &mut missing);
            assert!(missing.len() <= 1);
        }
    }

    #[test]
    fn the_kernel_answers() {
        missing_neighbours().unwrap();
    }
}
