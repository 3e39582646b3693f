//! A client as the operator sees it: an object of JSON, and the texts that a search finds it by.

use mainstay::server::ClientInfo;
use serde_json::{Value, json};

use crate::clients::identity::subject_of;

/// Whether a client's name, address, path or subject contains this text.
pub(super) fn mentions(client: &ClientInfo, search: &str) -> bool {
    let contains = |text: &str| text.to_lowercase().contains(search);
    contains(&client.name.to_string())
        || client.address().is_some_and(|address| contains(&address.to_string()))
        || client.path().is_some_and(|path| contains(&path))
        || subject(client).is_some_and(|subject| contains(&subject))
}

/// Returns who a client is by its credentials, as text.
pub(super) fn subject(client: &ClientInfo) -> Option<String> {
    subject_of(&client.peer().principal)
}

/// Returns the route and the path of a client, as its handshake listed them. The demonstration has no routes.
fn place(client: &ClientInfo) -> (Option<String>, Option<String>) {
    let Some(listed) = client.path() else { return (None, None) };
    match listed.split_once(' ') {
        Some((route, path)) => (Some(route.to_owned()), Some(path.to_owned())),
        None => (None, Some(listed.to_string())),
    }
}

/// Returns a client as an object. `node`: the one that has it.
pub(super) fn client(client: &ClientInfo, node: Option<&str>) -> Value {
    let (route, path) = place(client);
    json!({
        "id": client.name.to_string(),
        "node": node,
        "resumable": client.peer().resumable,
        "state": client.presence.as_str(),
        "epoch": client.epoch,
        "age_seconds": client.age.as_secs_f64(),
        "away_seconds": client.away.map(|away| away.as_secs_f64()),
        "rtt_seconds": client.rtt.map(|rtt| rtt.as_secs_f64()),
        "queue_bytes": { "client": client.kept_bytes, "backend": client.unread_bytes },
        "address": client.address().map(|address| address.to_string()),
        "route": route,
        "path": path,
        "subject": subject(client),
        "subprotocol": client.peer().shown_subprotocol(),
    })
}
