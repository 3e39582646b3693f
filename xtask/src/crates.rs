//! What a crate must be before it is published: built with each feature alone and by the oldest compiler, documented
//! without a warning, packaged whole, licensed, and compatible with the last release.
//!
//! Each step reads the crates and their features from `cargo metadata`: a new feature is tested without a change here.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::run::{cargo, check, output, succeeds};
use crate::{Outcome, Result};

/// The files that each package has beside its sources.
const ALONGSIDE: [&str; 8] = [
    ".cargo_vcs_info.json",
    "Cargo.lock",
    "Cargo.toml",
    "Cargo.toml.orig",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "build.rs",
];

/// The profile of the workspace, which an unpacked crate does not see: with it the dependencies are built once.
const PROFILE: [&str; 6] = [
    "--config",
    "profile.dev.debug='line-tables-only'",
    "--config",
    "profile.dev.package.sha2.opt-level=2",
    "--config",
    "profile.dev.package.mainstay-proto.opt-level=2",
];

/// Tests that need a feature which `cargo test` leaves out, by crate, feature and the beginning of their names.
const TESTS: [(&str, &str, &str); 1] = [("mainstay-cli", "otlp", "spans::")];

/// Lints each crate with no feature, its tests and examples too, and with each of its features alone. The step `clippy` has
/// the default ones, and all that the workspace uses together. Then runs the tests of features that are off by default.
pub(crate) fn features() -> Result<Outcome> {
    for package in members(&metadata(&["--no-deps"])?) {
        let lint = |arguments: &str| {
            cargo(&format!("clippy --package {} {arguments} -- -D warnings", text(package, "name")))
        };
        for (index, selection) in selections(package).iter().enumerate() {
            lint(selection)?;
            if index == 0 {
                lint(&format!("{selection} --all-targets"))?;
            }
        }
    }
    for (package, feature, name) in TESTS {
        cargo(&format!("test --package {package} --features {feature} {name}"))?;
    }
    Ok(Outcome::Passed)
}

/// Checks the workspace by the compiler that `rust-version` names. Where this machine lacks it, the step checks what the
/// dependencies demand, and is skipped.
pub(crate) fn msrv() -> Result<Outcome> {
    let metadata = metadata(&["--filter-platform", &host()?])?;
    let ours = members(&metadata).find(|package| package["name"] == "mainstay").ok_or("no crate mainstay")?;
    let version = text(ours, "rust_version");
    let parts =
        |version: &str| version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
    let newer =
        |package: &&Value| parts(text(package, "rust_version")) > [parts(version), vec![u32::MAX]].concat();
    if let Some(package) = members(&metadata).find(newer) {
        let (name, needed) = (text(package, "name"), text(package, "rust_version"));
        return Err(format!("{name} needs Rust {needed}, and rust-version promises {version}").into());
    }
    let installed = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let is_it = |name: &&str| name.strip_prefix(version).is_some_and(|rest| rest.starts_with(['.', '-']));
    let Some(toolchain) = installed.split_whitespace().find(is_it) else {
        let lacks =
            format!("no Rust {version} here (rustup toolchain install {version}): no dependency needs more");
        return Ok(Outcome::Skipped(lacks));
    };
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, "cargo", "check", "--workspace", "--all-features"]);
    // These variables name the compiler of this run.
    check(command.env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN"))
}

/// Documents the workspace, and the library with each feature alone; a warning is an error.
pub(crate) fn rustdoc() -> Result<Outcome> {
    let document = |arguments: &str| {
        let mut command = self::command("doc");
        command.arg("--no-deps").args(arguments.split_whitespace());
        check(command.env("RUSTDOCFLAGS", "-D warnings"))
    };
    document("--workspace --all-features")?;
    let metadata = metadata(&["--no-deps"])?;
    for package in published(&metadata) {
        for selection in selections(package) {
            document(&format!("--package {} {selection}", text(package, "name")))?;
        }
    }
    Ok(Outcome::Passed)
}

