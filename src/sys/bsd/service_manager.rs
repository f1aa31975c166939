//! Addresses of sockets without a file, which only Linux has.

use std::io;
use std::os::unix::net::SocketAddr;

/// There are none.
pub(crate) fn abstract_address(_name: &[u8]) -> io::Result<SocketAddr> {
    let reason = "only Linux has sockets whose name begins with '@'";
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}
