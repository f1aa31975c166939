//! How many local ports a run takes of those that there are.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::{Config, Mode};
use crate::client::states::Kernel;
use crate::error::Transport;
use crate::sys::local;

/// The local ports of the client over TCP, each of which makes one connection to the server at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ports {
    /// How many the source addresses of the run have, all together.
    pub all: u64,
    /// How many are taken, as far as is known: by the connections of the run and those before it, and for up to a
    /// minute after each (TIME_WAIT).
    pub taken: u64,
}

impl Ports {
    /// Whether they will soon not do: of every two ports Linux takes one, and once these are gone, it looks at all
    /// of them before each connection.
    pub fn are_low(&self) -> bool {
        self.taken * 5 >= self.all * 2
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.all += other.all;
        self.taken += other.taken;
    }
}

/// Counts the ports that a run takes.
#[derive(Debug)]
pub(super) struct PortCount {
    all: u64,
    /// Those that were taken when the run began.
    before: u64,
    /// How long each is taken after its connection.
    kept: Duration,
    /// Connections that were over, and when: a time for each second in which ports are kept.
    over: VecDeque<(Duration, u64)>,
    /// The most that were taken.
    pub(super) most: Ports,
}

impl PortCount {
    /// `None` over UDP, and where the number of ports is not known.
    pub(super) fn new(config: &Config) -> Option<Self> {
        if config.transport == Transport::Udp {
            return None;
        }
        let all = local::ports()? * config.sources.len().max(1) as u64;
        // To ask takes milliseconds where there are many sockets, and a few connections find their ports.
        let takes_many =
            config.mode == Mode::Churn || u64::from(config.connections).saturating_mul(10) > all;
        let ask = || Kernel::open()?.ports_taken(config.address);
        let before = takes_many.then(ask).and_then(Result::ok).unwrap_or(0);
        let kept = local::port_is_kept(config.address.ip());
        let most = Ports { all, taken: before };
        Some(Self { all, before, kept, over: VecDeque::from([(Duration::ZERO, 0)]), most })
    }

    /// After `elapsed`, this number of connections are open, and so many are over.
    pub(super) fn look(&mut self, elapsed: Duration, open: u64, over: u64) -> Ports {
        const STEP: Duration = Duration::from_secs(1);
        while self.over.get(1).is_some_and(|(at, _)| *at + self.kept <= elapsed) {
            self.over.pop_front();
        }
        if self.over.back().is_none_or(|(at, _)| *at + STEP <= elapsed) {
            self.over.push_back((elapsed, over));
        }
        let free_again = self.over.front().map_or(0, |(_, over)| *over);
        let before = if elapsed < self.kept { self.before } else { 0 };
        let taken = (before + open + over.saturating_sub(free_again)).min(self.all);
        let ports = Ports { all: self.all, taken };
        if ports.taken > self.most.taken {
            self.most = ports;
        }
        ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_until_their_time_is_over() {
        let kept = Duration::from_secs(60);
        let (all, over) = (1_000, VecDeque::from([(Duration::ZERO, 0)]));
        let mut count = PortCount { all, before: 100, kept, over, most: Ports { all, taken: 100 } };
        // 5 a second.
        let taken = |count: &mut PortCount, second: u64| {
            count.look(Duration::from_secs(second), 10, second * 5).taken
        };
        assert_eq!(taken(&mut count, 0), 110);
        let until = [1, 2, 59, 60, 61, 120, 200].map(|second| taken(&mut count, second));
        // Those of before the run are free again after 60 s, and so are its own.
        assert_eq!(until, [115, 120, 405, 310, 310, 310, 410]);
        assert_eq!(count.most.taken, 410);
    }

    #[test]
    fn they_are_low_before_half_are_taken() {
        let low = |taken| Ports { all: 50, taken }.are_low();
        assert_eq!([0, 19, 20, 50].map(low), [false, false, true, true]);
    }
}
