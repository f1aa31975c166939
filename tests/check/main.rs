//! `evecho check` against a double that keeps all rules, and against ones that break one each:
//! that case fails, for the right reason, and the others of its group pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod classic;
mod double;
#[path = "../common/network.rs"]
mod network;
#[path = "../common/programs.rs"]
mod programs;
#[cfg(target_os = "linux")]
#[path = "../common/sandbox.rs"]
mod sandbox;
#[path = "../common/tool.rs"]
mod tool;

use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;
use std::{io, iter};

use evecho::client::Cancel;
use evecho::client::check::{self, Config, Expected, Outcome, Report, Subject};
use evecho::client::process::ServerCommand;

use self::double::{Double, Fault};
use self::tool::{dead_host, refused_port};

/// A safety net only.
const LONG: Duration = Duration::from_secs(120);

/// For a case that is to fail, by waiting for what never comes. One that a busy machine does not let
/// come so far fails for another reason, and gets twice the time.
const SHORT: Duration = Duration::from_secs(2);

/// A fault, the case that finds it, and a part of what that case has seen.
type Row = (Fault, &'static str, &'static str);

const TCP: &[Row] = &[
    (Fault::SwapsTwo, "tcp-sizes", "byte 0 came back as"),
    (Fault::DropsNuls, "tcp-bytes", "byte 0 came back as 0x01 instead of 0x00"),
    (Fault::MangleSingles, "tcp-split", "byte 0 came back as"),
    (Fault::ResetsAtEnd, "tcp-half-close", "reset"),
    (Fault::KeepsEmptyOpen, "tcp-half-close-empty", "it kept the connection open"),
    (Fault::DropsForTheLate, "tcp-late-reader", "came back as"),
    (Fault::AcceptsOneByOne, "tcp-idle-peer", "stopped answering after 0 B"),
    (Fault::WritesOneByOne, "tcp-never-reader", "stopped answering after 0 B"),
    (Fault::DiesOfResets, "tcp-reset", "it closed the connection after 0 B"),
    (Fault::Counts, "tcp-churn", "after 0 B"),
    (Fault::TooFew, "tcp-many", "after 0 B"),
    (Fault::Starves, "tcp-fair", ", longest "),
    (Fault::WrongOnIpv6, "tcp-both-families", "byte 0 came back as"),
];

const UDP: &[Row] = &[
    (Fault::Cuts512, "udp-sizes", "511 bytes came instead of 512"),
    (Fault::SmallBuffer, "udp-large", "2048 bytes came instead of 4096"),
    (Fault::SkipsEmpty, "udp-empty", "0 bytes were sent and no datagram came back"),
    (Fault::CutsAtNul, "udp-bytes", "0 bytes came instead of 128"),
    (Fault::OtherPort, "udp-reply-port", "it came from port"),
    (Fault::OtherAddress, "udp-reply-address", "answered from 127.0.0.1"),
    (Fault::AnswersTwice, "udp-burst", "answered twice"),
    (Fault::StarvesDatagrams, "udp-beside-tcp", "one was answered after "),
    (Fault::NoUdpOnIpv6, "udp-both-families", "has no UDP socket"),
    (Fault::DiesOfRefusal, "udp-gone-peers", "no datagram came back"),
];

const PROCESS: &[Row] = &[
    (Fault::Hoards, "process-memory", "were taken, and memory grew by"),
    (Fault::SpinsIdle, "process-idle-cpu", "% of a CPU"),
    (Fault::SpinsBlocked, "process-blocked-cpu", "% of a CPU"),
    (Fault::KeepsThreads, "process-threads", "before, "),
    (Fault::KeepsDescriptors, "process-descriptors", "before, "),
    (Fault::KeepsReset, "process-reset", "before, "),
    (Fault::StopsAccepting, "process-exhaustion", "clients were left waiting"),
    (Fault::SpinsAccepting, "process-exhaustion", "% of a CPU"),
    (Fault::DiesAtLimit, "process-exhaustion", "turned away unanswered"),
    (Fault::NoHandler, "process-sigterm", "signal: 15"),
    (Fault::ExitsWith1, "process-sigterm", "exit status: 1"),
];

