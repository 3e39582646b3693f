//! Mainstay's machines in virtual time, on a network with every fault.
//!
//! One seed is one world: a server, or a cluster of up to four nodes with an engine and a balancer, a few clients, and a
//! plan of faults that the seed determines. The [`world`] moves
//! messages and time. The [`oracle`] observes what the applications send and receive, and nothing else. The [`judge`]
//! decides when an end may, and when it must, declare a silent peer dead. The same seed gives the same run, to the
//! byte.
//!
//! - [`run`] plays one seed and returns what broke, if anything.
//! - [`explore`] plays every run of a very small world.

pub mod explore;
pub mod judge;
pub mod oracle;
mod payload;
pub mod plan;
pub mod world;

pub use plan::Plan;
pub use world::{Counts, Outcome, run};
