//! The `evecho` process as an operator meets it: flags, log, signals, limits, exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[path = "common/daemon.rs"]
mod daemon;

use daemon::{
    DEADLINE, Daemon, LOCALHOST, assert_answer, assert_datagram, assert_echo, connect, evecho,
    read_to_end, run, stderr,
};

// ---- where it listens

#[test]
fn every_interface_and_family_by_default() {
    let daemon = Daemon::start(&[]);
    for ip in [LOCALHOST, [127, 0, 0, 2].into(), Ipv6Addr::LOCALHOST.into()] {
        assert_echo(&connect((ip, daemon.port).into()));
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.connect((ip, daemon.port)).unwrap();
        assert_datagram(&socket, b"hello");
    }
}

#[test]
fn the_first_line_says_what_is_bound_and_who_can_reach_it() {
    let first = |flags: &[&str]| {
        let mut child =
            evecho().args(["-p", "0"]).args(flags).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        line
    };
    let line = first(&[]);
    assert!(
        line.contains("listening on [::]:")
            && line.contains("any client that reaches this machine"),
        "{line}"
    );
    let line = first(&["--bind", "127.0.0.1", "--tcp-only"]);
    assert!(line.contains("127.0.0.1:") && line.contains("(TCP, "), "{line}");
    assert!(line.contains("this machine only"), "{line}");
}

#[test]
fn binds_exactly_what_is_named() {
    let daemon = Daemon::start(&["--bind", "127.0.0.1", "--bind", "::1"]);
    for ip in [LOCALHOST, Ipv6Addr::LOCALHOST.into()] {
        assert_echo(&connect((ip, daemon.port).into()));
    }
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], daemon.port));
    let refused = TcpStream::connect(elsewhere).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn one_transport_only() {
    let tcp = Daemon::start(&["--tcp-only", "--bind", "127.0.0.1"]);
    assert_echo(&tcp.connect());
    drop(UdpSocket::bind((LOCALHOST, tcp.port)).expect("the UDP port is free"));
    let udp = Daemon::start(&["--udp-only", "--bind", "127.0.0.1"]);
    assert_datagram(&udp.udp(), b"hello");
    let refused = TcpStream::connect((LOCALHOST, udp.port)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn processes_share_a_port_only_when_asked_to() {
    let first = Daemon::start(&["--reuse-port"]);
    let port = first.port.to_string();
    let second = Daemon::spawn(evecho().args(["--port", &port, "--reuse-port", "-v"]));
    assert_echo(&second.connect());
}

// ---- bad input

#[test]
fn a_port_in_use_is_one_sentence() {
    let daemon = Daemon::start(&["--bind", "127.0.0.1"]);
    let port = daemon.port.to_string();
    let output = run(evecho().args(["--port", &port, "--bind", "127.0.0.1"]));
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("--port"), "{said}");
}

#[test]
fn an_address_of_another_machine_is_one_sentence() {
    // 192.0.2.0/24 is for documentation (RFC 5737): nobody has it.
    let output = run(evecho().args(["--port", "0", "--bind", "192.0.2.1"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("192.0.2.1") && stderr(&output).contains("--bind"));
}

#[test]
fn bad_flags_are_usage() {
    let cases: [(&[&str], &str); 10] = [
        (&["--port", "65536"], "65536"),
        (&["--bind", "127.0.0.1:x"], "127.0.0.1:x"),
        (&["--tcp-only", "--udp-only"], "--udp-only"),
        (&["--max-frame", "0"], "frame"),
        (&["--max-frame", "much"], "64k"),
        (&["--idle-timeout", "10 apples"], "200ms"),
        (&["--busy-poll", "1h"], "CPU"),
        (&["--guard-ports", "echo"], "echo"),
        (&["--name", "a name"], "letters"),
        (&["--bind", "::1", "--bind", "::1"], "::1"),
    ];
    for (flags, word) in cases {
        let output = run(evecho().env("EVECHO_PORT", "0").args(flags));
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(stderr(&output).contains(word), "{flags:?}: {}", stderr(&output));
    }
}

#[test]
fn the_environment_speaks_where_flags_do_not() {
    let mut command = evecho();
    command.envs([
        ("EVECHO_PORT", "0"),
        ("EVECHO_SERVICE", "upper"),
        ("EVECHO_BIND", "127.0.0.1,::1"),
    ]);
    let daemon = Daemon::spawn(&mut command);
    assert_answer(&daemon.connect(), "hello", "HELLO");
    assert_answer(&connect((Ipv6Addr::LOCALHOST, daemon.port).into()), "hello", "HELLO");
    drop(daemon);
    let daemon = Daemon::spawn(command.args(["--service", "echo"]));
    assert_answer(&daemon.connect(), "hello", "hello");
    let output = run(evecho().env("EVECHO_PORT", "many"));
    assert_eq!(output.status.code(), Some(2));
}

// ---- what the log teaches

#[test]
fn each_connection_ends_in_a_line_that_says_how() {
    let daemon = Daemon::start(&["--framing", "lines", "--max-frame", "8"]);
    let fin = daemon.connect();
    assert_answer(&fin, "one\ntwo\n", "one\ntwo\n");
    fin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&fin), b"");
    let line = daemon.wait_for("closed");
    assert!(line.contains("by the peer's FIN: 8 bytes in"), "{line}");
    assert!(line.contains(&fin.local_addr().unwrap().to_string()), "{line}");

    let reset = daemon.connect();
    assert_answer(&reset, "one\n", "one\n");
    socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).unwrap();
    drop(reset);
    daemon.wait_for("closed by the peer's RST: 4 bytes in");

    let long = daemon.connect();
    assert_answer(&long, "one\nmuch too long\n", "one\n");
    assert_eq!(read_to_end(&long), b"");
    drop(long);
    let line = daemon.wait_for("closed by us");
    assert!(line.contains("(--max-frame)") && line.contains("INFO"), "{line}");
}

