//! What macOS and FreeBSD do in their own way.

pub(crate) mod cause;
pub(crate) mod datagram;
#[cfg(not(target_os = "macos"))]
mod freebsd;
pub(crate) mod interfaces;
pub(crate) mod limits;
#[cfg(feature = "client")]
pub(crate) mod local;
#[cfg(target_os = "macos")]
mod macos;
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

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[cfg(not(target_os = "macos"))]
use freebsd as own;
#[cfg(target_os = "macos")]
use macos as own;
use mio::Interest;
pub(crate) use own::SHUT_DOWN;
#[cfg(feature = "client")]
pub(crate) use own::poll;

/// What is watched of a stream: urgent data are announced as others (kqueue(2)).
pub(crate) const STREAM_INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// The addresses that are all of this machine's. An IPv6 socket does not have all options of IPv4.
pub(crate) const EVERYWHERE: &[IpAddr] =
    &[IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)];
