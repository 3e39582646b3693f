//! `mainstay`: WebSocket connections that stay, for any backend.
//!
//! - [`serve`]: the gateway between clients and a backend, with one link to the backend for each client.
//! - [`connect`]: a client for terminals and pipes.
//! - [`bench`]: measures any WebSocket server.
//! - [`chaos`]: a proxy that breaks connections on purpose, for tests.
//! - [`doctor`]: finds out why connections to a server drop.

mod admin;
mod bench;
mod builtin;
mod chaos;
mod clients;
mod cluster;
mod config;
mod connect;
mod credentials;
mod doctor;
mod health;
mod http_client;
mod manual;
mod observe;
mod page_policy;
mod process;
mod protocols;
mod request;
mod routes;
mod serve;
mod tls;
mod upstream;
mod values;
mod version;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Loaded, Sources};
use crate::observe::log;
use crate::process::activation::{self, Activated};
use crate::process::{process_metrics, variables};

/// The system's allocator keeps nine tenths of the memory of closed connections. jemalloc, built as `.cargo/config.toml`
/// configures it, returns the memory to the system within a second. See `docs/adr/0007-an-allocator-that-gives-back.md`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// WebSocket connections that stay: detects a dead connection within seconds, reconnects, and loses, repeats and reorders
/// no message.
#[derive(Parser)]
#[command(name = "mainstay", version, long_version = version::LONG)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Accept WebSocket and HTTP connections and forward them to a backend, or serve a built-in demonstration.
    #[command(after_help = serve::AFTER_HELP)]
    Serve(Box<serve::Arguments>),
    /// Connect to a WebSocket server: send lines of standard input, print received messages.
    #[command(after_help = connect::AFTER_HELP)]
    Connect(connect::Arguments),
    /// Measure a WebSocket server: throughput, latency, CPU time and memory.
    #[command(after_help = bench::AFTER_HELP)]
    Bench(bench::Arguments),
    /// Break WebSocket connections on purpose, for tests: a proxy that resets, stalls, delays and loses, on command or by seed.
    #[command(after_help = chaos::AFTER_HELP)]
    Chaos(Box<chaos::Arguments>),
    /// Find out why the WebSocket connections to a server drop: facts, limits of the path, advice.
    #[command(after_help = doctor::AFTER_HELP)]
    Doctor(Box<doctor::Arguments>),
    /// Check, show and describe the configuration of `mainstay serve`.
    #[command(after_help = config::AFTER_HELP)]
    Config(config::Arguments),
    /// Ask a running `mainstay serve` whether it is ready.
    #[command(after_help = health::AFTER_HELP)]
    Health(health::Arguments),
    /// Print a completion script for a shell.
    #[command(after_help = COMPLETIONS_AFTER_HELP)]
    Completions {
        /// The shell to print a script for.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory; created if it does not exist.
        folder: PathBuf,
    },
}

/// The end of `mainstay completions --help`.
const COMPLETIONS_AFTER_HELP: &str = "\
Examples:
  mainstay completions bash > /etc/bash_completion.d/mainstay
  mainstay completions zsh > /usr/local/share/zsh/site-functions/_mainstay

Exit codes:
  0  printed
  1  standard output cannot be written
  2  the arguments are wrong";

/// How long the process waits at its end for the log to be written.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    process_metrics::started();
    // Before the first thread: it changes the environment.
    let activated = activation::take();
    log::start();
    let code = run(activated);
    log::flush(LOG_FLUSH_TIMEOUT);
    code
}

fn run(activated: Result<Activated, String>) -> ExitCode {
    let command = Arguments::command().mut_subcommand("serve", variables::with_variables);
    let given = command.clone().try_get_matches();
    let read = given.and_then(|matches| Ok((Arguments::from_arg_matches(&matches)?, matches)));
    let (arguments, matches) = match read {
        Ok(read) => read,
        Err(error) => return refuse(without_passwords(error)),
    };
    match arguments.command {
        Command::Serve(_) => serve(&command, &matches, activated),
        other => run_other(other, command),
    }
}

