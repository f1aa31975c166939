//! What the ends of connections on this side are: local ports, and addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

pub(crate) use super::system::local::{first_local_port, hears_broadcasts, port_is_kept, ports};

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
    fn an_address_is_beside_itself() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(addresses_beside(loopback).contains(&loopback));
        // TEST-NET-1 (RFC 5737).
        assert!(addresses_beside([192, 0, 2, 1].into()).is_empty());
    }
}
