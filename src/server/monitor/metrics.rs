//! Metrics: the counters and gauges of the server and of its process, as OpenMetrics text, or as the text
//! of before.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::stats::{CONNECTIONS_CLOSED, Counted, Snapshot, UDP_NOT_ANSWERED};
use crate::sys::{limits, process};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Prometheus' own format, which all scrapers and `promtool check metrics` read.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The longest times of the buckets, in seconds.
const TIMES: [f64; 10] = [10e-6, 30e-6, 100e-6, 300e-6, 1e-3, 3e-3, 10e-3, 30e-3, 100e-3, 1.0];
/// The most events of the buckets.
const EVENTS: [f64; 7] = [0.0, 1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0];

const FAMILIES: [(&str, &str); 2] = [
    (CONNECTIONS_CLOSED, "TCP connections that ended, by reason"),
    (UDP_NOT_ANSWERED, "Datagrams that were received and not answered, by reason"),
];

/// The passes of the event loop: their time, and their events. Clones count the same.
#[derive(Debug, Clone)]
pub(crate) struct Passes {
    seconds: Histogram,
    events: Histogram,
}

impl Default for Passes {
    fn default() -> Self {
        Passes { seconds: Histogram::new(TIMES), events: Histogram::new(EVENTS) }
    }
}

impl Passes {
    /// Counts a pass.
    pub(crate) fn record(&self, time: Duration, events: usize) {
        self.seconds.observe(time.as_secs_f64());
        self.events.observe(events as f64);
    }
}

/// All metrics at one time, as OpenMetrics. The registry ends each help with a full stop.
pub(super) fn text(
    snapshot: &Snapshot,
    ready: bool,
    passes: &Passes,
    process_start: Option<SystemTime>,
) -> String {
    let mut registry = Registry::default();
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("evecho_build", "The version of the server", build);
    register_counters(&mut registry, snapshot);
    register_gauges(&mut registry, snapshot, ready);
    register_process(&mut registry, process_start);
    let help = "Time that a pass of the event loop takes, without the wait for events";
    registry.register("evecho_turn_seconds", help, passes.seconds.clone());
    let help = "Events of a pass of the event loop";
    registry.register("evecho_turn_events", help, passes.events.clone());
    let mut text = String::with_capacity(16 << 10);
    text::encode(&mut text, &registry).expect("a string takes everything");
    text
}

fn register_counters(registry: &mut Registry, snapshot: &Snapshot) {
    for Counted { name, label, help, count } in snapshot.counters() {
        if label.is_none() {
            let help = help.trim_end_matches('.');
            registry.register(format!("evecho_{name}"), help, ConstCounter::new(count));
        }
    }
    for (family, help) in FAMILIES {
        let counters = snapshot.counters().filter_map(|Counted { label, count, .. }| {
            label.filter(|&(of, _)| of == family).map(|(_, reason)| (reason, count))
        });
        registry.register(format!("evecho_{family}"), help, ByReason(counters.collect()));
    }
}

fn register_gauges(registry: &mut Registry, snapshot: &Snapshot, ready: bool) {
    let mut gauge = |name, help, value: u64| registry.register(name, help, ConstGauge::new(value));
    gauge("evecho_connections_open", "TCP connections that are open", snapshot.open());
    gauge(
        "evecho_buffered_bytes",
        "Bytes that all connections hold together: replies that are not read yet, and frames that are not complete",
        snapshot.buffered as u64,
    );
    gauge(
        "evecho_accept_paused",
        "Whether new TCP clients wait in the backlog because accept has paused: 1 or 0",
        snapshot.accept_paused.into(),
    );
    gauge(
        "evecho_ready",
        "Whether the server is ready for new clients, as /readyz says: 1 or 0",
        ready.into(),
    );
}

