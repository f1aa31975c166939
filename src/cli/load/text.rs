//! The report of a load, for people.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use evecho::client::load::{Config, Latency, Length, Mode, Origin, Ports, Report};
use evecho::client::target::Target;
use evecho::units::{bit_rate, count, grouped, rounded, throughput, time, were};
use evecho::{Framing, Transport};
use humantime::format_rfc3339_seconds;

/// The report for people.
pub(super) fn describe(report: &Report, target: &Target) -> String {
    let mut text = headline(report, target);
    for (name, value) in rows(report) {
        text += &format!("\n  {name:<13}{value}");
    }
    for remark in remarks(report) {
        text += &format!("\n  {remark}");
    }
    text + "\n"
}

fn rows(report: &Report) -> Vec<(&'static str, String)> {
    let what = if report.config.mode == Mode::Churn { "connections" } else { "messages" };
    let mut rows = vec![(what, describe_messages(report))];
    rows.extend(describe_shares(report).map(|shares| ("each", shares)));
    let latency = |name, latency| (name, describe_latency(latency));
    rows.extend(report.latency.as_ref().map(|all| latency("latency", all)));
    for (name, part) in [
        ("connecting", &report.connecting),
        ("exchange", &report.exchange),
        ("sent late", &report.send_delay),
    ] {
        rows.extend(part.as_ref().map(|part| latency(name, &part.latency)));
    }
    rows.push(("errors", describe_errors(report)));
    rows.push(("measured", describe_runs(&report.runs)));
    rows.extend(describe_client(report).map(|client| ("client", client)));
    rows.extend(describe_server(report).map(|server| ("server", server)));
    rows
}

fn describe_messages(report: &Report) -> String {
    let duration = report.duration.as_secs_f64();
    let text = format!("{} in {duration:.2}s", grouped(report.messages));
    if report.config.mode == Mode::Idle || report.messages == 0 {
        return text;
    }
    let (rate, bytes) = (rounded(report.rate), report.bytes as f64 / duration);
    format!("{text}: {rate}/s, {} ({}) each way", throughput(bytes), bit_rate(bytes))
}

/// What was asked for: the load, a colon, and its measures.
pub(super) fn headline(report: &Report, target: &Target) -> String {
    let Config { mode, depth, threads, rate, .. } = report.config;
    let runs = match report.runs.len() {
        1 => String::new(),
        runs => format!("{runs} runs: "),
    };
    let mut text = runs + &subject(&report.config, target);
    if mode == Mode::PingPong && rate.is_none() {
        text += &format!(", {depth} in flight on each");
    }
    if threads > 1 {
        text += &format!(", {threads} threads");
    }
    if let Some(rate) = rate {
        text += &format!(", {}/s asked for", rounded(rate));
    }
    if report.stopped {
        text += "; stopped early";
    }
    if report.ended.is_some() {
        text += "; ended early";
    }
    text
}

/// The kind of the load, a colon, and its connections.
pub(super) fn subject(config: &Config, target: &Target) -> String {
    let &Config { transport, address, mode, connections, size, .. } = config;
    let mut text = match (transport, mode) {
        (Transport::Udp, _) => format!("UDP ping-pong with {target}"),
        (Transport::Tcp, Mode::PingPong) => format!("TCP ping-pong with {target}"),
        (Transport::Tcp, Mode::Stream) => format!("TCP streams to {target}"),
        (Transport::Tcp, Mode::Churn) => format!("TCP connections to {target}, opened and closed"),
        (Transport::Tcp, Mode::Idle) => format!("Idle TCP connections to {target}"),
        (Transport::Tcp, _) => format!("TCP with {target}"),
    };
    if target.to_string() != address.to_string() {
        text += &format!(" ({address})");
    }
    let socket = if transport == Transport::Udp { "socket" } else { "connection" };
    text += &format!(": {}, {} a message", count(connections, socket), count(size, "byte"));
    if let Some(framing) = framing(config.framing) {
        text += framing;
    }
    if config.upper {
        text += ", answered in upper case";
    }
    text
}

fn framing(framing: Framing) -> Option<&'static str> {
    match framing {
        Framing::Lines => Some(" in a line"),
        Framing::LengthPrefixed => Some(" behind their length"),
        _ => None,
    }
}

/// How the connections shared the messages.
fn describe_shares(report: &Report) -> Option<String> {
    let Config { mode, connections, .. } = report.config;
    let (slowest, fastest) = (report.slowest?, report.fastest?);
    if mode == Mode::Idle || connections < 2 || report.messages == 0 {
        return None;
    }
    let [slowest, mean, fastest] =
        [slowest, report.rate / f64::from(connections.max(1)), fastest].map(rounded);
    Some(format!("{slowest}/s to {fastest}/s, mean {mean}/s"))
}

