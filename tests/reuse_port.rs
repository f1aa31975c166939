//! Several processes on one port (`--reuse-port`): which of them serves which client, and what becomes of
//! connections that wait for a process that goes. Where a setting of the kernel decides, in a network
//! namespace; where there can be none, the test says why it is skipped.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use evecho::Transport;
use evecho::client::Cancel;
use evecho::client::load::{self, Errors, Length, Mode, Report};
use evecho::protocol::Who;
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/network.rs"]
mod network;

use daemon::{DEADLINE, Daemon, LOCALHOST, connect, evecho, pass, run};
use network::in_network;

/// One of the processes on a port; 0 is for the first of them.
fn member(port: u16, flags: &[&str]) -> Daemon {
    let port = port.to_string();
    let shared = ["--reuse-port", "--bind", "127.0.0.1", "--port", &port];
    Daemon::spawn(evecho().args(shared).args(flags))
}

/// One that tells its name.
fn who(port: u16, name: &str) -> Daemon {
    member(port, &["--service", "who", "--name", name])
}

/// Who answers a new connection.
fn told(stream: TcpStream) -> Value {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn name(told: &Value) -> String {
    told["name"].as_str().unwrap().to_owned()
}

/// A UDP flow: a socket that talks to one port.
struct UdpFlow(UdpSocket);

impl UdpFlow {
    fn to(port: u16) -> Self {
        let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.connect((LOCALHOST, port)).unwrap();
        UdpFlow(socket)
    }

    fn ask(&self) {
        self.0.send(&[b' '; Who::LONGEST]).unwrap();
    }

    /// The name of who answers.
    fn told(&self) -> String {
        let mut room = [0; Who::LONGEST];
        let length = self.0.recv(&mut room).unwrap();
        name(&serde_json::from_slice(&room[..length]).unwrap())
    }

    fn meets(&self) -> String {
        self.ask();
        self.told()
    }
}

/// Which flow meets whom.
fn met(flows: &[UdpFlow]) -> Vec<String> {
    flows.iter().map(UdpFlow::meets).collect()
}

fn names<'a>(met: impl IntoIterator<Item = &'a String>) -> BTreeSet<&'a str> {
    met.into_iter().map(String::as_str).collect()
}

// ---- who is served by whom

/// Each process has another design, since they are one server to their clients.
#[test]
fn connections_are_spread_and_each_process_counts_its_own() {
    const CONNECTIONS: usize = 300;
    let mut port = 0;
    let designs = ["event-loop", "threaded", "iterative"];
    let members = designs.map(|design| {
        let member =
            member(port, &["--service", "who", "--name", design, "--once", "--design", design]);
        port = member.port;
        member
    });
    let mut numbers = BTreeMap::<String, Vec<u64>>::new();
    for _ in 0..CONNECTIONS {
        let told = told(connect((LOCALHOST, port).into()));
        let member = designs.iter().position(|&design| design == name(&told)).unwrap();
        assert_eq!(told["pid"], members[member].child.id());
        numbers.entry(name(&told)).or_default().push(told["connection"].as_u64().unwrap());
    }
    assert_eq!(numbers.len(), designs.len(), "{numbers:?}");
    for (name, numbers) in numbers {
        // A third each, by a hash that is another in each network.
        assert!(numbers.len() > CONNECTIONS / 10, "{name}: {}", numbers.len());
        let counted = 1..=numbers.len() as u64;
        assert!(numbers.into_iter().eq(counted), "{name}");
    }
}

#[test]
fn a_flow_of_datagrams_meets_the_same_process_as_long_as_there_are_the_same() {
    let a = who(0, "a");
    let port = a.port;
    let (mut b, c) = (who(port, "b"), who(port, "c"));
    let flows: Vec<UdpFlow> = (0..100).map(|_| UdpFlow::to(port)).collect();
    let first = met(&flows);
    assert_eq!(names(&first), BTreeSet::from(["a", "b", "c"]));
    assert_eq!(met(&flows), first);

    b.signal(Signal::SIGTERM);
    assert!(b.wait().success());
    let without = met(&flows);
    assert_eq!(names(&without), BTreeSet::from(["a", "c"]));
    assert_eq!(met(&flows), without);

    let _b = who(port, "b");
    assert_eq!(names(&met(&flows)), BTreeSet::from(["a", "b", "c"]));
    drop(c);
}

