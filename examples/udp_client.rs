//! A first lesson in UDP: `cargo run --example udp_client -- 127.0.0.1:12000 hello`.
//!
//! UDP carries datagrams. Each arrives whole or not at all, so the client waits only so long, and
//! asks again.
#![allow(clippy::print_stderr, reason = "errors go to standard error")]

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().unwrap_or_else(|| "127.0.0.1:12000".to_owned());
    let message = arguments.next().unwrap_or_else(|| "hello".to_owned());
    match exchange(&server, &message) {
        Ok(Some(echo)) => {
            println!("{}", String::from_utf8_lossy(&echo));
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("{server} does not answer");
            ExitCode::FAILURE
        }
        // The system was told so by an ICMP message (port unreachable).
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            eprintln!("nothing listens on UDP at {server}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{server}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A name may have several addresses, and the server need not have all of them: `localhost` is often `::1` and
/// `127.0.0.1`.
fn exchange(server: &str, message: &str) -> io::Result<Option<Vec<u8>>> {
    let mut outcome = Err(ErrorKind::NotFound.into());
    for address in server.to_socket_addrs()? {
        outcome = ask(address, message);
        if let Ok(Some(_)) = outcome {
            break;
        }
    }
    outcome
}

/// The answer to one of three attempts, if there is one.
fn ask(server: SocketAddr, message: &str) -> io::Result<Option<Vec<u8>>> {
    // Port 0: any free one. It is the address that the server answers.
    let socket = match server {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    // This sends nothing: it sets the address that we send to, and the only one that we take datagrams from.
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;

    for attempt in 1..=3 {
        socket.send(message.as_bytes())?;
        let mut echo = [0; 65_535];
        match socket.recv(&mut echo) {
            Ok(length) => return Ok(Some(echo[..length].to_vec())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                println!("no answer to attempt {attempt}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}
