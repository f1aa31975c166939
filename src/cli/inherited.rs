//! What execve(2) keeps of the parent process, and would end a command or mislead it.

use std::io;
use std::sync::Arc;

use nix::sys::prctl::{get_timerslack, set_timerslack};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGCHLD, SIGXFSZ};

/// How late a timer may be, in nanoseconds, unless a parent process asks for another time (prctl(2)).
const TIMER_SLACK: u16 = 50_000;

/// For every command: its timers are in time, and what is too long for the limit on files (RLIMIT_FSIZE) is
/// an error of write(2).
pub(super) fn mend() -> io::Result<()> {
    // What does not fit into its type looks like an error, or as what is negative.
    if !get_timerslack().is_ok_and(|slack| (0..=TIMER_SLACK.into()).contains(&slack)) {
        // A sandbox may refuse it: then timers are late.
        let _ = set_timerslack(TIMER_SLACK.into());
    }
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    Ok(())
}

/// For those that start others: wait(2) does not say how a child ended where SIGCHLD is ignored.
pub(super) fn hear_of_children() -> io::Result<()> {
    signal_hook::flag::register(SIGCHLD, Arc::default())?;
    Ok(())
}

/// The CPU time after which the kernel ends this process, in seconds, if there is such a limit.
pub(super) fn cpu_limit() -> Option<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_CPU).ok()?;
    Some(hard).filter(|&hard| hard != RLIM_INFINITY)
}

/// For the server: blocks signals that are about such things and would end it or stop it. They are of
/// timers (alarm(2), setitimer(2)), of the limit on CPU time, as far as it is soft, of descriptors with
/// `O_ASYNC`, and of terminals with `stty tostop`.
pub(super) fn block_signals() -> io::Result<()> {
    use Signal::{SIGALRM, SIGIO, SIGPROF, SIGTTOU, SIGVTALRM, SIGXCPU};
    let signals: SigSet =
        [SIGALRM, SIGIO, SIGPROF, SIGTTOU, SIGVTALRM, SIGXCPU].into_iter().collect();
    Ok(signals.thread_block()?)
}
