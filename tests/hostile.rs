//! The `evecho` process under what the world outside can do to it: it is stopped and resumed, flooded,
//! starved of memory, never read. Whoever behaves is served all the while.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// What the kernel drops because a queue is full is counted, too: nothing is lost without a trace.
#[test]
fn datagrams_that_find_the_queue_full_are_counted() {
    let _alone = alone();
    for design in ["event-loop", "threaded", "iterative"] {
        let server = Process::start(&["--design", design]);
        server.signal(Signal::SIGSTOP);
        wait_until("it is stopped", || server.state() == "T");
        let flood = common::udp(server.address);
        (0..12_000).for_each(|_| assert_eq!(flood.send(&[0; 1_000]).unwrap(), 1_000));
        server.signal(Signal::SIGCONT);
        server.wait_for("the kernel dropped");
        wait_until("each datagram is received or missed", || {
            server.signal(Signal::SIGUSR1);
            let counters = server.wait_for("udp_received ");
            let count = |name: &str| -> usize {
                let (_, count) = counters.split_once(&format!("{name} ")).unwrap();
                count.split(',').next().unwrap().parse().unwrap()
            };
            let (received, missed) = (count("udp_received"), count("udp_missed"));
            missed > 0 && received + missed == 12_000
        });
    }
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
        assert!(said[1].contains("100 connections were closed for a frame"), "{said:#?}");
        assert!(server.child.wait().unwrap().success());
    }
}

// ---- memory

/// Connects as peers of a slow network are connected: small segments, and a small buffer for what is
/// not read. The system keeps little for it, so that the server has to.
fn connect_narrow(address: SocketAddr, source: IpAddr) -> Client {
    try_connect_narrow(address, source).unwrap()
}

fn try_connect_narrow(address: SocketAddr, source: IpAddr) -> io::Result<Client> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_recv_buffer_size(1)?;
    socket.set_tcp_mss(536)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&address.into(), DEADLINE)?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(DEADLINE))?;
    Ok(Client(stream))
}

/// Clients that send and do not read, of a server without memory for all of them: it may reset a
/// connection at any time.
fn hold_narrow(address: SocketAddr, count: usize, bytes: &[u8]) -> Vec<Client> {
    let hold = |number| {
        let mut client = match try_connect_narrow(address, loopback(number)) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            client => client.unwrap(),
        };
        client.0.set_nonblocking(true).unwrap();
        let _ = client.0.write(bytes);
        Some(client)
    };
    (0..count).filter_map(hold).collect()
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

/// Asks a server for an echo every few milliseconds, until it is told to stop. What counts is for how
/// long the server computes until it answers: how long it waits for a processor is the machine's matter.
struct Pings {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<Duration>>,
}