fn describe_latency(latency: &Latency) -> String {
    let Latency { mean, p50, p90, p99, p999, max, .. } = *latency;
    let percentiles = [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)];
    let mut text = format!("mean {}", time(mean));
    for (name, value) in percentiles {
        text += &match value {
            Some(value) => format!(", {name} {}", time(value)),
            None => format!(", {name} never"),
        };
    }
    text
}

/// What the client needed.
fn describe_client(report: &Report) -> Option<String> {
    let client = report.client.as_ref()?;
    let (all, busiest) = (client.cpu_share * 100.0, client.busiest_thread * 100.0);
    let limit = match client.was_limit {
        true => "\n  The client was the limit: give it more --threads, or load from more machines.",
        false => "",
    };
    Some(format!(
        "{all:.0} % of a CPU; its busiest thread had work for {busiest:.0} % of the time{limit}"
    ))
}

fn describe_server(report: &Report) -> Option<String> {
    let server = report.server.as_ref()?;
    let (all, each) = (server.cpu_share * 100.0, time(server.cpu_per_message));
    let (memory, pid) = (&server.memory, server.pid);
    Some(format!("{all:.0} % of a CPU, {each} a message, memory {memory}: process {pid}"))
}

fn describe_errors(report: &Report) -> String {
    let seen = seen(report);
    match (&report.first_error, seen.is_empty()) {
        (_, true) => "none".to_owned(),
        (Some(first), false) => format!("{}; the first: {first}", seen.join(", ")),
        (None, false) => seen.join(", "),
    }
}

/// That local ports run low, and what to do about it.
pub(super) fn low_ports(ports: &Ports) -> String {
    let [taken, all] = [ports.taken, ports.all].map(grouped);
    format!(
        "{taken} of {all} local ports towards the server are taken (net.ipv4.ip_local_port_range for \
         each source address; TCP keeps each for up to a minute): opening connections gets slow, and then \
         fails; give more source addresses with --from, or wait between runs"
    )
}

/// The kinds of errors that were seen, with their counts.
pub(super) fn seen(report: &Report) -> Vec<String> {
    let kinds = report.errors.kinds().into_iter().filter(|(_, count)| *count > 0);
    let describe = |(kind, count)| match (kind, report.config.transport) {
        // A datagram that comes late stays lost.
        ("late", Transport::Udp) => format!("{} of the lost late", grouped(count)),
        ("duplicates", _) => evecho::units::count(count, "duplicate").to_string(),
        _ => format!("{} {kind}", grouped(count)),
    };
    kinds.map(describe).collect()
}

/// When and where it was, and with which version.
fn describe_runs(runs: &[Origin]) -> String {
    // It can be written: 64 bits of nanoseconds, and as many after them, end in the year 3138.
    let at = |time| format_rfc3339_seconds(UNIX_EPOCH + time);
    let list = |of: fn(&Origin) -> &str| {
        let different: BTreeSet<&str> = runs.iter().map(of).collect();
        let more = different.len().saturating_sub(MOST_NAMED);
        let named = different.into_iter().take(MOST_NAMED).collect::<Vec<_>>().join(", ");
        if more == 0 { named } else { format!("{named} and {more} more") }
    };
    let [start, end] = [runs.iter().map(|run| run.start).min(), runs.iter().map(Origin::end).max()]
        .map(|time| at(time.unwrap_or_default()));
    let (hosts, versions) = (list(|run| &run.host), list(|run| &run.version));
    format!("{start} to {end} on {hosts}, with evecho {versions}")
}

/// How many machines, and versions, are named.
const MOST_NAMED: usize = 5;

/// What a reader should know besides, and what to do about it.
fn remarks(report: &Report) -> Vec<String> {
    let all = [
        nothing,
        upper,
        once,
        unsent,
        without_reply,
        ports,
        bound,
        replaced,
        starved,
        limited,
        apart,
    ];
    all.iter().filter_map(|remark| remark(report)).collect()
}

fn nothing(report: &Report) -> Option<String> {
    let sentence = match (report.stopped, report.latency, report.duration) {
        _ if report.messages > 0 || report.errors.total() > 0 => return None,
        (true, _, Duration::ZERO) => "It was stopped before the measured part began.",
        (true, ..) => "It was stopped before anything came back in the measured part.",
        (_, Some(_), _) => "What came back came after the measured part: allow more --time.",
        _ => "Nothing came back: is it an echo server?",
    };
    Some(sentence.to_owned())
}

fn upper(report: &Report) -> Option<String> {
    let first = report.first_error.as_ref()?;
    let sentence = "The service answers in upper case: expect that with --upper.";
    first.ends_with("in upper case").then(|| sentence.to_owned())
}

