//! What needs a network: loops, routes, neighbours, broadcasts and links, in network namespaces of the
//! tests' own. They need root; elsewhere each says why it is skipped.

use std::env;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use crate::daemon::{DEADLINE, wait_until};
use crate::network;

/// A loop between two servers takes much less for a round.
const SILENCE: Duration = Duration::from_millis(500);
/// So many datagrams are forged.
const FORGED: u64 = 10;
/// Addresses for tests between networks (RFC 2544, RFC 5180).
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];
const ADDRESSES_V6: [&str; 2] = ["2001:2::1", "2001:2::2"];
/// A second client, where the first is.
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 3);
const PORT: u16 = 12_000;
const SERVER: SocketAddrV4 = SocketAddrV4::new(ADDRESSES[0], PORT);

/// Two namespaces with a cable between them; gone when it goes out of scope.
struct Networks {
    names: [String; 2],
}

impl Networks {
    /// None, with a word about it, where they cannot be had.
    fn new(test: &str) -> Option<Networks> {
        match Networks::connect(test) {
            Ok(networks) => Some(networks),
            Err(reason) => {
                println!("skipped, since it needs network namespaces: {reason}");
                None
            }
        }
    }

    fn connect(test: &str) -> Result<Networks, String> {
        let names = ["a", "b"].map(|end| format!("evecho-{}-{test}-{end}", std::process::id()));
        let [a, b] = &names;
        ip(&format!("netns add {a}"))?;
        // From here on they are taken away again.
        let networks = Networks { names: names.clone() };
        ip(&format!("netns add {b}"))?;
        ip(&format!("link add cable netns {a} type veth peer name cable netns {b}"))?;
        for (end, name) in names.iter().enumerate() {
            let broadcast = Ipv4Addr::new(198, 18, 0, 255);
            ip(&format!("-n {name} address add {}/24 brd {broadcast} dev cable", ADDRESSES[end]))?;
            ip(&format!("-n {name} link set cable up"))?;
            // Without the second that duplicates are looked for.
            ip(&format!("-n {name} address add {}/64 dev cable nodad", ADDRESSES_V6[end]))?;
        }
        ip(&format!("-n {b} address add {OTHER}/24 dev cable"))?;
        Ok(networks)
    }

    fn command(&self, end: usize, program: &str) -> Command {
        let mut command = self.enter(end);
        command.arg(program);
        command
    }

    fn enter(&self, end: usize) -> Command {
        // Before all else that the machine does, so that this makes no answer late. Where it may not,
        // nice says so, and goes on.
        let mut command = Command::new("nice");
        command.args(["-n", "-20", "ip", "netns", "exec", &self.names[end]]);
        command
    }

    /// Plays a test of this file inside a namespace; what it says behind "RESULT".
    fn play(&self, end: usize, test: &str, role: &str) -> String {
        let text = network::play(&mut self.enter(end), test, role).unwrap();
        let result = text.lines().find_map(|line| line.split_once("RESULT"));
        result.map_or_else(String::new, |(_, result)| result.trim().to_owned())
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&format!("netns delete {name}"));
        }
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ")
        )),
        Err(error) => Err(format!("ip {arguments}: {error}")),
    }
}

