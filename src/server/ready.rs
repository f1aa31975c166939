//! Who is served next: of the connections that can act, those that ask for little come first.
//!
//! The same idea as fq_codel's (RFC 8290): a client that sends a message now and then does not wait for
//! those that always have more to do. These are served one after the other, some of them in every pass,
//! so that nobody waits for ever.

use std::collections::{TryReserveError, VecDeque};

use super::connection::ConnectionId;

/// A connection that reads no more than this in a turn, and leaves nothing to do, asks for little.
pub(crate) const SMALL_TURN: usize = 4 << 10;
/// More than this nobody reads in a turn among those who ask for little, so that they wait for each
/// other only briefly.
pub(crate) const SPARSE_READ: usize = 16 << 10;

/// The connections that can act without waiting for an event, each once.
#[derive(Debug, Default)]
pub(crate) struct ReadyQueues {
    /// An event woke them, and they asked for little the last time.
    sparse: VecDeque<ConnectionId>,
    /// They had their turn and have more to do, or asked for much the last time.
    greedy: VecDeque<ConnectionId>,
}

/// One of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    Sparse,
    Greedy,
}

impl ReadyQueues {
    pub(crate) fn is_empty(&self) -> bool {
        self.sparse.is_empty() && self.greedy.is_empty()
    }

    pub(crate) fn of(&self, queue: Queue) -> &VecDeque<ConnectionId> {
        match queue {
            Queue::Sparse => &self.sparse,
            Queue::Greedy => &self.greedy,
        }
    }

    /// Makes sure that so many find a place on either queue.
    pub(crate) fn reserve(&mut self, connections: usize) -> Result<(), TryReserveError> {
        for queue in [&mut self.sparse, &mut self.greedy] {
            if queue.capacity() < connections {
                // Not grown in place: that may copy, and so touch, what was never needed at once.
                let mut larger = VecDeque::new();
                larger.try_reserve_exact(2 * connections)?;
                larger.append(queue);
                *queue = larger;
            }
        }
        Ok(())
    }

    pub(crate) fn push(&mut self, queue: Queue, id: ConnectionId) {
        self.of_mut(queue).push_back(id);
    }

    pub(crate) fn pop(&mut self, queue: Queue) -> Option<ConnectionId> {
        let queue = self.of_mut(queue);
        let id = queue.pop_front();
        if queue.is_empty() {
            // It begins at its start again: memory that was never needed at once stays untouched.
            queue.clear();
        }
        id
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.sparse.iter().chain(&self.greedy).copied()
    }

    fn of_mut(&mut self, queue: Queue) -> &mut VecDeque<ConnectionId> {
        match queue {
            Queue::Sparse => &mut self.sparse,
            Queue::Greedy => &mut self.greedy,
        }
    }
}
