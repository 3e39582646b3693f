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
mod operate;
mod packaging;
mod page;
mod profiles;
mod promises;
mod restart;
mod resume;
mod smuggling;
mod support;
mod trust;
mod upstream;
