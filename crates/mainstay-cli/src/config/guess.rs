//! Unknown keys, and which key was probably meant.

use serde_json::Value;

use super::flags;
use super::layers::Tree;
use super::problem::{KeyPath, Origin, Problem, joined};
use super::schema::{Kind, Node, node_at};
use crate::process::variables::edits;

/// A name within this many edits of a known one is a misspelling of it.
const MAX_EDITS: usize = 2;

/// Returns every unknown key of a tree, with the key that was probably meant.
pub(super) fn unknown_keys(tree: &Tree) -> Vec<Problem> {
    let mut found = Vec::new();
    walk(tree, &mut KeyPath::new(), tree.root(), Node::root(), &mut found);
    found
}

fn walk(tree: &Tree, key: &mut KeyPath, value: &Value, node: Node, found: &mut Vec<Problem>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(table) => table.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect(),
        _ => return,
    };
    // A value of another type than the key's is for the reader of the tree to refuse.
    let has_keys = matches!(node.kind(), Kind::Table | Kind::Names | Kind::List | Kind::Any);
    for (name, child) in children.into_iter().filter(|_| has_keys) {
        key.push(name);
        match key.last().and_then(|name| node.child(name)) {
            Some(node) => walk(tree, key, child, node, found),
            None => found.push(unknown(tree.origin(key), key)),
        }
        key.pop();
    }
}

/// Describes an unknown key.
pub(super) fn unknown(origin: Origin, key: &[String]) -> Problem {
    let what = match meant(key) {
        Some(right) => format!("unknown key; write {right}"),
        None => {
            let (_, around) = key.split_last().unwrap_or((&EMPTY, &[]));
            let known = node_at(around).map_or_else(Vec::new, Node::keys);
            let known: Vec<&str> = known.into_iter().map(|(name, _)| name).collect();
            match known.is_empty() {
                true => "unknown key; remove it".to_owned(),
                false => format!("unknown key; known here: {}", known.join(", ")),
            }
        }
    };
    Problem { origin, key: key.to_vec(), what }
}

static EMPTY: String = String::new();

/// Returns the key that was probably meant: a neighbour with a similar name, the setting of a flag of that name, or a key of
/// that name in another table.
fn meant(key: &[String]) -> Option<String> {
    let (name, around) = key.split_last()?;
    let name = name.to_ascii_lowercase().replace('_', "-");
    let neighbours = node_at(around).map_or_else(Vec::new, Node::keys);
    let similar = neighbours.iter().map(|(known, _)| (edits(known, &name), *known)).min();
    if let Some((edits, known)) = similar
        && edits <= MAX_EDITS.min(name.len() / 2)
    {
        return Some(known.to_owned());
    }
    let route = match around {
        [routes, route, ..] if routes == "routes" => route.as_str(),
        _ => "NAME",
    };
    if let Some(key) = flags::key_of_flag(&name) {
        return Some(joined(&flags::in_route(key, route)));
    }
    let mut elsewhere = Vec::new();
    collect(Node::root(), &mut KeyPath::new(), route, &name, &mut elsewhere);
    // A key of the route itself before one of the whole process.
    let near = elsewhere.iter().find(|found| around.first() == found.first()).or(elsewhere.first())?;
    let (name, table) = near.split_last()?;
    Some(match table {
        [] => format!("{name} at the top of the file, before the first table"),
        table => format!("{name} in [{}]", joined(table)),
    })
}

/// Collects every key of this name.
fn collect(node: Node, key: &mut KeyPath, route: &str, name: &str, found: &mut Vec<KeyPath>) {
    let values = node.values().map(|values| (route, values));
    for (known, child) in node.keys().into_iter().chain(values) {
        key.push(known.to_owned());
        if known == name {
            found.push(key.clone());
        }
        if matches!(child.kind(), Kind::Table | Kind::Names) {
            collect(child, key, route, name, found);
        }
        key.pop();
    }
}
