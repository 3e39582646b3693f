//! Runs every `sh` block of the READMEs, of CONTRIBUTING, of `docs/` and of `examples/`, as written, so that no command
//! there can go stale.
//!
//! The blocks of one document run in order in one empty folder (those of `examples/` in the workspace), each by `sh -eu`,
//! with our release programs on the path; the next block finds what a block writes. A comment in the line before a block
//! changes that:
//!
//! ```text
//! <!-- run: background until "listening" -->    keep it running until the document ends; go on at that output
//! <!-- run: skip, it needs a certificate -->    do not run it; the reason is required
//! <!-- run: printed -->                         before a `text` block: the last command prints these lines, in this order
//! ```

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::markdown::{Block, Document};
use crate::programs;
use crate::run::{Background, cargo, tracked_files};
use crate::{Outcome, Result, clients, install};

/// How long a block may take to end, or a block in the background to print the text that the runner waits for.
const LIMIT: Duration = Duration::from_secs(120);

/// The folder of the examples; their commands run in the workspace.
const EXAMPLES: &str = "examples";

/// An example has fewer lines of code than this.
const LINES_OF_EXAMPLE: usize = 60;

/// How to run a block, by the comment before it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    ToItsEnd,
    Background {
        until: String,
    },
    Skip {
        reason: String,
    },
    /// Runs nothing: its lines are in the output of the block before.
    Printed,
}

impl Mode {
    pub(crate) fn of(block: &Block) -> std::result::Result<Self, String> {
        let Some(directive) = &block.directive else { return Ok(Self::ToItsEnd) };
        if let Some(until) = directive.strip_prefix("background until ") {
            let until = until.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            return until
                .map(|until| Self::Background { until: until.to_owned() })
                .ok_or("no text in quotes".into());
        }
        if directive == "printed" {
            return if block.tag == "text" {
                Ok(Self::Printed)
            } else {
                Err("`printed` is for `text`".into())
            };
        }
        match directive.strip_prefix("skip,").map(str::trim) {
            Some(reason) if !reason.is_empty() => Ok(Self::Skip { reason: reason.to_owned() }),
            _ => Err(format!(
                "`run: {directive}` is none of `background until \"text\"`, `skip, reason` and `printed`"
            )),
        }
    }
}

/// Runs the blocks of the documents; the first that fails is the error.
pub(crate) fn run_documents() -> Result<Outcome> {
    let preparing = install::alone()?;
    programs::mainstay()?;
    drop(preparing);
    run_all(|path| is_run(path) && !is_example(path))
}

/// Runs the examples by their pages, each of which has the commands and what they print.
pub(crate) fn run_examples() -> Result<Outcome> {
    for path in tracked_files()?.iter().filter(|path| is_source_of_example(path)) {
        let lines = lines_of_code(&fs::read_to_string(path)?);
        if lines >= LINES_OF_EXAMPLE {
            return Err(format!("{path}: {lines} lines of code, {LINES_OF_EXAMPLE} or more").into());
        }
    }
    let preparing = install::alone()?;
    install::node_packages(EXAMPLES)?;
    install::browsers()?;
    clients::build()?;
    programs::mainstay()?;
    // As the pages have it.
    cargo("build --package mainstay-examples --bins")?;
    cargo("test --no-run --package mainstay-examples --test handler --test reconnect")?;
    drop(preparing);
    run_all(is_example)
}

/// Runs the chosen documents with our release programs on the path.
fn run_all(is_chosen: impl Fn(&str) -> bool) -> Result<Outcome> {
    let mut documents = Vec::new();
    let compiled = fs::read_to_string("docs/documents.rs")?;
    for path in tracked_files()?.into_iter().filter(|path| is_chosen(path)) {
        let blocks = Document::parse(&fs::read_to_string(&path)?).blocks;
        let entry = format!("{}\")", path.trim_start_matches("docs/"));
        if blocks.iter().any(|block| block.tag == "rust") && !compiled.contains(&entry) {
            return Err(format!("{path} has Rust that nothing compiles: add it to docs/documents.rs").into());
        }
        let is_ours = |block: &Block| block.tag == "sh" || matches!(Mode::of(block), Ok(Mode::Printed));
        documents.push((path, blocks.into_iter().filter(is_ours).collect::<Vec<_>>()));
    }
    let count: usize = documents.iter().map(|(_, blocks)| blocks.len()).sum();
    if count == 0 {
        return Ok(Outcome::Skipped("no document has a command".into()));
    }
    let preparing = install::alone()?;
    let tools = tools(documents.iter().flat_map(|(_, blocks)| blocks))?;
    drop(preparing);
    let (inherited, ours) =
        (env::var_os("PATH").unwrap_or_default(), env::current_dir()?.join("target/release"));
    let path = env::join_paths([ours].into_iter().chain(tools).chain(env::split_paths(&inherited)))?;
    for (document, blocks) in &documents {
        run_document(document, blocks, &path)?;
    }
    Ok(Outcome::Passed)
}

