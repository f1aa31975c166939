//! Waits for descriptors of any kind (sockets, pipes, terminals, files) with a deadline.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// How often a tool that waits looks up, to notice that it is cancelled.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Waits until one of `watched` is ready for what is asked of it, or until `deadline`, and returns
/// what each became ready for, in the same order. A signal, too, ends the wait.
///
/// `ppoll(2)` and not epoll: regular files are among the descriptors (a file is sent as it is),
/// and its timeout counts in nanoseconds where epoll's counts in milliseconds.
pub(super) fn ready<const N: usize>(
    watched: [Option<(BorrowedFd<'_>, PollFlags)>; N],
    deadline: Option<Instant>,
) -> io::Result<[PollFlags; N]> {
    // An hour at a time: the caller's loop waits again, and no deadline is too far to express.
    let patience = Duration::from_secs(3600);
    let left = deadline
        .map_or(patience, |deadline| deadline.saturating_duration_since(Instant::now()))
        .min(patience);
    let mut polled: Vec<PollFd<'_>> =
        watched.iter().flatten().map(|&(fd, flags)| PollFd::new(fd, flags)).collect();
    let mut ready = [PollFlags::empty(); N];
    match ppoll(&mut polled, Some(TimeSpec::from_duration(left)), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(ready),
        Err(error) => return Err(error.into()),
    }
    let mut answers = polled.iter().map(|polled| polled.revents().unwrap_or(PollFlags::empty()));
    for (slot, _) in ready.iter_mut().zip(&watched).filter(|(_, watched)| watched.is_some()) {
        *slot = answers.next().expect("each watched descriptor was polled");
    }
    Ok(ready)
}
