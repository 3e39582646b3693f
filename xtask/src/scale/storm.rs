//! Thousands of clients that lose their connections at once, in two ways.
//!
//! The network fails: `ss -K` resets every connection of the server, which lives. All sessions resume. Or the
//! server is killed and started again: its memory and its sessions are gone, and every client learns the outcome
//! of each of its messages. The judge compares the server's record with the clients' list of outcomes.
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{SCRATCH, machine, tied};
use crate::run::Background;
use crate::{Result, install};

pub(super) const SERVER: &str = "target/release/storm_server";
pub(super) const CLIENT: &str = "target/release/storm_client";
const NETWORK: &str = "The network fails";
const SERVER_DIES: &str = "The server is killed";
/// How long the killed server is away.
const AWAY: Duration = Duration::from_secs(2);
/// For anything that must happen sooner or later: the backoff's cap is 30 s.
const LIMIT: Duration = Duration::from_secs(90);

pub(super) struct Stage {
    pub(super) clients: u32,
    /// Between two messages of a client, in seconds.
    pub(super) every: f64,
}

/// One storm.
pub(super) struct Found {
    pub(super) title: &'static str,
    /// What the clients report about their return.
    pub(super) back: Value,
    pub(super) cost: Cost,
    pub(super) rows: Vec<Row>,
}

impl Found {
    /// What happened, for the page.
    pub(super) fn about(&self) -> String {
        let what = match self.title {
            NETWORK => "All connections are cut at once (`ss -K`: both ends see a reset); the server lives."
                .to_owned(),
            _ => format!("SIGKILL; the server is started again after {AWAY:?}, with nothing in its memory."),
        };
        format!(
            "{what} Clients are `mainstay::Client` with its defaults, all in one process,\n\
             and send a numbered message every few seconds, which the server must return. The server appends to a file\n\
             each message that it receives; that record, over both processes, is compared with what the clients learned."
        )
    }
}

/// The CPU time of both ends from the loss (or the server's restart) until all clients were back, and how long that was.
pub(super) struct Cost {
    pub(super) took: Duration,
    pub(super) server: Duration,
    pub(super) clients: Duration,
}

/// A count, and its required value if it has one.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) count: u64,
    pub(super) must: Option<u64>,
}

impl Stage {
    /// Cuts all connections; the server lives.
    pub(super) fn network_fails(&self) -> Result<Found> {
        println!("--- the connections of {} clients are cut", self.clients);
        install::socket_statistics()?;
        let mut running = Running::start(self)?;
        running.let_messages_pass(self);
        cut(&[&running.address], &[&running.server, &running.client])?;
        let (back, cost) = running.wait_back()?;
        running.let_messages_pass(self);
        let resumed = ("sessions resumed", field(&back, "resumed"), Some(field(&back, "lost")));
        let fresh = ("sessions begun anew", field(&back, "fresh"), Some(0));
        let rows = running.end(&[resumed, fresh], |name| match name {
            "gaps" | "lost" | "unknown" => Some(0),
            _ => None,
        })?;
        found(NETWORK, back, cost, rows)
    }

    /// Kills the server, and starts it again at the same address.
    pub(super) fn server_dies(&self) -> Result<Found> {
        println!("--- the server of {} clients is killed", self.clients);
        let mut running = Running::start(self)?;
        running.let_messages_pass(self);
        running.server.signal("KILL")?;
        sleep(AWAY);
        running.server = start_server(&running.folder, &running.address)?.0;
        let (back, cost) = running.wait_back()?;
        running.let_messages_pass(self);
        let clients = Some(u64::from(self.clients));
        let fresh = ("sessions begun anew", field(&back, "fresh"), clients);
        let rows = running.end(&[fresh], |name| match name {
            "gaps" | "clients_told_of_a_gap" => clients,
            _ => None,
        })?;
        found(SERVER_DIES, back, cost, rows)
    }
}

fn found(title: &'static str, back: Value, cost: Cost, rows: Vec<Row>) -> Result<Found> {
    let [server, clients, took] = [cost.server, cost.clients, cost.took].map(|time| time.as_secs_f64());
    println!(
        "    back: {back}\n    in {took:.2} s, CPU of the server {server:.2} s, of the clients {clients:.2} s"
    );
    rows.iter().for_each(|row| println!("    {:44} {:>9}", row.name, row.count));
    let wrong = rows.iter().filter_map(|row| {
        let must = row.must.filter(|must| *must != row.count)?;
        Some(format!("{}: {}, not {must}", row.name, row.count))
    });
    let wrong: Vec<_> = wrong.collect();
    if wrong.is_empty() { Ok(Found { title, back, cost, rows }) } else { Err(wrong.join("; ").into()) }
}

