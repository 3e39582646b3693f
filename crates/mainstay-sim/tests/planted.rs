//! The rules of `mainstay.v1`, turned back one at a time, to show that the explorer and the seeds notice.
//!
//! The shipped code has no switch for this. The test copies `mainstay-proto` and this crate to `target/tmp/planted`, makes
//! the edits of `planted/edits.rs` in the copy, and runs `planted/noticed.rs` against it: one build for all rules.

#![expect(clippy::expect_used, reason = "a copy that cannot be made is a test that fails")]

#[path = "../planted/edits.rs"]
mod edits;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use edits::{EDITS, OF_CLUSTERS};

/// The two crates of the copy, below `crates`.
const CRATES: [&str; 2] = ["mainstay-proto", "mainstay-sim"];

#[test]
fn every_rule_that_is_turned_back_is_noticed() {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("planted");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut sources = CRATES.map(|name| sources(&workspace.join("crates").join(name)));
    plant(&mut sources);
    for (name, sources) in CRATES.into_iter().zip(&sources) {
        copy_crate(&workspace.join("crates").join(name), &copy.join("crates").join(name), sources);
    }
    write_if_changed(&copy.join("Cargo.toml"), &manifest(&read(&workspace.join("Cargo.toml"))));
    write_if_changed(&copy.join("Cargo.lock"), &read(&workspace.join("Cargo.lock")));
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("planted/noticed.rs");
    write_if_changed(&copy.join("crates/mainstay-sim/tests/noticed.rs"), &read(&tests));
    let output = Command::new(env!("CARGO"))
        .args(["test", "--offline", "--package", "mainstay-sim", "--test", "noticed", "--", "--nocapture"])
        .arg("--test-threads=2")
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", copy.join("target"))
        .output()
        .expect("cargo runs, as it runs this test");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    print!("{}", text(&output.stdout));
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

/// The workspace's manifest with only the copied crates in it.
fn manifest(original: &str) -> String {
    let is_membership = |line: &&str| line.starts_with("members") || line.starts_with("default-members");
    let members = format!("[workspace]\nmembers = {:?}", CRATES.map(|name| format!("crates/{name}")));
    let rest: Vec<_> = original.lines().filter(|line| !is_membership(line)).collect();
    rest.join("\n").replacen("[workspace]", &members, 1)
}

type Sources = Vec<(PathBuf, String)>;

fn sources(of: &Path) -> Sources {
    let mut files = Vec::new();
    collect(&of.join("src"), &mut files);
    files.iter().map(|path| (relative(path, of), read(path))).collect()
}

/// Writes a crate's manifest and sources.
fn copy_crate(from: &Path, to: &Path, sources: &Sources) {
    write_if_changed(&to.join("Cargo.toml"), &read(&from.join("Cargo.toml")));
    let stale: BTreeSet<_> = existing(to).difference(&names(sources)).cloned().collect();
    stale.iter().for_each(|path| fs::remove_file(to.join(path)).expect("a file of an older copy is removed"));
    for (path, text) in sources {
        write_if_changed(&to.join(path), text);
    }
}

/// Makes every edit, and adds the module with the switches.
fn plant(crates: &mut [Sources; 2]) {
    for edit in EDITS {
        let all = crates.iter().flatten();
        let found: usize = all.map(|(_, text)| text.matches(edit.ships).count()).sum();
        assert!(
            found == 1,
            "planted/edits.rs, rule {}: this stands {found} times in mainstay-proto/src and mainstay-sim/src, not once: `{}`. The \
             code changed: write in `ships` how it keeps the rule now, and in `planted` how it looks with the rule turned back",
            edit.rule,
            edit.ships
        );
        for (sources, root) in crates.iter_mut().zip(["crate", "mainstay_proto"]) {
            let back = format!("{root}::planted::turned_back({root}::planted::Rule::{})", edit.rule);
            let planted = edit.planted.replace("BACK", &back);
            sources.iter_mut().for_each(|(_, text)| *text = text.replacen(edit.ships, &planted, 1));
        }
    }
    let rules: BTreeSet<_> = EDITS.iter().map(|edit| edit.rule).collect();
    let mut module = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("planted/switch.rs"));
    let variants: Vec<_> = rules.into_iter().collect();
    let derives = "#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]\n#[allow(missing_docs)]";
    let _ = write!(module, "\n/// A rule.\n{derives}\npub enum Rule {{ {} }}\n", variants.join(", "));
    let list =
        |rules: &[&str]| rules.iter().map(|rule| format!("Rule::{rule}")).collect::<Vec<_>>().join(", ");
    let _ = write!(module, "\n/// Every rule.\npub const ALL: &[Rule] = &[{}];\n", list(&variants));
    let _ = write!(
        module,
        "\n/// Those that need several nodes.\npub const OF_CLUSTERS: &[Rule] = &[{}];\n",
        list(OF_CLUSTERS)
    );
    crates[0].push((PathBuf::from("src/planted.rs"), module));
    let root =
        crates[0].iter_mut().find(|(path, _)| path == Path::new("src/lib.rs")).expect("a crate has a root");
    root.1.push_str("\n#[allow(missing_docs)]\npub mod planted;\n");
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

fn existing(copy: &Path) -> BTreeSet<PathBuf> {
    let mut files = Vec::new();
    collect(&copy.join("src"), &mut files);
    files.iter().map(|path| relative(path, copy)).collect()
}

fn names(sources: &Sources) -> BTreeSet<PathBuf> {
    sources.iter().map(|(path, _)| path.clone()).collect()
}

fn relative(path: &Path, to: &Path) -> PathBuf {
    path.strip_prefix(to).expect("the file was found below it").to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Leaves an unchanged file as it is, with its time, so that cargo builds only what changed.
fn write_if_changed(path: &Path, text: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    let parent = path.parent().expect("a file of the copy has a directory");
    fs::create_dir_all(parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
