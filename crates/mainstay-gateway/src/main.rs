//! `mainstay`: WebSocket connections that stay, for any backend.
//!
//! - [`serve`]: the gateway; visitors in front, one link per visitor behind.
//! - [`connect`]: a client for people and pipes.
//! - [`bench`]: what a server costs, ours or any other.

mod admin;
mod bench;
mod body;
mod bounds;
mod builtin;
mod connect;
mod conversation;
mod descriptors;
mod forward;
mod join;
mod links;
mod operations;
mod pass;
mod pattern;
mod principal;
mod profiles;
mod prologue;
mod relay;
mod serve;
mod trust;
mod upstream;
mod values;
mod visit;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::error::{ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The system's allocator keeps nine tenths of what closed connections gave back; this one returns it within a
/// second, as `.cargo/config.toml` has it built. See `docs/adr/0007-an-allocator-that-gives-back.md`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    #[command(after_help = connect::EXAMPLES)]
    Connect(connect::Arguments),
    /// Measure what a WebSocket server costs: any server, by its URL.
    Bench(bench::Arguments),
    /// Print a completion script for a shell.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(without_passwords(error)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("MAINSTAY_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match arguments.command {
        Command::Serve(arguments) => in_runtime(serve::run(*arguments)),
        Command::Connect(arguments) => in_runtime(connect::run(arguments)),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "mainstay", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

/// Help and version as they are; a mistake in one line.
fn refuse(error: clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let text = error.to_string();
    let told = text.split("\n\n").filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more"));
    let in_one_line = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = told.map(in_one_line).collect::<Vec<_>>().join("; ");
    eprintln!("mainstay: {}; see --help", line.trim_start_matches("error: "));
    ExitCode::from(2)
}

/// What was written is quoted, but nothing before an `@`: it may be the password of a URL.
fn without_passwords(mut error: clap::Error) -> clap::Error {
    let before_at = |value: &ContextValue| match value {
        ContextValue::String(text) => text.rsplit_once('@').map(|(_, rest)| format!("...@{rest}")),
        _ => None,
    };
    let hidden: Vec<_> =
        error.context().filter_map(|(kind, value)| Some((kind, before_at(value)?))).collect();
    for (kind, text) in hidden {
        error.insert(kind, ContextValue::String(text));
    }
    error
}

/// SIGINT and SIGTERM from now on.
struct Interrupts {
    terminate: Signal,
    interrupt: Signal,
}

impl Interrupts {
    fn listen() -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
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
