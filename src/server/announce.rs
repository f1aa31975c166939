//! The first lines of the log: what is bound, which clients can reach it, and limits that the system reduces.

use std::fmt;
use std::net::SocketAddr;

use log::{info, warn};

use super::admission::Rules;
use super::budget;
use crate::config::{Config, Transport};
use crate::error::Setting;
use crate::units;

/// Warns that replies are impaired on purpose. Logged first, so that such a server is not taken for a
/// healthy one.
pub(super) fn impairments(config: &Config) {
    let impairments = &config.impairments;
    let (false, Some(seed)) = (impairments.is_none(), impairments.seed) else { return };
    let hidden = config.transport.tcp() && impairments.hidden_by_tcp().next().is_some();
    let tcp = match (hidden, impairments.delay.is_zero()) {
        (false, _) => "",
        (true, true) => "; TCP is served as usual, since it would hide this",
        (true, false) => "; over TCP only the delay, since TCP would hide the rest",
    };
    warn!(
        event = "impaired",
        impairments:% = impairments,
        seed = seed;
        "this server impairs its replies on purpose: {impairments} (seed {seed}){tcp}"
    );
}

/// Logs what is served at these addresses. Returns the sentence, which is the status for a service manager.
pub(super) fn listening(config: &Config, addresses: &[SocketAddr]) -> String {
    let transport = match config.transport {
        Transport::Both => "TCP and UDP",
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    };
    let (reach, design) = (reach(addresses), config.design);
    let texts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let (listed, addresses) = (texts.join(", "), texts.join(","));
    let status = format!("listening on {listed} ({transport}, {design}), for {reach}");
    info!(
        event = "listening",
        addresses = addresses.as_str(),
        transport = transport,
        design:%,
        reach = reach;
        "{status}"
    );
    status
}

/// Logs the address of the port for monitors.
#[cfg(feature = "daemon")]
pub(super) fn monitoring(address: SocketAddr) {
    let reach = reach(&[address]);
    info!(
        event = "monitoring",
        address:%,
        reach = reach;
        "metrics on http://{address}/metrics, health on /livez and /readyz, for {reach}"
    );
}

/// Warns of limits of the config that the system reduces.
pub(super) fn reduced_limits(config: &Config) {
    let wanted = config.limits.max_buffered;
    let (possible, size) = (budget::possible(wanted), |bytes| units::size(bytes as u64));
    let sentence = format_args!(
        "the limit on address space lets connections hold {}, not {}: raise it with ulimit -v",
        size(possible),
        size(wanted)
    );
    log_reduced(Setting::MaxBuffered, wanted, possible, sentence);
    let Some(wanted) = config.limits.max_connections else { return };
    let possible = Rules::of(config).max_connections;
    let sentence = format_args!(
        "the limit on open files allows {possible} connections, not {wanted}: raise it, as with ulimit -n"
    );
    log_reduced(Setting::MaxConnections, wanted.get(), possible, sentence);
}

fn log_reduced(setting: Setting, wanted: usize, possible: usize, sentence: fmt::Arguments<'_>) {
    if possible < wanted {
        warn!(
            event = "limit_reduced",
            limit = setting.field(),
            setting:%,
            wanted = wanted,
            possible = possible;
            "{sentence}"
        );
    }
}

/// Which clients can reach a server at these addresses.
fn reach(addresses: &[SocketAddr]) -> &'static str {
    if addresses.iter().all(|address| address.ip().is_loopback()) {
        "this machine only"
    } else if addresses.iter().any(|address| address.ip().is_unspecified()) {
        "any client that reaches this machine"
    } else {
        "any client that reaches these addresses"
    }
}
