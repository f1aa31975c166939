//! The port for monitors, as they see it: over HTTP, with their own parsers, and Prometheus itself.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/daemon.rs"]
mod daemon;
#[path = "common/monitored.rs"]
mod monitored;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use daemon::{
    DEADLINE, Daemon, LOCALHOST, assert_datagram, assert_echo, connect, evecho, read_to_end, run,
    stderr, wait_until,
};
use evecho::{Config, Server};
use monitored::Monitored;
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

// ---- what is told

const OPENMETRICS: &str = "application/openmetrics-text";

/// Metrics as a scrape or the document has them: their types, and the values of their `reason`.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

fn told_by(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            // OpenMetrics declares the name, to which samples add a suffix.
            let suffix = match kind {
                "counter" if text.ends_with("# EOF\n") => "_total",
                "info" => "_info",
                _ => "",
            };
            metrics.insert(format!("{name}{suffix}"), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((name, labels)) = line.split_once("{reason=\"") {
            let reason = labels.split('"').next().unwrap();
            metrics.get_mut(name).unwrap().1.insert(reason.to_owned());
        }
    }
    metrics
}

#[test]
fn the_table_has_the_metrics_that_are_served() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md"));
    let text = text.unwrap();
    let (_, section) = text.split_once("\n## Counters and metrics\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut documented = Metrics::new();
    // One table has counters, one gauges; in the third one the type stands behind the metric.
    let mut kind = "";
    for row in section.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        match (kind, cells[1]) {
            (_, "counter" | "gauge" | "metric") => kind = cells[1],
            ("metric", name) => _ = documented.insert(name.into(), (cells[2].into(), [].into())),
            _ => {
                let (name, reason) = cells[2].split_once("{reason=\"").unwrap_or((cells[2], ""));
                let metric = documented.entry(name.into()).or_default();
                metric.0 = kind.into();
                metric.1.extend(reason.strip_suffix("\"}").map(str::to_owned));
            }
        }
    }
    let monitored = Monitored::start(&[]);
    let (_, _, openmetrics) = monitored.get_as("/metrics", OPENMETRICS);
    assert_eq!(told_by(&openmetrics), documented);
    documented.get_mut("evecho_build_info").unwrap().0 = "gauge".into();
    assert_eq!(told_by(&monitored.metrics()), documented);
}

