//! Checks the bytes of one TCP echo, and tells what is wrong with those that differ. No socket
//! and no clock here: bytes in, counts out.
//!
//! All bytes before the *front* are settled. As long as the next bytes are those of the pattern
//! at the front, checking is one comparison. Bytes that differ are in *doubt*, until enough of
//! them are there to see where they belong: ahead of the front (what lies between is a *gap*: lost,
//! unless it still comes, out of order), behind it (a *replay*: duplicates), or nowhere (corrupt).

use std::collections::VecDeque;
use std::ops::Range;

use super::faults::Faults;
use crate::client::pattern::{self, Alphabet};
use crate::units;

/// This many bytes stand at one place of the pattern's period only.
const EVIDENCE: usize = 8;

/// Doubtful bytes are judged once there are this many, or when no more can come.
const ENOUGH: usize = 32;

/// A gap that is followed by this many others is taken as lost.
const MOST_GAPS: usize = 256;

/// The receiving side of one connection.
#[derive(Debug)]
pub(super) struct Checker {
    alphabet: Alphabet,
    stream: u32,
    size: u64,
    front: u64,
    replay: Option<Replay>,
    doubt: Vec<u8>,
    gaps: VecDeque<Range<u64>>,
    /// Messages at or after the front's that are not whole, in order.
    spoiled: VecDeque<u64>,
    /// The last message of a gap that was counted.
    counted: Option<u64>,
}

/// Bytes that came back again, or late.
#[derive(Debug)]
struct Replay {
    at: u64,
    /// The last message that was counted.
    counted: Option<u64>,
}

/// What bytes that differ turn out to be.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// They continue at the front, after a replay.
    Resumed,
    /// They belong this far ahead.
    Skipped(u64),
    /// They were sent before, from this position on.
    Repeated(u64),
    /// This many of them are wrong, and no more.
    Wrong(usize),
}

impl Checker {
    /// For the connection to which `stream` of this pattern comes back, in messages of `size` bytes.
    pub(super) fn new(alphabet: Alphabet, stream: u32, size: u64) -> Self {
        Self {
            alphabet,
            stream,
            size,
            front: 0,
            replay: None,
            doubt: Vec::new(),
            gaps: VecDeque::new(),
            spoiled: VecDeque::new(),
            counted: None,
        }
    }

    /// Up to where the bytes are settled.
    pub(super) fn front(&self) -> u64 {
        self.front
    }

    /// How many messages are settled, whole or not.
    pub(super) fn settled(&self) -> u64 {
        self.front / self.size
    }

    /// Whether the settled message came back whole, correct and in order. To be asked of each
    /// message in turn.
    pub(super) fn is_whole(&mut self, message: u64) -> bool {
        while self.spoiled.front().is_some_and(|&spoiled| spoiled < message) {
            self.spoiled.pop_front();
        }
        self.spoiled.front() != Some(&message)
    }

    /// Takes in bytes that came back; `sent` bytes have gone out so far.
    pub(super) fn accept(&mut self, bytes: &[u8], sent: u64, faults: &mut Faults) {
        let end = self.front + bytes.len() as u64;
        let plain = self.doubt.is_empty() && self.replay.is_none() && end <= sent;
        if plain && self.alphabet.verify(self.stream, self.front, bytes).is_ok() {
            self.front = end;
            return;
        }
        if self.doubt.is_empty() && self.replay.is_none() {
            // Where a message has just begun, its bytes may have fitted by chance.
            let begun = self.begun(self.front);
            self.front -= begun as u64;
            let fitted = self.alphabet.slice(self.stream, self.front, begun);
            self.doubt.extend_from_slice(fitted);
        }
        self.doubt.extend_from_slice(bytes);
        self.settle(sent, false, faults);
    }

    /// How many bytes of its message stand before `position`, where they are too few to be evidence.
    fn begun(&self, position: u64) -> usize {
        let begun = (position % self.size) as usize;
        if begun < EVIDENCE { begun } else { 0 }
    }

