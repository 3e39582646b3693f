//! Settings that are one string with a syntax of its own: an address, a header, a rule.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that is written as a string.
pub(crate) trait Written: Sized {
    /// What it is and an example, for the error about a value of another type.
    const EXPECTED: Expected;

    /// Parses the string.
    ///
    /// # Errors
    /// One line: the bound or the syntax, and what to write.
    fn parse(text: &str) -> Result<Self, String>;
}

/// What a setting expects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected {
    pub(crate) kind: &'static str,
    pub(crate) example: &'static str,
}

/// A parsed setting, with its text. Two are equal if their texts are.
#[derive(Clone)]
pub(crate) struct Text<T> {
    text: Box<str>,
    value: T,
}

impl<T: Written> Text<T> {
    /// Parses a text.
    ///
    /// # Errors
    /// As [`Written::parse`].
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        Ok(Self { value: T::parse(text)?, text: text.into() })
    }
}

impl<T> Text<T> {
    /// Pairs a value with its text, for a default.
    pub(crate) fn of(text: &str, value: T) -> Self {
        Self { text: text.into(), value }
    }

    /// Returns the text as it was written.
    pub(crate) fn as_written(&self) -> &str {
        &self.text
    }
}

impl<T> Deref for Text<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> PartialEq for Text<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Hides the text: it may be a secret.
impl<T> fmt::Debug for Text<T> {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("Text(..)")
    }
}

impl<T> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text)
    }
}

impl<'de, T: Written> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read(from, T::EXPECTED, Self::new)
    }
}

impl<T> JsonSchema for Text<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// Reads a string and parses it. Any other type is an error that says what to write.
pub(super) fn read<'de, T, D: Deserializer<'de>>(
    from: D,
    expected: Expected,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Reader<F, T>(Expected, F, PhantomData<T>);

    impl<T, F: Fn(&str) -> Result<T, String>> Visitor<'_> for Reader<F, T> {
        type Value = T;

        fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Expected { kind, example } = self.0;
            write!(to, "a {kind} in quotes, for example {example}")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            (self.1)(text).map_err(E::custom)
        }
    }

    from.deserialize_str(Reader(expected, parse, PhantomData))
}
