//! The ecosystems proof: real servers with their real, unmodified clients, each directly, through nginx and through
//! `mainstay serve`, with and without the row's profile.
//!
//! `proof/ecosystems` plays the rows and writes down what each leg saw; [`verdict`] compares the legs. Mainstay may do
//! nothing worse than nginx, may let a subscription wait at most two seconds longer than a direct connection does when
//! the server restarts, and may deliver nothing twice that a direct connection delivers once.

mod verdict;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use crate::programs::{self, MAINSTAY};
use crate::run::{Background, check};
use crate::{Depth, Outcome, Result, install};
use verdict::{Finding, LEGS, Row, SIGNALS};

/// Rows played at the same time, three or four legs each. They wait most of the time.
const JOBS: &str = "4";

const PLAYERS: &str = "proof/ecosystems";
const FOLDER: &str = "target/xtask/ecosystems";
const DOCUMENT: &str = "docs/ECOSYSTEMS.md";

/// How many lines of each log a failure shows.
const TAIL: usize = 15;

/// How long all rows together may take.
const LIMIT: Duration = Duration::from_secs(1800);

struct Planned {
    name: &'static str,
    needs: Needs,
    /// `Nightly` plays the rows of `Test` too.
    depth: Depth,
    /// The reason why a row is played and shown, but not judged.
    known: Option<&'static str>,
}

/// What a row needs that neither npm nor PyPI brings, or what is too much for `Test`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Packages,
    Mosquitto,
    ActionCable,
    Go,
    Jupyter,
}

/// All rows; the ones that take longest come first.
const ROWS: &[Planned] = &[
    Planned::new("actioncable", Needs::ActionCable),
    Planned::new("paho", Needs::Mosquitto),
    Planned::new("socketio", Needs::Packages),
    Planned::new("socketio-websocket", Needs::Packages),
    Planned::new("fastify", Needs::Packages),
    Planned::new("starlette", Needs::Packages),
    Planned::new("aiohttp", Needs::Packages),
    Planned::new("channels", Needs::Packages),
    Planned::new("tornado", Needs::Packages),
    Planned::new("websockets", Needs::Packages),
    Planned::new("websockets-client", Needs::Packages),
    Planned::new("graphql", Needs::Packages),
    Planned::new("sockjs", Needs::Packages),
    Planned::new("mqtt", Needs::Mosquitto),
    Planned::new("hocuspocus", Needs::Packages),
    Planned::new("vite", Needs::Packages),
    Planned::new("signalr", Needs::Packages),
    Planned::new("phoenix", Needs::Packages),
    Planned::new("websockify", Needs::Packages),
    Planned::nightly("jupyter", Needs::Jupyter),
    Planned::nightly("gorilla", Needs::Go),
];

#[derive(Args)]
pub(crate) struct Options {
    /// Play these rows alone [default: all, as `cargo xtask nightly` does]
    #[arg(value_name = "ROW", value_parser = ROWS.iter().map(|row| row.name).collect::<Vec<_>>())]
    rows: Vec<String>,
    /// As many restarts as `cargo xtask test` makes
    #[arg(long)]
    quick: bool,
    /// Write docs/ECOSYSTEMS.md from what was seen
    #[arg(long)]
    write: bool,
}

pub(crate) fn step(depth: Depth) -> Result<Outcome> {
    let is_played = |row: &&Planned| row.depth == Depth::Test || depth == Depth::Nightly;
    prove(&ROWS.iter().filter(is_played).collect::<Vec<_>>(), depth, false)
}

pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let is_played =
        |row: &&Planned| options.rows.is_empty() || options.rows.iter().any(|name| name == row.name);
    let depth = if options.quick { Depth::Test } else { Depth::Nightly };
    prove(&ROWS.iter().filter(is_played).collect::<Vec<_>>(), depth, options.write)
}

