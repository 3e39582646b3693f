//! Many nodes that serve one another's sessions.
//!
//! The nodes share an [`Engine`]: Redis 6.2 or later, or Valkey. It knows the nodes and what they released; the sessions stay in
//! their owners' memory, so a node that cannot reach the engine serves on.
//!
//! - `engine`: the URL of an engine; `check`: whether a node can work with it.
//! - `connect`, `info`, `fault`: a connection to it, what it reports of itself, and its errors in words.
//! - `scripts`: requests as commands and scripts of Redis.
//! - `redis`: the task that executes the machines' requests, and reports whether the engine answers.
//! - `state_dir`, `state_file`: without an engine, released sessions reach the next process through one file.

mod check;
mod connect;
mod engine;
mod fault;
mod info;
mod redis;
mod scripts;
#[allow(dead_code, reason = "the drain and the start of a server use it: until then only its tests do")]
mod state_dir;
#[allow(dead_code, reason = "as state_dir")]
mod state_file;

pub use check::EngineFacts;
pub use engine::{Engine, EngineError};
#[doc(hidden)]
pub use redis::{Driver, Report, start};
pub use state_dir::StateDirError;