impl Pings {
    fn start(server: &Process) -> Pings {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&count));
        let (mut client, pid) = (Client::connect(server.address), server.child.id());
        let thread = thread::spawn(move || {
            let mut times = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let start = computed(pid);
                // A frame, a line or just bytes, whatever the server takes it for.
                client.exchange(b"\0\0\0\x05PING\n");
                times.push(computed(pid).saturating_sub(start));
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

/// The time that a process has had a processor for (its only thread, that is).
fn computed(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

/// Keeps other tests that fill the kernel's memory, or measure, from running meanwhile: near `net.ipv4.tcp_mem` the
/// kernel looks for memory at the expense of each socket.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a server attacked, while somebody else asks it for an echo now and then: hardly any of its answers takes
/// more than a small part of what the server computes meanwhile.
fn beside_pings<T>(server: &Process, attack: impl FnOnce() -> T) -> T {
    // A virtual machine gets its memory from the host when a page is first used, in the time of whoever uses it.
    drop(std::hint::black_box(vec![1_u8; 1 << 30]));
    let before = computed(server.child.id());
    let pings = Pings::start(server);
    let outcome = attack();
    let all = computed(server.child.id()) - before;
    let enough = pings.count.load(Ordering::Relaxed) + 200;
    wait_until("pings beside it", || pings.count.load(Ordering::Relaxed) >= enough);
    let p99 = pings.p99();
    // On a machine that is busy, the attack has little of the server.
    assert!(p99 < (all / 5).max(Duration::from_millis(100)), "p99 {p99:?} of {all:?}");
    outcome
}

#[test]
fn ten_thousand_who_never_read_are_kept_in_bounds_and_lose_nothing() {
    let _alone = alone();
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
    // The heap keeps no more than what conversations may hold.
    wait_until("the memory is given back", || server.memory("VmRSS") < 100 << 20);
}

/// What the kernel takes for a client that never reads is bounded by the server, and not by how far the
/// kernel lets buffers grow: 4 MiB to send alone.
#[test]
fn a_client_that_never_reads_is_kept_little_for_by_the_kernel() {
    let _alone = alone();
    for design in ["event-loop", "threaded", "iterative"] {
        let server = Process::start(&["--design", design]);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.set_send_buffer_size(64 << 10).unwrap();
        socket.connect_timeout(&server.address.into(), DEADLINE).unwrap();
        let taken = Client(socket.into()).fill();
        // Half a MiB in each direction, which the kernel may double; less than one read; and the client's own.
        assert!(taken < 3 << 20, "{design}: {taken} bytes");
    }
}

#[test]
fn frames_that_never_end_are_kept_in_bounds() {
    let _alone = alone();
    let server = Process::start(&["--framing", "length", "--max-frame", "16m"]);
    let (announced, sent) = (16_u32 << 20, 15 << 20);
    let piece = vec![b'x'; 64 << 10];
    beside_pings(&server, || {
        let mut clients = Vec::new();
        for number in 0..possible(2_000) {
            let client = Client::connect_with(server.address, Some(loopback(number)), None);
            SockRef::from(&client.0).set_send_buffer_size(64 << 10).unwrap();
            client.0.set_nonblocking(true).unwrap();
            assert_eq!((&client.0).write(&announced.to_be_bytes()).unwrap(), 4);
            clients.push((client, 0));
        }
        // Each of them sends as much as is taken, until it is closed, or has sent what it will send.
        let mut idle = Instant::now();
        while !clients.is_empty() && idle.elapsed() < Duration::from_secs(1) {
            clients.retain_mut(|(client, done)| match client.0.write(&piece) {
                Ok(taken) => {
                    (*done, idle) = (*done + taken, Instant::now());
                    *done < sent
                }
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            });
        }
    });
    assert!(server.memory("VmHWM") < 160 << 20, "{} bytes", server.memory("VmHWM"));
    // The heap keeps no more than what conversations may hold.
    wait_until("the memory is given back", || server.memory("VmRSS") < 100 << 20);
}

/// Too little address space for all that is sent: who has to be let go is let go, and the others go on.
#[test]
fn without_memory_it_goes_on() {
    let _alone = alone();
    for megabytes in [24, 64] {
        let half_lines = &["--framing", "lines", "--max-frame", "64k"][..];
        for flags in [&[][..], &["--service", "upper"], half_lines] {
            let mut command = Command::new("prlimit");
            let limit = format!("--as={}", megabytes << 20);
            command.args([&limit, env!("CARGO_BIN_EXE_evecho")]);
            let server = Process::spawn(command, &[flags, &["--max-buffered", "1g"]].concat());
            let clients = hold_narrow(server.address, 450, &[b'x'; 60 << 10]);
            let mut other = Client::connect(server.address);
            for _ in 0..100 {
                other.exchange(b"STILL THERE\n");
            }
            drop(clients);
            other.exchange(b"STILL THERE\n");
        }
    }
}

/// Too little address space for all threads: clients wait in the backlog until others have left.
#[test]
fn without_memory_threads_go_on() {
    let _alone = alone();
    let lines = &["--framing", "lines", "--max-frame", "1m"][..];
    for flags in [&[][..], &["--service", "upper"], lines] {
        let mut command = Command::new("prlimit");
        command.args(["--as=67108864", env!("CARGO_BIN_EXE_evecho")]);
        let server = Process::spawn(command, &[flags, &["--design", "threaded"]].concat());
        let clients = hold_narrow(server.address, 450, &[b'x'; 60 << 10]);
        server.wait_for(": no memory is left for it");
        drop(clients);
        Client::connect(server.address).exchange(b"STILL THERE\n");
    }
}

/// The blocking designs do not know `--max-buffered`.
#[test]
fn a_frame_without_memory_for_it_names_no_setting_where_none_helps() {
    for design in ["event-loop", "threaded", "iterative"] {
        let mut command = Command::new("prlimit");
        command.args(["--as=33554432", env!("CARGO_BIN_EXE_evecho")]);
        let flags =
            ["--service", "upper", "--framing", "length", "--max-frame", "16m", "--design", design];
        let server = Process::spawn(command, &flags);
        let mut client = connect_narrow(server.address, loopback(1));
        // It ends the connection.
        let _ = client.0.write_all(&(15_u32 << 20).to_be_bytes());
        let _ = client.0.write_all(&vec![b'x'; 15 << 20]);
        let line = server.wait_for("no memory for what it needs");
        assert_eq!(line.contains("(--max-buffered)"), design == "event-loop", "{line}");
    }
}

/// Too little address space for all datagrams whose replies wait: the rest is dropped and counted.
#[test]
fn delayed_replies_fit_into_the_address_space() {
    let _alone = alone();
    for (design, size) in [("event-loop", 100), ("event-loop", 16_384), ("threaded", 1_000)] {
        for megabytes in [24, 64] {
            let mut command = Command::new("prlimit");
            let limit = format!("--as={}", megabytes << 20);
            command.args([&limit, env!("CARGO_BIN_EXE_evecho")]);
            let flags = ["--design", design, "--udp-only", "--delay", "20s"];
            let mut server = Process::spawn(command, &flags);
            let (client, datagram) = (common::udp(server.address), vec![b'x'; size]);
            for _ in 0..20_000 {
                client.send(&datagram).unwrap();
            }
            server.signal(Signal::SIGUSR1);
            server.wait_for("udp_overflowed");
            assert_eq!(server.child.try_wait().unwrap(), None, "{design}, {size} bytes");
        }
    }
}

/// A control group with a limit on memory: version 2, or 1.
struct ControlGroup(PathBuf);

impl ControlGroup {
    fn new(limit: usize) -> io::Result<ControlGroup> {
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let path = |line: &str| line.rsplit(':').next().unwrap().trim_start_matches('/').to_owned();
        let (root, own, file) = match own.lines().find(|line| line.contains(":memory:")) {
            Some(line) => ("/sys/fs/cgroup/memory", path(line), "memory.limit_in_bytes"),
            None => ("/sys/fs/cgroup", String::new(), "memory.max"),
        };
        let group = Path::new(root).join(own).join(format!("evecho-test-{}", std::process::id()));
        std::fs::create_dir(&group)?;
        let group = ControlGroup(group);
        std::fs::write(group.0.join(file), limit.to_string())?;
        Ok(group)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // The processes in it have to be gone first.
        wait_until("the control group is empty", || std::fs::remove_dir(&self.0).is_ok());
    }
}

/// The limit of a control group is heeded: beyond it the kernel ends the process.
#[test]
fn a_control_group_limits_what_is_held() {
    let _alone = alone();
    let group = match ControlGroup::new(32 << 20) {
        Ok(group) => group,
        Err(error) => return println!("skipped: no control group can be made: {error}"),
    };
    let mut command = Command::new("sh");
    let join = "echo $$ > \"$1/cgroup.procs\" && shift && exec \"$@\"";
    command.args(["-c", join, "sh"]).arg(&group.0).arg(env!("CARGO_BIN_EXE_evecho"));
    let mut server = Process::spawn(command, &[]);
    server.wait_for("the limit on memory of the control group lets connections hold");
    let _clients = hold_narrow(server.address, 300, &vec![b'x'; 600 << 10]);
    let mut other = Client::connect(server.address);
    (0..100).for_each(|_| other.exchange(b"STILL THERE\n"));
    assert_eq!(server.child.try_wait().unwrap(), None);
    drop(server);
}

// ---- work

/// Text that takes long to put in upper case, as much as is taken, from so many clients.
fn stream_text(server: &Process, clients: usize, piece: &str) {
    let mut streams: Vec<_> = (0..clients)
        .map(|_| {
            let Client(stream) = Client::connect(server.address);
            stream.set_nonblocking(true).unwrap();
            (stream, 0)
        })
        .collect();
    let mut room = vec![0; 1 << 20];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        for (stream, sent) in &mut streams {
            let taken = stream.write(&piece.as_bytes()[*sent..]);
            *sent = (*sent + *taken.as_ref().unwrap_or(&0)) % piece.len();
            for error in [taken, stream.read(&mut room)].into_iter().filter_map(Result::err) {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            }
        }
    }
}

#[test]
fn whoever_has_much_computed_holds_up_nobody() {
    let _alone = alone();
    // "ΐ" has three characters for its upper case.
    let server = Process::start(&["--service", "upper"]);
    beside_pings(&server, || stream_text(&server, 300, &"\u{390}".repeat(64 << 10)));
}

#[test]
fn long_lines_hold_up_no_other_client() {
    let _alone = alone();
    let server = Process::start(&["--service", "upper", "--framing", "lines"]);
    let line = "\u{390}".repeat((64 << 10) / 2 - 1) + "\n";
    beside_pings(&server, || stream_text(&server, 50, &line));
}