#[test]
fn the_numbers_are_those_of_the_server() {
    let monitored = Monitored::start(&["--framing", "lines", "--max-frame", "8"]);
    let daemon = &monitored.server;
    let open = daemon.connect();
    let long = daemon.connect();
    for (client, text) in [(&open, "one\n"), (&long, "two\n")] {
        daemon::assert_answer(client, text, text);
    }
    (&long).write_all(b"much too long").unwrap();
    assert_eq!(read_to_end(&long), b"");
    drop(long);
    assert_datagram(&daemon.udp(), b"hello");
    // It lingers for a moment.
    wait_until("the connection ends", || monitored.value("evecho_connections_open") <= 1.0);
    for (sample, value) in [
        (concat!("evecho_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
        ("evecho_accepted_total", 2.0),
        ("evecho_connections_closed_total{reason=\"frame_error\"}", 1.0),
        ("evecho_connections_closed_total{reason=\"peer_fin\"}", 0.0),
        ("evecho_udp_answered_total", 1.0),
        ("evecho_udp_bytes_out_total", 5.0),
        ("evecho_accept_paused", 0.0),
    ] {
        assert_eq!(monitored.value(sample), value, "{sample}");
    }
    // Monitors do not count as clients, and clients do not show in what is monitored of monitors.
    assert!(monitored.value("process_open_fds") >= 8.0);
    assert!(monitored.value("process_resident_memory_bytes") > 1e6);
    assert!(monitored.value("process_cpu_seconds_total") > 0.0);
    let turns = monitored.value("evecho_turn_seconds_count");
    assert!(turns > 10.0);
    assert!(monitored.value("evecho_turn_seconds_bucket{le=\"+Inf\"}") >= turns);
    assert!(monitored.value("evecho_turn_seconds_sum") > 0.0);
    assert!(monitored.value("evecho_turn_events_sum") >= 2.0);
    let start = monitored.value("process_start_time_seconds");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((now - 3_600.0..now + 1.0).contains(&start), "{start}, {now}");
    assert!(open.take_error().unwrap().is_none());
}

#[test]
fn what_is_not_known_without_proc_is_left_out() {
    let Some(mut command) = sandbox::without_proc() else { return };
    command.args(["-p", "0", "--bind", "127.0.0.1", "--metrics", "127.0.0.1:0"]);
    let text = Monitored::spawn(&mut command).metrics();
    let known: Vec<&str> = text.lines().filter(|line| line.starts_with("process_")).collect();
    let names = known.iter().map(|line| line.split(' ').next().unwrap());
    assert!(names.eq(["process_max_fds", "process_cpu_seconds_total"]), "{known:?}");
}

#[test]
fn what_holds_for_http_holds_here() {
    let monitored = Monitored::start(&[]);
    let (status, head, body) = monitored.get("/livez");
    assert_eq!((status, body.as_str()), (200, "ok\n"));
    for field in ["Date: ", "Content-Type: text/plain", "Content-Length: 3"] {
        assert!(head.contains(&format!("\r\n{field}")), "{head}");
    }
    for (accept, format) in [
        ("*/*", "text/plain; version=0.0.4"),
        (OPENMETRICS, "application/openmetrics-text; version=1.0.0"),
    ] {
        let (status, head, _) = monitored.get_as("/metrics?all=1", accept);
        assert_eq!(status, 200);
        let field = format!("\r\nContent-Type: {format}; charset=utf-8\r\n");
        assert!(head.contains(&field), "{head}");
    }
    // As HAProxy's `option httpchk` asks.
    let options = monitored.send(b"OPTIONS / HTTP/1.0\r\n\r\n");
    let allow = "\r\nAllow: GET, HEAD, OPTIONS\r\n";
    assert!(options.starts_with("HTTP/1.1 200 ") && options.contains(allow), "{options}");
    assert_eq!(monitored.get("/readyz").0, 200);
    assert_eq!(monitored.get("/").0, 404);
    let refused =
        monitored.send(b"POST /livez HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nok");
    assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains(allow), "{refused}");
    for broken in [&b"hello\r\n"[..], b"\x16\x03\x01\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n", b"GET /"]
    {
        let answer = monitored.send(broken);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{broken:?}: {answer}");
    }
    let long = [b"GET /", &[b'x'; 100_000][..]].concat();
    assert!(monitored.send(&long).starts_with("HTTP/1.1 431 "));
    // As many in one write as one turn has replies to, and more.
    let request = "GET /livez HTTP/1.1\r\nHost: test\r\n\r\n";
    let replied = |text: &str| text.matches("HTTP/1.1 200 OK\r\n").count();
    assert_eq!(replied(&monitored.send(request.repeat(16).as_bytes())), 16);
    let replies = monitored.send(request.repeat(500).as_bytes());
    assert!((16..500).contains(&replied(&replies)), "{}", replied(&replies));
    assert!(replies.ends_with("\r\nConnection: close\r\n\r\nok\n"), "{replies}");
    assert_echo(&monitored.server.connect());
}

#[test]
fn a_page_comes_whole_while_the_client_goes_on_sending() {
    let monitored = Monitored::start(&[]);
    let comes_whole = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        socket.connect(&monitored.address.into()).unwrap();
        let mut client = TcpStream::from(socket);
        client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        // More than all buffers hold, and than is dropped of a client that has its page.
        for _ in 0..256 {
            if client.write_all(&[b'x'; 64 << 10]).is_err() {
                break;
            }
        }
        let mut page = String::new();
        let _ = client.read_to_string(&mut page);
        page.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            head.contains(&format!("\r\nContent-Length: {}\r\n", body.len()))
        })
    };
    // That takes milliseconds, and after 2 s it is over. A machine that is busy may take longer once.
    assert!((0..3).any(|_| comes_whole()));
}

// ---- those who look

/// Whether a program is there.
fn is_installed(program: &str) -> bool {
    let output = Command::new(program).arg("--version").output();
    let installed = output.is_ok_and(|output| output.status.success());
    if !installed {
        println!("skipped: {program} is not installed");
    }
    installed
}

