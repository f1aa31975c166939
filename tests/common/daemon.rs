//! The `evecho` process as a server, and clients that never wait for ever.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "signals.rs"]
mod signals;
#[path = "wait.rs"]
mod wait;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) use signals::with_default_signals;
pub(crate) use wait::{DEADLINE, wait_until};

pub(crate) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(crate) fn evecho() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evecho"));
    // What the developer has set is not what is tested.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EVECHO_")) {
        command.env_remove(name);
    }
    for name in ["RUST_LOG", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS"] {
        command.env_remove(name);
    }
    command
}

/// The command of a server of which some system calls fail, as strace(1) says: `setsockopt:error=EPERM`.
/// None, with a word about it, where there is no strace that can do this.
pub(crate) fn failing(injection: &str) -> Option<Command> {
    let mut command = Command::new("strace");
    // The server is the child, and strace its tracer from outside.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={injection}")]);
    let mut probe = Command::new("strace");
    probe.args(["-D", "-qq", "-o", "/dev/null", "-e", "inject=ptrace:error=EPERM", "true"]);
    if !probe.output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no strace here that injects errors");
        return None;
    }
    command.arg(env!("CARGO_BIN_EXE_evecho"));
    evecho().get_envs().for_each(|(name, _)| _ = command.env_remove(name));
    Some(command)
}

/// Makes two sockets descriptors 3 and 4, and says that they are for the command that it becomes.
const PASS: &str = r#"exec 3<&0 4<&1 0</dev/null 1>/dev/null
export LISTEN_FDS=2 LISTEN_PID="${LISTEN_PID-$$}" LISTEN_FDNAMES=unknown:names
exec "$@""#;

/// The command of a server that inherits these.
pub(crate) fn inheriting(one: impl Into<OwnedFd>, other: impl Into<OwnedFd>) -> Command {
    with_sockets(&evecho(), one, other)
}

/// This command of a server, such that it inherits these.
pub(crate) fn with_sockets(
    server: &Command,
    one: impl Into<OwnedFd>,
    other: impl Into<OwnedFd>,
) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", PASS, "sh"]).arg(server.get_program()).args(server.get_args());
    server.get_envs().for_each(|(name, _)| _ = command.env_remove(name));
    command.stdin(one.into()).stdout(other.into());
    command
}

/// Sockets as a service manager has them, which keeps them.
pub(crate) fn kept() -> (TcpListener, UdpSocket) {
    (TcpListener::bind((LOCALHOST, 0)).unwrap(), UdpSocket::bind((LOCALHOST, 0)).unwrap())
}

/// The command of a server that serves them.
pub(crate) fn pass((listener, socket): &(TcpListener, UdpSocket)) -> Command {
    inheriting(socket.try_clone().unwrap(), listener.try_clone().unwrap())
}

/// A running server; ended, at the latest, when it goes out of scope.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    /// What the first line says.
    pub(crate) listening: String,
    pub(crate) port: u16,
    log: Receiver<String>,
}

impl Daemon {
    pub(crate) fn start(flags: &[&str]) -> Daemon {
        let mut command = evecho();
        command.args(["--port", "0", "-v"]).args(flags);
        Daemon::spawn(&mut with_default_signals(command))
    }

    /// Starts a command that becomes a server, and waits for the first line of its log.
    pub(crate) fn spawn(command: &mut Command) -> Daemon {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut daemon = Daemon { child, listening: String::new(), port: 0, log };
        let first = daemon.wait_for("listening on ");
        let (_, address) = first.split_once("listening on ").unwrap();
        let address = address.split([',', ' ']).next().unwrap();
        daemon.port = address.parse::<SocketAddr>().unwrap().port();
        daemon.listening = first;
        daemon
    }

    /// The next line of the log that contains `text`.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line =
                self.log.recv_timeout(left).unwrap_or_else(|_| panic!("no line with '{text}'"));
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect((LOCALHOST, self.port).into())
    }

    pub(crate) fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.connect((LOCALHOST, self.port)).unwrap();
        socket
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the server does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it by SIGTERM; the log since the last line that was waited for.
    pub(crate) fn stop(mut self) -> Vec<String> {
        self.signal(Signal::SIGTERM);
        assert!(self.wait().success());
        self.log.iter().collect()
    }
}

/// What `/proc` tells of it.
#[cfg(target_os = "linux")]
impl Daemon {
    pub(crate) fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// Resident memory in KiB, exact: the quick count in `status` may be off by much.
    pub(crate) fn resident(&self) -> i64 {
        let rollup = self.proc("smaps_rollup");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Nanoseconds that its threads were on a CPU so far.
    pub(crate) fn cpu(&self) -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let times = threads.map(|thread| {
            let path = thread.unwrap().path().join("schedstat");
            // None, where the thread has ended meanwhile.
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().next().map_or(0, |time| time.parse().unwrap())
        });
        times.sum()
    }

    /// Waits until it uses no CPU at all for a while, as a server that spins never does.
    pub(crate) fn assert_sleeps(&self) {
        self.assert_sleeps_for(Duration::from_millis(300));
    }

    /// Waits until it uses none for this long.
    pub(crate) fn assert_sleeps_for(&self, time: Duration) {
        let end = Instant::now() + DEADLINE;
        let (mut cpu, mut since) = (self.cpu(), Instant::now());
        while since.elapsed() < time {
            assert!(Instant::now() < end, "the server does not sleep");
            thread::sleep(Duration::from_millis(10));
            if self.cpu() != cpu {
                (cpu, since) = (self.cpu(), Instant::now());
            }
        }
    }

    /// Stops it by SIGSTOP, and waits until it stands still.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        wait_until("the server stands still", || self.proc("status").contains("State:\tT"));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends `text` and reads `expected`.
pub(crate) fn assert_answer(mut stream: &TcpStream, text: &str, expected: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), expected);
}

pub(crate) fn assert_echo(stream: &TcpStream) {
    assert_answer(stream, "hello", "hello");
}

pub(crate) fn assert_datagram(socket: &UdpSocket, bytes: &[u8]) {
    socket.send(bytes).unwrap();
    let mut answer = vec![0; bytes.len() + 1];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!(&answer[..length], bytes);
}

/// Reads to the end: the server's FIN.
pub(crate) fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    rest
}

/// Runs to the end what is not a server.
pub(crate) fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
