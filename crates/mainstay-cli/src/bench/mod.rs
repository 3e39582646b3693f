//! `mainstay bench`: measures a WebSocket server, whatever it is written in.
//!
//! [`Arguments`] become a [`Plan`](plan::Plan), checked once. Each thread is a [`Worker`](worker::Worker): an epoll
//! loop over its share of the connections ([`peer`]). The main thread moves all workers through the
//! [`Phase`](plan::Phase)s, reads the server's CPU time and memory ([`usage`]), and prints the [`report`].

mod context;
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

use crate::observe::log;
use crate::{print, values};
use counts::Counts;
use plan::{Phase, Plan, Shared};
use report::Report;
use usage::Usage;
use worker::Worker;

/// How often the main thread reads the counters of the workers.
const LOOK: Duration = Duration::from_millis(5);
/// The same for idle connections.
const LONG_LOOK: Duration = Duration::from_millis(50);
/// How long the opening may make no progress.
const STALLED: Duration = Duration::from_secs(10);
/// How long the server may take to free memory before its usage is read for the last time.
const SETTLE: Duration = Duration::from_millis(1500);

/// The end of `mainstay bench --help`, and of the help of each scenario.
pub(crate) const AFTER_HELP: &str = "\
Examples:
  mainstay bench echo ws://127.0.0.1:8080/echo
      messages per second and latency with 100 connections
  mainstay bench idle ws://127.0.0.1:8080/echo -c 10000 --pid 4242
      memory of a connection and CPU time of a heartbeat, of process 4242
  mainstay bench storm ws://127.0.0.1:8080/echo --session --json
      time until all sessions are resumed after a cut, as JSON

Exit codes:
  0  measured
  1  the server could not be measured, or connections or messages were lost
  2  the arguments are wrong";

/// Flags of `mainstay bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Hold idle connections that answer Pings: memory of a connection, CPU time of a heartbeat
    #[command(after_help = AFTER_HELP)]
    Idle(Options),
    /// Send messages that the server returns to their sender: messages per second, latency, CPU time of a message
    #[command(after_help = AFTER_HELP)]
    Echo(Options),
    /// Send messages that the server sends to all connections: deliveries per second, latency, CPU time of a delivery
    #[command(after_help = AFTER_HELP)]
    Fanout(Options),
    /// Open and close connections: handshakes per second, latency, CPU time of opening and closing
    #[command(after_help = AFTER_HELP)]
    Handshake(Options),
    /// Cut all connections at once and reconnect: time until all are open again
    #[command(after_help = AFTER_HELP)]
    Storm(Options),
}

/// Flags of all scenarios.
#[derive(clap::Args)]
struct Options {
    /// The server, for example ws://127.0.0.1:8080/echo
    #[arg(value_parser = crate::values::url)]
    url: String,
    /// Number of connections; in `handshake`, the maximum at one time
    #[arg(long, short = 'c', value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// Messages in flight: per connection in `echo`, in total in `fanout`
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    in_flight: u32,
    /// Payload size of each message. Range: 8 (the time of sending) to 1GiB
    #[arg(long, short = 's', value_name = "SIZE", value_parser = values::size, default_value = "64")]
    size: usize,
    /// Send text instead of binary messages
    #[arg(long)]
    text: bool,
    /// Duration of the measurement; in `storm`, the maximum time until all are open again
    #[arg(long, short = 'd', value_name = "DURATION", value_parser = values::duration, default_value = "5s")]
    duration: Duration,
    /// Duration of the load before the measurement
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "1s")]
    warm_up: Duration,
    /// Messages per second in total (`echo`, `fanout`), or openings per second (other scenarios). Latency is then measured
    /// from the time a message was due [default: as fast as the server answers]
    #[arg(long, short = 'r', value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Maximum number of opening handshakes at one time
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    at_once: u32,
    /// Number of threads of the generator
    #[arg(long, short = 't', value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Speak mainstay.v1: sessions, acknowledgements, in-band heartbeats; in `storm`, resume
    #[arg(long)]
    session: bool,
    /// Add this header to the opening handshake, as "Name: value". May be repeated
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = values::header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Read CPU time and memory of this process of the server (on this machine, Linux only). May be repeated
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
            log::write_line(&line);
            return ExitCode::from(2);
        }
    };
    match measure(&plan, &pids) {
        Ok(report) => {
            let printed = print(if json { report.as_json() } else { report.as_table() }.as_bytes());
            report.problems().for_each(log::write_line);
            if report.is_clean() { printed } else { ExitCode::FAILURE }
        }
        Err(line) => {
            log::write_line(&line);
            ExitCode::FAILURE
        }
    }
}

/// Runs all phases.
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
                .map_err(|error| format!("a thread cannot be started: {error}"))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let opened = wait_open(plan, &shared, &progress).and_then(|opening| {
        report.opened(opening, shared.opened.load(Relaxed), before, Usage::of(pids)?);
        Ok(())
    });
    if let Err(line) = opened {
        shared.enter(Phase::Abort);
        let counts = join(workers);
        return Err(counts.first_problem.map_or(line.clone(), |why| format!("{line}: {why}")));
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

/// Waits until every connection is open or has failed. Returns how long that took.
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
            return Err(format!(
                "{missing} of {} connections are still not open, and none opened within 10s",
                plan.connections
            ));
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
            Err(_) => all.problem("a thread of the generator panicked".to_owned()),
        }
    }
    all
}

/// A progress bar on a terminal; nothing elsewhere.
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

    /// Shows a bar until the time is over or `done` returns `true`.
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
            log::write_raw(format!("\r\x1b[K{line}"));
            self.shown.set(Some(Instant::now()));
        }
    }

    fn clear(&self) {
        if self.on_terminal {
            log::write_raw("\r\x1b[K".to_owned());
        }
    }
}