const LOOP: &[Row] = &[
    (Fault::AnswersItself, "loop-self", "it had answered itself"),
    (Fault::DiesOfPortZero, "loop-port-zero", "no datagram came back"),
    (Fault::AnswersEchoPorts, "loop-echo-port", "was answered"),
    (Fault::AnswersBroadcasts, "loop-broadcast", "was answered by 127.0.0.1:"),
];

const UPPER: &[Row] = &[
    (Fault::KeepsSharpS, "upper-text", "came back as"),
    (Fault::NoCarry, "upper-split", "came back"),
    (Fault::Replaces, "upper-invalid", "0x3f instead of 0xff"),
    (Fault::DropsCutEnd, "upper-end", "closed the connection after 4 B of 6 B"),
    (Fault::CarriesOn, "upper-udp", "bytes came instead of"),
];

/// The double as a process of its own: this program again, told so by its environment.
#[test]
fn as_double() {
    let Ok(port) = std::env::var("DOUBLE_PORT") else { return };
    let fault = Fault::by_name(&std::env::var("DOUBLE_FAULT").unwrap());
    let upper = std::env::var("DOUBLE_UPPER").unwrap() == "true";
    Double::main(fault, upper, port.parse().unwrap());
}

fn command(fault: Fault, upper: bool) -> String {
    let program = std::env::current_exe().unwrap();
    format!(
        "env DOUBLE_PORT={{port}} DOUBLE_FAULT={fault:?} DOUBLE_UPPER={upper} '{}' --exact as_double \
         --nocapture",
        program.display()
    )
}

fn in_process(fault: Fault, upper: bool) -> Subject {
    Subject::Address(Double::start(fault, upper).into())
}

fn started(fault: Fault, upper: bool) -> Subject {
    Subject::Command(command(fault, upper).parse::<ServerCommand>().unwrap())
}

fn grade(subject: Subject, upper: bool, only: &str, skip: &[&str]) -> Report {
    grade_within(LONG, subject, upper, only, skip).unwrap()
}

fn grade_within(
    timeout: Duration,
    subject: Subject,
    upper: bool,
    only: &str,
    skip: &[&str],
) -> Result<Report, check::Error> {
    let mut config = Config::new(subject);
    config.service = if upper { Expected::Upper } else { Expected::Echo };
    config.only = vec![only.parse().unwrap()];
    config.skip = skip.iter().map(|name| name.parse().unwrap()).collect();
    config.timeout = timeout;
    check::run(&config, &Cancel::default(), |_| {})
}

/// Floods would measure one another: they are left to their own faults and to the correct double.
const FLOODS: [&str; 2] = ["tcp-fair", "udp-beside-tcp"];

/// Runs each row's double through its group, all rows at once.
fn each_fails_its_case_alone(rows: &[Row], upper: bool, subject: fn(Fault, bool) -> Subject) {
    thread::scope(|scope| {
        let rows = rows.iter().map(|row| (row, scope.spawn(|| fails_alone(row, upper, subject))));
        for (row, thread) in rows.collect::<Vec<_>>() {
            assert!(thread.join().is_ok(), "{row:?}");
        }
    });
}

fn fails_alone(row: &Row, upper: bool, subject: fn(Fault, bool) -> Subject) {
    let &(fault, name, _) = row;
    let group = &name[..=name.find('-').unwrap()];
    thread::scope(|scope| {
        scope.spawn(|| {
            let others = [&[name], &FLOODS[..]].concat();
            assert_kept(&grade(subject(fault, upper), upper, group, &others), row);
        });
        let mut timeout = timeout_of(fault);
        while let Err(found) = fails(row, upper, subject(fault, upper), timeout) {
            assert!(timeout < LONG, "{row:?}: {found}");
            timeout *= 2;
        }
    });
}

