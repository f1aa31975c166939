//! What the tools do with other processes, with the machine and with raw sockets.

use std::env::consts::OS;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;

pub(crate) use super::own::SEND_FLAGS;

/// Neither system has that for all of a process.
pub(crate) fn adopt_orphans() -> nix::Result<()> {
    Err(Errno::ENOSYS)
}

/// No parent process can have them be late.
#[cfg(feature = "cli")]
pub(crate) fn mend_timers() {}

/// Whether it tells what other processes use.
pub(crate) fn tells_of_processes() -> io::Result<()> {
    let reason = "what a process uses is known on Linux only";
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}

/// The CPU time of a process: not known.
pub(crate) fn cpu_time(_pid: u32) -> nix::Result<Duration> {
    Err(Errno::ENOSYS)
}

/// The name of the CPUs: not known.
pub(crate) fn cpu_name() -> String {
    String::new()
}

/// The bytes of memory that the machine has: not known.
pub(crate) fn memory() -> u64 {
    0
}

/// The name of the system.
pub(crate) fn kernel() -> String {
    OS.to_owned()
}

/// The share of all CPUs that is in use: not known.
pub(crate) fn busy_share() -> f64 {
    0.0
}

/// A raw socket receives no UDP.
pub(crate) fn see_only_loops(_socket: &Socket, _server: SocketAddr) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux shows UDP to a raw socket"))
}
