//! `benches/peers/measure`: the table of evecho beside other servers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

const EVECHO: &str = env!("CARGO_BIN_EXE_evecho");

/// One short round with these servers, each evecho with flags of its own.
fn measure(test: &str, peers: &[(&str, &str)]) -> Output {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    for (name, flags) in peers {
        let path = directory.join(name);
        let serve = format!("exec '{EVECHO}' --port \"$1\" --bind 127.0.0.1 --quiet {flags}");
        fs::write(&path, format!("#!/bin/sh\n{serve}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/measure"))
        .args(["--rounds", "1", "--time", "200ms"])
        .env("ROWS", "TCP, 16 in flight")
        .env("EVECHO", EVECHO)
        .env("PEERS", &directory)
        .output()
        .unwrap()
}

#[test]
fn a_row_has_what_the_c_loop_does_and_the_ratios_of_the_others() {
    let output = measure("peers", &[("c_loop", ""), ("threads", "--design threaded")]);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    let (heading, row) = table.split_once("\n|---|---|---|---|\n").unwrap();
    assert_eq!(heading, "| | C loop: messages/s; median | evecho | threads |");
    let cells: Vec<&str> = row.trim_end_matches(" |\n").split(" | ").collect();
    assert_eq!((cells.len(), cells[0]), (4, "| TCP, 16 in flight: 50 connections"), "{row}");
    assert!(cells[1].ends_with(" µs") || cells[1].ends_with(" ms"), "{row}");
    assert!(cells[2..].iter().all(|ratios| ratios.contains(" ± 0 %; ")), "{row}");
}

#[test]
fn a_server_that_echoes_wrongly_fails() {
    let output = measure("peers-wrong", &[("c_loop", ""), ("wrong", "--service upper")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.ends_with(" | fails |\n") && table.contains(" ± 0 %; "), "{table}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("\nwrong, TCP, 16 in flight: 50 connections: "), "{said}");
}
