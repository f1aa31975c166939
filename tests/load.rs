//! The load engine against servers that do right, and servers that each do one thing wrong.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use evecho::Framing;
use evecho::Transport::{self, Tcp, Udp};
use evecho::client::Cancel;
use evecho::client::load::{self, Config, Errors, Length, Mode, Pattern, Report};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

const SIZE: usize = 64;

/// Long enough for whatever is not to happen, also on a machine that stands still for a while.
const LONG: Duration = Duration::from_secs(300);

/// Long enough for what is to happen, and short enough to wait for.
const SHORT: Duration = Duration::from_secs(1);

/// What a server does with message [`VICTIM`], counted over all connections from 0.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// No answer.
    Lose,
    /// No answer, and to every so many messages none either.
    LoseEach(u64),
    /// Only the first 20 bytes.
    Cut,
    /// The answer twice.
    Duplicate,
    /// One byte changed.
    Corrupt,
    /// The answer after that of the next message.
    Swap,
    /// The answer after this time.
    Sleep(Duration),
    /// Close without an answer.
    Close,
    /// Close after the first 20 bytes.
    CutAndClose,
    /// Reset without an answer.
    Reset,
    /// A length of nothing, and nothing.
    Empty,
    /// No FIN after the client's, on any connection.
    NeverClose,
}

const VICTIM: u64 = 3;

/// A server with a fault.
struct Double {
    fault: Fault,
    seen: Mutex<u64>,
    more: Condvar,
    peers: Mutex<BTreeSet<IpAddr>>,
    /// All messages.
    came: Mutex<Vec<u8>>,
}

