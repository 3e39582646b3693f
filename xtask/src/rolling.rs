//! The proof of a rolling restart: three Fastify processes as the addresses of one backend, each replaced in turn under
//! load, in order and then by kills. No message of a session may be lost.
//!
//! ```text
//! outage_client x 12 <-> mainstay serve <-> backend.mjs x 3 (replaced in turn)
//! ```
//!
//! The processes write down what they saw, as in the proof of outages (`outage`); here the records of all three are one.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::metrics::{self, metric};
use crate::programs::{self, MAINSTAY};
use crate::run::Background;
use crate::{Outcome, Result, install};

const BACKENDS: usize = 3;
/// Each sends 50 messages a second.
const CLIENTS: usize = 12;
/// Messages a second that the backend sends to each client beside its answers.
const BACKEND_RATE: &str = "1";
/// The load between two replacements.
const CALM: Duration = Duration::from_secs(1);
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn step() -> Result<Outcome> {
    let preparing = install::alone()?;
    install::node_packages("proof")?;
    programs::mainstay()?;
    programs::peers(&["outage_client"])?;
    drop(preparing);
    let mut stage = Stage::set()?;
    for how in ["TERM", "KILL"] {
        println!("each of {BACKENDS} backends replaced in turn, ended by SIG{how}");
        for number in 0..BACKENDS {
            stage.replace(number, how)?;
            sleep(CALM);
        }
    }
    let counts = stage.close()?;
    println!("{counts}");
    counts.verdict()
}

struct Stage {
    folder: PathBuf,
    admin: SocketAddr,
    gateway: Background,
    clients: Vec<Background>,
    backends: Vec<(Option<Background>, String)>,
}

impl Stage {
    fn set() -> Result<Self> {
        let folder = std::env::current_dir()?.join("target/xtask/rolling");
        let _ = fs::remove_dir_all(&folder); // the record of an earlier run must not be taken for this one's
        fs::create_dir_all(&folder)?;
        let backends: Vec<(Background, String)> =
            (0..BACKENDS).map(|number| start_backend(&folder, number, "0")).collect::<Result<_>>()?;
        let mut command = Command::new(MAINSTAY);
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.args(["--on-backend-loss", "keep"]);
        for (_, port) in &backends {
            command.args(["--upstream", &format!("ws://127.0.0.1:{port}")]);
        }
        let mut gateway = Background::start(&mut command, folder.join("gateway.log"))?;
        let listening = gateway.announced(LIMIT, "listening on ws://")?;
        let admin = gateway.announced(LIMIT, "admin on http://")?.trim_end_matches(':').parse()?;
        let client = |number| {
            let url = format!("ws://{listening}/ws?client={number}");
            let mut command = Command::new("target/release/outage_client");
            Background::start_quietly(command.arg(url), client_log(&folder, number))
        };
        let mut clients: Vec<Background> = (0..CLIENTS).map(client).collect::<Result<_>>()?;
        for client in &mut clients {
            let answered = |log: &Path| has_line(log, "{\"received\":{\"re\":");
            client.wait_until(LIMIT, answered)?;
        }
        let backends = backends.into_iter().map(|(backend, port)| (Some(backend), port)).collect();
        Ok(Self { folder, admin, gateway, clients, backends })
    }

    /// Ends a backend, starts it again at its port, and waits until the gateway reaches it.
    fn replace(&mut self, number: usize, how: &str) -> Result<()> {
        let Some((running, port)) = self.backends.get_mut(number) else { return Ok(()) };
        if let Some(mut backend) = running.take() {
            backend.signal(how)?;
            backend.wait_end(LIMIT)?;
        }
        let port = port.clone();
        let up = format!("mainstay_backend_address_up{{address=\"ws://127.0.0.1:{port}/\"}}");
        self.wait_for_metric(&up, 0)?;
        let (backend, _) = start_backend(&self.folder, number, &port)?;
        if let Some((running, _)) = self.backends.get_mut(number) {
            *running = Some(backend);
        }
        self.wait_for_metric(&up, 1)
    }

    fn wait_for_metric(&mut self, name: &str, value: u64) -> Result<()> {
        let admin = self.admin;
        let is_there = |_: &Path| metrics::read(admin).is_ok_and(|text| metric(&text, name) == value);
        self.gateway
            .wait_until(LIMIT, is_there)
            .map_err(|error| format!("{name} is not {value}: {error}").into())
    }

