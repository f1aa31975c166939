//! Admission of TCP connections, the same for all designs: limits, and errors of accept.

use std::collections::{HashMap, TryReserveError};
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use log::debug;

use super::budget;
use super::clock::Moment;
use super::incidents::{Incidents, Lack, MaxSetBy};
use super::peer::{Peer, Source};
use crate::config::{Config, Design};
use crate::error::Setting;
use crate::protocol::Protocol;
use crate::stats::Stats;
use crate::sys::{limits, socket};

/// What connections may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) protocol: Protocol,
    pub(crate) max_connections: usize,
    pub(crate) max_set_by: MaxSetBy,
    /// What the log calls the peers.
    pub(crate) peers: &'static str,
    pub(crate) per_source_connections: Option<NonZeroUsize>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) max_buffered: usize,
    /// The setting for it, where that helps a connection without memory.
    pub(crate) memory_setting: Option<Setting>,
    /// When full, the connection that has been idle longest is closed for a new one. Otherwise the new
    /// one waits in the backlog.
    pub(crate) newcomers_first: bool,
}

impl Rules {
    /// The rules of a config, with no more connections than its design and the limit on open files allow now.
    pub(super) fn of(config: &Config) -> Self {
        let limits = &config.limits;
        let wanted = limits.max_connections.map_or(usize::MAX, NonZeroUsize::get);
        let of_design = match config.design {
            // An id has 31 bits for the slot.
            Design::EventLoop => (i32::MAX as usize, MaxSetBy::Design),
            Design::Threaded => (limits::threads(), MaxSetBy::Threads),
            Design::Iterative => (1, MaxSetBy::Design),
        };
        // Of those that allow as many, the first is named.
        let all = [(wanted, MaxSetBy::Config), of_design, (possible(config), MaxSetBy::OpenFiles)];
        let least = all.into_iter().min_by_key(|(most, _)| *most);
        let (max_connections, max_set_by) = least.expect("there are three");
        Rules {
            protocol: config.protocol,
            max_connections,
            max_set_by,
            peers: "clients",
            per_source_connections: limits.per_source_connections,
            idle_timeout: limits.idle_timeout,
            max_buffered: budget::possible(limits.max_buffered).0,
            memory_setting: (config.design == Design::EventLoop).then_some(Setting::MaxBuffered),
            newcomers_first: false,
        }
    }
}

/// The most connections that the limit on open files allows now.
pub(super) fn possible(config: &Config) -> usize {
    limits::files_left().saturating_sub(config.spare_files()).max(1)
}

/// How long accept pauses for lack of descriptors or memory, unless a connection closes before.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// After this many errors in a row that seem to be about one connection each, accept pauses too.
const ERRORS_IN_A_ROW: u32 = 64;

/// What to do after an error of accept(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AcceptError {
    /// Wait for an event: the backlog is empty.
    Empty,
    /// Accept the next connection: the error was about one that has failed.
    Connection,
    /// Pause until a connection closes or [`ACCEPT_RETRY`] is over.
    Starved,
}

/// Decides which connections are served, and logs and counts the others.
#[derive(Debug)]
pub(super) struct Admission {
    per_source: Option<NonZeroUsize>,
    /// Open connections by source, if there is a limit on them.
    by_source: HashMap<Source, usize>,
    errors_in_a_row: u32,
    pub(super) incidents: Incidents,
    stats: Arc<Stats>,
}

impl Admission {
    pub(super) fn new(rules: &Rules, stats: Arc<Stats>) -> Self {
        Admission {
            per_source: rules.per_source_connections,
            by_source: HashMap::new(),
            errors_in_a_row: 0,
            incidents: Incidents::new(rules.peers, rules.memory_setting),
            stats,
        }
    }

    /// Makes sure that there is memory to count the source of one more.
    pub(super) fn reserve(&mut self) -> Result<(), TryReserveError> {
        self.by_source.try_reserve(usize::from(self.per_source.is_some()))
    }

    /// Whether an accepted connection is served: its source has fewer than allowed.
    pub(super) fn admit(&mut self, peer: Peer, now: Moment) -> bool {
        self.errors_in_a_row = 0;
        let Some(limit) = self.per_source else { return true };
        let count = self.by_source.entry(peer.source()).or_default();
        if *count >= limit.get() {
            self.stats.refused.increment();
            self.incidents.refuse(peer, now);
            return false;
        }
        *count += 1;
        true
    }

    /// Counts an admitted connection that has closed.
    pub(super) fn leave(&mut self, peer: Peer) {
        let source = peer.source();
        if let Some(count) = self.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }

