//! The manual pages in `man/`: what the help says, and what belongs into a manual beside it.
//!
//! They are written by a test. After a change that is meant, run `cargo test manual` with
//! `SNAPSHOTS=overwrite` and look at the difference. `man/evecho-protocol.7` is written by hand.

use std::collections::HashSet;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use snapbox::{Data, assert_data_eq};

use crate::cli::Cli;

const REFERENCE: &str = include_str!("../../../docs/reference.md");
const VERSION: &str = concat!("evecho ", env!("CARGO_PKG_VERSION"));

/// A command line, and what it does.
type Example = (&'static str, &'static str);

/// What the help of a command does not say.
struct Page {
    /// As in `evecho-ping`, or `evecho` for the server.
    name: &'static str,
    examples: &'static [Example],
    /// Pages of others.
    see_also: &'static [&'static str],
}

const PAGES: [Page; 9] = [
    Page {
        name: "evecho",
        examples: &[
            (
                "evecho",
                "Serve TCP and UDP on port 12000, for any client that reaches this machine.",
            ),
            ("evecho --bind 127.0.0.1 --bind ::1", "Serve this machine only."),
            (
                "evecho --framing lines --idle-timeout 5m",
                "Answer whole lines, and close connections that were silent for five minutes.",
            ),
            (
                "evecho --check-config --framing lines",
                "Say what would be served, or what is wrong with the flags and variables, and exit.",
            ),
            (
                "evecho --service upper --once",
                "Answer one message in upper case, then close: what textbook clients expect.",
            ),
        ],
        see_also: &["nc(1)", "socat(1)", "systemd.service(5)", "tcp(7)", "udp(7)"],
    },
    Page {
        name: "evecho-check",
        examples: &[
            ("evecho check localhost:12000", "Grade a server that runs."),
            (
                "evecho check --start 'evecho --port {port}'",
                "Start a server on a free port, and grade it and its process.",
            ),
            ("evecho check --list", "List the rules, with their sources."),
        ],
        see_also: &["tcp(7)", "udp(7)"],
    },
    Page {
        name: "evecho-compare",
        examples: &[
            ("evecho compare", "Compare the three designs, in a minute."),
            (
                "evecho compare --peer socat='socat TCP-LISTEN:{port},fork PIPE' --output results",
                "Compare with another server, and write the figure, CSV and JSON.",
            ),
        ],
        see_also: &["socat(1)"],
    },
    Page {
        name: "evecho-completions",
        examples: &[
            ("evecho completions zsh > ~/.zfunc/_evecho", "For zsh, where ~/.zfunc is in $fpath."),
            (
                "evecho completions fish > ~/.config/fish/completions/evecho.fish",
                "For fish, from the next shell on.",
            ),
        ],
        see_also: &["bash(1)", "fish(1)", "zsh(1)"],
    },
    Page {
        name: "evecho-load",
        examples: &[
            ("evecho load localhost:12000", "50 connections, 64-byte messages, 10 seconds."),
            ("evecho load localhost:12000 --udp -d 4", "Datagrams, 4 in flight on each socket."),
            (
                "evecho load localhost:12000 --rate 20000",
                "20,000 messages a second; each latency starts when the message was due.",
            ),
            ("evecho load localhost:12000 -m churn", "Each message is a connection."),
            (
                "evecho load localhost:12000 --json > one.json",
                "A report that evecho-merge(1) can add up with others.",
            ),
        ],
        see_also: &[],
    },
    Page {
        name: "evecho-merge",
        examples: &[("evecho merge one.json two.json", "One report of two.")],
        see_also: &[],
    },
    Page {
        name: "evecho-ping",
        examples: &[
            ("evecho ping localhost:12000 -c 3", "Three pings over one TCP connection."),
            ("evecho ping localhost:12000 -c 1 -q --udp", "A health check over UDP."),
            (
                "evecho ping localhost:12000 -c 1 -w 60",
                "Wait until the server is up, for a minute at most.",
            ),
            (
                "evecho ping localhost:12000 -c 1000 -i 0 -q",
                "Each ping as soon as the one before is answered; print only the summary.",
            ),
        ],
        see_also: &["ping(8)"],
    },
    Page {
        name: "evecho-send",
        examples: &[
            ("evecho send localhost:12000 hello 'two words'", "Print the echo of each message."),
            (
                "evecho send localhost:12000 --raw < FILE | cmp - FILE",
                "Test that a file of any size comes back as it was.",
            ),
            ("evecho send --udp localhost:12000 hello", "Send a datagram."),
        ],
        see_also: &["nc(1)"],
    },
    Page {
        name: "evecho-states",
        examples: &[
            ("evecho states", "Show every scenario, each with a server of its own."),
            ("evecho states half-close --step", "Show one, and wait for Enter after each step."),
            (
                "evecho states backlog blocked --design threaded",
                "Show two, with the threaded server.",
            ),
            ("evecho states localhost:12000 open echo", "Use a server that runs."),
            (
                "evecho states --start 'socat TCP-LISTEN:{port},fork PIPE' half-close",
                "Start another server, and use that.",
            ),
        ],
        see_also: &["ss(8)", "tcp(7)", "sock_diag(7)"],
    },
];

