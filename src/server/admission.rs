//! Who may come in over TCP: the same for all designs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, warn};

use super::clock::Moment;
use super::incidents::Incidents;
use super::memory;
use super::peer::{Peer, Source};
use crate::config::Config;
use crate::protocol::Protocol;
use crate::stats::Stats;
use crate::sys::{limits, socket};

/// What connections are allowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) protocol: Protocol,
    pub(crate) max_connections: usize,
    pub(crate) max_set_by: MaxSetBy,
    pub(crate) per_source_connections: Option<NonZeroUsize>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_buffered: usize,
    /// Where all places are taken, somebody new gets the place of the one on which nothing has moved
    /// for longest. Otherwise it waits in the backlog.
    pub(crate) newcomers_first: bool,
}

/// What keeps [`Rules::max_connections`] from being more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaxSetBy {
    /// [`Limits::max_connections`](crate::Limits::max_connections).
    Config,
    /// The limit on open files.
    OpenFiles,
    /// As many threads as the system lets us have.
    Threads,
    /// The design: one at a time.
    Design,
}

impl Rules {
    /// The rules of a config, with as many connections as the limit on open files allows now.
    pub(super) fn of(config: &Config) -> Self {
        let limits = &config.limits;
        let wanted = limits.max_connections.map_or(usize::MAX, NonZeroUsize::get);
        let possible = limits::files_left().saturating_sub(config.spare_files()).max(1);
        // A slot is named in 31 bits.
        let max_connections = wanted.min(possible).min(i32::MAX as usize);
        let from_config = wanted == max_connections;
        Rules {
            protocol: config.protocol,
            max_connections,
            max_set_by: if from_config { MaxSetBy::Config } else { MaxSetBy::OpenFiles },
            per_source_connections: limits.per_source_connections,
            idle_timeout: limits.idle_timeout,
            max_buffered: memory::possible(limits.max_buffered),
            newcomers_first: false,
        }
    }

    /// The same rules with no more than `max` connections.
    pub(super) fn at_most(self, max: usize, set_by: MaxSetBy) -> Self {
        if self.max_connections <= max {
            return self;
        }
        Rules { max_connections: max, max_set_by: set_by, ..self }
    }
}

/// How long accept waits for descriptors or memory when no connection leaves before.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// After this many errors in a row that seem to be about one connection each, accept pauses all the
/// same.
const ERRORS_IN_A_ROW: u32 = 64;

/// What to do after accept(2) has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AcceptError {
    /// Wait for the next client: the backlog is empty.
    Empty,
    /// Go on: the error was about the connection that would have been returned.
    Connection,
    /// Accept nobody until a connection has left or [`ACCEPT_RETRY`] is over.
    Starved,
}

/// Decides who comes in, and tells of those who do not.
#[derive(Debug)]
pub(super) struct Admission {
    set_by: MaxSetBy,
    sources: Sources,
    errors_in_a_row: u32,
    incidents: Incidents,
    stats: Arc<Stats>,
}

impl Admission {
    pub(super) fn new(rules: &Rules, stats: Arc<Stats>) -> Self {
        Admission {
            set_by: rules.max_set_by,
            sources: Sources::new(rules.per_source_connections),
            errors_in_a_row: 0,
            incidents: Incidents::default(),
            stats,
        }
    }

    /// Whether a connection that was accepted may stay: its source has not as many as it may have.
    pub(super) fn admit(&mut self, peer: Peer, now: Moment) -> bool {
        self.errors_in_a_row = 0;
        let admitted = self.sources.count_in(peer);
        if !admitted {
            self.stats.refused.increment();
            self.incidents.refuse(peer, now);
        }
        admitted
    }

    /// A connection that was admitted has left.
    pub(super) fn leave(&mut self, peer: Peer) {
        self.sources.count_out(peer);
    }

    /// What there is to tell of connections that were closed or not let in.
    pub(super) fn incidents(&mut self) -> &mut Incidents {
        &mut self.incidents
    }

    /// When there is something to tell, if nothing more happens.
    pub(super) fn next_report(&self) -> Option<Moment> {
        self.incidents.deadline()
    }

