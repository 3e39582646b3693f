//! `/sessions` and `/subjects`: pages of clients, one with its timeline, and ending them. In a cluster at all nodes, unless `node` or
//! `local` says otherwise.

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use mainstay::CloseCode;
use mainstay::server::timeline::ClientName;
use serde_json::Value;

use super::Operated;
use super::everywhere::{self, CHOICE, Choice};
use super::query::{Query, Wrong, bad};
use super::question::Listing;

/// The reason that a client gets if the operator names none.
const REASON: &str = "ended by an operator";
/// The longest subject that is revoked, as the engine keeps it.
const LONGEST_SUBJECT: usize = 1000;
/// The longest reason of a Close (RFC 6455 section 5.5.1).
const LONGEST_REASON: usize = 123;

/// `GET /sessions`.
pub(super) async fn list(State(operated): State<Operated>, request: Request) -> Response {
    let query = chosen(&request, &["after", "limit", "state", "subject", "search"]);
    answer(page(&operated, query).await)
}

async fn page(operated: &Operated, query: Result<Query, Wrong>) -> Result<Value, Wrong> {
    let query = query?;
    let choice = Choice::of(&query, &operated.server)?;
    let state = query.get("state");
    if state.is_some_and(|state| !["attached", "parked", "draining"].contains(&state)) {
        return Err(bad("state: must be attached, parked or draining"));
    }
    let text = |name| query.get(name).map(str::to_owned);
    let listing = Listing {
        after: everywhere::after(&query, &choice)?,
        limit: query.number("limit", 1, 1000)?.unwrap_or(100),
        state: text("state"),
        subject: text("subject"),
        search: text("search"),
    };
    everywhere::list(operated, &choice, listing).await
}

/// Reads the parameters of a request that concerns one node or all.
fn chosen(request: &Request, known: &[&str]) -> Result<Query, Wrong> {
    Query::of(request, &[known, &CHOICE[..]].concat())
}

fn check_name(id: &str) -> Result<(), Wrong> {
    id.parse::<ClientName>().map(drop).map_err(bad)
}

/// `GET /sessions/ID`.
pub(super) async fn one(
    State(operated): State<Operated>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let query = chosen(&request, &[]);
    answer(found(&operated, id, query).await)
}

async fn found(operated: &Operated, id: String, query: Result<Query, Wrong>) -> Result<Value, Wrong> {
    let choice = Choice::of(&query?, &operated.server)?;
    check_name(&id)?;
    choice.check_name(&id)?;
    everywhere::one(operated, &choice, id).await
}

/// `DELETE /sessions/ID`.
pub(super) async fn end(
    State(operated): State<Operated>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let ending = ending(&operated, &request);
    changed(ended(&operated, id, ending).await)
}

async fn ended(
    operated: &Operated,
    id: String,
    ending: Result<(Choice, u16, String), Wrong>,
) -> Result<(StatusCode, Value), Wrong> {
    check_name(&id)?;
    let (choice, code, reason) = ending?;
    choice.check_name(&id)?;
    everywhere::end(operated, &choice, (id, code, reason)).await
}

/// `DELETE /subjects/SUBJECT`. Its credentials stay valid: `revoke` ends that, too.
pub(super) async fn end_subject(
    State(operated): State<Operated>,
    Path(subject): Path<String>,
    request: Request,
) -> Response {
    let ending = ending(&operated, &request);
    changed(match ending {
        Ok((choice, code, reason)) => {
            everywhere::end_subject(&operated, &choice, (subject, code, reason)).await
        }
        Err(wrong) => Err(wrong),
    })
}

/// `POST /subjects/SUBJECT/revoke`. It concerns all nodes: one that does not know it would accept the credentials.
pub(super) async fn revoke(
    State(operated): State<Operated>,
    Path(subject): Path<String>,
    request: Request,
) -> Response {
    let choice = Query::of(&request, &[]).and_then(|query| Choice::of(&query, &operated.server));
    changed(match choice {
        Ok(_) if subject.len() > LONGEST_SUBJECT => {
            Err(bad(format!("subject: must be at most {LONGEST_SUBJECT} bytes of UTF-8")))
        }
        Ok(choice) => everywhere::revoke(&operated, &choice, subject).await,
        Err(wrong) => Err(wrong),
    })
}

/// Returns which nodes a request concerns, and the code and the reason that clients get.
fn ending(operated: &Operated, request: &Request) -> Result<(Choice, u16, String), Wrong> {
    let query = chosen(request, &["code", "reason"])?;
    let choice = Choice::of(&query, &operated.server)?;
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
    Ok((choice, code.get(), reason.to_owned()))
}

pub(super) fn answer(found: Result<Value, Wrong>) -> Response {
    match found {
        Ok(value) => ([(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response(),
        Err(wrong) => wrong.into_response(),
    }
}

fn changed(result: Result<(StatusCode, Value), Wrong>) -> Response {
    match result {
        Ok((status, value)) => (status, answer(Ok(value))).into_response(),
        Err(wrong) => wrong.into_response(),
    }
}
