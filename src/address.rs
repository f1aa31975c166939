//! Hosts and ports as people write them, and addresses to bind.

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
    pub(crate) ip: IpAddr,
    /// The index of an interface; 0 if there is none.
    pub(crate) zone: u32,
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
        let (host, port) = host_and_port(text)?;
        if let Some(address) = literal(host) {
            return Ok(vec![BindAddress { port, ..address? }]);
        }
        let resolved = (host, 0).to_socket_addrs().map_err(|error| {
            let error = error.to_string();
            let reason = error.strip_prefix("failed to lookup address information: ");
            ParseError::new(format!(
                "'{host}' is neither an address, like 127.0.0.1 or ::1, nor a known host: {}",
                reason.unwrap_or(&error)
            ))
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

    /// The address with its port, if it has one of its own.
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        self.port.map(|port| self.with_port(port))
    }

    /// The same address with a port. An IPv4-mapped address is the IPv4 address: no IPv6 socket that is
    /// for IPv6 alone can have it.
    pub(crate) fn with_port(&self, port: u16) -> SocketAddr {
        match self.ip.to_canonical() {
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
        let zone = if let SocketAddr::V6(address) = address { address.scope_id() } else { 0 };
        BindAddress { ip: address.ip(), zone, port: Some(address.port()) }
    }
}

impl FromStr for BindAddress {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (host, port) = host_and_port(text)?;
        let name = || ParseError::new(format!("'{host}' is a name; give an IP address here"));
        Ok(BindAddress { port, ..literal(host).ok_or_else(name)?? })
    }
}

/// The host in `text`, without brackets, and the port behind it, if there is one.
///
/// An IPv6 address needs brackets only in front of a port: `::1:7` is an address, all of it.
pub(crate) fn host_and_port(text: &str) -> Result<(&str, Option<u16>), ParseError> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, behind) = match bracketed {
        Some(parts) => parts,
        None if is_ipv6(text) => (text, ""),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let digits = behind.strip_prefix(':').filter(|port| port.bytes().all(|c| c.is_ascii_digit()));
    let port = digits.and_then(|port| port.parse().ok());
    let no_ipv6 = !is_ipv6(host);
    let rules = [
        (text.contains(char::is_whitespace), "has white space"),
        (text.contains('@'), "has a user"),
        (text.contains('/'), "has a path"),
        (
            bracketed.is_none() && text.contains(['[', ']']),
            "has brackets that do not enclose its host",
        ),
        (host.is_empty(), "has no host"),
        (bracketed.is_some() && no_ipv6, "has something other than an IPv6 address in brackets"),
        (no_ipv6 && host.contains('%'), "has a zone behind no IPv6 address"),
        (behind.matches(':').count() > 1, "has several colons, and is no IPv6 address"),
        (!behind.is_empty() && port.is_none(), "has no port up to 65535 behind its host"),
    ];
    match rules.into_iter().find(|(broken, _)| *broken) {
        None => Ok((host, port)),
        Some((_, why)) => Err(ParseError::new(format!(
            "'{text}' {why}; write HOST or HOST:PORT, like localhost:7, ::1 or [::1]:7"
        ))),
    }
}

/// Whether this is an IPv6 address, with a zone if it has one.
fn is_ipv6(text: &str) -> bool {
    let (ip, zone) = text.split_once('%').unwrap_or((text, "0"));
    ip.parse::<Ipv6Addr>().is_ok() && !zone.is_empty() && !zone.contains(['[', ']', '%', ':'])
}

/// The address that this host is, without a port; `None` if it is a name.
pub(crate) fn literal(host: &str) -> Option<Result<BindAddress, ParseError>> {
    let (ip, zone) = host.split_once('%').unwrap_or((host, "0"));
    let ip = ip.parse().ok()?;
    let index = zone.parse().ok().or_else(|| sys::interface_index(zone));
    let address = index.map(|zone| BindAddress { ip, zone, port: None });
    let unknown = || format!("there is no network interface '{zone}' ('ip link' shows them)");
    Some(address.ok_or_else(|| ParseError::new(unknown())))
}

impl fmt::Display for BindAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BindAddress { port: Some(port), .. } => self.with_port(port).fmt(f),
            BindAddress { ip, zone: 0, .. } => write!(f, "{ip}"),
            BindAddress { ip, zone, .. } => write!(f, "{ip}%{zone}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
        for (text, why) in [
            ("", "has no host"),
            (":7", "has no host"),
            ("::1]", "brackets that do not enclose"),
            ("[::1", "brackets that do not enclose"),
            ("[::1]7", "no port"),
            ("[]", "has no host"),
            ("[127.0.0.1]", "other than an IPv6 address"),
            ("127.0.0.1:65536", "no port"),
            ("127.0.0.1:+7", "no port"),
            ("localhost:", "no port"),
            ("1.2.3.4:x", "no port"),
            ("fe80::1%none", "no network interface 'none'"),
            ("fe80::1%", "several colons"),
            ("127.0.0.1%lo", "a zone"),
            ("a:b:7", "several colons"),
            ("a b", "white space"),
            ("user@host", "a user"),
            ("host/path", "a path"),
        ] {
            let error = BindAddress::resolve(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let error = "localhost".parse::<BindAddress>().unwrap_err().to_string();
        assert_eq!(error, "'localhost' is a name; give an IP address here");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a1:.%/@ \\[\\]]{0,12}|.{0,12}") {
            if let Ok((host, port)) = host_and_port(&text) {
                let bare = text.replace(['[', ']'], "");
                let behind = bare.strip_prefix(host).and_then(|behind| behind.strip_prefix(':'));
                prop_assert_eq!(port, behind.map(|digits| digits.parse().unwrap()));
                prop_assert!(!host.is_empty() && (port.is_some() || bare == host));
            }
        }

        #[test]
        fn an_address_is_read_as_it_is_printed(
            v6: bool, bits: u128, zone in 0..9_u32, port: Option<u16>,
        ) {
            let ip = if v6 { Ipv6Addr::from(bits).into() } else { Ipv4Addr::from(bits as u32).into() };
            let address = BindAddress { ip, zone: if v6 { zone } else { 0 }, port };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }
    }
}
