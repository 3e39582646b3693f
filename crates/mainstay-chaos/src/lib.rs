//! A proxy that breaks WebSocket connections on purpose, in the ways that networks, proxies and machines do.
//!
//! - [`Fault`]: what can go wrong.
//! - [`Scenario`]: which faults strike when, and [`Rule`], one of them. [`ScenarioFile`] reads them from TOML or JSON, and
//!   [`Profile`] has some that imitate what people meet.

mod fault;
mod kind;
mod scenario;

pub use fault::{Direction, Fault};
pub use kind::{Kind, Strikes};
pub use scenario::{Profile, Rule, Scenario, ScenarioError, ScenarioFile, When};
