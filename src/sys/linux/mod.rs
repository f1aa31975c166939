//! What Linux does in its own way.

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
pub(crate) mod timer;
#[cfg(feature = "client")]
pub(crate) mod tool;

use std::net::{IpAddr, Ipv6Addr};

#[cfg(feature = "client")]
use std::time::Duration;

use mio::Interest;
use nix::libc::{POLLRDHUP, c_short};
#[cfg(feature = "client")]
use nix::{poll::PollFd, sys::time::TimeSpec};

/// What is watched of a stream: urgent data are announced alone.
pub(crate) const STREAM_INTEREST: Interest =
    Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

/// The addresses that are all of this machine's.
pub(crate) const EVERYWHERE: &[IpAddr] = &[IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

/// What poll(2) says of a socket that was shut down, for reading at least.
pub(crate) const SHUT_DOWN: c_short = POLLRDHUP;

/// Waits for at most `time`, which counts in nanoseconds: how many descriptors are ready.
#[cfg(feature = "client")]
pub(crate) fn poll(watched: &mut [PollFd<'_>], time: Duration) -> nix::Result<i32> {
    nix::poll::ppoll(watched, Some(TimeSpec::from_duration(time)), None)
}

/// A field of this process's status, by its name with the colon (proc_pid_status(5)).
fn status(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

/// A field that is a bit mask; 0 where it is not known.
fn status_mask(name: &str) -> u64 {
    status(name).and_then(|mask| u64::from_str_radix(&mask, 16).ok()).unwrap_or(0)
}
