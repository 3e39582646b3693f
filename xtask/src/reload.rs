//! The proof of a reload: a table of 1,000 routes is replaced each second while connections carry messages and others open.
//! Nothing may be lost. What a reload costs is printed, beside the same load without one.
//!
//! ```text
//! mainstay bench x 3 (plain, sessions, openings) <-> mainstay serve (1,000 routes) <-> mainstay serve (the built-in echo)
//! ```
//!
//! `mainstay bench` counts connections that are lost, messages without an answer and openings that fail; one of them fails the
//! step. Times are judged at full length only: calm and reloads alternate, so that both see the same machine.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::metrics::{self, metric};
use crate::programs::{self, MAINSTAY};
use crate::run::Background;
use crate::scale::machine;
use crate::{Depth, Outcome, Result};

const ROUTES: usize = 1_000;
const LIMIT: Duration = Duration::from_secs(60);
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the number of open files must stay as it is.
const CALM: Duration = Duration::from_secs(1);
const BETWEEN_RELOADS: Duration = Duration::from_secs(1);
/// Reloads in a row, for each of the costs and for what they leave behind.
const IN_A_ROW: usize = 20;
/// Files that a process opens once, when it needs them. A leak would be as many as the reloads, or the routes.
const FEW_FILES: usize = 16;
/// What reloads may add to the 99th percentile, in milliseconds.
const MOST_ADDED: f64 = 10.0;

/// The loads: what they measure, and the arguments of `mainstay bench`. At these rates the generators sleep between messages.
const LOADS: [(&str, &[&str]); 3] = [
    ("messages, plain", &["echo", "URL/r17/echo", "-c", "200", "-r", "400"]),
    ("messages, sessions", &["echo", "URL/r500/echo", "-c", "200", "-r", "400", "--session"]),
    ("openings", &["handshake", "URL/r983/echo", "-c", "20", "-r", "50"]),
];

pub(crate) fn step(depth: Depth) -> Result<Outcome> {
    let (rounds, window) = match depth {
        Depth::Test => (1, Duration::from_secs(4)),
        Depth::Nightly => (5, Duration::from_secs(10)),
    };
    programs::mainstay()?;
    let mut stage = Stage::set()?;
    let descriptors = descriptors(stage.gateway.id())?;
    let mut loads = LOADS.map(Load::new);
    for _ in 0..rounds {
        stage.measure(window, false, &mut loads)?;
        stage.measure(window, true, &mut loads)?;
    }
    let messages: u64 = loads.iter().map(|load| load.done).sum();
    println!(
        "{ROUTES} routes, {} reloads that changed all of them, {} wrong files refused: {messages} messages of 400 connections, \
         0 without an answer, 0 connections lost, 0 openings failed",
        stage.reloads, stage.refused
    );
    loads.iter().for_each(|load| println!("    {load}"));
    stage.print_costs()?;
    stage.close(descriptors)?;
    match loads.iter().find(|load| depth == Depth::Nightly && load.added() > MOST_ADDED) {
        Some(load) => {
            Err(format!("reloads add more than {MOST_ADDED} ms to the 99th percentile: {load}").into())
        }
        None => Ok(Outcome::Passed),
    }
}

struct Stage {
    folder: PathBuf,
    backend: Background,
    upstream: String,
    gateway: Background,
    url: String,
    admin: SocketAddr,
    /// How often all routes have changed, and one of a hundred beside that.
    versions: (usize, usize),
    reloads: usize,
    refused: usize,
}

/// What changes between two configurations.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    /// One route of a hundred.
    Few,
    /// Every route: its sessions and its backend's settings.
    All,
}

impl Stage {
    fn set() -> Result<Self> {
        let folder = std::env::current_dir()?.join("target/xtask/reload");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let mut serve = Command::new(MAINSTAY);
        serve.args(["serve", "--listen", "127.0.0.1:0"]);
        let mut backend = Background::start(&mut serve, folder.join("backend.log"))?;
        let upstream = backend.announced(LIMIT, "listening on ")?;
        write_table(&folder, &table(&upstream, (0, 0)))?;
        let mut serve = Command::new(MAINSTAY);
        serve.args(["serve", "--log-format", "text", "--config"]).arg(folder.join("mainstay.toml"));
        let mut gateway = Background::start(serve.env("NO_COLOR", "1"), folder.join("gateway.log"))?;
        let url = gateway.announced(LIMIT, "listening on ")?;
        let admin = gateway.announced(LIMIT, "admin on http://")?.trim_end_matches(':').parse()?;
        let is_ready =
            |_: &Path| metrics::get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
        gateway.wait_until(LIMIT, is_ready)?;
        Ok(Self { folder, backend, upstream, gateway, url, admin, versions: (0, 0), reloads: 0, refused: 0 })
    }

