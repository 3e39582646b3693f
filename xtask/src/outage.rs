//! The outage proof: an unmodified Fastify application behind `mainstay serve`, with our client in front, while the
//! backend is killed, the network is cut, the client is frozen, and the gateway is full. The kills are played twice: with
//! `--on-backend-loss keep`, which this application may use because its connections have no state, and with `renew`.
//!
//! ```text
//! outage_client <-> ChaosProxy (resets) <-> mainstay serve <-> backend.mjs (killed)
//!  (frozen)                                   (full)
//! ```
//!
//! Every part is a process of its own. Two of them write down what they saw: the backend each message that it received
//! and sent ("the record"), the client each message that it sent and received, and each event. [`Verdict`] compares
//! the two. Only the outages themselves last by the clock.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use mainstay_chaos::{ChaosProxy, Fault, Target};
use serde_json::Value;

use crate::metrics::{self, metric};
use crate::programs::{self, MAINSTAY};
use crate::run::{Background, output};
use crate::{Outcome, Result, install};

const KILLS: usize = 3;
const CUTS: usize = 10;

/// The number of lost connections: one for each cut, one for the freeze, and one for the refusal.
const CLIENT_LOSSES: u64 = CUTS as u64 + 2;

/// Messages that may be unconfirmed on a link: `docs/DEFAULTS.md`.
const UNCONFIRMED: usize = 64;

/// Messages a second that the backend sends beside its answers.
const BACKEND_RATE: &str = "50";

const BACKEND_AWAY: Duration = Duration::from_secs(1);
const CALM: Duration = Duration::from_secs(1);
const BETWEEN_CUTS: Duration = Duration::from_millis(300);
/// How long the freeze lasts: longer than the gateway's heartbeat of 1 s, its jitter and the shortest deadline of 5 s.
const FREEZE: Duration = Duration::from_secs(8);
const REFUSAL: Duration = Duration::from_secs(3);
/// The gateway's connections; the client needs one.
const MAX_CONNECTIONS: usize = 4;
const REFUSED: &str = "mainstay_refused_total{reason=\"full\"}";
/// One more connection, to observe that the gateway is full.
const OURS_REFUSED: u64 = 1;

/// How long any wait may take: a link's third backoff in a row takes up to 8 s.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn step() -> Result<Outcome> {
    let preparing = install::alone()?;
    install::node_packages("proof")?;
    programs::mainstay()?;
    programs::peers(&["outage_client"])?;
    drop(preparing);
    println!("--on-backend-loss keep");
    let mut stage = Stage::set("keep")?;
    stage.play_kills()?;
    stage.play_other_outages()?;
    let (verdict, metrics) = stage.close()?;
    println!("--on-backend-loss renew: the kills");
    let mut stage = Stage::set("renew")?;
    stage.play_kills()?;
    let (renewed, _) = stage.close()?;
    println!("the same kills through @fastify/http-proxy with wsReconnect");
    let comparison = output(Command::new("node").arg("proof/outage/compare.mjs"))?;
    let mut failures = print(&verdict.rows(&metrics), &serde_json::from_str(&comparison)?);
    println!("--on-backend-loss renew");
    failures.extend(print(&renewed.rows_renewed(), &Value::Null));
    if failures.is_empty() { Ok(Outcome::Passed) } else { Err(failures.join("; ").into()) }
}

/// All processes of one run, and their files.
struct Stage {
    folder: PathBuf,
    client: Background,
    network: ChaosProxy,
    listening: SocketAddr,
    gateway: Background,
    backend: Option<Background>,
    backend_port: String,
    admin: SocketAddr,
}

impl Stage {
    fn set(on_backend_loss: &str) -> Result<Self> {
        let folder = std::env::current_dir()?.join("target/xtask/outage");
        let _ = fs::remove_dir_all(&folder); // the record of an earlier run must not be taken for this one's
        fs::create_dir_all(&folder)?;
        let (backend, backend_port) = start_backend(&folder, "0")?;
        let mut gateway = Background::start(
            Command::new(MAINSTAY)
                .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--heartbeat", "1s"])
                .args(["--on-backend-loss", on_backend_loss])
                .args(["--max-connections", &MAX_CONNECTIONS.to_string()])
                .args(["--upstream", &format!("ws://127.0.0.1:{backend_port}")])
                .env("MAINSTAY_LOG", "info"),
            folder.join("gateway.log"),
        )?;
        let listening: SocketAddr = gateway.announced(LIMIT, "listening on ws://")?.parse()?;
        let admin = gateway.announced(LIMIT, "admin on http://")?.trim_end_matches(':').parse()?;
        let network = ChaosProxy::builder(listening.to_string()).start()?;
        let client = Background::start(
            Command::new("target/release/outage_client").arg(network.url("/ws")),
            client_log(&folder),
        )?;
        Ok(Self { folder, client, network, listening, gateway, backend: Some(backend), backend_port, admin })
    }

