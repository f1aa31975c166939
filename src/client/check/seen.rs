//! What a case saw, in words.

use std::fmt;
use std::time::Instant;

use crate::client::cancel::Deadline;
use crate::client::harness::Stop;
use crate::client::socket::lacks_port;
use crate::units::time;

/// What a case saw instead of what it waited for.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    /// The server did this.
    Server(String),
    /// The time was over before the server can be blamed.
    Late(String),
    /// This machine could not do what the case needs.
    Here(String),
}

impl Seen {
    pub(super) fn server(text: impl Into<String>) -> Self {
        Self::Server(text.into())
    }

    /// What the server has not done since then, at the end of the time.
    pub(super) fn overdue(what: String, since: Instant, deadline: Deadline<'_>) -> Self {
        match is_early(since, deadline) {
            true => Self::late(&what, deadline),
            false => Self::Server(what),
        }
    }

    pub(super) fn late(what: &str, deadline: Deadline<'_>) -> Self {
        let all = time(deadline.lasted());
        Self::Late(format!("the time was over after {all}: {what}; a longer timeout would tell"))
    }

    /// An error of a system call that asked the server for something.
    pub(super) fn error(doing: &str, error: &std::io::Error) -> Self {
        use nix::errno::Errno::{
            self, EACCES, EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM,
        };
        match error.raw_os_error().map(Errno::from_raw) {
            _ if lacks_port(error) => Self::Here(format!("{doing} failed on this side: {error}")),
            Some(EACCES | EADDRNOTAVAIL | EMFILE | ENFILE | ENOBUFS | ENOMEM | EPERM) => {
                Self::Here(format!("{doing} failed on this side: {error}"))
            }
            _ => Self::Server(format!("{doing} failed: {error}")),
        }
    }
}

/// Whether most of the time went before: a server may be slow, or have had much to do.
pub(super) fn is_early(since: Instant, deadline: Deadline<'_>) -> bool {
    since.elapsed() < deadline.lasted() / 2
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Server(text) | Self::Late(text) | Self::Here(text)) = self;
        f.write_str(text)
    }
}

/// Where nothing else is said, the rule was expected.
impl From<Seen> for Stop {
    fn from(seen: Seen) -> Self {
        match seen {
            Seen::Server(seen) => Self::broken(seen),
            Seen::Late(reason) => Self::NotGraded { reason },
            Seen::Here(reason) => Self::skipped(reason),
        }
    }
}

/// Says what was expected where something else was seen.
pub(super) trait Expecting<T> {
    /// Turns what was seen into the end of the case.
    fn expecting(self, expected: impl Into<String>) -> Result<T, Stop>;
}

impl<T> Expecting<T> for Result<T, Seen> {
    fn expecting(self, expected: impl Into<String>) -> Result<T, Stop> {
        self.map_err(|seen| match seen {
            Seen::Server(seen) => Stop::failed(expected, seen),
            other => other.into(),
        })
    }
}
