//! The socket that pings go through: whole messages in and out, without waiting.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::PollFlags;
use socket2::Socket;

use super::Config;
use crate::client::Cancel;
use crate::client::socket::SourceOptions;
use crate::client::target::{self, Family};
use crate::error::Transport;
use crate::protocol::{FrameError, Framing, MAX_DATAGRAM, Protocol};
use crate::sys::socket::{drop_errors, is_not_now, report_errors};
use crate::sys::tool::SEND_FLAGS;
use crate::units::count;

/// The longest reply that is understood, in bytes: more than the longest ping. A datagram is not
/// longer.
const LONGEST_REPLY: usize = MAX_DATAGRAM + 28;

/// A connection to the server.
pub(super) struct Link {
    /// A stream, or datagrams.
    socket: Socket,
    transport: Transport,
    /// The address that is connected to.
    pub(super) peer: SocketAddr,
    /// The client's own address.
    pub(super) local: SocketAddr,
    size: usize,
    protocol: Protocol,
    /// What is read lands here first.
    chunk: Box<[u8]>,
    /// What has come over a stream and was not taken yet.
    inbound: Vec<u8>,
    /// What of a message the kernel has not taken yet.
    outbound: Vec<u8>,
}

impl Link {
    /// Connects, trying each address of the target.
    pub(super) fn open(
        config: &Config,
        patience: Duration,
        cancel: &Cancel,
    ) -> Result<Self, target::Error> {
        let &Config { ref target, transport, source, dscp, .. } = config;
        let family = source.map(|source| if source.is_ipv4() { Family::V4 } else { Family::V6 });
        let target = family.map_or(target.clone(), |family| target.clone().with_family(family));
        let options = SourceOptions { source, dscp };
        let (socket, peer) = target.connect(transport, options, patience, cancel)?;
        let framing = if transport == Transport::Tcp { config.framing } else { Framing::Raw };
        if transport == Transport::Udp {
            // Without them, some losses are timeouts that could be told to be something else.
            let _ = report_errors(&socket, peer.is_ipv6());
        }
        let local = socket.local_addr().ok().and_then(|address| address.as_socket());
        Ok(Self {
            socket,
            transport,
            peer,
            local: local.unwrap_or(peer),
            size: config.size.bytes(),
            protocol: protocol(framing),
            chunk: vec![0; LONGEST_REPLY].into(),
            inbound: Vec::new(),
            outbound: Vec::new(),
        })
    }

    /// What to wait for.
    pub(super) fn watch(&self) -> (BorrowedFd<'_>, PollFlags) {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.blocked());
        (self.socket.as_fd(), flags)
    }

    /// Whether a message is still on its way into the kernel.
    pub(super) fn blocked(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Puts a message on its way. None may be on it still.
    pub(super) fn send(&mut self, message: &[u8]) -> io::Result<()> {
        debug_assert!(!self.blocked(), "one message at a time");
        self.outbound = self.protocol.framing.frame(message);
        self.flush()
    }

    /// Writes what the kernel takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.blocked() {
            match self.socket.send_with_flags(&self.outbound, SEND_FLAGS) {
                Ok(count) => drop(self.outbound.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_not_now(&error) => break,
                Err(error) => {
                    self.outbound.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The next reply, if a whole one has come. A server that closes is an `UnexpectedEof`, one that
    /// sends what no reply can be an `InvalidData`.
    pub(super) fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(message) = cut(&mut self.inbound, self.protocol, self.size)? {
                return Ok(Some(message));
            }
            let is_udp = self.transport == Transport::Udp;
            let read = self.socket.read(&mut self.chunk);
            if read.is_err() && is_udp {
                drop_errors(&self.socket);
            }
            match read {
                Ok(count) if is_udp => return Ok(Some(self.chunk[..count].to_vec())),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.inbound.extend_from_slice(&self.chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_not_now(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The start of a reply whose rest has not come, without its length.
    pub(super) fn partial(&self) -> Option<&[u8]> {
        (!self.inbound.is_empty()).then(|| self.protocol.payload(&self.inbound))
    }
}

fn protocol(framing: Framing) -> Protocol {
    Protocol { framing, max_frame: LONGEST_REPLY as u32, once: false }
}

/// Takes the first whole message off `inbound`, if there is one: of `size` bytes where nothing marks
/// its end.
fn cut(inbound: &mut Vec<u8>, protocol: Protocol, size: usize) -> io::Result<Option<Vec<u8>>> {
    let end = match protocol.framing {
        Framing::Raw => (inbound.len() >= size).then_some(size),
        _ => protocol.frame_end(&[], inbound).map_err(too_long)?,
    };
    let Some(end) = end else { return Ok(None) };
    let mut message = protocol.payload(&inbound[..end]).to_vec();
    message.pop_if(|_| protocol.framing == Framing::Lines);
    inbound.drain(..end);
    Ok(Some(message))
}

fn too_long(error: FrameError) -> io::Error {
    let what = match error {
        FrameError::TooLong { announced: Some(length) } => {
            format!("a frame of {}", count(length, "byte"))
        }
        _ => "a line".to_owned(),
    };
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} came back, longer than any ping"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_come_in(
            count in 0..6_u8,
            pieces in prop::collection::vec(1..40_usize, 1..6),
        ) {
            for framing in [Framing::Raw, Framing::Lines, Framing::LengthPrefixed] {
                let sent: Vec<Vec<u8>> = (0..count).map(|number| vec![b'a' + number; 24]).collect();
                let wire: Vec<u8> = sent.iter().flat_map(|message| framing.frame(message)).collect();
                let (mut inbound, mut came, mut at) = (Vec::new(), Vec::new(), 0);
                for length in pieces.iter().copied().cycle() {
                    let piece = &wire[at..wire.len().min(at + length)];
                    at += piece.len();
                    inbound.extend_from_slice(piece);
                    while let Some(message) = cut(&mut inbound, protocol(framing), 24).unwrap() {
                        came.push(message);
                    }
                    if at == wire.len() {
                        break;
                    }
                }
                prop_assert_eq!((came, inbound), (sent, vec![]));
            }
        }
    }

    #[test]
    fn no_reply_is_endless() {
        for framing in [Framing::Lines, Framing::LengthPrefixed] {
            let mut inbound = vec![b'x'; LONGEST_REPLY];
            let error = cut(&mut inbound, protocol(framing), 24).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
