//! A first lesson in UDP: `cargo run --example udp_client -- 127.0.0.1:12000 hello`.
//!
//! UDP carries datagrams. Each arrives whole or not at all, so the client waits only so long, and
//! asks again.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:12000".to_string());
    let message = arguments.next().unwrap_or_else(|| "hello".to_string());

    // Port 0: any free one. It is the address that the server answers.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Nothing is sent by this: it only sets where we send to, and from whom we take datagrams.
    socket.connect(&server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;

    for attempt in 1..=3 {
        socket.send(message.as_bytes())?;
        let mut echo = [0; 65_535];
        match socket.recv(&mut echo) {
            Ok(length) => {
                println!("{}", String::from_utf8_lossy(&echo[..length]));
                return Ok(());
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                println!("no answer to attempt {attempt}");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(format!("{server} does not answer").into())
}
