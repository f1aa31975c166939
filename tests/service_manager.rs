//! The `evecho` process under a service manager: what it reports, and sockets that it inherits.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evecho::protocol::{Context, Flow, Message, Replies};
use evecho::{Config, Design, Server, Service, ServiceManager};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use nix::{libc, setsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/manager.rs"]
mod manager;
#[path = "common/monitored.rs"]
mod monitored;
#[path = "common/network.rs"]
mod network;

use daemon::{
    DEADLINE, Daemon, LOCALHOST, assert_datagram, assert_echo, connect, evecho, failing,
    inheriting, kept, pass, read_to_end, run, stderr, wait_until, with_sockets,
};
use manager::Manager;
use monitored::Monitored;
use network::in_network;

const DESIGNS: [&str; 3] = ["event-loop", "threaded", "iterative"];

/// A server that reports to the manager.
fn start(manager: &Manager, flags: &[&str], variables: &[(&str, &str)]) -> Daemon {
    let mut command = evecho();
    command.args(["--port", "0", "--bind", "127.0.0.1"]).args(flags);
    Daemon::spawn(manager.manage(&mut command).envs(variables.iter().copied()))
}

// ---- what it reports

#[test]
fn the_manager_hears_when_the_server_serves_and_when_it_stops() {
    for design in DESIGNS {
        let manager = Manager::new();
        let mut daemon = start(&manager, &["--design", design, "--drain-delay", "1h"], &[]);
        let port = daemon.port;
        let status = format!(
            "READY=1\nSTATUS=listening on 127.0.0.1:{port} (TCP and UDP, {design}), for this machine only\n"
        );
        assert_eq!(manager.hear(), status);
        assert_echo(&daemon.connect());
        daemon.signal(Signal::SIGTERM);
        let stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=3609000000\nSTATUS=draining\n";
        assert_eq!(manager.hear(), stopping);
        assert_echo(&daemon.connect());
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn a_manager_may_have_a_path() {
    let path = format!("{}/notify-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let manager = Manager::on(UnixDatagram::bind(&path).unwrap(), path.clone().into());
    let daemon = start(&manager, &[], &[]);
    assert!(manager.hear().starts_with("READY=1\n"));
    daemon.stop();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_watchdog_hears_of_an_idle_server_again_and_again() {
    for design in DESIGNS {
        let manager = Manager::new();
        let daemon = start(&manager, &["--design", design], &[("WATCHDOG_USEC", "20000")]);
        assert!(manager.hear().starts_with("READY=1\n"));
        for _ in 0..5 {
            assert_eq!(manager.hear(), "WATCHDOG=1\n");
        }
        daemon.stop();
    }
}

#[test]
fn a_watchdog_of_another_process_is_none_of_ours() {
    let manager = Manager::new();
    let daemon = start(&manager, &[], &[("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")]);
    assert!(manager.hear().starts_with("READY=1\n"));
    assert_echo(&daemon.connect());
    daemon.assert_sleeps();
    daemon.stop();
    assert!(manager.hear().starts_with("STOPPING=1\n"));
}

/// A service that does not answer before it is allowed to.
#[derive(Clone)]
struct Stuck {
    begun: std::sync::mpsc::Sender<()>,
    allowed: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
}

impl Service for Stuck {
    fn serve(&mut self, _: Message<'_>, replies: &mut Replies<'_>, _: &Context<'_>) -> Flow {
        self.begun.send(()).unwrap();
        self.allowed.lock().unwrap().recv().unwrap();
        replies.echo();
        Flow::Continue
    }
}

#[test]
fn a_watchdog_hears_nothing_of_a_loop_that_hangs() {
    let manager = Manager::new();
    let mut config = Config::default();
    (config.port, config.bind, config.design) = (0, vec![LOCALHOST.into()], Design::EventLoop);
    let mut told = ServiceManager::new(&manager.name);
    told.watchdog = Some(Duration::from_millis(20));
    config.service_manager = Some(told);
    let (begun, begins) = channel();
    let (allow, allowed) = channel();
    let stuck = Stuck { begun, allowed: Arc::new(Mutex::new(allowed)) };
    let server = Server::bind(config).unwrap().spawn_with(stuck).unwrap();
    assert!(manager.hear().starts_with("READY=1\n"));
    assert_eq!(manager.hear(), "WATCHDOG=1\n");
    let client = connect(server.local_addrs()[0]);
    std::io::Write::write_all(&mut &client, b"hello").unwrap();
    begins.recv_timeout(DEADLINE).unwrap();
    // What it said before.
    manager.socket.set_nonblocking(true).unwrap();
    while manager.socket.recv(&mut [0; 100]).is_ok() {}
    manager.socket.set_nonblocking(false).unwrap();
    manager.socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let silence = manager.socket.recv(&mut [0; 100]).unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
    manager.socket.set_read_timeout(Some(DEADLINE)).unwrap();
    allow.send(()).unwrap();
    assert_eq!(manager.hear(), "WATCHDOG=1\n");
    server.abort();
    server.join().unwrap();
}

#[test]
fn a_manager_that_cannot_be_reached_is_one_warning() {
    for design in DESIGNS {
        let mut command = evecho();
        command.args(["--port", "0", "--bind", "127.0.0.1", "--design", design]);
        command.env("NOTIFY_SOCKET", "/nonexistent/notify").env("WATCHDOG_USEC", "2000");
        let daemon = Daemon::spawn(&mut command);
        let line = daemon.wait_for("NOTIFY_SOCKET");
        assert!(line.contains("No such file or directory"), "{line}");
        assert_echo(&daemon.connect());
        assert_datagram(&daemon.udp(), b"hello");
        let log = daemon.stop();
        assert!(!log.iter().any(|line| line.contains("NOTIFY_SOCKET")), "{log:?}");
    }
}

#[test]
fn a_manager_that_does_not_listen_holds_up_nobody() {
    let manager = Manager::new();
    // Others have told it more than it has room for.
    let others = UnixDatagram::unbound().unwrap();
    others.set_nonblocking(true).unwrap();
    let address = manager.socket.local_addr().unwrap();
    while others.send_to_addr(b"others", &address).is_ok() {}
    let daemon = start(&manager, &[], &[("WATCHDOG_USEC", "2000")]);
    for _ in 0..10 {
        assert_echo(&daemon.connect());
    }
    loop {
        match manager.hear() {
            said if said == "others" => {}
            said => break assert!(said.starts_with("READY=1\n"), "{said}"),
        }
    }
    daemon.stop();
}

// ---- sockets that it inherits

/// As `SocketProtocol=mptcp` has systemd make it, and Go every listener.
#[test]
fn a_listener_of_mptcp_is_served() {
    let made = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    let Ok(made) = made else { return println!("skipped: no MPTCP here") };
    made.bind(&SocketAddr::from((LOCALHOST, 0)).into()).unwrap();
    made.listen(16).unwrap();
    let listener = TcpListener::from(made);
    let address = listener.local_addr().unwrap();
    for design in DESIGNS {
        let socket = UdpSocket::bind((LOCALHOST, 0)).unwrap();
        let mut command = inheriting(listener.try_clone().unwrap(), socket.try_clone().unwrap());
        let daemon = Daemon::spawn(command.args(["--design", design]));
        let over_mptcp = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
        over_mptcp.connect(&address.into()).unwrap();
        let over_mptcp = TcpStream::from(over_mptcp);
        over_mptcp.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_echo(&over_mptcp);
        drop(over_mptcp);
        let client = connect(address);
        assert_echo(&client);
        drop(client);
        assert_datagram(&ask(socket.local_addr().unwrap()), b"hello");
        let log = daemon.stop();
        let said = log.iter().filter(|line| line.contains("without SO_OOBINLINE")).count();
        assert!(said <= 1, "{log:#?}");
    }
}

/// A sandbox may forbid what its service manager has done before.
#[test]
fn a_listener_that_listens_need_not_be_told_to() {
    let kept = kept();
    let Some(server) = failing("listen:error=EPERM") else { return };
    let (one, other) = (kept.0.try_clone().unwrap(), kept.1.try_clone().unwrap());
    let daemon = Daemon::spawn(&mut with_sockets(&server, one, other));
    assert_echo(&connect(kept.0.local_addr().unwrap()));
    daemon.wait_for("is served without listen,");
    daemon.stop();
}

fn ask(socket: SocketAddr) -> UdpSocket {
    let client = UdpSocket::bind((socket.ip(), 0)).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.connect(socket).unwrap();
    client
}

#[test]
fn inherited_sockets_are_served_with_every_option_again() {
    for design in DESIGNS {
        let kept = kept();
        let (listener, socket) = &kept;
        let buffer = SockRef::from(socket).recv_buffer_size().unwrap();
        let daemon = Daemon::spawn(pass(&kept).args(["--design", design]));
        let client = connect(listener.local_addr().unwrap());
        assert_echo(&client);
        SockRef::from(&client).send_out_of_band(b"!").unwrap();
        std::io::Read::read_exact(&mut &client, &mut [0]).unwrap();
        assert_datagram(&ask(socket.local_addr().unwrap()), b"hello");
        let shared = SockRef::from(listener);
        assert!(shared.tcp_nodelay().unwrap() && shared.out_of_band_inline().unwrap());
        assert!(SockRef::from(socket).recv_buffer_size().unwrap() >= buffer);
        drop(client);
        daemon.stop();
    }
}

sockopt_impl!(
    /// How many bytes a read waits for (socket(7)).
    ReceiveLowWater, SetOnly, libc::SOL_SOCKET, libc::SO_RCVLOWAT, i32
);
sockopt_impl!(
    /// Keeps datagrams back (udp(7)).
    UdpCork, SetOnly, libc::IPPROTO_UDP, libc::UDP_CORK, bool
);

/// What its owner has set for purposes of its own is not what clients meet.
#[test]
fn options_of_the_owner_do_not_change_how_clients_are_served() {
    for design in DESIGNS {
        let kept = kept();
        let (listener, socket) = (SockRef::from(&kept.0), SockRef::from(&kept.1));
        listener.set_linger(Some(Duration::ZERO)).unwrap();
        listener.set_tcp_cork(true).unwrap();
        listener.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        setsockopt(&*socket, sockopt::ReceiveTimestamp, &true).unwrap();
        setsockopt(&*socket, sockopt::Ipv4RecvErr, &true).unwrap();
        setsockopt(&*listener, ReceiveLowWater, &1_000).unwrap();
        setsockopt(&*socket, sockopt::UdpGsoSegment, &2).unwrap();
        setsockopt(&*socket, UdpCork, &true).unwrap();
        let waits = connect(kept.0.local_addr().unwrap());
        let daemon = Daemon::spawn(pass(&kept).args(["--design", design]));
        for client in [waits, connect(kept.0.local_addr().unwrap())] {
            // An RST would come instead of the FIN.
            for _ in 0..20 {
                assert_echo(&client);
            }
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&client), b"");
        }
        let address = kept.1.local_addr().unwrap();
        daemon.freeze();
        ask(address).send(b"and gone").unwrap();
        daemon.signal(Signal::SIGCONT);
        assert_datagram(&ask(address), b"hello");
        daemon.assert_sleeps();
        daemon.stop();
    }
}

/// Whether the kernel keeps a timer for the server's end of each connection to this port, as it does with
/// SO_KEEPALIVE.
fn are_kept_alive(port: u16) -> bool {
    let output = Command::new("ss").args(["-Htno", "sport", "=", &port.to_string()]).output();
    let Ok(output) = output else {
        println!("not looked at, since there is no ss here: SO_KEEPALIVE");
        return true;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    !text.is_empty() && text.lines().all(|line| line.contains("timer:(keepalive,"))
}

/// It was accepted by the kernel when the listener did not have our options.
#[test]
fn who_waited_before_the_server_was_there_is_served_like_the_others() {
    for design in DESIGNS {
        let kept = kept();
        let mut waits = connect(kept.0.local_addr().unwrap());
        std::io::Write::write_all(&mut waits, b"ab").unwrap();
        SockRef::from(&waits).send_out_of_band(b"!").unwrap();
        std::io::Write::write_all(&mut waits, b"cd").unwrap();
        let daemon = Daemon::spawn(pass(&kept).args(["--design", design]));
        let mut answer = [0; 5];
        std::io::Read::read_exact(&mut waits, &mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "ab!cd", "{design}");
        // Once the answer is acknowledged: until then, the timer is another one.
        let port = kept.0.local_addr().unwrap().port();
        wait_until("the connection is kept alive", || are_kept_alive(port));
        drop(waits);
        daemon.stop();
    }
}

#[test]
fn sockets_of_any_family_are_told_apart_by_what_they_are() {
    let Ok(v6) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else {
        return println!("skipped: no IPv6 here");
    };
    // Two of a kind, each for another family.
    let v4 = UdpSocket::bind((LOCALHOST, 0)).unwrap();
    let before = SockRef::from(&v6).only_v6().unwrap();
    let daemon = Daemon::spawn(&mut inheriting(v4.try_clone().unwrap(), v6.try_clone().unwrap()));
    for socket in [&v4, &v6] {
        assert_datagram(&ask(socket.local_addr().unwrap()), b"hello");
    }
    assert_eq!(SockRef::from(&v6).only_v6().unwrap(), before);
    daemon.stop();
    // And two listeners, one of them for both families.
    let v4 = TcpListener::bind((LOCALHOST, 0)).unwrap();
    let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    assert!(!SockRef::from(&both).only_v6().unwrap());
    let daemon = Daemon::spawn(&mut inheriting(both.try_clone().unwrap(), v4.try_clone().unwrap()));
    assert_echo(&connect(v4.local_addr().unwrap()));
    let port = both.local_addr().unwrap().port();
    assert_echo(&connect((LOCALHOST, port).into()));
    assert_echo(&connect((Ipv6Addr::LOCALHOST, port).into()));
    daemon.stop();
}

#[test]
fn who_waits_while_a_server_drains_is_answered_by_the_next() {
    for design in DESIGNS {
        let kept = kept();
        let (tcp, udp) = (kept.0.local_addr().unwrap(), kept.1.local_addr().unwrap());
        let flags = ["--design", design, "--drain-timeout", "1h"];
        let mut first = Daemon::spawn(pass(&kept).args(flags));
        let here = connect(tcp);
        assert_echo(&here);
        first.signal(Signal::SIGTERM);
        first.wait_for("draining: 1 connection");
        // So that all threads have seen it.
        first.assert_sleeps();
        let (waits, asks) = (connect(tcp), ask(udp));
        std::io::Write::write_all(&mut &waits, b"hello").unwrap();
        asks.send(b"hello").unwrap();
        // They wake nobody who does not serve them.
        first.assert_sleeps();
        assert_echo(&here);
        here.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&here), b"");
        assert_eq!(first.wait().code(), Some(0));
        let next = Daemon::spawn(pass(&kept).args(flags));
        waits.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&waits), b"hello");
        assert_eq!(asks.recv(&mut [0; 10]).unwrap(), 5);
        next.stop();
    }
}

