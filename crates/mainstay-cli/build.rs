//! Names the commit and the features of this build, for `mainstay --version`.
//!
//! The commit comes from the variable `MAINSTAY_COMMIT`, which the release script and the Dockerfile set; else from the
//! package, where cargo has noted it; else, in a release build, from git. A debug build in the repository asks no git: it
//! would be built again after each commit.

use std::env;
use std::fs;
use std::process::Command;

/// What cargo writes into a package that it makes in a repository.
const PACKAGED: &str = ".cargo_vcs_info.json";

fn main() {
    println!("cargo::rerun-if-env-changed=MAINSTAY_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let given = env::var("MAINSTAY_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(packaged).or_else(checked_out).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=MAINSTAY_COMMIT={commit}");
    println!("cargo::rustc-env=MAINSTAY_FEATURES={}", features());
    println!("cargo::rustc-env=MAINSTAY_TARGET={}", env::var("TARGET").unwrap_or_default());
}

/// `"sha1": "..."` of the package's note.
fn packaged() -> Option<String> {
    let note = fs::read_to_string(PACKAGED).ok()?;
    println!("cargo::rerun-if-changed={PACKAGED}");
    let hash = note.split_once("\"sha1\"")?.1.split('"').nth(1)?;
    Some(hash.get(..12)?.to_owned())
}

/// The commit of this repository and its date, in a release build. Another repository that holds a copy of this crate is
/// not asked.
fn checked_out() -> Option<String> {
    if env::var("PROFILE").as_deref() != Ok("release")
        || git(&["rev-parse", "--show-prefix"])? != "crates/mainstay-cli/"
    {
        return None;
    }
    // Git adds a line to this file with each commit and each checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if fs::exists(&log).is_ok_and(|exists| exists) {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["log", "-1", "--abbrev=12", "--format=%h (%cs)"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let printed = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| printed.trim().to_owned())
}

/// The crate's features that are on, `none` without any.
fn features() -> String {
    let on = env::vars().filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase()));
    let mut on: Vec<String> = on.filter(|name| name != "default").collect();
    on.sort();
    if on.is_empty() { "none".into() } else { on.join(" ") }
}
