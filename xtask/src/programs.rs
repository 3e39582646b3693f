//! The programs that the proofs run, built for release: [`MAINSTAY`] is the one that users download, with the same features and
//! without a folder of the builder in it.
//!
//! Each package is built by a command of its own: two packages of one command share the features of all that they depend on,
//! and almost every dependency is compiled once more.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{check, output};
use crate::{Outcome, Result};

/// The gateway and the tools, as users get them.
pub(crate) const MAINSTAY: &str = "target/release/mainstay";

/// What the released programs have beyond the default: an operator cannot build them again, and it costs nothing while it is off.
pub(crate) const FEATURES: [&str; 2] = ["--features", "mainstay-cli/otlp"];

/// Builds every program that the steps run, so that none of them waits for a compiler.
pub(crate) fn all() -> Result<Outcome> {
    mainstay()?;
    peers(&[
        "autobahn_client",
        "bench_server",
        "credentials_server",
        "outage_client",
        "relay_client",
        "storm_client",
        "storm_server",
        "token_check",
    ])?;
    Ok(Outcome::Passed)
}

/// Builds [`MAINSTAY`].
pub(crate) fn mainstay() -> Result<()> {
    check(build()?.args(["--release", "--package", "mainstay-cli"]).args(FEATURES)).map(drop)
}

/// Builds these programs of `proof/peers` into `target/release`.
pub(crate) fn peers(names: &[&str]) -> Result<()> {
    let programs = names.iter().flat_map(|name| ["--bin", name]);
    // With the same flags, or everything that they share with the gateway is compiled twice.
    check(build()?.args(["--release", "--package", "mainstay-peers"]).args(programs)).map(drop)
}

/// `cargo build` that takes the builder's folders out of every path in a program.
pub(crate) fn build() -> Result<Command> {
    let remapped =
        builders_folders()?.into_iter().map(|(folder, name)| format!("--remap-path-prefix={folder}={name}"));
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("build").env("CARGO_ENCODED_RUSTFLAGS", remapped.collect::<Vec<_>>().join("\u{1f}"));
    Ok(cargo)
}

/// This checkout, cargo's folder and the compiler's, and what stands for them. The last that fits counts.
pub(crate) fn builders_folders() -> Result<Vec<(String, &'static str)>> {
    let home = env::home_dir().ok_or("no home folder")?;
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let compiler = output(Command::new("rustc").args(["--print", "sysroot"]))?.trim().to_owned();
    let shown = |path: &Path| path.display().to_string();
    Ok(vec![
        (shown(&home), "home"),
        (compiler, "rustc"),
        (shown(&cargo), "cargo"),
        (shown(&env::current_dir()?), "mainstay"),
    ])
}
