//! The server's flags from the environment.
//!
//! An empty variable is unset. An error about a value names the variable that it came from. A variable
//! that is none of the server's is a warning. Only the server reads variables: their values never stop
//! another command.

use std::env;
use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, Command, CommandFactory, FromArgMatches};

use super::{Cli, flag, output, units};

/// Which flags of the server came from the environment.
#[derive(Debug, Default, Clone)]
pub(super) struct Environment {
    /// A sentence for each variable that is ignored, though its name begins as those of the server do.
    pub(super) ignored: Vec<String>,
    /// The flags that are set, by the long name, and where.
    given: Vec<(String, ValueSource)>,
    /// Whether systemd has started this process, with settings as variables (`SYSTEMD_EXEC_PID`,
    /// systemd.exec(5)).
    is_unit: bool,
}

impl Environment {
    /// Whether this flag is set: not its default.
    pub(super) fn gives(&self, flag: &str) -> bool {
        self.source(flag).is_some()
    }

    /// The name of this flag where its value came from, or where to give one: `--port`, or `EVECHO_PORT`.
    pub(super) fn name(&self, flag: &str) -> String {
        match self.source(flag) {
            Some(ValueSource::EnvVariable) => variable(flag),
            None if self.is_unit => variable(flag),
            _ => format!("--{flag}"),
        }
    }

    fn source(&self, flag: &str) -> Option<ValueSource> {
        self.given.iter().find(|(given, _)| given == flag).map(|(_, source)| *source)
    }

    /// The names of all settings that are not defaults, in the order of the help.
    pub(super) fn names(&self) -> Vec<String> {
        let flags = self.given.iter().filter(|(flag, _)| flag != "check-config");
        flags.map(|(flag, _)| self.name(flag)).collect()
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
    format!("{PREFIX}{}", flag.replace('-', "_").to_uppercase())
}

/// How the names of all variables of the server begin.
const PREFIX: &str = "EVECHO_";

/// Parses these arguments and, for the server, the environment.
///
/// # Errors
///
/// Wrong usage, or a request for help.
pub(super) fn parse(arguments: Vec<OsString>) -> Result<(Cli, Environment), clap::Error> {
    // First without variables: any error then is one of the command line.
    let alone = cli().mut_args(forget).mut_subcommand("serve", |c| c.mut_args(forget));
    let explicit = match alone.try_get_matches_from(&arguments) {
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            return Err(cli().try_get_matches_from(&arguments).err().unwrap_or(error));
        }
        other => other?,
    };
    let mut environment = Environment::default();
    let mut command = match explicit.subcommand_name() {
        None => read(cli()),
        Some("serve") => cli().mut_args(forget).mut_subcommand("serve", read),
        Some(_) => return Ok((Cli::from_arg_matches(&explicit)?, environment)),
    };
    environment.ignored = ignored();
    command.build();
    let matches =
        command.try_get_matches_from_mut(arguments).map_err(|error| explain(error, &command))?;
    let serve = matches.subcommand_matches("serve").unwrap_or(&matches);
    let server = Cli::command();
    let given = server.get_arguments().filter_map(|arg| {
        let (flag, source) = (arg.get_long()?, serve.value_source(arg.get_id().as_str())?);
        (source != ValueSource::DefaultValue).then(|| (flag.to_owned(), source))
    });
    environment.given = given.collect();
    environment.is_unit =
        env::var("SYSTEMD_EXEC_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    Ok((Cli::from_arg_matches(&matches)?, environment))
}

/// The command line, where a value may begin with a minus: what reads it says what is wrong.
fn cli() -> Command {
    fn taking_negatives(command: Command) -> Command {
        let take = |arg: clap::Arg| match arg.get_action().takes_values() && !arg.is_positional() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        };
        command.mut_args(take).mut_subcommands(taking_negatives)
    }
    taking_negatives(Cli::command())
}

fn forget(arg: clap::Arg) -> clap::Arg {
    arg.env(None)
}

/// Lets a command read its variables, except those that are empty or not meant for it.
fn read(command: Command) -> Command {
    command.mut_args(|mut arg| {
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            arg = arg.value_parser(units::switch);
        }
        let Some(name) = arg.get_env() else { return arg };
        let value = env::var_os(name).unwrap_or_default();
        if value.is_empty() || is_link(&name.to_string_lossy(), &value.to_string_lossy()) {
            return arg.env(None);
        }
        arg
    })
}

/// A sentence for each variable that is none of the server's, and one for all that belong to links.
fn ignored() -> Vec<String> {
    let server = Cli::command();
    let known: Vec<&OsStr> = server.get_arguments().filter_map(clap::Arg::get_env).collect();
    let is_known = |name: &str| known.contains(&OsStr::new(name));
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let mut variables: Vec<(String, String)> = env::vars_os()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (text(name), text(value)))
        .filter(|(name, _)| name.to_uppercase().replace('-', "_").starts_with(PREFIX))
        .collect();
    // Of links, the first names are those that the server would have read.
    variables.sort_by_cached_key(|(name, _)| (!is_known(name), name.clone()));
    let (links, others): (Vec<_>, Vec<_>) =
        variables.into_iter().partition(|(name, value)| is_link(name, value));
    let links = about_links(&links.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), is_known);
    let unknown = others.iter().map(|(name, _)| &**name).filter(|name| !is_known(name));
    links.into_iter().chain(unknown.map(|name| about_unknown(name, is_known))).collect()
}

