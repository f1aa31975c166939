//! What stays between a tool and a command that it starts, and outlives both by a moment.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{POLITE, usage};
use crate::sys::tool::adopt_orphans;

/// Runs a command, and ends all that it has started when it ends or standard input does: the tool
/// holds the other end of that pipe, and however it dies, the kernel closes it. The command gets
/// SIGTERM first.
///
/// It is for a process of its own, which takes a signal for no reason to end. Descendants are found
/// in whatever process group or session (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
///
/// # Errors
///
/// When the command cannot be run.
pub fn supervise(program: &OsString, arguments: &[OsString]) -> io::Result<ExitStatus> {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::default())?;
    }
    // Where the kernel has none, descendants are found in the process group.
    let _ = adopt_orphans();
    let child =
        Command::new(program).args(arguments).stdin(Stdio::null()).process_group(0).spawn()?;
    // When the command dumps core, we shall end as it did, without another core.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let group = Pid::from_raw(child.id().cast_signed());
    let watch = move || {
        while io::stdin().read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
        let _ = killpg(group, Signal::SIGTERM);
        thread::sleep(POLITE);
        let _ = killpg(group, Signal::SIGKILL);
    };
    thread::Builder::new().spawn(watch).inspect_err(|_| _ = killpg(group, Signal::SIGKILL))?;
    let mut status = None;
    loop {
        if status.is_some() {
            let _ = killpg(group, Signal::SIGKILL);
            // The children of one that has ended become ours, and are found in a later turn.
            for child in usage::children(process::id()) {
                let _ = kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL);
            }
        }
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == group => status = Some(code << 8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == group => {
                status = Some(signal as i32)
            }
            Ok(_) | Err(Errno::EINTR) => {}
            // None is left.
            Err(error) => return status.map(ExitStatus::from_raw).ok_or(error.into()),
        }
    }
}
