//! Signals that a process ignores or catches.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

/// Whether this process ignores the signal, and so each command that it starts (signal(7)): it does in the background
/// of a shell, and under nohup(1).
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_in("SigIgn:", &status, signal)
}

/// Whether a process has a handler for the signal.
pub(crate) fn catches(pid: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    is_in("SigCgt:", &status, signal)
}

/// Whether the signal is in a mask of a process (proc_pid_status(5)).
fn is_in(mask: &str, status: &str, signal: Signal) -> bool {
    let signals = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap_or("0");
    u64::from_str_radix(signals.trim(), 16).unwrap() >> (signal as i32 - 1) & 1 == 1
}

/// The same command, which signals end even where the tests run with some ignored.
pub(crate) fn with_default_signals(command: Command) -> Command {
    if ![Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().any(is_ignored) {
        return command;
    }
    let mut env = Command::new("env");
    env.arg("--default-signal").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => env.env(name, value),
            None => env.env_remove(name),
        };
    }
    env
}
