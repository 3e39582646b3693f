//! Behaviour of the machines, in virtual time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod pair;
mod resume;