/// What the server is, in paragraphs.
const DESCRIPTION: &str = "\
Serves TCP and UDP on one port, and sends back what it receives, until a signal ends it. One thread runs one event \
loop, and nothing in it blocks. Two classic designs are built in for comparison: a thread for each connection, and \
one client after the other.

The other commands are clients that test, measure and grade any echo server, of whatever make.

Sizes are in bytes: 4096, 64k, 1m. Times are in seconds, or have a unit: 0.2, 50us, 10s, 5m.";

const SIGNALS: [(&str, &str); 2] = [
    (
        "SIGTERM, SIGINT, SIGHUP",
        "Drain: accept no new clients, answer what was received, and let connected clients finish. In the last \
         quarter of --drain-timeout (at most 2 s) close the server's side of those that are left, then cut them off. A \
         second signal ends the server at once. On Linux, SIGHUP and SIGINT are ignored where they were ignored at \
         the start, as under nohup(1) and in the background of a script. Without a terminal SIGHUP ends nothing: the \
         server logs that settings are read at the start only, and that its log, on standard error, has no file to open \
         again.",
    ),
    ("SIGUSR1", "Log all counters and gauges in one line, with --quiet too."),
];

/// What the same signals do to the other commands.
const STOP: &str = "\
End the run: whatever it waits for, it reports what it has. A second signal ends it at once, with 128 and its number as \
the exit code. What the run has started ends in any case, with all of its descendants. SIGHUP is ignored where it was \
ignored at the start, as under nohup(1).";

const ENVIRONMENT: &str = "\
Each flag of the server can come from the environment. The command line wins, and an empty variable counts as not \
set. Flags without a value take 1, yes, on or true, and 0, no, off or false. Where several values are possible, \
commas separate them. A name that begins with EVECHO_ and is none of these is ignored, with a warning; so is what \
Kubernetes sets for a Service and Docker for a linked container. The other commands read no variables.";

const OTHER_VARIABLES: [(&str, &str); 4] = [
    ("RUST_LOG", "What to log, as in RUST_LOG=evecho=debug; overrides --verbose and --quiet."),
    (
        "JOURNAL_STREAM",
        "Where systemd sets it to the stream that standard error is, --log-format auto writes lines for \
         journald: see systemd.exec(5).",
    ),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC",
        "Where, and how often, the server reports to a service manager: see sd_notify(3).",
    ),
    (
        "LISTEN_FDS, LISTEN_PID",
        "Sockets that a service manager passes, which are served instead of those of --port and --bind: see \
         sd_listen_fds(3).",
    ),
];

const FILES: [(&str, &str); 1] = [(
    "/etc/default/evecho",
    "EVECHO_ variables of the service, where evecho was installed as a package.",
)];

