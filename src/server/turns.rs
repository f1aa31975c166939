//! How long the turns of the event loop take, and how many events they have.

use std::cell::Cell;
use std::time::Duration;

/// The longest turns of each bucket.
const TIMES: [Duration; 10] = [
    Duration::from_micros(10),
    Duration::from_micros(30),
    Duration::from_micros(100),
    Duration::from_micros(300),
    Duration::from_millis(1),
    Duration::from_millis(3),
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(100),
    Duration::from_secs(1),
];
/// The most events of each bucket.
const EVENTS: [u64; 7] = [0, 1, 4, 16, 64, 256, 1_024];

/// Two histograms, which one thread writes and reads.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// In nanoseconds.
    times: Histogram<{ TIMES.len() }>,
    events: Histogram<{ EVENTS.len() }>,
}

/// Values by size. One beyond the last bound counts nowhere but in the sum and the count.
#[derive(Debug)]
struct Histogram<const BUCKETS: usize> {
    buckets: [Cell<u64>; BUCKETS],
    count: Cell<u64>,
    sum: Cell<u64>,
}

/// A histogram at one time.
#[derive(Debug, Clone, PartialEq)]
#[cfg(feature = "daemon")]
pub(super) struct Distribution {
    /// The upper bound of each bucket, itself included, and how many values are in that bucket alone.
    /// The last one is for what is larger than all bounds.
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) count: u64,
    pub(super) sum: f64,
}

impl<const BUCKETS: usize> Default for Histogram<BUCKETS> {
    fn default() -> Self {
        let buckets = [const { Cell::new(0) }; BUCKETS];
        Histogram { buckets, count: Cell::new(0), sum: Cell::new(0) }
    }
}

impl<const BUCKETS: usize> Histogram<BUCKETS> {
    /// Counts a value that belongs into this bucket.
    fn count(&self, bucket: usize, value: u64) {
        let add = |to: &Cell<u64>, more| to.set(to.get().wrapping_add(more));
        if let Some(bucket) = self.buckets.get(bucket) {
            add(bucket, 1);
        }
        add(&self.count, 1);
        add(&self.sum, value);
    }

    #[cfg(feature = "daemon")]
    fn distribution(&self, bounds: impl Iterator<Item = f64>, unit: f64) -> Distribution {
        let counts = self.buckets.iter().map(Cell::get);
        let mut buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let within: u64 = buckets.iter().map(|(_, count)| count).sum();
        buckets.push((f64::INFINITY, self.count.get() - within));
        Distribution { buckets, count: self.count.get(), sum: self.sum.get() as f64 * unit }
    }
}

impl Turns {
    /// Counts a turn that took this time and had so many events.
    pub(super) fn count(&self, time: Duration, events: usize) {
        let bucket = TIMES.iter().take_while(|&&bound| bound < time).count();
        self.times.count(bucket, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let events = events as u64;
        self.events.count(EVENTS.iter().take_while(|&&bound| bound < events).count(), events);
    }

    /// How long they took, in seconds.
    #[cfg(feature = "daemon")]
    pub(super) fn seconds(&self) -> Distribution {
        self.times.distribution(TIMES.iter().map(Duration::as_secs_f64), 1e-9)
    }

    /// How many events they had.
    #[cfg(feature = "daemon")]
    pub(super) fn events(&self) -> Distribution {
        self.events.distribution(EVENTS.iter().map(|&bound| bound as f64), 1.0)
    }
}

#[cfg(all(test, feature = "daemon"))]
mod tests {
    use super::*;

    #[test]
    fn turns_are_counted_up_to_their_bound() {
        let turns = Turns::default();
        for (micros, events) in [(10, 1), (11, 0), (2_000_000, 1_025), (1_000_000, 1_024)] {
            turns.count(Duration::from_micros(micros), events);
        }
        let filled = |of: Distribution| {
            let filled = of.buckets.into_iter().filter(|(_, count)| *count > 0);
            (filled.collect::<Vec<_>>(), of.count, of.sum)
        };
        let seconds = filled(turns.seconds());
        let buckets = vec![(10e-6, 1), (30e-6, 1), (1.0, 1), (f64::INFINITY, 1)];
        assert_eq!((seconds.0, seconds.1), (buckets, 4));
        assert!((seconds.2 - 3.000_021).abs() < 1e-9, "{}", seconds.2);
        let buckets = vec![(0.0, 1), (1.0, 1), (1_024.0, 1), (f64::INFINITY, 1)];
        assert_eq!(filled(turns.events()), (buckets, 4, 2_050.0));
    }
}
