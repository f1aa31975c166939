//! The network and the UDP socket of the simulation: what the server calls, and what that returns.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use super::random::Random;
use crate::protocol::MAX_DATAGRAM;
use crate::server::clock::Moment;
use crate::server::fate::Fates;
use crate::server::guard::Guard;
use crate::server::peer::Peer;
use crate::server::udp::{
    MAX_JOINED_SEGMENT, MAX_RECEIVE, MAX_TURN, MAX_WAIT, Neighbours, ROOM, Unjoinable,
};
use crate::sys::Errno;
use crate::sys::datagram::{Arrival, Local, Received, Route, Socket};

/// What a history is about.
pub(super) struct Settings {
    pub(super) offload: bool,
    /// One call in so many goes wrong; none with 0.
    pub(super) trouble: usize,
    /// How much fits half of the send buffer.
    pub(super) send_buffer: usize,
}

/// Somebody who asks, and the way to it.
pub(super) struct PeerModel {
    pub(super) address: SocketAddr,
    /// The addresses of ours that it asks.
    pub(super) asks: Vec<Local>,
    pub(super) path: Path,
    /// Answers that it is owed, in order.
    pub(super) owed: VecDeque<Owed>,
}

/// What answers meet on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    /// They leave as they are sent.
    Clear,
    /// Each takes so long to leave.
    Slow(Duration),
    /// The neighbour does not exist: they stay in the buffer until that is known.
    Dead,
    /// The path takes segments of so many bytes.
    Narrow(usize),
    /// The device or the tunnel does not know segmentation offload.
    WithoutOffload,
    /// None may leave.
    Refused(Errno),
}

/// An answer that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owed {
    pub(super) bytes: Vec<u8>,
    pub(super) route: Route,
    pub(super) came_joined: bool,
}

/// What waits in the receive queue.
pub(super) struct Incoming {
    pub(super) peer: usize,
    pub(super) bytes: Vec<u8>,
    pub(super) segment: Option<usize>,
    pub(super) truncated: bool,
    pub(super) arrival: Arrival,
    pub(super) local: Local,
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
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) reordered: u64,
    pub(super) corrupted: u64,
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
    /// The server has not been told yet.
    pub(super) read_edge: bool,
    pub(super) write_edge: bool,
    /// When the server met the full buffer first, since it was told that there is room, or has the reserve.
    full_since: Option<Moment>,
    /// Whether the server uses the whole buffer.
    reserve: bool,
    /// Hosts of which the server was told that they are missing.
    missing: Vec<IpAddr>,
    /// The server keeps answers for a moment: it has not tried to send them.
    holding: bool,
    /// When it asked for them last.
    asked_at: Option<Moment>,
    /// What an earlier datagram met, to be told at the next call.
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
    fates: Option<Fates>,
    /// Answers that the server holds back on purpose, in the order in which they leave.
    held: BTreeMap<(Moment, usize), (usize, Owed)>,
    held_before: usize,
    /// They were let go in this turn.
    released: bool,
    pub(super) tally: Tally,
    pub(super) violations: Vec<String>,
}

