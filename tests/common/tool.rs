//! Runs `evecho` and the servers that it talks to: its own, others, and doubles in a thread.

#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[allow(clippy::duplicate_mod, reason = "some tests use both helpers")]
#[path = "signals.rs"]
mod signals;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

pub(crate) use signals::{catches, is_ignored, with_default_signals};

/// When a test that hangs is ended.
pub(crate) const DEADLINE: Duration = Duration::from_secs(300);

/// The command with these arguments. A client that is given no time to wait waits as long as it takes: a machine
/// that stands still for a second makes no answer late.
pub(crate) fn evecho(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evecho"));
    command.args(args).env_remove("RUST_LOG");
    let wait = match args.first() {
        Some(&"ping") => ["--wait", "-W"],
        Some(&"send") => ["--timeout", "-t"],
        Some(&"load") => ["--timeout"; 2],
        _ => return command,
    };
    if !args.iter().any(|arg| wait.contains(arg)) {
        command.args([wait[0], "1h"]);
    }
    command
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// Runs `evecho` with these arguments and this input to its end.
pub(crate) fn run(args: &[&str], input: &[u8]) -> Outcome {
    let mut child = spawn(evecho(args));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // The command may end before it has read everything.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let outcome = finish(child);
    writer.join().unwrap();
    outcome
}

/// Wrong usage is told apart from whatever else goes wrong, in words.
#[track_caller]
pub(crate) fn assert_wrong_usage(args: &[&str]) {
    let outcome = run(args, b"");
    assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
    assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty(), "{args:?}: {outcome:?}");
}

pub(crate) fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Reads what the command still writes, and waits for its end.
pub(crate) fn finish(mut child: Child) -> Outcome {
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all);
    let wait = |bytes: Option<Receiver<Vec<u8>>>| match bytes.map(|b| b.recv_timeout(DEADLINE)) {
        None => Some(Vec::new()),
        Some(bytes) => bytes.ok(),
    };
    let (Some(stdout), Some(stderr)) = (wait(stdout), wait(stderr)) else {
        child.kill().unwrap();
        panic!("it still runs after {DEADLINE:?}");
    };
    let code = child.wait().unwrap().code();
    Outcome { code, stdout, stderr: String::from_utf8(stderr).unwrap() }
}

fn read_all(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        sender.send(bytes)
    });
    receiver
}

/// A server in a process of its own, ended when this is dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: String,
}

impl Server {
    /// Our own, with these flags.
    pub(crate) fn evecho(flags: &[&str]) -> Self {
        let mut command = evecho(&["--port", "0", "--bind", "127.0.0.1"]);
        command.args(flags);
        Self::start(command, "listening on ").expect("cargo built it")
    }

    /// socat with this listening address and that program behind it.
    pub(crate) fn socat(listen: &str, then: &str) -> Option<Self> {
        let mut command = Command::new("socat");
        command.args(["-d", "-d", listen, then]);
        Self::start(command, "listening on AF=2 ")
    }

    /// A server in Python that prints where it listens on standard error.
    pub(crate) fn python(program: &str) -> Option<Self> {
        let mut command = Command::new("python3");
        command.args(["-u", "-c", program]);
        Self::start(command, "listening on ")
    }

    /// Starts a server and learns its address: the word after `marker` on standard error. `None`,
    /// and a word about it, where the program is not installed.
    #[allow(clippy::print_stderr, reason = "a test that cannot run says so")]
    fn start(mut command: Command, marker: &str) -> Option<Self> {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = match spawned.spawn() {
            Ok(process) => process,
            Err(error) => {
                eprintln!("not tested: {:?} cannot be started: {error}", command.get_program());
                return None;
            }
        };
        let (sender, receiver) = mpsc::channel();
        let log = BufReader::new(process.stderr.take().unwrap());
        let marker = marker.to_owned();
        // Reads to the end, so that the server never waits for a reader of its log.
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, after)) = line.split_once(&marker) {
                    let address = after.split_whitespace().next().unwrap_or_default().to_owned();
                    let _ = sender.send(address);
                }
            }
        });
        match receiver.recv_timeout(DEADLINE) {
            Ok(address) => Some(Self { process, address }),
            Err(_) => {
                process.kill().unwrap();
                panic!("{:?} did not say where it listens", command.get_program());
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Closes a listener for good. To drop it is not enough at once: a process that another test is starting has it, too,
/// until it becomes another program.
pub(crate) fn close(listener: TcpListener) {
    SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
}

/// A server double over TCP, in a thread. Its listener closes when it returns.
pub(crate) fn tcp_double<T: Send + 'static>(
    behaviour: impl FnOnce(TcpListener) -> T + Send + 'static,
) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (address, thread::spawn(move || behaviour(listener)))
}

/// A server double that talks to one client.
pub(crate) fn tcp_session<T: Send + 'static>(
    behaviour: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (String, JoinHandle<T>) {
    tcp_double(|listener| behaviour(listener.accept().unwrap().0))
}

/// A server double over UDP: gets each datagram, its number (from 0) and its sender. It lasts as
/// long as the test.
pub(crate) fn udp_double(
    mut behaviour: impl FnMut(&UdpSocket, usize, &[u8], SocketAddr) + Send + 'static,
) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        for number in 0.. {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            behaviour(&socket, number, &buffer[..length], from);
        }
    });
    address
}

/// A port that nobody listens on and nobody else gets, as long as the socket lives.
pub(crate) fn refused_port() -> (Socket, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    (socket, address)
}

/// A listener that answers no connection attempt, as a dead host does: its backlog is full.
pub(crate) fn dead_host() -> (Socket, Vec<TcpStream>, String) {
    let (socket, address) = refused_port();
    socket.listen(0).unwrap();
    let mut backlog = Vec::new();
    let target = address.parse().unwrap();
    while let Ok(stream) = TcpStream::connect_timeout(&target, Duration::from_millis(100)) {
        backlog.push(stream);
    }
    (socket, backlog, address)
}

/// An example as it was built; where only this test was, it is built now.
pub(crate) fn example(name: &str) -> PathBuf {
    let profile = Path::new(env!("CARGO_BIN_EXE_evecho")).parent().unwrap();
    let path = profile.join("examples").join(name);
    if !path.exists() {
        let mut cargo = cargo(&["build", "--quiet", "--example", name]);
        let cargo = cargo.arg("--target-dir").arg(profile.parent().unwrap());
        assert!(cargo.status().unwrap().success());
    }
    path
}

/// Cargo in the repository, which takes everything as it is.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or("cargo".into()));
    cargo.args(arguments).args(["--locked", "--offline"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// Tries all of these at the same time: mostly, they wait.
pub(crate) fn beside<T: Send>(all: impl IntoIterator<Item = T>, test: impl Fn(T) + Sync) {
    let test = &test;
    thread::scope(|scope| all.into_iter().for_each(|one| drop(scope.spawn(move || test(one)))));
}
