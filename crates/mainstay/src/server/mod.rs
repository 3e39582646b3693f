//! The server: an axum extractor, a handler for each session, and a shutdown that waits for both.
//!
//! [`Server`](crate::Server) is the application's handle on all of it: it counts and drains every connection and session.
//! [`serve`](crate::serve) puts it into each request, where [`SessionUpgrade`](crate::SessionUpgrade) finds it.
//!
//! ```no_run
//! use std::time::Duration;
//! use axum::{Router, routing::any};
//! use mainstay::server::{Config, DRAIN_WITHIN};
//! use mainstay::{HeartbeatConfig, Server, SessionUpgrade};
//!
//! async fn echo(upgrade: SessionUpgrade) -> axum::response::Response {
//!     upgrade.on_session(|mut session| async move {
//!         while let Some(message) = session.recv().await {
//!             if session.send(message).await.is_err() {
//!                 break;
//!             }
//!         }
//!     })
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::new().heartbeat(HeartbeatConfig::every(Duration::from_secs(10))?);
//! let app = Router::new().route("/echo", any(echo));
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! let stop = async { drop(tokio::signal::ctrl_c().await) };
//! mainstay::serve(listener, app, &Server::new(config)).with_graceful_shutdown(stop, DRAIN_WITHIN).await?;
//! # Ok(())
//! # }
//! ```

mod attach;
mod auth;
mod changes;
mod config;
#[cfg(feature = "cluster")]
mod confirmed;
mod connection;
mod core;
#[cfg(feature = "fault-injection")]
mod disturb;
mod drain;
mod fault;
mod group;
pub(crate) mod handle;
#[cfg(feature = "http2")]
mod http2;
mod inner;
#[cfg(feature = "cluster")]
mod leave;
mod limits;
mod list;
mod make_service;
mod open;
#[cfg(feature = "cluster")]
mod owner;
mod paced_log;
mod paths;
mod peer;
mod proxy_protocol;
mod room;
#[cfg(feature = "cluster")]
mod route;
mod sender;
pub(crate) mod serve;
pub(crate) mod session;
mod sink;
mod spelling;
mod stats;
mod steps;
mod target;
mod task;
pub mod timeline;
#[cfg(feature = "tls")]
mod tls;
pub(crate) mod upgrade;
mod write_timeout;

#[cfg(feature = "cluster")]
pub(crate) use self::core::Shared;
#[cfg(feature = "cluster")]
pub(crate) use self::owner::attach as attach_from_peer;
pub use mainstay_proto::admission::{AcceptRate, AdmissionConfig, OpeningConfig, Refused};
pub use mainstay_proto::proxies::{ForwardedBy, Network, Proxies};
pub use mainstay_proto::proxy_header::Versions;
pub use mainstay_proto::session::{End, EndCause, LifetimeConfig};
pub use mainstay_proto::throttle::ThrottleConfig;
pub use mainstay_proto::ws::Origins;
pub use mainstay_proto::ws::handshake::HandshakeError;
/// The TLS library whose configuration [`Tls`] takes.
#[cfg(feature = "tls")]
pub use rustls;

pub use self::auth::{AuthError, Identity};
pub use self::changes::Changes;
pub use self::config::Config;
pub use self::connection::Encrypted;
pub use self::group::Group;
pub use self::handle::Sessions;
pub use self::list::{ClientInfo, Page};
pub use self::make_service::MakeService;
pub use self::peer::{PeerInfo, Presence, SessionState};
pub use self::proxy_protocol::ProxyProtocol;
pub use self::room::{Membership, Room, SlowMember};
pub use self::sender::Sender;
pub use self::serve::{DRAIN_WITHIN, Serve};
pub use self::session::Received;
pub use self::stats::{RTT_BUCKETS, Stats};
#[cfg(feature = "tls")]
pub use self::tls::{ClientCertificates, Tls};
pub use self::upgrade::UpgradeRejection;
