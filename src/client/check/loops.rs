//! The cases about datagrams that must not be answered. They forge datagrams, so they stay on
//! loopback.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use etherparse::UdpHeader;
use socket2::{Domain, Protocol, Socket, Type};

use super::Need::{Loopback, Start, Udp};
use super::context::{Context, payload};
use super::datagram::UdpClient;
use super::seen::Expecting;
use super::stream::left;
use super::{Case, Group, case};
use crate::client::harness::{Stop, ensure};
use crate::sys::{local::hears_broadcasts, tool};

pub(super) static CASES: &[Case] = &[
    case(Group::Loop, "loop-self", &[Udp, Loopback, Start])
        .rule(
            "a datagram that seems to come from the server's own address and port is not answered",
        )
        .source("CERT CA-1996-01; CERT VU#417980")
        .run(|cx| {
            // A server that answers goes on for ever, so it ends with the case.
            let (server, probe) = cx.start(None)?;
            let cx = &cx.of(&server, &probe);
            let raw = Raw::open(cx.address())?;
            raw.see_only_loops()?;
            raw.forge(cx.address().port(), &payload(40, 50))?;
            fenced(cx)?;
            // One is the forged datagram itself.
            let answers = raw.count().checked_sub(1).ok_or_else(|| {
                Stop::skipped("the forged datagram did not reach this machine's loopback")
            })?;
            ensure(answers == 0, || {
                format!("it had answered itself {answers} times by a client's {FENCE}th answer")
            })
        }),
    case(Group::Loop, "loop-port-zero", &[Udp, Loopback])
        .rule("a datagram from port 0, which cannot be answered, does not end the service")
        .source("RFC 768, Source Port")
        .run(|cx| {
            let raw = Raw::open(cx.address())?;
            (0..3).try_for_each(|number| raw.forge(0, &payload(number, 50)))?;
            fenced(cx)
        }),
    case(Group::Loop, "loop-echo-port", &[Udp, Loopback])
        .rule("a datagram from another echo or chargen service (ports 7 and 19) is not answered")
        .source("CERT CA-1996-01; CERT VU#417980")
        .run(|cx| {
            let mut clients = Vec::new();
            let mut reason = String::new();
            for port in [7, 19] {
                let from = SocketAddr::new(cx.address().ip(), port);
                match UdpClient::from(from, cx.address(), cx.deadline) {
                    Ok(client) => clients.push((port, client)),
                    Err(seen) => reason = seen.to_string(),
                }
            }
            if clients.is_empty() {
                let needs = "it needs root, and a free port 7 or 19";
                return Err(Stop::skipped(format!("{reason}; {needs}")));
            }
            clients.iter().try_for_each(|(_, client)| client.send(&payload(41, 50)))?;
            fenced(cx)?;
            for (port, client) in &clients {
                let answer = client.receive_within(Duration::ZERO)?;
                let answered = answer.is_some_and(|(_, from)| from == cx.address());
                ensure(!answered, || format!("one from port {port} was answered"))?;
            }
            Ok(())
        }),
    case(Group::Loop, "loop-broadcast", &[Udp, Loopback])
        .rule(
            "a datagram to a broadcast address is not answered: one would bring an answer of every \
             host",
        )
        .source("CERT CA-1998-01; RFC 1122 section 3.2.1.3")
        .run(|cx| {
            let port = cx.address().port();
            if !cx.address().is_ipv4() {
                return Err(Stop::skipped("needs a server on IPv4 loopback"));
            }
            match hears_broadcasts(port) {
                Some(true) => {}
                Some(false) => {
                    return Err(Stop::skipped(
                        "its sockets are bound to one address each: no broadcast comes there",
                    ));
                }
                None => {
                    return Err(Stop::skipped("only Linux tells whether broadcasts come there"));
                }
            }
            let ours = (Ipv4Addr::UNSPECIFIED, 0).into();
            let ours = UdpClient::from(ours, cx.address(), cx.deadline)?;
            let _heard_by_us = broadcast(cx, ours.port()?)?;
            let patience = left(cx.deadline).min(Duration::from_millis(500));
            if ours.receive_within(patience)?.is_none() {
                return Err(Stop::skipped("no broadcast is heard on this machine's loopback"));
            }
            let client = broadcast(cx, port)?;
            fenced(cx)?;
            match client.receive_within(Duration::ZERO)? {
                Some((_, from)) if from.port() == port => Err(Stop::broken(format!(
                    "one to {LOOPBACK_BROADCAST}:{port} was answered by {from}"
                ))),
                _ => Ok(()),
            }
        }),
];

