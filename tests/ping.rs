//! `evecho ping` against doubles that misbehave, our own server and others.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/tool.rs"]
mod tool;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use tool::{Outcome, Server, evecho, finish, run, tcp_double, tcp_session, udp_double};

const SIZE: usize = 56;

/// Pings and returns what each line says, the summary last.
fn ping(address: &str, flags: &[&str]) -> (Outcome, Vec<Value>) {
    let outcome = run(&[&["ping", address, "--json"], flags].concat(), b"");
    let lines = outcome.text().lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines.collect();
    assert_eq!(lines.last().map(|line| &line["event"]), Some(&json!("summary")), "{outcome:?}");
    (outcome, lines)
}

/// The counts of a summary that are not zero, in order: what was reported, exactly.
fn counts(lines: &[Value]) -> Vec<(&str, u64)> {
    let summary = lines.last().unwrap();
    [
        "sent",
        "received",
        "lost",
        "waiting",
        "reordered",
        "duplicates",
        "late",
        "corrupt",
        "cut",
        "stray",
    ]
    .into_iter()
    .map(|name| (name, summary[name].as_u64().unwrap()))
    .filter(|&(_, count)| count > 0)
    .collect()
}

/// The first event of this kind, without the times and addresses that differ from run to run.
fn event(lines: &[Value], event: &str, kind: Option<&str>) -> Value {
    let wanted = |line: &&Value| line["event"] == event && kind.is_none_or(|k| line["kind"] == k);
    let mut found = lines.iter().find(wanted).unwrap_or_else(|| panic!("{lines:?}")).clone();
    found.as_object_mut().unwrap().remove("time_ns");
    found
}

/// Reads one ping.
fn read(stream: &mut TcpStream) -> Option<[u8; SIZE]> {
    let mut message = [0; SIZE];
    stream.read_exact(&mut message).ok().map(|()| message)
}

fn echo(mut stream: TcpStream) {
    while let Some(message) = read(&mut stream) {
        stream.write_all(&message).unwrap();
    }
}

/// Answers the pings of one connection after another: `answer` gets each message and its number
/// (from 1) and returns what is sent, or `None` to close.
fn tcp_answers(mut answer: impl FnMut(usize, &[u8]) -> Option<Vec<u8>> + Send + 'static) -> String {
    let serve = move |listener: TcpListener| {
        let mut number = 0;
        while let Ok((mut stream, _)) = listener.accept() {
            while let Some(message) = read(&mut stream) {
                number += 1;
                let Some(reply) = answer(number, &message) else { break };
                stream.write_all(&reply).unwrap();
            }
        }
    };
    tcp_double(serve).0
}

/// The same over UDP: each ping gets as many datagrams as `answer` returns.
fn udp_answers(mut answer: impl FnMut(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> String {
    udp_double(move |socket, number, message, from: SocketAddr| {
        for reply in answer(number + 1, message) {
            socket.send_to(&reply, from).unwrap();
        }
    })
}

#[test]
fn a_true_echo_is_shown_as_ping_does() {
    let (address, server) = tcp_session(echo);
    let outcome = run(&["ping", &address, "-c", "3", "-i", "1ms"], b"");
    assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""));
    let lines: Vec<&str> = outcome.text().lines().collect();
    assert_eq!(lines[0], format!("PING {address} ({address}) over TCP: 56 bytes"));
    for (seq, line) in (1..=3).zip(&lines[1..]) {
        let start = format!("56 bytes from {address}: seq={seq} time=");
        assert!(line.starts_with(&start) && line.ends_with(" ms"), "{line}");
    }
    assert_eq!(lines[4..6], ["", &format!("--- {address} ping statistics ---")]);
    assert!(lines[6].starts_with("3 sent, 3 received, 0 lost (0%), in "), "{}", lines[6]);
    assert!(lines[7].starts_with("rtt min/avg/max/mdev = "), "{}", lines[7]);
    assert!(lines[8].starts_with("rtt p50/p90/p99 = "), "{}", lines[8]);
    assert_eq!(lines.len(), 9);
    server.join().unwrap();
}

#[test]
fn quiet_prints_the_summary_alone() {
    let (address, _) = tcp_session(echo);
    let outcome = run(&["ping", &address, "-c", "1", "-q"], b"");
    assert_eq!(outcome.code, Some(0));
    assert!(outcome.text().starts_with("--- "), "{}", outcome.text());
    assert_eq!(outcome.text().lines().count(), 4);
}

