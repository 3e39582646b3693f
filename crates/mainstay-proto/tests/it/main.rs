//! Behaviour of the machines, in virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod auth;
mod close;
mod cluster;
mod conformance;
mod connect;
mod ends;
mod first_words;
mod json;
mod limits;
mod link;
mod moves;
mod notices;
mod pair;
mod records;
mod replaced;
mod resume;
