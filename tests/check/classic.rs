//! The servers of courses get the verdicts that they deserve, for the reasons that they give.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use evecho::client::check::{Outcome, Subject};
use serde_json::Value;

use super::{evecho, grade, grade_within, programs};

/// A case, how it ends, and a part of what is said then.
type End = (&'static str, &'static str, &'static str);

const DECODES: &str = "UnicodeDecodeError";
const SEVERAL: &str = "needs a server that serves several clients at once";

/// Grades a program in Python. What a busy machine does not let come so far gets more time.
#[allow(clippy::print_stderr, reason = "a test that cannot run says so")]
fn assert_ends(program: &str, flags: &[&str], ends: &[End]) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("not tested: python3 cannot be started");
        return;
    }
    let number = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = format!("{}/course-{}-{}.py", env!("CARGO_TARGET_TMPDIR"), number.0, number.1);
    fs::write(&path, program).unwrap();
    let command = format!("python3 -u '{path}' {{port}}");
    let only = ends.iter().map(|end| end.0).collect::<Vec<_>>().join(",");
    let check = ["check", "--format", "json", "--start", &command, "--only", &only];
    let wrong = [5, 10, 20, 40].iter().map_while(|seconds| {
        let patience = ["--timeout", &format!("{seconds}s")];
        let (output, text) = evecho(&[&check[..], &patience, flags].concat());
        let report: Result<Value, _> = serde_json::from_str(&text);
        let report = report.unwrap_or_else(|_| panic!("{program}: {output:?}"));
        let cases = report["cases"].as_array().unwrap();
        cases.iter().find(|case| !ends_so(case, ends)).cloned()
    });
    let wrong: Vec<Value> = wrong.collect();
    fs::remove_file(&path).unwrap();
    assert!(wrong.len() < 4, "{program}: {:#}", wrong[3]);
}

fn ends_so(case: &Value, ends: &[End]) -> bool {
    let (_, outcome, said) = ends.iter().find(|end| case["name"] == end.0).unwrap();
    case["outcome"] == *outcome && case.to_string().contains(said)
}

#[test]
fn one_client_at_a_time_and_all_is_text() {
    let ends = &[
        ("tcp-bytes", "failed", DECODES),
        ("tcp-split", "passed", "Nagle's algorithm"),
        ("tcp-half-close", "passed", ""),
        ("tcp-half-close-empty", "passed", ""),
        ("tcp-idle-peer", "failed", "it stopped answering after 0 B of 1000 B"),
        ("tcp-reset", "failed", "ConnectionResetError"),
        ("udp-sizes", "skipped", "no UDP: "),
        ("process-idle-cpu", "skipped", SEVERAL),
        ("process-reset", "skipped", SEVERAL),
        ("process-threads", "passed", ""),
        ("process-exhaustion", "skipped", SEVERAL),
    ];
    assert_ends(&programs::decoding("16", programs::ECHO), &[], ends);
}

#[test]
fn a_thread_for_each_client() {
    let ends = &[
        ("tcp-bytes", "passed", ""),
        ("tcp-split", "passed", ""),
        ("tcp-idle-peer", "passed", ""),
        ("tcp-never-reader", "passed", ""),
        ("process-idle-cpu", "passed", ""),
        ("process-threads", "passed", ""),
        ("process-sigterm", "failed", "signal: 15"),
    ];
    assert_ends(&programs::threaded(), &[], ends);
}

#[test]
fn datagrams() {
    let ends = &[
        ("udp-sizes", "passed", ""),
        ("udp-large", "failed", "a datagram of 2048 bytes came instead of 4096"),
        ("udp-bytes", "passed", ""),
        ("udp-gone-peers", "passed", ""),
        ("process-idle-cpu", "passed", ""),
        ("process-sigterm", "failed", "signal: 15"),
    ];
    assert_ends(&programs::udp("data"), &[], ends);
    let ends = &[("udp-bytes", "failed", DECODES), ("udp-empty", "passed", "")];
    assert_ends(&programs::udp("data.decode().upper().encode()"), &["--upper"], ends);
}

#[test]
fn upper_case() {
    let upper = programs::decoding("1024", programs::UPPER);
    let ends =
        &[("tcp-bytes", "failed", "byte 97 came back as 0x41 instead of 0x61, in upper case")];
    assert_ends(&upper, &[], ends);
    let ends = &[
        ("tcp-bytes", "failed", DECODES),
        ("upper-text", "passed", ""),
        ("upper-invalid", "failed", DECODES),
    ];
    assert_ends(&upper, &["--upper"], ends);
}

#[test]
fn one_message_for_each_connection() {
    let once = programs::once("data");
    let ends = &[
        ("tcp-split", "failed", "the connection goes on after its first message"),
        ("process-idle-cpu", "failed", "each is answered again after that"),
    ];
    assert_ends(&once, &[], ends);
    let ends = &[
        ("tcp-bytes", "passed", ""),
        ("tcp-split", "skipped", "beyond its first message"),
        ("tcp-idle-peer", "failed", "it stopped answering after 0 B of 1000 B"),
        ("tcp-churn", "passed", ""),
        ("process-descriptors", "passed", ""),
    ];
    assert_ends(&once, &["--once"], ends);
}

/// A server with a thread for each client, which serves it as long as it says so.
fn server(serve: impl Fn(&mut TcpStream) -> bool + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || while serve(&mut stream) {});
        }
    });
    address
}

