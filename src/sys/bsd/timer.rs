//! A timer that wakes a poll: the timeout of kevent(2), which counts in nanoseconds.

use std::io;

use mio::{Registry, Token};

/// Bounds the timeout of a poll.
#[derive(Debug)]
pub(crate) struct Timer;

impl Timer {
    /// Nothing to register.
    pub(crate) fn new(_registry: &Registry, _token: Token) -> io::Result<Self> {
        Ok(Timer)
    }

    /// The timeout that wakes the poll at `at`, nanoseconds on the same clock as `now`; `most` or less.
    pub(crate) fn arm(&mut self, at: u64, now: u64, most: u64) -> io::Result<u64> {
        Ok(most.min(at.saturating_sub(now)))
    }
}
