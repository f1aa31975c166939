//! The network and the UDP socket of the simulation: what the server calls, and what that returns.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use super::random::Random;
use crate::protocol::MAX_DATAGRAM;
use crate::server::clock::Moment;
use crate::server::guard::{Guard, Refusal};
use crate::server::netem::{Delayed, Netem};
use crate::server::peer::Peer;
use crate::server::udp::{
    BUFFER, MAX_JOINED_SEGMENT, MAX_RECEIVE, MAX_TURN, MAX_WAIT, Neighbours, REFUSED_FOR,
};
use crate::stats::Stats;
use crate::sys::Errno;
use crate::sys::datagram::{Received, Route, Socket};

/// What a history is about.
pub(super) struct Settings {
    pub(super) offload: bool,
    /// One call in this many goes wrong; none with 0.
    pub(super) trouble: usize,
    /// The size of half of the send buffer.
    pub(super) send_buffer: usize,
}

/// A client, and the way to it.
pub(super) struct PeerModel {
    pub(super) address: SocketAddr,
    /// Our addresses that it sends to, with their interfaces.
    pub(super) asks: Vec<(IpAddr, u32)>,
    pub(super) path: Path,
    /// Replies that it is owed, in order.
    pub(super) owed: VecDeque<Owed>,
}

/// What replies meet on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// They leave as they are sent.
    Clear,
    /// Each takes this time to leave.
    Slow(Duration),
    /// The neighbour does not exist: they stay in the buffer until that is known.
    Dead,
    /// The path takes segments of up to this many bytes.
    Narrow(usize),
    /// The device or the tunnel does not know segmentation offload.
    WithoutOffload,
    /// None may leave.
    Refused(Errno),
}

/// A reply that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owed {
    pub(super) bytes: Vec<u8>,
    pub(super) route: Route,
    pub(super) came_joined: bool,
}

/// What is in the receive queue.
pub(super) struct Incoming {
    pub(super) peer: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) received: Received,
}

/// What happened, to be compared with the counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) received: u64,
    pub(super) bytes_in: u64,
    pub(super) answered: u64,
    pub(super) bytes_out: u64,
    pub(super) truncated: u64,
    pub(super) guarded: u64,
    pub(super) limited: u64,
    pub(super) too_long: u64,
    pub(super) dropped: u64,
    pub(super) errors: u64,
    pub(super) receives_in_turn: usize,
    pub(super) sends_in_turn: usize,
}

/// What has not left yet.
struct Sent {
    to: IpAddr,
    size: usize,
    until: Moment,
}

pub(super) struct UdpWorld {
    pub(super) random: Random,
    pub(super) now: Moment,
    pub(super) settings: Settings,
    pub(super) peers: Vec<PeerModel>,
    pub(super) incoming: VecDeque<Incoming>,
    /// What stands in the send buffer, and until when.
    sent: Vec<Sent>,
    /// The server has not had the event yet.
    pub(super) read_edge: bool,
    pub(super) write_edge: bool,
    /// When the server first met the full buffer, since the last event that there is room, or the reserve.
    full_since: Option<Moment>,
    /// Whether the server uses the whole buffer.
    reserve: bool,
    /// Hosts that were missing when the server asked.
    missing: Vec<IpAddr>,
    /// When it asked last.
    asked_at: Option<Moment>,
    /// What an earlier datagram met: the error of the next call.
    pub(super) pending_error: Option<Errno>,
    /// Every receive fails until then.
    pub(super) broken_until: Option<Moment>,
    pub(super) broken_calls: u64,
    /// Paths that have refused joined datagrams, and until when that is to be remembered.
    refused: Vec<(IpAddr, Moment)>,
    /// Nothing goes wrong any more.
    pub(super) calm: bool,
    /// Decides the same as the server's.
    pub(super) oracle: Guard,
    /// Decides the same as the server's.
    netem: Option<Netem>,
    pub(super) netem_stats: Stats,
    /// The delayed replies that are due are owed already in this turn.
    released: bool,
    /// Turns follow each other until nothing is left.
    ending: bool,
    pub(super) tally: Tally,
    pub(super) violations: Vec<String>,
}

