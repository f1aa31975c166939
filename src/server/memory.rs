//! What all conversations of a server hold together: output that is not taken yet, and the beginnings of
//! frames. It is bounded, and so shared out that something is left for whoever comes next.
//!
//! Half of it goes to whoever needs it. Once that is gone, each read may bring no more than a part of
//! what a connection's equal share of the rest would be: those who never read their answers end up with
//! little each, and who reads along goes on with smaller reads.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::stats::Stats;
use crate::sys::limits;

/// The most that one turn reads, whatever is free.
pub(crate) const CHUNK: usize = 256 << 10;
/// The least that a read may bring, whatever is free: less would hardly get anywhere.
const SMALLEST_READ: usize = 16;
/// A read takes at most one part in so many of what is free. Its answer may be three times as long
/// (upper case of "ΐ": two bytes become six), and then more than half is left.
const PARTS: usize = 8;
/// With less than this, hardly anyone could be served.
const LEAST: usize = 64 << 10;

/// The limit of a server, and what is held of it.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    /// [`Stats::buffered`] is what is held.
    stats: Arc<Stats>,
}

/// There is no room left, of ours or in the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoRoom;

impl Memory {
    pub(crate) fn new(limit: usize, stats: Arc<Stats>) -> Self {
        Memory { limit, stats }
    }

    /// How many bytes are held.
    pub(crate) fn held(&self) -> usize {
        // No order is promised with anything else.
        self.stats.buffered.load(Ordering::Relaxed)
    }

    /// How many bytes are free.
    pub(crate) fn free(&self) -> usize {
        self.limit.saturating_sub(self.held())
    }

    /// How much may be read before the first of it is answered.
    pub(crate) fn batch_room(&self) -> usize {
        (self.free() / PARTS).clamp(SMALLEST_READ, CHUNK)
    }

    /// How much of that one connection may have, while so many are open.
    pub(crate) fn read_room(&self, open: usize) -> usize {
        let free = self.free();
        let sharers = if free > self.limit / 2 { 1 } else { open.max(1) };
        (free / (PARTS * sharers)).clamp(SMALLEST_READ, CHUNK)
    }

    /// How many bytes one conversation may grow by that keeps what it has read. The last quarter is
    /// for those who have something to send: who keeps on growing is to be ended before reads are so
    /// small that nobody gets on.
    pub(crate) fn growth(&self) -> usize {
        self.free().saturating_sub(self.limit / 4) / 2
    }

    /// Takes so many bytes, if they are free.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), NoRoom> {
        let more = |held: usize| held.checked_add(bytes).filter(|&held| held <= self.limit);
        let taken = self.stats.buffered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(drop).map_err(|_| NoRoom)
    }

    /// What held `before` bytes holds `after` bytes now. Never refused: it has grown within its limit.
    pub(crate) fn adjust(&self, before: usize, after: usize) {
        match after.cmp(&before) {
            Equal => {}
            Greater => _ = self.stats.buffered.fetch_add(after - before, Ordering::Relaxed),
            Less => _ = self.stats.buffered.fetch_sub(before - after, Ordering::Relaxed),
        }
    }
}

/// How much of `wanted` there can be: half of the address space that the limits on this process leave
/// it, since a small allocation that fails ends the process.
pub(crate) fn possible(wanted: usize) -> usize {
    wanted.min(share_of(limits::address_space_left()))
}

fn share_of(left: u64) -> usize {
    usize::try_from(left / 2).unwrap_or(usize::MAX).max(LEAST)
}

/// Bytes that wait, counted for as long as they are there.
pub(crate) struct Held {
    bytes: Vec<u8>,
    memory: Arc<Memory>,
}

