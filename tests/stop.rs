//! One way to stop: whatever a command does or waits for, SIGINT, SIGTERM and SIGHUP end it with the
//! report of what it had, and whatever ends it, nothing that it has started is left.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/tool.rs"]
mod tool;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use common::{children, lives, wait_until};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tool::{Server, catches, dead_host, evecho, finish, with_default_signals};

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// New namespaces, in which a command is process 1: no signal ends it by default.
const AS_PROCESS_1: [&str; 6] =
    ["--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child"];

/// A command that never listens. One of its children leaves its process group, one its session.
const NEVER: &str = "bash -c 'set -m; sleep 1000 & setsid sleep 1001 & wait; : {port}'";

/// How a command is stopped, and what comes of it.
struct Case {
    args: Vec<String>,
    input: Input,
    /// What shows that it is where it is to be stopped.
    there: There,
    code: i32,
    /// What it says of what it had, on standard output or standard error.
    says: &'static str,
}

#[derive(Clone)]
enum Input {
    /// A pipe that stays open, with this in it.
    Pipe(&'static str),
    /// A terminal on which nothing is typed.
    Terminal,
}

#[derive(Clone)]
enum There {
    /// It has printed this, on standard output or standard error.
    Prints(&'static str),
    Tells(&'static str),
    /// It takes the signal: so it does before it waits.
    Catches,
    /// It connects to this port.
    Connects(u16),
    /// It has this many processes below it with this name.
    Runs(&'static str, usize),
}

fn case(args: &[&str], there: There, code: i32, says: &'static str) -> Case {
    let args = args.iter().map(|&word| word.to_owned()).collect();
    Case { args, input: Input::Pipe(""), there, code, says }
}

impl Case {
    fn with_input(self, input: Input) -> Case {
        Case { input, ..self }
    }
}

/// A command that runs, at the place where it is to be stopped.
struct Running {
    /// What was started: the command, or what made it process 1.
    child: Child,
    pid: u32,
    _input: (Option<ChildStdin>, Option<OwnedFd>),
    /// What it said so far.
    said: String,
}

impl Running {
    fn start(case: &Case, signal: Signal, as_process_1: bool) -> Running {
        let args: Vec<&str> = case.args.iter().map(String::as_str).collect();
        let mut command = with_default_signals(evecho(&args));
        if as_process_1 {
            let inner = command;
            command = Command::new("unshare");
            command.args(AS_PROCESS_1).arg(inner.get_program()).args(inner.get_args());
        }
        let mut terminal = None;
        match case.input {
            Input::Pipe(_) => command.stdin(Stdio::piped()),
            Input::Terminal => {
                let pair = openpty(None, None).unwrap();
                terminal = Some(pair.master);
                command.stdin(pair.slave)
            }
        };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take();
        if let (Input::Pipe(text), Some(input)) = (&case.input, &mut input) {
            input.write_all(text.as_bytes()).unwrap();
        }
        let pid = match as_process_1 {
            false => child.id(),
            true => {
                wait_until("process 1 runs", || !children(child.id()).is_empty());
                children(child.id())[0]
            }
        };
        let said = String::new();
        let mut running = Running { child, pid, _input: (input, terminal), said };
        wait_until("it catches the signal", || catches(pid, signal));
        running.wait_to_be(&case.there);
        running
    }

    fn wait_to_be(&mut self, there: &There) {
        let pid = self.pid;
        match there {
            There::Catches => {}
            There::Prints(words) => {
                self.said = read_up_to(self.child.stdout.as_mut().unwrap(), words);
            }
            There::Tells(words) => {
                self.said = read_up_to(self.child.stderr.as_mut().unwrap(), words);
            }
            There::Connects(port) => {
                wait_until("it connects", || connects(pid, *port));
            }
            There::Runs(name, count) => wait_until("it runs what it starts", || {
                descendants(pid).iter().filter(|&&pid| comm(pid) == *name).count() >= *count
            }),
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid.cast_signed()), signal).unwrap();
    }
}

/// Reads until these words have come; all that came.
fn read_up_to(mut from: impl Read, words: &str) -> String {
    let mut said = Vec::new();
    while !said.ends_with(words.as_bytes()) {
        let mut byte = [0];
        assert_eq!(from.read(&mut byte).unwrap(), 1, "it never said '{words}'");
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

/// Whether a connection to the port is begun and not answered (SYN_SENT, proc_net(5)).
fn connects(pid: u32, port: u16) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let end = format!(":{port:04X} 02");
    table.lines().any(|line| line.contains(&end))
}

fn comm(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Every process below this one.
fn descendants(pid: u32) -> Vec<u32> {
    let children = children(pid);
    children.iter().flat_map(|&child| descendants(child)).chain(children.clone()).collect()
}

/// Whether this machine lets a command be process 1; says why not.
fn can_be_process_1() -> bool {
    let output = Command::new("unshare").args(AS_PROCESS_1).arg("true").output();
    match output {
        Ok(output) if output.status.success() => return true,
        Ok(output) => println!("not as process 1: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => println!("not as process 1: {error}"),
    }
    false
}

/// Stops each case by each signal, as any process and as process 1.
fn stop_each(cases: &[Case]) {
    let ways = if can_be_process_1() { &[false, true][..] } else { &[false] };
    thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || {
                for signal in SIGNALS {
                    ways.iter().for_each(|&way| stop(case, signal, way));
                }
            });
        }
    });
}

fn stop(case: &Case, signal: Signal, as_process_1: bool) {
    let what = format!("{:?}, {signal}, as process 1: {as_process_1}", case.args);
    let running = Running::start(case, signal, as_process_1);
    let started = descendants(running.pid);
    running.signal(signal);
    let outcome = finish(running.child);
    assert_eq!(outcome.code, Some(case.code), "{what}: {outcome:?}");
    let said = running.said + outcome.text() + &outcome.stderr;
    assert!(said.contains(case.says), "{what}: no '{}' in {said}", case.says);
    wait_until("what it started is gone", || !started.iter().any(|&pid| lives(pid)));
}

/// Echoes, and leaves the client's FIN without an answer.
fn open_ended() -> String {
    let (address, _) = tool::tcp_double(|listener: TcpListener| {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let stream: TcpStream = stream.unwrap();
            kept.push(stream.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    address
}

#[test]
fn in_the_middle_of_its_work_a_command_reports_what_it_had() {
    let server = Server::evecho(&[]);
    let (open, server) = (open_ended(), server.address.as_str());
    let only = "tcp-bytes,tcp-half-close-empty";
    stop_each(&[
        case(
            &["send", server, "--raw"],
            There::Prints("abc"),
            1,
            "stopped after 3 bytes were sent",
        )
        .with_input(Input::Pipe("abc")),
        case(&["send", server, "-u"], There::Prints("a line\n"), 1, "and 6 came back")
            .with_input(Input::Pipe("a line\n")),
        case(&["ping", server, "-i", "1day"], There::Prints("seq=1 "), 0, "1 sent, 1 received"),
        case(
            &["load", server, "-t", "1h", "--every", "20ms"],
            There::Prints("p99"),
            0,
            "; stopped early",
        ),
        case(
            &["check", &open, "--tcp-only", "--timeout", "1h", "--only", only],
            There::Prints("tcp-bytes"),
            1,
            "1 passed, 0 failed, 0 skipped, 1 not graded",
        ),
        case(
            &["compare", "-t", "1h", "-c", "1", "--design", "threaded", "--no-scenes"],
            There::Tells("round 1"),
            1,
            "Stopped early",
        ),
        case(
            &["states", &open, "open", "half-close", "--timeout", "1h"],
            There::Prints("open: shown"),
            1,
            "1 shown, 0 failed, 1 not shown; stopped early",
        ),
    ]);
}

#[test]
fn while_it_connects_a_command_ends() {
    let (_listener, _backlog, dead) = dead_host();
    let there = There::Connects(dead.rsplit_once(':').unwrap().1.parse().unwrap());
    let connecting = |args: &[&str], says| case(args, there.clone(), 1, says);
    stop_each(&[
        connecting(&["send", &dead, "hello", "-t", "1h"], "stopped before 127.0.0.1:"),
        connecting(&["ping", &dead, "-W", "1h"], "0 sent, 0 received"),
        connecting(&["load", &dead, "--timeout", "1h"], "stopped early"),
        connecting(&["check", &dead, "--timeout", "1h"], "stopped before 127.0.0.1:"),
        connecting(&["states", &dead, "--timeout", "1h"], "stopped before 127.0.0.1:"),
    ]);
}

#[test]
fn while_a_server_starts_a_command_ends_and_leaves_nothing() {
    let peer = format!("never={NEVER}");
    let compare = ["compare", "--timeout", "1h", "--design", "iterative", "-c", "1", "--no-scenes"];
    let starting = |args: &[&str], says| case(args, There::Runs("sleep", 2), 1, says);
    stop_each(&[
        starting(&["check", "--start", NEVER, "--timeout", "1h"], "stopped before 'bash"),
        starting(&["states", "--start", NEVER, "--timeout", "1h", "open"], "stopped early"),
        starting(&[&compare[..], &["--peer", &peer, "-t", "10ms"]].concat(), "Stopped early"),
    ]);
}

#[test]
fn while_it_waits_for_input_a_command_ends() {
    let server = Server::evecho(&[]);
    let server = server.address.as_str();
    let fifo = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("stop.fifo");
    let _ = std::fs::remove_file(&fifo);
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let step = || {
        let there = There::Tells("Enter");
        case(&["states", server, "open", "--step"], there, 1, "0 shown, 0 failed, 1 not shown")
    };
    let merge = |file| case(&["merge", file], There::Catches, 1, "was read to its end");
    stop_each(&[
        step(),
        step().with_input(Input::Terminal),
        merge("-"),
        merge("-").with_input(Input::Terminal),
        merge(fifo.to_str().unwrap()),
        case(&["send", server], There::Catches, 1, "stopped").with_input(Input::Terminal),
        case(&["send", server, "-u"], There::Catches, 1, "stopped").with_input(Input::Terminal),
    ]);
}

/// A pipe that takes nothing any more.
fn full() -> (io::PipeReader, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    let mut file = File::from(OwnedFd::from(writer.try_clone().unwrap()));
    let room = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
    file.write_all(&vec![0; usize::try_from(room).unwrap()]).unwrap();
    (reader, writer)
}

#[test]
fn a_second_signal_ends_a_command_at_once_and_leaves_nothing() {
    let server = env!("CARGO_BIN_EXE_evecho");
    let command = format!(
        "bash -c 'setsid sleep 1000 & exec \"{server}\" --port {{port}} --bind 127.0.0.1 --quiet'"
    );
    for signal in SIGNALS {
        // It can write no line of its report.
        let (_reader, writer) = full();
        let mut check = with_default_signals(evecho(&["check", "--start", &command]));
        let mut child = check.stdout(writer).stderr(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let runs = |name| descendants(pid).into_iter().any(|pid| comm(pid) == name);
        wait_until("it runs what it starts", || runs("sleep") && runs("evecho"));
        let started = descendants(pid);
        // One that has ended can be signalled until it is waited for.
        wait_until("the second signal ends it", || {
            kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
            !lives(pid)
        });
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32));
        wait_until("what it started is gone", || !started.iter().any(|&pid| lives(pid)));
    }
}

#[test]
fn killed_a_command_leaves_nothing() {
    let peer = format!("never={NEVER}");
    for args in [
        &["check", "--start", NEVER, "--timeout", "1h"][..],
        &["states", "--start", NEVER, "--timeout", "1h", "open"],
        &["compare", "--design", "iterative", "--peer", &peer, "--timeout", "1h", "-t", "10ms"],
    ] {
        let mut command = evecho(args);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let asleep = || descendants(child.id()).into_iter().filter(|&pid| comm(pid) == "sleep");
        wait_until("it runs what it starts", || asleep().count() >= 2);
        let started = descendants(child.id());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
        wait_until("what it started is gone", || !started.iter().any(|&pid| lives(pid)));
    }
}

#[test]
fn a_signal_that_comes_while_its_handler_is_installed_is_not_lost() {
    // The time for a signal between the call that installs a handler and what follows it.
    let slow = ["-e", "trace=rt_sigaction", "-e", "inject=rt_sigaction:delay_exit=100000"];
    let strace = || {
        let mut strace = Command::new("strace");
        strace.args(["-o", "/dev/null"]).args(slow);
        strace
    };
    if !strace().arg("true").status().is_ok_and(|status| status.success()) {
        println!("not tested: strace cannot be run");
        return;
    }
    for signal in SIGNALS {
        let mut command = strace();
        command.args([env!("CARGO_BIN_EXE_evecho"), "merge", "-"]);
        let child = tool::spawn(with_default_signals(command));
        // Strace tries its means with children of its own before.
        let traced = || children(child.id()).into_iter().find(|&pid| comm(pid) == "evecho");
        wait_until("it catches the signal", || traced().is_some_and(|pid| catches(pid, signal)));
        kill(Pid::from_raw(traced().unwrap().cast_signed()), signal).unwrap();
        let outcome = finish(child);
        assert!(outcome.stderr.contains("was read to its end"), "{signal}: {outcome:?}");
    }
}

#[test]
fn a_signal_that_is_ignored_from_the_start_stays_so() {
    let server = Server::evecho(&[]);
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "trap '' HUP && exec \"$0\" ping \"$1\" -i 1day",
        env!("CARGO_BIN_EXE_evecho"),
    ]);
    shell.arg(&server.address);
    let child = tool::spawn(shell);
    // HUP would come before TERM.
    wait_until("it catches the signal", || catches(child.id(), Signal::SIGTERM));
    assert!(!catches(child.id(), Signal::SIGHUP));
    let pid = Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGHUP).unwrap();
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(finish(child).text().contains(" sent, "));
}