// ---- sockets that are gone

/// Shuts a socket down for all processes that have it. Of a UDP socket the system says that it is not
/// connected, and does it all the same.
fn shut_down(socket: SockRef<'_>, how: Shutdown) {
    let _ = socket.shutdown(how);
}

/// What ends a server of which no socket is left.
fn assert_ends(mut daemon: Daemon) {
    daemon.wait_for("the server cannot go on: none of its sockets is left");
    assert_eq!(daemon.wait().code(), Some(1));
}

#[test]
fn a_listener_that_its_owner_shuts_down_is_not_tried_again() {
    for design in DESIGNS {
        let kept = kept();
        let daemon = Daemon::spawn(pass(&kept).args(["--design", design]));
        assert_echo(&connect(kept.0.local_addr().unwrap()));
        shut_down(SockRef::from(&kept.0), Shutdown::Both);
        let line = daemon.wait_for(&format!("{} (TCP)", kept.0.local_addr().unwrap()));
        assert!(line.contains("ERROR") && line.contains("Invalid argument"), "{line}");
        daemon.assert_sleeps();
        assert_datagram(&ask(kept.1.local_addr().unwrap()), b"hello");
        daemon.signal(Signal::SIGUSR1);
        assert!(daemon.wait_for("sockets_gone").contains("sockets_gone 1,"));
        let log = daemon.stop();
        assert!(!log.iter().any(|line| line.contains("cannot accept")), "{log:#?}");
    }
}

