//! Everything that names an operating system: a file a topic, small interfaces.
//!
//! What differs between systems is decided here, and nowhere above.

#[cfg(not(target_os = "linux"))]
mod bsd;
pub(crate) mod cause;
pub(crate) mod datagram;
#[cfg(feature = "cli")]
pub mod inherited;
pub(crate) mod limits;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(feature = "client")]
pub(crate) mod local;
#[cfg(feature = "daemon")]
pub(crate) mod process;
pub(crate) mod service_manager;
pub(crate) mod signals;
pub(crate) mod socket;
#[cfg(feature = "client")]
pub(crate) mod thread;
pub(crate) mod wait;

#[cfg(not(target_os = "linux"))]
use bsd as system;
#[cfg(target_os = "linux")]
use linux as system;
pub(crate) use system::{EVERYWHERE, STREAM_INTEREST, interfaces};
#[cfg(feature = "client")]
pub(crate) use system::{timer, tool};

pub(crate) use std::os::fd::OwnedFd;

pub(crate) use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// Whether a read that does not fill its buffer has emptied the socket, so that the next bytes come
/// with a new event. epoll(7) and kqueue(2) promise it. With poll(2), mio has to see a `WouldBlock`
/// before it asks for events again (tokio-rs/mio#1611).
pub(crate) const SHORT_READ_EMPTIES: bool = cfg!(not(mio_unsupported_force_poll_poll));

/// The index of the network interface with this name.
pub(crate) fn interface_index(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// The name of this machine.
pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}
