//! What users download: `cargo xtask release` fills `dist` with a tarball (program, manual pages, completions, unit,
//! licences), a Debian package, a bill of materials and their checksums.
//!
//! The same commit gives the same bytes, where the compiler and the paths below the remapped ones are the same: times are
//! the commit's, owners are root, and no path of the builder is in the program.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::{Value, json};

use crate::crates::{host, metadata, text};
use crate::programs::{self, FEATURES, MAINSTAY};
use crate::run::{check, output, succeeds};
use crate::{Depth, Outcome, Result};

const DIST: &str = "dist";
/// What the tarball holds. The Debian package takes its files from here too.
const FILES: &str = "dist/files";
/// The shells, and the names under which they look for a completion script.
const COMPLETIONS: [(&str, &str); 5] = [
    ("bash", "mainstay.bash"),
    ("elvish", "mainstay.elv"),
    ("fish", "mainstay.fish"),
    ("powershell", "_mainstay.ps1"),
    ("zsh", "_mainstay"),
];
#[derive(Args)]
pub(crate) struct Options {
    /// For which target, for example x86_64-unknown-linux-musl, whose program is static. Default: this machine's
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let target = options.target.clone().map_or_else(host, Ok)?;
    can_be_built(&target)?;
    build(&target)?;
    make(&target)
}

/// Makes them of the program that the other steps run, which differs from a released one by its symbols alone. Nightly it is built
/// by the command of a release.
pub(crate) fn step(depth: Depth) -> Result<Outcome> {
    if depth == Depth::Nightly {
        return run(&Options { target: None });
    }
    let target = host()?;
    programs::mainstay()?;
    let program = program(&target);
    fs::create_dir_all(program.with_file_name(""))?;
    check(Command::new("strip").args(["--strip-all", "-o"]).arg(&program).arg(MAINSTAY))?;
    make(&target)
}

/// Fills [`DIST`] with what is made of [`program`].
fn make(target: &str) -> Result<Outcome> {
    let program = program(target);
    names_no_builder(&program)?;
    let metadata = metadata(&["--filter-platform", target, FEATURES[0], FEATURES[1]])?;
    let packages = linked(&metadata)?;
    let version = packages.iter().find(|package| package["name"] == "mainstay-cli");
    let name = format!("mainstay-{}-{target}", text(version.ok_or("no mainstay-cli")?, "version"));
    let _ = fs::remove_dir_all(DIST);
    stage(&program, &packages)?;
    archive(&name)?;
    fs::write(format!("{DIST}/{name}.cdx.json"), bill_of_materials(&metadata, &packages)?)?;
    debian_package(target)?;
    checksums()?;
    manual_pages_are_clean()?;
    unit_is_valid(&program)?;
    Ok(Outcome::Passed)
}

/// Where the program of a release is, and cargo-deb finds it.
fn program(target: &str) -> PathBuf {
    Path::new("target").join(target).join("dist/mainstay")
}

/// Returns an error that names what this machine lacks for the target.
fn can_be_built(target: &str) -> Result<()> {
    let library = output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]))?;
    if !Path::new(library.trim()).is_dir() {
        return Err(format!("no standard library for {target}: rustup target add {target}").into());
    }
    let cross = target.ends_with("-musl") && host()? != target;
    if cross && !succeeds(Command::new("musl-gcc").arg("--version")) {
        return Err("no musl-gcc, which builds jemalloc and ring: install musl-tools".into());
    }
    Ok(())
}

/// Builds the program of a release.
fn build(target: &str) -> Result<()> {
    let package = ["--locked", "--profile", "dist", "--package", "mainstay-cli", "--target", target];
    check(programs::build()?.args(package).args(FEATURES)).map(drop)
}

/// A path of the builder in the program reveals who built it and where, and makes two builds differ.
fn names_no_builder(program: &Path) -> Result<()> {
    let bytes = fs::read(program)?;
    for (folder, _) in programs::builders_folders()? {
        let folder = format!("{folder}/");
        if bytes.windows(folder.len()).any(|window| window == folder.as_bytes()) {
            return Err(format!("{}: has paths below {folder}", program.display()).into());
        }
    }
    Ok(())
}