impl Double {
    fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            fault,
            seen: Mutex::default(),
            more: Condvar::new(),
            peers: Mutex::default(),
            came: Mutex::default(),
        })
    }

    /// How many messages came so far.
    fn seen(&self) -> u64 {
        *self.seen.lock().unwrap()
    }

    fn wait_for(&self, count: u64) {
        let seen = self.seen.lock().unwrap();
        drop(self.more.wait_while(seen, |seen| *seen < count).unwrap());
    }

    /// Counts a message. Whether it is one of those with a fault.
    fn count(&self) -> bool {
        let mut seen = self.seen.lock().unwrap();
        *seen += 1;
        self.more.notify_all();
        match self.fault {
            Fault::LoseEach(count) => seen.is_multiple_of(count),
            _ => *seen == VICTIM + 1,
        }
    }

    /// The answers to a message, in order. `held` is the connection's.
    fn answers(&self, victim: bool, message: &[u8], held: &mut Option<Vec<u8>>) -> Vec<Vec<u8>> {
        let whole = message.to_vec();
        self.came.lock().unwrap().extend_from_slice(message);
        let mut answers = match self.fault {
            _ if !victim => vec![whole],
            Fault::Lose | Fault::LoseEach(_) | Fault::Close | Fault::Reset => vec![],
            Fault::Cut | Fault::CutAndClose => vec![whole[..20].to_vec()],
            Fault::Empty => vec![vec![0; 4]],
            Fault::Duplicate => vec![whole.clone(), whole],
            Fault::Corrupt => {
                let mut wrong = whole;
                wrong[SIZE / 2] ^= 0x10;
                vec![wrong]
            }
            Fault::Swap => {
                *held = Some(whole);
                return vec![];
            }
            Fault::Sleep(time) => {
                thread::sleep(time);
                vec![whole]
            }
            Fault::None | Fault::NeverClose => vec![whole],
        };
        answers.extend(held.take());
        answers
    }

    fn serve_tcp(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let double = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (double, stream) = (Arc::clone(&double), stream.unwrap());
                // How a connection ends is the client's to see.
                thread::spawn(move || double.serve_stream(stream));
            }
        });
        address
    }

    fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        self.peers.lock().unwrap().insert(stream.peer_addr()?.ip());
        stream.set_nodelay(true)?;
        let (mut message, mut held) = ([0; SIZE], None);
        while stream.read_exact(&mut message).is_ok() {
            let victim = self.count();
            for answer in self.answers(victim, &message, &mut held) {
                stream.write_all(&answer)?;
            }
            match self.fault {
                Fault::Close | Fault::CutAndClose if victim => {
                    return stream.shutdown(Shutdown::Both);
                }
                Fault::Reset if victim => {
                    return socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                }
                _ => {}
            }
        }
        if self.fault == Fault::NeverClose {
            loop {
                thread::park();
            }
        }
        Ok(())
    }

    fn serve_udp(self: &Arc<Self>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let double = Arc::clone(self);
        thread::spawn(move || {
            let (mut buffer, mut held) = ([0; 65_536], None);
            loop {
                let (count, peer) = socket.recv_from(&mut buffer).unwrap();
                let victim = double.count();
                for answer in double.answers(victim, &buffer[..count], &mut held) {
                    // The client may be gone.
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        address
    }
}

/// A config with other values in some of its fields.
macro_rules! with {
    ($config:expr; $($field:ident $(: $value:expr)?),*) => {{
        let mut config = $config;
        $(with!(@set config $field $($value)?);)*
        config
    }};
    (@set $config:ident $field:ident) => { $config.$field = $field };
    (@set $config:ident $field:ident $value:expr) => { $config.$field = $value };
}

/// One connection, 20 messages.
fn config(transport: Transport, address: SocketAddr) -> Config {
    with!(Config::new(transport, address); connections: 1,
        size: SIZE,
        length: Length::Messages(20),
        timeout: LONG)
}

fn run(config: &Config) -> Report {
    load::run(config, &Cancel::default(), |_| {}).unwrap()
}

fn error(config: &Config) -> String {
    load::run(config, &Cancel::default(), |_| {}).unwrap_err().to_string()
}

fn errors(set: impl FnOnce(&mut Errors)) -> Errors {
    let mut errors = Errors::default();
    set(&mut errors);
    errors
}

/// The messages that came back and the errors, of a run against a server with this fault. An RST that is lost
/// is not sent again: then the client learns nothing, and the run is another one.
fn against(fault: Fault, transport: Transport, change: impl Fn(&mut Config)) -> (u64, Errors) {
    let seen = against_once(fault, transport, &change);
    match fault {
        Fault::Reset if seen.1.closed == 0 => against_once(fault, transport, &change),
        _ => seen,
    }
}

fn against_once(fault: Fault, transport: Transport, change: impl Fn(&mut Config)) -> (u64, Errors) {
    let double = Double::new(fault);
    let address = match transport {
        Tcp => double.serve_tcp(),
        Udp => double.serve_udp(),
    };
    let mut config = config(transport, address);
    change(&mut config);
    let report = run(&config);
    assert_eq!(report.first_error.is_some(), report.errors.total() > 0, "{report:?}");
    assert!(!report.stopped);
    (report.messages, report.errors)
}

/// Where each answer but one comes within [`SHORT`]. A machine that stands still for as long makes more of them late,
/// and gets another try.
#[track_caller]
fn assert_seen_shortly(
    fault: Fault,
    transport: Transport,
    change: impl Fn(&mut Config),
    expected: (u64, Errors),
) {
    let run = || {
        against(fault, transport, |config| {
            config.timeout = SHORT;
            change(config);
        })
    };
    let mut seen = run();
    for _ in 0..4 {
        if seen == expected {
            break;
        }
        seen = run();
    }
    assert_eq!(seen, expected, "{fault:?}, {transport:?}");
}

/// Over both transports, with one message in flight and with several.
#[track_caller]
fn assert_seen(fault: Fault, expected: (u64, Errors)) {
    for (transport, depth) in [(Tcp, 1), (Tcp, 4), (Udp, 1), (Udp, 4)] {
        for pattern in [Pattern::Text, Pattern::Binary] {
            let change = |config: &mut Config| (config.depth, config.pattern) = (depth, pattern);
            let seen = against(fault, transport, change);
            assert_eq!(seen, expected, "{transport:?}, depth {depth}, {pattern:?}");
        }
    }
}

#[test]
fn a_server_that_does_right_is_clean_over_tcp() {
    let double = Double::new(Fault::None);
    let address = double.serve_tcp();
    for (connections, depth) in [(1, 1), (3, 1), (1, 7), (5, 3)] {
        let report = run(&with!(config(Tcp, address); connections, depth));
        assert_eq!((report.messages, report.errors), (20, Errors::default()));
        assert_eq!((report.bytes, report.opened), (20 * SIZE as u64, connections));
        let latency = report.latency.unwrap();
        assert!(Some(latency.min) <= latency.p50 && latency.p50 <= latency.p99);
        assert!(latency.p999 <= latency.max);
        assert!(report.is_clean() && report.rate > 0.0);
    }
    assert_eq!(double.seen(), 80);
}

#[test]
fn a_server_that_does_right_is_clean_over_udp() {
    let double = Double::new(Fault::None);
    let address = double.serve_udp();
    for (connections, depth, size) in [(1, 1, 16), (3, 1, 64), (1, 1, 65_507), (5, 3, 1000)] {
        let report = run(&with!(config(Udp, address); connections, depth, size));
        assert_eq!((report.messages, report.errors), (20, Errors::default()));
    }
    assert_eq!(double.seen(), 80);
}

#[test]
fn a_loss_is_reported() {
    let lost = errors(|errors| errors.lost = 1);
    assert_eq!(against(Fault::Lose, Tcp, |config| config.depth = 4), (19, lost));
    assert_seen_shortly(Fault::Lose, Udp, |_| {}, (19, lost));
}

#[test]
fn what_is_never_answered_is_reported() {
    let unanswered = errors(|errors| errors.unanswered = 1);
    assert_seen_shortly(Fault::Lose, Tcp, |_| {}, (3, unanswered));
}

#[test]
fn a_cut_is_reported() {
    let cut = errors(|errors| errors.cut = 1);
    assert_eq!(against(Fault::Cut, Tcp, |config| config.depth = 4), (19, cut));
    assert_seen_shortly(Fault::Cut, Tcp, |_| {}, (3, cut));
    assert_eq!(against(Fault::Cut, Udp, |config| config.depth = 4), (19, cut));
}

#[test]
fn a_duplicate_is_reported() {
    let duplicates = errors(|errors| errors.duplicates = 1);
    assert_seen(Fault::Duplicate, (20, duplicates));
}

#[test]
fn a_corruption_is_reported() {
    let corrupt = errors(|errors| errors.corrupt = 1);
    assert_seen(Fault::Corrupt, (19, corrupt));
}

#[test]
fn another_order_is_reported() {
    let reordered = errors(|errors| errors.reordered = 1);
    assert_eq!(against(Fault::Swap, Tcp, |config| config.depth = 4), (19, reordered));
    // Over UDP each message is one by itself, and this one came back.
    assert_eq!(against(Fault::Swap, Udp, |config| config.depth = 4), (20, reordered));
}

#[test]
fn a_delay_is_reported() {
    // With one in flight, the next message tells that the one before was given up.
    let lost = errors(|errors| (errors.lost, errors.late) = (1, 1));
    assert_seen_shortly(Fault::Swap, Udp, |_| {}, (19, lost));
    let late = errors(|errors| errors.late = 1);
    // The other connection goes on meanwhile.
    let (messages, seen) = against(Fault::Sleep(2 * SHORT), Tcp, |config| {
        config.connections = 2;
        config.length = Length::Time(3 * SHORT);
        config.timeout = SHORT;
    });
    assert_eq!((messages > VICTIM, seen), (true, late));
}

#[test]
fn an_early_close_is_reported() {
    let closed = errors(|errors| (errors.closed, errors.unanswered) = (1, 1));
    assert_eq!(against(Fault::Close, Tcp, |_| {}), (3, closed));
    assert_eq!(against(Fault::Reset, Tcp, |_| {}), (3, closed));
    let cut = errors(|errors| (errors.closed, errors.cut) = (1, 1));
    assert_eq!(against(Fault::CutAndClose, Tcp, |_| {}), (3, cut));
    // The other connections go on.
    let seen = against(Fault::Close, Tcp, |config| config.connections = 4);
    assert_eq!(seen, (19, closed));
}

#[test]
fn churn_opens_and_closes() {
    let churn = |config: &mut Config| {
        config.mode = Mode::Churn;
        config.connections = 2;
    };
    assert_eq!(against(Fault::None, Tcp, churn), (20, Errors::default()));
    for (fault, errors) in [
        (Fault::Corrupt, errors(|errors| errors.corrupt = 1)),
        (Fault::Close, errors(|errors| (errors.closed, errors.unanswered) = (1, 1))),
        (Fault::Reset, errors(|errors| (errors.closed, errors.unanswered) = (1, 1))),
        (Fault::CutAndClose, errors(|errors| (errors.closed, errors.cut) = (1, 1))),
    ] {
        assert_eq!(against(fault, Tcp, churn), (19, errors), "{fault:?}");
    }
    let duplicates = errors(|errors| errors.duplicates = 1);
    assert_eq!(against(Fault::Duplicate, Tcp, churn), (20, duplicates));
    let unanswered = errors(|errors| errors.unanswered = 1);
    let seen = against(Fault::Lose, Tcp, |config| {
        churn(config);
        config.timeout = SHORT;
    });
    assert_eq!(seen, (19, unanswered));
}

#[test]
fn churn_notices_a_server_that_does_not_close() {
    let churn = |config: &mut Config| {
        config.mode = Mode::Churn;
        config.length = Length::Messages(1);
    };
    let unclosed = errors(|errors| errors.unclosed = 1);
    assert_seen_shortly(Fault::NeverClose, Tcp, churn, (0, unclosed));
}

/// A client that is stopped while a reply is out, and goes on after the timeout, when the reply is there.
#[test]
fn what_came_while_the_client_was_paused_is_no_fault() {
    for (mode, errors) in [("churn", "errors       none"), ("ping-pong", "errors       1 late")] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = Command::new(env!("CARGO_BIN_EXE_evecho"))
            .args(["load", &listener.local_addr().unwrap().to_string(), "-m", mode])
            .args(["-c", "1", "-n", "1", "--timeout", "1s"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut message = [0; SIZE];
        stream.read_exact(&mut message).unwrap();
        let pid = Pid::from_raw(client.id() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        stream.write_all(&message).unwrap();
        if mode == "churn" {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        thread::sleep(2 * SHORT);
        kill(pid, Signal::SIGCONT).unwrap();
        let mut report = String::new();
        assert_eq!(stream.read(&mut message).unwrap(), 0);
        drop(stream);
        client.stdout.take().unwrap().read_to_string(&mut report).unwrap();
        assert!(client.wait().is_ok() && report.contains(errors), "{mode}: {report}");
    }
}

#[test]
fn idle_connections_answer_twice() {
    let idle = |config: &mut Config| {
        config.mode = Mode::Idle;
        config.connections = 200;
        config.length = Length::Time(Duration::from_millis(20));
    };
    assert_eq!(against(Fault::None, Tcp, idle), (400, Errors::default()));
    let closed = errors(|errors| (errors.closed, errors.unanswered) = (1, 1));
    assert_eq!(against(Fault::Close, Tcp, idle), (398, closed));
}

#[test]
fn streams_are_checked_to_the_last_byte() {
    let stream = |config: &mut Config| {
        config.mode = Mode::Stream;
        config.length = Length::Messages(20_000);
        config.connections = 3;
    };
    assert_eq!(against(Fault::None, Tcp, stream), (20_000, Errors::default()));
    for (fault, whole, errors) in [
        (Fault::Corrupt, 19_999, errors(|errors| errors.corrupt = 1)),
        (Fault::Lose, 19_999, errors(|errors| errors.lost = 1)),
        (Fault::Cut, 19_999, errors(|errors| errors.cut = 1)),
        (Fault::Duplicate, 20_000, errors(|errors| errors.duplicates = 1)),
        (Fault::Swap, 19_999, errors(|errors| errors.reordered = 1)),
    ] {
        assert_eq!(against(fault, Tcp, stream), (whole, errors), "{fault:?}");
    }
    for fault in [Fault::Close, Fault::Reset] {
        let (messages, errors) = against(fault, Tcp, |config| {
            stream(config);
            config.connections = 1;
        });
        assert!(messages <= VICTIM && errors.closed == 1, "{fault:?}: {messages}, {errors:?}");
    }
}

#[test]
fn a_rate_is_kept_and_warm_up_is_left_out() {
    for transport in [Tcp, Udp] {
        let seen = against(Fault::None, transport, |config| {
            config.rate = Some(1000.0);
            config.warmup = Duration::from_millis(50);
            config.length = Length::Messages(100);
            config.connections = 3;
        });
        assert_eq!(seen, (100, Errors::default()));
    }
    let address = Double::new(Fault::None).serve_tcp();
    let report = run(&with!(config(Tcp, address); rate: Some(200.0)));
    // From the first of 20 messages to the last, at 5 ms each.
    assert!(report.duration >= Duration::from_millis(95), "{report:?}");
    assert_eq!(report.unsent, 0);
}

#[test]
fn a_pause_of_the_server_counts_for_all_that_were_due_in_it() {
    let address = Double::new(Fault::Sleep(Duration::from_millis(400))).serve_tcp();
    let report = run(&with!(config(Tcp, address); rate: Some(50.0)));
    // Message 3 is answered 400 ms after it came; the 16 after it are due every 20 ms, and wait.
    let latency = report.latency.unwrap();
    assert!(latency.p50 >= Some(Duration::from_millis(100)), "{latency:?}");
    assert_eq!((report.messages, report.errors), (20, Errors::default()));
}

#[test]
fn what_was_due_and_never_sent_is_later_than_all_others() {
    // Computed from the schedule: no rate takes memory, or time.
    for (transport, rate) in [(Tcp, 1e9), (Udp, 1e9), (Tcp, 1e12), (Tcp, 1e300)] {
        let double = Double::new(Fault::None);
        let address = match transport {
            Tcp => double.serve_tcp(),
            Udp => double.serve_udp(),
        };
        let length = Length::Time(Duration::from_millis(100));
        // The run waits for the datagrams that are dropped.
        let timeout = if transport == Udp { SHORT } else { LONG };
        let report = run(&with!(config(transport, address); rate: Some(rate), length, timeout));
        // The socket drops datagrams that the server does not get to.
        let Errors { lost, late, .. } = report.errors;
        let dropped = if transport == Udp { lost + late } else { 0 };
        assert!(report.messages > 0 && report.errors.total() == dropped, "{report:?}");
        assert!(report.unsent as f64 > rate.min(1e12) * 0.05, "{report:?}");
        assert!(!report.is_clean());
        let latency = report.latency.unwrap();
        assert_eq!((latency.p50, latency.max), (None, None), "{latency:?}");
        let late = report.send_delay.unwrap().latency;
        assert!(late.max > Some(Duration::ZERO), "{late:?}");
    }
}

#[test]
fn a_lost_datagram_keeps_no_other_waiting() {
    let timeout = 2 * SHORT;
    let lost = || {
        let double = Double::new(Fault::LoseEach(100));
        let (connections, rate) = (4, Some(1_000.0));
        let length = Length::Messages(1_000);
        let config = config(Udp, double.serve_udp());
        let report = run(&with!(config; connections, rate, length, timeout));
        assert_eq!((report.unsent, report.bound_met), (0, 0));
        let p50 = report.latency.unwrap().p50.unwrap();
        let seen = (report.messages, report.errors);
        seen == (990, errors(|errors| errors.lost = 10)) && p50 < timeout / 4
    };
    // On a machine that stands still for a moment, more come at once than the socket of the server has room for.
    assert!((0..5).any(|_| lost()));
}

#[test]
fn a_socket_that_gets_no_answer_any_more_is_replaced() {
    // A machine that stands still for a second answers fewer.
    assert!((0..3).any(|_| sockets_are_replaced()));
}

fn sockets_are_replaced() -> bool {
    // A path that keeps the first two ports for a former server, which has answered each ten times.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut former: Vec<(SocketAddr, u32)> = Vec::new();
        let mut message = [0; SIZE];
        while let Ok((length, from)) = socket.recv_from(&mut message) {
            match former.iter().position(|(port, _)| *port == from) {
                Some(place) if former[place].1 == 0 => continue,
                Some(place) => former[place].1 -= 1,
                None if former.len() < 2 => former.push((from, 9)),
                None => {}
            }
            socket.send_to(&message[..length], from).unwrap();
        }
    });
    let (connections, timeout) = (2, Duration::from_millis(100));
    let length = Length::Time(4 * SHORT);
    let report = run(&with!(config(Udp, address); connections, timeout, length));
    report.replaced >= 2 && report.errors.lost >= 6 && report.messages > 40
}

#[test]
fn messages_are_of_the_pattern_that_is_asked_for() {
    for transport in [Tcp, Udp] {
        for (pattern, name) in [(Pattern::Text, "text"), (Pattern::Binary, "binary")] {
            let double = Double::new(Fault::None);
            let address = match transport {
                Tcp => double.serve_tcp(),
                Udp => double.serve_udp(),
            };
            let report = run(&with!(config(transport, address); pattern));
            let is_text = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let all = double.came.lock().unwrap();
            assert_eq!((all.len(), all.iter().all(is_text)), (20 * SIZE, name == "text"));
            assert_eq!(serde_json::to_value(&report).unwrap()["config"]["pattern"], name);
        }
    }
}

/// A server on one connection that answers nothing before all messages are there.
fn serve_late(transport: Transport, messages: usize) -> SocketAddr {
    let mut all = vec![[0; SIZE]; messages];
    match transport {
        Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                all.iter_mut().for_each(|message| stream.read_exact(message).unwrap());
                all.iter().for_each(|message| stream.write_all(message).unwrap());
                // The client closes.
                assert_eq!(stream.read(&mut [0]).unwrap(), 0);
            });
            address
        }
        Udp => {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = socket.local_addr().unwrap();
            thread::spawn(move || {
                let mut peer = None;
                for message in &mut all {
                    peer = Some(socket.recv_from(message).unwrap().1);
                }
                all.iter().for_each(|message| {
                    socket.send_to(message, peer.unwrap()).unwrap();
                });
            });
            address
        }
    }
}

#[test]
fn at_a_rate_a_message_is_sent_when_it_is_due_whatever_is_out() {
    for (transport, depth) in [(Tcp, 1), (Udp, 1), (Tcp, 7), (Udp, 7)] {
        let config = config(transport, serve_late(transport, 50));
        let (length, rate) = (Length::Messages(50), Some(500.0));
        let report = run(&with!(config; depth, length, rate));
        assert_eq!((report.messages, report.errors, report.unsent), (50, Errors::default(), 0));
        // The first one waits for the last, which is due 98 ms later.
        let latency = report.latency.unwrap();
        assert!(latency.max.unwrap() >= Duration::from_millis(97), "{latency:?}");
        let late = serde_json::to_value(&report).unwrap()["send_delay"].clone();
        assert!(late["p50_ns"].as_u64() <= late["max_ns"].as_u64(), "{late}");
    }
}

#[test]
fn at_a_rate_connections_take_turns() {
    for transport in [Tcp, Udp] {
        let double = Double::new(Fault::None);
        let address = match transport {
            Tcp => double.serve_tcp(),
            Udp => double.serve_udp(),
        };
        let connections = 5;
        let report = run(&with!(config(transport, address); connections, rate: Some(1_000.0)));
        assert_eq!((report.starved, report.slowest), (0, report.fastest), "{transport:?}");
    }
}

#[test]
fn what_is_kept_of_messages_that_are_out_is_bounded_and_the_report_says_so() {
    // A socket that takes datagrams, and a server that never reads them.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let most = 65_536;
    let length = Length::Messages(most + 100);
    let is_met = |timeout: Duration| {
        let config = config(Udp, socket.local_addr().unwrap());
        let report = run(&with!(config; length, rate: Some(1e9), timeout));
        assert_eq!((report.messages, report.errors.lost), (0, most + 100), "{report:?}");
        assert_eq!(report.unsent, 0, "{report:?}");
        let late = report.send_delay.unwrap().latency;
        report.bound_met > 0 && late.max.unwrap() >= timeout * 3 / 4
    };
    // A busy machine may need longer for as many than the first are waited for.
    assert!([2, 4, 8, 16, 32].into_iter().any(|times| is_met(times * SHORT)));
}

#[test]
fn what_comes_back_in_the_measured_time_counts() {
    // A server that answers the first message in the measured time, and no other.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let warm = Arc::new(std::sync::Barrier::new(2));
    let warmed = Arc::clone(&warm);
    let server = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut message = [0; SIZE];
        stream.read_exact(&mut message).unwrap();
        warmed.wait();
        stream.write_all(&message).unwrap();
        stream.read_exact(&mut message).unwrap();
        stream
    });
    let mut config = config(Tcp, address);
    config.length = Length::Time(SHORT);
    config.warmup = Duration::from_millis(50);
    config.timeout = SHORT;
    let mut measures = false;
    let report = load::run(&config, &Cancel::default(), |progress| {
        if progress.phase == load::Phase::Measuring && !std::mem::replace(&mut measures, true) {
            warm.wait();
        }
    });
    let report = report.unwrap();
    assert_eq!((report.messages, report.bytes), (1, SIZE as u64), "{report:?}");
    // How long it took says how long the window was kept waiting.
    assert_eq!(report.latency, None);
    drop(server.join().unwrap());
}

