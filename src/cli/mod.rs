//! The command line: clap types, and the step from flags to the library's plain configs.
//!
//! Each command has a file of its own with its flags (`Args`) and a `run` that turns them into a
//! checked config and calls the library. `evecho` without a command serves.

mod check;
mod compare;
mod load;
mod log;
mod output;
mod ping;
mod send;
mod serve;
mod supervise;
mod units;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use evecho::client::Cancel;
use signal_hook::consts::{SIGINT, SIGTERM};

use output::complain;

/// What a command ends in: an exit code, or one sentence for standard error (exit code 1).
type CommandResult = Result<ExitCode, Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(name = "evecho", version, about, args_conflicts_with_subcommands = true)]
#[command(subcommand_help_heading = "Other commands")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Args,
}

#[derive(Subcommand)]
enum Command {
    Check(check::Args),
    Compare(compare::Args),
    Load(load::Args),
    Ping(ping::Args),
    Send(send::Args),
    #[command(name = "__supervise", hide = true)]
    Supervise(supervise::Args),
}

/// Parses the command line, runs what it names and turns the outcome into an exit code: 0 done,
/// 1 run time, 2 usage (clap's own exit).
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => serve::run(cli.serve),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Compare(args)) => compare::run(args),
        Some(Command::Load(args)) => load::run(args),
        Some(Command::Ping(args)) => ping::run(args),
        Some(Command::Send(args)) => send::run(args),
        Some(Command::Supervise(args)) => supervise::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        complain(&output::sentence(&*error));
        ExitCode::from(1)
    })
}

/// Ends with a usage error (exit code 2), as clap does for what it finds itself.
fn usage(kind: ErrorKind, sentence: &str) -> ! {
    Cli::command().error(kind, sentence).exit()
}

/// Cancels at SIGINT or SIGTERM. A second one ends the program at once.
fn cancel_at_signals() -> std::io::Result<Cancel> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let code = 128 + signal;
        signal_hook::flag::register_conditional_shutdown(signal, code, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(Cancel::from(stop))
}
