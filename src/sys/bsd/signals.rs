//! The dispositions of signals, which sigaction(2) alone tells, and that is unsafe.

/// The signals that this process ignores, and those that it catches: a bit for each. None is known, so each is taken
/// for one with its default disposition. What the parent process ignores is handled, too: under nohup(1) a terminal
/// that hangs up stops the server, and for a script's job in the background Ctrl-C does. daemon(8) and launchd(8) start
/// a server without a terminal.
pub(crate) fn dispositions() -> [u64; 2] {
    [0, 0]
}
