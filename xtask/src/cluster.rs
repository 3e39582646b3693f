//! The proof of clusters: real nodes with a real engine, an unmodified Fastify application behind them, a balancer that picks
//! at random in front, and clients that number everything both ways.
//!
//! ```text
//! cluster_client (cut) <-> cluster_balancer <-> mainstay serve x 3  <-> backend.mjs
//!                                               (drained, killed, stopped)
//!                                                    redis-server, valkey-server (killed, stopped, emptied)
//! ```
//!
//! Before that the driver is tested alone, against both engines: `engines::drive`.
//!
//! Every part is a process of its own. Backend and clients write down what they saw; `verdict` compares the two, and `rows`
//! says what each round must count: nothing is lost without a report, nothing comes twice, nothing at all is lost where nodes
//! are drained and sessions may move, and every reported gap is one that docs/CLUSTER.md names.

mod rounds;
mod rows;
mod stage;
mod startup;
mod strangers;
mod verdict;

use crate::engines::{self, Brand, Program};
use crate::run::cargo;
use crate::{Depth, Outcome, Result, install};

const MAINSTAY: &str = "target/debug/mainstay";
const BALANCER: &str = "target/debug/cluster_balancer";
const CLIENT: &str = "target/debug/cluster_client";

/// The metric that counts the nodes that a node knows, itself included.
const NODES: &str = "mainstay_cluster_nodes";

pub(crate) fn step(depth: Depth) -> Result<Outcome> {
    engines::drive()?;
    install::node_packages("proof")?;
    cargo(
        "build --package mainstay-cli --package mainstay-peers --bin mainstay --bin cluster_balancer --bin cluster_client",
    )?;
    let size = rounds::Size::of(depth);
    rounds::without_a_cluster(&size)?;
    let redis = Program::install(Brand::Redis)?;
    rounds::cuts(&redis, &size)?;
    rounds::engine_faults(&redis, &size)?;
    rounds::deploy(&redis, &size)?;
    rounds::deploy_movable(&redis, &size, 3)?;
    rounds::kill(&redis, &size)?;
    rounds::pause(&redis, &size)?;
    rounds::restart_with_file(&size)?;
    strangers::strangers(&redis, &size)?;
    startup::refused(&redis)?;
    startup::engine_comes_later(&redis, &size)?;
    startup::two_clusters(&redis, &size)?;
    let valkey = Program::install(Brand::Valkey)?;
    rounds::cuts(&valkey, &size)?;
    rounds::deploy_movable(&valkey, &size, 1)?;
    Ok(Outcome::Passed)
}
