//! The first UDP client of most people:
//! `cargo run --example first_udp_client -- 127.0.0.1:12000 hello`.
//!
//! What it gets wrong: a datagram may be lost, and then it waits for ever. Any datagram that arrives
//! at its port is taken for the answer, and cut after 1024 bytes. It has an IPv4 address, and sends to
//! the first address of a name, which may be one of IPv6. `examples/udp_client.rs` asks again, listens to
//! the server alone, and tries each address of a name.

use std::io;
use std::net::UdpSocket;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or("127.0.0.1:12000".into());
    let message = arguments.next().unwrap_or("hello".into());
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.send_to(message.as_bytes(), server)?;
    let mut buffer = [0; 1024];
    let (length, _) = socket.recv_from(&mut buffer)?;
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}
