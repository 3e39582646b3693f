//! Which files of a crate use which.
//!
//! A file uses another if a `use` or a path in its code leads there. A re-export (`pub use`) is transparent: its
//! users use the file that defines the item, and the file that re-exports uses nothing. What a child uses of its parent does
//! not count, because a module and its children are one story; nor do tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use regex::Regex;

use crate::Result;

use super::Uses;

/// A module's path in its crate; the root's is empty.
type Module = Vec<String>;

/// The files of one crate.
struct Crate {
    files: BTreeMap<Module, File>,
}

struct File {
    path: String,
    /// Each path that the file's code names, from the root of the crate.
    named: BTreeSet<Module>,
    /// What the file re-exports: the name, and the path behind it.
    exported: BTreeMap<String, Module>,
}

/// What each file of our crates uses, by crate.
pub(super) fn uses(paths: &[String]) -> Result<Vec<Uses>> {
    let sources: BTreeSet<_> = paths
        .iter()
        .filter_map(|path| Some(path.split_once("/src/")?.0))
        .filter(|root| is_ours(root))
        .collect();
    let read = |root: &str| {
        let prefix = format!("{root}/src/");
        let files = paths.iter().filter(|path| path.starts_with(&prefix) && path.ends_with(".rs"));
        let texts =
            files.map(|path| Ok((path.clone(), fs::read_to_string(path)?))).collect::<Result<Vec<_>>>()?;
        Ok(Crate::read(&prefix, &texts).uses())
    };
    sources.into_iter().map(read).collect()
}

fn is_ours(root: &str) -> bool {
    root.starts_with("crates/") || root == "xtask"
}

impl Crate {
    fn read(prefix: &str, texts: &[(String, String)]) -> Self {
        let modules: BTreeSet<_> = texts.iter().map(|(path, _)| module_of(prefix, path)).collect();
        let files = texts.iter().filter(|(path, _)| !path.ends_with("tests.rs")).map(|(path, text)| {
            let module = module_of(prefix, path);
            let mut file = File { path: path.clone(), named: BTreeSet::new(), exported: BTreeMap::new() };
            for statement in statements(&code(text)) {
                file.note(&module, &modules, &statement);
            }
            (module, file)
        });
        Self { files: files.collect() }
    }

    fn uses(&self) -> Uses {
        let used_by = |module: &Module, file: &File| {
            let used = file.named.iter().map(|path| self.home(path.clone()));
            let used = used.filter(|used| !module.starts_with(used));
            used.filter_map(|used| Some(self.files.get(&used)?.path.clone())).collect()
        };
        self.files.iter().map(|(module, file)| (file.path.clone(), used_by(module, file))).collect()
    }

    /// The module of the file that defines what `path` names.
    fn home(&self, path: Module) -> Module {
        let mut at = (0..=path.len()).rev().find(|n| self.files.contains_key(&path[..*n])).unwrap_or(0);
        let mut path = path;
        // A re-export may lead to another one, but not for ever.
        for _ in 0..8 {
            let exported = path.get(at).and_then(|name| self.files.get(&path[..at])?.exported.get(name));
            let Some(target) = exported else { break };
            let rest = path[at + 1..].to_vec();
            path = target.iter().cloned().chain(rest).collect();
            at = (0..=path.len()).rev().find(|n| self.files.contains_key(&path[..*n])).unwrap_or(0);
        }
        path.truncate(at);
        path
    }
}

impl File {
    fn note(&mut self, module: &Module, modules: &BTreeSet<Module>, statement: &Statement) {
        for (path, alias) in &statement.paths {
            let Some(full) = resolve(module, modules, path) else { continue };
            let name = alias.clone().or_else(|| full.last().cloned());
            match name {
                Some(name) if statement.is_export => drop(self.exported.insert(name, full)),
                _ => drop(self.named.insert(full)),
            }
        }
    }
}

/// A `use` statement, or a path in an expression.
struct Statement {
    is_export: bool,
    paths: Vec<(Vec<String>, Option<String>)>,
}

