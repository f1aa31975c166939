//! Who may be answered while the send buffer is full of answers that cannot leave. Pure: `now` is an
//! argument.
//!
//! An answer to a neighbour that does not exist stays in the buffer until the kernel gives it up, for
//! about three seconds (arp(7)). Each peer is answered once; only then the kernel looks for it, and can
//! tell whether it is there. Who is not gets no more.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::server::clock::Moment;

/// What is known of those who were answered lately.
#[derive(Debug, Default)]
pub(in crate::server) struct Neighbours {
    standings: HashMap<IpAddr, Standing>,
    /// All is forgotten then.
    until: Moment,
    /// The kernel is not asked again before.
    ask_at: Moment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Answered since the kernel was asked last.
    Tried,
    /// Not one that the kernel is looking for.
    Fine,
    /// The kernel is looking for it, or has given it up.
    Missing,
}

impl Neighbours {
    /// How long it is remembered.
    pub(super) const MEMORY: Duration = Duration::from_secs(10);
    /// The kernel is asked no more often than this. Meanwhile, nobody whom it may be looking for is answered.
    pub(in crate::server) const ASK_GAP: Duration = Duration::from_millis(2);
    /// Of so many at the most.
    const MOST: usize = 4_096;

    /// An answer to `ip` has left, or stands in the buffer.
    pub(super) fn note_sent(&mut self, ip: IpAddr, now: Moment) {
        if now >= self.until || self.standings.len() >= Self::MOST {
            self.standings.clear();
            self.until = now + Self::MEMORY;
        }
        self.standings.entry(ip).or_insert(Standing::Tried);
    }

    /// Whether `ip` may be answered. `missing` tells which neighbours the kernel is looking for.
    pub(super) fn may_answer(
        &mut self,
        ip: IpAddr,
        now: Moment,
        missing: impl FnOnce() -> Vec<IpAddr>,
    ) -> bool {
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

    /// The bytes that it holds on the heap.
    #[cfg(any(test, fuzzing))]
    pub(super) fn held(&self) -> usize {
        self.standings.capacity() * size_of::<(IpAddr, Standing)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0xc000_0200 + number).into()
    }

    #[test]
    fn a_neighbour_that_is_missing_is_answered_once() {
        let mut neighbours = Neighbours::default();
        let now = Moment::default() + Duration::from_secs(5);
        let (here, mapped, gone) = (host(1), "::ffff:192.0.2.2".parse().unwrap(), host(3));
        for ip in [here, mapped, gone] {
            assert!(neighbours.may_answer(ip, now, || panic!("nobody was answered")));
            neighbours.note_sent(ip, now);
        }
        let missing = || vec![gone, host(2)];
        assert!(neighbours.may_answer(here, now, missing));
        // All were judged at once, and nobody is asked for them again.
        let known = || panic!("it is known");
        for now in [now, now + (Neighbours::MEMORY - Duration::from_nanos(1))] {
            assert!(!neighbours.may_answer(mapped, now, known));
            assert!(!neighbours.may_answer(gone, now, known));
            neighbours.note_sent(gone, now);
            assert!(neighbours.may_answer(here, now, known));
            assert!(neighbours.may_answer(host(4), now, known));
        }
        // It may be back.
        let later = now + Neighbours::MEMORY;
        assert!(neighbours.may_answer(gone, later, known));
        neighbours.note_sent(gone, later);
        assert!(neighbours.may_answer(gone, later, Vec::new));
    }

    #[test]
    fn the_kernel_is_not_asked_all_the_time() {
        let mut neighbours = Neighbours::default();
        let now = Moment::default();
        neighbours.note_sent(host(1), now);
        assert!(!neighbours.may_answer(host(1), now, || vec![host(1)]));
        neighbours.note_sent(host(2), now);
        let soon = now + (Neighbours::ASK_GAP - Duration::from_nanos(1));
        assert!(!neighbours.may_answer(host(2), soon, || panic!("too soon")));
        assert!(neighbours.may_answer(host(2), now + Neighbours::ASK_GAP, Vec::new));
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
