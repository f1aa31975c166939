//! Programs read and write times as nanoseconds: for `#[serde(with = ...)]`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units;

/// A time, or one that may be missing.
pub(super) fn serialize<S: Serializer>(
    time: &(impl Copy + Into<Option<Duration>>),
    to: S,
) -> Result<S::Ok, S::Error> {
    (*time).into().map(units::nanoseconds).serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_nanos)
}

/// A time that may be missing.
pub(super) mod option {
    pub(in crate::client) use super::serialize;
    use super::{Deserialize, Deserializer, Duration};

    pub(in crate::client) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_nanos))
    }
}
