//! What the machines ask of the engine, and its answers. A driver executes requests and decides nothing.

use std::time::Duration;

use bytes::Bytes;

use crate::session::message::SessionId;
use crate::session::{NodeId, Record};

/// Pairs a response with its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request to the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Write this node's field of the node table, then read all fields. Answer: [`Response::Table`].
    Heartbeat {
        /// The field.
        node: NodeId,
        /// Its value: the node's address, key, URL and count, as bytes.
        value: Bytes,
    },
    /// Delete the field of a node that ended long ago. (A node that leaves keeps its field, which says so: what it
    /// released is found by it.) Answer: [`Response::Stored`].
    Forget {
        /// The field.
        node: NodeId,
    },
    /// Store a record that has no owner afterwards: any node may claim it. Executing it twice changes nothing more.
    /// Answer: [`Response::Stored`] or [`Response::Fenced`].
    Release {
        /// The session.
        session: SessionId,
        /// The owner that releases it.
        owner: NodeId,
        /// The claim by which the owner has it; 1 if it was created there.
        claim: u64,
        /// The number of this commit under that claim.
        number: u64,
        /// What is released.
        record: Record,
        /// How long the engine keeps it.
        keep: Duration,
    },
    /// Take a record over, in one step: a record with this name that has no owner, or that `owner` or `claimant` claimed.
    /// Executing it twice gives the same answer twice. One that another node claimed: [`Response::Moved`].
    /// The engine keeps the record, so that the same claimant gets it again. The tokens that the claimant issues since are
    /// not among the record's names: a client that has seen one of them cannot be set back to this record.
    /// Answer: [`Response::Claimed`], [`Response::Moved`] or [`Response::None`].
    Claim {
        /// The session.
        session: SessionId,
        /// The node that the claimant believes to be the owner.
        owner: NodeId,
        /// That node lives and states that it does not have the session: its own claim was executed, and the answer was
        /// lost. Otherwise what a node took over is given to no other node.
        disowned: bool,
        /// The node that claims.
        claimant: NodeId,
        /// The name of the token that the client presented: 16 bytes. A record that does not have it is not there.
        name: [u8; 16],
        /// How long the engine keeps who has it.
        keep: Duration,
    },
    /// Store a note for all nodes, and for those that start later. One of the same key replaces it. Answer:
    /// [`Response::Stored`].
    Note {
        /// The note.
        note: Note,
        /// How long the engine keeps it at least.
        keep: Duration,
    },
    /// Read the notes of all nodes. Answer: [`Response::Notes`].
    Notes {
        /// How old they may be.
        keep: Duration,
    },
}

/// What one node leaves for all others, and for those that start later: bytes that the machines do not read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Note {
    /// What it is about. 1 to [`MAX_NOTE`] bytes.
    pub key: Bytes,
    /// At most [`MAX_NOTE`] bytes.
    pub value: Bytes,
}

/// The longest key and the longest value of a [`Note`].
pub const MAX_NOTE: usize = 1024;

/// The engine's answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// All fields of the node table.
    Table(Vec<(NodeId, Bytes)>),
    /// The request was executed.
    Stored,
    /// Another node has the session, or none (`None`).
    Fenced(Option<NodeId>),
    /// The claimant has the session now.
    Claimed {
        /// The number of the claim.
        claim: u64,
        /// What was released.
        record: Record,
    },
    /// This node has the session.
    Moved(NodeId),
    /// The engine has no such session.
    None,
    /// The notes, in any order; of two with the same key the later stands last.
    Notes(Vec<Note>),
    /// No answer came: the request was executed, or not.
    Unknown,
    /// The engine refuses such requests (its reason, for the log): asking again changes nothing.
    Refused(String),
}

/// What a driver reports of its connection to the engine, beside answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineEvent {
    /// A connection is up, to this lifetime of the engine's primary (`run_id` and `master_replid` of INFO); `None`: the
    /// engine does not allow INFO.
    Reachable {
        /// The incarnation.
        incarnation: Option<String>,
    },
    /// The connection was lost, or no connection can be made, for this reason.
    Unreachable {
        /// For the log and the metrics.
        reason: String,
    },
}
