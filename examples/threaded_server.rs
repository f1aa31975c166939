//! A thread for each client: `cargo run --example threaded_server -- 12000`.
//!
//! As it is written first, on purpose. What it gets wrong is in docs/tour.md; a server that does it right
//! is in src/server/threaded.rs.
#![allow(clippy::unwrap_used, reason = "as it is written first: any error ends the thread")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

fn main() {
    let port = std::env::args().nth(1).unwrap_or_else(|| "12000".to_owned());
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    loop {
        let (stream, peer) = listener.accept().unwrap();
        println!("{peer} is here");
        // The next client is accepted at once, while this thread waits for the bytes of this one.
        thread::spawn(move || serve(stream));
    }
}

fn serve(mut stream: TcpStream) {
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        stream.write_all(&buffer[..length]).unwrap();
    }
}