    /// Ends the load, waits for every answer under way, and counts.
    fn close(mut self) -> Result<Counts> {
        let mut counts = Counts { restarts: 2 * BACKENDS, ..Counts::default() };
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.signal("USR1")?;
            let log = client_log(&self.folder, number);
            // A client whose messages were lost never has every answer: the counts show that.
            let _ =
                client.wait_until(LIMIT, |log| answers(log).is_ok_and(|(sent, got)| sent.len() == got.len()));
            client.signal("TERM")?;
            client.wait_success(LIMIT)?;
            counts.add_client(number, &log)?;
        }
        for number in 0..BACKENDS {
            counts.add_record(&record(&self.folder, number))?;
        }
        counts.undelivered =
            metric(&metrics::read(self.admin)?, "mainstay_link_messages_total{fate=\"not_delivered\"}");
        self.gateway.signal("TERM")?;
        self.gateway.wait_success(LIMIT)?;
        Ok(counts)
    }
}

/// What was sent, arrived and was answered, by client and id.
#[derive(Debug, Default)]
struct Counts {
    restarts: usize,
    sent: HashSet<(usize, u64)>,
    answered: HashSet<(usize, u64)>,
    arrived: HashMap<(usize, u64), u64>,
    gaps: usize,
    undelivered: u64,
}

impl Counts {
    fn add_client(&mut self, number: usize, log: &Path) -> Result<()> {
        let (sent, answered) = answers(log)?;
        self.sent.extend(sent.into_iter().map(|id| (number, id)));
        self.answered.extend(answered.into_iter().map(|id| (number, id)));
        self.gaps +=
            fs::read_to_string(log)?.lines().filter(|line| line.contains("\"event\":\"gap\"")).count();
        Ok(())
    }

    fn add_record(&mut self, record: &Path) -> Result<()> {
        for line in fs::read_to_string(record)?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let client = line["client"].as_str().and_then(|client| client.parse().ok());
            if let (Some(client), Some(id)) = (client, line["id"].as_u64()) {
                *self.arrived.entry((client, id)).or_default() += 1;
            }
        }
        Ok(())
    }

    fn lost(&self) -> usize {
        self.sent.iter().filter(|message| !self.arrived.contains_key(message)).count()
    }

    fn unanswered(&self) -> usize {
        self.sent.difference(&self.answered).count()
    }

    fn verdict(&self) -> Result<Outcome> {
        let is_right = !self.sent.is_empty() && self.lost() + self.unanswered() + self.gaps == 0;
        match is_right && self.undelivered == 0 {
            true => Ok(Outcome::Passed),
            false => Err(format!("a rolling restart lost messages: {self}").into()),
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let twice = self.arrived.values().filter(|times| **times > 1).count();
        write!(
            to,
            "{CLIENTS} sessions, {} restarts of {BACKENDS} backends: {} messages sent, {} lost, {} without an answer, {} gaps, \
             {twice} received twice because they were unconfirmed at an end",
            self.restarts,
            self.sent.len(),
            self.lost(),
            self.unanswered(),
            self.gaps
        )
    }
}

/// Returns the ids that a client sent, and those that it has an answer for.
fn answers(log: &Path) -> Result<(HashSet<u64>, HashSet<u64>)> {
    let (mut sent, mut answered) = (HashSet::new(), HashSet::new());
    let text = fs::read_to_string(log)?;
    // The last line may not be whole yet.
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        sent.extend(line["accepted"].as_u64());
        answered.extend(line["received"]["re"].as_u64());
    }
    Ok((sent, answered))
}

fn has_line(log: &Path, text: &str) -> bool {
    fs::read_to_string(log).unwrap_or_default().contains(text)
}

fn record(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("record-{number}.jsonl"))
}

fn client_log(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("client-{number}.jsonl"))
}

/// Starts a backend. Returns it once it listens, and its port.
fn start_backend(folder: &Path, number: usize, port: &str) -> Result<(Background, String)> {
    let mut node = Command::new("node");
    node.args(["proof/outage/backend.mjs", port]).arg(record(folder, number)).arg(BACKEND_RATE);
    let mut backend = Background::start(&mut node, folder.join(format!("backend-{number}.log")))?;
    let port = backend.announced(LIMIT, "listening ")?;
    Ok((backend, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_no_record_has_is_lost_and_one_without_an_answer_is_counted() {
        let mut counts = Counts { sent: HashSet::from([(0, 1), (0, 2), (1, 1)]), ..Counts::default() };
        counts.arrived = HashMap::from([((0, 1), 1), ((1, 1), 2)]);
        counts.answered = HashSet::from([(0, 1)]);
        assert_eq!((counts.lost(), counts.unanswered()), (1, 2));
        assert!(counts.verdict().is_err());
        counts.arrived.insert((0, 2), 1);
        counts.answered.extend([(0, 2), (1, 1)]);
        assert!(counts.verdict().is_ok() && counts.to_string().contains("3 messages sent, 0 lost"));
    }
}