    /// Puts all loads on the gateway for a while, and reloads meanwhile or does not.
    fn measure(&mut self, window: Duration, reloads: bool, loads: &mut [Load]) -> Result<()> {
        let start = |load: &Load| {
            let mut bench = Command::new(MAINSTAY);
            bench.arg("bench").args(load.words.iter().map(|word| word.replace("URL", &self.url)));
            let millis = |duration: Duration| format!("{}ms", duration.as_millis());
            bench.args(["--json", "--warm-up", &millis(WARM_UP), "--duration", &millis(window)]);
            let log = self.folder.join("bench.log").with_extension(load.name.replace(' ', "-"));
            Ok((Background::start_quietly(&mut bench, log.clone())?, log))
        };
        let generators: Vec<(Background, PathBuf)> = loads.iter().map(start).collect::<Result<_>>()?;
        let end = Instant::now() + WARM_UP + window;
        while reloads && Instant::now() + BETWEEN_RELOADS < end {
            let next = Instant::now() + BETWEEN_RELOADS;
            self.reload(Change::All)?;
            if self.reloads % 3 == 1 {
                self.refuse()?;
            }
            sleep(next.saturating_duration_since(Instant::now()));
        }
        for ((mut generator, log), load) in generators.into_iter().zip(loads) {
            generator.wait_success(LIMIT)?;
            load.add(&fs::read_to_string(log)?, reloads)?;
        }
        Ok(())
    }

    /// Writes the next configuration, waits until it is in force, and returns the line about that.
    fn reload(&mut self, change: Change) -> Result<String> {
        self.versions.0 += usize::from(change == Change::All);
        self.versions.1 += usize::from(change == Change::Few);
        self.reloads += 1;
        write_table(&self.folder, &table(&self.upstream, self.versions))?;
        self.hang_up("the configuration was reloaded", self.reloads)
    }

    /// Writes a wrong configuration, and waits until it is refused.
    fn refuse(&mut self) -> Result<()> {
        self.refused += 1;
        write_table(&self.folder, &(table(&self.upstream, self.versions) + "paht = \"/\"\n"))?;
        self.hang_up("the configuration is wrong, and the one before stays", self.refused).map(drop)
    }

    /// Waits for a line of the log: metrics of so many routes would be a load of their own.
    fn hang_up(&mut self, words: &str, count: usize) -> Result<String> {
        self.gateway.signal("HUP")?;
        let mut line = None;
        self.gateway.wait_until(LIMIT, |log| {
            let log = fs::read_to_string(log).unwrap_or_default();
            let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
            line = whole.lines().filter(|line| line.contains(words)).nth(count - 1).map(str::to_owned);
            line.is_some()
        })?;
        Ok(line.unwrap_or_default())
    }

    /// Prints what a reload costs a gateway without load.
    fn print_costs(&mut self) -> Result<()> {
        let pid = self.gateway.id();
        for (change, changed) in [(Change::Nothing, 0), (Change::Few, ROUTES / 100), (Change::All, ROUTES)] {
            let before = machine::cpu(&[pid])?;
            for _ in 0..IN_A_ROW {
                let line = self.reload(change)?;
                if !line.contains(&format!("added=0 changed={changed} removed=0")) {
                    return Err(format!("{changed} routes should have changed: {line}").into());
                }
            }
            let cpu = (machine::cpu(&[pid])? - before).as_secs_f64() * 1e3 / IN_A_ROW as f64;
            println!("    a reload that changes {changed} routes costs {cpu:.0} ms of CPU time");
        }
        Ok(())
    }

    /// Checks what is left when all clients have gone, and ends both processes in order.
    fn close(mut self, descriptors_before: usize) -> Result<()> {
        let pid = self.gateway.id();
        let left = descriptors(pid)?;
        println!(
            "    after {} reloads: {left} open files and sockets, {descriptors_before} before; {} MiB resident",
            self.reloads,
            machine::memory(&[pid])? >> 20
        );
        if left > descriptors_before + FEW_FILES {
            return Err("reloads leave files or sockets open".into());
        }
        let metrics = metrics::read(self.admin)?;
        let lost: u64 = samples(&metrics, "mainstay_links_lost_total{");
        let counted = ["done", "refused"].map(|outcome| {
            metric(&metrics, &format!("mainstay_config_reloads_total{{outcome=\"{outcome}\"}}"))
        });
        let expected = [self.reloads as u64, self.refused as u64];
        if (lost, counted) != (0, expected) {
            return Err(format!(
                "{lost} links lost; reloads and refusals counted: {counted:?} instead of {expected:?}"
            )
            .into());
        }
        for process in [&mut self.gateway, &mut self.backend] {
            process.signal("TERM")?;
            process.wait_success(LIMIT)?;
        }
        Ok(())
    }
}

