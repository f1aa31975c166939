//! Free ports.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

use socket2::{Domain, Socket, Type};

use crate::random;
use crate::sys::local::first_local_port;

/// A port that is free over TCP and UDP, from below the range that outgoing connections use. One after
/// the other from a random one: servers that start at the same time do not get the same.
pub(super) fn free() -> io::Result<u16> {
    const FIRST: u16 = 10_240;
    const TRIES: u32 = 1_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(random::draw() as u16));
    let last = first_local_port().filter(|&low| low > FIRST + 1_000).unwrap_or(32_768);
    let mut error = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % (last - FIRST);
        let tcp = bind_everywhere(port, Type::STREAM);
        let udp = tcp.and_then(|_| bind_everywhere(port, Type::DGRAM));
        match udp {
            Ok(_) => return Ok(port),
            Err(other) => error = other,
        }
    }
    Err(error)
}

/// Binds both families at once, or IPv4 alone on a machine without IPv6.
fn bind_everywhere(port: u16, kind: Type) -> io::Result<Socket> {
    let Ok(socket) = Socket::new(Domain::IPV6, kind, None) else {
        let socket = Socket::new(Domain::IPV4, kind, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        return Ok(socket);
    };
    socket.set_only_v6(false)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free().unwrap();
        assert!(port >= 10_240);
        bind_everywhere(port, Type::STREAM).unwrap();
    }

    #[test]
    fn no_port_is_given_to_two_servers_that_start() {
        let ports: HashSet<u16> = (0..300).map(|_| free().unwrap()).collect();
        assert_eq!(ports.len(), 300);
    }
}
