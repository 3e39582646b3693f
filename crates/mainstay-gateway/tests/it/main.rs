//! The real binary, as people, scripts and backends meet it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod admin;
mod bench;
mod bounds;
mod connect;
mod flags;
mod frames;
mod handshake;
mod hostile;
mod http;
mod loss;
mod losses;
mod page;
mod profiles;
mod resume;
mod smuggling;
mod support;
mod trust;
mod upstream;
