//! The first server of most people: `cargo run --example first_iterative_server -- 12000`.
//!
//! What it gets wrong: write(2) may take a part of the bytes (when a signal comes), and the rest is
//! lost. An error of one client ends the server for all. While one client is served, all others
//! wait. `evecho check --start` shows it; `src/server/iterative.rs` is the same design
//! without the first two.
#![allow(clippy::unused_io_amount, reason = "this is how it is written first")]

use std::io::{self, Read, Write};
use std::net::TcpListener;

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).unwrap_or("12000".into());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = [0; 1024];
        loop {
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            stream.write(&buffer[..length])?;
        }
    }
}
