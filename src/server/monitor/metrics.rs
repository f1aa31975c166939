//! Metrics: the counters and gauges of the server and of its process, as OpenMetrics text.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::passes::{Distribution, Passes};
use crate::stats::{Counted, Family, Snapshot};
use crate::sys::{limits, process};

/// The media type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Family {
    const ALL: [Family; 2] = [Family::ConnectionsClosed, Family::UdpNotAnswered];

    /// The name and the help of the metric.
    fn metric(self) -> (&'static str, &'static str) {
        match self {
            Family::ConnectionsClosed => {
                ("evecho_connections_closed", "TCP connections that ended, by reason.")
            }
            Family::UdpNotAnswered => (
                "evecho_udp_not_answered",
                "Datagrams that were received and not answered, by reason.",
            ),
        }
    }
}

/// All metrics at one time.
#[derive(Debug)]
pub(super) struct Metrics {
    snapshot: Snapshot,
    ready: bool,
    pass_seconds: Distribution,
    pass_events: Distribution,
    process_start: SystemTime,
}

impl Metrics {
    pub(super) fn new(
        snapshot: Snapshot,
        ready: bool,
        passes: &Passes,
        process_start: SystemTime,
    ) -> Self {
        let (pass_seconds, pass_events) = (passes.seconds(), passes.events());
        Metrics { snapshot, ready, pass_seconds, pass_events, process_start }
    }

    /// OpenMetrics text.
    pub(super) fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::with_capacity(16 << 10);
        text::encode(&mut text, &registry).expect("a string takes everything");
        text
    }

    fn counters(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        for Counted { name, label, help, count } in self.snapshot.counters() {
            if label.is_none() {
                encoder.counter(&format!("evecho_{name}"), help, count)?;
            }
        }
        for family in Family::ALL {
            let (name, help) = family.metric();
            let mut metric = encoder.begin(name, help, MetricType::Counter)?;
            for Counted { label, count, .. } in self.snapshot.counters() {
                if let Some((of, reason)) = label
                    && of == family
                {
                    metric
                        .encode_family(&[("reason", reason)])?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        Ok(())
    }

    fn gauges(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let Snapshot { buffered, accept_paused, .. } = self.snapshot;
        for (name, help, value) in [
            ("evecho_connections_open", "TCP connections that are open.", self.snapshot.open()),
            (
                "evecho_buffered_bytes",
                "Bytes that all connections hold together: replies that are not read yet, and frames that are not complete.",
                buffered as u64,
            ),
            (
                "evecho_accept_paused",
                "Whether new TCP clients wait in the backlog because accept has paused: 1 or 0.",
                accept_paused.into(),
            ),
            (
                "evecho_ready",
                "Whether the server is ready for new clients, as /readyz says: 1 or 0.",
                self.ready.into(),
            ),
            (
                "process_open_fds",
                "Descriptors that the process has open.",
                limits::open_files() as u64,
            ),
            (
                "process_max_fds",
                "Descriptors that the process may have.",
                limits::open_file_limit(),
            ),
            (
                "process_resident_memory_bytes",
                "Memory of the process that is in RAM.",
                process::resident_memory(),
            ),
        ] {
            encoder.gauge(name, help, value)?;
        }
        let start = self.process_start.duration_since(UNIX_EPOCH).unwrap_or_default();
        let help = "When the process started, in seconds since 1970.";
        encoder.gauge("process_start_time_seconds", help, start.as_secs_f64())?;
        let help = "CPU time that the process has used, user and system.";
        encoder.counter("process_cpu_seconds", help, process::cpu_time().as_secs_f64())
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut encoder = Encoder(encoder);
        let help = "The version of the server.";
        encoder
            .begin("evecho_build", help, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        self.counters(&mut encoder)?;
        self.gauges(&mut encoder)?;
        for (name, help, distribution) in [
            (
                "evecho_turn_seconds",
                "Time that a pass of the event loop takes, without the wait for events.",
                &self.pass_seconds,
            ),
            ("evecho_turn_events", "Events of a pass of the event loop.", &self.pass_events),
        ] {
            let Distribution { buckets, count, sum } = distribution;
            encoder
                .begin(name, help, MetricType::Histogram)?
                .encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)?;
        }
        Ok(())
    }
}

/// Writes metrics one by one.
struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn begin<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }

    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        let mut metric = self.begin(name, help, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.begin(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::stats::Stats;

    fn text_of(stats: &Stats) -> String {
        Metrics::new(stats.snapshot(), true, &Passes::default(), UNIX_EPOCH).text()
    }

    #[test]
    fn each_counter_is_one_sample() {
        let stats = Stats::default();
        stats.accepted.add(7);
        stats.closed_idle.add(3);
        stats.udp_rate_limited.add(2);
        let text = text_of(&stats);
        for line in [
            "evecho_build_info{version=\"0.1.0\"} 1",
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
}