#[test]
fn a_udp_socket_that_its_owner_shuts_down_is_not_waited_for() {
    for design in DESIGNS {
        for how in [Shutdown::Read, Shutdown::Write, Shutdown::Both] {
            let kept = kept();
            let daemon = Daemon::spawn(pass(&kept).args(["--design", design]));
            let client = ask(kept.1.local_addr().unwrap());
            assert_datagram(&client, b"hello");
            shut_down(SockRef::from(&kept.1), how);
            // Where only replies are refused, it takes one to know.
            client.send(b"hello").unwrap();
            let line = daemon.wait_for(&format!("{} (UDP)", kept.1.local_addr().unwrap()));
            assert!(line.contains("ERROR"), "{line}");
            daemon.assert_sleeps();
            assert_echo(&connect(kept.0.local_addr().unwrap()));
            daemon.stop();
        }
    }
}

/// Connections that are open may finish; then a service manager may start it again.
#[test]
fn a_server_without_any_socket_ends_with_1() {
    for design in DESIGNS {
        let kept = kept();
        let flags = ["--design", design, "--drain-timeout", "1h"];
        let daemon = Daemon::spawn(pass(&kept).args(flags));
        let client = connect(kept.0.local_addr().unwrap());
        assert_echo(&client);
        shut_down(SockRef::from(&kept.1), Shutdown::Both);
        daemon.wait_for("(UDP)");
        shut_down(SockRef::from(&kept.0), Shutdown::Both);
        if design != "iterative" {
            daemon.wait_for("draining: 1 connection may finish");
            assert_echo(&client);
        }
        drop(client);
        assert_ends(daemon);
    }
}

