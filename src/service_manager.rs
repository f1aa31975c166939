//! What a service manager such as systemd gives to a process: somebody who wants to hear how it is
//! doing, and sockets that are bound already.

use std::path::PathBuf;
use std::time::Duration;
#[cfg(feature = "daemon")]
use std::{env, os::fd::OwnedFd};

#[cfg(feature = "daemon")]
use listenfd::ListenFd;

#[cfg(feature = "daemon")]
use crate::socket::{AdoptError, open_file_limit};

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
        let socket = env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())?;
        let watchdog = sd_notify::watchdog_enabled().filter(|time| !time.is_zero());
        Some(ServiceManager { watchdog, ..ServiceManager::new(socket) })
    }
}

/// The sockets that a service manager passes to this process (sd_listen_fds(3)), for
/// [`Server::adopt`](crate::Server::adopt). None where it passes none, or where LISTEN_PID names another
/// process.
///
/// To be called once, before the process has threads: it takes LISTEN_PID and LISTEN_FDS from the
/// environment, so that children do not take the sockets for theirs.
///
/// # Errors
///
/// A sentence that says which one is neither TCP nor UDP.
#[cfg(feature = "daemon")]
pub fn inherited_sockets() -> Result<Vec<OwnedFd>, AdoptError> {
    let said = env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u64>().ok());
    if let Some(count) = said.filter(|&count| count > open_file_limit()) {
        let index = usize::try_from(count).unwrap_or(usize::MAX) - 1;
        return Err(AdoptError::new(index, "LISTEN_FDS counts more than can be open"));
    }
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        sockets.push(match (passed.take_tcp_listener(index), passed.take_udp_socket(index)) {
            (Ok(Some(listener)), _) => listener.into(),
            (_, Ok(Some(socket))) => socket.into(),
            _ => return Err(AdoptError::new(index, "it is neither a TCP nor a UDP socket")),
        });
    }
    Ok(sockets)
}
