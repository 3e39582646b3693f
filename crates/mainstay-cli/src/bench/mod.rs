//! `mainstay bench`: what a WebSocket server costs, whatever it is written in.
//!
//! [`Arguments`] become a [`Plan`](plan::Plan), checked once. Each thread is a [`Worker`](worker::Worker): an epoll
//! loop over its share of the connections ([`peer`]). The main thread moves all of them through the
//! [`Phase`](plan::Phase)s, reads what the server used ([`usage`]), and prints the [`report`].
//!
//! Exit codes: 0 measured, 1 something failed or was lost on the way, 2 the arguments are wrong.

mod counts;
mod pace;
mod peer;
mod plan;
mod report;
mod stamp;
mod usage;
mod worker;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use clap::Subcommand;
use http::{HeaderName, HeaderValue};

use crate::{log, print, values};
use counts::Counts;
use plan::{Phase, Plan, Shared};
use report::Report;
use usage::Usage;
use worker::Worker;

/// How often the main thread looks at what the workers did.
const LOOK: Duration = Duration::from_millis(5);
/// The same for connections that only have to be held.
const LONG_LOOK: Duration = Duration::from_millis(50);
/// How long connections may take to open, without any progress.
const STALLED: Duration = Duration::from_secs(10);
/// How long the server may take to give memory back before it is read a last time.
const SETTLE: Duration = Duration::from_millis(1500);

/// Flags of `mainstay bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Connections that only answer Pings: memory of each, CPU of a heartbeat
    Idle(Options),
    /// Each message comes back to its sender: messages a second, latency, CPU of a message
    Echo(Options),
    /// Each message goes to all connections: deliveries a second, latency, CPU of a delivery
    Fanout(Options),
    /// Open, close in order, again: handshakes a second, latency, CPU of both handshakes
    Handshake(Options),
    /// Cut all connections at once and come back: time until all are back
    Storm(Options),
}

/// What all scenarios share.
#[derive(clap::Args)]
struct Options {
    /// The server, for example ws://127.0.0.1:8080/echo
    #[arg(value_parser = crate::values::url)]
    url: String,
    /// Connections; in `handshake`, how many at one time
    #[arg(long, short = 'c', value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Messages under way at one time: for each connection in `echo`, in all in `fanout`
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    /// Payload of each message; at least 8 bytes, which say when it was sent
    #[arg(long, short = 's', value_name = "SIZE", value_parser = values::size, default_value = "64")]
    size: usize,
    /// Send text instead of binary messages
    #[arg(long)]
    text: bool,
    /// How long to measure; in `storm`, how long all may take to come back
    #[arg(long, short = 'd', value_name = "DURATION", value_parser = values::duration, default_value = "5s")]
    duration: Duration,
    /// How long the load runs before the measurement
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "1s")]
    warm_up: Duration,
    /// A second, in all: messages in `echo` and `fanout`, openings in the others; latency then counts from the
    /// time a message was due [default: as fast as the server answers]
    #[arg(long, short = 'r', value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Opening handshakes under way at one time
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    at_once: u32,
    /// Threads of the generator
    #[arg(long, short = 't', value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Speak mainstay.v1: sessions, acknowledgements, in-band heartbeats; in `storm`, resume
    #[arg(long)]
    session: bool,
    /// A header for the opening handshake, as "Name: value". May be repeated
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = values::header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// A process of the server, whose CPU time and memory are read (on this machine, Linux). May be repeated
    #[arg(long = "pid", short = 'p', value_name = "PID")]
    pids: Vec<u32>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let (load, options) = match arguments.scenario {
        Scenario::Idle(options) => (plan::Load::Idle, options),
        Scenario::Echo(options) => (plan::Load::Echo, options),
        Scenario::Fanout(options) => (plan::Load::Fanout, options),
        Scenario::Handshake(options) => (plan::Load::Handshake, options),
        Scenario::Storm(options) => (plan::Load::Storm, options),
    };
    let (json, pids) = (options.json, options.pids.clone());
    let plan = match Plan::new(load, options).and_then(|plan| Usage::of(&pids).map(|_| plan)) {
        Ok(plan) => Arc::new(plan),
        Err(line) => {
            log::say(&line);
            return ExitCode::from(2);
        }
    };
    match measure(&plan, &pids) {
        Ok(report) => {
            let printed = print(if json { report.as_json() } else { report.as_table() }.as_bytes());
            report.troubles().for_each(log::say);
            if report.is_clean() { printed } else { ExitCode::FAILURE }
        }
        Err(line) => {
            log::say(&line);
            ExitCode::FAILURE
        }
    }
}

