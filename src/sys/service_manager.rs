//! The sockets of a service manager: those that it passes, and the one for notifications.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use super::system::service_manager::abstract_address;
#[cfg(feature = "daemon")]
use super::{OwnedFd, limits};
#[cfg(feature = "daemon")]
use crate::error::AdoptError;

/// Sends to the notification socket of a service manager (sd_notify(3)). Never blocks, unlike
/// `sd_notify::notify`.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl NotifySocket {
    /// The socket at `path`; an `@` in front means a name in the abstract namespace (unix(7)).
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let address = match path.as_os_str().as_bytes() {
            [b'@', name @ ..] => abstract_address(name)?,
            _ => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(NotifySocket { socket, address })
    }

    /// Sends these lines as one message.
    pub(crate) fn send(&self, lines: &str) -> io::Result<()> {
        self.socket.send_to_addr(lines.as_bytes(), &self.address).map(drop)
    }
}

/// The sockets that a service manager passes to this process (sd_listen_fds(3)), for
/// [`Server::adopt`](crate::Server::adopt). Empty if none are passed, or if LISTEN_PID names another
/// process.
///
/// Call it once, before the process has threads: it removes LISTEN_PID and LISTEN_FDS from the
/// environment, so that child processes do not take the sockets for their own.
///
/// # Errors
///
/// If a socket is neither TCP nor UDP.
#[cfg(feature = "daemon")]
pub fn inherited_sockets() -> Result<Vec<OwnedFd>, AdoptError> {
    let announced = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse::<u64>().ok());
    if let Some(count) = announced.filter(|&count| count > limits::open_file_limit()) {
        let index = usize::try_from(count).unwrap_or(usize::MAX) - 1;
        return Err(AdoptError::new(index, "LISTEN_FDS is over the limit on open files", None));
    }
    let mut passed = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        sockets.push(match (passed.take_tcp_listener(index), passed.take_udp_socket(index)) {
            (Ok(Some(listener)), _) => listener.into(),
            (_, Ok(Some(socket))) => socket.into(),
            _ => return Err(AdoptError::new(index, "it is neither a TCP nor a UDP socket", None)),
        });
    }
    Ok(sockets)
}
