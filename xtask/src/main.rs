//! Development tasks. `cargo xtask test` is the whole proof of a change, on a fresh machine too; `cargo xtask
//! nightly` is its long form.
//!
//! [`STEPS`] lists what they run, in this order, until the first failure; some of them two at a time (`lanes`). If the
//! machine lacks something that a step needs, the step prints that and installs it by the ordinary package managers
//! (`install`). Each step has a limit, after which it is killed and has failed (`step`).

mod autobahn;
mod bench;
mod circles;
mod clients;
mod cluster;
mod crates;
mod docs;
mod ecosystems;
mod engines;
mod install;
mod instructions;
mod lanes;
mod losses;
mod markdown;
mod memory;
mod metrics;
mod outage;
mod path;
mod programs;
mod proxies;
mod release;
mod reload;
mod rolling;
mod run;
mod scale;
mod step;
mod tidy;
mod words;

use std::error::Error;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, Parser};
use lanes::Beside;
use run::cargo;

const STEPS: &[Step] = &[
    Step::new("fmt", "formatting", |_| cargo("fmt --all --check")),
    Step::new("tidy", "rules over all files", |_| tidy::check()),
    Step::new("programs", "what the later steps run, built for release", |_| programs::all())
        .beside(Beside::Compiling)
        .within(60),
    Step::new("clippy", "lints", |_| cargo("clippy --workspace --all-targets -- -D warnings"))
        .beside(Beside::Compiling)
        .within(60),
    Step::new("features", "each feature of each crate, alone and none", |_| crates::features())
        .beside(Beside::Compiling)
        .within(60),
    Step::new("msrv", "the oldest compiler that we promise", |_| crates::msrv()).beside(Beside::Compiling),
    Step::new("rustdoc", "documentation without a warning, with each feature", |_| crates::rustdoc())
        .beside(Beside::Compiling),
    Step::new("package", "the crates as the registry gets them", |_| crates::package())
        .beside(Beside::Compiling),
    Step::new("deny", "licences and sources of the dependencies", |_| crates::deny())
        .beside(Beside::Compiling),
    Step::new("semver", "the public API beside the last release's", |_| crates::semver())
        .beside(Beside::Compiling),
    Step::new("test", "unit, documentation and integration tests", |_| tests()).within(30),
    Step::new("clients", "the npm packages, in Node, in browsers, and against ours", |_| clients::step())
        .beside(Beside::WaitingAtKnownPorts)
        .within(30),
    Step::new(
        "cluster",
        "three nodes and a real engine: clients cut, nodes drained, killed and stopped",
        cluster::step,
    )
    .beside(Beside::Waiting)
    .within(30),
    Step::new(
        "proxies",
        "the recipes before the real proxies; Compose's demonstration with Prometheus",
        |_| proxies::step(),
    )
    .beside(Beside::Waiting)
    .within(30),
    Step::new("docs", "commands in the documents, as written", |_| docs::run_documents())
        .beside(Beside::WaitingAtKnownPorts),
    Step::new("examples", "one program per need: what it prints is what its page shows", |_| {
        docs::run_examples()
    })
    .beside(Beside::WaitingAtKnownPorts),
    Step::new("outage", "a Fastify backend behind us, killed, cut and frozen", |_| outage::step())
        .beside(Beside::Waiting),
    Step::new("rolling", "three Fastify processes behind us, each replaced under load", |_| rolling::step())
        .beside(Beside::Waiting),
    Step::new(
        "ecosystems",
        "real servers and clients: directly, through nginx, through us",
        ecosystems::step,
    )
    .beside(Beside::Waiting),
    Step::new("losses", "what a cut costs by hand and with Mainstay", losses::step).beside(Beside::Waiting),
    Step::new("autobahn", "RFC 6455 and 7692, judged by the Autobahn test suite", autobahn::step),
    Step::new("release", "what users download", release::step),
    Step::new("reload", "1,000 routes replaced under load, and what that costs", reload::step),
    Step::new("memory", "what idle connections and parked sessions cost", |_| memory::step()),
    Step::new("bench", "the generator and the servers it measures, counts only", |_| {
        bench::step().and_then(|_| scale::step())
    }),
    Step::new("instructions", "what a message costs, counted by callgrind", |_| instructions::step()),
    Step::new("sim", "sessions under every fault, by seed", simulate),
];

/// How long a step may take: several times what it needs on two cores from nothing, so that only one that hangs is killed.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// At full length.
const NIGHTLY_LIMIT: Duration = Duration::from_secs(6 * 60 * 60);

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(Depth) -> Result<Outcome>,
    limit: Duration,
    beside: Beside,
}

/// How much a step does: `Test` takes minutes in all, `Nightly` as long as it needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Test,
    Nightly,
}