    /// Plays one kill after the other; waits for the recovery before the next.
    fn play_kills(&mut self) -> Result<()> {
        self.wait_for("\"received\"", 1)?;
        sleep(CALM);
        for generation in 2..=KILLS + 1 {
            println!("backend killed, away for {BACKEND_AWAY:?}");
            self.backend = None;
            sleep(BACKEND_AWAY);
            self.backend = Some(start_backend(&self.folder, &self.backend_port)?.0);
            self.wait_for(&format!("\"gen\":{generation}}}"), 1)?;
            sleep(CALM);
        }
        Ok(())
    }

    /// Plays one kind of outage after the other, in the same way.
    fn play_other_outages(&mut self) -> Result<()> {
        println!("client cut off {CUTS} times");
        for cut in 1..=CUTS {
            self.network.inject(Fault::Reset, Target::Open, None);
            self.wait_for("\"resumed\"", cut)?;
            sleep(BETWEEN_CUTS);
        }
        println!("client frozen for {FREEZE:?}");
        self.client.signal("STOP")?;
        sleep(FREEZE);
        self.client.signal("CONT")?;
        self.wait_for("\"resumed\"", CUTS + 1)?;
        println!("gateway full for {REFUSAL:?}");
        let refusing = self.network.inject(Fault::Refuse, Target::New, None);
        self.network.inject(Fault::Reset, Target::Open, None);
        let others = self.fill_gateway()?;
        self.network.lift(refusing);
        sleep(REFUSAL);
        drop(others);
        self.wait_for("\"resumed\"", CUTS + 2)?;
        sleep(CALM);
        Ok(())
    }

    /// Occupies every connection that the gateway allows while the client is cut off: with silent connections, which the
    /// gateway keeps for its opening deadline of 5 s.
    fn fill_gateway(&mut self) -> Result<Vec<TcpStream>> {
        self.wait_for_metric("mainstay_connections", 0)?;
        let taken =
            (0..MAX_CONNECTIONS).map(|_| TcpStream::connect(self.listening)).collect::<io::Result<_>>()?;
        let _one_too_many = TcpStream::connect(self.listening)?;
        self.wait_for_metric(REFUSED, OURS_REFUSED)?;
        Ok(taken)
    }

    fn wait_for_metric(&mut self, name: &str, value: u64) -> Result<()> {
        let admin = self.admin;
        let is_there = |_: &Path| metrics::read(admin).is_ok_and(|text| metric(&text, name) == value);
        self.gateway
            .wait_until(LIMIT, is_there)
            .map_err(|error| format!("{name} is not {value}: {error}").into())
    }

    /// Waits for everything under way, then ends all processes in order.
    fn close(mut self) -> Result<(Verdict, String)> {
        self.client.signal("USR1")?; // no further messages from here on
        sleep(CALM);
        let log = fs::read_to_string(client_log(&self.folder))?;
        let accepted = log.lines().filter(|line| line.starts_with("{\"accepted\"")).count();
        self.wait_for(&format!("{{\"received\":{{\"re\":{accepted},"), 1)?;
        if let Some(mut backend) = self.backend.take() {
            backend.signal("TERM")?; // nor from the backend
            backend.wait_success(LIMIT)?;
        }
        let record = fs::read_to_string(record(&self.folder))?;
        let last = record.lines().rev().find_map(|line| line.split_once("\"n\":")).map_or("", |(_, n)| n);
        self.wait_for(&format!("{{\"received\":{{\"n\":{},", last.trim_end_matches('}')), 1)?;
        let metrics = metrics::read(self.admin)?;
        self.client.signal("TERM")?;
        self.client.wait_success(LIMIT)?;
        self.gateway.signal("TERM")?;
        self.gateway.wait_success(LIMIT)?;
        Ok((Verdict::of(&record, &fs::read_to_string(client_log(&self.folder))?)?, metrics))
    }

    /// Waits until the client has written `count` lines with this text.
    fn wait_for(&mut self, text: &str, count: usize) -> Result<()> {
        let written = |log: &Path| {
            let log = fs::read_to_string(log).unwrap_or_default();
            log.lines().filter(|line| line.contains(text)).count() >= count
        };
        self.client
            .wait_until(LIMIT, written)
            .map_err(|error| format!("waiting for {count} x {text}: {error}").into())
    }
}

fn record(folder: &Path) -> PathBuf {
    folder.join("record.jsonl")
}

