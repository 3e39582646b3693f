//! Many nodes that serve one another's sessions.
//!
//! A *node* is one serving process; the *engine* is the service that all nodes share (Redis or Valkey). A resume token
//! states where its session is ([`Route`](crate::session::Route)), so the engine knows nodes, not sessions: an attach
//! costs it nothing. What a node *releases* (a session that may move, or the account of one that ended) is a
//! [`Record`](crate::session::Record) in the engine, until another node *claims* it.
//!
//! - [`request`]: what the machines ask of the engine, and its answers.
//! - [`nodes`]: this node's part in the cluster: its heartbeat, the node table, claims and releases.
//! - [`lookup`]: the way of one HELLO to its session.
//! - [`node_info`]: a field of the node table.
//! - [`peer`]: the blocks that two nodes exchange.
//! - `notes`: what a node leaves for all others, and for those that start later.
//! - [`records`]: what this node keeps itself where there is no engine.
//!
//! The machines ask by `poll_request` and are answered by `handle_response`. No machine waits: an operation that needs
//! an answer is a state.
//!
//! Source: `docs/CLUSTER.md`.

mod claims;
mod event;
pub mod lookup;
pub mod node_info;
pub mod nodes;
mod notes;
pub mod peer;
pub mod records;
mod releases;
pub mod request;
mod table;

pub use event::{Claimed, NodesEvent, NodesStatus};
pub use lookup::{Lookup, PeerOutcome, Step};
pub use node_info::{Mark, NodeInfo, PeerKey};
pub use nodes::{Nodes, NodesConfig};
pub use records::LocalRecord;
pub use releases::ReleaseOutcome;
pub use request::Note;
pub use table::{COMPLETE_AFTER, DEAD_AFTER, Other};