fn once(report: &Report) -> Option<String> {
    let Report { opened, errors, .. } = report;
    let sentence =
        "The server may close each connection after a message: then load it with --mode churn.";
    // A message that was sent before the FIN came is unanswered, too.
    let others = errors.total() - errors.closed - errors.unanswered.min(errors.closed);
    let is_each = errors.closed >= (*opened).into() && others == 0;
    (is_each && report.starved == 0 && errors.closed > 0).then(|| sentence.to_owned())
}

fn unsent(report: &Report) -> Option<String> {
    let messages = match report.unsent {
        0 => return None,
        u64::MAX => "More messages than can be counted were".to_owned(),
        unsent => were(unsent, "message").to_string(),
    };
    Some(format!(
        "{messages} due and never sent, which counts as later than all others: ask for a \
         lower --rate."
    ))
}

fn without_reply(report: &Report) -> Option<String> {
    let without = report.errors.without_reply();
    (without > 0 && report.latency.is_some()).then(|| {
        format!(
            "{} without a good reply, which counts as later than all others; the mean is of those that \
             came back.",
            were(without, "message")
        )
    })
}

fn ports(report: &Report) -> Option<String> {
    let low = report.ports.filter(Ports::are_low);
    low.map(|ports| format!("{}.", low_ports(&ports)))
}

fn bound(report: &Report) -> Option<String> {
    let times = count(report.bound_met, "time");
    (report.bound_met > 0).then(|| {
        format!(
            "65,536 messages were out on a connection, which is the most ({times}): what was \
             due then waited or was never sent."
        )
    })
}

fn replaced(report: &Report) -> Option<String> {
    (report.replaced > 0).then(|| {
        format!(
            "{} replaced: datagrams in a row were lost, and nothing came back for a second.",
            were(report.replaced, "socket")
        )
    })
}

/// Connections without an answer mean something only where each had something to send, and time for the
/// answer.
fn starved(report: &Report) -> Option<String> {
    let Config { connections, length, rate, .. } = report.config;
    let due = match (length, rate) {
        (Length::Messages(count), _) => count as f64,
        (_, Some(rate)) => rate * report.duration.as_secs_f64(),
        (_, None) => f64::INFINITY,
    };
    let had_something = due >= 2.0 * f64::from(connections);
    (report.starved > 0 && report.messages > 0 && had_something).then(|| {
        let [starved, all] = [report.starved, connections].map(|count| grouped(count.into()).to_string());
        format!(
            "{starved} of {all} connections got nothing back in the measured part: the server may serve \
             them one after the other, or the run was short."
        )
    })
}

/// What evecho itself does to a source that sends fast.
fn limited(report: &Report) -> Option<String> {
    let Config { transport, address, .. } = report.config;
    let limit = evecho::Config::default().limits.udp_rate?.get();
    let sent = report.messages.saturating_add(report.errors.lost);
    // Lost ones hold up a closed loop, which is then slower than the limit.
    let is_fast = sent as f64 > report.duration.as_secs_f64() * f64::from(limit) / 2.0;
    let is_far = transport == Transport::Udp && !address.ip().is_loopback();
    (is_far && is_fast && report.errors.lost > 0).then(|| {
        let limit = grouped(limit.into());
        format!(
            "If it is an evecho server, it answers {limit} datagrams a second to each remote source: \
             --udp-rate on the server changes that, and 0 is no limit."
        )
    })
}

