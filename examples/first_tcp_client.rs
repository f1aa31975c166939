//! The first TCP client of most people:
//! `cargo run --example first_tcp_client -- 127.0.0.1:12000 hello`.
//!
//! What it gets wrong: a single read(2) may return a part of the answer, and a buffer of 16 bytes
//! has no room for a longer one. `examples/tcp_client.rs` reads to the end.

use std::io::{self, Read, Write};
use std::net::TcpStream;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or("127.0.0.1:12000".into());
    let message = arguments.next().unwrap_or("hello".into());
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(message.as_bytes())?;
    let mut buffer = [0; 16];
    let length = stream.read(&mut buffer)?;
    println!("{}", String::from_utf8_lossy(&buffer[..length]));
    Ok(())
}