/// What is not known, as without `/proc`, is left out.
fn register_process(registry: &mut Registry, start: Option<SystemTime>) {
    let mut gauge = |name, help, value: Option<u64>| {
        if let Some(value) = value {
            registry.register(name, help, ConstGauge::new(value));
        }
    };
    let files = limits::open_files().map(|files| files as u64);
    gauge("process_open_fds", "Descriptors that the process has open", files);
    let limit = Some(limits::open_file_limit());
    gauge("process_max_fds", "Descriptors that the process may have", limit);
    gauge(
        "process_resident_memory_bytes",
        "Memory of the process that is in RAM",
        process::resident_memory(),
    );
    if let Some(start) = start {
        let start = start.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let help = "When the process started, in seconds since 1970";
        registry.register("process_start_time_seconds", help, ConstGauge::new(start));
    }
    let help = "CPU time that the process has used, user and system";
    let used = process::cpu_time().as_secs_f64();
    registry.register("process_cpu_seconds", help, ConstCounter::new(used));
}

/// The metrics in the format that a scraper prefers, as Prometheus' own libraries choose it, and its media
/// type: OpenMetrics for those that ask for it.
pub(super) fn negotiate(openmetrics: String, accept: &str) -> (&'static str, String) {
    match prefers_openmetrics(accept) {
        true => (OPENMETRICS, openmetrics),
        false => (PROMETHEUS, for_prometheus(&openmetrics)),
    }
}

/// Whether the value of a field Accept (RFC 9110, 12.5.1) asks for OpenMetrics, and for nothing else of
/// ours more.
fn prefers_openmetrics(accept: &str) -> bool {
    let mut preferred = (0.0, false);
    for range in accept.to_ascii_lowercase().split(',') {
        let (media_type, parameters) = range.split_once(';').unwrap_or((range, ""));
        let value = |name: &str| {
            let mut parameters = parameters.split(';').filter_map(|one| one.split_once('='));
            let found = parameters.find(|(one, _)| one.trim() == name);
            found.map_or("", |(_, value)| value.trim().trim_matches('"'))
        };
        let is_openmetrics = match (media_type.trim(), value("version")) {
            ("application/openmetrics-text", "" | "0.0.1" | "1.0.0") => true,
            ("text/plain", "" | "0.0.4") => false,
            _ => continue,
        };
        let weight = value("q").parse().unwrap_or(1.0);
        // The first of several.
        if weight > preferred.0 {
            preferred = (weight, is_openmetrics);
        }
    }
    preferred.1
}

/// The same metrics in Prometheus' own format: a family has the name of its samples, and there is no type
/// for an info.
fn for_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let families = openmetrics.trim_end_matches("# EOF\n").split("# HELP ").skip(1);
    for (name, rest) in families.filter_map(|family| family.split_once(' ')) {
        let (help, rest) = rest.split_once('\n').unwrap_or_default();
        let (declared, samples) = rest.split_once('\n').unwrap_or_default();
        let (suffix, kind) = match declared.rsplit(' ').next().unwrap_or_default() {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            kind => ("", kind),
        };
        let name = format_args!("{name}{suffix}");
        text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
    }
    text
}

