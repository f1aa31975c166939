//! What strangers can cause to be logged: however often it happens, a line when it begins and a line with
//! a count when it is over. The counters know the rest, and at debug level each connection has its line.

use log::{info, warn};

use super::clock::{Episode, Moment};
use super::connection::CloseReason;
use super::peer::Peer;
use crate::units;

/// The episodes of a server.
#[derive(Debug, Default)]
pub(super) struct Incidents {
    /// Accept stopped.
    pauses: Episode,
    /// Clients were closed at once.
    refused: Incident<()>,
    /// Clients sent what is no frame.
    broken: Incident<CloseReason>,
    /// There was no room for what a conversation needed.
    no_room: Incident<()>,
}

/// An episode of what peers cause, and the latest of them.
#[derive(Debug)]
struct Incident<T> {
    episode: Episode,
    latest: Option<(Peer, T)>,
}

impl<T> Default for Incident<T> {
    fn default() -> Self {
        Incident { episode: Episode::default(), latest: None }
    }
}

impl<T> Incident<T> {
    fn begins(&mut self, peer: Peer, why: T, now: Moment) -> bool {
        self.latest = Some((peer, why));
        self.episode.begins(now)
    }

    /// How often it was, and the latest, once it is over.
    fn over(&mut self, now: Moment) -> Option<(u64, Peer, T)> {
        let times = self.episode.over(now)?;
        let (peer, why) = self.latest.take()?;
        Some((times, peer, why))
    }
}

impl Incidents {
    /// Accept stops; true where that is to be told.
    pub(super) fn pause(&mut self, now: Moment) -> bool {
        self.report(now);
        self.pauses.begins(now)
    }

    /// A client is closed at once, since its source has as many connections as it may have.
    pub(super) fn refuse(&mut self, peer: Peer, now: Moment) {
        self.report(now);
        if self.refused.begins(peer, (), now) {
            warn!(
                event = "refused",
                peer:%;
                "{peer} has as many connections as one source may have (`per_source_connections`): closed; further ones are counted"
            );
        }
    }

    /// A connection has ended.
    pub(super) fn end(&mut self, peer: Peer, reason: CloseReason, now: Moment) {
        match reason {
            CloseReason::FrameTooLong | CloseReason::FrameTruncated => {
                self.report(now);
                if self.broken.begins(peer, reason, now) {
                    info!(
                        event = "frame_broken",
                        peer:%,
                        reason = reason.name();
                        "{peer} closed {reason}; further ones are counted"
                    );
                }
            }
            CloseReason::NoRoom => {
                self.report(now);
                if self.no_room.begins(peer, (), now) {
                    warn!(
                        event = "no_room",
                        peer:%;
                        "{peer} closed {reason} (`max_buffered`); further ones are counted"
                    );
                }
            }
            _ => {}
        }
    }

    /// When something is to be told.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let Incidents { pauses, refused, broken, no_room } = self;
        [pauses, &refused.episode, &broken.episode, &no_room.episode]
            .into_iter()
            .filter_map(Episode::end)
            .min()
    }

    /// Tells of everything, since the server ends.
    pub(super) fn report_all(&mut self) {
        self.report(Moment::LAST);
    }

    /// Tells of what is over.
    pub(super) fn report(&mut self, now: Moment) {
        if let Some(times) = self.pauses.over(now) {
            info!(
                event = "accept_paused_over",
                times = times;
                "accept stopped {} times for want of a slot, a descriptor or memory",
                units::grouped(times)
            );
        }
        if let Some((times, peer, ())) = self.refused.over(now) {
            info!(
                event = "refused_over",
                times = times,
                peer:%;
                "{} connections were closed at once, since their source had as many as it may have (`per_source_connections`); the latest was {peer}",
                units::grouped(times)
            );
        }
        if let Some((times, peer, reason)) = self.broken.over(now) {
            info!(
                event = "frame_broken_over",
                times = times,
                peer:%,
                reason = reason.name();
                "{} connections were closed for what they sent; the latest was {peer}, closed {reason}",
                units::grouped(times)
            );
        }
        if let Some((times, peer, ())) = self.no_room.over(now) {
            warn!(
                event = "no_room_over",
                times = times,
                peer:%;
                "{} connections were closed, since no room was left for what they needed (`max_buffered`); the latest was {peer}",
                units::grouped(times)
            );
        }
    }
}