/// Reads and writes this many bytes.
fn echo(stream: &mut TcpStream, most: usize) -> bool {
    let mut buffer = vec![0; most];
    let length = stream.read(&mut buffer).unwrap_or(0);
    length > 0 && stream.write_all(&buffer[..length]).is_ok()
}

#[test]
fn what_nagle_and_delayed_acknowledgements_cost_is_named() {
    for (most, no_delay, held) in [
        (16, false, Some("the answer to 100 B is written in parts")),
        (1_024, false, Some("the answer to 3.91 KiB is written in parts")),
        (16, true, None),
        (1 << 16, false, None),
    ] {
        let address = server(move |stream| {
            stream.set_nodelay(no_delay).unwrap();
            echo(stream, most)
        });
        let is_so = || {
            let report = grade(Subject::Address(address.into()), false, "tcp-split", &[]);
            let case = &report.cases[0];
            assert_eq!(case.outcome, Outcome::Passed);
            let said = case.remark.as_deref().map(|remark| &remark[..remark.find(',').unwrap()]);
            println!("{most} {no_delay}: {said:?}");
            said == held
        };
        // A busy machine holds parts back, too.
        assert!((0..5).any(|_| is_so()), "{most} {no_delay}: not {held:?}");
    }
    let address = server(|stream| echo(stream, 16)).to_string();
    for (format, line) in [("text", "       remark:   the answer"), ("tap", "# remark: the answer")]
    {
        let (output, text) =
            evecho(&["check", &address, "--only", "tcp-split", "--format", format]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text.lines().any(|text| text.starts_with(line)), "{text}");
    }
}

#[test]
fn a_server_that_is_slow_has_not_stopped() {
    let address = server(|stream| {
        thread::sleep(Duration::from_millis(1));
        echo(stream, 1)
    });
    let slow = |seconds: &u64| {
        let subject = Subject::Address(address.into());
        let timeout = Duration::from_secs(*seconds);
        let report = grade_within(timeout, subject, false, "tcp-sizes", &[]).unwrap();
        match &report.cases[0].outcome {
            Outcome::NotGraded { reason } => {
                assert!(reason.starts_with("the time was over after "), "{reason}");
                reason.contains(" of 1.43 KiB had come back")
            }
            // The machine may have been busy with something else.
            outcome => {
                println!("{outcome:?}");
                false
            }
        }
    };
    assert!([1, 2, 4, 8, 16, 32].iter().any(slow));
}

/// What a case tells of a server that echoes is not told of another.
#[test]
fn what_does_not_echo_is_blamed_for_that_alone() {
    let lines = programs::tcp("[c.sendall(line) for line in c.makefile('rb')]; c.close()");
    let ends = &[
        ("tcp-bytes", "failed", "the values of ASCII, 0 to 127, come back"),
        ("tcp-half-close-empty", "passed", ""),
        ("tcp-idle-peer", "skipped", "needs a server that answers a client: it stopped"),
        ("process-threads", "skipped", "needs a server that answers a client: it stopped"),
        ("process-sigterm", "skipped", "needs a server that answers a client: it stopped"),
    ];
    assert_ends(&lines, &[], ends);
}

/// What is started has to have what the cases need, and no more.
#[test]
fn a_start_waits_for_what_the_cases_need() {
    let command =
        |only: &str| format!("'{}' {only} --port {{port}} --quiet", env!("CARGO_BIN_EXE_evecho"));
    let check = |server: &str, only: &str, patience: &str| {
        let start = command(server);
        evecho(&["check", "--start", &start, "--only", only, "--timeout", patience])
    };
    for (server, only, passed) in [
        ("--udp-only", "udp-sizes,udp-empty", 2),
        ("--udp-only", "process-sigterm", 1),
        ("--udp-only", "udp-sizes,process-sigterm", 2),
        ("--udp-only", "udp-sizes,tcp-bytes", 1),
        ("--tcp-only", "tcp-bytes", 1),
        ("--tcp-only", "tcp-bytes,process-sigterm", 2),
        ("--tcp-only", "udp-sizes,process-sigterm", 1),
        ("", "udp-beside-tcp,tcp-bytes,udp-sizes", 3),
    ] {
        let (output, text) = check(server, only, "60s");
        assert_eq!(output.status.code(), Some(0), "{server} {only}: {output:?}");
        assert!(
            text.contains(&format!(": {passed} passed, 0 failed, ")),
            "{server} {only}: {text}"
        );
    }
    for (server, only, lacks) in
        [("--udp-only", "tcp-bytes", "TCP"), ("--tcp-only", "udp-sizes,udp-empty", "UDP")]
    {
        let (output, _) = check(server, only, "1s");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(&format!(" does not listen over {lacks} on ")), "{error}");
    }
}

#[test]
fn a_server_that_runs_is_asked_for_what_the_cases_need() {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        // Nothing accepts there, so a connection is seen. The port may be another's.
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
            break (udp, tcp);
        }
    };
    let address = udp.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&buffer[..length], from);
        }
    });
    let report = grade(Subject::Address(address.into()), false, "udp-sizes", &[]);
    assert_eq!((report.passed, report.tcp, report.udp), (1, false, true));
    tcp.set_nonblocking(true).unwrap();
    assert!(tcp.accept().is_err());
    let address = server(|stream| echo(stream, 1 << 16));
    let report = grade(Subject::Address(address.into()), false, "tcp-bytes", &[]);
    assert_eq!((report.passed, report.tcp, report.udp), (1, true, false));
}
