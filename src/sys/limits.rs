//! Limits of this process: open files, address space, mappings.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

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

/// The number of files that this process may still open: the limit, less those that are open.
pub(crate) fn files_left() -> usize {
    usize::try_from(open_file_limit()).unwrap_or(usize::MAX).saturating_sub(open_files())
}

/// The number of files that this process has open.
pub(crate) fn open_files() -> usize {
    // The size of the folder since Linux 6.2 (proc_pid_fd(5)). Listing many files takes milliseconds.
    match fs::metadata("/proc/self/fd").map(|folder| folder.size()) {
        Ok(files @ 1..) => usize::try_from(files).unwrap_or(usize::MAX),
        // One of them is the folder that is read. If it cannot be read: the standard ones.
        _ => fs::read_dir("/proc/self/fd").map_or(3, |files| files.count().saturating_sub(1)),
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

/// The bytes of address space that this process may still take (RLIMIT_AS, RLIMIT_DATA).
pub(crate) fn address_space_left() -> u64 {
    let limits = [Resource::RLIMIT_AS, Resource::RLIMIT_DATA];
    let limits = limits.into_iter().filter_map(|limit| getrlimit(limit).ok()).map(|(soft, _)| soft);
    match limits.min().unwrap_or(RLIM_INFINITY) {
        RLIM_INFINITY => u64::MAX,
        limit => limit.saturating_sub(memory("VmSize:")),
    }
}

/// The bytes that this process has of one kind of memory (proc_pid_status(5)); 0 if unknown.
pub(super) fn memory(kind: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let size = status.lines().find_map(|line| line.strip_prefix(kind));
    let kilobytes = size.and_then(|size| size.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_memory_and_files() {
        assert!(memory("VmSize:") > 1 << 20 && memory("Nonsense:") == 0);
        assert!(address_space_left() > 1 << 20);
        assert!(open_files() >= 3 && open_files() as u64 <= open_file_limit());
        assert!(threads() > 1);
    }
}
