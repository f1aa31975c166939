//! Facts of this process, for metrics.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use super::limits;

/// CPU time that this process has used, user and system.
pub(crate) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Bytes of this process that are in RAM; 0 if unknown.
pub(crate) fn resident_memory() -> u64 {
    limits::memory("VmRSS:")
}

/// When this process started: now, less its age. If the age is unknown, now.
pub(crate) fn start_time() -> SystemTime {
    // proc_pid_stat(5) counts from boot, in ticks of 10 ms.
    let ticks = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| {
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(19)?.parse().ok().map(|ticks: u64| ticks)
    });
    let now = SystemTime::now();
    let (Some(ticks), Ok(since_boot)) = (ticks, clock_gettime(ClockId::CLOCK_BOOTTIME)) else {
        return now;
    };
    let age = Duration::from(since_boot).saturating_sub(Duration::from_millis(ticks * 10));
    now.checked_sub(age).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_is_this_one() {
        let age = SystemTime::now().duration_since(start_time()).unwrap();
        assert!(age < Duration::from_secs(3_600));
        assert!(cpu_time() < 64 * Duration::from_secs(3_600));
        assert!(resident_memory() > 100 << 10);
    }
}
