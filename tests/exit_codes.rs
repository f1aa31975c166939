//! The table of exit codes in the README: each cell of it is tried.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/tool.rs"]
mod tool;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tool::{Outcome, Server, evecho, finish, refused_port, run, tcp_session, udp_double};

const README: &str = include_str!("../README.md");

/// The cells of the table: what each command says of each exit code.
fn table() -> BTreeMap<(&'static str, i32), &'static str> {
    let section = README.split("## Exit codes").nth(1).expect("the README has this section");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `evecho"));
    rows.flat_map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "a command and three exit codes: {row}");
        (0..3).map(move |code| ((cells[0].trim_matches('`'), code), cells[code as usize + 1]))
    })
    .collect()
}

/// What was tried for a cell, in words, and what came of it.
type Trials = Vec<(&'static str, Outcome)>;

/// Tries each cell: the row, the exit code, what the README says, and the trials.
fn trials() -> Vec<(&'static str, i32, &'static str, Trials)> {
    const USAGE: &str = "wrong usage";
    let echo = Server::evecho(&[]);
    let address = echo.address.as_str();
    let (_refusing, refused) = refused_port();
    let silent = udp_double(|_, _, _, _| ());
    let run = |args: &[&str]| run(args, b"");
    vec![
        ("evecho", 0, "ended by a signal, or drained", vec![("SIGTERM", serve_until_sigterm())]),
        ("evecho", 1, "could not start, or failed while running", vec![("taken", taken_port())]),
        ("evecho", 2, USAGE, vec![("a port too high", run(&["--port", "65536"]))]),
        (
            "evecho send",
            0,
            "every message came back",
            vec![
                ("over TCP", run(&["send", address, "hello", "two words"])),
                ("over UDP", run(&["send", "-u", address, "hello", "two words"])),
            ],
        ),
        (
            "evecho send",
            1,
            "something did not",
            vec![
                ("refused", run(&["send", &refused, "hello"])),
                ("lost", run(&["send", "-u", "-t", "0.05", &silent, "hello"])),
                ("closed", {
                    let (closing, _) = tcp_session(drop);
                    run(&["send", &closing, "hello"])
                }),
                ("answered once", {
                    let once = Server::evecho(&["--once"]);
                    run(&["send", &once.address, "hello", "two words"])
                }),
            ],
        ),
        ("evecho send", 2, USAGE, vec![("no target", run(&["send"]))]),
        (
            "evecho ping",
            0,
            "at least one ping was answered, whole and in time",
            vec![
                ("over TCP", run(&["ping", address, "-c", "2", "-i", "0"])),
                ("over UDP", run(&["ping", "-u", address, "-c", "2", "-i", "0"])),
            ],
        ),
        (
            "evecho ping",
            1,
            "none was; with `-c` and `-w`, fewer than `-c` were",
            vec![
                ("refused", run(&["ping", &refused, "-c", "1"])),
                ("refused over UDP", run(&["ping", "-u", &refused, "-c", "1"])),
                ("lost", run(&["ping", "-u", &silent, "-c", "1", "-W", "0.05"])),
                ("no such name", run(&["ping", "nobody.invalid", "-c", "1"])),
                ("not in upper case", run(&["ping", address, "--upper", "-c", "1"])),
                ("fewer than asked for", run(&["ping", address, "-c", "1000", "-w", "0.05"])),
            ],
        ),
        (
            "evecho ping",
            2,
            "wrong usage, or a failure of this machine",
            vec![
                ("two families", run(&["ping", address, "-4", "-6"])),
                ("a full disk", onto_a_full_disk(&["ping", address, "-c", "1"])),
            ],
        ),
        (
            "evecho load",
            0,
            "everything came back, and nothing was wrong",
            vec![("over TCP", run(&["load", address, "-n", "100", "-c", "2"]))],
        ),
        (
            "evecho load",
            1,
            "nothing came back, or anything was wrong",
            vec![
                ("refused", run(&["load", &refused, "-n", "1", "-c", "1"])),
                ("lost", run(&["load", "-u", &silent, "-n", "1", "-c", "1", "--timeout", "0.05"])),
            ],
        ),
        ("evecho load", 2, USAGE, vec![("no bytes", run(&["load", address, "-s", "0"]))]),
        (
            "evecho merge",
            0,
            "everything came back, and nothing was wrong, in each of the reports",
            vec![("twice the same", merge(&run(&["load", address, "-n", "100", "--json"])))],
        ),
        (
            "evecho merge",
            1,
            "nothing came back, or anything was wrong, in any of the reports; or one cannot be read",
            vec![
                ("a bad run", merge(&run(&["load", &refused, "-n", "1", "-c", "1", "--json"]))),
                ("no file", run(&["merge", "/no/such/file"])),
            ],
        ),
        ("evecho merge", 2, USAGE, vec![("no file named", run(&["merge"]))]),
        (
            "evecho check",
            0,
            "no case failed",
            vec![
                ("one case", run(&["check", address, "--only", "tcp-half-close"])),
                ("a list", run(&["check", "--list"])),
            ],
        ),
        (
            "evecho check",
            1,
            "a case failed, or nothing could be graded",
            vec![
                ("another service", run(&["check", address, "--upper", "--only", "upper"])),
                ("nobody there", run(&["check", &refused, "--only", "tcp-half-close"])),
                ("no UDP", {
                    let tcp = Server::evecho(&["--tcp-only"]);
                    run(&["check", &tcp.address, "--only", "udp", "--timeout", "1"])
                }),
            ],
        ),
        ("evecho check", 2, USAGE, vec![("no such case", run(&["check", "--only", "cake", "a"]))]),
        ("evecho compare", 0, "every server was measured", vec![("small", compare(&[]))]),
        (
            "evecho compare",
            1,
            "it could not start, was stopped, a server was never measured, or the results could not be written",
            vec![
                ("no directory", compare(&["--output", "/dev/null/results"])),
                ("a server that never starts", compare(&["--peer", "bad=false {port}"])),
            ],
        ),
        ("evecho compare", 2, USAGE, vec![("no connections", run(&["compare", "-c", "0"]))]),
        (
            "evecho states",
            0,
            "something was shown, and nothing failed",
            vec![
                ("one scenario", run(&["states", "open"])),
                ("one of two", run(&["states", address, "server-closes", "open"])),
                ("a list", run(&["states", "--list"])),
            ],
        ),
        (
            "evecho states",
            1,
            "a scenario failed, nothing could be shown, or it was stopped",
            vec![
                ("nobody there", run(&["states", &refused, "open"])),
                ("stopped", states_until_sigint()),
                ("a server that does not close", run(&["states", address, "server-closes"])),
                ("a server that is mute", {
                    let (mute, _) = tool::tcp_double(drop_each);
                    run(&["states", &mute, "echo", "--timeout", "500ms"])
                }),
            ],
        ),
        ("evecho states", 2, USAGE, vec![("no such scenario", run(&["states", "cake"]))]),
        (
            "evecho completions",
            0,
            "the completions were printed",
            vec![("for bash", run(&["completions", "bash"]))],
        ),
        (
            "evecho completions",
            1,
            "they could not be written",
            vec![("a full disk", onto_a_full_disk(&["completions", "bash"]))],
        ),
        ("evecho completions", 2, USAGE, vec![("no such shell", run(&["completions", "cmd"]))]),
    ]
}

fn serve_until_sigterm() -> Outcome {
    let mut child = tool::spawn(evecho(&["--port", "0", "--bind", "127.0.0.1"]));
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on ") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it does not listen");
    }
    kill(pid, Signal::SIGTERM).unwrap();
    let rest = thread::spawn(move || io::read_to_string(log));
    let outcome = finish(child);
    rest.join().unwrap().unwrap();
    outcome
}

