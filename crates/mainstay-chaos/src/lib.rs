//! A proxy that breaks WebSocket connections on purpose, in the ways that networks, proxies and machines do.
//!
//! - [`Fault`]: what can go wrong.
//! - [`Scenario`]: which faults strike when, and [`Rule`], one of them. [`ScenarioFile`] reads them from TOML or JSON, and
//!   [`Profile`] has some that imitate what people meet.
//! - [`ChaosProxy`]: a proxy in this process. [`Event`]: a line of its timeline.

mod connection;
mod engine;
mod event;
mod fault;
mod frames;
mod http;
mod kind;
mod pair;
mod pipe;
mod proxy;
mod scenario;
mod schedule;
mod shared;
mod state;

pub use event::{Cause, Event, FaultId, Lift, What};
pub use fault::{Direction, Fault};
pub use kind::{Kind, Strikes};
pub use proxy::{Builder, ChaosProxy};
pub use scenario::{Profile, Rule, Scenario, ScenarioError, ScenarioFile, When};
pub use state::{ActiveFault, ConnectionInfo, Target};
