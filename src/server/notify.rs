//! Notifications to the service manager (sd_notify(3)): the server is ready, it stops, and, for the
//! watchdog, it is alive.
//!
//! Nothing here blocks, unlike `sd_notify::notify`: what the manager does not take at once is sent later.

use std::io;
use std::time::Duration;

use log::warn;

use super::clock::Moment;
use crate::config::ServiceManager;
use crate::sys::service_manager::NotifySocket;
use crate::sys::socket::is_not_now;

/// When to try again if the socket of the manager is full.
const RETRY: Duration = Duration::from_millis(100);
/// The shortest interval of a watchdog.
const SHORTEST: Duration = Duration::from_millis(1);

/// Notifies a service manager.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: io::Result<NotifySocket>,
    /// What is served, as a sentence.
    pub(super) status: String,
    /// The interval of the watchdog.
    interval: Option<Duration>,
    /// When the next notification for the watchdog is due.
    alive_at: Option<Moment>,
    /// Notifications that the manager has not taken yet.
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

    /// The server is ready: everything is bound and polled.
    pub(super) fn ready(&mut self, now: Moment) {
        self.alive_at = self.interval.map(|interval| now + interval);
        self.notify(&format!("READY=1\nSTATUS={}\n", self.status), now);
    }

    /// The server stops, which takes no longer than `most`.
    pub(super) fn stopping(&mut self, most: Duration, now: Moment) {
        // One more second for the rest of the exit.
        let micros = most.saturating_add(Duration::from_secs(1)).as_micros();
        let micros = u64::try_from(micros).unwrap_or(u64::MAX);
        self.notify(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=draining\n"), now);
    }

    /// Notifies the watchdog when this is due. Called in each pass of the loop.
    pub(super) fn turn(&mut self, now: Moment) {
        if self.alive_at.is_some_and(|at| now >= at) {
            self.alive_at = self.interval.map(|interval| now + interval);
            if self.unsent.is_empty() {
                self.notify("WATCHDOG=1\n", now);
            }
        }
        if self.retry_at.is_some_and(|at| now >= at) {
            self.send(now);
        }
    }

    /// When the next call of [`turn`](Self::turn) is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        [self.alive_at, self.retry_at].into_iter().flatten().min()
    }

    fn notify(&mut self, lines: &str, now: Moment) {
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
                    "cannot notify the service manager (NOTIFY_SOCKET): {error}"
                );
            }
            _ => {}
        }
        self.unsent.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::path::PathBuf;
    use std::{env, fs, process};

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::default() + Duration::from_millis(millis)
    }

    /// A service manager.
    struct Manager {
        socket: UnixDatagram,
        path: PathBuf,
    }

    impl Drop for Manager {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// A service manager, and a notifier for it.
    fn pair(name: &str, watchdog: Option<Duration>) -> (Manager, Notifier) {
        let path = env::temp_dir().join(format!("evecho-{name}-{}", process::id()));
        // An earlier process with this number may have been killed.
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let manager = ServiceManager { watchdog, ..ServiceManager::new(&path) };
        let mut notifier = Notifier::new(&manager);
        notifier.status = "serving".to_owned();
        (Manager { socket, path }, notifier)
    }

    fn heard(manager: &Manager) -> Option<String> {
        let mut buffer = [0; 1_000];
        let length = manager.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn the_watchdog_is_notified_at_half_of_its_time() {
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
    fn what_the_manager_does_not_take_is_sent_later() {
        let (manager, mut notifier) = pair("full", Some(Duration::from_millis(20)));
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        while other.send_to(b"from others", &manager.path).is_ok() {}
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
    fn an_unreachable_manager_does_no_harm() {
        for socket in ["/nonexistent/notify", "", "@", &"x".repeat(1_000)] {
            let mut notifier = Notifier::new(&ServiceManager::new(socket));
            notifier.ready(at(0));
            notifier.stopping(Duration::MAX / 2, at(1));
            assert!(notifier.warned && notifier.deadline().is_none(), "{socket}");
        }
    }
}
