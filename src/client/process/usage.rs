//! What `/proc` tells of a process.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::sys::tool;
use crate::units;

/// What a process, with all its threads and descendants, uses at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its start, user and system; of descendants that have ended to 10 ms.
    pub cpu: Duration,
    /// Resident memory (Rss) in bytes. Pages that several of its processes share count in each.
    pub resident: u64,
    /// The same, but of a page that n processes have, each gets 1/n (Pss, proc_pid_smaps(5)). `None`
    /// where the kernel does not say: to most, of another user's processes.
    pub proportional: Option<u64>,
    /// Processes: itself and its descendants.
    pub processes: u64,
    /// Threads of all its processes.
    pub threads: u64,
    /// Open descriptors of all its processes. The kernel shows none of another user's.
    pub descriptors: u64,
    /// How long its living threads were ready to run while others had the CPU, all together; zero where the
    /// kernel does not say.
    pub delayed: Duration,
    /// How often its living threads gave up the CPU to wait.
    pub voluntary_switches: u64,
    /// How often the CPU was taken from its living threads.
    pub involuntary_switches: u64,
}

impl Usage {
    /// What the process `pid` and its descendants use now.
    ///
    /// # Errors
    ///
    /// When there is no such process, it has ended, it is hidden from this user, or the system does not tell
    /// (`Unsupported`: Linux does). A descendant
    /// that ends while it is looked at is left out.
    pub fn of(pid: u32) -> io::Result<Self> {
        tool::tells_of_processes()?;
        let stat = Stat::of(pid)?;
        if stat.has_ended {
            return Err(Errno::ESRCH.into());
        }
        Self::of_tree(pid, &stat)
    }

    /// The memory of all its processes, without counting a page twice where that can be told.
    pub fn memory(&self) -> Memory {
        let (bytes, kind) = match self.proportional {
            Some(proportional) if self.processes > 1 => (proportional, MemoryKind::Pss),
            _ => (self.resident, MemoryKind::Rss),
        };
        Memory { bytes, kind, processes: self.processes }
    }

    fn of_tree(pid: u32, stat: &Stat) -> io::Result<Self> {
        let mut total = Self::of_one(pid)?;
        total.cpu += stat.reaped_cpu;
        for child in children(pid) {
            let usage = Stat::of(child).and_then(|stat| Self::of_tree(child, &stat));
            if let Ok(usage) = usage {
                total.add(&usage);
            }
        }
        Ok(total)
    }

    fn of_one(pid: u32) -> io::Result<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let (resident, proportional) = memory(&process)?;
        let descriptors = fs::read_dir(process.join("fd"));
        let mut usage = Self {
            cpu: cpu(pid)?,
            resident,
            proportional,
            processes: 1,
            descriptors: descriptors.map_or(0, |open| open.count() as u64),
            ..Self::default()
        };
        for task in tasks(pid)? {
            let Ok(status) = fs::read_to_string(task.join("status")) else { continue };
            usage.threads += 1;
            usage.delayed += delay(&task);
            usage.voluntary_switches += number(&status, "voluntary_ctxt_switches:");
            usage.involuntary_switches += number(&status, "nonvoluntary_ctxt_switches:");
        }
        Ok(usage)
    }

    fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.delayed += other.delayed;
        self.resident += other.resident;
        let both = self.proportional.zip(other.proportional);
        self.proportional = both.map(|(ours, theirs)| ours + theirs);
        self.processes += other.processes;
        self.threads += other.threads;
        self.descriptors += other.descriptors;
        self.voluntary_switches += other.voluntary_switches;
        self.involuntary_switches += other.involuntary_switches;
    }
}

/// The memory of the processes of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Memory {
    /// In bytes.
    #[serde(rename = "memory_bytes")]
    pub bytes: u64,
    /// What was counted.
    #[serde(rename = "memory_kind")]
    pub kind: MemoryKind,
    /// Of how many processes.
    pub processes: u64,
}

/// How memory was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryKind {
    /// Resident pages; one that several processes have counts in each.
    #[default]
    Rss,
    /// Resident pages; of one that n processes have, each gets 1/n: for several processes.
    Pss,
}

