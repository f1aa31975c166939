//! The server's flags from the environment.
//!
//! An empty variable is unset. An error about a value names the variable that it came from. Only the
//! server reads variables: their values never stop another command.

use std::env;
use std::ffi::OsString;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::{Cli, flag, output};

/// Which flags of the server came from the environment.
#[derive(Debug, Default)]
pub(super) struct Environment {
    /// A sentence for each variable that is ignored because Kubernetes set it.
    pub(super) ignored: Vec<String>,
    /// The flags that a variable set, by the long name.
    set: Vec<String>,
    /// The flags that the command line set.
    given: Vec<String>,
}

impl Environment {
    /// Whether this flag is set: not its default.
    pub(super) fn gives(&self, flag: &str) -> bool {
        self.set.iter().chain(&self.given).any(|given| given == flag)
    }

    /// The name of this flag where its value came from: `--port`, or `EVECHO_PORT`.
    pub(super) fn name(&self, flag: &str) -> String {
        match self.set.iter().any(|set| set == flag) {
            true => variable(flag),
            false => format!("--{flag}"),
        }
    }

    /// An error of the server as one sentence: the flag or the variable to change, then what is wrong.
    pub(super) fn sentence(&self, error: &evecho::Error) -> String {
        let sentence = match error {
            evecho::Error::Config(error) => error.reason().to_owned(),
            _ => output::sentence(error),
        };
        match error.setting() {
            Some(setting) => format!("{}: {sentence}", self.name(&flag(setting.field()))),
            None => sentence,
        }
    }
}

fn variable(flag: &str) -> String {
    format!("EVECHO_{}", flag.replace('-', "_").to_uppercase())
}

/// Parses these arguments and, for the server, the environment.
///
/// # Errors
///
/// Wrong usage, or a request for help.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<(Cli, Environment), clap::Error> {
    // First without variables: any error then is one of the command line.
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

/// Lets a command read its variables, except those that are empty or not meant for it.
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

/// Whether a variable is one that Kubernetes sets in every container for each Service, in the
/// style of Docker's links: `EVECHO_PORT=tcp://10.96.0.12:12000` for one named `evecho`.
fn is_service_link(name: &str, value: &str) -> bool {
    let protocols = ["tcp://", "udp://", "sctp://"];
    name.ends_with("_PORT") && protocols.iter().any(|protocol| value.starts_with(protocol))
}

/// Replaces the flag in the error by its variable: without variables the command line was right.
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
    fn an_error_names_the_flag_or_the_variable() {
        let mut config = evecho::Config::default();
        config.protocol.max_frame = 0;
        let error = evecho::Server::bind(config).expect_err("no frame is this short");
        let mut environment = Environment::default();
        let sentence = environment.sentence(&error);
        assert_eq!(sentence, "--max-frame: 0 bytes; give 1 to 16777216");
        environment.set.push("max-frame".to_owned());
        let sentence = environment.sentence(&error);
        assert_eq!(sentence, "EVECHO_MAX_FRAME: 0 bytes; give 1 to 16777216");
    }
}
