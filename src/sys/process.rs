//! Facts of this process, for metrics.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

pub(crate) use super::system::process::{resident_memory, start_time};

/// CPU time that this process has used, user and system.
pub(crate) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_process_is_this_one() {
        let now = SystemTime::now();
        let is_young = |start| now.duration_since(start).unwrap() < Duration::from_secs(3_600);
        assert!(start_time().is_none_or(is_young));
        assert!(resident_memory().is_none_or(|bytes| bytes > 100 << 10));
        assert!(cpu_time() < 64 * Duration::from_secs(3_600));
    }
}
