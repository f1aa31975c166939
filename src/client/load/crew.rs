//! The threads of one run: where they wait for each other, and what they have counted together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::config::Config;
use super::counts::Counts;
use super::report::Interval;
use crate::client::Cancel;

/// Whoever waits for the others looks this often whether the run was ended.
const LOOK: Duration = Duration::from_millis(20);

/// What the threads of a run share.
pub(super) struct Crew<'a> {
    /// What the whole run is asked to do.
    pub(super) config: &'a Config,
    pub(super) epoch: Instant,
    cancel: &'a Cancel,
    failed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    /// What each thread has done so far.
    progress: Box<[Done]>,
}

/// What a thread has done so far.
#[derive(Debug, Default)]
struct Done {
    opened: AtomicU32,
    messages: AtomicU64,
    errors: AtomicU64,
}

struct State {
    /// Threads that still come to meetings.
    members: usize,
    /// Those that wait for the others.
    waiting: usize,
    /// How many meetings there were, and when the last one ended.
    meetings: u64,
    met_at: u64,
    /// Intervals that each thread has counted to their ends.
    ended: Vec<u64>,
    /// Intervals that are over.
    told: u64,
    /// The counts of those that are not, the next to be over first.
    pending: VecDeque<Counts>,
    /// Of all that are over.
    total: Counts,
}

impl<'a> Crew<'a> {
    pub(super) fn new(config: &'a Config, cancel: &'a Cancel, threads: usize) -> Self {
        Self {
            config,
            epoch: Instant::now(),
            cancel,
            failed: AtomicBool::new(false),
            state: Mutex::new(State {
                members: threads,
                waiting: 0,
                meetings: 0,
                met_at: 0,
                ended: vec![0; threads],
                told: 0,
                pending: VecDeque::new(),
                total: Counts::new(),
            }),
            changed: Condvar::new(),
            progress: (0..threads).map(|_| Done::default()).collect(),
        }
    }

    /// Nanoseconds since the run began.
    pub(super) fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Whether the run is to end early: it was cancelled, or a thread cannot go on.
    pub(super) fn is_over(&self) -> bool {
        self.cancel.is_cancelled() || self.failed.load(Ordering::Relaxed)
    }

    /// A thread cannot go on: nobody else does.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Waits until every member is here, or the run is over. The same moment for all of them.
    pub(super) fn meet(&self) -> u64 {
        let mut state = self.lock();
        let meeting = state.meetings;
        state.waiting += 1;
        self.end_meeting(&mut state);
        while state.meetings == meeting && !self.is_over() {
            state = self.wait(state);
        }
        if state.meetings == meeting {
            return self.now();
        }
        state.met_at
    }

