//! A thread for each client, as it is written first:
//! `cargo run --example first_threaded_server -- 12000`.
//!
//! What it gets wrong: when descriptors run out (EMFILE), accept(2) fails and ends the server for
//! all, and when threads run out, so does the panic of `thread::spawn`. Nothing bounds either.
//! `ulimit -n 20` before it, and 20 clients, show it; `src/server/threaded.rs` is the same design
//! without that.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).unwrap_or("12000".into());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(|| serve(stream));
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
    }
}
