//! Facts of the calling thread, for those who measure with it.

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// CPU time that the calling thread has used, user and system.
pub(crate) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// How long the calling thread was ready to run while others had the CPUs (the second number of
/// schedstat, see Documentation/scheduler/sched-stats.rst in Linux); nothing where that is not known.
pub(crate) fn queue_time() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').nth(1).and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}