    /// Judges what is left in doubt and counts what is missing, when nothing more will come of
    /// the `sent` bytes.
    pub(super) fn finish(&mut self, sent: u64, faults: &mut Faults) {
        self.close(sent, faults);
        let partial = (!self.front.is_multiple_of(self.size) && self.front < sent)
            .then_some(self.front / self.size)
            .filter(|&message| self.counted != Some(message) && self.is_whole(message));
        if partial.is_some() {
            faults.errors.cut += 1;
        }
        let missing = sent.div_ceil(self.size) - self.front.div_ceil(self.size);
        faults.errors.unanswered += missing;
        if partial.is_some() || missing > 0 {
            let (stream, left) = (self.stream, units::count(sent - self.front, "byte"));
            faults.note(|| format!("connection {stream}: the last {left} never came back"));
        }
    }

    /// Judges what is left in doubt and counts the gaps; what is still out is no fault.
    pub(super) fn close(&mut self, sent: u64, faults: &mut Faults) {
        self.settle(sent, true, faults);
        while let Some(gap) = self.gaps.pop_front() {
            self.count_gap(&gap, faults);
        }
    }

    fn settle(&mut self, sent: u64, last: bool, faults: &mut Faults) {
        loop {
            let fit = {
                let at = self.position();
                let room = self.doubt.len().min((sent - at) as usize);
                self.alphabet.matching(self.stream, at, &self.doubt[..room])
            };
            let at = self.position();
            let all = at + self.doubt.len() as u64 == sent;
            let is_end = all || last;
            // The first bytes of a message are judged with those that follow.
            let differs = fit < self.doubt.len();
            let chance = match self.begun(at + fit as u64) {
                begun if begun <= fit && (differs || self.replay.is_some() && !is_end) => begun,
                _ => 0,
            };
            self.advance(fit - chance, faults);
            if self.doubt.is_empty() || !(is_end || self.doubt.len() >= ENOUGH) {
                return;
            }
            match self.judge(sent) {
                Verdict::Resumed => self.replay = None,
                Verdict::Skipped(length) => self.skip(length, faults),
                Verdict::Repeated(from) => self.repeat(from, faults),
                Verdict::Wrong(count) => self.reject(count, sent, faults),
            }
        }
    }

    /// Where the next byte is expected.
    fn position(&self) -> u64 {
        self.replay.as_ref().map_or(self.front, |replay| replay.at)
    }

    /// Takes `count` bytes out of doubt: they fit where they stand.
    fn advance(&mut self, count: usize, faults: &mut Faults) {
        self.doubt.drain(..count);
        let Some(replay) = &mut self.replay else {
            self.front += count as u64;
            return;
        };
        let again = replay.at..self.front.min(replay.at + count as u64);
        replay.at += count as u64;
        let (end, mut counted) = (replay.at, replay.counted);
        if !again.is_empty() {
            let first = again.start / self.size;
            let last = (again.end - 1) / self.size;
            let messages = last - first + u64::from(counted != Some(first));
            counted = Some(last);
            if self.fill(&again) {
                faults.errors.reordered += messages;
            } else {
                faults.errors.duplicates += messages;
            }
        }
        self.replay = (end < self.front).then_some(Replay { at: end, counted });
        self.front = self.front.max(end);
    }

    /// Takes the range out of the gap that it begins in. Whether there was one.
    fn fill(&mut self, range: &Range<u64>) -> bool {
        let Some(index) = self.gaps.iter().position(|gap| gap.contains(&range.start)) else {
            return false;
        };
        let gap = self.gaps[index].clone();
        self.gaps.remove(index);
        let rest = [gap.start..range.start, range.end.min(gap.end)..gap.end];
        for part in rest.into_iter().rev().filter(|part| !part.is_empty()) {
            self.gaps.insert(index, part);
        }
        true
    }

    /// What the bytes in doubt are; the first of them does not fit where it stands.
    fn judge(&self, sent: u64) -> Verdict {
        let at = self.position();
        if self.replay.is_some() && self.fits(self.front, 0, sent) {
            return Verdict::Resumed;
        }
        if self.doubt.len() < EVIDENCE {
            return self.judge_few(at, sent);
        }
        let period = self.alphabet.slice(self.stream, at, pattern::PERIOD + EVIDENCE);
        let evidence = &self.doubt[..EVIDENCE];
        if let Some(ahead) = memchr::memmem::find(period, evidence) {
            let ahead = ahead as u64;
            let behind = pattern::PERIOD as u64 - ahead;
            let skipped = (self.replay.is_none() && at + ahead < sent).then_some(ahead);
            let repeated = (behind <= at).then_some(at - behind.min(at));
            let in_gap = |from| self.gaps.iter().any(|gap| gap.contains(&from));
            let awaited = repeated.is_some_and(in_gap);
            match (skipped, repeated) {
                (Some(length), None) => return Verdict::Skipped(length),
                (Some(length), Some(_)) if !awaited && length <= behind => {
                    return Verdict::Skipped(length);
                }
                (_, Some(from)) => return Verdict::Repeated(from),
                (None, None) => {}
            }
        }
        self.judge_wrong(at, sent)
    }

