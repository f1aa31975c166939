//! Builds the datagrams of one UDP socket and tells what is wrong with those that come back. No
//! socket here, and the time comes in as an argument.
//!
//! A datagram begins with a header of [`HEADER`] bytes, big-endian: the socket's number (4), the
//! slot (2), a check of the other three (2) and the sequence number, which counts what the socket
//! sends (8). Pattern bytes fill the rest. A slot stands for one datagram in flight.

use std::collections::BTreeSet;

use super::faults::Faults;
use crate::client::pattern;

/// The shortest datagram.
pub(super) const HEADER: usize = 16;

/// So many of the datagrams given up are remembered, to tell late ones from duplicates.
const MOST_MISSING: usize = 1 << 16;

/// One datagram in flight, or room for one.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    sequence: u64,
    /// When it was sent, in the run's nanoseconds; `None` when nothing is in flight.
    sent: Option<u64>,
    /// When it should have been sent.
    intended: u64,
}

/// What became of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freed {
    pub(super) slot: u16,
    /// When its message should have been sent.
    pub(super) intended: u64,
    /// Whether the message came back as it was sent.
    pub(super) whole: bool,
}

/// The datagrams of one socket.
#[derive(Debug)]
pub(super) struct Exchange {
    stream: u32,
    size: usize,
    slots: Box<[Slot]>,
    /// The next datagram gets this number; the first has 1.
    next: u64,
    /// The highest number that came back.
    highest: u64,
    /// What was given up and did not come since.
    missing: BTreeSet<u64>,
}

impl Exchange {
    /// For the socket whose pattern is `stream`: datagrams of `size` bytes ([`HEADER`] to
    /// [`MAX_DATAGRAM`](crate::protocol::MAX_DATAGRAM)), up to `depth` in flight.
    pub(super) fn new(stream: u32, size: usize, depth: u16) -> Self {
        let slots = vec![Slot::default(); usize::from(depth)].into_boxed_slice();
        Self { stream, size, slots, next: 1, highest: 0, missing: BTreeSet::new() }
    }