/// The replies of the simulation's service.
pub(super) fn replies(request: &[u8]) -> Vec<Vec<u8>> {
    match request.first() {
        Some(b'n') => vec![],
        Some(b't') => vec![request.to_vec(), request[..request.len() / 2].to_vec()],
        Some(b'g') => vec![request.repeat(3)],
        Some(b's') => vec![request[1..].to_vec()],
        _ => vec![request.to_vec()],
    }
}

pub(super) fn longest(peer: SocketAddr) -> usize {
    if peer.ip().to_canonical().is_ipv4() { MAX_DATAGRAM } else { 65_527 }
}

impl UdpWorld {
    pub(super) fn new(
        random: Random,
        settings: Settings,
        peers: Vec<PeerModel>,
        oracle: Guard,
        netem: Option<Netem>,
    ) -> Self {
        UdpWorld {
            random,
            now: Moment::default(),
            settings,
            peers,
            incoming: VecDeque::new(),
            sent: Vec::new(),
            read_edge: false,
            write_edge: true,
            full_since: None,
            reserve: false,
            missing: Vec::new(),
            asked_at: None,
            pending_error: None,
            broken_until: None,
            broken_calls: 0,
            refused: Vec::new(),
            calm: false,
            oracle,
            netem,
            netem_stats: Stats::default(),
            released: false,
            ending: false,
            tally: Tally::default(),
            violations: Vec::new(),
        }
    }

    fn violation(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    fn trouble(&mut self) -> bool {
        !self.calm && self.settings.trouble > 0 && self.random.one_in(self.settings.trouble)
    }

    fn used(&self) -> usize {
        self.sent.iter().map(|sent| sent.size).sum()
    }

    /// Lets time pass; what has left the buffer makes room.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let was_writable = self.is_writable();
        let now = self.now;
        self.sent.retain(|sent| sent.until > now);
        self.write_edge |= !was_writable && self.is_writable();
    }

    /// The socket is writable where half of the buffer is free (sock_writeable).
    fn is_writable(&self) -> bool {
        2 * self.used() <= self.buffer()
    }

    fn buffer(&self) -> usize {
        self.settings.send_buffer * if self.reserve { 2 } else { 1 }
    }

    /// The hosts that the kernel is looking for.
    fn missing_neighbours(&mut self) -> Vec<IpAddr> {
        let waiting = self.sent.iter().map(|sent| sent.to);
        let dead = |ip: &IpAddr| {
            let mut there = self.peers.iter().filter(|peer| peer.address.ip() == *ip);
            there.any(|peer| peer.path == Path::Dead)
        };
        let missing: Vec<IpAddr> = waiting.filter(dead).collect();
        self.missing.extend(&missing);
        self.asked_at = Some(self.now);
        missing
    }

    /// Whether the server may drop replies to a host: it is missing, or the server may not ask yet. The
    /// next reply that is sent shows which ones were dropped.
    fn may_drop_to(&self, ip: IpAddr) -> bool {
        let just_now = self.asked_at.is_some_and(|at| self.now < at + Neighbours::ASK_GAP);
        just_now || self.missing.contains(&ip)
    }

    /// The server has nothing left to send: what is still owed was dropped.
    pub(super) fn note_sent_all(&mut self) {
        for index in 0..self.peers.len() {
            if self.may_drop_to(self.peers[index].address.ip()) {
                self.tally.dropped += self.peers[index].owed.drain(..).count() as u64;
            }
        }
    }

    /// The delayed replies that are due are owed from here on, as many as the server may send in a turn.
    pub(super) fn release_in_turn(&mut self) {
        if std::mem::replace(&mut self.released, !self.ending) {
            return;
        }
        let Some(netem) = &mut self.netem else { return };
        let (mut count, mut bytes) = (0, 0);
        while count < MAX_TURN
            && bytes < BUFFER
            && let Some(Delayed { route, bytes: reply, .. }) = netem.dequeue(self.now)
        {
            (count, bytes) = (count + 1, bytes + reply.len());
            let peer = self.peers.iter_mut().find(|peer| peer.address == route.peer);
            let owed = Owed { bytes: reply, route, came_joined: false };
            peer.expect("replies go to peers").owed.push_back(owed);
        }
    }

