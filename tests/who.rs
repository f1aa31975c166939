//! `--service who`, seen from outside: the same cases for every design.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Client, TestServer, config_with, udp};
use evecho::protocol::Who;
use evecho::{Config, Design, Framing};
use serde_json::{Value, json};

const DESIGNS: [Design; 3] = [Design::EventLoop, Design::Threaded, Design::Iterative];

fn who(design: Design, change: impl FnOnce(&mut Config)) -> TestServer {
    named(Some("server-1"), design, change)
}

fn named(name: Option<&str>, design: Design, change: impl FnOnce(&mut Config)) -> TestServer {
    let mut config = config_with(|config| config.design = design);
    change(&mut config);
    let who = Who::new(config.protocol, name.map(|name| name.parse().unwrap()).as_ref());
    TestServer::with_service(config, who)
}

/// What is told over TCP on the connection with this number.
fn told(client: SocketAddr, server: SocketAddr, connection: u32) -> Value {
    json!({
        "peer": client.to_string(), "local": server.to_string(), "host": host(),
        "pid": std::process::id(), "name": "server-1", "protocol": "tcp", "connection": connection,
    })
}

fn host() -> String {
    let name = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    name.chars().map(|c| if plain(c) { c } else { '?' }).collect()
}

/// A line of JSON, its line feed included.
#[track_caller]
fn parse(line: &[u8]) -> Value {
    assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
    serde_json::from_slice(line).unwrap()
}

#[test]
fn who_connects_learns_who_answers() {
    for design in DESIGNS {
        let server = who(design, |_| {});
        for number in 1..=3 {
            let mut client = server.connect();
            let expected = told(client.0.local_addr().unwrap(), server.address(), number);
            // Nothing was sent, and the line is there.
            let line = client.line();
            assert_eq!(parse(&line), expected, "{design}");
            client.send(b"dropped");
            client.half_close();
            assert_eq!(client.rest(), b"", "{design}");
        }
        let stats = server.stop();
        assert_eq!((stats.closed_by_peer, stats.bytes_in), (3, 21), "{design}");
    }
}

#[test]
fn with_once_the_server_closes_behind_the_line() {
    for design in DESIGNS {
        let server = who(design, |config| config.protocol.once = true);
        let mut client = server.connect();
        let rest = client.rest();
        assert_eq!(parse(&rest)["connection"], 1, "{design}");
        drop(client);
        assert_eq!(server.stop().closed_by_service, 1, "{design}");
    }
}

#[test]
fn with_a_framing_each_message_has_a_line() {
    for design in DESIGNS {
        let server = who(design, |config| config.protocol.framing = Framing::Lines);
        let mut client = server.connect();
        let expected = told(client.0.local_addr().unwrap(), server.address(), 1);
        client.0.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        assert!(client.0.peek(&mut [0]).is_err(), "{design}: no question, no answer");
        client.0.set_read_timeout(Some(common::DEADLINE)).unwrap();
        client.send(b"one\ntwo\nthree\n");
        for _ in 0..3 {
            assert_eq!(parse(&client.line()), expected, "{design}");
        }
        client.half_close();
        assert_eq!(client.rest(), b"", "{design}");

        let server = who(design, |config| config.protocol.framing = Framing::LengthPrefixed);
        let mut client = server.connect();
        client.send(b"\0\0\0\0");
        client.half_close();
        let rest = client.rest();
        let (length, line) = rest.split_first_chunk().unwrap();
        assert_eq!(u32::from_be_bytes(*length) as usize, line.len(), "{design}");
        assert_eq!(parse(line)["connection"], 1, "{design}");
    }
}

#[test]
fn a_datagram_has_no_answer_that_is_longer() {
    for design in DESIGNS {
        let server = named(None, design, |_| ());
        let socket = udp(server.address());
        let mut room = [0; 2 * Who::LONGEST];
        socket.send(&[b' '; Who::LONGEST]).unwrap();
        let length = socket.recv(&mut room).unwrap();
        let expected = json!({
            "peer": socket.local_addr().unwrap().to_string(), "local": server.address().to_string(),
            "host": host(), "pid": std::process::id(), "protocol": "udp",
        });
        assert_eq!(parse(&room[..length]), expected, "{design}");

        // Too short, too short, too short by a byte; and just long enough.
        for length in [0, 1, length - 1, length] {
            socket.send(&room[..length]).unwrap();
        }
        assert_eq!(socket.recv(&mut room).unwrap(), length, "{design}");
        let stats = server.stop();
        let counted = (stats.udp_received, stats.udp_answered, stats.udp_too_short);
        assert_eq!(counted, (5, 2, 3), "{design}");
    }
}

#[test]
fn the_address_that_was_asked_is_told_on_a_wildcard_too() {
    for design in DESIGNS {
        let server = who(design, |config| config.bind.clear());
        let asked = SocketAddr::from(([127, 0, 0, 2], server.address().port()));
        let line = Client::connect(asked).line();
        assert_eq!(parse(&line)["local"], asked.to_string(), "{design}");
        let socket = udp(asked);
        let mut room = [0; Who::LONGEST];
        socket.send(&room).unwrap();
        let length = socket.recv(&mut room).unwrap();
        let told = parse(&room[..length]);
        assert_eq!(told["local"], asked.to_string(), "{design}");
        assert_eq!(told["peer"], socket.local_addr().unwrap().to_string(), "{design}");
    }
}
