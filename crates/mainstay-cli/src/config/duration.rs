//! Durations with a unit, as they are written in the configuration: `25s`, `2m`, `1h 30m`.
//!
//! For a field: `#[serde(with = "crate::config::duration")]` and `#[schemars(with = "String")]`; for an `Option`,
//! `duration::optional` and `Option<String>`.

use std::time::Duration;

use serde::{Deserializer, Serializer};

use super::text::{self, Expected};
use crate::values;

const EXPECTED: Expected = Expected { kind: "duration", example: "25s, 2m or 500ms" };

pub(crate) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&written(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    text::read(from, EXPECTED, values::duration)
}

/// Returns a duration as it is written.
pub(crate) fn written(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// The same for an `Option`.
pub(crate) mod optional {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, to),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        super::deserialize(from).map(Some)
    }
}
