//! The proxy between real sockets of loopback, through its public interface.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod faults;
mod handle;
mod names;
mod stage;
