//! The state of the whole process: `/readyz`, `/status` for the console, `/events` and `/cluster`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use mainstay::Server;
use mainstay::server::timeline::{Attach, Entry, Event};
use mainstay::server::{ClientInfo, Presence};
use serde_json::{Value, json};

use super::Operated;
use super::client::client;
use super::query::Query;
use super::question::node_of;
use super::sessions::answer;
use super::words::{Calendar, object, why};
use crate::routes::route::{BackendStatus, Route};

/// Lost connections are summed by evidence over this time.
const LOSSES_OVER: Duration = Duration::from_secs(600);
/// Resumes and gaps are counted over this time.
const MINUTE: Duration = Duration::from_secs(60);
/// How many of the sessions are listed whose clients have been away for the longest.
const LONGEST_PARKED: usize = 8;

/// `GET /readyz`: one line for each reason.
pub(super) async fn ready(State(operated): State<Operated>) -> (StatusCode, String) {
    let Readiness { is_ready, reasons } = readiness(&operated);
    let lines: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    if is_ready {
        return (StatusCode::OK, format!("ready{}\n{lines}", engine_away(&operated.server)));
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

struct Readiness {
    is_ready: bool,
    /// Why not, or which backends were not reached yet.
    reasons: Vec<String>,
}

/// Ready from the moment at which one backend was reached until the drain: a backend that is down must not keep clients away
/// from the others.
fn readiness(operated: &Operated) -> Readiness {
    let routes = operated.routes.all();
    let is_named = routes.len() > 1;
    let not_reached = routes.iter().filter_map(|route| {
        let why = route.links.not_ready()?;
        Some(if is_named { format!("route {}: {why}", route.name) } else { why })
    });
    let not_reached: Vec<String> = not_reached.collect();
    let has_backend = routes.is_empty() || not_reached.len() < routes.len();
    let draining = (!operated.server.is_ready()).then(|| "draining".to_owned());
    let is_ready = draining.is_none() && has_backend;
    Readiness { is_ready, reasons: draining.into_iter().chain(not_reached).collect() }
}

/// Returns what to add while the engine does not answer. The node stays ready: its own sessions need no engine.
fn engine_away(server: &Server) -> &'static str {
    let is_away = server.cluster().is_some_and(|cluster| cluster.engine.is_some() && !cluster.engine_up);
    if is_away { "; the engine does not answer, so this node serves alone until it does" } else { "" }
}

/// `GET /status`.
pub(super) async fn status(State(operated): State<Operated>, request: Request) -> Response {
    answer(Query::of(&request, &[]).map(|_| {
        let (server, calendar) = (&operated.server, Calendar::now());
        let node = node_of(server);
        let (sessions, stats) = (server.sessions(), server.stats());
        let Readiness { is_ready, reasons } = readiness(&operated);
        let state = match is_ready {
            true => "ready",
            false if server.is_ready() => "not ready",
            false => "draining",
        };
        let mut status = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "now": calendar.date(Instant::now()),
            "state": state,
            "reasons": reasons,
            "connections": stats.connections,
            "sessions": {
                "attached": sessions.attached,
                "parked": sessions.parked,
                "draining": sessions.draining,
            },
            "backends": backends(&operated),
            "longest_parked": longest_parked(server).iter().map(|parked| client(parked, node.as_deref())).collect::<Vec<_>>(),
            "cluster": cluster_of(server),
        });
        let recent = recent(server);
        status["last_minute"] = recent.minute;
        status["losses"] = recent.losses;
        status
    }))
}

/// Returns the addresses of all routes' backends, with the latest error of those that are down.
fn backends(operated: &Operated) -> Vec<Value> {
    let routes = operated.routes.all();
    let of_route = |route: &Arc<Route>| {
        let name = route.name.clone();
        let backends = route.backends().into_iter();
        let objects = backends.map(|BackendStatus { address, is_up, error }| {
            json!({ "route": &*name, "address": address, "up": is_up, "error": error })
        });
        objects.collect::<Vec<_>>()
    };
    routes.iter().flat_map(of_route).collect()
}

/// What the newest events add up to.
struct Recent {
    minute: Value,
    losses: Value,
}

