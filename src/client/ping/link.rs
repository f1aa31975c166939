//! The socket that pings go through: whole messages in and out, without waiting.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;

use nix::poll::PollFlags;

use super::Config;
use crate::client::target::{self, Transport};
use crate::protocol::{Framing, MAX_DATAGRAM};
use crate::sys::socket::is_not_now;

/// The longest reply that is understood, in bytes: more than the longest ping. A datagram has no
/// longer one.
const LONGEST_REPLY: usize = MAX_DATAGRAM + 28;

/// The length before a frame, in bytes.
const PREFIX: usize = 4;

/// Resolves the name and connects, in a thread of its own: neither can be interrupted.
pub(super) struct Opening {
    result: Receiver<Result<Link, OpenError>>,
    /// Readable once there is a result.
    done: UnixStream,
}

impl Opening {
    pub(super) fn start(config: &Config) -> io::Result<Self> {
        let (done, end) = UnixStream::pair()?;
        let (sender, result) = mpsc::sync_channel(1);
        let config = config.clone();
        thread::Builder::new().spawn(move || {
            // Nobody waits any more when this fails.
            let _ = sender.send(Link::open(&config));
            drop(end);
        })?;
        Ok(Self { result, done })
    }

    /// What to wait for.
    pub(super) fn watch(&self) -> (BorrowedFd<'_>, PollFlags) {
        (self.done.as_fd(), PollFlags::POLLIN)
    }

    /// The link, or why there is none, once it is known.
    pub(super) fn result(&self) -> Option<Result<Link, OpenError>> {
        match self.result.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                Some(Err(OpenError::Socket(io::Error::other("the thread that connects is gone"))))
            }
        }
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The server cannot be reached.
    Target(target::Error),
    /// The system refused something that a socket needs.
    Socket(io::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(error) => error.fact().fmt(f),
            Self::Socket(error) => write!(f, "the socket failed: {error}"),
        }
    }
}

enum Socket {
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

/// A connection to the server.
pub(super) struct Link {
    socket: Socket,
    peer: SocketAddr,
    size: usize,
    framing: Framing,
    /// What has come and was not taken yet: the first `filled` bytes.
    inbound: Vec<u8>,
    filled: usize,
    /// What of a message the kernel has not taken yet.
    outbound: Vec<u8>,
}

impl Link {
    /// Connects, trying each address of the target.
    fn open(config: &Config) -> Result<Self, OpenError> {
        let Config { target, transport, wait, .. } = config;
        let (socket, peer) = match transport {
            Transport::Tcp => {
                let stream = target.connect_tcp(*wait).map_err(OpenError::Target)?;
                let peer = stream.peer_addr();
                let ready = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
                (Socket::Stream(stream), ready.and(peer))
            }
            Transport::Udp => {
                let address = target.choose(*transport, *wait).map_err(OpenError::Target)?;
                let socket = target::udp_socket(address).map_err(OpenError::Socket)?;
                let ready = socket.set_nonblocking(true);
                (Socket::Datagrams(socket), ready.map(|()| address))
            }
        };
        Ok(Self {
            socket,
            peer: peer.map_err(OpenError::Socket)?,
            size: config.size.bytes(),
            framing: config.framing,
            inbound: vec![0; PREFIX + LONGEST_REPLY],
            filled: 0,
            outbound: Vec::new(),
        })
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
        let framed = matches!(self.socket, Socket::Stream(_));
        if framed && self.framing == Framing::LengthPrefixed {
            let length = u32::try_from(message.len()).expect("a ping is no longer than a datagram");
            self.outbound.extend_from_slice(&length.to_be_bytes());
        }
        self.outbound.extend_from_slice(message);
        if framed && self.framing == Framing::Lines {
            self.outbound.push(b'\n');
        }
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
            let read = match &mut self.socket {
                Socket::Datagrams(socket) => match socket.recv(&mut self.inbound) {
                    Ok(length) => return Ok(Some(self.inbound[..length].to_vec())),
                    Err(error) => Err(error),
                },
                Socket::Stream(stream) => {
                    if let Some(message) =
                        cut(&mut self.inbound, &mut self.filled, self.framing, self.size)?
                    {
                        return Ok(Some(message));
                    }
                    stream.read(&mut self.inbound[self.filled..])
                }
            };
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_not_now(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// The start of a reply whose rest has not come, without its length.
    pub(super) fn partial(&self) -> Option<&[u8]> {
        let start = if self.framing == Framing::LengthPrefixed { PREFIX } else { 0 };
        (self.filled > 0).then(|| &self.inbound[start.min(self.filled)..self.filled])
    }
}

/// Takes the first whole message off the `filled` bytes of `inbound`, if there is one: of `size`
/// bytes where nothing marks its end.
fn cut(
    inbound: &mut [u8],
    filled: &mut usize,
    framing: Framing,
    size: usize,
) -> io::Result<Option<Vec<u8>>> {
    let whole = &inbound[..*filled];
    // Where the message begins and ends, and what is taken with it.
    let (start, end, taken) = match framing {
        Framing::Raw => (0, size, size),
        Framing::Lines => match whole.iter().position(|&byte| byte == b'\n') {
            Some(end) => (0, end, end + 1),
            None if whole.len() == inbound.len() => return Err(too_long("a line")),
            None => return Ok(None),
        },
        Framing::LengthPrefixed => {
            let Some(prefix) = whole.first_chunk::<PREFIX>() else { return Ok(None) };
            let length = u32::from_be_bytes(*prefix) as usize;
            if length > LONGEST_REPLY {
                return Err(too_long(&format!("a frame of {length} bytes")));
            }
            (PREFIX, PREFIX + length, PREFIX + length)
        }
    };
    if taken > *filled {
        return Ok(None);
    }
    let message = whole[start..end].to_vec();
    inbound.copy_within(taken..*filled, 0);
    *filled -= taken;
    Ok(Some(message))
}

fn too_long(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} came back, longer than any ping"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(framing: Framing, message: &[u8]) -> Vec<u8> {
        match framing {
            Framing::Raw => message.to_vec(),
            Framing::Lines => [message, b"\n"].concat(),
            Framing::LengthPrefixed => {
                [&(message.len() as u32).to_be_bytes()[..], message].concat()
            }
        }
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_come_in(
            count in 0..6_u8,
            pieces in prop::collection::vec(1..40_usize, 1..6),
        ) {
            for framing in [Framing::Raw, Framing::Lines, Framing::LengthPrefixed] {
                let sent: Vec<Vec<u8>> = (0..count).map(|number| vec![b'a' + number; 24]).collect();
                let wire: Vec<u8> = sent.iter().flat_map(|message| framed(framing, message)).collect();
                let (mut inbound, mut filled) = (vec![0; PREFIX + LONGEST_REPLY], 0);
                let (mut came, mut at) = (Vec::new(), 0);
                for length in pieces.iter().copied().cycle() {
                    let piece = &wire[at..wire.len().min(at + length)];
                    at += piece.len();
                    inbound[filled..filled + piece.len()].copy_from_slice(piece);
                    filled += piece.len();
                    while let Some(message) = cut(&mut inbound, &mut filled, framing, 24).unwrap() {
                        came.push(message);
                    }
                    if at == wire.len() {
                        break;
                    }
                }
                prop_assert_eq!((came, filled), (sent, 0));
            }
        }
    }

    #[test]
    fn no_reply_is_endless() {
        let mut inbound = vec![b'x'; PREFIX + LONGEST_REPLY];
        for framing in [Framing::Lines, Framing::LengthPrefixed] {
            let mut filled = inbound.len();
            let error = cut(&mut inbound, &mut filled, framing, 24).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
