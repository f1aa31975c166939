//! The rate-limited log of what peers can cause: connections that are refused or closed for what they
//! sent, and pauses of accept.

use std::io;

use log::{info, warn};

use super::clock::Moment;
use super::ending::CloseReason;
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

/// What sets [`Rules::max_connections`](super::admission::Rules).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaxSetBy {
    /// [`Limits::max_connections`](crate::Limits::max_connections).
    Config,
    /// The limit on open files.
    OpenFiles,
    /// The limit on threads.
    Threads,
    /// The design, which serves one at a time.
    Design,
}

impl MaxSetBy {
    /// The name of the limit, and how a sentence says it; none for the design, which is meant to.
    fn row(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            MaxSetBy::Config => ("max_connections", "allowed"),
            MaxSetBy::OpenFiles => {
                ("open_files", "the limit on open files allows; raise it, as with ulimit -n")
            }
            MaxSetBy::Threads => {
                ("mappings", "the limit on mappings allows; raise vm.max_map_count")
            }
            MaxSetBy::Design => return None,
        })
    }
}

/// Why accept pauses.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lack<'a> {
    /// As many connections are open as this allows.
    Slots(MaxSetBy),
    /// The system refuses: it has no descriptors or no memory.
    Resources(&'a io::Error),
    /// epoll refuses to watch this peer's connection (epoll_ctl(2)): no memory, or the user's limit on
    /// watches is reached.
    Watches(Peer, &'a io::Error),
}

impl Lack<'_> {
    fn log(self, open: usize) {
        match self {
            Lack::Slots(set_by) => {
                let Some((limit, allowed)) = set_by.row() else { return };
                let from_config = set_by == MaxSetBy::Config;
                warn!(
                    event = "accept_paused",
                    open = open,
                    limit = limit,
                    setting = from_config.then_some(Setting::MaxConnections.field());
                    "connections open: {open}, as many as {allowed}; new clients wait in the backlog until one closes"
                );
            }
            Lack::Resources(error) => warn!(
                event = "accept_paused",
                open = open,
                errno = error.raw_os_error();
                "cannot accept with {open} connections open: {error}; new clients wait in the backlog until the next try"
            ),
            Lack::Watches(peer, error) => warn!(
                event = "accept_paused",
                open = open,
                peer:%,
                errno = error.raw_os_error();
                "{peer} was closed at once, since epoll cannot watch it with {open} connections open: {error}; new clients wait in the backlog until the next try"
            ),
        }
    }
}

impl Incidents {
    /// Counts a pause of accept, with this many connections open.
    pub(super) fn pause(&mut self, lack: Lack<'_>, open: usize, now: Moment) {
        self.report(now);
        if self.pauses.begins((), now) {
            lack.log(open);
        }
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
        self.report(now);
        match reason {
            CloseReason::FrameTooLong | CloseReason::FrameTruncated
                if self.broken.begins((peer, reason), now) =>
            {
                let too_long = reason == CloseReason::FrameTooLong;
                info!(
                    event = "frame_broken",
                    peer:%,
                    reason = reason.name(),
                    setting = too_long.then_some(Setting::MaxFrame.field());
                    "{peer} closed {reason}; further ones are counted"
                );
            }
            CloseReason::OverBudget if self.no_room.begins(peer, now) => warn!(
                event = "no_room",
                peer:%,
                setting:% = Setting::MaxBuffered;
                "{peer} closed {reason}; further ones are counted"
            ),
            _ => {}
        }
    }

    /// When a line is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let Incidents { pauses, refused, broken, no_room } = self;
        [pauses.end(), refused.end(), broken.end(), no_room.end()].into_iter().flatten().min()
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
