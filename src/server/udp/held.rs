//! Answers that are held back until their time has come, in bounded number. Pure.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::route::Route;
use crate::server::clock::Moment;

/// So many are held back at the most.
pub(super) const MAX_HELD: usize = 16_384;
/// So many bytes of them.
pub(super) const MAX_HELD_BYTES: usize = 16 << 20;

/// Answers by when they leave; those of one time in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct HeldBack {
    heap: BinaryHeap<Reverse<Ordered>>,
    bytes: usize,
    /// How many there have been.
    count: u64,
}

/// An answer, and where it goes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) route: Route,
    pub(super) bytes: Box<[u8]>,
}

/// No more can be held back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug)]
struct Ordered {
    at: Moment,
    number: u64,
    answer: Answer,
}

impl Ordered {
    fn key(&self) -> (Moment, u64) {
        (self.at, self.number)
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ordered {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Ordered {}

impl HeldBack {
    /// Keeps an answer until then.
    pub(super) fn push(&mut self, at: Moment, answer: Answer) -> Result<(), Full> {
        if self.heap.len() >= MAX_HELD || self.bytes + answer.bytes.len() > MAX_HELD_BYTES {
            return Err(Full);
        }
        self.bytes += answer.bytes.len();
        self.count += 1;
        self.heap.push(Reverse(Ordered { at, number: self.count, answer }));
        Ok(())
    }

    /// When the next one leaves.
    pub(super) fn next_at(&self) -> Option<Moment> {
        self.heap.peek().map(|Reverse(next)| next.at)
    }

    /// The next one, if its time has come.
    pub(super) fn pop(&mut self, now: Moment) -> Option<Answer> {
        if self.next_at()? > now {
            return None;
        }
        let Reverse(Ordered { answer, .. }) = self.heap.pop()?;
        self.bytes -= answer.bytes.len();
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn answer(text: &[u8]) -> Answer {
        let route = Route { peer: ([192, 0, 2, 1], 9).into(), local: None };
        Answer { route, bytes: text.into() }
    }

    fn at(millis: u64) -> Moment {
        Moment::default() + Duration::from_millis(millis)
    }

    #[test]
    fn answers_leave_when_it_is_time_and_in_order() {
        let mut held = HeldBack::default();
        for (millis, text) in [(50, b"b"), (40, b"a"), (50, b"c"), (60, b"d")] {
            assert_eq!(held.push(at(millis), answer(text)), Ok(()));
        }
        assert_eq!(held.next_at(), Some(at(40)));
        assert!(held.pop(at(39)).is_none());
        let mut left = Vec::new();
        while let Some(answer) = held.pop(at(50)) {
            left.extend_from_slice(&answer.bytes);
        }
        assert_eq!((left.as_slice(), held.next_at()), (b"abc".as_slice(), Some(at(60))));
        assert_eq!(held.pop(at(99)).map(|answer| answer.bytes.to_vec()), Some(b"d".to_vec()));
        assert!(held.pop(at(99)).is_none() && held.next_at().is_none());
    }

    #[test]
    fn they_are_bounded_in_number() {
        let mut held = HeldBack::default();
        assert!((0..MAX_HELD).all(|_| held.push(at(1), answer(b"")).is_ok()));
        assert_eq!(held.push(at(1), answer(b"")), Err(Full));
        held.pop(at(1));
        assert_eq!(held.push(at(1), answer(b"")), Ok(()));
    }

    #[test]
    fn they_are_bounded_in_bytes() {
        let mut held = HeldBack::default();
        let half = vec![0; MAX_HELD_BYTES / 2];
        assert!((0..2).all(|_| held.push(at(1), answer(&half)).is_ok()));
        assert_eq!(held.push(at(1), answer(b"x")), Err(Full));
        assert_eq!(held.push(at(1), answer(b"")), Ok(()));
        held.pop(at(1));
        assert_eq!(held.push(at(1), answer(&half)), Ok(()));
        assert_eq!(held.push(at(1), answer(b"x")), Err(Full));
    }
}
