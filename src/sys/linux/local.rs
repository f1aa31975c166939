//! Local ports (Linux, ip-sysctl).

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

/// How many local ports each address has for sockets that name none (`ip_local_port_range`
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

/// The first of the ports for sockets that name none, if known.
pub(crate) fn first_local_port() -> Option<u16> {
    setting("ip_local_port_range")?.split_whitespace().next()?.parse().ok()
}

/// Whether a UDP socket of this machine hears what comes to the loopback's broadcast address at
/// the port: one that is bound to every address, or to that one (proc_net(5)).
pub(crate) fn hears_broadcasts(port: u16) -> Option<bool> {
    let tables = ["/proc/net/udp", "/proc/net/udp6"].map(fs::read_to_string);
    let wanted = ["00000000", "FFFFFF7F", "00000000000000000000000000000000"]
        .map(|address| format!("{address}:{port:04X}"));
    Some(tables.into_iter().flatten().any(|table| {
        let mut local = table.lines().filter_map(|line| line.split_whitespace().nth(1));
        local.any(|local| wanted.iter().any(|wanted| wanted == local))
    }))
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
}