enum Outcome {
    Passed,
    /// The step could not run on this machine, and why. No failure, but printed last.
    Skipped(String),
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of Mainstay")]
enum Task {
    /// Prove a change: every step, stopping at the first failure
    Test(Selection),
    /// The same steps at full length
    Nightly(Selection),
    /// Judge our WebSocket server and client by the Autobahn test suite alone
    Autobahn(autobahn::Options),
    /// Play real servers and clients directly, through nginx and through Mainstay
    Ecosystems(ecosystems::Options),
    /// Measure our servers and their peers side by side, and write docs/PERFORMANCE.md
    Bench(bench::Options),
    /// Play the same faults to the usual recipe and to Mainstay, and write the READMEs' table and docs/LOSSES.md
    Losses(losses::Options),
    /// Hold very many idle connections, and bring thousands of clients back; writes docs/SCALE.md
    Scale(scale::Options),
    /// Replace 1,000 routes under load at full length, and print what that costs
    Reload,
    /// Play single rounds of the proof of clusters
    Cluster(cluster::Options),
    /// Make what users download: a tarball, a Debian package, a bill of materials, checksums
    Release(release::Options),
    /// The process of one step, which `test` and `nightly` start
    #[command(hide = true)]
    Step {
        name: String,
        #[arg(long)]
        nightly: bool,
    },
}

#[derive(Args)]
struct Selection {
    /// Print the steps, run nothing
    #[arg(long)]
    list: bool,
    /// Run only these steps, in the usual order
    #[arg(value_name = "STEP", value_parser = STEPS.iter().map(|step| step.name).collect::<Vec<_>>())]
    steps: Vec<String>,
}

fn main() -> ExitCode {
    let task = Task::parse();
    // The process of a step begins there.
    let entered = if matches!(task, Task::Step { .. }) { Ok(()) } else { run::enter_workspace() };
    let done = entered.and_then(|()| match task {
        Task::Test(selection) => run_steps(&selection, Depth::Test),
        Task::Nightly(selection) => run_steps(&selection, Depth::Nightly),
        Task::Autobahn(options) => autobahn::run(&options).map(|outcome| matches!(outcome, Outcome::Passed)),
        Task::Ecosystems(options) => {
            ecosystems::run(&options).map(|outcome| matches!(outcome, Outcome::Passed))
        }
        Task::Bench(options) => bench::run(&options).map(|outcome| matches!(outcome, Outcome::Passed)),
        Task::Losses(options) => losses::run(&options).map(|outcome| matches!(outcome, Outcome::Passed)),
        Task::Scale(options) => scale::run(&options).map(|outcome| matches!(outcome, Outcome::Passed)),
        Task::Reload => reload::step(Depth::Nightly).map(|outcome| matches!(outcome, Outcome::Passed)),
        Task::Cluster(options) => cluster::run(&options).map(|outcome| matches!(outcome, Outcome::Passed)),
        Task::Release(options) => release::run(&options).map(|outcome| matches!(outcome, Outcome::Passed)),
        Task::Step { name, nightly } => run_step(&name, if nightly { Depth::Nightly } else { Depth::Test }),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the selected steps. Returns false if one failed.
fn run_steps(selection: &Selection, depth: Depth) -> Result<bool> {
    let steps: Vec<&Step> = STEPS.iter().filter(|step| selection.holds(step)).collect();
    if selection.list {
        steps.iter().for_each(|step| println!("{:12} {}", step.name, step.about));
        return Ok(true);
    }
    let summary = Mutex::new(Summary::default());
    let locked = || summary.lock().unwrap_or_else(PoisonError::into_inner);
    // At full length every step has the machine for itself.
    let parts: Vec<&[&Step]> =
        if depth == Depth::Test { lanes::parts(&steps).collect() } else { steps.chunks(1).collect() };
    for part in parts {
        lanes::play(part, |step| {
            println!("\n=== {}: {}", step.name, step.about);
            let started = Instant::now();
            let limit = if depth == Depth::Nightly { NIGHTLY_LIMIT } else { step.limit };
            let outcome = step::run(step.name, depth, limit, part.len() > 1);
            locked().add(step, &outcome, started.elapsed().as_secs_f64());
            outcome.is_ok()
        });
        if locked().failed > 0 {
            break;
        }
    }
    locked().print();
    Ok(locked().failed == 0)
}

/// Runs one step in this process. Returns whether its outcome could be written down.
fn run_step(name: &str, depth: Depth) -> Result<bool> {
    let step = STEPS.iter().find(|step| step.name == name).ok_or_else(|| format!("no step `{name}`"))?;
    step::report(name, &(step.run)(depth))?;
    Ok(true)
}

impl Selection {
    fn holds(&self, step: &Step) -> bool {
        self.steps.is_empty() || self.steps.iter().any(|name| name == step.name)
    }
}

#[derive(Default)]
struct Summary {
    lines: Vec<String>,
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Summary {
    fn add(&mut self, step: &Step, outcome: &Result<Outcome>, seconds: f64) {
        let (count, word) = match outcome {
            Ok(Outcome::Passed) => (&mut self.passed, "passed".to_owned()),
            Ok(Outcome::Skipped(why)) => (&mut self.skipped, format!("SKIPPED: {why}")),
            Err(error) => (&mut self.failed, format!("FAILED: {error}")),
        };
        *count += 1;
        let line = format!("{:12} {seconds:7.1} s  {word}", step.name);
        println!("--- {line}");
        self.lines.extend(line.lines().next().map(str::to_owned));
    }

    /// The last line is the one machines read: `N passed, N failed`, and `, N skipped` if any were.
    fn print(&self) {
        println!("\n=== summary");
        self.lines.iter().for_each(|line| println!("{line}"));
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
    }
}

impl Step {
    const fn new(name: &'static str, about: &'static str, run: fn(Depth) -> Result<Outcome>) -> Self {
        Self { name, about, run, limit: LIMIT, beside: Beside::Nothing }
    }

    const fn beside(self, beside: Beside) -> Self {
        Self { beside, ..self }
    }

    const fn within(self, minutes: u64) -> Self {
        Self { limit: Duration::from_secs(60 * minutes), ..self }
    }
}

/// Runs the tests of all crates, two at a time for each core: most of them wait for processes, timers and sockets.
fn tests() -> Result<Outcome> {
    let threads = std::thread::available_parallelism().map_or(4, |cores| cores.get() * 2);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--workspace"]);
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        command.env("RUST_TEST_THREADS", threads.to_string());
    }
    run::check(&mut command)
}

fn simulate(depth: Depth) -> Result<Outcome> {
    let seeds = if depth == Depth::Nightly { 100_000 } else { 2_000 };
    cargo(&format!("run --release --package mainstay-sim -- --seeds {seeds}"))
}
