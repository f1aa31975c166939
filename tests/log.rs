//! A log that cannot be written holds nobody up, and machines can read it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use common::{Client, LOCALHOST, wait_until};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// More connections than a pipe, and what the server keeps, have room for lines about.
const MANY: usize = 1000;

fn evecho() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evecho"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EVECHO_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").env_remove("JOURNAL_STREAM");
    command
}

/// A server with a standard error of the test's; ended, at the latest, when it goes out of scope.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(flags: &[&str], stderr: impl Into<Stdio>) -> Server {
        Server::start_with(&[], flags, stderr)
    }

    fn start_with(variables: &[(&str, &str)], flags: &[&str], stderr: impl Into<Stdio>) -> Server {
        let mut command = evecho();
        command.args(["--port", "0", "--bind", "127.0.0.1", "--tcp-only"]).args(flags);
        let child = command.envs(variables.iter().copied()).stderr(stderr).spawn().unwrap();
        let port = || listening_port(child.id());
        wait_until("the server listens", || port().is_some());
        let address = (LOCALHOST, port().unwrap()).into();
        Server { child, address }
    }

    /// Clients that come and go, one after the other. Each causes one line at level debug.
    fn serve(&self, clients: usize) {
        for _ in 0..clients {
            let mut client = Client::connect(self.address);
            client.exchange(b"hello");
            client.half_close();
            client.expect_end();
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        let pid = self.child.id();
        wait_until("the server ends", || !common::lives(pid));
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The port of the one TCP listener that a process has, from /proc: its log may not say.
fn listening_port(pid: u32) -> Option<u16> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let names: Vec<String> = targets.map(|path| path.to_string_lossy().into_owned()).collect();
    fs::read_to_string("/proc/net/tcp").unwrap().lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (listens, inode) = (*columns.get(3)? == "0A", columns.get(9)?);
        if !listens || !names.contains(&format!("socket:[{inode}]")) {
            return None;
        }
        u16::from_str_radix(columns[1].split_once(':')?.1, 16).ok()
    })
}

fn read_lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        // A terminal whose other side has been closed is an error, not an end.
        let lines = BufReader::new(from).lines().map_while(Result::ok);
        lines.into_iter().try_for_each(|line| sender.send(line))
    });
    receiver
}

/// Has the server log until it says how many lines it dropped; the lines before that, and the number.
fn until_the_gap_is_told(server: &Server, log: &Receiver<String>) -> (Vec<String>, usize) {
    let mut lines = Vec::new();
    loop {
        // What was kept is written before the next line.
        server.signal(Signal::SIGUSR1);
        while let Ok(line) = log.recv_timeout(Duration::from_millis(20)) {
            if let Some((start, _)) = line.split_once(" lines of this log were dropped") {
                return (lines, start.rsplit(' ').next().unwrap().parse().unwrap());
            }
            lines.push(line);
        }
    }
}

#[test]
fn a_pipe_that_nobody_reads_stalls_nothing() {
    for design in ["event-loop", "threaded"] {
        let mut server = Server::start(&["-v", "--design", design], Stdio::piped());
        let unread = server.child.stderr.take().unwrap();
        server.serve(MANY);
        assert_eq!(server.terminate().code(), Some(0), "{design}");
        drop(unread);
    }
}

#[test]
fn nor_do_broken_frames_at_the_default_level() {
    let flags = ["--framing", "lines", "--max-frame", "8"];
    let mut server = Server::start(&flags, Stdio::piped());
    let unread = server.child.stderr.take().unwrap();
    for _ in 0..MANY {
        let mut client = Client::connect(server.address);
        client.send(b"one\nmuch too long\n");
        client.expect(b"one\n");
        client.expect_end();
    }
    assert_eq!(server.terminate().code(), Some(0));
    drop(unread);
}

#[test]
fn the_lines_that_were_dropped_are_counted() {
    let mut server = Server::start(&["-v"], Stdio::piped());
    server.serve(MANY);
    let log = read_lines(server.child.stderr.take().unwrap());
    let (lines, dropped) = until_the_gap_is_told(&server, &log);
    assert!(lines.iter().all(|line| line.starts_with('[')), "a line was cut: {lines:?}");
    let closed = lines.iter().filter(|line| line.contains("closed by")).count();
    assert!(closed + dropped >= MANY, "{closed} lines were logged, {dropped} dropped");
    assert!(closed < MANY);
    server.serve(3);
    let told = |_| log.recv_timeout(common::DEADLINE).unwrap().contains("closed by");
    assert_eq!(
        (0..4).map(told).filter(|&told| told).count(),
        3,
        "with that of SIGUSR1 before them"
    );
}

#[test]
fn what_can_be_written_at_the_end_is() {
    let mut server = Server::start(&["-v"], Stdio::piped());
    let mut pipe = server.child.stderr.take().unwrap();
    server.serve(10);
    assert_eq!(server.terminate().code(), Some(0));
    let mut log = String::new();
    pipe.read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("closed by").count(), 10, "{log}");
    assert!(log.lines().last().unwrap().contains("stopped: "), "{log}");
}

