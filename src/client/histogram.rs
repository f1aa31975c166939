//! Counts times, and tells their percentiles.

use std::time::Duration;

use serde::Serializer;

/// Longer times, which only a stopped process can see, count as this.
const LONGEST: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// Times of 1 ns to two days, exact to 0.1 %.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    nanoseconds: hdrhistogram::Histogram<u64>,
}

impl Histogram {
    pub(super) fn new() -> Self {
        let nanoseconds = hdrhistogram::Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
            .expect("the bounds are apart and the precision is under 6 digits");
        Self { nanoseconds }
    }

    /// Counts a time in nanoseconds.
    #[inline]
    pub(super) fn record(&mut self, nanoseconds: u64) {
        self.nanoseconds.saturating_record(nanoseconds.max(1));
    }

    /// How many times were counted.
    pub(super) fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    pub(super) fn min(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.min())
    }

    pub(super) fn mean(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.mean() as u64)
    }

    /// The time that the given share of all, 0 to 1, did not exceed: 0.99 for p99.
    pub(super) fn percentile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.nanoseconds.value_at_quantile(share))
    }
}

/// Programs read times as nanoseconds.
pub(super) fn nanoseconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