    /// Too few bytes to tell by themselves where they belong, and no more will come: their number
    /// has to help.
    fn judge_few(&self, at: u64, sent: u64) -> Verdict {
        let count = self.doubt.len() as u64;
        let is_at = |from| self.alphabet.verify(self.stream, from, &self.doubt).is_ok();
        if at + count < sent && self.replay.is_none() && is_at(sent - count) {
            Verdict::Skipped(sent - count - at)
        } else if at + count > sent && at >= count && is_at(at - count) {
            Verdict::Repeated(at - count)
        } else {
            self.judge_wrong(at, sent)
        }
    }

    /// Wrong bytes end where the pattern goes on as if nothing had been.
    fn judge_wrong(&self, at: u64, sent: u64) -> Verdict {
        let count = self.doubt.len();
        Verdict::Wrong((1..count).find(|&skip| self.fits(at, skip, sent)).unwrap_or(count))
    }

    /// Whether the bytes in doubt after the first `skip` are those of the pattern, when the
    /// first stands at `at`.
    fn fits(&self, at: u64, skip: usize, sent: u64) -> bool {
        let rest = &self.doubt[skip..];
        let from = at + skip as u64;
        let looked_at = &rest[..rest.len().min(EVIDENCE)];
        from + looked_at.len() as u64 <= sent
            && self.alphabet.verify(self.stream, from, looked_at).is_ok()
    }

    fn skip(&mut self, length: u64, faults: &mut Faults) {
        let (stream, gap) = (self.stream, self.front..self.front + length);
        faults.note(|| {
            format!("connection {stream}: bytes {} to {} are missing", gap.start, gap.end - 1)
        });
        self.spoil(&gap);
        self.front = gap.end;
        self.gaps.push_back(gap);
        if self.gaps.len() > MOST_GAPS
            && let Some(oldest) = self.gaps.pop_front()
        {
            self.count_gap(&oldest, faults);
        }
    }

    fn repeat(&mut self, from: u64, faults: &mut Faults) {
        let (stream, front) = (self.stream, self.front);
        faults.note(|| {
            format!("connection {stream}: byte {from} came where byte {front} was expected")
        });
        // A second replay right after a first, of the same message, is the same fault.
        let counted = self.replay.take().and_then(|replay| replay.counted);
        self.replay = Some(Replay { at: from, counted });
    }

    fn reject(&mut self, count: usize, sent: u64, faults: &mut Faults) {
        if self.replay.take().is_some() {
            return; // They are judged again, at the front.
        }
        let stream = self.stream;
        let wrong = self.front..sent.min(self.front + count as u64);
        if wrong.is_empty() {
            faults.errors.stray += 1;
            faults.note(|| {
                let came = units::count(count, "byte");
                format!("connection {stream}: {came} came that had not been sent")
            });
        } else {
            if let Err(mismatch) = self.alphabet.verify(stream, wrong.start, &self.doubt[..count]) {
                let upper = self.alphabet.is_upper(stream, wrong.start, &self.doubt[..count]);
                let why = if upper { ": in upper case" } else { "" };
                faults.note(|| format!("connection {stream}: {mismatch}{why}"));
            }
            faults.errors.corrupt += self.spoil(&wrong);
        }
        // Bytes over what was sent go with the wrong ones that they follow.
        self.doubt.drain(..count);
        self.front = wrong.end;
    }

    /// Marks the messages of the range as not whole. How many were so far.
    fn spoil(&mut self, range: &Range<u64>) -> u64 {
        let before = self.spoiled.len();
        for message in range.start / self.size..=(range.end - 1) / self.size {
            if self.spoiled.back().is_none_or(|&last| last < message) {
                self.spoiled.push_back(message);
            }
        }
        (self.spoiled.len() - before) as u64
    }

