//! Server and client over loopback, with a proxy between them that can cut.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod budget;
mod chat;
mod client_handles;
mod credentials;
mod ends;
#[cfg(feature = "cluster")]
mod engine;
mod extract;
mod fanout;
mod faults;
mod feed;
mod handles;
mod hostile;
mod lines;
mod link;
mod logs;
mod manual;
mod operator;
mod ordered;
mod promises;
mod reach;
mod request;
mod room;
mod serve;
#[cfg(feature = "http2")]
mod serve_tls;
mod session;
mod session_ends;
mod shutdown;
mod sizes;
mod stream;
mod support;
#[cfg(feature = "tls")]
mod tls;
