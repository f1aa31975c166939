//! Answers that are impaired on purpose: which leave, when, and what they say then.

use super::held::{Answer, Full, HeldBack};
use crate::server::clock::Moment;
use crate::server::fate::{Fates, Passage};
use crate::stats::Stats;
use crate::sys::datagram::Route;

/// The impairments of one socket.
#[derive(Debug)]
pub(super) struct Impaired {
    fates: Fates,
    held: HeldBack,
}

impl Impaired {
    pub(super) fn new(fates: Fates) -> Self {
        Impaired { fates, held: HeldBack::default() }
    }

    /// Decides what becomes of an answer. `leave` is given what leaves at once; what is delayed is
    /// held back. A second copy leaves only where `admit` says so.
    pub(super) fn pass(
        &mut self,
        answer: &[u8],
        route: Route,
        now: Moment,
        stats: &Stats,
        admit: impl FnOnce() -> bool,
        mut leave: impl FnMut(&[u8]),
    ) {
        let mut fate = self.fates.next();
        fate.duplicated = fate.duplicated && admit();
        fate.count(stats);
        for passage in fate.copies() {
            if passage.is_clear() {
                leave(answer);
                continue;
            }
            let bytes = spoilt(answer, passage);
            if passage.delay.is_zero() {
                leave(&bytes);
            } else if let Err(Full) = self.held.push(now + passage.delay, Answer { route, bytes }) {
                stats.udp_overflowed.increment();
            }
        }
    }

    /// When the next one that is held back leaves.
    pub(super) fn next_at(&self) -> Option<Moment> {
        self.held.next_at()
    }

    /// The next one whose time has come.
    pub(super) fn pop(&mut self, now: Moment) -> Option<Answer> {
        self.held.pop(now)
    }
}

fn spoilt(answer: &[u8], passage: &Passage) -> Box<[u8]> {
    let mut bytes: Box<[u8]> = answer.into();
    passage.spoil(&mut bytes);
    bytes
}
