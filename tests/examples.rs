//! The programs of `examples/` as people write them first: what they do, and what they get wrong.

#![allow(clippy::print_stderr, reason = "a test that lacks a program says so")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/tool.rs"]
mod tool;

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tool::{Outcome, Server, example, finish, run, spawn, udp_double};

/// Grades an example by some cases; each has to come to this outcome.
#[track_caller]
fn assert_graded(name: &str, timeout: &str, cases: &[&str], expected: &str) {
    let command = format!("'{}' {{port}}", example(name).display());
    let only = cases.join(",");
    let check =
        ["check", "--start", &command, "--only", &only, "--timeout", timeout, "--format", "json"];
    // The smallest servers have one transport.
    let transport = if name.contains("udp") { "--udp-only" } else { "--tcp-only" };
    let outcome = run(&[&check[..], &[transport]].concat(), b"");
    let report: Value = serde_json::from_slice(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{name}: {error}: {outcome:?}"));
    let graded = report["cases"].as_array().unwrap();
    for name in cases {
        let case = graded.iter().find(|case| case["name"] == *name).unwrap();
        assert_eq!(case["outcome"], expected, "{case:#}");
    }
}

/// It keeps these rules.
#[track_caller]
fn passes(name: &str, cases: &[&str]) {
    assert_graded(name, "30s", cases, "passed");
}

/// It breaks these, and is not waited for.
#[track_caller]
fn fails(name: &str, cases: &[&str]) {
    assert_graded(name, "2s", cases, "failed");
}

#[test]
fn the_first_iterative_server_serves_one_client_and_ends_by_an_error_of_one() {
    passes("first_iterative_server", &["tcp-bytes", "tcp-half-close"]);
    fails("first_iterative_server", &["tcp-idle-peer", "tcp-reset"]);
}

#[test]
fn the_first_threaded_server_serves_many_and_ends_without_descriptors() {
    passes("first_threaded_server", &["tcp-half-close", "tcp-idle-peer", "tcp-reset"]);
    fails("first_threaded_server", &["process-exhaustion"]);
}

#[test]
fn the_first_udp_server_cuts_datagrams() {
    passes("first_udp_server", &["udp-bytes", "udp-empty"]);
    fails("first_udp_server", &["udp-sizes", "udp-large"]);
}

#[test]
fn the_smallest_event_loop_serves_many_and_forgets_clients_without_descriptors() {
    let kept =
        ["tcp-half-close", "tcp-late-reader", "tcp-idle-peer", "tcp-never-reader", "tcp-reset"];
    passes("smallest_event_loop", &kept);
    fails("smallest_event_loop", &["process-exhaustion"]);
}

fn client(name: &str, server: &str, message: &str) -> Outcome {
    let mut command = Command::new(example(name));
    command.args([server, message]);
    finish(spawn(command))
}

#[test]
fn the_first_clients_get_a_short_answer() {
    let server = Server::evecho(&[]);
    for name in ["first_tcp_client", "first_udp_client"] {
        let outcome = client(name, &server.address, "hello");
        assert_eq!((outcome.code, outcome.text()), (Some(0), "hello\n"), "{name}: {outcome:?}");
    }
}

#[test]
fn the_first_tcp_client_gets_a_part_of_a_long_answer() {
    let server = Server::evecho(&[]);
    let message = "a sentence that is longer than its buffer";
    let outcome = client("first_tcp_client", &server.address, message);
    let got = outcome.text().trim_end_matches('\n');
    assert!(message.starts_with(got) && got.len() <= 16, "{outcome:?}");
}

/// Of a name with two addresses the server may have one alone.
#[test]
fn the_udp_client_tries_each_address_of_a_name() {
    for address in ("localhost", 0).to_socket_addrs().unwrap() {
        let server = UdpSocket::bind(address).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut command = Command::new(example("udp_client"));
        let port = server.local_addr().unwrap().port();
        command.args([&format!("localhost:{port}"), "hello"]);
        let client = spawn(command);
        let (length, peer) = server.recv_from(&mut [0; 64]).unwrap();
        assert_eq!(length, 5);
        server.send_to(b"hello", peer).unwrap();
        let outcome = finish(client);
        assert_eq!((outcome.code, outcome.text()), (Some(0), "hello\n"), "{address}: {outcome:?}");
    }
}

/// `localhost` may be one first.
#[test]
fn the_first_udp_client_sends_to_no_address_of_ipv6() {
    let outcome = client("first_udp_client", "[::1]:9", "hello");
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("Address family not supported"), "{outcome:?}");
}

