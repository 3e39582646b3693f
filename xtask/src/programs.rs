//! The programs that the proofs run, built for release.
//!
//! Each package is built by a command of its own: two packages of one command share the features of all that they depend on,
//! and almost every dependency is compiled once more.

use crate::Result;
use crate::run::cargo;

/// The gateway and the tools, as users get them.
pub(crate) const MAINSTAY: &str = "target/release/mainstay";

/// Builds [`MAINSTAY`].
pub(crate) fn mainstay() -> Result<()> {
    cargo("build --release --package mainstay-cli").map(drop)
}

/// Builds these programs of `proof/peers` into `target/release`.
pub(crate) fn peers(names: &[&str]) -> Result<()> {
    let programs: String = names.iter().map(|name| format!(" --bin {name}")).collect();
    cargo(&format!("build --release --package mainstay-peers{programs}")).map(drop)
}
