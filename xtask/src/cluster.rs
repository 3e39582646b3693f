//! The proof of clusters: real nodes with a real engine, an unmodified Fastify application behind them, a balancer that picks
//! at random in front, and clients that number everything both ways.
//!
//! ```text
//! cluster_client (cut) <-> cluster_balancer <-> mainstay serve x 3  <-> backend.mjs
//!                                               (drained, killed, stopped)
//!                                                    redis-server, valkey-server (killed, stopped, emptied)
//! ```
//!
//! Before that the driver of engines is tested alone: `engines::drive`.
//!
//! Every part is a process of its own. Backend and clients write down what they saw; `verdict` compares the two, and `rows`
//! says what each round must count: nothing is lost without a report, nothing comes twice, nothing at all is lost where nodes
//! are drained and sessions may move, and every reported gap is one that docs/CLUSTER.md names.

mod libraries;
mod operator;
mod rounds;
mod rows;
mod stage;
mod startup;
mod strangers;
mod verdict;

use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use clap::Args;

use crate::engines::{self, Brand, Program};
use crate::run::cargo;
use crate::{Depth, Outcome, Result, clients, install, programs};
use rounds::Size;

/// The programs of most rounds, as the tests have them, and those of large ones.
const DEBUG: &str = "target/debug";
const RELEASE: &str = "target/release";
const MAINSTAY: &str = "target/debug/mainstay";

type Play = fn(&Program, &Size) -> Result<()>;

const ROUNDS: &[(&str, Play)] = &[
    ("driver", |program, _| engines::drive(program)),
    ("alone", |_, size| rounds::without_a_cluster(size)),
    ("cuts", rounds::cuts),
    ("engine", rounds::engine_faults),
    ("deploy", rounds::deploy),
    ("movable", rounds::deploy_movable),
    ("encrypted", rounds::encrypted),
    ("kill", rounds::kill),
    ("pause", rounds::pause),
    ("operator", operator::operator),
    ("file", |_, size| rounds::restart_with_file(size)),
    ("strangers", strangers::strangers),
    ("refused", |program, _| startup::refused(program)),
    ("later", startup::engine_comes_later),
    ("two", startup::two_clusters),
    ("libraries", |program, _| libraries::libraries(program)),
];

/// What is played on Valkey, too.
const CORE: &[&str] = &["driver", "cuts", "movable"];

/// What is played at [`Size::DRAIN`], too, at full length.
const DRAINS: &[&str] = &["deploy", "movable", "file"];

#[derive(Args)]
pub(crate) struct Options {
    /// Only these rounds, in the usual order
    #[arg(value_name = "ROUND", value_parser = ROUNDS.iter().map(|round| round.0).collect::<Vec<_>>())]
    rounds: Vec<String>,
    /// Clients of each round
    #[arg(long, value_name = "COUNT")]
    clients: Option<u64>,
    /// Seconds between two messages of a client, and between two of the backend to it
    #[arg(long, value_name = "SECONDS")]
    every: Option<f64>,
    /// Build for release: for more clients than a thousand
    #[arg(long)]
    release: bool,
    /// Play on Valkey instead of Redis
    #[arg(long)]
    valkey: bool,
}

pub(crate) fn step(depth: Depth) -> Result<Outcome> {
    prepare()?;
    let size = Size::of(depth);
    play(Brand::Redis, &size, |_| true)?;
    play(Brand::Valkey, &size, |round| CORE.contains(&round))?;
    if depth == Depth::Nightly {
        prepare_release()?;
        // One at a time: each needs the whole machine.
        DRAINS
            .iter()
            .try_for_each(|drain| play(Brand::Redis, &Size::DRAIN, |round| round == *drain).map(drop))?;
    }
    Ok(Outcome::Passed)
}

/// Plays single rounds.
pub(crate) fn run(options: &Options) -> Result<Outcome> {
    prepare()?;
    let size = Size::of(Depth::Test);
    let (clients, every) = (options.clients.unwrap_or(size.clients), options.every.unwrap_or(size.every));
    if options.release {
        prepare_release()?;
    }
    let (programs, drain) = if options.release { (RELEASE, Size::DRAIN.drain) } else { (DEBUG, size.drain) };
    let size = Size { clients, every, programs, drain, ..size };
    let is_meant = |round: &str| options.rounds.is_empty() || options.rounds.iter().any(|name| name == round);
    play(if options.valkey { Brand::Valkey } else { Brand::Redis }, &size, is_meant)
}

fn prepare() -> Result<()> {
    let _preparing = install::alone()?;
    install::node_packages("proof")?;
    clients::build()?;
    Program::install(Brand::Redis)?;
    Program::install(Brand::Valkey)?;
    // With the tests, as the step `test` has them: so nothing is compiled anew.
    cargo("build --workspace --tests --bin mainstay --bin cluster_balancer --bin cluster_client").map(drop)
}

fn prepare_release() -> Result<()> {
    programs::mainstay()?;
    programs::peers(&["cluster_balancer", "cluster_client"])
}

/// Plays two rounds at a time, since most of one is waiting; after one that fails no other begins.
fn play(brand: Brand, size: &Size, is_meant: impl Fn(&str) -> bool) -> Result<Outcome> {
    let program = Program::install(brand)?;
    let rounds = Mutex::new(ROUNDS.iter().filter(|round| is_meant(round.0)).collect::<Vec<_>>().into_iter());
    let next = || rounds.lock().ok()?.next();
    let lane = || {
        while let Some((name, play)) = next() {
            let started = Instant::now();
            if let Err(error) = play(&program, size) {
                while next().is_some() {}
                return Err(format!("{name}: {error}"));
            }
            println!("    {name} took {:.0} s", started.elapsed().as_secs_f64());
        }
        Ok(())
    };
    let (one, other) = thread::scope(|scope| {
        let other = scope.spawn(lane);
        (lane(), other.join())
    });
    one?;
    other.map_err(|_| "a round panicked")??;
    Ok(Outcome::Passed)
}
