//! Runs every `sh` block of the READMEs, of CONTRIBUTING and of `docs/`, as written, so that no command there can go
//! stale.
//!
//! The blocks of one document run in order in one empty folder, each by `sh -eu`, with our release programs on the
//! path; what a block writes, the next one finds. A comment in the line before a block changes that:
//!
//! ```text
//! <!-- run: background until "listening" -->    keep it running until the document ends; go on at that output
//! <!-- run: skip, it needs a certificate -->    do not run it; the reason is required
//! ```

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::markdown::{Block, Document};
use crate::run::{Background, cargo, tracked_files};
use crate::{Outcome, Result, install};

/// How long a block may take to end, or a block in the background to print the text that the runner waits for.
const LIMIT: Duration = Duration::from_secs(120);

/// How to run a block, by the comment before it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    ToItsEnd,
    Background { until: String },
    Skip { reason: String },
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
        match directive.strip_prefix("skip,").map(str::trim) {
            Some(reason) if !reason.is_empty() => Ok(Self::Skip { reason: reason.to_owned() }),
            _ => Err(format!("`run: {directive}` is neither `background until \"text\"` nor `skip, reason`")),
        }
    }
}

/// Runs the blocks of all documents; the first that fails is the error.
pub(crate) fn run_all() -> Result<Outcome> {
    let mut documents = Vec::new();
    for path in tracked_files()?.into_iter().filter(|path| is_run(path)) {
        let blocks = Document::parse(&fs::read_to_string(&path)?).blocks;
        documents.push((path, blocks.into_iter().filter(|block| block.tag == "sh").collect::<Vec<_>>()));
    }
    let count: usize = documents.iter().map(|(_, blocks)| blocks.len()).sum();
    if count == 0 {
        return Ok(Outcome::Skipped("no document has a command".into()));
    }
    cargo("build --release --package mainstay-cli")?;
    let tools = tools(documents.iter().flat_map(|(_, blocks)| blocks))?;
    for (path, blocks) in &documents {
        run_document(path, blocks, &tools)?;
    }
    Ok(Outcome::Passed)
}

/// Whether the commands in this file are run.
pub(crate) fn is_run(path: &str) -> bool {
    let at_the_top = ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"].contains(&path);
    at_the_top || (path.starts_with("docs/") && path.ends_with(".md"))
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
    let here = env::current_dir()?;
    // A program without a folder is on the path.
    let folders = nginx.iter().filter_map(|nginx| nginx.parent()).filter(|folder| *folder != Path::new(""));
    Ok(folders.map(|folder| here.join(folder)).collect())
}

fn run_document(path: &str, blocks: &[Block], tools: &[PathBuf]) -> Result<()> {
    let scratch = Scratch::new(path, tools)?;
    let mut background = Vec::new(); // dropped, and so ended, before the folder
    for block in blocks {
        let place = format!("{path}:{}", block.line);
        println!("--- {place}");
        run_block(block, &scratch, &mut background).map_err(|error| format!("{place}: {error}"))?;
    }
    Ok(())
}

fn run_block(block: &Block, scratch: &Scratch, background: &mut Vec<Background>) -> Result<()> {
    let start =
        || Background::start(&mut scratch.shell(&block.text), scratch.logs.join(block.line.to_string()));
    match Mode::of(block)? {
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

/// The empty folder one document's blocks run in, outside of any workspace, and the logs beside it.
struct Scratch {
    home: PathBuf,
    folder: PathBuf,
    logs: PathBuf,
    path: OsString,
}

impl Scratch {
    fn new(document: &str, tools: &[PathBuf]) -> Result<Self> {
        let name = format!("mainstay-docs-{}-{}", std::process::id(), document.replace('/', "-"));
        let home = env::temp_dir().join(name);
        let (folder, logs) = (home.join("work"), home.join("logs"));
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(&logs)?;
        let inherited = env::var_os("PATH").unwrap_or_default();
        let ours = env::current_dir()?.join("target/release");
        let path = [ours].into_iter().chain(env::split_paths(&inherited)).chain(tools.iter().cloned());
        let path = env::join_paths(path)?;
        Ok(Self { home, folder, logs, path })
    }

    fn shell(&self, text: &str) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-euc", text]).current_dir(&self.folder).env("PATH", &self.path);
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
        Mode::of(&Block { line: 1, tag: "sh".into(), text: String::new(), directive })
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
        assert!(!is_run("clients/README.md") && !is_run("docs/pulse.png"));
    }

    #[test]
    fn a_skip_without_a_reason_is_refused() {
        assert!(mode(Some("skip")).is_err());
        assert!(mode(Some("skip, ")).is_err());
    }
}