    /// No reply is delayed any more, and the server is to be done at once.
    pub(super) fn hasten(&mut self) {
        self.ending = true;
        self.netem.iter_mut().for_each(Netem::hasten);
    }

    /// What has not been sent by now was dropped.
    pub(super) fn drop_all(&mut self) {
        while self.next_delayed().is_some() {
            self.release_in_turn();
        }
        let owed = self.peers.iter_mut().map(|peer| peer.owed.drain(..).count());
        self.tally.dropped += owed.sum::<usize>() as u64;
    }

    /// When the next delayed reply is due.
    pub(super) fn next_delayed(&self) -> Option<Moment> {
        self.netem.as_ref().and_then(Netem::next_at)
    }

    /// Where the server sends what is not owed yet, it has released delayed replies. It does that when it
    /// has nothing else left.
    fn note_released(&mut self, index: usize, datagrams: &[&[u8]], route: &Route) {
        let is_owed = |bytes: &&[u8]| {
            let mut owed = self.peers[index].owed.iter();
            owed.any(|owed| owed.bytes == *bytes && owed.route == *route)
        };
        if self.netem.is_some() && !datagrams.iter().all(is_owed) {
            self.note_sent_all();
            self.release_in_turn();
        }
    }

    /// What was owed before this was dropped.
    fn skip_to(&mut self, index: usize, bytes: &[u8], route: &Route) {
        if !self.may_drop_to(route.peer.ip()) {
            return;
        }
        let owed = &mut self.peers[index].owed;
        let place = owed.iter().position(|owed| owed.bytes == bytes && owed.route == *route);
        self.tally.dropped += owed.drain(..place.unwrap_or(0)).count() as u64;
    }

    /// When something leaves the buffer next.
    pub(super) fn next_departure(&self) -> Option<Moment> {
        self.sent.iter().map(|sent| sent.until).min()
    }

    /// As epoll_wait(2): nothing without an edge, else what the socket is ready for.
    pub(super) fn poll(&mut self) -> Option<(bool, bool)> {
        if !std::mem::take(&mut self.read_edge) & !std::mem::take(&mut self.write_edge) {
            return None;
        }
        let writable = self.is_writable();
        if writable {
            self.full_since = None;
        }
        Some((!self.incoming.is_empty(), writable))
    }

