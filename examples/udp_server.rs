//! UDP has no connections, so one loop serves everybody: `cargo run --example udp_server -- 12000`.
//!
//! As it is written first, on purpose. What it gets wrong is in docs/tour.md; a server that does it right
//! is in src/server/udp.rs.
#![allow(clippy::unwrap_used, reason = "as it is written first: any error ends the server")]

use std::net::UdpSocket;

fn main() {
    let port = std::env::args().nth(1).unwrap_or_else(|| "12000".to_owned());
    let socket = UdpSocket::bind(format!("127.0.0.1:{port}")).unwrap();
    let mut buffer = [0; 1024];
    loop {
        // One datagram, and who sent it: no listen, no accept, nothing to close.
        let (length, peer) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(&buffer[..length], peer).unwrap();
    }
}
