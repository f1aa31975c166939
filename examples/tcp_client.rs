//! A first lesson in TCP: `cargo run --example tcp_client -- 127.0.0.1:12000 hello`.
//!
//! TCP carries a stream of bytes. What was written in one call may arrive in several pieces, so the
//! client does not count reads: it says that it has finished (half-close), and reads to the end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:12000".to_string());
    let message = arguments.next().unwrap_or_else(|| "hello".to_string());

    let mut stream = TcpStream::connect(&server)?;
    stream.write_all(message.as_bytes())?;
    // Our FIN: the server sees the end of what we send, and still answers all of it.
    stream.shutdown(Shutdown::Write)?;

    let mut echo = String::new();
    // Returns at the server's FIN.
    stream.read_to_string(&mut echo)?;
    println!("{echo}");
    Ok(())
}