/// Where two servers had picked one port, their clients would meet either.
#[test]
fn a_port_that_is_picked_is_no_others() {
    let few = "ip link set lo up && echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range";
    in_network("a_port_that_is_picked_is_no_others", few, || {
        for transport in [&[][..], &["--tcp-only"], &["--udp-only"]] {
            let members: Vec<Daemon> = (0..4).map(|_| member(0, transport)).collect();
            let ports: BTreeSet<u16> = members.iter().map(|member| member.port).collect();
            assert_eq!(ports.len(), 4, "{transport:?}: {ports:?}");
            let mut fifth = evecho();
            fifth.args(["--reuse-port", "--bind", "127.0.0.1", "--port", "0"]).args(transport);
            assert_eq!(run(&mut fifth).status.code(), Some(1));
            // Those that name it share it all the same.
            for port in ports {
                member(port, transport).stop();
            }
        }
    });
}

/// The system would pick the same half of the ports again, and of those the odd ones.
#[test]
fn a_port_that_is_free_for_both_transports_is_found() {
    let few = "ip link set lo up && echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range";
    in_network("a_port_that_is_free_for_both_transports_is_found", few, || {
        for free in 40_000..40_004 {
            let others = (40_000..40_004).filter(|&port| port != free);
            let _taken: Vec<_> =
                others.map(|port| UdpSocket::bind((LOCALHOST, port)).unwrap()).collect();
            assert_eq!(member(0, &[]).port, free);
            let both = ["--port", "0", "--bind", "::1", "--bind", "127.0.0.1"];
            assert_eq!(Daemon::spawn(evecho().args(both)).port, free);
        }
    });
}

// ---- who waits for a process that goes

/// So many clients, of whom about half wait for either of two.
const CLIENTS: usize = 60;

/// Has connections that wait for a listener move to another one when it is closed, or not (Linux 5.14).
fn requests_migrate(migrate: bool) -> String {
    let value = u8::from(migrate);
    format!("ip link set lo up && echo {value} > /proc/sys/net/ipv4/tcp_migrate_req")
}

/// How many connections wait in the accept queue of a process: of a listener, /proc/net/tcp has this
/// where others have the bytes to be read.
fn queued(member: &Daemon) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", member.child.id())).unwrap();
    let inodes: BTreeSet<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == "0A" && inodes.contains(row[9]))
        .map(|row| usize::from_str_radix(row[4].split_once(':').unwrap().1, 16).unwrap())
        .sum()
}

/// Has so many clients ask, and waits until those who did not meet the process that stands still are
/// answered; the others.
fn who_wait_for(frozen: &Daemon) -> Vec<TcpStream> {
    let mut waiting: Vec<TcpStream> = (0..CLIENTS).map(|_| frozen.connect()).collect();
    waiting.iter_mut().for_each(|client| client.write_all(b"who?\n").unwrap());
    let end = Instant::now() + DEADLINE;
    while waiting.len() != queued(frozen) {
        assert!(Instant::now() < end, "{} wait, {} queued", waiting.len(), queued(frozen));
        waiting.retain(|client| {
            client.set_nonblocking(true).unwrap();
            let has_answer = client.peek(&mut [0]).is_ok();
            client.set_nonblocking(false).unwrap();
            !has_answer
        });
        thread::sleep(Duration::from_millis(1));
    }
    assert!(waiting.len() > CLIENTS / 10, "{} of {CLIENTS} wait", waiting.len());
    waiting
}

/// What the kernel counts of connections that have moved.
fn migrated() -> usize {
    let netstat = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut counters = names.split(' ').zip(values.split(' '));
    counters.find(|(name, _)| *name == "TCPMigrateReqSuccess").unwrap().1.parse().unwrap()
}