fn about_unknown(name: &str, is_known: impl Fn(&str) -> bool) -> String {
    let flag = name[PREFIX.len()..].replace('_', "-").to_lowercase();
    // Flags and variables have the same names, and clap finds the flag that is nearest.
    let error = Cli::command().try_get_matches_from(["evecho", &format!("--{flag}")]).err();
    let suggested = match error.as_ref().and_then(|error| error.get(ContextKind::SuggestedArg)) {
        Some(ContextValue::String(suggested)) => suggested.trim_start_matches('-'),
        _ => &flag,
    };
    let nearest = Some(variable(suggested)).filter(|name| is_known(name));
    let advice = nearest.map_or("evecho(1) lists the variables".to_owned(), |nearest| {
        format!("did you mean '{nearest}'?")
    });
    format!("{} is not a setting and is ignored: {advice}", name.escape_debug())
}

fn about_links(names: &[&str], is_known: impl Fn(&str) -> bool) -> Option<String> {
    let named = names.iter().take_while(|name| is_known(name)).count().max(1);
    let listed = names.get(..named)?.join(", ");
    let more = match names.len() - named {
        0 if named == 1 => " is".to_owned(),
        0 => " are".to_owned(),
        1 => " and 1 more variable are".to_owned(),
        more => format!(" and {more} more variables are"),
    };
    Some(format!(
        "{listed}{more} ignored: not settings, but what Kubernetes sets for a Service or Docker for a linked container"
    ))
}

/// Whether a variable is one that Kubernetes sets in every container for each Service, and Docker for
/// each container that is linked: for one named `evecho`, `EVECHO_PORT=tcp://10.96.0.12:12000`,
/// `EVECHO_PORT_12000_TCP_ADDR` and others.
fn is_link(name: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    (name.ends_with("_PORT") && is_url)
        || (name.ends_with("_NAME") && value.starts_with('/'))
        || name.split("_PORT_").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        || ["_SERVICE_HOST", "_SERVICE_PORT"].iter().any(|end| name.ends_with(end))
        || ["_SERVICE_PORT_", "_ENV_"].iter().any(|part| name.contains(part))
}

/// Replaces the flag in an error by its variable, since without variables the command line was right,
/// and adds what often is wrong with values in a file of variables.
fn explain(mut error: clap::Error, command: &Command) -> clap::Error {
    let serve = command.find_subcommand("serve").into_iter().flat_map(Command::get_arguments);
    let mut arguments = command.get_arguments().chain(serve).filter(|arg| arg.get_env().is_some());
    let name = |arg: &clap::Arg| arg.get_env().map(|name| name.to_string_lossy().into_owned());
    if error.kind() == ErrorKind::InvalidUtf8 {
        let unread = |arg: &&clap::Arg| {
            arg.get_env().and_then(env::var_os).is_some_and(|value| value.to_str().is_none())
        };
        return match arguments.find(unread).and_then(name) {
            Some(name) => {
                Cli::command().error(error.kind(), format!("{name} is not text in UTF-8"))
            }
            None => error,
        };
    }
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && let Some(name) = arguments.find(|arg| arg.to_string() == *flag).and_then(name)
    {
        error.insert(ContextKind::InvalidArg, ContextValue::String(name));
    }
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && let Some(tip) = tip(value)
    {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

/// What is wrong with a value that was copied into a file of variables as a shell would read it.
fn tip(value: &str) -> Option<&'static str> {
    let quotes = ['"', '\''];
    if value.split_whitespace().any(|word| word.starts_with('#')) {
        Some("a comment needs a line of its own")
    } else if value.trim() != value {
        Some("give it without white space around it")
    } else if value.starts_with(quotes) || value.ends_with(quotes) {
        Some("give it without quotes, which are part of the value here")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a value is said without the jargon of parsers, and with what is right.
    #[test]
    fn a_wrong_value_is_answered_with_a_right_one() {
        let wrong = "-5 inf NaN 1/s 10q 30s 1:2:3 1e999 99999999999999999999";
        let jargon =
            "invalid digit,out of range,number too,invalid float,empty string,lookup,syntax";
        let right = "like ,from ,at least ,{port},:12100,24h,--list,to 65,letters";
        let has = |text: &str, parts: &str| parts.split(',').any(|part| text.contains(part));
        let command = cli();
        for command in command.get_subcommands().chain([&command]) {
            let takes = |arg: &&clap::Arg| arg.get_action().takes_values();
            let flags = command.get_arguments().filter(takes);
            for (flag, value) in
                flags.flat_map(|flag| wrong.split(' ').map(move |value| (flag, value)))
            {
                let name = Some(command.get_name()).filter(|name| *name != "evecho");
                let long = flag.get_long().map(|long| format!("--{long}"));
                let line = ["evecho"].into_iter().chain(name).chain(long.as_deref()).chain([value]);
                let Err(error) = cli().try_get_matches_from(line) else { continue };
                let (kind, text) = (error.kind(), error.to_string());
                let is_apart = flag.is_positional() || flag.is_require_equals_set();
                let is_read = is_apart || kind != ErrorKind::UnknownArgument;
                assert!(is_read && !has(&text, jargon), "{text}");
                assert!(kind != ErrorKind::ValueValidation || has(&text, right), "{text}");
            }
        }
    }

    #[test]
    fn an_error_names_the_flag_or_the_variable() {
        let mut config = evecho::Config::default();
        config.protocol.max_frame = 0;
        let error = evecho::Server::bind(config).expect_err("no frame is this short");
        let mut environment = Environment::default();
        let sentence = environment.sentence(&error);
        assert_eq!(sentence, "--max-frame: 0 bytes; give 1 to 16777216");
        environment.given.push(("max-frame".to_owned(), ValueSource::EnvVariable));
        let sentence = environment.sentence(&error);
        assert_eq!(sentence, "EVECHO_MAX_FRAME: 0 bytes; give 1 to 16777216");
    }
}
