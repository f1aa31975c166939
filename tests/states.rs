//! `evecho states`: every scenario, against every design and against servers of others.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/tool.rs"]
mod tool;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;
use snapbox::{Data, assert_data_eq};
use tool::{Outcome, Server, assert_wrong_usage, evecho, finish, refused_port, run, spawn};

const SCENARIOS: [&str; 8] =
    ["open", "echo", "half-close", "server-closes", "reset", "backlog", "blocked", "window"];

fn states(arguments: &[&str]) -> Outcome {
    // What a busy machine takes longer for has to come all the same.
    run(&[&["states", "--timeout", "30s"], arguments].concat(), b"")
}

/// Shows scenarios, and asserts how each of them ended.
#[track_caller]
fn assert_outcomes(arguments: &[&str], expected: &[(&str, &str)]) {
    let outcome = states(&[arguments, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {outcome:?}"));
    let scenarios = report["scenarios"].as_array().unwrap();
    let outcomes: Vec<(&str, &str)> = scenarios
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(outcomes, expected, "{arguments:?}: {}", outcome.text());
    let count = |is: &str| expected.iter().filter(|(_, outcome)| *outcome == is).count();
    assert_eq!(report["shown"], count("shown"));
    assert_eq!(report["not_shown"], count("not shown"));
    assert_eq!(outcome.code, Some(i32::from(count("shown") == 0)), "{outcome:?}");
}

const ALL_SHOWN: [(&str, &str); 8] = [
    ("open", "shown"),
    ("echo", "shown"),
    ("half-close", "shown"),
    ("server-closes", "shown"),
    ("reset", "shown"),
    ("backlog", "shown"),
    ("blocked", "shown"),
    ("window", "shown"),
];

/// What a server shows that serves for as long as the client wants.
const LASTING: [(&str, &str); 8] = [
    ("open", "shown"),
    ("echo", "shown"),
    ("half-close", "shown"),
    ("server-closes", "not shown"),
    ("reset", "shown"),
    ("backlog", "not shown"),
    ("blocked", "shown"),
    ("window", "shown"),
];

// ---- servers

#[test]
fn the_event_loop_shows_everything() {
    assert_outcomes(&["--design", "event-loop"], &ALL_SHOWN);
}

#[test]
fn the_threaded_server_shows_everything() {
    assert_outcomes(&["--design", "threaded"], &ALL_SHOWN);
}

#[test]
fn the_iterative_server_shows_everything() {
    assert_outcomes(&["--design", "iterative"], &ALL_SHOWN);
}

#[test]
fn it_is_the_same_over_ipv6() {
    assert_outcomes(&["-6"], &ALL_SHOWN);
}

#[test]
fn framings_show_messages() {
    for framing in ["lines", "length"] {
        assert_outcomes(&["echo", "--framing", framing], &[("echo", "shown")]);
    }
    // As it is most easily written.
    assert_outcomes(&["echo", "--framing"], &[("echo", "shown")]);
}

#[test]
fn a_server_that_runs_shows_what_it_is_made_for() {
    let server = Server::evecho(&[]);
    assert_outcomes(&[&server.address], &LASTING);
    let raw = ("echo", "not shown");
    assert_outcomes(&[&server.address, "echo", "--framing", "lines"], &[raw]);
    let once = Server::evecho(&["--once"]);
    assert_outcomes(&[&once.address, "server-closes"], &[("server-closes", "shown")]);
    let lines = Server::evecho(&["--framing", "lines"]);
    assert_outcomes(
        &[&lines.address, "--framing", "lines", "open", "echo", "window"],
        &[("open", "shown"), ("echo", "shown"), ("window", "not shown")],
    );
    let one = Server::evecho(&["--design", "iterative", "--backlog", "2"]);
    assert_outcomes(
        &[&one.address, "backlog", "blocked"],
        &[("backlog", "shown"), ("blocked", "shown")],
    );
}

#[test]
fn a_listener_for_both_families_has_ends_of_both() {
    let server = Server::evecho(&["--bind", "::"]);
    let port = server.address.trim_end_matches(',').rsplit(':').next().unwrap();
    for host in ["127.0.0.1", "[::1]"] {
        let address = format!("{host}:{port}");
        assert_outcomes(
            &[&address, "open", "half-close", "reset"],
            &[("open", "shown"), ("half-close", "shown"), ("reset", "shown")],
        );
    }
}

const SOCAT: &str = "TCP-LISTEN:0,bind=127.0.0.1,fork,reuseaddr";

/// With a pipe socat talks to itself: when that is full, it may wait in write(2) for ever, and nobody
/// reads. So it is not filled here.
#[test]
fn socat_with_a_pipe_shows_what_it_is_made_for() {
    let Some(server) = Server::socat(SOCAT, "PIPE") else { return };
    let mut expected = LASTING.to_vec();
    expected.retain(|(name, _)| !["half-close", "window"].contains(name));
    let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    assert_outcomes(&[&[server.address.as_str()], &names[..]].concat(), &expected);
}

#[test]
fn socat_with_a_program_shows_what_it_is_made_for() {
    let Some(server) = Server::socat(SOCAT, "EXEC:cat") else { return };
    assert_outcomes(&[&server.address], &LASTING);
}

/// A server as textbooks have it; `serve` says what it does with a client.
fn python(serve: &str) -> String {
    format!(
        "import socket, sys, threading\n\
         s = socket.socket()\n\
         s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
         s.bind(('127.0.0.1', int(sys.argv[1]) if len(sys.argv) > 1 else 0))\n\
         s.listen(1)\n\
         print('listening on %s:%d' % s.getsockname(), file=sys.stderr)\n\
         def echo(c):\n\
         \x20   try:\n\
         \x20       while data := c.recv(4096): c.sendall(data)\n\
         \x20   except ConnectionError: pass\n\
         \x20   c.close()\n\
         while True:\n\
         \x20   c, _ = s.accept()\n\
         \x20   {serve}\n"
    )
}

#[test]
fn a_server_in_python_shows_what_it_is_made_for() {
    let Some(iterative) = Server::python(&python("echo(c)")) else { return };
    let mut expected = ALL_SHOWN;
    expected[3].1 = "not shown";
    assert_outcomes(&[&iterative.address], &expected);
    let threads = python("threading.Thread(target=echo, args=(c,)).start()");
    let Some(threads) = Server::python(&threads) else { return };
    assert_outcomes(&[&threads.address], &LASTING);
    let Some(once) = Server::python(&python("c.sendall(c.recv(4096)); c.close()")) else { return };
    assert_outcomes(&[&once.address, "server-closes"], &[("server-closes", "shown")]);
}

#[test]
fn a_command_is_started_for_each_scenario() {
    let binary = env!("CARGO_BIN_EXE_evecho");
    let command = format!("{binary} --port {{port}} --bind :: --once");
    assert_outcomes(&["--start", &command, "server-closes"], &[("server-closes", "shown")]);
}

#[test]
fn a_server_that_does_not_echo_fails() {
    let Some(mute) = Server::python(&python("c.recv(4096); c.sendall(b'HELLO')")) else { return };
    let outcome = states(&[&mute.address, "backlog"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let text = outcome.text();
    assert!(text.contains("backlog: FAILED\n  expected: the answer is 'hello'\n"), "{text}");
}

// ---- the text

/// Numbers that differ from run to run, made neutral: ports, and the bytes in full queues.
fn neutral(text: &str) -> String {
    let mut neutral = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(|next: char| next.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let length = from.find(|next: char| !next.is_ascii_digit()).unwrap_or(from.len());
        let (number, after) = from.split_at(length);
        neutral += before;
        match length {
            // Those of an RFC are constant.
            4.. if !neutral.ends_with("RFC ") => {
                // Ports have five digits, and numbers in columns end where they did.
                neutral += &match () {
                    () if neutral.ends_with(':') => "#".repeat(length),
                    () if neutral.ends_with("for ") => "#".to_owned(),
                    () => format!("{:>length$}", '#'),
                };
            }
            _ => neutral += number,
        }
        rest = after;
    }
    neutral + rest
}

#[test]
fn the_text_is_what_it_was() {
    for scenario in SCENARIOS {
        let outcome = states(&[scenario]);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let path = format!("{}/tests/states/{scenario}.txt", env!("CARGO_MANIFEST_DIR"));
        // Some bytes may still be on the way when the window of the server closes.
        let unsure = "1 ESTABLISHED, window 0";
        let text = outcome.text().replace(unsure, "1 ESTABLISHED          ");
        assert_data_eq!(neutral(&text), Data::read_from(path.as_ref(), None).raw());
        assert!(outcome.text().lines().all(|line| line.chars().count() <= 100));
    }
    for framing in ["lines", "length"] {
        let outcome = states(&["echo", "--framing", framing]);
        let path = format!("{}/tests/states/echo-{framing}.txt", env!("CARGO_MANIFEST_DIR"));
        assert_data_eq!(neutral(outcome.text()), Data::read_from(path.as_ref(), None).raw());
    }
}

#[test]
fn the_scenarios_are_listed() {
    let outcome = states(&["--list"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let names: Vec<_> =
        outcome.text().lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, SCENARIOS);
}

#[test]
fn it_waits_for_enter_after_each_step() {
    let mut child = spawn(evecho(&["states", "open", "--step"]));
    let mut stdin = child.stdin.take().unwrap();
    let mut text = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    for step in 1..=4 {
        // The next step is not there yet: what is read up to here is all.
        let number = format!("{step}. ");
        assert!(text.any(|line| line.starts_with(&number)), "no step {step}");
        stdin.write_all(b"\n").unwrap();
    }
    assert!(text.any(|line| line == "open: shown"));
    drop(stdin);
    assert_eq!(finish(child).code, Some(0));
}

// ---- what is wrong

#[test]
fn wrong_usage_is_told() {
    for arguments in [
        &["states", "half-closed"][..],
        &["states", "open", "localhost:7"],
        &["states", "localhost:7", "localhost:7"],
        &["states", "localhost:7", "--start", "server {port}"],
        &["states", "localhost:7", "--design", "threaded"],
        &["states", "--start", "server {port}", "--design", "threaded"],
        &["states", "--start", "server"],
        &["states", "--json", "--step"],
        &["states", "--timeout", "0"],
        &["states", "--framing", "cake"],
    ] {
        assert_wrong_usage(arguments);
    }
    let outcome = states(&["half-closed"]);
    assert!(
        outcome.stderr.contains("half-closed") && outcome.stderr.contains("--list"),
        "{outcome:?}"
    );
}

/// Becomes a program whose sockets of netlink are refused, as a container's may be.
const SANDBOX: &str = r#"
import ctypes, os, platform, struct, sys
socket, arch = {"x86_64": (41, 0xC000003E), "aarch64": (198, 0xC00000B7)}[platform.machine()]
program = [
    (0x20, 0, 0, 4), (0x15, 0, 5, arch),  # another architecture is let through
    (0x20, 0, 0, 0), (0x15, 0, 3, socket),
    (0x20, 0, 0, 16), (0x15, 0, 1, 16),   # AF_NETLINK
    (0x06, 0, 0, 0x00050001),             # EPERM
    (0x06, 0, 0, 0x7FFF0000),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0    # no new privileges
seccomp = Filter(len(program), ctypes.addressof(code))
assert libc.prctl(22, 2, ctypes.byref(seccomp), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_kernel_that_may_not_be_asked_is_told() {
    let mut sandbox = Command::new("python3");
    sandbox.args(["-c", SANDBOX, env!("CARGO_BIN_EXE_evecho"), "states", "open"]);
    let Ok(child) = sandbox.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
        println!("not tested: python3 cannot be started");
        return;
    };
    let outcome = finish(child);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    let sentence = "evecho: the kernel does not show its sockets (sock_diag: ";
    assert!(outcome.stderr.starts_with(sentence), "{outcome:?}");
}

#[test]
fn nobody_there_is_told() {
    let (_socket, refused) = refused_port();
    let outcome = states(&[&refused, "open"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("refused the connection"), "{outcome:?}");
    let outcome = states(&["--start", "false {port}", "open"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("ended before it listened"), "{outcome:?}");
}
