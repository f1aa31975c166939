//! `evecho merge`: reports of runs at the same time and at others, in whatever text they stand.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/tool.rs"]
mod tool;

use std::net::TcpListener;
use std::path::PathBuf;
use std::thread;

use serde_json::{Value, json};
use tool::{Outcome, run};

const SECOND: u64 = 1_000_000_000;
/// When the runs of these tests began.
const START: u64 = 1_700_000_000 * SECOND;

fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
    }
}

/// A report as `evecho load` prints it.
fn report() -> Value {
    let (address, _echo) = tool::tcp_double(echo);
    let outcome = run(&["load", &address, "-c", "1", "-n", "10", "--json"], b"");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    serde_json::from_slice(&outcome.stdout).unwrap()
}

/// The report of a run at 1,000 messages a second that began, and lasted, these seconds.
fn at(start: u64, seconds: u64) -> Value {
    let mut report = report();
    report["messages"] = json!(1_000 * seconds);
    report["bytes"] = json!(64_000 * seconds);
    report["rate"] = json!(1_000.0);
    report["duration_ns"] = json!(seconds * SECOND);
    report["config"]["length"] = json!({ "time_ns": seconds * SECOND });
    report["runs"][0]["start_ns"] = json!(START + start * SECOND);
    report["runs"][0]["duration_ns"] = json!(seconds * SECOND);
    report
}

fn file(name: &str, bytes: impl AsRef<[u8]>) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

fn merge(reports: &[&Value]) -> Outcome {
    let lines: String = reports.iter().map(|report| format!("{report}\n")).collect();
    run(&["merge", "-"], lines.as_bytes())
}

#[test]
fn a_report_says_when_where_and_with_what_it_was_made() {
    let before = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let report = report();
    let after = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let part = &report["runs"][0];
    let start = part["start_ns"].as_u64().unwrap();
    assert!((before..=after).contains(&start), "{before} {start} {after}");
    assert_eq!(part["duration_ns"], report["duration_ns"]);
    let host = nix::unistd::gethostname().unwrap();
    assert_eq!(part["host"], host.to_str().unwrap());
    assert_eq!(part["version"], env!("CARGO_PKG_VERSION"));
    let text = merge(&[&at(0, 1)]).text().to_owned();
    let when = "measured     2023-11-14T22:13:20Z to 2023-11-14T22:13:21Z on ";
    assert!(text.contains(when) && text.contains(", with evecho 0."), "{text}");
}

#[test]
fn rates_are_over_the_time_in_which_runs_went_on() {
    let apart = "The runs were not all at the same time";
    for (runs, line, connections, is_apart) in [
        (
            [(0, 4), (0, 4)],
            "8,000 in 4.00s: 2,000/s, 125 KiB/s (1.02 Mbit/s)",
            "2 connections",
            false,
        ),
        (
            [(0, 4), (1, 1)],
            "5,000 in 4.00s: 1,250/s, 78.1 KiB/s (640 kbit/s)",
            "2 connections",
            false,
        ),
        (
            [(0, 4), (4, 1)],
            "5,000 in 5.00s: 1,000/s, 62.5 KiB/s (512 kbit/s)",
            "1 connection",
            true,
        ),
        (
            [(900, 1), (0, 4)],
            "5,000 in 5.00s: 1,000/s, 62.5 KiB/s (512 kbit/s)",
            "1 connection",
            true,
        ),
    ] {
        let [one, mut two] = runs.map(|(start, seconds)| at(start, seconds));
        two["runs"][0]["host"] = json!("two");
        let outcome = merge(&[&one, &two]);
        let text = outcome.text();
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(text.starts_with("2 runs: "), "{text}");
        assert!(text.contains(&format!("messages     {line} each way")), "{text}");
        assert!(text.contains(&format!(": {connections}, ")), "{text}");
        assert_eq!(text.contains(apart), is_apart, "{text}");
    }
}