#[test]
fn a_socket_that_nobody_reads_stalls_nothing() {
    let (unread, journal) = UnixStream::pair().unwrap();
    let server = Server::start(&["-v"], OwnedFd::from(journal));
    server.serve(MANY);
    let log = read_lines(unread);
    let (_, dropped) = until_the_gap_is_told(&server, &log);
    assert!(dropped > 0);
    assert_eq!(server.terminate().code(), Some(0));
}

#[test]
fn neither_a_full_disk_nor_a_reader_that_left_changes_anything() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let server = Server::start(&["-v"], full);
    server.serve(MANY);
    assert_eq!(server.terminate().code(), Some(0));

    let mut server = Server::start(&["-v"], Stdio::piped());
    drop(server.child.stderr.take());
    server.serve(MANY);
    assert_eq!(server.terminate().code(), Some(0));
}

#[test]
fn a_terminal_that_was_stopped_stalls_nothing() {
    let pty = openpty(None, None).unwrap();
    let mut keyboard = File::from(pty.master);
    let server = Server::start(&["-v"], pty.slave.try_clone().unwrap());
    keyboard.write_all(b"\x13").unwrap(); // Ctrl-S
    let writable = || {
        let mut ready = [PollFd::new(pty.slave.as_fd(), PollFlags::POLLOUT)];
        poll(&mut ready, PollTimeout::ZERO).unwrap() > 0
    };
    wait_until("the terminal stops", || !writable());
    server.serve(MANY);
    let log = read_lines(keyboard.try_clone().unwrap());
    keyboard.write_all(b"\x11").unwrap(); // Ctrl-Q
    let (_, dropped) = until_the_gap_is_told(&server, &log);
    assert!(dropped > 0);
    assert_eq!(server.terminate().code(), Some(0));
}

#[test]
fn a_terminal_that_nobody_reads_stalls_nothing() {
    let pty = openpty(None, None).unwrap();
    let server = Server::start(&["-v"], pty.slave);
    server.serve(MANY);
    assert_eq!(server.terminate().code(), Some(0));
}

// ---- for machines

/// A line that is an object with what each line has.
fn object(line: &str) -> Value {
    let object: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    let text = |name: &str| object[name].as_str().unwrap_or_else(|| panic!("no {name}: {line}"));
    humantime::parse_rfc3339(text("time")).unwrap();
    assert_eq!(text("time").len(), "2026-01-01T00:00:00.000000Z".len(), "{line}");
    assert!(["error", "warn", "info", "debug", "trace"].contains(&text("level")), "{line}");
    assert!(!text("message").is_empty());
    object
}

/// What is logged while one client stays, one leaves and one sends a frame that is too long, and the
/// server is asked for its counters, and ends.
fn story(variables: &[(&str, &str)], flags: &[&str]) -> Vec<Value> {
    let always = ["--log-format", "json", "--framing", "lines", "--max-frame", "8"];
    let flags = [&always[..], &["--drain-timeout", "0"], flags].concat();
    let mut server = Server::start_with(variables, &flags, Stdio::piped());
    let log = read_lines(server.child.stderr.take().unwrap());
    let [mut stays, mut leaves, mut breaks] = [(); 3].map(|()| Client::connect(server.address));
    stays.exchange(b"here\n");
    leaves.exchange(b"hello\n");
    leaves.half_close();
    leaves.expect_end();
    breaks.send(b"much too long\n");
    breaks.expect_end();
    drop(breaks);
    let mut lines = Vec::new();
    let mut one_is_left = false;
    while !one_is_left {
        server.signal(Signal::SIGUSR1);
        while lines.last().is_none_or(|line: &Value| line["event"] != "counters") {
            lines.push(object(&log.recv_timeout(common::DEADLINE).unwrap()));
        }
        one_is_left = lines.pop().unwrap()["open"] == 1;
    }
    server.signal(Signal::SIGUSR1);
    assert_eq!(server.terminate().code(), Some(0));
    lines.extend(log.iter().map(|line| object(&line)));
    drop(stays);
    lines
}