fn client_log(folder: &Path) -> PathBuf {
    folder.join("client.jsonl")
}

/// Starts the backend. Returns it once it listens, and its port.
fn start_backend(folder: &Path, port: &str) -> Result<(Background, String)> {
    let mut node = Command::new("node");
    node.args(["proof/outage/backend.mjs", port]).arg(record(folder)).arg(BACKEND_RATE);
    let mut backend = Background::start(&mut node, folder.join("backend.log"))?;
    let port = backend.announced(LIMIT, "listening ")?;
    Ok((backend, port))
}

/// A message of one generation of the backend: of one process between two kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Sent {
    Answer { generation: u64, id: u64 },
    Number { generation: u64, n: u64 },
}

impl Sent {
    fn generation(self) -> u64 {
        match self {
            Self::Answer { generation, .. } | Self::Number { generation, .. } => generation,
        }
    }
}

/// The comparison of the record and the client's list.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    sent: u64,
    lost_up: u64,
    /// Recorded again by a later process, but unconfirmed when the earlier one was killed.
    repeated_up: u64,
    /// Recorded again without that excuse.
    wrongly_repeated_up: u64,
    disordered_up: u64,
    answered: u64,
    received: u64,
    lost_down: u64,
    /// Written to the record by a killed process that never sent them: the gateway never had them.
    cut_short: u64,
    repeated_down: u64,
    disordered_down: u64,
    /// The client's events.
    detached: u64,
    resumed: u64,
    gaps: u64,
    replaced: u64,
    /// Messages that gaps reported as unknown.
    unknown: u64,
}

impl Verdict {
    fn of(record: &str, client: &str) -> Result<Self> {
        let (record, client) = (json_lines(record)?, json_lines(client)?);
        let mut verdict = Self::default();
        verdict.judge_up(&record, &client);
        verdict.judge_down(&record, &client);
        let events = |name: &str| client.iter().filter(|line| line["event"] == name).count() as u64;
        (verdict.detached, verdict.resumed, verdict.gaps) =
            (events("detached"), events("resumed"), events("gap"));
        verdict.replaced = events("replaced");
        verdict.unknown = client.iter().filter_map(|line| line["unknown"].as_u64()).sum();
        Ok(verdict)
    }

    fn judge_up(&mut self, record: &[Value], client: &[Value]) {
        let arrived: Vec<(u64, u64)> =
            record.iter().filter_map(|line| Some((line["gen"].as_u64()?, line["id"].as_u64()?))).collect();
        let mut places: HashMap<u64, usize> = HashMap::new();
        for (place, (generation, id)) in arrived.iter().enumerate() {
            let follows = place.checked_sub(1).and_then(|before| arrived.get(before));
            self.disordered_up +=
                u64::from(follows.is_some_and(|before| before.0 == *generation && before.1 >= *id));
            let Some(earlier) = places.insert(*id, place) else { continue };
            let (first, rest) = (arrived[earlier].0, &arrived[earlier..]);
            let unconfirmed = rest.iter().take_while(|(generation, _)| *generation == first).count();
            let excused = first < *generation && unconfirmed <= UNCONFIRMED;
            *(if excused { &mut self.repeated_up } else { &mut self.wrongly_repeated_up }) += 1;
        }
        let accepted = client.iter().filter_map(|line| line["accepted"].as_u64());
        for id in accepted {
            self.sent += 1;
            self.lost_up += u64::from(!places.contains_key(&id));
        }
    }

    fn judge_down(&mut self, record: &[Value], client: &[Value]) {
        let sent: Vec<Sent> = record.iter().filter_map(|line| as_sent(line, "id")).collect();
        let places: HashMap<Sent, usize> =
            sent.iter().enumerate().map(|(place, sent)| (*sent, place)).collect();
        let received = client.iter().filter_map(|line| as_sent(&line["received"], "re"));
        let (mut seen, mut answered) = (HashSet::new(), HashSet::new());
        // The last message that came from each process: the kill cut off what is missing after it.
        let mut ends: HashMap<u64, Option<usize>> = HashMap::new();
        let mut newest = None;
        for message in received {
            self.received += 1;
            let place = places.get(&message).copied();
            let again = !seen.insert(message);
            self.repeated_down += u64::from(again);
            self.disordered_down += u64::from(!again && place <= newest);
            newest = newest.max(place);
            let end = ends.entry(message.generation()).or_default();
            *end = (*end).max(place);
            if let Sent::Answer { id, .. } = message {
                answered.insert(id);
            }
        }
        self.answered = answered.len() as u64;
        let last_generation = sent.iter().map(|sent| sent.generation()).max();
        for (place, message) in sent.iter().enumerate().filter(|(_, message)| !seen.contains(message)) {
            let behind = ends.get(&message.generation()).is_none_or(|end| Some(place) > *end);
            let killed = Some(message.generation()) != last_generation;
            *(if behind && killed { &mut self.cut_short } else { &mut self.lost_down }) += 1;
        }
    }