/// A load, and what `mainstay bench` found.
struct Load {
    name: &'static str,
    words: &'static [&'static str],
    done: u64,
    /// The median and the 99th percentile of each window in milliseconds, without and with reloads.
    windows: [Vec<(f64, f64)>; 2],
}

impl Load {
    fn new((name, words): (&'static str, &'static [&'static str])) -> Self {
        Self { name, words, done: 0, windows: Default::default() }
    }

    /// Adds what `mainstay bench` printed. It counted nothing lost, or it had failed.
    fn add(&mut self, printed: &str, reloads: bool) -> Result<()> {
        let found: Value =
            printed.lines().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        let number = |key: &str| found[key].as_f64().ok_or_else(|| format!("{key} is missing: {printed}"));
        for key in ["lost", "failed", "foreign", "unanswered"] {
            if number(key)? > 0.0 {
                return Err(format!("{}: {key}: {printed}", self.name).into());
            }
        }
        self.done += found["messages"].as_u64().unwrap_or(0);
        self.windows[usize::from(reloads)]
            .push((number("latency_p50_us")? / 1e3, number("latency_p99_us")? / 1e3));
        Ok(())
    }

    /// The medians of all windows.
    fn middle(&self, reloads: bool) -> (f64, f64) {
        let windows = &self.windows[usize::from(reloads)];
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or(0.0)
        };
        (
            median(windows.iter().map(|window| window.0).collect()),
            median(windows.iter().map(|window| window.1).collect()),
        )
    }

    /// What reloads add to the 99th percentile, in milliseconds.
    fn added(&self) -> f64 {
        self.middle(true).1 - self.middle(false).1
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (calm, loaded) = (self.middle(false), self.middle(true));
        write!(
            to,
            "{:20} {:.2} ms in the median and {:.2} ms at the 99th percentile, with a reload each second {:.2} and {:.2}",
            self.name, calm.0, calm.1, loaded.0, loaded.1
        )
    }
}

/// A configuration of [`ROUTES`] routes. The settings of each change with the versions that concern it.
fn table(upstream: &str, (all, few): (usize, usize)) -> String {
    let mut text = "listen = [\"127.0.0.1:0\"]\nadmin.listen = \"127.0.0.1:0\"\nwatch = false\n\
                    limits.connections-per-address = 10000\n"
        .to_owned();
    for number in 0..ROUTES {
        let seconds = 60 + all + if number.is_multiple_of(100) { few } else { 0 };
        let _ = write!(
            text,
            "[routes.r{number}]\npath = \"/r{number}\"\nstrip-path = true\nupstream.addresses = [\"{upstream}\"]\n\
             upstream.answer-timeout = \"{seconds}s\"\nsession.resume-window = \"{seconds}s\"\n"
        );
    }
    text
}

/// As a deployment tool writes: to another name first.
fn write_table(folder: &Path, text: &str) -> Result<()> {
    let draft = folder.join("mainstay.toml.new");
    fs::write(&draft, text)?;
    Ok(fs::rename(draft, folder.join("mainstay.toml"))?)
}

/// How many files and sockets a process has open, once that does not change for a while.
fn descriptors(pid: u32) -> Result<usize> {
    let count = || Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{pid}/fd"))?.count());
    let (mut last, mut since, started) = (count()?, Instant::now(), Instant::now());
    while since.elapsed() < CALM && started.elapsed() < LIMIT {
        sleep(Duration::from_millis(50));
        let now = count()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
}

/// The sum of the samples of a family.
fn samples(metrics: &str, family: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(family));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reloads_add_is_the_difference_of_the_medians_of_all_windows() {
        let mut load = Load::new(LOADS[0]);
        let printed = |p99: u32| {
            format!(
                "{{\"messages\":10,\"lost\":0,\"failed\":0,\"foreign\":0,\"unanswered\":0,\"latency_p50_us\":100,\
                 \"latency_p99_us\":{p99}}}\n"
            )
        };
        for p99 in [1_000, 9_000, 2_000] {
            load.add(&printed(p99), false).unwrap();
            load.add(&printed(p99 + 3_000), true).unwrap();
        }
        assert_eq!((load.added(), load.done), (3.0, 60));
        assert!(load.add(&printed(1).replace("\"unanswered\":0", "\"unanswered\":1"), true).is_err());
        assert!(load.add("nothing", true).is_err());
    }
}
