//! What a node reports of its cluster: events for its driver and its log, and figures for its metrics.

use std::net::SocketAddr;

use super::node_info::BadField;
use super::releases::ReleaseOutcome;
use super::request::Note;
use crate::session::NodeId;
use crate::session::message::SessionId;

/// What the driver must know or do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodesEvent {
    /// The engine answers, for the first time or again.
    EngineUp {
        /// The lifetime of its primary, if it allows to ask for it.
        incarnation: Option<String>,
        /// It is another lifetime than the one before: what was released may be lost.
        changed: bool,
    },
    /// The engine does not answer. Sessions of this node continue.
    EngineDown {
        /// For the log.
        reason: String,
    },
    /// Another node was seen, for the first time or alive again.
    NodeSeen {
        /// The node.
        node: NodeId,
        /// Its peer listener; `None`: its field cannot be read.
        address: Option<SocketAddr>,
    },
    /// Another node is dead: its field was unchanged for 10 s in which the engine answered.
    NodeDead {
        /// The node.
        node: NodeId,
    },
    /// Another node has ended in order.
    NodeLeft {
        /// The node.
        node: NodeId,
    },
    /// The field of another node cannot be read. Sessions there are not reached until the node is dead.
    BadField {
        /// The node.
        node: NodeId,
        /// What is wrong with the field.
        error: BadField,
    },
    /// The table has a node of another cluster ([`Mark`](super::Mark)): two clusters use one engine under one name. Or,
    /// if it is this node's id: another process has it.
    SameNameElsewhere {
        /// The node.
        node: NodeId,
        /// Its peer listener.
        address: Option<SocketAddr>,
    },
    /// A node has been dead for long. Connect to its peer listener, close the connection at once, and report by
    /// [`listener_checked`](super::Nodes::listener_checked) whether TCP was refused.
    CheckListener {
        /// The node.
        node: NodeId,
        /// Its peer listener.
        address: SocketAddr,
    },
    /// The outcome of a release is known, or was given up.
    Released {
        /// The session.
        session: SessionId,
        /// What became of it.
        outcome: ReleaseOutcome,
    },
    /// A claim was answered, or given up: [poll](super::Lookup::poll) the lookup that claims this session. No lookup may
    /// wait for it any more.
    ClaimAnswered {
        /// The session.
        session: SessionId,
    },
    /// The engine has this note of [`note`](super::Nodes::note).
    Noted {
        /// Its number.
        number: u64,
    },
    /// The notes of all nodes were read.
    Notes(Vec<Note>),
    /// The engine refuses a kind of request (`heartbeat`, `forget`, `release`, `claim`, `note`, `notes`). Reported once, until the engine
    /// executes such a request again.
    EngineRefuses {
        /// The kind.
        request: &'static str,
        /// The engine's reason.
        reason: String,
    },
    /// The engine knows that this node has left, after [`leave`](super::Nodes::leave).
    Left,
}

/// Figures for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodesStatus {
    /// The engine answers.
    pub engine_up: bool,
    /// Every living node is in the table.
    pub is_complete: bool,
    /// Other nodes that live.
    pub alive: usize,
    /// Other nodes that died without leaving.
    pub dead: usize,
    /// Claims without an answer.
    pub claims: usize,
    /// Releases without an answer.
    pub releases: usize,
    /// Records that this node keeps itself, without an engine.
    pub records: usize,
    /// Claims by outcome, since the start.
    pub claimed: Claimed,
}

/// Claims by outcome, since the start. A claim that was given up counts as `unavailable`, whatever comes later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claimed {
    /// This node got the session.
    pub taken: u64,
    /// Another node has it.
    pub moved: u64,
    /// The engine has no such session.
    pub none: u64,
    /// The engine did not answer in time, or refused.
    pub unavailable: u64,
}
