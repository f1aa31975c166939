//! `evecho send`: messages or standard input to a server, and what comes back to standard output.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::Duration;

use super::output::complain;
use super::serve::FramingArg;
use super::{CommandResult, TargetArgs, units};
use evecho::client::Cancel;
use evecho::client::send::{self, Config, Input, Progress, Tally};
use evecho::units::{count, time, were};

/// Send messages, or standard input, and print what comes back.
///
/// Without a MESSAGE, each line of standard input is one: on a terminal, type a line and see its
/// echo. A message is sent when the reply to the one before has come. Each reply is printed on its
/// own line.
///
/// The exit code is 0 when everything came back: a reply to each message or, where nothing marks
/// the end of a message (--raw, --framing raw), as many bytes as were sent. Otherwise, and when Ctrl-C
/// ends it, it is 1, and 2 on wrong usage.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// What to send, one message each
    #[arg(value_name = "MESSAGE")]
    messages: Vec<OsString>,
    /// Send each message as a datagram, from a port of its own
    #[arg(short, long)]
    udp: bool,
    /// How the end of a message is marked in a TCP stream [default: lines]
    #[arg(short, long, value_enum, conflicts_with = "raw")]
    framing: Option<FramingArg>,
    /// Send all of standard input as it is: over TCP as a stream, half-closed at its end, over UDP
    /// as one datagram
    #[arg(short, long, conflicts_with = "messages")]
    raw: bool,
    /// Give up when connecting takes this long, or the server then does nothing for this long
    #[arg(short, long, value_name = "TIME", default_value = "5s", value_parser = units::timeout)]
    timeout: Duration,
}

/// Sends what the flags say.
pub(crate) fn run(args: Args) -> CommandResult {
    // Descriptors of our own: the standard ones keep a buffer, and `poll` cannot see into it.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let input = match args.messages {
        _ if args.raw => Input::Raw(input),
        messages if messages.is_empty() => Input::Lines(input),
        messages => Input::Messages(messages.into_iter().map(OsString::into_vec).collect()),
    };
    let framing = args.framing.map(|_| "--framing");
    let (target, transport) = args.target.resolve("send", args.udp, framing);
    let mut config = Config::new(target);
    config.transport = transport;
    config.framing = args.framing.map_or(config.framing, Into::into);
    config.timeout = args.timeout;
    let wait = time(args.timeout);
    let cancel = Cancel::at_signals()?;
    let tally = send::run(&config, input, output, &cancel, |progress| {
        if let Progress::Lost { message } = progress {
            complain(&format!("message {message}: no reply within {wait}"));
        }
    })?;
    Ok(conclude(&config, tally))
}

fn conclude(config: &Config, tally: Tally) -> ExitCode {
    if tally.left_open {
        complain(&format!(
            "{} came back, as sent, but {} did not close the connection after the half-close",
            count(tally.received, "byte"),
            config.target
        ));
    }
    if tally.cancelled {
        let Tally { sent, received, .. } = tally;
        complain(&format!("stopped after {} sent and {received} came back", were(sent, "byte")));
    }
    ExitCode::from(u8::from(tally.lost > 0 || tally.cancelled))
}
