//! A smallest event loop, one thread and one poll for all clients:
//! `cargo run --example smallest_event_loop -- 12000`.
//!
//! It answers every byte, whatever a client does. What it lacks: a client that always sends is
//! always served, and the others wait; nothing limits the clients; and when descriptors run out,
//! the clients that wait are accepted only when another one comes. `src/server/event_loop.rs` and
//! `src/server/connections.rs` have all that.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(0);

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).unwrap_or("12000".into());
    let address = format!("127.0.0.1:{port}").parse().map_err(io::Error::other)?;
    let mut listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let (mut clients, mut next) = (HashMap::new(), 1);
    let mut events = Events::with_capacity(256);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            if event.token() == LISTENER {
                // An event tells once that clients wait, so all of them are accepted. An error
                // (WouldBlock, too) is the end of that, and not of the server.
                while let Ok((mut stream, _)) = listener.accept() {
                    let both = Interest::READABLE | Interest::WRITABLE;
                    if poll.registry().register(&mut stream, Token(next), both).is_ok() {
                        clients.insert(Token(next), Client { stream, unsent: Vec::new() });
                        next += 1;
                    }
                }
            } else if let Some(client) = clients.get_mut(&event.token())
                && client.serve_until_blocked()
            {
                clients.remove(&event.token());
            }
        }
    }
}

struct Client {
    stream: TcpStream,
    /// What was read and could not be written yet.
    unsent: Vec<u8>,
}

impl Client {
    /// Reads and writes until the kernel has nothing more to say: the next event comes only after
    /// that. Whether the client is done with.
    fn serve_until_blocked(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        loop {
            // Back-pressure: a client that does not read is not read.
            while !self.unsent.is_empty() {
                match self.stream.write(&self.unsent) {
                    Ok(length) => drop(self.unsent.drain(..length)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                    Err(_) => return true,
                }
            }
            match self.stream.read(&mut buffer) {
                // The FIN: everything is answered by now.
                Ok(0) => return true,
                Ok(length) => self.unsent.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(_) => return true,
            }
        }
    }
}
