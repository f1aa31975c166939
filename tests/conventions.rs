//! What all commands have in common: outputs that nobody reads, how times and servers are written,
//! the environment, and what wrong usage says.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/tool.rs"]
mod tool;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, ChildStderr, Command};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use tool::{Outcome, Server, evecho, finish, run, tcp_session, udp_double};

#[test]
fn every_command_ends_quietly_when_nobody_reads_on() {
    let server = Server::evecho(&[]);
    for args in [
        &["send", &server.address, "hello"][..],
        &["ping", &server.address, "-c", "1"],
        &["load", &server.address, "-n", "10", "-c", "1"],
        &["load", &server.address, "-n", "10", "-c", "1", "--json"],
        &["check", &server.address, "--only", "tcp-bytes"],
        &["check", &server.address, "--only", "tcp-bytes", "--format", "tap"],
        &["check", &server.address, "--only", "tcp-bytes", "--format", "json"],
        &["check", "--list"],
        &["compare", "--rounds", "1", "-t", "10ms", "-c", "1", "--no-scenes"],
        &["--help"],
        &["load", "--help"],
        &["--version"],
    ] {
        let mut child = tool::spawn(evecho(args));
        drop(child.stdout.take());
        let outcome = finish(child);
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("evecho: "), "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn grading_ends_when_nobody_reads_on() {
    let server = Server::evecho(&[]);
    for format in ["text", "tap"] {
        let cases = "tcp-bytes,tcp-half-close,udp-sizes";
        let mut child =
            tool::spawn(evecho(&["check", &server.address, "--only", cases, "--format", format]));
        drop(child.stdout.take());
        let outcome = finish(child);
        // Without all its cases, it has no verdict.
        assert_eq!((outcome.code, &*outcome.stderr), (Some(1), ""), "{format}");
    }
}

#[test]
fn a_complaint_that_nobody_reads_changes_no_exit_code() {
    let (_refusing, refused) = tool::refused_port();
    for args in [&["send", &refused, "hello"][..], &["load", &refused, "-n", "1"]] {
        let mut child = tool::spawn(evecho(args));
        drop(child.stderr.take());
        assert_eq!(finish(child).code, Some(1), "{args:?}");
    }
}

#[test]
fn a_time_without_a_unit_is_in_seconds() {
    let silent = udp_double(|_, _, _, _| ());
    let start = Instant::now();
    let outcome = run(&["send", "--udp", &silent, "-t", "0.05", "hello"], b"");
    assert_eq!(outcome.stderr, "evecho: message 1: no reply within 50 ms\n");
    let outcome = run(&["ping", "-u", &silent, "-c", "2", "-i", "0.01", "-W", ".05"], b"");
    assert!(outcome.text().contains("seq=1: no reply within 50 ms"), "{outcome:?}");
    assert!(start.elapsed() >= Duration::from_millis(100));
    let outcome = run(&["load", &silent, "-t", "1 fortnight"], b"");
    assert!(outcome.stderr.contains("in seconds or with its unit"), "{outcome:?}");
}

#[test]
fn a_family_can_be_chosen() {
    let (address, _server) = tcp_session(|stream| stream);
    let port = address.rsplit_once(':').unwrap().1;
    for command in ["send", "ping", "load"] {
        let outcome = run(&[command, &format!("127.0.0.1:{port}"), "-6", "-c", "1"], b"");
        assert_ne!(outcome.code, Some(0), "{command}: {outcome:?}");
        if command != "send" {
            assert!(outcome.stderr.contains("no IPv6 address"), "{command}: {outcome:?}");
        }
        tool::assert_wrong_usage(&[command, &format!("localhost:{port}"), "-4", "-6"]);
    }
    let outcome = run(&["send", "-6", &address, "hello"], b"");
    assert!(outcome.stderr.contains("it has no IPv6 address"), "{outcome:?}");
    let server = Server::evecho(&[]);
    let localhost = server.address.replace("127.0.0.1", "localhost");
    assert_eq!(run(&["send", "-4", &localhost, "hello"], b"").text(), "hello\n");
}

#[test]
fn the_scheme_of_a_target_chooses_the_transport() {
    let server = Server::evecho(&[]);
    let [tcp, udp] = ["tcp", "UDP"].map(|scheme| format!("{scheme}://{}/", server.address));
    for (target, transport) in [(&tcp, "TCP"), (&udp, "UDP")] {
        let ping = run(&["ping", target, "-c", "1"], b"");
        let ping = ping.text();
        let peer = &server.address;
        assert!(ping.starts_with(&format!("PING {peer} ({peer}) over {transport}: ")), "{ping}");
        let load = run(&["load", target, "-n", "1", "-c", "1"], b"");
        let load = load.text();
        assert!(load.starts_with(&format!("{transport} ping-pong with {peer}: ")), "{load}");
        assert_eq!(run(&["send", target, "hello"], b"").text(), "hello\n");
        let check = run(&["check", target, "--only", "tcp-bytes,udp-sizes"], b"");
        let check = check.text();
        assert!(check.contains("1 passed, 0 failed, 1 skipped"), "{check}");
    }
    for args in [
        &["ping", &tcp, "--udp"][..],
        &["ping", &udp, "--framing", "lines"],
        &["send", &tcp, "--udp"],
        &["send", &udp, "--framing", "lines", "hello"],
        &["load", &tcp, "--udp"],
        &["load", &udp, "--mode", "stream"],
        &["check", &tcp, "--udp-only"],
        &["check", &udp, "--tcp-only"],
        &["ping", "http://localhost"],
    ] {
        tool::assert_wrong_usage(args);
    }
}

/// A server with these flags and variables, ended when it goes out of scope.
struct Serving {
    process: Child,
    log: BufReader<ChildStderr>,
    /// What it said until it listened.
    said: String,
}

impl Serving {
    /// Starts it and waits until it listens. What it said when it ended instead is an error.
    fn start(flags: &[&str], variables: &[(&str, &str)]) -> Result<Self, Outcome> {
        let mut command = evecho(flags);
        command.envs(variables.iter().copied());
        let mut process = tool::spawn(command);
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("listening on ") {
            if log.read_line(&mut said).unwrap() == 0 {
                let outcome = finish(process);
                return Err(Outcome { stderr: said, ..outcome });
            }
        }
        Ok(Self { process, log, said })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const HERE: [&str; 2] = ["--bind", "127.0.0.1"];

#[test]
fn booleans_in_the_environment_read_as_people_write_them() {
    for (value, udp) in [
        ("1", false),
        ("yes", false),
        ("ON", false),
        ("True", false),
        ("0", true),
        ("no", true),
        ("off", true),
        ("false", true),
        ("", true),
    ] {
        let variables = [("EVECHO_TCP_ONLY", value), ("EVECHO_PORT", "0")];
        let server = Serving::start(&HERE, &variables).unwrap_or_else(|o| panic!("{value}: {o:?}"));
        assert_eq!(server.said.contains("UDP"), udp, "{value}: {}", server.said);
    }
}

#[test]
fn an_empty_variable_is_unset() {
    let empty = ["BIND", "MAX_FRAME", "SERVICE", "QUIET", "VERBOSE", "IDLE_TIMEOUT"]
        .map(|name| format!("EVECHO_{name}"));
    let mut variables: Vec<(&str, &str)> = empty.iter().map(|name| (&**name, "")).collect();
    variables.push(("EVECHO_PORT", "0"));
    let server = Serving::start(&HERE, &variables).unwrap_or_else(|outcome| panic!("{outcome:?}"));
    assert_eq!(server.said.lines().count(), 1, "{}", server.said);
}

#[test]
fn an_error_names_the_variable_that_the_value_came_from() {
    for (name, value) in [
        ("EVECHO_PORT", "http"),
        ("EVECHO_TCP_ONLY", "perhaps"),
        ("EVECHO_MAX_FRAME", "much"),
        ("EVECHO_BIND", "127.0.0.1,nowhere!"),
        ("EVECHO_DESIGN", "baroque"),
    ] {
        for flags in [&[][..], &["serve"]] {
            let outcome = Serving::start(flags, &[(name, value)]).err().unwrap();
            assert_eq!(outcome.code, Some(2), "{outcome:?}");
            assert!(outcome.stderr.contains(name), "{name}: {}", outcome.stderr);
            assert!(!outcome.stderr.contains("for '--"), "{name}: {}", outcome.stderr);
        }
        // A flag on the command line comes first, and is blamed itself.
        let flag = name.replace("EVECHO_", "--").replace('_', "-").to_lowercase();
        if name != "EVECHO_TCP_ONLY" {
            let outcome = Serving::start(&[&flag, value], &[(name, value)]).err().unwrap();
            assert!(outcome.stderr.contains(&format!("'{flag} <")), "{}", outcome.stderr);
        }
    }
    // What the library finds wrong, not the parser of flags.
    for (name, value, code) in [
        ("EVECHO_MAX_FRAME", "0", 2),
        ("EVECHO_BUSY_POLL", "1h", 2),
        ("EVECHO_BIND", "192.0.2.1", 1),
    ] {
        let outcome = Serving::start(&[], &[(name, value), ("EVECHO_PORT", "0")]).err().unwrap();
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert!(outcome.stderr.contains(name), "{name}: {}", outcome.stderr);
    }
    let both = [("EVECHO_TCP_ONLY", "1"), ("EVECHO_UDP_ONLY", "1")];
    let outcome = Serving::start(&[], &both).err().unwrap();
    assert!(outcome.stderr.contains("EVECHO_TCP_ONLY and EVECHO_UDP_ONLY"), "{}", outcome.stderr);
}

#[test]
fn a_value_that_cannot_be_read_is_answered_in_plain_words() {
    let whole = |bounds| format!("give a whole number from {bounds}");
    for (name, value, said) in [
        ("PORT", "7 # echo", whole("0 to 65535")),
        ("PORT", "7 # echo", "a comment needs a line of its own".to_owned()),
        ("FRAMING", "lines\t# whole lines", "a comment needs a line of its own".to_owned()),
        ("PORT", "65536", whole("0 to 65535")),
        ("PORT", "\"7\"", "without quotes".to_owned()),
        ("NAME", "'a'", "without quotes".to_owned()),
        ("PORT", "7\r", "without white space around it".to_owned()),
        ("SERVICE", " echo", "without white space around it".to_owned()),
        ("MAX_CONNECTIONS", "0", whole(&format!("1 to {}", usize::MAX))),
        ("BACKLOG", "-1", whole("0 to 4294967295")),
        ("UDP_RATE", "many", whole("0 to 4294967295")),
        ("VERBOSE", "debug", whole("0 to 255")),
        ("SEED", "0x7", whole(&format!("0 to {}", u64::MAX))),
        ("QUIET", "perhaps", "give 1, yes, on or true, or else 0, no, off or false".to_owned()),
    ] {
        let name = format!("EVECHO_{name}");
        let outcome = Serving::start(&[], &[(&name, value)]).err().unwrap();
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(
            outcome.stderr.contains(&name) && outcome.stderr.contains(&said),
            "{name}={value}: {}",
            outcome.stderr
        );
    }
    let mut command = evecho(&[]);
    command.env("EVECHO_NAME", OsStr::from_bytes(b"\xff"));
    let outcome = finish(tool::spawn(command));
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("EVECHO_NAME is not text in UTF-8"), "{}", outcome.stderr);
}

#[test]
fn no_command_answers_a_value_in_the_words_of_a_parser() {
    for args in [
        &["load", "x", "-c", "many"][..],
        &["load", "x", "-c", "0"],
        &["load", "x", "-d", "65536"],
        &["load", "x", "-n", "some"],
        &["load", "x", "-r", "fast"],
        &["load", "x", "-r", "nan"],
        &["load", "x", "--from", "nowhere"],
        &["compare", "-c", "0"],
        &["compare", "-d", "1.5"],
        &["compare", "-r", "0"],
        &["ping", "x", "-c", "0"],
        &["check", "x", "--pid", "sshd"],
        &["--max-connections", "0"],
        &["-p", "http"],
    ] {
        let outcome = run(args, b"");
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        for jargon in ["invalid digit", "literal", "non-zero", "is not in", "..=", "syntax"] {
            assert!(!outcome.stderr.contains(jargon), "{args:?}: {}", outcome.stderr);
        }
        assert!(outcome.stderr.contains("give "), "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn a_variable_that_is_no_setting_is_one_warning_with_the_nearest_name() {
    for (name, nearest) in [
        ("EVECHO_BINDS", "EVECHO_BIND"),
        ("EVECHO_MAXFRAME", "EVECHO_MAX_FRAME"),
        ("EVECHO_MAX_CONNECTION", "EVECHO_MAX_CONNECTIONS"),
        ("EVECHO_METRIC", "EVECHO_METRICS"),
        ("EVECHO_TCPONLY", "EVECHO_TCP_ONLY"),
        ("EVECHO_TIMEOUT_IDLE", "EVECHO_IDLE_TIMEOUT"),
        ("evecho_bind", "EVECHO_BIND"),
        ("EVECHO-BIND", "EVECHO_BIND"),
    ] {
        let variables = [("EVECHO_PORT", "0"), (name, "127.0.0.1"), ("EVECHO_EMPTY", "")];
        let server = Serving::start(&HERE, &variables).unwrap_or_else(|o| panic!("{o:?}"));
        let said = server.said.lines().next().unwrap();
        assert!(said.contains(&format!(" {name} is ")), "{said}");
        assert!(said.ends_with(&format!("'{nearest}'?")), "{said}");
        assert_eq!(server.said.lines().count(), 2, "{}", server.said);
    }
    // One that resembles none, and one that would be a flag without a variable.
    for name in ["EVECHO_XYZZY", "EVECHO_VERSION", "EVECHO_", "EVECHO_=\n"] {
        let (name, value) = name.split_once('=').unwrap_or((name, "1"));
        let server = Serving::start(&HERE, &[("EVECHO_PORT", "0"), (name, value)]).unwrap();
        let said = server.said.lines().next().unwrap();
        assert!(said.contains(name) && said.ends_with("evecho(1) lists the variables"), "{said}");
        assert_eq!(server.said.lines().count(), 2, "{}", server.said);
    }
}

#[test]
fn what_kubernetes_or_docker_sets_for_our_name_does_no_harm() {
    const KUBERNETES: [(&str, &str); 8] = [
        ("EVECHO_PORT", "tcp://10.96.0.12:12000"),
        ("EVECHO_SERVICE_HOST", "10.96.0.12"),
        ("EVECHO_SERVICE_PORT", "12000"),
        ("EVECHO_SERVICE_PORT_ECHO", "12000"),
        ("EVECHO_PORT_12000_TCP", "tcp://10.96.0.12:12000"),
        ("EVECHO_PORT_12000_TCP_PROTO", "tcp"),
        ("EVECHO_PORT_12000_TCP_PORT", "12000"),
        ("EVECHO_PORT_12000_TCP_ADDR", "10.96.0.12"),
    ];
    // docker run --link evecho, and a Service named evecho-reuse.
    const DOCKER: [(&str, &str); 7] = [
        ("EVECHO_NAME", "/web/evecho"),
        ("EVECHO_PORT", "tcp://172.17.0.2:12000"),
        ("EVECHO_PORT_12000_TCP_START", "tcp://172.17.0.2:12000"),
        ("EVECHO_PORT_12000_UDP_PORT_END", "12001"),
        ("EVECHO_ENV_PASSWORD", "secret"),
        ("EVECHO_1_NAME", "/web/evecho_1"),
        ("EVECHO_1_ENV_EVECHO_BIND", "127.0.0.1"),
    ];
    const REUSE: [(&str, &str); 3] = [
        ("EVECHO_REUSE_PORT", "udp://10.96.0.12:12000"),
        ("EVECHO_REUSE_SERVICE_HOST", "10.96.0.12"),
        ("EVECHO_REUSE_PORT_12000_UDP", "udp://10.96.0.12:12000"),
    ];
    let flags = [&HERE[..], &["--port", "0"]].concat();
    for (variables, named) in [
        (&KUBERNETES[..], "EVECHO_PORT and 7 more variables are ignored: "),
        (&DOCKER, "EVECHO_NAME, EVECHO_PORT and 5 more variables are ignored: "),
        (&REUSE, "EVECHO_REUSE_PORT and 2 more variables are ignored: "),
        (&KUBERNETES[1..2], "EVECHO_SERVICE_HOST is ignored: "),
    ] {
        let server = Serving::start(&flags, variables).unwrap_or_else(|o| panic!("{o:?}"));
        let said = server.said.lines().next().unwrap();
        assert!(said.contains(named), "{said}");
        assert!(said.contains("Kubernetes") && said.contains("Docker"), "{said}");
        assert!(!server.said.contains("secret"), "{}", server.said);
        assert_eq!(server.said.lines().count(), 2, "{}", server.said);
    }
}

#[test]
fn what_is_set_for_the_server_stops_no_other_command() {
    let server = Server::evecho(&[]);
    for (name, value) in [("EVECHO_PORT", "http"), ("EVECHO_TCP_ONLY", "1")] {
        let mut command = evecho(&["send", &server.address, "hello"]);
        command.env(name, value);
        let outcome = finish(tool::spawn(command));
        assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""), "{name}");
    }
}

#[test]
fn serve_is_a_command_too_that_nobody_needs() {
    let flags = [&["serve"][..], &HERE, &["--port", "0"]].concat();
    let mut server = Serving::start(&flags, &[("EVECHO_TCP_ONLY", "1")]).unwrap();
    assert!(!server.said.contains("UDP"), "{}", server.said);
    kill(Pid::from_raw(server.process.id().cast_signed()), Signal::SIGTERM).unwrap();
    let mut rest = String::new();
    while server.log.read_line(&mut rest).unwrap() > 0 {}
    assert_eq!(server.process.wait().unwrap().code(), Some(0), "{rest}");
    assert!(!run(&["--help"], b"").text().contains("serve  "));
}

#[test]
fn wrong_usage_shows_the_usage_of_its_own_command() {
    for (args, usage) in [
        (&["--tcp-only", "--udp-only"][..], "Usage: evecho [OPTIONS]"),
        (&["send", "--raw", "a:1", "hello"], "Usage: evecho send "),
        (&["load", "127.0.0.1:1", "-s", "0"], "Usage: evecho load "),
        (&["load", "127.0.0.1:1", "--udp", "--mode", "stream"], "Usage: evecho load "),
        (&["compare", "--peer", "a=b {port}", "--peer", "a=b {port}"], "Usage: evecho compare "),
        (&["ping", "127.0.0.1:1", "-u", "--framing", "lines"], "Usage: evecho ping "),
        (&["check", "--tcp-only", "--udp-only", "127.0.0.1:1"], "Usage: evecho check "),
    ] {
        let outcome = run(args, b"");
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(outcome.stderr.contains(usage), "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn flags_that_exclude_each_other_are_both_named() {
    let outcome = run(&["load", "127.0.0.1:1", "-u", "-m", "stream"], b"");
    for flag in ["--udp", "--mode stream"] {
        assert!(outcome.stderr.contains(flag), "{}", outcome.stderr);
    }
}

#[test]
fn what_is_hidden_is_not_suggested() {
    for word in ["supervise", "_supervise", "__supervise_"] {
        let outcome = run(&[word], b"");
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(!outcome.stderr.contains("'__supervise'"), "{}", outcome.stderr);
    }
}

#[test]
fn short_help_fits_narrow_terminals() {
    for width in [56, 64, 80] {
        let names =
            ["check", "compare", "completions", "load", "merge", "ping", "send"].map(|name| [name]);
        for command in names.iter().map(|name| &name[..]).chain([&[][..]]) {
            let mut evecho = Command::new(env!("CARGO_BIN_EXE_evecho"));
            let output = evecho.args(command).arg("-h").env("COLUMNS", width.to_string()).output();
            let help = String::from_utf8(output.unwrap().stdout).unwrap();
            let long = help.lines().find(|line| line.chars().count() > width);
            assert_eq!(long, None, "{command:?} at {width}");
        }
    }
}

#[test]
fn a_source_address_of_another_machine_is_told() {
    // 192.0.2.0/24 is for documentation (RFC 5737): nobody has it.
    let outcome = run(&["load", "127.0.0.1:1", "--from", "127.0.0.1,192.0.2.1"], b"");
    let sentence = "evecho: --from 192.0.2.1: this machine has no such address\n";
    assert_eq!((outcome.code, &*outcome.stderr), (Some(1), sentence));
}

/// Waits until a process has a handler for a signal.
#[cfg(target_os = "linux")]
fn wait_for_handler(pid: Pid, signal: Signal) {
    let start = Instant::now();
    while !tool::catches(pid.as_raw().cast_unsigned(), signal) {
        assert!(start.elapsed() < tool::DEADLINE, "{pid} does not catch {signal}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_is_meant_for_servers_ends_no_client() {
    let (silent, _server) = tcp_session(|stream| stream);
    let server = Server::evecho(&[]);
    for (args, ends_by) in [
        (&["send", &server.address, "--raw"][..], None),
        (&["ping", &silent, "-W", "1h"], Some(Signal::SIGTERM)),
        (&["load", &server.address, "-c", "1", "-t", "1h"], Some(Signal::SIGTERM)),
        (&["check", &server.address], Some(Signal::SIGTERM)),
    ] {
        let mut child = tool::spawn(evecho(args));
        let input = child.stdin.take();
        let pid = Pid::from_raw(child.id().cast_signed());
        for signal in [Some(Signal::SIGUSR1), ends_by].into_iter().flatten() {
            wait_for_handler(pid, signal);
            kill(pid, signal).unwrap();
        }
        drop(input);
        let outcome = finish(child);
        assert_ne!(outcome.code, None, "{args:?} was ended by a signal: {outcome:?}");
    }
}

#[test]
fn a_signal_that_the_parent_process_blocked_ends_a_command() {
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    for signal in signals.into_iter().filter(|&signal| !tool::is_ignored(signal)) {
        let blocked = SigSet::from(signal);
        // A child keeps the mask of the thread that starts it (execve(2)).
        blocked.thread_block().unwrap();
        let child = tool::spawn(evecho(&["merge", "-"]));
        blocked.thread_unblock().unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let outcome = finish(child);
        assert!(outcome.stderr.contains("was read to its end"), "{signal}: {outcome:?}");
    }
}