/// Sends a datagram to a port of the loopback interface's broadcast address.
fn broadcast<'a>(cx: &Context<'a>, port: u16) -> Result<UdpClient<'a>, Stop> {
    let client = UdpClient::to((LOOPBACK_BROADCAST, port).into(), cx.deadline)?;
    match client.allow_broadcast().and_then(|()| client.send(&payload(43, 50))) {
        Ok(()) => Ok(client),
        Err(_) => Err(Stop::skipped("a broadcast cannot be sent on this machine's loopback")),
    }
}

/// The broadcast address of the network 127.0.0.0/8.
const LOOPBACK_BROADCAST: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);

/// How many ordinary exchanges: on a busy machine, one CPU's packets may overtake another's.
const FENCE: usize = 200;

/// Ordinary exchanges: when they are over, what was sent before has been answered, if ever.
fn fenced(cx: &Context<'_>) -> Result<(), Stop> {
    let client = cx.udp_client()?;
    for _ in 0..FENCE {
        client.exchange_at_last(&payload(42, 50)).expecting("a client is answered after that")?;
    }
    Ok(())
}

/// A raw socket, which sends UDP headers of its own making and sees all UDP to its address: the server's.
struct Raw {
    socket: Socket,
    server: SocketAddr,
}

impl Raw {
    fn open(server: SocketAddr) -> Result<Self, Stop> {
        let open = || {
            let socket = Socket::new(Domain::for_address(server), Type::RAW, Some(Protocol::UDP))?;
            socket.bind(&SocketAddr::new(server.ip(), 0).into())?;
            socket.set_nonblocking(true)?;
            Ok(Self { socket, server })
        };
        open().map_err(|error: io::Error| {
            Stop::skipped(format!("forging a datagram needs root (CAP_NET_RAW): {error}"))
        })
    }

    /// Sends a datagram that seems to come from `port` of the server's own address.
    fn forge(&self, port: u16, data: &[u8]) -> Result<(), Stop> {
        let ip = self.server.ip();
        let datagram = udp(ip, port, self.server.port(), data);
        let sent = self.socket.send_to(&datagram, &SocketAddr::new(ip, 0).into());
        sent.map(drop)
            .map_err(|error| Stop::skipped(format!("a datagram cannot be forged: {error}")))
    }

    /// From now on lets in only what goes from the server's port to the same port. Without a filter
    /// in the kernel, other traffic on loopback would fill the queue.
    fn see_only_loops(&self) -> Result<(), Stop> {
        tool::see_only_loops(&self.socket, self.server)
            .map_err(|error| Stop::skipped(format!("loopback cannot be watched: {error}")))?;
        self.count();
        Ok(())
    }

    /// How many datagrams came since. A storm is not counted to its end.
    fn count(&self) -> u64 {
        const STORM: u64 = 10_000;
        let mut count = 0;
        while count < STORM && matches!((&self.socket).read(&mut [0; 64]), Ok(1..)) {
            count += 1;
        }
        count
    }
}

/// A UDP header (RFC 768) and its data, from an address to itself. IPv6 demands the checksum (RFC 8200 section
/// 8.1).
fn udp(ip: IpAddr, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let length = (UdpHeader::LEN + data.len()) as u16;
    let mut header = UdpHeader { source_port: from, destination_port: to, length, checksum: 0 };
    let checksum = match ip {
        IpAddr::V4(ip) => header.calc_checksum_ipv4_raw(ip.octets(), ip.octets(), data),
        IpAddr::V6(ip) => header.calc_checksum_ipv6_raw(ip.octets(), ip.octets(), data),
    };
    header.checksum = checksum.expect("the data is short");
    [&header.to_bytes(), data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_that_carries_its_checksum_sums_to_zero() {
        for ip in ["127.0.0.1", "::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            let datagram = udp(ip, 7, 7, b"odd");
            assert_eq!(datagram[..6], [0, 7, 0, 7, 0, 11]);
            let address = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            // The pseudo-header of both addresses, the protocol and the length is covered, too.
            let covered = [&address, &address, &[0, 17, 0, 11][..], &datagram].concat();
            let words = covered
                .chunks(2)
                .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)));
            let sum: u32 = words.sum();
            // In one's complement (RFC 1071), all ones are zero.
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
    }
}
