//! The first server of every textbook: `cargo run --example iterative_server -- 12000`.
//!
//! As it is written first, on purpose. What it gets wrong is in docs/tour.md; a server that does it right
//! is in src/server/iterative.rs.
#![allow(clippy::unwrap_used, reason = "as it is written first: any error ends the server")]

use std::io::{Read, Write};
use std::net::TcpListener;

fn main() {
    let port = std::env::args().nth(1).unwrap_or_else(|| "12000".to_owned());
    // socket(), bind() and listen() in one.
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    loop {
        // Waits for a client: meanwhile, others wait in the backlog.
        let (mut stream, peer) = listener.accept().unwrap();
        println!("{peer} is here");
        let mut buffer = [0; 1024];
        loop {
            let length = stream.read(&mut buffer).unwrap();
            if length == 0 {
                // The client's FIN.
                break;
            }
            stream.write_all(&buffer[..length]).unwrap();
        }
        println!("{peer} has left");
    }
}
