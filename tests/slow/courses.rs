//! The classic programs of courses, which decode what they read: what `load`, `ping`, `send` and `compare` say of them.

use std::fs;
use std::path::Path;

use crate::programs::{self, ECHO, UPPER, decoding, tcp, udp};
use crate::tool::{Outcome, Server, beside, run};

/// A thread for each client, which decodes what it reads.
fn threaded() -> String {
    tcp("
    def talk(c):
        while data := c.recv(1024).decode(): c.sendall(data.encode())
        c.close()
    s.listen(100)
    threading.Thread(target=talk, args=(c,), daemon=True).start()")
}

const TEXT: &str = "data.decode().encode()";
const UPPER_TEXT: &str = "data.decode().upper().encode()";

/// Runs a command, in which `@` stands for the server's address, and asserts its exit code and parts of what it says.
#[track_caller]
fn assert_says(server: &Server, command: &str, code: i32, parts: &[&str]) -> Outcome {
    let words: Vec<String> =
        command.split(' ').map(|word| word.replace('@', &server.address)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = run(&words, b"");
    assert_eq!(outcome.code, Some(code), "{command}: {outcome:?}");
    let all = outcome.text().to_owned() + &outcome.stderr;
    for part in parts {
        assert!(all.contains(part), "{command}: no '{part}': {outcome:?}");
    }
    outcome
}

#[test]
fn an_iterative_server_serves_one_client() {
    let Some(server) = Server::python(&decoding("16", ECHO)) else { return };
    let good = |command: &str, parts: &[&str]| drop(assert_says(&server, command, 0, parts));
    good("load @ -c 1 -n 10", &[": 1 connection, 64 bytes a message", "errors       none"]);
    good("load @ -c 1 -n 10 -m churn", &["errors       none"]);
    good("ping @ -c 3 -i 0 -W 30", &["3 sent, 3 received, 0 lost (0%)"]);
    let outcome = assert_says(&server, "send @ one two", 0, &[]);
    assert_eq!(outcome.text(), "one\ntwo\n");
    // Two wait in the backlog, or before it, for one that stays.
    let some = "load @ -c 3 -t 200ms --timeout 1s";
    let waits = || {
        // The end of the load may be an error, and the end, of the server.
        let server = Server::python(&decoding("16", ECHO)).unwrap();
        let outcome = assert_says(&server, some, 1, &[]);
        let all = outcome.text().to_owned() + &outcome.stderr;
        let waits = ["2 of 3 connections got nothing back", "of 3 connections opened"];
        waits.iter().any(|part| all.contains(part))
    };
    // On a machine that stands still, the one may get nothing either.
    assert!((0..4).any(|_| waits()));
}

#[test]
fn a_server_with_threads_serves_many() {
    let Some(server) = Server::python(&threaded()) else { return };
    let clean = ["errors       none"];
    for load in ["load @ -c 5 -n 50", "load @ -c 5 -n 50 -m churn", "load @ -c 5 -n 50 -m stream"] {
        assert_says(&server, load, 0, &clean);
    }
    assert_says(&server, "load @ -c 5 -m idle -t 10ms", 0, &clean);
    assert_says(&server, "ping @ -c 3 -i 0 -W 30", 0, &["3 sent, 3 received"]);
    assert_eq!(assert_says(&server, "send @ one two", 0, &[]).text(), "one\ntwo\n");
}

#[test]
fn answers_in_upper_case_are_told_and_can_be_expected() {
    let (tcp, datagrams) =
        (Server::python(&decoding("1024", UPPER)), Server::python(&udp(UPPER_TEXT)));
    let (Some(tcp), Some(datagrams)) = (tcp, datagrams) else { return };
    for (server, udp) in [(&tcp, ""), (&datagrams, " -u")] {
        let good = |command: &str| drop(assert_says(server, &(command.to_owned() + udp), 0, &[]));
        let wrong = |command: &str, parts: &[&str]| {
            assert_says(server, &(command.to_owned() + udp), 1, parts);
        };
        good("load @ -c 1 -n 50 --upper --timeout 30s");
        good("ping @ -c 3 -i 0 -W 30 --upper");
        let said = ["5 corrupt; the first: ", ": in upper case\n", "expect that with --upper"];
        wrong("load @ -c 1 -n 5 --timeout 30s", &said);
        let said = "evecho: no ping came back whole: ";
        let hint = " answers in upper case: expect that with --upper\n";
        wrong("ping @ -c 2 -i 0 -W 30", &["corrupt: byte ", ": in upper case\n", said, hint]);
        let outcome = assert_says(server, &format!("send @ one two{udp}"), 0, &[]);
        assert_eq!(outcome.text(), "ONE\nTWO\n");
    }
}

#[test]
fn a_server_that_answers_once_has_its_mode() {
    let Some(server) = Server::python(&programs::once(UPPER_TEXT)) else { return };
    assert_says(&server, "load @ -c 1 -m churn -n 5 --upper", 0, &["errors       none"]);
    let said = ["1 closed", "the server had closed its connections", "load it with --mode churn"];
    assert_says(&server, "load @ -c 1 -n 5 --upper", 1, &said);
    assert_says(&server, "ping @ -c 3 -i 1s -W 30 --upper", 0, &["3 sent, 3 received"]);
    assert_eq!(assert_says(&server, "send @ one", 0, &[]).text(), "ONE\n");
    // It closes with the second message unread, or before that comes.
    assert_says(&server, "send @ one two", 1, &[" the connection after "]);
}

#[test]
fn a_server_of_datagrams_serves_many() {
    let Some(server) = Server::python(&udp(TEXT)) else { return };
    assert_says(&server, "load @ -u -c 5 -n 50 --timeout 30s", 0, &["errors       none"]);
    assert_says(&server, "ping @ -u -c 3 -i 0 -W 30", 0, &["3 sent, 3 received"]);
    assert_eq!(assert_says(&server, "send @ -u one two", 0, &[]).text(), "one\ntwo\n");
}

/// What `compare` says of a program with 1 and with 2 connections.
fn compared(name: &str, program: &str, flags: &str) -> [String; 2] {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.py"));
    fs::write(&file, program).unwrap();
    let peer = format!("it=python3 '{}' {{port}}", file.display());
    let all =
        format!("compare{flags} --design -r 1 -t 50ms -c 1,2 --no-scenes --timeout 5s --peer");
    let outcome = run(&all.split(' ').chain([&*peer]).collect::<Vec<_>>(), b"");
    let mut rows = outcome.text().lines().filter_map(|line| line.strip_prefix("  it  "));
    [(); 2].map(|()| rows.next().unwrap_or_else(|| panic!("{outcome:?}")).to_owned())
}

#[test]
fn they_are_compared_with_a_true_verdict() {
    // It says whether there is a python3.
    let Some(_) = Server::python(&udp(TEXT)) else { return };
    let wrong = "fails: connection 0: byte 0 came back as 0x";
    let programs = [
        (
            "iterative",
            decoding("16", ECHO),
            "",
            [" MiB", "answers 1 of 2 connections, the others wait"],
        ),
        ("threaded", threaded(), "", [" MiB"; 2]),
        ("upper", decoding("1024", UPPER), "", [wrong; 2]),
        ("once", programs::once(UPPER_TEXT), "", [wrong; 2]),
        // Fewer bytes than were sent, and wrong ones.
        ("short", decoding("1024", "c.sendall(b'no')"), "", [wrong; 2]),
        ("udp", udp(TEXT), " -u", [" MiB"; 2]),
    ];
    beside(programs, |(name, program, flags, [one, two])| {
        let is_true = || {
            let rows = compared(name, &program, flags);
            println!("{name}: {rows:#?}");
            rows[0].contains(one) && rows[1].contains(two) && !rows.concat().contains("died")
        };
        // A machine that stands still answers too late.
        assert!((0..4).any(|_| is_true()), "{name}");
    });
}
