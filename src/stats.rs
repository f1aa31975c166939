//! Counters: what has happened since the server started. Gauges: the state of the server now.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::units;

macro_rules! counters {
    ($($name:ident $(($family:ident, $reason:literal))?: $help:literal,)*) => {
        /// The counters and gauges of a running server, shared between its threads and its handles.
        #[derive(Debug)]
        pub(crate) struct Stats {
            $(#[doc = $help] pub(crate) $name: Counter,)*
            pub(crate) buffered: AtomicUsize,
            pub(crate) accept_paused: AtomicBool,
            start: Instant,
        }

        impl Default for Stats {
            fn default() -> Self {
                Stats {
                    $($name: Counter::default(),)*
                    buffered: AtomicUsize::default(),
                    accept_paused: AtomicBool::default(),
                    start: Instant::now(),
                }
            }
        }

        /// The counters and gauges of a server at one time. Counters only grow. Where the description of
        /// one names a field, this is the setting that it is about.
        ///
        /// `{}` prints the counters that are not zero, by name; `{:#}` prints all counters and gauges,
        /// always in the same order.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Snapshot {
            $(#[doc = $help] pub $name: u64,)*
            /// Gauge: bytes that all connections hold together: replies that are not read yet, and
            /// frames that are not complete.
            pub buffered: usize,
            /// Gauge: whether new TCP clients wait in the backlog because accept has paused.
            pub accept_paused: bool,
            /// Gauge: the time since the server was bound.
            pub uptime: Duration,
        }

        impl Stats {
            /// Reads all counters and gauges, one after the other.
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot {
                    $($name: self.$name.count(),)*
                    buffered: self.buffered.load(Ordering::Relaxed),
                    accept_paused: self.accept_paused.load(Ordering::Relaxed),
                    uptime: self.start.elapsed(),
                }
            }
        }

        impl Snapshot {
            /// Logs a message with all counters and gauges as fields.
            pub(crate) fn log(&self, target: &str, event: &str, message: fmt::Arguments<'_>) {
                log::info!(
                    target: target,
                    event = event,
                    $($name = self.$name,)*
                    open = self.open(),
                    buffered = self.buffered,
                    accept_paused = self.accept_paused,
                    uptime_ns = units::nanoseconds(self.uptime);
                    "{message}"
                );
            }

            /// All counters, always in the same order.
            pub(crate) fn counters(&self) -> impl Iterator<Item = Counted> {
                [$(Counted {
                    name: stringify!($name),
                    label: None$(.or(Some(($family, $reason))))?,
                    help: $help,
                    count: self.$name,
                },)*]
                .into_iter()
            }
        }
    };
}

/// A counter at one time.
pub(crate) struct Counted {
    pub(crate) name: &'static str,
    /// The family that the counter belongs to, and its label `reason` there. Counters of a family are one
    /// metric: they differ only in this label, for which the log has the same word.
    pub(crate) label: Option<(&'static str, &'static str)>,
    #[cfg_attr(not(any(feature = "daemon", test)), expect(dead_code, reason = "for metrics"))]
    pub(crate) help: &'static str,
    pub(crate) count: u64,
}

/// The families, as their metrics are named.
pub(crate) const CONNECTIONS_CLOSED: &str = "connections_closed";
pub(crate) const UDP_NOT_ANSWERED: &str = "udp_not_answered";

