//! What the same fault costs with a heartbeat and a reconnect written by hand, and with Mainstay.
//!
//! ```text
//! recipe-client   <-> Cable <-> recipe-server
//! mainstay-client <-> Cable <-> mainstay-server (the Fastify plugin)
//! mainstay-client <-> Cable <-> mainstay serve <-> Cable <-> recipe-server
//! ```
//!
//! Client and server each send ten numbers a second and write down what they send and receive (`clients/losses`). The
//! three lanes meet each fault at the same moment, as [`stage`] causes it; [`verdict`] compares what was sent with what
//! arrived, and [`page`] writes the result into the READMEs and `docs/LOSSES.md`.

mod page;
mod stage;
mod verdict;

use std::env;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use self::stage::{Pace, Stage};
use self::verdict::Measured;
use crate::programs::{self, MAINSTAY};
use crate::{Depth, Outcome, Result, clients, install};

const SCRATCH: &str = "target/xtask/losses";

/// How long a run watches: long enough for a table, or as long as a test run may take.
const WHOLE: Pace = Pace { calm: Duration::from_secs(10), watched: Duration::from_secs(60) };
const SHORT: Pace = Pace { calm: Duration::from_secs(3), watched: Duration::from_secs(10) };

#[derive(Args)]
pub(crate) struct Options {
    /// Only these faults; the documents are then left as they are. May be repeated
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
    /// Watch for 10 s after a fault instead of 60 s; the documents are left as they are
    #[arg(long)]
    quick: bool,
    /// Print what was measured as JSON, one object for each fault and lane
    #[arg(long)]
    json: bool,
    /// Write the documents into this folder instead of the workspace
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// Nothing passes for 20 s, and the old connection stays dead: from Wi-Fi to mobile data
    Cut,
    /// The same for a minute: a tunnel, a lift
    Minute,
    /// The same for 2 minutes, which is as long as a session is kept
    Offline,
    /// The client's process is stopped for 60 s: a laptop with its lid closed
    Stopped,
    /// SIGTERM to the server, which is started again at the same port
    Restart,
    /// SIGKILL to the server, which is started again at the same port
    Kill,
    /// A new server first, then SIGTERM to the old one
    Deploy,
}

/// What keeps the connection alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// `@fastify/websocket` with a heartbeat, and `new WebSocket` in `close`.
    Recipe,
    /// `@mainstay/fastify` and `@mainstay/client`.
    Plugin,
    /// `@mainstay/client`, `mainstay serve`, and the recipe's server.
    Gateway,
}

const LANES: [Lane; 3] = [Lane::Recipe, Lane::Plugin, Lane::Gateway];

/// Runs a part of the faults in the test run, which judges the committed table as well; all of them nightly.
pub(crate) fn step(depth: Depth) -> Result<Outcome> {
    page::check(Path::new("."))?;
    let (faults, quick) = match depth {
        Depth::Test => (vec![Fault::Cut], true),
        Depth::Nightly => (Fault::value_variants().to_vec(), false),
    };
    run(&Options { faults, quick, json: false, output: None })
}

/// Measures, and writes the documents if everything was measured.
pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let mainstay = prepare()?;
    let faults = if options.faults.is_empty() { Fault::value_variants() } else { options.faults.as_slice() };
    let pace = if options.quick { SHORT } else { WHOLE };
    let mut found = Vec::new();
    for &fault in faults {
        println!("--- {}: {}", fault.name(), fault.words());
        found.push((fault, measure(fault, pace, &mainstay)?));
    }
    if options.json {
        let all: Vec<_> = found.iter().flat_map(|(fault, lanes)| to_json(*fault, lanes)).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    if options.faults.is_empty() && !options.quick {
        page::write(options.output.as_deref().unwrap_or(Path::new(".")), &found)?;
    }
    let failures: Vec<_> = found.iter().flat_map(|(fault, lanes)| failures(*fault, lanes)).collect();
    if failures.is_empty() { Ok(Outcome::Passed) } else { Err(failures.join("; ").into()) }
}

