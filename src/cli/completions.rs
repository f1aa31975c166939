//! `evecho completions`: what a shell needs to complete our command line.
//!
//! clap_complete writes the scripts of all shells but bash, from a command that says of each value what it
//! can be. The script of bash is written here: that of clap_complete knows no arguments without a flag and
//! no `--flag=value`, and offers files for every value that it does not know.

use std::io::Write;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, CommandFactory, ValueHint};
use clap_complete::{Shell, generate};
use evecho::client::check;

use super::output::Output;
use super::{Cli, CommandResult};

/// Print what a shell needs to complete the command line
///
/// For bash, in ~/.bashrc: eval "$(evecho completions bash)". For zsh, write it to a file _evecho in a
/// directory of $fpath; for fish, to ~/.config/fish/completions/evecho.fish.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the completions.
pub(crate) fn run(args: &Args) -> CommandResult {
    let mut output = Output::plain();
    output.write_all(script(args.shell).as_bytes())?;
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> String {
    let mut command = described();
    match shell {
        Shell::Bash => bash(command),
        Shell::Fish => fish(command),
        Shell::Zsh => zsh(command),
        _ => generated(shell, &mut command),
    }
}

fn generated(shell: Shell, command: &mut Command) -> String {
    let mut script = Vec::new();
    generate(shell, command, "evecho", &mut script);
    String::from_utf8(script).expect("completions are text")
}

/// The same command, without those commands that the help does not list, and with a hint or the possible
/// values for each value. Where nothing is known about a value, files would be offered.
fn described() -> Command {
    let command = Cli::command();
    let listed = command.get_subcommands().filter(|command| !command.is_hide_set());
    let describe = |arg: Arg| {
        let names: Vec<&str> = match arg.get_id().as_str() {
            "only" | "skip" => check::cases().map(|case| case.name).collect(),
            "words" => super::states::scenario_names(),
            _ if arg.get_action().takes_values() && arg.get_value_hint() == ValueHint::Unknown => {
                return arg.value_hint(ValueHint::Other);
            }
            _ => return arg,
        };
        arg.value_parser(PossibleValuesParser::new(names))
    };
    Command::new("evecho")
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments().cloned().map(describe))
        .subcommands(listed.cloned().map(|command| command.mut_args(describe)))
}

/// What fills in the value of an argument.
enum Offer {
    Words(Vec<String>),
    Files,
    Directories,
    Commands,
    Hosts,
    Nothing,
}

impl Offer {
    fn of(arg: &Arg) -> Self {
        let words = arg.get_possible_values();
        match arg.get_value_hint() {
            _ if !words.is_empty() => {
                Offer::Words(words.iter().map(|word| word.get_name().to_owned()).collect())
            }
            ValueHint::AnyPath | ValueHint::FilePath => Offer::Files,
            ValueHint::DirPath => Offer::Directories,
            ValueHint::CommandString => Offer::Commands,
            ValueHint::Hostname => Offer::Hosts,
            _ => Offer::Nothing,
        }
    }

    /// As arguments of compgen.
    fn bash(&self) -> String {
        match self {
            Offer::Words(words) => format!("-W '{}'", words.join(" ")),
            Offer::Files => "-f".to_owned(),
            Offer::Directories => "-d".to_owned(),
            Offer::Commands => "-c".to_owned(),
            Offer::Hosts => "-A hostname".to_owned(),
            Offer::Nothing => String::new(),
        }
    }

    /// As arguments of complete.
    fn fish(&self) -> String {
        match self {
            Offer::Words(words) => format!("-f -a '{}'", words.join(" ")),
            Offer::Hosts => "-f -a '(__fish_print_hostnames)'".to_owned(),
            Offer::Nothing => "-f".to_owned(),
            _ => "-F".to_owned(),
        }
    }
}

fn zsh(mut command: Command) -> String {
    let mut script = generated(Shell::Zsh, &mut command);
    // In the name of a value, a colon would be its end, and the rest would be run as a command.
    for arg in [&command].into_iter().chain(command.get_subcommands()).flat_map(Command::get_opts) {
        if let Some([name, ..]) = arg.get_value_names() {
            script =
                script.replace(&format!(":{name}:"), &format!(":{}:", name.replace(':', "\\:")));
        }
    }
    script
}

fn fish(mut command: Command) -> String {
    let script = generated(Shell::Fish, &mut command);
    let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let names = names.join(" ");
    let mut script = script
        // A command line that lacks the value of its last flag cannot be parsed. For fish that has to
        // mean that no command stands there yet, or it would offer files instead of the values.
        .replace("2>/dev/null\n    or return\n", "2>/dev/null\n    or return 0\n")
        // Of --flag=DIRECTORY, fish itself adds the flag.
        .replace(
            "(__fish_complete_directories)",
            "(__fish_complete_directories (commandline -ct | string replace -r '^-[^=]*=' ''))",
        )
        // The command help stands there already.
        .replace(&format!("{names}\""), &format!("{}\"", names.trim_end_matches(" help")));
    for command in command.get_subcommands() {
        for arg in command.get_positionals().take(1) {
            let (name, offer) = (command.get_name(), Offer::of(arg).fish());
            script += &format!(
                "complete -c evecho -n \"__fish_evecho_using_subcommand {name}\" {offer}\n"
            );
        }
    }
    script
}

