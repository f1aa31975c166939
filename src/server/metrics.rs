//! A server as a monitor sees it: its counters and gauges as OpenMetrics text.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::turns::{Distribution, Turns};
use crate::stats::{Counted, Snapshot};
use crate::sys::{limits, process};

/// The media type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counters that are one metric: they differ in the reason alone, for which the log has the same word.
struct Family {
    name: &'static str,
    help: &'static str,
    reasons: &'static [(&'static str, &'static str)],
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "connections_closed",
        help: "TCP connections that ended, by reason.",
        reasons: &[
            ("closed_by_peer", "peer_fin"),
            ("closed_by_reset", "reset"),
            ("closed_idle", "idle"),
            ("closed_draining", "draining"),
            ("closed_by_frame_error", "frame_error"),
            ("closed_by_service", "service"),
            ("closed_for_memory", "no_room"),
            ("closed_by_panic", "panic"),
            ("closed_by_error", "error"),
        ],
    },
    Family {
        name: "udp_not_answered",
        help: "Datagrams that were received and not answered, by reason.",
        reasons: &[
            ("udp_guarded", "guarded"),
            ("udp_rate_limited", "rate"),
            ("udp_truncated", "truncated"),
            ("udp_too_short", "too_short"),
            ("udp_too_long", "too_long"),
            ("udp_dropped", "dropped"),
            ("udp_panics", "panic"),
        ],
    },
];

impl Family {
    fn of(counter: &str) -> Option<&'static Family> {
        let is_one = |family: &&Family| family.reasons.iter().any(|(name, _)| *name == counter);
        FAMILIES.iter().find(is_one)
    }
}

/// What there is to tell at one time.
#[derive(Debug)]
pub(super) struct Metrics {
    snapshot: Snapshot,
    ready: bool,
    turn_seconds: Distribution,
    turn_events: Distribution,
    process: Process,
}

impl Metrics {
    /// As it is now, of a process that started then.
    pub(super) fn now(
        snapshot: Snapshot,
        ready: bool,
        turns: &Turns,
        process_start: SystemTime,
    ) -> Self {
        Metrics {
            snapshot,
            ready,
            turn_seconds: turns.seconds(),
            turn_events: turns.events(),
            process: Process::now(process_start),
        }
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
        for Counted { name, doc, count } in self.snapshot.counters() {
            if Family::of(name).is_none() {
                encoder.counter(&format!("evecho_{name}"), &help(doc), count)?;
            }
        }
        for Family { name, help, reasons } in &FAMILIES {
            let name = format!("evecho_{name}");
            let mut metric = encoder.begin(&name, help, MetricType::Counter)?;
            for (counter, reason) in *reasons {
                let counted = self.snapshot.counters().find(|counted| counted.name == *counter);
                let count = counted.map_or(0, |counted| counted.count);
                metric
                    .encode_family(&[("reason", *reason)])?
                    .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
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
                "Bytes that all conversations hold together: answers that are not read yet, and frames that are not complete.",
                buffered as u64,
            ),
            (
                "evecho_accept_paused",
                "Whether new TCP clients wait because there is no room for them: 1 or 0.",
                accept_paused.into(),
            ),
            (
                "evecho_ready",
                "Whether new clients are welcome, as /readyz tells: 1 or 0.",
                self.ready.into(),
            ),
            ("process_open_fds", "Descriptors that the process has open.", self.process.open_files),
            ("process_max_fds", "Descriptors that the process may have.", self.process.max_files),
            (
                "process_resident_memory_bytes",
                "Memory of the process that is in RAM.",
                self.process.resident,
            ),
        ] {
            encoder.gauge(name, help, value)?;
        }
        let start = self.process.start.duration_since(UNIX_EPOCH).unwrap_or_default();
        let help = "When the process started, in seconds since 1970.";
        encoder.gauge("process_start_time_seconds", help, start.as_secs_f64())?;
        let help = "CPU time that the process has used, user and system.";
        encoder.counter("process_cpu_seconds", help, self.process.cpu.as_secs_f64())
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
                "How long the turns of the event loop take, without the wait for events.",
                &self.turn_seconds,
            ),
            (
                "evecho_turn_events",
                "How many events the turns of the event loop have.",
                &self.turn_events,
            ),
        ] {
            let Distribution { buckets, count, sum } = distribution;
            encoder
                .begin(name, help, MetricType::Histogram)?
                .encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)?;
        }
        Ok(())
    }
}

/// Writes one metric after the other.
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

/// Documentation as plain text: of a link to a field the name of the field is left.
fn help(doc: &str) -> String {
    let mut text = String::new();
    let mut left = doc.trim();
    while let Some((before, rest)) = left.split_once("[`") {
        let (link, rest) = rest.split_once("`]").unwrap_or((rest, ""));
        let (_, field) = link.rsplit_once("::").unwrap_or(("", link));
        text.extend([before, field]);
        left = rest
            .strip_prefix('(')
            .and_then(|rest| rest.split_once(')'))
            .map_or(rest, |(_, rest)| rest);
    }
    text + left
}

/// What the system says of this process.
#[derive(Debug)]
struct Process {
    start: SystemTime,
    cpu: Duration,
    resident: u64,
    open_files: u64,
    max_files: u64,
}

impl Process {
    fn now(start: SystemTime) -> Self {
        Process {
            start,
            cpu: process::cpu_time(),
            resident: process::resident_memory(),
            open_files: limits::open_files() as u64,
            max_files: limits::open_file_limit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::stats::Stats;

    fn text_of(stats: &Stats, turns: &Turns) -> String {
        Metrics::now(stats.snapshot(), true, turns, UNIX_EPOCH).text()
    }

    #[test]
    fn each_counter_is_told_once() {
        let stats = Stats::default();
        stats.accepted.add(7);
        stats.closed_idle.add(3);
        stats.udp_rate_limited.add(2);
        let text = text_of(&stats, &Turns::default());
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

    #[test]
    fn families_are_of_counters_that_there_are() {
        let counters: Vec<&str> =
            Stats::default().snapshot().counters().map(|counted| counted.name).collect();
        for (counter, _) in FAMILIES.iter().flat_map(|family| family.reasons) {
            assert!(counters.contains(counter), "{counter}");
        }
    }

    #[test]
    fn help_is_plain_text() {
        assert_eq!(
            help(" Closed: [`Limits::idle_timeout`](crate::Limits::idle_timeout). Or [`metrics`]."),
            "Closed: idle_timeout. Or metrics."
        );
        for Counted { name, doc, .. } in Stats::default().snapshot().counters() {
            let help = help(doc);
            // OpenMetrics wants these escaped.
            assert!(!help.contains(['"', '\\', '\n', '`', '[']), "{name}: {help}");
            assert!(help.ends_with('.'), "{name}: {help}");
        }
    }
}
