//! The client's sockets: opening them and, over TCP, sending a pattern and checking its echo.

use std::io::{self, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use socket2::Socket;

use super::Error;
use super::config::{Config, Mode};
use super::faults::Faults;
use super::frames::Frames;
use super::run::Run;
use super::stream::Checker;
use crate::client::pattern::{self, Alphabet};
use crate::client::socket;
use crate::error::Transport;
use crate::sys::{SHORT_READ_EMPTIES, limits};

/// Descriptors that the process needs besides the connections: standard streams, the poll, and
/// what the caller has open.
const SPARE_FILES: u64 = 64;

/// Checks that the limit of open files leaves room for `connections`.
pub(in crate::client) fn check_room(connections: u32) -> Result<(), Error> {
    let limits = limits::open_file_limits()
        .map_err(|error| Error::System { what: "look up the limit of open files", error })?;
    let [allowed, possible] = limits.map(|limit| limit.saturating_sub(SPARE_FILES));
    if u64::from(connections) > allowed {
        return Err(Error::TooManyConnections { asked: connections, allowed, possible });
    }
    Ok(())
}

/// A socket that does not block and is connected, or, over TCP, about to be. By its number in the
/// run, the source addresses take turns; where one has no port left, it is the next one's turn.
pub(super) fn open(config: &Config, address: SocketAddr, number: u32) -> io::Result<Socket> {
    let turns = number as usize..number as usize + config.sources.len().max(1);
    let mut opened =
        turns.map(|turn| open_from(config, address, turn)).skip_while(|opened| match opened {
            Err(error) => socket::lacks_port(error),
            Ok(_) => false,
        });
    opened.next().unwrap_or_else(|| Err(socket::no_port()))
}

fn open_from(config: &Config, address: SocketAddr, turn: usize) -> io::Result<Socket> {
    let Config { transport, mode, ref sources, .. } = *config;
    let socket = socket::new(address, transport)?;
    // Messages go out at once. A connection with a single message has nothing to wait for.
    if transport == Transport::Tcp && mode != Mode::Churn {
        socket.set_tcp_nodelay(true)?;
    }
    if !sources.is_empty() {
        let source = sources[turn % sources.len()];
        socket::send_from(&socket, source)?;
    }
    socket::begin(&socket, address)?;
    Ok(socket)
}

/// A TCP connection that sends its pattern and checks what comes back.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: TcpStream,
    /// Its number in the run, which is also that of its pattern.
    pub(super) number: u32,
    /// Bytes sent.
    pub(super) sent: u64,
    pub(super) checker: Checker,
    /// What messages are made of.
    alphabet: Alphabet,
    frames: Option<Frames>,
}

impl Connection {
    pub(super) fn open(config: &Config, number: u32) -> io::Result<Self> {
        let socket = TcpStream::from_std(open(config, config.address, number)?.into());
        let alphabet = config.pattern.alphabet();
        let replies = config.pattern.replies(config.upper);
        let checker = Checker::new(replies, number, config.size as u64);
        Ok(Self { socket, number, sent: 0, checker, alphabet, frames: Frames::new(config) })
    }

    /// Sends the pattern up to `end`, as far as the socket takes it.
    pub(super) fn send(&mut self, end: u64) -> io::Result<()> {
        while self.sent < end {
            let next = match &mut self.frames {
                None => {
                    let length = (end - self.sent).min(pattern::WINDOW as u64) as usize;
                    self.alphabet.slice(self.number, self.sent, length)
                }
                Some(frames) => frames.next(self.alphabet, self.number, end),
            };
            match self.socket.write(next) {
                Ok(count) => match &mut self.frames {
                    None => self.sent += count as u64,
                    Some(frames) => self.sent = frames.sent(count),
                },
                // Not connected yet, or the send buffer is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn accept(&mut self, bytes: &[u8], faults: &mut Faults) -> io::Result<()> {
        let Self { frames, checker, sent, .. } = self;
        match frames {
            None => checker.accept(bytes, *sent, faults),
            Some(frames) => {
                let framed = frames.framed;
                frames.accept(bytes, |message| checker.accept(message, framed, faults))?;
            }
        }
        Ok(())
    }

    /// Reads once and checks what came. Whether there may be more: a short read may have emptied the
    /// socket ([`SHORT_READ_EMPTIES`]), unless it `is_ending`. The server's FIN is an error, `UnexpectedEof`.
    pub(super) fn receive(
        &mut self,
        run: &mut Run,
        buffer: &mut [u8],
        is_ending: bool,
    ) -> io::Result<bool> {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    run.hear();
                    self.accept(&buffer[..count], &mut run.faults)?;
                    return Ok(count == buffer.len() || is_ending || !SHORT_READ_EMPTIES);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
