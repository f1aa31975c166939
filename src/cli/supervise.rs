//! `evecho __supervise`: runs a server for another evecho, and ends with that.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitCode;

use evecho::client::process::supervise;

use super::CommandResult;

/// The first word of the command line; the command to run follows.
pub(super) const NAME: &str = "__supervise";

/// The path of this program, as a word of a command.
pub(super) fn program() -> Result<String, Box<dyn std::error::Error>> {
    let program = std::env::current_exe()?;
    let program = program.to_str().and_then(|program| shlex::try_quote(program).ok());
    Ok(program.ok_or("the path of evecho is not text: move it elsewhere")?.into_owned())
}

/// The words that go before a server's command, so that it ends with this process.
pub(super) fn words() -> io::Result<Vec<OsString>> {
    let program = std::env::current_exe()?.into_os_string();
    Ok(vec![program, NAME.into()])
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
