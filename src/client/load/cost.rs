//! What a load costs the client and the server.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::client::nanoseconds;
use crate::client::process::Memory;
use crate::sys::thread::{cpu_time, queue_time};

/// A thread that has work for this share of the measured part is the limit.
const BUSY: f64 = 0.95;

/// In a shorter measured part, to begin is most of the work.
const BRIEF: Duration = Duration::from_millis(100);

/// What a thread has used up to a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThreadUsage {
    at: Instant,
    cpu: Duration,
    queued: Duration,
}

impl ThreadUsage {
    /// Of the thread that calls it.
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu_time(), queued: queue_time() }
    }
}

/// What the client needed itself in the measured part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClientUsage {
    /// CPU time of its threads.
    #[serde(rename = "cpu_ns", with = "nanoseconds")]
    pub cpu: Duration,
    /// The same as a share of the time of one CPU.
    pub cpu_share: f64,
    /// The share of the time in which its busiest thread had work: it ran, or was ready to run and other
    /// threads had the CPUs. To poll while nothing is there is no work.
    pub busiest_thread: f64,
    /// Whether the busiest thread had work for at least 95 % of 100 ms or more: then the numbers tell more
    /// about the client than about the server.
    pub was_limit: bool,
}

impl ClientUsage {
    /// Adds what the calling thread has used since `begin`, less what it polled in vain.
    pub(super) fn of_thread(begin: &ThreadUsage, polled: Duration) -> Self {
        let end = ThreadUsage::now();
        let cpu = end.cpu.saturating_sub(begin.cpu);
        let queued = end.queued.saturating_sub(begin.queued);
        Self::of(end.at - begin.at, cpu, queued, polled)
    }

    fn of(time: Duration, cpu: Duration, queued: Duration, polled: Duration) -> Self {
        let share = |part: Duration| part.as_secs_f64() / time.as_secs_f64().max(1e-9);
        let busiest_thread = share((cpu + queued).saturating_sub(polled)).min(1.0);
        let was_limit = time >= BRIEF && busiest_thread >= BUSY;
        Self { cpu, cpu_share: share(cpu), busiest_thread, was_limit }
    }

    /// Both together, of threads or clients at the same time.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self {
            cpu: self.cpu + other.cpu,
            cpu_share: self.cpu_share + other.cpu_share,
            busiest_thread: self.busiest_thread.max(other.busiest_thread),
            was_limit: self.was_limit || other.was_limit,
        }
    }
}

/// What a process used with all its descendants, from the beginning of the measured part until the last
/// reply.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServerUsage {
    /// The process.
    pub pid: u32,
    /// CPU time; of descendants that ended meanwhile to 10 ms, if they were waited for.
    #[serde(rename = "cpu_ns", with = "nanoseconds")]
    pub cpu: Duration,
    /// The same as a share of the time of one CPU.
    pub cpu_share: f64,
    /// CPU time for each message that came back.
    #[serde(rename = "cpu_per_message_ns", with = "nanoseconds")]
    pub cpu_per_message: Duration,
    /// Memory at the end.
    #[serde(flatten)]
    pub memory: Memory,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(time: u64, cpu: u64, queued: u64, polled: u64) -> ClientUsage {
        let [time, cpu, queued, polled] = [time, cpu, queued, polled].map(Duration::from_millis);
        ClientUsage::of(time, cpu, queued, polled)
    }

    #[test]
    fn a_thread_with_work_all_the_time_is_the_limit() {
        assert!(of(1_000, 960, 0, 0).was_limit);
        assert!(of(1_000, 500, 460, 0).was_limit, "it waits for a CPU");
        assert!(!of(1_000, 940, 0, 0).was_limit);
        assert!(!of(1_000, 1_000, 0, 100).was_limit, "it polls");
        assert!(!of(99, 99, 0, 0).was_limit, "it has just begun");
        let all = of(1_000, 500, 0, 0).and(&of(1_000, 1_000, 0, 0));
        assert_eq!((all.cpu_share, all.busiest_thread, all.was_limit), (1.5, 1.0, true));
    }

    #[test]
    fn work_of_a_thread_is_seen() {
        let begin = ThreadUsage::now();
        while cpu_time() < begin.cpu + Duration::from_millis(20) {}
        let used = ClientUsage::of_thread(&begin, Duration::ZERO);
        assert!(used.cpu >= Duration::from_millis(20) && used.busiest_thread > 0.0, "{used:?}");
    }
}
