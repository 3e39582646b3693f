//! Rules that no compiler checks, for every file that git knows. A complaint names file and line.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use crate::markdown::Document;
use crate::run::{output, tracked_files};
use crate::words::Words;
use crate::{Outcome, Result, circles, docs, path};

/// Tags of code blocks in the documents that `docs` runs. `sh` is run by `docs`, `rust` is a documentation
/// test, `json` is parsed here; a block that is none of these languages is `text`.
const TAGS: [&str; 7] = ["sh", "toml", "rust", "json", "text", "ts", "python"];

/// Package registries: a lock file or a document that names one binds its reader to it. Written in halves, so that
/// this file may be searched too.
const REGISTRIES: [&str; 6] = [
    concat!("npm", "js.org"),
    concat!("py", "pi.org"),
    concat!("python", "hosted.org"),
    concat!("crates", ".io"),
    concat!("deb.", "debian.org"),
    concat!("yarn", "pkg.com"),
];

/// Words that mark unfinished work; see [`unfinished`] for the one with a ticket.
const UNFINISHED: [&str; 3] = [concat!("FIX", "ME"), concat!("to", "do!("), concat!("db", "g!(")];

pub(crate) fn check() -> Result<Outcome> {
    let mut complaints = Vec::new();
    let local = local_paths()?;
    let files = tracked_files()?;
    let functions = functions(&files)?;
    let titles = titles(&files)?;
    let words = Words::read()?;
    for path in &files {
        let Ok(text) = String::from_utf8(fs::read(path)?) else { continue }; // a picture, a font
        let mut complain = |line: usize, what: &str| complaints.push(format!("{path}:{line}: {what}"));
        ends_with_newline(&text, &mut complain);
        holds_no_conflict(&text, &mut complain);
        names_no_place(path, &text, &local, &mut complain);
        unfinished(&text, &mut complain);
        words.check(path, &text).into_iter().for_each(|(line, what)| complain(line, &what));
        if path.ends_with(".rs") {
            sides_stay_apart(path, &text, &mut complain);
            prints_nothing_that_may_panic(path, &text, &mut complain);
        }
        if path.ends_with(".md") {
            markdown(path, &text, &files, &mut complain);
        }
        if path == "docs/GUARANTEES.md" {
            names_tests(&text, &functions, &mut complain);
            names_tests_of_clients(&text, &files, &titles, &mut complain);
            shows_every_promise(&text, &mut complain);
        }
        if path == "docs/HOSTILE.md" {
            names_tests(&text, &functions, &mut complain);
            numbers_every_row(&text, &mut complain);
        }
    }
    let circles = circles::find(&files)?;
    complaints.extend(
        circles.iter().map(|files| format!("{}: a circle of files that use each other", files.join(", "))),
    );
    complaints.extend(path::check()?);
    complaints.extend(proto_without_runtime()?);
    if complaints.is_empty() {
        println!("{} files are tidy", files.len());
        return Ok(Outcome::Passed);
    }
    Err(format!("{} complaints\n{}", complaints.len(), complaints.join("\n")).into())
}

type Complain<'a> = dyn FnMut(usize, &str) + 'a;

/// A merge is finished.
fn holds_no_conflict(text: &str, complain: &mut Complain) {
    for (number, line) in numbered(text) {
        if [concat!("<<<<", "<<< "), concat!(">>>>", ">>> ")].iter().any(|mark| line.starts_with(mark)) {
            complain(number, "a conflict of a merge");
        }
    }
}

fn ends_with_newline(text: &str, complain: &mut Complain) {
    if !text.is_empty() && !text.ends_with('\n') {
        complain(text.lines().count(), "no newline at the end");
    }
}

/// A file names neither a path of the machine that it was written on nor a registry's host.
fn names_no_place(path: &str, text: &str, local: &[String], complain: &mut Complain) {
    let cargo_lock = path.ends_with("Cargo.lock"); // cargo names its own index there
    for (number, line) in numbered(text) {
        local.iter().filter(|place| line.contains(*place)).for_each(|place| {
            complain(number, &format!("`{place}` is a path of this machine"));
        });
        REGISTRIES.iter().filter(|host| !cargo_lock && line.contains(*host)).for_each(|host| {
            complain(number, &format!("`{host}` is a registry's host"));
        });
    }
}

