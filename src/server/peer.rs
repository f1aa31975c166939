//! The peer of a connection or a datagram. Pure.

use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// The address and port of a peer. IPv4-mapped addresses become IPv4 here, so that no later rule meets
/// one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    ip: IpAddr,
    /// The interface of a link-local IPv6 address; 0 for all others.
    zone: u32,
    port: u16,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        let zone = if let SocketAddr::V6(v6) = address { v6.scope_id() } else { 0 };
        Peer { ip: address.ip().to_canonical(), zone, port: address.port() }
    }
}

impl From<Peer> for SocketAddr {
    fn from(Peer { ip, zone, port }: Peer) -> Self {
        match ip {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, zone).into(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// What limits count as one source: what one host usually has, or hosts that share an IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// An IPv4 address, also as it is embedded in an IPv6 address.
    V4([u8; 4]),
    /// The first half of an IPv6 address: the subnet.
    Subnet([u8; 8]),
    /// An IPv6 address whose first half hosts share, and its zone.
    Host([u8; 16], u32),
}

impl Peer {
    /// The source, by the registry of IPv6 special-purpose addresses (RFC 6890). Interface identifiers
    /// of a subnet never matter, whatever they embed (ISATAP, RFC 5214): its hosts choose them freely.
    pub(crate) fn source(&self) -> Source {
        let ip = match self.ip {
            IpAddr::V4(ip) => return Source::V4(ip.octets()),
            IpAddr::V6(ip) => ip,
        };
        let [a, b, c, d, e, f, g, h, .., w, x, y, z] = ip.octets();
        match ip.segments() {
            // 6to4 (RFC 3056): each IPv4 address has a /48.
            [0x2002, ..] => Source::V4([c, d, e, f]),
            // Teredo (RFC 4380): behind the server's /64, the client's IPv4 address, inverted.
            [0x2001, 0, ..] => Source::V4([!w, !x, !y, !z]),
            // Translated from IPv4 (RFC 6052).
            [0x64, 0xff9b, 0, 0, 0, 0, ..] => Source::V4([w, x, y, z]),
            // Link-local and IPv4-compatible addresses (RFC 4291), local use of translation, whose
            // length is not known (RFC 8215), and names that look like addresses (RFC 7343, RFC 9374).
            [0xfe80..=0xfebf, ..]
            | [0, 0, 0, 0, ..]
            | [0x64, 0xff9b, 1, ..]
            | [0x2001, 0x20..=0x3f, ..] => Source::Host(ip.octets(), self.zone),
            _ => Source::Subnet([a, b, c, d, e, f, g, h]),
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
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn peer(address: &str) -> Peer {
        address.parse::<SocketAddr>().unwrap().into()
    }

    /// The source of an address, with a zone if it has one.
    fn source(text: &str) -> Source {
        peer(&if text.contains(':') { format!("[{text}]:1") } else { format!("{text}:1") }).source()
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mapped = peer("[::ffff:192.0.2.1]:5");
        assert_eq!(mapped, peer("192.0.2.1:5"));
        assert_eq!(mapped.to_string(), "192.0.2.1:5");
    }

    #[test]
    fn a_peer_keeps_its_zone() {
        let (one, other) = (peer("[fe80::a%1]:5"), peer("[fe80::a%2]:5"));
        assert_ne!(one, other);
        assert_eq!(
            (one.to_string(), other.to_string()),
            ("[fe80::a%1]:5".into(), "[fe80::a%2]:5".into())
        );
    }

    #[test]
    fn a_source_is_what_one_host_has() {
        for (rule, same) in [
            ("IPv4-mapped, RFC 4291, 2.5.5.2", ["::ffff:192.0.2.1", "192.0.2.1"]),
            ("a subnet, RFC 4291, 2.5.4", ["2a00::1", "2a00::ffff:ffff:ffff:ffff"]),
            ("documentation, RFC 3849", ["2001:db8::1", "2001:db8::2"]),
            ("documentation, RFC 9637", ["3fff::1", "3fff::2"]),
            ("benchmarking, RFC 5180", ["2001:2::1", "2001:2::2"]),
            ("unique local, as global ones, RFC 4193, 1", ["fd00::1", "fd00::2"]),
            ("site-local, deprecated, RFC 3879", ["fec0::1", "fec0::2"]),
            ("ISATAP in a subnet, RFC 5214", ["2a00::5efe:192.0.2.1", "2a00::5efe:192.0.2.2"]),
            ("6to4, RFC 3056, 2", ["2002:c000:201::1", "2002:c000:201:ffff::2"]),
            ("6to4 and its IPv4 address", ["2002:c000:201::1", "192.0.2.1"]),
            (
                "Teredo, another port, RFC 4380, 4",
                ["2001:0:1:2:0:1:3fff:fdfe", "2001:0:1:2:0:2:3fff:fdfe"],
            ),
            ("Teredo, another server", ["2001:0:1:2::3fff:fdfe", "2001:0:3:4::3fff:fdfe"]),
            ("Teredo and its IPv4 address", ["2001:0:1:2:0:1:3fff:fdfe", "192.0.2.1"]),
            ("translated, RFC 6052, 2.1", ["64:ff9b::192.0.2.1", "192.0.2.1"]),
        ] {
            assert_eq!(source(same[0]), source(same[1]), "{rule}: {same:?}");
        }
        for (rule, differ) in [
            ("IPv4", ["192.0.2.1", "192.0.2.2"]),
            ("IPv4 loopback, for tests with several sources", ["127.0.0.1", "127.0.0.2"]),
            ("shared by hosts behind one NAT, RFC 6598", ["100.64.0.1", "100.64.0.2"]),
            ("IPv4 link-local, RFC 3927", ["169.254.0.1", "169.254.0.2"]),
            ("IPv4-mapped, RFC 4291, 2.5.5.2", ["::ffff:192.0.2.1", "::ffff:192.0.2.2"]),
            ("IPv4-compatible, RFC 4291, 2.5.5.1", ["::192.0.2.1", "::192.0.2.2"]),
            ("IPv4-translated, RFC 2765, 2.1", ["::ffff:0:192.0.2.1", "::ffff:0:192.0.2.2"]),
            ("loopback, RFC 4291, 2.5.3", ["::1", "::2"]),
            ("two subnets", ["2a00::1", "2a00:0:0:1::1"]),
            ("two subnets of a site, RFC 4193", ["fd00::1", "fd00:0:0:1::1"]),
            ("link-local, RFC 4291, 2.5.6", ["fe80::a%1", "fe80::b%1"]),
            ("link-local, all of it", ["febf::a", "febf::b"]),
            ("link-local, on two links, RFC 4007", ["fe80::a%1", "fe80::a%2"]),
            ("ISATAP, link-local, RFC 5214", ["fe80::5efe:192.0.2.1", "fe80::5efe:192.0.2.2"]),
            ("6to4, two addresses, RFC 3056", ["2002:c000:201::1", "2002:c000:202::1"]),
            ("Teredo, RFC 4380, 4", ["2001:0:1:2:0:1:3fff:fdfe", "2001:0:1:2:0:1:3fff:fdfd"]),
            ("translated, RFC 6052", ["64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2"]),
            (
                "translated locally with a /96, RFC 8215",
                ["64:ff9b:1::192.0.2.1", "64:ff9b:1::192.0.2.2"],
            ),
            (
                "translated locally with a /48, RFC 8215",
                ["64:ff9b:1:c000:2:100::", "64:ff9b:1:c000:2:200::"],
            ),
            ("ORCHIDv2, RFC 7343", ["2001:20::1", "2001:2f:ffff:ffff::1"]),
            ("ORCHIDv2, one prefix", ["2001:20::1", "2001:20::2"]),
            ("DRIP, RFC 9374", ["2001:30::1", "2001:30::2"]),
        ] {
            assert_ne!(source(differ[0]), source(differ[1]), "{rule}: {differ:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Otherwise a host could take as many sources as it likes.
        #[test]
        fn the_hosts_of_a_global_subnet_are_one_source(subnet: u64, ids: [u64; 2]) {
            // Unicast that the special ranges leave: 2000::/3 without 2001::/16 and 2002::/16.
            let subnet = subnet >> 3 | 1 << 61;
            prop_assume!(!matches!(subnet >> 48, 0x2001 | 0x2002));
            let sources = ids.map(|id| {
                let ip = Ipv6Addr::from(u128::from(subnet) << 64 | u128::from(id));
                Peer::from(SocketAddr::new(ip.into(), 1)).source()
            });
            prop_assert_eq!(sources[0], sources[1]);
        }

        #[test]
        fn an_ipv4_address_is_one_source_however_it_is_embedded(bits: u32, others: u64) {
            let ip = Ipv4Addr::from(bits);
            let expected = Source::V4(ip.octets());
            let wide = u128::from(bits);
            let (other, server) = (u128::from(others), u128::from(others >> 32));
            for embedded in [
                0xffff << 32 | wide,
                0x64_ff9b << 96 | wide,
                0x2002 << 112 | wide << 80 | other & 0xffff_ffff_ffff,
                0x2001_0000 << 96 | server << 64 | (other & 0xffff_ffff) << 32 | u128::from(!bits),
            ] {
                let ip = Ipv6Addr::from(embedded);
                let source = Peer::from(SocketAddr::new(ip.into(), 1)).source();
                prop_assert_eq!(source, expected, "{}", ip);
            }
        }
    }
}
