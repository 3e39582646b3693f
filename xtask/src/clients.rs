//! The npm packages: their tests, and the proofs in real browsers and against real programs.
//!
//! npm runs them (`clients/package.json`); here the programs are built that they run against, and browsers are found or
//! installed.

use std::env;
use std::process::Command;

use crate::run::{cargo, check};
use crate::{Outcome, Result, install};

/// The programs that the tests connect to: the gateway, the example of the README, and a server that judges credentials.
const PROGRAMS: &str = "build --release --package mainstay-cli --package mainstay --package mainstay-peers \
                        --bin mainstay --example echo --bin credentials_server";

pub(crate) fn step() -> Result<Outcome> {
    install::node_packages("clients")?;
    install::browsers()?;
    cargo(PROGRAMS)?;
    let mainstay = env::current_dir()?.join("target/release/mainstay");
    for script in ["test", "proof"] {
        let mut npm = Command::new("npm");
        npm.args(["run", "--silent", script]).current_dir("clients").env("MAINSTAY", &mainstay);
        check(&mut npm)?;
    }
    Ok(Outcome::Passed)
}
