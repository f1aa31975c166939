//! What happens while a server is pinged.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use serde::Serialize;

use super::Reply;
use crate::client::target;
use crate::error::Transport;

/// What happens, as it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run begins.
    Start {
        /// What carries the pings.
        transport: Transport,
        /// The length of each in bytes.
        size: usize,
    },
    /// A connection stands; over UDP, the address is known.
    Connected {
        /// The address that answered.
        address: SocketAddr,
        /// The client's own: a new connection has another port.
        local: SocketAddr,
    },
    /// Something came back.
    Reply(Reply),
    /// A ping is given up. Where no connection could be made for it, it was never sent.
    Lost {
        /// Its number: the first is 1.
        seq: u64,
        /// What failed.
        reason: Reason,
        /// The same in words. Empty for a timeout: nothing more is known.
        #[serde(skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// A ping has had no reply yet, when the next one is sent or when the run ends.
    Outstanding {
        /// Its number: the first is 1.
        seq: u64,
    },
    /// The connection has ended or, like a UDP socket, is given up since pings in a row were lost; the next
    /// ping resolves the name and connects anew.
    Disconnected {
        /// What failed.
        reason: Reason,
        /// The same in words.
        detail: String,
    },
}

impl Event {
    /// What was wrong, if something was.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Lost { reason, .. } | Self::Disconnected { reason, .. } => Some(*reason),
            Self::Reply(Reply::Corrupt { .. } | Reply::Stray) => Some(Reason::Corrupt),
            Self::Reply(Reply::Cut { .. }) => Some(Reason::Cut),
            _ => None,
        }
    }
}

/// Why a ping was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Nothing came back in time, or the attempt to connect got no answer.
    Timeout,
    /// Nothing listens on that port.
    Refused,
    /// The server reset the connection.
    Reset,
    /// The server closed the connection.
    Closed,
    /// There is no way to that address, or this machine refuses to send there.
    Unreachable,
    /// The name has no address.
    Unresolved,
    /// Other bytes came back than were sent.
    Corrupt,
    /// More or fewer bytes came back than were sent.
    Cut,
    /// The system refused something: the detail says what.
    Failed,
}

/// As in JSON.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl From<io::ErrorKind> for Reason {
    fn from(kind: io::ErrorKind) -> Self {
        use io::ErrorKind::*;
        match kind {
            TimedOut => Self::Timeout,
            ConnectionRefused => Self::Refused,
            ConnectionReset | ConnectionAborted | BrokenPipe => Self::Reset,
            UnexpectedEof => Self::Closed,
            HostUnreachable | NetworkUnreachable | NetworkDown => Self::Unreachable,
            InvalidData => Self::Cut,
            _ => Self::Failed,
        }
    }
}

impl From<&target::Error> for Reason {
    fn from(error: &target::Error) -> Self {
        match error {
            target::Error::Unknown { .. } | target::Error::NoThread { .. } => Self::Unresolved,
            target::Error::Unreachable { tried, .. } => {
                tried.last().map_or(Self::Failed, |attempt| attempt.kind.into())
            }
            target::Error::Stopped(_) => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use nix::errno::Errno;

    #[test]
    fn each_error_of_a_socket_has_its_reason() {
        for (errno, reason) in [
            (Errno::ETIMEDOUT, Reason::Timeout),
            (Errno::ECONNREFUSED, Reason::Refused),
            (Errno::ECONNRESET, Reason::Reset),
            (Errno::EPIPE, Reason::Reset),
            (Errno::EHOSTUNREACH, Reason::Unreachable),
            (Errno::ENETUNREACH, Reason::Unreachable),
            (Errno::ENETDOWN, Reason::Unreachable),
            (Errno::EHOSTDOWN, Reason::Unreachable),
            (Errno::EACCES, Reason::Unreachable),
            (Errno::EPERM, Reason::Unreachable),
            (Errno::EINVAL, Reason::Unreachable),
            (Errno::EMFILE, Reason::Failed),
            (Errno::EADDRNOTAVAIL, Reason::Failed),
        ] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let (address, wait) = (([192, 0, 2, 1], 7).into(), Duration::from_secs(1));
                let error = target::Error::unreachable(address, transport, wait, &errno.into());
                assert_eq!(Reason::from(&error), reason, "{errno}");
            }
        }
        assert_eq!(Reason::from(io::ErrorKind::UnexpectedEof), Reason::Closed);
    }
}
