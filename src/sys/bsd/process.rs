//! What the system tells of this process without unsafe calls: nothing.

use std::time::SystemTime;

/// Not known.
pub(crate) fn resident_memory() -> Option<u64> {
    None
}

/// Not known.
pub(crate) fn start_time() -> Option<SystemTime> {
    None
}
