//! `/sessions`: pages of clients, one with its timeline, and ending them.

use std::time::SystemTime;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mainstay::CloseCode;
use mainstay::server::ClientInfo;
use mainstay::server::timeline::ClientName;
use serde_json::{Value, json};

use super::Operated;
use super::query::{Query, Wrong, bad};
use super::words::{Calendar, object, reconnects};
use crate::client_identity::subject_of;

/// The reason that a client gets if the operator names none.
const REASON: &str = "ended by an operator";
/// The longest reason of a Close (RFC 6455 section 5.5.1).
const LONGEST_REASON: usize = 123;

/// `GET /sessions`.
pub(super) async fn list(State(operated): State<Operated>, request: Request) -> Response {
    answer(page(&operated, &request))
}

fn page(operated: &Operated, request: &Request) -> Result<Value, Wrong> {
    let query = Query::of(request, &["after", "limit", "state", "subject", "search"])?;
    let after = query.number("after", 0, u32::MAX)?;
    let limit = query.number("limit", 1, 1000)?.unwrap_or(100);
    let state = query.get("state");
    if state.is_some_and(|state| !["attached", "parked", "draining"].contains(&state)) {
        return Err(bad("state: must be attached, parked or draining"));
    }
    let (wanted_subject, search) = (query.get("subject"), query.get("search").map(str::to_lowercase));
    let wanted = |client: &ClientInfo| {
        state.is_none_or(|state| client.presence.as_str() == state)
            && wanted_subject.is_none_or(|wanted| subject(client).as_deref() == Some(wanted))
            && search.as_deref().is_none_or(|search| mentions(client, search))
    };
    let page = operated.server.list(after, limit, wanted);
    let sessions: Vec<Value> = page.clients.iter().map(client).collect();
    Ok(json!({ "sessions": sessions, "next": page.next }))
}

/// Whether a client's name, address, path or subject contains this text.
fn mentions(client: &ClientInfo, search: &str) -> bool {
    let contains = |text: &str| text.to_lowercase().contains(search);
    contains(&client.name.to_string())
        || client.address().is_some_and(|address| contains(&address.to_string()))
        || client.path().is_some_and(|path| contains(&path))
        || subject(client).is_some_and(|subject| contains(&subject))
}

/// Returns who a client is by its credentials, as text.
fn subject(client: &ClientInfo) -> Option<String> {
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

/// Returns a client as an object.
pub(super) fn client(client: &ClientInfo) -> Value {
    let (route, path) = place(client);
    json!({
        "id": client.name.to_string(),
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
        "subprotocol": client.peer().subprotocol.as_deref(),
    })
}

fn name(id: &str) -> Result<ClientName, Wrong> {
    id.parse().map_err(bad)
}

/// `GET /sessions/ID`.
pub(super) async fn one(
    State(operated): State<Operated>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    answer(Query::of(&request, &[]).and_then(|_| {
        let name = name(&id)?;
        let found = operated.server.client(name);
        let entries = operated.server.timeline().of(name);
        if found.is_none() && entries.is_empty() {
            return Err(unknown());
        }
        let calendar = Calendar::now();
        let timeline: Vec<Value> = entries.iter().map(|entry| object(entry, calendar)).collect();
        Ok(json!({
            "session": found.as_ref().map(client),
            "reconnects": reconnects(&entries, calendar),
            "timeline": timeline,
        }))
    }))
}

fn unknown() -> Wrong {
    let line = "no such session is here, and the timeline has none of its events\n";
    (StatusCode::NOT_FOUND, line.to_owned())
}

/// `DELETE /sessions/ID`.
pub(super) async fn end(
    State(operated): State<Operated>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    answer(name(&id).and_then(|name| {
        let (code, reason) = ending(&request)?;
        if !operated.server.end_client(name, code, &reason) {
            return Err(unknown());
        }
        tracing::info!(session = %name, code = code.get(), "an operator ended a session");
        Ok(json!({ "ended": 1 }))
    }))
}

/// `DELETE /subjects/SUBJECT`. Its credentials stay valid: `revoke` ends that, too.
pub(super) async fn end_subject(
    State(operated): State<Operated>,
    Path(subject): Path<String>,
    request: Request,
) -> Response {
    answer(ending(&request).map(|(code, reason)| {
        let theirs = |client: &ClientInfo| subject_of(&client.peer().principal).as_deref() == Some(&*subject);
        let ended = operated.server.end_clients(theirs, code, &reason);
        tracing::info!(ended, code = code.get(), "an operator ended the sessions of a subject");
        json!({ "ended": ended })
    }))
}

/// `POST /subjects/SUBJECT/revoke`.
pub(super) async fn revoke(
    State(operated): State<Operated>,
    Path(subject): Path<String>,
    request: Request,
) -> Response {
    answer(Query::of(&request, &[]).map(|_| {
        let ended = operated.routes.access.subjects.revoke(&subject, SystemTime::now());
        json!({ "ended": ended })
    }))
}

/// Returns the code and the reason that clients get.
fn ending(request: &Request) -> Result<(CloseCode, String), Wrong> {
    let query = Query::of(request, &["code", "reason"])?;
    let code = query.number("code", 1000, 4999)?.unwrap_or_else(|| CloseCode::SESSION_ENDED.get());
    let code = CloseCode::new(code).ok_or_else(|| {
        bad(format!(
            "code: {code} may not stand in a Close; write 1000 to 1003, 1007 to 1014 or 3000 to 4999"
        ))
    })?;
    let reason = query.get("reason").unwrap_or(REASON);
    if reason.len() > LONGEST_REASON {
        return Err(bad(format!("reason: must be at most {LONGEST_REASON} bytes of UTF-8")));
    }
    Ok((code, reason.to_owned()))
}

pub(super) fn answer(found: Result<Value, Wrong>) -> Response {
    match found {
        Ok(value) => ([(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response(),
        Err(wrong) => wrong.into_response(),
    }
}
