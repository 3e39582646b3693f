//! The timeline on standard output: a line for each event, in words or as JSON.
//!
//! The proxy never waits for standard output: a thread writes, and behind it is a bounded queue. What finds the queue full is
//! not printed, and counted; `GET /timeline` still has it.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::Duration;

use mainstay_chaos::{Event, Lift, Rule, What};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::observe::log_text;

/// Lines that wait for standard output.
const QUEUE: usize = 10_000;
/// How long the end waits for standard output.
const FINISH: Duration = Duration::from_secs(1);

/// How events are printed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown {
    /// As JSON.
    pub(super) json: bool,
    /// Only the start.
    pub(super) quiet: bool,
}

/// Receives events.
pub(super) struct Timeline {
    shown: Shown,
    rules: Vec<Rule>,
    api: Option<SocketAddr>,
    lines: SyncSender<String>,
    lost: u64,
}

/// Writes the lines.
pub(super) struct Writer {
    failed: oneshot::Receiver<io::Error>,
    unread: oneshot::Receiver<()>,
    finished: mpsc::Receiver<io::Result<()>>,
}

/// The first line of JSON also has where the API listens, and the rules.
#[derive(Serialize)]
struct Start<'a> {
    #[serde(flatten)]
    event: &'a Event,
    api: Option<SocketAddr>,
    rules: &'a [Rule],
}

impl Timeline {
    pub(super) fn start(shown: Shown, rules: Vec<Rule>, api: Option<SocketAddr>) -> (Self, Writer) {
        let (lines, queue) = mpsc::sync_channel::<String>(QUEUE);
        let (failing, failed) = oneshot::channel();
        let (leaving, unread) = oneshot::channel();
        thread::spawn(move || wait_until_unread(leaving));
        let (finishing, finished) = mpsc::channel();
        thread::spawn(move || {
            let mut out = io::stdout();
            let mut write = |line: String| writeln!(out, "{line}").and_then(|()| out.flush());
            match queue.iter().try_for_each(&mut write) {
                Ok(()) => drop(finishing.send(Ok(()))),
                Err(error) => {
                    let again = io::Error::new(error.kind(), error.to_string());
                    let _ = finishing.send(Err(again));
                    let _ = failing.send(error);
                }
            }
        });
        (Self { shown, rules, api, lines, lost: 0 }, Writer { failed, unread, finished })
    }

    /// Prints an event, or counts it as lost.
    pub(super) fn show(&mut self, event: &Event) {
        let is_start = matches!(event.what, What::Started { .. });
        if self.shown.quiet && !is_start {
            return;
        }
        let line = match (self.shown.json, is_start) {
            (true, true) => in_json(&Start { event, api: self.api, rules: &self.rules }),
            (true, false) => in_json(event),
            (false, true) => self.head(event),
            (false, false) => in_words(event),
        };
        if self.lost > 0 {
            let lost = self.lost;
            let gap = match self.shown.json {
                true => format!(r#"{{"event":"not-printed","count":{lost}}}"#),
                false => format!("{lost} events were not printed: standard output was not read"),
            };
            if self.lines.try_send(gap).is_err() {
                self.lost += 1;
                return;
            }
            self.lost = 0;
        }
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            self.lost += 1;
        }
    }

    /// Returns the first lines in words: where it listens, and what it will do.
    fn head(&self, event: &Event) -> String {
        let What::Started { listen, upstream, seed } = &event.what else { return in_words(event) };
        let mut lines = vec![format!("listening on ws://{listen}, upstream {}, seed {seed}", safe(upstream))];
        if let Some(api) = self.api {
            lines.push(format!("commands on http://{api}"));
        }
        for (number, rule) in (1..).zip(&self.rules) {
            lines.push(format!("rule {number}: {rule}"));
        }
        if self.rules.is_empty() {
            lines.push(match self.api {
                Some(_) => "no rules: connections pass unbroken until a command breaks one".to_owned(),
                None => "no rules: connections pass unbroken; see --profile, --fault and --api".to_owned(),
            });
        }
        lines.join("\n")
    }
}

impl Writer {
    /// Completes when standard output cannot be written, or when its reader has gone, also if there is nothing to write.
    ///
    /// # Cancel safety
    /// The error is kept until a call returns it.
    pub(super) async fn failed(&mut self) -> io::Result<()> {
        tokio::select! {
            Ok(error) = &mut self.failed => Err(error),
            Ok(()) = &mut self.unread => Err(io::ErrorKind::BrokenPipe.into()),
            else => std::future::pending().await,
        }
    }

