//! Two and three servers in one process, with an engine in memory, clients of this crate, and a balancer that picks.