/// The command as its page shows it, with the pages of its commands behind it.
fn commands() -> Vec<Command> {
    let mut evecho = Cli::command()
        .long_about(DESCRIPTION)
        .subcommand_help_heading("COMMANDS")
        .disable_help_subcommand(true);
    evecho.build();
    let others = evecho.get_subcommands().filter(|command| !command.is_hide_set());
    let others: Vec<Command> = others.cloned().collect();
    [evecho].into_iter().chain(others).collect()
}

fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// The text of a page.
fn page(command: Command) -> String {
    let written = PAGES.iter().find(|page| page.name == name(&command));
    let written = written.unwrap_or_else(|| panic!("{} has no examples", name(&command)));
    let mut text = start(&command);
    text += &flags(&command);
    text += &exit_status(&command);
    if command.has_subcommands() {
        text += &terms("SIGNALS", "", &SIGNALS);
        text += &environment(&command);
        text += &terms("FILES", "", &FILES);
    } else if name(&command) != "evecho-completions" {
        text += &terms("SIGNALS", "", &[(SIGNALS[0].0, STOP)]);
    }
    text += &examples(written);
    text += &see_also(written);
    // Each part has come with a preamble.
    let preamble = Roff::new().render();
    preamble.clone() + &text.replace(&preamble, "")
}

/// The page up to its name.
fn start(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let (first, rest) = about.split_at(1);
    let about = first.to_lowercase() + rest.trim_end_matches('.');
    // No date: it would be that of the last release at best.
    Roff::new()
        // No word is divided: a reader searches for it, or pastes it. HY is for versions of groff whose
        // macros switch hyphenation on again.
        .control("nr", ["HY", "0"])
        .control("TH", [name(command), "1", "\"\"", VERSION, "evecho"])
        .control("nh", [])
        .control("ad", ["l"])
        .control("SH", ["NAME"])
        .text([roman(format!("{} - {about}", name(command)))])
        .render()
}

/// What clap knows.
fn flags(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").expect("clap begins so").to_string();
    let man = Man::new(command.clone().override_usage(usage));
    let mut text = Vec::new();
    man.render_synopsis_section(&mut text).unwrap();
    man.render_description_section(&mut text).unwrap();
    man.render_options_section(&mut text).unwrap();
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text).unwrap();
    }
    String::from_utf8(text).unwrap()
}

/// The command's row in the reference, which another test tries.
fn exit_status(command: &Command) -> String {
    let start = format!("| `{}` |", name(command).replace('-', " "));
    let row = REFERENCE.lines().find_map(|line| line.strip_prefix(&start));
    let row = row.unwrap_or_else(|| panic!("the reference has no exit codes of {}", name(command)));
    let cells: Vec<String> =
        row.split('|').map(|cell| cell.trim().replace('`', "")).filter(|c| !c.is_empty()).collect();
    let codes: Vec<(&str, &str)> =
        ["0", "1", "2"].into_iter().zip(cells.iter().map(String::as_str)).collect();
    terms("EXIT STATUS", "", &codes)
}

fn environment(command: &Command) -> String {
    let flags = command.get_arguments().filter_map(|argument| {
        let (variable, flag) = (argument.get_env()?.to_str()?, argument.get_long()?);
        Some((variable, format!("--{flag}")))
    });
    let flags: Vec<(&str, String)> = flags.collect();
    let flags = flags.iter().map(|(variable, flag)| (*variable, flag.as_str()));
    terms("ENVIRONMENT", ENVIRONMENT, &flags.chain(OTHER_VARIABLES).collect::<Vec<_>>())
}

/// A section with a paragraph, and terms with what they mean.
fn terms(heading: &str, paragraph: &str, terms: &[(&str, &str)]) -> String {
    let mut section = Roff::new();
    section.control("SH", [heading]);
    if !paragraph.is_empty() {
        section.text([roman(paragraph)]);
    }
    for (term, meaning) in terms {
        section.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
    }
    section.render()
}