#[test]
fn readiness_says_that_a_socket_is_gone() {
    let kept = kept();
    let mut command = pass(&kept);
    let monitored = Monitored::spawn(command.args(["--metrics", "127.0.0.1:0"]));
    assert_eq!((monitored.get("/readyz").0, monitored.value("evecho_ready")), (200, 1.0));
    shut_down(SockRef::from(&kept.0), Shutdown::Both);
    monitored.server.wait_for("(TCP)");
    let (status, _, reason) = monitored.get("/readyz");
    assert_eq!((status, monitored.value("evecho_ready")), (503, 0.0));
    assert!(reason.contains("a socket is gone"), "{reason}");
    assert_eq!(monitored.value("evecho_sockets_gone_total"), 1.0);
    assert_eq!(monitored.get("/livez").0, 200);
}

/// An administrator closes sockets (`ss --kill`). A UDP socket that was bound by its number stays: here, that
/// is the one beside a listener.
#[test]
fn sockets_that_are_killed_are_gone() {
    in_network("sockets_that_are_killed_are_gone", "ip link set lo up", || {
        for design in DESIGNS {
            for transport in [&[][..], &["--tcp-only"], &["--udp-only"]] {
                let flags = ["--bind", "127.0.0.1", "--port", "0", "--design", design];
                let daemon = Daemon::spawn(evecho().args(flags).args(transport));
                let mut kill = Command::new("ss");
                kill.args(["--kill", "-Htuna", "sport", "=", &daemon.port.to_string()]);
                match kill.output() {
                    Ok(output) if output.stderr.is_empty() => {}
                    outcome => return println!("skipped: {outcome:?}"),
                }
                if !transport.is_empty() {
                    assert_ends(daemon);
                    continue;
                }
                daemon.wait_for("(TCP) is gone");
                assert_datagram(&daemon.udp(), b"hello");
                daemon.stop();
            }
        }
    });
}

