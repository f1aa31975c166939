//! The dispositions of signals, which sigaction(2) alone tells, and that is unsafe.

use std::os::raw::c_int;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

/// The signals of those asked that this process ignores, and those that it catches: a bit for each. A child inherits
/// what is ignored, and outlives it. What is caught is not known: a handler is taken for the default.
pub(crate) fn dispositions(asked: &[c_int]) -> [u64; 2] {
    let ignored = asked.iter().filter(|&&signal| outlives(signal));
    [ignored.fold(0, |mask, signal| mask | 1 << (signal - 1)), 0]
}

/// Whether a child that sends the signal to itself goes on.
fn outlives(signal: c_int) -> bool {
    let mut child = Command::new("/bin/sh");
    child.arg("-c").arg(format!("kill -{signal} $$")).stdin(Stdio::null());
    let ended = child.stdout(Stdio::null()).stderr(Stdio::null()).status();
    ended.is_ok_and(|ended| ended.success() && ended.signal().is_none())
}
