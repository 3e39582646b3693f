//! `mainstay-sim`: plays seeds of the simulator, or every run of a small world, and reports what breaks.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mainstay_sim::explore::{self, Scenario};
use mainstay_sim::plan::Fault;
use mainstay_sim::{Counts, Plan, run};

/// Plays seeds of Mainstay's simulator.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// How many seeds to play
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Play every seed with several nodes, an engine and a balancer
    #[arg(long)]
    cluster: bool,
    /// Play every seed with one server
    #[arg(long, conflicts_with = "cluster")]
    alone: bool,
    /// Print the events of each seed
    #[arg(long)]
    trace: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Plays every run of small worlds, within budgets of faults
    Explore {
        /// Play the large ones too: minutes, and gigabytes
        #[arg(long)]
        large: bool,
        /// Only scenarios whose name contains this
        #[arg(long, default_value = "")]
        only: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Explore { large, only }) => play_everything(large, &only),
        None => play_seeds(&arguments),
    }
}

fn play_everything(large: bool, only: &str) -> ExitCode {
    let mut scenarios = explore::small();
    if large {
        scenarios.extend(explore::large());
    }
    scenarios.retain(|scenario| scenario.name.contains(only));
    let broken = scenarios.iter().filter(|scenario| !holds(scenario)).count();
    println!("{} scenarios, {broken} broken", scenarios.len());
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn holds(scenario: &Scenario) -> bool {
    #[allow(clippy::disallowed_methods, reason = "a report for people")]
    let start = std::time::Instant::now();
    let outcome = explore::explore(scenario);
    let verdict = match &outcome.counterexample {
        Some(broken) => broken.what.as_str(),
        None if !outcome.exhausted => "bound reached, nothing found",
        None if scenario.live => "exhausted, safe and live",
        None => "exhausted, safe",
    };
    println!(
        "{:40} states {:>8} transitions {:>9} depth {:>3} {:>5.1} s  {verdict}",
        scenario.name,
        outcome.states,
        outcome.transitions,
        outcome.depth,
        start.elapsed().as_secs_f32()
    );
    let Some(broken) = outcome.counterexample else { return true };
    broken.trace.iter().enumerate().for_each(|(step, event)| println!("    {:2} {event}", step + 1));
    false
}

fn play_seeds(arguments: &Arguments) -> ExitCode {
    let (draw, flag): (fn(u64) -> Plan, _) = match arguments {
        Arguments { cluster: true, .. } => (Plan::cluster, " --cluster"),
        Arguments { alone: true, .. } => (Plan::alone, " --alone"),
        _ => (Plan::draw, ""),
    };
    let (mut failed, mut counts, mut runs) = (0_u64, Counts::default(), 0_u64);
    for seed in arguments.from..arguments.from.saturating_add(arguments.seeds) {
        let plan = draw(seed);
        let outcome = run(&plan, arguments.trace);
        if seed % 100 == 0 && run(&plan, false).trace != outcome.trace {
            println!("seed {seed}: two runs of the same seed differ");
            failed += 1;
        }
        counts.add(&outcome.counts);
        runs = runs.rotate_left(1) ^ outcome.trace;
        if arguments.trace {
            println!("{plan:#?}");
            outcome.log.iter().for_each(|line| println!("{line}"));
        }
        if let Some(failure) = outcome.failure {
            failed += 1;
            println!(
                "seed {seed}: {failure}\n  replay: cargo run --release -p mainstay-sim -- --seeds 1 --from {seed}{flag} --trace"
            );
        }
    }
    report(arguments.seeds, &counts);
    println!("runs {runs:016x}: a build that prints the same has played the same");
    println!("{} passed, {failed} failed", arguments.seeds - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what the seeds reached: a fault that hits nothing shows nothing.
fn report(seeds: u64, counts: &Counts) {
    let Counts { messages, volatile, resumed, gaps, dropped, ended, .. } = counts;
    let Counts { given_up, full, partial, refused, judged, .. } = counts;
    let [silent, frozen, stalled] = counts.dead;
    println!("{seeds} seeds, {messages} messages, {volatile} outside the stream");
    println!(
        "{resumed} resumes, {gaps} gaps reported, {dropped} messages dropped and reported, {ended} ends"
    );
    println!("dead: {silent} silent, {frozen} frozen, {stalled} stalled, {given_up} by clients");
    let Counts { moved, relayed, asked, .. } = counts;
    println!("{moved} sessions moved, {relayed} connections relayed, {asked} of them asked to leave");
    println!("{full} sends given back, {partial} partial writes, {refused} refusals, {judged} AUTH judged");
    let faults: Vec<_> =
        Fault::ALL.iter().zip(counts.faults.0).map(|(fault, count)| format!("{fault:?} {count}")).collect();
    println!("faults: {}", faults.join(", "));
}