#[test]
fn a_run_counts_once() {
    let (one, two) = (at(0, 1), at(0, 1));
    // Those two differ in nothing but where they were.
    let mut other = two.clone();
    other["runs"][0]["host"] = json!("elsewhere");
    assert_eq!(merge(&[&one, &other]).code, Some(0));
    let [one, two] =
        [("one.json", &one), ("two.json", &two)].map(|(name, v)| file(name, v.to_string()));
    let sum = run(&["merge", &one, "--json"], b"");
    let sum = file("sum.json", [b"a line before it\n", &sum.stdout[..]].concat());
    for (files, named) in [([&one, &two], &two), ([&one, &one], &one), ([&sum, &one], &one)] {
        let outcome = run(&["merge", files[0], files[1]], b"");
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let error = outcome.stderr;
        assert!(error.contains(&format!("{named}, line 1: a run on ")), "{error}");
        assert!(error.contains("would count twice"), "{error}");
    }
}

/// A text in UTF-16, by what makes bytes of a unit.
fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(bytes).collect()
}

#[test]
fn a_report_is_found_in_what_is_made_of_it() {
    let report = at(0, 1);
    let pretty = serde_json::to_string_pretty(&report).unwrap();
    let marked = format!("\u{feff}a warning {{\r\n{report}\r\n");
    for (name, text) in [
        (
            "a warning before it",
            format!("evecho: {{warning}} of \"event\"\n{report}\n").into_bytes(),
        ),
        ("no line end", report.to_string().into_bytes()),
        ("--prefix", format!("[pod/evecho-load-x7f2q/evecho] {report}\n").into_bytes()),
        ("--timestamps", format!("2026-11-30T06:27:00.123456789Z {report}\n").into_bytes()),
        (
            "both, and intervals",
            format!(
                "[pod/a/evecho] 2026-11-30T06:27:00Z {{\"event\":\"interval\",\"messages\":1}}\n\
                 [pod/a/evecho] 2026-11-30T06:27:00Z {report}\n"
            )
            .into_bytes(),
        ),
        ("compose", format!("evecho-1  | {report}\n").into_bytes()),
        ("jq", pretty.into_bytes()),
        ("UTF-8 with a mark, CRLF", marked.clone().into_bytes()),
        ("PowerShell", utf16(&marked, u16::to_le_bytes)),
        ("PowerShell, big-endian", utf16(&marked, u16::to_be_bytes)),
        ("another encoding", [b"\xe9\xff\n", report.to_string().as_bytes()].concat()),
    ] {
        let outcome = run(&["merge", "-"], &text);
        assert_eq!(outcome.code, Some(0), "{name}: {outcome:?}");
        assert!(outcome.text().contains("messages     1,000 in 1.00s"), "{name}: {outcome:?}");
    }
}

#[test]
fn a_report_that_is_cut_off_is_named_with_its_file_and_line() {
    let (whole, cut) = (at(0, 1).to_string(), at(5, 1).to_string());
    let cut = &cut[..cut.len() / 2];
    let mut without = at(5, 1);
    without.as_object_mut().unwrap().remove("errors");
    for (name, text, line) in [
        ("at the end", format!("{whole}\n{cut}"), 2),
        ("before another", format!("a warning\n{cut}\n{whole}\n"), 2),
        ("with a prefix", format!("[pod/a/b] {cut}\n[pod/b/c] {whole}\n"), 1),
        ("without a part", format!("\n\n{without}\n"), 3),
    ] {
        let file = file("cut.json", text);
        let outcome = run(&["merge", &file], b"");
        assert_eq!(outcome.code, Some(1), "{name}: {outcome:?}");
        let start = format!("evecho: {file}, line {line}: a report that is ");
        assert!(outcome.stderr.starts_with(&start), "{name}: {outcome:?}");
        assert!(outcome.stdout.is_empty(), "{name}: {outcome:?}");
    }
}

#[test]
fn what_has_no_report_is_named() {
    let (empty, lines) = (file("empty.json", ""), file("lines.json", "nothing {here}\n"));
    for (arguments, sentence) in [
        (&[&empty[..]][..], format!("{empty} has no report of 'evecho load --json'")),
        (&[&lines], format!("{lines} has no report of 'evecho load --json'")),
        (&["-"], "standard input has no report of 'evecho load --json'".to_owned()),
        (&["/nowhere"], "cannot read /nowhere: No such file".to_owned()),
    ] {
        let outcome = run(&[&["merge"], arguments].concat(), b"");
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.starts_with(&format!("evecho: {sentence}")), "{outcome:?}");
    }
}
