//! `mainstay config show`: the settings in force, and where each is from.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::load::{Loaded, leaves};
use super::problem::{KeyPath, Origin, joined};
use super::schema::node_at;

/// In place of a secret.
const HIDDEN: &str = "...";

/// Returns one line for each setting, in TOML, with its origin as a comment.
pub(super) fn text(loaded: &Loaded) -> String {
    let mut text = String::new();
    for (key, value) in settings(loaded) {
        let line = format!("{} = {}", joined(&key), in_toml(&value));
        let _ = writeln!(text, "{line:<60} # {}", origin(loaded, &key));
    }
    text
}

/// Returns a list of settings in JSON, each with its key, value and origin.
pub(super) fn json(loaded: &Loaded) -> String {
    let settings: Vec<Value> = settings(loaded)
        .into_iter()
        .map(|(key, value)| json!({"key": joined(&key), "value": value, "from": origin(loaded, &key).to_string()}))
        .collect();
    format!("{:#}\n", Value::Array(settings))
}

fn settings(loaded: &Loaded) -> Vec<(KeyPath, Value)> {
    let tree = serde_json::to_value(&loaded.config).unwrap_or_default();
    let shown = |(key, value): (KeyPath, Value)| {
        let is_secret = |key: &[String]| node_at(key).is_some_and(|node| node.is_secret());
        let value = if is_secret(&key) {
            hidden(&value)
        } else if (1..key.len()).any(|end| is_secret(&key[..end])) {
            // An entry of a table of secrets. The name of a file is none.
            let is_file = value.as_str().is_some_and(|text| text.starts_with('@'));
            if is_file { value } else { HIDDEN.into() }
        } else {
            without_password(value)
        };
        (key, value)
    };
    leaves(&tree).into_iter().map(shown).collect()
}

/// Returns where a value is from. A table is written somewhere whose other keys have their defaults.
fn origin(loaded: &Loaded, key: &KeyPath) -> Origin {
    match loaded.tree.get(key) {
        Some(_) => loaded.tree.origin(key),
        None => Origin::Default,
    }
}

/// Hides a secret. The name of a header is none, and neither is an empty list.
fn hidden(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(hidden).collect(),
        Value::String(text) => match text.split_once(':') {
            Some((name, _)) if !name.contains(' ') => format!("{name}: {HIDDEN}").into(),
            _ => HIDDEN.into(),
        },
        _ => HIDDEN.into(),
    }
}

/// Hides what is before the `@` of a URL.
fn without_password(value: Value) -> Value {
    match value {
        Value::String(text) => {
            match text.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?))) {
                Some((scheme, (_, rest))) => format!("{scheme}://{HIDDEN}@{rest}").into(),
                None => Value::String(text),
            }
        }
        Value::Array(items) => items.into_iter().map(without_password).collect(),
        other => other,
    }
}

/// Returns a value as TOML writes it.
pub(super) fn in_toml(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(in_toml).collect::<Vec<_>>().join(", ")),
        Value::Object(table) if table.is_empty() => "{}".to_owned(),
        Value::Object(table) => {
            let entries = table
                .iter()
                .map(|(name, value)| format!("{} = {}", joined(std::slice::from_ref(name)), in_toml(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        // The escapes of JSON are those of TOML.
        other => other.to_string(),
    }
}