fn prove(planned: &[&Planned], depth: Depth, write: bool) -> Result<Outcome> {
    let preparing = install::alone()?;
    let mut player = player(planned)?;
    programs::mainstay()?;
    drop(preparing);
    let rows = play(&mut player, planned, depth)?;
    print!("{}", table(&rows));
    if write {
        fs::write(DOCUMENT, document(&rows))?;
        println!("written: {DOCUMENT}");
    }
    let known = |row: &Row| planned.iter().find(|planned| planned.name == row.name).and_then(|row| row.known);
    for row in &rows {
        if let Some(why) = known(row) {
            println!("KNOWN, not judged: {}: {why}", row.name);
            row.findings().iter().for_each(|finding| println!("    {finding}"));
        }
    }
    let failures: Vec<Finding> =
        rows.iter().filter(|row| known(row).is_none()).flat_map(Row::findings).collect();
    if failures.is_empty() {
        return Ok(Outcome::Passed);
    }
    print_logs(&failures);
    let lines: Vec<String> = failures.iter().map(Finding::to_string).collect();
    Err(format!("{} findings\n{}", lines.len(), lines.join("\n")).into())
}

/// The last lines of each log of the legs with a finding.
fn print_logs(findings: &[Finding]) {
    let mut legs: Vec<_> = findings.iter().map(|finding| (&finding.row, finding.leg)).collect();
    legs.dedup();
    for (row, leg) in legs {
        for log in ["client.log", "front.log", "server.log"] {
            let path = Path::new(FOLDER).join("legs").join(row).join(leg).join(log);
            let text = fs::read(&path).unwrap_or_default(); // not every leg has them all
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            if !lines.is_empty() {
                println!("--- {}\n{}", path.display(), lines[lines.len().saturating_sub(TAIL)..].join("\n"));
            }
        }
    }
}

/// `run.mjs` with everything installed that the rows need.
fn player(planned: &[&Planned]) -> Result<Command> {
    let here = env::current_dir()?;
    install::node_packages(PLAYERS)?;
    let python = install::python_packages(
        &Path::new(PLAYERS).join("requirements.txt"),
        &here.join("target/xtask/ecosystems-python"),
    )?;
    let mut player = Command::new("node");
    player
        .arg(format!("{PLAYERS}/run.mjs"))
        .env("PYTHON", python)
        .env("NGINX", absolute(&here, install::nginx()?))
        .env("MAINSTAY", here.join(MAINSTAY));
    let is_needed = |needs| planned.iter().any(|row| row.needs == needs);
    if is_needed(Needs::Mosquitto) {
        let (mosquitto, libraries) = install::mosquitto()?;
        player.env("MOSQUITTO", absolute(&here, mosquitto));
        player.env("MOSQUITTO_LIBRARIES", absolute(&here, libraries));
    }
    if is_needed(Needs::ActionCable) {
        install::action_cable()?;
    }
    if is_needed(Needs::Go) {
        let program = here.join("target/xtask/ecosystems-gorilla");
        install::gorilla()?;
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&program).arg(format!("{PLAYERS}/servers/gorilla.go"));
        check(build.env("GO111MODULE", "off").env("GOPATH", install::GO_PACKAGES))?;
        player.env("GORILLA", program);
    }
    if is_needed(Needs::Jupyter) {
        let locked = Path::new(PLAYERS).join("requirements-jupyter.txt");
        let home = here.join("target/xtask/ecosystems-jupyter");
        player.env("JUPYTER", install::python_packages(&locked, &home)?);
    }
    Ok(player)
}

/// The players change their folder; a bare name stays what is looked for on the path.
fn absolute(here: &Path, program: PathBuf) -> PathBuf {
    if program.components().count() > 1 { here.join(program) } else { program }
}