/// Packages the published crates, and builds each of them as it was packed, documentation tests included.
pub(crate) fn package() -> Result<Outcome> {
    let metadata = metadata(&["--no-deps"])?;
    let packages: Vec<&Value> = published(&metadata).collect();
    let mut together = command("package");
    // Cargo's own verification unpacks the crates that depend on each other below its home, and never again.
    together.args(["--quiet", "--allow-dirty", "--no-verify"]);
    for package in &packages {
        let name = text(package, "name");
        lists_what_it_should(name)?;
        shows_its_features(package)?;
        together.args(["--package", name]);
    }
    check(&mut together)?;
    let unpacked = |package: &Value| format!("{}-{}", text(package, "name"), text(package, "version"));
    for package in &packages {
        let (archive, folder) = (format!("{}.crate", unpacked(package)), Path::new("target/package"));
        let _ = fs::remove_dir_all(folder.join(unpacked(package)));
        // In the archive all files have one time, by which cargo would see no change.
        check(Command::new("tar").args(["-xz", "--touch", "-f", &archive]).current_dir(folder))?;
    }
    let target = env::current_dir()?.join("target");
    for package in &packages {
        let manifest = target.join("package").join(unpacked(package)).join("Cargo.toml");
        let is_library = package["targets"][0]["kind"][0] == "lib";
        // The program is compiled and not linked: the proofs have the linked one.
        let mut build = command(if is_library { "test" } else { "check" });
        build
            .args(["--quiet", "--manifest-path"])
            .arg(manifest)
            .args(is_library.then_some("--doc"))
            .arg("--all-features")
            .args(PROFILE);
        // The crates beside it may be on no registry yet.
        for other in packages.iter().filter(|other| other["name"] != package["name"]) {
            let folder = target.join("package").join(unpacked(other));
            let patch = format!("patch.crates-io.{}.path='{}'", text(other, "name"), folder.display());
            build.args(["--config", &patch]);
        }
        check(build.env("CARGO_TARGET_DIR", &target))?;
    }
    Ok(Outcome::Passed)
}

/// A package holds its sources, its licences and its README, and nothing else.
fn lists_what_it_should(name: &str) -> Result<()> {
    let listed = output(command("package").args(["--list", "--allow-dirty", "--quiet", "--package", name]))?;
    println!("{name}: {} files", listed.lines().count());
    let strange = listed.lines().find(|file| !(file.starts_with("src/") || ALONGSIDE.contains(file)));
    if let Some(file) = strange {
        return Err(format!("{name}: `{file}` is in the package; see `include` in its Cargo.toml").into());
    }
    for file in ["LICENSE-APACHE", "LICENSE-MIT", "README.md"] {
        if !listed.lines().any(|listed| listed == file) {
            return Err(format!("{name}: no {file} in the package").into());
        }
        let copy = fs::read(format!("crates/{name}/{file}"))?;
        if file.starts_with("LICENSE") && copy != fs::read(file)? {
            return Err(format!("crates/{name}/{file} differs from {file}: copy it").into());
        }
    }
    Ok(())
}

/// The README of a package names each of its features.
fn shows_its_features(package: &Value) -> Result<()> {
    let path = format!("crates/{}/README.md", text(package, "name"));
    let readme = fs::read_to_string(&path)?;
    let mut features = package["features"].as_object().into_iter().flatten().map(|(name, _)| name);
    match features.find(|name| *name != "default" && !readme.contains(&format!("`{name}`"))) {
        Some(feature) => Err(format!("{path} does not name the feature `{feature}`").into()),
        None => Ok(()),
    }
}