    /// Puts the next datagram of a free slot into `buffer`. It counts as in flight.
    pub(super) fn build<'b>(
        &mut self,
        slot: u16,
        intended: u64,
        now: u64,
        buffer: &'b mut [u8],
    ) -> &'b [u8] {
        let sequence = self.next;
        self.next += 1;
        self.slots[usize::from(slot)] = Slot { sequence, sent: Some(now), intended };
        let datagram = &mut buffer[..self.size];
        self.write(slot, sequence, datagram);
        datagram
    }

    /// Takes back the datagram that was built last: it could not be sent.
    pub(super) fn unbuild(&mut self, slot: u16) {
        self.next -= 1;
        self.slots[usize::from(slot)].sent = None;
    }

    /// Takes in a datagram that came back. The slot that it frees, if it frees one.
    pub(super) fn accept(&mut self, datagram: &[u8], faults: &mut Faults) -> Option<Freed> {
        let Some((slot, sequence)) = self.read(datagram) else {
            return self.accept_wrong(datagram, faults);
        };
        let current = self.slots.get(usize::from(slot));
        if current.is_some_and(|current| current.sent.is_some() && current.sequence == sequence) {
            if sequence < self.highest {
                faults.errors.reordered += 1;
                let (stream, highest) = (self.stream, self.highest);
                faults.note(|| {
                    format!("socket {stream}: datagram {sequence} came after datagram {highest}")
                });
            }
            self.highest = self.highest.max(sequence);
            return Some(self.free(slot, true));
        }
        let stream = self.stream;
        if self.missing.remove(&sequence) {
            faults.errors.lost -= 1;
            faults.errors.late += 1;
            faults.note(|| format!("socket {stream}: datagram {sequence} came after the timeout"));
        } else {
            faults.errors.duplicated += 1;
            faults.note(|| format!("socket {stream}: datagram {sequence} came again"));
        }
        None
    }

    /// Gives up what was sent before `limit`: the slots that become free.
    pub(super) fn give_up<'a>(
        &'a mut self,
        limit: u64,
        faults: &'a mut Faults,
    ) -> impl Iterator<Item = Freed> + 'a {
        (0..self.slots.len() as u16).filter_map(move |slot| {
            let current = self.slots[usize::from(slot)];
            if current.sent.is_none_or(|sent| sent >= limit) {
                return None;
            }
            let (stream, sequence) = (self.stream, current.sequence);
            faults.errors.lost += 1;
            faults.note(|| format!("socket {stream}: datagram {sequence} did not come back"));
            if self.missing.len() == MOST_MISSING {
                self.missing.pop_first();
            }
            self.missing.insert(sequence);
            Some(self.free(slot, false))
        })
    }

    fn free(&mut self, slot: u16, whole: bool) -> Freed {
        let current = &mut self.slots[usize::from(slot)];
        current.sent = None;
        Freed { slot, intended: current.intended, whole }
    }

    /// A datagram that differs from every one that was sent: which one was it meant to be?
    fn accept_wrong(&mut self, datagram: &[u8], faults: &mut Faults) -> Option<Freed> {
        let (stream, found, sent) = (self.stream, datagram.len(), self.size);
        let meant = self.closest(datagram);
        if found < sent {
            faults.errors.cut += 1;
            faults.note(|| format!("socket {stream}: {found} of {sent} bytes came back"));
        } else {
            faults.errors.corrupted += 1;
            faults.note(|| match meant {
                _ if found > sent => {
                    format!("socket {stream}: {found} bytes came back of {sent}")
                }
                Some(slot) => {
                    let sequence = self.slots[usize::from(slot)].sequence;
                    format!("socket {stream}: datagram {sequence} came back with other bytes")
                }
                None => format!("socket {stream}: a datagram came that was never sent"),
            });
        }
        meant.map(|slot| self.free(slot, false))
    }

    /// The slot in flight whose datagram shares the most bytes with this one, at least half; the
    /// one that has waited longest, when several do.
    fn closest(&self, datagram: &[u8]) -> Option<u16> {
        let mut expected = vec![0; self.size];
        let mut best: Option<(usize, u64, u16)> = None;
        for (slot, current) in self.slots.iter().enumerate() {
            if current.sent.is_none() {
                continue;
            }
            self.write(slot as u16, current.sequence, &mut expected);
            let same = expected.iter().zip(datagram).filter(|(a, b)| a == b).count();
            let candidate = (same, u64::MAX - current.sequence, slot as u16);
            if same * 2 >= datagram.len().min(self.size) && best < Some(candidate) {
                best = Some(candidate);
            }
        }
        best.map(|(_, _, slot)| slot)
    }

    fn write(&self, slot: u16, sequence: u64, datagram: &mut [u8]) {
        let (header, rest) = datagram.split_at_mut(HEADER);
        header[..4].copy_from_slice(&self.stream.to_be_bytes());
        header[4..6].copy_from_slice(&slot.to_be_bytes());
        header[6..8].copy_from_slice(&check(self.stream, slot, sequence).to_be_bytes());
        header[8..].copy_from_slice(&sequence.to_be_bytes());
        rest.copy_from_slice(self.payload(sequence, rest.len()));
    }

    /// The slot and number of a datagram that is, byte by byte, one that was sent.
    fn read(&self, datagram: &[u8]) -> Option<(u16, u64)> {
        if datagram.len() != self.size {
            return None;
        }
        let (header, rest) = datagram.split_first_chunk::<HEADER>()?;
        let stream = u32::from_be_bytes(header[..4].try_into().ok()?);
        let slot = u16::from_be_bytes(header[4..6].try_into().ok()?);
        let found = u16::from_be_bytes(header[6..8].try_into().ok()?);
        let sequence = u64::from_be_bytes(header[8..].try_into().ok()?);
        let right = stream == self.stream
            && found == check(stream, slot, sequence)
            && (1..self.next).contains(&sequence)
            && rest == self.payload(sequence, rest.len());
        right.then_some((slot, sequence))
    }

    fn payload(&self, sequence: u64, length: usize) -> &'static [u8] {
        pattern::slice(self.stream, sequence.wrapping_mul(31), length)
    }
}

