//! What comes of a question to other nodes, and of a note.

use std::net::SocketAddr;

use bytes::Bytes;

#[cfg(doc)]
use crate::Server;

/// What the other nodes of a cluster answered. See [`Server::ask_nodes`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Answers {
    /// One for each node that was asked, in the order of their ids.
    pub answers: Vec<NodeAnswer>,
    /// This node knows all nodes: the engine has answered for 10 s without a break. Otherwise some may not have been asked.
    pub is_complete: bool,
}

/// What one node answered.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct NodeAnswer {
    /// The node's id: 16 digits.
    pub node: String,
    /// Its peer listener; `None`: its field of the node table cannot be read.
    pub address: Option<SocketAddr>,
    /// Its answer, or why there is none.
    pub answer: Result<Bytes, NoAnswer>,
}

/// Why a node did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoAnswer {
    /// Nothing listens at its address, and it has not been silent for long enough to count as dead.
    #[error("its peer listener refuses connections")]
    Refused,
    /// It did not answer within 1 s.
    #[error("it did not answer within 1 s")]
    Silent,
    /// It closed the connection.
    #[error("it closed the connection without an answer: an earlier version answers no questions")]
    Closed,
    /// The two nodes differ in TLS, or what came back is no answer.
    #[error("it differs in --cluster-tls, or what listens there is no node")]
    NotANode,
    /// Its field of the node table cannot be read.
    #[error("its field of the node table cannot be read: a later version wrote it")]
    Unreadable,
    /// It [answers no questions](Server::answer_nodes).
    #[error("it answers no questions")]
    NoHandler,
}

impl NoAnswer {
    /// Returns the reason in one word, for a label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Silent => "silent",
            Self::Closed => "closed",
            Self::NotANode => "not_a_node",
            Self::Unreadable => "unreadable",
            Self::NoHandler => "no_handler",
        }
    }
}

/// What became of a [note](Server::keep_note).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoteOutcome {
    /// The engine has it.
    Stored,
    /// The engine did not answer within 1 s: this node repeats it as long as it runs.
    Waiting,
    /// There is no engine, or 10,000 notes wait for it: nothing keeps this one.
    NotKept,
}
