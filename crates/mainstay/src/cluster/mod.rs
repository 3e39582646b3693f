//! Many nodes that serve one another's sessions.
//!
//! The nodes share an [`Engine`]: Redis 6.2 or later, or Valkey. It knows the nodes and what they released; the sessions stay in
//! their owners' memory, so a node that cannot reach the engine serves on. A client may come back to any node: that *entry
//! node* forwards its connection to the *owner* of its session. At a drain, sessions that may move are *released* to the engine
//! and *claimed* by the node that their client reaches next.
//!
//! - `config`: how a server takes part ([`ClusterConfig`]).
//! - `engine`: the URL of an engine; `check`: whether a node can work with it.
//! - `connect`, `info`, `fault`: a connection to it, what it reports of itself, and its errors in words.
//! - `scripts`: requests as commands and scripts of Redis.
//! - `redis`: the task that executes the machines' requests, and reports whether the engine answers.
//! - `node`: this server's part: it moves requests, timers and events of the machine.
//! - `listener`, `entry`, `relay`: the peer listener of the owner, the entry node's question, and the forwarding of bytes.
//! - `ask`, `answers`: questions to all other nodes, and notes that later ones read.
//! - `tls`: the certificates that nodes present to each other; `notices`: one warning for each kind of refusal.
//! - `state_dir`, `state_file`: without an engine, released sessions reach the next process through one file.
//! - `figures`: counts for metrics.

mod answers;
mod ask;
mod check;
mod config;
mod connect;
mod engine;
pub(crate) mod entry;
mod fault;
mod figures;
mod info;
mod listener;
mod node;
mod notices;
mod redis;
pub(crate) mod relay;
mod scripts;
mod state_dir;
mod state_file;
#[cfg(test)]
mod tests;
mod tls;

pub use answers::{Answers, NoAnswer, NodeAnswer, NoteOutcome};
pub use ask::LONGEST_QUESTION;
pub use check::EngineFacts;
pub use config::ClusterConfig;
pub use engine::{Engine, EngineError};
pub use figures::ClusterFigures;
pub(crate) use figures::Figures;
pub use mainstay_proto::cluster::Note;
pub use node::{ClusterStatus, JoinError};
pub(crate) use node::{Node, Seeking};
#[doc(hidden)]
pub use redis::{Driver, Report, start};
pub use state_dir::StateDirError;
pub use tls::{ClusterTls, ClusterTlsError};
