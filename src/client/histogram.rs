//! Counts times, and tells their percentiles.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::{Deserializer as Decoder, Serializer as Encoder};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

pub(super) use super::nanoseconds::serialize as nanoseconds;

/// Longer times, which only a stopped process can see, count as this.
const LONGEST: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// Times of 1 ns to two days, exact to 0.1 %.
#[derive(Clone, PartialEq)]
pub(super) struct Histogram {
    nanoseconds: hdrhistogram::Histogram<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        let nanoseconds = hdrhistogram::Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3)
            .expect("the bounds are apart and the precision is under 6 digits");
        Self { nanoseconds }
    }
}

/// In short: the counts of all buckets would fill pages.
impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, min, max) = (self.count(), self.min(), self.percentile(1.0));
        write!(f, "Histogram {{ count: {count}, min: {min:?}, max: {max:?} }}")
    }
}

impl Histogram {
    /// Counts a time in nanoseconds.
    #[inline]
    pub(super) fn record(&mut self, nanoseconds: u64) {
        self.nanoseconds.saturating_record(nanoseconds.max(1));
    }

    /// Counts all that `other` has counted.
    pub(super) fn add(&mut self, other: &Self) {
        self.nanoseconds.add(&other.nanoseconds).expect("every histogram has these bounds");
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.nanoseconds.reset();
    }

    /// How many times were counted.
    pub(super) fn count(&self) -> u64 {
        self.nanoseconds.len()
    }

    pub(super) fn min(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.min())
    }

    pub(super) fn mean(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.mean().round() as u64)
    }

    /// The time that the given share of all, 0 to 1, did not exceed: 0.99 for p99.
    pub(super) fn percentile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.nanoseconds.value_at_quantile(share))
    }
}

/// As HdrHistogram's V2 format, compressed and in base64, which its tools in all languages read.
impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.nanoseconds, &mut bytes)
            .map_err(ser::Error::custom)?;
        serializer.serialize_str(&STANDARD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text).map_err(de::Error::custom)?;
        let found: hdrhistogram::Histogram<u64> =
            Decoder::new().deserialize(&mut &bytes[..]).map_err(|error| {
                de::Error::custom(format!("the histogram cannot be read: {error:?}"))
            })?;
        let mut histogram = Self::default();
        histogram
            .nanoseconds
            .add(&found)
            .map_err(|_| de::Error::custom("the histogram has times over two days"))?;
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_its_text() {
        let mut histogram = Histogram::default();
        for time in [1, 1_000, 123_456, 123_456, 9_876_543_210, u64::MAX] {
            histogram.record(time);
        }
        let text = serde_json::to_string(&histogram).unwrap();
        assert!(text.starts_with("\"HIST") && text.len() < 200, "{text}");
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        assert!(serde_json::from_str::<Histogram>("\"HISTFAAA\"").is_err());
        assert!(serde_json::from_str::<Histogram>("\"?\"").is_err());
    }

    #[test]
    fn what_is_added_is_as_if_it_had_been_recorded() {
        let (mut all, mut even, mut odd) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for time in 1..10_000 {
            all.record(time * 7_919);
            if time % 2 == 0 { &mut even } else { &mut odd }.record(time * 7_919);
        }
        even.add(&odd);
        assert_eq!(even, all);
    }
}
