//! `evecho check` against a double that keeps all rules, and against ones that break one each:
//! that case fails, for the right reason, and the others of its group pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod double;

use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use evecho::client::check::{self, CASES, CaseReport, Config, Outcome, Report, Service, Subject};
use evecho::client::process::ServerCommand;

use self::double::{Double, Fault};

/// A safety net only.
const LONG: Duration = Duration::from_secs(60);

/// For a case that is to fail, by waiting for what never comes.
const SHORT: Duration = Duration::from_millis(500);

/// A fault, the case that finds it, and a part of what that case has seen.
type Row = (Fault, &'static str, &'static str);

const TCP: &[Row] = &[
    (Fault::SwapsTwo, "tcp-sizes", "byte 0 came back as"),
    (Fault::DropsNuls, "tcp-bytes", "byte 0 came back as 0x01 instead of 0x00"),
    (Fault::MangleSingles, "tcp-split", "byte 0 came back as"),
    (Fault::ResetsAtEnd, "tcp-half-close", "reset"),
    (Fault::KeepsEmptyOpen, "tcp-half-close-empty", "it kept the connection open"),
    (Fault::DropsForTheLate, "tcp-late-reader", "came back as"),
    (Fault::AcceptsOneByOne, "tcp-idle-peer", "stopped answering after 0 bytes"),
    (Fault::WritesOneByOne, "tcp-never-reader", "stopped answering after 0 bytes"),
    (Fault::DiesOfResets, "tcp-reset", "it closed the connection after 0 bytes"),
    (Fault::Counts, "tcp-churn", "after 0 bytes"),
    (Fault::TooFew, "tcp-many", "after 0 bytes"),
    (Fault::Starves, "tcp-fair", "longest 1."),
    (Fault::WrongOnIpv6, "tcp-both-families", "byte 0 came back as"),
];

const UDP: &[Row] = &[
    (Fault::Cuts512, "udp-sizes", "511 bytes came instead of 512"),
    (Fault::SmallBuffer, "udp-large", "2048 bytes came instead of 4096"),
    (Fault::SkipsEmpty, "udp-empty", "0 bytes were sent and no datagram came back"),
    (Fault::CutsAtNul, "udp-bytes", "0 bytes came instead of 256"),
    (Fault::OtherPort, "udp-reply-port", "it came from port"),
    (Fault::OtherAddress, "udp-reply-address", "answered from 127.0.0.1"),
    (Fault::AnswersTwice, "udp-burst", "answered twice"),
    (Fault::StarvesDatagrams, "udp-beside-tcp", "answered after 1."),
    (Fault::NoUdpOnIpv6, "udp-both-families", "has no UDP socket"),
    (Fault::DiesOfRefusal, "udp-gone-peers", "no datagram came back"),
];

const PROCESS: &[Row] = &[
    (Fault::Hoards, "process-memory", "64.0 MiB were taken, and memory grew by"),
    (Fault::SpinsIdle, "process-idle-cpu", "% of a CPU"),
    (Fault::SpinsBlocked, "process-blocked-cpu", "% of a CPU"),
    (Fault::KeepsThreads, "process-threads", "before, "),
    (Fault::KeepsDescriptors, "process-descriptors", "before, "),
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
];

const UPPER: &[Row] = &[
    (Fault::KeepsSharpS, "upper-text", "came back as"),
    (Fault::NoCarry, "upper-split", "came back"),
    (Fault::Replaces, "upper-invalid", "0x3f instead of 0xff"),
    (Fault::DropsCutEnd, "upper-end", "closed the connection after 4 bytes of 6 bytes"),
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

fn grade(subject: Subject, upper: bool, only: &str, skip: &[&str], timeout: Duration) -> Report {
    let config = Config {
        service: if upper { Service::Upper } else { Service::Echo },
        only: vec![only.to_owned()],
        skip: skip.iter().map(|&name| name.to_owned()).collect(),
        timeout,
        supervisor: PathBuf::from(env!("CARGO_BIN_EXE_evecho")),
        ..Config::new(subject)
    };
    check::run(&config, |_, _| {}).unwrap()
}

/// Floods measure, and would measure one another.
const FLOODS: [&str; 2] = ["tcp-fair", "udp-beside-tcp"];
static FLOOD: Mutex<()> = Mutex::new(());

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
    let &(fault, name, seen) = row;
    let group = &name[..=name.find('-').unwrap()];
    let longer: Vec<_> = CASES.iter().filter(|case| case.name.starts_with(name)).collect();
    let longer: Vec<_> = longer.iter().skip(1).map(|case| case.name).collect();
    let alone = || grade(subject(fault, upper), upper, name, &longer, timeout_of(fault));
    let report = if FLOODS.contains(&name) {
        let _one_at_a_time = FLOOD.lock().unwrap();
        alone()
    } else {
        alone()
    };
    let [case] = &report.cases[..] else { panic!("{name} is one case") };
    match &case.outcome {
        Outcome::Failed { seen: found, .. } => assert!(found.contains(seen), "{row:?}: {found}"),
        Outcome::Skipped { reason } if may_be_skipped(case) => {
            return println!("{name} was skipped: {reason}");
        }
        outcome => panic!("{row:?}: {outcome:?}"),
    }
    let others = grade(subject(fault, upper), upper, group, &[&[name], &FLOODS[..]].concat(), LONG);
    assert_kept(&others, row);
    if let Some(flood) = FLOODS.iter().find(|flood| flood.starts_with(group) && **flood != name) {
        let _one_at_a_time = FLOOD.lock().unwrap();
        assert_kept(&grade(subject(fault, upper), upper, flood, &[], LONG), row);
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
        Fault::StopsAccepting | Fault::KeepsThreads | Fault::KeepsDescriptors => 4 * SHORT,
        _ => LONG,
    }
}

fn assert_kept(report: &Report, row: &Row) {
    for case in &report.cases {
        match &case.outcome {
            Outcome::Passed => {}
            Outcome::Skipped { .. } if may_be_skipped(case) => {}
            outcome => panic!("{row:?}: {}: {outcome:?}", case.name),
        }
    }
}

/// What depends on the rights of the user and on what the machine has.
fn may_be_skipped(case: &CaseReport) -> bool {
    case.name.starts_with("loop-") || case.name.ends_with("-both-families")
}

#[test]
fn each_fault_over_tcp_fails_its_case_alone() {
    each_fails_its_case_alone(TCP, false, in_process);
}

#[test]
fn each_fault_over_udp_fails_its_case_alone() {
    each_fails_its_case_alone(UDP, false, in_process);
}

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
    for case in CASES {
        assert!(rows.iter().any(|&(_, name, _)| name == case.name), "{}", case.name);
    }
}
