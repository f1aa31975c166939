//! A service manager such as systemd, that wants to hear how a server is doing.

use std::path::PathBuf;
use std::time::Duration;

/// A service manager that a server reports to, as sd_notify(3) has it: see
/// [`Config::service_manager`](crate::Config::service_manager).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ServiceManager {
    /// The path of its datagram socket; an `@` in front means a name in the abstract namespace
    /// (unix(7)).
    pub socket: PathBuf,
    /// It ends and restarts a server that says nothing for so long. Default: never.
    pub watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that listens on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        ServiceManager { socket: socket.into(), watchdog: None }
    }

    /// The one of this process, if there is one: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID of the
    /// environment.
    #[cfg(feature = "daemon")]
    pub fn from_env() -> Option<Self> {
        let socket = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
        let watchdog = sd_notify::watchdog_enabled().filter(|time| !time.is_zero());
        Some(ServiceManager { watchdog, ..ServiceManager::new(socket) })
    }
}