/// The folders of this checkout and of this user, each with a slash at the end.
fn local_paths() -> Result<Vec<String>> {
    let root = env::current_dir()?;
    let beside = root.parent().filter(|parent| *parent != env::temp_dir()).map(Path::to_path_buf);
    let folders: BTreeSet<PathBuf> = [Some(root), beside, env::home_dir()].into_iter().flatten().collect();
    let named = folders.into_iter().filter(|folder| folder.components().count() > 1);
    Ok(named.map(|folder| format!("{}/", folder.display())).collect())
}

/// A mark of work left to do names its issue, as in `(#12)`; the other marks may not be committed.
fn unfinished(text: &str, complain: &mut Complain) {
    let later = concat!("TO", "DO");
    for (number, line) in numbered(text) {
        UNFINISHED.iter().filter(|word| line.contains(*word)).for_each(|word| {
            complain(number, &format!("`{word}` may not be committed"));
        });
        if line.split(later).skip(1).any(|rest| !rest.starts_with("(#")) {
            complain(number, &format!("`{later}` without an issue, as in `{later}(#12)`"));
        }
    }
}

/// Server and client share machines and the driver, never each other's modules.
fn sides_stay_apart(path: &str, text: &str, complain: &mut Complain) {
    let Some(module) = path.strip_prefix("crates/mainstay/src/") else { return };
    for (side, other) in [("server", "client"), ("client", "server")] {
        if !(module.starts_with(&format!("{side}/")) || module == format!("{side}.rs")) {
            continue;
        }
        for (number, line) in numbered(text).filter(|(_, line)| !line.trim_start().starts_with("//")) {
            if line.contains(&format!("crate::{other}")) || line.contains(&format!("super::{other}")) {
                complain(number, &format!("the {side} may not use the {other}"));
            }
        }
    }
}

/// `println!` and its relatives panic if nothing can be written, and block if the reader stalls: a full disk would end a
/// server, and a stalled log its traffic. The program writes by `log::say`, or by `writeln!` and handles the error.
fn prints_nothing_that_may_panic(path: &str, text: &str, complain: &mut Complain) {
    // The simulator is a test in the form of a program.
    let is_program = path.starts_with("crates/") && path.contains("/src/");
    if !is_program || path.starts_with("crates/mainstay-sim/") {
        return;
    }
    let code = numbered(text).take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    for (number, line) in code.filter(|(_, line)| !line.trim_start().starts_with("//")) {
        for name in ["println!", "eprintln!", "print!", "eprint!"] {
            let mut found = line.match_indices(name);
            if found.any(|(at, _)| at == 0 || !line.as_bytes()[at - 1].is_ascii_alphanumeric()) {
                complain(number, &format!("`{name}` panics or blocks when nothing can be written"));
            }
        }
    }
}

/// Code blocks have known tags, those that show a file are that file, and links have targets.
fn markdown(path: &str, text: &str, files: &[String], complain: &mut Complain) {
    let document = Document::parse(text);
    if docs::is_run(path) {
        for block in &document.blocks {
            if !TAGS.contains(&block.tag.as_str()) {
                complain(
                    block.line,
                    &format!("code block tagged `{}`, not one of {}", block.tag, TAGS.join(", ")),
                );
            }
            if let Err(error) = docs::Mode::of(block) {
                complain(block.line, &error);
            }
            if block.tag == "json" && serde_json::from_str::<serde_json::Value>(&block.text).is_err() {
                complain(block.line, "no valid JSON");
            }
            if let Some(file) = &block.file
                && fs::read_to_string(beside(path, file)).ok().as_ref() != Some(&block.text)
            {
                complain(block.line, &format!("not what `{file}` is"));
            }
        }
    }
    for (line, target) in document.links().into_iter().filter(|(_, target)| !target.contains(':')) {
        let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
        let resolved = if file.is_empty() { path.to_owned() } else { beside(path, file) };
        let folder = format!("{}/", resolved.trim_end_matches('/'));
        if !files.iter().any(|known| *known == resolved || known.starts_with(&folder)) {
            complain(line, &format!("`{target}` leads to no file of ours"));
        } else if !anchor.is_empty() && resolved.ends_with(".md") && !has_anchor(&resolved, anchor) {
            complain(line, &format!("`{target}`: no heading makes that anchor"));
        }
    }
}