/// The counters of a family: each one's label `reason`, and its count. Unlike the library's own, it keeps
/// their order.
#[derive(Debug)]
struct ByReason(Vec<(&'static str, u64)>);

impl EncodeMetric for ByReason {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for &(reason, count) in &self.0 {
            ConstCounter::new(count).encode(encoder.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::stats::Stats;

    fn text_of(stats: &Stats) -> String {
        text(&stats.snapshot(), true, &Passes::default(), Some(UNIX_EPOCH))
    }

    #[test]
    fn passes_are_counted_up_to_their_bound() {
        let passes = Passes::default();
        for (micros, events) in [(10, 1), (11, 0), (2_000_000, 1_025), (1_000_000, 1_024)] {
            passes.record(Duration::from_micros(micros), events);
        }
        let text = text(&Snapshot::default(), true, &passes, Some(UNIX_EPOCH));
        for line in [
            "evecho_turn_seconds_bucket{le=\"0.00001\"} 1",
            "evecho_turn_seconds_bucket{le=\"0.00003\"} 2",
            "evecho_turn_seconds_bucket{le=\"0.1\"} 2",
            "evecho_turn_seconds_bucket{le=\"1.0\"} 3",
            "evecho_turn_seconds_bucket{le=\"+Inf\"} 4",
            "evecho_turn_seconds_count 4",
            "evecho_turn_events_bucket{le=\"0.0\"} 1",
            "evecho_turn_events_bucket{le=\"1.0\"} 2",
            "evecho_turn_events_bucket{le=\"1024.0\"} 3",
            "evecho_turn_events_bucket{le=\"+Inf\"} 4",
            "evecho_turn_events_sum 2050.0",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        let sum = text.lines().find_map(|line| line.strip_prefix("evecho_turn_seconds_sum "));
        assert!((sum.unwrap().parse::<f64>().unwrap() - 3.000_021).abs() < 1e-9, "{text}");
    }

    #[test]
    fn each_counter_is_one_sample() {
        let stats = Stats::default();
        stats.accepted.add(7);
        stats.closed_idle.add(3);
        stats.udp_rate_limited.add(2);
        let text = text_of(&stats);
        for line in [
            concat!("evecho_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "evecho_accepted_total 7",
            "evecho_connections_closed_total{reason=\"idle\"} 3",
            "evecho_connections_closed_total{reason=\"reset\"} 0",
            "evecho_udp_not_answered_total{reason=\"rate\"} 2",
            "evecho_connections_open 4",
            "evecho_ready 1",
            "# TYPE evecho_accepted counter",
            "# HELP evecho_accepted TCP connections taken from the backlog and served.",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let names: Vec<&str> = samples.map(|line| line.rsplit_once(' ').unwrap().0).collect();
        let different: HashSet<&&str> = names.iter().collect();
        assert_eq!(names.len(), different.len(), "{text}");
        let total =
            names.iter().filter(|name| name.starts_with("evecho") && name.contains("_total"));
        assert_eq!(total.count(), stats.snapshot().counters().count());
    }

    #[test]
    fn a_scraper_is_given_the_format_that_it_asks_for() {
        let openmetrics = "application/openmetrics-text";
        let prometheus_2 = "application/openmetrics-text; version=1.0.0,application/openmetrics-text; version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,/;q=0.1";
        for (accept, expected) in [
            ("", false),
            ("*/*", false),
            ("application/*", false),
            ("text/plain", false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", false),
            (prometheus_2, true),
            (prometheus_3, true),
            (openmetrics, true),
            ("Application/OpenMetrics-Text ; Version=\"1.0.0\" ; charset=utf-8", true),
            ("application/openmetrics-text; version=2.0.0", false),
            ("application/openmetrics-text; version=2.0.0, text/plain, */*", false),
            ("text/plain, application/openmetrics-text", false),
            ("text/plain;version=1.0.0, application/openmetrics-text;q=0.1", true),
            ("application/openmetrics-text;q=0.3,text/plain;q=0.7", false),
            ("text/plain;q=0.3,application/openmetrics-text; q=0.7", true),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=0.000,*/*", false),
            ("application/openmetrics-text;q=nan", false),
            ("application/openmetrics-text;q=much", true),
            (";;,=,application/openmetrics-text;;=;q", true),
            ("application/openmetrics-texts,application/openmetrics", false),
        ] {
            assert_eq!(prefers_openmetrics(accept), expected, "{accept}");
        }
    }

    #[test]
    fn the_old_format_names_what_it_declares() {
        let openmetrics = text_of(&Stats::default());
        let (content_type, old) = negotiate(openmetrics.clone(), "");
        assert_eq!(content_type, PROMETHEUS);
        for line in [
            "# HELP evecho_build_info The version of the server.",
            "# TYPE evecho_build_info gauge",
            "# TYPE evecho_accepted_total counter",
            "# TYPE process_cpu_seconds_total counter",
            "# TYPE evecho_connections_open gauge",
            "# TYPE evecho_turn_seconds histogram",
        ] {
            assert!(old.lines().any(|one| one == line), "{line}: {old}");
        }
        let samples = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        assert_eq!(samples(&old), samples(&openmetrics));
        assert_eq!(old.lines().count() + 1, openmetrics.lines().count());
        assert_eq!(negotiate(openmetrics.clone(), OPENMETRICS), (OPENMETRICS, openmetrics));
    }

    #[test]
    fn what_is_not_known_of_the_process_is_left_out() {
        let text = text(&Snapshot::default(), true, &Passes::default(), None);
        assert!(!text.contains("process_start_time_seconds"), "{text}");
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
    }
}
