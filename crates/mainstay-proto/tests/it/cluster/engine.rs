//! An engine in memory, by the rules of `cluster::request`, and nodes that share it in virtual time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::cluster::records::has_name;
use mainstay_proto::cluster::request::{EngineEvent, Request, RequestId, Response};
use mainstay_proto::cluster::{Mark, NodeInfo, Nodes, NodesConfig, NodesEvent, Note, PeerKey};
use mainstay_proto::session::message::{ResumeToken, SessionId};
use mainstay_proto::session::{NodeId, Record};

pub(crate) const SESSION: SessionId = SessionId([5; 8]);
pub(crate) const KEEP: Duration = Duration::from_secs(300);

pub(crate) fn id(number: u8) -> NodeId {
    NodeId([number; 8])
}

pub(crate) fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 7000))
}

pub(crate) fn info(number: u8) -> NodeInfo {
    NodeInfo {
        address: address(number),
        key: PeerKey([number; 16]),
        mark: Mark([1; 8]),
        url: None,
        count: 0,
        left: false,
        notes: 0,
    }
}

/// A token that this node issued for [`SESSION`].
pub(crate) fn token(node: NodeId) -> ResumeToken {
    ResumeToken([&node.0[..], &SESSION.0, &[7; 24]].concat().into())
}

/// What the token of this node is called.
pub(crate) fn name(node: NodeId) -> [u8; 16] {
    [node.0[0]; 16]
}

/// A session that `node` released: its token's name is the only one.
pub(crate) fn record(node: NodeId) -> Record {
    let head = [&name(node)[..], &[0; 16], b"state"].concat();
    Record { head: head.into(), saved: None, messages: vec![Bytes::from_static(b"message")] }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Engine {
    pub(crate) fields: BTreeMap<NodeId, Bytes>,
    pub(crate) held: BTreeMap<SessionId, Held>,
    pub(crate) executed: Vec<&'static str>,
    pub(crate) notes: Vec<Note>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) claim: u64,
    pub(crate) owner: Option<NodeId>,
    record: Record,
}

impl Engine {
    pub(crate) fn execute(&mut self, request: &Request) -> Response {
        match request {
            Request::Heartbeat { node, value } => {
                self.executed.push("heartbeat");
                self.fields.insert(*node, value.clone());
                Response::Table(self.fields.iter().map(|(node, field)| (*node, field.clone())).collect())
            }
            Request::Forget { node } => {
                self.executed.push("forget");
                self.fields.remove(node);
                Response::Stored
            }
            Request::Release { session, owner, claim, record, .. } => {
                self.executed.push("release");
                if let Some(held) = self.held.get(session)
                    && (held.claim > *claim || held.claim == *claim && held.owner != Some(*owner))
                {
                    return Response::Fenced(held.owner);
                }
                let held = Held { claim: *claim, owner: None, record: record.clone() };
                self.held.insert(*session, held);
                Response::Stored
            }
            Request::Claim { session, owner, disowned, claimant, name, .. } => {
                self.executed.push("claim");
                let Some(held) = self.held.get_mut(session).filter(|held| has_name(&held.record, name))
                else {
                    return Response::None;
                };
                if held.owner != Some(*claimant) {
                    match held.owner {
                        Some(other) if other != *owner => return Response::Moved(other),
                        Some(_) if !disowned => return Response::None,
                        _ => {}
                    }
                    held.claim += 1;
                    held.owner = Some(*claimant);
                }
                Response::Claimed { claim: held.claim, record: held.record.clone() }
            }
            Request::Note { note, .. } => {
                self.executed.push("note");
                self.notes.retain(|noted| noted.key != note.key);
                self.notes.push(note.clone());
                Response::Stored
            }
            Request::Notes { .. } => {
                self.executed.push("notes");
                Response::Notes(self.notes.clone())
            }
        }
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.executed.iter().filter(|executed| **executed == kind).count()
    }
}

/// Nodes that share an engine. Node `n` has the id `[n; 8]`.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) engine: Engine,
    pub(crate) nodes: BTreeMap<u8, Member>,
}

#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) nodes: Nodes,
    pub(crate) events: Vec<NodesEvent>,
    /// Requests are lost, and no response comes.
    pub(crate) is_deaf: bool,
    /// The process stands still.
    pub(crate) is_paused: bool,
    pub(crate) unanswered: Vec<(RequestId, Request)>,
}

impl World {
    /// Nodes that are announced and have seen each other for long enough.
    pub(crate) fn of(numbers: &[u8]) -> Self {
        let mut world = Self::young(numbers);
        world.run(Duration::from_secs(20));
        world.nodes.values_mut().for_each(|member| member.events.clear());
        world
    }

    /// Nodes that were announced just now.
    pub(crate) fn young(numbers: &[u8]) -> Self {
        let mut world = Self { now: crate::pair::start(), engine: Engine::default(), nodes: BTreeMap::new() };
        numbers.iter().for_each(|number| world.start(*number));
        world
    }

    pub(crate) fn start(&mut self, number: u8) {
        let mut nodes = nodes(self.now, number, true);
        nodes.announce(self.now, info(number));
        nodes.handle_engine(self.now, EngineEvent::Reachable { incarnation: Some("one".into()) });
        let member = Member { nodes, events: vec![], is_deaf: false, is_paused: false, unanswered: vec![] };
        self.nodes.insert(number, member);
        self.settle();
    }

    pub(crate) fn node(&mut self, number: u8) -> &mut Nodes {
        &mut self.nodes.get_mut(&number).unwrap().nodes
    }

    pub(crate) fn member(&mut self, number: u8) -> &mut Member {
        self.nodes.get_mut(&number).unwrap()
    }

    pub(crate) fn events(&mut self, number: u8) -> Vec<NodesEvent> {
        std::mem::take(&mut self.nodes.get_mut(&number).unwrap().events)
    }

    /// The node's connection to the engine is lost.
    pub(crate) fn disconnect(&mut self, number: u8) {
        let (now, reason) = (self.now, "connection reset".into());
        self.node(number).handle_engine(now, EngineEvent::Unreachable { reason });
        self.settle();
    }

    pub(crate) fn reconnect(&mut self, number: u8) {
        let (now, incarnation) = (self.now, Some("one".into()));
        self.node(number).handle_engine(now, EngineEvent::Reachable { incarnation });
        self.settle();
    }

    /// Executes every request, answers it, and takes events, until nothing is left.
    pub(crate) fn settle(&mut self) {
        for member in self.nodes.values_mut().filter(|member| !member.is_paused) {
            while let Some((id, request)) = member.nodes.poll_request(self.now) {
                if member.is_deaf {
                    member.unanswered.push((id, request));
                } else {
                    let response = self.engine.execute(&request);
                    member.nodes.handle_response(self.now, id, response);
                }
            }
            member.events.extend(std::iter::from_fn(|| member.nodes.poll_event()));
        }
    }

    /// Lets time pass; every node does what becomes due.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 1_000_000, "a timeout stays due");
            let awake = self.nodes.values().filter(|member| !member.is_paused);
            let next = awake.filter_map(|member| member.nodes.poll_timeout()).min();
            self.now = self.now.max(next.unwrap_or(end).min(end));
            for member in self.nodes.values_mut().filter(|member| !member.is_paused) {
                member.nodes.handle_timeout(self.now);
            }
            self.settle();
            if next.is_none_or(|next| next > end) {
                return;
            }
        }
    }
}

pub(crate) fn nodes(now: Instant, number: u8, engine: bool) -> Nodes {
    Nodes::new(now, NodesConfig { node: id(number), engine, keep: KEEP, seed: number.into() })
}
