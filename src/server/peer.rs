//! The peer of a connection or a datagram. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The address and port of a peer. IPv4-mapped addresses become IPv4 here, so that no later rule meets
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    ip: IpAddr,
    port: u16,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Peer { ip: address.ip().to_canonical(), port: address.port() }
    }
}

impl From<Peer> for SocketAddr {
    fn from(Peer { ip, port }: Peer) -> Self {
        SocketAddr::new(ip, port)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// What limits count as one source: an IPv4 address, or the /64 that an IPv6 host usually has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Peer {
    pub(crate) fn source(&self) -> Source {
        match self.ip {
            IpAddr::V4(ip) => Source::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Source::V6([a, b, c, d, e, f, g, h])
            }
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.ip.is_ipv4()
    }

    pub(crate) fn is_loopback(&self) -> bool {
        self.ip.is_loopback()
    }

    pub(crate) fn is_unicast(&self) -> bool {
        let broadcast = matches!(self.ip, IpAddr::V4(ip) if ip.is_broadcast());
        !(self.ip.is_multicast() || self.ip.is_unspecified() || broadcast)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        address.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped = peer("[::ffff:192.0.2.1]:5");
        assert_eq!(mapped, peer("192.0.2.1:5"));
        assert_eq!(mapped.to_string(), "192.0.2.1:5");
        assert_eq!(mapped.source(), peer("192.0.2.1:6").source());
        assert_eq!(peer("[2001:db8::1]:1").source(), peer("[2001:db8::2]:2").source());
        assert_ne!(peer("[2001:db8:0:1::1]:1").source(), peer("[2001:db8::1]:1").source());
    }
}