/// The code of a file: without comments, and without its tests, which stand at the end.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
    lines.map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn statements(code: &str) -> Vec<Statement> {
    #[expect(clippy::expect_used, reason = "the patterns are constant")]
    let (uses, paths) = (
        Regex::new(r"(?s)(pub(?:\([a-z ]+\))? )?use ([^;]+);").expect("a pattern"),
        Regex::new(r"\b(?:crate|self|super)(?:::\w+)+").expect("a pattern"),
    );
    let mut all: Vec<_> = uses
        .captures_iter(code)
        .map(|found| Statement { is_export: found.get(1).is_some(), paths: expand(&found[2]) })
        .collect();
    let rest = uses.replace_all(code, "");
    all.extend(
        paths.find_iter(&rest).map(|path| Statement { is_export: false, paths: expand(path.as_str()) }),
    );
    all
}

/// The paths of a `use` tree, each with the name after `as`.
fn expand(tree: &str) -> Vec<(Vec<String>, Option<String>)> {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let prefix: Vec<_> = segments(&tree[..open]);
        let inner = tree[open + 1..].trim_end().trim_end_matches('}');
        let with_prefix = |(path, alias): (Vec<String>, Option<String>)| {
            let rest = path.into_iter().filter(|name| name != "self");
            (prefix.iter().cloned().chain(rest).collect(), alias)
        };
        return parts(inner).into_iter().flat_map(expand).map(with_prefix).collect();
    }
    let (path, alias) =
        tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim().to_owned())));
    if path.is_empty() { Vec::new() } else { vec![(segments(path), alias)] }
}

fn segments(path: &str) -> Vec<String> {
    path.split("::")
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "*")
        .map(str::to_owned)
        .collect()
}

/// The parts between the commas that stand in no inner braces.
fn parts(inner: &str) -> Vec<&str> {
    let (mut depth, mut from, mut all) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                all.push(&inner[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    all.push(&inner[from..]);
    all
}

/// The path from the root of the crate; `None` if it leads to another crate.
fn resolve(module: &Module, modules: &BTreeSet<Module>, path: &[String]) -> Option<Module> {
    let mut base = module.clone();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => base.clear(),
        "self" => {}
        "super" => drop(base.pop()),
        child => {
            let inner: Module = module.iter().cloned().chain([child.to_owned()]).collect();
            return modules
                .contains(&inner)
                .then(|| module.iter().cloned().chain(path.iter().cloned()).collect());
        }
    }
    rest = &rest[1..];
    while rest.first().is_some_and(|name| name == "super") {
        base.pop();
        rest = &rest[1..];
    }
    Some(base.into_iter().chain(rest.iter().cloned()).collect())
}

fn module_of(prefix: &str, path: &str) -> Module {
    let path = path.strip_prefix(prefix).unwrap_or(path).trim_end_matches(".rs");
    path.split('/').filter(|name| !["lib", "main", "mod"].contains(name)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let texts: Vec<_> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        super::super::circles(&Crate::read("src/", &texts).uses())
    }

    #[test]
    fn two_files_that_use_each_other_are_a_circle() {
        let found = circles(&[
            ("src/lib.rs", "mod a;\nmod b;\nuse a::A;"),
            ("src/a.rs", "use crate::b::{B, C as D};\npub struct A;"),
            ("src/b.rs", "fn f() -> super::a::A { }"),
        ]);
        assert_eq!(found, [["src/a.rs", "src/b.rs"]]);
    }

    #[test]
    fn a_re_export_is_looked_through_and_is_no_use() {
        let found = circles(&[
            ("src/side/mod.rs", "mod a;\nmod b;\npub use self::a::A;\npub struct Config;"),
            ("src/side/a.rs", "use super::Config;\npub struct A;"),
            ("src/side/b.rs", "use super::{A, Config};"),
        ]);
        assert_eq!(found, Vec::<Vec<String>>::new());
    }

    #[test]
    fn comments_and_tests_count_for_nothing() {
        let found = circles(&[
            ("src/a.rs", "use crate::b::B;"),
            ("src/b.rs", "// crate::a::A\n#[cfg(test)]\nmod tests { use crate::a::A; }"),
        ]);
        assert!(found.is_empty());
    }
}
