//! Limits of this process that Linux has, and what it tells of them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, rlim_t};

use super::status;
use crate::sys::limits::{MemoryLimit, soft_limit};

/// The limit on open files that the system accepts where the hard one is no limit.
pub(crate) const MOST_OPEN_FILES: Option<rlim_t> = None;

/// The number of files that this process has open, if known.
pub(crate) fn open_files() -> Option<usize> {
    // The size of the folder since Linux 6.2 (proc_pid_fd(5)). Listing many files takes milliseconds.
    match fs::metadata("/proc/self/fd").ok()?.size() {
        // One of them is the folder that is read.
        0 => fs::read_dir("/proc/self/fd").ok()?.count().checked_sub(1),
        files => usize::try_from(files).ok(),
    }
}

/// Mappings that a thread needs: its stack, the stack that tells of an overflow, and a guard page for
/// each.
const MAPPINGS_PER_THREAD: usize = 4;
/// Mappings that the process has besides, generously.
const OTHER_MAPPINGS: usize = 1_000;

/// How many threads fit into the mappings of this process (vm.max_map_count). Other limits show as an error
/// when a thread is to be started; without mappings it would die as it starts, and the process with it.
pub(crate) fn threads() -> usize {
    let limit = fs::read_to_string("/proc/sys/vm/max_map_count");
    let limit = limit.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_530_usize);
    (limit.saturating_sub(OTHER_MAPPINGS) / MAPPINGS_PER_THREAD).max(1)
}

/// What limits the memory of this process, as setrlimit(2) does.
pub(crate) fn resource_limits() -> impl Iterator<Item = MemoryLimit> {
    let limits = [
        (Resource::RLIMIT_AS, "VmSize:", "address space", "ulimit -v"),
        (Resource::RLIMIT_DATA, "VmData:", "data", "ulimit -d"),
    ];
    limits.into_iter().filter_map(|(resource, used, name, advice)| {
        let limit = soft_limit(resource)?;
        Some(MemoryLimit { left: limit.saturating_sub(memory(used)), name, advice })
    })
}

/// What the control groups of this process leave it.
pub(crate) fn group_limit() -> Option<MemoryLimit> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = group_memory_left(&own, Path::new("/sys/fs/cgroup"))?;
    Some(MemoryLimit { left, name: "memory of the control group", advice: "as with MemoryMax=" })
}

/// The bytes that the control groups of a process leave it: its own group, and those above (cgroups(7)). `own` is its
/// `/proc/PID/cgroup`, and `mounted` where the hierarchies are.
fn group_memory_left(own: &str, mounted: &Path) -> Option<u64> {
    let left = own.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let (root, limit, used) = match controllers {
            "" => ("", "memory.max", "memory.current"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => return None,
        };
        // In a container, the path may be one of the host's, and the group is mounted as the root.
        let number = |file: PathBuf| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
        let left = Path::new(path).ancestors().filter_map(|group| {
            let group = mounted.join(root).join(group.strip_prefix("/").ok()?);
            let used = number(group.join(used))?.saturating_sub(reclaimable(&group));
            Some(number(group.join(limit))?.saturating_sub(used))
        });
        left.min()
    });
    // The first version has no word for "no limit", but a number that no machine has.
    left.min().filter(|&left| left < 1 << 60)
}

/// The bytes of a control group that hold files, and that the kernel takes back when it needs them.
fn reclaimable(group: &Path) -> u64 {
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let number = |name| stat.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
    number("total_inactive_file ").or_else(|| number("inactive_file ")).unwrap_or(0)
}

/// The bytes that this process has of one kind of memory (proc_pid_status(5)); 0 if unknown.
pub(super) fn memory(kind: &str) -> u64 {
    let size = status(kind);
    let kilobytes = size.and_then(|size| size.strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_memory() {
        assert!(memory("VmSize:") > 1 << 20 && memory("Nonsense:") == 0);
    }

    /// A folder as `/sys/fs/cgroup` may be: paths of files, and what is in them.
    fn group(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("evecho-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_narrowest_control_group_limits_the_memory() {
        let root = group(
            "limits",
            &[
                ("memory.max", "7000\n"),
                ("memory.current", "1000\n"),
                ("a/memory.max", "max\n"),
                ("a/memory.current", "900\n"),
                ("a/b/memory.max", "5000\n"),
                ("a/b/memory.current", "1000\n"),
                ("a/b/memory.stat", "anon 5\ninactive_file 200\n"),
                ("a/full/memory.max", "500\n"),
                ("a/full/memory.current", "800\n"),
                ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory/memory.usage_in_bytes", "600\n"),
                ("memory/a/memory.limit_in_bytes", "3000\n"),
                ("memory/a/memory.usage_in_bytes", "500\n"),
            ],
        );
        for (own, left) in [
            ("0::/a/b\n", Some(4_200)),
            ("0::/a/full\n", Some(0)),
            ("0::/a\n", Some(6_000)),
            ("0::/elsewhere/c\n", Some(6_000)),
            ("5:devices:/\n4:memory:/a/c\n0::/\n", Some(2_500)),
            ("4:cpu,memory:/a\n", Some(2_500)),
            ("4:memory:/\n", None),
            ("3:cpu:/a\nnonsense\n", None),
            ("", None),
        ] {
            assert_eq!(group_memory_left(own, &root), left, "{own}");
        }
        fs::remove_dir_all(root).unwrap();
    }
}
