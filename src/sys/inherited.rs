//! What execve(2) keeps of the parent process, and would end a command or mislead it.

use std::io;
use std::sync::Arc;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGCHLD, SIGXFSZ};

use super::tool;

/// For every command: its timers are in time, and what is too long for the limit on files (RLIMIT_FSIZE) is
/// an error of write(2).
///
/// # Errors
///
/// When the system refuses the handler.
pub fn mend() -> io::Result<()> {
    tool::mend_timers();
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    Ok(())
}

/// For those that start others: wait(2) does not say how a child ended where SIGCHLD is ignored.
///
/// # Errors
///
/// When the system refuses the handler.
pub fn hear_of_children() -> io::Result<()> {
    signal_hook::flag::register(SIGCHLD, Arc::default())?;
    Ok(())
}

/// The CPU time after which the kernel ends this process, in seconds, if there is such a limit.
pub fn cpu_limit() -> Option<u64> {
    let (_, hard) =
        getrlimit(Resource::RLIMIT_CPU).ok().filter(|&(_, hard)| hard != RLIM_INFINITY)?;
    #[allow(clippy::useless_conversion, reason = "FreeBSD has signed limits")]
    u64::try_from(hard).ok()
}

/// For the server: blocks signals that are about such things and would end it or stop it. They are of
/// timers (alarm(2), setitimer(2)), of the limit on CPU time, as far as it is soft, of descriptors with
/// `O_ASYNC`, and of terminals with `stty tostop`.
///
/// # Errors
///
/// When the system refuses it.
pub fn block_signals() -> io::Result<()> {
    use Signal::{SIGALRM, SIGIO, SIGPROF, SIGTTOU, SIGVTALRM, SIGXCPU};
    let signals: SigSet =
        [SIGALRM, SIGIO, SIGPROF, SIGTTOU, SIGVTALRM, SIGXCPU].into_iter().collect();
    Ok(signals.thread_block()?)
}
