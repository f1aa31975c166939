//! The table of exit codes in the reference: each cell of it is tried.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::tool::{
    self, Outcome, Server, evecho, finish, refused_port, run, tcp_session, udp_double,
};

const REFERENCE: &str = include_str!("../../docs/reference.md");

/// The cells of the table: what each command says of each exit code.
fn table() -> BTreeMap<(&'static str, i32), &'static str> {
    let section =
        REFERENCE.split("\n## Exit codes\n").nth(1).expect("the reference has this section");
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

/// Tries each cell: the row, the exit code, what the table says, and the trials.
fn trials() -> Vec<(&'static str, i32, &'static str, Trials)> {
    const USAGE: &str = "wrong usage";
    let echo = Server::evecho(&[]);
    let address = echo.address.as_str();
    let (_refusing, refused) = refused_port();
    let silent = udp_double(|_, _, _, _| ());
    let run = |args: &[&str]| run(args, b"");
    let good = || run(&["load", address, "-n", "100", "--json"]);
    vec![
        (
            "evecho",
            0,
            "ended by a signal, or drained; with `--check-config`, the configuration is valid",
            vec![("SIGTERM", serve_until_sigterm()), ("valid", run(&["--check-config"]))],
        ),
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
            "something did not, or it was stopped",
            vec![
                ("refused", run(&["send", &refused, "hello"])),
                ("lost", run(&["send", "-u", "-t", "0.05", &silent, "hello"])),
                ("closed", {
                    let (closing, _) = tcp_session(drop);
                    run(&["send", &closing, "hello"])
                }),
                ("stopped", send_until_sigint(address)),
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
            "nothing came back, or anything was wrong, or no local port was left for a connection",
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
            vec![("two", merge(&[&good(), &good()]))],
        ),
        (
            "evecho merge",
            1,
            "nothing came back, or anything was wrong, in any of the reports; or one cannot be read, or is there twice",
            vec![
                ("a bad run", merge(&[&run(&["load", &refused, "-n", "1", "-c", "1", "--json"])])),
                ("twice the same", {
                    let one = good();
                    merge(&[&one, &one])
                }),
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

fn send_until_sigint(address: &str) -> Outcome {
    let mut child = tool::spawn(evecho(&["send", address, "--raw"]));
    child.stdin.as_mut().unwrap().write_all(b"hello").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    finish(child)
}

fn states_until_sigint() -> Outcome {
    let mut child = tool::spawn(evecho(&["states", "open", "--step"]));
    let mut stderr = child.stderr.take().unwrap();
    // It waits for Enter after the first step.
    stderr.read_exact(&mut [0; "Enter".len()]).unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
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

fn merge(reports: &[&Outcome]) -> Outcome {
    let reports: Vec<&[u8]> = reports.iter().map(|report| &report.stdout[..]).collect();
    run(&["merge", "-"], &reports.concat())
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

/// The arguments of strace that refuse a process its threads, and its children, from the nth on.
fn refusing(nth: u32) -> [String; 7] {
    let inject = format!("inject=clone,clone3:error=EAGAIN:when={nth}+");
    ["-fqq", "-o", "/dev/null", "-e", "trace=clone,clone3", "-e", &inject].map(str::to_owned)
}

#[test]
fn a_thread_that_is_refused_is_one_sentence() {
    let possible = Command::new("strace").args(refusing(1)).arg("true").output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped, since it needs strace: {possible:?}");
        return;
    }
    let echo = Server::evecho(&[]);
    let address = echo.address.as_str();
    let by_name = format!("localhost:{}", address.rsplit(':').next().unwrap());
    let server = format!("{} --port {{port}}", env!("CARGO_BIN_EXE_evecho"));
    let serve = ["--port", "0", "--bind", "127.0.0.1", "--design"];
    let thread = "cannot start a thread ";
    let resolve = "cannot start a thread to resolve 'localhost': ";
    let cases: [(u32, &[&str], &str); 14] = [
        (1, &["send", &by_name, "hello"], resolve),
        (1, &["ping", "-c", "1", &by_name], resolve),
        (1, &["load", "-t", "0.1", &by_name], resolve),
        (1, &["load", "-t", "0.1", "--threads", "2", address], thread),
        (2, &["load", "-t", "0.1", "--threads", "4", "-c", "4", address], thread),
        (1, &["check", &by_name], resolve),
        (1, &["check", "--only", "tcp-fair", address], thread),
        (2, &["check", "--only", "tcp-fair", address], thread),
        (2, &["check", "--only", "tcp-sizes", "--start", &server], "cannot start '"),
        (2, &["states", "--start", &server], "cannot start '"),
        (1, &[&serve[..], &["threaded"]].concat(), "no thread can be started: "),
        (2, &[&serve[..], &["threaded"]].concat(), "no thread can be started: "),
        (1, &[&serve[..], &["iterative"]].concat(), "no thread can be started: "),
        (2, &[&serve[..], &["iterative"]].concat(), "no thread can be started: "),
    ];
    for (nth, args, says) in cases {
        let mut command = Command::new("strace");
        command.args(refusing(nth)).arg(env!("CARGO_BIN_EXE_evecho")).args(args);
        let outcome = finish(tool::spawn(command));
        let said = outcome.stderr.trim_end();
        assert_eq!(outcome.code, Some(1), "{nth}, {args:?}: {outcome:?}");
        assert!(said.contains(says) && said.contains("os error 11"), "{nth}, {args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{nth}, {args:?}: {said}");
    }
}

/// How a command ends for which a shell has prepared something.
fn prepared(preparation: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("{preparation}; exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_evecho")]).args(args);
    command
}

#[test]
fn ends_of_children_are_heard_of_where_the_parent_process_ignored_them() {
    let server = format!("{} --port {{port}}", env!("CARGO_BIN_EXE_evecho"));
    for args in [
        &["check", "--only", "process-sigterm", "--start", &server][..],
        &["compare", "--design", "event-loop", "-t", "0.1", "-c", "1", "-r", "1", "--no-scenes"],
    ] {
        let outcome = finish(tool::spawn(prepared("trap '' CHLD", args)));
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    }
}

#[test]
fn a_file_that_may_not_grow_is_an_error() {
    let echo = Server::evecho(&[]);
    let mut command = prepared("ulimit -f 1", &["ping", "-i", "0", &echo.address]);
    let path = format!("{}/limited.txt", env!("CARGO_TARGET_TMPDIR"));
    command.stdin(Stdio::null()).stdout(File::create(path).unwrap()).stderr(Stdio::piped());
    let outcome = finish(command.spawn().unwrap());
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("standard output: File too large"), "{outcome:?}");
}

#[test]
fn standard_output_may_be_non_blocking() {
    let echo = Server::evecho(&[]);
    let (mut reader, writer) = io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut command = evecho(&["ping", "-c", "3000", "-i", "0", &echo.address]);
    command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    let is_full = || {
        let mut ready = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
        poll(&mut ready, PollTimeout::ZERO).unwrap() == 0
    };
    while !is_full() {
        thread::sleep(Duration::from_millis(1));
    }
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(text.matches("bytes from").count(), 3000);
    assert!(text.lines().last().unwrap().contains("p50/p90/p99"), "{text}");
}