/// The packages that are linked into the program or build it, ours among them.
fn linked(metadata: &Value) -> Result<Vec<&Value>> {
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let ours = packages.iter().find(|package| package["name"] == "mainstay-cli").ok_or("no mainstay-cli")?;
    let mut found = BTreeSet::new();
    let mut next = vec![text(ours, "id")];
    while let Some(id) = next.pop() {
        if found.insert(id) {
            next.extend(needed(metadata, id));
        }
    }
    Ok(packages.iter().filter(|package| found.contains(text(package, "id"))).collect())
}

/// The identities of what a package needs outside of its tests.
fn needed<'a>(metadata: &'a Value, id: &str) -> Vec<&'a str> {
    let nodes = metadata["resolve"]["nodes"].as_array().into_iter().flatten();
    let needed =
        nodes.filter(|node| node["id"] == id).flat_map(|node| node["deps"].as_array().into_iter().flatten());
    let is_linked = |needed: &&Value| {
        needed["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"] != "dev"))
    };
    needed.filter(is_linked).map(|needed| text(needed, "pkg")).collect()
}

/// Lays out the files of the tarball.
fn stage(program: &Path, packages: &[&Value]) -> Result<()> {
    fs::create_dir_all(format!("{FILES}/completions"))?;
    let copies = [
        (program.to_path_buf(), "mainstay"),
        ("LICENSE-APACHE".into(), "LICENSE-APACHE"),
        ("LICENSE-MIT".into(), "LICENSE-MIT"),
        ("crates/mainstay-cli/README.md".into(), "README.md"),
        ("packaging/mainstay.service".into(), "mainstay.service"),
        ("packaging/mainstay.default".into(), "mainstay.default"),
        ("packaging/mainstay.toml".into(), "mainstay.toml"),
    ];
    for (from, to) in copies {
        fs::copy(&from, format!("{FILES}/{to}")).map_err(|error| format!("{}: {error}", from.display()))?;
    }
    fs::write(format!("{FILES}/THIRD-PARTY.txt"), licences(packages)?)?;
    check(Command::new(program).arg("man").arg(format!("{FILES}/man")))?;
    for (shell, file) in COMPLETIONS {
        let script = output(Command::new(program).args(["completions", shell]))?;
        fs::write(format!("{FILES}/completions/{file}"), script)?;
    }
    Ok(())
}

/// Returns the licences of the dependencies, which must accompany a binary: each text once, after the names of its
/// packages.
fn licences(packages: &[&Value]) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages.iter().filter(|package| !package["source"].is_null()) {
        let name =
            format!("{} {} ({})", text(package, "name"), text(package, "version"), text(package, "license"));
        let folder = Path::new(text(package, "manifest_path")).with_file_name("");
        let mut has_text = false;
        for file in fs::read_dir(folder)?.flatten() {
            let is_licence = ["LICEN", "COPYING", "NOTICE"]
                .iter()
                .any(|start| file.file_name().to_string_lossy().to_uppercase().starts_with(start));
            if is_licence && file.path().is_file() {
                let licence = String::from_utf8_lossy(&fs::read(file.path())?).trim().to_owned();
                texts.entry(licence).or_default().push(name.clone());
                has_text = true;
            }
        }
        if !has_text {
            let none = "These packages have no file with the text of their licence.";
            texts.entry(none.to_owned()).or_default().push(name);
        }
    }
    let mut all = String::from("Mainstay contains these packages, under these licences.\n");
    for (licence, mut names) in texts {
        names.dedup();
        all.push_str(&format!("\n{}\n{}\n\n{licence}\n", "=".repeat(80), names.join("\n")));
    }
    Ok(all)
}

/// Makes a tarball whose bytes depend on the files and the commit alone.
fn archive(name: &str) -> Result<()> {
    let time = output(Command::new("git").args(["log", "-1", "--format=%ct"]))?;
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=u+rw,go+r,go-w"]);
    tar.args([format!("--mtime=@{}", time.trim()), format!("--transform=s,^files,{name},")]);
    check(tar.args(["-C", DIST, "-czf", &format!("{DIST}/{name}.tar.gz"), "files"])).map(drop)
}

