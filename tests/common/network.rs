//! Tests in networks of their own, which they play in another process: this program again.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::env;
use std::process::{Command, Stdio};

/// What the other process is to do.
const ROLE: &str = "NETWORK_ROLE";

/// The role of this process, if it is such a process.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// Runs a test of this file again by a command that enters namespaces; what it prints, or why it cannot
/// enter them.
pub(crate) fn play(enter: &mut Command, test: &str, role: &str) -> Result<String, String> {
    enter.arg(env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    let output = enter.env(ROLE, role).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{:?}: {error}", enter.get_program()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    if !text.contains("running 1 test") {
        return Err(errors.trim().replace('\n', "; "));
    }
    assert!(output.status.success(), "{test}, {role}: {text}{errors}");
    Ok(text)
}

/// Runs the rest of a test in a network of its own, which a shell script prepares. Where there can be
/// none, it says why.
pub(crate) fn in_network(test: &str, prepare: &str, rest: impl FnOnce()) {
    if role().is_some() {
        return rest();
    }
    let mut enter = Command::new("unshare");
    let script = format!("{prepare} || exit\nexec \"$@\"");
    enter.args(["--map-root-user", "--net", "sh", "-c", &script, "sh"]);
    match play(&mut enter, test, "inside") {
        Ok(text) => println!("{text}"),
        Err(why) => println!("skipped, since it needs a network namespace: {why}"),
    }
}
