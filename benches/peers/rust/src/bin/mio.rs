//! An echo server in the idiom of mio's examples: a map from token to connection, and interest that changes with it.
//! Measured with mio 1.2.5.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Registry, Token};

const LISTENER: Token = Token(0);
const UDP: Token = Token(1);

struct Connection {
    stream: TcpStream,
    /// What the socket did not take; nothing is read meanwhile.
    unsent: Vec<u8>,
}

impl Connection {
    /// Echoes until there is nothing to read, or no room to send. False when the connection is over.
    fn turn(&mut self, token: Token, registry: &Registry, buffer: &mut [u8]) -> io::Result<bool> {
        if !self.unsent.is_empty() {
            let rest = std::mem::take(&mut self.unsent);
            self.send(&rest)?;
            if !self.unsent.is_empty() {
                return Ok(true);
            }
            registry.reregister(&mut self.stream, token, Interest::READABLE)?;
        }
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => self.send(&buffer[..length])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
            if !self.unsent.is_empty() {
                registry.reregister(&mut self.stream, token, Interest::WRITABLE)?;
                return Ok(true);
            }
        }
    }

    fn send(&mut self, mut reply: &[u8]) -> io::Result<()> {
        while !reply.is_empty() {
            match self.stream.write(reply) {
                Ok(sent) => reply = &reply[sent..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unsent = reply.to_vec();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    udp: UdpSocket,
    connections: HashMap<Token, Connection>,
    next: usize,
    buffer: Vec<u8>,
}

impl Server {
    fn bind(here: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(here)?;
        let mut udp = UdpSocket::bind(here)?;
        socket2::SockRef::from(&udp).set_recv_buffer_size(4 << 20)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        poll.registry().register(&mut udp, UDP, Interest::READABLE)?;
        let (connections, buffer) = (HashMap::new(), vec![0; 64 << 10]);
        Ok(Self { poll, listener, udp, connections, next: 2, buffer })
    }

    fn accept_all(&mut self) -> io::Result<()> {
        while let Ok((mut stream, _)) = self.listener.accept() {
            stream.set_nodelay(true)?;
            let token = Token(self.next);
            self.next += 1;
            self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
            self.connections.insert(token, Connection { stream, unsent: Vec::new() });
        }
        Ok(())
    }

    fn echo_datagrams(&mut self) {
        while let Ok((length, from)) = self.udp.recv_from(&mut self.buffer) {
            let _ = self.udp.send_to(&self.buffer[..length], from);
        }
    }

    fn echo(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if !connection.turn(token, self.poll.registry(), &mut self.buffer).unwrap_or(false) {
            self.connections.remove(&token);
        }
    }
}

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).unwrap_or_default();
    let mut server = Server::bind(format!("127.0.0.1:{port}").parse().map_err(io::Error::other)?)?;
    let mut events = Events::with_capacity(1024);
    loop {
        server.poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => server.accept_all()?,
                UDP => server.echo_datagrams(),
                token => server.echo(token),
            }
        }
    }
}
