//! `evecho send` against doubles that misbehave, our own server and others.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[cfg(target_os = "linux")]
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/tool.rs"]
mod tool;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeWriter, Read, Write, pipe};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ::evecho::Transport;
use ::evecho::client::Cancel;
use ::evecho::client::send::{self, Config, Input};
use socket2::SockRef;
use tool::{Server, evecho, finish, run, tcp_session, udp_double};

/// What a client sends up to its half-close.
fn read_to_end(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Echoes as the simplest server does: it reads nothing while it writes.
fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count) = stream.read(&mut buffer)
        && count > 0
        && stream.write_all(&buffer[..count]).is_ok()
    {}
}

/// Bytes in which nothing repeats soon.
fn noise(length: usize) -> Vec<u8> {
    let bytes = ::evecho::client::pattern::Alphabet::Bytes.slice(1, 0, 65_000);
    bytes.iter().copied().cycle().take(length).collect()
}

/// A path for one test's file, in this run alone.
fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()))
}

#[test]
fn messages_come_back_on_lines_in_every_framing() {
    for framing in ["raw", "lines", "length"] {
        let (address, _) = tcp_session(echo);
        let outcome = run(&["send", &address, "-f", framing, "hello", "", "two words"], b"");
        assert_eq!(outcome.text(), "hello\n\ntwo words\n", "{framing}: {outcome:?}");
        assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""));
    }
}

#[test]
fn each_message_awaits_the_reply_to_the_one_before() {
    let (address, server) = tcp_session(|mut stream| {
        let mut seen = Vec::new();
        let mut buffer = [0; 64];
        loop {
            let count = stream.read(&mut buffer).unwrap();
            if count == 0 {
                return seen;
            }
            seen.push(String::from_utf8(buffer[..count].to_vec()).unwrap());
            stream.write_all(&buffer[..count]).unwrap();
        }
    });
    let outcome = run(&["send", &address, "--framing", "raw", "one", "two", "three"], b"");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(server.join().unwrap(), ["one", "two", "three"]);
}

#[test]
fn lengths_are_four_bytes_big_endian() {
    let (address, server) = tcp_session(|mut stream| {
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).unwrap();
        stream.write_all(b"\0\0\0\x03new").unwrap();
        frame
    });
    let outcome = run(&["send", &address, "-f", "length", "hello"], b"");
    assert_eq!((outcome.code, outcome.text()), (Some(0), "new\n"));
    assert_eq!(&server.join().unwrap(), b"\0\0\0\x05hello");
}

#[test]
fn a_typed_line_is_answered_before_the_next_is_typed() {
    let (address, _) = tcp_session(echo);
    let mut child = tool::spawn(evecho(&["send", &address]));
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for line in ["first\n", "\n", "second\n"] {
        input.write_all(line.as_bytes()).unwrap();
        let mut echo = String::new();
        output.read_line(&mut echo).unwrap();
        assert_eq!(echo, line);
    }
    drop(input);
    assert_eq!(finish(child).code, Some(0));
}

#[test]
fn a_filter_of_any_size_gives_back_what_it_got() {
    let bytes = noise(20_000_000);
    let path = scratch("filter");
    fs::write(&path, &bytes).unwrap();
    for (from_file, to_file) in [(false, false), (true, true)] {
        let (address, _) = tcp_session(echo);
        let outcome = if from_file && to_file {
            let mut command = evecho(&["send", &address, "--raw"]);
            let back = scratch("filter-back");
            let files = (File::open(&path).unwrap(), File::create(&back).unwrap());
            command.stdin(files.0).stdout(files.1).stderr(Stdio::piped());
            let mut outcome = finish(command.spawn().unwrap());
            outcome.stdout = fs::read(&back).unwrap();
            fs::remove_file(&back).unwrap();
            outcome
        } else {
            run(&["send", &address, "--raw"], &bytes)
        };
        assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""));
        assert!(outcome.stdout == bytes, "{} of {} bytes", outcome.stdout.len(), bytes.len());
    }
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_message_larger_than_any_socket_buffer_does_not_deadlock() {
    for framing in ["raw", "lines", "length"] {
        let mut line = noise(15_000_000);
        line.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
        line.push(b'\n');
        let (address, _) = tcp_session(echo);
        let outcome = run(&["send", &address, "-f", framing], &line);
        assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""), "{framing}");
        assert!(outcome.stdout == line, "{framing}");
    }
}

