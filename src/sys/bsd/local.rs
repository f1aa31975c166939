//! Local ports, as far as they are known.

use std::net::IpAddr;
use std::time::Duration;

/// Only sysctl(3) tells (net.inet.ip.portrange).
pub(crate) fn ports() -> Option<u64> {
    None
}

/// Twice the maximum segment lifetime, which is 15 s on macOS and 30 s on FreeBSD (net.inet.tcp.msl).
pub(crate) fn port_is_kept(_server: IpAddr) -> Duration {
    Duration::from_secs(60)
}

/// The first of the ports for sockets that name none: only sysctl(3) tells.
pub(crate) fn first_local_port() -> Option<u16> {
    None
}

/// Whether a UDP socket of this machine hears broadcasts at the port: not known.
pub(crate) fn hears_broadcasts(_port: u16) -> Option<bool> {
    None
}