/// A frozen process and another one, with lines for messages.
fn frozen_and_other() -> (Daemon, Daemon) {
    let lines = |name| ["--service", "who", "--framing", "lines", "--name", name];
    let frozen = member(0, &lines("frozen"));
    let other = member(frozen.port, &lines("other"));
    frozen.freeze();
    (frozen, other)
}

/// Their connections are open and their questions sent when it dies.
#[test]
fn who_waits_for_a_process_that_dies_is_reset() {
    in_network("who_waits_for_a_process_that_dies_is_reset", &requests_migrate(false), || {
        let (frozen, _other) = frozen_and_other();
        let waiting = who_wait_for(&frozen);
        drop(frozen);
        for mut client in waiting {
            assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(migrated(), 0);
    });
}

#[test]
fn who_waits_for_a_process_that_dies_is_served_by_another_where_requests_migrate() {
    in_network(
        "who_waits_for_a_process_that_dies_is_served_by_another_where_requests_migrate",
        &requests_migrate(true),
        || {
            let (frozen, _other) = frozen_and_other();
            let waiting = who_wait_for(&frozen);
            drop(frozen);
            assert_eq!(migrated(), waiting.len());
            for client in waiting {
                assert_eq!(name(&told(client)), "other");
            }
        },
    );
}

/// A drain serves those who wait before it closes the sockets.
#[test]
fn who_waits_for_a_process_that_drains_is_served_by_it() {
    let (mut frozen, _other) = frozen_and_other();
    let flows: Vec<UdpFlow> = (0..CLIENTS).map(|_| UdpFlow::to(frozen.port)).collect();
    flows.iter().for_each(UdpFlow::ask);
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| frozen.connect()).collect();
    clients.iter_mut().for_each(|client| client.write_all(b"who?\n").unwrap());
    frozen.signal(Signal::SIGTERM);
    frozen.signal(Signal::SIGCONT);
    let over_udp: Vec<String> = flows.iter().map(UdpFlow::told).collect();
    let over_tcp: Vec<String> = clients.into_iter().map(|client| name(&told(client))).collect();
    assert_eq!(names(&over_udp), BTreeSet::from(["frozen", "other"]));
    assert_eq!(names(&over_tcp), BTreeSet::from(["frozen", "other"]));
    assert!(frozen.wait().success());
}