/// Has the row's case fail as it should, or says what came of it in this time.
fn fails(row: &Row, upper: bool, subject: Subject, timeout: Duration) -> Result<(), String> {
    let &(_, name, seen) = row;
    let longer: Vec<_> = check::cases().filter(|case| case.name.starts_with(name)).collect();
    let longer: Vec<_> = longer.iter().skip(1).map(|case| case.name).collect();
    let report = grade_within(timeout, subject, upper, name, &longer);
    let report = report.map_err(|error| error.to_string())?;
    let [case] = &report.cases[..] else { panic!("{name} is one case") };
    match &case.outcome {
        Outcome::Passed => panic!("{row:?}: it passed"),
        Outcome::Failed { seen: found, .. } if found.contains(seen) => Ok(()),
        Outcome::Skipped { reason } if may_be_skipped(case.name) => {
            println!("{name} was skipped: {reason}");
            Ok(())
        }
        outcome => Err(format!("{outcome:?}")),
    }
}

/// Some faults show only as something that never comes.
fn timeout_of(fault: Fault) -> Duration {
    match fault {
        Fault::KeepsEmptyOpen
        | Fault::AcceptsOneByOne
        | Fault::WritesOneByOne
        | Fault::SkipsEmpty
        | Fault::DiesOfRefusal
        | Fault::DiesOfPortZero => SHORT,
        // These have to be under way before they wait.
        Fault::StopsAccepting
        | Fault::KeepsThreads
        | Fault::KeepsDescriptors
        | Fault::KeepsReset => 2 * SHORT,
        _ => LONG,
    }
}

fn assert_kept(report: &Report, row: &Row) {
    for case in &report.cases {
        match &case.outcome {
            Outcome::Passed => {}
            Outcome::Skipped { .. } if may_be_skipped(case.name) => {}
            outcome => panic!("{row:?}: {}: {outcome:?}", case.name),
        }
    }
}

/// What depends on the rights of the user, on what the machine has, and on the system.
fn may_be_skipped(case: &str) -> bool {
    case.starts_with("loop-")
        || case.ends_with("-both-families")
        || case.starts_with("process-") && cfg!(not(target_os = "linux"))
}

#[test]
fn each_fault_over_tcp_fails_its_case_alone() {
    each_fails_its_case_alone(TCP, false, in_process);
}

#[cfg(target_os = "linux")]
#[test]
fn each_fault_over_udp_fails_its_case_alone() {
    each_fails_its_case_alone(UDP, false, in_process);
}

#[cfg(target_os = "linux")]
#[test]
fn each_fault_of_a_process_fails_its_case_alone() {
    each_fails_its_case_alone(PROCESS, false, started);
}

#[test]
fn each_answer_too_many_fails_its_case_alone() {
    each_fails_its_case_alone(LOOP, false, started);
}

#[test]
fn each_fault_of_the_upper_case_service_fails_its_case_alone() {
    each_fails_its_case_alone(UPPER, true, in_process);
}

#[test]
fn every_case_has_a_fault_that_it_finds() {
    let rows = [TCP, UDP, PROCESS, LOOP, UPPER].concat();
    for case in check::cases() {
        assert!(rows.iter().any(|&(_, name, _)| name == case.name), "{}", case.name);
    }
}

