//! Busy polling: whether to poll again before sleeping. Pure: the caller says what happened.
//!
//! To sleep and be woken costs several times what an echo costs. When the next event is microseconds
//! away, polling again is cheaper for both sides; when it is not, polling wastes CPU. So the loop polls
//! only while polling has found events lately, as a hypervisor does before it halts a virtual CPU.

use std::time::Duration;

/// The policy: how long to poll before the next sleep.
#[derive(Debug, Clone)]
pub(crate) struct BusyPoll {
    /// The longest time to poll; zero switches polling off.
    cap: Duration,
    state: State,
    /// The number of promising waits before the next try, after the last tries failed.
    patience: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Polls before each sleep; `misses` of the last polls in a row found nothing.
    Polling { misses: u32 },
    /// Sleeps at once, until `wanted` more waits have been short enough to try polling again.
    Sleeping { wanted: u32 },
}

/// The outcome of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Events were there already, without any polling: a sleep would have returned at once. When
    /// client and server share a CPU, this is all that polling ever finds.
    AtOnce,
    /// Polling found events in time: no sleep was needed.
    Win,
    /// Polling found nothing in time, and the loop slept after all.
    Loss,
    /// The loop slept at once.
    Slept,
}

impl BusyPoll {
    /// Misses in a row that end polling.
    const MISSES: u32 = 2;
    /// A sleep this many caps long would have been no longer than the cap without its own cost.
    const PROMISING: u32 = 4;
    /// The largest [`patience`](BusyPoll::patience).
    const MAX_PATIENCE: u32 = 1 << 12;

    /// A policy that polls for at most `cap` before it sleeps.
    pub(crate) fn new(cap: Duration) -> Self {
        BusyPoll { cap, state: State::Sleeping { wanted: 1 }, patience: 1 }
    }

    /// How long to poll before the next sleep.
    pub(crate) fn window(&self) -> Duration {
        match self.state {
            State::Polling { .. } => self.cap,
            State::Sleeping { .. } => Duration::ZERO,
        }
    }

    /// Learns from a wait: its outcome, and its time in all.
    pub(crate) fn learn(&mut self, wait: Wait, waited: Duration) {
        match (self.state, wait) {
            (_, Wait::AtOnce) => {}
            (State::Polling { .. }, Wait::Win) => {
                self.state = State::Polling { misses: 0 };
                // Misses are forgotten slowly: when wins and losses alternate, the losses would cost
                // more than the wins save.
                self.patience = (self.patience - self.patience / 64).saturating_sub(1).max(1);
            }
            (State::Polling { misses }, _) if misses + 1 < Self::MISSES => {
                self.state = State::Polling { misses: misses + 1 };
            }
            (State::Polling { .. }, _) => {
                self.state = State::Sleeping { wanted: self.patience };
                self.patience = (self.patience * 2).min(Self::MAX_PATIENCE);
            }
            (State::Sleeping { wanted }, _) if waited <= self.cap * Self::PROMISING => {
                self.state = match wanted.saturating_sub(1) {
                    0 => State::Polling { misses: 0 },
                    wanted => State::Sleeping { wanted },
                };
            }
            (State::Sleeping { .. }, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: Duration = Duration::from_micros(50);
    /// What a sleep adds to the time until an event is seen.
    const WAKE: Duration = Duration::from_micros(40);

    /// Runs the policy over the gaps between events; the time it polled, and its wins.
    fn run(policy: &mut BusyPoll, gaps: impl IntoIterator<Item = Duration>) -> (Duration, u32) {
        let (mut polled, mut wins) = (Duration::ZERO, 0);
        for gap in gaps {
            let window = policy.window();
            if gap.is_zero() {
                policy.learn(Wait::AtOnce, gap);
            } else if gap <= window {
                polled += gap;
                wins += 1;
                policy.learn(Wait::Win, gap);
            } else {
                polled += window;
                let wait = if window.is_zero() { Wait::Slept } else { Wait::Loss };
                policy.learn(wait, gap + WAKE);
            }
        }
        (polled, wins)
    }

    fn repeat(gap_us: u64, times: usize) -> impl Iterator<Item = Duration> {
        std::iter::repeat_n(Duration::from_micros(gap_us), times)
    }

    #[test]
    fn short_gaps_are_polled_through() {
        let (_, wins) = run(&mut BusyPoll::new(CAP), repeat(20, 1000));
        assert_eq!(wins, 999);
    }

    #[test]
    fn a_trickle_is_slept_through() {
        let (polled, _) = run(&mut BusyPoll::new(CAP), repeat(10_000, 1000));
        assert_eq!(polled, Duration::ZERO);
    }

    #[test]
    fn a_quiet_server_sleeps_after_two_misses() {
        let mut policy = BusyPoll::new(CAP);
        run(&mut policy, repeat(20, 100));
        let (polled, _) = run(&mut policy, repeat(1_000_000, 100));
        assert_eq!(polled, CAP * 2);
    }

    #[test]
    fn gaps_just_too_long_cost_little() {
        // 150 µs apart: each looks promising, none is caught. Polled time stays under 0.1 %.
        let gaps = 100_000;
        let (polled, wins) = run(&mut BusyPoll::new(CAP), repeat(150, gaps));
        assert_eq!(wins, 0);
        assert!(polled < Duration::from_micros(150) * gaps as u32 / 1_000, "{polled:?}");
    }

    #[test]
    fn a_win_among_losses_does_not_pay_for_them() {
        // The losses between two wins would cost more than these save. Polled time stays under 1 %.
        let rounds = 10_000;
        let round = || repeat(20, 1).chain(repeat(150, 2));
        let (polled, _) = run(&mut BusyPoll::new(CAP), (0..rounds).flat_map(|_| round()));
        assert!(polled < round().sum::<Duration>() * rounds / 100, "{polled:?}");
    }

    #[test]
    fn events_that_are_there_at_once_do_not_keep_it_polling() {
        // A client on the same CPU runs, and sends, only while the server sleeps.
        let gaps = 100_000;
        let shared = (0..gaps).map(|n| Duration::from_micros(if n % 8 == 0 { 100 } else { 0 }));
        let (polled, _) = run(&mut BusyPoll::new(CAP), shared);
        assert!(polled < Duration::from_micros(100) * gaps / 8 / 100, "{polled:?}");
    }

    #[test]
    fn it_comes_back_when_it_pays_again() {
        let mut policy = BusyPoll::new(CAP);
        run(&mut policy, repeat(150, 100_000));
        let (_, wins) = run(&mut policy, repeat(20, 2 * BusyPoll::MAX_PATIENCE as usize));
        assert!(wins >= BusyPoll::MAX_PATIENCE);
    }

    #[test]
    fn a_cap_of_zero_never_polls() {
        let (polled, wins) = run(&mut BusyPoll::new(Duration::ZERO), repeat(1, 1000));
        assert_eq!((polled, wins), (Duration::ZERO, 0));
    }
}
