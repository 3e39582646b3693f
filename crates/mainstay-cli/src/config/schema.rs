//! The JSON Schema of the tree, and a walk along it: which keys there are, and which values they take.

use std::sync::LazyLock;

use serde_json::Value;

use super::Config;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(Config).to_value();
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("title".to_owned(), "mainstay.toml".into());
    }
    schema
});

/// Returns the JSON Schema of `mainstay.toml`.
pub(super) fn json() -> &'static Value {
    &SCHEMA
}

/// What is known of one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    /// With the description and the default of the key.
    written: &'static Value,
    /// With the type.
    resolved: &'static Value,
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Boolean,
    Number,
    Text,
    List,
    /// A table with known keys.
    Table,
    /// A table whose keys are names.
    Names,
    /// One of several types.
    Any,
}

impl Node {
    pub(super) fn root() -> Self {
        Self::new(json())
    }

    fn new(written: &'static Value) -> Self {
        Self { written, resolved: resolve(written) }
    }

    /// Returns the node of a key below this one; `None` if there is no such key.
    pub(super) fn child(self, name: &str) -> Option<Self> {
        let property = |node: &'static Value| {
            node.get("properties").and_then(|properties| properties.get(name)).or_else(|| values_of(node))
        };
        let own = property(self.resolved).or_else(|| variants(self.resolved).find_map(property));
        own.or_else(|| self.resolved.get("items").filter(|_| name.parse::<usize>().is_ok())).map(Self::new)
    }

    /// Returns the keys of a table, in alphabetical order.
    pub(super) fn keys(self) -> Vec<(&'static str, Self)> {
        let own = std::iter::once(self.resolved).chain(variants(self.resolved));
        let properties = own.filter_map(|node| node.get("properties")?.as_object()).flatten();
        properties.map(|(name, node)| (name.as_str(), Self::new(node))).collect()
    }

    /// Returns the node of the values of a table whose keys are names.
    pub(super) fn values(self) -> Option<Self> {
        values_of(self.resolved).map(Self::new)
    }

    pub(super) fn kind(self) -> Kind {
        if variants(self.resolved).count() > 0 && self.choices().is_empty() {
            return Kind::Any;
        }
        let kind = match self.resolved.get("type") {
            Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
            kind => kind.and_then(Value::as_str),
        };
        match kind {
            Some("boolean") => Kind::Boolean,
            Some("integer" | "number") => Kind::Number,
            Some("array") => Kind::List,
            Some("object") if values_of(self.resolved).is_some() => Kind::Names,
            Some("object") => Kind::Table,
            _ => Kind::Text,
        }
    }

    /// Returns the words that a setting takes, if it takes only certain ones.
    pub(super) fn choices(self) -> Vec<&'static str> {
        let listed = |node: &'static Value| node.get("enum").and_then(Value::as_array).into_iter().flatten();
        let single = variants(self.resolved).filter_map(|node| node.get("const"));
        let several = variants(self.resolved).flat_map(listed);
        listed(self.resolved).chain(single).chain(several).filter_map(Value::as_str).collect()
    }

    /// Returns what the docstring of the field says.
    pub(super) fn description(self) -> &'static str {
        let described = self.written.get("description").or_else(|| self.resolved.get("description"));
        described.and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns the default, if the key has one.
    pub(super) fn default(self) -> Option<&'static Value> {
        self.written.get("default").filter(|default| !default.is_null())
    }

    /// Returns the first example: `#[schemars(example = "...")]`.
    pub(super) fn example(self) -> Option<&'static Value> {
        self.written.get("examples")?.get(0)
    }

    /// Returns whether the value must not be shown: `#[schemars(extend("writeOnly" = true))]`.
    pub(super) fn is_secret(self) -> bool {
        self.written.get("writeOnly").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// Returns the node of a key; `None` if it is unknown.
pub(super) fn node_at(key: &[String]) -> Option<Node> {
    key.iter().try_fold(Node::root(), |node, name| node.child(name))
}

/// Follows references, and passes over the `null` of an optional value.
fn resolve(mut node: &'static Value) -> &'static Value {
    loop {
        let referred = node.get("$ref").and_then(Value::as_str).and_then(|at| json().pointer(at.get(1..)?));
        let mut others = variants(node).filter(|variant| variant.get("type") != Some(&Value::from("null")));
        let only = others.next().filter(|_| others.next().is_none());
        match referred.or(only) {
            Some(next) => node = next,
            None => return node,
        }
    }
}

fn variants(node: &'static Value) -> impl Iterator<Item = &'static Value> {
    ["anyOf", "oneOf"].into_iter().filter_map(|name| node.get(name)?.as_array()).flatten()
}

fn values_of(node: &'static Value) -> Option<&'static Value> {
    node.get("additionalProperties").filter(|values| values.is_object())
}