#[test]
fn the_end_of_the_input_is_told_by_a_half_close() {
    let (address, _) = tcp_session(|mut stream| {
        let mut bytes = read_to_end(&stream);
        bytes.reverse();
        stream.write_all(&bytes).unwrap();
    });
    let outcome = run(&["send", &address, "--raw"], b"stressed");
    assert_eq!((outcome.code, outcome.text()), (Some(0), "desserts"));
}

#[test]
fn a_service_that_changes_lengths_is_heard_out() {
    for framing in ["raw", "lines", "length"] {
        let server = Server::evecho(&["--service", "upper", "--framing", framing]);
        // 2 bytes stay 2, and 7 become 10.
        let outcome =
            run(&["send", &server.address, "-f", framing, "ok", "\u{149}\u{149}\u{149}x"], b"");
        assert_eq!(outcome.text(), "OK\n\u{2bc}N\u{2bc}N\u{2bc}NX\n", "{framing}");
        // Where only the number of bytes tells that all came back, it did not.
        assert_eq!(outcome.code, Some(i32::from(framing == "raw")), "{outcome:?}");
        if framing == "raw" {
            let counts = "after 9 bytes were sent and 12 came back";
            assert!(outcome.stderr.contains(counts), "{}", outcome.stderr);
        }
    }
}

#[test]
fn a_server_that_closes_early_is_told_in_bytes() {
    let (address, _) = tcp_session(|mut stream| {
        let bytes = read_to_end(&stream);
        stream.write_all(&bytes[..10]).unwrap();
    });
    let outcome = run(&["send", &address, "--raw"], b"abcdefghijklmnopqrstuvwxyz");
    assert_eq!((outcome.code, outcome.text()), (Some(1), "abcdefghij"));
    let sentence = format!(
        "evecho: {address} closed the connection after 26 bytes were sent and 10 came back\n"
    );
    assert_eq!(outcome.stderr, sentence);
}

#[test]
fn a_server_that_closes_between_messages_is_told_in_bytes() {
    let (address, _) = tcp_session(|mut stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.next();
        stream.write_all(b"one\n").unwrap();
        lines.next();
        stream.write_all(b"tw").unwrap();
    });
    let outcome = run(&["send", &address, "one", "two", "three"], b"");
    assert_eq!((outcome.code, outcome.text()), (Some(1), "one\ntw"));
    let counts = "after 8 bytes were sent and 6 came back\n";
    assert!(outcome.stderr.ends_with(counts), "{}", outcome.stderr);
}

