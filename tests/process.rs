//! Servers that a tool starts: they are waited for, looked at, and never left behind.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::{DEADLINE, children, lives, wait_until};
use evecho::Transport;
use evecho::client::process::{MemoryKind, ServerCommand, ServerProcess, Start, StartError, Usage};

/// The server that the tests start: this program again, with its port in the environment.
#[test]
fn as_server() {
    let Ok(port) = std::env::var("PORT_OF_TEST_SERVER") else { return };
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
    }
}

fn itself() -> String {
    let program = std::env::current_exe().unwrap();
    format!(
        "env PORT_OF_TEST_SERVER={{port}} '{}' --exact as_server --nocapture",
        program.display()
    )
}

fn start(command: &str, descriptors: Option<u64>) -> Result<ServerProcess, StartError> {
    let command: ServerCommand = command.parse().unwrap();
    let mut start = Start::default();
    start.patience = DEADLINE;
    start.descriptors = descriptors;
    command.start(&start)
}

#[test]
fn a_started_server_listens_and_ends_with_its_handle() {
    let server = start(&itself(), None).unwrap();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    let pid = server.pid();
    assert!(lives(pid));
    drop(server);
    assert!(!lives(pid));
}

#[test]
fn the_whole_group_ends_with_the_handle() {
    let server = start(&format!("sh -c '{} & sleep 1000; true'", itself().replace('\'', "")), None);
    let server = server.unwrap();
    wait_until("the shell runs the server and sleep", || children(server.pid()).len() == 2);
    let children = children(server.pid());
    assert!(Usage::of(server.pid()).unwrap().processes >= 3);
    drop(server);
    wait_until("children of the shell are left", || !children.iter().any(|&pid| lives(pid)));
}

#[test]
fn pages_that_processes_share_count_once() {
    let server = start(
        &format!("sh -c 'sleep 1000 & sleep 1000 & exec {}'", itself().replace('\'', "")),
        None,
    );
    let server = server.unwrap();
    wait_until("three run", || Usage::of(server.pid()).is_ok_and(|usage| usage.processes == 3));
    let usage = Usage::of(server.pid()).unwrap();
    let memory = usage.memory();
    assert_eq!((memory.kind, memory.processes), (MemoryKind::Pss, 3));
    assert!(0 < memory.bytes && memory.bytes < usage.resident, "{usage:?}");
    assert!(memory.to_string().ends_with(" of 3 processes (Pss)"), "{memory}");
    let itself = Usage::of(std::process::id()).unwrap();
    assert!(itself.processes > 1 || itself.memory().kind == MemoryKind::Rss);
}

#[test]
fn another_users_process_is_counted_as_far_as_it_shows() {
    // It gives root away itself, which only root can do.
    let nobody = format!("setpriv --reuid 65534 --clear-groups {}", itself());
    let Ok(server) = start(&nobody, None) else { return };
    // And so does this look at it.
    let pid = server.pid().to_string();
    let look = ["--reuid", "65533", "--clear-groups", "env", "LOOK_AT="].map(str::to_owned);
    let mut look = look.to_vec();
    look[4] += &pid;
    let itself = std::env::current_exe().unwrap();
    let look = Command::new("setpriv").args(look).arg(itself).args(["--exact", "look"]).status();
    assert!(look.unwrap().success());
}

/// What [`another_users_process_is_counted_as_far_as_it_shows`] starts.
#[test]
fn look() {
    let Ok(pid) = std::env::var("LOOK_AT") else { return };
    let usage = Usage::of(pid.parse().unwrap()).unwrap();
    assert!(
        usage.proportional.is_none() && usage.resident > 0 && !usage.cpu.is_zero(),
        "{usage:?}"
    );
    assert_eq!(usage.memory().kind, MemoryKind::Rss);
}

#[test]
fn sigterm_gives_the_exit_status() {
    use std::os::unix::process::ExitStatusExt;
    let server = start(&itself(), None).unwrap();
    assert_eq!(server.ended(), None);
    let status = server.terminate(DEADLINE).expect("the default of SIGTERM is to end");
    assert_eq!(status.signal(), Some(15));
    assert_eq!(server.ended(), Some(status));
}

#[test]
fn a_server_that_has_ended_keeps_its_number_until_it_is_dropped() {
    // Its child lives on in its process group, which is to be signalled: nobody else may get it.
    let server = start(&format!("sh -c '{} & sleep 1000; true'", itself().replace('\'', "")), None);
    let server = server.unwrap();
    wait_until("the shell runs the server and sleep", || children(server.pid()).len() == 2);
    let children = children(server.pid());
    server.terminate(DEADLINE).expect("the default of SIGTERM is to end");
    let process = format!("/proc/{}", server.pid());
    assert!(Path::new(&process).exists(), "its status was taken");
    drop(server);
    assert!(!Path::new(&process).exists());
    wait_until("children of the shell are left", || !children.iter().any(|&pid| lives(pid)));
}

#[test]
fn the_variables_of_evecho_do_not_reach_the_command() {
    // A shell stands for the tool's caller.
    let script = "EVECHO_MAX_FRAME=1k EVECHO_PORT=7 NOTIFY_SOCKET=@1 LISTEN_PID=$$ LISTEN_FDS=1 OTHER=1 \
                  exec $0 check --start \
                  \"sh -c 'env | grep -e ^EVECHO_ -e ^NOTIFY -e ^LISTEN -e ^OTHER= >&2; : {port}'\" --timeout 10s";
    let output = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_evecho")]).output();
    let words = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(words.trim_end().ends_with("it said: OTHER=1"), "{words}");
}

#[test]
fn of_a_traceback_the_last_line_is_told() {
    let script = "Traceback (most recent call last):\n  File \"server.py\", line 3, in <module>\n    listen()\n    \
                  ~~~~~~^^\n  File \"server.py\", line 1, in listen\nOSError: the port is taken\n";
    let command = format!("sh -c 'printf \"$0\" >&2; exit 1' '{script}' {{port}}");
    let words = start(&command, None).unwrap_err().to_string();
    assert!(words.ends_with("(exit status: 1); it said: OSError: the port is taken"), "{words}");
}

#[test]
fn the_limit_of_open_files_reaches_the_command() {
    let server = start(&itself(), Some(77)).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().filter(|&word| word == "77").count(), 2, "{line}");
}

#[test]
fn what_cannot_be_started_says_why() {
    let error = start("/nowhere/server {port}", None).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("cannot start '/nowhere/server {port}': No such file"), "{error}");
    let error = start("sh -c 'echo the port {port} is wrong >&2; exit 3'", None).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("exit status: 3") && error.contains("is wrong"), "{error}");
    let command: ServerCommand = "sh -c 'echo not yet >&2; sleep 1000; : {port}'".parse().unwrap();
    let mut impatient = Start::default();
    impatient.transport = Some(Transport::Udp);
    impatient.patience = Duration::from_millis(200);
    let error = command.start(&impatient).unwrap_err().to_string();
    assert!(
        error.contains("does not listen over UDP") && error.contains("after 200 ms"),
        "{error}"
    );
}
