//! The layers of the configuration, merged into one tree in which every value keeps its origin.
//!
//! The crates `figment` and `config` were rejected: neither keeps the line of a value (`docs/adr/0029-the-configuration-keeps-its-lines.md`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{KeyPath, Origin, Problem};

/// Settings as they were written, before they are read as a [`Config`](super::Config).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree {
    root: Value,
    origins: BTreeMap<KeyPath, Origin>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { root: Value::Object(Map::new()), origins: BTreeMap::new() }
    }
}

impl Tree {
    /// Parses a file in TOML.
    ///
    /// # Errors
    /// The line that is no TOML, and why.
    pub(crate) fn parse(text: &str, file: &Path) -> Result<Self, Problem> {
        let lines = Lines::new(text, file);
        let table = DeTable::parse(text).map_err(|error| Problem {
            origin: lines.origin(error.span().map_or(0, |span| span.start)),
            key: KeyPath::new(),
            what: format!("no valid TOML: {}", error.message()),
        })?;
        let mut tree = Self::default();
        tree.root = tree.read_table(&mut KeyPath::new(), table.get_ref(), &lines)?;
        Ok(tree)
    }

    fn read_table(
        &mut self,
        key: &mut KeyPath,
        table: &DeTable<'_>,
        lines: &Lines<'_>,
    ) -> Result<Value, Problem> {
        let mut found = Map::new();
        for (name, value) in table {
            key.push(name.get_ref().to_string());
            self.origins.insert(key.clone(), lines.origin(name.span().start));
            found.insert(name.get_ref().to_string(), self.read_value(key, value, lines)?);
            key.pop();
        }
        Ok(Value::Object(found))
    }

    fn read_value(
        &mut self,
        key: &mut KeyPath,
        value: &Spanned<DeValue<'_>>,
        lines: &Lines<'_>,
    ) -> Result<Value, Problem> {
        let wrong =
            |what: String| Problem { origin: lines.origin(value.span().start), key: key.clone(), what };
        Ok(match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Boolean(yes) => Value::Bool(*yes),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map(Value::from)
                .map_err(|_| wrong(format!("{} is too large", number.as_str())))?,
            DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
            DeValue::Datetime(date) => Value::String(date.to_string()),
            DeValue::Array(items) => {
                let mut found = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    key.push(index.to_string());
                    self.origins.insert(key.clone(), lines.origin(item.span().start));
                    found.push(self.read_value(key, item, lines)?);
                    key.pop();
                }
                Value::Array(found)
            }
            DeValue::Table(table) => self.read_table(key, table, lines)?,
        })
    }

    /// Sets a value, in place of what earlier layers have there.
    pub(crate) fn set(&mut self, key: &[String], value: Value, origin: Origin) {
        self.origins.retain(|other, _| !other.starts_with(key));
        let mut place = &mut self.root;
        let mut around = "";
        for name in key {
            place = match name.parse::<usize>() {
                // A route may have a number as its name.
                Ok(index) if around != "routes" && !place.is_object() => item(place, index),
                _ => entry(place, name),
            };
            around = name;
        }
        *place = value;
        self.origins.insert(key.to_vec(), origin);
    }

    /// Returns the value at a key.
    pub(crate) fn get(&self, key: &[impl AsRef<str>]) -> Option<&Value> {
        key.iter().try_fold(&self.root, |value, name| match value {
            Value::Array(items) => items.get(name.as_ref().parse::<usize>().ok()?),
            value => value.get(name.as_ref()),
        })
    }

    /// Returns the origin of a key, or that of the nearest table or list around it.
    pub(crate) fn origin(&self, key: &[String]) -> Origin {
        let around = (1..=key.len()).rev().find_map(|length| self.origins.get(key.get(..length)?));
        around.cloned().unwrap_or(Origin::Default)
    }

    /// Returns whether a layer sets this key, or one below it.
    pub(crate) fn sets(&self, key: &[String]) -> bool {
        self.origins.keys().any(|other| other.starts_with(key))
    }

    /// Returns the origin of a key that a layer sets; that of the first key below it if it is a table.
    pub(crate) fn origin_within(&self, key: &[String]) -> Option<&Origin> {
        self.origins
            .range(key.to_vec()..)
            .next()
            .filter(|(other, _)| other.starts_with(key))
            .map(|(_, origin)| origin)
    }

    /// Returns the whole tree.
    pub(crate) fn root(&self) -> &Value {
        &self.root
    }

    /// Returns the names of the routes that are written.
    pub(crate) fn routes(&self) -> Vec<String> {
        let routes = self.root.get("routes").and_then(Value::as_object);
        routes.map_or_else(Vec::new, |routes| routes.keys().cloned().collect())
    }
}

/// Returns the place of a name in a table, which is made if there is none.
fn entry<'a>(place: &'a mut Value, name: &str) -> &'a mut Value {
    if !place.is_object() {
        *place = Value::Object(Map::new());
    }
    &mut place[name]
}

/// The longest list that is made by the numbers of its items.
const MOST_ITEMS: usize = 1000;

/// Returns the place of an item in a list, which is made if there is none.
fn item(place: &mut Value, index: usize) -> &mut Value {
    if !place.is_array() {
        *place = Value::Array(Vec::new());
    }
    let index = index.min(MOST_ITEMS);
    if let Value::Array(items) = place
        && items.len() <= index
    {
        items.resize(index + 1, Value::Null);
    }
    &mut place[index]
}

/// The lines of a file.
struct Lines<'a> {
    file: &'a Path,
    /// The position of each line's first byte.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &str, file: &'a Path) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { file, starts: std::iter::once(0).chain(starts).collect() }
    }

    fn origin(&self, at: usize) -> Origin {
        Origin::File { file: self.file.into(), line: self.starts.partition_point(|start| *start <= at) }
    }
}
