//! The send buffer when it is full. Pure: `now` is an argument.
//!
//! A reply to a neighbour that does not exist stays in the send buffer until the kernel gives it up, for
//! about three seconds (arp(7)). Such replies must not stop the others. So, when the buffer is full:
//!
//! 1. Replies wait, for a link of which there is nothing wrong but that it is slow.
//! 2. After [`MAX_WAIT`], the other half of the buffer is opened, a reserve for neighbours that exist.
//!    What finds no room there is dropped. Each neighbour is sent to once; only then the kernel looks for
//!    it and can tell whether it is there. If not, it gets no more for a while.
//! 3. After [`STUCK_FOR`], the reserve is closed; what finds the buffer full again opens it at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::server::clock::Moment;
use crate::sys::datagram::Socket;

/// How long replies wait for room in the send buffer: a link of 100 Mbit/s sends 250 KB meanwhile.
pub(in crate::server) const MAX_WAIT: Duration = Duration::from_millis(20);
/// How long the reserve stays open, and how long it is opened again without a wait.
pub(super) const STUCK_FOR: Duration = Duration::from_millis(100);

/// The way out of a socket.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    state: State,
    neighbours: Neighbours,
}

/// What is known of the send buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// There may be room.
    #[default]
    Open,
    /// There is none: replies wait, in their order, and nothing is received meanwhile.
    Full { until: Moment },
    /// Waiting did not help. The reserve is open.
    Stuck { until: Moment },
    /// The reserve is closed again, to see whether there is room without it.
    Recovering { until: Moment },
}

/// What becomes of a reply that found no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// It waits: until the socket is writable, or the outlet's deadline.
    Wait,
    /// It is sent again, now.
    Retry,
    /// It is dropped.
    Drop,
}

impl Outlet {
    /// Whether replies wait for room.
    pub(super) fn is_full(&self) -> bool {
        self.deadline().is_some()
    }

    /// When they stop waiting.
    pub(super) fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Full { until } => Some(until),
            _ => None,
        }
    }

    /// Notes an event that says that the socket is writable.
    pub(super) fn note_writable(&mut self) {
        if self.is_full() {
            self.state = State::Open;
        }
    }

    /// Moves on where a time has passed.
    pub(super) fn advance(&mut self, socket: &mut impl Socket, now: Moment) {
        match self.state {
            State::Full { until } if until <= now => self.open_reserve(socket, now),
            State::Stuck { until } if until <= now => {
                socket.use_reserve(false);
                self.state = State::Recovering { until: now + STUCK_FOR };
            }
            State::Recovering { until } if until <= now => self.state = State::Open,
            _ => {}
        }
    }

    fn open_reserve(&mut self, socket: &mut impl Socket, now: Moment) {
        socket.use_reserve(true);
        self.state = State::Stuck { until: now + STUCK_FOR };
    }

    /// Whether a reply to `ip` may be sent, and would not only take room that others need.
    pub(super) fn admits(&mut self, ip: IpAddr, socket: &mut impl Socket, now: Moment) -> bool {
        self.state == State::Open || self.neighbours.admit(ip, now, || socket.missing_neighbours())
    }

    /// Notes a reply to `ip` that was sent.
    pub(super) fn note_sent(&mut self, ip: IpAddr, now: Moment) {
        if self.state != State::Open {
            self.neighbours.note_sent(ip, now);
        }
    }

    /// Notes that a reply found no room.
    pub(super) fn note_no_room(&mut self, socket: &mut impl Socket, now: Moment) -> NoRoom {
        match self.state {
            State::Open | State::Full { .. } => {
                self.state = State::Full { until: now + MAX_WAIT };
                NoRoom::Wait
            }
            State::Recovering { .. } => {
                self.open_reserve(socket, now);
                NoRoom::Retry
            }
            State::Stuck { .. } => NoRoom::Drop,
        }
    }

    /// The bytes that it holds on the heap.
    #[cfg(any(test, fuzzing))]
    pub(super) fn held(&self) -> usize {
        self.neighbours.standings.capacity() * size_of::<(IpAddr, Standing)>()
    }
}