    /// A member comes to no more meetings.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.members -= 1;
        self.end_meeting(&mut state);
    }

    /// Ends the meeting when everyone is there.
    fn end_meeting(&self, state: &mut State) {
        if state.waiting >= state.members && state.waiting > 0 {
            state.waiting = 0;
            state.meetings += 1;
            state.met_at = self.now();
            self.changed.notify_all();
        }
    }

    /// Adds what a thread has counted in its interval `index`, and empties its counts.
    pub(super) fn end_interval(&self, thread: usize, index: u64, counts: &mut Counts, last: bool) {
        let mut state = self.lock();
        let place = (index - state.told) as usize;
        while state.pending.len() <= place {
            state.pending.push_back(Counts::new());
        }
        state.pending[place].add(counts);
        state.ended[thread] = if last { u64::MAX } else { index + 1 };
        (counts.messages, counts.errors, counts.unsent) = (0, 0, 0);
        counts.times.clear();
    }

    /// The next interval that is over for all threads, and all since the beginning. `elapsed` is
    /// how long the measured part has lasted, which ends the last interval.
    pub(super) fn next_interval(&self, elapsed: Duration) -> Option<(Interval, Interval)> {
        let mut state = self.lock();
        let ended = state.ended.iter().copied().min().unwrap_or(u64::MAX);
        if ended <= state.told {
            return None;
        }
        let counts = state.pending.pop_front()?;
        state.total.add(&counts);
        let every = self.config.every;
        let at = |index: u64| every.saturating_mul(u32::try_from(index).unwrap_or(u32::MAX));
        let from = at(state.told);
        state.told += 1;
        let to =
            if state.pending.is_empty() && ended == u64::MAX { elapsed } else { at(state.told) };
        let size = self.config.size;
        let total = Interval::of(Duration::ZERO, to, &state.total, size);
        Some((Interval::of(from, to, &counts, size), total))
    }

    /// All that was counted.
    pub(super) fn into_total(self) -> Counts {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut total = state.total;
        state.pending.iter().for_each(|counts| total.add(counts));
        total
    }

    /// Tells what a thread has done so far.
    pub(super) fn tell(&self, thread: usize, opened: u32, messages: u64, errors: u64) {
        let done = &self.progress[thread];
        done.opened.store(opened, Ordering::Relaxed);
        done.messages.store(messages, Ordering::Relaxed);
        done.errors.store(errors, Ordering::Relaxed);
    }

    /// What all threads have done so far: connections opened, messages, faults.
    pub(super) fn done(&self) -> (u32, u64, u64) {
        let all = self.progress.iter();
        all.fold((0, 0, 0), |(opened, messages, errors), done| {
            (
                opened + done.opened.load(Ordering::Relaxed),
                messages + done.messages.load(Ordering::Relaxed),
                errors + done.errors.load(Ordering::Relaxed),
            )
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::client::target::Transport;

    fn config() -> Config {
        Config::new(Transport::Tcp, "127.0.0.1:7".parse().unwrap())
    }

    #[test]
    fn everyone_leaves_a_meeting_at_the_same_moment() {
        let (config, cancel) = (config(), Cancel::default());
        let crew = Crew::new(&config, &cancel, 3);
        let met = thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(|| crew.meet()));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(met[0] == met[1] && met[1] == met[2], "{met:?}");
    }

    #[test]
    fn nobody_waits_for_those_who_left_or_when_the_run_is_over() {
        let (config, cancel) = (config(), Cancel::default());
        let crew = Crew::new(&config, &cancel, 3);
        thread::scope(|scope| {
            scope.spawn(|| crew.meet());
            scope.spawn(|| crew.meet());
            crew.leave();
        });
        crew.fail();
        crew.meet();
    }

    #[test]
    fn an_interval_is_over_when_it_is_for_all() {
        let (mut config, cancel) = (config(), Cancel::default());
        config.every = Duration::from_secs(2);
        let crew = Crew::new(&config, &cancel, 2);
        let counts = |messages| {
            let mut counts = Counts { messages, errors: 1, ..Counts::new() };
            (0..messages).for_each(|_| counts.times.record(1_000));
            counts
        };
        let elapsed = Duration::from_secs(3);
        crew.end_interval(0, 0, &mut counts(1), false);
        crew.end_interval(0, 1, &mut counts(2), true);
        assert!(crew.next_interval(elapsed).is_none());
        let mut ours = counts(4);
        crew.end_interval(1, 0, &mut ours, false);
        assert_eq!((ours.messages, ours.times.count(), ours.errors), (0, 0, 0));
        let (first, total) = crew.next_interval(elapsed).unwrap();
        assert_eq!((first.from, first.to), (Duration::ZERO, Duration::from_secs(2)));
        assert_eq!((first.messages, first.errors, total.messages), (5, 2, 5));
        assert!(crew.next_interval(elapsed).is_none());
        crew.end_interval(1, 1, &mut counts(8), true);
        let (second, total) = crew.next_interval(elapsed).unwrap();
        assert_eq!((second.from, second.to), (Duration::from_secs(2), elapsed));
        assert_eq!((second.messages, second.rate, total.messages), (10, 10.0, 15));
        assert!(crew.next_interval(elapsed).is_none());
        assert_eq!(crew.into_total().times.count(), 15);
    }
}