fn event<'a>(lines: &'a [Value], name: &str) -> &'a Value {
    let found = lines.iter().find(|line| line["event"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {lines:?}"))
}

#[test]
fn every_line_at_every_level_is_an_object() {
    let quiet = story(&[], &["-q"]);
    assert!(quiet.iter().all(|line| line["event"] == "counters"), "{quiet:?}");
    for flags in [&[][..], &["-v"], &["-vv"]] {
        let lines = story(&[], flags);
        for name in ["listening", "frame_broken", "counters", "draining", "cut_off", "stopped"] {
            event(&lines, name);
        }
    }
    let lines = story(&[("RUST_LOG", "trace")], &["-q"]);
    assert!(lines.iter().any(|line| line["level"] == "debug"));
    let lines = story(&[("RUST_LOG", "evecho=nonsense")], &[]);
    assert!(lines[0]["message"].as_str().unwrap().starts_with("RUST_LOG is ignored: "));
}

#[test]
fn the_fields_of_an_event_are_values() {
    let lines = story(&[], &["-v"]);
    let listening = event(&lines, "listening");
    assert_eq!((&listening["design"], &listening["level"]), (&"event-loop".into(), &"info".into()));
    let address: SocketAddr = listening["addresses"].as_str().unwrap().parse().unwrap();
    assert_eq!(address.ip(), LOCALHOST);

    let left = |line: &&Value| line["event"] == "closed" && line["reason"] == "peer";
    let closed = lines.iter().find(left).unwrap();
    assert_eq!(closed["level"], "debug");
    let peer: SocketAddr = closed["peer"].as_str().unwrap().parse().unwrap();
    let number = |name: &str| closed[name].as_u64().unwrap_or_else(|| panic!("{name}: {closed}"));
    let [reads, writes] = ["reads", "writes"].map(number);
    assert!(number("open_ns") > 0 && number("paused_ns") == 0 && reads > 0 && writes > 0);
    assert_eq!(["bytes_in", "bytes_out", "short_writes", "unsent"].map(number), [6, 6, 0, 0]);
    let message = closed["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("{peer} closed by the peer's FIN: 6 bytes in")));
    assert!(closed.get("error").is_none(), "it was none: {closed}");

    let broken = event(&lines, "frame_broken");
    assert_eq!(broken["reason"], "frame_too_long");
    assert!(broken["peer"].is_string(), "{broken}");
    let told = |line: &Value| line["message"].as_str().unwrap().contains("--max-frame");
    assert!(lines.iter().any(told), "flags are named, not fields");
    assert_eq!(event(&lines, "cut_off")["connections"], 1);
    let (counters, stopped) = (event(&lines, "counters"), event(&lines, "stopped"));
    for line in [counters, stopped] {
        assert_eq!((&line["accepted"], &line["accept_paused"]), (&3.into(), &false.into()));
        for shown in format!("{:#}", evecho::Snapshot::default()).split(", ") {
            let name = shown.split(' ').next().unwrap().replace("uptime", "uptime_ns");
            assert!(line.get(&name).is_some(), "no {name}: {line}");
        }
    }
    assert_eq!((&counters["open"], &stopped["open"]), (&1.into(), &0.into()));
}

#[test]
fn the_line_about_dropped_lines_is_an_object_too() {
    let mut server = Server::start(&["-v", "--log-format", "json"], Stdio::piped());
    server.serve(MANY);
    let log = read_lines(server.child.stderr.take().unwrap());
    let dropped = loop {
        server.signal(Signal::SIGUSR1);
        let mut lines = std::iter::from_fn(|| log.recv_timeout(Duration::from_millis(20)).ok());
        if let Some(gap) = lines
            .find_map(|line| Some(object(&line)).filter(|line| line["event"] == "lines_dropped"))
        {
            break gap;
        }
    };
    assert_eq!(dropped["level"], "error");
    assert!(dropped["lines"].as_u64().unwrap() > 0, "{dropped}");
}

#[test]
fn why_the_server_does_not_start_is_a_line_too() {
    // 192.0.2.0/24 is for documentation (RFC 5737): nobody has it.
    let flags = ["--port", "0", "--bind", "192.0.2.1", "--log-format", "json"];
    let output = evecho().args(flags).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> = String::from_utf8(output.stderr).unwrap().lines().map(object).collect();
    let last = lines.last().unwrap();
    assert_eq!((&last["event"], &last["level"]), (&"failed".into(), &"error".into()));
    assert!(last["message"].as_str().unwrap().contains("--bind"), "{last}");
}

/// The log of a server that standard error of, or the variable says, is a stream to journald.
fn journal(is_ours: bool, flags: &[&str]) -> Vec<String> {
    let (journal, stderr) = UnixStream::pair().unwrap();
    let stderr = File::from(OwnedFd::from(stderr));
    let found = stderr.metadata().unwrap();
    let stream = format!("{}:{}", found.dev(), found.ino() + u64::from(!is_ours));
    let variables = [("JOURNAL_STREAM", &*stream)];
    let server = Server::start_with(&variables, &[&["-v"], flags].concat(), stderr);
    server.serve(1);
    assert_eq!(server.terminate().code(), Some(0));
    read_lines(journal).iter().collect()
}

#[test]
fn under_journald_lines_have_its_priorities_and_no_times() {
    let lines = journal(true, &[]);
    assert!(lines[0].starts_with("<6>listening on 127.0.0.1:"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("<7>127.0.0.1:") && line.contains("closed")));
    assert!(lines.iter().all(|line| line.starts_with('<')), "{lines:?}");
    for (is_ours, flags) in [(false, &[][..]), (true, &["--log-format", "text"])] {
        let lines = journal(is_ours, flags);
        assert!(lines.iter().all(|line| line.starts_with('[')), "{lines:?}");
    }
    let lines = journal(true, &["--log-format", "json"]);
    lines.iter().for_each(|line| drop(object(line)));
}
