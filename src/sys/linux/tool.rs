//! What the tools do with other processes, with the machine and with raw sockets.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use nix::libc::MSG_NOSIGNAL;
use nix::sys::prctl::set_child_subreaper;
#[cfg(feature = "cli")]
use nix::sys::prctl::{get_timerslack, set_timerslack};
use nix::time::ClockId;
use nix::unistd::Pid;
use socket2::{SockFilter, Socket};

/// Flags of send(2): a peer that is gone is an error, and no signal.
pub(crate) const SEND_FLAGS: i32 = MSG_NOSIGNAL;

/// Becomes the parent of descendants whose own has ended (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
pub(crate) fn adopt_orphans() -> nix::Result<()> {
    set_child_subreaper(true)
}

/// Has timers be in time, unless a parent process asks for less than what is usual (prctl(2)).
#[cfg(feature = "cli")]
pub(crate) fn mend_timers() {
    const USUAL: u16 = 50_000;
    // What does not fit into its type looks like an error, or as what is negative.
    if !get_timerslack().is_ok_and(|slack| (0..=USUAL.into()).contains(&slack)) {
        // A sandbox may refuse it: then timers are late.
        let _ = set_timerslack(USUAL.into());
    }
}

/// Whether it tells what other processes use: by `/proc`, which a sandbox may lack.
pub(crate) fn tells_of_processes() -> io::Result<()> {
    if !Path::new("/proc/self").exists() {
        let reason = "what a process uses is known by /proc only, which is not mounted here";
        return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
    }
    Ok(())
}

/// The CPU time of all threads of a process, those that have ended too.
pub(crate) fn cpu_time(pid: u32) -> nix::Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()))?;
    Ok(clock.now()?.into())
}

/// The name of the CPUs; empty where it is not known.
pub(crate) fn cpu_name() -> String {
    value("/proc/cpuinfo", "model name")
}

/// The bytes of memory that the machine has; 0 where they are not known.
pub(crate) fn memory() -> u64 {
    let memory = value("/proc/meminfo", "MemTotal");
    memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// The name and the version of the kernel.
pub(crate) fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", release.trim())
}

/// What stands behind a name in a file of lines.
fn value(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(String::new(), |rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// The share of all CPUs that is in use, over a fifth of a second.
pub(crate) fn busy_share() -> f64 {
    let before = ticks();
    std::thread::sleep(Duration::from_millis(200));
    let after = ticks();
    let [all, idle] = [0, 1].map(|index| after[index].saturating_sub(before[index]) as f64);
    if all > 0.0 { (all - idle).max(0.0) / all } else { 0.0 }
}

/// The ticks of all CPUs so far, and those without work (proc_stat(5)).
fn ticks() -> [u64; 2] {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let fields: Vec<u64> = first.split_whitespace().skip(1).flat_map(str::parse).collect();
    // user nice system idle iowait irq softirq steal; what guests use is in user already.
    [fields.iter().take(8).sum(), fields.iter().skip(3).take(2).sum()]
}

/// Has a raw UDP socket receive only what goes from the server's port to the same port.
pub(crate) fn see_only_loops(socket: &Socket, server: SocketAddr) -> io::Result<()> {
    socket.attach_filter(&own_port_to_itself(server))
}

/// A packet filter (`SO_ATTACH_FILTER`, socket(7)) that lets in UDP from the server's port to the
/// same port. A raw socket gets IPv4 packets with their IP header and IPv6 ones without.
fn own_port_to_itself(server: SocketAddr) -> Vec<SockFilter> {
    use nix::libc::{BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD};
    use nix::libc::{BPF_LDX, BPF_MSH, BPF_RET};
    let step = |code, unless, k| SockFilter::new(code as u16, 0, unless, k);
    let (load_half, unless_equal) = (BPF_LD | BPF_H | BPF_IND, BPF_JMP | BPF_JEQ | BPF_K);
    let port = u32::from(server.port());
    vec![
        match server {
            SocketAddr::V4(_) => step(BPF_LDX | BPF_B | BPF_MSH, 0, 0),
            SocketAddr::V6(_) => step(BPF_LDX | BPF_IMM, 0, 0),
        },
        step(load_half, 0, 0),
        step(unless_equal, 3, port),
        step(load_half, 0, 2),
        step(unless_equal, 1, port),
        step(BPF_RET | BPF_K, 0, u32::MAX),
        step(BPF_RET | BPF_K, 0, 0),
    ]
}