fn recent(server: &Server) -> Recent {
    let (now, entries) = (Instant::now(), server.timeline().since(0, usize::MAX));
    let within = |entry: &Entry, time| now.saturating_duration_since(entry.at) <= time;
    let (mut resumes, mut gaps, mut losses) = (0_u64, 0_u64, BTreeMap::new());
    for (_, entry) in entries.iter().rev() {
        // Workers note events of one moment in any order.
        if !within(entry, LOSSES_OVER + MINUTE) {
            break;
        }
        let is_new = within(entry, MINUTE);
        match entry.event {
            Event::Attached { how: Attach::Resumed | Attach::Replaced, .. } if is_new => resumes += 1,
            Event::Attached { how: Attach::AfterLoss, .. } | Event::Gap { .. } if is_new => gaps += 1,
            Event::Lost { .. } if within(entry, LOSSES_OVER) => {
                *losses.entry(why(&entry.event).unwrap_or_default()).or_insert(0_u64) += 1;
            }
            _ => {}
        }
    }
    // A full ring may be younger than a minute.
    let is_complete = server.timeline().counts().1 == 0
        || entries.first().is_some_and(|(_, oldest)| !within(oldest, MINUTE));
    Recent {
        minute: json!({ "resumes": resumes, "gaps": gaps, "complete": is_complete }),
        losses: json!({ "over_seconds": LOSSES_OVER.as_secs(), "by": losses }),
    }
}

/// Returns the sessions whose clients have been away for the longest, the longest first, of the first 100,000 in the list.
fn longest_parked(server: &Server) -> Vec<ClientInfo> {
    let longest: RefCell<Vec<ClientInfo>> = RefCell::default();
    let note = |client: &ClientInfo| {
        if client.presence == Presence::Parked {
            let mut longest = longest.borrow_mut();
            let place = longest.partition_point(|other| other.away >= client.away);
            if place < LONGEST_PARKED {
                longest.insert(place, client.clone());
                longest.truncate(LONGEST_PARKED);
            }
        }
        false
    };
    let _ = server.list(None, 1, note);
    longest.into_inner()
}

/// `GET /events`: the newest events of all clients, in their order.
pub(super) async fn events(State(operated): State<Operated>, request: Request) -> Response {
    let found = Query::of(&request, &["after", "limit"]).and_then(|query| {
        let after = query.number("after", 0, u64::MAX - 1)?;
        let limit = query.number("limit", 1, 1000)?.unwrap_or(100);
        let (timeline, calendar) = (operated.server.timeline(), Calendar::now());
        let entries = timeline.since(after.map_or(0, |after| after + 1), limit);
        let (noted, forgotten) = timeline.counts();
        let objects: Vec<Value> = entries
            .iter()
            .map(|(number, entry)| {
                let mut object = object(entry, calendar);
                object["number"] = (*number).into();
                object
            })
            .collect();
        Ok(json!({ "events": objects, "noted": noted, "forgotten": forgotten }))
    });
    answer(found)
}

/// `GET /cluster`: this node, and what it knows of the others.
pub(super) async fn cluster(State(operated): State<Operated>, request: Request) -> Response {
    let found = Query::of(&request, &[]).and_then(|_| {
        let line = "this process is no node: start it with --cluster or --state-dir\n";
        cluster_of(&operated.server).ok_or_else(|| (StatusCode::NOT_FOUND, line.to_owned()))
    });
    answer(found)
}

fn cluster_of(server: &Server) -> Option<Value> {
    let status = server.cluster()?;
    let [taken, moved, none, unavailable] = status.claims;
    Some(json!({
        "node": status.node,
        "address": status.address.map(|address| address.to_string()),
        "engine": status.engine,
        "engine_up": status.engine_up,
        "incarnation": status.incarnation,
        "table_complete": status.is_complete,
        "other_nodes": { "alive": status.alive, "dead": status.dead },
        "relays": status.figures.relays,
        "engine_requests": status.in_progress,
        "records": status.records,
        "claims": { "taken": taken, "moved": moved, "none": none, "unavailable": unavailable },
    }))
}