#[test]
fn quiet_is_quiet() {
    let port = Daemon::start(&["--bind", "127.0.0.1"]).port.to_string();
    let mut child = evecho().args(["-q", "--port", &port]).stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + DEADLINE;
    while TcpStream::connect((LOCALHOST, port.parse().unwrap())).is_err() {
        assert!(Instant::now() < end, "it does not listen");
        thread::sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((said.as_str(), child.wait().unwrap().code()), ("", Some(0)));
}

// ---- signals

#[test]
fn sigusr1_logs_the_counters() {
    let daemon = Daemon::start(&[]);
    assert_echo(&daemon.connect());
    assert_datagram(&daemon.udp(), b"four");
    daemon.wait_for("closed");
    daemon.signal(Signal::SIGUSR1);
    let line = daemon.wait_for("accepted 1");
    for counter in
        ["closed_by_peer 1", "bytes_in 5", "bytes_out 5", "udp_answered 1", "udp_bytes_out 4"]
    {
        assert!(line.contains(counter), "{line}");
    }
    assert!(daemon.stop().iter().any(|line| line.contains("stopped: accepted 1")));
}

#[test]
fn sigterm_drains() {
    let mut daemon = Daemon::start(&["--bind", "127.0.0.1", "--drain-timeout", "1h"]);
    let clients = [daemon.connect(), daemon.connect()];
    clients.iter().for_each(assert_echo);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("draining: 2 connections");
    let refused = TcpStream::connect((LOCALHOST, daemon.port)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    for client in clients {
        assert_echo(&client);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&client), b"");
    }
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn the_drain_timeout_ends_with_a_fin() {
    let mut daemon = Daemon::start(&["--drain-timeout", "50ms"]);
    let client = daemon.connect();
    assert_echo(&client);
    daemon.signal(Signal::SIGINT);
    assert_eq!(read_to_end(&client), b"");
    drop(client);
    daemon.wait_for("closed by us: draining");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn how_many_were_cut_off_is_said() {
    let mut daemon = Daemon::start(&["--drain-timeout", "50ms"]);
    let clients = [daemon.connect(), daemon.connect()];
    clients.iter().for_each(assert_echo);
    daemon.signal(Signal::SIGTERM);
    // They are asked to leave, and do not.
    daemon.wait_for("2 connections were cut off");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
    let client = daemon.connect();
    assert_echo(&client);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("draining");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_delay_of_a_drain_at_once() {
    let mut daemon = Daemon::start(&["--drain-delay", "1h"]);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for("told to stop: not ready any more, and serving on for 3600s");
    assert_echo(&daemon.connect());
    assert_datagram(&daemon.udp(), b"hello");
    daemon.assert_sleeps();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

// ---- limits

#[test]
fn a_client_that_never_reads_costs_little_and_loses_nothing() {
    const TOTAL: usize = 256 << 20;
    let daemon = Daemon::start(&[]);
    let mut client = daemon.connect();
    assert_echo(&client);
    let before = daemon.resident();
    let mut writer = client.try_clone().unwrap();
    // Byte n is n modulo 251: any loss shifts the rest.
    let block: Vec<u8> = (0..251 * 1024).map(|n| (n % 251) as u8).collect();
    writer.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut fill = |until: Instant| {
        while sent < TOTAL && Instant::now() < until {
            let piece = &block[sent % 251..];
            match writer.write(&piece[..piece.len().min(TOTAL - sent)]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(1))
                }
                Err(error) => panic!("{error}"),
            }
        }
        sent
    };
    // Until all buffers between us are full: nothing has moved for a while.
    let mut full = fill(Instant::now() + Duration::from_millis(200));
    while full < fill(Instant::now() + Duration::from_millis(200)) {
        full = fill(Instant::now());
    }
    assert!(full < TOTAL, "the server took it all without an answer being read");
    daemon.assert_sleeps();
    assert!(daemon.resident() - before < 1024, "{} KiB", daemon.resident() - before);

    writer.set_nonblocking(false).unwrap();
    let sending = thread::spawn(move || {
        while sent < TOTAL {
            let piece = &block[sent % 251..];
            sent += writer.write(&piece[..piece.len().min(TOTAL - sent)]).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let (mut received, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let length = client.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        let right = buffer[..length]
            .iter()
            .enumerate()
            .all(|(n, &byte)| byte == ((received + n) % 251) as u8);
        assert!(right, "wrong bytes after {received}");
        received += length;
    }
    sending.join().unwrap();
    assert_eq!(received, TOTAL);
    assert!(daemon.resident() - before < 1024, "{} KiB", daemon.resident() - before);
}

#[test]
fn out_of_descriptors_the_backlog_waits() {
    ["event-loop", "threaded"].into_iter().for_each(run_out_of_descriptors);
}

fn run_out_of_descriptors(design: &str) {
    let script = format!(
        "ulimit -n 32 && exec '{}' -p 0 -v --bind 127.0.0.1 --design {design}",
        env!("CARGO_BIN_EXE_evecho")
    );
    let daemon = Daemon::spawn(Command::new("sh").args(["-c", &script]));
    let clients: Vec<TcpStream> = (0..80).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|mut client| client.write_all(b"hello").unwrap());
    daemon.wait_for("as many as the limit on open files allows; raise it");
    daemon.assert_sleeps();
    // They are served in the order in which they came, as those before them leave.
    for client in &clients {
        let mut answer = [0; 5];
        (&*client).read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(client), b"");
    }
    let log = daemon.stop();
    assert!(!log.iter().any(|line| line.contains("backlog")), "one line per episode: {log:?}");
}

/// Runs a program under a filter that forbids accept4(2): EPERM, every time.
const WITHOUT_ACCEPT: &str = r#"
import ctypes, os, platform, struct, sys
number = {"x86_64": 288, "aarch64": 242}[platform.machine()]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 1), (0x06, 0, 0, 0x7fff0000)]
code = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
code = ctypes.create_string_buffer(code)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 # PR_SET_NO_NEW_PRIVS
assert prctl(22, 2, ctypes.byref(Filter(4, ctypes.addressof(code))), 0, 0) == 0 # PR_SET_SECCOMP
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn a_lasting_error_of_accept_makes_nobody_spin() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|run| run.status.success()) {
        println!("skipped: python3 sets the filter");
        return;
    }
    for design in ["event-loop", "threaded", "iterative"] {
        let mut command = Command::new("python3");
        command.args(["-c", WITHOUT_ACCEPT, env!("CARGO_BIN_EXE_evecho")]);
        command.args(["--port", "0", "--bind", "127.0.0.1", "--design", design]);
        let mut daemon = Daemon::spawn(&mut command);
        let _client = daemon.connect();
        daemon.wait_for("cannot accept with 0 connections open: Operation not permitted");
        daemon.assert_sleeps();
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn a_full_server_names_the_limit_that_it_was_given() {
    for design in ["event-loop", "threaded"] {
        let daemon = Daemon::start(&["--max-connections", "1", "--design", design]);
        let first = daemon.connect();
        assert_echo(&first);
        let _second = daemon.connect();
        daemon.wait_for("as many as allowed; new clients wait in the backlog until one closes (--max-connections)");
        daemon.signal(Signal::SIGTERM);
    }
}

#[test]
fn thousands_of_idle_connections_cost_next_to_nothing() {
    evecho::raise_open_file_limit().unwrap();
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let count = hard.saturating_sub(100).min(9_000) as i64;
    let daemon = Daemon::start(&["--tcp-only"]);
    let warm: Vec<TcpStream> = (0..8).map(|_| daemon.connect()).collect();
    warm.iter().for_each(assert_echo);
    let before = daemon.resident();
    let clients: Vec<TcpStream> = (0..count).map(|_| daemon.connect()).collect();
    clients.iter().for_each(assert_echo);
    daemon.assert_sleeps();
    let each = (daemon.resident() - before) * 1024 / count;
    assert!(each < 160, "{each} bytes for an idle connection");
    assert_eq!(
        daemon.proc("status").lines().find(|line| line.starts_with("Threads:")),
        Some("Threads:\t1")
    );
}
