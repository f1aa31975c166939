//! A log that cannot be written stops nothing, and machines can read it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use common::{Client, LOCALHOST, wait_for, wait_until, with_default_signals};
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
        Server::start_with(&[], &[&["--tcp-only"], flags].concat(), stderr)
    }

    fn start_with(variables: &[(&str, &str)], flags: &[&str], stderr: impl Into<Stdio>) -> Server {
        Server::spawn(evecho().args(flags).envs(variables.iter().copied()).stderr(stderr))
    }

    /// Starts a command that is, or becomes, a server.
    fn spawn(command: &mut Command) -> Server {
        let child = command.args(["--port", "0", "--bind", "127.0.0.1"]).spawn().unwrap();
        let port = wait_for("the server listens", || listening_port(child.id()));
        let address = (LOCALHOST, port).into();
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
    let table = BufReader::new(File::open("/proc/net/tcp").unwrap());
    // Listeners come first, and thousands that are in TIME_WAIT may follow.
    table
        .lines()
        .map_while(Result::ok)
        .skip(1)
        .map_while(listener)
        .find_map(|(inode, port)| names.contains(&format!("socket:[{inode}]")).then_some(port))
}

/// The inode and the port of a line of /proc/net/tcp, if it is a listener's.
fn listener(line: String) -> Option<(String, u16)> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let port = columns[1].split_once(':')?.1;
    (columns[3] == "0A").then(|| (columns[9].to_owned(), u16::from_str_radix(port, 16).unwrap()))
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
fn a_pipe_without_a_reader_stalls_nothing() {
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
    // A client sees the end before its line is logged: the last one's comes before this reply.
    let mut stays = Client::connect(server.address);
    stays.exchange(b"hello");
    let log = read_lines(server.child.stderr.take().unwrap());
    let (lines, dropped) = until_the_gap_is_told(&server, &log);
    assert!(lines.iter().all(|line| line.starts_with('[')), "a line was cut: {lines:?}");
    let closed = lines.iter().filter(|line| line.contains("closed by")).count();
    assert!(closed + dropped >= MANY, "{closed} lines were logged, {dropped} dropped");
    assert!(closed < MANY);
    server.serve(3);
    // Behind those of SIGUSR1, however many it took.
    let lines = std::iter::repeat_with(|| log.recv_timeout(common::DEADLINE).expect("a line"));
    assert_eq!(lines.filter(|line| line.contains("closed by")).take(3).count(), 3);
}

/// What is logged comes whole, up to the last line, though nothing reads before the server has ended.
fn has_all_lines_in_the_end(mut server: Server) {
    let mut pipe = server.child.stderr.take().unwrap();
    server.serve(10);
    assert_eq!(server.terminate().code(), Some(0));
    let mut log = String::new();
    pipe.read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("closed by").count(), 10, "{log}");
    assert!(log.lines().last().unwrap().contains("stopped: "), "{log}");
}

#[test]
fn what_can_be_written_at_the_end_is() {
    has_all_lines_in_the_end(Server::start(&["-v"], Stdio::piped()));
}

#[test]
fn a_socket_without_a_reader_stalls_nothing() {
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

    let pty = openpty(None, None).unwrap();
    let server = Server::start(&["-v"], pty.slave);
    drop(pty.master);
    server.serve(MANY);
    assert_eq!(server.terminate().code(), Some(0));

    let (stream, datagrams) = (UnixStream::pair().unwrap(), UnixDatagram::pair().unwrap());
    let pairs: [(OwnedFd, OwnedFd); 2] =
        [(stream.0.into(), stream.1.into()), (datagrams.0.into(), datagrams.1.into())];
    for (reader, stderr) in pairs {
        let server = Server::start(&["-v"], stderr);
        drop(reader);
        server.serve(MANY);
        assert_eq!(server.terminate().code(), Some(0));
    }
}

