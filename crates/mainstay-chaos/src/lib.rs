//! A proxy that breaks WebSocket connections on purpose, in the ways that networks, proxies and machines do.
//!
//! - [`Fault`]: what can go wrong.
//! - [`Scenario`]: which faults strike when, and [`Rule`], one of them.

mod fault;
mod scenario;

pub use fault::{Direction, Fault};
pub use scenario::{Rule, Scenario, When};