    /// Each figure with its expected value.
    fn rows(&self, metrics: &str) -> Vec<Row> {
        use Expected::{Anything, AtLeast, Exactly};
        let row = |name, count, expected| Row { name, count, expected, compared: "" };
        let metric = |name: &str| metric(metrics, name);
        let resumed = metric("mainstay_attaches_total{outcome=\"resumed\"}");
        let refused = metric(REFUSED).saturating_sub(OURS_REFUSED);
        let dead = |evidence| {
            metric(&format!("mainstay_dead_peers_total{{leg=\"client\",evidence=\"{evidence}\"}}"))
        };
        // A frozen client's kernel accepts bytes until its buffers are full: the result depends on that.
        let silent = dead("silent") + dead("frozen") + dead("stalled");
        let links_lost = metric("mainstay_links_lost_total");
        vec![
            row("up: sent", self.sent, AtLeast(1)).beside("sent"),
            row("up: answered", self.answered, Exactly(self.sent)).beside("answered"),
            row("up: lost", self.lost_up, Exactly(0)).beside("lost_up"),
            row("up: twice, unconfirmed at a kill", self.repeated_up, Anything),
            row("up: twice otherwise", self.wrongly_repeated_up, Exactly(0)).beside("duplicates_up"),
            row("up: out of order", self.disordered_up, Exactly(0)),
            row("down: received, answers included", self.received, AtLeast(self.sent)),
            row("down: lost", self.lost_down, Exactly(0)).beside("gaps_down"),
            row("down: last words of a killed backend", self.cut_short, Anything),
            row("down: twice", self.repeated_down, Exactly(0)).beside("duplicates_down"),
            row("down: out of order", self.disordered_down, Exactly(0)),
            row("client: lost connections reported", self.detached, AtLeast(CLIENT_LOSSES))
                .beside("reconnects"),
            row("client: resumed", self.resumed, AtLeast(CLIENT_LOSSES)),
            row("client: gaps reported", self.gaps, Exactly(0)),
            row("client: replaced backends reported", self.replaced, Exactly(KILLS as u64)),
            row("gateway: resumed attaches", resumed, AtLeast(CLIENT_LOSSES)),
            row("gateway: refused its client for lack of room", refused, AtLeast(1)),
            row("gateway: silent clients found", silent, AtLeast(1)),
            row("gateway: lost backend connections", links_lost, AtLeast(KILLS as u64)),
        ]
    }
}

impl Verdict {
    /// The expected values if a lost backend renews the session: nothing twice, and for each kill one gap that names what
    /// may be lost.
    fn rows_renewed(&self) -> Vec<Row> {
        use Expected::{Anything, AtLeast, AtMost, Exactly};
        let row = |name, count, expected| Row { name, count, expected, compared: "" };
        vec![
            row("up: sent", self.sent, AtLeast(1)),
            row("up: unknown, as the client learned", self.unknown, AtMost((KILLS * UNCONFIRMED) as u64)),
            row("up: lost", self.lost_up, AtMost(self.unknown)),
            row("up: twice", self.repeated_up + self.wrongly_repeated_up, Exactly(0)),
            row("up: out of order", self.disordered_up, Exactly(0)),
            row("down: lost", self.lost_down, Exactly(0)),
            row("down: last words of a killed backend", self.cut_short, Anything),
            row("down: twice", self.repeated_down, Exactly(0)),
            row("down: out of order", self.disordered_down, Exactly(0)),
            row("client: gaps reported", self.gaps, Exactly(KILLS as u64)),
            row("client: replaced backends reported", self.replaced, Exactly(0)),
        ]
    }
}

fn json_lines(text: &str) -> Result<Vec<Value>> {
    let parse = |line| serde_json::from_str(line).map_err(|error| format!("{line}: {error}").into());
    text.lines().map(parse).collect()
}

/// An answer under the name `answer`, or a number.
fn as_sent(line: &Value, answer: &str) -> Option<Sent> {
    let generation = line["gen"].as_u64()?;
    let number = line["n"].as_u64().map(|n| Sent::Number { generation, n });
    number.or_else(|| line[answer].as_u64().map(|id| Sent::Answer { generation, id }))
}

struct Row {
    name: &'static str,
    count: u64,
    expected: Expected,
    /// The comparison's field for the same figure, if it has one.
    compared: &'static str,
}