/// Datagrams do not move to another process; the next ones of the same flow do.
#[test]
fn datagrams_that_wait_for_a_process_that_dies_are_lost() {
    let a = who(0, "a");
    let _b = who(a.port, "b");
    let flows: Vec<UdpFlow> = (0..CLIENTS).map(|_| UdpFlow::to(a.port)).collect();
    let met = met(&flows);
    a.freeze();
    flows.iter().for_each(UdpFlow::ask);
    drop(a);
    for (flow, met) in flows.iter().zip(&met) {
        if met == "a" {
            flow.ask();
        }
        assert_eq!(flow.told(), "b");
        flow.0.set_nonblocking(true).unwrap();
        assert_eq!(flow.0.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(names(&met), BTreeSet::from(["a", "b"]));
}

// ---- restarts under load

/// How long processes are restarted.
const RESTARTS: Duration = Duration::from_secs(2);

/// Starts a process again.
type Start = Box<dyn FnMut() -> Daemon>;

/// Restarts two processes in turn, each as soon as the other one is back, under load over TCP (each
/// message is a connection) and UDP; the reports of both.
fn restart_under_load(mut starts: [Start; 2]) -> [Report; 2] {
    let mut running = starts.each_mut().map(|start| start());
    let address = SocketAddr::from((LOCALHOST, running[0].port));
    let cancel = Cancel::default();
    let answered = [const { AtomicU64::new(0) }; 2];
    let run = |transport, mode, answered: &AtomicU64| {
        let mut config = load::Config::new(transport, address);
        (config.mode, config.connections) = (mode, 8);
        (config.length, config.timeout) = (Length::Time(DEADLINE), DEADLINE);
        let count =
            |progress: &load::Progress| answered.store(progress.messages, Ordering::Relaxed);
        load::run(&config, &cancel, count).unwrap()
    };
    thread::scope(|scope| {
        let tcp = scope.spawn(|| run(Transport::Tcp, Mode::Churn, &answered[0]));
        let udp = scope.spawn(|| run(Transport::Udp, Mode::PingPong, &answered[1]));
        let (begun, mut restarts) = (Instant::now(), 0);
        let are_answered = || answered.iter().all(|count| count.load(Ordering::Relaxed) > 100);
        // A busy machine may take longer for some messages than all this should.
        while begun.elapsed() < RESTARTS || !are_answered() && begun.elapsed() < DEADLINE {
            let one = restarts % 2;
            running[one].signal(Signal::SIGTERM);
            assert!(running[one].wait().success());
            running[one] = starts[one]();
            restarts += 1;
        }
        cancel.cancel();
        let reports = [tcp, udp].map(|load| load.join().unwrap());
        for Report { messages, errors, config, .. } in &reports {
            println!("{restarts} restarts, {messages} {:?} messages, {errors:?}", config.transport);
            assert!(*messages > 0);
        }
        reports
    })
}

/// Processes that bind their sockets themselves, of two designs.
fn on_their_own(port: u16) -> [Start; 2] {
    ["event-loop", "threaded"]
        .map(|design| Box::new(move || member(port, &["--design", design])) as Start)
}

/// In a network of the test's own, any port is free.
const PORT: u16 = 12_000;

/// Restarts two processes that share no socket. Whether a connection is reset that comes just when a
/// listener closes, chance decides; nothing else is lost. A UDP socket leaves the port before its queue
/// is served for the last time.
fn restart_processes(test: &str, migrate: bool) {
    in_network(test, &requests_migrate(migrate), || {
        let [tcp, udp] = restart_under_load(on_their_own(PORT));
        // A reset comes before the client has its connection, or after: then its message has no answer
        // either.
        let Errors { failed, closed, unanswered, .. } = tcp.errors;
        assert_eq!(tcp.errors.total(), failed + closed + unanswered, "{:?}", tcp.first_error);
        assert!(unanswered <= closed, "{:?}", tcp.errors);
        assert_eq!(udp.errors.total(), 0, "{:?}", udp.first_error);
        println!("{} connections have moved to the other process", migrated());
    });
}

#[test]
fn restarts_reset_a_few_connections_at_the_most() {
    restart_processes("restarts_reset_a_few_connections_at_the_most", false);
}

/// Fewer, but not none in all cases: what is in the last step of its handshake when the listener closes,
/// for a microsecond, the kernel resets all the same.
#[test]
fn restarts_reset_even_fewer_where_requests_migrate() {
    restart_processes("restarts_reset_even_fewer_where_requests_migrate", true);
}

/// Sockets on a port with others, as a service manager keeps them for each process.
fn kept_beside_others(port: u16) -> (TcpListener, UdpSocket) {
    let bound = |kind, port| {
        let socket = Socket::new(Domain::IPV4, kind, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddr::from((LOCALHOST, port)).into()).unwrap();
        socket
    };
    let listener = bound(Type::STREAM, port);
    listener.listen(1024).unwrap();
    let port = listener.local_addr().unwrap().as_socket().unwrap().port();
    (listener.into(), bound(Type::DGRAM, port).into())
}

/// No setting of the kernel is needed where the sockets stay.
#[test]
fn restarts_lose_nothing_where_a_service_manager_keeps_the_sockets() {
    let one = kept_beside_others(0);
    let other = kept_beside_others(one.0.local_addr().unwrap().port());
    let starts =
        [one, other].map(|kept| Box::new(move || Daemon::spawn(&mut pass(&kept))) as Start);
    for report in restart_under_load(starts) {
        assert_eq!(report.errors.total(), 0, "{:?}", report.first_error);
    }
}
