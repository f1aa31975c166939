//! What all commands have in common: outputs that nobody reads.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "common/tool.rs"]
mod tool;

use tool::{Server, evecho, finish};

#[test]
fn every_command_ends_quietly_when_nobody_reads_on() {
    let server = Server::evecho(&[]);
    for args in [
        &["send", &server.address, "hello"][..],
        &["ping", &server.address, "-c", "1"],
        &["load", &server.address, "-n", "10", "-c", "1"],
        &["load", &server.address, "-n", "10", "-c", "1", "--json"],
        &["check", &server.address, "--only", "tcp-half-close"],
        &["check", &server.address, "--only", "tcp-half-close", "--format", "tap"],
        &["check", &server.address, "--only", "tcp-half-close", "--format", "json"],
        &["check", "--list"],
        &["compare", "--rounds", "1", "-t", "10ms", "-c", "1", "--no-scenes"],
        &["--help"],
        &["load", "--help"],
        &["--version"],
    ] {
        let mut child = tool::spawn(evecho(args));
        drop(child.stdout.take());
        let outcome = finish(child);
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.contains("evecho: "), "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn a_complaint_that_nobody_reads_changes_no_exit_code() {
    let (_refusing, refused) = tool::refused_port();
    for args in [&["send", &refused, "hello"][..], &["load", &refused, "-n", "1"]] {
        let mut child = tool::spawn(evecho(args));
        drop(child.stderr.take());
        assert_eq!(finish(child).code, Some(1), "{args:?}");
    }
}
