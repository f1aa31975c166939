//! Why Linux refuses a call on a socket.

use std::fs;
use std::net::Ipv6Addr;

use super::status_mask;
use crate::sys::Errno;
use crate::sys::cause::Call::{Accept, Bind, Listen, Socket, Watch};
use crate::sys::cause::Remedy::{Address, Elsewhere, Port};
use crate::sys::cause::Row;
use crate::sys::cause::Situation::{
    self, Alone, Ipv6, LowPort, NoIpv6, NoZone, Own, Picked, Plain, Shared, Tentative,
};

/// The causes, as Linux has them.
#[rustfmt::skip]
pub(crate) const TABLE: [Row; 19] = [
    (&[Bind, Listen], &[Errno::EADDRINUSE], Some(Own), Address,
        "this server has the port already, at {}, which includes that address; leave one of them out, or choose another port"),
    (&[Bind, Listen], &[Errno::EADDRINUSE], Some(Picked), Port,
        "the system finds no port that is free for all sockets of this server; choose one outside net.ipv4.ip_local_port_range"),
    (&[Bind, Listen], &[Errno::EADDRINUSE], Some(Shared), Port,
        "another socket has that port and does not share it: all of them need SO_REUSEPORT and the same user ('ss -anp' shows them)"),
    (&[Bind, Listen], &[Errno::EADDRINUSE], Some(Alone), Port,
        "another socket has that port ('ss -anp' shows it); choose another one (0 picks a free one), or let both share it (SO_REUSEPORT)"),
    (&[Bind, Listen], &[Errno::EADDRINUSE], None, Port,
        "another socket has that port ('ss -anp' shows it); choose another one (0 picks a free one)"),
    (&[Bind], &[Errno::EACCES], Some(LowPort), Port,
        "ports below {} need CAP_NET_BIND_SERVICE; choose a higher one without it"),
    (&[Bind], &[Errno::EADDRNOTAVAIL], Some(NoIpv6), Address,
        "this machine has no IPv6 address; choose an IPv4 address"),
    (&[Bind], &[Errno::EADDRNOTAVAIL], Some(Tentative), Address,
        "the kernel does not use that address yet, or another host has it ('ip addr' shows it as tentative or dadfailed); try again"),
    (&[Bind], &[Errno::EADDRNOTAVAIL], None, Address,
        "this machine has no such address; choose one that 'ip addr' shows"),
    (&[Bind], &[Errno::EINVAL], Some(NoZone), Address,
        "a link-local address needs its interface behind it, as in fe80::1%eth0"),
    (&[Bind], &[Errno::ENODEV], None, Address,
        "there is no interface of that number; choose one that 'ip link' shows"),
    (&[Socket], &[Errno::EAFNOSUPPORT], Some(Ipv6), Address,
        "this machine has no IPv6, or a sandbox takes it away (RestrictAddressFamilies=); choose an IPv4 address"),
    (&[Socket], &[Errno::EAFNOSUPPORT], None, Elsewhere,
        "a sandbox takes IPv4 away (RestrictAddressFamilies=); allow it there"),
    (&[Socket, Bind, Listen, Accept, Watch], &[Errno::EPERM, Errno::EACCES], None, Elsewhere,
        "a sandbox or a security policy refuses it (seccomp, SELinux, AppArmor, SocketBindDeny=, a user namespace); allow it there"),
    (&[Socket, Accept, Watch], &[Errno::EMFILE], None, Elsewhere,
        "this process has as many open files as it may; raise the limit, as with ulimit -n"),
    (&[Socket, Accept, Watch], &[Errno::ENFILE], None, Elsewhere,
        "the system has as many open files as it may; raise fs.file-max"),
    (&[Watch], &[Errno::ENOSPC], None, Elsewhere,
        "this user has as many watches as it may; raise fs.epoll.max_user_watches"),
    (&[Socket, Bind, Listen, Accept, Watch], &[Errno::ENOBUFS, Errno::ENOMEM], None, Elsewhere,
        "no memory is left for it, in the kernel or in the limits of this process or its control group"),
    (&[Socket], &[Errno::EPROTONOSUPPORT], None, Elsewhere,
        "a sandbox takes this protocol away; allow it there"),
];

/// The first port that needs no capability (ip(7)).
pub(crate) fn first_unprivileged_port() -> u16 {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    first.ok().and_then(|first| first.trim().parse().ok()).unwrap_or(1024)
}

/// Whether this process has CAP_NET_BIND_SERVICE (proc_pid_status(5), capabilities(7)).
pub(crate) fn may_bind_low_ports() -> bool {
    status_mask("CapEff:") >> 10 & 1 == 1
}

