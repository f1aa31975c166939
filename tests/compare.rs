//! `evecho compare`: every server has its row, whatever it does, and none is left behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use common::{children, lives, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The servers that are compared: this program again, with what to do in the environment.
#[test]
fn as_server() {
    let Ok(port) = std::env::var("PORT_OF_TEST_SERVER") else { return };
    let wrong = std::env::var("DOES").unwrap();
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    for stream in listener.incoming() {
        let (mut stream, wrong) = (stream.unwrap(), wrong.clone());
        thread::spawn(move || {
            let mut room = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut room) {
                match wrong.as_str() {
                    "die" => std::process::exit(3),
                    "lie" => room[0] ^= 1,
                    _ => {}
                }
                stream.write_all(&room[..length]).unwrap();
            }
        });
    }
}

/// A `--peer` that does what is asked.
fn peer(name: &str, does: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let program = program.display();
    format!("{name}=env DOES={does} PORT_OF_TEST_SERVER={{port}} '{program}' --exact as_server")
}

fn compare(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evecho"));
    command.arg("compare").args(flags).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The line of a server under a trial.
fn row<'a>(table: &'a str, trial: &str, server: &str) -> &'a str {
    let mut lines = table.lines().skip_while(|line| *line != trial).skip(1);
    let row = lines.find(|line| line.split_whitespace().next() == Some(server));
    row.unwrap_or_else(|| panic!("no row of {server} under '{trial}':\n{table}"))
}

#[test]
fn every_server_has_its_row_and_its_numbers() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compare");
    let _ = fs::remove_dir_all(&directory);
    let good = peer("good", "echo");
    let flags = ["-r", "1", "-t", "30ms", "-c", "1,3", "--peer", &good, "-o"];
    let output = compare(&flags).arg(&directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = text(&output);
    for server in ["event-loop", "threaded", "good"] {
        for trial in [
            "1 connection",
            "3 connections",
            "one slow client before 100 others",
            "one client among 1000 idle ones",
            "10 clients, each message a connection",
        ] {
            assert!(row(&table, trial, server).contains('±'), "{table}");
        }
    }
    let iterative = |trial| row(&table, trial, "iterative");
    assert!(iterative("1 connection").contains('±'));
    assert!(iterative("3 connections").ends_with("answers 1 of 3 connections, the others wait"));
    assert!(iterative("one slow client before 100 others").contains("answers none of 100"));
    assert!(iterative("one client among 1000 idle ones").contains("answers 1 of 1000"));
    assert!(iterative("10 clients, each message a connection").contains('±'));

    let read = |name| fs::read_to_string(directory.join(name)).unwrap();
    let svg = read("compare.svg");
    for part in ["prefers-color-scheme:dark", "Messages per second", "connections", ">good<"] {
        assert!(svg.contains(part), "{part} is not in the figure");
    }
    // A line for each of 4 servers under 5 trials, measured or not.
    assert_eq!(read("compare.csv").lines().count(), 1 + 4 * 5);
    let json: serde_json::Value = serde_json::from_str(&read("compare.json")).unwrap();
    assert!(json["machine"]["kernel"].as_str().unwrap().starts_with("Linux "));
    assert_eq!(json["command"][1], "compare");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    // What each was told, and what it is, where that is known.
    let event_loop = &json["servers"][0];
    assert!(event_loop["command"].as_str().unwrap().ends_with("--design event-loop"));
    assert_eq!(event_loop["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["servers"][3]["version"].is_null());
    let threaded = json["cells"].as_array().unwrap().iter().find(|cell| {
        cell["server"] == "threaded" && cell["trial"] == "idle" && cell["connections"] == 1000
    });
    let rounds = threaded.unwrap()["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 1);
    // A thread for each client, and three more.
    assert_eq!(rounds[0]["threads"], 1004.0);
}

#[test]
fn who_fails_is_named_and_the_rest_goes_on() {
    let (dies, lies, good) = (peer("dies", "die"), peer("lies", "lie"), peer("good", "echo"));
    let output = compare(&["-r", "1", "-t", "30ms", "-c", "1,2", "--no-scenes"])
        .args(["--design", "event-loop", "--peer", &dies, "--peer", &lies, "--peer", &good])
        .args(["--peer", "absent=/nowhere/server {port}"])
        .output()
        .unwrap();
    // Three of them were never measured.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let table = text(&output);
    for trial in ["1 connection", "2 connections"] {
        let dies = row(&table, trial, "dies");
        assert!(dies.contains("died (exit status: 3)"), "{dies}");
        let lies = row(&table, trial, "lies");
        assert!(lies.contains("fails:"), "{lies}");
        let absent = row(&table, trial, "absent");
        assert!(absent.contains("cannot run '/nowhere/server'"), "{absent}");
        for name in ["event-loop", "good"] {
            assert!(row(&table, trial, name).contains('±'), "{table}");
        }
    }
}

/// A comparison that would take minutes, and the server that it is at.
fn under_way() -> (Child, Vec<u32>) {
    let good = peer("good", "echo");
    let flags = ["-t", "1m", "-c", "1", "--design", "threaded", "--no-scenes", "--peer", &good];
    let tool = compare(&flags).spawn().unwrap();
    wait_until("it has a server", || !children(tool.id()).is_empty());
    let servers = children(tool.id());
    (tool, servers)
}

#[test]
fn killed_half_way_it_leaves_no_server_behind() {
    let (mut tool, servers) = under_way();
    tool.kill().unwrap();
    tool.wait().unwrap();
    wait_until("its servers end", || !servers.iter().any(|&pid| lives(pid)));
}

#[test]
fn interrupted_it_prints_what_it_has_and_leaves_no_server_behind() {
    let (mut tool, servers) = under_way();
    let mut progress = BufReader::new(tool.stderr.take().unwrap()).lines();
    assert!(progress.next().unwrap().unwrap().starts_with("round 1"));
    kill(Pid::from_raw(tool.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = tool.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not measured") && text(&output).contains("Stopped early"));
    assert!(!servers.iter().any(|&pid| lives(pid)));
}

#[test]
fn what_cannot_be_compared_is_one_sentence() {
    let cases: [(&[&str], &str); 5] = [
        (&["--peer", "no-command"], "NAME="),
        (&["--peer", "name=server 7"], "{port}"),
        (&["--peer", "threaded=server {port}"], "two servers are called 'threaded'"),
        (&["-c", "0"], "0 is not in"),
        (&["-o", "/proc/nowhere"], "cannot write into '/proc/nowhere'"),
    ];
    for (flags, sentence) in cases {
        let output = compare(flags).output().unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(sentence), "{flags:?}: {error}");
        assert!(output.stdout.is_empty());
    }
}
