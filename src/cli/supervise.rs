//! `evecho __supervise`: runs a server that another evecho wants, and lets it end with that.

use clap::Args as ClapArgs;
use evecho::client::process;

use super::CommandResult;

/// The flags of the hidden command; only other commands use it.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Process that the command must not outlive
    #[arg(long)]
    parent: u32,
    /// Open files that the command may have
    #[arg(long)]
    descriptors: Option<u64>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Becomes the command; returns only when that fails.
pub(crate) fn run(args: &Args) -> CommandResult {
    Err(process::supervise(args.parent, args.descriptors, &args.command).into())
}
