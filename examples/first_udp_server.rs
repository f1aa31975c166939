//! The first UDP server of most people: `cargo run --example first_udp_server -- 12000`.
//!
//! What it gets wrong: a datagram longer than the buffer is cut without a word. An error of one
//! answer, such as to source port 0, ends the server for all. It answers any source that a datagram
//! names, and so can be made to talk to another server for ever. `src/server/udp/mod.rs` and
//! `src/server/guard.rs` do without.

use std::io;
use std::net::UdpSocket;

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).unwrap_or("12000".into());
    let socket = UdpSocket::bind(format!("127.0.0.1:{port}"))?;
    println!("listening on {}", socket.local_addr()?);
    let mut buffer = [0; 1024];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], peer)?;
    }
}
