//! `evecho states`: every scenario, against every design and against servers of others.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;
use snapbox::{Data, assert_data_eq};

use crate::programs;
use crate::tool::{
    Outcome, Server, assert_wrong_usage, beside, evecho, finish, refused_port, run, spawn,
};

const SCENARIOS: [&str; 16] = [
    "handshake",
    "close",
    "open",
    "echo",
    "half-close",
    "server-closes",
    "time-wait",
    "backlog",
    "blocked",
    "window",
    "retransmit",
    "probe",
    "nagle",
    "closing",
    "udp",
    "reset",
];

fn states(arguments: &[&str]) -> Outcome {
    // What a busy machine takes longer for has to come all the same.
    run(&[&["states", "--timeout", "30s"], arguments].concat(), b"")
}

/// Shows scenarios, and asserts how each of them ended.
#[track_caller]
fn assert_outcomes(arguments: &[&str], expected: &[(&str, &str)]) {
    let outcome = states(&[arguments, &["--json"]].concat());
    let report: Value = serde_json::from_slice(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {outcome:?}"));
    let scenarios = report["scenarios"].as_array().unwrap();
    let outcomes: Vec<(&str, &str)> = scenarios
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(outcomes, expected, "{arguments:?}: {}", outcome.text());
    let count = |is: &str| expected.iter().filter(|(_, outcome)| *outcome == is).count();
    assert_eq!(report["shown"], count("shown"));
    assert_eq!(report["not_shown"], count("not shown"));
    assert_eq!(outcome.code, Some(i32::from(count("shown") == 0)), "{outcome:?}");
}

type Outcomes = [(&'static str, &'static str); SCENARIOS.len()];

/// All scenarios, of which these are not shown.
fn all_but(not_shown: &[&str]) -> Outcomes {
    let outcome = |name| if not_shown.contains(&name) { "not shown" } else { "shown" };
    SCENARIOS.map(|name| (name, outcome(name)))
}

/// What a server shows that serves for as long as the client wants.
fn lasting() -> Outcomes {
    all_but(&["server-closes", "backlog"])
}

/// What is concluded from what does not come for a second or two, a machine that stands still can spoil: one of a few
/// runs has to say all this, with this exit code.
#[track_caller]
fn assert_said_in_one(run: impl Fn() -> Outcome, code: i32, parts: &[&str]) {
    let says = |outcome: &Outcome| {
        outcome.code == Some(code) && parts.iter().all(|part| outcome.text().contains(part))
    };
    let mut outcome = run();
    for _ in 0..4 {
        if says(&outcome) {
            return;
        }
        outcome = run();
    }
    assert!(says(&outcome), "not {parts:?}, code {code}: {:?} {}", outcome.code, outcome.text());
}

// ---- servers

#[test]
fn the_event_loop_shows_everything() {
    assert_outcomes(&["--design", "event-loop"], &all_but(&[]));
}

#[test]
fn the_threaded_server_shows_everything() {
    assert_outcomes(&["--design", "threaded"], &all_but(&[]));
}

#[test]
fn the_iterative_server_shows_everything() {
    assert_outcomes(&["--design", "iterative"], &all_but(&[]));
}

#[test]
fn it_is_the_same_over_ipv6() {
    assert_outcomes(&["-6"], &all_but(&[]));
}

#[test]
fn framings_show_messages() {
    for framing in ["lines", "length"] {
        assert_outcomes(&["echo", "--framing", framing], &[("echo", "shown")]);
    }
    // As it is most easily written.
    assert_outcomes(&["echo", "--framing"], &[("echo", "shown")]);
}

#[test]
fn a_server_that_runs_shows_what_it_is_made_for() {
    let server = Server::evecho(&[]);
    assert_outcomes(&[&server.address], &lasting());
    let raw = ("echo", "not shown");
    assert_outcomes(&[&server.address, "echo", "--framing", "lines"], &[raw]);
}

#[test]
fn a_server_that_runs_shows_its_settings() {
    let once = Server::evecho(&["--once"]);
    assert_outcomes(&[&once.address, "server-closes"], &[("server-closes", "shown")]);
    let lines = Server::evecho(&["--framing", "lines"]);
    assert_outcomes(
        &[&lines.address, "--framing", "lines", "open", "echo", "window"],
        &[("open", "shown"), ("echo", "shown"), ("window", "not shown")],
    );
    let one = Server::evecho(&["--design", "iterative", "--backlog", "2"]);
    assert_outcomes(
        &[&one.address, "backlog", "blocked"],
        &[("backlog", "shown"), ("blocked", "shown")],
    );
}

#[test]
fn a_listener_for_both_families_has_ends_of_both() {
    let server = Server::evecho(&["--bind", "::"]);
    let port = server.address.trim_end_matches(',').rsplit(':').next().unwrap();
    for host in ["127.0.0.1", "[::1]"] {
        let address = format!("{host}:{port}");
        assert_outcomes(
            &[&address, "open", "half-close", "reset"],
            &[("open", "shown"), ("half-close", "shown"), ("reset", "shown")],
        );
    }
}

const SOCAT: &str = "TCP-LISTEN:0,bind=127.0.0.1,fork,reuseaddr";

/// With a pipe socat talks to itself: when that is full, it may wait in write(2) for ever, and nobody
/// reads. So it is not filled here.
#[test]
fn socat_with_a_pipe_shows_what_it_is_made_for() {
    let Some(server) = Server::socat(SOCAT, "PIPE") else { return };
    let mut expected = lasting().to_vec();
    expected.retain(|(name, _)| !["half-close", "window"].contains(name));
    let names: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
    assert_outcomes(&[&[server.address.as_str()], &names[..]].concat(), &expected);
}

#[test]
fn socat_with_a_program_shows_what_it_is_made_for() {
    let Some(server) = Server::socat(SOCAT, "EXEC:cat") else { return };
    assert_outcomes(&[&server.address], &lasting());
}

#[test]
fn a_server_in_python_shows_what_it_is_made_for() {
    let servers = [
        (programs::tcp("echo(c)"), &[][..], all_but(&["server-closes"]).to_vec()),
        (programs::threaded(), &[], lasting().to_vec()),
        (programs::once("data"), &["server-closes"], vec![("server-closes", "shown")]),
    ];
    beside(servers, |(program, shown, expected)| {
        let Some(server) = Server::python(&program) else { return };
        assert_outcomes(&[&[&*server.address], shown].concat(), &expected);
    });
}

#[test]
fn the_servers_of_courses_are_shown_for_what_they_are() {
    let programs =
        [programs::decoding("16", programs::ECHO), programs::decoding("1024", programs::UPPER)];
    beside(programs, |program| {
        let Some(server) = Server::python(&program) else { return };
        let mut expected = all_but(&["server-closes"]);
        // An RST is an error that they do not handle, and their end.
        *expected.last_mut().unwrap() = ("reset", "failed");
        let outcome = states(&[&server.address, "--json"]);
        let report: Value = serde_json::from_slice(&outcome.stdout).unwrap();
        let scenarios = report["scenarios"].as_array().unwrap().iter();
        let outcomes =
            scenarios.map(|one| (one["name"].as_str().unwrap(), one["outcome"].as_str().unwrap()));
        assert_eq!(outcomes.collect::<Vec<_>>(), expected, "{program}: {}", outcome.text());
        let seen = report["scenarios"][SCENARIOS.len() - 1]["seen"].as_str().unwrap();
        assert!(seen.contains("has ended"), "{seen}");
    });
}

#[test]
fn the_servers_of_courses_are_shown_for_what_they_do_at_once() {
    let once = programs::once("data.decode().upper().encode()");
    let greets = programs::tcp("c.sendall(b'welcome'); echo(c)");
    let lines = programs::tcp("[c.sendall(line) for line in c.makefile('rb')]; c.close()");
    let others = [
        (once, "server-closes", "this server closes after its first answer"),
        (greets, "open", "this server sends 'welcome' before the client has sent anything"),
        (
            lines,
            "open",
            "this server does not answer 'hello' within 2 s: it waits for the end of a line",
        ),
    ];
    beside(others, |(program, shown, reason)| {
        let Some(server) = Server::python(&program) else { return };
        let (shown_is, echo_is) = (format!("{shown}: shown"), format!("echo: not shown: {reason}"));
        let run = || states(&[&server.address, shown, "echo"]);
        assert_said_in_one(run, 0, &[&shown_is, &echo_is]);
    });
}

#[test]
fn a_server_that_ends_is_blamed_for_what_it_ended_with() {
    let Some(server) = Server::python(&programs::tcp("assert c.recv(9) != b'hello'; c.close()"))
    else {
        return;
    };
    let outcome = states(&[&server.address, "open", "echo", "half-close"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let text = outcome.text();
    assert!(text.contains("open: shown") && text.contains("; the server has ended"), "{text}");
    assert!(text.contains("half-close: not shown: the server has ended"), "{text}");
}

/// Servers that do not echo: what they do instead, said once and without waiting for it in each scenario.
#[test]
fn servers_that_do_something_else_are_told() {
    let reads = "this server reads, and does not answer";
    let closes = "this server closes each connection before the client has sent anything";
    let silent = [
        ("[0 for _ in iter(lambda: c.recv(4096), b'')]; c.close()", "echo", reads),
        ("c.close()", "echo", closes),
    ];
    beside(silent, |(serve, scenario, reason)| {
        let Some(server) = Server::python(&programs::tcp(serve)) else { return };
        let expected = format!("{scenario}: not shown: {reason}");
        assert_said_in_one(|| states(&[&server.address, scenario]), 1, &[&expected]);
    });
    let wrong = [
        ("c.sendall(2 * c.recv(4096)); c.recv(1); c.close()", "'hellohello'"),
        ("c.sendall(c.recv(4096) + b'!'); c.recv(1); c.close()", "'hello!'"),
        ("c.sendall(c.recv(4096)[:2]); c.recv(1); c.close()", "'he'"),
        ("c.recv(4096); c.close()", "it closes"),
        ("c.recv(2); c.close()", "it resets"),
        ("kept = c", "it does not read"),
    ];
    beside(wrong, |(serve, seen)| {
        let Some(server) = Server::python(&programs::tcp(serve)) else { return };
        let expected = "retransmit: FAILED\n  expected: the server answers 'hello' with 'hello'\n";
        let expected = format!("{expected}  seen:     {seen}");
        assert_said_in_one(|| states(&[&server.address, "retransmit"]), 1, &[&expected]);
    });
}

/// A server for a single client, which is the one that finds it.
#[test]
fn a_server_for_a_single_client_is_not_blamed() {
    let once = programs::tcp("s.close(); c.recv(1); sys.exit()");
    let Some(_) = Server::python(&once) else { return };
    let ended = "echo: not shown: the server has ended after its first client";
    let handshake = || {
        let server = Server::python(&once).unwrap();
        states(&[&server.address, "handshake", "echo"])
    };
    assert_said_in_one(handshake, 1, &[ended, "0 shown, 0 failed, 2 not shown"]);
    // Where it is started for each scenario, the first client is that of the scenario.
    let program = concat!(env!("CARGO_TARGET_TMPDIR"), "/single.py");
    std::fs::write(program, programs::tcp("s.close(); echo(c); sys.exit()")).unwrap();
    let command = format!("python3 {program} {{port}}");
    let outcome = states(&["--start", &command, "open", "echo", "half-close", "reset"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    assert!(text.contains("reset: not shown: this server serves a single client"), "{text}");
    assert!(text.contains("3 shown, 0 failed, 1 not shown"), "{text}");
    // One that an RST ends has nothing to do with that.
    std::fs::write(program, programs::decoding("16", programs::ECHO)).unwrap();
    // All of this time is waited for the end of the connection.
    let reset = || run(&["states", "--timeout", "5s", "--start", &command, "reset"], b"");
    assert_said_in_one(reset, 1, &["reset: FAILED", "; the server has ended"]);
}

#[test]
fn a_command_is_started_for_each_scenario() {
    let binary = env!("CARGO_BIN_EXE_evecho");
    let command = format!("{binary} --port {{port}} --bind :: --once");
    assert_outcomes(&["--start", &command, "server-closes"], &[("server-closes", "shown")]);
}

#[test]
fn a_server_that_does_not_echo_fails() {
    let Some(mute) = Server::python(&programs::tcp("c.recv(4096); c.sendall(b'HOWDY')")) else {
        return;
    };
    let outcome = states(&[&mute.address, "backlog"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let text = outcome.text();
    assert!(text.contains("backlog: FAILED\n  expected: the server answers 'hello' with 'hello'\n  seen:     'HOWDY'\n"), "{text}");
}

/// The table of states in the documentation is what the scenarios show.
#[test]
fn each_state_is_shown_by_the_scenarios_that_the_table_names() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/learn.md");
    let document = std::fs::read_to_string(document).unwrap();
    let (_, table) = document.split_once("| state | the client's end |").unwrap();
    let report = states(&["--json", "--segments=never"]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let shows = |name: &str, side: &str, state: &str| {
        let scenarios = report["scenarios"].as_array().unwrap();
        let scenario = scenarios.iter().find(|one| one["name"] == name).unwrap();
        scenario["steps"].as_array().unwrap().iter().any(|step| {
            let ends = step["connections"].as_array().unwrap();
            state == "LISTEN" && !step["listener"].is_null()
                || ends.iter().any(|one| one[side]["state"] == state)
        })
    };
    let mut states = 0;
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let state = match cells[0] {
            "SYN-RECEIVED" => "SYN_RECV".to_owned(),
            state => state.replace("WAIT-", "WAIT").replace('-', "_"),
        };
        for (side, names) in [("client", cells[1]), ("server", cells[2])] {
            for name in names.split(", ").filter(|name| !name.is_empty()) {
                assert!(shows(name.trim_matches('`'), side, &state), "{name} {side} {state}");
            }
        }
        assert!(cells[1..].concat().contains('`'), "{state}");
        states += 1;
    }
    assert_eq!(states, 11);
}

// ---- segments

/// The report of a run that is to see segments, as JSON; `None` where this system does not let it.
fn seen(mut command: Command, arguments: &[&str]) -> Option<Value> {
    let arguments = [&["states", "--timeout", "30s", "--json", "--segments"], arguments].concat();
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    let outcome = finish(command.spawn().unwrap());
    if outcome.stderr.contains("takes CAP_NET_RAW") {
        eprintln!("not tested: {}", outcome.stderr);
        return None;
    }
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    Some(serde_json::from_slice(&outcome.stdout).unwrap())
}

/// The segments of a scenario, a list for each step.
fn segments(scenario: &Value) -> Vec<&Vec<Value>> {
    let steps = scenario["steps"].as_array().unwrap();
    steps.iter().map(|step| step["segments"].as_array().unwrap()).collect()
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

#[test]
fn a_handshake_is_seen_with_its_numbers() {
    for family in ["-4", "-6"] {
        let Some(report) = seen(evecho(&[]), &[family, "echo"]) else { return };
        let steps = segments(&report["scenarios"][0]);
        let [syn, syn_ack, ack] = &steps[0][..] else { panic!("{steps:#?}") };
        let ways = [syn, syn_ack, ack].map(|one| (one["from"].as_str(), one["what"].as_str()));
        let (client, server) = (Some("client"), Some("server"));
        assert_eq!(ways, [(client, Some("SYN")), (server, Some("SYN+ACK")), (client, Some("ACK"))]);
        let [syn, syn_ack, ack] = [syn, syn_ack, ack].map(|one| &one["header"]);
        assert_eq!(number(&syn_ack["acknowledgement"]), number(&syn["sequence"]).wrapping_add(1));
        assert_eq!(number(&ack["acknowledgement"]), number(&syn_ack["sequence"]).wrapping_add(1));
        assert_eq!(syn["acknowledgement"], Value::Null);
        assert_eq!([&syn["relative_sequence"], &syn_ack["relative_acknowledgement"]], [0, 1]);
        assert_eq!([&ack["relative_sequence"], &ack["relative_acknowledgement"]], [1, 1]);
        assert_eq!((syn["flags"][0].as_str(), syn["length"].as_u64()), (Some("SYN"), Some(0)));
        let options = syn["options"].as_array().unwrap();
        assert!(options.iter().any(|one| one.as_str().unwrap().starts_with("mss ")), "{syn}");
        // The bytes of the echo, each way once.
        let data = |from: &str| {
            let of = |one: &&Value| one["from"] == from && one["header"]["length"] == 5;
            steps[1].iter().find(of).unwrap()["header"].clone()
        };
        for from in ["client", "server"] {
            assert_eq!(data(from)["relative_sequence"], 1);
            assert_eq!(data(from)["remark"], Value::Null);
        }
        assert_eq!(data("server")["relative_acknowledgement"], 6);
        let times = steps.iter().flat_map(|step| step.iter());
        assert!(times.map(|one| one["at_ns"].as_u64().unwrap()).is_sorted());
    }
}

#[test]
fn what_is_sent_again_and_what_probes_is_told() {
    let Some(report) = seen(evecho(&[]), &["retransmit", "probe"]) else { return };
    let [retransmit, probe] = &report["scenarios"].as_array().unwrap()[..] else { panic!() };
    let remarked = |scenario: &Value, step: usize, remark: &str, from: &str| {
        let is = |one: &&Value| one["header"]["remark"] == remark && one["from"] == from;
        segments(scenario)[step].iter().filter(is).count()
    };
    // The client's bytes have arrived, and are acknowledged by what the server sends again.
    let again = (1..3).map(|step| remarked(retransmit, step, "again", "server")).sum::<usize>();
    assert!(again > 0, "{retransmit:#}");
    assert!(remarked(probe, 1, "probe", "server") > 0, "{probe:#}");
    // Of very many segments the first and the last are shown.
    let last = &probe["steps"][2];
    assert_eq!(last["segments"].as_array().unwrap().len(), 16, "{last:#}");
    assert!(last["segments_left_out"].as_u64().unwrap() > 0, "{last:#}");
}

/// The acknowledgement of a FIN is on the wire, and lost, while the filter is there.
#[test]
fn a_fin_is_acknowledged_in_vain() {
    let Some(report) = seen(evecho(&[]), &["close"]) else { return };
    let scenario = &report["scenarios"][0];
    for step in [2, 3] {
        let whats = segments(scenario)[step].iter().map(|one| one["what"].as_str().unwrap());
        let whats: Vec<_> = whats.collect();
        assert!(whats.contains(&"FIN") && whats.contains(&"ACK"), "{step}: {scenario:#}");
    }
}

#[test]
fn a_syn_without_room_is_sent_again_and_dropped_again() {
    let Some(report) = seen(evecho(&[]), &["backlog"]) else { return };
    let scenario = &report["scenarios"][0];
    // No segment but the SYN, which has no answer.
    for (step, remark) in [(3, Value::Null), (4, "again".into())] {
        let [syn] = &segments(scenario)[step][..] else { panic!("{scenario:#}") };
        assert_eq!((&syn["what"], &syn["from"]), (&"SYN".into(), &"client".into()));
        assert_eq!(syn["header"]["remark"], remark);
        let late = &scenario["steps"][step]["connections"][3];
        assert_eq!(
            (&late["client"]["state"], &late["server"]["state"]),
            (&"SYN_SENT".into(), &"CLOSED".into())
        );
    }
    let why = scenario["steps"][4]["why"].as_str().unwrap();
    assert!(why.contains("It counts both (TcpExtListenOverflows)"), "{why}");
}

/// The old connection and the new one have the same four numbers: addresses and ports.
#[test]
fn a_syn_from_the_same_port_ends_time_wait() {
    let Some(report) = seen(evecho(&[]), &["time-wait"]) else { return };
    let scenario = &report["scenarios"][0];
    let ends = |step: usize| &scenario["steps"][step]["connections"][0];
    assert_eq!(ends(1)["server"]["state"], "TIME_WAIT");
    assert_eq!(ends(2)["server"]["state"], "ESTABLISHED");
    assert_eq!(ends(2)["address"], ends(1)["address"]);
    assert_eq!(scenario["steps"][2]["address"], scenario["steps"][1]["address"]);
    let steps = segments(scenario);
    let [first, .., last] = &steps[0][..] else { panic!("{scenario:#}") };
    assert_eq!((&first["what"], &last["what"]), (&"SYN".into(), &"ACK".into()));
    assert_eq!(steps[2].len(), 3, "{scenario:#}");
    assert!(steps[2].iter().all(|one| one["header"]["remark"].is_null()), "{scenario:#}");
}

#[test]
fn a_port_that_no_socket_has_is_unreachable() {
    for (family, kind, code) in [("-4", 3, 3), ("-6", 1, 4)] {
        let Some(report) = seen(evecho(&[]), &[family, "udp"]) else { return };
        let scenario = &report["scenarios"][0];
        let steps = segments(scenario);
        let what = |step: usize| steps[step].iter().map(|one| one["what"].as_str().unwrap());
        assert!(what(1).eq(["3 bytes", "3 bytes", "3 bytes", "3 bytes", "5 bytes", "5 bytes"]));
        // Connected, and with IP_RECVERR.
        for step in [2, 5] {
            let [datagram, icmp] = &steps[step][..] else { panic!("{scenario:#}") };
            assert_eq!(
                (&datagram["what"], &datagram["from"]),
                (&"5 bytes".into(), &"client".into())
            );
            assert_eq!((&icmp["what"], &icmp["from"]), (&"ICMP".into(), &"server".into()));
            assert_eq!(
                (&icmp["icmp"]["type"], &icmp["icmp"]["code"]),
                (&kind.into(), &code.into())
            );
            assert_eq!(icmp["client"], datagram["client"]);
        }
    }
}

#[test]
fn a_ladder_has_every_segment_and_state() {
    let figure = concat!(env!("CARGO_TARGET_TMPDIR"), "/ladder.svg");
    let arguments = ["states", "open", "closing", "--segments=never", "--figure", figure];
    let outcome = finish(spawn(evecho(&[&arguments[..], &["--json"]].concat())));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let report: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let scenarios = report["scenarios"].as_array().unwrap();
    let arrows = scenarios.iter().flat_map(segments).map(Vec::len).sum::<usize>();
    let svg = std::fs::read_to_string(figure).unwrap();
    assert_eq!(svg.matches("<polygon").count(), arrows);
    let texts: Vec<&str> =
        svg.split("<text ").skip(1).filter_map(|text| text.split(['>', '<']).nth(1)).collect();
    for expected in ["SYN", "SYN+ACK", "FIN", "FIN_WAIT1", "CLOSING", "ESTABLISHED, not accepted"] {
        assert!(texts.iter().any(|text| text.trim() == expected), "{expected}: {texts:?}");
    }
    assert!(svg.contains("prefers-color-scheme:dark") && svg.ends_with("</svg>\n"), "{svg}");
    // What cannot be written is told before anything is shown.
    let outcome = states(&["open", "--figure", "/no/such/folder/ladder.svg"]);
    assert_eq!((outcome.code, outcome.text()), (Some(1), ""), "{outcome:?}");
    assert!(outcome.stderr.contains("cannot write the figure"), "{outcome:?}");
}

/// Without the right to see segments it takes a network of its own, in which it has that.
#[test]
fn an_ordinary_user_sees_them_in_a_network_of_its_own() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_raw", "--inh-caps=-net_raw", "--ambient-caps=-net_raw"]);
    command.arg(env!("CARGO_BIN_EXE_evecho"));
    let Some(report) = seen(command, &["open"]) else { return };
    assert_eq!(segments(&report["scenarios"][0])[1].len(), 3, "{report:#}");
}

#[test]
fn where_they_cannot_be_seen_it_says_so() {
    let Some(mut command) = sandboxed(AF_PACKET) else { return };
    let run = |command: &mut Command| {
        finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    };
    let outcome = run(command.args(["states", "open"]));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let text = outcome.text();
    assert!(text.contains("--- SYN ---->"), "{text}");
    assert!(
        text.contains(
            "not seen, but follow from calls and states: seeing segments on the wire takes"
        ),
        "{text}"
    );
    let outcome = run(command.arg("--segments"));
    assert_eq!((outcome.code, outcome.text()), (Some(1), ""), "{outcome:?}");
    let sentence = "evecho: seeing segments on the wire takes CAP_NET_RAW";
    assert!(outcome.stderr.starts_with(sentence), "{outcome:?}");
    // A server that runs is not in a network of our own.
    let server = Server::evecho(&[]);
    let mut command = sandboxed(AF_PACKET).unwrap();
    let outcome = run(command.args(["states", &server.address, "--segments", "open"]));
    assert!(outcome.stderr.starts_with(sentence), "{outcome:?}");
    assert!(!outcome.stderr.contains("namespaces"), "{outcome:?}");
}

// ---- the text

/// Numbers that differ from run to run, made neutral: ports, and the bytes in full queues.
fn neutral(text: &str) -> String {
    // How long something took is different each time.
    let (text, took) = (text.replace("µs", "ms"), [" until the client has both", "TCP_NODELAY): "]);
    let lines = text.lines().map(|line| match took.iter().find(|what| line.contains(**what)) {
        Some(_) => line.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect(),
        None => line.to_owned(),
    });
    let text = &lines.map(|line| line + "\n").collect::<String>();
    let mut neutral = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(|next: char| next.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        let length = from.find(|next: char| !next.is_ascii_digit()).unwrap_or(from.len());
        let (number, after) = from.split_at(length);
        neutral += before;
        match length {
            // Those of an RFC are constant.
            4.. if !neutral.ends_with("RFC ") => {
                // Ports have five digits, and numbers in columns end where they did.
                neutral += &match () {
                    () if neutral.ends_with(':') => "#".repeat(length),
                    () if neutral.ends_with("backlog ") => "#".to_owned(),
                    () => format!("{:>length$}", '#'),
                };
            }
            _ => neutral += number,
        }
        rest = after;
    }
    neutral + rest
}

#[test]
fn the_text_is_what_it_was() {
    beside(SCENARIOS, |scenario| {
        let outcome = states(&[scenario, "--segments=never"]);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let path = format!("{}/tests/states/{scenario}.txt", env!("CARGO_MANIFEST_DIR"));
        // Some bytes may still be on the way when the window of the server closes.
        let unsure = "1 ESTABLISHED, window 0";
        let text = outcome.text().replace(unsure, "1 ESTABLISHED          ");
        assert_data_eq!(neutral(&text), Data::read_from(path.as_ref(), None).raw());
        assert!(outcome.text().lines().all(|line| line.chars().count() <= 100));
    });
    for framing in ["lines", "length"] {
        let outcome = states(&["echo", "--framing", framing, "--segments=never"]);
        let path = format!("{}/tests/states/echo-{framing}.txt", env!("CARGO_MANIFEST_DIR"));
        assert_data_eq!(neutral(outcome.text()), Data::read_from(path.as_ref(), None).raw());
    }
}

/// What a scenario has explained, the next one does not explain again, and a listener of our own is announced
/// once in a scenario.
#[test]
fn what_was_explained_is_not_explained_again() {
    let text = states(&["open", "server-closes", "close", "--segments=never"]);
    let count = |what: &str| text.text().matches(what).count();
    assert_eq!(count("Three segments open the connection."), 1, "{text:?}");
    assert_eq!(count("--- SYN ---->"), 4, "{text:?}");
    assert_eq!(count("in slow motion, with a listener of our own:"), 3, "{text:?}");
}

#[test]
fn the_scenarios_are_listed() {
    let outcome = states(&["--list"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let names: Vec<_> =
        outcome.text().lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names, SCENARIOS);
}

#[test]
fn it_waits_for_enter_after_each_step() {
    let mut child = spawn(evecho(&["states", "open", "--step"]));
    let mut stdin = child.stdin.take().unwrap();
    let mut text = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    for step in 1..=4 {
        // The next step is not there yet: what is read up to here is all.
        let number = format!("{step}. ");
        assert!(text.any(|line| line.starts_with(&number)), "no step {step}");
        stdin.write_all(b"\n").unwrap();
    }
    assert!(text.any(|line| line == "open: shown"));
    drop(stdin);
    assert_eq!(finish(child).code, Some(0));
}

// ---- what is wrong

#[test]
fn wrong_usage_is_told() {
    for arguments in [
        &["states", "half-closed"][..],
        &["states", "open", "localhost:7"],
        &["states", "localhost:7", "localhost:7"],
        &["states", "localhost:7", "--start", "server {port}"],
        &["states", "udp://localhost:7"],
        &["states", "localhost:7", "--design", "threaded"],
        &["states", "--start", "server {port}", "--design", "threaded"],
        &["states", "--start", "server"],
        &["states", "--json", "--step"],
        &["states", "--timeout", "0"],
        &["states", "--framing", "cake"],
    ] {
        assert_wrong_usage(arguments);
    }
    let outcome = states(&["half-closed"]);
    assert!(
        outcome.stderr.contains("half-closed") && outcome.stderr.contains("--list"),
        "{outcome:?}"
    );
}

/// Becomes a program whose sockets of a family are refused, as a container's may be.
const SANDBOX: &str = r#"
import ctypes, os, platform, struct, sys
socket, arch = {"x86_64": (41, 0xC000003E), "aarch64": (198, 0xC00000B7)}[platform.machine()]
program = [
    (0x20, 0, 0, 4), (0x15, 0, 5, arch),  # another architecture is let through
    (0x20, 0, 0, 0), (0x15, 0, 3, socket),
    (0x20, 0, 0, 16), (0x15, 0, 1, int(sys.argv[1])),
    (0x06, 0, 0, 0x00050001),             # EPERM
    (0x06, 0, 0, 0x7FFF0000),
]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in program))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0    # no new privileges
seccomp = Filter(len(program), ctypes.addressof(code))
assert libc.prctl(22, 2, ctypes.byref(seccomp), 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"#;

const AF_NETLINK: i32 = 16;
const AF_PACKET: i32 = 17;

/// This program, whose sockets of that family are refused.
fn sandboxed(family: i32) -> Option<Command> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("not tested: python3 cannot be started");
        return None;
    }
    let mut command = Command::new("python3");
    command.args(["-c", SANDBOX, &family.to_string(), env!("CARGO_BIN_EXE_evecho")]);
    Some(command)
}

#[test]
fn a_kernel_that_may_not_be_asked_is_told() {
    let Some(mut sandbox) = sandboxed(AF_NETLINK) else { return };
    sandbox.args(["states", "open"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = sandbox.spawn().unwrap();
    let outcome = finish(child);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    let sentence = "evecho: the kernel does not show its sockets (sock_diag: ";
    assert!(outcome.stderr.starts_with(sentence), "{outcome:?}");
}

#[test]
fn nobody_there_is_told() {
    let (_socket, refused) = refused_port();
    let outcome = states(&[&refused, "open"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("refused the connection"), "{outcome:?}");
    let outcome = states(&["--start", "false {port}", "open"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("ended before it listened"), "{outcome:?}");
}
