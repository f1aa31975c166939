//! The socket that pings go through: whole messages in and out, without waiting.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::PollFlags;

use super::{Error, Size};
use crate::client::target::{self, Target, Transport};

enum Socket {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

/// A connection to the server.
pub(super) struct Link {
    socket: Socket,
    peer: SocketAddr,
    size: usize,
    /// What of a reply has come: over TCP no more than one message.
    inbound: Vec<u8>,
    filled: usize,
    /// What of a message the kernel has not taken yet.
    outbound: Vec<u8>,
}

impl Link {
    /// Connects, trying each address of the target.
    pub(super) fn open(
        target: &Target,
        transport: Transport,
        size: Size,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let (socket, peer) = match transport {
            Transport::Tcp => {
                let stream = target.connect_tcp(timeout).map_err(Error::Target)?;
                let peer = stream.peer_addr();
                let ready = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
                (Socket::Stream(stream), ready.and(peer))
            }
            Transport::Udp => {
                let address = target.choose(transport, timeout).map_err(Error::Target)?;
                let socket = target::udp_socket(address).map_err(Error::Socket)?;
                let ready = socket.set_nonblocking(true);
                (Socket::Datagrams(socket), ready.map(|()| address))
            }
        };
        let peer = peer.map_err(Error::Socket)?;
        let inbound = match transport {
            Transport::Tcp => vec![0; size.bytes()],
            Transport::Udp => vec![0; 1 << 16],
        };
        Ok(Self { socket, peer, size: size.bytes(), inbound, filled: 0, outbound: Vec::new() })
    }

    /// The address that is connected to.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What to wait for.
    pub(super) fn watch(&self) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.blocked());
        match &self.socket {
            Socket::Stream(stream) => (stream.as_fd(), flags),
            Socket::Datagrams(socket) => (socket.as_fd(), flags),
        }
    }

    /// Whether a message is still on its way into the kernel.
    pub(super) fn blocked(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Puts a message on its way. None may be on it still.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        debug_assert!(!self.blocked(), "one message at a time");
        self.outbound.extend_from_slice(message);
        self.flush()
    }

    /// Writes what the kernel takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.blocked() {
            let written = match &mut self.socket {
                Socket::Stream(stream) => stream.write(&self.outbound),
                Socket::Datagrams(socket) => socket.send(&self.outbound),
            };
            match written {
                Ok(count) => drop(self.outbound.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.outbound.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The next reply, if a whole one has come. A server that closes is an `UnexpectedEof`.
    pub(super) fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            let read = match &mut self.socket {
                Socket::Stream(stream) => stream.read(&mut self.inbound[self.filled..]),
                Socket::Datagrams(socket) => match socket.recv(&mut self.inbound) {
                    Ok(length) => return Ok(Some(&self.inbound[..length])),
                    Err(error) => Err(error),
                },
            };
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            if self.filled == self.size {
                self.filled = 0;
                return Ok(Some(&self.inbound));
            }
        }
    }

    /// The start of a reply whose rest has not come.
    pub(super) fn partial(&self) -> &[u8] {
        &self.inbound[..self.filled]
    }
}
