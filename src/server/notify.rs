//! Tells the service manager how the server is doing (sd_notify(3)): that it serves, that it stops,
//! and, again and again, that its loop comes round.
//!
//! Nothing here blocks, as sd_notify::notify does: what the manager has no room for is sent later.

use std::io;
use std::time::Duration;

use log::warn;

use super::clock::Moment;
use crate::config::ServiceManager;
use crate::sys::service_manager::NotifySocket;
use crate::sys::socket::is_not_now;

/// When to try again where the manager has no room.
const RETRY: Duration = Duration::from_millis(100);
/// A watchdog is not answered more often.
const SHORTEST: Duration = Duration::from_millis(1);

/// Who reports to a service manager.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: io::Result<NotifySocket>,
    /// What is served, in a sentence.
    pub(super) status: String,
    /// How often to say that we are alive.
    interval: Option<Duration>,
    /// When to say it next.
    alive_at: Option<Moment>,
    /// What there was no room for.
    unsent: String,
    retry_at: Option<Moment>,
    warned: bool,
}

impl Notifier {
    pub(super) fn new(manager: &ServiceManager) -> Self {
        Notifier {
            socket: NotifySocket::open(&manager.socket),
            status: String::new(),
            // Twice within its time, as sd_watchdog_enabled(3) recommends.
            interval: manager.watchdog.map(|time| (time / 2).max(SHORTEST)),
            alive_at: None,
            unsent: String::new(),
            retry_at: None,
            warned: false,
        }
    }

    /// Everything is bound and polled.
    pub(super) fn ready(&mut self, now: Moment) {
        self.alive_at = self.interval.map(|interval| now + interval);
        self.tell(&format!("READY=1\nSTATUS={}\n", self.status), now);
    }

    /// The server has been told to stop, which takes no longer than this.
    pub(super) fn stopping(&mut self, most: Duration, now: Moment) {
        // A second for what is around it.
        let micros = most.saturating_add(Duration::from_secs(1)).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=draining\n"), now);
    }

    /// The loop comes round: says so when it is time to.
    pub(super) fn turn(&mut self, now: Moment) {
        if self.alive_at.is_some_and(|at| now >= at) {
            self.alive_at = self.interval.map(|interval| now + interval);
            if self.unsent.is_empty() {
                self.tell("WATCHDOG=1\n", now);
            }
        }
        if self.retry_at.is_some_and(|at| now >= at) {
            self.send(now);
        }
    }

    /// When a turn is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        [self.alive_at, self.retry_at].into_iter().flatten().min()
    }

    fn tell(&mut self, lines: &str, now: Moment) {
        self.unsent += lines;
        self.send(now);
    }

    fn send(&mut self, now: Moment) {
        self.retry_at = None;
        let sent = match &self.socket {
            Ok(socket) => socket.send(&self.unsent),
            Err(error) => Err(error.kind().into()),
        };
        match sent {
            Err(error) if is_not_now(&error) => {
                self.retry_at = Some(now + RETRY);
                return;
            }
            Err(error) if !self.warned => {
                self.warned = true;
                warn!(
                    event = "service_manager_unreachable",
                    errno = error.raw_os_error();
                    "the service manager cannot be told how we are (NOTIFY_SOCKET): {error}"
                );
            }
            _ => {}
        }
        self.unsent.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::default() + Duration::from_millis(millis)
    }

    /// A manager, and who reports to it.
    fn pair(name: &str, watchdog: Option<Duration>) -> (UnixDatagram, Notifier) {
        let name = format!("evecho-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let manager = ServiceManager { watchdog, ..ServiceManager::new(format!("@{name}")) };
        let mut notifier = Notifier::new(&manager);
        notifier.status = "serving".to_owned();
        (socket, notifier)
    }

    fn heard(socket: &UnixDatagram) -> Option<String> {
        let mut room = [0; 1_000];
        let length = socket.recv(&mut room).ok()?;
        Some(String::from_utf8_lossy(&room[..length]).into_owned())
    }

    #[test]
    fn a_manager_hears_in_half_of_its_time_that_the_loop_comes_round() {
        let (manager, mut notifier) = pair("alive", Some(Duration::from_secs(3)));
        assert_eq!(notifier.deadline(), None);
        notifier.ready(at(10_000));
        assert_eq!(heard(&manager).as_deref(), Some("READY=1\nSTATUS=serving\n"));
        for (now, deadline, says) in [(11_499, 11_500, false), (11_600, 13_100, true)] {
            notifier.turn(at(now));
            assert_eq!(heard(&manager), says.then(|| "WATCHDOG=1\n".to_owned()));
            assert_eq!(notifier.deadline(), Some(at(deadline)));
        }
        notifier.stopping(Duration::from_secs(4_999), at(11_700));
        let stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=5000000000\nSTATUS=draining\n";
        assert_eq!(heard(&manager).as_deref(), Some(stopping));
    }

    #[test]
    fn what_the_manager_has_no_room_for_is_sent_later() {
        let (manager, mut notifier) = pair("full", Some(Duration::from_millis(20)));
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        let address = manager.local_addr().unwrap();
        while other.send_to_addr(b"from others", &address).is_ok() {}
        notifier.ready(at(0));
        for now in 0..99 {
            notifier.turn(at(now));
        }
        while heard(&manager).is_some_and(|what| what == "from others") {}
        notifier.turn(at(99));
        assert_eq!(heard(&manager), None);
        notifier.turn(at(100));
        assert_eq!(heard(&manager).as_deref(), Some("READY=1\nSTATUS=serving\n"));
        notifier.turn(at(110));
        assert_eq!(heard(&manager).as_deref(), Some("WATCHDOG=1\n"));
    }

    #[test]
    fn a_manager_that_cannot_be_reached_ends_nothing() {
        for socket in ["/nonexistent/notify", "", "@", &"x".repeat(1_000)] {
            let mut notifier = Notifier::new(&ServiceManager::new(socket));
            notifier.ready(at(0));
            notifier.stopping(Duration::MAX / 2, at(1));
            assert!(notifier.warned && notifier.deadline().is_none(), "{socket}");
        }
    }
}