/// Judges every dependency by deny.toml: by cargo-deny where it is installed, else its licences and its source.
pub(crate) fn deny() -> Result<Outcome> {
    if succeeds(command("deny").arg("--version")) {
        return cargo("deny check bans licenses sources");
    }
    let rules = fs::read_to_string("deny.toml")?;
    let allowed: BTreeSet<&str> = rules
        .split_once("\nallow = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(list, _)| list.split('"').skip(1).step_by(2).collect())
        .ok_or("deny.toml has no `allow = [` of licences")?;
    let metadata = metadata(&["--all-features", "--filter-platform", &host()?])?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    for package in packages {
        let (name, version) = (text(package, "name"), text(package, "version"));
        let (licence, source) = (text(package, "license"), text(package, "source"));
        if package["source"].is_null() {
            continue; // ours
        }
        if !is_allowed(licence, &allowed) {
            return Err(format!("{name} {version}: deny.toml does not allow its licence `{licence}`").into());
        }
        if !source.starts_with("registry+") {
            return Err(format!("{name} {version} comes from {source}, not from the registry").into());
        }
    }
    println!("licences and sources of {} packages are as deny.toml has them", packages.len());
    cargo("tree --workspace --duplicates --depth 0")?;
    Ok(Outcome::Skipped(
        "without cargo-deny: licences and sources checked, bans not (cargo install cargo-deny)".into(),
    ))
}

/// Whether one alternative of each part of an SPDX expression is allowed. Stricter than SPDX where an AND stands
/// inside of an OR, which no dependency has.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace('/', " OR ");
    let is_one = |name: &str| allowed.contains(name.trim_matches(['(', ')', ' ']));
    expression.split(" AND ").all(|part| part.split(" OR ").any(is_one))
}

/// Compares the public API with the last release's: a break needs a new major version.
pub(crate) fn semver() -> Result<Outcome> {
    let tags = output(Command::new("git").args(["tag", "--list", "v*", "--sort=-version:refname"]))?;
    let Some(last) = tags.lines().next() else {
        return Ok(Outcome::Skipped(
            "no tag v* yet: the first release has nothing to be compared with".into(),
        ));
    };
    if !succeeds(command("semver-checks").arg("--version")) {
        return Ok(Outcome::Skipped(format!("not compared with {last}: cargo install cargo-semver-checks")));
    }
    cargo(&format!("semver-checks --baseline-rev {last}"))
}

/// What `cargo metadata` prints with these arguments beside the usual ones.
pub(crate) fn metadata(arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&output(command("metadata").args(["--format-version", "1"]).args(arguments))?)?)
}

/// The triple of this machine.
pub(crate) fn host() -> Result<String> {
    let printed = output(Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV"))?;
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc -vV names no host".into())
}

/// A string of a JSON object, empty where there is none.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn command(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand);
    command
}

/// The packages that cargo lists: with `--no-deps`, those of the workspace.
fn members(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

/// Those that go to the registry, each after the ones that it depends on.
fn published(metadata: &Value) -> impl Iterator<Item = &Value> {
    let mut found: Vec<&Value> = members(metadata).filter(|package| package["publish"].is_null()).collect();
    let needs = |package: &Value| {
        let needed = package["dependencies"].as_array().into_iter().flatten();
        needed.filter(|needed| !needed["path"].is_null()).count()
    };
    found.sort_by_key(|package| needs(package));
    found.into_iter()
}

/// The arguments for no feature, and for each feature alone, but for one that is all of the default ones; none for a crate
/// without features.
fn selections(package: &Value) -> Vec<String> {
    let features = package["features"].as_object().into_iter().flatten().map(|(name, _)| name);
    let is_default = |name: &String| package["features"]["default"] == json!([name]);
    let each = features
        .filter(|name| *name != "default")
        .map(|name| (!is_default(name)).then(|| format!("--no-default-features --features {name}")));
    let mut all: Vec<_> = each.collect();
    if !all.is_empty() {
        all.insert(0, Some("--no-default-features".into()));
    }
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_allowed_if_each_part_has_an_allowed_alternative() {
        let allowed = BTreeSet::from(["MIT", "Unicode-3.0"]);
        for fine in ["MIT", "Apache-2.0 OR MIT", "MIT/Apache-2.0", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
            assert!(is_allowed(fine, &allowed), "{fine}");
        }
        for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "(Apache-2.0 OR BSL-1.0) AND Unicode-3.0"] {
            assert!(!is_allowed(refused, &allowed), "{refused}");
        }
    }

    #[test]
    fn the_workflows_call_steps_that_exist() {
        let workflow = include_str!("../../.github/workflows/ci.yml");
        let called = workflow.lines().filter_map(|line| line.trim().strip_prefix("- run: cargo xtask test "));
        let steps: Vec<&str> = called.collect();
        assert!(!steps.is_empty() && workflow.contains("bash .ci/run"));
        for step in steps {
            assert!(crate::STEPS.iter().any(|known| known.name == step), "{step}");
        }
    }
}