/// Whether the commands in this file are run.
pub(crate) fn is_run(path: &str) -> bool {
    let at_the_top = ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"].contains(&path);
    at_the_top || is_example(path) || (path.starts_with("docs/") && path.ends_with(".md"))
}

fn is_source_of_example(path: &str) -> bool {
    let is_source = [".rs", ".mjs", ".ts", ".jsx"].iter().any(|end| path.ends_with(end));
    is_source && path.strip_prefix(EXAMPLES).is_some_and(|path| path.starts_with('/'))
}

/// Lines that are neither blank nor a comment.
fn lines_of_code(text: &str) -> usize {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    text.lines().filter(is_code).count()
}

fn is_example(path: &str) -> bool {
    path.strip_prefix(EXAMPLES).is_some_and(|path| path.starts_with('/') && path.ends_with(".md"))
}

/// The folders of the other programs that the blocks call. Installs missing ones.
fn tools<'a>(blocks: impl Iterator<Item = &'a Block> + Clone) -> Result<Vec<PathBuf>> {
    let calls = |program: &str| {
        let mut lines = blocks.clone().flat_map(|block| block.text.lines());
        lines.any(|line| line.split_whitespace().any(|word| word == program))
    };
    if calls("curl") {
        install::curl()?;
    }
    let nginx = if calls("nginx") { Some(install::nginx()?) } else { None };
    let redis = if calls("redis-server") { redis()? } else { None };
    let pytest = if calls("pytest") { Some(install::pytest()?) } else { None };
    let here = env::current_dir()?;
    // A program without a folder is on the path.
    let nginx = nginx.as_deref().and_then(Path::parent).filter(|folder| *folder != Path::new(""));
    Ok(nginx.into_iter().map(|folder| here.join(folder)).chain(redis).chain(pytest).collect())
}

/// The folder of a `redis-server` that finds its libraries; `None` if it is on the path.
fn redis() -> Result<Option<PathBuf>> {
    let (program, libraries) = install::redis()?;
    let Some(home) = program.parent().filter(|folder| *folder != Path::new("")) else { return Ok(None) };
    let folder = home.join("with-libraries");
    fs::create_dir_all(&folder)?;
    let wrapper = folder.join("redis-server");
    let (libraries, program) = (libraries.display(), program.display());
    fs::write(&wrapper, format!("#!/bin/sh\nLD_LIBRARY_PATH='{libraries}' exec '{program}' \"$@\"\n"))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    Ok(Some(folder))
}

fn run_document(document: &str, blocks: &[Block], path: &OsStr) -> Result<()> {
    let scratch = Scratch::new(document, path)?;
    let mut background = Vec::new(); // dropped, and so ended, before the folder
    let mut log = PathBuf::new();
    for block in blocks {
        let place = format!("{document}:{}", block.line);
        println!("--- {place}");
        if block.tag == "sh" {
            log = scratch.logs.join(block.line.to_string());
        }
        run_block(block, &scratch, &log, &mut background).map_err(|error| format!("{place}: {error}"))?;
    }
    Ok(())
}

fn run_block(block: &Block, scratch: &Scratch, log: &Path, background: &mut Vec<Background>) -> Result<()> {
    let start = || Background::start(&mut scratch.shell(&block.text), log.to_owned());
    match Mode::of(block)? {
        Mode::Printed => check_printed(&block.text, log)?,
        Mode::Skip { reason } => println!("skipped: {reason}"),
        Mode::ToItsEnd => start()?.wait_success(LIMIT)?,
        Mode::Background { until } => {
            let mut running = start()?;
            running
                .wait_until(LIMIT, |log| fs::read_to_string(log).is_ok_and(|text| text.contains(&until)))?;
            background.push(running);
        }
    }
    Ok(())
}

