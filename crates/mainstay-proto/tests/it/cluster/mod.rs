//! Nodes that serve one another's sessions: the table, lookups, releases, and the bytes between nodes.

mod blocks;
mod engine;
mod explore;
mod lookup;
mod nodes;
mod notes;
mod records;
mod releases;
mod table;