    /// Decides what an error of accept(2) means, with this many connections open.
    pub(super) fn judge(&mut self, error: &io::Error, open: usize, now: Moment) -> AcceptError {
        if error.kind() == ErrorKind::WouldBlock {
            self.errors_in_a_row = 0;
            return AcceptError::Empty;
        }
        self.errors_in_a_row += 1;
        if socket::is_about_one_connection(error) && self.errors_in_a_row < ERRORS_IN_A_ROW {
            self.stats.accept_errors.increment();
            debug!(
                event = "accept_error",
                errno = error.raw_os_error();
                "a connection was gone before it was accepted: {error}"
            );
            return AcceptError::Connection;
        }
        self.pause_starved(error, open, now);
        AcceptError::Starved
    }

    /// Accept pauses with this many connections open: the limit is reached.
    pub(super) fn pause_full(&mut self, open: usize, now: Moment) {
        if self.pause(now) {
            let (name, limit, advice) = match self.set_by {
                MaxSetBy::Config => ("max_connections", "`max_connections`", ""),
                MaxSetBy::OpenFiles => {
                    ("open_files", "the limit on open files", "; raise it, as with ulimit -n")
                }
                MaxSetBy::Threads => {
                    ("mappings", "the limit on mappings", "; raise vm.max_map_count")
                }
                MaxSetBy::Design => return,
            };
            warn!(
                event = "accept_paused",
                open = open,
                limit = name;
                "connections open: {open}, as many as {limit} allows{advice}; new clients wait in the backlog until one leaves"
            );
        }
    }

    /// Accept pauses with this many connections open, because of this error: no descriptors, no memory.
    pub(super) fn pause_starved(&mut self, error: &io::Error, open: usize, now: Moment) {
        if self.pause(now) {
            warn!(
                event = "accept_paused",
                open = open,
                errno = error.raw_os_error();
                "cannot accept with {open} connections open: {error}; new clients wait in the backlog, and we try again"
            );
        }
    }

    /// A connection that was admitted had to be closed at once: the poll would not watch it
    /// (epoll_ctl(2): no memory, or the user's limit on watches is reached). Accept stops.
    pub(super) fn not_registered(
        &mut self,
        peer: Peer,
        error: &io::Error,
        open: usize,
        now: Moment,
    ) {
        self.leave(peer);
        self.stats.registration_errors.increment();
        if self.pause(now) {
            warn!(
                event = "accept_paused",
                open = open,
                peer:%,
                errno = error.raw_os_error();
                "{peer} was closed at once, since epoll cannot watch it with {open} connections open: {error}; new clients wait in the backlog, and we try again"
            );
        }
    }

    /// Counts a pause; true for the first one of an episode.
    fn pause(&mut self, now: Moment) -> bool {
        self.stats.accept_pauses.increment();
        self.errors_in_a_row = 0;
        self.incidents.pause(now)
    }
}

/// Open connections by source, where that is limited.
#[derive(Debug)]
struct Sources {
    limit: Option<NonZeroUsize>,
    counts: HashMap<Source, usize>,
}

impl Sources {
    fn new(limit: Option<NonZeroUsize>) -> Self {
        Sources { limit, counts: HashMap::new() }
    }

    /// Counts a new connection of its source, unless that has as many as it may have.
    fn count_in(&mut self, peer: Peer) -> bool {
        let Some(limit) = self.limit else { return true };
        let count = self.counts.entry(peer.source()).or_default();
        let free = *count < limit.get();
        *count += usize::from(free);
        free
    }

