//! What an echo can do wrong, by kind.

use std::io;

use serde::{Deserialize, Serialize};

use crate::client::tracker::Reply;

/// How often each kind of fault was seen, over the whole run: warm-up and end included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Errors {
    /// Messages that never came back although later ones did (TCP), or that did not come back
    /// within the timeout (UDP).
    pub lost: u64,
    /// Messages that came back after one that was sent later (RFC 4737).
    pub reordered: u64,
    /// Messages that came back again, whole or in part (RFC 5560).
    #[serde(alias = "duplicated")]
    pub duplicates: u64,
    /// Messages that came back later than the timeout; over UDP they stay lost, too (RFC 2680).
    pub late: u64,
    /// Messages that came back with other bytes.
    #[serde(alias = "corrupted")]
    pub corrupt: u64,
    /// Messages of which only a part came back; over UDP, or in a frame, with another length. After such
    /// a frame the client closes the connection.
    pub cut: u64,
    /// Replies to nothing that was sent, or too damaged to tell to what.
    #[serde(default)]
    pub stray: u64,
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
    pub fn kinds(mut self) -> [(&'static str, u64); 11] {
        self.kinds_mut().map(|(name, count)| (name, *count))
    }

    fn kinds_mut(&mut self) -> [(&'static str, &mut u64); 11] {
        [
            ("lost", &mut self.lost),
            ("reordered", &mut self.reordered),
            ("duplicates", &mut self.duplicates),
            ("late", &mut self.late),
            ("corrupt", &mut self.corrupt),
            ("cut", &mut self.cut),
            ("stray", &mut self.stray),
            ("unanswered", &mut self.unanswered),
            ("closed", &mut self.closed),
            ("unclosed", &mut self.unclosed),
            ("failed", &mut self.failed),
        ]
    }

    /// Counts what is wrong with a reply, if anything is.
    pub(in crate::client) fn count(&mut self, reply: &Reply) {
        let kind = match reply {
            Reply::Echo { reordered: false, .. } => return,
            Reply::Echo { .. } => &mut self.reordered,
            Reply::Duplicate { .. } => &mut self.duplicates,
            Reply::Late { .. } => &mut self.late,
            Reply::Corrupt { .. } => &mut self.corrupt,
            Reply::Cut { .. } => &mut self.cut,
            Reply::Stray => &mut self.stray,
        };
        *kind += 1;
    }

    /// Adds the counts of `other`.
    pub(super) fn add(&mut self, other: &Self) {
        for ((_, ours), (_, theirs)) in self.kinds_mut().into_iter().zip(other.kinds()) {
            *ours = ours.saturating_add(theirs);
        }
    }

    /// What was counted since `earlier`.
    pub(super) fn since(mut self, earlier: &Self) -> Self {
        for ((_, now), (_, then)) in self.kinds_mut().into_iter().zip(earlier.kinds()) {
            *now -= then;
        }
        self
    }

    /// Messages (churn: connections) that had no good reply, and so no time that counts.
    pub fn without_reply(&self) -> u64 {
        let Self { lost, corrupt, cut, unanswered, unclosed, failed, .. } = *self;
        [lost, corrupt, cut, unanswered, unclosed, failed]
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// All faults together.
    pub fn total(&self) -> u64 {
        self.kinds().iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// The counts, and a sentence about the first fault.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) errors: Errors,
    pub(super) first: Option<String>,
}

impl Faults {
    /// Counts what is wrong with a reply to a socket's datagram, if anything is.
    pub(super) fn count(&mut self, socket: u32, reply: &Reply) {
        self.errors.count(reply);
        if !matches!(reply, Reply::Echo { reordered: false, .. }) {
            self.note(|| format!("socket {socket}: {reply}"));
        }
    }

    /// Counts a connection that ended while the client still used it.
    pub(super) fn close(&mut self, number: u32, error: &io::Error) {
        // The client ends it when a frame has another length than was sent.
        let is_cut = error.kind() == io::ErrorKind::InvalidData;
        let kind = if is_cut { &mut self.errors.cut } else { &mut self.errors.closed };
        *kind += 1;
        self.note(|| match error.kind() {
            io::ErrorKind::InvalidData => format!("connection {number}: {error}"),
            io::ErrorKind::UnexpectedEof => {
                format!("connection {number}: the server closed it too early")
            }
            _ => format!("connection {number}: it broke: {error}"),
        });
    }

    /// Keeps the sentence when it is the first.
    pub(super) fn note(&mut self, sentence: impl FnOnce() -> String) {
        self.first.get_or_insert_with(sentence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_by_their_names_and_by_those_of_earlier_reports() {
        let names = Errors::default().kinds().map(|(name, _)| name);
        let one: serde_json::Map<_, _> =
            names.map(|name| (name.to_owned(), 1.into())).into_iter().collect();
        let seen: Errors = serde_json::from_value(one.clone().into()).unwrap();
        assert_eq!(seen.kinds(), names.map(|name| (name, 1)));
        let mut earlier = one;
        for (name, before) in [("corrupt", "corrupted"), ("duplicates", "duplicated")] {
            let count = earlier.remove(name).unwrap();
            earlier.insert(before.to_owned(), count);
        }
        earlier.remove("stray");
        let mut sum: Errors = serde_json::from_value(earlier.into()).unwrap();
        assert_eq!(sum, Errors { stray: 0, ..seen });
        sum.add(&seen);
        assert_eq!((sum.total(), seen.total()), (21, 11));
        assert_eq!((seen.without_reply(), sum.since(&seen)), (6, Errors { stray: 0, ..seen }));
    }

    #[test]
    fn the_first_fault_is_kept() {
        let mut faults = Faults::default();
        for (seq, reordered) in [(1, false), (2, true), (3, true)] {
            faults.count(4, &Reply::Echo { seq, time: Default::default(), reordered });
        }
        assert_eq!(faults.errors, Errors { reordered: 2, ..Errors::default() });
        let first = faults.first.unwrap();
        assert!(first.starts_with("socket 4: seq=2 ") && first.ends_with("(reordered)"), "{first}");
        let kinds = [
            Reply::Duplicate { seq: 1 },
            Reply::Late { seq: 1, time: Default::default() },
            Reply::Corrupt { seq: 1, byte: 1, upper_case: false },
            Reply::Cut { seq: 1, bytes: 1 },
            Reply::Stray,
        ];
        let mut errors = Errors::default();
        kinds.iter().for_each(|reply| errors.count(reply));
        let one = Errors { duplicates: 1, late: 1, corrupt: 1, cut: 1, stray: 1, ..errors };
        assert_eq!((errors, errors.total()), (one, 5));
    }
}