/// Builds everything. Returns the program `mainstay`, or the one that the environment names.
fn prepare() -> Result<PathBuf> {
    let _preparing = install::alone()?;
    clients::build()?;
    if let Some(named) = env::var_os("MAINSTAY") {
        return Ok(named.into());
    }
    programs::mainstay()?;
    Ok(env::current_dir()?.join(MAINSTAY))
}

/// Plays one fault on all lanes at the same time.
fn measure(fault: Fault, pace: Pace, mainstay: &Path) -> Result<[Measured; 3]> {
    let played = thread::scope(|scope| {
        let threads = LANES.map(|lane| {
            let play = move || {
                let stage = Stage::set(fault, lane, mainstay).map_err(|error| error.to_string())?;
                stage.play(pace).map_err(|error| error.to_string())
            };
            scope.spawn(play)
        });
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err("the lane panicked".to_owned())))
    });
    let mut measured = [Measured::default(); 3];
    for ((lane, played), measured) in LANES.iter().zip(played).zip(&mut measured) {
        *measured = played.map_err(|error| format!("{}, {}: {error}", fault.name(), lane.name()))?;
        println!("{:8} {measured}", lane.name());
    }
    Ok(measured)
}

/// Promises that did not hold. A recipe that lost nothing is one too: then the run showed nothing.
fn failures(fault: Fault, lanes: &[Measured; 3]) -> Vec<String> {
    let [recipe, ours @ ..] = lanes;
    let mut failures = Vec::new();
    if recipe.lost() == 0 {
        failures.push(format!("{}: the recipe lost nothing", fault.name()));
    }
    for (lane, measured) in LANES[1..].iter().zip(ours) {
        let mut fail = |what: String| failures.push(format!("{}, {}: {what}", fault.name(), lane.name()));
        if measured.silently() > 0 {
            fail(format!("{} lost without a word", measured.silently()));
        }
        if measured.pending > 0 {
            fail(format!("{} messages without a fate", measured.pending));
        }
        if fault.is_survived() && measured.lost() > 0 {
            fail(format!("{} lost, where nothing may be", measured.lost()));
        }
    }
    failures
}

fn to_json(fault: Fault, lanes: &[Measured; 3]) -> Vec<Value> {
    let object = |(lane, measured): (&Lane, &Measured)| json!({ "fault": fault.name(), "lane": lane.name(), "measured": measured.to_json() });
    LANES.iter().zip(lanes).map(object).collect()
}

impl Fault {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Its docstring, which `--help` prints.
    fn words(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| Some(value.get_help()?.to_string())).unwrap_or_default()
    }

    /// Whether both processes live and the client is back within the resume window: then nothing is lost. Two minutes
    /// are the window itself, and a client may keep less than it sends in that time.
    fn is_survived(self) -> bool {
        matches!(self, Self::Cut | Self::Minute | Self::Stopped)
    }
}

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Self::Recipe => "recipe",
            Self::Plugin => "plugin",
            Self::Gateway => "gateway",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::verdict::Direction;

    fn lost(lost: u64, reported: u64) -> Measured {
        Measured { up: Direction { sent: 100, lost, reported, twice: 0 }, ..Measured::default() }
    }

    #[test]
    fn a_survived_fault_may_cost_mainstay_nothing_and_a_lost_process_nothing_in_silence() {
        let none = lost(0, 0);
        assert_eq!(failures(Fault::Cut, &[lost(50, 0), none, none]), [""; 0]);
        assert_eq!(failures(Fault::Cut, &[lost(50, 0), none, lost(1, 1)]).len(), 1);
        assert_eq!(failures(Fault::Kill, &[lost(50, 0), lost(3, 3), none]), [""; 0]);
        assert_eq!(failures(Fault::Kill, &[lost(50, 0), lost(3, 2), none]).len(), 1);
    }

    #[test]
    fn a_recipe_that_lost_nothing_shows_nothing() {
        assert_eq!(failures(Fault::Cut, &[lost(0, 0); 3]), ["cut: the recipe lost nothing"]);
    }
}
