//! Everything that names an operating system: a file a topic, small interfaces.
//!
//! What differs between systems is decided here, and nowhere above.

pub(crate) mod cause;
pub(crate) mod datagram;
pub(crate) mod interfaces;
pub(crate) mod limits;
#[cfg(feature = "client")]
pub(crate) mod local;
pub(crate) mod neighbours;
#[cfg(feature = "daemon")]
pub(crate) mod process;
pub(crate) mod service_manager;
pub(crate) mod signals;
pub(crate) mod socket;
#[cfg(feature = "client")]
pub(crate) mod thread;
pub(crate) mod wait;

pub(crate) use std::os::fd::OwnedFd;

pub(crate) use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// A field of this process's status, by its name with the colon (proc_pid_status(5)).
fn status(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

/// A field that is a bit mask; 0 where it is not known.
fn status_mask(name: &str) -> u64 {
    status(name).and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0)
}

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
