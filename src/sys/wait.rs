//! Waiting for several descriptors in a thread that has nothing else to do (poll(2)).

use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Errno;

/// Waits until one of `sockets` can be read, until the other end of `stop` is closed, or until
/// `timeout` is over. A signal that interrupts it ends the wait, too. Returns whether `stop` is closed.
pub(crate) fn until_readable<S: AsFd>(
    sockets: &[S],
    stop: &PipeReader,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    let descriptors = sockets.iter().map(AsFd::as_fd).chain([stop.as_fd()]);
    let mut waited: Vec<_> = descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // To the next millisecond, which is what poll(2) counts in.
    let millis = |time: Duration| time.as_micros().div_ceil(1_000);
    let timeout =
        timeout.map(|time| PollTimeout::try_from(millis(time)).unwrap_or(PollTimeout::MAX));
    match poll(&mut waited, timeout) {
        Ok(_) => Ok(waited.last().and_then(PollFd::any).unwrap_or(false)),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