fn play(player: &mut Command, planned: &[&Planned], depth: Depth) -> Result<Vec<Row>> {
    let folder = env::current_dir()?.join(FOLDER);
    let _ = fs::remove_dir_all(&folder); // results of an earlier run must not be taken for this one's
    fs::create_dir_all(&folder)?;
    let results = folder.join("results.jsonl");
    let restarts = if depth == Depth::Nightly { "5" } else { "3" };
    player.arg(&results).arg(folder.join("legs")).args([JOBS, restarts]);
    player.args(planned.iter().map(|row| row.name));
    Background::start(player, folder.join("run.log"))?.wait_success(LIMIT)?;
    Row::read(&fs::read_to_string(results)?)
}

/// The counts of each row, leg by leg.
fn table(rows: &[Row]) -> String {
    let mut table = format!(
        "{:20} {:27} {:28} {:28} {}\n",
        "", "checks that hold: D N M P", "flows again after a kill", "after a stop in order", "orders twice"
    );
    for row in rows {
        let [held, kill, stop, twice] = counts(row);
        table += &format!("{:20} {held:27} {kill:28} {stop:28} {twice}\n", row.name);
    }
    table
        + "D directly, N through nginx, M through Mainstay, P through Mainstay with the row's profile; medians in s\n"
}

/// docs/ECOSYSTEMS.md.
fn document(rows: &[Row]) -> String {
    let mut text = HEAD.to_owned();
    for row in rows {
        let [held, kill, stop, twice] = counts(row);
        let flags =
            row.profile.as_ref().map_or_else(|| "none".to_owned(), |name| format!("`--profile {name}`"));
        let uses = row.uses.join(", ");
        text += &format!("| {} | {uses} | {flags} | {held} | {kill} | {stop} | {twice} |\n", row.title);
    }
    text
}

const HEAD: &str = "\
# Ecosystems

Written by `cargo xtask ecosystems --write`; do not edit.

Servers and clients as npm, PyPI and Debian ship them, unmodified. D is a direct connection, N is nginx with
`proxy_set_header Host $http_host`, M is `mainstay serve --upstream` without further flags, P the same with the row's
profile. A stand-in is a server of ours, where none of the three has the real one; its client is the real one.

- *Checks* hold where the client sees what it sees directly: connecting, subprotocols, messages up to 1 MB, ends with and
  without a code, refusals with their body, Origin against Host, HTTP beside WebSocket. An end with 1012 holds where
  directly the connection ends without a Close.
- *Again* is the median of the seconds from the end of the server, killed or stopped in order, until messages of its
  successor arrive, which is started about a second later. The rest is the client's backoff: its random part is the
  same on each leg, and an option of the client keeps it at a second; Action Cable's looks every 6 s whether it is
  connected. A second more or less is chance.
- *Twice* counts orders that a server received more than once. At each restart one is under way, and another is sent
  while the server is away. Some clients send them again themselves.

| Server / client | Versions | Flags | Checks D N M P | Again after a kill D / N / M / P | After a stop | Twice |
|---|---|---|---|---|---|---|
";

/// Checks that hold, waits after both signals, and orders that arrived twice; leg by leg.
fn counts(row: &Row) -> [String; 4] {
    let legs = |figure: &dyn Fn(&str) -> Option<String>, between: &str| {
        LEGS.map(|leg| figure(leg).unwrap_or_else(|| "-".to_owned())).join(between)
    };
    let waits =
        |signal| legs(&|leg| row.flows_again(leg, signal).map(|wait| format!("{:.1}", wait.seconds)), " / ");
    let [kill, stop] = SIGNALS.map(waits);
    let held = legs(&|leg| row.held(leg).map(|(held, all)| format!("{held}/{all}")), " ");
    let twice = legs(&|leg| row.twice(leg).map(|count| count.to_string()), " / ");
    [held, kill, stop, twice]
}

impl Planned {
    const fn new(name: &'static str, needs: Needs) -> Self {
        Self { name, needs, depth: Depth::Test, known: None }
    }

    const fn nightly(name: &'static str, needs: Needs) -> Self {
        Self { depth: Depth::Nightly, ..Self::new(name, needs) }
    }
}