    /// Counts a gap that will not be filled, each message once.
    fn count_gap(&mut self, gap: &Range<u64>, faults: &mut Faults) {
        for message in gap.start / self.size..=(gap.end - 1) / self.size {
            if self.counted.replace(message) == Some(message) {
                continue;
            }
            let (start, end) = (message * self.size, (message + 1) * self.size);
            if gap.start <= start && end <= gap.end {
                faults.errors.lost += 1;
            } else {
                faults.errors.cut += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults::Errors;
    use super::*;
    use proptest::prelude::*;

    const STREAM: u32 = 5;
    const SIZE: u64 = 64;

    /// Message `number` as it was sent.
    fn message(number: u64) -> Vec<u8> {
        Alphabet::Letters.slice(STREAM, number * SIZE, SIZE as usize).to_vec()
    }

    /// The faults of an echo of `count` messages that comes in pieces of `step` bytes, and how
    /// many messages are whole.
    fn check(echo: &[u8], count: u64, step: usize) -> (Errors, u64) {
        check_of(Alphabet::Letters, STREAM, echo, count, step)
    }

    fn check_of(
        alphabet: Alphabet,
        stream: u32,
        echo: &[u8],
        count: u64,
        step: usize,
    ) -> (Errors, u64) {
        let mut checker = Checker::new(alphabet, stream, SIZE);
        let mut faults = Faults::default();
        for piece in echo.chunks(step) {
            checker.accept(piece, count * SIZE, &mut faults);
        }
        checker.finish(count * SIZE, &mut faults);
        let whole = (0..checker.settled()).filter(|&number| checker.is_whole(number)).count();
        assert_eq!(faults.first.is_some(), faults.errors != Errors::default());
        (faults.errors, whole as u64)
    }

    /// The same in pieces of every size.
    fn check_all(echo: &[u8], count: u64, errors: Errors, whole: u64) {
        for step in 1..=echo.len().max(1) {
            assert_eq!(check(echo, count, step), (errors, whole), "in pieces of {step}");
        }
    }

    #[test]
    fn a_perfect_echo_has_no_fault() {
        let echo: Vec<u8> = (0..4).flat_map(message).collect();
        check_all(&echo, 4, Errors::default(), 4);
    }

    #[test]
    fn a_lost_message_is_told() {
        let echo: Vec<u8> = [0, 1, 3, 4].into_iter().flat_map(message).collect();
        check_all(&echo, 5, Errors { lost: 1, ..Errors::default() }, 4);
    }

    #[test]
    fn a_cut_message_is_told() {
        let mut echo = message(0);
        echo.truncate(40);
        echo.extend(message(1));
        check_all(&echo, 2, Errors { cut: 1, ..Errors::default() }, 1);
        check_all(&message(0)[..40], 1, Errors { cut: 1, ..Errors::default() }, 0);
    }

    #[test]
    fn a_byte_that_is_missing_inside_is_a_cut() {
        let mut echo = message(0);
        echo.remove(20);
        check_all(&echo, 1, Errors { cut: 1, ..Errors::default() }, 0);
    }

    #[test]
    fn a_message_that_came_twice_is_a_duplicate() {
        let echo: Vec<u8> = [0, 1, 1, 2].into_iter().flat_map(message).collect();
        check_all(&echo, 3, Errors { duplicates: 1, ..Errors::default() }, 3);
        let echo: Vec<u8> = [0, 1, 1].into_iter().flat_map(message).collect();
        check_all(&echo, 2, Errors { duplicates: 1, ..Errors::default() }, 2);
        let echo: Vec<u8> = [0, 1, 2, 0, 1, 2, 3].into_iter().flat_map(message).collect();
        check_all(&echo, 4, Errors { duplicates: 3, ..Errors::default() }, 4);
    }

    #[test]
    fn a_byte_that_came_twice_is_a_duplicate() {
        let mut echo: Vec<u8> = (0..2).flat_map(message).collect();
        echo.insert(20, echo[20]);
        check_all(&echo, 2, Errors { duplicates: 1, ..Errors::default() }, 2);
    }

    #[test]
    fn a_corrupt_message_is_told() {
        for at in [0, 1, 30, 63] {
            let mut echo: Vec<u8> = (0..3).flat_map(message).collect();
            echo[64 + at] ^= 1;
            check_all(&echo, 3, Errors { corrupt: 1, ..Errors::default() }, 2);
        }
    }

    #[test]
    fn faults_far_apart_in_one_message_are_one() {
        let mut echo: Vec<u8> = (0..3).flat_map(message).collect();
        echo[64 + 3] ^= 1;
        echo[64 + 50] ^= 1;
        check_all(&echo, 3, Errors { corrupt: 1, ..Errors::default() }, 2);
    }

    #[test]
    fn swapped_messages_are_told() {
        let echo: Vec<u8> = [0, 2, 1, 3].into_iter().flat_map(message).collect();
        check_all(&echo, 4, Errors { reordered: 1, ..Errors::default() }, 3);
        let echo: Vec<u8> = [1, 0].into_iter().flat_map(message).collect();
        check_all(&echo, 2, Errors { reordered: 1, ..Errors::default() }, 1);
    }

    /// Some bytes fit by chance where they do not belong: of 32 letters, one in 32.
    #[test]
    fn faults_are_told_apart_whatever_the_bytes_are() {
        let none = Errors::default();
        for (order, errors, whole) in [
            (&[0, 1, 3, 4][..], Errors { lost: 1, ..none }, 4),
            (&[0, 1, 1, 2, 3, 4], Errors { duplicates: 1, ..none }, 5),
            (&[0, 2, 1, 3, 4], Errors { reordered: 1, ..none }, 4),
            (&[0, 1, 2, 0, 1, 2, 3, 4], Errors { duplicates: 3, ..none }, 5),
        ] {
            for (stream, alphabet) in
                (0..300).flat_map(|stream| [(stream, Alphabet::Letters), (stream, Alphabet::Bytes)])
            {
                let message = |&number: &u64| alphabet.slice(stream, number * SIZE, SIZE as usize);
                let echo: Vec<u8> = order.iter().flat_map(message).copied().collect();
                for step in [1, 3, 40, 64, 65, echo.len()] {
                    let seen = check_of(alphabet, stream, &echo, 5, step);
                    assert_eq!(
                        seen,
                        (errors, whole),
                        "{order:?}, {alphabet:?} {stream}, in pieces of {step}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_never_comes_back_is_told() {
        check_all(&[], 3, Errors { unanswered: 3, ..Errors::default() }, 0);
        let mut echo: Vec<u8> = (0..2).flat_map(message).collect();
        echo.truncate(100);
        check_all(&echo, 4, Errors { cut: 1, unanswered: 2, ..Errors::default() }, 1);
    }

    #[test]
    fn bytes_of_another_are_corrupt() {
        let other = Alphabet::Letters.slice(STREAM + 1, 0, SIZE as usize);
        assert_eq!(check(other, 1, 64), (Errors { corrupt: 1, ..Errors::default() }, 0));
        let mut echo = b"220 mail.example ESMTP, quite a long greeting\r\n".to_vec();
        echo.extend(message(0));
        let (errors, _) = check(&echo, 1, echo.len());
        assert!(errors.corrupt > 0, "{errors:?}");
    }

    #[test]
    fn bytes_that_were_never_sent_are_stray() {
        let mut checker = Checker::new(Alphabet::Letters, STREAM, SIZE);
        let mut faults = Faults::default();
        checker.accept(b"hello, I speak first", 0, &mut faults);
        checker.close(0, &mut faults);
        assert_eq!(faults.errors, Errors { stray: 1, ..Errors::default() });
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_counts(
            pieces in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    (0..2000_u64, 0..300_usize)
                        .prop_map(|(at, length)| Alphabet::Letters.slice(STREAM, at, length).to_vec()),
                ],
                0..20,
            ),
            count in 0..40_u64,
        ) {
            let mut checker = Checker::new(Alphabet::Letters, STREAM, SIZE);
            let mut faults = Faults::default();
            for piece in &pieces {
                checker.accept(piece, count * SIZE, &mut faults);
                prop_assert!(checker.front() <= count * SIZE);
            }
            checker.finish(count * SIZE, &mut faults);
            let all: Vec<u8> = pieces.concat();
            let right = Alphabet::Letters.slice(STREAM, 0, (count * SIZE) as usize) == all.as_slice();
            prop_assert_eq!(faults.errors == Errors::default(), right);
        }
    }
}
