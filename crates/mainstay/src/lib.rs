//! WebSocket connections that stay: for axum and tokio.
//!
//! A [`Session`] outlives its connections. While the client's connection is lost, replaced and resumed, the handler keeps
//! running and the messages wait; each one is delivered exactly once and in order, or the application learns which were
//! lost. Heartbeats find a dead peer on either side, reconnecting clients spread themselves, and a deployment ends sessions
//! in order. Clients and servers that speak plain WebSocket are served too, with everything that needs no second end.
//!
//! # A server in 30 seconds
//!
//! ```no_run
//! # #[cfg(feature = "server")]
//! # mod example {
//! use axum::{Router, response::Response, routing::any};
//! use mainstay::{Server, SessionUpgrade};
//!
//! async fn echo(upgrade: SessionUpgrade) -> Response {
//!     upgrade.on_session(|mut session| async move {
//!         while let Some(message) = session.recv().await {
//!             if session.send(message).await.is_err() {
//!                 break; // the session is over
//!             }
//!         }
//!     })
//! }
//!
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let app = Router::new().route("/echo", any(echo));
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//!     mainstay::serve(listener, app, &Server::default()).await
//! }
//! # }
//! ```
//!
//! # A client
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # mod example {
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let mut client = mainstay::Client::builder("ws://127.0.0.1:8080/echo")?.connect();
//!     client.send("hello").await?; // kept until the server has it, over as many connections as that needs
//!     println!("{:?}", client.recv().await);
//!     Ok(())
//! }
//! # }
//! ```
//!
//! Browsers and Node.js use the npm package `@mainstay/client`.
//!
//! # Which part
//!
//! | You have | Use |
//! |---|---|
//! | an axum application | [`serve`] and [`SessionUpgrade`]; behind another server, [`Server::layer`] |
//! | a client of a server that speaks `mainstay.v1` | [`Client`]; towards a plain server it reconnects without a session |
//! | a client of a server that is known to be plain: a feed, an exchange | [`Link`]: it reconnects, confirms by Ping, and reports the fate of each message |
//! | a backend in another language, left as it is | the gateway: the program `mainstay` (crate `mainstay-cli`) in front of it |
//! | a handler to test | [`mod@test`] (feature `test`): handler and client meet in memory, in virtual time |
//!
//! # Features
//!
//! | Feature | Default | What it adds |
//! |---|---|---|
//! | `server` | yes | the axum extractor, the server loop, rooms |
//! | `client` | yes | the reconnecting client, and links towards plain peers |
//! | `tls` | yes | `wss://` for the client (rustls with ring) |
//! | `idn` | no | hosts beyond ASCII in URLs: `ws://münchen.example` |
//! | `json` | no | typed messages: [`Message::json`], `send_json`, `recv_json` |
//! | `cluster` | no | many nodes that serve one another's sessions, over Redis or Valkey: [`cluster`] |
//! | `fault-injection` | no | `cut`, `hold` and `go_away` on a server's [`Sender`](server::Sender) |
//! | `test` | no | the test kit |
//!
//! # What is guaranteed
//!
//! - Between two ends that speak `mainstay.v1`: each message arrives exactly once and in order over any number of
//!   connections, as long as the client comes back within the resume window (2 minutes by default).
//! - Otherwise the application learns it: a gap names the messages that were lost, and a [`Receipt`] settles for each tracked
//!   one.
//! - A peer that is gone is found within the heartbeat's interval and deadline, 30 s by default.
//! - Every queue is bounded: a full one makes the sender wait, or returns the message.
//!
//! The [guarantees](https://github.com/mainstay/mainstay/blob/main/docs/GUARANTEES.md) name the test behind each promise; the
//! [defaults](https://github.com/mainstay/mainstay/blob/main/docs/DEFAULTS.md) have a reason each, and the
//! [protocol](https://github.com/mainstay/mainstay/blob/main/docs/PROTOCOL.md) is public.
//!
//! # Read on
//!
//! - [`server`], [`client`], [`link`]: the three sides, with their options and events.
//! - Guides: [authentication](https://github.com/mainstay/mainstay/blob/main/docs/guides/authentication.md),
//!   [broadcast](https://github.com/mainstay/mainstay/blob/main/docs/guides/broadcast.md),
//!   [testing](https://github.com/mainstay/mainstay/blob/main/docs/guides/testing.md),
//!   [deploying](https://github.com/mainstay/mainstay/blob/main/docs/guides/deploying.md).
//! - [Examples](https://github.com/mainstay/mainstay/tree/main/examples), one for each need.
//! - [`mainstay_proto`]: the machines behind this crate, which decide without IO and run in a simulator.
//!
//! # Platforms
//!
//! Unix (Linux, macOS, BSD): workers poll the connections on an epoll of their own, or the system's counterpart.
//! [`mainstay_proto`], which has no IO, builds everywhere.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(feature = "server", feature = "client")),
    allow(dead_code, unused_imports, reason = "either side alone leaves out what only the other needs")
)]
#![cfg_attr(
    not(all(feature = "server", feature = "client", feature = "tls", feature = "json", feature = "test")),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "a feature that is off leaves out what some links lead to"
    )
)]

#[cfg(not(unix))]
compile_error!(
    "mainstay needs Unix (Linux, macOS, BSD), with any of its features: its workers wait on epoll or kqueue. \
     mainstay-proto, which has no IO, builds everywhere"
);

mod budget;
mod clock;
#[cfg(feature = "cluster")]
pub mod cluster;
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
pub use self::server::{handle::Server, serve::serve, session::Session, upgrade::SessionUpgrade};

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
pub use mainstay_proto::heartbeat::{Evidence, HeartbeatConfig};
pub use mainstay_proto::session::message::{GapCause, LossCause, SessionId};
pub use mainstay_proto::session::{Fate, LostMessages, Message, PeerClose, Window};
/// What a client does after a close code: see [`CloseCode::action`].
pub use mainstay_proto::ws::close::CloseAction;
pub use mainstay_proto::ws::{CloseCode, Kind, Limits, NotUtf8, Utf8Bytes};

/// A message that was not accepted, and why. The error returns the message.
///
/// ```no_run
/// # use mainstay::{Message, SendError};
/// # fn run(outcome: Result<(), SendError>) {
/// match outcome {
///     Ok(()) => {}
///     Err(SendError::Full(message)) => println!("later: {message:?}"),
///     Err(SendError::TooLarge { message, limit }) => println!("{message:?} is larger than {limit} bytes"),
///     Err(error) => drop(error.into_message()),
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The window is full; there is room again once the peer acknowledges messages.
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
    /// Returns the message that was not accepted.
    #[must_use]
    pub fn into_message(self) -> Message {
        match self {
            Self::Full(message) | Self::Closed(message) | Self::TooLarge { message, .. } => message,
        }
    }
}

/// Returns 32 bytes of the operating system's randomness.
pub(crate) fn random_seed() -> [u8; 32] {
    let mut seed = [0; 32];
    // Without randomness no secret can be made. The call fails only where the system offers none.
    #[allow(clippy::expect_used, reason = "nothing can be served without secrets")]
    getrandom::fill(&mut seed).expect("the operating system gives no randomness");
    seed
}
