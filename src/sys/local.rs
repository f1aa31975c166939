//! What the ends of connections on this side are: local ports, and addresses of interfaces.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// How many local ports each address has for sockets that name none (Linux, ip-sysctl: `ip_local_port_range`
/// without `ip_local_reserved_ports`; they hold for IPv6, too). `None` where that is not known.
pub(crate) fn ports() -> Option<u64> {
    count(&setting("ip_local_port_range")?, &setting("ip_local_reserved_ports").unwrap_or_default())
}

/// How long TCP keeps the port of a connection that this side closed first (TIME_WAIT) from another one to the
/// same server. With `tcp_tw_reuse` a second is enough; by default that is so on loopback alone.
pub(crate) fn port_is_kept(server: IpAddr) -> Duration {
    let is_soon = match setting("tcp_tw_reuse").as_deref().map(str::trim) {
        Some("1") => true,
        Some("2") => server.is_loopback(),
        _ => false,
    };
    Duration::from_secs(if is_soon { 1 } else { 60 })
}

fn setting(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()
}

/// The ports of a range, `first last`, that are not reserved by a list like `7,9000-9010`.
fn count(range: &str, reserved: &str) -> Option<u64> {
    let (first, last) = range.trim().split_once(char::is_whitespace)?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.trim().parse().ok()?);
    let reserved = reserved.trim().split(',').filter_map(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
        Some((to.min(last) + 1).saturating_sub(from.max(first)))
    });
    Some((last + 1).saturating_sub(first + reserved.sum::<u64>()))
}

/// The addresses in the network of `address`, on the interface that has it: itself, and those that reach the same
/// hosts and are reached by them.
pub(crate) fn addresses_beside(address: IpAddr) -> Vec<IpAddr> {
    let all = getifaddrs().into_iter().flatten().filter_map(|one| {
        // With a label, the name of an interface has it behind a colon.
        let name = one.interface_name.split(':').next()?.to_owned();
        Some((name, ip(&one.address?)?, ip(&one.netmask?)?))
    });
    let all: Vec<(String, IpAddr, IpAddr)> = all.collect();
    let Some((name, _, mask)) = all.iter().find(|(_, ip, _)| *ip == address) else {
        return Vec::new();
    };
    let is_beside = |ip| network(ip, *mask) == network(address, *mask);
    let beside = all.iter().filter(|(interface, ip, _)| interface == name && is_beside(*ip));
    beside.map(|&(_, ip, _)| ip).collect()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

fn network(ip: IpAddr, mask: IpAddr) -> Option<IpAddr> {
    match (ip, mask) {
        (IpAddr::V4(ip), IpAddr::V4(mask)) => {
            Some(Ipv4Addr::from(u32::from(ip) & u32::from(mask)).into())
        }
        (IpAddr::V6(ip), IpAddr::V6(mask)) => {
            Some(Ipv6Addr::from(u128::from(ip) & u128::from(mask)).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_not_counted() {
        for (range, reserved, ports) in [
            ("32768\t60999\n", "\n", Some(28_232)),
            ("40000 40049", "7,40000,40040-40060,50000", Some(39)),
            ("40000 40049", "1-65535", Some(0)),
            ("40000", "", None),
        ] {
            assert_eq!(count(range, reserved), ports, "{range} without {reserved}");
        }
    }

    #[test]
    fn an_address_is_beside_itself() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(addresses_beside(loopback).contains(&loopback));
        // TEST-NET-1 (RFC 5737).
        assert!(addresses_beside([192, 0, 2, 1].into()).is_empty());
    }
}