fn examples(page: &Page) -> String {
    let mut section = Roff::new();
    section.control("SH", ["EXAMPLES"]);
    for (line, meaning) in page.examples {
        section.control("PP", []).text([roman(*meaning)]);
        // Not filled, so that a line that is pasted is one line.
        section.control("PP", []).control("RS", ["4"]).control("nf", []).text([bold(*line)]);
        section.control("fi", []).control("RE", []);
    }
    section.render()
}

/// All other pages of ours, and those of others.
fn see_also(page: &Page) -> String {
    let ours = PAGES.iter().filter(|other| other.name != page.name);
    let ours = ours.map(|other| format!("{}(1)", other.name));
    let others = page.see_also.iter().map(ToString::to_string);
    let pages: Vec<String> = ours.chain(["evecho-protocol(7)".to_string()]).chain(others).collect();
    Roff::new().control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]).render()
}

#[test]
fn the_pages_in_man_are_of_today() {
    for command in commands() {
        let path = format!("{}/man/{}.1", env!("CARGO_MANIFEST_DIR"), name(&command));
        assert_data_eq!(page(command), Data::read_from(path.as_ref(), None).raw());
    }
}

#[test]
fn no_page_has_what_the_help_hides() {
    for command in commands() {
        let name = name(&command).to_string();
        let page = page(command);
        assert!(!page.contains("supervise") && !page.contains(r"evecho\-serve"), "{name}");
    }
}

#[test]
fn the_examples_are_command_lines() {
    for (line, _) in PAGES.iter().flat_map(|page| page.examples) {
        let words = shlex::split(line).unwrap();
        let ours = words.iter().take_while(|word| !["|", "<", ">"].contains(&word.as_str()));
        if let Err(error) = Cli::command().try_get_matches_from(ours) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn the_page_written_by_hand_has_all_framings_and_services() {
    let page = include_str!("../../../man/evecho-protocol.7");
    let server = Cli::command();
    let argument = |long: &str| server.get_arguments().find(|arg| arg.get_long() == Some(long));
    for flag in ["framing", "service"] {
        for value in argument(flag).unwrap().get_possible_values() {
            let heading = format!(".B \\-\\-{flag} {}\n", value.get_name());
            assert!(page.contains(&heading), "{heading}");
        }
    }
    for named in page.split(r"\-\-").skip(1) {
        let end = named.find([' ', '"', '\n']).unwrap();
        let flag = named[..end].replace(r"\-", "-");
        assert!(argument(&flag).is_some(), "the page names --{flag}");
    }
}

/// A page as it is on a terminal of this width; nothing where groff is not installed.
fn rendered(path: &Path, width: usize) -> Option<String> {
    let mut groff = std::process::Command::new("groff");
    let output = groff.args(["-man", "-Tutf8", "-P-cbou"]).arg(format!("-rLL={width}n")).arg(path);
    let output = output.output().ok()?;
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{}", path.display());
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn what_is_searched_and_pasted_is_never_divided() {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/man")).unwrap();
    for path in folder.map(|entry| entry.unwrap().path()) {
        let Some(wide) = rendered(&path, 1000) else {
            return println!("skipped: groff is not installed");
        };
        let words: HashSet<&str> = wide.split_whitespace().collect();
        for width in [56, 60, 66, 72, 78, 90, 100, 120] {
            let narrow = rendered(&path, width).unwrap();
            let words = narrow.split_whitespace().filter(|word| !words.contains(word));
            assert_eq!(words.collect::<Vec<_>>(), [""; 0], "{} at {width}", path.display());
            let name = path.file_stem().unwrap();
            let page = PAGES.iter().find(|page| name == page.name);
            for (line, _) in page.into_iter().flat_map(|page| page.examples) {
                let found = narrow.lines().any(|one| one.trim() == *line);
                assert!(found, "{line} in {} at {width}", path.display());
            }
        }
    }
}