/// A link-local address is bound on an interface, and means nothing on another one of the same name.
#[test]
fn a_socket_is_gone_with_its_interface() {
    let cable = "ip link add cable type veth peer name end && ip link set end up && ip link set cable up && ip address add fe80::1/64 dev cable nodad";
    let prepare = format!("ip link set lo up && {cable}");
    in_network("a_socket_is_gone_with_its_interface", &prepare, || {
        let shell = |script: &str| {
            assert!(Command::new("sh").args(["-c", script]).status().unwrap().success());
        };
        for design in DESIGNS {
            let flags = ["--bind", "fe80::1%cable", "--design", design, "--port"];
            let both = ["5000", "--bind", "127.0.0.1:5001"];
            let some = Daemon::spawn(evecho().args(flags).args(both));
            let all = Daemon::spawn(evecho().args(flags).arg("5002"));
            // Another one is of no concern.
            shell("ip link add other type veth peer name others_end && ip link delete other");
            shell("ip link delete cable");
            some.wait_for("cable");
            for _ in ["TCP", "UDP"] {
                let line = some.wait_for("is gone");
                assert!(line.contains("fe80::1"), "{line}");
            }
            shell(cable);
            let local = connect(([127, 0, 0, 1], 5001).into());
            assert_echo(&local);
            drop(local);
            some.stop();
            assert_ends(all);
        }
    });
}

