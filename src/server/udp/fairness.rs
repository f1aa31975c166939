//! Whether answers wait a moment, so that everyone has a turn. Pure: it is told what comes.
//!
//! Datagrams are received in the order in which they came, and so nobody waits for another by what we
//! do. But where a client of many sockets reads each until nothing is left, one that is answered fast
//! enough never gets to its other sockets: it is answered at once again and again, and they wait for
//! ten times as long. So where a peer has the turn for itself, though others were here just now, its
//! answers wait for a moment, and the client finds that nothing is left.

use std::net::SocketAddr;
use std::time::Duration;

use crate::server::clock::Moment;

/// What has come lately.
#[derive(Debug, Default)]
pub(super) struct Fairness {
    last: Option<SocketAddr>,
    /// How many came from that peer, without another's between them, since answers left.
    in_a_row: usize,
    /// When the last one came.
    at: Moment,
    /// When another peer's came last.
    others_at: Option<Moment>,
}

impl Fairness {
    /// Who has this many datagrams in a row, or runs of them, asks for more than others; ...
    pub(super) const MANY: usize = 5;
    /// ... and with so many there is enough to answer.
    pub(super) const ENOUGH: usize = 64;
    /// Others were here just now when it is no longer ago than this.
    pub(super) const JUST_NOW: Duration = Duration::from_millis(100);
    /// How long answers wait for a further datagram: a client looks again at a socket sooner.
    pub(super) const MOMENT: Duration = Duration::from_micros(40);

    /// A datagram has come, or a run of them.
    pub(super) fn note(&mut self, peer: SocketAddr, now: Moment) {
        self.at = now;
        if self.last == Some(peer) {
            self.in_a_row += 1;
            return;
        }
        if self.last.replace(peer).is_some() {
            self.others_at = Some(now);
        }
        self.in_a_row = 1;
    }

    /// Whether the answers to what has come wait at `now`.
    pub(super) fn holds(&self, now: Moment) -> bool {
        (Self::MANY..Self::ENOUGH).contains(&self.in_a_row)
            && self.others_at.is_some_and(|at| now.since(at) <= Self::JUST_NOW)
            && now.since(self.at) < Self::MOMENT
    }

    /// The answers leave.
    pub(super) fn release(&mut self) {
        self.in_a_row = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn at(micros: u64) -> Moment {
        Moment::default() + Duration::from_micros(micros)
    }

    /// One datagram of the first peer, then so many of the second.
    fn after(many: usize) -> Fairness {
        let mut fairness = Fairness::default();
        fairness.note(peer(1), at(0));
        (0..many).for_each(|_| fairness.note(peer(2), at(0)));
        fairness
    }

    #[test]
    fn who_has_many_in_a_row_waits_for_a_moment() {
        let mut fairness = after(Fairness::MANY);
        let end = Fairness::MOMENT.as_micros() as u64;
        assert!(fairness.holds(at(0)));
        assert!(fairness.holds(at(end - 1)));
        assert!(!fairness.holds(at(end)));
        // Since the last one came.
        fairness.note(peer(2), at(end - 1));
        assert!(fairness.holds(at(2 * end - 2)));
        assert!(!fairness.holds(at(2 * end - 1)));
        // And then again, for the next ones only.
        fairness.release();
        (1..Fairness::MANY).for_each(|_| fairness.note(peer(2), at(200)));
        assert!(!fairness.holds(at(200)));
        fairness.note(peer(2), at(200));
        assert!(fairness.holds(at(200)));
    }

    #[test]
    fn nobody_waits_with_enough_to_answer() {
        assert!(after(Fairness::ENOUGH - 1).holds(at(0)));
        assert!(!after(Fairness::ENOUGH).holds(at(0)));
    }

    #[test]
    fn another_peer_ends_the_wait() {
        let mut fairness = after(Fairness::MANY);
        assert!(fairness.holds(at(0)));
        fairness.note(peer(3), at(1));
        assert!(!fairness.holds(at(1)));
    }

    #[test]
    fn few_do_not_wait() {
        assert!(!after(Fairness::MANY - 1).holds(at(0)));
    }

    #[test]
    fn who_is_alone_does_not_wait() {
        let mut fairness = Fairness::default();
        (0..100).for_each(|_| fairness.note(peer(1), at(0)));
        assert!(!fairness.holds(at(0)));
        let just_now = Fairness::JUST_NOW.as_micros() as u64;
        for (later, waits) in [(just_now, true), (just_now + 1, false)] {
            let mut fairness = after(Fairness::MANY - 1);
            fairness.note(peer(2), at(later));
            assert_eq!(fairness.holds(at(later)), waits, "{later}");
        }
    }
}
