//! How a connection ends: the reason, and the line that sums it up.

use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

use log::{Level, debug, log_enabled, trace};

use super::peer::Peer;
use crate::protocol::{FrameError, Framing, Verdict};
use crate::stats::{Counter, Stats};
use crate::units::{self, count};

/// How long a connection that we close may go on sending before it is cut off.
pub(crate) const LINGER_TIME: Duration = Duration::from_secs(2);
/// How many bytes a connection that we close may go on sending before it is cut off, once it has
/// acknowledged our last ones.
pub(crate) const LINGER_BYTES: u32 = 1 << 20;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The peer sent its FIN, and got all it was owed.
    PeerFin,
    /// The peer sent an RST.
    Reset,
    /// Nothing moved for the idle timeout.
    Idle,
    /// The server is shutting down.
    Drain,
    /// The peer sent a frame that is too long.
    FrameTooLong,
    /// The peer ended its side inside a frame.
    FrameTruncated,
    /// The service, or [`Protocol::once`](crate::Protocol::once), was done with it.
    Service,
    /// The service panicked.
    Panicked,
    /// The memory budget, or the system, had no room for its output, or for what it had sent of a frame.
    OverBudget,
    /// Any other error of the stream.
    Failed(ErrorKind),
}

impl CloseReason {
    /// Its name in the log, how a sentence says it, and the counter of connections that ended so.
    fn row(self) -> (&'static str, &'static str, fn(&Stats) -> &Counter) {
        use CloseReason::*;
        match self {
            PeerFin => ("peer_fin", "by the peer's FIN", |stats| &stats.closed_by_peer),
            Reset => ("reset", "by the peer's RST", |stats| &stats.closed_by_reset),
            Idle => ("idle", "by us: idle", |stats| &stats.closed_idle),
            Drain => ("draining", "by us: draining", |stats| &stats.closed_draining),
            FrameTooLong => ("frame_too_long", "by us: a frame is too long", |stats| {
                &stats.closed_by_frame_error
            }),
            FrameTruncated => {
                ("frame_truncated", "by us: the stream ended inside a frame", |stats| {
                    &stats.closed_by_frame_error
                })
            }
            Service => ("service", "by us: the service was done", |stats| &stats.closed_by_service),
            Panicked => ("panic", "by us: the service panicked", |stats| &stats.closed_by_panic),
            OverBudget => {
                ("no_room", "by us: no memory for what it needs", |stats| &stats.closed_for_memory)
            }
            Failed(_) => ("error", "by an error", |stats| &stats.closed_by_error),
        }
    }

    /// Its name in the fields of the log.
    pub(crate) fn name(self) -> &'static str {
        self.row().0
    }

    /// The counter of connections that ended so.
    pub(crate) fn counter(self, stats: &Stats) -> &Counter {
        (self.row().2)(stats)
    }

    /// Whether the peer has closed its side, too, so that there is nothing to linger for.
    pub(crate) fn ends_both_sides(self) -> bool {
        matches!(self, CloseReason::PeerFin | CloseReason::FrameTruncated)
    }

    /// The reason that a verdict of the session gives, where the conversation does not go on.
    pub(crate) fn of(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Continue => None,
            Verdict::Close => Some(CloseReason::Service),
            Verdict::Finished => Some(CloseReason::PeerFin),
            Verdict::Broken(FrameError::TooLong { .. }) => Some(CloseReason::FrameTooLong),
            Verdict::Broken(FrameError::Truncated) => Some(CloseReason::FrameTruncated),
            Verdict::Broken(FrameError::NoRoom) => Some(CloseReason::OverBudget),
            Verdict::Panicked => Some(CloseReason::Panicked),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)?;
        match self {
            CloseReason::Failed(kind) => write!(f, ": {kind}"),
            _ => Ok(()),
        }
    }
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // EPIPE and, of shutdown(2), ENOTCONN: the peer's RST came while we were not reading.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected => {
                CloseReason::Reset
            }
            kind => CloseReason::Failed(kind),
        }
    }
}

/// What has moved over one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Reads that brought bytes; the end of the stream is none.
    pub(crate) reads: u32,
    pub(crate) writes: u32,
    /// Writes of which the socket took only a part.
    pub(crate) short_writes: u32,
    /// How long nothing was read because the output was not taken, in units of [`Traffic::PAUSE_UNIT`].
    pub(crate) paused: u32,
}

impl Traffic {
    /// In 32 bits of these, five days: a connection is small on purpose.
    const PAUSE_UNIT: Duration = Duration::from_micros(100);