    /// Waits until all lines are written, after the proxy has ended; not for long if nothing reads them.
    ///
    /// # Errors
    /// Standard output could not be written.
    pub(super) fn finish(&self) -> io::Result<()> {
        // In steps, as `log::flush` waits, and for the same reason.
        const STEPS: u32 = 20;
        let mut steps = (0..STEPS).map(|_| self.finished.recv_timeout(FINISH / STEPS));
        steps
            .find(|step| !matches!(step, Err(RecvTimeoutError::Timeout)))
            .and_then(Result::ok)
            .unwrap_or(Ok(()))
    }
}

/// Waits until the reader of standard output has gone. A file has none, so that there is nothing to wait for.
fn wait_until_unread(leaving: oneshot::Sender<()>) {
    let out = io::stdout();
    loop {
        let mut polled = [PollFd::new(&out, PollFlags::empty())];
        match poll(&mut polled, None) {
            Err(Errno::INTR) => {}
            Ok(_) if polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) => {
                let _ = leaving.send(());
                return;
            }
            _ => return,
        }
    }
}

/// Returns an object on one line, without characters that a terminal obeys.
fn in_json(object: &impl Serialize) -> String {
    let text = serde_json::to_string(object).unwrap_or_default();
    log_text::escape(&text, true, false).into_owned()
}

fn safe(text: &str) -> String {
    log_text::escape(text, false, false).replace('\n', "\\n")
}

/// Returns an event as a line: when, which connection, what.
fn in_words(event: &Event) -> String {
    let at = event.at.as_secs_f64();
    let connection = event.connection.map_or_else(String::new, |number| format!("#{number}"));
    let line = format!("{at:>9.3}  {connection:<5} {}", words(event));
    safe(line.trim_end())
}

fn words(event: &Event) -> String {
    match &event.what {
        What::Opened { client } => format!("opened by {client}"),
        What::Connected { upstream } => format!("connected to {upstream}"),
        What::UpstreamFailed { upstream, reason } => format!("upstream {upstream} failed: {reason}"),
        What::Handshake { status: 101 } => "is a WebSocket".to_owned(),
        What::Handshake { status } => format!("the handshake was answered with {status}"),
        What::Dead { direction } => {
            format!("is dead ({}): bytes were lost, and neither side is notified", direction.name())
        }
        What::Unreadable => {
            "is not readable (TLS, or no WebSocket over HTTP/1.1): faults that need frames do nothing here"
                .to_owned()
        }
        What::Fault { fault, by, lasts, .. } => {
            let parameters = fault.parameters().into_iter().map(|(name, value)| match value {
                serde_json::Value::String(text) => format!(" {name}={text}"),
                value => format!(" {name}={value}"),
            });
            let lasts =
                lasts.map_or_else(String::new, |lasts| format!(" for={}", humantime::format_duration(lasts)));
            format!("FAULT {}{}{lasts} ({by})", fault.name(), parameters.collect::<String>())
        }
        What::Lifted { fault, by, why } => match why {
            Lift::End => format!("{fault} is over ({by})"),
            Lift::Command => format!("{fault} is lifted ({by})"),
            Lift::Scenario => format!("{fault} is over: its rule was replaced ({by})"),
            why => format!("{fault} is over: {why} ({by})"),
        },
        What::Closed { reason, up, down } => {
            let by = match *reason {
                "client" => "closed by the client",
                "upstream" => "closed by the upstream",
                "client-reset" => "reset by the client",
                "upstream-reset" => "reset by the upstream",
                "upstream-failed" => "closed, as the upstream did not accept it",
                "proxy-ended" => "closed, as the proxy has ended",
                fault => return format!("closed by {fault}; {up} bytes up, {down} down"),
            };
            format!("{by}; {up} bytes up, {down} down")
        }
        What::AcceptFailed { reason } => format!("cannot accept: {reason}"),
        What::Paused { lasted } => {
            format!("this process was stopped for {:.1} s, which do not count", lasted.as_secs_f64())
        }
        What::Ended => "ended".to_owned(),
        // New kinds of events have words in JSON.
        other => format!("{}: {}", other.name(), in_json(event)),
    }
}
