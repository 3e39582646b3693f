//! An engine in memory: it executes requests on maps that all nodes of a test share.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use mainstay_proto::cluster::Note;
use mainstay_proto::cluster::records::has_name;
use mainstay_proto::cluster::request::{EngineEvent, Request, RequestId, Response};
use mainstay_proto::session::message::SessionId;
use mainstay_proto::session::{NodeId, Record};

use crate::cluster::Report;

type Reporter = Arc<dyn Fn(Report) + Send + Sync>;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    is_away: bool,
    nodes: BTreeMap<NodeId, Bytes>,
    sessions: HashMap<SessionId, Kept>,
    notes: Vec<Note>,
    reporters: Vec<Reporter>,
    /// Requests that were executed and are no heartbeats.
    requests: Vec<&'static str>,
}

struct Kept {
    claim: u64,
    owner: Option<NodeId>,
    record: Record,
}

/// One node's way to the engine.
pub(crate) struct Link {
    memory: Memory,
    report: Reporter,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Connects a node.
    pub(crate) fn start(&self, report: Box<dyn Fn(Report) + Send + Sync>) -> Link {
        let report: Reporter = Arc::from(report);
        self.lock().reporters.push(Arc::clone(&report));
        if !self.lock().is_away {
            tell(Arc::clone(&report), Report::Event(reachable()));
        }
        Link { memory: self.clone(), report }
    }

    /// The engine answers nothing any more, until [`come_back`](Self::come_back).
    pub(crate) fn go_away(&self) {
        let mut state = self.lock();
        state.is_away = true;
        for report in &state.reporters {
            let reason = "away".to_owned();
            tell(Arc::clone(report), Report::Event(EngineEvent::Unreachable { reason }));
        }
    }

    pub(crate) fn come_back(&self) {
        let mut state = self.lock();
        state.is_away = false;
        for report in &state.reporters {
            tell(Arc::clone(report), Report::Event(reachable()));
        }
    }

    /// The kinds of requests that were executed so far, heartbeats aside.
    pub(crate) fn requests(&self) -> Vec<&'static str> {
        self.lock().requests.clone()
    }

    /// How many sessions and accounts wait for a claim.
    pub(crate) fn unclaimed(&self) -> usize {
        self.lock().sessions.values().filter(|kept| kept.owner.is_none()).count()
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory(..)")
    }
}

impl Link {
    pub(crate) fn send(&self, id: RequestId, request: Request) {
        let response = self.memory.lock().execute(request);
        tell(Arc::clone(&self.report), Report::Response(id, response));
    }
}

/// Reports from a task of its own, as a driver does.
fn tell(report: Reporter, what: Report) {
    tokio::spawn(async move { report(what) });
}

fn reachable() -> EngineEvent {
    EngineEvent::Reachable { incarnation: Some("first".to_owned()) }
}

impl State {
    fn execute(&mut self, request: Request) -> Response {
        if self.is_away {
            return Response::Unknown;
        }
        match request {
            Request::Heartbeat { node, value } => {
                self.nodes.insert(node, value);
                Response::Table(self.nodes.clone().into_iter().collect())
            }
            Request::Forget { node } => {
                self.requests.push("forget");
                self.nodes.remove(&node);
                Response::Stored
            }
            Request::Release { session, claim, record, .. } => {
                self.requests.push("release");
                match self.sessions.get(&session) {
                    Some(kept) if kept.claim > claim => Response::Fenced(kept.owner),
                    _ => {
                        self.sessions.insert(session, Kept { claim, owner: None, record });
                        Response::Stored
                    }
                }
            }
            Request::Claim { session, owner, disowned, claimant, name, .. } => {
                self.requests.push("claim");
                let Some(kept) = self.sessions.get_mut(&session).filter(|kept| has_name(&kept.record, &name))
                else {
                    return Response::None;
                };
                if kept.owner != Some(claimant) {
                    match kept.owner {
                        Some(other) if other != owner => return Response::Moved(other),
                        Some(_) if !disowned => return Response::None,
                        _ => {}
                    }
                    kept.claim += 1;
                    kept.owner = Some(claimant);
                }
                Response::Claimed { claim: kept.claim, record: kept.record.clone() }
            }
            Request::Note { note, .. } => {
                self.requests.push("note");
                self.notes.retain(|noted| noted.key != note.key);
                self.notes.push(note);
                Response::Stored
            }
            Request::Notes { .. } => {
                self.requests.push("notes");
                Response::Notes(self.notes.clone())
            }
        }
    }
}
