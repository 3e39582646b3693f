//! `mainstay.v1`: a session that outlives its connections, exactly once and in order both ways.
//!
//! - [`message`]: the messages and their bytes.
//! - [`client`] and [`server`]: the two ends, as machines.
//! - [`registry`]: the server's directory of sessions and of their ends.
//!
//! A driver keeps this order: any mutation, then `poll_transmit` until `None`, then `deliver` and `poll_event` until
//! `None`, then wait until `poll_timeout`.
//!
//! Source: `docs/PROTOCOL.md`.

pub mod client;
pub(crate) mod codec;
pub mod end;
mod error;
mod flow;
mod inbox;
pub mod lifetime;
pub mod message;
mod names;
mod outbox;
pub mod plain;
pub mod record;
pub mod registry;
mod replaced;
mod route;
pub mod server;
pub mod state;
mod transmit;
pub(crate) mod wire;

pub use client::{ClientConfig, ClientEvent, ClientSession, EndedBy, Fate, LostMessages};
pub use end::{End, EndCause, PeerClose};
pub use error::{Malformed, SessionError};
pub use flow::FlowConfig;
pub(crate) use flow::Volatiles;
pub use inbox::Delivery;
pub use lifetime::{Expiry, Leave, LifetimeConfig};
pub use message::{Control, Credentials, Frame, Message, Window};
pub use names::Presenter;
pub use outbox::Progress;
pub use plain::PlainSession;
pub use record::Record;
pub use registry::{Adopted, Answer, RefuseReason, Registry, RegistryConfig, Released, Resumed, Sessions};
pub use route::{NodeId, Route};
pub use server::{Closed, ServerConfig, ServerSession};
pub use state::BadRecord;
pub use transmit::{ConnectionId, Transmit};
pub use wire::MAX_INTEGER;

/// How long either end waits for an orderly end; after that it gives the rest up.
pub(crate) const CLOSE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// How long an ending client has for the last messages if it was given up or acknowledges nothing.
pub(crate) const FINAL_WRITES: std::time::Duration = std::time::Duration::from_secs(5);
/// How long the transport of an aborted session stays open, so that END or the Close can leave.
pub(crate) const ABORT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Instant;

    /// An arbitrary instant, for tests that only add to it.
    #[allow(clippy::disallowed_methods, reason = "virtual time needs a start")]
    pub(crate) fn start() -> Instant {
        Instant::now()
    }
}
