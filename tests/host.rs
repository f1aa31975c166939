//! A server as a guest in a process: whose the signals are, and the descriptors.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
#[cfg(all(feature = "cli", target_os = "linux"))]
#[path = "common/manager.rs"]
mod manager;
#[cfg(feature = "cli")]
#[path = "common/network.rs"]
mod network;

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use common::{DEADLINE, TestServer, config_with, wait_until, with_default_signals};
use evecho::{Config, Server};
#[cfg(all(feature = "cli", target_os = "linux"))]
use manager::Manager;
#[cfg(feature = "cli")]
use network::in_network;
use nix::sys::resource::{Resource, rlim_t, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// This test again, in a process of its own, playing the part that is named here.
const PART: &str = "EVECHO_TEST_PART";

fn with_signals() -> Config {
    config_with(|config| config.signals = true)
}

/// A process that plays a part, and says a word when it has come to where the signal is due.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn playing(part: &str) -> Process {
        let command = Command::new(env::current_exe().unwrap());
        Process::playing_under(part, with_default_signals(command))
    }

    fn playing_under(part: &str, command: Command) -> Process {
        let mut process = Process::start(part, command);
        process.wait_for("ready");
        process
    }

    fn start(part: &str, mut command: Command) -> Process {
        command.args(["--exact", "a_part", "--nocapture"]).env(PART, part);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Process { child, output }
    }

    /// The next line that has a word in it.
    fn wait_for(&mut self, word: &str) -> String {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it ends before '{word}'");
        }
        line
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn ended(mut self) -> ExitStatus {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that the signal is due, and waits for it.
fn await_signal() -> ! {
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// What the processes of the other tests do.
#[test]
fn a_part() {
    let Ok(part) = env::var(PART) else { return };
    // Nobody waits for a part for ever.
    std::thread::spawn(|| {
        std::thread::sleep(DEADLINE);
        std::process::exit(99);
    });
    match part.as_str() {
        "runs" => {
            let server = Server::bind(with_signals()).unwrap();
            println!("ready");
            server.run().unwrap();
        }
        "has ended" => {
            let server = Server::bind(with_signals()).unwrap();
            server.handle().drain();
            server.run().unwrap();
            await_signal();
        }
        "was dropped" => {
            drop(Server::bind(with_signals()).unwrap());
            await_signal();
        }
        "failed to bind" => {
            let other = Server::bind(config_with(|_| ())).unwrap();
            let mut config = with_signals();
            config.port = other.local_addrs()[0].port();
            Server::bind(config).unwrap_err();
            await_signal();
        }
        "one of two has ended" => {
            let other = Server::bind(with_signals()).unwrap();
            drop(Server::bind(with_signals()).unwrap());
            println!("ready");
            other.run().unwrap();
        }
        "again" => {
            drop(Server::bind(with_signals()).unwrap());
            let server = Server::bind(with_signals()).unwrap();
            println!("ready");
            server.run().unwrap();
        }
        "has a handler of its own" => {
            let caught = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
            let flag = std::sync::Arc::clone(&caught);
            signal_hook::flag::register(signal_hook::consts::SIGTERM, flag).unwrap();
            drop(Server::bind(with_signals()).unwrap());
            println!("ready");
            wait_until("the handler is called", || {
                caught.load(std::sync::atomic::Ordering::SeqCst)
            });
        }
        "has files of its own" => has_files_of_its_own(),
        part => panic!("no such part: {part}"),
    }
}

/// Its server may have no more clients than leave descriptors to it.
fn has_files_of_its_own() {
    const LIMIT: u64 = 100;
    let limit = LIMIT as rlim_t;
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).unwrap();
    let open = || File::open("/dev/null").unwrap();
    let before: Vec<File> = (0..30).map(|_| open()).collect();
    let server = TestServer::start(config_with(|config| config.limits.spare_files = 20));
    println!("listening on {}", server.address());
    server.wait_for("there is no slot for a client", |stats| stats.accept_pauses > 0);
    let while_full: Vec<File> = (0..19).map(|_| open()).collect();
    let open = server.stats().open();
    assert!((20..=LIMIT - 50).contains(&open), "{open} connections");
    drop((before, while_full));
    server.abort();
    println!("ready");
}

#[test]
fn descriptors_are_left_to_the_process() {
    let mut process =
        Process::start("has files of its own", Command::new(env::current_exe().unwrap()));
    let line = process.wait_for("listening on ");
    let address = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
    // It ends as soon as it has seen enough of them.
    let connect = |_| TcpStream::connect::<SocketAddr>(address).ok();
    let clients: Vec<TcpStream> = (0..100).map_while(connect).collect();
    process.wait_for("ready");
    drop(clients);
    assert_eq!(process.ended().code(), Some(0));
}

#[test]
fn signals_drain_a_server() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        for part in ["runs", "one of two has ended", "again"] {
            let process = Process::playing(part);
            process.signal(signal);
            assert_eq!(process.ended().code(), Some(0), "{signal}, {part}");
        }
    }
}

