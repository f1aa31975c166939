//! The drawings of loads, sweeps and pings, read as XML: `load --figure` and `--sweep`, `merge --figure`,
//! `ping --figure`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/tool.rs"]
mod tool;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tool::{Server, evecho, finish, run, spawn, tcp_double};

/// An element: its name, its attributes and its text.
#[derive(Debug)]
struct Element {
    name: String,
    attributes: HashMap<String, String>,
    text: String,
}

impl Element {
    fn has(&self, name: &str, value: &str) -> bool {
        self.attributes.get(name).is_some_and(|found| found == value)
    }

    /// The places of a line's points.
    fn points(&self) -> Vec<(f64, f64)> {
        let point = |point: &str| {
            let (x, y) = point.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        self.attributes["points"].split_whitespace().map(point).collect()
    }
}

/// Reads XML as far as the drawings use it. Elements that are not closed, or twice, fail.
fn elements(xml: &str) -> Vec<Element> {
    let (mut all, mut open): (Vec<Element>, Vec<usize>) = Default::default();
    for part in xml.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(all[open.pop().unwrap()].name, name);
            continue;
        }
        let (tag, is_closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut attributes = HashMap::new();
        while let Some((name, value)) = rest.split_once("=\"") {
            let (value, after) = value.split_once('"').unwrap();
            assert!(attributes.insert(name.trim().to_owned(), value.to_owned()).is_none());
            rest = after;
        }
        assert_eq!(rest.trim(), "", "{tag}");
        if !is_closed {
            open.push(all.len());
        }
        all.push(Element { name: name.to_owned(), attributes, text: text.trim().to_owned() });
    }
    assert!(open.is_empty() && all[0].name == "svg");
    all
}

/// A drawing that is asked for.
struct Drawing {
    path: PathBuf,
}

impl Drawing {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_file(&path);
        Self { path }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    fn read(&self) -> Vec<Element> {
        elements(&fs::read_to_string(&self.path).unwrap())
    }
}

fn texts(svg: &[Element]) -> Vec<&str> {
    svg.iter().filter(|one| one.name == "text").map(|one| &*one.text).collect()
}

/// The lines in the colour of a series but its dashes.
fn curves<'a>(svg: &'a [Element], colour: &str) -> Vec<&'a Element> {
    let is_curve = |one: &&Element| one.name == "polyline" && one.has("stroke", colour);
    svg.iter().filter(is_curve).filter(|one| one.points().len() > 4).collect()
}

const FIRST: &str = "#0064B4";
const SECOND: &str = "#C44D00";

/// Runs a load that prints its report as JSON, and has enough messages for all curves: a busy machine may need several
/// tries. What it prints, and the report.
fn load(arguments: &[&str]) -> (String, serde_json::Value) {
    let load = || {
        let outcome = run(arguments, b"");
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let report = outcome.text().lines().last().unwrap();
        (outcome.text().to_owned(), serde_json::from_str(report).unwrap())
    };
    let mut loads = std::iter::repeat_with(load).take(20);
    let has_many =
        |(_, report): &(String, serde_json::Value)| report["messages"].as_u64() > Some(200);
    loads.find(has_many).expect("a load of more than 200 messages")
}

#[test]
fn a_load_is_drawn_by_percentile_and_over_time() {
    let (server, drawing) = (Server::evecho(&[]), Drawing::new("load.svg"));
    let address = server.address.clone();
    let command = ["load", &address, "-c", "2", "-t", "400ms", "--json", "--figure"];
    let (_, report) = load(&[&command[..], &[drawing.path()]].concat());
    let svg = drawing.read();
    let texts = texts(&svg);
    let expected = [
        &*format!("TCP ping-pong with {address}"),
        "2 connections, 64 bytes a message, 1 in flight on each",
        "Latency by percentile",
        "percentile, in nines",
        // Of the others, those that have room.
        "0 %",
        "99 %",
        "Latency: p50, and p99 (dashed)",
        "Messages per second",
        "Errors per second",
        "seconds",
        "0.1",
        "0.4",
    ];
    for part in expected {
        assert!(texts.contains(&part), "{part}: {texts:?}");
    }
    // 8 points for each decade of messages, and the longest.
    let messages = report["latency"].as_object().map(|_| report["messages"].as_f64().unwrap());
    let curves = curves(&svg, FIRST);
    let by_percentile = curves[0].points();
    let steps = (messages.unwrap().log10() * 8.0).ceil() as usize + 1;
    assert!(by_percentile.len().abs_diff(steps) <= 1, "{steps}: {by_percentile:?}");
    assert!(by_percentile.is_sorted_by(|a, b| a.0 <= b.0 && a.1 >= b.1), "{by_percentile:?}");
    // An interval is 20 ms long; one in which nothing came back has no latency.
    let intervals = report["intervals"].as_array().unwrap().len();
    let lengths: Vec<usize> = curves[1..].iter().map(|curve| curve.points().len()).collect();
    let (latency, others) = lengths.split_at(lengths.len() - 2);
    assert!(latency.iter().sum::<usize>() <= 20 && intervals == 20, "{lengths:?}");
    assert_eq!(others, [20, 20]);
    let errors = curves.last().unwrap().points();
    assert!(errors.iter().all(|point| point.1 == errors[0].1), "{errors:?}");
}