#[test]
fn a_file_that_may_not_grow_changes_nothing() {
    let path = format!("{}/limited.log", env!("CARGO_TARGET_TMPDIR"));
    let mut command = Command::new("sh");
    // 512 bytes. In CPU time it would live for a day.
    let script = "ulimit -f 1; ulimit -t 86400; exec \"$0\" \"$@\"";
    command.args(["-c", script, env!("CARGO_BIN_EXE_evecho"), "--tcp-only", "-v"]);
    let server = Server::spawn(command.stderr(File::create(&path).unwrap()));
    server.serve(20);
    assert_eq!(server.terminate().code(), Some(0));
    let log = fs::read_to_string(path).unwrap();
    assert!(log.len() <= 512 && log.contains("86400 s of CPU time (RLIMIT_CPU"), "{log}");
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
fn a_terminal_without_a_reader_stalls_nothing() {
    let pty = openpty(None, None).unwrap();
    let server = Server::start(&["-v"], pty.slave);
    server.serve(MANY);
    assert_eq!(server.terminate().code(), Some(0));
}

/// The command of a server that has no `/proc`, so that its standard error cannot be opened again. `None`
/// where that cannot be.
fn without_proc() -> Option<Command> {
    let mut command = sandbox::without_proc()?;
    evecho().get_envs().for_each(|(name, _)| _ = command.env_remove(name));
    command.args(["--tcp-only", "-v"]).env("NO_COLOR", "1");
    Some(command)
}

#[test]
fn what_cannot_be_opened_again_stalls_nothing() {
    for design in ["event-loop", "threaded"] {
        for is_stopped in [false, true] {
            let Some(mut command) = without_proc() else { return };
            let pty = openpty(None, None).unwrap();
            let mut keyboard = File::from(pty.master);
            if is_stopped {
                keyboard.write_all(b"\x13").unwrap(); // Ctrl-S
            }
            let server = Server::spawn(command.args(["--design", design]).stderr(pty.slave));
            server.serve(MANY);
            let log = read_lines(keyboard.try_clone().unwrap());
            keyboard.write_all(b"\x11").unwrap(); // Ctrl-Q
            let (lines, dropped) = until_the_gap_is_told(&server, &log);
            assert!(dropped > 0 && lines.iter().all(|line| line.starts_with('[')), "{lines:?}");
            assert_eq!(server.terminate().code(), Some(0));
        }
    }
    let mut server = Server::spawn(without_proc().unwrap().stderr(Stdio::piped()));
    let unread = server.child.stderr.take().unwrap();
    server.serve(MANY);
    assert_eq!(server.terminate().code(), Some(0));
    drop(unread);
}

#[test]
fn what_cannot_be_opened_again_has_all_lines_in_the_end() {
    let Some(mut command) = without_proc() else { return };
    has_all_lines_in_the_end(Server::spawn(command.stderr(Stdio::piped())));

    let mut server = Server::spawn(without_proc().unwrap().stderr(Stdio::piped()));
    drop(server.child.stderr.take());
    server.serve(MANY);
    assert_eq!(server.terminate().code(), Some(0));
}

#[test]
fn a_server_that_cannot_start_ends_though_nothing_reads_why() {
    let mut reopened = evecho();
    reopened.arg("--tcp-only");
    for mut command in [Some(reopened), without_proc()].into_iter().flatten() {
        let pty = openpty(None, None).unwrap();
        let mut keyboard = File::from(pty.master);
        keyboard.write_all(b"\x13").unwrap(); // Ctrl-S
        // 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
        command.args(["--port", "0", "--bind", "192.0.2.1"]).stderr(pty.slave);
        let (child, address) = (command.spawn().unwrap(), (LOCALHOST, 0).into());
        let mut server = Server { child, address };
        wait_until("it ends", || !common::lives(server.child.id()));
        assert_eq!(server.child.wait().unwrap().code(), Some(1));
    }
}

#[test]
fn a_terminal_that_stops_background_jobs_does_not_stop_the_server() {
    let pty = openpty(None, None).unwrap();
    let (mut command, server) = (Command::new("setsid"), evecho());
    server.get_envs().for_each(|(name, _)| _ = command.env_remove(name));
    // A wait would end with a job that is stopped.
    let job =
        "stty tostop; set -m; \"$@\" & echo pid $!; while kill -0 $! 2>&-; do sleep 0.01; done";
    command.args(["--ctty", "sh", "-c", job, "sh"]).arg(server.get_program());
    command.args(["--tcp-only", "--port", "0", "--bind", "127.0.0.1"]);
    let slave = || pty.slave.try_clone().unwrap();
    let child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    // Where this fails, its job is gone with it: SIGHUP.
    let mut shell = Server { child, address: (LOCALHOST, 0).into() };
    let log = read_lines(File::from(pty.master));
    let line = |word: &str| {
        let lines = std::iter::repeat_with(|| log.recv_timeout(common::DEADLINE).expect("a line"));
        lines.into_iter().find(|line| line.contains(word)).unwrap()
    };
    let pid: i32 = line("pid ").trim().rsplit(' ').next().unwrap().parse().unwrap();
    line("listening on ");
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    line("stopped: ");
    shell.child.wait().unwrap();
}

// ---- what waits

/// A client without its answer may have sent a part of a message.
#[test]
fn what_is_kept_of_a_message_is_logged() {
    for design in ["event-loop", "threaded", "iterative"] {
        for (framing, service, [beginning, rest], kept) in [
            (
                "lines",
                "echo",
                [&b"HELLO"[..], b"\n"],
                "keeps 5 bytes of a line until its line feed comes",
            ),
            (
                "length",
                "echo",
                [b"\0\0\0\x03x", b"yz"],
                "keeps 5 bytes of a frame until the rest comes",
            ),
            // A part of a character that is the same in upper case.
            ("raw", "upper", [b"\xe6\xbc", b"\xa2"], "keeps 2 bytes of the stream until more come"),
        ] {
            let flags = ["-vv", "--design", design, "--framing", framing, "--service", service];
            let mut server = Server::start(&flags, Stdio::piped());
            let log = read_lines(server.child.stderr.take().unwrap());
            let mut client = Client::connect(server.address);
            client.send(beginning);
            let mut lines = std::iter::repeat_with(|| log.recv_timeout(common::DEADLINE).unwrap());
            lines.find(|line| line.ends_with(kept)).unwrap();
            client.send(rest);
            client.expect(&[beginning, rest].concat());
            client.half_close();
            client.expect_end();
            assert_eq!(server.terminate().code(), Some(0));
            let more = log.iter().filter(|line| line.contains("keeps")).count();
            assert_eq!(more, 0, "{design}, {framing}, {service}");
        }
    }
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

/// What is logged while one client stays, one leaves, one sends a frame that is too long, and datagrams
/// are answered or not, and the server is asked for its counters, and ends.
fn mixture(variables: &[(&str, &str)], flags: &[&str]) -> Vec<Value> {
    let [guarded, question, answer] = [(); 3].map(|()| UdpSocket::bind((LOCALHOST, 0)).unwrap());
    let port = guarded.local_addr().unwrap().port().to_string();
    let always = ["--log-format", "json", "--framing", "lines", "--max-frame", "8"];
    let others = ["--drain-timeout", "0", "--service", "upper", "--guard-ports", &port];
    let flags = [&always[..], &others, flags].concat();
    let mut server = Server::start_with(variables, &flags, Stdio::piped());
    let log = read_lines(server.child.stderr.take().unwrap());
    let [mut stays, mut leaves, mut breaks] = [(); 3].map(|()| Client::connect(server.address));
    stays.exchange(b"HERE\n");
    leaves.exchange(b"HELLO\n");
    leaves.half_close();
    leaves.expect_end();
    breaks.send(b"much too long\n");
    breaks.expect_end();
    drop(breaks);
    // In upper case, each of these has six bytes instead of two.
    let longer = "\u{390}".repeat(20_000);
    // What an evecho answers with.
    answer.set_ttl(200).unwrap();
    for (socket, bytes) in [(&guarded, "no"), (&answer, "no"), (&question, &longer)] {
        socket.send_to(bytes.as_bytes(), server.address).unwrap();
    }
    question.connect(server.address).unwrap();
    common::exchange_datagram(&question, b"YES");
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
    let quiet = mixture(&[], &["-q"]);
    assert!(quiet.iter().all(|line| line["event"] == "counters"), "{quiet:?}");
    for flags in [&[][..], &["-v"], &["-vv"]] {
        let lines = mixture(&[], flags);
        for name in ["listening", "frame_broken", "answer_too_long", "draining", "cut_off"] {
            event(&lines, name);
        }
    }
    let lines = mixture(&[("RUST_LOG", "evecho=nonsense")], &[]);
    assert!(lines[0]["message"].as_str().unwrap().starts_with("RUST_LOG is ignored: "));
}

#[test]
fn every_line_of_each_crate_is_an_object_in_each_design() {
    for design in ["event-loop", "threaded"] {
        let lines = mixture(&[("RUST_LOG", "trace")], &["-q", "--design", design]);
        for name in ["closed", "read", "received", "sent", "not_answered", "stopped"] {
            event(&lines, name);
        }
        // A thread may end by itself before it is cut off.
        let ends_itself = |line: &Value| design == "threaded" && line["reason"] == "draining";
        if !lines.iter().any(ends_itself) {
            event(&lines, "cut_off");
        }
        // What other libraries log.
        assert!(lines.iter().any(|line| line.get("event").is_none()), "{design}");
    }
    // The flags are about our own lines.
    assert!(mixture(&[], &["-vv"]).iter().all(|line| line.get("event").is_some()));
}

#[test]
fn events_of_datagrams_have_their_fields() {
    let lines = mixture(&[], &["-vv"]);
    let refused = lines.iter().filter(|line| line["event"] == "not_answered");
    let reasons: Vec<&str> = refused
        .inspect(|line| assert_eq!(line["level"], "debug"))
        .inspect(|line| assert!(line["peer"].as_str().unwrap().parse::<SocketAddr>().is_ok()))
        .map(|line| line["reason"].as_str().unwrap())
        .collect();
    assert_eq!(reasons, ["guarded_port", "answer", "too_long"]);
    let long = event(&lines, "answer_too_long");
    assert_eq!((&long["level"], &long["bytes"]), (&"warn".into(), &120_000.into()));
    assert_eq!(long["longest"], 65_507);
    let sent = event(&lines, "sent");
    assert_eq!((&sent["bytes"], &sent["datagrams"]), (&3.into(), &1.into()));
    assert_eq!(sent["peer"], long["peer"]);
    let stopped = event(&lines, "stopped");
    let counted = ["udp_received", "udp_answered", "udp_guarded", "udp_too_long"];
    assert_eq!(counted.map(|name| stopped[name].as_u64()), [4, 1, 2, 1].map(Some));
}

#[test]
fn the_fields_of_an_event_are_values() {
    let lines = mixture(&[], &["-v"]);
    let listening = event(&lines, "listening");
    assert_eq!((&listening["design"], &listening["level"]), (&"event-loop".into(), &"info".into()));
    let address: SocketAddr = listening["addresses"].as_str().unwrap().parse().unwrap();
    assert_eq!(address.ip(), LOCALHOST);

    let left = |line: &&Value| line["event"] == "closed" && line["reason"] == "peer_fin";
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
    let about = |line: &&Value| line["event"] == "frame_broken" && line["level"] == "info";
    let about = lines.iter().find(about).unwrap();
    assert_eq!(about["setting"], "max_frame");
    assert!(about["message"].as_str().unwrap().ends_with(" (--max-frame)"), "{about}");
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

/// The line about the end of a client that does not read, once it has gone on for a while.
fn end_of_a_silent_reader(flags: &[&str], end: impl FnOnce(&Server, Client)) -> Value {
    let flags = [&["-v", "--log-format", "json"], flags].concat();
    let mut server = Server::start(&flags, Stdio::piped());
    let log = read_lines(server.child.stderr.take().unwrap());
    let mut client = Client::connect_with(server.address, None, Some(4 << 10));
    // For 400 ms, nothing has moved in the end.
    (0..2).for_each(|_| _ = client.fill());
    end(&server, client);
    loop {
        let line = object(&log.recv_timeout(common::DEADLINE).unwrap());
        if line["event"] == "closed" {
            return line;
        }
    }
}

#[test]
fn what_a_client_did_not_take_and_how_long_that_held_is_in_its_line() {
    for design in ["event-loop", "threaded", "iterative"] {
        let design = ["--design", design];
        let reset = end_of_a_silent_reader(&design, |_, client| client.reset());
        let none = ["--drain-timeout", "0"];
        let cut = end_of_a_silent_reader(&[design, none].concat(), |server, client| {
            server.signal(Signal::SIGTERM);
            // It stays until the server is gone.
            let pid = server.child.id();
            wait_until("the server ends", || !common::lives(pid));
            drop(client);
        });
        for (closed, reason) in [(&reset, "reset"), (&cut, "draining")] {
            let number = |name: &str| closed[name].as_u64().unwrap();
            assert_eq!(closed["reason"], reason, "{closed}");
            // The server may have been late to see it.
            assert!(number("paused_ns") >= 100_000_000, "{closed}");
            assert!(number("unsent") > 0, "{closed}");
            assert_eq!(number("bytes_out") + number("unsent"), number("bytes_in"), "{closed}");
        }
    }
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
    // 192.0.2.0/24 is for documentation (RFC 5737): no machine has it.
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

#[test]
fn under_journald_wrong_usage_is_one_line_of_an_error() {
    for (variables, flags, reason) in [
        (&[("EVECHO_FRAMING", "linse")][..], &[][..], "invalid value 'linse' for 'EVECHO_FRAMING'"),
        (&[("EVECHO_MAX_FRAME", "0")], &[], "EVECHO_MAX_FRAME: 0 bytes"),
        (&[], &["--tcp-only", "--udp-only"], "--tcp-only and --udp-only leave nothing"),
        (&[], &["--no-such-flag"], "unexpected argument '--no-such-flag'"),
    ] {
        let (journal, stderr) = UnixStream::pair().unwrap();
        let stderr = File::from(OwnedFd::from(stderr));
        let found = stderr.metadata().unwrap();
        let mut command = evecho();
        command.env("JOURNAL_STREAM", format!("{}:{}", found.dev(), found.ino()));
        command.envs(variables.iter().copied()).args(flags).stderr(stderr);
        assert_eq!(command.spawn().unwrap().wait().unwrap().code(), Some(2));
        drop(command);
        let lines: Vec<String> = read_lines(journal).iter().collect();
        let [line] = &lines[..] else { panic!("not one line: {lines:?}") };
        assert!(line.starts_with(&format!("<3>{reason}")), "{line}");
    }
}

/// A unit has its settings as variables, so that is what has to be changed.
#[test]
fn a_unit_of_systemd_is_told_the_variable_of_a_setting() {
    let taken = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let bind = format!("127.0.0.1:{port}");
    for (flags, variables, name) in [
        ("", &[("EVECHO_BIND", &*bind)][..], "EVECHO_PORT: "),
        ("--port 1", &[("EVECHO_BIND", &*bind)], "--port: "),
        ("", &[("EVECHO_BIND", "192.0.2.1:1")], "EVECHO_BIND: "),
    ] {
        let mut unit = Command::new("sh");
        let exec = format!("SYSTEMD_EXEC_PID=$$ exec \"$0\" {flags}");
        unit.args(["-c", &exec, env!("CARGO_BIN_EXE_evecho")]).envs(variables.iter().copied());
        let output = unit.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(name), "no {name} in {said}");
    }
    // Limits that are logged.
    let mut unit = Command::new("sh");
    let exec = "SYSTEMD_EXEC_PID=$$ exec \"$0\" --port 0 --bind 127.0.0.1 --max-buffered 1m";
    let variables = [("EVECHO_MAX_CONNECTIONS", "100000000")];
    unit.args(["-c", exec, env!("CARGO_BIN_EXE_evecho")]).envs(variables);
    let mut child = unit.stderr(Stdio::piped()).spawn().unwrap();
    let lines = read_lines(child.stderr.take().unwrap());
    let reduced = lines.iter().find(|line| line.contains("the limit on open files allows"));
    assert!(reduced.expect("a limit is reduced").ends_with("(EVECHO_MAX_CONNECTIONS)"));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

// ---- rotation

/// What rotates a log sends it to daemons, which must not end.
#[test]
fn a_hangup_without_a_terminal_reloads_nothing_and_ends_nothing() {
    for design in ["event-loop", "threaded", "iterative"] {
        let mut daemon = Command::new("setsid");
        daemon.args([env!("CARGO_BIN_EXE_evecho"), "--port", "0"]);
        daemon.args(["--bind", "127.0.0.1", "--design", design]);
        let mut daemon = with_default_signals(daemon);
        let mut child = daemon.stderr(Stdio::piped()).spawn().unwrap();
        let lines = read_lines(child.stderr.take().unwrap());
        let said = |text: &str| lines.iter().find(|line| line.contains(text)).expect(text);
        said("listening on");
        let pid = Pid::from_raw(child.id() as i32);
        for _ in 0..2 {
            kill(pid, Signal::SIGHUP).unwrap();
            said("SIGHUP reloads nothing");
        }
        kill(pid, Signal::SIGTERM).unwrap();
        said("stopped");
        assert!(child.wait().unwrap().success());
    }
}

/// As logrotate's copytruncate does with a file that `>>` opened.
#[test]
fn a_log_that_is_appended_to_a_file_may_be_truncated() {
    let path = format!("{}/rotated-{}.log", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let file = || File::options().create(true).append(true).open(&path).unwrap();
    let server = Server::start(&["-v"], file());
    server.serve(3);
    wait_until("lines are written", || fs::read_to_string(&path).unwrap().contains("closed by"));
    file().set_len(0).unwrap();
    server.serve(1);
    assert_eq!(server.terminate().code(), Some(0));
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(text.starts_with('[') && text.contains("stopped"), "{text:?}");
    assert!(!text.contains('\0') && !text.contains("listening"), "{text:?}");
}

// ---- the story of a connection

/// All that a server logs at `-vv`, while `act` is done with it.
fn story(flags: &[&str], act: impl FnOnce(&Server, &Receiver<String>)) -> Vec<Value> {
    let flags = [&["-vv", "--log-format", "json"], flags].concat();
    let mut server = Server::start_with(&[], &flags, Stdio::piped());
    let (sender, log) = channel();
    let stderr = server.child.stderr.take().unwrap();
    let all = thread::spawn(move || {
        let lines = BufReader::new(stderr).lines().map(Result::unwrap);
        let each = lines.inspect(|line| drop(sender.send(line.clone())));
        each.map(|line| object(&line)).collect()
    });
    act(&server, &log);
    assert_eq!(server.terminate().code(), Some(0));
    all.join().unwrap()
}

/// The steps of the story that are about `peer`, as words: the event and the values of these fields.
fn steps(lines: &[Value], peer: SocketAddr, fields: &[&str]) -> Vec<String> {
    let ours = lines.iter().filter(|line| line["peer"] == peer.to_string());
    // What woke the loop, and how often, is up to the kernel.
    let told = ours.filter(|line| line["event"] != "ready");
    let value = |value: &Value| value.as_str().map_or(value.to_string(), str::to_string);
    let word = |line: &Value| {
        let values = ["event"].iter().chain(fields).filter_map(|name| line.get(name));
        values.map(value).collect::<Vec<_>>().join(" ")
    };
    told.map(word).collect()
}

const DESIGNS: [&str; 3] = ["event-loop", "threaded", "iterative"];

#[test]
fn a_conversation_is_told_step_by_step_in_each_design() {
    for design in DESIGNS {
        let (mut stream, mut datagram) = (None, None);
        let lines = story(&["--design", design], |server, _| {
            let mut client = Client::connect(server.address);
            client.exchange(b"hello");
            client.half_close();
            client.expect_end();
            let socket = common::udp(server.address);
            common::exchange_datagram(&socket, b"hello");
            stream = Some(client.0.local_addr().unwrap());
            datagram = Some(socket.local_addr().unwrap());
        });
        let fields = ["thread", "what", "bytes", "of", "reason"];
        let told = steps(&lines, stream.unwrap(), &fields);
        let (accepts, serves, udp) = match design {
            "event-loop" => ("", "", ""),
            "threaded" => (" accept", " client 1", " udp"),
            _ => (" accept", " accept", " udp"),
        };
        let expected = [
            format!("accepted{accepts}"),
            format!("waiting{serves} bytes"),
            format!("read{serves} 5"),
            format!("answered{serves} 5"),
            format!("waiting{serves} room 5"),
            format!("wrote{serves} 5 5"),
            format!("waiting{serves} bytes"),
            format!("end_of_stream{serves}"),
            format!("closed{serves} peer_fin"),
        ];
        // The loop waits for all at once.
        let waits = |step: &&String| design != "event-loop" || !step.starts_with("waiting");
        assert!(told.iter().eq(expected.iter().filter(waits)), "{design}: {told:#?}");
        let told = steps(&lines, datagram.unwrap(), &fields);
        assert_eq!(told, [format!("received{udp} 5"), format!("sent{udp} 5")], "{design}");
    }
}

#[test]
fn each_turn_of_the_loop_tells_what_woke_it() {
    let lines = story(&[], |server, _| {
        let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(server.address)).collect();
        clients.iter_mut().for_each(|client| client.exchange(b"hello"));
        common::exchange_datagram(&common::udp(server.address), b"hello");
    });
    let mut turns = lines.split(|line| line["event"] == "woken");
    let before = turns.next().unwrap();
    assert!(before.iter().all(|line| line["event"] != "ready"), "{before:?}");
    let woken = lines.iter().filter(|line| line["event"] == "woken");
    for (woken, turn) in woken.zip(turns) {
        let ready = turn.iter().filter(|line| line["event"] == "ready").count();
        assert_eq!(woken["events"], ready, "{woken} {turn:?}");
    }
    let found = |what: &str| lines.iter().any(|l| l["event"] == "ready" && l["what"] == what);
    for what in ["listener", "connection", "udp_socket", "signal"] {
        assert!(found(what), "{what}");
    }
}

#[test]
fn back_pressure_is_told() {
    let mut peer = None;
    let lines = story(&["--tcp-only"], |server, log| {
        let mut client = Client::connect(server.address);
        peer = Some(client.0.local_addr().unwrap());
        let sent = client.fill();
        let full = |line: String| {
            let line = object(&line);
            line["event"] == "would_block" && line["call"] == "write"
        };
        while !full(log.recv_timeout(common::DEADLINE).unwrap()) {}
        client.half_close();
        assert_eq!(client.rest().len(), sent);
    });
    let told = steps(&lines, peer.unwrap(), &["call"]);
    let full = told.iter().position(|step| step == "would_block write").unwrap();
    assert!(told[..full].contains(&"wrote".to_string()), "{told:?}");
    assert!(!told[full + 1].starts_with("read"), "{told:?}");
    let ours = |name: &'static str| lines.iter().filter(move |line| line["event"] == name);
    assert!(ours("wrote").any(|line| line["bytes"].as_u64() < line["of"].as_u64()));
    let sum = |name| ours(name).map(|line| line["bytes"].as_u64().unwrap()).sum::<u64>();
    let closed = event(&lines, "closed");
    assert_eq!(closed["bytes_in"], sum("read"));
    assert_eq!(closed["bytes_out"], sum("wrote"));
}

#[test]
fn what_we_end_is_told() {
    for design in DESIGNS {
        let mut peer = None;
        let flags = ["--tcp-only", "--framing", "lines", "--max-frame", "8", "--design", design];
        let lines = story(&flags, |server, _| {
            let mut client = Client::connect(server.address);
            peer = Some(client.0.local_addr().unwrap());
            client.send(b"much too long\n");
            client.expect_end();
        });
        let told = steps(&lines, peer.unwrap(), &["reason"]);
        let others = ["waiting", "frame_broken"];
        let told = told.iter().filter(|step| !others.iter().any(|name| step.starts_with(name)));
        let told: Vec<&str> = told.map(String::as_str).collect();
        assert_eq!(told[..2], ["accepted", "read"], "{design}");
        let last = ["shutdown", "end_of_stream", "closed frame_too_long"];
        assert!(told.ends_with(&last), "{design}: {told:?}");
    }
}

#[test]
fn threads_that_are_to_stop_do_not_wait_again_and_again() {
    for design in &DESIGNS[1..] {
        let lines = story(&["--design", design], |server, log| {
            let mut not_yet = vec!["waits for the next client", "waits for a datagram"];
            while !not_yet.is_empty() {
                let line = log.recv_timeout(common::DEADLINE).unwrap();
                not_yet.retain(|wait| !line.contains(wait));
            }
            Client::connect(server.address).exchange(b"hello");
            common::exchange_datagram(&common::udp(server.address), b"hello");
        });
        for what in ["client", "datagram"] {
            let waits = lines.iter().filter(|line| line["what"] == what).count();
            // At first, after the one that came, and once more where the signal came to this thread.
            assert!((1..=3).contains(&waits), "{design}: {waits} waits for a {what}");
        }
    }
}
