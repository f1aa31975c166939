//! Limits of this process, and what the system tells of them.

use std::fs;
use std::iter;

use nix::sys::resource::{Resource, rlim_t};

use crate::sys::limits::{MemoryLimit, soft_limit};

/// The limit on open files that the system accepts where the hard one is no limit: OPEN_MAX of macOS
/// (setrlimit(2), COMPATIBILITY).
pub(crate) const MOST_OPEN_FILES: Option<rlim_t> = Some(10_240);

/// The number of files that this process has open, if known: without fdescfs(5), FreeBSD shows the standard ones
/// alone.
pub(crate) fn open_files() -> Option<usize> {
    // One of them is the folder that is read.
    let shown = fs::read_dir("/dev/fd").ok()?.count();
    shown.checked_sub(1).filter(|&files| files >= 3)
}

/// How many threads fit into this process: as many as it can start.
pub(crate) fn threads() -> usize {
    usize::MAX
}

/// What limits the memory of this process, as setrlimit(2) does. What it has taken already is not known.
pub(crate) fn resource_limits() -> impl Iterator<Item = MemoryLimit> {
    let limit = soft_limit(Resource::RLIMIT_DATA);
    limit.map(|left| MemoryLimit { left, name: "data", advice: "ulimit -d" }).into_iter()
}

/// There are no control groups.
pub(crate) fn group_limit() -> iter::Empty<MemoryLimit> {
    iter::empty()
}