#[test]
fn a_server_that_answers_once_leaves_the_rest_unanswered() {
    for (framing, sent, received) in [("raw", 14, 5), ("lines", 16, 6), ("length", 22, 9)] {
        let server = Server::evecho(&["--once", "--framing", framing]);
        let outcome = run(&["send", &server.address, "-f", framing, "hello", "two words"], b"");
        assert_eq!((outcome.code, outcome.text().lines().next()), (Some(1), Some("hello")));
        // Whether the second message still left depends on who was quicker.
        let first = format!("and {received} came back\n");
        assert!(outcome.stderr.ends_with(&first), "{framing}, {sent}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn a_server_with_another_framing_is_no_success() {
    let server = Server::evecho(&["--framing", "length"]);
    let outcome = run(&["send", &server.address, "hello"], b"");
    assert_eq!((outcome.code, outcome.text()), (Some(1), ""), "{outcome:?}");
    assert!(outcome.stderr.ends_with("and 0 came back\n"), "{}", outcome.stderr);
}

#[test]
fn what_was_not_answered_is_told_in_every_framing() {
    fn close(stream: TcpStream) {
        drop(stream);
    }
    fn read_and_close(mut stream: TcpStream) {
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    }
    fn reset(mut stream: TcpStream) {
        stream.read_exact(&mut [0; 1]).unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    for framing in ["raw", "lines", "length"] {
        for behaviour in [close, read_and_close, reset] {
            let (address, server) = tcp_session(behaviour);
            let outcome = run(&["send", &address, "-f", framing, "hello"], b"");
            assert_eq!(outcome.code, Some(1), "{framing}: {outcome:?}");
            assert_eq!(outcome.text().trim(), "", "{framing}: {outcome:?}");
            assert!(outcome.stderr.ends_with("and 0 came back\n"), "{}", outcome.stderr);
            server.join().unwrap();
        }
        let (_refusing, refused) = tool::refused_port();
        let outcome = run(&["send", &refused, "-f", framing, "hello"], b"");
        assert_eq!(outcome.code, Some(1), "{framing}: {outcome:?}");
    }
}

#[test]
fn a_reset_is_called_so() {
    let (address, _) = tcp_session(|mut stream| {
        stream.read_exact(&mut [0; 6]).unwrap();
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let outcome = run(&["send", &address, "hello"], b"");
    let sentence =
        format!("evecho: {address} reset the connection after 6 bytes were sent and 0 came back\n");
    assert_eq!((outcome.code, outcome.stderr), (Some(1), sentence));
}

#[test]
fn a_timeout_without_end_is_no_panic() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let server = Server::evecho(&[]);
        let mut config = Config::new(server.address.parse().unwrap());
        config.transport = transport;
        config.timeout = Duration::MAX;
        let path = scratch(&format!("without-end-{transport:?}"));
        let output = File::create(&path).unwrap();
        let messages = Input::<File>::Messages(vec![b"hello".to_vec()]);
        send::run(&config, messages, output, &Cancel::default(), |_| {}).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello\n");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_server_that_breaks_off_has_its_last_words_printed() {
    let (address, _) = tcp_session(|mut stream| {
        let mut some = [0; 1000];
        stream.read_exact(&mut some).unwrap();
        stream.write_all(&some).unwrap();
        // Closed with bytes unread: the client is told by RST.
    });
    let bytes = noise(50_000_000);
    let outcome = run(&["send", &address, "--raw"], &bytes);
    assert_eq!(outcome.code, Some(1));
    assert!(bytes.starts_with(&outcome.stdout), "{} bytes", outcome.stdout.len());
    let came = format!("and {} came back\n", outcome.stdout.len());
    assert!(outcome.stderr.ends_with(&came), "{}", outcome.stderr);
}

#[test]
fn a_server_that_sends_too_much_is_told_in_bytes() {
    let (address, _) = tcp_session(|mut stream| {
        let bytes = read_to_end(&stream);
        stream.write_all(&[&bytes[..], &bytes[..]].concat()).unwrap();
    });
    let outcome = run(&["send", &address, "--raw"], b"twice");
    assert_eq!((outcome.code, outcome.text()), (Some(1), "twicetwice"));
    let counts = "after 5 bytes were sent and 10 came back\n";
    assert!(outcome.stderr.ends_with(counts), "{}", outcome.stderr);
}

#[test]
fn a_server_that_answers_nothing_ends_after_the_timeout() {
    let (address, server) = tcp_session(|stream| read_to_end(&stream));
    let outcome = run(&["send", &address, "-t", "50ms", "hello"], b"");
    assert_eq!((outcome.code, outcome.text()), (Some(1), ""));
    let sentence = format!(
        "evecho: {address} did nothing for 50 ms after 6 bytes were sent and 0 came back; does it \
         frame messages in another way, or need a longer timeout?\n"
    );
    assert_eq!(outcome.stderr, sentence);
    assert_eq!(server.join().unwrap(), b"hello\n");
}

#[test]
fn a_server_that_takes_nothing_ends_after_the_timeout() {
    // Accepted by the kernel, and never read.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let outcome = run(&["send", &address, "-t", "50ms", "--raw"], &noise(50_000_000));
    assert_eq!((outcome.code, outcome.text()), (Some(1), ""));
    assert!(outcome.stderr.contains("did nothing for 50 ms"), "{}", outcome.stderr);
}

#[test]
fn a_server_that_leaves_its_side_open_is_told_and_forgiven() {
    let (address, server) = tcp_session(|mut stream| {
        let bytes = read_to_end(&stream);
        stream.write_all(&bytes).unwrap();
        // Until the client goes away.
        read_to_end(&stream);
        stream
    });
    let outcome = run(&["send", &address, "-t", "1s", "--raw"], b"hello");
    assert_eq!((outcome.code, outcome.text()), (Some(0), "hello"));
    assert!(outcome.stderr.contains("did not close the connection"), "{}", outcome.stderr);
    server.join().unwrap();
}

#[test]
fn an_output_that_nobody_reads_is_a_clean_end() {
    let (address, _) = tcp_session(echo);
    let mut child = tool::spawn(evecho(&["send", &address, "--raw"]));
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let writer = thread::spawn(move || while input.write_all(&noise(60_000)).is_ok() {});
    output.read_exact(&mut [0; 10]).unwrap();
    drop(output);
    let outcome = finish(child);
    writer.join().unwrap();
    assert_eq!((outcome.code, &*outcome.stderr), (Some(0), ""));
}

#[test]
fn an_output_that_nobody_reads_is_noticed_while_nothing_happens() {
    for mode in ["--raw", "--framing=lines"] {
        let (address, _) = tcp_session(echo);
        let mut child = tool::spawn(evecho(&["send", &address, mode]));
        let input = child.stdin.take().unwrap();
        drop(child.stdout.take());
        assert_eq!(finish(child).code, Some(0));
        drop(input);
    }
}

#[test]
fn a_server_that_closes_while_nothing_happens_ends_it() {
    let (address, _) = tcp_session(|stream| stream.shutdown(Shutdown::Both).unwrap());
    let mut child = tool::spawn(evecho(&["send", &address]));
    let input = child.stdin.take().unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.code, Some(1));
    let counts = "closed the connection after 0 bytes were sent and 0 came back\n";
    assert!(outcome.stderr.ends_with(counts), "{}", outcome.stderr);
    drop(input);
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
        let outcome = run(&["send", target, "--timeout", "200ms", "hello"], b"");
        assert_eq!((outcome.code, outcome.text()), (Some(1), ""));
        assert!(outcome.stderr.starts_with("evecho: "), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    for args in [
        &["send"][..],
        &["send", "localhost:7", "--raw", "hello"],
        &["send", "localhost:7", "--udp", "--framing", "lines"],
        &["send", "localhost:7", "--timeout", "0"],
        &["send", "localhost:7", "--timeout", "3 apples"],
    ] {
        tool::assert_wrong_usage(args);
    }
}

#[test]
fn each_datagram_is_answered_by_itself() {
    let address = udp_double(|socket, _, bytes, from| {
        socket.send_to(bytes, from).unwrap();
        // A second time, which is not the reply to the next.
        socket.send_to(bytes, from).unwrap();
    });
    let outcome = run(&["send", "--udp", &address], b"one\n\nthree");
    assert_eq!((outcome.code, outcome.text()), (Some(0), "one\n\nthree\n"), "{outcome:?}");
}

#[test]
fn a_lost_datagram_is_told_and_its_late_reply_is_not_the_next_ones() {
    let mut first = None;
    let address = udp_double(move |socket, number, bytes, from| {
        if number == 0 {
            first = Some((bytes.to_vec(), from));
            return;
        }
        if let Some((bytes, from)) = first.take() {
            socket.send_to(&bytes, from).unwrap();
        }
        socket.send_to(bytes, from).unwrap();
    });
    let outcome = run(&["send", "--udp", &address, "-t", "1s", "one", "two", "three"], b"");
    assert_eq!((outcome.code, outcome.text()), (Some(1), "two\nthree\n"));
    assert_eq!(outcome.stderr, "evecho: message 1: no reply within 1 s\n");
}

#[test]
fn raw_input_is_one_datagram() {
    let address = udp_double(|socket, _, bytes, from| {
        socket.send_to(bytes, from).unwrap();
    });
    let largest = noise(65_507);
    let outcome = run(&["send", "--udp", "--raw", &address], &largest);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout == largest);
    let outcome = run(&["send", "--udp", "--raw", &address], &noise(65_508));
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("at most 65507 bytes"), "{}", outcome.stderr);
}

#[test]
fn a_datagram_that_nobody_takes_is_refused() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    // Connected to itself, it takes from nobody else, and the system refuses on its behalf.
    let address = socket.local_addr().unwrap();
    socket.connect(address).unwrap();
    let outcome = run(&["send", "--udp", &address.to_string(), "hello"], b"");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("nothing listens on that UDP port"), "{}", outcome.stderr);
}

