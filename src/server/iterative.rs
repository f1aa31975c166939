//! The iterative server: one client at a time, from its first byte to its last, then the next one.
//!
//! It is the first server of every textbook, and for short exchanges it is not even slow: no thread to
//! start, nothing to choose between, one buffer that stays warm. All it needs is the loop in [`run`].
//!
//! Its limit is the second client. A client that comes while another is served waits in the backlog: the
//! kernel has connected it, the server has not accepted it yet. What it sends waits in the buffer of its
//! socket. One client that stays and says nothing stops the service for all others, unless there is an
//! idle timeout; two that wait for each other's echo never finish. When the backlog is full as well, the
//! kernel drops further connections, and connecting takes seconds. And since the thread looks at one
//! stream alone, even UDP needs a thread beside it.

use std::io;

use super::Server;
use super::blocking;
use crate::protocol::Service;

/// Runs the server: serves one client after the other.
pub(super) fn run<V: Service>(
    server: Server,
    make_service: impl FnMut() -> V + Clone + Send + 'static,
) -> io::Result<()> {
    blocking::run(server, make_service, |mut backlog, mut make_service| {
        while let Some(client) = backlog.accept()? {
            client.serve(&mut make_service);
        }
        Ok(())
    })
}
