//! Waiting for several descriptors in a thread that has nothing else to do (poll(2)).

use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{self, PollFd, PollFlags, PollTimeout};

use super::Errno;
use super::system::SHUT_DOWN;
#[cfg(feature = "client")]
pub(crate) use super::system::poll;

/// What was so at the end of a wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Woken {
    /// The other end of the pipe is closed.
    pub(crate) stopped: bool,
    /// One of the sockets was shut down, for reading at least.
    pub(crate) shut_down: bool,
}

/// Waits until one of `sockets` can be read, until the other end of `stop` is closed, or until
/// `timeout` is over. A signal that interrupts it ends the wait, too.
pub(crate) fn until_readable<S: AsFd>(
    sockets: &[S],
    stop: &PipeReader,
    timeout: Option<Duration>,
) -> io::Result<Woken> {
    let readable = PollFlags::POLLIN | PollFlags::from_bits_retain(SHUT_DOWN);
    let descriptors = sockets.iter().map(AsFd::as_fd).chain([stop.as_fd()]);
    let mut waited: Vec<_> = descriptors.map(|fd| PollFd::new(fd, readable)).collect();
    // To the next millisecond, which is what poll(2) counts in.
    let millis = |time: Duration| time.as_micros().div_ceil(1_000);
    let timeout =
        timeout.map(|time| PollTimeout::try_from(millis(time)).unwrap_or(PollTimeout::MAX));
    match poll::poll(&mut waited, timeout) {
        Ok(_) => {
            let stopped = waited.pop().is_some_and(|stop| stop.any() != Some(false));
            // nix has nothing for flags that it does not know, as POLLRDHUP.
            let is_shut_down =
                |flags: Option<PollFlags>| flags.is_none_or(|flags| flags.bits() & SHUT_DOWN != 0);
            let shut_down = waited.iter().any(|socket| is_shut_down(socket.revents()));
            Ok(Woken { stopped, shut_down })
        }
        Err(Errno::EINTR) => Ok(Woken::default()),
        Err(error) => Err(error.into()),
    }
}
