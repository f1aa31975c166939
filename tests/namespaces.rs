//! Two servers that are made to talk to each other, in network namespaces of the test's own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::env;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Nothing takes this long, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(30);
/// A loop between two servers takes much less for a round.
const SILENCE: Duration = Duration::from_millis(500);
/// So many datagrams are forged.
const FORGED: u64 = 10;
/// Addresses for tests between networks (RFC 2544).
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)];

/// Two namespaces with a cable between them; gone when it goes out of scope.
struct Networks {
    names: [String; 2],
}

impl Networks {
    /// Or why they cannot be had here.
    fn new(test: &str) -> Result<Networks, String> {
        let names = ["a", "b"].map(|end| format!("evecho-{}-{test}-{end}", std::process::id()));
        let [a, b] = &names;
        ip(&format!("netns add {a}"))?;
        // From here on they are taken away again.
        let networks = Networks { names: names.clone() };
        ip(&format!("netns add {b}"))?;
        ip(&format!("link add cable netns {a} type veth peer name cable netns {b}"))?;
        for (name, address) in names.iter().zip(ADDRESSES) {
            ip(&format!("-n {name} address add {address}/24 dev cable"))?;
            ip(&format!("-n {name} link set cable up"))?;
        }
        Ok(networks)
    }

    fn command(&self, end: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[end], program]);
        command
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
struct Server(Child);

impl Server {
    fn start(networks: &Networks, end: usize, port: u16) -> Server {
        let mut command = networks.command(end, env!("CARGO_BIN_EXE_evecho"));
        command.args(["--port", &port.to_string(), "--udp-rate", "100"]);
        for (name, _) in env::vars().filter(|(name, _)| name.starts_with("EVECHO_")) {
            command.env_remove(name);
        }
        let mut server =
            Server(command.env_remove("RUST_LOG").stderr(Stdio::piped()).spawn().unwrap());
        let mut log = BufReader::new(server.0.stderr.take().unwrap()).lines();
        let first = log.next().unwrap().unwrap();
        assert!(first.contains("listening on"), "{first}");
        thread::spawn(move || log.for_each(drop));
        server
    }

    /// Datagrams that its namespace has received, and sent.
    fn datagrams(&self) -> (u64, u64) {
        // "ip netns exec" has become the server.
        let snmp = std::fs::read_to_string(format!("/proc/{}/net/snmp", self.0.id())).unwrap();
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let value = |wanted: &str| -> u64 {
            let at = names.split(' ').position(|name| name == wanted).unwrap();
            values.split(' ').nth(at).unwrap().parse().unwrap()
        };
        (value("InDatagrams"), value("OutDatagrams"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs inside a namespace: sends datagrams from one address to another, whosesoever they are.
#[test]
fn as_forger() {
    let Ok(path) = env::var("FORGE") else { return };
    let (from, to) = path.split_once(' ').unwrap();
    let (from, to): (SocketAddrV4, SocketAddrV4) = (from.parse().unwrap(), to.parse().unwrap());
    // raw(7): the system fills in the checksum of the header, and its length.
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let text = b"is anybody there?";
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend((8 + text.len() as u16).to_be_bytes());
    // RFC 768: no checksum.
    packet.extend([0, 0]);
    packet.extend(text);
    for _ in 0..FORGED {
        assert_eq!(socket.send_to(&packet, &to.into()).unwrap(), packet.len());
    }
}

/// Sends, from the second end, what looks like datagrams of the server there to the one at the first.
fn forge(networks: &Networks, ports: [u16; 2]) {
    let [to, from] = [0, 1].map(|end| SocketAddrV4::new(ADDRESSES[end], ports[end]));
    let itself = env::current_exe().unwrap();
    let mut command = networks.command(1, itself.to_str().unwrap());
    command.args(["--exact", "as_forger"]).env("FORGE", format!("{from} {to}"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
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

/// What both have received and sent after forged datagrams, where namespaces can be had.
fn duel(test: &str, ports: [u16; 2]) -> Option<[(u64, u64); 2]> {
    let networks = match Networks::new(test) {
        Ok(networks) => networks,
        Err(reason) => {
            println!("skipped, since it needs network namespaces: {reason}");
            return None;
        }
    };
    let servers = [0, 1].map(|end: usize| Server::start(&networks, end, ports[end]));
    forge(&networks, ports);
    Some(silence(&servers))
}

/// Both have the same port, as two of the same kind have: nothing is answered at all.
#[test]
fn two_servers_on_one_port_do_not_begin_to_talk() {
    let Some([forged_at, other]) = duel("same", [12_000; 2]) else { return };
    assert_eq!(forged_at, (FORGED, 0));
    assert_eq!(other, (0, 0));
}

/// The port tells nothing: they do talk, faster than anyone who means it, and the rate limit ends it.
#[test]
fn two_servers_on_different_ports_fall_silent() {
    let Some([forged_at, other]) = duel("other", [12_000, 12_001]) else { return };
    assert!(forged_at.0 >= FORGED && other.0 > 0, "they never talked: {forged_at:?}, {other:?}");
}
