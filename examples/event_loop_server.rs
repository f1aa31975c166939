//! The smallest event loop: one thread, one poll, all clients: `cargo run --example event_loop_server -- 12000`.
//!
//! As it is written first, on purpose. What it gets wrong is in docs/tour.md; a server that does it right
//! is in src/server/event_loop.rs.
#![allow(clippy::unwrap_used, reason = "as it is written first: some errors end the server")]

use std::io::{self, ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

/// Connections have the tokens below.
const LISTENER: Token = Token(usize::MAX);

fn main() {
    let port = std::env::args().nth(1).unwrap_or_else(|| "12000".to_owned());
    let mut listener = TcpListener::bind(format!("127.0.0.1:{port}").parse().unwrap()).unwrap();
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).unwrap();
    let mut streams: Slab<TcpStream> = Slab::new();
    let mut events = Events::with_capacity(128);
    loop {
        // The only place that waits: for the listener and all streams at once.
        poll.poll(&mut events, None).unwrap();
        for event in &events {
            match event.token() {
                LISTENER => accept_all(&listener, &poll, &mut streams),
                Token(slot) => {
                    if !answer(&mut streams[slot]) {
                        streams.remove(slot);
                    }
                }
            }
        }
    }
}

/// An event is told once (edge-triggered), so whoever waits in the backlog is accepted now.
fn accept_all(listener: &TcpListener, poll: &Poll, streams: &mut Slab<TcpStream>) {
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let slot = streams.vacant_entry();
                let token = Token(slot.key());
                poll.registry().register(&mut stream, token, Interest::READABLE).unwrap();
                slot.insert(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Reads until there is nothing left, and answers; false when the client has left.
fn answer(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match read_and_write(stream, &mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
    }
}

fn read_and_write(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let length = stream.read(buffer)?;
    // How much of it was taken? That is not looked at.
    let _ = stream.write(&buffer[..length])?;
    Ok(length)
}
