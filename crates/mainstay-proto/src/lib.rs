//! The decisions of Mainstay, without IO: bytes and time go in, bytes and events come out.
//!
//! - [`ws`]: RFC 6455 frames and messages, RFC 7692 compression, the rules of the opening handshake.
//! - [`session`]: `mainstay.v1`, the session that outlives connections.
//! - [`heartbeat`]: when to probe a peer and when to declare it dead.
//! - [`admission`]: which connections are admitted, which may open a WebSocket, and when the others may try again.
//! - [`proxies`]: the address of a client behind proxies.
//! - [`throttle`]: how fast a connection may send.
//! - [`budget`]: how much memory all connections may use together.
//! - [`cluster`]: many nodes that serve one another's sessions.
//! - [`backoff`]: how long to wait before the next attempt.
//! - [`confirm`]: sending to a plain peer, whose Pong confirms what was sent.
//! - [`connect`]: the client's life: connecting, attached, waiting, ended.
//! - [`endpoint`]: which redirects of a server the client follows.
//! - [`cancellations`]: how many requests of a connection its client may cancel.
//! - [`proxy_header`]: the header by which a proxy names its client.
//! - [`reach`]: which of a server's addresses is tried, and when.
//! - [`failure`]: what went wrong, in words and as an error.
//! - [`timeline`]: what happened to the clients of a server, in a ring of fixed size.
//!
//! Nothing here reads a clock, opens a socket, spawns a task or draws from a global source of randomness: `now` and
//! every seed are arguments. The same machines run under tokio and in the simulator, and are the reference for the
//! TypeScript client.

pub mod admission;
pub mod backoff;
pub mod budget;
pub mod cancellations;
pub mod cluster;
pub mod confirm;
pub mod connect;
mod due;
pub mod endpoint;
pub mod failure;
mod forward;
pub mod heartbeat;
pub mod proxies;
pub mod proxy_header;
mod queue;
pub mod reach;
pub mod session;
pub mod throttle;
pub mod timeline;
pub mod ws;

/// A setting outside its range; the error states both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} must be {bound}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The setting, as a configuration file spells it.
    pub field: &'static str,
    /// What the setting may be.
    pub bound: &'static str,
}

impl ConfigError {
    /// Returns `Ok` if the rule of a setting holds.
    ///
    /// # Errors
    /// It does not.
    pub fn unless(holds: bool, field: &'static str, bound: &'static str) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self { field, bound }) }
    }
}

/// The instant at which tests start; any will do.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "only the differences count")]
fn origin() -> std::time::Instant {
    std::time::Instant::now()
}
