//! Our servers and their peers, measured side by side by `mainstay bench`.
//!
//! ```text
//! server (first core) <-- loopback --> mainstay bench (second core)
//! ```
//!
//! Round by round, scenario by scenario, every server has its turn, in a fresh process each time, so that what
//! disturbs the machine disturbs all of them. [`field`] says who takes part and how each is built, [`figures`] what
//! is measured and what is read from it, [`page`] and [`chart`] write it down. Nothing here judges a time: the
//! smoke test only wants every figure to be there and no connection to be lost.

mod chart;
mod field;
mod figures;
mod page;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::run::{Background, cargo, free_address, output};
use crate::{Outcome, Result};
use field::Server;
use figures::{FIGURES, SCENARIOS, Scenario, shown};
pub(crate) use page::machine;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);
/// The generator, built by [`run`].
const MAINSTAY: &str = "target/release/mainstay";
/// Logs of the servers, and the page of a smoke test.
const SCRATCH: &str = "target/xtask/bench";

#[derive(Args)]
pub(crate) struct Options {
    /// Few connections, one round, a fraction of a second, ours alone: whether everything works
    #[arg(long)]
    quick: bool,
    /// Only these servers
    #[arg(long = "server", value_name = "NAME", value_parser = field::NAMES)]
    servers: Vec<String>,
    /// How often every server has its turn; the page has the medians
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Where PERFORMANCE.md and performance.svg go [default: docs; with --quick target/xtask/bench]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Whether the whole path works, for ours alone.
pub(crate) fn step() -> Result<Outcome> {
    run(&Options { quick: true, servers: Vec::new(), rounds: 1, output: None })
}

/// Measures, and writes the page and its chart.
pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let folder = options.output.as_deref().unwrap_or(Path::new(if options.quick { SCRATCH } else { "docs" }));
    fs::create_dir_all(SCRATCH)?;
    fs::create_dir_all(folder)?;
    cargo("build --release --package mainstay-gateway")?;
    cargo("build --release --package mainstay --example bench_server")?;
    let wanted = |name: &str| match options.servers.as_slice() {
        [] => !options.quick || field::is_ours(name),
        named => named.iter().any(|one| one == name),
    };
    let (servers, missing) = field::prepare(wanted)?;
    let scale = Scale::of_this_machine(options.quick)?;
    let mut results = Results { missing, ..Results::default() };
    let rounds = if options.quick { 1 } else { options.rounds };
    for round in 1..=rounds {
        for scenario in SCENARIOS {
            for server in servers.iter().filter(|server| scenario.has(server)) {
                println!("--- round {round} of {rounds}: {}, {}", scenario.name, server.name);
                match measure(server, scenario, &scale) {
                    Ok(found) => results.add(scenario, server, found),
                    Err(error) if options.quick => return Err(error),
                    Err(error) => results.failed(scenario, server, &error.to_string()),
                }
            }
        }
    }
    if options.quick {
        all_there(&servers, &results)?;
    }
    let page = page::write(&servers, &results, &scale, rounds)?;
    fs::write(folder.join("performance.svg"), chart::draw(&servers, &results))?;
    fs::write(folder.join("PERFORMANCE.md"), page)?;
    println!("{} and performance.svg are written", folder.join("PERFORMANCE.md").display());
    Ok(Outcome::Passed)
}

/// How much of everything, and where.
struct Scale {
    quick: bool,
    /// The most connections that a process here may hold.
    connections: u32,
    /// Whether server and generator get a core each.
    pinned: bool,
}

impl Scale {
    fn of_this_machine(quick: bool) -> Result<Self> {
        let files = output(Command::new("sh").args(["-c", "ulimit -n"]))?;
        let files: u32 = files.trim().parse().unwrap_or(u32::MAX);
        let cores = std::thread::available_parallelism()?.get();
        let pinned = cores > 1 && output(Command::new("taskset").arg("--version")).is_ok();
        Ok(Self { quick, connections: files.saturating_sub(500).min(19_500), pinned })
    }

