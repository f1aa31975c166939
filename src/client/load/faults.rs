//! What an echo can do wrong, by kind.

use serde::{Deserialize, Serialize};

/// How often each kind of fault was seen, over the whole run: warm-up and end included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Errors {
    /// Messages that never came back although later ones did (TCP), or that did not come back
    /// within the timeout (UDP).
    pub lost: u64,
    /// Messages of which only a part came back.
    pub cut: u64,
    /// Messages that came back again, whole or in part.
    pub duplicated: u64,
    /// Messages that came back with other bytes, and replies to nothing that was sent.
    pub corrupted: u64,
    /// Messages that came back after one that was sent later.
    pub reordered: u64,
    /// Messages that came back, but later than the timeout.
    pub late: u64,
    /// Messages on a TCP connection of which nothing came back.
    pub unanswered: u64,
    /// Connections that the server closed or reset while the client still used them.
    pub closed: u64,
    /// Connections that the server did not close within the timeout after the client had sent
    /// its FIN (churn only).
    pub unclosed: u64,
    /// Connections that could not be opened once the run was under way (churn only).
    pub failed: u64,
}

impl Errors {
    /// Each kind with its name and count, in a fixed order.
    pub fn kinds(&self) -> [(&'static str, u64); 10] {
        [
            ("lost", self.lost),
            ("cut", self.cut),
            ("duplicated", self.duplicated),
            ("corrupted", self.corrupted),
            ("reordered", self.reordered),
            ("late", self.late),
            ("unanswered", self.unanswered),
            ("closed", self.closed),
            ("unclosed", self.unclosed),
            ("failed", self.failed),
        ]
    }

    /// Adds the counts of `other`.
    pub(super) fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.cut += other.cut;
        self.duplicated += other.duplicated;
        self.corrupted += other.corrupted;
        self.reordered += other.reordered;
        self.late += other.late;
        self.unanswered += other.unanswered;
        self.closed += other.closed;
        self.unclosed += other.unclosed;
        self.failed += other.failed;
    }

    /// All faults together.
    pub fn total(&self) -> u64 {
        self.kinds().iter().map(|(_, count)| count).sum()
    }
}

/// The counts, and a sentence about the first fault.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) errors: Errors,
    pub(super) first: Option<String>,
}

impl Faults {
    /// Keeps the sentence when it is the first.
    pub(super) fn note(&mut self, sentence: impl FnOnce() -> String) {
        self.first.get_or_insert_with(sentence);
    }
}