#[test]
fn reports_are_drawn_over_each_other_also_such_as_cannot_be_added() {
    let Server { address, .. } = &Server::evecho(&[]);
    let report = |name: &str, arguments: &str| {
        let all = ["load", address, "-c", "2", "--json", "--every", "20ms"];
        let all = all.into_iter().chain(arguments.split_whitespace()).collect::<Vec<_>>();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&path, load(&all).0).unwrap();
        path.display().to_string()
    };
    let (one, two) = (report("figure-one.json", "-t 200ms"), report("figure-two.json", "-n 500"));
    let deeper = report("figure-deeper.json", "-t 200ms -d 4");
    let drawing = Drawing::new("merged.svg");
    let merge =
        |files: &[&str]| run(&[&["merge", "--figure", drawing.path()], files].concat(), b"");
    let ends = [&one[one.len() - 20..], &deeper[deeper.len() - 20..]];
    let outcome = merge(&[&one, &deeper]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("differ in their depth"), "{outcome:?}");
    let svg = drawing.read();
    for (colour, end) in [FIRST, SECOND].into_iter().zip(ends) {
        // By percentile; over time the rate, the errors, and p50 where enough came back.
        assert!((3..=4).contains(&curves(&svg, colour).len()), "{svg:?}");
        assert!(texts(&svg).iter().any(|text| text.ends_with(end)), "{end}");
    }
    // Two of one file are told apart, and what came without a time series still has percentiles.
    let both =
        format!("{}\n{}", fs::read_to_string(&one).unwrap(), fs::read_to_string(&two).unwrap());
    let both = both.replace("\"intervals\"", "\"unknown\"");
    let outcome = run(&["merge", "-", "--figure", drawing.path()], both.as_bytes());
    assert!(outcome.stderr.contains("differ in having a time"), "{outcome:?}");
    let svg = drawing.read();
    assert!(texts(&svg).contains(&"standard input (2)"), "{svg:?}");
    assert_eq!([FIRST, SECOND].map(|colour| curves(&svg, colour).len()), [1, 1]);
}

#[test]
fn a_figure_that_cannot_be_written_is_told_before_anything_is_measured() {
    // Nothing listens there, which would be said if it were tried.
    for command in [&["load", "127.0.0.1:9"][..], &["merge", "/nowhere"]] {
        let outcome = run(&[command, &["--figure", "/nowhere/figure.svg"]].concat(), b"");
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        let sentence = "evecho: cannot write the figure /nowhere/figure.svg: No such file";
        assert!(outcome.stderr.starts_with(sentence), "{outcome:?}");
    }
}

#[test]
fn a_figure_that_is_there_stays_until_there_is_another() {
    let kept = Drawing::new("kept.svg");
    fs::write(&kept.path, "kept").unwrap();
    let made = Drawing::new("made.svg");
    for drawing in [&kept, &made] {
        let outcome = run(&["merge", "/nowhere", "--figure", drawing.path()], b"");
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
    }
    assert_eq!(fs::read_to_string(&kept.path).unwrap(), "kept");
    assert!(!made.path.exists());
}

#[test]
fn pings_are_drawn_over_time_with_their_losses() {
    let address = tool::udp_double(|socket, number, message, from| {
        if number % 5 != 3 {
            socket.send_to(message, from).unwrap();
        }
    });
    let drawing = Drawing::new("ping.svg");
    let command = ["ping", &address, "-u", "-c", "20", "-i", "10ms", "-W", "3s", "-q", "--figure"];
    let outcome = run(&[&command[..], &[drawing.path()]].concat(), b"");
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let svg = drawing.read();
    let title = format!("Pings of {address} over UDP");
    let texts = texts(&svg);
    let counts = "20 sent, 16 received, 4 lost: 4 timeout.";
    for text in [&*title, "seconds", "0", "round-trip time", "lost, or damaged", counts] {
        assert!(texts.contains(&text), "{text}: {texts:?}");
    }
    // Beside that of the legend. What was sent at nearly the same time has one mark, or one for the mean and one for
    // the longest.
    let marks = |colour| {
        svg.iter().filter(|one| one.name == "polygon" && one.has("fill", colour)).count() - 1
    };
    assert!((2..=32).contains(&marks(FIRST)) && (1..=4).contains(&marks(SECOND)), "{texts:?}");
    let outcome = run(&["ping", &address, "-c", "1", "--figure", "/nowhere/ping.svg"], b"");
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("cannot write the figure /nowhere/ping.svg"), "{outcome:?}");
}