#[test]
fn signals_are_the_processs_again_when_the_server_is_gone() {
    for part in ["has ended", "was dropped", "failed to bind"] {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
            let process = Process::playing(part);
            process.signal(signal);
            assert_eq!(process.ended().signal(), Some(signal as i32), "{signal}, {part}");
        }
    }
}

#[test]
fn a_handler_that_was_there_before_is_called_afterwards() {
    let process = Process::playing("has a handler of its own");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended().code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_hangup_of_the_terminal_drains_a_server() {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    let terminal = nix::pty::openpty(None, None).unwrap();
    fcntl(&terminal.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    let mut login = Command::new("setsid");
    login.arg("--ctty").arg(env::current_exe().unwrap());
    let mut login = with_default_signals(login);
    login.stdin(terminal.slave);
    let process = Process::playing_under("runs", login);
    drop(terminal.master);
    assert_eq!(process.ended().code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_hangup_is_ignored_where_it_was() {
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(env::current_exe().unwrap());
    let process = Process::playing_under("runs", nohup);
    process.signal(Signal::SIGHUP);
    assert!(!common::catches(process.child.id(), Signal::SIGHUP));
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended().code(), Some(0));
}

#[cfg(all(feature = "cli", target_os = "linux"))]
#[test]
fn a_quiet_server_answers_who_asks_for_its_counters() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evecho"));
    command.args(["-q", "--port", "0", "--bind", "127.0.0.1"]).env_remove("RUST_LOG");
    // It logs nothing that says that it has begun, but a service manager hears of it.
    let manager = Manager::new();
    let mut child = manager.manage(&mut command).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    assert!(manager.hear().contains("READY=1"));
    kill(pid, Signal::SIGUSR1).unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    for shown in
        ["accepted 0, refused 0, ", ", open 0, buffered 0, accept_paused false", ", uptime "]
    {
        assert!(line.contains(shown), "{line}");
    }
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    line.clear();
    assert_eq!(log.read_to_string(&mut line).unwrap(), 0, "{line}");
}

#[cfg(feature = "cli")]
#[test]
fn a_link_local_address_is_bound_with_its_zone() {
    let script = r#"
        "$0" -q --bind fe80::1%lo --bind 127.0.0.1:7 --port 5000 & server=$!
        for address in '[fe80::1%lo]:5000' 127.0.0.1:7; do
            until "$0" send --udp "$address" hello 2> /dev/null; do :; done
            "$0" send "$address" hello
        done
        kill $server && wait $server
    "#;
    let prepare = "ip link set lo up && ip address add fe80::1/64 dev lo nodad";
    in_network("a_link_local_address_is_bound_with_its_zone", prepare, || {
        let mut command = Command::new("timeout");
        command.args(["30", "sh", "-c", script, env!("CARGO_BIN_EXE_evecho")]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).matches("hello").count(),
            4,
            "{output:?}"
        );
    });
}