impl Held {
    /// A copy of `bytes`, if there is room for it.
    pub(crate) fn copy(bytes: &[u8], memory: &Arc<Memory>) -> Result<Held, NoRoom> {
        memory.take(bytes.len())?;
        let mut copy = Vec::new();
        if copy.try_reserve_exact(bytes.len()).is_err() {
            memory.adjust(bytes.len(), 0);
            return Err(NoRoom);
        }
        copy.extend_from_slice(bytes);
        memory.adjust(bytes.len(), copy.capacity());
        Ok(Held { bytes: copy, memory: Arc::clone(memory) })
    }

    /// These bytes themselves, if there is room for them.
    pub(crate) fn own(bytes: Vec<u8>, memory: &Arc<Memory>) -> Result<Held, NoRoom> {
        memory.take(bytes.capacity())?;
        Ok(Held { bytes, memory: Arc::clone(memory) })
    }

    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.adjust(self.capacity(), 0);
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes held", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64 << 20;

    fn memory(limit: usize) -> Arc<Memory> {
        Arc::new(Memory::new(limit, Arc::default()))
    }

    #[test]
    fn what_is_held_is_counted_and_given_back() {
        let memory = memory(10);
        let held = Held::copy(b"123456", &memory).unwrap();
        assert_eq!((&held[..], memory.held(), memory.free()), (&b"123456"[..], 6, 4));
        assert_eq!(Held::copy(b"12345", &memory).unwrap_err(), NoRoom);
        assert_eq!(Held::own(vec![0; 5], &memory).unwrap_err(), NoRoom);
        let other = Held::own(vec![0; 4], &memory).unwrap();
        assert_eq!(memory.free(), 0);
        drop((held, other));
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn reads_get_smaller_and_never_use_up_what_is_left() {
        let memory = memory(LIMIT);
        assert_eq!(memory.read_room(10_000), CHUNK);
        // Nobody of them reads, and each answer is as large as any can be.
        for open in 1..=10_000 {
            let answer = 3 * memory.read_room(open);
            assert!(memory.take(answer).is_ok(), "no room for the answer to the {open}th");
        }
        assert!(memory.read_room(10_000) > SMALLEST_READ, "{}", memory.read_room(10_000));
        assert!(memory.free() > LIMIT / 50, "{}", memory.free());
    }

    #[test]
    fn a_small_limit_keeps_its_promises_too() {
        let memory = memory(1 << 20);
        for open in 1..=1_000 {
            assert!(memory.take(3 * memory.read_room(open)).is_ok(), "{open}");
        }
    }

    #[test]
    fn a_limit_on_address_space_leaves_room_for_the_rest() {
        assert_eq!(share_of(14 << 20), 7 << 20);
        assert_eq!(share_of(0), 64 << 10);
        assert!(share_of(u64::MAX) > usize::MAX / 4);
        assert_eq!(possible(10), 10);
    }

    #[test]
    fn what_grows_leaves_room_for_others() {
        let memory = memory(LIMIT);
        for _ in 0..20 {
            assert!(memory.take(memory.growth()).is_ok());
        }
        assert!(memory.free() > LIMIT / 4);
        assert!(memory.read_room(2_000) > 1_000);
        assert!(memory.take(memory.free()).is_ok());
        assert_eq!((memory.growth(), memory.read_room(1)), (0, SMALLEST_READ));
    }

    #[test]
    fn shares_are_what_they_are_said_to_be() {
        let memory = memory(8_000);
        assert_eq!(
            (memory.batch_room(), memory.read_room(10), memory.growth()),
            (1_000, 1_000, 3_000)
        );
        memory.take(3_999).unwrap();
        assert_eq!((memory.free(), memory.read_room(10), memory.growth()), (4_001, 500, 1_000));
        memory.take(1).unwrap();
        assert_eq!((memory.batch_room(), memory.read_room(10), memory.growth()), (500, 50, 1_000));
        assert_eq!((memory.read_room(0), memory.read_room(1_000)), (500, 16));
        memory.take(2_000).unwrap();
        assert_eq!((memory.growth(), memory.held()), (0, 6_000));
        memory.adjust(6_000, 10);
        assert_eq!(memory.held(), 10);
    }
}