#[test]
fn a_run_stops_when_it_is_cancelled() {
    let double = Double::new(Fault::Lose);
    let config = with!(config(Tcp, double.serve_tcp()); length: Length::Time(LONG));
    let cancel = Cancel::default();
    let cancel_then = |_: &load::Progress| {
        if double.seen() > VICTIM {
            cancel.cancel();
        }
    };
    let report = load::run(&config, &cancel, cancel_then).unwrap();
    // What is still out is no fault then.
    assert_eq!((report.stopped, report.messages, report.errors), (true, 3, Errors::default()));
}

#[test]
fn churn_tells_connecting_from_the_exchange() {
    let slow = Duration::from_millis(200);
    let double = Double::new(Fault::Sleep(slow));
    let address = double.serve_tcp();
    let churn = |count| {
        let mode = Mode::Churn;
        run(&with!(config(Tcp, address); mode, length: Length::Messages(count)))
    };
    // The server sleeps once, in the exchange.
    let (first, second) = (churn(10), churn(5));
    let [connecting, exchange] =
        [&first.connecting, &first.exchange].map(|part| part.as_ref().unwrap());
    assert!(
        exchange.latency.max.unwrap() >= slow && connecting.latency.max.unwrap() > Duration::ZERO
    );
    let parts = connecting.latency.mean + exchange.latency.mean;
    assert!(parts <= first.latency.unwrap().mean, "{first:?}");
    assert_eq!(first.config.sources.len(), 64);
    assert!(first.ended.is_none() && first.is_clean());

    let json = |report: &Report| serde_json::to_value(report).unwrap();
    let sum = Report::merge([first.clone(), second.clone()]).unwrap();
    for part in ["connecting", "exchange"] {
        let [one, other, sum] = [&first, &second, &sum].map(|report| json(report)[part].clone());
        let [counts @ .., total] = [&one, &other, &sum].map(histogram);
        assert_eq!((counts, total), ([10, 5], 15));
        let max = |part: &serde_json::Value| part["max_ns"].as_u64().unwrap();
        assert_eq!(max(&sum), max(&one).max(max(&other)));
    }
    assert_eq!(sum.config.sources, first.config.sources);
    // Connections that stay have no such parts.
    let stay = run(&config(Tcp, address));
    assert!(stay.connecting.is_none() && stay.exchange.is_none());
    assert_eq!(stay.config.sources, [address.ip()]);
}