/// What is known of the neighbours that were sent to lately.
#[derive(Debug, Default)]
pub(in crate::server) struct Neighbours {
    standings: HashMap<IpAddr, Standing>,
    /// When all of it is forgotten.
    until: Moment,
    /// The kernel is not asked again before.
    ask_at: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Sent to since the kernel was asked last.
    Tried,
    /// Not one that the kernel is looking for.
    Fine,
    /// The kernel is looking for it, or has given it up.
    Missing,
}

impl Neighbours {
    /// How long neighbours are remembered, ...
    pub(super) const MEMORY: Duration = Duration::from_secs(10);
    /// ... and how many.
    const MOST: usize = 4_096;
    /// The shortest time between two questions to the kernel. Meanwhile, a neighbour that it may be
    /// looking for is sent nothing.
    pub(in crate::server) const ASK_GAP: Duration = Duration::from_millis(2);

    /// Notes a reply to `ip` that was sent, or stays in the buffer.
    fn note_sent(&mut self, ip: IpAddr, now: Moment) {
        if now >= self.until || self.standings.len() >= Self::MOST {
            self.standings.clear();
            self.until = now + Self::MEMORY;
        }
        // Without memory for it, it is one that was never sent to.
        if self.standings.try_reserve(1).is_ok() {
            self.standings.entry(ip).or_insert(Standing::Tried);
        }
    }

    /// Whether `ip` may be sent a reply. `missing` asks which neighbours the kernel is looking for.
    fn admit(&mut self, ip: IpAddr, now: Moment, missing: impl FnOnce() -> Vec<IpAddr>) -> bool {
        if now >= self.until {
            return true;
        }
        if self.standings.get(&ip) == Some(&Standing::Tried) && now >= self.ask_at {
            self.ask_at = now + Self::ASK_GAP;
            self.judge(&missing());
        }
        matches!(self.standings.get(&ip), None | Some(Standing::Fine))
    }

    fn judge(&mut self, missing: &[IpAddr]) {
        for (ip, standing) in &mut self.standings {
            if *standing == Standing::Tried {
                let is_missing = missing.contains(&ip.to_canonical());
                *standing = if is_missing { Standing::Missing } else { Standing::Fine };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0xc000_0200 + number).into()
    }

    #[test]
    fn a_missing_neighbour_is_sent_one_reply() {
        let mut neighbours = Neighbours::default();
        let now = Moment::default() + Duration::from_secs(5);
        let (here, mapped, gone) = (host(1), "::ffff:192.0.2.2".parse().unwrap(), host(3));
        for ip in [here, mapped, gone] {
            assert!(neighbours.admit(ip, now, || panic!("nothing was sent")));
            neighbours.note_sent(ip, now);
        }
        let missing = || vec![gone, host(2)];
        assert!(neighbours.admit(here, now, missing));
        // All were judged at once, and the kernel is not asked for them again.
        let known = || panic!("it is known");
        for now in [now, now + (Neighbours::MEMORY - Duration::from_nanos(1))] {
            assert!(!neighbours.admit(mapped, now, known));
            assert!(!neighbours.admit(gone, now, known));
            neighbours.note_sent(gone, now);
            assert!(neighbours.admit(here, now, known));
            assert!(neighbours.admit(host(4), now, known));
        }
        // It may be back.
        let later = now + Neighbours::MEMORY;
        assert!(neighbours.admit(gone, later, known));
        neighbours.note_sent(gone, later);
        assert!(neighbours.admit(gone, later, Vec::new));
    }

    #[test]
    fn the_kernel_is_not_asked_all_the_time() {
        let mut neighbours = Neighbours::default();
        let now = Moment::default();
        neighbours.note_sent(host(1), now);
        assert!(!neighbours.admit(host(1), now, || vec![host(1)]));
        neighbours.note_sent(host(2), now);
        let soon = now + (Neighbours::ASK_GAP - Duration::from_nanos(1));
        assert!(!neighbours.admit(host(2), soon, || panic!("too soon")));
        assert!(neighbours.admit(host(2), now + Neighbours::ASK_GAP, Vec::new));
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut neighbours = Neighbours::default();
        for number in 0..100_000 {
            neighbours.note_sent(host(number), Moment::default());
            assert!(neighbours.standings.len() <= Neighbours::MOST);
        }
        assert!(neighbours.standings.contains_key(&host(99_999)));
    }
}