/// An error if the log lacks one of the lines, or has it too early.
fn check_printed(lines: &str, log: &Path) -> Result<()> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    match missing(lines, &text) {
        None => Ok(()),
        Some(line) => Err(format!("`{line}` is missing, or comes too early, in\n{text}").into()),
    }
}

/// The first of the lines that `text` lacks behind those before it.
fn missing<'a>(lines: &'a str, text: &str) -> Option<&'a str> {
    let mut printed = text.lines();
    lines.lines().find(|line| !printed.any(|other| other.trim_end() == *line))
}

/// The folder one document's blocks run in (an empty one outside of any workspace, or for an example the workspace),
/// and the logs beside it.
struct Scratch {
    home: PathBuf,
    folder: PathBuf,
    logs: PathBuf,
    path: OsString,
}

impl Scratch {
    fn new(document: &str, path: &OsStr) -> Result<Self> {
        let name = format!("mainstay-docs-{}-{}", std::process::id(), document.replace('/', "-"));
        let home = env::temp_dir().join(name);
        let (empty, logs) = (home.join("work"), home.join("logs"));
        let folder = if is_example(document) { env::current_dir()? } else { empty };
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(&logs)?;
        Ok(Self { home, folder, logs, path: path.to_owned() })
    }

    fn shell(&self, text: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-euc", text]).current_dir(&self.folder).env("PATH", &self.path);
        // Where `CI` is set, some programs colour their output for a log, and the text that is waited for is torn.
        shell.env("NO_COLOR", "1").env_remove("FORCE_COLOR");
        shell
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(directive: Option<&str>) -> std::result::Result<Mode, String> {
        let directive = directive.map(str::to_owned);
        Mode::of(&Block { line: 1, tag: "sh".into(), text: String::new(), directive, file: None })
    }

    #[test]
    fn a_block_runs_to_its_end_unless_told_otherwise() {
        assert_eq!(mode(None), Ok(Mode::ToItsEnd));
        assert_eq!(mode(Some("background until \"up\"")), Ok(Mode::Background { until: "up".into() }));
        assert_eq!(mode(Some("skip, slow")), Ok(Mode::Skip { reason: "slow".into() }));
    }

    #[test]
    fn the_commands_of_every_document_for_users_and_contributors_are_run() {
        let documents =
            ["README.md", "README.zh-CN.md", "CONTRIBUTING.md", "docs/PROTOCOL.md", "docs/adr/0001-a.md"];
        assert!(documents.into_iter().all(is_run));
        assert!(is_run("examples/README.md") && is_run("examples/chat/README.md"));
        assert!(
            !is_run("clients/README.md") && !is_run("docs/pulse.png") && !is_run("examples/chat/main.rs")
        );
    }

    #[test]
    fn blank_lines_and_comments_are_no_code() {
        assert_eq!(lines_of_code("// a\n\nlet b;\n    // c\n    d();\n"), 2);
        assert!(is_source_of_example("examples/chat/main.rs") && !is_source_of_example("examples/README.md"));
    }

    #[test]
    fn printed_lines_are_looked_for_in_their_order() {
        assert_eq!(missing("a\nc\n", "a\nb\nc\n"), None);
        assert_eq!(missing("c\na\n", "a\nb\nc\n"), Some("a"));
        assert_eq!(missing("a\n", "ab\n"), Some("a"), "a line is compared as a whole");
    }

    #[test]
    fn what_is_printed_is_no_command() {
        let block = |tag: &str| Block {
            line: 1,
            tag: tag.into(),
            text: String::new(),
            directive: Some("printed".into()),
            file: None,
        };
        assert_eq!(Mode::of(&block("text")), Ok(Mode::Printed));
        assert!(Mode::of(&block("sh")).is_err());
    }

    #[test]
    fn a_skip_without_a_reason_is_refused() {
        assert!(mode(Some("skip")).is_err());
        assert!(mode(Some("skip, ")).is_err());
    }
}
