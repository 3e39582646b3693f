//! The real binary, as people, scripts and backends meet it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod bench;
mod connect;
mod flags;
mod page;
mod support;
mod upstream;