fn apart(report: &Report) -> Option<String> {
    let longest = report.runs.iter().map(|run| run.duration).max()?;
    (report.duration > longest.mul_f64(1.05)).then(|| {
        let [longest, all] = [longest, report.duration].map(|one| time(one).to_string());
        format!(
            "The runs were not all at the same time: the longest took {longest}, all together {all}, over \
             which rates are means."
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The text of a report of 20,000 messages in 2 s, with other values in some of its fields.
    fn text(changes: &[(&str, Value)]) -> String {
        let mut report = json!({
            "version": "1", "opened": 50, "starved": 0, "slowest": 199.7, "fastest": 200.4,
            "runs": [{"host": "here", "version": "1", "start_ns": 0, "duration_ns": 2_000_000_000,
                "connections": 50, "threads": 1, "rate": null}],
            "config": {"transport": "tcp", "address": "192.0.2.1:7", "mode": "ping-pong",
                "connections": 50, "size": 64, "depth": 1, "length": {"time_ns": 2_000_000_000},
                "warmup_ns": 0, "rate": null, "timeout_ns": 5_000_000_000_u64, "sources": [],
                "threads": 1, "every_ns": 1_000_000_000},
            "duration_ns": 2_000_000_000, "messages": 20_000, "bytes": 1_280_000, "rate": 9_999.6,
            "latency": {"min_ns": 9, "mean_ns": 9, "p50_ns": 9, "p90_ns": 9, "p99_ns": null,
                "p999_ns": null, "max_ns": null},
            "errors": {"lost": 0, "reordered": 0, "duplicates": 0, "late": 0, "corrupt": 0, "cut": 0,
                "stray": 0, "unanswered": 0, "closed": 0, "unclosed": 0, "failed": 0},
            "first_error": null, "unsent": 0, "stopped": false, "ended": null,
            // It is empty.
            "histogram": "HISTFAAAACF4nJNpmSzMwMDAyAABzFAayJ+rqTSPgcH+A1QEAFFIBAE=",
        });
        for (pointer, value) in changes {
            *report.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone();
        }
        let report: Report = serde_json::from_value(report).unwrap();
        describe(&report, &Target::from(report.config.address))
    }

    #[track_caller]
    fn assert_says(sentence: &str, is_said: bool, changes: &[(&str, Value)]) {
        let text = text(changes);
        assert_eq!(text.contains(sentence), is_said, "{sentence}: {text}");
    }

    #[test]
    fn rates_are_rounded_and_have_bits_beside_bytes() {
        let text = text(&[("/config/rate", json!(10_000))]);
        for part in [
            ", 10,000/s asked for\n",
            "messages     20,000 in 2.00s: 10,000/s, 625 KiB/s (5.12 Mbit/s) each way\n",
            "each         200/s to 200/s, mean 200/s\n",
            "p90 9 ns, p99 never, p99.9 never, max never\n",
            "errors       none\n",
            "measured     1970-01-01T00:00:00Z to 1970-01-01T00:00:02Z on here, with evecho 1\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_says(", 1e300/s asked for", true, &[("/config/rate", json!(1e300))]);
        assert_says(": 9.99/s, ", true, &[("/rate", json!(9.994))]);
    }

    #[test]
    fn connections_are_starved_where_each_had_something_to_send() {
        let said = "49 of 50 connections got nothing back";
        let starved = ("/starved", json!(49));
        assert_says(said, true, std::slice::from_ref(&starved));
        for (rate, is_said) in [(10.0, false), (49.0, false), (50.0, true), (1e300, true)] {
            assert_says(said, is_said, &[starved.clone(), ("/config/rate", json!(rate))]);
        }
        for (count, is_said) in [(1, false), (99, false), (20_000, true)] {
            let length = ("/config/length", json!({"messages": count}));
            assert_says(said, is_said, &[starved.clone(), length]);
        }
    }

    #[test]
    fn the_limit_of_the_server_is_named_where_it_may_be_the_cause() {
        let said = "it answers 10,000 datagrams a second to each remote source";
        let lost = ("/errors/lost", json!(100));
        let udp = ("/config/transport", json!("udp"));
        let local = ("/config/address", json!("127.0.0.1:7"));
        assert_says(said, true, &[lost.clone(), udp.clone()]);
        assert_says(said, false, &[lost.clone(), udp.clone(), local]);
        assert_says(said, false, &[lost.clone(), udp.clone(), ("/messages", json!(1_000))]);
        assert_says(said, false, std::slice::from_ref(&lost));
        assert_says(said, false, &[udp]);
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let nothing = [("/messages", json!(0)), ("/rate", json!(0)), ("/latency", json!(null))];
        let with = |changes: &[(&'static str, Value)]| [&nothing, changes].concat();
        let stopped = ("/stopped", json!(true));
        assert_says("Nothing came back: is it an echo server?", true, &with(&[]));
        let before = with(&[stopped.clone(), ("/duration_ns", json!(0))]);
        assert_says("It was stopped before the measured part began.", true, &before);
        assert_says("It was stopped before anything came back", true, &with(&[stopped]));
        assert_says("What came back came after the measured part", true, &nothing[..2]);
        assert_says("echo server?", false, &with(&[("/errors/lost", json!(1))]));
    }

    #[test]
    fn what_ended_early_or_was_not_sent_is_said() {
        assert_says("; ended early\n", true, &[("/ended", json!("it ended"))]);
        assert_says("; ended early\n", false, &[]);
        assert_says("3 messages were due and never sent", true, &[("/unsent", json!(3))]);
        for (closed, unanswered, is_said) in
            [(49, 0, false), (50, 0, true), (50, 50, true), (50, 51, false)]
        {
            let closed = ("/errors/closed", json!(closed));
            let unanswered = ("/errors/unanswered", json!(unanswered));
            assert_says("with --mode churn", is_said, &[closed, unanswered]);
        }
        for (error, is_said) in [("it is in upper case", true), ("byte 0 differs", false)] {
            assert_says("with --upper", is_said, &[("/first_error", json!(error))]);
        }
        let all = ("/unsent", json!(u64::MAX));
        assert_says("More messages than can be counted were due", true, &[all]);
        assert_says(
            "7 messages were without a good reply, which counts as later",
            true,
            &[("/errors/cut", json!(7))],
        );
    }
}
