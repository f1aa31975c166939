//! `evecho ping` against doubles that misbehave, our own server and others.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/network.rs"]
mod network;
#[cfg(target_os = "linux")]
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/tool.rs"]
mod tool;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use socket2::SockRef;

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

/// The addresses that were connected to, one after the other.
fn connections(lines: &[Value]) -> Vec<&str> {
    let connected = lines.iter().filter(|line| line["event"] == "connected");
    connected.map(|line| line["address"].as_str().unwrap()).collect()
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

/// Answers the first message when the second has come: before that one's reply, or after it.
fn udp_answers_after_two(reversed: bool) -> String {
    let mut kept = Vec::new();
    udp_answers(move |seq, message| {
        kept.push(message.to_vec());
        if reversed {
            kept.reverse();
        }
        if seq == 1 { Vec::new() } else { std::mem::take(&mut kept) }
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
    assert!((of("min")..=of("max")).contains(&of("mean")));
    let mut each: Vec<u64> = lines
        .iter()
        .filter(|line| line["kind"] == "echo")
        .map(|l| l["time_ns"].as_u64().unwrap())
        .collect();
    each.sort_unstable();
    assert_eq!((each[0], each[199]), (of("min"), of("max")));
    let echoes: Vec<(u64, u64)> = lines
        .iter()
        .filter(|line| line["kind"] == "echo")
        .map(|line| (line["seq"].as_u64().unwrap(), line["time_ns"].as_u64().unwrap()))
        .collect();
    let pairs = echoes.windows(2).filter(|pair| pair[0].0 + 1 == pair[1].0);
    let differences: Vec<u64> = pairs.map(|pair| pair[0].1.abs_diff(pair[1].1)).collect();
    let jitter = differences.iter().sum::<u64>() / differences.len() as u64;
    assert!(of("jitter").abs_diff(jitter) <= 1, "{} {jitter}", of("jitter"));
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
    assert_eq!(
        event(&lines, "lost", None),
        json!({"event": "lost", "seq": 2, "reason": "timeout"})
    );
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
    let address = udp_answers_after_two(true);
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
        let corrupt = json!({
            "event": "reply", "kind": "corrupt", "seq": 2, "byte": byte, "reason": "corrupt"
        });
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
        let cut = json!({
            "event": "reply", "kind": "cut", "seq": 2, "bytes": bytes, "reason": "cut"
        });
        assert_eq!(event(&lines, "reply", Some("cut")), cut);
    }
}

#[test]
fn a_delayed_reply_is_late_and_its_ping_stays_lost() {
    let address = udp_answers_after_two(false);
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
    let corrupt = json!({
        "event": "reply", "kind": "corrupt", "seq": 6, "byte": 30, "reason": "corrupt"
    });
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
    let cut = json!({
        "event": "reply", "kind": "cut", "seq": 2, "bytes": 20, "reason": "cut"
    });
    assert_eq!(event(&lines, "reply", Some("cut")), cut);
    let reason = event(&lines, "disconnected", None)["detail"].to_string();
    assert!(reason.contains("the rest of a reply did not come"), "{reason}");
    assert_eq!(connections(&lines), [&*address, &*address]);
}

#[test]
fn a_stream_out_of_step_is_given_up() {
    let address = tcp_answers(|number, message| {
        Some(if number == 2 { vec![b'?'; SIZE] } else { message.to_vec() })
    });
    let (_, lines) = ping(&address, &["-c", "3", "-i", "0", "-W", "1s"]);
    assert_eq!(counts(&lines), [("sent", 3), ("received", 2), ("corrupt", 1)]);
    let reason = event(&lines, "disconnected", None)["detail"].to_string();
    assert!(reason.contains("out of step"), "{reason}");
}

#[test]
fn a_connection_that_dies_loses_what_is_out_and_the_next_ping_connects_anew() {
    let address =
        tcp_answers(|number, message| if number == 2 { None } else { Some(message.to_vec()) });
    let (outcome, lines) = ping(&address, &["-c", "3", "-i", "0", "-W", "1s"]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(counts(&lines), [("sent", 3), ("received", 2), ("lost", 1)]);
    let detail = format!("{address} closed the connection");
    let disconnected = json!({"event": "disconnected", "reason": "closed", "detail": detail});
    assert_eq!(event(&lines, "disconnected", None), disconnected);
    let lost = json!({"event": "lost", "seq": 2, "reason": "closed", "detail": detail});
    assert_eq!(event(&lines, "lost", None), lost);
    assert_eq!(connections(&lines), [&*address, &*address]);
}

#[test]
fn a_server_that_goes_away_for_good_is_loss_with_its_reason() {
    // The listener closes before the connection does, and ping 2 is not answered.
    let (address, _) = tcp_double(|listener| {
        let (mut stream, _) = listener.accept().unwrap();
        tool::close(listener);
        let message = read(&mut stream).unwrap();
        stream.write_all(&message).unwrap();
        read(&mut stream);
    });
    let (outcome, lines) = ping(&address, &["-c", "4", "-i", "0", "-W", "1s"]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(counts(&lines), [("sent", 4), ("received", 1), ("lost", 3)]);
    let last = lines.iter().rfind(|line| line["event"] == "lost").unwrap();
    assert_eq!(last["reason"], "refused");
    assert_eq!(lines.last().unwrap()["lost_by"], json!({"closed": 1, "refused": 2}));
    assert_eq!(last["detail"], format!("{address} refused the connection"));
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
    assert!(outcome.stderr.contains("does not send back what it receives"), "{}", outcome.stderr);
}

#[test]
fn nobody_there_is_a_line_and_a_sentence() {
    let (_refusing, refused) = tool::refused_port();
    let (_dead, _backlog, dead) = tool::dead_host();
    for (target, reason, said) in [
        (&*refused, "refused", "refused the connection"),
        (&*dead, "timeout", "did not answer within 200 ms"),
        ("nobody.invalid:7", "unresolved", "cannot resolve 'nobody.invalid'"),
        ("127.0.0.1:7 -6", "unresolved", "it has no IPv6 address"),
    ] {
        let words: Vec<&str> = target.split(' ').collect();
        let flags = [&["-W", "200ms", "-c", "2", "-i", "1ms"], &words[1..]].concat();
        let outcome = run(&[&["ping", words[0]], &*flags].concat(), b"");
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let lines: Vec<&str> = outcome.text().lines().collect();
        assert_eq!(lines[0], format!("PING {} over TCP: 56 bytes", words[0]));
        for (seq, line) in (1..=2).zip(&lines[1..]) {
            assert!(line.starts_with(&format!("seq={seq}: ")) && line.contains(said), "{line}");
        }
        assert!(lines[5].starts_with("2 sent, 0 received, 2 lost (100%)"), "{lines:?}");
        assert_eq!(lines[6], format!("lost: 2 {reason}"));
        assert!(outcome.stderr.starts_with("evecho: "), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        let (_, lines) = ping(words[0], &flags);
        assert_eq!(counts(&lines), [("sent", 2), ("lost", 2)]);
        assert_eq!(event(&lines, "lost", None)["reason"], reason);
    }
}

#[test]
fn a_way_that_is_not_there_is_told_over_both_transports() {
    let ways = "ip link set lo up && ip link add v0 type veth peer name v1 \
                && ip addr add 10.7.0.1/24 dev v0 && ip link set v0 up && ip link set v1 up \
                && ip route add unreachable 10.8.1.0/24 && ip route add prohibit 10.8.2.0/24 \
                && ip route add blackhole 10.8.3.0/24";
    network::in_network("a_way_that_is_not_there_is_told_over_both_transports", ways, || {
        // No route, three kinds that refuse, a broadcast, an IPv6 address, and a neighbour that is not there.
        for address in [
            "198.18.0.1:7",
            "10.8.1.1:7",
            "10.8.2.1:7",
            "10.8.3.1:7",
            "10.7.0.255:7",
            "[2001:db8::1]:7",
            "10.7.0.9:7",
        ] {
            for scheme in ["tcp", "udp"] {
                let flags = ["-c", "1", "-W", "50s"];
                let (outcome, lines) = ping(&format!("{scheme}://{address}"), &flags);
                assert_eq!(outcome.code, Some(1), "{outcome:?}");
                assert_eq!(event(&lines, "lost", None)["reason"], "unreachable", "{outcome:?}");
                let said = format!("{address} cannot be reached");
                assert!(outcome.stderr.contains(&said), "{}", outcome.stderr);
            }
        }
    });
}

#[test]
fn a_refused_datagram_is_lost_at_once() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
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
        &["ping", "localhost:7", "-w", "0"],
        &["ping", "localhost:7", "-u", "-f", "lines"],
        &["ping", "localhost:7", "--pattern", "binary", "-f", "lines"],
        &["ping", "localhost:7", "--pattern", "binary", "--upper"],
    ] {
        tool::assert_wrong_usage(args);
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
    let start = Instant::now();
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
    assert_eq!(connections(&lines), [&*address]);
}

#[test]
fn a_server_that_is_not_there_yet_is_pinged_until_it_is() {
    let (refusing, address) = tool::refused_port();
    let flags = ["ping", &address, "--json", "-i", "10ms", "-c", "2", "-w", "60"];
    let mut child = tool::spawn(evecho(&flags));
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while said.matches(r#""reason":"refused""#).count() < 3 {
        assert_ne!(output.read_line(&mut said).unwrap(), 0, "{said}");
    }
    refusing.listen(1).unwrap();
    let listener = TcpListener::from(refusing);
    let (mut stream, _) = listener.accept().unwrap();
    let message = read(&mut stream).unwrap();
    stream.write_all(&message).unwrap();
    read(&mut stream);
    // Gone once more, and back: what was on its way is lost, and pings go on.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    let (mut stream, _) = listener.accept().unwrap();
    let message = read(&mut stream).unwrap();
    stream.write_all(&message).unwrap();
    output.read_to_string(&mut said).unwrap();
    assert_eq!(finish(child).code, Some(0), "{said}");
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.last().unwrap()["received"], 2);
    assert_eq!(connections(&lines), [&*address, &*address]);
    let reset = event(&lines, "disconnected", None);
    assert_eq!(reset["reason"], "reset", "{said}");
    assert!(lines.iter().any(|line| line["event"] == "lost" && line["reason"] == "reset"));
}

#[test]
fn a_deadline_ends_what_nothing_else_does() {
    let silent = udp_answers(|_, _| Vec::new());
    let flags = ["-u", "-w", "0.2", "-i", "10ms", "-W", "1h"];
    let (outcome, lines) = ping(&silent, &flags);
    assert_eq!(outcome.code, Some(1));
    let sent = lines.last().unwrap()["sent"].as_u64().unwrap();
    assert_eq!(counts(&lines), [("sent", sent), ("waiting", sent)]);
    // No try is without an event.
    let outstanding = lines.iter().filter(|line| line["event"] == "outstanding").count();
    assert_eq!(outstanding as u64, sent);
    let (_dead, _backlog, dead) = tool::dead_host();
    let (outcome, lines) = ping(&dead, &["-w", "0.1", "-W", "1h"]);
    assert_eq!((outcome.code, counts(&lines)), (Some(1), Vec::new()), "{outcome:?}");
}

#[test]
fn with_a_deadline_the_count_is_of_what_is_answered() {
    let address = udp_answers(|number, message| match number {
        1..4 => Vec::new(),
        _ => vec![message.to_vec()],
    });
    let flags = ["-u", "-c", "2", "-i", "10ms", "-w", "60"];
    let (outcome, lines) = ping(&address, &flags);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let summary = lines.last().unwrap();
    // One that was on its way may come with the second.
    let [received, sent] = ["received", "sent"].map(|name| summary[name].as_u64());
    assert!(received >= Some(2) && sent >= Some(5), "{summary}");
    let half = udp_answers(|number, message| match number {
        1 => vec![message.to_vec()],
        _ => Vec::new(),
    });
    let (outcome, _) = ping(&half, &["-u", "-c", "2", "-i", "10ms", "-w", "3"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("answered 1 of 2 pings"), "{}", outcome.stderr);
}

#[test]
fn what_is_outstanding_is_told_before_the_next() {
    let address = udp_answers(|number, message| match number {
        1 => Vec::new(),
        _ => vec![message.to_vec()],
    });
    let flags = ["ping", &address, "-u", "-O", "-c", "2", "-i", "10ms", "-W", "2"];
    let outcome = run(&flags, b"");
    let lines: Vec<&str> = outcome.text().lines().collect();
    assert_eq!(lines[1], "seq=1: no reply yet");
    assert!(lines[2].contains("seq=2 time="), "{lines:?}");
    assert_eq!(lines[3], "seq=1: no reply within 2 s");
}

#[test]
fn lines_have_the_time_when_asked() {
    let (address, _) = tcp_session(echo);
    let outcome = run(&["ping", &address, "-D", "-c", "1"], b"");
    let line = outcome.text().lines().nth(1).unwrap();
    let (stamp, rest) = line.strip_prefix('[').unwrap().split_once("] ").unwrap();
    let (seconds, micros) = stamp.split_once('.').unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000 && micros.len() == 6, "{line}");
    assert!(rest.starts_with("56 bytes from "), "{line}");
    let (address, _) = tcp_session(echo);
    let (_, lines) = ping(&address, &["-D", "-c", "1"]);
    assert!(event(&lines, "reply", None)["timestamp"].as_f64() > Some(1.7e9));
}

#[test]
fn every_framing_pattern_and_service_is_pinged() {
    for framing in ["raw", "lines", "length"] {
        for service in ["echo", "upper"] {
            let server = Server::evecho(&["--framing", framing, "--service", service]);
            let upper = if service == "upper" { &["--upper"][..] } else { &[] };
            for size in ["24", "56", "65507"] {
                let flags = ["-f", framing, "-c", "5", "-i", "0", "-W", "20", "-s", size];
                let (outcome, lines) = ping(&server.address, &[&flags, upper].concat());
                assert_eq!(outcome.code, Some(0), "{framing}, {service}: {outcome:?}");
                assert_eq!(counts(&lines), [("sent", 5), ("received", 5)]);
            }
            let flags = [&["-u", "-c", "2", "-i", "0", "-W", "20"], upper].concat();
            assert_eq!(ping(&server.address, &flags).0.code, Some(0), "{framing}, {service}");
        }
        let server = Server::evecho(&["--framing", framing]);
        if framing != "lines" {
            let flags = ["-f", framing, "--pattern", "binary", "-c", "5", "-i", "0", "-W", "20"];
            let (_, lines) = ping(&server.address, &flags);
            assert_eq!(counts(&lines), [("sent", 5), ("received", 5)]);
        }
        // A service that was expected to answer in upper case, and does not.
        let flags = ["-f", framing, "--upper", "-c", "1", "-W", "20"];
        let (outcome, lines) = ping(&server.address, &flags);
        assert_eq!(outcome.code, Some(1));
        assert_eq!(event(&lines, "reply", None)["reason"], "corrupt");
    }
}

#[test]
fn frames_that_no_ping_had_end_the_connection() {
    let (address, _) = tcp_double(|listener| {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut frame = [0; 4 + SIZE];
            stream.read_exact(&mut frame).unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").unwrap();
            let _ = stream.read(&mut [0]);
        }
    });
    let (outcome, lines) = ping(&address, &["-f", "length", "-c", "2", "-i", "1ms", "-W", "20"]);
    assert_eq!(outcome.code, Some(1));
    let detail = event(&lines, "disconnected", None)["detail"].to_string();
    assert!(detail.contains("longer than any ping"), "{detail}");
}

#[test]
fn a_report_can_be_asked_for_and_the_run_goes_on() {
    let (address, _) = tcp_session(echo);
    let mut child = tool::spawn(evecho(&["ping", &address, "-i", "1day"]));
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut wait_for = |words: &str| {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "no {words}");
        }
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    wait_for("seq=1 ");
    for _ in 0..2 {
        kill(pid, Signal::SIGUSR1).unwrap();
        wait_for("1 sent, 1 received, 0 lost");
    }
    kill(pid, Signal::SIGTERM).unwrap();
    wait_for("1 sent, 1 received, 0 lost");
    assert_eq!(finish(child).code, Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_wrong_here_is_told_from_what_is_wrong_there() {
    let (address, _) = tcp_session(echo);
    let mut command = evecho(&["ping", &address, "-c", "1"]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    command.stdout(full).stderr(std::process::Stdio::piped());
    let outcome = finish(command.spawn().unwrap());
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_close_that_costs_no_ping_does_not_slow_a_flood() {
    let (address, _) = tcp_double(|listener| {
        while let Ok((mut stream, _)) = listener.accept() {
            let Some(message) = read(&mut stream) else { continue };
            // The reply and the FIN leave as one segment: the client sees both at once.
            SockRef::from(&stream).set_tcp_cork(true).unwrap();
            stream.write_all(&message).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
    });
    // It would wait for an hour, as if pings were lost.
    let (outcome, lines) = ping(&address, &["-c", "3", "-i", "0", "-W", "1h"]);
    assert_eq!((outcome.code, counts(&lines)), (Some(0), vec![("sent", 3), ("received", 3)]));
}

/// Flags of a ping that ends once this number is answered, soon after a row of losses.
const QUICK: [&str; 6] = ["-w", "60", "-i", "50ms", "-W", "300ms"];

/// Each address that pings left from.
fn origins(lines: &[Value]) -> Vec<&str> {
    let connected = lines.iter().filter(|line| line["event"] == "connected");
    connected.map(|line| line["local"].as_str().unwrap()).collect()
}

#[test]
fn a_port_that_gets_no_answer_any_more_is_left() {
    // A path with a NAT that keeps the former server for a port that it knows.
    let mut known = None;
    let address = udp_double(move |socket, number, message, from| {
        if *known.get_or_insert(from) != from || number < 2 {
            socket.send_to(message, from).unwrap();
        }
    });
    let (outcome, lines) = ping(&address, &[&["-u", "-c", "5"], &QUICK[..]].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    // A machine that stands still makes more of them.
    let origins = origins(&lines);
    assert!(origins.len() >= 2 && origins[0] != origins[1], "{origins:?}");
    let left = event(&lines, "disconnected", None);
    let said = format!("gave up the socket to {address}: ");
    assert_eq!(left["reason"], "timeout");
    assert!(left["detail"].as_str().unwrap().starts_with(&said), "{left}");
}

#[test]
fn a_connection_that_gets_no_answer_any_more_is_left() {
    let (address, _) = tcp_double(|listener| {
        let (mut first, _) = listener.accept().unwrap();
        for _ in 0..2 {
            let message = read(&mut first).unwrap();
            first.write_all(&message).unwrap();
        }
        listener.incoming().for_each(|stream| echo(stream.unwrap()));
    });
    let outcome = run(&[&["ping", &address, "-c", "5"], &QUICK[..]].concat(), b"");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    let left = format!("gave up the connection to {address}: ");
    assert!(text.lines().any(|line| line.starts_with(&left)), "{text}");
    let again = format!("connected to {address} from 127.0.0.1:");
    assert!(text.lines().any(|line| line.starts_with(&again)), "{text}");
}

#[test]
fn losses_do_not_become_a_flood_of_sockets() {
    let silent = udp_answers(|_, _| Vec::new());
    let (_, lines) = ping(&silent, &["-u", "-w", "2.5", "-i", "1ms", "-W", "5ms"]);
    assert!(origins(&lines).len() <= 3, "{:?}", origins(&lines));
    // Half of them come back: they are no row. On a machine that stands still for a second, they are.
    let lossy = || {
        let address = udp_answers(|number, message| match number % 2 {
            0 => Vec::new(),
            _ => vec![message.to_vec()],
        });
        let (_, lines) = ping(&address, &["-u", "-w", "2.5", "-i", "20ms", "-W", "1s"]);
        origins(&lines).len() == 1
    };
    assert!((0..5).any(|_| lossy()));
}

#[test]
fn a_name_that_has_another_address_is_followed() {
    const TEST: &str = "a_name_that_has_another_address_is_followed";
    let Some(hosts) = network::role() else {
        let hosts = std::env::temp_dir().join(format!("hosts-{}", std::process::id()));
        std::fs::write(&hosts, "127.0.0.2 moving.test\n").unwrap();
        let hosts = hosts.to_str().unwrap();
        let script = format!("mount --bind {hosts} /etc/hosts && ip link set lo up && exec \"$@\"");
        let mut enter = std::process::Command::new("unshare");
        enter.args(["--map-root-user", "--net", "--mount", "sh", "-c", &script, "sh"]);
        if let Err(why) = network::play(&mut enter, TEST, hosts) {
            println!("skipped, since it needs namespaces of its own: {why}");
        }
        return std::fs::remove_file(hosts).unwrap();
    };
    for (scheme, port) in [("tcp", 7001), ("udp", 7002)] {
        std::fs::write(&hosts, "127.0.0.2 moving.test\n").unwrap();
        // The former server answers once.
        serve(SocketAddr::from(([127, 0, 0, 2], port)), 1);
        serve(SocketAddr::from(([127, 0, 0, 3], port)), usize::MAX);
        let target = format!("{scheme}://moving.test:{port}");
        let flags = ["ping", &target, "--json", "-c", "5"];
        let mut child = tool::spawn(evecho(&[&flags, &QUICK[..]].concat()));
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("echo") {
            assert_ne!(output.read_line(&mut said).unwrap(), 0, "{said}");
        }
        std::fs::write(&hosts, "127.0.0.3 moving.test\n").unwrap();
        output.read_to_string(&mut said).unwrap();
        assert_eq!(finish(child).code, Some(0), "{said}");
        let lines: Vec<Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let last = connections(&lines).last().copied();
        assert_eq!(last, Some(&*format!("127.0.0.3:{port}")), "{said}");
    }
    load_follows_a_name(&hosts);
}

fn load_follows_a_name(hosts: &str) {
    std::fs::write(hosts, "127.0.0.2 moving.test\n").unwrap();
    // Some of its answers may be late.
    serve(SocketAddr::from(([127, 0, 0, 2], 7003)), 1_000);
    serve(SocketAddr::from(([127, 0, 0, 3], 7003)), usize::MAX);
    let flags = ["-c", "3", "-t", "1h", "-s", "56", "--timeout", "50ms", "--every", "20ms"];
    let load = [&["load", "udp://moving.test:7003", "--json"], &flags[..]].concat();
    let mut child = tool::spawn(evecho(&load));
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut messages = 0;
    let mut await_messages = |enough: u64| {
        while messages < enough {
            let mut line = String::new();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "it ended");
            let line: Value = serde_json::from_str(&line).unwrap();
            messages += line["messages"].as_u64().unwrap();
        }
    };
    await_messages(1);
    std::fs::write(hosts, "127.0.0.3 moving.test\n").unwrap();
    await_messages(1_100);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    let report: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let replaced = report["replaced"].as_u64().unwrap();
    assert!(replaced > 0, "{said}");
    assert_eq!(finish(child).code, Some(1), "the lost ones are faults");
}

/// Echoes this number of pings over TCP and over UDP, and is silent from then on.
fn serve(address: SocketAddr, replies: usize) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            for _ in 0..replies {
                let Some(message) = read(&mut stream) else { break };
                stream.write_all(&message).unwrap();
            }
            kept.push(stream);
        }
    });
    let socket = UdpSocket::bind(address).unwrap();
    thread::spawn(move || {
        for number in 0.. {
            let mut message = [0; SIZE];
            let (_, from) = socket.recv_from(&mut message).unwrap();
            if number < replies {
                socket.send_to(&message, from).unwrap();
            }
        }
    });
}

/// gVisor has no such option.
#[cfg(target_os = "linux")]
#[test]
fn where_no_port_can_be_chosen_late_it_is_chosen_early() {
    use nix::errno::Errno;
    use sandbox::{BIND_ADDRESS_NO_PORT, refusing};

    let server = Server::evecho(&[]);
    let from = &["ping", &server.address, "-c", "1", "-W", "20", "--from", "127.0.0.3"][..];
    // Its clients are on several addresses.
    let churn = &["load", &server.address, "-c", "2", "-n", "20", "-m", "churn"];
    for args in [from, churn] {
        let rule = ("setsockopt", BIND_ADDRESS_NO_PORT, Errno::ENOPROTOOPT);
        let Some(mut command) = refusing(&[rule]) else { return };
        command.args(args);
        let outcome = finish(tool::spawn(command));
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
    }
}

#[test]
fn pings_leave_from_the_address_that_is_asked_for() {
    let server = Server::evecho(&[]);
    for udp in [&[][..], &["-u"]] {
        let flags = [&["-c", "1", "-W", "20", "--from", "127.0.0.3"], udp].concat();
        let (outcome, lines) = ping(&server.address, &flags);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(origins(&lines)[0].starts_with("127.0.0.3:"), "{lines:?}");
    }
    for (flags, said) in [
        (["--from", "192.0.2.1"], "--from 192.0.2.1: this machine has no such address"),
        (["--source", "::1"], "of the same family"),
        (["--dscp", "64"], "from 0 to 63"),
        (["--dscp", "af44"], "from 0 to 63"),
    ] {
        let outcome = run(&[&["ping", "127.0.0.1:7", "-c", "1"], &flags[..]].concat(), b"");
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn datagrams_leave_with_the_code_point_that_is_asked_for() {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    for (name, point, local) in [
        ("46", 46, "127.0.0.1:0"),
        ("EF", 46, "[::1]:0"),
        ("af41", 34, "[::1]:0"),
        ("cs6", 48, "127.0.0.1:0"),
    ] {
        let socket = UdpSocket::bind(local).unwrap();
        match socket.local_addr().unwrap().is_ipv4() {
            true => SockRef::from(&socket).set_recv_tos_v4(true).unwrap(),
            false => SockRef::from(&socket).set_recv_tclass_v6(true).unwrap(),
        }
        let address = socket.local_addr().unwrap().to_string();
        let child =
            tool::spawn(evecho(&["ping", &address, "-u", "-c", "1", "-W", "1ms", "--dscp", name]));
        let mut space = nix::cmsg_space!(i32);
        let mut bytes = [0; SIZE];
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&socket);
        let came =
            recvmsg::<()>(descriptor, &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let class = came.cmsgs().unwrap().find_map(|message| match message {
            ControlMessageOwned::Ipv4Tos(class) => Some(i32::from(class)),
            ControlMessageOwned::Ipv6TClass(class) => Some(class),
            _ => None,
        });
        assert_eq!(class, Some(point << 2), "{name}");
        finish(child);
    }
}
