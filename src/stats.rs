//! Counters: what has happened since the server started. Gauges: the state of the server now.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::units;

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// The counters and gauges of a running server, shared with whoever watches it.
        #[derive(Debug)]
        pub(crate) struct Stats {
            $($(#[doc = $doc])* pub(crate) $name: Counter,)*
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

        /// The counters and gauges of a server at one time. Counters only grow.
        ///
        /// `{}` prints the counters that are not zero, by name; `{:#}` prints all counters and gauges,
        /// always in the same order.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Snapshot {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// Gauge: bytes that all conversations hold together: answers that are not read
            /// yet, and frames that are not complete.
            pub buffered: usize,
            /// Gauge: whether new TCP clients wait because there is no room for them.
            pub accept_paused: bool,
            /// Gauge: the time since the server was bound.
            pub uptime: Duration,
        }

        impl Stats {
            /// Reads all counters and gauges, one after the other.
            pub(crate) fn snapshot(&self) -> Snapshot {
                Snapshot {
                    $($name: self.$name.get(),)*
                    buffered: self.buffered.load(Ordering::Relaxed),
                    accept_paused: self.accept_paused.load(Ordering::Relaxed),
                    uptime: self.start.elapsed(),
                }
            }
        }

        impl Snapshot {
            /// Logs it: with a message, and with all counters and gauges as fields.
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
                    doc: concat!($($doc),*),
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
    /// Its documentation.
    #[cfg_attr(not(feature = "daemon"), expect(dead_code, reason = "only a monitor asks for it"))]
    pub(crate) doc: &'static str,
    pub(crate) count: u64,
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

counters! {
    /// TCP connections taken from the backlog and served.
    accepted,
    /// TCP connections taken from the backlog and closed at once:
    /// [`Limits::per_source_connections`](crate::Limits::per_source_connections).
    refused,
    /// Connections that the peer closed (FIN), after every byte was answered.
    closed_by_peer,
    /// Connections that the peer reset (RST).
    closed_by_reset,
    /// Connections that we closed because no bytes had moved for
    /// [`Limits::idle_timeout`](crate::Limits::idle_timeout).
    closed_idle,
    /// Connections that we closed because the server was draining.
    closed_draining,
    /// Connections that we closed because a frame was too long or incomplete.
    closed_by_frame_error,
    /// Connections that the service, or [`Protocol::once`](crate::Protocol::once), ended.
    closed_by_service,
    /// Connections that we closed because no memory was left for them:
    /// [`Limits::max_buffered`](crate::Limits::max_buffered).
    closed_for_memory,
    /// Connections that ended because the service panicked.
    closed_by_panic,
    /// Connections that ended with any other error.
    closed_by_error,
    /// Bytes received over TCP.
    bytes_in,
    /// Bytes sent over TCP.
    bytes_out,
    /// Reads from TCP streams that returned bytes.
    reads,
    /// Writes to TCP streams that took at least a byte.
    writes,
    /// Writes of which the socket took only a part.
    short_writes,
    /// Connections that had already failed when accept took them from the backlog.
    accept_errors,
    /// Connections that were accepted and closed at once, because epoll refused to watch them.
    registration_errors,
    /// Times that accept paused: the limit on connections was reached, or descriptors or memory ran
    /// out.
    accept_pauses,
    /// Events for connections that had already ended.
    stale_events,
    /// Datagrams received.
    udp_received,
    /// Datagrams answered.
    udp_answered,
    /// Bytes in the datagrams received.
    udp_bytes_in,
    /// Bytes in the datagrams answered.
    udp_bytes_out,
    /// Datagrams not answered because the answer could start a loop: a guarded source port, a multicast
    /// or broadcast address on either side, or the answer of another echo server.
    udp_guarded,
    /// Datagrams not answered because their source had reached its limit:
    /// [`Limits::udp_rate`](crate::Limits::udp_rate).
    udp_rate_limited,
    /// Datagrams that were cut when they were received, and not answered.
    udp_truncated,
    /// Datagrams not answered because the answer would be longer than they are:
    /// [`Who`](crate::protocol::Who).
    udp_too_short,
    /// Datagrams not answered because the answer would be longer than a datagram can be.
    udp_too_long,
    /// Answers dropped because the network did not take them in time, or their neighbour does not exist.
    udp_dropped,
    /// Datagrams not answered because the service panicked.
    udp_panics,
    /// Errors in receiving or sending a datagram.
    udp_errors,
    /// Times that answers had to wait for room in the send buffer of a UDP socket.
    udp_paused,
    /// Answers that were not sent on purpose: [`Impairments::loss`](crate::Impairments::loss).
    udp_lost,
    /// Answers that were sent twice on purpose: [`Impairments::duplicate`](crate::Impairments::duplicate).
    udp_duplicated,
    /// Answers that did not wait for the delay, on purpose:
    /// [`Impairments::reorder`](crate::Impairments::reorder).
    udp_reordered,
    /// Answers of which a bit was changed on purpose:
    /// [`Impairments::corrupt`](crate::Impairments::corrupt).
    udp_corrupted,
    /// Answers dropped because as many as can be were held back already:
    /// [`Impairments::delay`](crate::Impairments::delay).
    udp_overflowed,
    /// Waits in which polling found events before the loop had to sleep:
    /// [`Config::busy_poll`](crate::Config::busy_poll).
    busy_poll_wins,
    /// Waits in which polling found nothing, so that the loop slept after all.
    busy_poll_losses,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, more: u64) {
        // Independent of all else: no order is promised between two counters.
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(crate) fn increment(&self) {
        self.add(1);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Snapshot {
    /// TCP connections that are open.
    pub fn open(&self) -> u64 {
        self.accepted.saturating_sub(self.closed())
    }

    /// TCP connections that ended, for whatever reason.
    pub fn closed(&self) -> u64 {
        self.closed_by_peer
            + self.closed_by_reset
            + self.closed_idle
            + self.closed_draining
            + self.closed_by_frame_error
            + self.closed_by_service
            + self.closed_by_panic
            + self.closed_for_memory
            + self.closed_by_error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_names_what_happened() {
        let stats = Stats::default();
        assert_eq!(stats.snapshot().to_string(), "nothing happened yet");
        stats.accepted.add(3);
        stats.closed_by_peer.increment();
        let snapshot = stats.snapshot();
        assert_eq!(snapshot.to_string(), "accepted 3, closed_by_peer 1");
        assert_eq!((snapshot.open(), snapshot.closed()), (2, 1));
    }

    #[test]
    fn everything_is_named_where_it_is_asked_for() {
        let stats = Stats::default();
        stats.accepted.add(3);
        stats.buffered.store(70, Ordering::Relaxed);
        let text = format!("{:#}", stats.snapshot());
        assert!(text.starts_with("accepted 3, refused 0, closed_by_peer 0, "), "{text}");
        assert!(text.ends_with(", open 3, buffered 70, accept_paused false, uptime 0s"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
