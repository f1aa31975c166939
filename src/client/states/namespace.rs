//! A network of our own, in which an ordinary user sees segments (user_namespaces(7), network_namespaces(7)).

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc::{IFF_UP, NLM_F_ACK, NLM_F_REQUEST, RTM_NEWLINK};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use nix::unistd::{getegid, geteuid};

/// Moves this process, which must not have started a thread, into a user namespace and a network namespace of
/// its own. It has every right over that network, which is a loopback interface alone, and so has what it starts.
///
/// # Errors
///
/// Where the system does not allow it.
pub fn enter_own_network() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    // A process that is nobody there may not use files of its user. Groups are mapped only after this.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    raise_loopback()
}

/// Sets the flag IFF_UP of the interface `lo` (rtnetlink(7)).
fn raise_loopback() -> io::Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let up = (IFF_UP as u32).to_ne_bytes();
    // `struct nlmsghdr`: length, type and flags, number, port; `struct ifinfomsg`: family and type, index,
    // flags, and which of them to change.
    let kind = RTM_NEWLINK.to_ne_bytes();
    let flags = ((NLM_F_REQUEST | NLM_F_ACK) as u16).to_ne_bytes();
    let index = if_nametoindex("lo")?.to_ne_bytes();
    let mut request = 32_u32.to_ne_bytes().to_vec();
    request.extend([kind, flags].concat());
    request.extend([[0; 4], [0; 4], [0; 4], index, up, up].concat());
    sendto(netlink.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    // The reply is a message with the number of an error, or 0.
    let mut reply = [0; 64];
    let length = recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    match reply[..length].get(16..).and_then(|rest| rest.first_chunk()) {
        Some(&error) => match i32::from_ne_bytes(error) {
            0 => Ok(()),
            error => Err(Errno::from_raw(-error).into()),
        },
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