    fn count_out(&mut self, peer: Peer) {
        if self.limit.is_none() {
            return;
        }
        if let Entry::Occupied(mut count) = self.counts.entry(peer.source()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::sys::Errno;

    fn rules(per_source: usize) -> Rules {
        Rules {
            protocol: Protocol::default(),
            max_connections: 9,
            max_set_by: MaxSetBy::Config,
            per_source_connections: NonZeroUsize::new(per_source),
            idle_timeout: None,
            max_buffered: 1 << 20,
            newcomers_first: false,
        }
    }

    fn admission(per_source: usize) -> (Admission, Arc<Stats>) {
        let stats = Arc::new(Stats::default());
        (Admission::new(&rules(per_source), Arc::clone(&stats)), stats)
    }

    fn peer(address: &str) -> Peer {
        address.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn the_config_allows_so_many_or_the_open_files_do() {
        let mut config = Config::default();
        assert_eq!(Rules::of(&config).max_set_by, MaxSetBy::OpenFiles);
        config.limits.max_connections = NonZeroUsize::new(1);
        let rules = Rules::of(&config);
        assert_eq!((rules.max_connections, rules.max_set_by), (1, MaxSetBy::Config));
    }

    #[test]
    fn a_design_may_allow_fewer_connections_than_the_config() {
        for (most, expected) in
            [(8, (8, MaxSetBy::Threads)), (9, (9, MaxSetBy::Config)), (10, (9, MaxSetBy::Config))]
        {
            let rules = rules(0).at_most(most, MaxSetBy::Threads);
            assert_eq!((rules.max_connections, rules.max_set_by), expected);
        }
    }

    #[test]
    fn a_source_has_no_more_connections_than_it_may() {
        let (mut admission, stats) = admission(2);
        let mut admit = |address| admission.admit(peer(address), Moment::default());
        assert!(admit("192.0.2.1:1") && admit("192.0.2.1:2"));
        assert!(!admit("192.0.2.1:3") && !admit("[::ffff:192.0.2.1]:4"));
        assert!(admit("192.0.2.2:1"));
        admission.leave(peer("192.0.2.1:1"));
        assert!(admission.admit(peer("192.0.2.1:5"), Moment::default()));
        assert_eq!(stats.snapshot().refused, 2);
    }

    #[test]
    fn what_was_refused_is_told_of_when_it_is_over() {
        let (mut admission, _) = admission(1);
        assert!(admission.admit(peer("192.0.2.1:1"), Moment::default()));
        assert_eq!(admission.next_report(), None);
        assert!(!admission.admit(peer("192.0.2.1:2"), Moment::default()));
        let over = Moment::default() + Duration::from_secs(10);
        assert_eq!(admission.next_report(), Some(over));
        admission.incidents().report(over);
        assert_eq!(admission.next_report(), None);
    }

    #[test]
    fn what_is_about_one_connection_pauses_nobody_unless_it_does_not_end() {
        let (mut admission, stats) = admission(0);
        let now = Moment::default();
        let mut judge = |errno: Errno| admission.judge(&errno.into(), 0, now);
        assert_eq!(judge(Errno::EAGAIN), AcceptError::Empty);
        assert_eq!(judge(Errno::ECONNABORTED), AcceptError::Connection);
        // What a filter forbids (seccomp(2), an LSM), it forbids every time.
        for lasting in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EPERM] {
            assert_eq!(judge(lasting), AcceptError::Starved, "{lasting}");
        }
        let errors = (0..10 * ERRORS_IN_A_ROW).map(|_| judge(Errno::ENETDOWN));
        let pauses = errors.filter(|&error| error == AcceptError::Starved).count();
        assert_eq!(pauses, 10);
        let stats = stats.snapshot();
        let others = u64::from(10 * ERRORS_IN_A_ROW) - 10;
        assert_eq!((stats.accept_errors, stats.accept_pauses), (1 + others, 5 + 10));
    }

    #[test]
    fn pauses_are_counted_and_who_was_not_registered_has_left() {
        let (mut admission, stats) = admission(1);
        let (now, error) = (Moment::default(), io::Error::from(Errno::ENOSPC));
        assert!(admission.admit(peer("192.0.2.1:1"), now));
        admission.not_registered(peer("192.0.2.1:1"), &error, 0, now);
        assert!(admission.admit(peer("192.0.2.1:2"), now));
        admission.pause_full(1, now);
        admission.pause_starved(&error, 1, now);
        let stats = stats.snapshot();
        assert_eq!((stats.accept_pauses, stats.registration_errors), (3, 1));
    }
}