#[test]
fn what_to_bind_is_not_said_of_sockets_that_are_bound() {
    let said = |flags: &[&str], variable: Option<(&str, &str)>| {
        let output = run_inheriting(pass(&kept()).args(flags).envs(variable));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        stderr(&output)
    };
    for (flags, name) in [
        (&["--port", "12000"][..], "--port"),
        (&["-p", "0"], "--port"),
        (&["--bind", "127.0.0.1"], "--bind"),
        (&["--udp-only"], "--udp-only"),
        (&["serve", "--reuse-port"], "--reuse-port"),
    ] {
        let said = said(flags, None);
        assert!(said.contains(&format!("{name} says what to bind")), "{said}");
    }
    for (name, value) in [("EVECHO_PORT", "12000"), ("EVECHO_BIND", "::1")] {
        let said = said(&[], Some((name, value)));
        assert!(said.contains(&format!("{name} says what to bind")), "{said}");
    }
}

/// Runs to the end; its standard input and output are the sockets.
fn run_inheriting(command: &mut Command) -> std::process::Output {
    command.stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn a_check_of_the_configuration_leaves_inherited_sockets_as_they_are() {
    // Bound, but not listening yet: nothing may be done with it before the server starts.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let check = |flags: &[&str], socket: OwnedFd| {
        let mut command = evecho();
        let pass = r#"exec 3<&0 0</dev/null; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@""#;
        let clean: Vec<OsString> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
        command = Command::new("sh");
        clean.iter().for_each(|name| _ = command.env_remove(name));
        command.args(["-c", pass, "sh", env!("CARGO_BIN_EXE_evecho"), "--check-config"]);
        command.args(flags).stdin(socket).output().unwrap()
    };
    let output = check(&[], socket.try_clone().unwrap().into());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("inherited socket 0: it is not bound;"), "{output:?}");
    socket.bind(&SocketAddr::from((LOCALHOST, 0)).into()).unwrap();
    let output = check(&[], socket.try_clone().unwrap().into());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line = format!("listens on   {address} (TCP, event-loop), which is inherited and bound\n");
    assert!(said.contains(&line), "{said}");
    assert!(!said.contains("only a start tells"), "{said}");
    assert!(!socket.tcp_nodelay().unwrap() && !socket.is_listener().unwrap());
    for (flags, reason) in [(["--port", "7"], "--port says"), (["--loss", "1%"], "--loss: only")] {
        let output = check(&flags, socket.try_clone().unwrap().into());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
    }
}

#[test]
fn sockets_for_another_process_are_none_of_ours() {
    let kept = kept();
    let mut command = pass(&kept);
    command.env("LISTEN_PID", "1").args(["--port", "0", "--bind", "127.0.0.1"]);
    let daemon = Daemon::spawn(&mut command);
    assert_ne!(daemon.port, kept.0.local_addr().unwrap().port());
    assert_echo(&daemon.connect());
    let waits = TcpStream::connect(kept.0.local_addr().unwrap()).unwrap();
    waits.set_nonblocking(true).unwrap();
    std::io::Write::write_all(&mut &waits, b"hello").unwrap();
    daemon.stop();
    assert_eq!(waits.peek(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn what_is_no_socket_of_ours_is_said_in_a_sentence() {
    let (reader, _writer) = std::io::pipe().unwrap();
    let unix = UnixDatagram::unbound().unwrap();
    let unbound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listener = || TcpListener::bind((LOCALHOST, 0)).unwrap();
    for (mut command, sentence) in [
        (
            inheriting(reader, listener()),
            "inherited socket 0: it is neither a TCP nor a UDP socket;",
        ),
        (inheriting(listener(), unix), "inherited socket 1: it is neither a TCP nor a UDP socket;"),
        (inheriting(unbound, listener()), "inherited socket 0: it is not bound;"),
    ] {
        let output = run_inheriting(&mut command);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(sentence) && said.lines().count() == 1, "{said}");
    }
    for count in ["100000000", "18446744073709551615"] {
        let mut command = evecho();
        // An empty LISTEN_PID is anybody's.
        let output = run(command.env("LISTEN_FDS", count).env("LISTEN_PID", ""));
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("LISTEN_FDS"), "{}", stderr(&output));
    }
}
