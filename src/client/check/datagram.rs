//! The grader's UDP sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::stream::{differs, left};
use crate::client::cancel::Deadline;
use crate::client::harness::Stop;
use crate::client::socket;
use crate::protocol::MAX_DATAGRAM;
use crate::units::time;

/// How often a datagram is sent that has to cross a network, which may lose it.
const TRIES: u32 = 4;

/// A UDP socket that asks one server. It is not connected, so it sees answers from elsewhere.
#[derive(Debug)]
pub(super) struct UdpClient<'a> {
    socket: UdpSocket,
    server: SocketAddr,
    deadline: Deadline<'a>,
}

impl<'a> UdpClient<'a> {
    pub(super) fn to(server: SocketAddr, deadline: Deadline<'a>) -> Result<Self, Stop> {
        let from: IpAddr = match server.ip() {
            // From the loopback address itself, whatever address of loopback is asked.
            ip if ip.is_loopback() && ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self::from(SocketAddr::new(from, 0), server, deadline)
    }

    /// A socket with an address and port of its own.
    pub(super) fn from(
        from: SocketAddr,
        server: SocketAddr,
        deadline: Deadline<'a>,
    ) -> Result<Self, Stop> {
        let socket = socket::bind_udp(from)
            .map_err(|error| Stop::skipped(format!("cannot open a socket at {from}: {error}")))?;
        Ok(Self { socket, server, deadline })
    }

    /// Its own port.
    pub(super) fn port(&self) -> Result<u16, Stop> {
        let address = self.socket.local_addr();
        address
            .map(|address| address.port())
            .map_err(|error| Stop::of_call("looking it up", &error))
    }

    /// Lets it send to broadcast addresses (`SO_BROADCAST`, socket(7)).
    pub(super) fn allow_broadcast(&self) -> Result<(), Stop> {
        self.socket
            .set_broadcast(true)
            .map_err(|error| Stop::of_call("allowing broadcasts", &error))
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), Stop> {
        let sent = self.deadline.is_ready(&self.socket, PollFlags::POLLOUT);
        let sent = sent.and_then(|_| self.socket.send_to(bytes, self.server));
        sent.map(|_| ()).map_err(|error| Stop::of_call("sending a datagram", &error))
    }

    /// The next datagram that comes before the deadline, and its sender.
    pub(super) fn receive(&self) -> Result<(Vec<u8>, SocketAddr), Stop> {
        self.receive_within(left(self.deadline))?
            .ok_or_else(|| Stop::broken("no datagram came back in time"))
    }

    /// The next datagram that comes within `patience`.
    pub(super) fn receive_within(
        &self,
        patience: Duration,
    ) -> Result<Option<(Vec<u8>, SocketAddr)>, Stop> {
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        let deadline = self.deadline.sooner(patience);
        match socket::receive(&self.socket, &mut buffer, deadline) {
            Ok(received) => Ok(received.map(|(length, from)| {
                buffer.truncate(length);
                (buffer, from)
            })),
            Err(error) => Err(Stop::of_call("receiving a datagram", &error)),
        }
    }

    /// Sends one datagram that has to come back unchanged, and waits for the answer.
    pub(super) fn exchange(&self, bytes: &[u8]) -> Result<(), Stop> {
        self.converse(bytes, bytes).map(|_| ())
    }

    /// Sends one datagram, waits for `answer` and says where that came from. A loss on the way
    /// is made good, except on loopback, which loses nothing.
    pub(super) fn converse(&self, sent: &[u8], answer: &[u8]) -> Result<SocketAddr, Stop> {
        let began = Instant::now();
        let tries = if self.server.ip().is_loopback() { 1 } else { TRIES };
        for tries_left in (1..=tries).rev() {
            self.send(sent)?;
            if let Some((found, from)) = self.next(answer, left(self.deadline) / tries_left)? {
                return same(&found, answer).map(|()| from);
            }
        }
        Err(self.unanswered(sent, began))
    }

    /// An exchange that shows whether the server serves at all: what it loses is sent again, and
    /// answers to others that had this port before are passed over.
    pub(super) fn exchange_at_last(&self, bytes: &[u8]) -> Result<(), Stop> {
        let began = Instant::now();
        for tries_left in (1..=2 * TRIES).rev() {
            self.send(bytes)?;
            let until = self.deadline.sooner(left(self.deadline) / tries_left);
            while let Some((found, _)) = self.next(bytes, until.left())? {
                if found == bytes {
                    return Ok(());
                }
            }
        }
        Err(self.unanswered(bytes, began))
    }

    fn unanswered(&self, sent: &[u8], since: Instant) -> Stop {
        let (count, waited) = (sent.len(), time(since.elapsed()));
        let what = format!("{count} bytes were sent and no datagram came back in {waited}");
        Stop::overdue(what, since, self.deadline)
    }

    /// The next datagram from the server or, from wherever, with the `answer`. Anything else is a
    /// late answer of another server to the client that had this port before.
    fn next(
        &self,
        answer: &[u8],
        patience: Duration,
    ) -> Result<Option<(Vec<u8>, SocketAddr)>, Stop> {
        let until = self.deadline.sooner(patience);
        while let Some((found, from)) = self.receive_within(until.left())? {
            if from == self.server || found == answer {
                return Ok(Some((found, from)));
            }
            if until.is_over() {
                break;
            }
        }
        Ok(None)
    }
}

/// Whether a datagram is the one that was to come.
pub(super) fn same(found: &[u8], wanted: &[u8]) -> Result<(), Stop> {
    if found.len() != wanted.len() {
        return Err(Stop::broken(format!(
            "a datagram of {} bytes came instead of {}",
            found.len(),
            wanted.len()
        )));
    }
    match found.iter().zip(wanted).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(index) => {
            let place = format!("byte {index} of {}", wanted.len());
            Err(differs(&place, found[index], wanted[index]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Cancel;

    #[test]
    fn a_stray_datagram_is_passed_over_and_a_wrong_answer_is_not() {
        let home = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let [server, stranger] = [home; 2].map(|home| UdpSocket::bind(home).unwrap());
        let cancel = Cancel::default();
        let deadline = cancel.within(Duration::from_secs(30));
        let client = UdpClient::to(server.local_addr().unwrap(), deadline).unwrap();
        let own = client.socket.local_addr().unwrap();
        // All of them are there before the question is sent.
        stranger.send_to(b"stray", own).unwrap();
        server.send_to(b"answer", own).unwrap();
        assert_eq!(client.converse(b"?", b"answer").unwrap(), server.local_addr().unwrap());
        // The right answer from a wrong address is what some cases look for.
        stranger.send_to(b"answer", own).unwrap();
        assert_eq!(client.converse(b"?", b"answer").unwrap(), stranger.local_addr().unwrap());
        server.send_to(b"answes", own).unwrap();
        assert!(client.converse(b"?", b"answer").is_err());
        stranger.send_to(b"stray", own).unwrap();
        server.send_to(b"old", own).unwrap();
        server.send_to(b"!", own).unwrap();
        client.exchange_at_last(b"!").unwrap();
    }
}
