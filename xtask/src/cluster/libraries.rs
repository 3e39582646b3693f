//! Libraries of others and our own clients over two nodes: `clients/proof/nodes.ts`, which starts the nodes.

use std::env;
use std::process::Command;

use super::rounds::Cluster;
use crate::engines::Program;
use crate::run::check;
use crate::{Result, cluster};

/// Yjs and graphql-ws behind their profiles, `mainstay connect` and the client of the live page: each comes back to the other node,
/// and then the node of its session is drained.
pub(super) fn libraries(program: &Program) -> Result<()> {
    let engine = Cluster::start(program, "libraries-engine")?;
    let mut node = Command::new("node");
    node.args(["--import", "tsx", "--test", "--test-timeout=120000", "proof/nodes.ts"]);
    node.env("MAINSTAY", env::current_dir()?.join(cluster::MAINSTAY))
        .env("ENGINE_URL", engine.server()?.url());
    check(node.current_dir("clients")).map(drop)
}
