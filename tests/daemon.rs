//! The `evecho` process as an operator meets it: flags, log, signals, limits, exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;
#[cfg(target_os = "linux")]
use std::{io::Write, thread, time::Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/network.rs"]
mod network;
#[path = "common/sandbox.rs"]
mod sandbox;

use daemon::{
    DEADLINE, Daemon, LOCALHOST, assert_answer, assert_datagram, assert_echo, connect, evecho,
    failing, kept, pass, read_to_end, run, stderr, wait_until,
};
use network::in_network;
use sandbox::{INET6, refusing};
use socket2::{Domain, Socket, Type};

const DESIGNS: [&str; 3] = ["event-loop", "threaded", "iterative"];

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
    let udp_is_free = || {
        let tcp = Daemon::start(&["--tcp-only", "--bind", "127.0.0.1"]);
        assert_echo(&tcp.connect());
        UdpSocket::bind((LOCALHOST, tcp.port)).is_ok()
    };
    let tcp_is_free = || {
        let udp = Daemon::start(&["--udp-only", "--bind", "127.0.0.1"]);
        assert_datagram(&udp.udp(), b"hello");
        let refused = TcpStream::connect((LOCALHOST, udp.port)).err();
        refused.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    // The other port of the same number may be another test's, by chance.
    assert!((0..3).any(|_| udp_is_free()) && (0..3).any(|_| tcp_is_free()));
}

#[test]
fn processes_share_a_port_only_when_asked_to() {
    let first = Daemon::start(&["--reuse-port"]);
    let port = first.port.to_string();
    let second = Daemon::spawn(evecho().args(["--port", &port, "--reuse-port", "-v"]));
    assert_echo(&second.connect());
}

// ---- IPv4 and IPv6

/// The addresses that are tried, in this order.
const TRIED: [&str; 3] = ["127.0.0.1", "127.0.0.2", "::1"];

/// At which of these a server answers, over TCP and over UDP.
fn answered(port: u16) -> [bool; 3] {
    TRIED.map(|ip| {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        let tcp = TcpStream::connect(address).inspect(assert_echo).is_ok();
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let udp = UdpSocket::bind(any).and_then(|socket| {
            socket.set_read_timeout(Some(DEADLINE))?;
            socket.connect(address)?;
            socket.send(b"hello")?;
            socket.recv(&mut [0; 8])
        });
        assert_eq!(udp.is_ok(), tcp, "{address}: {udp:?}");
        tcp
    })
}

/// At which of these monitors are answered.
fn monitored(metrics: &str, command: &mut Command) -> ([bool; 3], String) {
    command.args(["--port", "0", "--bind", "127.0.0.1", "--metrics", metrics]);
    let daemon = Daemon::spawn(command);
    let line = daemon.wait_for("metrics on http://");
    let (_, address) = line.split_once("http://").unwrap();
    let address: SocketAddr = address.split('/').next().unwrap().parse().unwrap();
    let tried = TRIED.map(|ip| TcpStream::connect((ip, address.port())).is_ok());
    (tried, line)
}

/// `::` is every address of both families, whatever the system takes it for.
#[test]
fn what_is_bound_is_what_is_said() {
    in_network("what_is_bound_is_what_is_said", "ip link set lo up", || {
        for ipv6_only in ["0", "1"] {
            fs::write("/proc/sys/net/ipv6/bindv6only", ipv6_only).unwrap();
            what_is_bound();
        }
    });
}

fn what_is_bound() {
    let any = "for any client that reaches this machine";
    let rows = [
        ("", [true, true, true], any),
        ("--bind ::", [true, true, true], any),
        ("--bind 0.0.0.0", [true, true, false], "this machine over IPv4"),
        ("--bind :: --bind 0.0.0.0", [true, true, true], any),
        ("--bind 0.0.0.0 --bind ::", [true, true, true], any),
        ("--bind :: --bind 127.0.0.1", [true, false, true], "this machine over IPv6"),
        ("--bind ::ffff:0.0.0.0", [true, true, false], "this machine over IPv4"),
        ("--bind ::ffff:127.0.0.1", [true, false, false], "for this machine only"),
        ("--bind ::1", [false, false, true], "for this machine only"),
    ];
    for ((flags, expected, reach), design) in rows.into_iter().zip(DESIGNS.iter().cycle()) {
        let all = flags.split_whitespace().chain(["-p", "0", "--design", design]);
        let daemon = Daemon::spawn(evecho().args(all));
        assert!(daemon.listening.ends_with(reach), "{reach}: {}", daemon.listening);
        assert_eq!(answered(daemon.port), expected, "{flags}");
    }
    for (address, expected, reach) in [
        ("[::]:0", [true, true, true], any),
        ("0.0.0.0:0", [true, true, false], "this machine over IPv4"),
        ("[::ffff:127.0.0.1]:0", [true, false, false], "for this machine only"),
        ("[::1]:0", [false, false, true], "for this machine only"),
    ] {
        let (tried, line) = monitored(address, &mut evecho());
        assert!(tried == expected && line.ends_with(reach), "{address}: {tried:?}, {line}");
    }
}

/// What a command says that does not start.
fn refusal(command: &mut Command) -> String {
    let mut ends = Command::new("timeout");
    ends.arg(DEADLINE.as_secs().to_string()).arg(command.get_program()).args(command.get_args());
    let output = run(&mut ends);
    let said = stderr(&output);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    said
}

/// What means every address goes on over IPv4. What needs IPv6 says that there is none.
#[test]
fn without_ipv6_every_address_is_ipv4() {
    let prepare = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6";
    in_network("without_ipv6_every_address_is_ipv4", prepare, || {
        without_ipv6("this machine has no IPv6 address", &|| Some(evecho()));
        for (errno, words) in [
            (Errno::EAFNOSUPPORT, "this machine has no IPv6, or a sandbox takes it away"),
            (Errno::EPERM, "a sandbox or a security policy refuses it"),
            (Errno::EACCES, "a sandbox or a security policy refuses it"),
        ] {
            without_ipv6(words, &|| refusing(&[("socket", INET6, errno)]));
        }
    });
}

/// The same, from bind(2): how many calls in turn are refused.
#[test]
fn without_an_ipv6_address_every_address_is_ipv4() {
    for design in DESIGNS {
        for (when, flags) in
            [("1+2", ""), ("1..2", "--bind :: --bind 0.0.0.0"), ("1", "--udp-only")]
        {
            let inject = format!("bind:error=EADDRNOTAVAIL:when={when}");
            let Some(mut command) = failing(&inject) else { return };
            let flags = flags.split_whitespace().chain(["-p", "0", "--design", design]);
            let daemon = Daemon::spawn(command.args(flags));
            assert!(daemon.listening.contains("listening on 0.0.0.0:"), "{}", daemon.listening);
            assert!(daemon.listening.ends_with("over IPv4"), "{}", daemon.listening);
            assert_datagram(&daemon.udp(), b"hello");
        }
    }
    let mut command = failing("bind:error=EADDRNOTAVAIL:when=3").unwrap();
    let (tried, line) = monitored("[::]:0", &mut command);
    assert!(tried == [true, true, false] && line.ends_with("over IPv4"), "{line}");
}

fn without_ipv6(words: &str, command: &dyn Fn() -> Option<Command>) {
    for (flags, design) in [
        ("", "event-loop"),
        ("--bind ::", "threaded"),
        ("--bind :: --bind 0.0.0.0", "iterative"),
        ("--bind [::]:0 --udp-only", "event-loop"),
    ] {
        let Some(mut command) = command() else { return };
        let all = flags.split_whitespace().chain(["-p", "0", "--design", design]);
        let daemon = Daemon::spawn(command.args(all));
        let tcp = TcpStream::connect((LOCALHOST, daemon.port)).is_ok();
        assert_eq!(tcp, !flags.contains("--udp-only"), "{words}, {flags}");
        assert_datagram(&daemon.udp(), b"hello");
    }
    let Some(mut server) = command() else { return };
    assert_eq!(monitored("[::]:0", &mut server).0, [true, true, false], "{words}");
    let said = refusal(command().unwrap().args(["-p", "0", "--bind", "::1"]));
    assert!(said.contains(words) && said.contains("[::1]:0"), "{said}");
    let mut server = command().unwrap();
    server.args(["-p", "0", "--bind", "127.0.0.1", "--metrics", "[::1]:0"]);
    let said = Daemon::spawn(&mut server).wait_for("monitors are not served");
    assert!(said.contains(words) && said.contains("[::1]:0"), "{said}");
}

// ---- sources

/// They share a prefix, but each is a source of its own.
#[test]
fn hosts_on_a_link_do_not_take_connections_from_each_other() {
    let addresses =
        "ip address add fe80::a/64 dev lo nodad && ip address add fe80::b/64 dev lo nodad";
    let prepare = format!("ip link set lo up && {addresses}");
    in_network("hosts_on_a_link_do_not_take_connections_from_each_other", &prepare, || {
        // The loopback interface has index 1 in each network.
        let address = |ip: Ipv6Addr, port| SocketAddr::from(SocketAddrV6::new(ip, port, 0, 1));
        let [one, other] = ["fe80::a", "fe80::b"].map(|ip| ip.parse().unwrap());
        for ip in [one, other] {
            // The kernel adds the route a moment later.
            let socket = UdpSocket::bind(address(ip, 0)).unwrap();
            wait_until("a route to the address", || socket.connect(address(ip, 7)).is_ok());
        }
        for design in ["event-loop", "threaded"] {
            let limit = ["--per-source-connections", "2", "--design", design];
            let daemon = Daemon::start(&limit);
            let connect = |source| {
                let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
                socket.bind(&address(source, 0).into()).unwrap();
                socket.connect(&address(source, daemon.port).into()).unwrap();
                socket.set_read_timeout(Some(DEADLINE)).unwrap();
                TcpStream::from(socket)
            };
            let clients = [one, other, one, other].map(connect);
            clients.iter().for_each(assert_echo);
            assert_eq!(read_to_end(&connect(one)), b"");
            assert!(daemon.wait_for("closed at once").contains("[fe80::a%1]:"));
        }
    });
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

/// The reason is one that is known, and no other is claimed.
#[test]
fn why_a_port_cannot_be_had_is_said_truly() {
    let prepare = "ip link set lo up && echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range";
    in_network("why_a_port_cannot_be_had_is_said_truly", prepare, || {
        let own = "this server has the port already, at 0.0.0.0:12000";
        for flags in ["", "--tcp-only", "--udp-only", "--design threaded"] {
            let flags = format!("-p 12000 --bind 0.0.0.0 --bind 127.0.0.1 {flags}");
            let said = refusal(evecho().args(flags.split_whitespace()));
            assert!(said.contains(own) && said.contains("--bind: "), "{said}");
        }
        for (metrics, at) in [("127.0.0.1:12000", "[::]:12000"), ("[::]:12000", "[::]:12000")] {
            let daemon = Daemon::spawn(evecho().args(["--metrics", metrics]));
            let said = daemon.wait_for("monitors are not served");
            let own = format!("this server has the port already, at {at}");
            assert!(said.contains(&own), "{said}");
        }
        // Where the system picks, its range is what has no port left.
        let taken = UdpSocket::bind("0.0.0.0:40000").unwrap();
        let said = refusal(evecho().args(["-p", "0", "--bind", "0.0.0.0"]));
        assert!(said.contains("ip_local_port_range") && !said.contains("0 picks"), "{said}");
        let said = refusal(evecho().args(["-p", "40000", "--reuse-port"]));
        assert!(said.contains("all of them need SO_REUSEPORT and the same user"), "{said}");
        let said = refusal(evecho().args(["-p", "40000", "--udp-only"]));
        assert!(
            said.contains("another socket has that port") && !said.contains("process"),
            "{said}"
        );
        drop(taken);
        let said = refusal(evecho().args(["--bind", "fe80::1"]));
        assert!(said.contains("as in fe80::1%eth0"), "{said}");
        let unprivileged = |port| {
            let mut command = Command::new("setpriv");
            command.args(["--bounding-set", "-net_bind_service", env!("CARGO_BIN_EXE_evecho")]);
            refusal(command.args(["-p", port]))
        };
        let said = unprivileged("7");
        assert!(said.contains("ports below 1024 need CAP_NET_BIND_SERVICE"), "{said}");
        fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "7").unwrap();
        let said = unprivileged("6");
        assert!(said.contains("ports below 7 need CAP_NET_BIND_SERVICE"), "{said}");
    });
}

/// EPERM and EACCES of other calls, and on other ports, say nothing of capabilities.
#[test]
fn a_sandbox_is_called_so() {
    for call in ["socket", "bind", "listen", "epoll_create1", "epoll_ctl"] {
        for errno in [Errno::EPERM, Errno::EACCES] {
            for port in ["0", "7"] {
                let Some(mut command) = refusing(&[(call, None, errno)]) else { return };
                let said = refusal(command.args(["--tcp-only", "--bind", "127.0.0.1", "-p", port]));
                assert!(!said.contains("CAP_NET_BIND_SERVICE"), "{call}, {errno}: {said}");
                assert!(said.contains("a sandbox or a security policy refuses it"), "{said}");
            }
        }
    }
    for (call, errno, words) in [
        ("epoll_create1", Errno::EMFILE, "ulimit -n"),
        ("epoll_ctl", Errno::ENOSPC, "fs.epoll.max_user_watches"),
    ] {
        let Some(mut command) = refusing(&[(call, None, errno)]) else { return };
        let said = refusal(command.args(["-p", "0"]));
        assert!(said.contains("cannot be set up") && said.contains(words), "{said}");
    }
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
    let cases: [(&[&str], &str); 14] = [
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
        (&["--bind", "ff02::1%lo"], "multicast"),
        (&["--bind", "::ffff:224.0.0.1"], "multicast"),
        (&["--bind", "255.255.255.255"], "broadcast"),
        (&["--metrics", "[ff02::1]:0"], "multicast"),
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

// ---- the configuration, tried before a start

/// What `--check-config` prints for these settings, which are valid.
fn checked(flags: &[&str], variables: &[(&str, &str)]) -> String {
    let output = run(evecho().args(flags).arg("--check-config").envs(variables.iter().copied()));
    assert_eq!(output.status.code(), Some(0), "{flags:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_configuration_that_is_valid_is_described() {
    let said = checked(&[], &[]);
    for line in [
        "listens on   [::]:12000 (TCP and UDP, event-loop)",
        "clients      any client that reaches this machine",
        "replies      echo, framing raw",
        "idle         connections are never closed for being idle",
        "memory       64 MiB for what all TCP connections hold",
        "UDP          10,000 replies per second to one source, none to source ports 0,7,13,17,19,37,53,69,123",
        "monitors     none",
        "stop         drains for up to 8 s",
        "set by       nothing: all is the default",
    ] {
        assert!(said.lines().any(|one| one == line), "{line}\nis not in\n{said}");
    }
    assert!(said.contains("\nconnections  at most "), "{said}");
    assert!(said.contains("\nThe configuration is valid. "), "{said}");

    let flags = ["--bind", "127.0.0.1:7,::1", "--service", "who", "--once", "--tcp-only"];
    let limits = ["--idle-timeout", "5m", "--max-connections", "10", "--drain-delay", "5s"];
    let others = ["--metrics", "127.0.0.1:0", "--delay", "20ms", "-p", "0", "-v"];
    let variables = [
        ("EVECHO_FRAMING", "lines"),
        ("EVECHO_PER_SOURCE_CONNECTIONS", "3"),
        ("EVECHO_NAME", "a"),
        ("EVECHO_VERBOSE", ""),
    ];
    let said = checked(&[&flags[..], &limits, &others].concat(), &variables);
    for line in [
        "listens on   127.0.0.1:7, [::1]:0 (TCP, event-loop); port 0 stands for a free one",
        "clients      this machine only",
        "replies      who, named a, framing lines with frames of at most 64 KiB, to one message of each connection",
        "on purpose   delay 20ms",
        "connections  at most 10, of one source at most 3",
        "idle         connections close after 5 min without a byte",
        "monitors     http://127.0.0.1:0/metrics, for this machine only; port 0 stands for a free one",
        "stop         serves on for 5 s, then drains for up to 8 s",
    ] {
        assert!(said.lines().any(|one| one == line), "{line}\nis not in\n{said}");
    }
    let set_by = said.lines().find_map(|line| line.strip_prefix("set by       ")).unwrap();
    let names = [
        "--port",
        "--bind",
        "--tcp-only",
        "--metrics",
        "--service",
        "EVECHO_NAME",
        "EVECHO_FRAMING",
        "--once",
        "--max-connections",
        "EVECHO_PER_SOURCE_CONNECTIONS",
        "--idle-timeout",
        "--drain-delay",
        "--delay",
        "--verbose",
    ];
    assert_eq!(set_by, names.join(", "));
    assert!(!said.contains("UDP"), "{said}");

    let said = checked(&["serve", "--udp-only", "--udp-rate", "0", "--guard-ports", "none"], &[]);
    assert!(
        said.contains("\nUDP          any number of replies, none to source ports of its own\n"),
        "{said}"
    );
    assert!(!said.contains("TCP") && !said.contains("connections"), "{said}");
    let said = checked(&["--design", "iterative"], &[]);
    assert!(said.contains("\nconnections  at most 1, of one source"), "{said}");
}

#[test]
fn a_configuration_is_checked_without_binding_anything() {
    for design in ["event-loop", "threaded", "iterative"] {
        let daemon = Daemon::start(&["--bind", "127.0.0.1", "--design", design]);
        let port = daemon.port.to_string();
        let flags = ["--port", &port, "--bind", "127.0.0.1", "--design", design, "--quiet"];
        let said = checked(&flags, &[]);
        assert!(said.contains(&format!("127.0.0.1:{port} ")), "{said}");
        assert!(said.contains("only a start tells"), "{said}");
        assert_echo(&daemon.connect());
        assert_datagram(&daemon.udp(), b"hello");
    }
}

#[test]
fn what_is_wrong_with_a_configuration_is_said_as_at_a_start() {
    for (flags, variables) in [
        (&["--max-frame", "0"][..], None),
        (&["--tcp-only", "--loss", "1%"], None),
        (&["--tcp-only", "--udp-only"], None),
        (&["--bind", "::1,::1"], None),
        (&["--framing", "linse"], None),
        (&["--design", "threaded", "--metrics", "127.0.0.1:0"], None),
        (&[], Some(("EVECHO_FRAMING", "linse"))),
        (&[], Some(("EVECHO_BUSY_POLL", "1h"))),
        (&[], Some(("EVECHO_PORT", "7 # echo"))),
    ] {
        let start = run(evecho().args(flags).envs(variables));
        let check = run(evecho().arg("--check-config").args(flags).envs(variables));
        assert_eq!(check.status.code(), Some(2), "{flags:?} {variables:?}");
        assert_eq!((check.status, stderr(&check)), (start.status, stderr(&start)));
        assert_eq!(check.stdout, b"", "{flags:?} {variables:?}");
    }
    let output = run(evecho().args(["--check-config", "ping", "localhost"]));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_a_start_would_warn_of_is_said_beside_a_valid_configuration() {
    let variables = [("EVECHO_BINDS", "127.0.0.1"), ("EVECHO_QUIET", "1")];
    let output =
        run(evecho().args(["--check-config", "--max-connections", "4294967295"]).envs(variables));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for said in ["did you mean 'EVECHO_BIND'?", "the limit on open files allows "] {
        assert!(stderr(&output).contains(said), "{said}: {}", stderr(&output));
    }
}

/// Limits that a design or a transport does not know are not said to be reduced.
#[test]
fn only_limits_that_count_are_said_to_be_reduced() {
    for (flags, memory, files) in [
        (&[][..], true, true),
        (&["--design", "threaded"], false, true),
        (&["--design", "iterative"], false, false),
        (&["--udp-only"], false, false),
    ] {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v 80000 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_evecho")]);
        command.args(["--check-config", "--max-connections", "4294967295"]).args(flags);
        let said = stderr(&run(&mut command));
        assert_eq!(said.contains("the limit on address space"), memory, "{flags:?}: {said}");
        assert_eq!(said.contains("the limit on open files"), files, "{flags:?}: {said}");
    }
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
    let sockets = kept();
    let mut child = pass(&sockets).arg("-q").stderr(Stdio::piped()).spawn().unwrap();
    assert_echo(&connect(sockets.0.local_addr().unwrap()));
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
fn signals_that_the_parent_process_blocked_are_taken() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let blocked = SigSet::from(signal);
        // A child keeps the mask of the thread that starts it (execve(2)).
        blocked.thread_block().unwrap();
        let mut daemon = Daemon::start(&[]);
        blocked.thread_unblock().unwrap();
        daemon.signal(signal);
        assert_eq!(daemon.wait().code(), Some(0), "{signal}");
    }
}

/// As those of the parent process that waited when it called execve(2).
#[test]
fn signals_that_wait_for_their_handlers_are_taken() {
    let script = "kill -s \"$0\" $$; exec \"$@\" --port 0 --bind 127.0.0.1";
    for (signal, said) in [(Signal::SIGUSR1, "accepted"), (Signal::SIGTERM, "draining")] {
        let mut command = Command::new("sh");
        command.args(["-c", script, &signal.as_str()[3..], env!("CARGO_BIN_EXE_evecho")]);
        let blocked = SigSet::from(signal);
        blocked.thread_block().unwrap();
        let mut daemon = Daemon::spawn(&mut command);
        blocked.thread_unblock().unwrap();
        daemon.wait_for(said);
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0), "{signal}");
    }
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

#[cfg(target_os = "linux")]
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

#[cfg(target_os = "linux")]
#[test]
fn a_client_that_never_reads_costs_little_and_loses_nothing() {
    const TOTAL: usize = 64 << 20;
    let daemon = Daemon::start(&[]);
    let mut client = daemon.connect();
    assert_echo(&client);
    let before = daemon.resident();
    let mut writer = client.try_clone().unwrap();
    // Byte n is n modulo 251: any loss shifts the rest.
    let block: Vec<u8> = (0..251 * 1024).map(|n| (n % 251) as u8).collect();
    let expected = block.clone();
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
    let (mut received, mut buffer) = (0, vec![0; 128 << 10]);
    loop {
        let length = client.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        let right = buffer[..length] == expected[received % 251..][..length];
        assert!(right, "wrong bytes after {received}");
        received += length;
    }
    sending.join().unwrap();
    assert_eq!(received, TOTAL);
    assert!(daemon.resident() - before < 1024, "{} KiB", daemon.resident() - before);
}

#[cfg(target_os = "linux")]
#[test]
fn out_of_descriptors_the_backlog_waits() {
    ["event-loop", "threaded"].into_iter().for_each(run_out_of_descriptors);
}

#[cfg(target_os = "linux")]
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

#[cfg(target_os = "linux")]
#[test]
fn a_lasting_error_of_accept_makes_nobody_spin() {
    for design in DESIGNS {
        // As a filter or a security module does.
        let Some(mut command) = refusing(&[("accept4", None, Errno::EPERM)]) else { return };
        command.args(["--port", "0", "--bind", "127.0.0.1", "--design", design]);
        let mut daemon = Daemon::spawn(&mut command);
        let _client = daemon.connect();
        let line =
            daemon.wait_for("cannot accept with 0 connections open: Operation not permitted");
        assert!(line.contains(": a sandbox or a security policy refuses it"), "{line}");
        assert!(line.contains("; new clients wait"), "{line}");
        daemon.assert_sleeps();
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_error_of_receive_makes_nobody_spin() {
    for design in DESIGNS {
        let Some(mut command) = refusing(&[("recvmsg", None, Errno::EPERM)]) else { return };
        command.args(["--port", "0", "--bind", "127.0.0.1", "--design", design]);
        let mut daemon = Daemon::spawn(&mut command);
        daemon.udp().send(b"hello").unwrap();
        daemon.wait_for("cannot receive datagrams: EPERM");
        // It tries again ten times a second.
        daemon.assert_sleeps_for(Duration::from_millis(60));
        assert_echo(&daemon.connect());
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

/// What is said of each option that the system refuses, and whether that is a broken promise.
const OPTIONS: [(&str, &str); 13] = [
    ("IPV6_V6ONLY", "WARN"),
    ("SO_REUSEPORT", "WARN"),
    ("SO_REUSEADDR", "INFO"),
    ("TCP_NODELAY", "INFO"),
    ("SO_KEEPALIVE", "INFO"),
    ("SO_OOBINLINE", "WARN"),
    ("SO_RCVBUF", "INFO"),
    ("SO_SNDBUF", "INFO"),
    ("IPV6_RECVPKTINFO", "WARN"),
    ("IPV6_RECVHOPLIMIT", "WARN"),
    ("IP_PKTINFO", "WARN"),
    ("IP_RECVTTL", "WARN"),
    ("IP_TTL", "WARN"),
];

#[test]
fn an_option_that_is_refused_is_named_and_done_without() {
    if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return println!("skipped: no IPv6 here");
    }
    for design in ["event-loop", "threaded", "iterative"] {
        // The second sandbox has no call that sets options, modes among them.
        for calls in ["setsockopt:error=ENOPROTOOPT", "setsockopt,getsockopt,ioctl:error=EPERM"] {
            let Some(mut command) = failing(calls) else { return };
            command.args(["--port", "0", "--reuse-port", "--idle-timeout", "1h"]);
            let daemon = Daemon::spawn(command.args(["--design", design]));
            let client = daemon.connect();
            assert_echo(&client);
            assert_datagram(&daemon.udp(), b"hello");
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&client), b"");
            let log = daemon.stop();
            let of = |option: &str| {
                let named = format!("served without {option},");
                log.iter().filter(|line| line.contains(&named)).collect::<Vec<_>>()
            };
            for (option, level) in OPTIONS {
                let [line] = of(option)[..] else { panic!("{option}: {log:#?}") };
                assert!(line.contains(level), "{line}");
            }
            assert_eq!(of("UDP_GRO").len(), usize::from(design == "event-loop"), "{log:#?}");
            assert_eq!(of("SO_RCVTIMEO").len(), usize::from(design != "event-loop"), "{log:#?}");
        }
    }
}

/// TCP and UDP are options of the same port: each is served whichever option of either is refused.
#[test]
fn each_option_may_be_refused_alone() {
    for number in 1..=20 {
        let Some(mut command) = failing(&format!("setsockopt:error=EINVAL:when={number}")) else {
            return;
        };
        let daemon = Daemon::spawn(command.args(["--port", "0", "--reuse-port"]));
        assert_echo(&daemon.connect());
        assert_datagram(&daemon.udp(), b"hello");
        let log = daemon.stop();
        let named = log.iter().filter(|line| line.contains("is served without")).count();
        assert!(named <= 1, "{log:#?}");
    }
}

/// A signal interrupts a read that waits for a bounded time, whatever its handler says (signal(7)): also of a
/// connection that lingers.
#[test]
fn an_interrupted_read_ends_no_connection() {
    for design in ["event-loop", "threaded", "iterative"] {
        let Some(mut command) = failing("recvfrom:error=EINTR:when=1+2") else { return };
        let flags = ["--port", "0", "-v", "--tcp-only", "--once", "--design", design];
        let daemon = Daemon::spawn(command.args(flags));
        let client = TcpStream::connect((LOCALHOST, daemon.port)).unwrap();
        assert_echo(&client);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&client), b"");
        daemon.wait_for("closed by us: the service was done");
        daemon.stop();
    }
}

/// A sandbox that is older than sendmmsg(2) lacks it, or says that it is forbidden.
#[test]
fn replies_leave_without_sendmmsg() {
    if cfg!(target_env = "musl") {
        // Its sendmmsg is a loop of sendmsg.
        return;
    }
    for design in ["event-loop", "threaded", "iterative"] {
        for error in ["ENOSYS", "EPERM"] {
            let Some(mut command) = failing(&format!("sendmmsg:error={error}")) else { return };
            let daemon = Daemon::spawn(command.args(["--port", "0", "--design", design]));
            // From the address that was asked, and again.
            let client = UdpSocket::bind((LOCALHOST, 0)).unwrap();
            client.set_read_timeout(Some(DEADLINE)).unwrap();
            client.connect((Ipv4Addr::new(127, 0, 0, 2), daemon.port)).unwrap();
            assert_datagram(&client, b"hello");
            assert_datagram(&client, b"hello again");
            let log = daemon.stop();
            let said = log.iter().filter(|line| line.contains("served without sendmmsg"));
            assert_eq!(said.count(), 1, "{log:#?}");
        }
    }
}

/// Without such a call there is nothing to be served.
#[test]
fn a_call_that_the_system_lacks_ends_the_socket_that_needs_it() {
    for design in ["event-loop", "threaded", "iterative"] {
        for (calls, transport) in [
            // musl calls accept where accept4 is missing.
            ("accept4,accept", "--tcp-only"),
            ("recvmsg", "--udp-only"),
            ("sendmmsg,sendmsg", "--udp-only"),
        ] {
            let Some(mut command) = failing(&format!("{calls}:error=ENOSYS")) else { return };
            let mut daemon =
                Daemon::spawn(command.args(["-p", "0", "--design", design, transport]));
            // The server may be gone by now: it calls accept before the first client comes.
            let _client =
                (transport == "--tcp-only").then(|| TcpStream::connect(("127.0.0.1", daemon.port)));
            daemon.udp().send(b"hello").unwrap();
            let line = daemon.wait_for("is gone, and not served any more");
            assert!(line.contains("Function not implemented"), "{line}");
            daemon.wait_for("the server cannot go on: none of its sockets is left");
            assert_eq!(daemon.wait().code(), Some(1));
        }
    }
}

/// What is said of accept at the end has the cause of the pauses, and says which peers had to wait.
#[test]
fn pauses_of_accept_have_their_cause_and_their_peers() {
    for (errno, cause) in [
        (Errno::EPERM, "a sandbox or a security policy refuses it"),
        (Errno::ENFILE, "raise fs.file-max"),
        (Errno::ENOBUFS, "no memory is left for it"),
    ] {
        let Some(mut command) = refusing(&[("accept4", None, errno)]) else { return };
        command.args(["--port", "0", "--bind", "127.0.0.1", "--metrics", "127.0.0.1:0"]);
        let daemon = Daemon::spawn(&mut command);
        let metrics = daemon.wait_for("metrics on http://");
        let (_, monitors) = metrics.split_once("http://").unwrap();
        let _monitor = connect(monitors.split('/').next().unwrap().parse().unwrap());
        let line = daemon.wait_for("cannot accept with 0 connections open");
        assert!(line.contains(cause) && line.contains("; new monitors wait"), "{line}");
        let _client = daemon.connect();
        let line = daemon.wait_for("cannot accept with 0 connections open");
        assert!(line.contains(cause) && line.contains("; new clients wait"), "{line}");
        wait_until("it has tried again", || {
            daemon.signal(Signal::SIGUSR1);
            let counters = daemon.wait_for("accept_pauses ");
            let (_, pauses) = counters.split_once("accept_pauses ").unwrap();
            pauses.split(',').next().unwrap().parse::<u64>().unwrap() > 1
        });
        let log = daemon.stop();
        let over = log.iter().find(|line| line.contains("accept of clients paused"));
        assert!(over.is_some_and(|line| line.contains(cause)), "{log:?}");
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

#[cfg(target_os = "linux")]
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

#[test]
fn a_client_without_a_thread_is_one_client_less() {
    // It counts for each thread: of those that one thread starts, the third.
    let inject = "inject=clone,clone3:error=EAGAIN:when=3";
    let refusing = ["-D", "-fqq", "-o", "/dev/null", "-e", "trace=clone,clone3", "-e", inject];
    let possible = Command::new("strace").args(refusing).arg("true").output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped, since it needs strace: {possible:?}");
        return;
    }
    let mut command = Command::new("strace");
    command.args(refusing).arg(env!("CARGO_BIN_EXE_evecho"));
    command.args(["-p", "0", "--bind", "127.0.0.1", "--design", "threaded"]);
    let mut daemon = Daemon::spawn(&mut command);
    let served = [(); 2].map(|()| daemon.connect());
    served.iter().for_each(assert_echo);
    let refused = daemon.connect();
    let read = (&refused).read(&mut [0; 1]);
    assert!(matches!(read, Ok(0)) || read.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    daemon.wait_for("no thread can be started: ");
    assert_echo(&daemon.connect());
    served.iter().for_each(assert_echo);
    assert_datagram(&daemon.udp(), b"hello");
    drop(served);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

// ---- what the parent process hands down

#[test]
fn signals_of_timers_limits_and_descriptors_end_no_server() {
    for design in ["event-loop", "threaded", "iterative"] {
        let mut daemon = Daemon::start(&["--bind", "127.0.0.1", "--design", design]);
        // What alarm(2), setitimer(2), RLIMIT_CPU, RLIMIT_FSIZE, O_ASYNC, and `stty tostop` send.
        for name in ["ALRM", "VTALRM", "PROF", "XCPU", "XFSZ", "IO", "TTOU", "CHLD"] {
            daemon.signal(format!("SIG{name}").parse().unwrap());
            assert_echo(&daemon.connect());
        }
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0), "{design}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_is_ignored_where_it_was() {
    // What a shell without job control does for what it starts in the background.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' INT TERM; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_evecho")]);
    let mut daemon = Daemon::spawn(command.args(["-p", "0", "--bind", "127.0.0.1"]));
    daemon.signal(Signal::SIGINT);
    daemon.signal(Signal::SIGUSR1);
    let line = daemon.wait_for("accepted 0, ");
    assert!(!line.contains("stopped"), "{line}");
    assert_echo(&daemon.connect());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn timers_are_in_time_whatever_slack_the_parent_process_has() {
    use nix::sys::prctl::set_timerslack;

    // A child has that of the thread that starts it, here 18 minutes.
    set_timerslack(u64::MAX >> 24).unwrap();
    let daemon = Daemon::start(&["--bind", "127.0.0.1", "--delay", "10ms"]);
    set_timerslack(50_000).unwrap();
    assert_echo(&daemon.connect());
}
