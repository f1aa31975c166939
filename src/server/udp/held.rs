//! Answers that are held back until their time has come, in bounded number. Pure.

use std::collections::BTreeMap;

use crate::server::clock::Moment;
use crate::sys::datagram::Route;

/// So many are held back at the most.
pub(super) const MAX_HELD: usize = 16_384;
/// So many bytes of them.
pub(super) const MAX_HELD_BYTES: usize = 16 << 20;

/// Answers by when they leave; those of one time in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct HeldBack {
    answers: BTreeMap<(Moment, u64), Answer>,
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

impl HeldBack {
    /// Keeps an answer until then.
    pub(super) fn push(&mut self, at: Moment, answer: Answer) -> Result<(), Full> {
        if self.answers.len() >= MAX_HELD || self.bytes + answer.bytes.len() > MAX_HELD_BYTES {
            return Err(Full);
        }
        self.bytes += answer.bytes.len();
        self.count += 1;
        self.answers.insert((at, self.count), answer);
        Ok(())
    }

    /// When the next one leaves.
    pub(super) fn next_at(&self) -> Option<Moment> {
        self.answers.first_key_value().map(|(&(at, _), _)| at)
    }

    /// The next one, if its time has come.
    pub(super) fn pop(&mut self, now: Moment) -> Option<Answer> {
        if self.next_at()? > now {
            return None;
        }
        let (_, answer) = self.answers.pop_first()?;
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
