//! Why macOS or FreeBSD refuses a call on a socket.

use std::net::Ipv6Addr;

use crate::sys::Errno;
use crate::sys::cause::Call::{Accept, Bind, Listen, Socket, Watch};
use crate::sys::cause::Remedy::{Address, Elsewhere, Port};
use crate::sys::cause::Row;
use crate::sys::cause::Situation::{self, Alone, LowPort, NoZone, Own, Picked, Plain, Shared};

/// The causes, as macOS and FreeBSD have them.
#[rustfmt::skip]
pub(crate) const TABLE: [Row; 15] = [
    (&[Bind, Listen], &[Errno::EADDRINUSE], Some(Own), Address,
        "this server has the port already, at {}, which includes that address; leave one of them out, or choose another port"),
    (&[Bind, Listen], &[Errno::EADDRINUSE], Some(Picked), Port,
        "the system finds no port that is free for all sockets of this server; choose one outside net.inet.ip.portrange"),
    (&[Bind, Listen], &[Errno::EADDRINUSE], Some(Shared), Port,
        "another socket has that port and does not share it: all of them need the same option and the same user ('netstat -an' shows them)"),
    (&[Bind, Listen], &[Errno::EADDRINUSE], Some(Alone), Port,
        "another socket has that port ('netstat -an' shows it); choose another one (0 picks a free one), or let both share it"),
    (&[Bind, Listen], &[Errno::EADDRINUSE], None, Port,
        "another socket has that port ('netstat -an' shows it); choose another one (0 picks a free one)"),
    (&[Bind], &[Errno::EACCES], Some(LowPort), Port,
        "ports below {} are for root; choose a higher one"),
    (&[Bind], &[Errno::EADDRNOTAVAIL], None, Address,
        "this machine has no such address; choose one that 'ifconfig' shows"),
    (&[Bind], &[Errno::EINVAL], Some(NoZone), Address,
        "a link-local address needs its interface behind it, as in fe80::1%en0"),
    (&[Bind], &[Errno::ENXIO], None, Address,
        "there is no interface of that number; choose one that 'ifconfig' shows"),
    (&[Socket], &[Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT], None, Address,
        "this machine, or its jail, does not have that protocol; choose an address of another one"),
    (&[Socket, Bind, Listen, Accept, Watch], &[Errno::EPERM, Errno::EACCES], None, Elsewhere,
        "a sandbox, a jail or a firewall refuses it; allow it there"),
    (&[Socket, Accept, Watch], &[Errno::EMFILE], None, Elsewhere,
        "this process has as many open files as it may; raise the limit, as with ulimit -n"),
    (&[Socket, Accept, Watch], &[Errno::ENFILE], None, Elsewhere,
        "the system has as many open files as it may; raise kern.maxfiles"),
    (&[Socket, Bind, Listen, Accept, Watch], &[Errno::ENOBUFS], None, Elsewhere,
        "no memory is left for it in the kernel ('netstat -m' shows it)"),
    (&[Socket, Bind, Listen, Accept, Watch], &[Errno::ENOMEM], None, Elsewhere,
        "no memory is left for it, in the kernel or in the limits of this process"),
];

/// The first port that anyone may have (ip(4), net.inet.ip.portrange.reservedhigh).
pub(crate) fn first_unprivileged_port() -> u16 {
    1024
}

/// Whether this process may have lower ones: who may, is not refused.
pub(crate) fn may_bind_low_ports() -> bool {
    false
}

/// What the interfaces say of an address that cannot be bound: nothing more.
pub(crate) fn of_interfaces(_ip: Ipv6Addr) -> Situation {
    Plain
}
