//! A proxy that breaks WebSocket connections on purpose, in the ways that networks, proxies and machines do.
//!
//! - [`ChaosProxy`]: a proxy in this process, for tests. [`Event`]: a line of its timeline.
//! - [`Fault`]: what can go wrong. [`Kind`] describes each in words.
//! - [`Scenario`]: which faults strike when, and [`Rule`], one of them. [`ScenarioFile`] reads them from TOML or JSON, and
//!   [`Profile`] has some that imitate what people meet.
//!
//! ```
//! use std::time::Duration;
//!
//! use mainstay_chaos::{ChaosProxy, Direction, Fault, Target};
//!
//! # fn main() -> std::io::Result<()> {
//! # let server = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
//! let proxy = ChaosProxy::builder(server.to_string()).seed(7).start()?;
//! let url = proxy.url("/ws"); // the client under test connects here
//!
//! // Half-open for 8 s: what clients write is lost, and neither side is notified.
//! proxy.inject(Fault::BlackHole(Direction::Up), Target::All, Some(Duration::from_secs(8)));
//!
//! // Each open connection receives a TCP reset, and new ones are refused until the lift.
//! proxy.inject(Fault::Reset, Target::Open, None);
//! let refusal = proxy.inject(Fault::Refuse, Target::All, None);
//! proxy.lift(refusal);
//!
//! for event in proxy.timeline() {
//!     println!("{:?} {}", event.at, event.what.name());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What passes, and what is lost
//!
//! The faults in force on one direction apply to its bytes in this order, from the writer to the reader: `jam` (nothing is read), then
//! `status`, `drop-pings`, `drop-pongs`, `swallow-close` and `cut-in-frame`, then `cut-after`, `corrupt`, `delay`, `stall`, `black-hole`,
//! `bandwidth` and `trickle`. Two delays add up; of two bandwidths the smaller one counts.
//!
//! - The end of a stream and a reset pass in their place behind the bytes before them, as far as the faults let them.
//! - A direction that lost a byte or an end in a black hole is dead: nothing passes in it any more, also after the fault has ended,
//!   because a stream with a hole in it is none. Its other direction goes on. A black hole that swallowed nothing leaves no trace.
//! - What a stall or a jam held back passes when it ends. A direction keeps at most 64 KiB, and 1 MiB while its bytes are delayed; then
//!   the proxy stops reading, and the writer's socket fills.
//! - Faults of frames read HTTP/1.1 and RFC 6455 and need `ws://`. TLS and HTTP/2 pass as bytes.

mod clock;
mod connection;
mod dial;
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
pub use scenario::{MAX_RULES, Profile, Rule, Scenario, ScenarioError, ScenarioFile, When};
pub use state::{ActiveFault, ConnectionInfo, Target};

/// The README, whose example compiles.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct Readme;
