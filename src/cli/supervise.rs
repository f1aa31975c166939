//! `evecho __supervise`: runs a server for another evecho, and ends with that.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitCode;

use evecho::client::process::supervise;

use super::CommandResult;

/// The first word of the command line; the command to run follows.
pub(super) const NAME: &str = "__supervise";

/// This program: its path or, where the system does not tell it (without /proc), the word that it was called by.
pub(super) fn this() -> OsString {
    let called = || env::args_os().next().unwrap_or_default();
    env::current_exe().map_or_else(|_| called(), PathBuf::into_os_string)
}

/// This program, as a word of a command.
pub(super) fn program() -> Result<String, &'static str> {
    let program = this().into_string().ok();
    let word = program.and_then(|program| Some(shlex::try_quote(&program).ok()?.into_owned()));
    word.ok_or("the path of evecho is not text: move it elsewhere")
}

/// The words that go before a server's command, so that it ends with this process.
pub(super) fn words() -> Vec<OsString> {
    vec![this(), NAME.into()]
}

/// Runs the command, which only other commands start, and ends as that did.
pub(super) fn run(command: &[OsString]) -> CommandResult {
    let [program, arguments @ ..] = command else {
        return Err("no command to run".into());
    };
    evecho::inherited::hear_of_children()?;
    let status = supervise(program, arguments)
        .map_err(|error| format!("cannot run '{}': {error}", program.display()))?;
    if let Some(signal) = status.signal() {
        signal_hook::low_level::emulate_default_handler(signal)?;
    }
    Ok(ExitCode::from(status.code().map_or(1, |code| code as u8)))
}
