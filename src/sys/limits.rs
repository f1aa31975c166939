//! Limits of this process: open files, address space, mappings.

use std::io;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use super::system::limits::{MOST_OPEN_FILES, group_limit, resource_limits};
pub(crate) use super::system::limits::{open_files, threads};

/// Raises the soft limit on open files (RLIMIT_NOFILE) of this process to the hard one.
///
/// # Errors
///
/// If the system does not allow it. The limit then stays as it was.
pub fn raise_open_file_limit() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raise = |limit| setrlimit(Resource::RLIMIT_NOFILE, limit, hard);
    if soft >= hard {
        return Ok(());
    }
    Ok(raise(hard).or_else(|error| match MOST_OPEN_FILES {
        Some(most) if soft < most => raise(most.min(hard)),
        _ => Err(error),
    })?)
}

/// The number of files that this process may still open: the limit, less those that are open, or less the
/// standard ones.
pub(crate) fn files_left() -> usize {
    usize::try_from(open_file_limit())
        .unwrap_or(usize::MAX)
        .saturating_sub(open_files().unwrap_or(3))
}

/// The limit on open files of this process.
pub(crate) fn open_file_limit() -> u64 {
    soft_limit(Resource::RLIMIT_NOFILE).unwrap_or(u64::MAX)
}

/// The limits on open files of this process, soft and hard.
#[cfg(feature = "client")]
pub(crate) fn open_file_limits() -> io::Result<[u64; 2]> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    #[allow(clippy::useless_conversion, reason = "FreeBSD has signed limits")]
    Ok([soft, hard].map(|limit| u64::try_from(limit).unwrap_or(u64::MAX)))
}

/// The soft limit on a resource, if there is one.
pub(super) fn soft_limit(resource: Resource) -> Option<u64> {
    let (soft, _) = getrlimit(resource).ok().filter(|&(soft, _)| soft != RLIM_INFINITY)?;
    #[allow(clippy::useless_conversion, reason = "FreeBSD has signed limits")]
    u64::try_from(soft).ok()
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
    resource_limits().chain(group_limit()).min_by_key(|limit| limit.left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_memory_and_files() {
        assert!(address_space_left() > 1 << 20);
        assert!(memory_limit().is_none_or(|limit| limit.left > 1 << 20));
        assert!(open_files().is_some_and(|files| files >= 3 && files as u64 <= open_file_limit()));
        assert!(threads() > 1);
    }
}
