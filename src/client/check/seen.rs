//! What a case saw, as its end.

use std::io;
use std::time::Instant;

use crate::client::cancel::Deadline;
use crate::client::harness::Stop;
use crate::client::socket::lacks_port;
use crate::units::time;

impl Stop {
    /// What the server has not done since then, at the end of the time.
    pub(super) fn overdue(what: String, since: Instant, deadline: Deadline<'_>) -> Self {
        match is_early(since, deadline) {
            true => Self::late(&what, deadline),
            false => Self::broken(what),
        }
    }

    /// The time was over before the server can be blamed.
    pub(super) fn late(what: &str, deadline: Deadline<'_>) -> Self {
        let all = time(deadline.lasted());
        let reason = format!("the time was over after {all}: {what}; a longer timeout would tell");
        Self::NotGraded { reason }
    }

    /// A system call that asked the server for something failed: the server did that, or this machine could not
    /// do what the case needs.
    pub(super) fn of_call(doing: &str, error: &io::Error) -> Self {
        use nix::errno::Errno::{
            self, EACCES, EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM,
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(EACCES | EADDRNOTAVAIL | EMFILE | ENFILE | ENOBUFS | ENOMEM | EPERM) => {}
            _ if lacks_port(error) => {}
            _ => return Self::broken(format!("{doing} failed: {error}")),
        }
        Self::skipped(format!("{doing} failed on this side: {error}"))
    }
}

/// Whether most of the time went before: a server may be slow, or have had much to do.
pub(super) fn is_early(since: Instant, deadline: Deadline<'_>) -> bool {
    since.elapsed() < deadline.lasted() / 2
}

/// Says what was expected where something else was seen; otherwise it was the rule.
pub(super) trait Expecting {
    fn expecting(self, expected: impl Into<String>) -> Self;
}

impl<T> Expecting for Result<T, Stop> {
    fn expecting(self, expected: impl Into<String>) -> Self {
        self.map_err(|stop| match stop {
            Stop::Failed { expected: None, seen } => Stop::failed(expected, seen),
            other => other,
        })
    }
}