/// Runs a command that cannot write to its standard output.
fn onto_a_full_disk(args: &[&str]) -> Outcome {
    let mut command = evecho(args);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    command.stderr(Stdio::piped());
    finish(command.spawn().unwrap())
}

fn states_until_sigint() -> Outcome {
    let mut child = tool::spawn(evecho(&["states", "open", "--step"]));
    let mut stderr = child.stderr.take().unwrap();
    // It waits for Enter after the first step.
    stderr.read_exact(&mut [0; "Enter".len()]).unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    drop(child.stdin.take());
    finish(child)
}

/// Accepts clients, and closes at once.
fn drop_each(listener: TcpListener) {
    while listener.accept().is_ok() {}
}

fn taken_port() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    run(&["--bind", "127.0.0.1", "--port", &port], b"")
}

/// Adds a report to itself, as two runs would have written it.
fn merge(report: &Outcome) -> Outcome {
    run(&["merge", "-"], &[&report.stdout[..], &report.stdout].concat())
}

fn compare(flags: &[&str]) -> Outcome {
    let small = ["compare", "--rounds", "1", "-t", "10ms", "-c", "1", "--no-scenes"];
    run(&[&small, flags].concat(), b"")
}

#[test]
fn each_cell_of_the_table_is_so() {
    let mut table = table();
    for (command, code, cell, trials) in trials() {
        assert_eq!(table.remove(&(command, code)), Some(cell), "{command}, exit code {code}");
        for (name, outcome) in trials {
            assert_eq!(outcome.code, Some(code), "{command}, {name}: {outcome:?}");
            let silent = outcome.stdout.is_empty() && outcome.stderr.is_empty();
            assert!(code == 0 || !silent, "{command}, {name}: not a word about it");
        }
    }
    assert!(table.is_empty(), "these were not tried: {table:?}");
}

#[test]
fn help_and_version_are_no_failure() {
    for args in [&["--help"][..], &["-V"], &["help"], &["help", "ping"], &["ping", "-h"]] {
        assert_eq!(run(args, b"").code, Some(0), "{args:?}");
    }
}
