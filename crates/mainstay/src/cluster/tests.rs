//! Two and three servers in one process, with an engine in memory, clients of this crate, and a balancer that picks.

mod ask;
mod drain;
mod engine;
mod hostile;
#[path = "../../tests/it/lines.rs"]
mod lines;
mod movable;
mod raw;
mod resume;
mod setup;
mod tls;

pub(crate) use self::engine::{Link, Memory};
