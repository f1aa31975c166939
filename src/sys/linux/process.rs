//! What Linux tells of this process.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use super::limits::memory;

/// Bytes of this process that are in RAM, if known.
pub(crate) fn resident_memory() -> Option<u64> {
    Some(memory("VmRSS:")).filter(|&bytes| bytes > 0)
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
    fn the_process_has_an_age_and_memory() {
        assert!(start_time().is_some() && resident_memory().is_some());
    }
}
