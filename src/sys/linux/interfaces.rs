//! Sockets that are bound to an interface, by a link-local address or by SO_BINDTODEVICE: the kernel leaves
//! them where they are when it is removed, and nothing reaches them any more, even if another one gets its
//! name. It tells of changes over rtnetlink(7).

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use log::warn;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::libc::RTMGRP_LINK;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use socket2::SockRef;

use crate::sys::Errno;

/// Watches the interfaces of sockets.
#[derive(Debug)]
pub(crate) struct Interfaces {
    netlink: OwnedFd,
    registry: Registry,
    token: Token,
    bound: Vec<Bound>,
}

/// A socket that is bound to an interface.
#[derive(Debug)]
struct Bound {
    socket: OwnedFd,
    interface: String,
}

impl Interfaces {
    /// Watches the interfaces of those of `sockets` that are bound to one: each change is an event for
    /// `token`. None, if no socket is.
    pub(crate) fn watch<'a>(
        sockets: impl Iterator<Item = SockRef<'a>>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Option<Self>> {
        let bound: Vec<_> = sockets.filter_map(|socket| Bound::of(&socket)).collect();
        if bound.is_empty() {
            return Ok(None);
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let netlink =
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_LINK as u32))?;
        registry.register(&mut SourceFd(&netlink.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Some(Interfaces { netlink, registry: registry.try_clone()?, token, bound }))
    }

    /// Shuts down the sockets whose interface has been removed, so that they fail instead of waiting.
    pub(crate) fn shut_down_removed(&mut self) {
        // Each interface is looked for, since some changes may be lost (ENOBUFS): what has changed need not
        // be read.
        let netlink = self.netlink.as_raw_fd();
        let next = || recv(netlink, &mut [0; 1], MsgFlags::empty());
        while matches!(next(), Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR)) {}
        // mio cannot see that nothing is left. Where this fails, further changes go unnoticed.
        let _ = self.registry.reregister(&mut SourceFd(&netlink), self.token, Interest::READABLE);
        self.bound.retain(|Bound { socket, interface }| {
            let device = SockRef::from(socket).device();
            let error = device.err().and_then(|error| error.raw_os_error());
            let removed = error == Some(Errno::ENODEV as i32);
            if removed {
                warn!(
                    event = "interface_removed",
                    interface = interface.as_str();
                    "the interface {interface} was removed: nothing reaches a socket that was bound on it"
                );
                // Of a UDP socket it says that it is not connected, and does it all the same.
                let _ = SockRef::from(socket).shutdown(Shutdown::Both);
            }
            !removed
        });
    }
}

impl Drop for Interfaces {
    fn drop(&mut self) {
        // Nothing is lost where this fails: events of it are ignored.
        let _ = self.registry.deregister(&mut SourceFd(&self.netlink.as_raw_fd()));
    }
}

impl Bound {
    fn of(socket: &SockRef<'_>) -> Option<Self> {
        let interface = String::from_utf8(socket.device().ok()??).ok()?;
        Some(Bound { socket: socket.as_fd().try_clone_to_owned().ok()?, interface })
    }
}
