//! `mainstay doctor`: finds out why WebSocket connections to a URL drop.
//!
//! [`facts`] looks at one connection, and [`symptoms`] says what the facts alone show. [`measure`] waits on several connections.
//! [`verdict`] says what it all means; [`screen`] shows progress and [`page`] the result to people, and [`report`] is what `--json` prints.

mod advice;
mod answer;
mod certificates;
mod consent;
mod cutters;
mod dial;
mod facts;
mod findings;
mod first_message;
mod heartbeat;
mod http2;
mod judgement;
mod measure;
mod measured;
mod page;
mod pings;
mod probe;
mod products;
mod progress;
mod report;
mod rows;
mod screen;
mod suspects;
mod symptoms;
mod target;
mod verdict;
mod words;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, header};
use mainstay::client::Place;
use tokio::time::timeout;

use self::facts::Facing;
use self::first_message::FirstMessage;
use self::measured::Measured;
use self::progress::Progress;
use self::report::{Facts, Report, ms};
use self::target::Target;
use crate::observe::{log, log_text};
use crate::process::descriptors;
use crate::process::signals::{Stop, Stops};
use crate::{print, values};

/// How long the screen may take to show the last updates.
const SCREEN_TIME: Duration = Duration::from_secs(1);

/// The longest file of a token, in bytes: servers take no longer fields.
const MAX_TOKEN: u64 = 16 * 1024;

/// The end of `mainstay doctor --help`.
pub(crate) const AFTER_HELP: &str = "\
Examples:
  mainstay doctor wss://example.com/feed
      ask first, then measure for about two minutes
  mainstay doctor wss://example.com/feed --quick
      only what one connection shows, in seconds
  mainstay doctor ws://127.0.0.1:8080/echo --echo --for 5m
      measure for 5 minutes; the server echoes messages, so it may be sent some
  mainstay doctor wss://example.com/graphql --subprotocol graphql-transport-ws \\
      --first-message '{\"type\":\"connection_init\"}'
      the server keeps only clients that send this first
  mainstay doctor wss://example.com/feed --yes --json | jq .findings
      without a question, for scripts

What it sends:
  Without --quick several connections are opened, up to --connections at once.
  For hosts beyond this machine and private networks the doctor says how many,
  and asks; --yes answers. Messages are sent only with --echo or
  --first-message. Values of --header, --bearer-file, --first-message and of
  the URL's query are never printed.
  A server whose certificate is not trusted is sent nothing.

Exit codes:
  0  healthy
  1  there are findings
  2  the arguments are wrong, or the question was not answered with yes
  3  no WebSocket could be opened
  An interrupt (Ctrl-C) or SIGTERM ends the measurement: what is known so far
  is printed, and the exit code is that of the findings so far; 130 or 143 if
  no WebSocket was open yet.";

/// Flags of `mainstay doctor`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The server, for example wss://example.com/feed or unix:/run/app.sock:/echo.
    #[arg(value_parser = values::server)]
    url: Place,
    /// Examine one connection only, which takes seconds: no limit is measured, and no question is asked.
    #[arg(long, conflicts_with_all = ["lasts", "connections"])]
    quick: bool,
    /// How long to wait for cuts. The longest idle or lifetime limit that can be found is a little shorter. Range: 1s to
    /// 24h.
    #[arg(long = "for", id = "lasts", value_name = "DURATION", value_parser = lasts, default_value = "130s")]
    lasts: Duration,
    /// How many connections may be open at once. Range: 1 to 10000.
    #[arg(long, value_name = "COUNT", value_parser = connections, default_value = "200")]
    connections: usize,
    /// The server returns each message to its sender: send some, to compare their time with that of Pings and to find
    /// the largest one that passes.
    #[arg(long)]
    echo: bool,
    /// Add this header to the opening handshakes, as "Name: value". May be repeated.
    #[arg(long = "header", short = 'H', value_name = "HEADER", value_parser = header_field)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Send the token in this file as "Authorization: Bearer".
    #[arg(long, value_name = "FILE")]
    bearer_file: Option<PathBuf>,
    /// Offer this application subprotocol. May be repeated.
    #[arg(long = "subprotocol", value_name = "NAME", value_parser = values::token)]
    subprotocols: Vec<String>,
    /// Send this text as the first message of each connection, for servers that wait for a login or an init. @FILE sends the
    /// content of a file, and hides it from the list of processes; as binary if it contains a NUL byte.
    #[arg(long, value_name = "TEXT|@FILE")]
    first_message: Option<String>,
    /// Trust the certificates in this file (PEM) instead of the system's: those of certificate authorities, or the
    /// server's own if it is self-signed.
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
    /// Measure a host beyond this machine and private networks without a question.
    #[arg(long, short)]
    yes: bool,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How long the experiments wait. Default: 130 s.
    pub(crate) lasts: Duration,
    /// How many connections may be open at once. Default: 200.
    pub(crate) connections: usize,
    /// Whether the server echoes messages, and may be sent some.
    pub(crate) echo: bool,
    /// Only the facts.
    pub(crate) quick: bool,
}