/// What the service of the simulation answers.
pub(super) fn answers(question: &[u8]) -> Vec<Vec<u8>> {
    match question.first() {
        Some(b'n') => vec![],
        Some(b't') => vec![question.to_vec(), question[..question.len() / 2].to_vec()],
        Some(b'g') => vec![question.repeat(3)],
        Some(b's') => vec![question[1..].to_vec()],
        _ => vec![question.to_vec()],
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
        fates: Option<Fates>,
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
            holding: false,
            asked_at: None,
            pending_error: None,
            broken_until: None,
            broken_calls: 0,
            refused: Vec::new(),
            calm: false,
            oracle,
            fates,
            held: BTreeMap::new(),
            held_before: 0,
            released: false,
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

    /// Time goes on; what has left the buffer makes room.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        let was_writable = self.is_writable();
        let now = self.now;
        self.sent.retain(|sent| sent.until > now);
        self.write_edge |= !was_writable && self.is_writable();
    }

    /// poll(2) says so from half of the buffer on (sock_writeable).
    fn is_writable(&self) -> bool {
        2 * self.used() <= self.room()
    }

    fn room(&self) -> usize {
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

    /// Whether the server may keep answers from a host: it is missing, or the server may not ask yet.
    /// Which answers, shows when the next one comes, or none.
    fn may_be_kept_from(&self, ip: IpAddr) -> bool {
        let just_now = self.asked_at.is_some_and(|at| self.now < at + Neighbours::ASK_GAP);
        just_now || self.missing.contains(&ip)
    }

    /// The server has nothing left to send: what is still owed was dropped.
    pub(super) fn note_sent_all(&mut self) {
        for index in 0..self.peers.len() {
            if self.may_be_kept_from(self.peers[index].address.ip()) {
                self.tally.dropped += self.peers[index].owed.drain(..).count() as u64;
            }
        }
    }

    /// What was held back is owed now, as far as the server may let it go in a turn.
    pub(super) fn release_in_turn(&mut self) {
        let (mut count, mut bytes) = (0, 0);
        while !self.released
            && count < MAX_TURN
            && bytes < ROOM
            && let Some(next) = self.held.first_entry()
            && next.key().0 <= self.now
        {
            let (peer, owed) = next.remove();
            (count, bytes) = (count + 1, bytes + owed.bytes.len());
            self.peers[peer].owed.push_back(owed);
        }
        self.released = true;
    }

    /// When the server may send next of what it holds back.
    pub(super) fn next_held(&self) -> Option<Moment> {
        self.held.keys().next().map(|&(at, _)| at)
    }

    /// Where the server sends what is not owed yet, it has let go what it held back. It does that when it
    /// has nothing else left, or while it holds a batch.
    fn note_released(&mut self, index: usize, datagrams: &[&[u8]], route: &Route) {
        let is_owed = |bytes: &&[u8]| {
            let mut owed = self.peers[index].owed.iter();
            owed.any(|owed| owed.bytes == *bytes && owed.route == *route)
        };
        if self.held.is_empty() || datagrams.iter().all(is_owed) {
            return;
        }
        if !datagrams.first().is_some_and(is_owed) {
            self.note_sent_all();
        }
        // Where it looked like an earlier one, that was not noticed.
        self.released = false;
        self.release_in_turn();
    }

    /// What was owed before this was dropped.
    fn skip_to(&mut self, index: usize, bytes: &[u8], route: &Route) {
        if !self.may_be_kept_from(route.peer.ip()) {
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

    /// What epoll_wait(2) says: nothing without an edge, and then how it is.
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

    /// `holding`: what was received before may still be owed when the next is.
    pub(super) fn begin_turn(&mut self, holding: bool) {
        self.tally.receives_in_turn = 0;
        self.tally.sends_in_turn = 0;
        self.released = false;
        self.holding = holding;
    }

    fn receive(&mut self, room: &mut [u8]) -> Result<Received, Errno> {
        self.tally.receives_in_turn += 1;
        if !std::mem::replace(&mut self.holding, true) {
            self.note_sent_all();
        }
        self.release_in_turn();
        if room.len() < MAX_RECEIVE {
            self.violation("room for less than a datagram may have");
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
        room[..incoming.bytes.len()].copy_from_slice(&incoming.bytes);
        let route = Route { peer: self.peers[incoming.peer].address, local: Some(incoming.local) };
        self.note_received(&incoming, route);
        Ok(Received {
            length: incoming.bytes.len(),
            segment: incoming.segment,
            truncated: incoming.truncated,
            arrival: incoming.arrival,
            route,
        })
    }

    /// From here on the peer is owed the answers, where there are any.
    fn note_received(&mut self, incoming: &Incoming, route: Route) {
        let size = incoming.segment.unwrap_or(usize::MAX).min(incoming.bytes.len().max(1));
        let questions: Vec<&[u8]> = match incoming.segment {
            Some(_) => incoming.bytes.chunks(size).collect(),
            None => vec![&incoming.bytes],
        };
        let came_joined = questions.len() > 1;
        self.tally.received += questions.len() as u64;
        self.tally.bytes_in += incoming.bytes.len() as u64;
        if incoming.truncated {
            self.tally.truncated += questions.len() as u64;
            return;
        }
        let peer = Peer::from(route.peer);
        for question in questions {
            use crate::server::guard::Refusal;
            match self.oracle.admit(peer, incoming.arrival, self.now) {
                Ok(()) => {}
                Err(Refusal::Rate) => {
                    self.tally.limited += 1;
                    continue;
                }
                Err(_) => {
                    self.tally.guarded += 1;
                    continue;
                }
            }
            let mut paid = question.len();
            for bytes in answers(question) {
                if bytes.len() > longest(route.peer) {
                    self.tally.too_long += 1;
                    continue;
                }
                if self.oracle.admit_answer(peer, paid, bytes.len(), self.now).is_err() {
                    self.tally.limited += 1;
                    break;
                }
                paid = 0;
                self.owe(incoming.peer, Owed { bytes, route, came_joined });
            }
        }
    }

    /// A peer is owed an answer, as far as it is not impaired on purpose.
    fn owe(&mut self, index: usize, owed: Owed) {
        let Some(fates) = &mut self.fates else {
            self.peers[index].owed.push_back(owed);
            return;
        };
        let mut fate = fates.next();
        let peer = Peer::from(owed.route.peer);
        fate.duplicated = fate.duplicated
            && self.oracle.admit_answer(peer, 0, owed.bytes.len(), self.now).is_ok();
        self.tally.lost += u64::from(fate.lost);
        self.tally.duplicated += u64::from(fate.duplicated);
        for passage in fate.copies() {
            self.tally.reordered += u64::from(passage.reordered);
            self.tally.corrupted += u64::from(passage.corrupt.is_some());
            let mut owed = owed.clone();
            passage.spoil(&mut owed.bytes);
            if passage.delay.is_zero() {
                self.peers[index].owed.push_back(owed);
            } else {
                owed.came_joined = false;
                self.held_before += 1;
                self.held.insert((self.now + passage.delay, self.held_before), (index, owed));
            }
        }
    }

    fn send(&mut self, bytes: &[u8], segment: Option<u16>, route: &Route) -> Result<(), Errno> {
        self.tally.sends_in_turn += 1;
        let Some(index) = self.peers.iter().position(|peer| peer.address == route.peer) else {
            self.violation(format!("an answer to {}, who is nobody", route.peer));
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
                self.refused.push((route.peer.ip(), self.now + Unjoinable::MEMORY));
                return Err(error);
            }
            self.tally.errors += count as u64;
            self.peers[index].owed.drain(..count);
            return Err(error);
        }
        if self.used() >= self.room() {
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

    /// Whether the call has what this peer is owed next, from the address that it asked; how many
    /// answers that are.
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

    /// What the way there says to a call.
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
        if let Some(Local::V6([0xfe, 0x80, ..], 0)) = route.local {
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

    /// The buffer is full: who meets that waits, or takes the reserve. What has no room there, either,
    /// is dropped.
    fn note_full(&mut self, index: usize, count: usize) {
        if self.reserve {
            self.tally.dropped += count as u64;
            self.peers[index].owed.drain(..count);
        } else if self.full_since.is_some_and(|since| self.now < since + MAX_WAIT) {
            self.violation("a try while it has to wait");
        } else {
            self.full_since = Some(self.now);
        }
    }

    fn use_reserve(&mut self, whole: bool) {
        self.reserve = whole;
        self.full_since = None;
    }
}

/// Whether two answers in a row may leave in one call, whatever came before them.
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
    fn receive(&mut self, room: &mut [u8]) -> Result<Received, Errno> {
        self.0.borrow_mut().receive(room)
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

    fn use_reserve(&mut self, whole: bool) {
        self.0.borrow_mut().use_reserve(whole);
    }

    fn missing_neighbours(&mut self) -> Vec<IpAddr> {
        self.0.borrow_mut().missing_neighbours()
    }

    fn leave(&mut self) {}

    fn local_addr(&self, _: &Route) -> io::Result<SocketAddr> {
        Err(Errno::ENOTSUP.into())
    }
}