/// A server at one end; ended when it goes out of scope.
struct Server {
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(networks: &Networks, end: usize, port: u16, flags: &[&str]) -> Server {
        let mut command = networks.command(end, env!("CARGO_BIN_EXE_evecho"));
        command.args(["--port", &port.to_string()]).args(flags);
        for (name, _) in env::vars().filter(|(name, _)| name.starts_with("EVECHO_")) {
            command.env_remove(name);
        }
        let mut process = command.env_remove("RUST_LOG").stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let logged = |line: &String| !line.starts_with("nice: ");
        let first = lines.by_ref().map(Result::unwrap).find(logged).unwrap();
        assert!(first.contains("listening on"), "{first}");
        let log = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&log);
        thread::spawn(move || lines.for_each(|line| heard.lock().unwrap().extend(line)));
        Server { process, log }
    }

    fn signal(&self, signal: Signal) {
        // "nice ip netns exec" has become the server.
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// Datagrams that its namespace has received, and sent: a run of them counts once.
    fn datagrams(&self) -> (u64, u64) {
        let snmp = format!("/proc/{}/net/snmp", self.process.id());
        let snmp = std::fs::read_to_string(snmp).unwrap();
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let value = |wanted: &str| -> u64 {
            let at = names.split(' ').position(|name| name == wanted).unwrap();
            values.split(' ').nth(at).unwrap().parse().unwrap()
        };
        (value("InDatagrams"), value("OutDatagrams"))
    }

    /// What one of its counters says.
    fn counter(&self, name: &str) -> u64 {
        let heard = self.log.lock().unwrap().len();
        self.signal(Signal::SIGUSR1);
        let end = Instant::now() + DEADLINE;
        loop {
            let log = self.log.lock().unwrap();
            let counters = log[heard..].iter().find(|line| line.contains("udp_received"));
            if let Some(counters) = counters {
                let mut words = counters.split([' ', ',']);
                return words
                    .find(|&word| word == name)
                    .map_or(0, |_| words.next().unwrap().parse().unwrap());
            }
            drop(log);
            assert!(Instant::now() < end, "no counters in the log");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn raw_socket() -> Socket {
    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap()
}

/// Sends a datagram as somebody else. raw(7): the system fills in the checksum of the IP header, and
/// its length.
fn send_forged(socket: &Socket, from: SocketAddrV4, to: SocketAddrV4, text: &[u8]) {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend((8 + text.len() as u16).to_be_bytes());
    // RFC 768: no checksum.
    packet.extend([0, 0]);
    packet.extend(text);
    assert_eq!(socket.send_to(&packet, &to.into()).unwrap(), packet.len());
}

// ---- loops

/// Runs inside a namespace: sends datagrams from one address to another, whosesoever they are.
#[test]
fn as_forger() {
    let Some(path) = network::role() else { return };
    let (from, to) = path.split_once(' ').unwrap();
    let (from, to): (SocketAddrV4, SocketAddrV4) = (from.parse().unwrap(), to.parse().unwrap());
    let socket = raw_socket();
    for _ in 0..FORGED {
        send_forged(&socket, from, to, b"is anybody there?");
    }
}

/// The datagrams that both have received and sent, once that does not change any more.
fn silence(servers: &[Server; 2]) -> [(u64, u64); 2] {
    let count = || [0, 1].map(|end: usize| servers[end].datagrams());
    let (end, mut last, mut since) = (Instant::now() + DEADLINE, count(), Instant::now());
    while since.elapsed() < SILENCE || last[0].0 < FORGED {
        assert!(Instant::now() < end, "a storm, or nothing at all: {last:?}");
        thread::sleep(Duration::from_millis(10));
        if count() != last {
            (last, since) = (count(), Instant::now());
        }
    }
    last
}

/// What both have received and sent after datagrams to the first that look like the second's.
fn duel(test: &str, ports: [u16; 2]) -> Option<[(u64, u64); 2]> {
    let networks = Networks::new(test)?;
    let servers = [0, 1].map(|end: usize| Server::start(&networks, end, ports[end], &[]));
    let [to, from] = [0, 1].map(|end| SocketAddrV4::new(ADDRESSES[end], ports[end]));
    networks.play(1, "namespaces::as_forger", &format!("{from} {to}"));
    Some(silence(&servers))
}

/// Both have the same port, as two of the same kind have: nothing is answered at all.
#[test]
fn two_servers_on_one_port_do_not_begin_to_talk() {
    let Some([forged_at, other]) = duel("same", [PORT; 2]) else { return };
    assert_eq!(forged_at, (FORGED, 0));
    assert_eq!(other, (0, 0));
}

/// The port tells nothing: the first is deceived, and the second knows an answer when it sees one.
#[test]
fn two_servers_on_different_ports_do_not_answer_each_other() {
    let Some([forged_at, other]) = duel("other", [PORT, PORT + 1]) else { return };
    assert_eq!(forged_at.0, FORGED);
    assert!(other.0 > 0 && other.1 == 0, "{other:?}");
}

// ---- neighbours that do not exist

/// How long an attack lasts, and how long is watched after it.
const ATTACK: Duration = Duration::from_millis(6_200);
const RECOVERY: Duration = Duration::from_millis(800);
/// An attack comes in bursts; neighbours are given up after three seconds (arp(7)).
const BURST_GAP: Duration = Duration::from_secs(3);
/// A client asks so often, and an answer after so long is none.
const ASK_GAP: Duration = Duration::from_millis(20);
const IN_TIME: Duration = Duration::from_millis(200);

/// Runs inside a namespace: asks the server again and again, while neighbours that do not exist ask,
/// too. Says how many questions were answered in time, and how many there were: up to 100 ms after
/// the attack, and then.
#[test]
fn as_neighbours() {
    let Some(attack) = network::role() else { return };
    let (sources, burst) = attack.split_once(' ').unwrap();
    let (sources, burst): (u32, u32) = (sources.parse().unwrap(), burst.parse().unwrap());
    let raw = raw_socket();
    let client = UdpSocket::bind((ADDRESSES[1], 0)).unwrap();
    client.connect(SERVER).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut asked: Vec<(Instant, Option<Duration>)> = Vec::new();
    let collect = |asked: &mut Vec<(Instant, Option<Duration>)>| {
        let mut room = [0; 8];
        while client.recv(&mut room).is_ok() {
            let (at, answer) = &mut asked[u64::from_be_bytes(room) as usize];
            *answer = Some(at.elapsed());
        }
    };
    let (start, mut bursts) = (Instant::now(), 0);
    while start.elapsed() < ATTACK + RECOVERY {
        if start.elapsed() < ATTACK && start.elapsed() >= BURST_GAP * bursts {
            bursts += 1;
            for source in 10..10 + sources {
                let from = Ipv4Addr::from(u32::from(ADDRESSES[1]) + source);
                let from = SocketAddrV4::new(from, 40_000);
                (0..burst).for_each(|_| send_forged(&raw, from, SERVER, &[b'x'; 1_400]));
            }
        }
        client.send(&(asked.len() as u64).to_be_bytes()).unwrap();
        asked.push((Instant::now(), None));
        let next = start + ASK_GAP * asked.len() as u32;
        while Instant::now() < next {
            collect(&mut asked);
            thread::sleep(Duration::from_millis(1));
        }
    }
    thread::sleep(IN_TIME);
    collect(&mut asked);
    let count = |asked: &[(Instant, Option<Duration>)]| {
        let good = asked.iter().filter(|(_, answer)| answer.is_some_and(|time| time <= IN_TIME));
        format!("{} {}", good.count(), asked.len())
    };
    let over = start + ATTACK + Duration::from_millis(100);
    let end = asked.iter().filter(|(at, _)| *at < over).count();
    println!("RESULT {} {}", count(&asked[..end]), count(&asked[end..]));
}

/// 32 and 180 datagrams a second in the name of neighbours that do not exist, and so many that they fill
/// any send buffer: the answers to them wait for ARP there, and others need it.
#[test]
fn neighbours_that_do_not_exist_stop_nobody() {
    thread::scope(|scope| {
        for (sources, burst) in [(2, 48), (9, 60), (60, 100)] {
            scope.spawn(move || {
                let Some(networks) = Networks::new(&format!("arp{sources}")) else { return };
                let server = Server::start(&networks, 0, PORT, &["--no-udp-offload"]);
                let are_answered = || {
                    let result = networks.play(
                        1,
                        "namespaces::as_neighbours",
                        &format!("{sources} {burst}"),
                    );
                    let numbers: Vec<u64> = result.split(' ').map(|n| n.parse().unwrap()).collect();
                    let [during, of, after, of_after] = numbers[..] else { panic!("{result}") };
                    println!("{during} of {of} answered, and then {after} of {of_after}");
                    during * 100 >= of * 80 && after == of_after
                };
                // A server that waits for neighbours answers hardly any. A busy machine answers some of them late.
                assert!((0..5).any(|_| are_answered()), "{sources} sources");
                assert!(server.counter("udp_received") > 0);
            });
        }
    });
}

// ---- routes

/// Runs inside a namespace: sends so many datagrams of so many bytes from an address, and then waits
/// until all are answered.
#[test]
fn as_burst() {
    let Some(what) = network::role() else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let [from, count, length] = words[..] else { panic!("{what}") };
    let (count, length): (usize, usize) = (count.parse().unwrap(), length.parse().unwrap());
    let client = UdpSocket::bind((from.parse::<Ipv4Addr>().unwrap(), 0)).unwrap();
    client.connect(SERVER).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    for index in 0..count {
        assert_eq!(client.send(&vec![index as u8; length]).unwrap(), length);
    }
    println!("RESULT sent");
    let mut room = vec![0; length + 1];
    for index in 0..count {
        assert_eq!(client.recv(&mut room).unwrap(), length);
        assert!(room[..length].iter().all(|&byte| byte == index as u8), "datagram {index}");
    }
}

/// So many questions, all there before the server looks; in how many calls it answers them.
fn calls_for_burst(networks: &Networks, server: &Server, from: Ipv4Addr) -> u64 {
    let (received, sent) = server.datagrams();
    server.signal(Signal::SIGSTOP);
    let calls = thread::scope(|scope| {
        let client =
            scope.spawn(|| networks.play(1, "namespaces::as_burst", &format!("{from} 40 1400")));
        // They are received when the server looks, so that the socket's queue is what tells.
        wait_until("the burst has come", || {
            let has_come = queued(server) >= 40 * 1_400;
            assert!(has_come || !client.is_finished(), "the burst did not come");
            has_come
        });
        server.signal(Signal::SIGCONT);
        client.join().unwrap();
        server.datagrams().1 - sent
    });
    assert_eq!(server.datagrams().0, received + 40);
    calls
}

/// The bytes, and more, that wait in the receive queue of the server's UDP socket (proc(5)).
fn queued(server: &Server) -> u64 {
    let read = |name: &str| {
        std::fs::read_to_string(format!("/proc/{}/net/{name}", server.process.id())).unwrap()
    };
    let table = read("udp6") + &read("udp");
    let port = format!(":{PORT:04X}");
    let line = table
        .lines()
        .find(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&port)));
    let queues = line.unwrap().split_whitespace().nth(4).unwrap().split_once(':').unwrap();
    u64::from_str_radix(queues.1, 16).unwrap()
}

/// The way to one client takes no joined datagrams: it gets them one by one, and the others as before.
#[test]
fn what_a_route_refuses_is_its_own_matter() {
    let Some(networks) = Networks::new("narrow") else { return };
    let server = Server::start(&networks, 0, PORT, &[]);
    let joined = calls_for_burst(&networks, &server, OTHER);
    assert!(joined < 10, "there is no segmentation offload here: {joined} calls");
    let [narrow, name] = [&ADDRESSES[1].to_string(), &networks.names[0]];
    ip(&format!("-n {name} route add {narrow}/32 dev cable mtu 1300")).unwrap();
    assert_eq!(calls_for_burst(&networks, &server, ADDRESSES[1]), 40);
    let still = calls_for_burst(&networks, &server, OTHER);
    assert!(still < 10, "{still} calls for somebody else");
    assert_eq!(server.counter("udp_errors"), 0);
}

// ---- broadcasts, groups and links

/// Runs inside a namespace: sends to each of these addresses, and waits for an answer to the last.
#[test]
fn as_client() {
    let Some(addresses) = network::role() else { return };
    let addresses: Vec<SocketAddr> =
        addresses.split(' ').map(|address| address.parse().unwrap()).collect();
    let last = *addresses.last().unwrap();
    let own = if last.is_ipv4() { ADDRESSES[1].into() } else { ADDRESSES_V6[1].parse().unwrap() };
    let client = UdpSocket::bind(SocketAddr::new(own, 0)).unwrap();
    client.set_broadcast(true).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    for address in &addresses {
        client.send_to(address.to_string().as_bytes(), address).unwrap();
    }
    let mut room = [0; 100];
    let (length, from) = client.recv_from(&mut room).unwrap();
    assert_eq!(String::from_utf8_lossy(&room[..length]), last.to_string(), "from {from}");
    assert_eq!((from.ip(), from.port()), (last.ip(), last.port()));
}

/// The link-local address of an end, and the index of the cable there.
fn link_local(networks: &Networks, end: usize) -> (String, u32) {
    let look = || {
        let output = networks.command(end, "cat").arg("/proc/net/if_inet6").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        // Address, index, length of the prefix, scope, flags, name; tentative addresses have 0x40.
        let line = text.lines().find(|line| line.starts_with("fe80") && line.ends_with("cable"))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let octets = u128::from_str_radix(words[0], 16).unwrap();
        let settled = u8::from_str_radix(words[4], 16).unwrap() & 0x40 == 0;
        let index = u32::from_str_radix(words[1], 16).unwrap();
        settled.then(|| (std::net::Ipv6Addr::from(octets).to_string(), index))
    };
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "no link-local address");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_is_sent_to_many_is_not_answered() {
    let Some(networks) = Networks::new("many") else { return };
    let (_, index) = link_local(&networks, 1);
    for (flags, own, many) in [
        // IPv6 sockets are not given what is sent to IPv4 groups.
        (&[][..], SERVER.into(), &["198.18.0.255", "255.255.255.255"][..]),
        (&["--bind", "0.0.0.0"], SERVER.into(), &["198.18.0.255", "224.0.0.1"]),
        (&[], SocketAddr::new(ADDRESSES_V6[0].parse().unwrap(), PORT), &["ff02::1"]),
        (&["--bind", "::"], SocketAddr::new(ADDRESSES_V6[0].parse().unwrap(), PORT), &["ff02::1"]),
    ] {
        let server = Server::start(&networks, 0, PORT, flags);
        let mut addresses: Vec<SocketAddr> = many
            .iter()
            .map(|address| match address.parse().unwrap() {
                std::net::IpAddr::V4(ip) => SocketAddrV4::new(ip, PORT).into(),
                std::net::IpAddr::V6(ip) => SocketAddrV6::new(ip, PORT, 0, index).into(),
            })
            .collect();
        addresses.push(own);
        let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
        networks.play(1, "namespaces::as_client", &addresses.join(" "));
        assert_eq!(server.counter("udp_guarded"), many.len() as u64, "{flags:?}");
        assert_eq!((server.counter("udp_answered"), server.counter("udp_errors")), (1, 0));
    }
}

/// A question to our link-local address from an address that is none: only the interface that it came
/// in on tells the way back.
#[test]
fn a_link_local_address_answers_from_its_link() {
    let Some(networks) = Networks::new("link") else { return };
    let ((address, _), (_, index)) = (link_local(&networks, 0), link_local(&networks, 1));
    for flags in [&[][..], &["--bind", "::"]] {
        let server = Server::start(&networks, 0, PORT, flags);
        networks.play(1, "namespaces::as_client", &format!("[{address}%{index}]:{PORT}"));
        assert_eq!((server.counter("udp_answered"), server.counter("udp_errors")), (1, 0));
    }
}

#[test]
fn of_a_server_elsewhere_only_our_own_ends_are_seen() {
    let Some(networks) = Networks::new("states") else { return };
    ip(&format!("-n {} link set lo up", networks.names[1])).unwrap();
    let _server = Server::start(&networks, 0, PORT, &[]);
    let mut states = networks.command(1, env!("CARGO_BIN_EXE_evecho"));
    let output = states.args(["states", &SERVER.to_string(), "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let scenarios = report["scenarios"].as_array().unwrap();
    let mut not_shown = Vec::new();
    for scenario in scenarios {
        match scenario["outcome"].as_str().unwrap() {
            "shown" => {}
            "not shown" => not_shown.push(scenario["name"].as_str().unwrap()),
            outcome => panic!("{outcome}: {report:#}"),
        }
    }
    assert_eq!(not_shown, ["server-closes", "backlog"], "{report:#}");
    let steps = scenarios.iter().flat_map(|one| one["steps"].as_array().unwrap());
    // What is shown in slow motion is on this side.
    for step in steps.filter(|step| step["own_listener"] == false) {
        assert_eq!(step["listener"], serde_json::Value::Null);
        for connection in step["connections"].as_array().unwrap() {
            assert_eq!(connection["server"], serde_json::Value::Null);
            assert_ne!(connection["client"], serde_json::Value::Null);
        }
    }
    assert!(output.status.success());
}

#[test]
fn a_full_table_of_time_wait_is_told() {
    let Some(networks) = Networks::new("buckets") else { return };
    ip(&format!("-n {} link set lo up", networks.names[0])).unwrap();
    let mut none = networks.command(0, "sh");
    none.args(["-c", "echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets"]);
    if !none.status().unwrap().success() {
        println!("skipped, since the setting is not to be changed here");
        return;
    }
    let mut states = networks.command(0, env!("CARGO_BIN_EXE_evecho"));
    let output = states.args(["states", "server-closes", "--timeout", "2s"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let reason = "CLOSED; the kernel may have no room for one more in TIME_WAIT: see net.ipv4.tcp_max_tw_buckets";
    assert!(text.contains(reason), "{text}");
}

// ---- datagrams that do not come back

#[test]
fn a_load_that_meets_the_limit_of_the_server_is_told_of_it() {
    let Some(networks) = Networks::new("limit") else { return };
    let _server = Server::start(&networks, 0, PORT, &[]);
    let said = "If it is an evecho server, it answers 10,000 datagrams a second to each remote source: \
                --udp-rate on the server changes that, and 0 is no limit.";
    let is_told = || {
        let (stdout, stderr, code) = evecho(&networks, &format!("load {SERVER} -u -r 40k -t 1s"));
        assert_eq!(code, Some(1), "{stdout}{stderr}");
        assert!(stdout.contains(" lost"), "{stdout}");
        stdout.contains(said)
    };
    // A machine that is busy may not get so far as that limit.
    assert!((0..10).any(|_| is_told()));
}

/// As behind a NAT that keeps the way of a port that it knows, after the server has moved: from some moment on, no
/// answer comes back to the port of the first pings.
#[test]
fn pings_leave_a_port_to_which_no_answer_comes_back() {
    let Some(networks) = Networks::new("moved") else { return };
    let _server = Server::start(&networks, 0, PORT, &[]);
    let mut ping = networks.command(1, env!("CARGO_BIN_EXE_evecho"));
    ping.args(["ping", "-u", &SERVER.to_string(), "--json", "-i", "50ms", "-W", "300ms"]);
    ping.stdout(Stdio::piped());
    let mut ping = ping.spawn().unwrap();
    let lines = BufReader::new(ping.stdout.take().unwrap()).lines();
    let mut events = lines.map(|line| {
        let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        event
    });
    let mut next = |name: &str| events.find(|event| event["event"] == name).unwrap();
    let local = |event: serde_json::Value| -> SocketAddr {
        event["local"].as_str().unwrap().parse().unwrap()
    };
    let first = local(next("connected"));
    next("reply");
    let rule = format!("rule add ipproto udp dport {} blackhole", first.port());
    if let Err(reason) = ip(&format!("-n {} {rule}", networks.names[0])) {
        println!("skipped, since there is no such rule: {reason}");
        ping.kill().unwrap();
    } else {
        assert_eq!(next("disconnected")["reason"], "timeout");
        assert_ne!(local(next("connected")), first);
        assert_eq!(next("reply")["kind"], "echo");
        ping.kill().unwrap();
    }
    ping.wait().unwrap();
}

// ---- local ports

/// What `evecho` prints at the second end, and how it ends.
fn evecho(networks: &Networks, arguments: &str) -> (String, String, Option<i32>) {
    let mut command = networks.command(1, env!("CARGO_BIN_EXE_evecho"));
    let output = command.args(arguments.split(' ')).stdin(Stdio::null()).output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let stderr = stderr.lines().filter(|line| !line.starts_with("nice: ")).collect::<Vec<_>>();
    (stdout, stderr.join("\n"), output.status.code())
}

/// 40 ports for each address of the second end, of 50 in the range.
const PORTS: &str = "cd /proc/sys/net/ipv4 && echo 40000 40049 > ip_local_port_range && \
    echo 40000-40009 > ip_local_reserved_ports && echo 0 > tcp_tw_reuse";
const NO_PORT: &str = "cannot be connected to: all 40 local ports that an address has \
    (net.ipv4.ip_local_port_range) are taken";

/// Two networks with few ports at the second end, and servers on two ports at the first.
fn few_ports(test: &str) -> Option<(Networks, [Server; 2])> {
    let networks = Networks::new(test)?;
    ip(&format!("-n {} link set lo up", networks.names[1])).unwrap();
    if !networks.command(1, "sh").args(["-c", PORTS]).status().unwrap().success() {
        println!("skipped, since the settings are not to be changed here");
        return None;
    }
    let servers = [PORT, PORT + 1].map(|port| Server::start(&networks, 0, port, &[]));
    Some((networks, servers))
}

#[test]
fn churn_without_ports_reports_what_it_measured() {
    let Some((networks, _servers)) = few_ports("churn") else { return };
    let churn = format!("load {SERVER} -m churn -c 2 -t 30s --json");
    let (stdout, stderr, code) = evecho(&networks, &churn);
    assert_eq!(code, Some(1), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    // Both addresses of the interface, in turn; what is out at the end is no fault.
    assert_eq!(report["config"]["sources"], serde_json::json!([ADDRESSES[1], OTHER]));
    assert!((78..=80).contains(&number(&report["messages"])), "{stdout}");
    assert!(report["errors"].as_object().unwrap().values().all(|count| *count == 0), "{stdout}");
    assert_eq!(report["ports"], serde_json::json!({"all": 80, "taken": 80}));
    assert!(report["ended"].as_str().unwrap().contains(NO_PORT), "{stdout}");
    for part in ["connecting", "exchange"] {
        let [shortest, longest] = ["min_ns", "max_ns"].map(|which| number(&report[part][which]));
        assert!(
            shortest > 0 && longest <= number(&report["latency"]["max_ns"]),
            "{part}: {stdout}"
        );
    }
    let [warning, end] = stderr.lines().collect::<Vec<_>>()[..] else { panic!("{stderr}") };
    assert!(warning.contains(" of 80 local ports") && warning.contains("--from"), "{warning}");
    assert!(end.starts_with(&format!("evecho: {SERVER} {NO_PORT}; use more")), "{end}");

    // Its ports are kept. Before anything is measured, there is nothing to report.
    let (stdout, stderr, code) = evecho(&networks, &churn);
    assert_eq!((stdout.as_str(), code), ("", Some(1)));
    assert!(stderr.starts_with("evecho: 80 of 80 local ports"), "{stderr}");
    assert!(stderr.contains(NO_PORT) && stderr.contains("--from"), "{stderr}");

    // Another destination has the ports again, and an address that is named is used alone.
    let other = format!("load {}:{} -m churn -c 1 -t 30s --from {OTHER}", SERVER.ip(), PORT + 1);
    let (stdout, stderr, code) = evecho(&networks, &other);
    assert_eq!(code, Some(1), "{stderr}");
    for part in
        ["stopped early", "\n  connecting   mean ", "\n  exchange     mean ", "40 of 40 local"]
    {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    assert!(stdout.contains("connections  40 in ") && stdout.contains("--from"), "{stdout}");
    // Where one address has none left, others are used.
    let both = other.replace(&format!("--from {OTHER}"), "--json");
    let (stdout, ..) = evecho(&networks, &both);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (number(&report["messages"]), number(&report["ports"]["taken"])),
        (40, 80),
        "{stdout}"
    );
}

#[test]
fn the_lack_of_ports_is_one_sentence_for_every_client() {
    let Some((networks, _servers)) = few_ports("lack") else { return };
    let (_, stderr, code) = evecho(&networks, &format!("load {SERVER} --udp -c 100 -t 1s"));
    assert!(stderr.contains("only 40 of 100") && stderr.contains(NO_PORT), "{stderr}");
    assert!(!stderr.contains("firewall") && stderr.contains("--from"), "{stderr}");
    assert_eq!(code, Some(1));
    // 40 connections that stay: for the second server, the address has no port left.
    let mut holder = networks.command(1, "python3");
    let hold = format!(
        "import socket, sys\nall = [socket.create_connection(('{}', {PORT})) for _ in range(40)]\n\
         print('held', flush=True)\nsys.stdin.read()",
        SERVER.ip()
    );
    let piped = holder.args(["-c", &hold]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut holder = piped.unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    for command in ["load {}", "ping {} -c 1", "send {} x", "check {}", "states {} echo"] {
        let command = command.replace("{}", &SERVER.to_string());
        let (stdout, stderr, code) = evecho(&networks, &command);
        let text = stdout + &stderr;
        assert!(
            text.contains(NO_PORT.trim_start_matches("cannot be connected to: ")),
            "{command}: {text}"
        );
        assert!(code.is_some_and(|code| code > 0), "{command}: {text}");
    }
    // In the middle of a scenario, too, it is nothing that a server did.
    let three =
        "echo 42000 42002 > /proc/sys/net/ipv4/ip_local_port_range && exec $0 states backlog";
    let mut states = networks.command(1, "sh");
    let output = states.args(["-c", three, env!("CARGO_BIN_EXE_evecho")]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("not shown: all 3 local ports") && text.contains("0 failed"), "{text}");
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
}