#[test]
fn curl_keeps_its_connection() {
    if !is_installed("curl") {
        return;
    }
    let monitored = Monitored::start(&[]);
    let url = |path: &str| format!("http://{}{path}", monitored.address);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "-w", "%{num_connects} ", "-o", "/dev/null", "-o", "/dev/null"]);
    let output = run(curl.args([url("/metrics"), url("/livez")]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 0 ", "{}", stderr(&output));
    let output = run(Command::new("curl").args(["-sS", "--head", &url("/metrics")]));
    let head = String::from_utf8(output.stdout).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let output = run(Command::new("curl").args(["-sS", "--http1.0", &url("/readyz")]));
    assert_eq!(output.stdout, b"ok\n", "{}", stderr(&output));
}

/// Reads standard input by the module named, which is of one format; prints how many metrics there are.
const PARSE: &str = "
import importlib, sys
text_string_to_metric_families = importlib.import_module(sys.argv[1]).text_string_to_metric_families
print(len(list(text_string_to_metric_families(sys.stdin.read()))))
";

/// A Python with the parser of `prometheus_client`, installed where it is not there already.
fn python() -> Option<PathBuf> {
    let imports = |python: &Path| {
        let output = Command::new(python)
            .args(["-c", PARSE, "prometheus_client.openmetrics.parser"])
            .stdin(Stdio::null())
            .output();
        // No text is no OpenMetrics, so it complains of that.
        output.is_ok_and(|output| !stderr(&output).contains("ModuleNotFoundError"))
    };
    if !is_installed("python3") {
        return None;
    }
    let everywhere = PathBuf::from("python3");
    if imports(&everywhere) {
        return Some(everywhere);
    }
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus_client");
    let python = environment.join("bin/python3");
    if !imports(&python) {
        let folder = environment.to_str().unwrap();
        for (python, step) in [
            (&everywhere, &["-m", "venv", "--clear", folder][..]),
            (&python, &["-m", "pip", "-q", "install", "prometheus_client"]),
        ] {
            let output = Command::new(python).args(step).stdin(Stdio::null()).output();
            if !output.as_ref().is_ok_and(|output| output.status.success()) {
                println!("skipped: prometheus_client cannot be installed: {output:?}");
                return None;
            }
        }
    }
    Some(python)
}

#[test]
fn the_parser_of_prometheus_client_reads_it() {
    let Some(python) = python() else { return };
    let monitored = Monitored::start(&[]);
    assert_echo(&monitored.server.connect());
    for (accept, parser) in
        [(OPENMETRICS, "prometheus_client.openmetrics.parser"), ("", "prometheus_client.parser")]
    {
        let (_, _, text) = monitored.get_as("/metrics", accept);
        let output = filter(Command::new(&python).args(["-c", PARSE, parser]), &text);
        let read = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(read, text.matches("# TYPE ").count().to_string(), "{}", stderr(&output));
    }
}

/// How a command ends that reads this.
fn filter(command: &mut Command, text: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn promtool_has_nothing_to_say_of_it() {
    if !is_installed("promtool") {
        return;
    }
    let text = Monitored::start(&[]).metrics();
    let output = filter(Command::new("promtool").args(["check", "metrics"]), &text);
    let said = (output.status.code(), stderr(&output));
    assert_eq!(said, (Some(0), String::new()), "{text}");
}

/// A Prometheus that scrapes one target; ended when it goes out of scope.
struct Prometheus {
    process: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(target: SocketAddr) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let config = format!(
            "global: {{ scrape_interval: 1s }}\nscrape_configs: [{{ job_name: evecho, static_configs: [{{ targets: ['{target}'] }}] }}]\n"
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        // It takes no port 0. Nobody else is given this one so soon.
        let free = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let mut process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={free}"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let log = BufReader::new(process.stderr.take().unwrap());
        thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let prometheus = Prometheus { process, address: free };
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains("ready to receive")) {
            match lines.recv_timeout(DEADLINE) {
                Ok(line) => said.push(line),
                Err(_) => panic!("Prometheus does not start: {said:?}"),
            }
        }
        prometheus
    }

    fn get(&self, path: &str) -> Value {
        let mut stream = connect(self.address);
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn prometheus_scrapes_it_without_a_complaint() {
    if !is_installed("prometheus") {
        return;
    }
    let monitored = Monitored::start(&[]);
    assert_echo(&monitored.server.connect());
    let prometheus = Prometheus::start(monitored.address);
    let end = Instant::now() + DEADLINE;
    loop {
        let targets = prometheus.get("/api/v1/targets");
        let target = &targets["data"]["activeTargets"][0];
        let complaint = target["lastError"].as_str().unwrap_or_default();
        // On a machine that stands still, a scrape may take too long.
        let is_late = complaint.contains("deadline exceeded");
        assert!(complaint.is_empty() || is_late, "{target}");
        if target["health"] == "up" {
            break;
        }
        assert!(Instant::now() < end, "{target}");
        thread::sleep(Duration::from_millis(50));
    }
    for (query, value) in [
        ("evecho_accepted_total", "1"),
        ("sum(evecho_connections_closed_total)", "1"),
        ("evecho_connections_open", "0"),
        ("evecho_turn_seconds_bucket{le=\"%2BInf\"}>0==bool%201", "0"),
        // What every scrape tells of itself.
        ("up", "1"),
    ] {
        let path = format!("/api/v1/query?query={}", query.replace('"', "%22"));
        let answer = prometheus.get(&path);
        assert_eq!(answer["data"]["result"][0]["value"][1], value, "{query}: {answer}");
    }
}

// ---- limits

#[test]
fn silent_and_slow_monitors_shut_out_nobody() {
    evecho::raise_open_file_limit().unwrap();
    let monitored = Monitored::start(&[]);
    let mut two_parts = monitored.connect();
    two_parts.write_all(b"GET /livez HTTP/1.0\r\n").unwrap();
    let silent: Vec<TcpStream> = (0..1_000).map(|_| monitored.connect()).collect();
    two_parts.write_all(b"\r\n").unwrap();
    assert!(read_to_end(&two_parts).starts_with(b"HTTP/1.1 200 OK\r\n"));
    let (stop, stopped) = channel::<()>();
    let address = monitored.address;
    let slow = thread::spawn(move || {
        let mut sent = 0;
        let mut stream = connect(address);
        while stopped.recv_timeout(Duration::from_millis(100)).is_err() {
            // It may lose its place to a newcomer.
            if stream.write_all(&b"GET /livez HTTP/1.1\r\n"[sent..=sent]).is_err() {
                (stream, sent) = (connect(address), 0);
            }
            sent = (sent + 1) % 21;
        }
    });
    let answers_soon = || {
        let start = Instant::now();
        assert_eq!(monitored.get("/livez").0, 200);
        start.elapsed() < Duration::from_secs(5)
    };
    assert!((0..3).any(|_| answers_soon()));
    let server = format!("127.0.0.1:{}", monitored.server.port);
    let checked = run(evecho().args(["check", &server, "--timeout", "120s"]));
    let report = String::from_utf8_lossy(&checked.stdout);
    assert_eq!(checked.status.code(), Some(0), "{report}{}", stderr(&checked));
    assert!(monitored.value("evecho_accepted_total") > 10.0);
    stop.send(()).unwrap();
    slow.join().unwrap();
    drop(silent);
}

#[cfg(target_os = "linux")]
#[test]
fn monitors_that_wait_cost_no_cpu() {
    let monitored = Monitored::start(&[]);
    let silent: Vec<TcpStream> = (0..20).map(|_| monitored.connect()).collect();
    let mut kept = monitored.connect();
    daemon::assert_answer(&kept, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n");
    kept.write_all(b"GET /me").unwrap();
    assert_echo(&monitored.server.connect());
    monitored.server.assert_sleeps();
    drop(silent);
}

#[test]
fn the_port_for_monitors_may_be_of_a_host_name() {
    let flags = ["--port", "0", "--bind", "127.0.0.1", "--metrics", "localhost:0"];
    let monitored = Monitored::spawn(evecho().args(flags));
    assert!(monitored.address.ip().is_loopback());
    assert_eq!(monitored.get("/livez").0, 200);
}

#[test]
fn clients_and_monitors_take_no_descriptors_from_each_other() {
    let script = format!(
        "ulimit -n 80 && exec '{}' -p 0 --bind 127.0.0.1 --metrics 127.0.0.1:0 --spare-files 8",
        env!("CARGO_BIN_EXE_evecho")
    );
    let monitored = Monitored::spawn(Command::new("sh").args(["-c", &script]));
    let clients: Vec<TcpStream> = (0..100).map(|_| monitored.server.connect()).collect();
    let silent: Vec<TcpStream> = (0..30).map(|_| monitored.connect()).collect();
    monitored.server.wait_for("as many as the limit on open files allows");
    assert_eq!(monitored.value("evecho_accept_paused"), 1.0);
    let open = monitored.value("evecho_connections_open");
    assert!((20.0..60.0).contains(&open), "{open}");
    assert_eq!(monitored.value("process_max_fds"), 80.0);
    drop(silent);
    for client in &clients {
        (&mut &*client).write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(client), b"hello");
    }
}

// ---- life

#[test]
fn who_is_told_to_stop_is_alive_and_not_ready() {
    let flags = ["--drain-delay", "1h", "--drain-timeout", "1h"];
    let mut delayed = Monitored::start(&flags);
    assert_eq!((delayed.get("/readyz").0, delayed.value("evecho_ready")), (200, 1.0));
    delayed.server.signal(Signal::SIGTERM);
    delayed.server.wait_for("told to stop");
    let (status, _, reason) = delayed.get("/readyz");
    assert_eq!(
        (status, &*reason),
        (503, "told to stop: clients are served until the drain begins\n")
    );
    assert_eq!((delayed.get("/livez").0, delayed.value("evecho_ready")), (200, 0.0));
    assert_echo(&delayed.server.connect());
    delayed.server.signal(Signal::SIGTERM);
    assert_eq!(delayed.server.wait().code(), Some(0));

    let mut draining = Monitored::start(&flags[2..]);
    let client = draining.server.connect();
    assert_echo(&client);
    draining.server.signal(Signal::SIGTERM);
    draining.server.wait_for("draining: 1 connection");
    let (status, _, reason) = draining.get("/readyz");
    assert_eq!((status, &*reason), (503, "draining: no new clients are accepted\n"));
    assert_eq!(draining.get("/livez").0, 200);
    // A monitor that stays does not keep the server.
    let _monitor = draining.connect();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&client), b"");
    assert_eq!(draining.server.wait().code(), Some(0));
}

#[test]
fn what_cannot_be_is_one_sentence() {
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--metrics", "12100"], &["give an address, too: 127.0.0.1:12100"]),
        (&["--metrics", ":12100"], &["give an address, too: 127.0.0.1:12100"]),
        (&["--metrics", "localhost"], &["localhost:12100"]),
        (
            &["--metrics", "127.0.0.1:0", "--design", "threaded"],
            &["--metrics", "the threaded design"],
        ),
    ];
    for (flags, words) in cases {
        let output = run(evecho().args(["--port", "0", "--bind", "127.0.0.1"]).args(flags));
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{flags:?}: no '{word}' in {said}");
        }
    }
}

