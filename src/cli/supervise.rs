//! `evecho __supervise`: becomes a server that another evecho wants, and ends with that.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::Parser;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::CommandResult;

/// The first word of the command line.
pub(super) const NAME: &str = "__supervise";

/// The flags of the hidden command; only other commands use it.
#[derive(Parser)]
#[command(name = NAME)]
pub(crate) struct Args {
    /// Process that the command must not outlive
    #[arg(long)]
    parent: i32,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// The words that go before a server's command, so that it ends with this process.
pub(super) fn words() -> io::Result<Vec<OsString>> {
    let program = std::env::current_exe()?.into_os_string();
    let parent = std::process::id().to_string().into();
    Ok(vec![program, NAME.into(), "--parent".into(), parent, "--".into()])
}

/// Asks the kernel to end this process with its parent (`PR_SET_PDEATHSIG`, prctl(2)), and becomes
/// the command (execve(2)). Returns only when that fails.
///
/// The kernel looks at the *thread* that started this process, which has to live as long.
pub(crate) fn run(args: Args) -> CommandResult {
    set_pdeathsig(Signal::SIGKILL)?;
    // The parent may have gone before the line above.
    if getppid() != Pid::from_raw(args.parent) {
        return Err("the process that wanted the server is gone".into());
    }
    let [program, arguments @ ..] = &args.command[..] else {
        return Err("no command to run".into());
    };
    let error = Command::new(program).args(arguments).exec();
    Err(format!("cannot run '{}': {error}", program.display()).into())
}
