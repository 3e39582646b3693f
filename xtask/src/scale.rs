//! Measurements too large for `bench`: a million idle connections, and ten thousand clients that come back at
//! once.
//!
//! ```text
//! many x mainstay serve (127.0.1.1, ...)  <-- loopback -->  as many x mainstay bench idle
//! storm_server (cut off, or killed)       <-- loopback -->  storm_client: thousands of library clients
//! ```
//!
//! One process holds as many connections as it may open files, so larger numbers are spread over processes,
//! each server at a loopback address of its own. [`idle`], [`storm`], [`nodes`] and [`relay`] measure, [`machine`] reads
//! what the kernel counts and raises its limits while we run, [`page`] writes `docs/SCALE.md`. No time and no size is
//! judged here; a lost connection and an unreported lost message are errors, and so is any gap of a session that a cluster
//! must keep.

mod idle;
pub(crate) mod machine;
mod nodes;
mod page;
mod relay;
mod storm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::programs;
use crate::run::output;
use crate::{Outcome, Result};

/// Logs, records, and the page of a smoke test.
const SCRATCH: &str = "target/xtask/scale";
const MILLION: u32 = 1_000_000;
/// The heartbeat interval in seconds for many connections: at 25 s their heartbeats alone fill two cores.
const MILLIONS_INTERVAL: u32 = 100;

#[derive(Args)]
pub(crate) struct Options {
    /// Idle connections. May be repeated [default: 10000 and 100000]
    #[arg(long = "connections", value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    connections: Vec<u32>,
    /// Also measure a million: 10 minutes and about 10 GiB
    #[arg(long)]
    million: bool,
    /// Connections opened in a second, all processes together
    #[arg(long, value_name = "COUNT", default_value_t = 2_500, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Clients of the storms; 0: no storm
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    clients: u32,
    /// Measure several nodes and relays alone, and write their chapter anew
    #[arg(long)]
    cluster: bool,
    /// A smoke test: few connections and clients
    #[arg(long)]
    quick: bool,
    /// Where SCALE.md goes [default: docs; with --quick target/xtask/scale]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// The smoke test: the whole path works.
pub(crate) fn step() -> Result<Outcome> {
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        return Ok(Outcome::Skipped("only root may cut connections, as `cargo xtask scale` does".into()));
    }
    run(&Options {
        connections: vec![400],
        million: false,
        rate: 400,
        clients: 100,
        cluster: false,
        quick: true,
        output: None,
    })
}

/// Measures, and writes the page.
pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let folder = options.output.as_deref().unwrap_or(Path::new(if options.quick { SCRATCH } else { "docs" }));
    fs::create_dir_all(SCRATCH)?;
    fs::create_dir_all(folder)?;
    programs::mainstay()?;
    programs::peers(&["storm_server", "storm_client", "relay_client"])?;
    let page = folder.join("SCALE.md");
    if !options.cluster {
        measure_one_server(options, &page)?;
    }
    if options.clients > 0 {
        measure_cluster(options, &page)?;
    }
    println!("{} is written", page.display());
    Ok(Outcome::Passed)
}

/// Storms and idle connections of one server.
fn measure_one_server(options: &Options, page: &Path) -> Result<()> {
    let per_process = if options.quick { 200 } else { most_of_a_process()? };
    let load = idle::Load { per_process, rate: options.rate, interval: if options.quick { 2 } else { 25 } };
    let sizes = options.sizes();
    let most = sizes.iter().copied().max().unwrap_or(0);
    let _raised = if options.quick { None } else { Some(machine::Raised::for_connections(most)?) };
    let (mut idle, mut storms) = (Vec::new(), Vec::new());
    // Written again after each part: the machine may lack the memory for the last one.
    let write = |idle: &[_], storms: &[_]| -> Result<()> {
        let written = page::write(idle, &load, storms, options.quick)?;
        let chapter = fs::read_to_string(page).ok().and_then(|old| page::chapter_of(&old));
        Ok(fs::write(page, page::with_chapter(&written, &chapter.unwrap_or_default()))?)
    };
    if options.clients > 0 {
        let every = if options.quick { 0.5 } else { 5.0 };
        let stage = storm::Stage { clients: options.clients.min(per_process), every };
        storms.push(stage.network_fails()?);
        storms.push(stage.server_dies()?);
        write(&idle, &storms)?;
    }
    for connections in sizes {
        println!("--- {connections} idle connections");
        let interval = if connections < MILLION { load.interval } else { MILLIONS_INTERVAL };
        let found = idle::measure(connections, &idle::Load { interval, ..load })?;
        println!("{found}");
        idle.push(found);
        write(&idle, &storms)?;
    }
    Ok(())
}

/// Several nodes, and relays between them.
fn measure_cluster(options: &Options, page: &Path) -> Result<()> {
    let every = if options.quick { 0.5 } else { 5.0 };
    let stage =
        nodes::Stage { clients: options.clients.min(most_of_a_process()?), every, quick: options.quick };
    let relays = if options.quick {
        relay::Load { clients: 10, reconnects: 20, every: 0.1, seconds: 1.0 }
    } else {
        relay::Load { clients: 500, reconnects: 2_000, every: 0.1, seconds: 20.0 }
    };
    let mut tables = Vec::new();
    // Written again after each part: a later one may fail.
    let mut add = |table| -> Result<()> {
        tables.push(table);
        let old = fs::read_to_string(page).unwrap_or_default();
        Ok(fs::write(page, page::with_chapter(&old, &page::chapter(&tables)?))?)
    };
    add(stage.cut()?)?;
    add(stage.deploy()?)?;
    add(relay::measure(&relays)?)
}

impl Options {
    fn sizes(&self) -> Vec<u32> {
        let default =
            if self.connections.is_empty() { vec![10_000, 100_000] } else { self.connections.clone() };
        default.into_iter().chain(self.million.then_some(MILLION)).collect()
    }
}

/// How many connections a process may hold, besides a few files of its own.
fn most_of_a_process() -> Result<u32> {
    let files = output(Command::new("sh").args(["-c", "ulimit -n"]))?;
    let files: u32 = files.trim().parse().unwrap_or(u32::MAX);
    Ok(files.saturating_sub(500).clamp(1, 19_500))
}

/// A command that ends with this process, however this process ends.
fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}