    pub(super) fn begin_turn(&mut self) {
        self.tally.receives_in_turn = 0;
        self.tally.sends_in_turn = 0;
        self.released = false;
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, Errno> {
        self.tally.receives_in_turn += 1;
        if self.tally.receives_in_turn == 1 {
            self.note_sent_all();
        }
        if buffer.len() < MAX_RECEIVE {
            self.violation("a buffer that is shorter than a datagram may be");
        }
        if let Some(until) = self.broken_until {
            if self.now < until {
                self.broken_calls += 1;
                self.tally.errors += 1;
                return Err(Errno::EPERM);
            }
            self.broken_until = None;
        }
        if let Some(error) = self.pending_error.take() {
            self.tally.errors += 1;
            return Err(error);
        }
        if self.trouble() {
            return Err(Errno::EINTR);
        }
        let Some(incoming) = self.incoming.pop_front() else {
            return Err(Errno::EAGAIN);
        };
        buffer[..incoming.bytes.len()].copy_from_slice(&incoming.bytes);
        self.note_received(&incoming);
        Ok(incoming.received)
    }

    /// From here on the peer is owed the replies.
    fn note_received(&mut self, Incoming { peer: index, bytes, received }: &Incoming) {
        let route = received.route;
        let requests: Vec<&[u8]> =
            if received.is_run() { bytes.chunks(received.segment).collect() } else { vec![bytes] };
        let came_joined = requests.len() > 1;
        self.tally.received += requests.len() as u64;
        self.tally.bytes_in += bytes.len() as u64;
        let peer = Peer::from(route.peer);
        if let Err(refusal) = self.oracle.admit(peer, received) {
            let truncated = refusal == Refusal::Truncated;
            let tally = &mut self.tally;
            *(if truncated { &mut tally.truncated } else { &mut tally.guarded }) +=
                requests.len() as u64;
            return;
        }
        for request in requests {
            if self.oracle.admit_datagram(peer, self.now).is_err() {
                self.tally.limited += 1;
                continue;
            }
            let mut paid = request.len();
            for bytes in replies(request) {
                if bytes.len() > longest(route.peer) {
                    self.tally.too_long += 1;
                    continue;
                }
                if self.oracle.admit_reply(peer, paid, bytes.len(), self.now).is_err() {
                    self.tally.limited += 1;
                    break;
                }
                paid = 0;
                self.owe(*index, Owed { bytes, route, came_joined });
            }
        }
    }

    /// A peer is owed a reply, now or once it has passed the queue in which it is impaired.
    fn owe(&mut self, index: usize, owed: Owed) {
        let Some(netem) = &mut self.netem else {
            self.peers[index].owed.push_back(owed);
            return;
        };
        let (Owed { bytes, route, .. }, now) = (owed, self.now);
        let admit = || self.oracle.admit_reply(route.peer.into(), 0, bytes.len(), now).is_ok();
        netem.enqueue(&bytes, route, now, &self.netem_stats, admit);
    }

    fn send(&mut self, bytes: &[u8], segment: Option<u16>, route: &Route) -> Result<(), Errno> {
        self.tally.sends_in_turn += 1;
        let Some(index) = self.peers.iter().position(|peer| peer.address == route.peer) else {
            self.violation(format!("a reply to {}, which is no peer", route.peer));
            return Ok(());
        };
        let datagrams: Vec<&[u8]> = match segment {
            None => vec![bytes],
            Some(size) => bytes.chunks(usize::from(size).max(1)).collect(),
        };
        self.note_released(index, &datagrams, route);
        self.skip_to(index, datagrams.first().unwrap_or(&bytes), route);
        let count = self.check_call(index, &datagrams, segment, route);
        if self.trouble() {
            return Err(Errno::EINTR);
        }
        if self.random.one_in(4)
            && let Some(error) = self.pending_error.take_if(|error| *error == Errno::ECONNREFUSED)
        {
            return Err(error);
        }
        let path = self.peers[index].path;
        if let Some(error) = self.refusal(path, bytes.len(), segment, route) {
            if segment.is_some() && matches!(error, Errno::EMSGSIZE | Errno::EINVAL | Errno::EIO) {
                self.refused.push((route.peer.ip(), self.now + REFUSED_FOR));
                return Err(error);
            }
            self.tally.errors += count as u64;
            self.peers[index].owed.drain(..count);
            return Err(error);
        }
        if self.used() >= self.buffer() {
            self.note_full(index, count);
            return Err(Errno::EAGAIN);
        }
        let stays = match path {
            Path::Slow(time) => time,
            Path::Dead => Duration::from_secs(3),
            _ => Duration::ZERO,
        };
        if !stays.is_zero() {
            // As skbs count: with their headers.
            let size = bytes.len() + 700 * count;
            self.sent.push(Sent { to: route.peer.ip(), size, until: self.now + stays });
        }
        self.tally.answered += count as u64;
        self.tally.bytes_out += bytes.len() as u64;
        self.peers[index].owed.drain(..count);
        Ok(())
    }

    /// Checks that the call has what this peer is owed next, from the address that it sent to; returns
    /// how many replies that are.
    fn check_call(
        &mut self,
        index: usize,
        datagrams: &[&[u8]],
        segment: Option<u16>,
        route: &Route,
    ) -> usize {
        let owed = &self.peers[index].owed;
        let mut wrong = Vec::new();
        for (place, datagram) in datagrams.iter().enumerate() {
            let expected = owed.get(place);
            if expected.is_none_or(|owed| owed.bytes != *datagram || owed.route != *route) {
                let expected = expected.map(|owed| (owed.bytes.len(), owed.route));
                wrong.push(format!("{} bytes to {route:?}, not {expected:?}", datagram.len()));
            }
        }
        let count = datagrams.len();
        if segment.is_some() {
            let length: usize = datagrams.iter().map(|datagram| datagram.len()).sum();
            if !(2..=64).contains(&count) || length > MAX_DATAGRAM || !self.settings.offload {
                wrong.push(format!("a run of {count}, {length} bytes"));
            }
        } else if let (Some(one), Some(other)) = (owed.front(), owed.get(1))
            && self.settings.offload
            && may_share(one, other)
            && !self.refused.iter().any(|&(ip, until)| ip == route.peer.ip() && until > self.now)
        {
            wrong.push(format!("{route:?} gets one by one what could be joined"));
        }
        let count = count.min(owed.len());
        self.violations.extend(wrong);
        count
    }

    /// The error that the path has for a call.
    fn refusal(
        &mut self,
        path: Path,
        length: usize,
        segment: Option<u16>,
        route: &Route,
    ) -> Option<Errno> {
        let (v4, v6) = (longest(route.peer) == MAX_DATAGRAM, 65_527);
        if segment.is_none() && length > if v4 { MAX_DATAGRAM } else { v6 } {
            self.violation(format!("a datagram of {length} bytes"));
        }
        if let Route { local: Some(IpAddr::V6(ip)), interface: 0, .. } = route
            && ip.is_unicast_link_local()
        {
            self.violation("from a link-local address of no interface");
        }
        if route.peer.port() == 0 {
            return Some(Errno::EINVAL);
        }
        match (path, segment) {
            (Path::Refused(error), _) => Some(error),
            (Path::Narrow(most), Some(segment)) if usize::from(segment) > most => {
                Some(self.random.pick(&[Errno::EMSGSIZE, Errno::EINVAL]))
            }
            (Path::WithoutOffload, Some(_)) => Some(Errno::EIO),
            _ if self.trouble() => Some(Errno::ENOBUFS),
            _ => None,
        }
    }

    /// The buffer is full: the server waits, or opens the reserve. What finds no room there, either, is
    /// dropped.
    fn note_full(&mut self, index: usize, count: usize) {
        if self.reserve {
            self.tally.dropped += count as u64;
            self.peers[index].owed.drain(..count);
        } else if self.full_since.is_some_and(|since| self.now < since + MAX_WAIT) {
            self.violation("a send while it has to wait");
        } else {
            self.full_since = Some(self.now);
        }
    }

    fn use_reserve(&mut self, whole: bool) {
        self.reserve = whole;
        self.full_since = None;
    }
}

/// Whether two replies in a row may leave in one call, whatever came before them.
fn may_share(one: &Owed, other: &Owed) -> bool {
    let short = one.bytes.len() <= MAX_JOINED_SEGMENT && !one.bytes.is_empty();
    short
        && one.bytes.len() == other.bytes.len()
        && one.route == other.route
        && one.came_joined == other.came_joined
}

/// The server's end of it.
pub(super) struct SimulatedSocket(pub(super) Rc<RefCell<UdpWorld>>);

impl Socket for SimulatedSocket {
    fn receive(&mut self, buffer: &mut [u8]) -> Result<Received, Errno> {
        self.0.borrow_mut().receive(buffer)
    }

    fn send(
        &mut self,
        pieces: &[IoSlice<'_>],
        segment: Option<u16>,
        route: &Route,
    ) -> Result<(), Errno> {
        let bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        self.0.borrow_mut().send(&bytes, segment, route)
    }

    fn offloads(&self) -> bool {
        self.0.borrow().settings.offload
    }

    fn use_reserve(&mut self, whole: bool) {
        self.0.borrow_mut().use_reserve(whole);
    }

    fn missing_neighbours(&mut self) -> Vec<IpAddr> {
        self.0.borrow_mut().missing_neighbours()
    }

    fn leave(&mut self) {}
}