/// Runs `mainstay doctor`.
pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    let enough_files = || if arguments.quick { Ok(()) } else { check_files(arguments.connections) };
    let prepared = target(&arguments).and_then(|target| {
        enough_files()?;
        let stops = Stops::listen().map_err(|error| format!("signals cannot be received: {error}"))?;
        Ok((target, stops))
    });
    let (target, mut stops) = match prepared {
        Ok(prepared) => prepared,
        Err(line) => return refuse(&line),
    };
    let plan = Plan {
        lasts: arguments.lasts,
        connections: arguments.connections,
        echo: arguments.echo,
        quick: arguments.quick,
    };
    let mut examination = Examination::new(&target, plan);
    let agreed = tokio::select! {
        agreed = examination.resolve(arguments.yes) => agreed,
        stop = stops.next() => {
            examination.stopped = Some(stop);
            Ok(())
        }
    };
    if let Err(line) = agreed {
        return refuse(&line);
    }
    if examination.stopped.is_none() {
        let (progress, updates) = Progress::channel();
        let screen = tokio::spawn(screen::show(updates, !arguments.json));
        examination.stopped = tokio::select! {
            () = examination.examine(progress) => None,
            stop = stops.next() => Some(stop),
        };
        let _ = timeout(SCREEN_TIME, screen).await;
    }
    // The reader of the output may stall.
    let finishing = tokio::task::spawn_blocking(move || examination.finish(arguments.json));
    tokio::select! {
        finished = finishing => finished.unwrap_or(ExitCode::FAILURE),
        stop = stops.next() => ExitCode::from(stop.exit_code()),
    }
}

/// Returns the report as one line of JSON in which every control character is escaped.
fn json_line(report: &Report) -> String {
    let line = serde_json::to_string(report).unwrap_or_default() + "\n";
    log_text::escape(&line, true, false).into_owned()
}

fn refuse(line: &str) -> ExitCode {
    log::write_line(line);
    ExitCode::from(2)
}

/// One run: the target, the plan and what is known so far.
struct Examination {
    target: Target,
    plan: Plan,
    began: Instant,
    report: Report,
    /// The signal that ended it.
    stopped: Option<Stop>,
}

impl Examination {
    fn new(target: &Target, plan: Plan) -> Self {
        let report = Report {
            version: 1,
            target: target.facts(false),
            facts: Facts { proxy_variables: facts::proxy_variables(target), ..Facts::default() },
            measured: None,
            findings: Vec::new(),
            verdict: None,
            complete: false,
            took_ms: 0.0,
        };
        Self { target: target.clone(), plan, began: Instant::now(), report, stopped: None }
    }

    /// Looks the name up, and asks whether a foreign host may be measured.
    ///
    /// # Errors
    /// The user did not agree.
    async fn resolve(&mut self, yes: bool) -> Result<(), String> {
        let is_near = facts::resolve(&self.target, &mut self.report.facts).await;
        self.report.target.is_near = is_near;
        // Examining one connection is what any client does.
        if !is_near && !self.plan.quick && !yes {
            consent::ask(&self.report, &self.plan).await?;
        }
        self.began = Instant::now();
        Ok(())
    }

    /// Examines one connection, and unless that is all, waits on several.
    async fn examine(&mut self, progress: Progress) {
        let Report { facts, measured, .. } = &mut self.report;
        let Some(Facing { target, probe }) = facts::gather(&self.target, &self.plan, facts, &progress).await
        else {
            return;
        };
        if self.plan.quick {
            return;
        }
        let measured = measured.insert(Measured::default());
        let watch = pings::watch(probe, facts.pings.get_or_insert_default());
        let took = facts.handshake.as_ref().map_or(0.0, |handshake| handshake.took_ms);
        let opening_takes = Duration::try_from_secs_f64(took / 1e3).unwrap_or_default();
        let measuring = measure::measure(&target, &self.plan, opening_takes, measured, &progress);
        // The watch ends with the connection; the measurement decides how long everything takes.
        watch_until(watch, measuring).await;
    }

