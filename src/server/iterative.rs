//! The iterative server: one client at a time, from its first byte to its last, then the next one.
//!
//! It is the first server of every textbook, and for short exchanges it is not even slow: no thread to
//! start, nothing to choose between, one buffer that stays warm. All it needs is the loop in [`serve`].
//!
//! Where it ends: with the second client. Whoever comes while another is served waits in the backlog:
//! the kernel has connected it, the server has not accepted it yet. What it sends waits in the buffer
//! of its socket. One client that stays and says nothing stops the service for all others, unless there
//! is an idle timeout; two that wait for each other's echo never finish. When the backlog is full as
//! well, the kernel drops what still comes, and connecting takes seconds. And since it looks at one
//! stream alone, even UDP needs a thread beside it.

use std::io;

use super::Server;
use super::admission::{MaxSetBy, Rules};
use super::blocking::{self, Backlog};
use crate::protocol::Service;

/// Runs the server.
pub(super) fn run<V, F>(server: Server, make: F) -> io::Result<()>
where
    V: Service,
    F: FnMut() -> V + Clone + Send + 'static,
{
    let rules = Rules::of(&server.config).at_most(1, MaxSetBy::Design);
    blocking::run(server, rules, make, serve)
}

/// Serves one client after the other.
fn serve<V: Service>(mut backlog: Backlog<'_>, mut make: impl FnMut() -> V) -> io::Result<()> {
    while let Some(client) = backlog.accept()? {
        client.serve(make());
    }
    Ok(())
}
