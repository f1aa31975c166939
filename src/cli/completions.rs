//! `evecho completions`: what a shell needs to complete our command line.

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

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
    let mut script = Vec::new();
    generate(shell, &mut without_hidden(&Cli::command()), "evecho", &mut script);
    let script = String::from_utf8(script).expect("completions are text");
    // A command line that lacks the value of its last flag cannot be parsed. For fish that has to mean
    // that no command stands there yet, or it would offer files instead of the values.
    match shell {
        Shell::Fish => {
            script.replace("2>/dev/null\n    or return\n", "2>/dev/null\n    or return 0\n")
        }
        _ => script,
    }
}

/// The same command with those commands only that the help lists: completions would have all.
fn without_hidden(command: &clap::Command) -> clap::Command {
    let listed = command.get_subcommands().filter(|command| !command.is_hide_set());
    clap::Command::new("evecho")
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments())
        .subcommands(listed.cloned())
}

#[cfg(test)]
mod tests {
    use clap_complete::Generator;
    use snapbox::{Data, assert_data_eq};

    use super::*;

    /// After a change that is meant, run with `SNAPSHOTS=overwrite` and look at the difference.
    #[test]
    fn the_files_in_completions_are_of_today() {
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            let script = script(shell);
            let (root, file) = (env!("CARGO_MANIFEST_DIR"), shell.file_name("evecho"));
            let path = format!("{root}/completions/{file}");
            assert_data_eq!(script, Data::read_from(path.as_ref(), None).raw());
        }
    }

    #[test]
    fn no_shell_learns_what_the_help_hides() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let script = script(shell);
            let words = || script.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-');
            assert!(words().any(|word| word == "ping"), "{shell}");
            for hidden in ["serve", "evecho__serve", "__supervise", "supervise"] {
                assert!(words().all(|word| word != hidden), "{shell}: {hidden}");
            }
        }
    }
}