#[test]
fn the_numbers_of_a_summary_fit_together() {
    let address = udp_answers(|_, message| vec![message.to_vec()]);
    let (outcome, lines) = ping(&address, &["-u", "-c", "200", "-i", "0", "-W", "20s"]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(counts(&lines), [("sent", 200), ("received", 200)]);
    let times = lines.last().unwrap()["times"].as_object().unwrap();
    let of = |name: &str| times[&format!("{name}_ns")].as_u64().unwrap();
    let order = ["min", "p50", "p90", "p99", "max"].map(of);
    assert!(order.is_sorted() && order[0] > 0, "{order:?}");
    assert!((of("min")..=of("max")).contains(&of("avg")));
    let mut each: Vec<u64> = lines
        .iter()
        .filter(|line| line["kind"] == "echo")
        .map(|l| l["time_ns"].as_u64().unwrap())
        .collect();
    each.sort_unstable();
    assert_eq!((each[0], each[199]), (of("min"), of("max")));
    // Three digits: within 0.1 %.
    assert!(of("p50").abs_diff(each[99]) <= each[99] / 1000 + 1, "{} {}", of("p50"), each[99]);
}

#[test]
fn a_lost_datagram_is_lost() {
    let address = udp_answers(|seq, message| match seq {
        2 => Vec::new(),
        _ => vec![message.to_vec()],
    });
    let (outcome, lines) = ping(&address, &["-u", "-c", "3", "-i", "0", "-W", "1s"]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(counts(&lines), [("sent", 3), ("received", 2), ("lost", 1)]);
    assert_eq!(event(&lines, "lost", None), json!({"event": "lost", "seq": 2, "reason": null}));
}

#[test]
fn a_second_reply_is_a_duplicate() {
    let address = udp_answers(|seq, message| match seq {
        2 => vec![message.to_vec(); 3],
        _ => vec![message.to_vec()],
    });
    let (_, lines) = ping(&address, &["-u", "-c", "3", "-i", "0", "-W", "20s"]);
    assert_eq!(counts(&lines), [("sent", 3), ("received", 3), ("duplicates", 2)]);
    let duplicate = json!({"event": "reply", "kind": "duplicate", "seq": 2});
    assert_eq!(event(&lines, "reply", Some("duplicate")), duplicate);
}

#[test]
fn replies_in_another_order_are_reordered() {
    let mut first = Vec::new();
    let address = udp_answers(move |seq, message| match seq {
        1 => {
            first = message.to_vec();
            Vec::new()
        }
        2 => vec![message.to_vec(), first.clone()],
        _ => vec![message.to_vec()],
    });
    let (_, lines) = ping(&address, &["-u", "-c", "3", "-i", "1ms", "-W", "20s"]);
    assert_eq!(counts(&lines), [("sent", 3), ("received", 3), ("reordered", 1)]);
    let reordered = lines.iter().find(|line| line["reordered"] == true).unwrap();
    assert_eq!(reordered["seq"], 1);
}

#[test]
fn a_changed_byte_is_corruption() {
    for byte in [0, 7, 8, 15, 16, 55] {
        let address = udp_answers(move |seq, message| {
            let mut reply = message.to_vec();
            if seq == 2 {
                reply[byte] ^= 0x10;
            }
            vec![reply]
        });
        let (_, lines) = ping(&address, &["-u", "-c", "3", "-i", "0", "-W", "20s"]);
        assert_eq!(counts(&lines), [("sent", 3), ("received", 2), ("corrupt", 1)]);
        let corrupt = json!({"event": "reply", "kind": "corrupt", "seq": 2, "byte": byte});
        assert_eq!(event(&lines, "reply", Some("corrupt")), corrupt);
    }
}

#[test]
fn a_datagram_of_another_length_is_cut() {
    for bytes in [0, 10, 55, 60] {
        let address = udp_answers(move |seq, message| {
            let mut reply = message.to_vec();
            if seq == 2 {
                reply.resize(bytes, 0);
            }
            vec![reply]
        });
        let (_, lines) = ping(&address, &["-u", "-c", "3", "-i", "0", "-W", "20s"]);
        assert_eq!(counts(&lines), [("sent", 3), ("received", 2), ("cut", 1)]);
        let cut = json!({"event": "reply", "kind": "cut", "seq": 2, "bytes": bytes});
        assert_eq!(event(&lines, "reply", Some("cut")), cut);
    }
}

#[test]
fn a_delayed_reply_is_late_and_its_ping_stays_lost() {
    let mut first = Vec::new();
    let address = udp_answers(move |seq, message| match seq {
        1 => {
            first = message.to_vec();
            Vec::new()
        }
        2 => vec![first.clone(), message.to_vec()],
        _ => vec![message.to_vec()],
    });
    let (_, lines) = ping(&address, &["-u", "-c", "2", "-i", "0", "-W", "1s"]);
    assert_eq!(counts(&lines), [("sent", 2), ("received", 1), ("lost", 1), ("late", 1)]);
    assert_eq!(event(&lines, "reply", Some("late"))["seq"], 1);
}

#[test]
fn a_stream_that_loses_repeats_swaps_or_corrupts_a_message_is_told_apart() {
    let mut kept = Vec::new();
    let address = tcp_answers(move |number, message| {
        Some(match number {
            2 => Vec::new(),
            3 => [message, message].concat(),
            4 => {
                kept = message.to_vec();
                Vec::new()
            }
            5 => [message, &kept].concat(),
            6 => {
                let mut reply = message.to_vec();
                reply[30] ^= 1;
                reply
            }
            _ => message.to_vec(),
        })
    });
    let (outcome, lines) = ping(&address, &["-c", "8", "-i", "100ms", "-W", "3s"]);
    assert_eq!(outcome.code, Some(0));
    let expected = [
        ("sent", 8),
        ("received", 6),
        ("lost", 1),
        ("reordered", 1),
        ("duplicates", 1),
        ("corrupt", 1),
    ];
    assert_eq!(counts(&lines), expected, "{lines:#?}");
    let corrupt = json!({"event": "reply", "kind": "corrupt", "seq": 6, "byte": 30});
    assert_eq!(event(&lines, "reply", Some("corrupt")), corrupt);
    assert_eq!(event(&lines, "lost", None)["seq"], 2);
}

#[test]
fn a_cut_stream_is_given_up_and_the_next_ping_connects_anew() {
    let address = tcp_answers(|number, message| {
        let length = if number == 2 { 20 } else { SIZE };
        Some(message[..length].to_vec())
    });
    // One connection after the other: the double sees the end of the first.
    let (outcome, lines) = ping(&address, &["-c", "4", "-i", "0", "-W", "1s"]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(counts(&lines), [("sent", 4), ("received", 3), ("cut", 1)]);
    let cut = json!({"event": "reply", "kind": "cut", "seq": 2, "bytes": 20});
    assert_eq!(event(&lines, "reply", Some("cut")), cut);
    let reason = event(&lines, "disconnected", None)["reason"].to_string();
    assert!(reason.contains("the rest of a reply did not come"), "{reason}");
    assert_eq!(event(&lines, "connected", None)["address"], address);
}

#[test]
fn a_stream_out_of_step_is_given_up() {
    let address = tcp_answers(|number, message| {
        Some(if number == 2 { vec![b'?'; SIZE] } else { message.to_vec() })
    });
    let (_, lines) = ping(&address, &["-c", "3", "-i", "0", "-W", "1s"]);
    assert_eq!(counts(&lines), [("sent", 3), ("received", 2), ("corrupt", 1)]);
    let reason = event(&lines, "disconnected", None)["reason"].to_string();
    assert!(reason.contains("out of step"), "{reason}");
}

#[test]
fn a_connection_that_dies_loses_what_is_out_and_the_next_ping_connects_anew() {
    let address =
        tcp_answers(|number, message| if number == 2 { None } else { Some(message.to_vec()) });
    let (outcome, lines) = ping(&address, &["-c", "3", "-i", "0", "-W", "1s"]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(counts(&lines), [("sent", 3), ("received", 2), ("lost", 1)]);
    let reason = event(&lines, "disconnected", None)["reason"].clone();
    assert_eq!(reason, format!("{address} closed the connection"));
    let lost = json!({"event": "lost", "seq": 2, "reason": "the connection ended"});
    assert_eq!(event(&lines, "lost", None), lost);
    assert_eq!(event(&lines, "connected", None)["address"], address);
}

#[test]
fn a_server_that_goes_away_for_good_is_loss_with_its_reason() {
    // The listener closes together with the connection, before ping 2 is answered.
    let (address, _) = tcp_double(|listener| {
        let (mut stream, _) = listener.accept().unwrap();
        drop(listener);
        let message = read(&mut stream).unwrap();
        stream.write_all(&message).unwrap();
        read(&mut stream);
    });
    let (outcome, lines) = ping(&address, &["-c", "4", "-i", "0", "-W", "500ms"]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(counts(&lines), [("sent", 4), ("received", 1), ("lost", 3)]);
    let last = lines.iter().rfind(|line| line["event"] == "lost").unwrap();
    let reason = last["reason"].as_str().unwrap();
    assert!(reason.contains("refused the connection"), "{reason}");
}

#[test]
fn nothing_back_is_failure() {
    let address = udp_answers(|_, _| Vec::new());
    let outcome = run(&["ping", &address, "-u", "-c", "1", "-W", "50ms", "-q"], b"");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.text().contains("1 sent, 0 received, 1 lost (100%)"), "{}", outcome.text());
    let sentence = format!(
        "evecho: {address} did not answer within 50 ms; is an echo server running there, and on \
         that port?\n"
    );
    assert_eq!(outcome.stderr, sentence);
    let damaged = udp_answers(|_, _| vec![b"HTTP/1.1 400 Bad Request\r\n".to_vec()]);
    let outcome = run(&["ping", &damaged, "-u", "-c", "1", "-W", "20s", "-q"], b"");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.text().contains("0 received, 0 lost (0%), 1 cut"), "{}", outcome.text());
    assert!(outcome.stderr.contains("damaged"), "{}", outcome.stderr);
}

#[test]
fn nobody_there_is_one_sentence() {
    let (_refusing, refused) = tool::refused_port();
    let (_dead, _backlog, dead) = tool::dead_host();
    for (target, said) in [
        (&*refused, "refused the connection"),
        (&*dead, "did not answer within 200 ms"),
        ("nobody.invalid:7", "cannot resolve 'nobody.invalid'"),
    ] {
        let outcome = run(&["ping", target, "-W", "200ms", "-c", "1"], b"");
        assert_eq!((outcome.code, outcome.text()), (Some(1), ""));
        assert!(outcome.stderr.starts_with("evecho: "), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn a_refused_datagram_is_lost_at_once() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // Connected to itself, it takes from nobody else, and the system refuses on its behalf.
    let address = socket.local_addr().unwrap();
    socket.connect(address).unwrap();
    // It could wait for longer than the test may last.
    let flags = ["-u", "-c", "2", "-i", "1ms", "-W", "1h"];
    let (outcome, lines) = ping(&address.to_string(), &flags);
    assert_eq!(outcome.code, Some(1));
    assert_eq!(counts(&lines), [("sent", 2), ("lost", 2)]);
    assert!(outcome.stderr.contains("nothing listens on that UDP port"), "{}", outcome.stderr);
}

#[test]
fn wrong_usage_is_told_apart() {
    for args in [
        &["ping"][..],
        &["ping", "localhost:7", "-c", "0"],
        &["ping", "localhost:7", "-s", "23"],
        &["ping", "localhost:7", "-s", "64k"],
        &["ping", "localhost:7", "-W", "0"],
        &["ping", "localhost:7", "-i", "2days"],
    ] {
        tool::assert_wrong_usage(args);
    }
}

#[test]
fn a_signal_ends_with_the_summary() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (address, _) = tcp_session(echo);
        let mut child = tool::spawn(evecho(&["ping", &address, "-i", "1day"]));
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("seq=1 ") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0);
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("1 sent, 1 received, 0 lost (0%), in "), "{rest}");
        assert_eq!(finish(child).code, Some(0));
    }
}

#[test]
fn an_output_that_nobody_reads_is_a_clean_end() {
    let (address, _) = tcp_session(echo);
    let mut child = tool::spawn(evecho(&["ping", &address, "-i", "1ms"]));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.stderr, "");
    assert_eq!(outcome.code, Some(0));
}

