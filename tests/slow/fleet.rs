//! Three servers behind the load balancers that people have, HAProxy and nginx, with the files of
//! `packaging/` as they are. Each part has a network of its own: in the middle the balancer and its
//! clients, and a cable to each server. This needs root and Debian's packages; elsewhere it says what is
//! missing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv6Addr, Shutdown, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{
    DEADLINE, Daemon, LOCALHOST, connect, evecho, pass, read_to_end, run, stderr, wait_until,
};
use crate::network::{self, play};

// ---- a network of its own

/// New namespaces of networks, mounts and processes: what is started in them ends with them.
const UNSHARE: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// The servers as the files in `packaging/` name them, with their addresses there.
const SERVERS: [(&str, &str); 3] = [("a", "192.0.2.11"), ("b", "192.0.2.12"), ("c", "192.0.2.13")];

/// Lays the cables, and puts the configuration in its place.
const PREPARE: &str = r#"set -e
mount -t tmpfs none /run
mount -t tmpfs none /var/log
mkdir -p /run/netns "/run/$0" "/var/log/$0"
cp -r "/etc/$0" /run/etc
cp "packaging/$0"/* /run/etc/
mount --bind /run/etc "/etc/$0"
ip link set lo up
while [ $# -gt 0 ]; do
    ip netns add "$1"
    ip link add name "to-$1" type veth peer name cable netns "$1"
    ip address add 192.0.2.1/32 peer "$2/32" dev "to-$1"
    ip link set "to-$1" up
    ip -n "$1" address add "$2/32" peer 192.0.2.1/32 dev cable
    ip -n "$1" link set lo up
    ip -n "$1" link set cable up
    shift 2
done"#;

/// What is tested in a network of its own.
struct Part {
    name: &'static str,
    balancer: &'static str,
    run: fn(),
}

impl Part {
    const fn new(name: &'static str, balancer: &'static str, run: fn()) -> Part {
        Part { name, balancer, run }
    }

    /// Runs the part in a process that has namespaces of its own, where its test begins again.
    fn unshare(&self, test: &str) {
        if let Some(missing) = missing(self.balancer) {
            return println!("{}: skipped: {missing}", self.name);
        }
        match play(Command::new("unshare").args(UNSHARE), test, self.name) {
            Ok(text) => println!("{}:{text}", self.name),
            Err(why) => panic!("{}: {why}", self.name),
        }
    }

    /// Whether this is such a process. Then the part has been run.
    fn is_run(parts: &[Part]) -> bool {
        let Some(role) = network::role() else { return false };
        let part = parts.iter().find(|part| part.name == role).unwrap();
        let mut prepare = Command::new("sh");
        prepare.args(["-c", PREPARE, part.balancer]).current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = run(prepare.args(SERVERS.iter().flat_map(|&(name, ip)| [name, ip])));
        assert!(output.status.success(), "{}", stderr(&output));
        (part.run)();
        true
    }
}

/// What is not there that a part needs.
fn missing(balancer: &str) -> Option<String> {
    let complaint = |command: &mut Command| match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(stderr(&output).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    };
    let unshare = complaint(Command::new("unshare").args(UNSHARE).arg("true"));
    let program = complaint(Command::new(balancer).arg("-v"));
    let module =
        balancer == "nginx" && fs::metadata("/usr/lib/nginx/modules/ngx_stream_module.so").is_err();
    let network = complaint(Command::new("ip").arg("-V"));
    unshare
        .map(|why| format!("no namespaces: {why}"))
        .or(network.map(|why| format!("ip: {why}")))
        .or(program.map(|why| format!("{balancer}: {why}")))
        .or(module.then(|| "nginx has no stream module (libnginx-mod-stream)".to_owned()))
}

// ---- servers

/// The server at one of the addresses.
fn start(server: usize, flags: &[&str]) -> Daemon {
    let (name, ip) = SERVERS[server];
    let clean = evecho();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]).arg(clean.get_program());
    clean.get_envs().for_each(|(name, _)| _ = command.env_remove(name));
    // As the configurations tell.
    command.env("EVECHO_METRICS", format!("{ip}:12100")).env("EVECHO_UDP_RATE", "0");
    Daemon::spawn(command.args(flags))
}

/// What a server counted, as a line of its log has it.
struct Counters(String);

impl Counters {
    /// Of a server that runs.
    fn of(server: &Daemon) -> Counters {
        server.signal(Signal::SIGUSR1);
        Counters(server.wait_for("] accepted "))
    }

    fn value(&self, name: &str) -> u64 {
        let mut words = self.0.split([' ', ',']);
        words.find(|&word| word == name).map_or(0, |_| words.next().unwrap().parse().unwrap())
    }
}

// ---- balancers

/// A balancer that runs.
struct Balancer(Child);

impl Balancer {
    fn start(command: &mut Command) -> Balancer {
        Balancer(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn haproxy() -> Balancer {
        let haproxy =
            Balancer::start(Command::new("haproxy").args(["-W", "-f", "/etc/haproxy/haproxy.cfg"]));
        wait_until("HAProxy has found the servers up", || (0..SERVERS.len()).all(is_up));
        haproxy
    }

    fn nginx() -> Balancer {
        let nginx = Balancer::start(Command::new("nginx").args(["-g", "daemon off;"]));
        wait_until("nginx listens", || !workers().is_empty());
        nginx
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether HAProxy gives new connections to a server.
fn is_up(server: usize) -> bool {
    let Ok(mut socket) = UnixStream::connect("/run/haproxy/admin.sock") else { return false };
    socket.write_all(b"show servers state servers\n").unwrap();
    let mut table = String::new();
    socket.read_to_string(&mut table).unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(3) == Some(SERVERS[server].0));
    // The operational state: 2 is running.
    line.unwrap().split(' ').nth(5) == Some("2")
}

/// nginx' processes that take new clients.
fn workers() -> Vec<String> {
    let mut workers = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let title = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        if title.trim_end_matches(['\0', ' ']) == "nginx: worker process" {
            workers.push(process.file_name().into_string().unwrap());
        }
    }
    workers
}

/// What is to be done before a server leaves, and when it is back, as nginx' configuration tells it.
fn tell_nginx(server: usize, step: usize) {
    let old = workers();
    let text = fs::read_to_string("/etc/nginx/nginx.conf").unwrap();
    let steps: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   sed ")).collect();
    let command = format!("sed {}", steps[step]).replace(SERVERS[0].1, SERVERS[server].1);
    let output = run(Command::new("sh").args(["-c", &command]));
    assert!(output.status.success(), "{command}: {}", stderr(&output));
    wait_until("nginx' workers are new", || {
        let new = workers();
        new.len() == old.len() && new.iter().all(|worker| !old.contains(worker))
    });
}

// ---- load

/// A run of `evecho load` against the balancer.
fn load(flags: &[&str]) -> Report {
    let output = run(evecho().args(["load", "localhost:12000", "--json"]).args(flags));
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    Report { code: output.status.code(), report }
}

struct Report {
    code: Option<i32>,
    report: Value,
}

impl Report {
    fn error(&self, kind: &str) -> u64 {
        self.report["errors"][kind].as_u64().unwrap()
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.code, Some(0), "{}: {}", self.report["errors"], self.report["first_error"]);
    }
}

impl Report {
    /// Clean, but for the order: what waited for a server came behind what others answered.
    #[track_caller]
    fn assert_complete(&self) {
        let errors = self.report["errors"].as_object().unwrap();
        for (kind, count) in errors.iter().filter(|(kind, _)| *kind != "reordered") {
            assert_eq!(count, 0, "{kind}: {}", self.report["first_error"]);
        }
        assert_eq!(self.report["unsent"], 0);
    }
}

/// Runs the load again and again, until the body is over, and at least once: all reports.
fn under_load<T>(flags: &[&[&str]], body: impl FnOnce() -> T) -> (T, Vec<Vec<Report>>) {
    /// Also where the body panics.
    struct SetOnDrop<'a>(&'a AtomicBool);
    impl Drop for SetOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    let again = |flags: &[&str]| {
        let mut reports = vec![load(flags)];
        while !over.load(Ordering::Relaxed) {
            reports.push(load(flags));
        }
        reports
    };
    thread::scope(|scope| {
        let loads: Vec<_> = flags.iter().map(|flags| scope.spawn(|| again(flags))).collect();
        let result = {
            let _set = SetOnDrop(&over);
            body()
        };
        (result, loads.into_iter().map(|load| load.join().unwrap()).collect())
    })
}

/// How long servers hold each answer back: it keeps the machine from being busy, and something in flight.
const DELAY: &str = "--delay=20ms";
/// Longer than what is in flight on a connection takes, on a machine that is busy.
const DRAIN: &str = "--drain-timeout=30s";
/// So many connections, or datagrams, a second, each run for a second.
const RATE: u64 = 200;
const CHURN: &[&str] =
    &["--mode", "churn", "-n", "200", "-r", "200", "-c", "16", "--timeout", "30s"];
/// For longer than a server takes until its drain begins.
const STREAM: &[&str] = &["--mode", "stream", "-t", "2500ms", "-c", "6", "--timeout", "30s"];
/// An answer that took longer would be given up by nginx before.
const UDP: &[&str] = &["--udp", "-n", "200", "-r", "200", "-c", "16", "--timeout", "5s"];
/// So many datagrams are in flight at most.
const IN_FLIGHT: u64 = 16;

/// What happened to the datagrams of many runs.
struct Datagrams {
    sent: u64,
    lost: u64,
    /// Answered by an empty one.
    empty: u64,
}

impl Datagrams {
    fn of(reports: &[Report]) -> Datagrams {
        let sum = |of: &dyn Fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
        let (lost, empty) =
            (sum(&|report| report.error("lost")), sum(&|report| report.error("cut")));
        let answered =
            sum(&|report| report.report["messages"].as_u64().unwrap() + report.error("late"));
        let sent = RATE * reports.len() as u64;
        println!("{sent} datagrams: {lost} lost, {empty} answered by an empty one");
        assert_eq!(answered + lost + empty, sent, "something else happened to others");
        Datagrams { sent, lost, empty }
    }
}

// ---- replacement

/// All servers, and what those counted that were replaced.
struct Fleet {
    /// Starts the server at one of the addresses.
    start: Box<dyn Fn(usize) -> Daemon>,
    servers: [Option<Daemon>; 3],
    replaced: Vec<Counters>,
}

impl Fleet {
    fn start(flags: &'static [&'static str]) -> Fleet {
        Fleet::of(move |server| start(server, flags))
    }

    fn of(start: impl Fn(usize) -> Daemon + 'static) -> Fleet {
        let servers = [0, 1, 2].map(|server| Some(start(server)));
        Fleet { start: Box::new(start), servers, replaced: Vec::new() }
    }

    fn counter(&self, server: usize, name: &str) -> u64 {
        Counters::of(self.servers[server].as_ref().unwrap()).value(name)
    }

    /// Ends a server by SIGTERM. How many connections it had when its drain began.
    fn stop(&mut self, server: usize) -> u64 {
        let mut old = self.servers[server].take().unwrap();
        old.signal(Signal::SIGTERM);
        let line = old.wait_for("draining: ");
        let (_, rest) = line.split_once("draining: ").unwrap();
        self.replaced.push(Counters(old.wait_for("stopped: ")));
        assert!(old.wait().success());
        rest.split(' ').next().unwrap().parse().unwrap()
    }

    /// Starts the next server where one was stopped.
    fn restart(&mut self, server: usize) {
        self.servers[server] = Some((self.start)(server));
    }

    /// Replaces one after the other, each while streams go through it, which are all to come to their end.
    fn replace_each(&mut self, leaves: impl Fn(usize), is_back: impl Fn(usize)) {
        let mut drained = 0;
        for server in 0..SERVERS.len() {
            thread::scope(|scope| {
                let before = self.counter(server, "bytes_in");
                let has_stream = || self.counter(server, "bytes_in") > before + 1_000_000;
                // The balancer may give all of a run to others.
                let streams = loop {
                    let streams = scope.spawn(|| load(STREAM));
                    wait_until("streams go on", || has_stream() || streams.is_finished());
                    if !streams.is_finished() {
                        break streams;
                    }
                    streams.join().unwrap().assert_clean();
                };
                leaves(server);
                drained += self.stop(server);
                self.restart(server);
                is_back(server);
                streams.join().unwrap().assert_clean();
            });
        }
        println!("{drained} connections were open when their server began to drain");
        assert!(drained > 0, "every stream was over before its server began to drain");
    }

    /// The datagrams that all servers have received.
    fn received(&self) -> u64 {
        let replaced = self.replaced.iter().map(|counters| counters.value("udp_received"));
        let there = (0..SERVERS.len()).map(|server| self.counter(server, "udp_received"));
        replaced.chain(there).sum()
    }
}

#[test]
fn servers_are_replaced_under_load() {
    let parts = [
        Part::new("haproxy", "haproxy", haproxy_loses_no_connection),
        Part::new("told", "nginx", nginx_that_is_told_loses_only_datagrams_in_flight),
        Part::new("not told", "nginx", nginx_that_is_not_told_finds_out_by_lost_datagrams),
        Part::new("socket activation", "nginx", with_socket_activation_nginx_need_not_know),
        Part::new("who answers", "nginx", nginx_asks_all_servers_but_those_that_are_down),
    ];
    if !Part::is_run(&parts) {
        thread::scope(|scope| {
            for part in &parts {
                scope.spawn(|| part.unshare("fleet::servers_are_replaced_under_load"));
            }
        });
    }
}

fn haproxy_loses_no_connection() {
    let mut fleet = Fleet::start(&["--drain-delay", "1500ms", DELAY, DRAIN]);
    let _haproxy = Balancer::haproxy();
    let is_back = |server| wait_until("HAProxy has the server back", || is_up(server));
    let ((), reports) = under_load(&[CHURN], || fleet.replace_each(|_| {}, is_back));
    reports[0].iter().for_each(Report::assert_clean);
}

/// nginx loses the answers that are in flight when it reads its configuration again: a worker that ends
/// drops what it waits for over UDP.
fn nginx_that_is_told_loses_only_datagrams_in_flight() {
    let mut fleet = Fleet::start(&["--drain-delay", "1s", DELAY, DRAIN]);
    let _nginx = Balancer::nginx();
    let (leaves, is_back) = (|server| tell_nginx(server, 0), |server| tell_nginx(server, 1));
    let ((), reports) = under_load(&[CHURN, UDP], || fleet.replace_each(leaves, is_back));
    reports[0].iter().for_each(Report::assert_clean);
    let datagrams = Datagrams::of(&reports[1]);
    assert_eq!((fleet.received(), datagrams.empty), (datagrams.sent, 0), "all came to a server");
    let reloads = 2 * SERVERS.len() as u64;
    assert!(datagrams.lost <= reloads * IN_FLIGHT);
}

/// nginx finds out by datagrams that are lost. Where the server's host says that nobody has the port, nginx
/// answers with an empty datagram, and counts a failure; but hosts say so only now and then (icmp(7),
/// icmp_ratelimit), and the other datagrams are lost without a word.
fn nginx_that_is_not_told_finds_out_by_lost_datagrams() {
    let log = || fs::read_to_string("/var/log/nginx/error.log").unwrap();
    let refused = || log().matches("(111: Connection refused)").count();
    let mut fleet = Fleet::start(&["--drain-delay", "300ms", DELAY, DRAIN]);
    let _nginx = Balancer::nginx();
    let ((), reports) = under_load(&[UDP], || {
        for server in 0..SERVERS.len() {
            let before = refused();
            fleet.stop(server);
            wait_until("nginx has noticed", || refused() > before);
            fleet.restart(server);
            wait_until("nginx has the server back", || fleet.counter(server, "udp_received") > 0);
        }
    });
    let Datagrams { sent, lost, empty } = Datagrams::of(&reports[0]);
    println!("nginx says:\n{}", log());
    // What a server has received is answered, to its end; but nginx waits for it no longer than the
    // timeout, which a machine that is busy may exceed.
    let unheard = sent - fleet.received();
    let given_up = log().matches("(110: Connection timed out)").count() as u64;
    assert!((unheard..=unheard + given_up).contains(&(lost + empty)), "{unheard}, {given_up}");
    let most = SERVERS.len() as u64 * (5 + 2 * IN_FLIGHT);
    assert!(empty >= SERVERS.len() as u64 && lost + empty <= most);
}

/// Sockets of the port in a server's network, as its service manager has them.
fn sockets(server: usize) -> (TcpListener, UdpSocket) {
    let network = File::open(format!("/run/netns/{}", SERVERS[server].0)).unwrap();
    // A thread that is over changes nothing for the others.
    let bind = thread::spawn(move || {
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        let any = (Ipv6Addr::UNSPECIFIED, 12_000);
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    });
    bind.join().unwrap()
}

fn with_socket_activation_nginx_need_not_know() {
    let kept = [0, 1, 2].map(sockets);
    let mut fleet = Fleet::of(move |server| {
        let mut command = pass(&kept[server]);
        Daemon::spawn(command.env("EVECHO_UDP_RATE", "0").arg(DELAY))
    });
    let _nginx = Balancer::nginx();
    let ((), reports) = under_load(&[CHURN, UDP], || {
        for server in 0..SERVERS.len() {
            for counter in ["accepted", "udp_received"] {
                wait_until("clients come to the server", || fleet.counter(server, counter) > 0);
            }
            fleet.stop(server);
            fleet.restart(server);
        }
    });
    reports.iter().flatten().for_each(Report::assert_complete);
}

/// The answers of `--service who` to some clients, over TCP and over UDP: each has the name of its server.
fn who_answers() -> BTreeSet<String> {
    let name = |line: &[u8]| {
        let answer: Value = serde_json::from_slice(line).unwrap();
        // Servers see the balancer.
        assert!(answer["peer"].as_str().unwrap().starts_with("192.0.2.1:"), "{answer}");
        format!(
            "{} over {}",
            answer["name"].as_str().unwrap(),
            answer["protocol"].as_str().unwrap()
        )
    };
    let balancer = (LOCALHOST, 12_000).into();
    let mut names = BTreeSet::new();
    for _ in 0..10 {
        let stream = connect(balancer);
        stream.shutdown(Shutdown::Write).unwrap();
        names.insert(name(&read_to_end(&stream)));
    }
    for _ in 0..10 {
        let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.send_to(&[b' '; 400], balancer).unwrap();
        let mut room = [0; 400];
        let length = socket.recv(&mut room).unwrap();
        names.insert(name(&room[..length]));
    }
    names
}

fn nginx_asks_all_servers_but_those_that_are_down() {
    let named = |server: usize| start(server, &["--service", "who", "--name", SERVERS[server].0]);
    let _fleet = Fleet::of(named);
    let _nginx = Balancer::nginx();
    let all = ["a over tcp", "a over udp", "b over tcp", "b over udp", "c over tcp", "c over udp"];
    wait_until("all servers answer", || who_answers().iter().eq(all));
    tell_nginx(0, 0);
    let others = who_answers();
    assert!(others.iter().eq(&all[2..]), "{others:?}");
    tell_nginx(0, 1);
    wait_until("all servers answer again", || who_answers().iter().eq(all));
}

// ---- rules

#[test]
fn rules_hold_through_balancers() {
    let parts = [
        Part::new("haproxy", "haproxy", haproxy_breaks_no_rule),
        Part::new("nginx", "nginx", nginx_breaks_no_rule),
    ];
    if !Part::is_run(&parts) {
        // One after the other: some rules measure.
        parts.iter().for_each(|part| part.unshare("fleet::rules_hold_through_balancers"));
    }
}

/// The rules that are broken, and those that are not graded, of the rules whose names begin with these.
fn graded(rules: &str) -> (Vec<String>, Vec<String>) {
    let grade = |rules: &str| {
        // Those that measure come before whatever else the machine does.
        let mut check = Command::new("nice");
        check.args(["-n", "-10"]).arg(evecho().get_program()).args(["check", "localhost:12000"]);
        let output = run(check.args(["--format", "json", "--timeout", "30s", "--only", rules]));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        println!("{report:#}");
        let names = |outcome: &str| -> Vec<String> {
            let cases = report["cases"].as_array().unwrap().iter();
            let chosen = cases.filter(|case| case["outcome"] == outcome);
            chosen.map(|case| case["name"].as_str().unwrap().to_owned()).collect()
        };
        (names("failed"), names("skipped"))
    };
    let (mut broken, skipped) = grade(rules);
    // These two measure times, which a machine that is busy makes longer; what a balancer breaks, it breaks every time.
    let measure = ["tcp-fair", "udp-beside-tcp"];
    for _ in 0..2 {
        if !broken.is_empty() && broken.iter().all(|name| measure.contains(&&**name)) {
            broken = grade(&broken.join(",")).0;
        }
    }
    (broken, skipped)
}

fn haproxy_breaks_no_rule() {
    let _fleet = Fleet::start(&[]);
    let _haproxy = Balancer::haproxy();
    assert_eq!(graded("tcp"), (vec![], vec![]));
}

fn nginx_breaks_no_rule() {
    let _fleet = Fleet::start(&[]);
    let _nginx = Balancer::nginx();
    // For this one it would have to start the server itself.
    let skipped = vec!["loop-self".to_owned()];
    assert_eq!(graded("tcp,udp,loop"), (vec![], skipped));
}
