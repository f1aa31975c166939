//! The command line: clap types, and the step from flags to the library's plain configs.
//!
//! Each command has a file with its flags (`Args`) and a `run` that turns them into a checked config and
//! calls the library. `evecho` without a command serves.

mod check;
mod check_config;
mod compare;
mod completions;
mod environment;
mod figure;
mod load;
mod log;
mod merge;
mod output;
mod ping;
mod progress;
mod send;
mod serve;
#[cfg_attr(not(target_os = "linux"), path = "no_states.rs")]
mod states;
mod supervise;
mod units;

use std::ffi::OsString;
use std::net::{IpAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueHint};
use evecho::client::target::{Family, Target};
use evecho::{Transport, inherited};
use signal_hook::consts::SIGUSR1;

use output::complain;

/// The result of a command: an exit code, or one sentence for standard error (exit code 1).
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
    Completions(completions::Args),
    Load(load::Args),
    Merge(merge::Args),
    Ping(ping::Args),
    Send(send::Args),
    States(states::Args),
    /// Serve, as without a command
    #[command(hide = true)]
    Serve(serve::Args),
}

/// The server that a client talks to.
#[derive(clap::Args)]
struct TargetArgs {
    /// The server: a name or address, with a port if that is not 12000, as in localhost:7, [::1]:7 or
    /// udp://localhost
    #[arg(value_name = "HOST[:PORT]", value_hint = ValueHint::Hostname)]
    target: Target,
    #[command(flatten)]
    family: FamilyArgs,
}

/// Which addresses a name may resolve to.
#[derive(clap::Args)]
struct FamilyArgs {
    /// Use IPv4 only
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Use IPv6 only
    #[arg(short = '6', long)]
    ipv6: bool,
}

impl TargetArgs {
    /// The server, and what carries the bytes: what its scheme or --udp says, TCP otherwise. Datagrams
    /// exclude the flag `streams`, if it is given.
    fn resolve(self, command: &str, udp: bool, streams: Option<&str>) -> (Target, Transport) {
        let mut target = self.family.apply(self.target);
        let transport = transport(command, &mut target, udp.then_some(Transport::Udp));
        if let (Some(Transport::Udp), Some(flag)) = (transport, streams) {
            let sentence = format!(
                "--udp (or udp://) and {flag} exclude each other: each datagram is a message"
            );
            usage(Some(command), ErrorKind::ArgumentConflict, &sentence);
        }
        (target, transport.unwrap_or(Transport::Tcp))
    }
}

/// Takes the scheme off a target: the transport that it names, or else the one that flags ask for.
fn transport(command: &str, target: &mut Target, asked: Option<Transport>) -> Option<Transport> {
    let named = target.take_transport();
    if named.is_some() && asked.is_some() && named != asked {
        let sentence =
            "the scheme of the target and a flag name different transports: give one of them";
        usage(Some(command), ErrorKind::ArgumentConflict, sentence);
    }
    named.or(asked)
}

impl FamilyArgs {
    fn apply(&self, target: Target) -> Target {
        target.with_family(match (self.ipv4, self.ipv6) {
            (true, _) => Family::V4,
            (_, true) => Family::V6,
            _ => Family::Any,
        })
    }
}

/// Parses the command line, runs the command and turns the outcome into an exit code: 0 done,
/// 1 run time, 2 usage (clap's own exit).
pub(crate) fn run() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let run = |()| match &arguments[..] {
        // Hidden from help and suggestions.
        [_, word, command @ ..] if word == supervise::NAME => supervise::run(command),
        [_, word] if word == states::OWN_NETWORK => states::try_own_network(),
        _ => command(arguments),
    };
    let result = inherited::mend().map_err(Into::into).and_then(run);
    result.unwrap_or_else(|error| {
        complain(&output::sentence(&*error));
        ExitCode::from(1)
    })
}

fn command(arguments: Vec<OsString>) -> CommandResult {
    output::choose_colours();
    let (cli, environment) =
        environment::parse(arguments).unwrap_or_else(|error| output::exit(&error));
    if !matches!(cli.command, None | Some(Command::Serve(_))) {
        inherited::hear_of_children()?;
        flag_at_sigusr1()?;
    }
    match cli.command {
        None => serve::run(cli.serve, &environment),
        Some(Command::Serve(args)) => serve::run(args, &environment),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Compare(args)) => compare::run(args),
        Some(Command::Completions(args)) => completions::run(&args),
        Some(Command::Load(args)) => load::run(args),
        Some(Command::Merge(args)) => merge::run(&args),
        Some(Command::Ping(args)) => ping::run(args),
        Some(Command::Send(args)) => send::run(args),
        Some(Command::States(args)) => states::run(&args),
    }
}

/// The long name of the flag that sets a field of the library: `max_frame` has `max-frame`.
fn flag(field: &str) -> String {
    field.replace('_', "-")
}

/// Ends with a usage error (exit code 2) of a command, or of the server, as clap does for the errors
/// that it finds.
fn usage(command: Option<&str>, kind: ErrorKind, sentence: &str) -> ! {
    let mut cli = Cli::command();
    cli.build();
    output::exit(&match command.and_then(|name| cli.find_subcommand_mut(name)) {
        Some(command) => command.error(kind, sentence),
        None => cli.error(kind, sentence),
    })
}

/// Checks that this machine can send from an address, which --from names.
fn check_source(source: IpAddr) -> Result<(), String> {
    let bound = UdpSocket::bind((source, 0));
    bound.map(drop).map_err(|_| format!("--from {source}: this machine has no such address"))
}

/// A flag that SIGUSR1 sets, which asks a tool for its report so far. The signal never ends a client: one
/// that is meant for all servers of a machine reaches clients of the same name too.
fn flag_at_sigusr1() -> std::io::Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGUSR1, Arc::clone(&asked))?;
    Ok(asked)
}

#[cfg(test)]
mod tests;