/// Returns CycloneDX 1.5: each package with its licence, its checksum and what it needs.
fn bill_of_materials(metadata: &Value, packages: &[&Value]) -> Result<String> {
    let checksums = locked_checksums()?;
    let url = |package: &Value| format!("pkg:cargo/{}@{}", text(package, "name"), text(package, "version"));
    let names: BTreeMap<&str, String> =
        packages.iter().map(|package| (text(package, "id"), url(package))).collect();
    let component = |package: &&Value| {
        let purl = url(package);
        let hashes: Vec<Value> =
            checksums.get(&purl).iter().map(|hash| json!({ "alg": "SHA-256", "content": hash })).collect();
        let is_program = package["name"] == "mainstay-cli";
        json!({
            "type": if is_program { "application" } else { "library" },
            "bom-ref": purl, "purl": purl, "name": package["name"], "version": package["version"],
            "licenses": [{ "expression": text(package, "license").replace('/', " OR ") }],
            "hashes": hashes,
        })
    };
    let needs = |package: &&Value| {
        let needed: BTreeSet<&String> =
            needed(metadata, text(package, "id")).iter().filter_map(|id| names.get(id)).collect();
        json!({ "ref": url(package), "dependsOn": needed })
    };
    let (program, libraries): (Vec<&Value>, Vec<&Value>) =
        packages.iter().copied().partition(|package| package["name"] == "mainstay-cli");
    let bill = json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": program.iter().map(component).next() },
        "components": libraries.iter().map(component).collect::<Vec<_>>(),
        "dependencies": packages.iter().map(needs).collect::<Vec<_>>(),
    });
    Ok(format!("{bill:#}\n"))
}

/// The checksums of `Cargo.lock`, by package URL.
fn locked_checksums() -> Result<BTreeMap<String, String>> {
    let lock = fs::read_to_string("Cargo.lock")?;
    let field = |package: &str, name: &str| {
        let value = package.lines().find_map(|line| line.strip_prefix(&format!("{name} = \"")))?;
        Some(value.trim_end_matches('"').to_owned())
    };
    let package = |package: &str| {
        let (name, version) = (field(package, "name")?, field(package, "version")?);
        Some((format!("pkg:cargo/{name}@{version}"), field(package, "checksum")?))
    };
    Ok(lock.split("[[package]]").filter_map(package).collect())
}

/// Makes the Debian package. Without cargo-deb there is none.
fn debian_package(target: &str) -> Result<()> {
    if !succeeds(Command::new("cargo").args(["deb", "--version"])) {
        println!("no Debian package: cargo install cargo-deb");
        return Ok(());
    }
    let mut deb = Command::new("cargo");
    deb.args(["deb", "--no-build", "--no-strip", "--package", "mainstay-cli", "--profile", "dist"]);
    check(deb.args(["--target", target, "--output", &format!("{DIST}/")])).map(drop)
}

/// Writes SHA256SUMS of the files that users download.
fn checksums() -> Result<()> {
    let list = "sha256sum -- mainstay* > SHA256SUMS && cat SHA256SUMS";
    check(Command::new("sh").args(["-euc", list]).current_dir(DIST)).map(drop)
}

/// groff must have no warning about a manual page. Without man the pages are not judged.
fn manual_pages_are_clean() -> Result<()> {
    if !succeeds(Command::new("man").arg("--version")) {
        println!("the manual pages are not judged: no man here");
        return Ok(());
    }
    for page in fs::read_dir(format!("{FILES}/man"))?.flatten() {
        let judged = Command::new("man").args(["--warnings", "--local-file"]).arg(page.path()).output()?;
        if !judged.status.success() || !judged.stderr.is_empty() {
            return Err(
                format!("{}: {}", page.path().display(), String::from_utf8_lossy(&judged.stderr)).into()
            );
        }
    }
    Ok(())
}

/// systemd must accept the unit and find little exposure. Without systemd the unit is not judged.
fn unit_is_valid(program: &Path) -> Result<()> {
    if !succeeds(Command::new("systemd-analyze").arg("--version")) {
        println!("the unit is not judged: no systemd here");
        return Ok(());
    }
    // The program is not installed here, and the unit must name one that exists.
    let unit = fs::read_to_string("packaging/mainstay.service")?;
    let here = env::current_dir()?.join(program);
    let copy = format!("{DIST}/files/check.service");
    fs::write(&copy, unit.replace("/usr/bin/mainstay", &here.display().to_string()))?;
    check(Command::new("systemd-analyze").args(["verify", "--man=no", &copy]))?;
    let mut security = Command::new("systemd-analyze");
    let judged =
        output(security.args(["security", "--offline=true", "--threshold=20", "--no-pager", &copy]))?;
    println!("{}", judged.lines().last().unwrap_or_default());
    Ok(fs::remove_file(copy)?)
}
