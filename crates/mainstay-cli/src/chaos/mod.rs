//! `mainstay chaos`: a proxy that breaks WebSocket connections, for tests of anything that holds one.
//!
//! The proxy itself is the crate `mainstay-chaos`. Here are its command line (`plan`), what it prints (`timeline`, `list`), and
//! its control by HTTP (`api`). [`AFTER_HELP`] has the exit codes.

mod api;
mod list;
mod plan;
mod timeline;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use mainstay_chaos::ChaosProxy;
use tokio::io::AsyncReadExt;

use self::plan::Plan;
use self::timeline::{Timeline, Writer};
use crate::observe::log;
use crate::process::descriptors;
use crate::process::signals::Stops;
use crate::values;

/// The end of `mainstay chaos --help`.
pub(crate) const AFTER_HELP: &str = "\
Examples:
  mainstay chaos --upstream 127.0.0.1:3000 --profile elevator
      a proxy in front of your server; connect to the address that it prints
  mainstay chaos --upstream 127.0.0.1:3000 --fault black-hole,after=10s,for=8s
      8 seconds of silence, 10 seconds after each connection has opened
  mainstay chaos --upstream 127.0.0.1:3000 --api 127.0.0.1:8474
      faults on command, from another terminal or from a test:
      curl -H 'Content-Type: application/json' -d '{\"kind\": \"reset\"}' \\
        127.0.0.1:8474/faults
  mainstay chaos --list
      all faults with their fields, and all profiles
  mainstay chaos --list deploy > my.toml
      a profile's file, to start your own from: --scenario my.toml

Output:
  One line for each event: what opened, what broke and why, what closed. With
  --json each is an object of JSON, and the first has the addresses.

Exit codes:
  0  ended by a signal, by --for, by the end of standard input, or because
     nothing reads the output any more
  1  standard output cannot be written, or the proxy ended by a mistake of ours
  2  the arguments, a file or an address are wrong";

/// Flags of `mainstay chaos`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Connect to this server for each client, for example 127.0.0.1:3000 or ws://app.internal:3000.
    #[arg(long, value_name = "ADDRESS", required_unless_present = "list")]
    upstream: Option<String>,
    /// Accept clients on this address. Port 0 is any free port; the address is printed.
    #[arg(long, value_name = "ADDRESS", value_parser = values::address, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Break connections as this profile says, for example elevator; --list has all. May be repeated.
    #[arg(long = "profile", value_name = "NAME")]
    profiles: Vec<String>,
    /// Break connections as this scenario file in TOML says.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Add one fault: its kind and its fields, for example black-hole,direction=up,after=10s,for=8s. May be repeated.
    #[arg(long = "fault", value_name = "KIND,FIELD=VALUE")]
    faults: Vec<String>,
    /// Draw all random times and values from this number. Range: 0 to 9007199254740991. Default: the scenario file's; else at
    /// random, and printed.
    #[arg(long, value_name = "NUMBER", value_parser = plan::seed)]
    seed: Option<u64>,
    /// End after this time. Default: never.
    #[arg(long = "for", value_name = "DURATION", value_parser = values::duration)]
    lasts: Option<Duration>,
    /// Accept commands by HTTP on this address, for example 127.0.0.1:8474. Port 0 is any free port. An address that other
    /// machines reach needs --api-host.
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    api: Option<SocketAddr>,
    /// Answer requests for this host name or address, too: clients of other machines and containers write it in their URLs.
    /// There are no passwords; everything that reaches the port may break connections. May be repeated.
    #[arg(long = "api-host", value_name = "HOST", requires = "api", value_parser = plan::host)]
    api_hosts: Vec<String>,
    /// Print each event as an object of JSON on a line of its own.
    #[arg(long)]
    json: bool,
    /// Print the addresses, and no later event.
    #[arg(long, short)]
    quiet: bool,
    /// End when standard input is closed: with the program that started this one, however that ends.
    #[arg(long)]
    until_stdin_closes: bool,
    /// Print all faults and profiles, or the file of one profile, and end.
    #[arg(long, value_name = "PROFILE", num_args = 0..=1, default_missing_value = "")]
    list: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    if let Some(name) = &arguments.list {
        return list::print(name, arguments.json);
    }
    // A signal ends the process while it waits for a file that is a pipe.
    let plan = match Plan::new(arguments) {
        Ok(plan) => plan,
        Err(line) => {
            log::write_line(&line);
            return ExitCode::from(2);
        }
    };
    // Each client takes two.
    let _ = descriptors::raise_limit();
    // Before the first line is printed: its reader may send a signal at once.
    let stops = match Stops::listen() {
        Ok(stops) => stops,
        Err(error) => {
            log::write_line(&format!("signals cannot be received: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match Running::start(plan) {
        Ok(running) => running.until_the_end(stops).await,
        Err(line) => {
            log::write_line(&line);
            ExitCode::from(2)
        }
    }
}

/// A proxy that runs.
struct Running {
    proxy: Arc<ChaosProxy>,
    api: Option<api::Listener>,
    output: Writer,
    plan: Plan,
}

impl Running {
    /// Binds both addresses.
    ///
    /// # Errors
    /// The flag whose address cannot be used, and why.
    fn start(plan: Plan) -> Result<Self, String> {
        let api = plan
            .api
            .map(|address| api::Listener::bind(address).map_err(|error| in_use("--api", address, &error)));
        let api = api.transpose()?;
        let api_address = api.as_ref().map(api::Listener::address);
        let (mut timeline, output) = Timeline::start(plan.shown, plan.scenario.rules.clone(), api_address);
        let proxy = ChaosProxy::builder(&plan.upstream)
            .listen(plan.listen.to_string())
            .seed(plan.seed)
            .scenario(plan.scenario.clone())
            .on_event(move |event| timeline.show(event))
            .start()
            .map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput => format!("--{error}"),
                _ => in_use("--listen", plan.listen, &error),
            })?;
        Ok(Self { proxy: Arc::new(proxy), api, output, plan })
    }

    /// Serves until something ends the command. Returns the exit code.
    async fn until_the_end(mut self, mut stops: Stops) -> ExitCode {
        if let Some(listener) = self.api.take() {
            let api = api::Api::new(&self.proxy, &self.plan);
            tokio::spawn(listener.serve(api));
        }
        let end = async {
            tokio::select! {
                _ = stops.next() => Ok(()),
                () = after(self.plan.lasts) => Ok(()),
                () = stdin_closes(self.plan.until_stdin_closes) => Ok(()),
                failed = self.output.failed() => failed,
            }
        };
        let ended = end.await;
        drop(self.proxy);
        match ended.and(self.output.finish()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                log::write_line(&format!("standard output: {error}"));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        }
    }
}

/// Completes after this time; `None`: never.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Completes when standard input is at its end, if that is asked for.
async fn stdin_closes(is_asked: bool) {
    if !is_asked {
        return std::future::pending().await;
    }
    let (mut input, mut ignored) = (tokio::io::stdin(), [0; 1024]);
    while input.read(&mut ignored).await.is_ok_and(|length| length > 0) {}
}

/// Returns why an address cannot be used, and what to do.
fn in_use(flag: &str, address: SocketAddr, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there; choose another port, or 0 for any free one"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; write one of its own, such as 127.0.0.1"
        }
        io::ErrorKind::PermissionDenied => "not permitted; choose a port from 1024 on",
        _ => return format!("{flag} {address}: {error}; choose another address"),
    };
    format!("{flag} {address}: {why}")
}
