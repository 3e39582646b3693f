//! Our servers and their peers, measured side by side by `mainstay bench`.
//!
//! ```text
//! server (first core) <-- loopback --> mainstay bench (second core)
//! gateway (first core) <-- loopback --> mainstay bench and the upstream (second core)
//! ```
//!
//! Round by round, scenario by scenario, every server is measured once, in a fresh process each time, so that what
//! disturbs the machine disturbs all of them. [`field`] lists the servers and builds them, [`figures`] lists what
//! is measured and what is read from it, [`page`] and [`chart`] write it down. Nothing here judges a time: the
//! smoke test requires only that every figure exists and that no connection is lost.

mod chart;
mod field;
mod figures;
mod page;
mod plugin;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::programs::{self, MAINSTAY};
use crate::run::{Background, free_address, output};
use crate::{Outcome, Result};
use field::{DIRECT, Place, Server, Wanted};
use figures::{FIGURES, Figure, SCENARIOS, Scenario, shown};
pub(crate) use page::machine;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);
/// The generator, built by [`run`].
/// Logs of the servers, and the page of a smoke test.
const SCRATCH: &str = "target/xtask/bench";

#[derive(Args)]
pub(crate) struct Options {
    /// A smoke test: few connections, one round, a fraction of a second, hardly any server but ours
    #[arg(long)]
    quick: bool,
    /// Only these servers
    #[arg(long = "server", value_name = "NAME", value_parser = field::NAMES)]
    servers: Vec<String>,
    /// How often every server is measured; the page has the medians
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Where PERFORMANCE.md and performance.svg go [default: docs; with --quick target/xtask/bench]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// The smoke test: the whole path works.
pub(crate) fn step() -> Result<Outcome> {
    run(&Options { quick: true, servers: Vec::new(), rounds: 1, output: None })
}

/// Measures, and writes the page and its chart.
pub(crate) fn run(options: &Options) -> Result<Outcome> {
    let folder = options.output.as_deref().unwrap_or(Path::new(if options.quick { SCRATCH } else { "docs" }));
    fs::create_dir_all(SCRATCH)?;
    fs::create_dir_all(folder)?;
    programs::mainstay()?;
    programs::peers(&["bench_server"])?;
    let wanted = Wanted { quick: options.quick, named: &options.servers };
    let (servers, missing) = field::prepare(&wanted)?;
    let scale = Scale::for_this_machine(options.quick)?;
    let mut results = Results { missing, ..Results::default() };
    let rounds = if options.quick { 1 } else { options.rounds };
    for round in 1..=rounds {
        for scenario in SCENARIOS {
            for server in servers.iter().filter(|server| scenario.has(server)) {
                println!("--- round {round} of {rounds}: {}, {}", scenario.name, server.name);
                match measure(server, &servers, scenario, &scale) {
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
    let plugin = wanted.has(field::PLUGIN).then(|| plugin::measure(options.quick)).transpose();
    let plugin = match plugin {
        Err(error) if options.quick => return Err(error),
        Err(error) => {
            println!("--- FAILED: {error}");
            results.missing.push(error.to_string().lines().next().unwrap_or_default().to_owned());
            None
        }
        Ok(found) => found,
    };
    let page = page::write(&servers, &results, plugin.as_ref(), &scale, rounds)?;
    fs::write(folder.join("performance.svg"), chart::draw(&servers, &results))?;
    fs::write(folder.join("PERFORMANCE.md"), page)?;
    println!("{} and performance.svg are written", folder.join("PERFORMANCE.md").display());
    Ok(Outcome::Passed)
}

/// The size of a run, and the folder for its output.
struct Scale {
    quick: bool,
    /// The most connections that one process may hold on this machine.
    connections: u32,
    /// Whether server and generator get a core each.
    pinned: bool,
}

impl Scale {
    fn for_this_machine(quick: bool) -> Result<Self> {
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

/// Measures one server with `mainstay bench`. For a gateway, starts the upstream server first.
fn measure(server: &Server, servers: &[Server], scenario: &Scenario, scale: &Scale) -> Result<Value> {
    let behind = match server.place {
        Place::Gateway => servers.iter().find(|other| other.place == Place::Upstream),
        Place::Server | Place::Upstream => None,
    };
    let behind = behind.map(|upstream| Running::start(upstream, None, scenario, scale)).transpose()?;
    let running = Running::start(server, behind.as_ref(), scenario, scale)?;
    let mut bench = scenario.command(MAINSTAY, &format!("ws://{}", running.address), server.session, scale);
    // The upstream server's cost is not the gateway's.
    if server.place != Place::Upstream {
        bench.extend(["--pid".to_owned(), running.worker.to_string()]);
    }
    bench.push("--json".to_owned());
    let found: Value = serde_json::from_str(&output(&mut scale.command(1, &bench))?)?;
    for figure in FIGURES.iter().filter(|figure| figure.scenario == scenario.name) {
        let value =
            found.get(figure.key).and_then(Value::as_f64).map_or("-".to_owned(), |v| shown(v / figure.per));
        let note = if figure.added { ", what there is without a gateway not taken off" } else { "" };
        println!("    {}: {value} {}{note}", figure.title, figure.unit);
    }
    Ok(found)
}

/// A server that listens until this value is dropped.
struct Running {
    _process: Background,
    address: SocketAddr,
    /// The process that does the work.
    worker: u32,
}

impl Running {
    fn start(server: &Server, upstream: Option<&Self>, scenario: &Scenario, scale: &Scale) -> Result<Self> {
        let address = free_address()?;
        let upstream = upstream.map_or(String::new(), |upstream| upstream.address.to_string());
        let command = server.command(&address.to_string(), &upstream, scenario.interval(scale.quick));
        let file = server.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-") + ".log";
        let mut command = scale.command(scenario.core(server), &command);
        let mut process = Background::start(&mut command, Path::new(SCRATCH).join(file))?;
        process.wait_listening(START, address)?;
        let mut worker = process.id();
        if server.forks {
            process.wait_until(START, |_| child(worker).map(|child| worker = child).is_some())?;
        }
        Ok(Self { _process: process, address, worker })
    }
}

fn child(of: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).ok()?;
    children.split(' ').next()?.parse().ok()
}

/// All results, and why some are missing.
#[derive(Default)]
struct Results {
    found: BTreeMap<(&'static str, &'static str), Vec<Value>>,
    /// Servers that could not be built or installed here.
    missing: Vec<String>,
    /// Measurements that failed.
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

    /// The median of the rounds and half their range. For an added figure: the median minus that of [`DIRECT`].
    fn value(&self, figure: &Figure, server: &Server) -> Option<(f64, f64)> {
        let (median, spread) = self.measured(figure, server.name)?;
        match figure.added {
            false => Some((median, spread)),
            true if server.place == Place::Upstream => None,
            true => Some((median - self.measured(figure, DIRECT)?.0, spread)),
        }
    }

    fn measured(&self, figure: &Figure, name: &'static str) -> Option<(f64, f64)> {
        let rounds = self.found.get(&(figure.scenario, name))?;
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
        let has = |server: &&Server| scenario.is_some_and(|scenario| scenario.has(server));
        for server in servers.iter().filter(has).filter(|server| field::is_ours(server.name)) {
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
    fn a_figure_is_the_median_of_its_rounds_and_half_their_range() {
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

    #[test]
    fn what_a_gateway_adds_is_what_the_upstream_alone_does_not_take() {
        let gateway = field::ours().into_iter().find(|server| server.place == Place::Gateway).unwrap();
        let mut upstream = field::ours().remove(0);
        (upstream.name, upstream.place) = (DIRECT, Place::Upstream);
        let figure = FIGURES.iter().find(|figure| figure.added).unwrap();
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == figure.scenario).unwrap();
        let mut results = Results::default();
        for (server, value) in [(&gateway, 90.0), (&upstream, 50.0)] {
            assert!(results.value(figure, &gateway).is_none());
            let mut found = json!({});
            found[figure.key] = json!(value);
            results.add(scenario, server, found);
        }
        assert_eq!(results.value(figure, &gateway), Some((40.0, 0.0)));
        assert_eq!(results.value(figure, &upstream), None);
    }
}