/// The tests that promises name exist. Options have names of two words, tests longer ones.
fn names_tests(text: &str, functions: &BTreeSet<String>, complain: &mut Complain) {
    for (number, line) in numbered(text) {
        let quoted = line.split('`').skip(1).step_by(2);
        let tests = quoted.filter(|name| name.matches('_').count() >= 2 && name.chars().all(is_in_name));
        tests.filter(|name| !functions.contains(*name)).for_each(|name| {
            complain(number, &format!("`{name}` is no test of ours"));
        });
    }
}

/// The same for tests in TypeScript: a file, or the beginning of a title that begins with a promise's number.
fn names_tests_of_clients(text: &str, files: &[String], titles: &[String], complain: &mut Complain) {
    for (number, line) in numbered(text) {
        for name in line.split('`').skip(1).step_by(2) {
            if name.ends_with(".test.ts") && !files.iter().any(|path| path.ends_with(name)) {
                complain(number, &format!("`{name}` is no file of ours"));
            }
            let is_title = name.contains(' ') && promise(name).is_some();
            if is_title && !titles.iter().any(|title| title.starts_with(name)) {
                complain(number, &format!("no test's title begins with `{name}`"));
            }
        }
    }
}

/// R1 to R17 have a row each, and each server in it has a test with that number.
fn shows_every_promise(text: &str, complain: &mut Complain) {
    for wanted in 1..=17 {
        let row = numbered(text).find(|(_, line)| line.starts_with(&format!("| R{wanted} |")));
        let Some((number, row)) = row else {
            complain(1, &format!("R{wanted} has no row"));
            continue;
        };
        for (server, cell) in ["plugin", "gateway", "axum"].iter().zip(row.split(" | ").skip(2)) {
            let mut names = cell.split('`').skip(1).step_by(2);
            if !names.any(|name| promise(name) == Some(wanted)) && !cell.contains("not this role") {
                complain(number, &format!("R{wanted}: no test of that name for the {server}"));
            }
        }
    }
}

/// The rows of each table are numbered without a hole, and each names a test, a row that does, or the command that runs it.
fn numbers_every_row(text: &str, complain: &mut Complain) {
    let mut last = (String::new(), 0);
    for (line, row) in numbered(text) {
        let Some((name, number)) = row.strip_prefix("| ").and_then(row_number) else { continue };
        let expected = if last.0 == name { last.1 + 1 } else { 1 };
        if number != expected {
            complain(line, &format!("{name}{number} in place of {name}{expected}"));
        }
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let is_row = |word: &str| row_number(&format!("{word} ")).is_some();
        let refers = shown.contains("the same") || shown.split([' ', ',']).any(is_row);
        if !shown.contains('`') && !refers && !shown.contains("](#") {
            complain(line, &format!("{name}{number} names no test"));
        }
        last = (name, number);
    }
}

/// The letter and the number with which a row begins.
fn row_number(row: &str) -> Option<(String, u32)> {
    let word = row.split(' ').next()?;
    let (name, number) = word.split_at_checked(1)?;
    name.starts_with(|c: char| c.is_ascii_uppercase()).then_some(())?;
    Some((name.to_owned(), number.parse().ok()?))
}

/// The number of the promise that a test is named by, as in `r4_a_peer_is_found` and `R4 a peer is found`.
fn promise(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(['r', 'R'])?;
    digits.split_once(['_', ' '])?.0.parse().ok()
}

