//! A proxy that breaks WebSocket connections on purpose, in the ways that networks, proxies and machines do.
//!
//! - [`Fault`]: what can go wrong.
//! - [`Scenario`]: which faults strike when, and [`Rule`], one of them.
//! - [`ChaosProxy`]: a proxy in this process. [`Event`]: a line of its timeline.

mod engine;
mod event;
mod fault;
mod proxy;
mod scenario;
mod state;

pub use event::{Cause, Event, FaultId, Lift, What};
pub use fault::{Direction, Fault};
pub use proxy::{Builder, ChaosProxy};
pub use scenario::{Rule, Scenario, When};
pub use state::{ActiveFault, ConnectionInfo, Target};