#[test]
fn the_interval_is_kept() {
    let (address, _) = tcp_session(echo);
    let start = std::time::Instant::now();
    let (_, lines) = ping(&address, &["-c", "5", "-i", "30ms"]);
    assert_eq!(counts(&lines), [("sent", 5), ("received", 5)]);
    // Five pings have four intervals between them: never less, however fast the machine.
    assert!(start.elapsed() >= Duration::from_millis(120));
}

#[test]
fn every_server_echoes_pings() {
    let python = "import socket, sys
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(('127.0.0.1', 0))
print('listening on 127.0.0.1:%d' % server.getsockname()[1], file=sys.stderr)
while True: server.sendto(*server.recvfrom(65536))";
    for (server, transport) in [
        (Some(Server::evecho(&[])), "tcp"),
        (Some(Server::evecho(&[])), "udp"),
        (Server::socat("TCP4-LISTEN:0,bind=127.0.0.1,fork", "EXEC:cat"), "tcp"),
        (Server::python(python), "udp"),
    ] {
        let Some(server) = server else { continue };
        for size in ["24", "56", "65507"] {
            let mut flags = vec!["-c", "20", "-i", "0", "-W", "20s", "-s", size];
            flags.extend((transport == "udp").then_some("--udp"));
            let (outcome, lines) = ping(&server.address, &flags);
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
            assert_eq!(counts(&lines), [("sent", 20), ("received", 20)]);
            assert_eq!(event(&lines, "start", None)["transport"], transport);
        }
    }
}

#[test]
fn a_name_of_several_addresses_finds_the_one_that_answers() {
    let (address, _) = tcp_session(echo);
    let port = address.rsplit_once(':').unwrap().1;
    let (outcome, lines) = ping(&format!("localhost:{port}"), &["-c", "1", "-W", "20s"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(event(&lines, "start", None)["address"], address);
}
