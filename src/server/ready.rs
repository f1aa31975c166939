//! Which connections are served next: of those that can act, the ones that ask for little come first.
//!
//! The idea is that of fq_codel (RFC 8290): a client that sends a message now and then does not wait for
//! those that always have more to do. These are served one after the other, some of them in every pass,
//! so that none waits for ever.

use std::collections::{TryReserveError, VecDeque};

/// A connection that reads no more than this in a turn, and leaves nothing to do, asks for little.
pub(crate) const SMALL_TURN: usize = 4 << 10;
/// The most that a connection reads in a turn among those that ask for little, so that they wait for
/// each other only briefly.
pub(crate) const SPARSE_READ: usize = 16 << 10;

/// Names a connection in events: its slot, and which of the connections that had the slot it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionId {
    pub(crate) slot: u32,
    /// Never 0.
    pub(crate) generation: u32,
}

/// The connections that can act without waiting for an event, each once.
#[derive(Debug, Default)]
pub(crate) struct ReadyQueues([VecDeque<ConnectionId>; 2]);

/// One of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// An event woke the connection, and it asked for little in its last turn.
    Sparse,
    /// It had its turn and has more to do, or asked for much in its last turn.
    Greedy,
}

impl ReadyQueues {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(VecDeque::is_empty)
    }

    pub(crate) fn of(&self, queue: Queue) -> &VecDeque<ConnectionId> {
        &self.0[queue as usize]
    }

    /// Makes sure that this number of connections finds a place on either queue.
    pub(crate) fn reserve(&mut self, connections: usize) -> Result<(), TryReserveError> {
        for queue in &mut self.0 {
            if queue.capacity() < connections {
                // Not grown in place: that may copy, and so touch, memory that was never needed.
                let mut larger = VecDeque::new();
                larger.try_reserve_exact(2 * connections)?;
                larger.append(queue);
                *queue = larger;
            }
        }
        Ok(())
    }

    pub(crate) fn push(&mut self, queue: Queue, id: ConnectionId) {
        self.0[queue as usize].push_back(id);
    }

    pub(crate) fn pop(&mut self, queue: Queue) -> Option<ConnectionId> {
        let queue = &mut self.0[queue as usize];
        let id = queue.pop_front();
        if queue.is_empty() {
            // It begins at its start again: memory that was never needed at once stays untouched.
            queue.clear();
        }
        id
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.0.iter().flatten().copied()
    }
}