    /// Tells of a read into a buffer of this size, and counts it here and for the server.
    pub(crate) fn count_read(&mut self, peer: &Peer, bytes: usize, buffer: usize, stats: &Stats) {
        if bytes == 0 {
            trace!(event = "end_of_stream", peer:%; "{peer}: read the end of the stream: the peer's FIN");
            return;
        }
        trace!(
            event = "read",
            peer:%,
            bytes = bytes,
            room = buffer;
            "{peer}: read {}, with room for {buffer}",
            count(bytes, "byte")
        );
        self.bytes_in += bytes as u64;
        stats.bytes_in.add(bytes as u64);
        self.reads = self.reads.saturating_add(1);
        stats.reads.increment();
    }

    /// Tells of a write of which the socket took this number of bytes, and counts it here and for the
    /// server.
    pub(crate) fn count_write(&mut self, peer: &Peer, bytes: usize, of: usize, stats: &Stats) {
        trace!(
            event = "wrote",
            peer:%,
            bytes = bytes,
            of = of;
            "{peer}: wrote {bytes} of {}",
            count(of, "byte")
        );
        self.bytes_out += bytes as u64;
        self.writes = self.writes.saturating_add(1);
        stats.bytes_out.add(bytes as u64);
        stats.writes.increment();
        if bytes < of {
            self.short_writes = self.short_writes.saturating_add(1);
            stats.short_writes.increment();
        }
    }

    /// Adds a time in which output waited for the peer.
    pub(crate) fn count_pause(&mut self, time: Duration) {
        let units = time.as_micros() / Self::PAUSE_UNIT.as_micros();
        self.paused = self.paused.saturating_add(u32::try_from(units).unwrap_or(u32::MAX));
    }
}

/// Logs the length of a reply, where there is one, and of what the session keeps of a line, frame or character.
pub(crate) fn trace_reply(peer: &Peer, bytes: usize, begun: Option<(usize, Framing)>) {
    if bytes > 0 {
        trace!(event = "answered", peer:%, bytes = bytes; "{peer}: the reply has {}", count(bytes, "byte"));
    }
    if let Some((bytes, framing)) = begun {
        let end = match framing {
            Framing::Lines => "a line until its line feed comes",
            Framing::Raw => "the stream until more come",
            _ => "a frame until the rest comes",
        };
        trace!(event = "kept", peer:%, bytes = bytes; "{peer}: keeps {} of {end}", count(bytes, "byte"));
    }
}

/// Tells that our FIN is out.
pub(crate) fn trace_shutdown(peer: &Peer) {
    trace!(
        event = "shutdown",
        peer:%;
        "{peer}: shut down our side: our FIN. What still comes is dropped, until the peer's FIN"
    );
}

/// A connection that has ended, for the log.
pub(crate) struct Summary {
    pub(crate) peer: Peer,
    pub(crate) reason: CloseReason,
    pub(crate) traffic: Traffic,
    /// Bytes that the peer has not taken.
    pub(crate) unsent: usize,
    pub(crate) open: Duration,
}

impl Summary {
    /// Logs it, at debug level.
    pub(crate) fn log(&self) {
        if !log_enabled!(Level::Debug) {
            return;
        }
        let Summary { peer, reason, traffic, unsent, open } = self;
        let error = match reason {
            CloseReason::Failed(kind) => Some(kind),
            _ => None,
        };
        debug!(
            event = "closed",
            peer:%,
            reason = reason.name(),
            error = error.map(log::kv::Value::from_debug),
            bytes_in = traffic.bytes_in,
            bytes_out = traffic.bytes_out,
            reads = traffic.reads,
            writes = traffic.writes,
            short_writes = traffic.short_writes,
            unsent = unsent,
            paused_ns = units::nanoseconds(self.paused()),
            open_ns = units::nanoseconds(*open);
            "{self}"
        );
    }

    fn paused(&self) -> Duration {
        Traffic::PAUSE_UNIT.saturating_mul(self.traffic.paused)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { peer, reason, traffic, unsent, open } = self;
        let Traffic { bytes_in, bytes_out, reads, writes, short_writes, .. } = *traffic;
        write!(f, "{peer} closed {reason}: {bytes_in} bytes in {}, ", count(reads, "read"))?;
        write!(f, "{bytes_out} bytes out in {} ({short_writes} short), ", count(writes, "write"))?;
        if *unsent > 0 {
            write!(f, "{unsent} bytes unsent, ")?;
        }
        let (paused, open) = (units::time(self.paused()), units::time(*open));
        write!(f, "paused {paused} by back-pressure, open {open}")
    }
}
