//! What Linux tells of the signals of this process.

use super::status_mask;

/// The signals that this process ignores, and those that it catches: a bit for each
/// (proc_pid_status(5)).
pub(crate) fn dispositions() -> [u64; 2] {
    ["SigIgn:", "SigCgt:"].map(status_mask)
}
