//! Clients that send and never read: what the kernel and the server hold for all of them.

use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use crate::kernel;
use crate::servers::{Candidate, blame, usage};

/// When nothing more is taken for so long, everything is full.
const FULL: Duration = Duration::from_millis(500);
/// How many clients have one address.
const PER_SOURCE: u32 = 1_000;

/// What clients that never read cost, all together.
#[derive(Serialize)]
pub(crate) struct Unread {
    pub(crate) connections: u32,
    /// Why there is nothing of what follows.
    pub(crate) fault: Option<String>,
    /// The memory of the buffers of the server's sockets, in bytes.
    pub(crate) kernel_bytes: f64,
    /// What the process has grown by, in bytes.
    pub(crate) resident_bytes: f64,
}

/// Has so many clients send to a fresh server whatever is taken, and measures.
pub(crate) fn measure(candidate: &Candidate, connections: u32) -> Unread {
    let costs = candidate.start(1).and_then(|server| {
        let memory = usage(&server)?.memory().bytes;
        let clients = fill(server.address(), connections);
        let _clients = clients.map_err(|error| blame(&server, error.to_string()))?;
        let grown = usage(&server)?.memory().bytes as f64 - memory as f64;
        Ok((kernel::buffers_of(server.address().port())?, grown))
    });
    let (kernel_bytes, resident_bytes) = *costs.as_ref().unwrap_or(&(f64::NAN, f64::NAN));
    Unread { connections, fault: costs.err(), kernel_bytes, resident_bytes }
}

/// Sends over all connections until nothing more is taken.
fn fill(address: SocketAddr, connections: u32) -> io::Result<Vec<TcpStream>> {
    let mut clients = (0..connections)
        .map(|index| connect(address, index))
        .collect::<io::Result<Vec<TcpStream>>>()?;
    let (bytes, mut taken_at) = (vec![0; 64 << 10], Instant::now());
    while taken_at.elapsed() < FULL {
        for client in &mut clients {
            match client.write(&bytes) {
                Ok(_) => taken_at = Instant::now(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(clients)
}

/// Connects with the smallest buffers that there are, so that what is held is the server's.
fn connect(address: SocketAddr, index: u32) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_recv_buffer_size(1)?;
    socket.set_send_buffer_size(1)?;
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 2)) + index / PER_SOURCE);
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
