//! The report of a load, for people.

use evecho::client::load::{Config, Latency, Mode, Report};
use evecho::client::target::{Target, Transport};
use evecho::units::{grouped, throughput, time};

/// The report for people.
pub(in crate::cli) fn describe(report: &Report, target: &Target) -> String {
    let mut text = headline(report, target);
    let duration = report.duration.as_secs_f64();
    let what = if report.config.mode == Mode::Churn { "connections" } else { "messages" };
    text += &format!("\n  {:<13}{} in {duration:.2}s", what, grouped(report.messages));
    if report.config.mode != Mode::Idle && report.messages > 0 {
        let bytes = report.bytes as f64 / duration;
        text += &format!(": {}/s, {} each way", grouped(report.rate as u64), throughput(bytes));
    }
    text += &describe_shares(report).unwrap_or_default();
    if let Some(latency) = &report.latency {
        text += &format!("\n  {:<13}{}", "latency", describe_latency(latency));
    }
    text += &format!("\n  {:<13}{}\n", "errors", describe_errors(report));
    for remark in remarks(report) {
        text += &format!("  {remark}\n");
    }
    text
}

fn headline(report: &Report, target: &Target) -> String {
    let Config { transport, address, mode, connections, size, depth, .. } = report.config;
    let runs = match report.runs {
        1 => String::new(),
        runs => format!("{runs} runs: "),
    };
    let what = match (transport, mode) {
        (Transport::Udp, _) => format!("UDP ping-pong with {target}"),
        (Transport::Tcp, Mode::PingPong) => format!("TCP ping-pong with {target}"),
        (Transport::Tcp, Mode::Stream) => format!("TCP streams to {target}"),
        (Transport::Tcp, Mode::Churn) => format!("TCP connections to {target}, opened and closed"),
        (Transport::Tcp, Mode::Idle) => format!("Idle TCP connections to {target}"),
        (Transport::Tcp, _) => format!("TCP with {target}"),
    };
    let mut text = runs + &what;
    if target.to_string() != address.to_string() {
        text += &format!(" ({address})");
    }
    let sockets = if transport == Transport::Udp { "sockets" } else { "connections" };
    text += &format!(": {} {sockets}, {size} bytes a message", grouped(connections.into()));
    if mode == Mode::PingPong {
        text += &format!(", {depth} in flight on each");
    }
    if report.config.threads > 1 {
        text += &format!(", {} threads", report.config.threads);
    }
    if let Some(rate) = report.config.rate {
        text += &format!(", {rate}/s asked for");
    }
    if report.stopped {
        text += "; stopped early";
    }
    text
}

/// How the connections shared the messages.
fn describe_shares(report: &Report) -> Option<String> {
    let Config { mode, connections, .. } = report.config;
    let (slowest, fastest) = (report.slowest?, report.fastest?);
    if mode == Mode::Idle || connections < 2 || report.messages == 0 {
        return None;
    }
    let [slowest, mean, fastest] =
        [slowest, report.rate / f64::from(connections), fastest].map(|rate| grouped(rate as u64));
    Some(format!("\n  {:<13}{slowest}/s to {fastest}/s, mean {mean}/s", "each"))
}

fn describe_latency(latency: &Latency) -> String {
    let Latency { mean, p50, p90, p99, p999, max, .. } = *latency;
    let percentiles = [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)];
    let mut text = format!("mean {}", time(mean));
    for (name, value) in percentiles {
        text += &match value {
            Some(value) => format!(", {name} {}", time(value)),
            None => format!(", {name} never sent"),
        };
    }
    text
}

fn describe_errors(report: &Report) -> String {
    let seen: Vec<String> = report
        .errors
        .kinds()
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(kind, count)| format!("{} {kind}", grouped(count)))
        .collect();
    match (&report.first_error, seen.is_empty()) {
        (_, true) => "none".to_owned(),
        (Some(first), false) => format!("{}; the first: {first}", seen.join(", ")),
        (None, false) => seen.join(", "),
    }
}

/// What a reader should know besides, and what to do about it.
fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    if report.messages == 0 && report.errors.total() == 0 {
        remarks.push("Nothing came back: is it an echo server?".to_owned());
    }
    if report.unsent > 0 {
        remarks.push(format!(
            "{} messages were due and never sent, which counts as later than all others: ask for \
             a lower --rate, or allow more --connections or --depth.",
            grouped(report.unsent)
        ));
    }
    if report.starved > 0 && report.messages > 0 && report.rate > 0.0 {
        let of = grouped(report.config.connections.into());
        remarks.push(format!(
            "{} of {of} connections got nothing back in the measured part: the server may \
             serve them one after the other, or the run was short.",
            grouped(report.starved.into())
        ));
    }
    remarks
}
