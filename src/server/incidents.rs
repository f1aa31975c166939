//! The rate-limited log of what peers can cause: connections that are refused or closed for what they
//! sent, and pauses of accept.

use std::fmt;
use std::io;

use log::{error, info, warn};

use super::clock::Moment;
use super::ending::CloseReason;
use super::peer::Peer;
use super::rate_limited::RateLimited;
use crate::error::Setting;
use crate::sys::cause::{self, Call, Situation};
use crate::units;

/// What is logged at a limited rate, with the latest peer.
#[derive(Debug, Default)]
pub(super) struct Incidents {
    /// What the peers of these listeners are called.
    peers: &'static str,
    /// Accept paused; the latest cause.
    pauses: RateLimited<&'static str>,
    /// Connections were closed at once.
    refused: RateLimited<Peer>,
    /// Connections were closed for a frame that is too long or incomplete.
    broken: RateLimited<(Peer, CloseReason)>,
    memory_setting: Option<Setting>,
    /// Connections were closed because no memory was left for them.
    no_room: RateLimited<Peer>,
    /// Connections ended because the service panicked.
    panicked: RateLimited<Peer>,
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
    /// The system refuses the call.
    Resources(&'a io::Error),
    /// epoll refuses to watch this peer's connection (epoll_ctl(2)).
    Watches(Peer, &'a io::Error),
}

impl Lack<'_> {
    /// The cause in a sentence, if it is known.
    fn cause(self) -> Option<&'static str> {
        let (call, error) = match self {
            Lack::Slots(_) => return Some("as many connections were open as allowed"),
            Lack::Resources(error) => (Call::Accept, error),
            Lack::Watches(_, error) => (Call::Watch, error),
        };
        cause::cause(call, error, Situation::Plain).map(|(_, cause)| cause)
    }

    fn log(self, peers: &str, open: usize) {
        let cause = fmt::from_fn(|f| self.cause().map_or(Ok(()), |cause| write!(f, ": {cause}")));
        match self {
            Lack::Slots(set_by) => {
                let Some((limit, allowed)) = set_by.row() else { return };
                let from_config = set_by == MaxSetBy::Config;
                warn!(
                    event = "accept_paused",
                    peers = peers,
                    open = open,
                    limit = limit,
                    setting = from_config.then_some(Setting::MaxConnections.field());
                    "connections open: {open}, as many as {allowed}; new {peers} wait in the backlog until one closes"
                );
            }
            Lack::Resources(error) => warn!(
                event = "accept_paused",
                peers = peers,
                open = open,
                errno = error.raw_os_error();
                "cannot accept with {open} connections open: {error}{cause}; new {peers} wait in the backlog until the next try"
            ),
            Lack::Watches(peer, error) => warn!(
                event = "accept_paused",
                peers = peers,
                open = open,
                peer:%,
                errno = error.raw_os_error();
                "{peer} was closed at once, since epoll cannot watch it with {open} connections open: {error}{cause}; new {peers} wait in the backlog until the next try"
            ),
        }
    }
}

impl Incidents {
    pub(super) fn new(peers: &'static str, memory_setting: Option<Setting>) -> Self {
        Incidents { peers, memory_setting, ..Incidents::default() }
    }

    /// Counts a pause of accept, with this many connections open.
    pub(super) fn pause(&mut self, lack: Lack<'_>, open: usize, now: Moment) {
        self.report(now);
        if self.pauses.begins(lack.cause().unwrap_or("the system refused"), now) {
            lack.log(self.peers, open);
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
                setting = self.memory_setting.map(Setting::field);
                "{peer} closed {reason}; further ones are counted"
            ),
            CloseReason::Panicked if self.panicked.begins(peer, now) => error!(
                event = "panicked",
                peer:%;
                "{peer} closed {reason}; further ones are counted"
            ),
            _ => {}
        }
    }

    /// When a line is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let Incidents { pauses, refused, broken, no_room, panicked, .. } = self;
        [pauses.end(), refused.end(), broken.end(), no_room.end(), panicked.end()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Logs the counts of what is over.
    pub(super) fn report(&mut self, now: Moment) {
        if let Some((times, latest)) = self.pauses.over(now) {
            info!(
                event = "accept_paused_over",
                peers = self.peers,
                times = times;
                "accept of {} paused {} times; the latest cause: {latest}",
                self.peers,
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
                setting = self.memory_setting.map(Setting::field);
                "{} connections were closed, since no memory was left for them; the latest was {peer}",
                units::grouped(times)
            );
        }
        if let Some((times, peer)) = self.panicked.over(now) {
            error!(
                event = "panicked_over", times = times, peer:%;
                "{} connections ended because the service panicked; the latest was {peer}",
                units::grouped(times)
            );
        }
    }
}
