//! Free ports, and who listens on one.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::client::target::Transport;
use crate::random;

/// Whether a loopback address is listened on: a connection is accepted, or a datagram is not
/// refused. On loopback the refusal is there before send(2) returns.
pub(in crate::client) fn listens(address: SocketAddr, transport: Transport) -> bool {
    match transport {
        Transport::Tcp => TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok(),
        Transport::Udp => {
            let asked = UdpSocket::bind(SocketAddr::new(address.ip(), 0)).and_then(|socket| {
                socket.connect(address)?;
                socket.send(b"?")?;
                let refused = socket.take_error()?;
                // An answer is taken, so that it does not meet a port that is closed already.
                socket.set_read_timeout(Some(Duration::from_millis(50)))?;
                let _ = socket.recv(&mut [0]);
                Ok(refused)
            });
            matches!(asked, Ok(None))
        }
    }
}

/// A port that is free over TCP and UDP, from below the range that outgoing connections use.
pub(super) fn free() -> io::Result<u16> {
    const FIRST: u16 = 10_240;
    const TRIES: u32 = 1_000;
    let last = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse::<u16>().ok())
        .filter(|&low| low > FIRST + 1_000)
        .unwrap_or(32_768);
    let mut error = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        let port = FIRST + (random::draw() % u64::from(last - FIRST)) as u16;
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
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listening_is_told_from_refusing() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listens(tcp.local_addr().unwrap(), Transport::Tcp));
        assert!(!listens(tcp.local_addr().unwrap(), Transport::Udp));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(listens(udp.local_addr().unwrap(), Transport::Udp));
        assert!(!listens(udp.local_addr().unwrap(), Transport::Tcp));
    }

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free().unwrap();
        assert!(port >= 10_240);
        bind_everywhere(port, Type::STREAM).unwrap();
    }
}
