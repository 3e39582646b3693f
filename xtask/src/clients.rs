//! The npm packages: their tests, and the proofs in real browsers and against real programs.
//!
//! npm runs them (`clients/package.json`); here the programs are built that they run against, and browsers are found or
//! installed.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::programs::{self, MAINSTAY};
use crate::run::{cargo, check, tracked_files};
use crate::{Outcome, Result, install};

/// The sources of the last build, with their times.
const BUILT: &str = "target/xtask/clients-built.txt";

pub(crate) fn step() -> Result<Outcome> {
    let preparing = install::alone()?;
    install::browsers()?;
    build()?;
    // The programs that the tests connect to: the gateway, a server that judges credentials, the example of the README.
    programs::mainstay()?;
    programs::peers(&["credentials_server"])?;
    cargo("build --workspace --tests --example echo")?;
    drop(preparing);
    let mainstay = env::current_dir()?.join(MAINSTAY);
    for script in ["test:built", "proof:built"] {
        let mut npm = Command::new("npm");
        npm.args(["run", "--silent", script]).current_dir("clients").env("MAINSTAY", &mainstay);
        check(&mut npm)?;
    }
    Ok(Outcome::Passed)
}

/// Builds the packages, for all steps that run them, unless they are built and no source has changed since.
pub(crate) fn build() -> Result<()> {
    install::node_packages("clients")?;
    let sources = sources()?;
    let is_built = fs::read_to_string(BUILT).is_ok_and(|built| built == sources)
        && ["typescript", "fastify", "chaos"]
            .iter()
            .all(|package| Path::new("clients").join(package).join("dist/index.js").exists());
    if is_built {
        return Ok(());
    }
    check(Command::new("npm").args(["run", "--silent", "build"]).current_dir("clients"))?;
    fs::create_dir_all("target/xtask")?;
    Ok(fs::write(BUILT, sources)?)
}

/// The files of the packages, each with the time of its last change.
fn sources() -> Result<String> {
    let mut sources = String::new();
    for path in tracked_files()?.iter().filter(|path| path.starts_with("clients/")) {
        writeln!(sources, "{path} {:?}", fs::metadata(path)?.modified()?)?;
    }
    Ok(sources)
}