/// What a stranger sends is waiting when the server has its question.
#[test]
fn the_first_udp_client_takes_any_datagram_for_the_answer() {
    for (name, taken) in [("first_udp_client", "stranger"), ("udp_client", "server")] {
        let [server, stranger] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        server.set_read_timeout(Some(tool::DEADLINE)).unwrap();
        let mut command = Command::new(example(name));
        command.args([&server.local_addr().unwrap().to_string(), "hello"]);
        let client = spawn(command);
        let (_, peer) = server.recv_from(&mut [0; 64]).unwrap();
        stranger.send_to(b"stranger", peer).unwrap();
        server.send_to(b"server", peer).unwrap();
        let outcome = finish(client);
        assert_eq!(outcome.text(), format!("{taken}\n"), "{name}: {outcome:?}");
    }
}

#[test]
fn a_port_that_is_none_is_an_error() {
    for name in [
        "first_iterative_server",
        "first_threaded_server",
        "first_udp_server",
        "smallest_event_loop",
    ] {
        let mut command = Command::new(example(name));
        command.arg("http");
        let outcome = finish(spawn(command));
        assert_eq!((outcome.code, outcome.text()), (Some(1), ""), "{name}: {outcome:?}");
    }
}

/// Starts a client of the textbooks that talks to this port. `None` without Python.
fn textbook(name: &str, port: u16) -> Option<Child> {
    let program = format!("{}/examples/textbook/{name}.py", env!("CARGO_MANIFEST_DIR"));
    let program = std::fs::read_to_string(program).unwrap();
    let program = program.replace("12000", &port.to_string()).replace("localhost", "127.0.0.1");
    // On a busy machine a second is no time.
    let program = program.replace("settimeout(1)", "settimeout(60)");
    let mut python = Command::new("python3");
    python.args(["-c", &program]).stdout(Stdio::piped()).stderr(Stdio::piped());
    python.spawn().inspect_err(|_| eprintln!("not tested: python3 cannot be started")).ok()
}

/// A server that closes is no reason to spin.
#[test]
fn the_pinger_ends_with_the_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some(child) = textbook("tcp_pinger", port) else { return };
    let (mut stream, _) = listener.accept().unwrap();
    let length = stream.read(&mut [0; 64]).unwrap();
    assert!(length > 0);
    stream.shutdown(Shutdown::Write).unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("has closed the connection"), "{outcome:?}");
}

/// Runs a client of the textbooks against a server that answers datagrams so.
fn textbook_udp(name: &str, answer: fn(&UdpSocket, &[u8], SocketAddr)) -> Option<Outcome> {
    let address = udp_double(move |socket, _, datagram, from| answer(socket, datagram, from));
    let port = address.parse::<SocketAddr>().unwrap().port();
    textbook(name, port).map(finish)
}

#[test]
fn the_reliable_client_gives_up_where_the_answer_is_never_its_own() {
    let wrong = |socket: &UdpSocket, datagram: &[u8], from: SocketAddr| {
        drop(socket.send_to(&datagram.to_ascii_uppercase(), from));
    };
    let Some(outcome) = textbook_udp("udp_reliable", wrong) else { return };
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("message 1: no answer to 10 of them"), "{outcome:?}");
}

#[test]
fn the_pinger_takes_no_answer_for_that_of_another_ping() {
    let twice = |socket: &UdpSocket, datagram: &[u8], from: SocketAddr| {
        // Bytes that are no text, behind it.
        let answer = [datagram, b" \xff"].concat();
        (0..2).for_each(|_| drop(socket.send_to(&answer, from)));
    };
    let Some(outcome) = textbook_udp("udp_pinger", twice) else { return };
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let lines: Vec<&str> = outcome.text().lines().collect();
    for (line, number) in lines.iter().zip(1..=10) {
        assert!(line.starts_with(&format!("ping {number} ")), "{lines:?}");
    }
    assert_eq!(lines[10..], ["0 of 10 lost"], "{lines:?}");
}
