//! The `evecho` process under what the world outside can do to it: it is stopped and resumed, flooded,
//! starved of memory, never read. Whoever behaves is served all the while.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::{Client, DEADLINE, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A server in a process of its own; ended, at the latest, when it goes out of scope.
struct Process {
    child: Child,
    address: SocketAddr,
    log: Receiver<String>,
}

impl Process {
    /// Our own, on 127.0.0.1 and a free port, with these flags.
    fn start(flags: &[&str]) -> Process {
        Process::spawn(Command::new(env!("CARGO_BIN_EXE_evecho")), flags)
    }

    /// A command that ends with the path of `evecho`.
    fn spawn(mut command: Command, flags: &[&str]) -> Process {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EVECHO_")) {
            command.env_remove(name);
        }
        command.args(["--port", "0", "--bind", "127.0.0.1"]).args(flags).env_remove("RUST_LOG");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut process = Process { child, address: ([127, 0, 0, 1], 0).into(), log };
        let first = process.wait_for("listening on ");
        let (_, address) = first.split_once("listening on ").unwrap();
        process.address = address.split([',', ' ']).next().unwrap().parse().unwrap();
        process
    }

    /// The next line of the log that contains `text`.
    fn wait_for(&self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.log.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no line with '{text}'"));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// One letter: R runs, S sleeps, T is stopped.
    fn state(&self) -> String {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).unwrap();
        stat.rsplit_once(") ").unwrap().1[..1].to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stopped and resumed, as a frozen control group or a suspended laptop is: what was sent in the
/// meantime came in time, though the idle timeout has passed.
fn stand_still(design: &str, clients: usize) {
    let idle_timeout = Duration::from_secs(1);
    let server = Process::start(&["--design", design, "--idle-timeout", "1s"]);
    let mut clients: Vec<_> = (0..clients).map(|_| Client::connect(server.address)).collect();
    for client in &mut clients {
        client.exchange(b"hello");
    }
    server.signal(Signal::SIGSTOP);
    wait_until("it is stopped", || server.state() == "T");
    let stopped = Instant::now();
    for client in &mut clients {
        client.send(b"are you there?");
    }
    wait_until("the timeout has passed", || stopped.elapsed() > 2 * idle_timeout);
    server.signal(Signal::SIGCONT);
    for client in &mut clients {
        client.expect(b"are you there?");
    }
    // Whoever has nothing more to say is idle all the same.
    for client in &mut clients {
        client.expect_end();
    }
}

#[test]
fn what_comes_while_the_event_loop_stands_still_is_answered() {
    stand_still("event-loop", 10);
}

#[test]
fn what_comes_while_the_threads_stand_still_is_answered() {
    stand_still("threaded", 10);
}

#[test]
fn what_comes_while_the_iterative_server_stands_still_is_answered() {
    stand_still("iterative", 1);
}

/// Whatever strangers do as often as they like is told of when it begins and when it is over.
#[test]
fn strangers_do_not_fill_the_log() {
    for design in ["event-loop", "threaded", "iterative"] {
        let flags = ["--design", design, "--framing", "lines", "--max-frame", "8"];
        let mut server = Process::start(&flags);
        for _ in 0..100 {
            let mut client = Client::connect(server.address);
            client.send(b"much too long\n");
            client.expect_end();
        }
        server.signal(Signal::SIGTERM);
        let said: Vec<String> =
            server.log.iter().filter(|line| line.contains(" closed ")).collect();
        assert_eq!(said.len(), 2, "{design}: {said:#?}");
        assert!(said[0].contains("further ones are counted"), "{said:#?}");
        assert!(said[1].contains("100 connections were closed for what they sent"), "{said:#?}");
        assert!(server.child.wait().unwrap().success());
    }
}
