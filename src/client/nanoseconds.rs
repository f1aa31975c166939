//! Programs read and write times as nanoseconds: for `#[serde(with = ...)]`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

use crate::units;

pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(units::nanoseconds(*time))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    u64::deserialize(from).map(Duration::from_nanos)
}

/// A time that may be missing.
pub(super) mod option {
    use super::{Deserialize, Deserializer, Duration, Serializer, serialize as some};

    pub(in crate::client) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => some(time, to),
            None => to.serialize_none(),
        }
    }

    pub(in crate::client) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_nanos))
    }
}