    fn command(&self, core: u32, words: &[String]) -> Command {
        let mut words: Vec<String> = words.to_vec();
        if self.pinned {
            words.splice(0..0, ["taskset".to_owned(), "-c".to_owned(), core.to_string()]);
        }
        let mut command = Command::new(words.first().map_or("false", String::as_str));
        command.args(words.get(1..).unwrap_or_default());
        command
    }
}

/// One server's turn: what `mainstay bench` found.
fn measure(server: &Server, scenario: &Scenario, scale: &Scale) -> Result<Value> {
    let address = free_address()?;
    let log =
        Path::new(SCRATCH).join(server.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-") + ".log");
    let command = server.command(address, scenario.interval(scale.quick));
    let mut running = Background::start(&mut scale.command(0, &command), log)?;
    running.wait_listening(START, address)?;
    let mut bench = scenario.command(MAINSTAY, &format!("ws://{address}"), server.session, scale);
    bench.extend(["--pid".to_owned(), running.id().to_string(), "--json".to_owned()]);
    let mut bench = scale.command(1, &bench);
    let found: Value = serde_json::from_str(&output(&mut bench)?)?;
    for figure in FIGURES.iter().filter(|figure| figure.scenario == scenario.name) {
        let value =
            found.get(figure.key).and_then(Value::as_f64).map_or("-".to_owned(), |v| shown(v / figure.per));
        println!("    {}: {value} {}", figure.title, figure.unit);
    }
    Ok(found)
}

/// Everything that was found, and why something was not.
#[derive(Default)]
struct Results {
    found: BTreeMap<(&'static str, &'static str), Vec<Value>>,
    /// Servers that could not be built or installed here.
    missing: Vec<String>,
    /// Turns that came to nothing.
    failures: Vec<String>,
}

impl Results {
    fn add(&mut self, scenario: &Scenario, server: &Server, found: Value) {
        self.found.entry((scenario.name, server.name)).or_default().push(found);
    }

    fn failed(&mut self, scenario: &Scenario, server: &Server, error: &str) {
        let line = error.lines().last().unwrap_or_default();
        println!("--- FAILED: {error}");
        self.failures.push(format!("{}, {}: {line}", server.name, scenario.name));
    }

    /// The median of the rounds and half their range.
    fn value(&self, figure: &figures::Figure, server: &Server) -> Option<(f64, f64)> {
        let rounds = self.found.get(&(figure.scenario, server.name))?;
        let mut values: Vec<f64> =
            rounds.iter().filter_map(|round| round.get(figure.key)?.as_f64()).collect();
        values.sort_by(f64::total_cmp);
        let (first, last) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            *values.get(middle)?
        } else {
            (values.get(middle - 1)? + values.get(middle)?) / 2.0
        };
        Some((median, (last - first) / 2.0))
    }
}

/// The smoke test: every figure of ours was measured, and nothing was lost on the way (`mainstay bench` fails then).
fn all_there(servers: &[Server], results: &Results) -> Result<()> {
    for figure in FIGURES {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == figure.scenario);
        for server in servers.iter().filter(|server| scenario.is_some_and(|scenario| scenario.has(server))) {
            if results.value(figure, server).is_none() {
                return Err(format!("{}: {} gave no `{}`", server.name, figure.scenario, figure.key).into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_rounds_the_median_counts_and_half_their_range() {
        let server = field::ours().remove(0);
        let (scenario, figure) = (&SCENARIOS[1], &FIGURES[3]);
        let mut results = Results::default();
        assert!(results.value(figure, &server).is_none());
        for value in [3.0, 1.0, 2.0] {
            let mut found = json!({});
            found[figure.key] = json!(value);
            results.add(scenario, &server, found);
        }
        assert_eq!(results.value(figure, &server), Some((2.0, 1.0)));
    }
}
