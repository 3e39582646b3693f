//! Sizes with a unit, as they are written in the configuration: `64KiB`, `16MiB`.
//!
//! For a field of any unsigned type: `#[serde(with = "crate::config::size")]` and `#[schemars(with = "String")]`; for an
//! `Option`, `size::optional` and `Option<String>`.

use serde::{Deserializer, Serializer};

use super::text::{self, Expected};
use crate::values;

const EXPECTED: Expected = Expected { kind: "size", example: "64KiB, 1MiB or 4096B" };
const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

pub(crate) fn serialize<T, S>(size: &T, to: S) -> Result<S::Ok, S::Error>
where
    T: Copy + TryInto<u64>,
    S: Serializer,
{
    to.serialize_str(&written((*size).try_into().unwrap_or(u64::MAX)))
}

pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: TryFrom<u64>,
    D: Deserializer<'de>,
{
    text::read(from, EXPECTED, |text| {
        values::body_size(text)
            .and_then(|size| size.try_into().map_err(|_| "is too large for this machine".to_owned()))
    })
}

/// Returns a size as it is written: in the largest unit that divides it.
pub(crate) fn written(size: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| size >= *unit && size.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{size}B"), |(name, unit)| format!("{}{name}", size / unit))
}

/// The same for an `Option`.
pub(crate) mod optional {
    use serde::{Deserializer, Serializer};

    pub(crate) fn serialize<T, S>(size: &Option<T>, to: S) -> Result<S::Ok, S::Error>
    where
        T: Copy + TryInto<u64>,
        S: Serializer,
    {
        match size {
            Some(size) => super::serialize(size, to),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: TryFrom<u64>,
        D: Deserializer<'de>,
    {
        super::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_size_is_written_in_the_largest_unit_that_divides_it() {
        for (size, expected) in
            [(0, "0B"), (1, "1B"), (1024, "1KiB"), (1536, "1536B"), (16 << 20, "16MiB"), (3 << 40, "3TiB")]
        {
            assert_eq!(super::written(size), expected);
        }
    }
}