    /// Prints the report, and returns the exit code of its findings.
    fn finish(mut self, json: bool) -> ExitCode {
        self.judge();
        let text = if json { json_line(&self.report) } else { page::text(&self.report, &self.plan) };
        match (print(text.as_bytes()), self.stopped) {
            // Without an open WebSocket nothing is healthy.
            (ExitCode::SUCCESS, Some(stop))
                if self.report.findings.is_empty() && self.report.facts.pings.is_none() =>
            {
                ExitCode::from(stop.exit_code())
            }
            (ExitCode::SUCCESS, _) => ExitCode::from(self.report.exit_code()),
            (failed, _) => failed,
        }
    }

    /// Draws the conclusions from what is known.
    fn judge(&mut self) {
        let report = &mut self.report;
        report.complete = self.stopped.is_none();
        report.took_ms = ms(self.began.elapsed());
        report.findings = symptoms::find(&report.facts, &report.target);
        let (more, verdict) = verdict::judge(report);
        report.findings.extend(more);
        report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        report.verdict = verdict;
    }
}

/// Runs `watch` for as long as `measuring` takes.
async fn watch_until(watch: impl Future<Output = ()>, measuring: impl Future<Output = ()>) {
    let watching = async {
        watch.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = measuring => {}
        () = watching => {}
    }
}

/// Checks that this process may open so many connections: its own limit must not pass for one of the server.
///
/// # Errors
/// One line that begins with the flag.
fn check_files(connections: usize) -> Result<(), String> {
    /// For everything else.
    const KEPT: u64 = 32;
    let Some(files) = descriptors::raise_limit() else { return Ok(()) };
    let most = files.saturating_sub(KEPT).max(1);
    if connections as u64 <= most {
        return Ok(());
    }
    Err(format!(
        "--connections {connections}: this process may have {files} open files; write at most {most}, or raise the limit (ulimit -n)"
    ))
}

/// Makes the target of the arguments.
///
/// # Errors
/// One line that begins with the flag.
fn target(arguments: &Arguments) -> Result<Target, String> {
    let mut headers = arguments.headers.clone();
    if let Some(file) = &arguments.bearer_file {
        if headers.iter().any(|(name, _)| name == header::AUTHORIZATION) {
            return Err("--bearer-file: --header sets Authorization, too; remove one of them".to_owned());
        }
        headers.push((header::AUTHORIZATION, bearer(file)?));
    }
    let first_message = arguments.first_message.as_deref().map(FirstMessage::read).transpose()?;
    let subprotocols = arguments.subprotocols.clone();
    Target::new(arguments.url.clone(), headers, subprotocols, first_message, arguments.cacert.as_deref())
}

/// Reads a token from a file.
fn bearer(file: &Path) -> Result<HeaderValue, String> {
    let place = format!("--bearer-file {}", file.display());
    let mut token = String::new();
    File::open(file)
        .and_then(|file| file.take(MAX_TOKEN + 1).read_to_string(&mut token))
        .map_err(|error| format!("{place}: {error}; name a readable file"))?;
    if token.len() as u64 > MAX_TOKEN {
        return Err(format!("{place}: must hold one token of at most 16 KiB"));
    }
    let token = token.trim();
    let is_one = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    // The content is a secret, and is not quoted.
    let value = HeaderValue::try_from(format!("Bearer {token}")).ok().filter(|_| is_one);
    value.ok_or_else(|| format!("{place}: must hold one token in ASCII without spaces"))
}

/// Parses a field of the request that the doctor does not write itself.
fn header_field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = values::header(text)?;
    let own = ["connection", "upgrade", "content-length", "transfer-encoding"];
    if own.contains(&name.as_str()) || name.as_str().starts_with("sec-websocket-") {
        return Err(format!("{name} belongs to the opening handshake; the doctor writes it"));
    }
    Ok((name, value))
}

/// Parses the time to wait.
fn lasts(text: &str) -> Result<Duration, String> {
    let duration = values::duration(text)?;
    let bounds = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    if bounds.contains(&duration) { Ok(duration) } else { Err("must be between 1s and 24h".to_owned()) }
}

/// Parses the number of connections.
fn connections(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=10_000).contains(count));
    count.ok_or_else(|| "must be a whole number from 1 to 10000".to_owned())
}
