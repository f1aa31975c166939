//! Sockets whose interface is removed: neither system tells of it, and none is bound to an interface alone.

use std::convert::Infallible;
use std::io;

use mio::{Registry, Token};
use socket2::SockRef;

/// A watch for interfaces, of which there is none.
#[derive(Debug)]
pub(crate) struct Interfaces(Infallible);

impl Interfaces {
    /// Nothing to watch.
    pub(crate) fn watch<'a>(
        _sockets: impl Iterator<Item = SockRef<'a>>,
        _registry: &Registry,
        _token: Token,
    ) -> io::Result<Option<Self>> {
        Ok(None)
    }

    /// Never called.
    pub(crate) fn shut_down_removed(&mut self) {
        match self.0 {}
    }
}
