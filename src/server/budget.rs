//! The memory budget: what all conversations of an event loop hold together, output that is not taken
//! yet and the beginnings of frames. It is bounded, and divided so that something is left for the next.
//!
//! Half of it goes to the first that need it. Once that is gone, a read may bring no more than a part of
//! the connection's equal share of the rest: connections that never read their replies end up with
//! little each, and those that read along go on with smaller reads.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::ending::CloseReason;
use crate::protocol::try_copy;
use crate::stats::Stats;
use crate::sys::limits::{self, MemoryLimit};

/// The most that one turn reads, however much is free.
pub(crate) const MAX_READ: usize = 256 << 10;
/// The least that a read may bring, however little is free: less would hardly get anywhere.
const MIN_READ: usize = 16;
/// A read takes at most one part in this number of what is free. Its reply may be three times as long
/// (upper case of "ΐ": two bytes become six), and then more than half is left.
const PARTS: usize = 8;
/// With less than this, hardly any client could be served.
const LEAST: usize = 64 << 10;

/// The limit of a server, and what is held of it. One thread takes and gives back.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    /// [`Stats::buffered`] is what is held.
    stats: Arc<Stats>,
}

impl Budget {
    pub(crate) fn new(limit: usize, stats: Arc<Stats>) -> Self {
        Budget { limit, stats }
    }

    /// How many bytes are held.
    pub(crate) fn held(&self) -> usize {
        self.stats.buffered.load(Relaxed)
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.held())
    }

    /// How much one connection may read, while this number of them is open.
    pub(crate) fn read_size(&self, open: usize) -> usize {
        let free = self.free();
        let sharers = if free > self.limit / 2 { 1 } else { open.max(1) };
        (free / (PARTS * sharers)).clamp(MIN_READ, MAX_READ)
    }

    /// How many bytes one conversation may grow by that keeps what it has read. The last quarter is
    /// for output: a conversation that keeps on growing ends before reads get too small for all.
    pub(crate) fn growth(&self) -> usize {
        self.free().saturating_sub(self.limit / 4) / 2
    }

    /// Makes a copy of `bytes` that counts as held, if there is room for it.
    pub(crate) fn keep(&self, bytes: &[u8]) -> Result<Vec<u8>, CloseReason> {
        if bytes.len() > self.free() {
            return Err(CloseReason::OverBudget);
        }
        let kept = try_copy(bytes).map_err(|_| CloseReason::OverBudget)?;
        self.adjust(0, kept.capacity());
        Ok(kept)
    }

    /// Counts `bytes` themselves as held, if there is room for them.
    pub(crate) fn keep_owned(&self, bytes: Vec<u8>) -> Result<Vec<u8>, CloseReason> {
        if bytes.capacity() > self.free() {
            return Err(CloseReason::OverBudget);
        }
        self.adjust(0, bytes.capacity());
        Ok(bytes)
    }

    /// What held `before` bytes holds `after` bytes now. Never refused: it grew within its limit.
    pub(crate) fn adjust(&self, before: usize, after: usize) {
        if before != after {
            self.stats.buffered.store(self.held() + after - before, Relaxed);
        }
    }
}

/// How much of `wanted` there can be: half of the memory that the narrowest limit on this process leaves it.
/// The rest is for what is small or of fixed size. Returns the limit, too, where it allows less.
pub(crate) fn possible(wanted: usize) -> (usize, Option<MemoryLimit>) {
    within(limits::memory_limit(), wanted)
}

fn within(limit: Option<MemoryLimit>, wanted: usize) -> (usize, Option<MemoryLimit>) {
    let limit = limit.filter(|limit| share_of(limit.left) < wanted);
    (limit.map_or(wanted, |limit| share_of(limit.left)), limit)
}

fn share_of(left: u64) -> usize {
    usize::try_from(left / 2).unwrap_or(usize::MAX).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64 << 20;

    fn budget(limit: usize) -> Budget {
        Budget::new(limit, Arc::default())
    }

    #[test]
    fn what_is_held_is_counted_and_given_back() {
        let budget = budget(10);
        let kept = budget.keep(b"123456").unwrap();
        assert_eq!((&kept[..], budget.held(), budget.free()), (&b"123456"[..], 6, 4));
        assert_eq!(budget.keep(b"12345"), Err(CloseReason::OverBudget));
        assert_eq!(budget.keep_owned(vec![0; 5]), Err(CloseReason::OverBudget));
        assert_eq!(budget.keep_owned(vec![0; 4]), Ok(vec![0; 4]));
        assert_eq!(budget.free(), 0);
        assert_eq!(budget.keep(b""), Ok(Vec::new()));
        budget.adjust(10, 0);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn reads_get_smaller_and_never_use_up_what_is_left() {
        let budget = budget(LIMIT);
        assert_eq!(budget.read_size(10_000), MAX_READ);
        // None of them reads its replies, and each reply is as large as any can be.
        for open in 1..=10_000 {
            let reply = 3 * budget.read_size(open);
            assert!(reply <= budget.free(), "no room for the reply to connection {open}");
            budget.adjust(0, reply);
        }
        assert!(budget.read_size(10_000) > MIN_READ, "{}", budget.read_size(10_000));
        assert!(budget.free() > LIMIT / 50, "{}", budget.free());
    }

    #[test]
    fn a_small_limit_keeps_its_promises_too() {
        let budget = budget(1 << 20);
        for open in 1..=1_000 {
            let reply = 3 * budget.read_size(open);
            assert!(reply <= budget.free(), "{open}");
            budget.adjust(0, reply);
        }
    }

    #[test]
    fn a_limit_on_address_space_leaves_room_for_the_rest() {
        assert_eq!(share_of(14 << 20), 7 << 20);
        assert_eq!(share_of(0), 64 << 10);
        assert!(share_of(u64::MAX) > usize::MAX / 4);
        assert_eq!(possible(10), (10, None));
        let limit = Some(MemoryLimit { left: 14 << 20, name: "", advice: "" });
        let half = 7 << 20;
        assert_eq!(within(limit, half), (half, None));
        assert_eq!(within(limit, half + 1), (half, limit));
    }

    #[test]
    fn what_grows_leaves_room_for_others() {
        let budget = budget(LIMIT);
        for _ in 0..20 {
            budget.adjust(0, budget.growth());
        }
        assert!(budget.free() > LIMIT / 4);
        assert!(budget.read_size(2_000) > 1_000);
        budget.adjust(0, budget.free());
        assert_eq!((budget.growth(), budget.read_size(1)), (0, MIN_READ));
    }

    #[test]
    fn shares_are_what_they_are_said_to_be() {
        let budget = budget(8_000);
        assert_eq!((budget.read_size(10), budget.growth()), (1_000, 3_000));
        budget.adjust(0, 3_999);
        assert_eq!((budget.free(), budget.read_size(10), budget.growth()), (4_001, 500, 1_000));
        budget.adjust(0, 1);
        assert_eq!((budget.read_size(10), budget.growth()), (50, 1_000));
        assert_eq!((budget.read_size(0), budget.read_size(1_000)), (500, 16));
        budget.adjust(0, 2_000);
        assert_eq!((budget.growth(), budget.held()), (0, 6_000));
        budget.adjust(6_000, 10);
        assert_eq!(budget.held(), 10);
    }
}