/// The server and its clients.
struct Running {
    folder: PathBuf,
    address: String,
    server: Background,
    client: Background,
}

impl Running {
    fn start(stage: &Stage) -> Result<Self> {
        let folder = std::env::current_dir()?.join(SCRATCH).join("storm");
        let _ = fs::remove_dir_all(&folder); // the record of an earlier run must not be taken for this one's
        fs::create_dir_all(&folder)?;
        let (server, address) = start_server(&folder, "127.0.0.1:0")?;
        let mut client = tied(CLIENT);
        client.args(["--url", &format!("ws://{address}/"), "--clients", &stage.clients.to_string()]);
        client.args(["--every", &stage.every.to_string(), "--fates"]).arg(folder.join("fates"));
        let client = Background::start_quietly(&mut client, folder.join("client.log"))?;
        let mut running = Self { folder, address, server, client };
        wait_attached(&mut running.client, 1)?;
        Ok(running)
    }

    /// Waits until every client has sent, and has received what it sent.
    fn let_messages_pass(&self, stage: &Stage) {
        sleep(Duration::from_secs_f64(1.5 * stage.every) + Duration::from_secs(1));
    }

    /// Waits until all are back after the storm.
    fn wait_back(&mut self) -> Result<(Value, Cost)> {
        let (server, client) = ([self.server.id()], [self.client.id()]);
        let (started, from) = (Instant::now(), (machine::cpu(&server)?, machine::cpu(&client)?));
        let back = wait_attached(&mut self.client, 2)?;
        let cost = Cost {
            took: started.elapsed(),
            server: machine::cpu(&server)?.saturating_sub(from.0),
            clients: machine::cpu(&client)?.saturating_sub(from.1),
        };
        Ok((back, cost))
    }

