//! The first lines of the log: what is bound, which clients can reach it, and limits that the system reduces.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;

#[cfg(feature = "daemon")]
use log::error;
use log::{info, warn};

use super::Server;
#[cfg(feature = "daemon")]
use super::reach;
use super::{admission, budget};
use crate::config::{Config, Design};
#[cfg(feature = "daemon")]
use crate::error::BindError;
use crate::error::{Setting, Transport};
use crate::sys::limits::MemoryLimit;
use crate::units;

/// Logs what is served and what it is served without, and keeps the status for the service manager.
pub(super) fn first_lines(server: &mut Server) {
    impairments(&server.config);
    let status = listening(&server.config, &server.addresses, server.reach);
    server.shutdown.set_status(status);
    let mut seen = HashSet::new();
    for (address, refused) in &server.sockets.refused {
        // TCP and UDP may lack the same.
        if seen.insert((address, refused.what)) {
            refused.log(address);
        }
    }
    reduced_limits(&server.config);
    #[cfg(feature = "daemon")]
    match (&server.monitor, server.metrics_addr()) {
        (Some(Err(error)), _) => not_monitoring(error),
        (Some(Ok(listener)), Some(address)) => monitoring(address, reach::reach_of(listener)),
        _ => {}
    }
}

/// Warns that replies are impaired on purpose. Logged first, so that such a server is not taken for a
/// healthy one.
fn impairments(config: &Config) {
    let impairments = &config.impairments;
    let (false, Some(seed)) = (impairments.is_none(), impairments.seed) else { return };
    let hidden = config.serves(Transport::Tcp) && impairments.hidden_by_tcp().next().is_some();
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

/// Logs what is served at these addresses, and which clients can reach them. Returns the sentence, which is
/// the status for a service manager.
fn listening(config: &Config, addresses: &[SocketAddr], reach: &str) -> String {
    let transport = config.transport.map_or("TCP and UDP", Transport::name);
    let design = config.design;
    let texts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let (mut listed, addresses) = (texts.join(", "), texts.join(","));
    if texts.is_empty() {
        listed.push_str("addresses that the system does not tell");
    }
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
fn monitoring(address: SocketAddr, reach: &str) {
    info!(
        event = "monitoring",
        address:%,
        reach = reach;
        "metrics on http://{address}/metrics, health on /livez and /readyz, for {reach}"
    );
}

/// Logs why monitors are not served. Clients are: monitors take nothing from them.
#[cfg(feature = "daemon")]
fn not_monitoring(error: &BindError) {
    error!(
        event = "not_monitoring",
        address:% = error.address,
        errno = error.source.raw_os_error(),
        setting:% = Setting::Metrics;
        "monitors are not served, but clients are: {error}: {}", error.source
    );
}

/// Warns of limits of the config that the system reduces, where they count.
pub(super) fn reduced_limits(config: &Config) {
    if !config.serves(Transport::Tcp) || config.design == Design::Iterative {
        return;
    }
    let wanted = config.limits.max_buffered;
    let size = |bytes| units::size(bytes as u64);
    if config.design == Design::EventLoop
        && let (possible, Some(MemoryLimit { name, advice, .. })) = budget::possible(wanted)
    {
        let sentence = format_args!(
            "the limit on {name} lets connections hold {}, not {}: raise it ({advice})",
            size(possible),
            size(wanted)
        );
        log_reduced(Setting::MaxBuffered, wanted, possible, sentence);
    }
    let Some(wanted) = config.limits.max_connections else { return };
    let possible = admission::possible(config);
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
