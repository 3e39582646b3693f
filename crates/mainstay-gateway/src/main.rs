//! `mainstay`: WebSocket connections that stay, for any backend.
//!
//! - [`serve`]: the gateway; visitors in front, one link per visitor behind.
//! - [`connect`]: a client for people and pipes.

mod admin;
mod builtin;
mod connect;
mod join;
mod serve;
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// WebSocket connections that stay: notices in seconds when one has died, brings it back, and loses,
/// repeats or reorders nothing on the way.
#[derive(Parser)]
#[command(name = "mainstay", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Accept WebSockets, and front a backend with them (or answer with a built-in one).
    Serve(Box<serve::Arguments>),
    /// Talk to a WebSocket: lines in, messages out.
    Connect(connect::Arguments),
    /// Print a completion script for a shell.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("MAINSTAY_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match arguments.command {
        Command::Serve(arguments) => in_runtime(serve::run(*arguments)),
        Command::Connect(arguments) => in_runtime(connect::run(arguments)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "mainstay", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

fn in_runtime(run: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(run);
            // Standard input is read on a thread that cannot be stopped.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("mainstay: no runtime: {error}");
            ExitCode::FAILURE
        }
    }
}