/// `3.4 MiB`, and of several processes: `20 MiB of 301 processes (Pss)`.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, kind, processes } = *self;
        write!(f, "{}", units::size(bytes))?;
        match processes {
            0 | 1 => Ok(()),
            _ => write!(f, " of {processes} processes ({kind:?})"),
        }
    }
}

/// The CPU time of all threads of one process, those that have ended too, in nanoseconds.
fn cpu(pid: u32) -> io::Result<Duration> {
    tool::cpu_time(pid).map_err(|errno| match errno {
        // The clock of a process that is gone.
        Errno::EINVAL => Errno::ESRCH.into(),
        other => other.into(),
    })
}

/// What proc_pid_stat(5) tells.
struct Stat {
    /// Whether nothing is left of it but its exit status (state Z or X).
    has_ended: bool,
    /// The CPU time of children that have ended and were waited for, in ticks of 10 ms.
    reaped_cpu: Duration,
}

impl Stat {
    fn of(pid: u32) -> io::Result<Self> {
        const TICK: Duration = Duration::from_millis(10);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name, field 2, may contain blanks; it ends with the last parenthesis.
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        // Fields 16 and 17: user and system.
        let ticks =
            after_name.split(' ').skip(13).take(2).filter_map(|field| field.parse::<u32>().ok());
        let has_ended = after_name.starts_with(['Z', 'X']);
        Ok(Self { has_ended, reaped_cpu: TICK * ticks.sum() })
    }
}

/// Resident bytes, exact where the kernel can say so (its quick counters may be off by much), and
/// then also this process's share of the pages that it has with others.
fn memory(process: &Path) -> io::Result<(u64, Option<u64>)> {
    let bytes = |text: &str, label| number(text, label) << 10;
    match fs::read_to_string(process.join("smaps_rollup")) {
        Ok(text) => Ok((bytes(&text, "Rss:"), Some(bytes(&text, "Pss:")))),
        // One without memory is about to end. Its status tells whether it is there.
        Err(error) => fs::read_to_string(process.join("status")).map(|text| {
            let is_empty = error.raw_os_error() == Some(Errno::ESRCH as i32);
            (bytes(&text, "VmRSS:"), is_empty.then_some(0))
        }),
    }
}

fn tasks(pid: u32) -> io::Result<Vec<PathBuf>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(tasks.flatten().map(|task| task.path()).collect())
}

/// The children of a process, the oldest first.
pub(super) fn children(pid: u32) -> Vec<u32> {
    let lists = tasks(pid).unwrap_or_default().into_iter();
    let lists = lists.filter_map(|task| fs::read_to_string(task.join("children")).ok());
    lists
        .flat_map(|list| list.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// How long a thread was ready to run and did not (the second number of schedstat, see
/// Documentation/scheduler/sched-stats.rst in Linux).
fn delay(task: &Path) -> Duration {
    let stat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let delay = stat.split_whitespace().nth(1).and_then(|nanoseconds| nanoseconds.parse().ok());
    Duration::from_nanos(delay.unwrap_or(0))
}

/// The number behind `label` at the start of a line; 0 when there is none.
fn number(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::client::Cancel;

    #[test]
    fn usage_counts_threads_descriptors_and_work() {
        let pid = std::process::id();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let waiting = thread::spawn(move || held.recv());
        let before = Usage::of(pid).unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert!(before.threads >= 2 && before.processes >= 1 && before.resident > 1 << 16);
        // Other tests of this process run at the same time: only CPU time cannot shrink.
        let cancel = Cancel::default();
        cancel
            .within(Duration::from_secs(20))
            .find(|| (Usage::of(pid).unwrap().cpu > before.cpu).then_some(()))
            .expect("looking costs CPU time");
        drop((hold, file));
        let _ = waiting.join().unwrap();
    }

    #[test]
    fn usage_of_nobody_is_an_error() {
        // Over the kernel's largest process id, 2^22.
        assert!(Usage::of(5_000_000).is_err());
    }

    #[test]
    fn numbers_are_read_by_label() {
        let text = "Rss:                1234 kB\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(number(text, "Rss:"), 1234);
        assert_eq!(number(text, "nonvoluntary_ctxt_switches:"), 7);
        assert_eq!(number(text, "voluntary_ctxt_switches:"), 0);
    }
}