#[test]
fn a_run_that_is_stopped_in_its_warm_up_has_measured_nothing() {
    for rate in [None, Some(1_000.0)] {
        let config = config(Tcp, Double::new(Fault::None).serve_tcp());
        let config = with!(config; length: Length::Time(LONG), warmup: LONG, rate);
        let cancel = Cancel::default();
        let stop = |progress: &load::Progress| {
            if progress.messages > 0 {
                cancel.cancel();
            }
        };
        let report = load::run(&config, &cancel, stop).unwrap();
        assert_eq!((report.stopped, report.messages), (true, 0), "{rate:?}");
        assert_eq!((report.duration, report.unsent), (Duration::ZERO, 0), "{rate:?}");
        assert!(report.latency.is_none() && report.send_delay.is_none(), "{rate:?}");
        assert!(!report.is_clean());
    }
}

#[test]
fn sources_are_used_in_turn() {
    let double = Double::new(Fault::None);
    let address = double.serve_tcp();
    let sources: Vec<IpAddr> = ["127.0.0.2", "127.0.0.3"].map(|ip| ip.parse().unwrap()).to_vec();
    run(&with!(config(Tcp, address); connections: 4, sources: sources.clone()));
    assert_eq!(*double.peers.lock().unwrap(), sources.into_iter().collect());
}

