//! Everything that names an operating system: a file a topic, small interfaces.
//!
//! What differs between systems is decided here, and nowhere above: `linux`, and `bsd` for macOS and FreeBSD, have the
//! same names. macOS and FreeBSD have been compiled, never run. Their differences, with the manual page, the function
//! of the kernel, or the library that shows each:
//!
//! - Datagrams show their destination by IP_RECVDSTADDR, not IP_PKTINFO; the reply names it by IP_SENDSRCADDR on
//!   FreeBSD (ip(4)), by IP_PKTINFO on macOS (xnu, udp_check_pktinfo). IPv6 is the same (RFC 3542). A socket that is
//!   bound to one address names none: FreeBSD would refuse it (quinn-udp, unix.rs: encode_src_ip).
//! - An IPv6 socket refuses the options of IPv4 (ip6_ctloutput), so `::` alone cannot set the hop limit of replies
//!   over IPv4: the default is `::` and 0.0.0.0.
//! - Broadcasts are not marked: the addresses of the interfaces tell (getifaddrs(3)).
//! - A send buffer holds no datagrams, it bounds their size: 9,216 bytes by default (net.inet.udp.maxdgram). macOS says
//!   of one that just does not fit that it would block (quinn-udp, MIN_SAFE_SNDBUF). A full interface is ENOBUFS.
//! - A buffer over kern.ipc.maxsockbuf is refused, and not reduced (setsockopt(2)); a size is shown as it was set.
//! - SO_REUSEPORT of macOS gives all clients to one socket. FreeBSD distributes them with SO_REUSEPORT_LB, which is set
//!   alone, and before bind(2): a socket joins the others there (setsockopt(2); libuv, uv__sock_reuseport; socket2 has a
//!   call for each). An IPv6 wildcard that takes IPv4, too, does not (in_pcbinslbgrouphash).
//! - Accepted sockets inherit O_NONBLOCK (accept(2)), but not by accept4(2) of FreeBSD. mio relies on it on macOS (mio,
//!   tcp.rs), libuv sets it anew (uv__accept), socket2 leaves it; the blocking designs set it back.
//! - A client that is gone: accept(2) returns no address on macOS (Go, syscall_bsd.go; std says InvalidInput), setsockopt(2)
//!   is EINVAL there (xnu, sosetoptlock), shutdown(2) ENOTCONN (tokio#4665), and write(2) may be EPROTOTYPE (libuv,
//!   uv__try_write).
//! - SO_NOSIGPIPE on macOS, which has no MSG_NOSIGNAL before 14: std, mio, socket2 and libuv set it on new sockets, and
//!   accepted ones inherit it. On FreeBSD std sends with MSG_NOSIGNAL.
//! - kqueue(2) is edge-triggered with EV_CLEAR, and has EV_EOF in the event of the last bytes: a FIN is never alone
//!   (mio, kqueue.rs: is_read_closed; libuv makes it POLLRDHUP). Its timeouts count in nanoseconds, so no timerfd is
//!   needed. It has no priority events: SO_OOBINLINE makes urgent bytes readable.
//! - poll(2) has POLLRDHUP on FreeBSD alone; macOS has no ppoll(2), accept4(2) or SOCK_NONBLOCK.
//! - setrlimit(2) of macOS refuses RLIM_INFINITY for open files: OPEN_MAX is the most.
//! - Only unsafe calls tell what signals are ignored: each is handled, so that a terminal that hangs up ends the server
//!   under nohup(1), too.
//! - Only unsafe calls tell what a process uses, the range of local ports, and dropped datagrams: what `load`, `check` and
//!   `compare` say of these is left out.
//! - Netlink, `/proc`, abstract sockets, segmentation offload, SO_BINDTODEVICE, child subreapers: Linux alone.

#[cfg(not(target_os = "linux"))]
mod bsd;
pub(crate) mod cause;
pub(crate) mod datagram;
#[cfg(feature = "cli")]
pub mod inherited;
pub(crate) mod limits;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(feature = "client")]
pub(crate) mod local;
#[cfg(feature = "daemon")]
pub(crate) mod process;
pub(crate) mod service_manager;
pub(crate) mod signals;
pub(crate) mod socket;
#[cfg(feature = "client")]
pub(crate) mod thread;
pub(crate) mod wait;

#[cfg(not(target_os = "linux"))]
use bsd as system;
#[cfg(target_os = "linux")]
use linux as system;
pub(crate) use system::{EVERYWHERE, STREAM_INTEREST, interfaces};
#[cfg(feature = "client")]
pub(crate) use system::{timer, tool};

pub(crate) use std::os::fd::OwnedFd;

pub(crate) use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

/// Whether a read that does not fill its buffer has emptied the socket, so that the next bytes come
/// with a new event. epoll(7) and kqueue(2) promise it. With poll(2), mio has to see a `WouldBlock`
/// before it asks for events again (tokio-rs/mio#1611).
pub(crate) const SHORT_READ_EMPTIES: bool = cfg!(not(mio_unsupported_force_poll_poll));

/// The index of the network interface with this name.
pub(crate) fn interface_index(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// The name of this machine.
pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}
