//! The programs of `examples/` as people write them first: what they do, and what they get wrong.

#![allow(clippy::print_stderr, reason = "a test that lacks a program says so")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/tool.rs"]
mod tool;

use std::io::Read;
use std::net::{Shutdown, TcpListener, ToSocketAddrs, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tool::{Outcome, Server, example, finish, run, spawn};

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
fn the_smallest_event_loop_serves_many_and_forgets_who_waits_for_descriptors() {
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

/// A server that closes is no reason to spin.
#[test]
fn the_pinger_ends_with_the_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/textbook/tcp_pinger.py");
    let program = std::fs::read_to_string(program).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let program = program.replace("12000", &port).replace("localhost", "127.0.0.1");
    let mut python = Command::new("python3");
    python.args(["-c", &program]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(child) = python.spawn() else {
        eprintln!("not tested: python3 cannot be started");
        return;
    };
    let (mut stream, _) = listener.accept().unwrap();
    let length = stream.read(&mut [0; 64]).unwrap();
    assert!(length > 0);
    stream.shutdown(Shutdown::Write).unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("has closed the connection"), "{outcome:?}");
}