/// A TCP socket that keeps a port from everyone else and does not listen.
fn closed_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A listener whose queue is full: what is sent to it is dropped, as by a dead host.
fn dead_host() -> (socket2::Socket, TcpStream, SocketAddr) {
    let (socket, address) = closed_port();
    socket.listen(0).unwrap();
    let first = TcpStream::connect(address).unwrap();
    (socket, first, address)
}

#[test]
fn a_refused_port_is_an_error() {
    let (_socket, address) = closed_port();
    for mode in [Mode::PingPong, Mode::Stream, Mode::Churn, Mode::Idle] {
        let length = Length::Time(LONG);
        let error = error(&with!(config(Tcp, address); mode, length));
        assert!(error.starts_with(&format!("{address} refused the connection")), "{error}");
    }
    // Connected to itself, a socket takes nothing from others, and its port is nobody else's.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    socket.connect(address).unwrap();
    let error = error(&config(Udp, address));
    assert!(error.starts_with(&format!("{address}: nothing listens on that UDP port")), "{error}");
}

fn evecho(arguments: &str, target: impl ToString) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evecho"));
    command.args(["load", &target.to_string()]).args(arguments.split_whitespace());
    if !arguments.contains("--timeout") {
        command.args(["--timeout", "300s"]);
    }
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_command_reports_to_people() {
    let address = Double::new(Fault::None).serve_tcp();
    let output = evecho("-c 2 -n 1000", format!("localhost:{}", address.port()));
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert!(report.starts_with("TCP ping-pong with localhost:"), "{report}");
    let parts = ["messages     1,000 in ", "each  ", "/s, mean ", "latency      mean ", ", p99.9 "];
    for part in parts.into_iter().chain(["errors       none\n"]) {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_command_reports_to_programs() {
    let address = Double::new(Fault::None).serve_udp();
    let output = evecho("--udp -c 2 -n 1000 --json", address);
    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["messages"], 1000);
    assert_eq!(report["config"]["transport"], "udp");
    assert_eq!(report["config"]["length"]["messages"], 1000);
    assert_eq!(report["errors"]["lost"], 0);
    let rate = |name: &str| report[name].as_f64().unwrap();
    assert!(rate("slowest") > 0.0 && rate("slowest") <= rate("fastest"), "{report}");
    assert!((rate("slowest") + rate("fastest") - rate("rate")).abs() < 1.0, "{report}");
    assert!(report["latency"]["p99_ns"].as_u64().unwrap() > 0);
}

#[test]
fn the_command_fails_when_something_was_wrong() {
    let address = Double::new(Fault::Corrupt).serve_tcp();
    let output = evecho("-c 1 -n 10", address);
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    let first = "errors       1 corrupt; the first: connection 0: byte 224 came back as 0x";
    assert!(report.contains(first), "{report}");
}

#[test]
fn the_command_fails_when_the_rate_was_not_kept() {
    let address = Double::new(Fault::None).serve_tcp();
    let output = evecho("-c 1 -r 1000000000 -t 100ms", address);
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report.contains("p50 never") && report.contains("errors       none"), "{report}");
    assert!(report.contains("messages were due and never sent"), "{report}");
    assert!(report.contains("  sent late    mean "), "{report}");
}

