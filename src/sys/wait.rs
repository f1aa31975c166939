//! Waiting for several descriptors in a thread that has nothing else to do (poll(2)), and how a child has ended
//! (waitid(2)).

use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::time::Duration;
#[cfg(feature = "client")]
use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

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

/// How a child has ended, if it has. It is not waited for: its number stays its own.
#[cfg(all(feature = "client", not(target_os = "macos")))]
pub(crate) fn ended(child: u32) -> Option<ExitStatus> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
    use nix::unistd::Pid;

    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(Pid::from_raw(child.cast_signed())), flags) {
        Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw((code & 0xff) << 8)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(ExitStatus::from_raw(signal as i32)),
        _ => None,
    }
}

/// The same by rustix, since nix has no waitid(2) for macOS.
#[cfg(all(feature = "client", target_os = "macos"))]
pub(crate) fn ended(child: u32) -> Option<ExitStatus> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    let child = WaitId::Pid(Pid::from_raw(child.cast_signed())?);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(child, options).ok()??;
    let code = status.exit_status().map(|code| (code & 0xff) << 8);
    code.or_else(|| status.terminating_signal()).map(ExitStatus::from_raw)
}
