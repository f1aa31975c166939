//! `evecho compare`: every server has its row, whatever it does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use evecho::client::Cancel;
use evecho::client::compare::{self, Config, Contender, Report, Waits};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The servers that are compared: this program again, with what to do in the environment.
#[test]
fn as_server() {
    let Ok(port) = std::env::var("PORT_OF_TEST_SERVER") else { return };
    let wrong = std::env::var("DOES").unwrap();
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    if wrong == "wait" {
        // What many programs ask for; they accept more slowly than a client connects.
        socket2::SockRef::from(&listener).listen(5).unwrap();
    }
    for stream in listener.incoming() {
        if wrong == "wait" {
            thread::sleep(Duration::from_millis(2));
        }
        let (mut stream, wrong) = (stream.unwrap(), wrong.clone());
        thread::spawn(move || {
            let mut room = vec![0; if wrong == "parts" { 16 } else { 4096 }];
            while let Ok(length @ 1..) = stream.read(&mut room) {
                match wrong.as_str() {
                    "die" => std::process::exit(3),
                    "lie" => room[0] ^= 1,
                    "short" => {
                        let _ = stream.write_all(b"no");
                        continue;
                    }
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
    format!(
        "{name}=env DOES={does} PORT_OF_TEST_SERVER={{port}} '{program}' --exact compare::as_server"
    )
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
    let flags = ["-r", "1", "-t", "200ms", "-c", "1,3", "--peer", &good, "-o"];
    let output = compare(&flags).arg(&directory).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = text(&output);
    for server in ["event-loop", "threaded", "good"] {
        for trial in [
            "1 connection",
            "3 connections",
            "one slow client before 100 others",
            "one client among 1,000 idle ones",
            "10 clients, each message a connection",
        ] {
            assert!(row(&table, trial, server).contains(" MiB"), "{table}");
        }
    }
    // One round has no spread.
    assert!(table.contains("Rounds: 1, of 200 ms each.\n") && !table.contains('±'), "{table}");
    let iterative = |trial| row(&table, trial, "iterative");
    assert!(iterative("1 connection").ends_with(" MiB"));
    assert!(iterative("3 connections").ends_with("answers 1 of 3 connections, the others wait"));
    assert!(iterative("one slow client before 100 others").contains("answers none of 100"));
    assert!(iterative("one client among 1,000 idle ones").contains("answers 1 of 1,000"));
    assert!(iterative("10 clients, each message a connection").ends_with(" MiB"));

    let read = |name| fs::read_to_string(directory.join(name)).unwrap();
    let svg = read("compare.svg");
    for part in ["prefers-color-scheme:dark", "Messages per second", "connections", ">\ngood\n<"] {
        assert!(svg.contains(part), "{part} is not in the figure");
    }
    // A line for each of 4 servers under 5 trials, measured or not.
    assert_eq!(read("compare.csv").lines().count(), 1 + 4 * 5);
    assert_eq!(bars(&read("waits.svg")).len(), 4 * 6);
    let json: serde_json::Value = serde_json::from_str(&read("compare.json")).unwrap();
    assert_eq!(json["waits"][3]["clients"][5]["replies"].as_array().unwrap().len(), 5);
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

/// The drawn bars of each row, from top to bottom: the colour, where it begins, and where it ends.
fn bars(svg: &str) -> Vec<Vec<(&str, f64, f64)>> {
    let mut rows = BTreeMap::new();
    for rect in svg.split("<rect ").skip(2) {
        let value = |name: &str| rect.split(name).nth(1).unwrap().split('"').next().unwrap();
        let [x, y, width] = ["x=\"", " y=\"", "width=\""].map(|name| value(name).parse().unwrap());
        rows.entry(y as i32).or_insert(vec![]).push((value("fill=\""), x, x + width));
    }
    // The first is the legend.
    rows.into_values().skip(1).collect()
}

/// Each other client is served for a tenth of the time of the slow one.
#[test]
fn clients_wait_for_the_slow_one_in_the_iterative_design_alone() {
    let designs = ["event-loop", "threaded", "iterative"];
    let contender = |design: &str| {
        let evecho = env!("CARGO_BIN_EXE_evecho");
        let command = format!("'{evecho}' -q --bind 127.0.0.1 --port {{port}} --design {design}");
        Contender::new(design, command.parse().unwrap())
    };
    let config = |contenders| {
        let mut config = Config::new(contenders, vec![]);
        config.time = Duration::from_secs(2);
        config.timeout = Duration::from_secs(60);
        config
    };
    let waits = |contender| compare::waits(&config(vec![contender]), &Cancel::default());
    let waits: Vec<Waits> = thread::scope(|scope| {
        let threads = designs.map(|design| scope.spawn(move || waits(contender(design))));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let svg = compare::waits_svg(&Report::new(&config(vec![])), &waits).unwrap();
    for (design, rows) in designs.into_iter().zip(bars(&svg).chunks(6)) {
        let rows: Vec<[_; 2]> = rows.iter().map(|row| row[..].try_into().unwrap()).collect();
        let (&[(pale, ..), (slow, _, end)], others) = rows.split_first().unwrap();
        assert!(pale != slow && others.len() == 5, "{design}: {svg}");
        let mut turn = end;
        for &[(waits, _, waited), (served, from, to)] in others {
            assert!(waits == pale && served != slow && waited - from <= 1.0, "{design}: {svg}");
            if design == "iterative" {
                assert!(from >= turn, "a client is served beside another one: {svg}");
                turn = to;
            } else {
                assert!(to < end, "{design}: a client waits for the slow one: {svg}");
            }
        }
    }
}

#[test]
fn a_client_that_is_not_answered_is_not_drawn_as_served() {
    let dies = peer("dies", "die").parse().unwrap();
    let absent = "absent=/nowhere/server {port}".parse().unwrap();
    let config = Config::new(vec![dies, absent], vec![]);
    let waits = compare::waits(&config, &Cancel::default());
    let svg = compare::waits_svg(&Report::new(&config), &waits).unwrap();
    let rows: Vec<usize> = bars(&svg).iter().map(Vec::len).collect();
    assert_eq!(rows, [1; 6], "{svg}");
    for note in
        ["dies, slow client: the connection was closed.", "absent: cannot start '/nowhere/server"]
    {
        assert!(svg.contains(&note.replace('\'', "&apos;")), "{note}: {svg}");
    }
}

#[test]
fn who_fails_is_named_and_the_rest_goes_on() {
    let (dies, lies, good) = (peer("dies", "die"), peer("lies", "lie"), peer("good", "echo"));
    let short = peer("short", "short");
    let output = compare(&["-r", "1", "-t", "200ms", "-c", "1,2", "--no-scenes"])
        .args(["--design", "event-loop", "--peer", &dies, "--peer", &lies, "--peer", &good])
        .args(["--peer", &short])
        .args(["--peer", "absent=/nowhere/server {port}"])
        .output()
        .unwrap();
    // Four of them were never measured.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let table = text(&output);
    for trial in ["1 connection", "2 connections"] {
        let dies = row(&table, trial, "dies");
        assert!(dies.contains("died (exit status: 3)"), "{dies}");
        let lies = row(&table, trial, "lies");
        assert!(lies.contains("fails:"), "{lies}");
        // What it answers says more than that the rest is waited for.
        let short = row(&table, trial, "short");
        assert!(short.contains("fails: connection 0: byte 0 came back as 0x6e"), "{short}");
        let absent = row(&table, trial, "absent");
        assert!(absent.contains("cannot run '/nowhere/server'"), "{absent}");
        for name in ["event-loop", "good"] {
            assert!(row(&table, trial, name).ends_with(" MiB"), "{table}");
        }
    }
}

#[test]
fn what_was_stopped_after_one_round_is_one_round() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("stopped");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    // In its second round it never listens.
    let twice = format!(
        "sh -c 'mkdir {0}/once && exec env \"$@\" || exec sleep 1000' - {1}",
        directory.display(),
        peer("", "echo").trim_start_matches("=env ")
    );
    let mut child =
        compare(&["-r", "3", "-t", "500ms", "-c", "1", "--no-scenes", "--timeout", "1h"])
            .args(["--design", "event-loop", "--peer", &format!("twice={twice}"), "-o"])
            .arg(&directory)
            .spawn()
            .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("round 2") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended");
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let table = text(&output);
    assert!(table.contains("Rounds: 1 of 3, of 500 ms each"), "{table}");
    assert!(!row(&table, "1 connection", "twice").contains('±'), "{table}");
    assert!(!table.contains("in every round") && table.ends_with("Stopped early.\n"), "{table}");
    let json = fs::read_to_string(directory.join("compare.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["rounds_done"], &json["stopped"]), (&1.into(), &true.into()));
}

#[test]
fn a_short_backlog_is_not_overrun() {
    let waits = peer("waits", "wait");
    let output = compare(&["-r", "1", "-t", "1s", "-c", "30", "--no-scenes", "--timeout", "20s"])
        .args(["--design", "event-loop", "--peer", &waits])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = text(&output);
    assert!(row(&table, "30 connections", "waits").ends_with(" MiB"), "{table}");
}

#[test]
fn the_memory_of_several_processes_counts_shared_pages_once() {
    let several = format!("several=sh -c 'sleep 1000 & exec \"$@\"' - {}", &peer("", "echo")[1..]);
    let output = compare(&["-r", "1", "-t", "1s", "-c", "1", "--no-scenes"])
        .args(["--design", "event-loop", "--peer", &several])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let table = text(&output);
    let sentence =
        "Memory of several processes is the sum of their Pss: pages that they share count once";
    assert!(table.contains(sentence), "{table}");
}

#[test]
fn what_nagle_and_delayed_acknowledgements_cost_is_named() {
    let (parts, whole) = (peer("parts", "parts"), peer("whole", "echo"));
    let flags = ["-r", "1", "-t", "400ms", "-c", "1", "--no-scenes", "--timeout", "20s"];
    let output = compare(&flags).args(["--peer", &parts, "--peer", &whole]).output().unwrap();
    let table = text(&output);
    let remark =
        "\nparts: the answer to 64 B is written in parts, and waits for an acknowledgement";
    assert!(table.contains(remark) && table.contains("set TCP_NODELAY"), "{table}");
    assert!(!table.contains("\nwhole: "), "{table}");
}

#[test]
fn peers_alone_are_compared_over_udp() {
    let evecho = concat!("a=", env!("CARGO_BIN_EXE_evecho"), " --bind 127.0.0.1 -q --port {port}");
    let wrong = format!("{} --service upper", evecho.replacen('a', "wrong", 1));
    let output = compare(&["-r", "1", "-t", "200ms", "-c", "1,3", "--udp", "--design"])
        .args(["--peer", evecho, "--peer", &wrong])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let table = text(&output);
    assert!(table.starts_with("64-byte messages over UDP, "), "{table}");
    for trial in ["1 connection", "3 connections"] {
        assert!(row(&table, trial, "a").ends_with(" MiB"), "{table}");
        assert!(row(&table, trial, "wrong").contains("fails:"), "{table}");
    }
    assert!(!table.contains("event-loop") && !table.contains("slow client"), "{table}");
}

#[test]
fn upper_case_is_compared() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("upper");
    let same = peer("same", "echo");
    let output = compare(&["-r", "1", "-t", "200ms", "-c", "1", "--upper", "--peer", &same, "-o"])
        .arg(&directory)
        .args(["--design", "event-loop,threaded"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let table = text(&output);
    assert!(table.starts_with("64-byte messages over TCP, answered in upper case, "), "{table}");
    for trial in ["1 connection", "one client among 1,000 idle ones"] {
        assert!(row(&table, trial, "event-loop").contains(" MiB"), "{table}");
        assert!(row(&table, trial, "same").contains("came back as"), "{table}");
    }
    let json = fs::read_to_string(directory.join("compare.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["upper"], true);
    let fault = |server: usize| &json["waits"][server]["clients"][5]["fault"];
    assert!(fault(0).is_null() && fault(2).is_string(), "{}", json["waits"]);
}

#[test]
fn what_cannot_be_compared_is_one_sentence() {
    let taken = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("taken");
    fs::create_dir_all(taken.join("compare.csv")).unwrap();
    let cases: [(&[&str], &str); 9] = [
        (&["--design"], "no server to compare"),
        (&["--udp", "--size", "15"], "over UDP the size must be from 16 bytes"),
        (&["--peer", "no-command"], "NAME="),
        (&["--peer", "name=server 7"], "{port}"),
        (&["--peer", "threaded=server {port}"], "two servers are called 'threaded'"),
        (&["-c", "0"], "give a whole number from 1 to 4294967295"),
        (&["-o", "/proc/nowhere"], "cannot write into '/proc/nowhere'"),
        // Folders that are there.
        (&["-o", "/proc"], "cannot write into '/proc'"),
        (&["-o", taken.to_str().unwrap()], "Is a directory"),
    ];
    for (flags, sentence) in cases {
        let output = compare(flags).output().unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(sentence), "{flags:?}: {error}");
        assert!(output.stdout.is_empty());
    }
}