#[test]
fn what_has_no_good_reply_is_later_than_all_others() {
    for (fault, transport) in [(Fault::Lose, Udp), (Fault::Corrupt, Tcp), (Fault::Cut, Udp)] {
        let double = Double::new(fault);
        let address = match transport {
            Tcp => double.serve_tcp(),
            Udp => double.serve_udp(),
        };
        let mut intervals = Vec::new();
        let timeout = if fault == Fault::Lose { 2 * SHORT } else { LONG };
        let config = with!(config(transport, address); timeout, every: LONG);
        let report = load::run(&config, &Cancel::default(), |progress| {
            intervals.extend(progress.interval);
        })
        .unwrap();
        assert_eq!((report.messages, report.without_time()), (19, 1), "{report:?}");
        // One of 20.
        let latency = report.latency.unwrap();
        assert!(latency.p90.is_some() && latency.p99.is_none(), "{latency:?}");
        assert_eq!(intervals.last().unwrap().latency, Some(latency));
    }
}

#[test]
fn a_run_that_the_server_ends_says_so() {
    for (arguments, asked) in [("-c 1 -t 30s", "30 s"), ("-c 1 -n 20", "20 messages")] {
        let address = Double::new(Fault::Close).serve_tcp();
        let output = evecho(arguments, address);
        let report = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{report}");
        assert!(report.lines().next().unwrap().ends_with("; ended early"), "{report}");
        let (error, why) = (text(&output.stderr), ": the server had closed its connections\n");
        assert!(error.starts_with("evecho: the load ended early, after "), "{error}");
        assert!(error.ends_with(&format!(" of {asked}{why}")), "{error}");
    }
    // What is lost does not end a run, nor does a connection of several.
    let lossy = run(&with!(config(Udp, Double::new(Fault::Lose).serve_udp()); timeout: SHORT));
    let closing = run(&with!(config(Tcp, Double::new(Fault::Close).serve_tcp()); connections: 4));
    assert_eq!((lossy.ended, closing.ended), (None, None));
}