/// Opens, warms up, measures, closes.
fn measure(plan: &Arc<Plan>, pids: &[u32]) -> Result<Report, String> {
    let mut report = Report::new(plan);
    let shared = Arc::new(Shared::new());
    let progress = Progress::new(plan);
    let before = Usage::of(pids)?;
    let workers = (0..plan.threads)
        .map(|index| {
            let worker = Worker::new(index, Arc::clone(plan), Arc::clone(&shared))?;
            thread::Builder::new()
                .name(format!("bench-{index}"))
                .spawn(move || worker.run())
                .map_err(|error| format!("no thread: {error}"))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let opened = wait_open(plan, &shared, &progress).and_then(|opening| {
        report.opened(opening, shared.opened.load(Relaxed), before, Usage::of(pids)?);
        Ok(())
    });
    if let Err(line) = opened {
        shared.enter(Phase::Leave);
        let counts = join(workers);
        return Err(counts.first_trouble.map_or(line.clone(), |why| format!("{line}: {why}")));
    }
    shared.enter(Phase::WarmUp);
    progress.wait(plan.warm_up, "warming up", &shared, |_| false);
    let (started, from, own) = (Instant::now(), Usage::of(pids)?, Usage::of(&[std::process::id()])?);
    shared.enter(Phase::Measure);
    progress.wait(plan.duration, "measuring", &shared, |shared| {
        plan.load == plan::Load::Storm && shared.back.load(Relaxed) >= u64::from(plan.connections)
    });
    let (took, to) = (started.elapsed(), Usage::of(pids)?);
    let own = Usage::of(&[std::process::id()])?.since(own);
    shared.enter(Phase::Close);
    progress.clear();
    let counts = join(workers);
    report.measured(plan, counts, took, to.since(from), own);
    if plan.load == plan::Load::Idle && !pids.is_empty() {
        report.resident(before, to);
        thread::sleep(SETTLE);
        report.left(Usage::of(pids)?);
    }
    Ok(report)
}

/// Waits until every connection is open or has failed, and says how long that took.
fn wait_open(plan: &Plan, shared: &Shared, progress: &Progress) -> Result<Duration, String> {
    let started = Instant::now();
    if plan.load == plan::Load::Handshake {
        return Ok(Duration::ZERO);
    }
    let (mut last, mut changed) = ((0, 0), started);
    loop {
        let counts = (shared.opened.load(Relaxed), shared.failed.load(Relaxed));
        if counts.0 >= u64::from(plan.connections) {
            return Ok(started.elapsed());
        }
        if counts.0 + counts.1 >= u64::from(plan.connections) {
            return Err(format!("{} of {} connections could not be opened", counts.1, plan.connections));
        }
        if counts != last {
            (last, changed) = (counts, Instant::now());
        }
        if changed.elapsed() > STALLED {
            let missing = u64::from(plan.connections) - counts.0;
            return Err(format!("{missing} of {} connections still not open, none in 10s", plan.connections));
        }
        progress.show(&format!("opening: {} of {}", counts.0, plan.connections));
        thread::sleep(LOOK);
    }
}

fn join(workers: Vec<thread::JoinHandle<Counts>>) -> Counts {
    let mut all = Counts::new();
    for worker in workers {
        match worker.join() {
            Ok(counts) => all.add(counts),
            Err(_) => all.trouble("a thread of the generator ended early".to_owned()),
        }
    }
    all
}

/// One line on a terminal, rewritten; nothing anywhere else.
struct Progress {
    on_terminal: bool,
    look: Duration,
    shown: std::cell::Cell<Option<Instant>>,
}

impl Progress {
    fn new(plan: &Plan) -> Self {
        let look = if plan.load == plan::Load::Idle { LONG_LOOK } else { LOOK };
        Self { on_terminal: std::io::stderr().is_terminal(), look, shown: std::cell::Cell::default() }
    }

    /// Waits, showing a bar, until the time is over or `done` says so.
    fn wait(&self, time: Duration, what: &str, shared: &Shared, done: impl Fn(&Shared) -> bool) {
        const WIDTH: usize = 30;
        let started = Instant::now();
        while started.elapsed() < time && !done(shared) {
            let share = started.elapsed().as_secs_f64() / time.as_secs_f64();
            let filled = (share * WIDTH as f64) as usize;
            let (bar, rest) = ("=".repeat(filled), " ".repeat(WIDTH.saturating_sub(filled)));
            let counted = shared.counted.load(Relaxed);
            self.show(&format!("{what:10} [{bar}{rest}] {counted}"));
            thread::sleep(self.look.min(time.saturating_sub(started.elapsed())));
        }
    }

    fn show(&self, line: &str) {
        let recent = self.shown.get().is_some_and(|at| at.elapsed() < Duration::from_millis(100));
        if self.on_terminal && !recent {
            log::show(format!("\r\x1b[K{line}"));
            self.shown.set(Some(Instant::now()));
        }
    }

    fn clear(&self) {
        if self.on_terminal {
            log::show("\r\x1b[K".to_owned());
        }
    }
}
