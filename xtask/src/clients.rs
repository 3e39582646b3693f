//! The npm packages: their tests, and the proofs in real browsers and against real programs.
//!
//! npm runs them (`clients/package.json`); here the programs are built that they run against, and browsers are found or
//! installed.

use std::env;
use std::process::Command;

use crate::programs::{self, MAINSTAY};
use crate::run::{cargo, check};
use crate::{Outcome, Result, install};

pub(crate) fn step() -> Result<Outcome> {
    install::node_packages("clients")?;
    install::browsers()?;
    // The programs that the tests connect to: the gateway, a server that judges credentials, the example of the README.
    programs::mainstay()?;
    programs::peers(&["credentials_server"])?;
    cargo("build --workspace --tests --example echo")?;
    let mainstay = env::current_dir()?.join(MAINSTAY);
    for script in ["test", "proof"] {
        let mut npm = Command::new("npm");
        npm.args(["run", "--silent", script]).current_dir("clients").env("MAINSTAY", &mainstay);
        check(&mut npm)?;
    }
    Ok(Outcome::Passed)
}