#[test]
fn our_own_server_echoes_in_every_way() {
    let bytes = noise(3_000_000);
    for framing in ["raw", "lines", "length"] {
        let server = Server::evecho(&["--framing", framing]);
        let outcome = run(&["send", &server.address, "-f", framing], b"one\n\nthree");
        assert_eq!((outcome.code, outcome.text()), (Some(0), "one\n\nthree\n"), "{framing}");
    }
    let server = Server::evecho(&[]);
    let outcome = run(&["send", &server.address, "--raw"], &bytes);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout == bytes);
    let outcome = run(&["send", &server.address, "--udp", "hello", ""], b"");
    assert_eq!((outcome.code, outcome.text()), (Some(0), "hello\n\n"), "{outcome:?}");
}

#[test]
fn socat_echoes() {
    let tcp = Server::socat("TCP4-LISTEN:0,bind=127.0.0.1,fork", "EXEC:cat");
    let Some(server) = tcp else { return };
    let bytes = noise(3_000_000);
    let outcome = run(&["send", &server.address, "--raw"], &bytes);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout == bytes);
    for framing in ["raw", "lines", "length"] {
        let outcome = run(&["send", &server.address, "-f", framing], b"one\n\nthree");
        assert_eq!((outcome.code, outcome.text()), (Some(0), "one\n\nthree\n"), "{outcome:?}");
    }
}

