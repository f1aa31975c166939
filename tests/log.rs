//! A log that cannot be written holds nobody up.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
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

/// More connections than a pipe, and what the server keeps, have room for lines about.
const MANY: usize = 1000;

/// A server with a standard error of the test's; ended, at the latest, when it goes out of scope.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(flags: &[&str], stderr: impl Into<Stdio>) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evecho"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EVECHO_")) {
            command.env_remove(name);
        }
        command.env_remove("RUST_LOG").args(["--port", "0", "--bind", "127.0.0.1", "--tcp-only"]);
        let child = command.args(flags).stderr(stderr).spawn().unwrap();
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