    /// Decides what to do after an error of accept(2), with this many connections open.
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
                "a connection failed before it was accepted: {error}"
            );
            return AcceptError::Connection;
        }
        self.pause(Lack::Resources(error), open, now);
        AcceptError::Starved
    }

    /// Counts a pause of accept, with this many connections open.
    pub(super) fn pause(&mut self, lack: Lack<'_>, open: usize, now: Moment) {
        self.stats.accept_pauses.increment();
        self.errors_in_a_row = 0;
        self.incidents.pause(lack, open, now);
    }

    /// Counts an admitted connection that has to be closed at once, since epoll refuses to watch it, and
    /// pauses accept.
    pub(super) fn not_registered(
        &mut self,
        peer: Peer,
        error: &io::Error,
        open: usize,
        now: Moment,
    ) {
        self.leave(peer);
        self.stats.registration_errors.increment();
        self.pause(Lack::Watches(peer, error), open, now);
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
            peers: "clients",
            per_source_connections: NonZeroUsize::new(per_source),
            idle_timeout: None,
            max_buffered: 1 << 20,
            memory_setting: None,
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
    fn the_config_the_design_or_the_open_files_set_the_limit() {
        let mut config = Config::default();
        let mut limit = |design, wanted| {
            config.design = design;
            config.limits.max_connections = NonZeroUsize::new(wanted);
            let Rules { max_connections, max_set_by, .. } = Rules::of(&config);
            (max_connections, max_set_by)
        };
        assert_eq!(limit(Design::EventLoop, 0).1, MaxSetBy::OpenFiles);
        assert!(limit(Design::EventLoop, 0).0 > 1);
        let threads = limit(Design::Threaded, 0);
        assert!(threads.0 <= limits::threads() && threads.1 != MaxSetBy::Config);
        assert_eq!(limit(Design::Iterative, 0), (1, MaxSetBy::Design));
        assert_eq!(limit(Design::Iterative, 2), (1, MaxSetBy::Design));
        for design in [Design::EventLoop, Design::Threaded, Design::Iterative] {
            assert_eq!(limit(design, 1), (1, MaxSetBy::Config));
        }
    }

    #[test]
    fn the_event_loop_alone_has_a_setting_for_memory() {
        let setting = |design| Rules::of(&Config { design, ..Config::default() }).memory_setting;
        assert_eq!(setting(Design::EventLoop), Some(Setting::MaxBuffered));
        assert_eq!([Design::Threaded, Design::Iterative].map(setting), [None; 2]);
    }

    #[test]
    fn a_source_has_no_more_connections_than_allowed() {
        let (mut admission, stats) = admission(2);
        let mut admit = |address| admission.admit(peer(address), Moment::default());
        assert!(admit("192.0.2.1:1") && admit("192.0.2.1:2"));
        assert!(!admit("192.0.2.1:3") && !admit("[::ffff:192.0.2.1]:4"));
        assert!(admit("192.0.2.2:1"));
        admission.leave(peer("192.0.2.1:1"));
        assert!(admission.admit(peer("192.0.2.1:5"), Moment::default()));
        assert_eq!(stats.snapshot().refused, 2);
        // Sources are as many as the network likes: one without connections takes no memory.
        admission.leave(peer("192.0.2.2:1"));
        assert_eq!(Vec::from_iter(admission.by_source.values()), [&2]);
    }

    #[test]
    fn refused_connections_are_reported_when_it_is_over() {
        let (mut admission, _) = admission(1);
        assert!(admission.admit(peer("192.0.2.1:1"), Moment::default()));
        assert_eq!(admission.incidents.deadline(), None);
        assert!(!admission.admit(peer("192.0.2.1:2"), Moment::default()));
        let over = Moment::default() + Duration::from_secs(10);
        assert_eq!(admission.incidents.deadline(), Some(over));
        admission.incidents.report(over);
        assert_eq!(admission.incidents.deadline(), None);
    }

    #[test]
    fn an_error_about_one_connection_pauses_accept_only_if_it_lasts() {
        let (mut admission, stats) = admission(0);
        let now = Moment::default();
        let mut judge = |errno: Errno| admission.judge(&errno.into(), 0, now);
        assert_eq!(judge(Errno::EAGAIN), AcceptError::Empty);
        assert_eq!(judge(Errno::ECONNABORTED), AcceptError::Connection);
        // A filter (seccomp(2), an LSM) that forbids accept forbids it every time.
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
    fn pauses_are_counted_and_an_unregistered_connection_has_left() {
        let (mut admission, stats) = admission(1);
        let (now, error) = (Moment::default(), io::Error::from(Errno::ENOSPC));
        assert!(admission.admit(peer("192.0.2.1:1"), now));
        admission.not_registered(peer("192.0.2.1:1"), &error, 0, now);
        assert!(admission.admit(peer("192.0.2.1:2"), now));
        admission.pause(Lack::Slots(MaxSetBy::Config), 1, now);
        admission.pause(Lack::Resources(&error), 1, now);
        let stats = stats.snapshot();
        assert_eq!((stats.accept_pauses, stats.registration_errors), (3, 1));
    }
}