#[test]
fn a_server_of_a_few_lines_of_python_echoes() {
    let tcp = "import socket, sys
server = socket.create_server(('127.0.0.1', 0))
print('listening on 127.0.0.1:%d' % server.getsockname()[1], file=sys.stderr)
while True:
    client = server.accept()[0]
    while data := client.recv(4096): client.sendall(data)
    client.close()";
    let udp = "import socket, sys
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(('127.0.0.1', 0))
print('listening on 127.0.0.1:%d' % server.getsockname()[1], file=sys.stderr)
while True: server.sendto(*server.recvfrom(65536))";
    let Some(server) = Server::python(tcp) else { return };
    let bytes = noise(3_000_000);
    let outcome = run(&["send", &server.address, "--raw"], &bytes);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout == bytes);
    let outcome = run(&["send", &server.address, "one", "two"], b"");
    assert_eq!((outcome.code, outcome.text()), (Some(0), "one\ntwo\n"), "{outcome:?}");
    let Some(server) = Server::python(udp) else { return };
    let outcome = run(&["send", &server.address, "--udp", "one", "two"], b"");
    assert_eq!((outcome.code, outcome.text()), (Some(0), "one\ntwo\n"), "{outcome:?}");
}

/// Sends this input from a thread, without end unless it is cancelled.
fn cancellable(
    transport: Transport,
    address: &str,
    input: &[u8],
) -> (Cancel, thread::JoinHandle<send::Tally>, PipeWriter) {
    let mut config = Config::new(address.parse().unwrap());
    config.transport = transport;
    config.timeout = Duration::from_secs(3600);
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(input).unwrap();
    let cancel = Cancel::default();
    let given = cancel.clone();
    let run = thread::spawn(move || {
        let (_reader, output) = pipe().unwrap();
        send::run(&config, Input::Lines(reader), output, &given, |_| {}).unwrap()
    });
    (cancel, run, writer)
}

#[test]
fn a_run_can_be_cancelled_while_it_waits_for_a_reply() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let (sender, came) = mpsc::channel();
        let address = match transport {
            Transport::Udp => udp_double(move |_, _, _, _| sender.send(()).unwrap()),
            Transport::Tcp => {
                let serve = move |mut stream: TcpStream| {
                    stream.read_exact(&mut [0; 6]).unwrap();
                    sender.send(()).unwrap();
                    read_to_end(&stream)
                };
                tcp_session(serve).0
            }
        };
        let (cancel, run, _writer) = cancellable(transport, &address, b"hello\n");
        came.recv_timeout(tool::DEADLINE).unwrap();
        cancel.cancel();
        let tally = run.join().unwrap();
        assert!(tally.cancelled && tally.lost == 0 && tally.received == 0, "{tally:?}");
    }
}

#[test]
fn a_run_can_be_cancelled_while_it_waits_for_input() {
    let (open, _server) = tcp_session(|stream| read_to_end(&stream));
    let silent = udp_double(|_, _, _, _| ());
    for (transport, address) in [(Transport::Tcp, open), (Transport::Udp, silent)] {
        let (cancel, run, _writer) = cancellable(transport, &address, b"hel");
        cancel.cancel();
        let tally = run.join().unwrap();
        assert!(tally.cancelled && tally.sent == 0, "{transport:?}: {tally:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_may_not_be_sent_is_not_blamed_on_the_server() {
    let server = Server::evecho(&[]);
    let refused = ("sendto", None, nix::errno::Errno::EPERM);
    let Some(mut command) = sandbox::refusing(&[refused]) else { return };
    command.args(["send", &server.address, "hello", "--timeout", "100ms"]);
    let outcome = finish(tool::spawn(command));
    assert_eq!(outcome.code, Some(1));
    let parts = [" failed after 0 bytes were sent and 0 came back", "Operation not permitted"];
    assert!(parts.iter().all(|part| outcome.stderr.contains(part)), "{outcome:?}");
}
