//! What is counted in a run, or in a part of it.

use crate::client::histogram::Histogram;

/// What was counted in a part of the measured time.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    pub(super) messages: u64,
    /// How long messages took.
    pub(super) times: Histogram,
    /// Faults of all kinds.
    pub(super) errors: u64,
    /// Messages that were due and never sent.
    pub(super) unsent: u64,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { messages: 0, times: Histogram::new(), errors: 0, unsent: 0 }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.times.add(&other.times);
        self.errors += other.errors;
        self.unsent += other.unsent;
    }
}