#[test]
fn a_port_that_cannot_be_had_is_one_line_and_clients_are_served() {
    let monitored = Monitored::start(&[]);
    let taken = monitored.address.to_string();
    for (address, reason) in
        [(&*taken, "another socket has that port"), ("192.0.2.1:0", "no such address")]
    {
        let mut command = evecho();
        let server = Daemon::spawn(command.args(["--port", "0", "--metrics", address]));
        let line = server.wait_for("monitors are not served");
        for word in ["ERROR", address, reason, "(--metrics)"] {
            assert!(line.contains(word), "no '{word}' in {line}");
        }
        assert_echo(&server.connect());
        server.stop();
    }
}

#[test]
fn who_embeds_a_server_is_told_the_port() {
    let mut config = Config::default();
    (config.port, config.bind) = (0, vec![LOCALHOST.into()]);
    config.metrics = Some((LOCALHOST, 0).into());
    let server = Server::bind(config).unwrap();
    let address = server.metrics_addr().unwrap();
    assert!(address.port() != 0 && !server.local_addrs().contains(&address));
    let server = server.spawn().unwrap();
    assert_eq!(server.metrics_addr(), Some(address));
    let mut stream = connect(address);
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
    assert!(read_to_end(&stream).starts_with(b"HTTP/1.1 200 OK\r\n"));
    server.stop().unwrap();
    let mut config = Config::default();
    config.port = 0;
    assert_eq!(Server::bind(config).unwrap().metrics_addr(), None);
}