fn evecho(arguments: &[&str]) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evecho"));
    command.args(arguments);
    if arguments.len() > 1 && !arguments.contains(&"--timeout") {
        // A machine that stands still for a while makes no answer late.
        command.args(["--timeout", "120s"]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

/// A server that keeps all rules. What mostly waits is graded beside the rest.
fn passes_all(command: &str) {
    thread::scope(|scope| {
        scope.spawn(|| passes(command, &["--only", "process,loop"]));
        passes(command, &["--skip", "process,loop"]);
    });
}

/// A server that keeps these rules, graded as a user does it.
fn passes(command: &str, more: &[&str]) {
    let (output, text) = evecho(
        &[&["check", "--format", "json", "--timeout", "60s", "--start", command], more].concat(),
    );
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    for case in report["cases"].as_array().unwrap() {
        let (name, outcome) = (case["name"].as_str().unwrap(), case["outcome"].as_str().unwrap());
        assert!(outcome == "passed" || outcome == "skipped" && may_be_skipped(name), "{case:#}");
    }
    assert_eq!(report["failed"], 0);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_correct_server_passes_all() {
    passes_all(&command(Fault::None, false));
}

#[test]
fn a_correct_upper_case_server_passes() {
    passes(&command(Fault::None, true), &["--upper", "--only", "upper,tcp-bytes,udp-bytes"]);
}

fn design(name: &str) -> String {
    format!("'{}' --design {name} --port {{port}}", env!("CARGO_BIN_EXE_evecho"))
}

#[test]
fn the_event_loop_passes_all() {
    passes_all(&design("event-loop"));
}

#[test]
fn the_threaded_design_passes_all() {
    passes_all(&design("threaded"));
}

/// All that one client can ask: with a second one beside it, the design ends.
#[test]
fn the_iterative_design_passes_what_one_client_can_ask() {
    let one_client = "tcp-sizes,tcp-bytes,tcp-split,tcp-half-close,tcp-late-reader,tcp-churn,\
                      udp-sizes,udp-large,udp-empty,udp-bytes,udp-reply,udp-burst,udp-gone,\
                      process-sigterm,loop";
    passes(&design("iterative"), &["--only", one_client]);
}

#[test]
fn evecho_passes_in_upper_case() {
    let evecho = env!("CARGO_BIN_EXE_evecho");
    passes(
        &format!("'{evecho}' --port {{port}} --service upper"),
        &["--upper", "--only", "upper,tcp-bytes,udp-bytes"],
    );
}

#[test]
fn a_server_that_a_case_ends_is_started_again_for_the_next() {
    let report = grade(started(Fault::DiesOfNuls, false), false, "tcp", &FLOODS);
    for case in &report.cases {
        match (&case.outcome, case.name) {
            (Outcome::Failed { seen, .. }, "tcp-bytes") => {
                assert!(seen.contains("it ended (exit status: 3)"), "{seen}");
                assert!(seen.ends_with("said: a NUL came"), "{seen}");
            }
            (Outcome::Passed, name) if name != "tcp-bytes" => {}
            _ if may_be_skipped(case.name) => {}
            (outcome, name) => panic!("{name}: {outcome:?}"),
        }
    }
}

#[test]
fn failures_are_printed_for_people_and_set_the_exit_code() {
    let server = Double::start(Fault::SmallBuffer, false).to_string();
    let (output, text) =
        evecho(&["check", &server, "--only", "udp-large,udp-empty", "--skip", "udp-z"]);
    assert_eq!(output.status.code(), Some(2), "udp-z is no case");
    assert!(text.is_empty());
    let (output, text) = evecho(&["check", &server, "--only", "udp-large,udp-e*"]);
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "UDP", "no colour where there is no terminal");
    assert!(lines[1].starts_with("  FAIL udp-large "), "{text}");
    assert_eq!(lines[2], "       expected: a datagram of 4096 bytes comes back as it was sent");
    assert_eq!(lines[3], "       seen:     a datagram of 2048 bytes came instead of 4096");
    assert!(lines[4].starts_with("       source:   RFC 862"), "{text}");
    assert!(lines[5].starts_with("  pass udp-empty "), "{text}");
    assert!(lines[7].starts_with(&format!("{server}: 1 passed, 1 failed, 0 skipped (")), "{text}");
}

#[test]
fn tap_has_a_plan_and_says_why() {
    let server = Double::start(Fault::SmallBuffer, false).to_string();
    let (output, text) = evecho(&[
        "check",
        &server,
        "--format",
        "tap",
        "--only",
        "udp-large,udp-empty,process-sigterm",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let expected = "TAP version 13\n1..3\nnot ok 1 - udp-large\n  ---\n  rule: \"a datagram of up to \
                    65,507 bytes is answered whole, never cut\"\n  source: \"RFC 862, UDP Based Echo \
                    Service; RFC 768, Length; RFC 1122 section 3.3.2\"\n  expected: \"a datagram of \
                    4096 bytes comes back as it was sent\"\n  seen: \"a datagram of 2048 bytes came \
                    instead of 4096\"\n  ...\nok 2 - udp-empty\nok 3 - process-sigterm # SKIP needs a \
                    server of its own, which was not asked for\n";
    assert_eq!(text, expected);
}

/// Debian 12's does not know version 14, and reads keys of one word.
#[test]
fn prove_reads_every_outcome() {
    let prove = |server: &str, only: &str| {
        let grade = format!("{} check --format tap --only {only}", env!("CARGO_BIN_EXE_evecho"));
        let output = Command::new("prove").args(["--verbose", "--exec", &grade, server]).output();
        let output = output.ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Some((output.status.success(), text + &String::from_utf8_lossy(&output.stderr)))
    };
    let server = Double::start(Fault::SmallBuffer, false).to_string();
    let Some((passed, text)) = prove(&server, "udp-empty,process-sigterm") else {
        println!("not tested: prove is not installed");
        return;
    };
    assert!(passed && text.ends_with("Result: PASS\n"), "{text}");
    let (passed, text) = prove(&server, "udp-large").unwrap();
    assert!(!passed && text.contains("Failed 1/1 subtests"), "{text}");
    assert!(!text.contains("Parse errors"), "{text}");
    let (passed, text) = prove(&serves_one_connection(), "tcp-sizes,tcp-bytes").unwrap();
    assert!(!passed && text.contains("Failed 2/2 subtests"), "{text}");
    assert!(!text.contains("Parse errors"), "{text}");
    // All is skipped, and nothing answers.
    let (_refusing, refused) = refused_port();
    for (server, only) in [(&server, "process"), (&refused, "tcp-bytes")] {
        let (passed, text) = prove(server, only).unwrap();
        assert!(!passed && text.contains("Further testing stopped: "), "{text}");
    }
}

#[test]
fn what_cannot_be_graded_bails_out_with_the_reason() {
    let (_refusing, refused) = refused_port();
    let (output, text) = evecho(&["check", &refused, "--format", "tap", "--only", "tcp-bytes"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    let reason = error.strip_prefix("evecho: ").unwrap();
    assert_eq!(text, format!("TAP version 13\n1..1\nBail out! {reason}"));
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_not_there_is_skipped_with_the_reason() {
    let server = Double::start(Fault::None, false).to_string();
    let (output, text) =
        evecho(&["check", &server, "--tcp-only", "--only", "udp-sizes,process-memory,tcp-bytes"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("skip udp-sizes            no UDP: not asked for"), "{text}");
    assert!(text.contains("needs the server's process, which is not known"), "{text}");
    assert!(text.contains(": 1 passed, 0 failed, 2 skipped"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_process_of_this_machine_is_looked_at() {
    // The double lives in this very process, whose other tests use CPU: how the case ends is open.
    let server = Double::start(Fault::None, false).to_string();
    let pid = std::process::id().to_string();
    let (_, text) =
        evecho(&["check", &server, "--pid", &pid, "--only", "process-idle,process-sig"]);
    assert!(!text.contains("--pid"), "{text}");
    assert!(text.contains("skip process-sigterm      needs a server of its own"), "{text}");
}

#[test]
fn nothing_graded_is_no_success() {
    let server = Double::start(Fault::None, false).to_string();
    let (output, text) = evecho(&["check", &server, "--tcp-only", "--only", "udp"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(": 0 passed, 0 failed, "), "{text}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("evecho: nothing was graded: "), "{error}");
}

/// A server that serves one connection, and then no other.
fn serves_one_connection() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        // The first is the probe.
        let _probe = listener.accept().unwrap();
        let mut stream = listener.accept().unwrap().0;
        tool::close(listener);
        let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    });
    address
}

#[test]
fn a_server_that_is_gone_is_told_once() {
    let address = serves_one_connection();
    let (output, text) = evecho(&["check", &address, "--only", "tcp,udp-sizes"]);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let reason = "nothing listens over TCP any more since tcp-sizes";
    assert!(text.contains(&format!("tcp-bytes            not graded: {reason}")), "{text}");
    assert_eq!(text.matches(reason).count(), 1, "{text}");
    let tcp = check::cases().filter(|case| case.name.starts_with("tcp")).count();
    let summary = format!(": 0 passed, 1 failed, 1 skipped, {} not graded", tcp - 1);
    assert!(text.contains(&summary), "{text}");
}

/// A server that ends with the client that looks whether it listens: no other gets into its queue.
#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stderr, reason = "it is what the server says")]
fn as_one_that_leaves() {
    use std::io::Read;
    use std::net::SocketAddr;
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use socket2::{Domain, SockFilter, Socket, Type};

    let Ok(port) = std::env::var("LEAVES_AT") else { return };
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap())).into()).unwrap();
    listener.listen(0).unwrap();
    let mut watched = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut watched, PollTimeout::NONE).unwrap();
    // The queue is full. When its only client has left it, what else arrives is dropped (BPF_RET: 0 bytes are kept).
    listener.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
    let (mut first, _) = listener.accept().unwrap();
    drop(listener);
    let _ = first.read(&mut [0]);
    eprintln!("enough");
    std::process::exit(7);
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_that_ends_before_the_first_case_is_told_once() {
    let program = std::env::current_exe().unwrap();
    let server = format!(
        "env LEAVES_AT={{port}} '{}' --exact as_one_that_leaves --nocapture",
        program.display()
    );
    let (output, text) = evecho(&["check", "--start", &server, "--tcp-only"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.as_str()), (Some(1), ""), "{error}");
    let how =
        "ended after its first client, which was there to see whether it listens (exit status: 7)";
    assert!(error.contains(how) && error.ends_with("; it said: enough\n"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_server_that_answers_once_gets_the_cases_that_apply_to_it() {
    let server = format!("'{}' --once --port {{port}}", env!("CARGO_BIN_EXE_evecho"));
    let (output, text) = evecho(&["check", "--once", "--timeout", "60s", "--start", &server]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("pass tcp-churn") && text.contains("pass udp-sizes"), "{text}");
    let skipped =
        "skip tcp-sizes            needs a connection that lasts beyond its first message";
    assert!(text.contains(skipped), "{text}");
}

#[test]
fn no_patience_is_too_long() {
    let server = Double::start(Fault::None, false).to_string();
    let (output, text) =
        evecho(&["check", &server, "--only", "tcp-bytes", "--timeout", "18446744073709551615s"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
}

#[test]
fn the_list_has_every_case_with_its_source() {
    let (output, text) = evecho(&["check", "--list"]);
    assert_eq!(output.status.code(), Some(0));
    for case in check::cases() {
        assert!(text.contains(case.name) && text.contains(case.rule), "{}", case.name);
        assert!(!case.source.is_empty() && text.contains(case.source), "{}", case.name);
    }
    let (_, text) = evecho(&["check", "--list", "--only", "upper", "--skip", "upper-udp"]);
    assert!(text.contains("upper-text") && !text.contains("upper-udp") && !text.contains("tcp-"));
}

#[test]
fn wrong_use_ends_with_2_and_a_dead_server_with_1() {
    for wrong in [
        &["check"][..],
        &["check", "localhost:"],
        &["check", "localhost:7", "--only", "nonsense"],
        &["check", "localhost:7", "--tcp-only", "--udp-only"],
        &["check", "localhost:7", "--timeout", "0"],
        &["check", "localhost:7", "--start", "server {port}"],
        &["check", "--start", "server"],
        &["check", "--pid", "1"],
    ] {
        let (output, text) = evecho(wrong);
        assert_eq!((output.status.code(), text.as_str()), (Some(2), ""), "{wrong:?}");
    }
    let (_refusing, unused) = refused_port();
    for (dead, why) in [
        (&["check", &*unused][..], "refused the connection"),
        (&["check", "--start", "false {port}"], "ended before it listened (exit status: 1)"),
        (&["check", "--start", "/nowhere {port}"], "cannot run '/nowhere'"),
    ] {
        let (output, text) = evecho(dead);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.as_str()), (Some(1), ""), "{dead:?}: {error}");
        assert!(error.starts_with("evecho: ") && error.contains(why), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

/// A sandbox may have none.
#[cfg(target_os = "linux")]
#[test]
fn without_proc_all_is_graded_but_what_a_process_uses() {
    let Some(mut command) = sandbox::without_proc() else { return };
    let server = format!("'{}' --port {{port}} --bind 127.0.0.1", env!("CARGO_BIN_EXE_evecho"));
    command.args(["check", "--start", &server, "--format", "json", "--timeout", "120s", "--only"]);
    command.arg("tcp-bytes,udp-bytes,process-memory,process-exhaustion,process-sigterm");
    let output = command.output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let cases = report["cases"].as_array().unwrap();
    let outcomes: Vec<_> = cases.iter().map(|case| case["outcome"].as_str().unwrap()).collect();
    let expected = ["passed", "passed", "skipped", "skipped", "passed"];
    assert_eq!((outcomes, output.status.code()), (expected.to_vec(), Some(0)), "{report:#}");
}

/// As one that sudo(8) runs.
#[cfg(target_os = "linux")]
#[test]
fn a_server_that_may_not_be_ended_is_not_waited_for() {
    let file = |name: &str| format!("{}/unkillable.{name}", env!("CARGO_TARGET_TMPDIR"));
    let (program, number) = (file("py"), file("pid"));
    let tells = format!("import os; open('{number}', 'w').write(str(os.getpid()))\n");
    std::fs::write(&program, tells + &programs::tcp("echo(c)")).unwrap();
    let refused = ("kill", None, nix::errno::Errno::EPERM);
    let Some(mut command) = sandbox::refusing(&[refused]) else { return };
    let server = format!("python3 '{program}' {{port}}");
    command.args(["check", "--start", &server, "--only", "tcp-bytes"]);
    let outcome = tool::finish(tool::spawn(command));
    let server = std::fs::read_to_string(number).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

/// What keeps a server from being reached is told apart, over both transports.
#[test]
fn what_is_not_reached_is_not_said_to_be_absent() {
    let routes = "ip link set lo up && ip route add unreachable 192.0.2.1 && \
                  ip route add blackhole 192.0.2.2 && ip route add prohibit 192.0.2.3";
    network::in_network("what_is_not_reached_is_not_said_to_be_absent", routes, || {
        let (_dead, _backlog, dead) = dead_host();
        let (_refusing, refused) = refused_port();
        let no_port = "nothing listens on that UDP port (ICMP port unreachable)";
        let unreachable = "192.0.2.1:7 cannot be reached from here; check the address";
        let nowhere = "192.0.2.2:7 cannot be reached from here; check the address";
        let forbidden = "192.0.2.3:7 cannot be reached: this machine forbids it";
        for (server, flag, why) in [
            (
                &*refused,
                "-4",
                format!("{refused} refused the connection, {refused}: {no_port}; is "),
            ),
            (
                &refused,
                "--tcp-only",
                format!("{refused} refused the connection; is a server running"),
            ),
            (&refused, "--udp-only", format!("{refused}: {no_port}; is a server running")),
            (&dead, "--tcp-only", format!("{dead} did not answer within 50 ms; ")),
            ("192.0.2.1:7", "-4", unreachable.to_owned()),
            ("192.0.2.1:7", "--udp-only", unreachable.to_owned()),
            ("192.0.2.2:7", "-4", nowhere.to_owned()),
            ("192.0.2.3:7", "-4", forbidden.to_owned()),
            ("192.0.2.4:7", "-4", "192.0.2.4:7 cannot be reached from here".to_owned()),
            ("[fe80::1]:7", "-6", "[fe80::1]:7 needs its interface, as in fe80::1%eth0".to_owned()),
            ("name.invalid:7", "-4", "cannot resolve 'name.invalid': ".to_owned()),
        ] {
            let (output, text) = evecho(&["check", server, flag, "--timeout", "50ms"]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), &*text), (Some(1), ""), "{server}: {error}");
            assert!(error.starts_with(&format!("evecho: {why}")), "{server} {flag}: {error}");
        }
    });
}

#[test]
fn why_a_transport_is_not_graded_is_said() {
    let for_both = |port: (_, String)| UdpSocket::bind(&port.1).ok().map(|udp| (port, udp));
    let ((_refusing, refused), udp) = iter::repeat_with(refused_port).find_map(for_both).unwrap();
    let only = "tcp-bytes,udp-sizes";
    let (_, text) = evecho(&["check", &refused, "--only", only, "--timeout", "1s"]);
    assert!(text.contains(&format!("no TCP: {refused} refused the connection")), "{text}");
    drop(udp);
    let server = Double::start(Fault::None, false).to_string();
    let (_, text) = evecho(&["check", &server, "--only", "udp-bytes", "--tcp-only"]);
    assert!(text.contains("no UDP: not asked for"), "{text}");
}
