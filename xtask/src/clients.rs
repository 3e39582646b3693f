//! The npm packages: their tests, and the proofs in real browsers and against real programs.
//!
//! npm runs them (`clients/package.json`); here the programs are built that they run against, and Chromium is found
//! or installed.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::run::{cargo, check};
use crate::{Outcome, Result, install};

/// What the tests talk to: the gateway, and the servers among the examples.
const PROGRAMS: &str = "build --release --package mainstay-gateway --package mainstay --bin mainstay --example echo";

pub(crate) fn step() -> Result<Outcome> {
    install::node_packages("clients")?;
    let chromium = install::chromium()?;
    cargo(PROGRAMS)?;
    let mainstay = env::current_dir()?.join("target/release/mainstay");
    for script in ["test", "proof"] {
        npm(script, &mainstay, &chromium)?;
    }
    Ok(Outcome::Passed)
}

fn npm(script: &str, mainstay: &Path, chromium: &Path) -> Result<()> {
    let mut npm = Command::new("npm");
    npm.args(["run", "--silent", script]).current_dir("clients");
    npm.env("MAINSTAY", mainstay).env("CHROMIUM", chromium);
    check(&mut npm)?;
    Ok(())
}
