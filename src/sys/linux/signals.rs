//! What Linux tells of the signals of this process.

use std::os::raw::c_int;

use super::status_mask;

/// The signals that this process ignores, and those that it catches: a bit for each
/// (proc_pid_status(5)). Of others than `_asked` it may tell, too.
pub(crate) fn dispositions(_asked: &[c_int]) -> [u64; 2] {
    ["SigIgn:", "SigCgt:"].map(status_mask)
}
