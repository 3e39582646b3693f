//! Behaviour of the machines, in virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod codec;
mod link;
mod pair;
mod resume;