    /// Ends all processes, and compares the outcomes at the clients with what the servers had received.
    fn end(
        mut self,
        first: &[(&'static str, u64, Option<u64>)],
        must: impl Fn(&str) -> Option<u64>,
    ) -> Result<Vec<Row>> {
        self.client.signal("TERM")?;
        self.client.wait_success(LIMIT)?;
        let log = fs::read_to_string(self.folder.join("client.log"))?;
        let summary: Value = serde_json::from_str(log.lines().last().unwrap_or_default())?;
        let row = |name, count, must| Row { name, count, must };
        let told = |name, key: &str| row(name, field(&summary, key), must(key));
        let (record, fates) =
            (fs::read_to_string(record(&self.folder))?, fs::read_to_string(self.folder.join("fates"))?);
        let verdict = Verdict::of(&record, &fates);
        let sent = field(&summary, "sent");
        let mut rows: Vec<Row> = first.iter().map(|(name, count, must)| row(name, *count, *must)).collect();
        rows.extend([
            told("gaps reported", "gaps"),
            told("clients that got a gap", "clients_told_of_a_gap"),
            row("messages sent", sent, None),
            row("messages whose outcome was reported", verdict.told, Some(sent)),
            told("reported: delivered", "delivered"),
            told("reported: not delivered", "lost"),
            told("reported: unknown", "unknown"),
            row("unknown, but received by the server", verdict.unknown_seen, None),
            row("reported as delivered, but not at the server", verdict.not_seen, Some(0)),
            row("reported as not delivered, but at the server", verdict.seen_all_the_same, Some(0)),
            row("received by the server twice", verdict.repeated, Some(0)),
            row("received by the server out of order", verdict.disordered, Some(0)),
            row("received by the server, but never sent", verdict.invented, Some(0)),
            row("came back twice or out of order", field(&summary, "repeated"), Some(0)),
            row("did not come back, without a gap", field(&summary, "jumps_without_a_gap"), Some(0)),
            row(
                "clients whose last message did not come back",
                field(&summary, "last_message_not_back"),
                Some(0),
            ),
        ]);
        Ok(rows)
    }
}

/// Starts the server. Returns it once it listens, and its address.
fn start_server(folder: &Path, listen: &str) -> Result<(Background, String)> {
    let mut server = tied(SERVER);
    server.args(["--listen", listen, "--record"]).arg(record(folder));
    let mut server = Background::start_quietly(&mut server, folder.join("server.log"))?;
    let address = server.announced(LIMIT, "listening on ws://")?;
    Ok((server, address))
}

/// Waits until all clients are attached for the `count`th time. Returns their reports.
pub(super) fn wait_attached(client: &mut Background, count: usize) -> Result<Value> {
    let mut line = None;
    client.wait_until(LIMIT, |log| {
        let log = fs::read_to_string(log).unwrap_or_default();
        line = log.lines().filter(|line| line.starts_with("{\"attached\"")).nth(count - 1).map(str::to_owned);
        line.is_some()
    })?;
    Ok(serde_json::from_str(&line.unwrap_or_default())?)
}

/// Ends every connection of the servers at `addresses`, at one moment for both ends: all are stopped while `ss` goes through
/// them.
pub(super) fn cut(addresses: &[&str], ends: &[&Background]) -> Result<()> {
    let ports = addresses
        .iter()
        .map(|address| format!("sport = :{}", address.rsplit(':').next().unwrap_or_default()));
    let mut cut = Command::new("ss");
    cut.args(["-K", "--tcp", "--numeric", "state", "established"]);
    cut.arg(ports.collect::<Vec<_>>().join(" or "));
    ends.iter().try_for_each(|end| end.signal("STOP"))?;
    let status = cut.stdin(Stdio::null()).stdout(Stdio::null()).status();
    ends.iter().try_for_each(|end| end.signal("CONT"))?;
    let status = status?;
    if status.success() { Ok(()) } else { Err(format!("`ss -K`: {status}; it needs root").into()) }
}

fn record(folder: &Path) -> PathBuf {
    folder.join("record")
}

pub(super) fn field(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or(u64::MAX)
}

/// Compares the record with the outcomes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) told: u64,
    pub(super) delivered_and_seen: u64,
    unknown_seen: u64,
    not_seen: u64,
    seen_all_the_same: u64,
    pub(super) repeated: u64,
    disordered: u64,
    invented: u64,
}

impl Verdict {
    /// Reads lines `client number` of the record, and lines `client number outcome` of the outcomes.
    pub(super) fn of(record: &str, fates: &str) -> Self {
        let mut verdict = Self::default();
        let (mut seen, mut last) = (HashMap::new(), HashMap::new());
        for line in record.lines() {
            let (client, number) = line.split_once(' ').unwrap_or((line, ""));
            let number: u64 = number.parse().unwrap_or(0);
            let times: &mut u64 = seen.entry((client, number)).or_default();
            *times += 1;
            let newest = last.entry(client).or_insert(0);
            verdict.repeated += u64::from(*times > 1);
            verdict.disordered += u64::from(*times == 1 && number < *newest);
            *newest = number.max(*newest);
        }
        for line in fates.lines() {
            let mut words = line.split(' ');
            let (client, number, fate) = (words.next(), words.next(), words.next());
            let key = (client.unwrap_or_default(), number.and_then(|n| n.parse().ok()).unwrap_or(0));
            let was_seen = seen.remove(&key).is_some();
            verdict.told += 1;
            match (fate, was_seen) {
                (Some("delivered"), true) => verdict.delivered_and_seen += 1,
                (Some("delivered"), false) => verdict.not_seen += 1,
                (Some("lost"), true) => verdict.seen_all_the_same += 1,
                (Some("unknown"), true) => verdict.unknown_seen += 1,
                _ => {}
            }
        }
        verdict.invented = seen.len() as u64;
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fates_that_the_record_contradicts_are_found() {
        let record = "1 1\n1 2\n2 1\n1 2\n1 4\n1 3\n9 9\n";
        let fates = "1 1 delivered\n1 2 unknown\n1 3 lost\n1 4 delivered\n1 5 delivered\n2 1 delivered\n\
                     2 2 unknown\n";
        let expected = Verdict {
            told: 7,
            delivered_and_seen: 3,
            unknown_seen: 1,
            not_seen: 1,
            seen_all_the_same: 1,
            repeated: 1,
            disordered: 1,
            invented: 1,
        };
        assert_eq!(Verdict::of(record, fates), expected);
    }

    #[test]
    fn fates_that_the_record_bears_out_are_not() {
        let expected = Verdict { told: 3, delivered_and_seen: 1, ..Verdict::default() };
        assert_eq!(Verdict::of("1 1\n", "1 1 delivered\n1 2 lost\n1 3 unknown\n"), expected);
    }
}
