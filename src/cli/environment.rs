//! The server's flags from the environment: what counts as set, and what is not meant for us.
//!
//! A variable that is empty is unset. An error about a value names the variable that it came from.
//! Only the server has variables: what stands in them never stops another command.

use std::env;
use std::ffi::OsString;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::Cli;
use super::flags::with_flags;

/// What the environment had for the server.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// A sentence for each variable of ours that holds what was meant for others.
    pub(super) ignored: Vec<String>,
    /// The flags that have their value from a variable, by the long name.
    set: Vec<String>,
    /// Those that have it from the command line.
    given: Vec<String>,
}

impl Environment {
    /// Whether this flag has a value that somebody gave it.
    pub(super) fn gives(&self, flag: &str) -> bool {
        self.set.iter().chain(&self.given).any(|given| given == flag)
    }

    /// What a value of this flag is called where it came from: `--port`, or `EVECHO_PORT`.
    pub(super) fn name(&self, flag: &str) -> String {
        match self.set.iter().any(|set| set == flag) {
            true => variable(flag),
            false => format!("--{flag}"),
        }
    }

    /// The same text with variables where it has flags or fields that were set by them: `max_frame`
    /// becomes EVECHO_MAX_FRAME.
    pub(super) fn name_in(&self, text: &str) -> String {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
        self.set.iter().fold(with_flags(text).into_owned(), |text, flag| {
            let name = format!("--{flag}");
            let mut pieces = text.split(&name);
            let mut named = pieces.next().unwrap_or_default().to_owned();
            for after in pieces {
                let longer = after.starts_with(word);
                named += &if longer { name.clone() } else { variable(flag) };
                named += after;
            }
            named
        })
    }
}

fn variable(flag: &str) -> String {
    format!("EVECHO_{}", flag.replace('-', "_").to_uppercase())
}

/// Parses these arguments and, for the server, the environment.
///
/// # Errors
///
/// Wrong usage, or the help that was asked for.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<(Cli, Environment), clap::Error> {
    // The first time without variables: whatever is wrong then is wrong on the command line.
    let alone = Cli::command().mut_args(forget).mut_subcommand("serve", |c| c.mut_args(forget));
    let explicit = match alone.try_get_matches_from(&arguments) {
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            return Err(Cli::command().try_get_matches_from(&arguments).err().unwrap_or(error));
        }
        other => other?,
    };
    let mut environment = Environment::default();
    let mut command = match explicit.subcommand_name() {
        None => read(Cli::command(), &mut environment.ignored),
        Some("serve") => Cli::command()
            .mut_args(forget)
            .mut_subcommand("serve", |serve| read(serve, &mut environment.ignored)),
        Some(_) => return Ok((Cli::from_arg_matches(&explicit)?, environment)),
    };
    command.build();
    let matches = command
        .try_get_matches_from_mut(arguments)
        .map_err(|error| name_the_variable(error, &command))?;
    let serve = matches.subcommand_matches("serve").unwrap_or(&matches);
    environment.set = flags_from(serve, ValueSource::EnvVariable);
    environment.given = flags_from(serve, ValueSource::CommandLine);
    Ok((Cli::from_arg_matches(&matches)?, environment))
}

fn forget(arg: clap::Arg) -> clap::Arg {
    arg.env(None)
}

/// Has a command read its variables, but for those that are empty or not meant for us.
fn read(command: Command, ignored: &mut Vec<String>) -> Command {
    command.mut_args(|mut arg| {
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            arg = arg.value_parser(BoolishValueParser::new());
        }
        let Some(name) = arg.get_env().map(|name| name.to_string_lossy().into_owned()) else {
            return arg;
        };
        let value = env::var_os(&name).unwrap_or_default();
        if value.is_empty() {
            return arg.env(None);
        }
        let value = value.to_string_lossy();
        if is_service_link(&name, &value) {
            ignored.push(format!(
                "{name}={value} is ignored: Kubernetes sets it for a Service of that name"
            ));
            return arg.env(None);
        }
        arg
    })
}

/// Whether a variable is one of those that Kubernetes sets in every container for each Service, in
/// the style of Docker's links: `EVECHO_PORT=tcp://10.96.0.12:12000` for one named `evecho`.
fn is_service_link(name: &str, value: &str) -> bool {
    let protocols = ["tcp://", "udp://", "sctp://"];
    name.ends_with("_PORT") && protocols.iter().any(|protocol| value.starts_with(protocol))
}

/// Puts the variable where the error has a flag: without variables the command line was right.
fn name_the_variable(mut error: clap::Error, command: &Command) -> clap::Error {
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && let serve = command.find_subcommand("serve").into_iter().flat_map(Command::get_arguments)
        && let Some(name) = command
            .get_arguments()
            .chain(serve)
            .filter(|arg| arg.to_string() == *flag)
            .find_map(clap::Arg::get_env)
    {
        let name = ContextValue::String(name.to_string_lossy().into_owned());
        error.insert(ContextKind::InvalidArg, name);
    }
    error
}

fn flags_from(matches: &ArgMatches, source: ValueSource) -> Vec<String> {
    matches
        .ids()
        .map(clap::Id::as_str)
        .filter(|id| matches.value_source(id) == Some(source))
        .map(|id| id.replace('_', "-"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_a_variable_is_called_by_its_name() {
        let set = vec!["max-frame".to_owned(), "udp".to_owned()];
        let environment = Environment { set, ..Environment::default() };
        assert_eq!(environment.name("udp"), "EVECHO_UDP");
        assert_eq!(environment.name("port"), "--port");
        assert_eq!(
            environment.name_in("`max_frame` is 0; --udp is not --udp-rate, nor `port`"),
            "EVECHO_MAX_FRAME is 0; EVECHO_UDP is not --udp-rate, nor --port"
        );
    }
}
