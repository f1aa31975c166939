//! Limits of this process: open files, address space, mappings.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Raises the soft limit on open files (RLIMIT_NOFILE) of this process to the hard one.
///
/// # Errors
///
/// If the system does not allow it. The limit then stays as it was.
pub fn raise_open_file_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(())
}

/// The number of files that this process may still open: the limit, less those that are open, or less the
/// standard ones.
pub(crate) fn files_left() -> usize {
    usize::try_from(open_file_limit())
        .unwrap_or(usize::MAX)
        .saturating_sub(open_files().unwrap_or(3))
}

/// The number of files that this process has open, if known.
pub(crate) fn open_files() -> Option<usize> {
    // The size of the folder since Linux 6.2 (proc_pid_fd(5)). Listing many files takes milliseconds.
    match fs::metadata("/proc/self/fd").ok()?.size() {
        // One of them is the folder that is read.
        0 => fs::read_dir("/proc/self/fd").ok()?.count().checked_sub(1),
        files => usize::try_from(files).ok(),
    }
}

/// The limit on open files of this process.
pub(crate) fn open_file_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(limit, _)| limit)
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

/// A limit on the memory of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// The bytes that the process may still take.
    pub(crate) left: u64,
    /// What the limit is called, and where it is raised.
    pub(crate) name: &'static str,
    pub(crate) advice: &'static str,
}

/// The bytes that the limits of this process (RLIMIT_AS, RLIMIT_DATA) leave it. An allocation beyond them fails.
pub(crate) fn address_space_left() -> u64 {
    resource_limits().map(|limit| limit.left).min().unwrap_or(u64::MAX)
}

/// The limit that leaves this process the least memory, if there is one. Beyond that of a control group, the
/// kernel ends the process.
pub(crate) fn memory_limit() -> Option<MemoryLimit> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_memory_left(&own, Path::new("/sys/fs/cgroup"));
    let (name, advice) = ("memory of the control group", "as with MemoryMax=");
    let group = group.map(|left| MemoryLimit { left, name, advice });
    resource_limits().chain(group).min_by_key(|limit| limit.left)
}

fn resource_limits() -> impl Iterator<Item = MemoryLimit> {
    let limits = [
        (Resource::RLIMIT_AS, "VmSize:", "address space", "ulimit -v"),
        (Resource::RLIMIT_DATA, "VmData:", "data", "ulimit -d"),
    ];
    limits.into_iter().filter_map(|(resource, used, name, advice)| {
        let (limit, _) = getrlimit(resource).ok().filter(|&(soft, _)| soft != RLIM_INFINITY)?;
        Some(MemoryLimit { left: limit.saturating_sub(memory(used)), name, advice })
    })
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
    let size = super::status(kind);
    let kilobytes = size.and_then(|size| size.strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_memory_and_files() {
        assert!(memory("VmSize:") > 1 << 20 && memory("Nonsense:") == 0);
        assert!(address_space_left() > 1 << 20);
        assert!(memory_limit().is_none_or(|limit| limit.left > 1 << 20));
        assert!(open_files().is_some_and(|files| files >= 3 && files as u64 <= open_file_limit()));
        assert!(threads() > 1);
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
