//! Facts of this process, for metrics.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use super::limits;

/// CPU time that this process has used, user and system.
pub(crate) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Bytes of this process that are in RAM, if known.
pub(crate) fn resident_memory() -> Option<u64> {
    Some(limits::memory("VmRSS:")).filter(|&bytes| bytes > 0)
}

/// When this process started, if known: now, less its age.
pub(crate) fn start_time() -> Option<SystemTime> {
    // proc_pid_stat(5) counts from boot, in ticks of 10 ms.
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    let age = since_boot.saturating_sub(Duration::from_millis(ticks * 10));
    SystemTime::now().checked_sub(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_this_one() {
        let age = SystemTime::now().duration_since(start_time().unwrap()).unwrap();
        assert!(age < Duration::from_secs(3_600));
        assert!(cpu_time() < 64 * Duration::from_secs(3_600));
        assert!(resident_memory().unwrap() > 100 << 10);
    }
}
