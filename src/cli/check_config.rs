//! `evecho --check-config`: what would be served, with which limits and for which clients.

use std::io::{self, Write};

use evecho::units::{grouped, size, time};
use evecho::{Config, Design, Framing, Preview, Transport};

use super::output::Output;

/// Prints a configuration that is valid. `set_by` are the flags and variables that are not defaults.
pub(super) fn print(
    config: &Config,
    service: &str,
    preview: &Preview,
    inherited: bool,
    set_by: &[String],
) -> io::Result<()> {
    let transport = preview.transport.map_or("TCP and UDP", Transport::name);
    let addresses = join(preview.addresses.iter().map(ToString::to_string));
    let free = preview.addresses.iter().any(|address| address.port() == 0);
    let behind = match inherited {
        true => ", which is inherited and bound",
        false => free_port(free),
    };
    let listens = format!("{addresses} ({transport}, {}){behind}", config.design);
    let mut rows = vec![
        ("listens on", listens),
        ("clients", preview.reach.to_owned()),
        ("replies", replies(config, service)),
    ];
    if !config.impairments.is_none() {
        rows.push(("on purpose", config.impairments.to_string()));
    }
    if preview.transport != Some(Transport::Udp) {
        rows.extend(tcp(config, preview));
    }
    if preview.transport != Some(Transport::Tcp) {
        rows.push(("UDP", udp(config)));
    }
    rows.push(("monitors", monitors(config, preview)));
    rows.push(("stop", stop(config)));
    let set_by = match set_by {
        [] => "nothing: all is the default".to_owned(),
        names => names.join(", "),
    };
    rows.push(("set by", set_by));
    let mut output = Output::plain();
    for (name, value) in rows {
        writeln!(output, "{name:<12} {value}")?;
    }
    let unknown = match inherited {
        true => "",
        false => " That its addresses are there and its ports are free, only a start tells.",
    };
    writeln!(output, "The configuration is valid.{unknown}")?;
    output.flush()
}

fn join(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(", ")
}

fn free_port(free: bool) -> &'static str {
    if free { "; port 0 stands for a free one" } else { "" }
}

fn replies(config: &Config, service: &str) -> String {
    let most = size(config.protocol.max_frame.into());
    let framing = match config.protocol.framing {
        Framing::Lines => format!("lines with frames of at most {most}"),
        Framing::LengthPrefixed => format!("length with frames of at most {most}"),
        _ => "raw".to_owned(),
    };
    let once = if config.protocol.once { ", to one message of each connection" } else { "" };
    format!("{service}, framing {framing}{once}")
}

fn tcp(config: &Config, preview: &Preview) -> Vec<(&'static str, String)> {
    let limits = &config.limits;
    let per_source = limits
        .per_source_connections
        .map_or("any number".to_owned(), |most| format!("at most {}", grouped(most.get() as u64)));
    let most = grouped(preview.max_connections as u64);
    let idle = match limits.idle_timeout {
        None => "connections are never closed for being idle".to_owned(),
        Some(timeout) => format!("connections close after {} without a byte", time(timeout)),
    };
    let memory = match config.design {
        Design::EventLoop => {
            format!("{} for what all TCP connections hold", size(preview.max_buffered as u64))
        }
        _ => "a buffer and at most one frame for each TCP connection".to_owned(),
    };
    vec![
        ("connections", format!("at most {most}, of one source {per_source}")),
        ("idle", idle),
        ("memory", memory),
    ]
}

fn udp(config: &Config) -> String {
    let rate = config.limits.udp_rate.map_or("any number of replies".to_owned(), |rate| {
        format!("{} replies per second to one source", grouped(rate.get().into()))
    });
    match config.limits.guard_ports.ports() {
        [] => format!("{rate}, none to source ports of its own"),
        _ => format!("{rate}, none to source ports {}", config.limits.guard_ports),
    }
}

fn monitors(config: &Config, preview: &Preview) -> String {
    config.metrics.zip(preview.metrics_reach).map_or("none".to_owned(), |(address, reach)| {
        let free = free_port(address.port() == 0);
        format!("http://{address}/metrics, for {reach}{free}")
    })
}

fn stop(config: &Config) -> String {
    let drain = format!("drains for up to {}", time(config.limits.drain_timeout));
    match config.limits.drain_delay {
        delay if delay.is_zero() => drain,
        delay => format!("serves on for {}, then {drain}", time(delay)),
    }
}
