//! `mainstay-sim`: plays seeds of the simulator and says which ones break.

use std::process::ExitCode;

use clap::Parser;
use mainstay_sim::{Plan, run};

/// Plays seeds of Mainstay's simulator.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// How many seeds to play.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Print what happened in each seed.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (mut failed, mut messages, mut resumed, mut gaps) = (0_u64, 0, 0, 0);
    for seed in arguments.from..arguments.from.saturating_add(arguments.seeds) {
        let plan = Plan::draw(seed);
        let outcome = run(&plan, arguments.trace);
        if seed % 100 == 0 && run(&plan, false).trace != outcome.trace {
            println!("seed {seed}: two runs of the same seed differ");
            failed += 1;
        }
        messages += outcome.messages;
        resumed += outcome.resumed;
        gaps += outcome.gaps;
        if arguments.trace {
            outcome.log.iter().for_each(|line| println!("{line}"));
        }
        if let Some(failure) = outcome.failure {
            failed += 1;
            println!("seed {seed}: {failure}\n  replay: cargo run --release -p mainstay-sim -- --seeds 1 --from {seed} --trace");
        }
    }
    println!("{} seeds, {messages} messages, {resumed} resumes, {gaps} gaps told", arguments.seeds);
    println!("{} passed, {failed} failed", arguments.seeds - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
