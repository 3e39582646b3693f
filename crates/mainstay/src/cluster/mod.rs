//! Many nodes that serve one another's sessions.
//!
//! The nodes share an [`Engine`]: Redis 7 or later, or Valkey. It knows the nodes and what they released; the sessions stay in
//! their owners' memory, so a node that cannot reach the engine serves on.
//!
//! - `engine`: the URL of an engine.
//! - `redis`: the task that executes the machines' requests, and reports whether the engine answers.
//! - `state_dir`, `state_file`: without an engine, released sessions reach the next process through one file.

mod engine;
#[allow(dead_code, reason = "the cluster starts it")]
mod redis;
#[allow(dead_code, reason = "the drain and the start of a server use it: until then only its tests do")]
mod state_dir;
#[allow(dead_code, reason = "as state_dir")]
mod state_file;

pub use engine::{Engine, EngineError, EngineFacts};
#[allow(unused_imports, reason = "the cluster starts it")]
pub(crate) use redis::{Driver, Report, start};
pub use state_dir::StateDirError;
