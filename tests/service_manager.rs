//! The `evecho` process under a service manager: what it reports, and sockets that it inherits.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use evecho::protocol::{Context, Flow, Message, Replies};
use evecho::{Config, Design, Server, Service, ServiceManager};
use nix::sys::signal::Signal;
use socket2::SockRef;

#[path = "common/daemon.rs"]
mod daemon;

use daemon::{
    DEADLINE, Daemon, LOCALHOST, assert_datagram, assert_echo, connect, evecho, inheriting, kept,
    pass, read_to_end, run, stderr,
};

const DESIGNS: [&str; 3] = ["event-loop", "threaded", "iterative"];

/// Somebody who wants to hear how a server is doing.
struct Manager {
    socket: UnixDatagram,
    name: OsString,
}

impl Manager {
    fn new() -> Manager {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("evecho-test-{}-{count}", std::process::id());
        let address = UnixAddr::from_abstract_name(&name).unwrap();
        Manager::on(UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}").into())
    }

    fn on(socket: UnixDatagram, name: OsString) -> Manager {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Manager { socket, name }
    }

    /// The next thing that it is told.
    fn hear(&self) -> String {
        let mut room = [0; 1_000];
        let length = self.socket.recv(&mut room).expect("nothing is said");
        String::from_utf8_lossy(&room[..length]).into_owned()
    }

    fn start(&self, flags: &[&str], variables: &[(&str, &str)]) -> Daemon {
        let mut command = evecho();
        command.args(["--port", "0", "--bind", "127.0.0.1"]).args(flags);
        command.env("NOTIFY_SOCKET", &self.name).envs(variables.iter().copied());
        Daemon::spawn(&mut command)
    }
}

// ---- what it reports

#[test]
fn the_manager_hears_when_the_server_serves_and_when_it_stops() {
    for design in DESIGNS {
        let manager = Manager::new();
        let mut daemon = manager.start(&["--design", design, "--drain-delay", "1h"], &[]);
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
    let daemon = manager.start(&[], &[]);
    assert!(manager.hear().starts_with("READY=1\n"));
    daemon.stop();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_watchdog_hears_of_an_idle_server_again_and_again() {
    for design in DESIGNS {
        let manager = Manager::new();
        let daemon = manager.start(&["--design", design], &[("WATCHDOG_USEC", "20000")]);
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
    let daemon = manager.start(&[], &[("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")]);
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
    let server = Server::bind(config).unwrap();
    let (handle, address) = (server.handle(), server.local_addrs()[0]);
    let (begun, begins) = channel();
    let (allow, allowed) = channel();
    let stuck = Stuck { begun, allowed: Arc::new(Mutex::new(allowed)) };
    let running = std::thread::spawn(move || server.run_with(stuck));
    assert!(manager.hear().starts_with("READY=1\n"));
    assert_eq!(manager.hear(), "WATCHDOG=1\n");
    let client = connect(address);
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
    handle.abort();
    running.join().unwrap().unwrap();
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
    let daemon = manager.start(&[], &[("WATCHDOG_USEC", "2000")]);
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
    let unbound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
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
