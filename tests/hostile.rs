//! The `evecho` process under what the world outside can do to it: it is stopped and resumed, flooded,
//! starved of memory, never read. Whoever behaves is served all the while.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Client, DEADLINE, wait_until};
use nix::sys::resource::Resource;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, SockRef, Socket, Type};

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

    /// A line of /proc/pid/status, in bytes.
    fn memory(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
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

// ---- memory

/// Connects as peers of a slow network are connected: small segments, and a small buffer for what is
/// not read. The system keeps little for it, so that the server has to.
fn connect_narrow(address: SocketAddr, source: IpAddr) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect_timeout(&address.into(), DEADLINE).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    Client(stream)
}

/// One of many loopback addresses.
fn loopback(number: usize) -> IpAddr {
    [127, 1, (number / 250) as u8, (number % 250 + 1) as u8].into()
}

/// How many clients this process and the server can have, of those that are wanted.
fn possible(wanted: usize) -> usize {
    evecho::raise_open_file_limit().unwrap();
    let (soft, _) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    wanted.min(usize::try_from(soft).unwrap().saturating_sub(200))
}

/// Asks a server for an echo every few milliseconds, until it is told to stop.
struct Pings {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Pings {
    fn start(address: SocketAddr) -> Pings {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let thread = thread::spawn(move || {
            let mut client = Client::connect(address);
            let mut times = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                // A frame, a line or just bytes, whatever the server takes it for.
                client.exchange(b"\0\0\0\x05PING\n");
                times.push(start.elapsed());
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
            times.sort();
            times
        });
        Pings { stop, count, thread }
    }

    fn p99(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let times = self.thread.join().unwrap();
        times[times.len() * 99 / 100]
    }
}

/// Has a server attacked, while somebody else asks it for an echo now and then: that takes no longer
/// than the machine makes it take, which a server beside it shows that nobody attacks.
fn beside_pings<T>(server: &Process, attack: impl FnOnce() -> T) -> T {
    let calm = Process::start(&[]);
    let (pings, control) = (Pings::start(server.address), Pings::start(calm.address));
    let outcome = attack();
    let enough = pings.count.load(Ordering::Relaxed) + 200;
    wait_until("pings beside it", || pings.count.load(Ordering::Relaxed) >= enough);
    let (p99, control) = (pings.p99(), control.p99());
    assert!(p99 < Duration::from_millis(50) + 3 * control, "p99 {p99:?}, elsewhere {control:?}");
    outcome
}

#[test]
fn ten_thousand_who_never_read_are_kept_in_bounds_and_lose_nothing() {
    let server = Process::start(&[]);
    let bytes = common::pattern(1, 48 << 10);
    let clients = beside_pings(&server, || {
        let mut clients = Vec::new();
        for number in 0..possible(10_000) {
            let mut client = connect_narrow(server.address, loopback(number));
            client.0.set_nonblocking(true).unwrap();
            let sent = client.0.write(&bytes).unwrap();
            clients.push((client, sent));
        }
        clients
    });
    assert!(server.memory("VmHWM") < 160 << 20, "{} bytes", server.memory("VmHWM"));
    // They read after all: every byte is there.
    let next = Mutex::new(clients.into_iter());
    let read = || {
        while let Some((mut client, sent)) = { next.lock().unwrap().next() } {
            client.0.set_nonblocking(false).unwrap();
            SockRef::from(&client.0).set_recv_buffer_size(1 << 20).unwrap();
            client.half_close();
            common::assert_same(&client.rest(), &bytes[..sent]);
        }
    };
    thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(read))));
    wait_until("the memory is given back", || server.memory("VmRSS") < 32 << 20);
}