/// Mixes the fields, so that a change in any of them is seen (Fibonacci hashing).
fn check(stream: u32, slot: u16, sequence: u64) -> u16 {
    let fields = sequence ^ u64::from(stream).rotate_left(32) ^ u64::from(slot).rotate_left(16);
    (fields.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16
}

#[cfg(test)]
mod tests {
    use super::super::faults::Errors;
    use super::*;
    use crate::protocol::MAX_DATAGRAM;
    use proptest::prelude::*;

    /// An exchange with `depth` datagrams out, and these.
    fn out(size: usize, depth: u16) -> (Exchange, Vec<Vec<u8>>) {
        let mut exchange = Exchange::new(3, size, depth);
        let mut buffer = vec![0; MAX_DATAGRAM];
        let datagrams = (0..depth)
            .map(|slot| exchange.build(slot, 10, 20 + u64::from(slot), &mut buffer).to_vec())
            .collect();
        (exchange, datagrams)
    }

    fn accept(exchange: &mut Exchange, datagram: &[u8]) -> (Option<u16>, Errors) {
        let mut faults = Faults::default();
        let freed = exchange.accept(datagram, &mut faults);
        let spoiled = faults.errors.cut + faults.errors.corrupted > 0;
        assert!(freed.is_none_or(|freed| freed.whole != spoiled && freed.intended == 10));
        assert_eq!(faults.first.is_some(), faults.errors != Errors::default());
        (freed.map(|freed| freed.slot), faults.errors)
    }

    #[test]
    fn an_echo_frees_its_slot() {
        for size in [HEADER, 17, 64, MAX_DATAGRAM] {
            let (mut exchange, datagrams) = out(size, 2);
            assert_eq!(accept(&mut exchange, &datagrams[0]), (Some(0), Errors::default()));
            assert_eq!(accept(&mut exchange, &datagrams[1]), (Some(1), Errors::default()));
        }
    }

    #[test]
    fn a_second_copy_is_a_duplicate() {
        let (mut exchange, datagrams) = out(64, 2);
        accept(&mut exchange, &datagrams[0]);
        let duplicated = Errors { duplicated: 1, ..Errors::default() };
        assert_eq!(accept(&mut exchange, &datagrams[0]), (None, duplicated));
        exchange.build(0, 0, 0, &mut [0; 64]);
        assert_eq!(accept(&mut exchange, &datagrams[0]), (None, duplicated));
    }

    #[test]
    fn the_order_is_watched() {
        let (mut exchange, datagrams) = out(64, 2);
        assert_eq!(accept(&mut exchange, &datagrams[1]), (Some(1), Errors::default()));
        let reordered = Errors { reordered: 1, ..Errors::default() };
        assert_eq!(accept(&mut exchange, &datagrams[0]), (Some(0), reordered));
    }

    #[test]
    fn a_loss_that_comes_after_all_is_late() {
        let (mut exchange, datagrams) = out(64, 3);
        let mut faults = Faults::default();
        let freed: Vec<u16> = exchange.give_up(22, &mut faults).map(|freed| freed.slot).collect();
        assert_eq!(freed, [0, 1]);
        assert_eq!(faults.errors, Errors { lost: 2, ..Errors::default() });
        assert!(exchange.accept(&datagrams[0], &mut faults).is_none());
        assert_eq!(faults.errors, Errors { lost: 1, late: 1, ..Errors::default() });
        assert!(exchange.accept(&datagrams[0], &mut faults).is_none());
        let errors = Errors { lost: 1, late: 1, duplicated: 1, ..Errors::default() };
        assert_eq!(faults.errors, errors);
    }

    #[test]
    fn what_could_not_be_sent_leaves_no_trace() {
        let (mut exchange, _) = out(64, 1);
        exchange.unbuild(0);
        let mut faults = Faults::default();
        assert_eq!(exchange.give_up(u64::MAX, &mut faults).count(), 0);
        let again = exchange.build(0, 10, 30, &mut [0; 64]).to_vec();
        assert_eq!(accept(&mut exchange, &again), (Some(0), Errors::default()));
    }

    #[test]
    fn a_stranger_frees_nothing() {
        let (mut exchange, _) = out(64, 2);
        let corrupted = Errors { corrupted: 1, ..Errors::default() };
        assert_eq!(accept(&mut exchange, &[0; 64]), (None, corrupted));
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_a_corruption_of_that_slot(
            size in HEADER..200, slot in 0..4_u16, at: prop::sample::Index, flip in 1..=255_u8,
        ) {
            let (mut exchange, mut datagrams) = out(size, 4);
            let datagram = &mut datagrams[usize::from(slot)];
            datagram[at.index(size)] ^= flip;
            let corrupted = Errors { corrupted: 1, ..Errors::default() };
            prop_assert_eq!(accept(&mut exchange, datagram), (Some(slot), corrupted));
        }

        #[test]
        fn a_shorter_datagram_is_a_cut_of_that_slot(
            size in HEADER..200, slot in 0..4_u16, length: prop::sample::Index,
        ) {
            let (mut exchange, datagrams) = out(size, 4);
            let length = length.index(size);
            let datagram = &datagrams[usize::from(slot)][..length];
            let cut = Errors { cut: 1, ..Errors::default() };
            let (freed, errors) = accept(&mut exchange, datagram);
            prop_assert_eq!(errors, cut);
            // Before the slot's number is there, the oldest is as good a guess as any.
            prop_assert_eq!(freed, Some(if length < 6 { 0 } else { slot }));
        }

        #[test]
        fn any_bytes_end_in_one_count(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut exchange, _) = out(64, 4);
            let (_, errors) = accept(&mut exchange, &bytes);
            prop_assert_eq!(errors.total(), 1);
        }
    }
}
