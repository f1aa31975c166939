//! `evecho states` where the kernel does not show what it would: elsewhere than on Linux.

use std::ffi::OsString;
use std::process::ExitCode;

use super::CommandResult;

/// The hidden word of the command line that asks for a network namespace, of which there are none.
pub(super) const OWN_NETWORK: &str = "__own-network";

/// Show how both ends of a TCP connection change state, step by step: on Linux only
#[derive(clap::Args)]
pub(super) struct Args {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _words: Vec<OsString>,
}

/// No scenario can be shown.
pub(super) fn scenario_names() -> Vec<&'static str> {
    Vec::new()
}

/// Says why nothing is shown.
pub(super) fn run(_args: &Args) -> CommandResult {
    Err("states shows what the Linux kernel tells of a connection, so it runs on Linux only".into())
}

/// Never called.
pub(super) fn try_own_network() -> CommandResult {
    Ok(ExitCode::FAILURE)
}
