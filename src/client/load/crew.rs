//! The threads of one run: where they wait for each other, and what they have counted together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::config::{Config, Mode};
use super::faults::Errors;
use super::ports::{PortCount, Ports};
use super::report::{Counts, Interval, Phase, Progress};
use super::series::Series;
use crate::client::Cancel;

/// A thread that waits for the others looks this often whether the run was ended.
const LOOK: Duration = Duration::from_millis(20);

/// What the threads of a run share.
pub(super) struct Crew<'a> {
    /// What the whole run is asked to do.
    pub(super) config: &'a Config,
    pub(super) epoch: Instant,
    pub(super) cancel: &'a Cancel,
    failed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

/// What a thread has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// Connections that it has opened.
    pub(super) opened: u32,
    /// Messages that came back.
    pub(super) messages: u64,
    /// Faults.
    pub(super) errors: u64,
}

struct State {
    /// Threads that still come to meetings.
    members: usize,
    /// Those that wait for the others.
    waiting: usize,
    /// How many meetings there were, and when the last one ended.
    meetings: u64,
    met_at: u64,
    /// What each thread has done so far.
    done: Vec<Done>,
    /// Intervals that each thread has counted to their ends.
    ended: Vec<u64>,
    /// Intervals that are over.
    reported: u64,
    /// The counts of those that are not, the next to be over first.
    pending: VecDeque<Counts>,
    /// Of all that are over.
    total: Counts,
    series: Series,
    ports: Option<PortCount>,
}

impl<'a> Crew<'a> {
    pub(super) fn new(config: &'a Config, cancel: &'a Cancel, threads: usize) -> Self {
        let ports = PortCount::new(config);
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
                done: vec![Done::default(); threads],
                ended: vec![0; threads],
                reported: 0,
                pending: VecDeque::new(),
                total: Counts::default(),
                series: Series::default(),
                ports,
            }),
            changed: Condvar::new(),
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

    /// A thread cannot go on: the run ends.
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
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
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

    /// Ends the meeting when all members are there.
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
        let place = (index - state.reported) as usize;
        while state.pending.len() <= place {
            state.pending.push_back(Counts::default());
        }
        state.pending[place].add(counts);
        state.ended[thread] = if last { u64::MAX } else { index + 1 };
        (counts.messages, counts.errors, counts.unsent) = (0, Errors::default(), 0);
        counts.times.clear();
    }

    /// The next interval that is over for all threads, and all since the beginning. `elapsed` is
    /// how long the measured part has lasted, which ends the last interval.
    fn next_interval(&self, elapsed: Duration) -> Option<(Interval, Interval)> {
        let mut state = self.lock();
        let ended = state.ended.iter().copied().min().unwrap_or(u64::MAX);
        if ended <= state.reported {
            return None;
        }
        let counts = state.pending.pop_front()?;
        state.total.add(&counts);
        let every = self.config.every;
        let at = |index: u64| every.saturating_mul(u32::try_from(index).unwrap_or(u32::MAX));
        let from = at(state.reported);
        state.reported += 1;
        let to = if state.pending.is_empty() && ended == u64::MAX {
            elapsed
        } else {
            at(state.reported)
        };
        let size = self.config.size;
        let total = Interval::of(Duration::ZERO, to, &state.total, size);
        let interval = Interval::of(from, to, &counts, size);
        state.series.push(interval);
        Some((interval, total))
    }

    /// All that was counted, and when.
    pub(super) fn into_total(self) -> (Counts, Vec<Interval>) {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut total = state.total;
        state.pending.iter().for_each(|counts| total.add(counts));
        (total, state.series.points)
    }

    /// The most local ports that were taken at one time.
    pub(super) fn ports(&self) -> Option<Ports> {
        self.lock().ports.as_ref().map(|count| count.most)
    }

    /// Notes what a thread has done so far.
    pub(super) fn note(&self, thread: usize, done: Done) {
        self.lock().done[thread] = done;
    }

    /// Reports the intervals that are over, or else the progress alone.
    /// `measured` is how long the measured part has lasted, once that is known.
    pub(super) fn report(
        &self,
        listener: &mut dyn FnMut(&Progress),
        phase: Phase,
        measured: Duration,
    ) {
        let elapsed = Duration::from_nanos(self.now());
        let mut state = self.lock();
        let done = || state.done.iter();
        let mut progress = Progress {
            phase,
            elapsed,
            opened: done().map(|one| one.opened).sum(),
            messages: done().map(|one| one.messages).sum(),
            errors: done().map(|one| one.errors).sum(),
            ports: None,
            interval: None,
            so_far: None,
        };
        let over = if self.config.mode == Mode::Churn { progress.messages } else { 0 };
        let open = progress.opened.into();
        progress.ports = state.ports.as_mut().map(|count| count.look(elapsed, open, over));
        drop(state);
        while let Some((interval, so_far)) = self.next_interval(measured) {
            (progress.interval, progress.so_far) = (Some(interval), Some(so_far));
            listener(&progress);
        }
        if progress.interval.is_none() {
            listener(&progress);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::error::Transport;

    fn config() -> Config {
        Config::new(Transport::Tcp, "127.0.0.1:7".parse().unwrap())
    }

    #[test]
    fn all_leave_a_meeting_at_the_same_moment() {
        let (config, cancel) = (config(), Cancel::default());
        let crew = Crew::new(&config, &cancel, 3);
        let met = thread::scope(|scope| {
            let threads = [(); 3].map(|()| scope.spawn(|| crew.meet()));
            threads.map(|thread| thread.join().unwrap())
        });
        assert!(met[0] == met[1] && met[1] == met[2], "{met:?}");
    }

    #[test]
    fn a_meeting_does_not_wait_for_members_that_left_or_when_the_run_is_over() {
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
            let errors = Errors { lost: 1, ..Errors::default() };
            let mut counts = Counts { messages, errors, ..Counts::default() };
            (0..messages).for_each(|_| counts.times.record(1_000));
            counts
        };
        let elapsed = Duration::from_secs(3);
        crew.end_interval(0, 0, &mut counts(1), false);
        crew.end_interval(0, 1, &mut counts(2), true);
        assert!(crew.next_interval(elapsed).is_none());
        let mut ours = counts(4);
        crew.end_interval(1, 0, &mut ours, false);
        assert_eq!((ours.messages, ours.times.count(), ours.errors.total()), (0, 0, 0));
        let (first, total) = crew.next_interval(elapsed).unwrap();
        assert_eq!((first.from, first.to), (Duration::ZERO, Duration::from_secs(2)));
        assert_eq!((first.messages, first.errors, total.messages), (5, 2, 5));
        assert!(crew.next_interval(elapsed).is_none());
        crew.end_interval(1, 1, &mut counts(8), true);
        let (second, total) = crew.next_interval(elapsed).unwrap();
        assert_eq!((second.from, second.to), (Duration::from_secs(2), elapsed));
        assert_eq!((second.messages, second.rate, total.messages), (10, 10.0, 15));
        assert!(crew.next_interval(elapsed).is_none());
        assert_eq!(crew.into_total().0.times.count(), 15);
    }
}
