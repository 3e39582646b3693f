//! WebSocket connections that stay.
//!
//! - [`server`]: an axum extractor whose handler belongs to the *session*: it keeps running while the
//!   client's connection is lost, replaced and resumed, and loses, repeats and reorders nothing.
//! - [`client`]: a client that reconnects and resumes. [`link`]: one towards peers that speak plain
//!   WebSocket; it reconnects, confirms by Ping, and says what that could not keep.
//!
//! Unix only, with any of the features: connections live with workers that have an epoll of their own (or what the system
//! has in its place). [`mainstay_proto`], which has no IO, builds everywhere.
//!
//! How to test a handler or a client in memory and in paused time: `docs/guides/testing.md`.
//!
//! What is decided is decided in [`mainstay_proto`], without IO; here are the sockets and the tasks.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(feature = "server", feature = "client")),
    allow(
        dead_code,
        unused_imports,
        reason = "either side alone leaves out what only the other needs of the sockets"
    ),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "a side that is left out has no page that a link leads to"
    )
)]

#[cfg(not(unix))]
compile_error!(
    "mainstay needs Unix (Linux, macOS, BSD), with any of its features: its workers wait on epoll or kqueue. \
     mainstay-proto, which has no IO, builds everywhere"
);

mod budget;
mod clock;
mod driver;
#[cfg(feature = "json")]
mod json;
mod memory;
mod receipt;
mod subprotocol;
mod transport;
mod waiters;
mod worker;

#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod link;
#[cfg(feature = "server")]
pub mod server;

#[cfg(feature = "test")]
pub mod test;

#[cfg(feature = "server")]
pub use server::{Server, Session, SessionUpgrade, serve};

#[cfg(feature = "client")]
pub use client::Client;
#[cfg(feature = "client")]
pub use link::Link;

#[cfg(feature = "json")]
pub use self::json::SendJsonError;
pub use self::receipt::{Outcome, Receipt};
pub use budget::{Budget, Kept, Level};
pub use mainstay_proto::ConfigError;
pub use mainstay_proto::backoff::BackoffConfig;
pub use mainstay_proto::confirm::{Confirm, Guarantee, WhenFull};
pub use mainstay_proto::connect::Report;
pub use mainstay_proto::heartbeat::{Evidence, HeartbeatConfig};
pub use mainstay_proto::session::message::{GapCause, LossCause, SessionId};
pub use mainstay_proto::session::{Fate, LostMessages, Message, PeerClose, Window};
/// What a client does after a close code: see [`CloseCode::action`].
pub use mainstay_proto::ws::close::CloseAction;
pub use mainstay_proto::ws::{CloseCode, CloseFrame, Kind, Limits, NotUtf8, Utf8Bytes};

/// Why a message was not accepted. The error holds the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The window is full: as much is kept for the peer as may be. There is room again once the peer acknowledges.
    #[error("the window is full")]
    Full(Message),
    /// The session or the client accepts nothing more: it was closed, or it has ended.
    #[error("the session is over")]
    Closed(Message),
    /// The message is larger than the peer accepts.
    #[error("a message of {} bytes, and the peer accepts at most {limit}", message.len())]
    TooLarge {
        /// The message.
        message: Message,
        /// The payload of the largest message that the peer accepts, in bytes.
        limit: u64,
    },
}

impl SendError {
    /// The message that was not accepted.
    #[must_use]
    pub fn into_message(self) -> Message {
        match self {
            Self::Full(message) | Self::Closed(message) | Self::TooLarge { message, .. } => message,
        }
    }
}

/// 32 bytes of the operating system's randomness.
pub(crate) fn random_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    // Without randomness no secret can be made. The call fails only where the system offers none.
    #[allow(clippy::expect_used, reason = "nothing can be served without secrets")]
    getrandom::fill(&mut seed).expect("the operating system gives no randomness");
    seed
}
