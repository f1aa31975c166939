//! Histograms of the passes of the event loop: their time, and their events.

use std::cell::Cell;
use std::time::Duration;

/// The longest times of the buckets, in nanoseconds.
const TIMES: [u64; 10] = [
    10_000,
    30_000,
    100_000,
    300_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
    1_000_000_000,
];
/// The most events of the buckets.
const EVENTS: [u64; 7] = [0, 1, 4, 16, 64, 256, 1_024];

/// Two histograms, which one thread writes and reads.
#[derive(Debug)]
pub(crate) struct Passes {
    times: Histogram,
    events: Histogram,
}

impl Default for Passes {
    fn default() -> Self {
        Passes { times: Histogram::new(&TIMES), events: Histogram::new(&EVENTS) }
    }
}

impl Passes {
    /// Counts a pass.
    pub(crate) fn record(&self, time: Duration, events: usize) {
        self.times.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        self.events.record(events as u64);
    }

    /// The times in seconds.
    #[cfg(feature = "daemon")]
    pub(super) fn seconds(&self) -> Distribution {
        self.times.distribution(1e9)
    }

    /// The numbers of events.
    #[cfg(feature = "daemon")]
    pub(super) fn events(&self) -> Distribution {
        self.events.distribution(1.0)
    }
}

#[derive(Debug)]
struct Histogram {
    bounds: &'static [u64],
    /// The number of values up to each bound and beyond the one before, and of those beyond all.
    counts: Box<[Cell<u64>]>,
    sum: Cell<u64>,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        let counts = vec![Cell::new(0); bounds.len() + 1].into_boxed_slice();
        Histogram { bounds, counts, sum: Cell::new(0) }
    }

    fn record(&self, value: u64) {
        let count = &self.counts[self.bounds.partition_point(|&bound| bound < value)];
        count.set(count.get() + 1);
        self.sum.set(self.sum.get().wrapping_add(value));
    }

    #[cfg(feature = "daemon")]
    fn distribution(&self, unit: f64) -> Distribution {
        let bounds = self.bounds.iter().map(|&bound| bound as f64 / unit);
        let counts = self.counts.iter().map(Cell::get);
        Distribution {
            buckets: bounds.chain([f64::INFINITY]).zip(counts.clone()).collect(),
            count: counts.sum(),
            sum: self.sum.get() as f64 / unit,
        }
    }
}

/// A histogram at one time.
#[derive(Debug, Clone, PartialEq)]
#[cfg(feature = "daemon")]
pub(super) struct Distribution {
    /// The upper bound of each bucket, which belongs to it, and the number of values in this bucket
    /// alone. The last bound is infinity.
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) count: u64,
    pub(super) sum: f64,
}

#[cfg(all(test, feature = "daemon"))]
mod tests {
    use super::*;

    #[test]
    fn passes_are_counted_up_to_their_bound() {
        let passes = Passes::default();
        for (micros, events) in [(10, 1), (11, 0), (2_000_000, 1_025), (1_000_000, 1_024)] {
            passes.record(Duration::from_micros(micros), events);
        }
        let filled = |of: Distribution| {
            let filled = of.buckets.into_iter().filter(|(_, count)| *count > 0);
            (filled.collect::<Vec<_>>(), of.count, of.sum)
        };
        let seconds = filled(passes.seconds());
        let buckets = vec![(10e-6, 1), (30e-6, 1), (1.0, 1), (f64::INFINITY, 1)];
        assert_eq!((seconds.0, seconds.1), (buckets, 4));
        assert!((seconds.2 - 3.000_021).abs() < 1e-9, "{}", seconds.2);
        let buckets = vec![(0.0, 1), (1.0, 1), (1_024.0, 1), (f64::INFINITY, 1)];
        assert_eq!(filled(passes.events()), (buckets, 4, 2_050.0));
    }
}