enum Expected {
    Anything,
    AtLeast(u64),
    AtMost(u64),
    Exactly(u64),
}

impl Row {
    fn beside(self, compared: &'static str) -> Self {
        Self { compared, ..self }
    }

    /// The expectations that failed.
    fn failure(&self) -> Option<String> {
        let (name, count) = (self.name, self.count);
        match self.expected {
            Expected::AtLeast(least) if count < least => {
                Some(format!("{name}: {count}, not {least} or more"))
            }
            Expected::AtMost(most) if count > most => Some(format!("{name}: {count}, not {most} or less")),
            Expected::Exactly(exact) if count != exact => Some(format!("{name}: {count}, not {exact}")),
            _ => None,
        }
    }
}

/// Prints a table with the comparison beside it. Returns the failures.
fn print(rows: &[Row], comparison: &Value) -> Vec<String> {
    println!("{:40} {:>8} {:>20}", "", "mainstay", "@fastify/http-proxy");
    for row in rows {
        let compared = comparison[row.compared].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        let mark = if row.failure().is_some() { "  FAILED" } else { "" };
        println!("{:40} {:>8} {compared:>20}{mark}", row.name, row.count);
    }
    if !comparison.is_null() {
        println!("(@fastify/http-proxy with wsReconnect: ten seconds, and the kills alone)");
    }
    rows.iter().filter_map(Row::failure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(record: &[&str], client: &[&str]) -> Verdict {
        Verdict::of(&record.join("\n"), &client.join("\n")).unwrap()
    }

    /// One process received messages 1 to `count` and was killed; the next one received `again`.
    fn after_a_kill(count: u64, again: u64) -> Verdict {
        let line = |generation: u64, id: u64| format!("{{\"gen\":{generation},\"id\":{id}}}");
        let record: Vec<_> = (1..=count).map(|id| line(1, id)).chain([line(2, again)]).collect();
        Verdict::of(&record.join("\n"), "").unwrap()
    }

    #[test]
    fn what_the_backend_never_saw_is_lost() {
        let seen = r#"{"gen":1,"id":1}"#;
        let verdict = verdict(&[seen], &[r#"{"accepted":1}"#, r#"{"accepted":2}"#]);
        assert_eq!((verdict.sent, verdict.lost_up), (2, 1));
    }

    #[test]
    fn only_the_last_64_before_a_kill_may_be_repeated() {
        assert_eq!((after_a_kill(100, 37).repeated_up, after_a_kill(100, 37).wrongly_repeated_up), (1, 0));
        assert_eq!((after_a_kill(100, 36).repeated_up, after_a_kill(100, 36).wrongly_repeated_up), (0, 1));
    }

    #[test]
    fn nothing_may_be_repeated_without_a_kill() {
        let line = r#"{"gen":1,"id":1}"#;
        let verdict = verdict(&[line, line], &[]);
        assert_eq!((verdict.wrongly_repeated_up, verdict.disordered_up), (1, 1));
    }

    #[test]
    fn a_number_that_was_skipped_is_lost_and_a_killed_process_is_cut_short() {
        let record = [r#"{"gen":1,"n":1}"#, r#"{"gen":1,"n":2}"#, r#"{"gen":1,"n":3}"#, r#"{"gen":2,"n":4}"#];
        let skipped = [r#"{"received":{"n":1,"gen":1}}"#, r#"{"received":{"n":3,"gen":1}}"#];
        let verdict_of_skipped = verdict(&record, &skipped);
        assert_eq!((verdict_of_skipped.lost_down, verdict_of_skipped.cut_short), (2, 0)); // the last process ended in order
        let short = [r#"{"received":{"n":1,"gen":1}}"#, r#"{"received":{"n":4,"gen":2}}"#];
        let verdict_of_short = verdict(&record, &short);
        assert_eq!((verdict_of_short.lost_down, verdict_of_short.cut_short), (0, 2));
    }

    #[test]
    fn twice_and_out_of_order_are_told_apart() {
        let record = [r#"{"gen":1,"id":7}"#, r#"{"gen":1,"n":1}"#];
        let (answer, number) = (r#"{"received":{"re":7,"gen":1}}"#, r#"{"received":{"n":1,"gen":1}}"#);
        let twice = verdict(&record, &[answer, answer, number]);
        assert_eq!((twice.repeated_down, twice.disordered_down, twice.answered), (1, 0, 1));
        let swapped = verdict(&record, &[number, answer]);
        assert_eq!((swapped.repeated_down, swapped.disordered_down, swapped.lost_down), (0, 1, 0));
    }
}