/// What the addresses of all interfaces say of one that cannot be bound (/proc/net/if_inet6: the address,
/// its interface, length and scope, and flags).
pub(crate) fn of_interfaces(ip: Ipv6Addr) -> Situation {
    const TENTATIVE: u8 = 0x40;
    const FAILED: u8 = 0x08;
    let Ok(table) = fs::read_to_string("/proc/net/if_inet6") else { return Plain };
    let wanted = format!("{:032x}", ip.to_bits());
    let flags = table
        .lines()
        .filter(|line| line.starts_with(&wanted))
        .filter_map(|line| u8::from_str_radix(line.split_whitespace().nth(4)?, 16).ok());
    match flags.max_by_key(|flags| flags & (TENTATIVE | FAILED)) {
        _ if table.is_empty() => NoIpv6,
        Some(flags) if flags & (TENTATIVE | FAILED) > 0 => Tentative,
        _ => Plain,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::sys::cause::{cause, situation};

    /// Each row, what follows it in the table, and what it must not claim.
    #[test]
    fn each_cause_has_its_sentence() {
        let sentence = |call, errno: Errno, situation| cause(call, &errno.into(), situation);
        let anything =
            [Plain, Ipv6, NoIpv6, Tentative, NoZone, LowPort, Own, Picked, Shared, Alone];
        for call in [Bind, Listen] {
            for (situation, remedy, words) in [
                (Own, Address, "this server has the port already, at {}"),
                (Picked, Port, "net.ipv4.ip_local_port_range"),
                (Shared, Port, "the same user"),
                (Alone, Port, "let both share it"),
                (Plain, Port, "another socket has that port"),
            ] {
                let (helps, said) = sentence(call, Errno::EADDRINUSE, situation).unwrap();
                assert!(helps == remedy && said.contains(words), "{call:?}, {situation:?}: {said}");
                assert!(!said.contains("process"), "which process it is, is not known: {said}");
                assert!(situation != Picked || !said.contains("0 picks"), "{said}");
            }
        }
        for (situation, words) in [
            (LowPort, "ports below {} need CAP_NET_BIND_SERVICE"),
            (Plain, "a sandbox or a security policy"),
        ] {
            let (_, said) = sentence(Bind, Errno::EACCES, situation).unwrap();
            assert!(said.contains(words), "{situation:?}: {said}");
        }
        for (situation, words) in
            [(NoIpv6, "no IPv6 address"), (Tentative, "dadfailed"), (Plain, "no such address")]
        {
            let (remedy, said) = sentence(Bind, Errno::EADDRNOTAVAIL, situation).unwrap();
            assert!(remedy == Address && said.contains(words), "{situation:?}: {said}");
        }
        assert!(sentence(Bind, Errno::EINVAL, NoZone).unwrap().1.contains("fe80::1%eth0"));
        assert!(sentence(Bind, Errno::EINVAL, Plain).is_none());
        assert!(sentence(Bind, Errno::ENODEV, Plain).unwrap().1.contains("no interface"));
        for (situation, words) in [(Ipv6, "has no IPv6"), (Plain, "takes IPv4 away")] {
            let (_, said) = sentence(Socket, Errno::EAFNOSUPPORT, situation).unwrap();
            assert!(said.contains(words), "{situation:?}: {said}");
        }
        // Of these, no situation changes the sentence.
        for (calls, errnos, words) in [
            (&[Socket, Bind, Listen, Accept, Watch][..], &[Errno::EPERM][..], "sandbox"),
            (&[Socket, Listen, Accept, Watch], &[Errno::EACCES], "sandbox"),
            (&[Socket, Accept, Watch], &[Errno::EMFILE], "ulimit -n"),
            (&[Socket, Accept, Watch], &[Errno::ENFILE], "fs.file-max"),
            (&[Watch], &[Errno::ENOSPC], "fs.epoll.max_user_watches"),
            (&[Socket, Bind, Listen, Accept, Watch], &[Errno::ENOBUFS, Errno::ENOMEM], "no memory"),
            (&[Socket], &[Errno::EPROTONOSUPPORT], "this protocol"),
        ] {
            for (call, errno) in calls.iter().flat_map(|call| errnos.iter().map(move |e| (call, e)))
            {
                for situation in anything {
                    let (remedy, said) = sentence(*call, *errno, situation).unwrap();
                    assert!(said.contains(words), "{call:?}, {errno}: {said}");
                    assert_eq!(remedy, Elsewhere, "{call:?}, {errno}");
                    assert!(!said.contains("CAP_NET_BIND_SERVICE"), "{call:?}, {errno}: {said}");
                }
            }
        }
        // An error without a row says all that is known.
        assert!(sentence(Accept, Errno::EINVAL, Plain).is_none());
        assert!(cause(Bind, &io::ErrorKind::AddrInUse.into(), Plain).is_none());
    }

    #[test]
    fn the_system_knows_more_than_the_error() {
        let of = |errno: Errno, address: &str| situation(&errno.into(), address.parse().unwrap()).0;
        assert_eq!(of(Errno::EACCES, "127.0.0.1:65535"), Plain);
        assert_eq!(of(Errno::EPERM, "127.0.0.1:1"), Plain);
        let low = if may_bind_low_ports() { Plain } else { LowPort };
        assert_eq!(of(Errno::EACCES, "127.0.0.1:1"), low);
        assert_eq!(of(Errno::EAFNOSUPPORT, "[::]:1"), Ipv6);
        assert_eq!(of(Errno::EAFNOSUPPORT, "0.0.0.0:1"), Plain);
        assert_eq!(of(Errno::EADDRNOTAVAIL, "192.0.2.1:1"), Plain);
        assert_eq!(of(Errno::EINVAL, "[fe80::1]:1"), NoZone);
        assert_eq!(of(Errno::EINVAL, "[fe80::1%1]:1"), Plain);
        assert_ne!(of(Errno::EADDRNOTAVAIL, "[2001:db8::1]:1"), Tentative);
    }
}
