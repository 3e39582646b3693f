//! The driver of engines against a real one: `MAINSTAY_ENGINE` names redis-server or valkey-server. `cargo xtask test cluster`
//! installs both and runs this program with each; a plain `cargo test` leaves it out.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod answers;
mod checks;
mod faults;
mod many;
mod node;
mod requests;
mod server;