/// A server that answers no more than this number of messages a second, one after the other.
fn limited(rate: u32) -> String {
    let answer = move |listener: TcpListener| {
        for stream in listener.incoming() {
            let (mut stream, mut message) = (stream.unwrap(), [0; 64]);
            while stream.read_exact(&mut message).is_ok() {
                thread::sleep(Duration::from_secs(1) / rate);
                // The client may have had enough.
                let _ = stream.write_all(&message);
            }
        }
    };
    tcp_double(answer).0
}

#[test]
fn a_sweep_tells_of_each_step_and_is_drawn() {
    let (address, drawing) = (limited(400), Drawing::new("sweep.svg"));
    let sweep = ["load", &address, "--sweep", "-c", "1", "-r", "50", "-t", "400ms"];
    let outcome = run(&[&sweep[..], &["--json", "--figure", drawing.path()]].concat(), b"");
    let told = "1 connection, 64 bytes a message; up to 24 steps, for 21.6 s at the longest";
    assert!(outcome.stderr.contains(told), "{outcome:?}");
    let json: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    let steps = json["steps"].as_array().unwrap();
    let number = |value: &serde_json::Value| value.as_f64().unwrap();
    // No machine is so fast or so slow that more is kept than the server can answer.
    assert!(json["knee"].as_f64().is_none_or(|knee| knee <= 410.0), "{json}");
    assert_eq!((json["event"].as_str(), number(&steps[0]["rate"])), (Some("sweep"), 50.0));
    for step in steps {
        let (rate, verdict) = (number(&step["rate"]), step["verdict"].as_str().unwrap());
        assert!(["kept", "behind", "slow"].contains(&verdict), "{step}");
        assert!(
            verdict != "kept" || number(&step["report"]["rate"]) >= rate * 0.99 - 3.0,
            "{step}"
        );
        assert_eq!(number(&step["report"]["config"]["rate"]), rate);
    }
    assert!(steps.iter().any(|step| step["verdict"] != "kept"), "{json}");
    let svg = drawing.read();
    for part in [
        &*format!("TCP ping-pong with {address}"),
        "1 connection, 64 bytes a message",
        "did not keep up",
        "Latency: p50, and p99 (dashed)",
        "Answered per second, and offered (dashed)",
        "messages per second offered",
        "100",
    ] {
        assert!(texts(&svg).contains(&part), "{part}: {svg:?}");
    }
    // Each step has a point for what was offered and answered; where it was not kept, a mark.
    let points = |colour| {
        let is_point = |one: &&Element| one.name == "polygon" && one.has("fill", colour);
        svg.iter().filter(is_point).count()
    };
    let missed = steps.iter().filter(|step| step["verdict"] != "kept").count();
    assert!(points(FIRST) > 2 * steps.len(), "{} of {steps:?}", points(FIRST));
    assert!((1 + missed..=1 + 2 * missed).contains(&points(SECOND)), "{}", points(SECOND));
}

#[test]
fn a_sweep_that_is_stopped_prints_the_steps_that_were_done() {
    let address = limited(100_000);
    let mut child =
        spawn(evecho(&["load", &address, "--sweep", "-c", "1", "-r", "20", "-t", "1s"]));
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = [(); 3].map(|()| String::new());
    for line in &mut lines {
        stdout.read_line(line).unwrap();
    }
    assert!(lines[0].ends_with("; up to 24 steps, for 54 s at the longest\n"), "{lines:?}");
    assert!(lines[1].starts_with("       offered     answered        p50 "), "{lines:?}");
    assert!(lines[2].starts_with("        20.0/s "), "{lines:?}");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("Stopped before the knee was known. "), "{rest}");
    assert_eq!(finish(child).code, Some(1));
}

#[test]
fn a_sweep_explains_its_usage() {
    for (flags, word) in [
        ("-n 5", "cannot be used with"),
        ("--every 1s", "cannot be used with"),
        ("--pid 1", "cannot be used with"),
        ("-m stream", "a rate is for ping-pong and churn only"),
    ] {
        let args = ["load", "127.0.0.1:9", "--sweep"].into_iter().chain(flags.split(' '));
        let outcome = run(&args.collect::<Vec<_>>(), b"");
        assert_eq!(outcome.code, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(word), "{outcome:?}");
    }
}
