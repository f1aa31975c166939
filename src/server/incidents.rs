//! The rate-limited log of what peers can cause: connections that are refused or closed for what they
//! sent, and pauses of accept.

use log::{info, warn};

use super::clock::Moment;
use super::connection::CloseReason;
use super::peer::Peer;
use super::rate_limited::RateLimited;
use crate::error::Setting;
use crate::units;

/// What is logged at a limited rate, with the latest peer.
#[derive(Debug, Default)]
pub(super) struct Incidents {
    /// Accept paused.
    pauses: RateLimited,
    /// Connections were closed at once.
    refused: RateLimited<Peer>,
    /// Connections were closed for a frame that is too long or incomplete.
    broken: RateLimited<(Peer, CloseReason)>,
    /// Connections were closed because no memory was left for them.
    no_room: RateLimited<Peer>,
}

impl Incidents {
    /// Counts a pause of accept. Returns whether to log it.
    pub(super) fn pause(&mut self, now: Moment) -> bool {
        self.report(now);
        self.pauses.begins((), now)
    }

    /// Counts a connection that is closed at once, since its source has as many as it may have.
    pub(super) fn refuse(&mut self, peer: Peer, now: Moment) {
        self.report(now);
        if self.refused.begins(peer, now) {
            warn!(
                event = "refused",
                peer:%,
                setting:% = Setting::PerSourceConnections;
                "{peer} closed at once: its source has as many connections as allowed; further ones are counted"
            );
        }
    }

    /// Counts a connection that ended for this reason.
    pub(super) fn end(&mut self, peer: Peer, reason: CloseReason, now: Moment) {
        match reason {
            CloseReason::FrameTooLong | CloseReason::FrameTruncated => {
                self.report(now);
                if self.broken.begins((peer, reason), now) {
                    let too_long = reason == CloseReason::FrameTooLong;
                    info!(
                        event = "frame_broken",
                        peer:%,
                        reason = reason.name(),
                        setting = too_long.then_some(Setting::MaxFrame.field());
                        "{peer} closed {reason}; further ones are counted"
                    );
                }
            }
            CloseReason::NoRoom => {
                self.report(now);
                if self.no_room.begins(peer, now) {
                    warn!(
                        event = "no_room",
                        peer:%,
                        setting:% = Setting::MaxBuffered;
                        "{peer} closed {reason}; further ones are counted"
                    );
                }
            }
            _ => {}
        }
    }

    /// When a line is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let Incidents { pauses, refused, broken, no_room } = self;
        [pauses.end(), refused.end(), broken.end(), no_room.end()].into_iter().flatten().min()
    }

    /// Logs all counts, because the server ends.
    pub(super) fn report_all(&mut self) {
        self.report(Moment::LAST);
    }

    /// Logs the counts of what is over.
    pub(super) fn report(&mut self, now: Moment) {
        if let Some((times, ())) = self.pauses.over(now) {
            info!(
                event = "accept_paused_over",
                times = times;
                "accept paused {} times, for lack of slots, descriptors or memory",
                units::grouped(times)
            );
        }
        if let Some((times, peer)) = self.refused.over(now) {
            info!(
                event = "refused_over",
                times = times,
                peer:%,
                setting:% = Setting::PerSourceConnections;
                "{} connections were closed at once, since their source had as many as allowed; the latest was {peer}",
                units::grouped(times)
            );
        }
        if let Some((times, (peer, reason))) = self.broken.over(now) {
            info!(
                event = "frame_broken_over",
                times = times,
                peer:%,
                reason = reason.name();
                "{} connections were closed for a frame that is too long or incomplete; the latest was {peer}, closed {reason}",
                units::grouped(times)
            );
        }
        if let Some((times, peer)) = self.no_room.over(now) {
            warn!(
                event = "no_room_over",
                times = times,
                peer:%,
                setting:% = Setting::MaxBuffered;
                "{} connections were closed, since no memory was left for them; the latest was {peer}",
                units::grouped(times)
            );
        }
    }
}