counters! {
    accepted: "TCP connections taken from the backlog and served.",
    refused: "TCP connections taken from the backlog and closed at once: per_source_connections.",
    closed_by_peer (CONNECTIONS_CLOSED, "peer_fin"):
        "Connections that the peer closed (FIN), after the reply to every byte.",
    closed_by_reset (CONNECTIONS_CLOSED, "reset"): "Connections that the peer reset (RST).",
    closed_idle (CONNECTIONS_CLOSED, "idle"):
        "Connections that we closed because no bytes had moved for idle_timeout.",
    closed_draining (CONNECTIONS_CLOSED, "draining"):
        "Connections that we closed because the server was draining.",
    closed_by_frame_error (CONNECTIONS_CLOSED, "frame_error"):
        "Connections that we closed because a frame was too long or incomplete.",
    closed_by_service (CONNECTIONS_CLOSED, "service"):
        "Connections that the service, or once, ended.",
    closed_for_memory (CONNECTIONS_CLOSED, "no_room"):
        "Connections that we closed because no memory was left for them: max_buffered.",
    closed_by_panic (CONNECTIONS_CLOSED, "panic"):
        "Connections whose service panicked, even if only as it closed.",
    closed_by_error (CONNECTIONS_CLOSED, "error"): "Connections that ended with any other error.",
    bytes_in: "Bytes received over TCP.",
    bytes_out: "Bytes sent over TCP.",
    reads: "Reads from TCP streams that returned bytes.",
    writes: "Writes to TCP streams that took at least a byte.",
    short_writes: "Writes of which the socket took only a part.",
    accept_errors:
        "Connections that had already failed when accept took them from the backlog.",
    registration_errors:
        "Connections that were accepted and closed at once, because epoll refused to watch them.",
    accept_pauses:
        "Times that accept paused: the limit on connections was reached, or the system refused.",
    sockets_gone:
        "Sockets that were served and are gone, such as one that its owner has shut down.",
    stale_events: "Events for connections that had already ended.",
    udp_received: "Datagrams received.",
    udp_missed:
        "Datagrams that the kernel dropped because the queue of a UDP socket was full.",
    udp_answered: "Datagrams answered.",
    udp_bytes_in: "Bytes in the datagrams received.",
    udp_bytes_out: "Bytes in the replies to datagrams.",
    udp_guarded (UDP_NOT_ANSWERED, "guarded"):
        "Datagrams not answered because the reply could start a loop: a guarded source port, a multicast or broadcast address on either side, or the reply of another echo server.",
    udp_rate_limited (UDP_NOT_ANSWERED, "rate"):
        "Datagrams not answered because their source had reached its limit: udp_rate.",
    udp_truncated (UDP_NOT_ANSWERED, "truncated"):
        "Datagrams that were cut when they were received, and not answered.",
    udp_too_short (UDP_NOT_ANSWERED, "too_short"):
        "Datagrams not answered because the reply would be longer than they are: service who.",
    udp_too_long (UDP_NOT_ANSWERED, "too_long"):
        "Datagrams not answered because the reply would be longer than a datagram can be.",
    udp_dropped (UDP_NOT_ANSWERED, "dropped"):
        "Replies dropped because the network did not take them in time, or their neighbour does not exist.",
    udp_panics (UDP_NOT_ANSWERED, "panic"):
        "Datagrams not answered because the service panicked, and those on which it panicked after the reply.",
    udp_errors: "Errors in receiving or sending a datagram.",
    udp_paused: "Times that replies had to wait because the send buffer of a UDP socket was full.",
    udp_lost: "Replies that were not sent on purpose: loss.",
    udp_duplicated: "Replies that were sent twice on purpose: duplicate.",
    udp_reordered: "Replies that did not wait for the delay, on purpose: reorder.",
    udp_corrupted: "Replies of which a bit was changed on purpose: corrupt.",
    udp_overflowed: "Replies dropped because too many others were waiting already, or no memory was left for them: delay.",
    busy_poll_wins:
        "Waits in which polling found events before the loop had to sleep: busy_poll.",
    busy_poll_losses: "Waits in which polling found nothing, so that the loop slept after all.",
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = f.alternate();
        let shown = self.counters().filter(|counted| all || counted.count != 0);
        let mut shown: Vec<String> =
            shown.map(|Counted { name, count, .. }| format!("{name} {count}")).collect();
        if all {
            shown.push(format!("open {}", self.open()));
            shown.push(format!("buffered {}", self.buffered));
            shown.push(format!("accept_paused {}", self.accept_paused));
            shown.push(format!("uptime {}s", self.uptime.as_secs()));
        }
        match shown.is_empty() {
            true => f.write_str("nothing happened yet"),
            false => f.write_str(&shown.join(", ")),
        }
    }
}

impl Snapshot {
    /// TCP connections that are open.
    pub fn open(&self) -> u64 {
        self.accepted.saturating_sub(self.closed())
    }

    /// TCP connections that ended, for any reason.
    pub fn closed(&self) -> u64 {
        let closed = |counted: &Counted| {
            counted.label.is_some_and(|(family, _)| family == CONNECTIONS_CLOSED)
        };
        self.counters().filter(closed).map(|counted| counted.count).sum()
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        // Two counters are independent: nothing relies on the order of their updates.
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_prints_what_is_not_zero() {
        let stats = Stats::default();
        assert_eq!(stats.snapshot().to_string(), "nothing happened yet");
        stats.accepted.add(3);
        stats.closed_by_peer.increment();
        let snapshot = stats.snapshot();
        assert_eq!(snapshot.to_string(), "accepted 3, closed_by_peer 1");
        assert_eq!((snapshot.open(), snapshot.closed()), (2, 1));
    }

    #[test]
    fn the_alternate_form_prints_everything() {
        let stats = Stats::default();
        stats.accepted.add(3);
        stats.buffered.store(70, Ordering::Relaxed);
        let text = format!("{:#}", stats.snapshot());
        assert!(text.starts_with("accepted 3, refused 0, closed_by_peer 0, "), "{text}");
        assert!(text.ends_with(", open 3, buffered 70, accept_paused false, uptime 0s"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    /// A row of the table in docs/reference.md: the name, the metric, and the text as a sentence that names fields.
    fn documented(row: &str) -> Option<(String, String, String)> {
        let (name, rest) = row.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | `")?;
        let (metric, text) = rest.split_once("` | ")?;
        let mut text: String = text
            .split('`')
            .map(|part| part.strip_prefix("--").map_or(part.into(), field))
            .collect();
        text[..1].make_ascii_uppercase();
        Some((name.to_owned(), metric.to_owned(), text + "."))
    }

    fn field(flag: &str) -> String {
        flag.replace('-', "_")
    }

    #[test]
    fn the_documents_have_the_same_table_of_counters() {
        let (_, section) =
            include_str!("../docs/reference.md").split_once("| counter |").expect("the table");
        let (section, _) = section.split_once("\n\n").expect("its end");
        let documented: Vec<_> = section.lines().filter_map(documented).collect();
        let snapshot = Snapshot::default();
        let expected: Vec<_> = snapshot
            .counters()
            .map(|Counted { name, label, help, .. }| {
                let metric = match label {
                    Some((family, reason)) => {
                        format!("evecho_{family}_total{{reason=\"{reason}\"}}")
                    }
                    None => format!("evecho_{name}_total"),
                };
                (name.to_owned(), metric, help.to_owned())
            })
            .collect();
        assert_eq!(documented, expected);
    }

    #[test]
    fn help_needs_no_escapes_in_a_metric() {
        for Counted { name, help, .. } in Snapshot::default().counters() {
            assert!(!help.contains(['"', '\\', '\n']) && help.ends_with('.'), "{name}: {help}");
        }
    }
}
