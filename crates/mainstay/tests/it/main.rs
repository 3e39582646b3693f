//! Server and client over loopback, with a proxy between them that can cut.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod hostile;
mod link;
mod session;
mod support;