const BASH: &str = r#"_evecho() {
    local cur=$2 prev=$3 command='' flags='' takes='' list='' prefix='' first=() more=() offer=() index word
    # In COMP_WORDS, '=' and ':' are words.
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    elif [[ $prev == : || $cur == : ]]; then
        return
    fi
    if ((COMP_CWORD > 1)); then
        case ${COMP_WORDS[1]} in
            COMMANDS) command=${COMP_WORDS[1]} ;;
        esac
    fi
    case $command in
        TABLE
    esac
    case "$command $prev" in
        VALUES
    esac
    if [[ " $takes " != *" $prev "* ]]; then
        # No value of a flag. Of the others, the first may be another thing than those behind it.
        offer=("${first[@]}")
        for ((index = ${#command} > 0 ? 2 : 1; index < COMP_CWORD; index++)); do
            word=${COMP_WORDS[index]}
            if [[ " $takes " == *" $word "* ]]; then
                [[ ${COMP_WORDS[index + 1]} != = ]] || ((index++))
                ((index++))
            elif [[ $word != -* ]]; then
                offer=("${more[@]}")
            fi
        done
        if [[ $cur == -* ]]; then
            offer=(-W "$flags")
        fi
    elif [[ -n $list && $cur == *,* ]]; then
        prefix=${cur%,*},
        cur=${cur##*,}
    fi
    COMPREPLY=()
    ((${#offer[@]} > 0)) || return
    case ${offer[0]} in
        # Bash itself knows how to quote these.
        -f) compopt -o default ;;
        -d) compopt -o dirnames ;;
        *)
            while IFS= read -r word; do
                COMPREPLY+=("$prefix$word")
            done < <(compgen "${offer[@]}" -- "$cur")
            ;;
    esac
}
complete -F _evecho evecho
"#;

fn bash(mut command: Command) -> String {
    command.build();
    let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let commands = [&command].into_iter().chain(command.get_subcommands());
    let lines = commands.map(|command| (bash_line(command, &names), bash_values(command)));
    let (table, values): (String, String) = lines.unzip();
    BASH.replace("COMMANDS", &names.join(" | "))
        .replace("        TABLE\n", &table)
        .replace("        VALUES\n", &values)
}

/// The name of a command in the script. The server has none.
fn bash_name(command: &Command) -> &str {
    command.get_name().trim_start_matches("evecho")
}

fn spellings(arg: &Arg) -> Vec<String> {
    let short = arg.get_short().map(|short| format!("-{short}"));
    short.into_iter().chain(arg.get_long().map(|long| format!("--{long}"))).collect()
}

/// The flags of a command, those that take a value, and what its arguments without a flag can be.
fn bash_line(command: &Command, names: &[&str]) -> String {
    let (name, names) = (bash_name(command), names.join(" "));
    let flags = command.get_arguments().flat_map(spellings).collect::<Vec<_>>().join(" ");
    let takes = command.get_opts().flat_map(spellings).collect::<Vec<_>>().join(" ");
    let takes_several = |arg: &Arg| arg.get_num_args().is_some_and(|args| args.max_values() > 1);
    let positionals: Vec<&Arg> = command.get_positionals().collect();
    let offer = |arg: &Arg| Offer::of(arg).bash();
    let (first, more) = match (name, &positionals[..]) {
        ("", _) => (format!("-W '{flags} {names}'"), format!("-W '{flags}'")),
        ("help", _) => (format!("-W '{names}'"), String::new()),
        // Only flags are possible.
        (_, []) => (format!("-W '{flags}'"), String::new()),
        (_, [first, ..]) if takes_several(first) => (offer(first), offer(first)),
        (_, [first, more @ ..]) => {
            (offer(first), more.first().map_or_else(String::new, |arg| offer(arg)))
        }
    };
    format!(
        "        '{name}')\n            flags='{flags}'\n            takes='{takes}'\n            \
         first=({first}) more=({more}) ;;\n"
    )
}

/// What the values of a command's flags can be.
fn bash_values(command: &Command) -> String {
    let name = bash_name(command);
    let mut values = String::new();
    for arg in command.get_opts() {
        let offer = Offer::of(arg).bash();
        if !offer.is_empty() {
            let cases: Vec<_> =
                spellings(arg).iter().map(|flag| format!("'{name} {flag}'")).collect();
            let list = arg.get_value_delimiter().map_or("", |_| " list=1");
            values += &format!("        {}) offer=({offer}){list} ;;\n", cases.join(" | "));
        }
    }
    values
}

#[cfg(test)]
mod tests;
