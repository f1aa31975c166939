//! How the source is divided: which part may import which.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// The files below a folder of `src`, or the one file, with their text.
fn sources(path: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut left = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let text = fs::read_to_string(&path).unwrap();
            files.push((path, text));
        }
    }
    assert!(!files.is_empty(), "no source in {path}");
    files
}

/// No code of these files has one of the paths. Comments may.
#[track_caller]
fn do_not_know(files: &[&str], paths: &[&str]) {
    for (file, text) in files.iter().flat_map(|path| sources(path)) {
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for path in paths {
                assert!(!line.contains(path), "{} has {path}: {line}", file.display());
            }
        }
    }
}

#[test]
fn the_designs_are_siblings() {
    let event_loop = ["event_loop::", "connections::", "busy_poll::"];
    do_not_know(&["server/blocking", "server/threaded.rs", "server/iterative.rs"], &event_loop);
    do_not_know(&["server/threaded.rs"], &["iterative::"]);
    do_not_know(&["server/iterative.rs"], &["threaded::"]);
    let blocking = ["blocking::", "threaded::", "iterative::"];
    do_not_know(&["server/blocking"], &blocking[1..]);
    do_not_know(&["server/event_loop.rs", "server/connections.rs"], &blocking);
    // What is below all of them.
    let below =
        ["admission.rs", "connection.rs", "control.rs", "guard.rs", "monitor", "peer.rs", "udp"];
    let below = below.map(|name| format!("server/{name}"));
    do_not_know(&below.each_ref().map(String::as_str), &[&event_loop[..], &blocking].concat());
}

#[test]
fn the_server_knows_neither_the_clients_nor_the_command_line() {
    let below = ["server", "protocol", "sys", "config.rs", "error.rs", "stats.rs", "address.rs"];
    do_not_know(&below, &["crate::client", "crate::cli::", "clap::", "env_logger::"]);
    do_not_know(&["client"], &["crate::cli::", "crate::server", "clap::", "env_logger::"]);
}

/// A program that embeds the library has fields, not flags. In comments too, since they are its documentation.
#[test]
fn only_the_command_line_speaks_of_flags() {
    let library =
        sources("").into_iter().filter(|(path, _)| !path.to_string_lossy().contains("/cli/"));
    for (path, text) in library {
        for line in text.lines() {
            let mut words = line.split("--").skip(1);
            let flag = words.any(|rest| rest.starts_with(|next: char| next.is_ascii_lowercase()));
            assert!(!flag, "{} speaks of a flag: {line}", path.display());
        }
    }
}
