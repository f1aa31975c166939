//! The addresses that bound sockets have, and which clients can reach them.

use std::collections::HashSet;
#[cfg(feature = "daemon")]
use std::net::TcpListener;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use socket2::SockRef;

/// The addresses that a bound socket has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local {
    pub(super) address: SocketAddr,
    /// Whether `::` is for IPv6 alone.
    pub(super) only_v6: bool,
}

impl Local {
    pub(super) fn of<'a>(socket: impl Into<SockRef<'a>>) -> Option<Local> {
        let socket = socket.into();
        let address = socket.local_addr().ok()?.as_socket()?;
        Some(Local { address, only_v6: address.is_ipv6() && socket.only_v6().unwrap_or(false) })
    }

    /// An address that has IPv4, too, if it is `::`.
    #[cfg(feature = "daemon")]
    pub(super) fn everything(address: SocketAddr) -> Local {
        Local { address, only_v6: false }
    }

    fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }

    /// Whether it is for IPv4, and for IPv6.
    fn families(&self) -> [bool; 2] {
        let everything = self.ip() == Ipv6Addr::UNSPECIFIED && !self.only_v6;
        [self.ip().is_ipv4() || everything, self.ip().is_ipv6()]
    }

    /// Whether both have some address and port.
    pub(super) fn overlaps(&self, other: &Local) -> bool {
        let shared = self.families().iter().zip(other.families()).any(|(one, other)| *one && other);
        let wide = self.ip().is_unspecified() || other.ip().is_unspecified();
        let same_port = self.address.port() == other.address.port();
        self.address == other.address || shared && wide && same_port
    }
}

/// The addresses, each once.
pub(super) fn addresses(locals: &[Local]) -> Vec<SocketAddr> {
    let mut seen = HashSet::new();
    locals.iter().map(|local| local.address).filter(|address| seen.insert(*address)).collect()
}

/// Which clients can reach a listener.
#[cfg(feature = "daemon")]
pub(super) fn reach_of(listener: &TcpListener) -> &'static str {
    reach(Local::of(listener).as_slice())
}

/// Which clients can reach these addresses.
pub(super) fn reach(locals: &[Local]) -> &'static str {
    if !locals.is_empty() && locals.iter().all(|local| local.ip().is_loopback()) {
        return "this machine only";
    }
    let wide = locals.iter().filter(|local| local.ip().is_unspecified());
    let wide = wide.map(Local::families).reduce(|one, other| [0, 1].map(|at| one[at] || other[at]));
    let everywhere = wide.unwrap_or_default();
    let elsewhere = locals.iter().any(|local| {
        let covered = local.families().iter().zip(everywhere).all(|(has, all)| all || !has);
        !covered && !local.ip().is_loopback()
    });
    match (everywhere, elsewhere) {
        ([true, true], _) => "any client that reaches this machine",
        ([true, false], false) => "any client that reaches this machine over IPv4",
        ([false, true], false) => "any client that reaches this machine over IPv6",
        ([true, false], true) => {
            "any client that reaches this machine over IPv4, or these addresses"
        }
        ([false, true], true) => {
            "any client that reaches this machine over IPv6, or these addresses"
        }
        ([false, false], _) => "any client that reaches these addresses",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(text: &str) -> Local {
        let (address, only_v6) =
            text.strip_suffix(" only").map_or((text, false), |text| (text, true));
        Local { address: address.parse().unwrap(), only_v6 }
    }

    #[test]
    fn clients_reach_what_is_bound() {
        let any = "any client that reaches ";
        for (addresses, expected) in [
            (&["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"][..], "this machine only"),
            (&["[::]:1"], "this machine"),
            (&["[::]:1 only", "0.0.0.0:1"], "this machine"),
            (&["[::]:1 only", "[::ffff:0.0.0.0]:1"], "this machine"),
            (&["0.0.0.0:1"], "this machine over IPv4"),
            (&["[::ffff:0.0.0.0]:1", "[::1]:1"], "this machine over IPv4"),
            (&["[::]:1 only", "127.0.0.1:1"], "this machine over IPv6"),
            (&["0.0.0.0:1", "192.0.2.1:2"], "this machine over IPv4"),
            (&["0.0.0.0:1", "[2001:db8::1]:1"], "this machine over IPv4, or these addresses"),
            (&["[::]:1 only", "192.0.2.1:1"], "this machine over IPv6, or these addresses"),
            (&["[::]:1 only", "[2001:db8::1]:2"], "this machine over IPv6"),
            (&["192.0.2.1:1", "127.0.0.1:1"], "these addresses"),
            (&["[fe80::1%1]:1"], "these addresses"),
            // Where the system tells of none.
            (&[], "these addresses"),
        ] {
            let said = reach(&addresses.iter().copied().map(local).collect::<Vec<_>>());
            assert_eq!(said.strip_prefix(any).unwrap_or(said), expected, "{addresses:?}");
        }
    }

    #[test]
    fn sockets_overlap_where_they_have_an_address_in_common() {
        for (one, other, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("0.0.0.0:1", "[::]:1", true),
            ("0.0.0.0:1", "[::]:1 only", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1 only", "127.0.0.1:1", false),
            ("[::]:1 only", "[::1]:1", true),
            ("[::]:1 only", "[::]:1", true),
            ("[fe80::1%1]:1", "[fe80::1%2]:1", false),
        ] {
            let (one, other) = (local(one), local(other));
            assert_eq!(one.overlaps(&other), expected, "{one:?}, {other:?}");
            assert_eq!(other.overlaps(&one), expected, "{other:?}, {one:?}");
        }
    }
}
