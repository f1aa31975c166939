//! When messages are due: in the open loop at a rate, whatever became of the ones before; in the
//! closed loop at once.

/// Messages that may be begun from a start on: one in each period, or all at once. What is due is
/// computed, never kept. Times are nanoseconds of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// From one message of this schedule to the next; 0 in the closed loop.
    period: f64,
    /// From the start to its first.
    offset: f64,
    start: u64,
    /// Messages that were taken to be sent.
    taken: u64,
    /// Messages in all.
    count: u64,
    /// Nothing is due after this.
    end: u64,
}

impl Schedule {
    /// The part of `thread`, which is one of `threads`, in `rate` messages a second: they take
    /// turns. Without a rate it is the closed loop's. It begins with [`Schedule::begin`].
    pub(super) fn new(rate: Option<f64>, thread: u32, threads: u32) -> Self {
        let period = rate.map_or(0.0, |rate| 1e9 / rate);
        let (period, offset) = (period * f64::from(threads), period * f64::from(thread));
        Self { period, offset, start: 0, taken: 0, count: 0, end: u64::MAX }
    }

    fn is_closed_loop(&self) -> bool {
        self.period == 0.0
    }

    /// The first of all messages is due at `start`, and `count` are of this schedule.
    pub(super) fn begin(&mut self, start: u64, count: u64) {
        *self = Self { start, taken: 0, count, end: u64::MAX, ..*self };
    }

    /// Nothing is due after `end`; in the closed loop, nothing more at all.
    pub(super) fn end(&mut self, end: u64) {
        match self.is_closed_loop() {
            true => self.count = self.taken,
            false => self.end = end,
        }
    }

    /// Whether no more messages will be due.
    pub(super) fn is_over(&self) -> bool {
        self.next().is_none()
    }

    /// When the next message is due; `None` when no more will be.
    pub(super) fn next(&self) -> Option<u64> {
        let at = self.start.saturating_add((self.offset + self.taken as f64 * self.period) as u64);
        (self.taken < self.count && at <= self.end).then_some(at)
    }

    /// When the next message was due, if that is by `now`; in the closed loop now.
    pub(super) fn due(&self, now: u64) -> Option<u64> {
        let at = self.next().filter(|&at| at <= now)?;
        Some(if self.is_closed_loop() { now } else { at })
    }

    /// Takes the next message.
    pub(super) fn take(&mut self) {
        self.taken += 1;
    }

    /// How many messages were due by `now` and are not taken, in the open loop.
    pub(super) fn backlog(&self, now: u64) -> u64 {
        let elapsed = now.min(self.end).saturating_sub(self.start) as f64 - self.offset;
        let due =
            if elapsed < 0.0 { 0 } else { ((elapsed / self.period) as u64).saturating_add(1) };
        due.min(self.count).saturating_sub(self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(schedule: &mut Schedule, now: u64) -> Vec<u64> {
        let due = || schedule.due(now).inspect(|_| schedule.take());
        std::iter::from_fn(due).collect()
    }

    #[test]
    fn messages_are_due_at_the_rate_and_not_before() {
        let mut schedule = Schedule::new(Some(4.0), 0, 1);
        schedule.begin(1_000, u64::MAX);
        assert_eq!((schedule.due(999), schedule.next()), (None, Some(1_000)));
        assert_eq!(schedule.backlog(500_001_000), 3);
        let due = taken(&mut schedule, 1_000_001_000);
        assert_eq!(due, [1_000, 250_001_000, 500_001_000, 750_001_000, 1_000_001_000]);
        assert_eq!(schedule.backlog(1_000_001_000), 0);
        assert_eq!(schedule.next(), Some(1_250_001_000));
    }

    #[test]
    fn a_schedule_ends_by_number_or_by_time() {
        let mut schedule = Schedule::new(Some(1000.0), 0, 1);
        schedule.begin(0, 3);
        assert_eq!(schedule.backlog(u64::MAX), 3);
        assert_eq!(taken(&mut schedule, u64::MAX), [0, 1_000_000, 2_000_000]);
        assert_eq!(schedule.next(), None);
        schedule.begin(0, u64::MAX);
        schedule.end(1_500_000);
        assert_eq!(schedule.backlog(u64::MAX), 2);
        assert_eq!(taken(&mut schedule, u64::MAX), [0, 1_000_000]);
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn the_closed_loop_goes_on_at_once_until_it_ends() {
        let mut schedule = Schedule::new(None, 1, 3);
        assert!(schedule.is_over());
        schedule.begin(1_000, 2);
        assert_eq!(schedule.due(1_000), Some(1_000));
        schedule.take();
        assert_eq!((schedule.due(1_001), schedule.is_over()), (Some(1_001), false));
        schedule.end(1_001);
        assert_eq!((schedule.due(1_001), schedule.is_over()), (None, true));
    }

    #[test]
    fn threads_take_turns() {
        let mut all = Vec::new();
        for thread in 0..3 {
            let mut schedule = Schedule::new(Some(1000.0), thread, 3);
            schedule.begin(500, 2);
            assert_eq!(schedule.backlog(1_500_500), if thread < 2 { 1 } else { 0 });
            all.extend(taken(&mut schedule, u64::MAX));
        }
        all.sort_unstable();
        assert_eq!(all, [500, 1_000_500, 2_000_500, 3_000_500, 4_000_500, 5_000_500]);
    }

    #[test]
    fn a_rate_beyond_all_measure_is_counted_not_kept() {
        let mut schedule = Schedule::new(Some(1e18), 0, 1);
        schedule.begin(0, u64::MAX);
        schedule.end(1_000);
        assert_eq!(schedule.due(0), Some(0));
        let backlog = schedule.backlog(5_000);
        assert!(backlog.abs_diff(1_000_000_000_000) < 10, "{backlog}");
        let mut schedule = Schedule::new(Some(1e300), 0, 1);
        schedule.begin(0, u64::MAX);
        assert_eq!(schedule.backlog(5_000), u64::MAX);
    }
}
