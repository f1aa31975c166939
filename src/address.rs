//! Addresses to bind.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs, UdpSocket};
use std::str::FromStr;

use crate::error::ParseError;
use crate::sys;

/// An address to bind: an IP address, with a zone if it is link-local, and with a port if it has one of its
/// own.
///
/// ```
/// use evecho::BindAddress;
///
/// for text in ["127.0.0.1", "127.0.0.1:7", "::1", "[::1]", "[::1]:7", "fe80::1%lo", "[fe80::1%lo]:7"] {
///     text.parse::<BindAddress>()?;
/// }
/// # Ok::<(), evecho::ParseError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BindAddress {
    ip: IpAddr,
    /// The index of an interface; 0 if there is none.
    zone: u32,
    /// The port of its own, if it has one.
    pub(crate) port: Option<u16>,
}

impl BindAddress {
    /// Resolves a text: to the address that it is, or to all addresses that a host name (`localhost`,
    /// `localhost:7`) has on this machine.
    ///
    /// # Errors
    ///
    /// If the text is neither an address nor a host name that the system resolves.
    pub fn resolve(text: &str) -> Result<Vec<BindAddress>, ParseError> {
        let not_an_address = match text.parse() {
            Ok(address) => return Ok(vec![address]),
            Err(error) => error,
        };
        let (host, port) = host_and_port(text).ok_or(not_an_address)?;
        let resolved = (host, 0).to_socket_addrs().map_err(|error| {
            ParseError::new(format!("'{host}' is neither an address nor a known host: {error}"))
        })?;
        let mut seen = HashSet::new();
        let addresses = resolved.map(|address| BindAddress { port, ..address.into() });
        let mut addresses: Vec<_> = addresses.filter(|address| seen.insert(*address)).collect();
        // A name may have an address of a family that this machine lacks.
        let here = |address: &BindAddress| UdpSocket::bind(address.with_port(0)).is_ok();
        if addresses.iter().any(here) {
            addresses.retain(here);
        }
        Ok(addresses)
    }

    /// The same address with a port.
    pub(crate) fn with_port(&self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.zone).into(),
        }
    }
}

impl From<IpAddr> for BindAddress {
    fn from(ip: IpAddr) -> Self {
        BindAddress { ip, zone: 0, port: None }
    }
}

impl From<Ipv4Addr> for BindAddress {
    fn from(ip: Ipv4Addr) -> Self {
        IpAddr::from(ip).into()
    }
}

impl From<Ipv6Addr> for BindAddress {
    fn from(ip: Ipv6Addr) -> Self {
        IpAddr::from(ip).into()
    }
}

/// The address with this port as its own.
impl From<SocketAddr> for BindAddress {
    fn from(address: SocketAddr) -> Self {
        let zone = match address {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(address) => address.scope_id(),
        };
        BindAddress { ip: address.ip(), zone, port: Some(address.port()) }
    }
}

impl FromStr for BindAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || {
            ParseError::new(format!(
                "'{text}' is not an address to bind; give an IP address, with a port if it has one of its own: 127.0.0.1, 127.0.0.1:7, ::1, [::1]:7, fe80::1%eth0"
            ))
        };
        let plain = text.parse::<IpAddr>().map(BindAddress::from);
        if let Ok(address) = plain.or_else(|_| text.parse::<SocketAddr>().map(BindAddress::from)) {
            return Ok(address);
        }
        // What is left has a zone, or brackets without a port. std reads a zone that is an index, and
        // only in front of a port.
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (inside, port) = bracketed.unwrap_or((text, ""));
        let (ip, zone) = inside.split_once('%').unwrap_or((inside, "0"));
        let (zone, any) = (interface(zone)?, if port.is_empty() { ":0" } else { port });
        let address: SocketAddrV6 = format!("[{ip}%{zone}]{any}").parse().map_err(|_| bad())?;
        let port = Some(address.port()).filter(|_| !port.is_empty());
        Ok(BindAddress { port, ..SocketAddr::from(address).into() })
    }
}

/// A host name, and the port behind it, if there is one.
fn host_and_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.split_once(':') {
        None => (text, None),
        Some((host, port)) => (host, Some(port.parse().ok()?)),
    };
    (!host.is_empty() && !host.contains(['[', ']', '%'])).then_some((host, port))
}

/// The index of an interface that is given by name or by index.
fn interface(zone: &str) -> Result<u32, ParseError> {
    if let Ok(index) = zone.parse() {
        return Ok(index);
    }
    sys::interface_index(zone).ok_or_else(|| {
        ParseError::new(format!("there is no interface '{zone}'; 'ip link' shows the interfaces"))
    })
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BindAddress { port: Some(port), .. } => write!(f, "{}", self.with_port(port)),
            BindAddress { ip, zone: 0, .. } => write!(f, "{ip}"),
            BindAddress { ip, zone, .. } => write!(f, "{ip}%{zone}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(text: &str, default_port: u16) -> String {
        let address: BindAddress = text.parse().unwrap();
        address.with_port(address.port.unwrap_or(default_port)).to_string()
    }

    #[test]
    fn an_address_may_have_a_port_of_its_own() {
        assert_eq!(bound("127.0.0.1", 12), "127.0.0.1:12");
        assert_eq!(bound("127.0.0.1:7", 12), "127.0.0.1:7");
        for text in ["::1", "[::1]"] {
            assert_eq!(bound(text, 12), "[::1]:12");
        }
        assert_eq!(bound("[::1]:0", 12), "[::1]:0");
        let lo = sys::interface_index("lo").unwrap();
        for text in ["fe80::1%lo", "[fe80::1%lo]", &format!("fe80::1%{lo}")] {
            assert_eq!(bound(text, 12), format!("[fe80::1%{lo}]:12"));
        }
        assert_eq!(bound("[fe80::1%lo]:7", 12), format!("[fe80::1%{lo}]:7"));
    }

    #[test]
    fn an_address_reads_as_it_prints() {
        for text in ["127.0.0.1", "127.0.0.1:7", "::1", "[::1]:7", "fe80::1%1", "[fe80::1%1]:7"] {
            assert_eq!(text.parse::<BindAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_name_resolves_to_its_addresses() {
        let addresses = BindAddress::resolve("localhost:7").unwrap();
        let loopback = |address: &BindAddress| address.ip.is_loopback() && address.port == Some(7);
        assert!(!addresses.is_empty() && addresses.iter().all(loopback), "{addresses:?}");
        assert!(BindAddress::resolve("localhost").unwrap().iter().all(|a| a.port.is_none()));
    }

    #[test]
    fn an_invalid_address_is_one_sentence() {
        for bad in [
            "",
            ":7",
            "[::1",
            "[::1]7",
            "127.0.0.1:65536",
            "fe80::1%none",
            "[127.0.0.1]",
            "a b",
            "1.2.3.4:x",
        ] {
            let error = BindAddress::resolve(bad).unwrap_err().to_string();
            assert!(error.contains('\''), "{bad}: {error}");
        }
    }
}
