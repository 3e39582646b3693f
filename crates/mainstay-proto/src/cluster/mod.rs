//! Many nodes that serve one another's sessions.
//!
//! A *node* is one serving process; the *engine* is the service that all nodes share (Redis or Valkey). A resume token
//! states where its session is ([`Route`](crate::session::Route)), so the engine knows nodes, not sessions: an attach
//! costs it nothing. What a node *releases* (a session that may move, or the account of one that ended) is a
//! [`Record`](crate::session::Record) in the engine, until another node *claims* it.
//!
//! - [`request`]: what the machines ask of the engine, and its answers.
//!
//! The machines ask by `poll_request` and are answered by `handle_response`. No machine waits: an operation that needs
//! an answer is a state.
//!
//! Source: `docs/CLUSTER.md`.

pub mod request;