#[test]
fn a_run_that_is_stopped_in_the_warm_up_says_so() {
    let double = Double::new(Fault::None);
    let child = Command::new(env!("CARGO_BIN_EXE_evecho"))
        .args(["load", &double.serve_tcp().to_string(), "-c", "1", "--warmup", "600s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    double.wait_for(100);
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report.contains("It was stopped before the measured part began."), "{report}");
    assert!(report.contains("; stopped early\n") && !report.contains("echo server?"), "{report}");
}

#[test]
fn a_late_datagram_is_one_of_the_lost() {
    let address = Double::new(Fault::Swap).serve_udp();
    let output = evecho("--udp -c 1 -n 20 --timeout 1s", address);
    let report = text(&output.stdout);
    let errors =
        "errors       1 lost, 1 of the lost late; the first: socket 0: seq=4: no reply within 1 s";
    assert!(report.contains(errors), "{report}");
}

#[test]
fn the_command_says_what_stands_in_the_way() {
    let (_closed, closed) = closed_port();
    let (_listener, _first, dead) = dead_host();
    let refused = format!("{closed} refused the connection");
    let silent = format!(
        "{dead} did not answer within 100 ms; its queue of new connections was full (ListenOverflows"
    );
    for (arguments, target, sentence) in [
        ("-n 1", closed.to_string(), refused.as_str()),
        ("-n 1 -m churn", closed.to_string(), &refused),
        ("-n 1", "nobody.invalid:7".to_owned(), "cannot resolve 'nobody.invalid'"),
        ("-n 1 --timeout 100ms", dead.to_string(), &silent),
        ("-n 1 -m churn --timeout 100ms", dead.to_string(), &silent),
    ] {
        let output = evecho(arguments, target);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with(&format!("evecho: {sentence}")), "{sentence}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn the_command_explains_its_usage() {
    for (arguments, word) in [
        ("-c 0", "connection"),
        ("--udp -s 3", "16"),
        ("--udp -m churn", "exclude each other"),
        ("-m idle -n 5", "silent"),
        ("-t 1s -n 5", "cannot be used with"),
        ("--rate 0", "rate"),
        ("--from ::1", "family"),
        ("--from here", "here"),
        ("--threads 0", "at least 1"),
        ("--every 1ms", "at least 10 ms"),
    ] {
        let output = evecho(arguments, "127.0.0.1:7");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {error}");
        assert!(error.contains(word), "{arguments}: {error}");
    }
}

/// Our own server, with these flags: its address, and its process, which ends with the test.
struct Own(Child, SocketAddr);

impl Own {
    fn start(flags: &str) -> Self {
        let mut server = Command::new(env!("CARGO_BIN_EXE_evecho"));
        server.args(["--port", "0", "--bind", "127.0.0.1"]).args(flags.split_whitespace());
        let mut server = server.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
        let address = log.by_ref().find_map(|line| {
            let line = line.unwrap();
            let (_, after) = line.split_once("listening on ")?;
            after.split_whitespace().next()?.parse().ok()
        });
        thread::spawn(move || log.for_each(drop));
        Self(server, address.unwrap())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn frames_and_upper_case_are_sent_and_checked() {
    for framing in ["raw", "lines", "length"] {
        for (service, upper) in [("echo", ""), ("upper", "--upper")] {
            let server = Own::start(&format!("--framing {framing} --service {service}"));
            let mut modes =
                vec!["", "-d 9 -s 3000", "-m stream -s 4k", "-m churn", "-m idle -t 10ms"];
            modes.extend((framing == "raw").then_some("--udp"));
            for mode in modes {
                let length = if mode.contains("idle") { "" } else { "-n 100" };
                let flags = format!("-c 3 --framing {framing} {upper} {mode} {length}");
                let flags = flags.replace("--framing raw", "");
                let output = evecho(&flags, server.1);
                assert_eq!(output.status.code(), Some(0), "{flags}: {output:?}");
            }
            // Answers in the other case are wrong.
            let other = if upper.is_empty() { "--upper" } else { "" };
            let flags = format!("-c 1 -n 9 --framing {framing} {other}");
            let output = evecho(&flags.replace("--framing raw", ""), server.1);
            assert_eq!(output.status.code(), Some(1), "{flags}: {output:?}");
        }
    }
}

#[test]
fn a_frame_of_another_length_ends_its_connection() {
    // The double takes messages of 64 bytes, a line feed or a length with them.
    for (framing, size) in [(Framing::Lines, SIZE - 1), (Framing::LengthPrefixed, SIZE - 4)] {
        let double = Double::new(Fault::None);
        let report = run(&with!(config(Tcp, double.serve_tcp()); framing, size));
        assert_eq!((report.messages, report.errors), (20, Errors::default()));
        assert_eq!((double.seen(), report.bytes), (20, 20 * size as u64));
    }
    // An empty frame where one of 60 bytes is due.
    let double = Double::new(Fault::Empty);
    let report = run(&with!(config(Tcp, double.serve_tcp());
        framing: Framing::LengthPrefixed, size: SIZE - 4));
    assert_eq!((report.messages, report.errors), (3, errors(|e| (e.cut, e.unanswered) = (1, 1))));
    let first = report.first_error.unwrap();
    assert_eq!(first, "connection 0: a message of 0 bytes came, which is not what was sent");
}

#[test]
fn what_client_and_server_need_is_reported() {
    let server = Own::start("");
    let flags = format!("-c 2 -n 2000 --threads 2 --pid {}", server.0.id());
    let output = evecho(&format!("{flags} --json"), server.1);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let (client, used) = (&report["client"], &report["server"]);
    assert!(client["cpu_ns"].as_u64().unwrap() > 0 && client["was_limit"].is_boolean(), "{client}");
    let [share, busiest] =
        ["cpu_share", "busiest_thread"].map(|name| client[name].as_f64().unwrap());
    assert!(share > 0.0 && busiest > 0.0 && busiest <= 1.0, "{client}");
    assert_eq!((&used["pid"], &used["processes"]), (&server.0.id().into(), &1.into()));
    assert_eq!(used["memory_kind"], "rss");
    for name in ["cpu_ns", "cpu_per_message_ns", "memory_bytes"] {
        assert!(used[name].as_u64().unwrap() > 0, "{name}: {used}");
    }
    let text = text(&evecho(&flags, server.1).stdout);
    assert!(text.contains("\n  client       ") && text.contains(" of a CPU"), "{text}");
    assert!(text.contains("\n  server       "), "{text}");
}

#[test]
fn a_process_that_is_not_there_or_ends_is_one_sentence() {
    let address = Double::new(Fault::None).serve_tcp();
    // Over the kernel's largest process id, 2^22.
    let output = evecho("-n 1 --pid 5000000", address);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "evecho: --pid 5000000: there is no such process\n");
    assert!(output.stdout.is_empty());

    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = child.id();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || -> io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        let mut message = [0; SIZE];
        stream.read_exact(&mut message)?;
        // The measured part has begun.
        child.kill()?;
        child.wait()?;
        stream.write_all(&message)?;
        io::copy(&mut stream.try_clone()?, &mut stream)
    });
    let output = evecho(&format!("-c 1 -n 3 --pid {pid}"), address);
    assert_eq!(output.status.code(), Some(1));
    let sentence = format!("evecho: process {pid} ended meanwhile: what it used is not known\n");
    assert_eq!(text(&output.stderr), sentence);
    assert!(text(&output.stdout).contains("TCP ping-pong"));
}

#[test]
fn threads_add_up_exactly() {
    for (transport, mode) in [
        (Tcp, Mode::PingPong),
        (Tcp, Mode::Stream),
        (Tcp, Mode::Churn),
        (Tcp, Mode::Idle),
        (Udp, Mode::PingPong),
    ] {
        for threads in [1, 2, 3] {
            let double = Double::new(Fault::None);
            let address = match transport {
                Tcp => double.serve_tcp(),
                Udp => double.serve_udp(),
            };
            let length = match mode {
                Mode::Idle => Length::Time(Duration::from_millis(20)),
                _ => Length::Messages(1_000),
            };
            let connections = 7;
            let report =
                run(&with!(config(transport, address); mode, connections, threads, length));
            let messages = if mode == Mode::Idle { 2 * u64::from(connections) } else { 1_000 };
            assert_eq!(report.errors, Errors::default());
            assert_eq!((report.messages, report.opened), (messages, connections));
            assert_eq!(report.bytes, messages * SIZE as u64);
            assert_eq!(report.config.connections, connections);
            // Every message came by, and no other.
            assert_eq!(double.seen(), messages, "{transport:?}, {mode:?}, {threads}");
            let counted = histogram(&serde_json::to_value(&report).unwrap());
            assert_eq!(counted, if mode == Mode::Stream { 0 } else { messages });
        }
    }
}

/// How many times a report's histogram has counted, by HdrHistogram's own reader.
fn histogram(report: &serde_json::Value) -> u64 {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let bytes = STANDARD.decode(report["histogram"].as_str().unwrap()).unwrap();
    let mut reader = hdrhistogram::serialization::Deserializer::new();
    reader.deserialize::<u64, _>(&mut &bytes[..]).unwrap().len()
}

#[test]
fn a_rate_is_that_of_all_threads() {
    let address = Double::new(Fault::None).serve_tcp();
    let (connections, threads) = (4, 2);
    let rate = Some(200.0);
    let report = run(&with!(config(Tcp, address); connections, threads, rate));
    assert_eq!((report.messages, report.unsent), (20, 0));
    // From the first of 20 messages to the last, at 5 ms each.
    assert!(report.duration >= Duration::from_millis(95), "{report:?}");
}

#[test]
fn a_thread_that_cannot_reach_the_server_ends_the_run() {
    let (_socket, address) = closed_port();
    let error = error(&with!(config(Tcp, address); connections: 4, threads: 3));
    assert!(error.starts_with(&format!("{address} refused the connection")), "{error}");
}

#[test]
fn intervals_add_up_to_the_report() {
    for threads in [1, 2] {
        let address = Double::new(Fault::Corrupt).serve_tcp();
        let mut config = config(Tcp, address);
        (config.connections, config.threads) = (4, threads);
        config.length = Length::Time(Duration::from_millis(220));
        config.warmup = Duration::from_millis(20);
        config.every = Duration::from_millis(50);
        let mut intervals = Vec::new();
        let report = load::run(&config, &Cancel::default(), |progress| {
            intervals.extend(progress.interval);
        })
        .unwrap();
        let ends = intervals.iter().map(|interval| interval.to.as_millis());
        assert_eq!(ends.take(4).collect::<Vec<_>>(), [50, 100, 150, 200]);
        assert_eq!((intervals.len(), intervals[4].to), (5, report.duration));
        assert_eq!(report.intervals, intervals);
        let sum = |of: fn(&load::Interval) -> u64| intervals.iter().map(of).sum::<u64>();
        assert_eq!(sum(|interval| interval.messages), report.messages);
        assert_eq!(sum(|interval| interval.bytes), report.bytes);
        assert_eq!(sum(|interval| interval.errors), report.errors.total());
        assert!(report.messages > 0 && report.errors.corrupt == 1);
    }
}

#[test]
fn merged_reports_are_exact_sums() {
    let mut reports = Vec::new();
    for fault in [Fault::None, Fault::Corrupt, Fault::Duplicate] {
        let address = Double::new(fault).serve_tcp();
        reports.push(run(&with!(config(Tcp, address); connections: 2)));
    }
    let sum = Report::merge(reports.clone()).unwrap();
    assert_eq!((sum.runs.len(), sum.messages, sum.opened), (3, 59, 6));
    assert_eq!(sum.errors, errors(|errors| (errors.corrupt, errors.duplicates) = (1, 1)));
    // They went on one after the other.
    assert_eq!(sum.duration, reports.iter().map(|report| report.duration).sum());
    assert_eq!((sum.rate, sum.config.connections), (59.0 / sum.duration.as_secs_f64(), 2));
    assert_eq!(histogram(&serde_json::to_value(&sum).unwrap()), 59);
    let all =
        |of: fn(&Report) -> Option<f64>| reports.iter().map(move |report| of(report).unwrap());
    assert_eq!(sum.slowest, all(|report| report.slowest).reduce(f64::min));
    assert_eq!(sum.fastest, all(|report| report.fastest).reduce(f64::max));
    // One message came back corrupt: it is later than all others.
    let latency = sum.latency.unwrap();
    assert!(latency.p90.is_some() && latency.max.is_none(), "{latency:?}");

    let address = Double::new(Fault::None).serve_tcp();
    let other = run(&with!(config(Tcp, address); depth: 2));
    let error = Report::merge([sum, other]).unwrap_err().to_string();
    assert!(error.ends_with("they differ in their depth"), "{error}");
    assert!(Report::merge([]).is_err());
}

#[test]
fn the_command_merges_what_it_has_printed() {
    let file = |name: &str, text: &[u8]| {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let address = Double::new(Fault::None).serve_tcp();
    let one = evecho("-c 2 -n 300 --json", address).stdout;
    let two = evecho("-c 3 -t 200ms --every 50ms --json --threads 2", address).stdout;
    let lines = text(&two);
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (report, intervals) = lines.split_last().unwrap();
    assert!(intervals.len() == 4 && intervals.iter().all(|line| line["event"] == "interval"));
    let count = |line: &serde_json::Value| line["messages"].as_u64().unwrap();
    assert_eq!(intervals.iter().map(count).sum::<u64>(), count(report));

    let merge = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_evecho")).arg("merge").args(arguments).output().unwrap()
    };
    let again = || evecho("-c 2 -n 300 --json", address).stdout;
    let (one, again, third) =
        (file("one.json", &one), file("again.json", &again()), file("third.json", &again()));
    let sum = merge(&[&one, &again, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&sum.stdout).unwrap();
    let runs = json["runs"].as_array().unwrap().len();
    assert_eq!((json["messages"].as_u64(), runs), (Some(600), 2));
    let sum = file("sum.json", &sum.stdout);
    let output = merge(&[&sum, &third]);
    assert_eq!(output.status.code(), Some(0));
    let report = text(&output.stdout);
    assert!(report.starts_with("3 runs: TCP ping-pong with 127.0.0.1:"), "{report}");
    assert!(
        report.contains(": 2 connections") && report.contains("messages     900 in"),
        "{report}"
    );

    let two = file("two.json", &two);
    for (files, why) in [
        (&[&one[..], &two][..], "they differ in having a time or a number of messages"),
        (&[env!("CARGO_MANIFEST_PATH")], "has no report of"),
    ] {
        let output = merge(files);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_command_prints_a_line_for_each_interval() {
    let address = Double::new(Fault::None).serve_tcp();
    let output = evecho("-c 2 -t 100ms --every 50ms", address);
    let report = text(&output.stdout);
    let lines: Vec<_> = report.lines().collect();
    assert!(lines[0].trim_start().starts_with("0.050 s"), "{report}");
    for line in &lines[..2] {
        assert!(line.contains("/s  p50 ") && line.ends_with(" 0 errors"), "{line}");
    }
    assert!(lines[2].starts_with("TCP ping-pong"), "{report}");
}

#[test]
fn sigusr1_prints_the_report_so_far_and_goes_on() {
    let double = Double::new(Fault::None);
    let mut child = Command::new(env!("CARGO_BIN_EXE_evecho"))
        .args(["load", &double.serve_tcp().to_string(), "-c", "1", "-t", "600s"])
        .args(["--every", "20ms", "--timeout", "60s"])
        // A pipe would fill on a busy machine.
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    double.wait_for(10);
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGUSR1).unwrap();
    let mut error = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    error.read_line(&mut line).unwrap();
    assert!(line.starts_with("evecho: so far: ") && line.ends_with(" 0 errors\n"), "{line}");
    let seen = double.seen();
    double.wait_for(seen + 10);
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
}

/// Sends as fast as it can to a socket that nobody reads: there is no server to wait for. On a machine whose CPUs
/// others take, it is tried again.
#[test]
fn a_client_that_is_the_limit_says_so() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let said = "The client was the limit: give it more --threads";
    let is_said = |flags: &str| {
        let flags = format!("--udp -t 200ms --timeout 1ms --rate {flags}");
        let output = evecho(&flags, socket.local_addr().unwrap());
        text(&output.stdout).contains(said)
    };
    assert!((0..100).any(|_| is_said("1g")), "not in any of 100 runs");
    assert!((0..100).any(|_| !is_said("10")), "in each of 100 runs");
}

#[test]
fn the_limit_of_open_files_is_raised_or_explained() {
    let address = Double::new(Fault::None).serve_tcp();
    let limited = |limit: &str| {
        let program = env!("CARGO_BIN_EXE_evecho");
        let line = format!("ulimit {limit} && exec {program} load {address} -c 100 -n 100");
        Command::new("sh").args(["-c", &line]).output().unwrap()
    };
    let output = limited("-S -n 50");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = limited("-n 120");
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    let sentence = "evecho: 100 connections are over the limit of open files, which leaves room \
                    for 56; raise the hard limit, or ask for fewer";
    assert!(error.starts_with(sentence), "{error}");
}