/// The titles of all tests in TypeScript.
fn titles(files: &[String]) -> Result<Vec<String>> {
    let mut titles = Vec::new();
    for path in files.iter().filter(|path| path.ends_with(".test.ts")) {
        let text = fs::read_to_string(path)?;
        let quoted = text.split("test(\"").skip(1).filter_map(|rest| rest.split('"').next());
        titles.extend(quoted.map(str::to_owned));
    }
    Ok(titles)
}

/// The names of all functions in Rust.
fn functions(files: &[String]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in files.iter().filter(|path| path.ends_with(".rs")) {
        let text = fs::read_to_string(path)?;
        let named = text.split("fn ").skip(1).filter_map(|rest| rest.split(|c| !is_in_name(c)).next());
        names.extend(named.map(str::to_owned));
    }
    Ok(names)
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

fn has_anchor(path: &str, anchor: &str) -> bool {
    fs::read_to_string(path)
        .is_ok_and(|text| Document::parse(&text).anchors().iter().any(|known| known == anchor))
}

/// A link's target as a path from the workspace's folder.
fn beside(path: &str, target: &str) -> String {
    let mut resolved = PathBuf::new();
    for part in Path::new(path).with_file_name(target).components() {
        match part {
            Component::ParentDir if !resolved.pop() => return target.to_owned(), // out of the repository
            Component::ParentDir | Component::CurDir => {}
            part => resolved.push(part),
        }
    }
    resolved.display().to_string()
}

/// `mainstay-proto` runs in virtual time under the simulator, so none of its dependencies may be a runtime.
fn proto_without_runtime() -> Result<Option<String>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments =
        ["tree", "--package", "mainstay-proto", "--edges", "normal", "--prefix", "none", "--all-features"];
    let tree = output(Command::new(cargo).args(arguments))?;
    let runtime = tree.lines().find(|line| line.starts_with("tokio"));
    Ok(runtime.map(|line| format!("mainstay-proto depends on {line}")))
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(rule: impl FnOnce(&mut Complain)) -> Vec<String> {
        let mut all = Vec::new();
        rule(&mut |line, what| all.push(format!("{line}: {what}")));
        all
    }

    #[test]
    fn rows_of_hostile_inputs_are_numbered_and_name_their_tests() {
        let complaints = |text: &str| {
            let mut found = Vec::new();
            numbers_every_row(text, &mut |line, what| found.push(format!("{line}: {what}")));
            found
        };
        let right =
            "| | Sent | Shown by |\n| O1 | x | `a_b_c` |\n| O2 | y | the same, and A1 |\n\n| F1 | z | O1 |\n";
        assert!(complaints(right).is_empty(), "{:?}", complaints(right));
        assert_eq!(complaints("| O1 | x | `a_b_c` |\n| O3 | y | `a_b_c` |\n"), ["2: O3 in place of O2"]);
        assert_eq!(complaints("| O1 | x | none |\n"), ["1: O1 names no test"]);
    }

    #[test]
    fn a_missing_last_newline_is_found() {
        assert_eq!(complaints(|c| ends_with_newline("a\nb", c)), ["2: no newline at the end"]);
        assert!(complaints(|c| ends_with_newline("a\n", c)).is_empty());
    }

    #[test]
    fn a_conflict_that_was_committed_is_found() {
        let text = concat!("a\n<<<<", "<<< HEAD\nb\n=======\nc\n>>>>", ">>> main\n");
        assert_eq!(complaints(|c| holds_no_conflict(text, c)).len(), 2);
    }

    #[test]
    fn work_left_to_do_needs_an_issue() {
        let text = concat!("// TO", "DO later\n// TO", "DO(#12): now\n// FIX", "ME\n");
        assert_eq!(complaints(|c| unfinished(text, c)).len(), 2);
    }

    #[test]
    fn local_paths_and_registries_are_found() {
        let text = format!("/home/ann/x\nhttps://{}/y\n", REGISTRIES[0]);
        let local = ["/home/ann/".to_owned()];
        assert_eq!(complaints(|c| names_no_place("README.md", &text, &local, c)).len(), 2);
        assert_eq!(complaints(|c| names_no_place("Cargo.lock", &text, &local, c)).len(), 1);
    }

    #[test]
    fn a_promise_names_tests_that_exist() {
        let functions = ["a_cut_is_told".to_owned()].into();
        let text = "| `max_sessions` | `a_cut_is_told`, `a_gap_is_told` |\n";
        assert_eq!(
            complaints(|c| names_tests(text, &functions, c)),
            ["1: `a_gap_is_told` is no test of ours"]
        );
    }

    #[test]
    fn a_promise_names_tests_of_clients_that_exist() {
        let titles = ["R1 a beat, spread".to_owned()];
        let files = ["clients/fastify/test/promises.test.ts".to_owned()];
        let text = "`R1 a beat`, `R2 a beat`, `promises.test.ts`, `other.test.ts`\n";
        assert_eq!(complaints(|c| names_tests_of_clients(text, &files, &titles, c)).len(), 2);
    }

    #[test]
    fn each_promise_has_a_row_with_a_test_of_its_number_for_each_server() {
        let row =
            |r: u32| format!("| R{r} | x | `R{r} a beat` | `r{r}_a_beat` | not this role: it has none |\n");
        let rows: String = (1..=17).map(row).collect();
        assert!(complaints(|c| shows_every_promise(&rows, c)).is_empty());
        let other = rows.replace("`r3_a_beat`", "`r4_a_beat`");
        let found = complaints(|c| shows_every_promise(&other, c));
        assert_eq!(found, ["3: R3: no test of that name for the gateway"]);
        assert_eq!(complaints(|c| shows_every_promise("", c)).len(), 17);
    }

    #[test]
    fn what_may_panic_while_it_prints_is_found_in_programs_and_left_in_tests() {
        let text = "/// println!(\nfn f() {\n    eprintln!(\"x\");\n    print!(\"x\");\n    pprint!(x);\n}\n\
                    #[cfg(test)]\nmod tests { fn f() { println!() } }\n";
        let found = |path: &str| complaints(|c| prints_nothing_that_may_panic(path, text, c));
        let lines: Vec<_> =
            found("crates/mainstay-cli/src/x.rs").iter().map(|line| line[..1].to_owned()).collect();
        assert_eq!(lines, ["3", "4"]);
        for path in ["crates/mainstay/tests/it/x.rs", "crates/mainstay/examples/x.rs", "xtask/src/x.rs"] {
            assert!(found(path).is_empty(), "{path}");
        }
    }

    #[test]
    fn server_and_client_may_not_use_each_other() {
        let text = "use crate::client::Dial;\nuse crate::driver;\n// crate::client in words\n";
        assert_eq!(complaints(|c| sides_stay_apart("crates/mainstay/src/server/mod.rs", text, c)).len(), 1);
        assert!(complaints(|c| sides_stay_apart("crates/mainstay/src/link.rs", text, c)).is_empty());
    }

    #[test]
    fn dead_links_and_unknown_tags_are_found() {
        let files = ["docs/A.md".to_owned(), "README.md".to_owned()];
        let links = "[a](A.md) [up](../README.md) [no](B.md) [out](../../x.md) [web](https://example.org)";
        let text = format!("{links}\n```bash\n```\n");
        assert_eq!(complaints(|c| markdown("docs/A.md", &text, &files, c)).len(), 3);
    }

    #[test]
    fn a_block_that_is_no_copy_of_its_file_is_found() {
        let block = |text: &str| format!("<!-- file: ../Cargo.toml -->\n\n```toml\n{text}```\n");
        let complaints = |text: &str| complaints(|c| markdown("docs/A.md", &block(text), &[], c));
        assert!(complaints(include_str!("../Cargo.toml")).is_empty());
        assert_eq!(complaints("[package]\n"), ["3: not what `../Cargo.toml` is"]);
    }
}