/// Runs any command but `serve`.
fn run_other(subcommand: Command, command: clap::Command) -> ExitCode {
    if let Err(line) = log::listen(log::Format::Text, None) {
        log::write_line(&line);
        return ExitCode::from(2);
    }
    match subcommand {
        Command::Serve(_) => ExitCode::SUCCESS,
        Command::Config(arguments) => config::run(arguments, &command),
        Command::Connect(arguments) => in_runtime(connect::run(arguments)),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Chaos(arguments) => in_runtime(chaos::run(*arguments)),
        Command::Doctor(arguments) => in_runtime(doctor::run(*arguments)),
        Command::Health(arguments) => health::run(&arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "mainstay", &mut script);
            print(&script)
        }
        Command::Man { folder } => match manual::write(command, &folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                log::write_line(&format!("{}: {error}", folder.display()));
                ExitCode::FAILURE
            }
        },
    }
}

/// Runs `mainstay serve`.
fn serve(command: &clap::Command, matches: &ArgMatches, activated: Result<Activated, String>) -> ExitCode {
    let read = || {
        let (serve, given) = command
            .find_subcommand("serve")
            .zip(matches.subcommand_matches("serve"))
            .ok_or_else(|| vec!["there is no subcommand".to_owned()])?;
        let format = given.get_one::<log::Format>("log_format").copied().unwrap_or_default();
        log::use_format(format);
        let (sources, warnings) = Sources::new(serve, given).map_err(|line| vec![line])?;
        let loaded =
            sources.load().map_err(|wrong| wrong.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let log = &loaded.config.log;
        log::listen(log.format, log.filter.as_deref()).map_err(|line| vec![line])?;
        for name in warnings {
            tracing::warn!(name, "unknown environment variable ignored; see mainstay serve --help");
        }
        let activated = activated_for(&loaded, activated).map_err(|line| vec![line])?;
        Ok((sources, loaded, activated))
    };
    match read() {
        Ok((sources, loaded, activated)) => in_runtime(serve::run(sources, loaded, activated)),
        Err(lines) => {
            let lines: Vec<String> = lines;
            lines.iter().for_each(|line| log::write_line(line));
            ExitCode::from(2)
        }
    }
}

/// Returns the listeners that a supervisor passed, compared with the configuration.
fn activated_for(loaded: &Loaded, activated: Result<Activated, String>) -> Result<Activated, String> {
    let activated = activated?;
    activated.check(&activation::Flags {
        listen: loaded.is_set("listen").then(|| loaded.config.addresses()),
        admin: loaded.config.admin.listen.as_ref().map(|listen| listen.place.clone()),
    })?;
    Ok(activated)
}

/// Writes to standard output. A closed pipe is success: its reader has what it wants.
pub(crate) fn print(bytes: &[u8]) -> ExitCode {
    let mut output = std::io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            log::write_line(&format!("standard output: {error}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Prints help and version as they are, and a usage error as one line.
fn refuse(error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        log::write_raw(error.render().to_string());
        return ExitCode::from(2);
    }
    let text = error.to_string();
    let parts =
        text.split("\n\n").filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more"));
    let in_one_line = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = parts.map(in_one_line).collect::<Vec<_>>().join("; ");
    let source = variable_behind(&error).map(|variable| format!(" (from {variable})")).unwrap_or_default();
    log::write_line(&format!("{}{source}; see --help", line.trim_start_matches("error: ")));
    ExitCode::from(2)
}

/// Returns the environment variable that a wrong value came from, if its flag was not on the command line.
fn variable_behind(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(argument)) = error.get(clap::error::ContextKind::InvalidArg) else {
        return None;
    };
    let flag = argument.split([' ', '=']).next().filter(|flag| flag.starts_with("--"))?;
    let is_written = std::env::args_os()
        .any(|word| word.to_str().is_some_and(|word| word == flag || word.starts_with(&format!("{flag}="))));
    let variable = variables::variable(flag);
    (!is_written && std::env::var_os(&variable).is_some()).then_some(variable)
}

/// Removes everything before an `@` from the quoted values: it may be the password of a URL.
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

fn in_runtime(run: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(run);
            // A thread may be blocked reading standard input, and cannot be stopped.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            log::write_line(&format!("the runtime cannot be started: {error}"));
            ExitCode::FAILURE
        }
    }
}
