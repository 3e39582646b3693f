//! Mainstay's machines in virtual time, on a network that does its worst.
//!
//! One seed is one world: a server, a few clients, and a plan of faults drawn from the seed. The
//! [`world`] moves messages and time, the [`oracle`] watches what the applications see and knows
//! nothing of how it came about, the [`judge`] says when a silent peer may and must be called dead. The
//! same seed gives the same run, to the byte.
//!
//! - [`run`] plays one seed and says what broke, if anything.
//! - [`explore`] plays every run of a very small world.

pub mod explore;
pub mod judge;
mod letter;
pub mod oracle;
pub mod plan;
pub mod world;

pub use plan::Plan;
pub use world::{Counts, Outcome, run};
