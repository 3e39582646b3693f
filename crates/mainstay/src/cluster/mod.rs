//! A node among others, or after another: what leaves a process with its sessions, and what comes back.
//!
//! - `state_dir`, `state_file`: without an engine, released sessions reach the next process through one file.

#[allow(dead_code, reason = "the drain and the start of a server use it: until then only its tests do")]
mod state_dir;
#[allow(dead_code, reason = "as state_dir")]
mod state_file;

pub use self::state_dir::StateDirError;
