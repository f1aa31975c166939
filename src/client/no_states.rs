//! The states of connections, which only Linux shows.

use std::io;
use std::net::SocketAddr;

/// What a kernel tells of its connections: nothing.
#[derive(Debug)]
pub(in crate::client) struct Kernel;

impl Kernel {
    /// There is nothing to ask.
    pub(in crate::client) fn open() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Never called.
    pub(in crate::client) fn not_sent(&self, _: SocketAddr, _: SocketAddr) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Never called.
    pub(in crate::client) fn ports_taken(&self, _server: SocketAddr) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
