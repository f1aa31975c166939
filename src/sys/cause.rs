//! Why the system refuses a call on a socket, and what helps: one table for each system. Where several causes are
//! possible, the sentence claims none of them.

use std::io;
use std::net::SocketAddr;

use super::Errno;
use super::system::cause::{TABLE, first_unprivileged_port, may_bind_low_ports, of_interfaces};
use Call::{Bind, Socket};
use Situation::{Ipv6, LowPort, NoZone, Plain};

/// The call that the system refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Socket,
    Bind,
    Listen,
    Accept,
    /// epoll_create1(2), epoll_ctl(2), kqueue(2), kevent(2).
    Watch,
}

/// What is known beside the error, where the cause depends on it.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux tells all of them"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Situation {
    Plain,
    /// The socket is for IPv6.
    Ipv6,
    /// The socket is for IPv6, and no interface has an IPv6 address.
    NoIpv6,
    /// The kernel still looks for another host that has the address, or has found one (RFC 4862, 5.4).
    Tentative,
    /// The address is link-local, and names no interface.
    NoZone,
    /// The port is privileged, and this process has no capability for it.
    LowPort,
    /// A socket of this server has the port.
    Own,
    /// The system was to pick the port.
    Picked,
    /// The port is to be shared.
    Shared,
    /// The port could be shared, and is not to be.
    Alone,
}

/// Where something has to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    Port,
    Address,
    /// Not in the configuration.
    Elsewhere,
}

/// Calls, errors, the situation if it matters, what has to change, and the sentence, in which `{}` stands
/// for a detail of the situation. The first row that fits holds.
pub(super) type Row = (&'static [Call], &'static [Errno], Option<Situation>, Remedy, &'static str);

/// Why a call failed, in a sentence with `{}` for the detail, and what has to change. `None` where the error
/// says all that is known.
pub(crate) fn cause(
    call: Call,
    error: &io::Error,
    situation: Situation,
) -> Option<(Remedy, &'static str)> {
    let errno = Errno::from_raw(error.raw_os_error()?);
    let fits = |row: &&Row| {
        row.0.contains(&call) && row.1.contains(&errno) && row.2.is_none_or(|one| one == situation)
    };
    TABLE.iter().find(fits).map(|&(.., remedy, sentence)| (remedy, sentence))
}

/// The error with its cause in front of it, where that is known.
pub(crate) fn explained(call: Call, error: io::Error) -> io::Error {
    match cause(call, &error, Plain) {
        Some((_, cause)) => io::Error::new(error.kind(), format!("{cause}: {error}")),
        None => error,
    }
}

/// What the system knows beside the error of a socket for this address, and the detail of a sentence.
pub(crate) fn situation(error: &io::Error, address: SocketAddr) -> (Situation, String) {
    let situation = match (error.raw_os_error().map(Errno::from_raw), address) {
        (Some(Errno::EACCES), _) => {
            let first = first_unprivileged_port();
            let low = address.port() < first && !may_bind_low_ports();
            return (if low { LowPort } else { Plain }, first.to_string());
        }
        (Some(Errno::EAFNOSUPPORT), SocketAddr::V6(_)) => Ipv6,
        (Some(Errno::EADDRNOTAVAIL), SocketAddr::V6(v6)) => of_interfaces(*v6.ip()),
        (Some(Errno::EINVAL), SocketAddr::V6(v6))
            if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 =>
        {
            NoZone
        }
        _ => Plain,
    };
    (situation, String::new())
}

/// Whether `::` cannot be bound because there is no IPv6, or none for this process.
pub(crate) fn lacks_ipv6(call: Call, error: &io::Error) -> bool {
    let Some(errno) = error.raw_os_error().map(Errno::from_raw) else { return false };
    match call {
        Socket => matches!(errno, Errno::EAFNOSUPPORT | Errno::EPERM | Errno::EACCES),
        Bind => matches!(errno, Errno::EADDRNOTAVAIL | Errno::EPERM),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise it is never said.
    #[test]
    fn no_row_hides_another_one() {
        for (index, (calls, errnos, situation, ..)) in TABLE.iter().enumerate() {
            let hides = |row: &&Row| {
                let calls = calls.iter().all(|call| row.0.contains(call));
                let errnos = errnos.iter().all(|errno| row.1.contains(errno));
                calls && errnos && (row.2.is_none() || row.2 == *situation)
            };
            assert_eq!(TABLE[..index].iter().find(hides), None, "row {index}");
        }
    }
}
