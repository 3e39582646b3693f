//! Thousands of clients of several servers: all are cut at once, servers are replaced in turn, one server is restarted. The
//! same is played to Socket.IO with its Redis-streams adapter.
//!
//! Each attempt of a client goes to a server at random, as behind a load balancer; a file names the servers that take part.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::storm::{self, Verdict, field};
use super::{SCRATCH, machine, tied};
use crate::engines::{Brand, Program, Server};
use crate::run::Background;
use crate::{Result, install};

pub(super) const PEERS: &str = "benches/peers/node";
/// For anything that must happen sooner or later.
const LIMIT: Duration = Duration::from_secs(120);
/// After 90 s, not all of 2,000 clients of Socket.IO that were cut at once were back on a busy machine of two cores.
const MOST_OF_SOCKETIO: u32 = 300;
/// How long a server may take to start.
const START: Duration = Duration::from_secs(30);
/// Between two servers that are replaced.
const CALM: Duration = Duration::from_secs(5);

pub(super) struct Stage {
    pub(super) clients: u32,
    /// Between two messages of a client, in seconds.
    pub(super) every: f64,
    /// The least that shows that all of it works.
    pub(super) quick: bool,
}

/// Which server, and what it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ours; whether sessions may move.
    Mainstay {
        movable: bool,
    },
    /// Ours without an engine: sessions go through a file.
    WithFile,
    SocketIo,
}

/// One play: a column of a table. Values stand under names, and the names of the first column order the rows.
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) values: Vec<(&'static str, String)>,
}

/// What was done to all, and the columns.
pub(super) struct Table {
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    pub(super) columns: Vec<Column>,
}

impl Stage {
    /// All connections are cut at once, at one and at three servers.
    pub(super) fn cut(&self) -> Result<Table> {
        let ours = Kind::Mainstay { movable: false };
        Ok(Table {
            title: "Three nodes: all connections are cut",
            about: "`ss -K` resets all connections of all servers at once. Each attempt of a client goes to a server at random, as\n\
                    behind a load balancer, and the engine is Debian's Redis on the same machine. Socket.IO gets fewer clients: of\n\
                    2,000, not all were back after 90 s here. Whether another setup of it does better was not tried.",
            columns: self.columns(&[
                &|| self.play_cut("Mainstay, three nodes", ours, 3),
                &|| self.play_cut("Mainstay, one node", ours, 1),
                &|| self.for_socketio().play_cut("Socket.IO, three nodes", Kind::SocketIo, 3),
            ])?,
        })
    }

    /// Servers are replaced.
    pub(super) fn deploy(&self) -> Result<Table> {
        Ok(Table {
            title: "Three nodes are replaced in turn, and one node is restarted",
            about: "A new node is started, clients are led to it instead of an old one, the old one gets SIGTERM and ends; this three\n\
                    times. The node of the last column but one has no engine: it gets SIGTERM, and the next one starts at once with the\n\
                    same `--state-dir`; clients are led to that one, as to a listening socket that it inherits.",
            columns: self.columns(&[
                &|| self.play_deploy("Mainstay, movable sessions", Kind::Mainstay { movable: true }),
                &|| self.play_restart("Mainstay, one node with a file", Kind::WithFile),
                &|| self.for_socketio().play_deploy("Socket.IO", Kind::SocketIo),
            ])?,
        })
    }

    /// The same load for each client, but no more clients than come back at all.
    fn for_socketio(&self) -> Self {
        Self { clients: self.clients.min(MOST_OF_SOCKETIO), ..*self }
    }

    /// Plays all; for a smoke test without the last one, whose servers are others.
    fn columns(&self, plays: &[&dyn Fn() -> Result<Column>]) -> Result<Vec<Column>> {
        let count = plays.len() - usize::from(self.quick);
        if !self.quick {
            install::node_packages(PEERS)?;
        }
        plays.iter().take(count).map(|play| play()).collect()
    }

    fn play_cut(&self, title: &'static str, kind: Kind, servers: usize) -> Result<Column> {
        println!("--- {title}: {} clients are cut", self.clients);
        let mut running = Running::start(self, kind, servers)?;
        running.let_messages_pass(self);
        let from = running.costs()?;
        running.cut()?;
        let back = running.wait_attached(2)?;
        let to = running.costs()?;
        running.let_messages_pass(self);
        let seconds = |name: &str| format!("{:.2} s", back[name].as_f64().unwrap_or(0.0));
        let mut values =
            vec![("clients", self.clients.to_string()), ("all were back after", seconds("seconds"))];
        let continued = if kind == Kind::SocketIo { "recovered" } else { "resumed" };
        values.push(("sessions continued", field(&back, continued).to_string()));
        values.push(("sessions begun anew", field(&back, "fresh").to_string()));
        for (name, from, to) in [
            ("CPU of the servers meanwhile", from.servers, to.servers),
            ("CPU of the engine meanwhile", from.engine, to.engine),
        ] {
            values.push((name, format!("{:.2} s", to.saturating_sub(from).as_secs_f64())));
        }
        running.end(title, values)
    }

    fn play_deploy(&self, title: &'static str, kind: Kind) -> Result<Column> {
        println!("--- {title}: three servers of {} clients are replaced", self.clients);
        let mut running = Running::start(self, kind, 3)?;
        running.let_messages_pass(self);
        for _ in 0..3 {
            let server = running.start_server()?;
            let mut old = running.servers.remove(0);
            running.servers.push(server);
            running.lead()?;
            old.process.signal("TERM")?;
            old.process.wait_success(LIMIT)?;
            sleep(if self.quick { CALM / 5 } else { CALM });
        }
        running.let_messages_pass(self);
        running.end(title, vec![("clients", self.clients.to_string())])
    }

    fn play_restart(&self, title: &'static str, kind: Kind) -> Result<Column> {
        println!("--- {title}: the server of {} clients is restarted", self.clients);
        let mut running = Running::start(self, kind, 1)?;
        running.let_messages_pass(self);
        let mut old = running.servers.remove(0);
        old.process.signal("TERM")?;
        let server = running.start_server()?;
        running.servers.push(server);
        running.lead()?;
        old.process.wait_success(LIMIT)?;
        running.wait_attached(2)?;
        running.let_messages_pass(self);
        running.end(title, vec![("clients", self.clients.to_string())])
    }
}

struct Node {
    process: Background,
    address: String,
}

/// CPU time so far.
struct Costs {
    servers: Duration,
    engine: Duration,
}

/// All processes of a play.
struct Running {
    folder: PathBuf,
    kind: Kind,
    engine: Option<Server>,
    servers: Vec<Node>,
    client: Background,
    started: u32,
}

impl Running {
    fn start(stage: &Stage, kind: Kind, servers: usize) -> Result<Self> {
        install::socket_statistics()?;
        let folder = std::env::current_dir()?.join(SCRATCH).join("nodes");
        let _ = fs::remove_dir_all(&folder); // the record of an earlier run must not be taken for this one's
        fs::create_dir_all(folder.join("state"))?;
        let engine = match kind {
            Kind::WithFile => None,
            _ => Some(Program::install(Brand::Redis)?.start(&folder, &[])?),
        };
        let client = Background::start_quietly(&mut Command::new("true"), folder.join("none.log"))?;
        let mut running = Self { folder, kind, engine, servers: Vec::new(), client, started: 0 };
        for _ in 0..servers {
            let server = running.start_server()?;
            running.servers.push(server);
        }
        running.lead()?;
        running.client = running.start_clients(stage)?;
        running.wait_attached(1)?;
        Ok(running)
    }

    fn start_server(&mut self) -> Result<Node> {
        self.started += 1;
        let mut server = match self.kind {
            Kind::SocketIo => {
                let mut server = tied("node");
                server.arg(format!("{PEERS}/socketio.mjs"));
                server
            }
            _ => tied(storm::SERVER),
        };
        server.args(["--listen", "127.0.0.1:0", "--record"]).arg(self.folder.join("record"));
        let url = self.engine.as_ref().map(Server::url).unwrap_or_default();
        match self.kind {
            Kind::SocketIo => drop(server.args(["--redis", &url])),
            Kind::Mainstay { movable } => {
                server.args(["--cluster", &url]).args(movable.then_some("--movable"));
            }
            Kind::WithFile => drop(server.args(["--movable", "--state-dir"]).arg(self.folder.join("state"))),
        }
        let log = self.folder.join(format!("server-{}.log", self.started));
        let mut process = Background::start_quietly(&mut server, log)?;
        let address = process.announced(START, "listening on ws://")?;
        Ok(Node { process, address })
    }

    fn start_clients(&self, stage: &Stage) -> Result<Background> {
        let (mut clients, list) = match self.kind {
            Kind::SocketIo => {
                let mut clients = tied("node");
                clients.arg(format!("{PEERS}/socketio-clients.mjs"));
                (clients, "--list")
            }
            _ => (tied(storm::CLIENT), "--fates"),
        };
        clients.arg("--nodes").arg(self.folder.join("nodes")).arg(list).arg(self.folder.join("list"));
        clients.args(["--clients", &stage.clients.to_string(), "--every", &stage.every.to_string()]);
        Background::start_quietly(&mut clients, self.folder.join("client.log"))
    }

    /// Leads new connections to the present servers.
    fn lead(&self) -> Result<()> {
        let addresses: Vec<&str> = self.servers.iter().map(|server| server.address.as_str()).collect();
        let unfinished = self.folder.join("nodes.new");
        fs::write(&unfinished, addresses.join(" "))?;
        Ok(fs::rename(unfinished, self.folder.join("nodes"))?)
    }

    fn cut(&self) -> Result<()> {
        let ends: Vec<&Background> =
            self.servers.iter().map(|server| &server.process).chain([&self.client]).collect();
        let addresses: Vec<&str> = self.servers.iter().map(|server| server.address.as_str()).collect();
        storm::cut(&addresses, &ends)
    }

    fn wait_attached(&mut self, count: usize) -> Result<Value> {
        storm::wait_attached(&mut self.client, count)
    }

    /// Waits until every client has sent, and has received what it sent.
    fn let_messages_pass(&self, stage: &Stage) {
        sleep(Duration::from_secs_f64(1.5 * stage.every) + Duration::from_secs(1));
    }

    fn costs(&self) -> Result<Costs> {
        let servers: Vec<u32> = self.servers.iter().map(|server| server.process.id()).collect();
        let engine: Vec<u32> = self.engine.iter().map(Server::id).collect();
        Ok(Costs { servers: machine::cpu(&servers)?, engine: machine::cpu(&engine)? })
    }

    /// Ends the clients, and compares what they list with what the servers recorded.
    fn end(mut self, title: &'static str, mut values: Vec<(&'static str, String)>) -> Result<Column> {
        let started = Instant::now();
        self.client.signal("TERM")?;
        self.client.wait_success(LIMIT)?;
        for mut server in self.servers.drain(..) {
            server.process.signal("TERM")?; // Socket.IO's writes its record
            server.process.wait_success(LIMIT)?;
        }
        let log = fs::read_to_string(self.folder.join("client.log"))?;
        let summary: Value = serde_json::from_str(log.lines().last().unwrap_or_default())?;
        let (record, list) =
            (fs::read_to_string(self.folder.join("record"))?, fs::read_to_string(self.folder.join("list"))?);
        let (ours, counts) = match self.kind {
            Kind::SocketIo => (false, counts_of_socketio(&record, &list, &summary)),
            _ => (true, counts_of_ours(&Verdict::of(&record, &list), &summary)),
        };
        let within = |percent: &str| format!("{} ms", field(&summary, &format!("interrupted_{percent}")));
        values.push((
            "connections lost before another was there",
            field(&summary, "interruptions").to_string(),
        ));
        values.push(("half of those were without one for at most", within("50")));
        values.push(("99 % of those for at most", within("99")));
        values.extend(counts.iter().map(|(name, count, _)| (*name, count.to_string())));
        println!("    ended in {:.1} s", started.elapsed().as_secs_f64());
        values.iter().for_each(|(name, value)| println!("    {name:48} {value:>9}"));
        let wrong: Vec<String> = counts
            .iter()
            .filter(|(_, count, must)| ours && must.is_some_and(|must| must != *count))
            .map(|(name, count, _)| format!("{name}: {count}"))
            .collect();
        if wrong.is_empty() { Ok(Column { title, values }) } else { Err(wrong.join("; ").into()) }
    }
}

/// A count, and what it must be at ours.
type Count = (&'static str, u64, Option<u64>);

fn counts(sent: u64, lost: [u64; 2], twice: [u64; 2]) -> Vec<Count> {
    vec![
        ("messages sent", sent, None),
        ("messages that the servers never received", lost[0], Some(0)),
        ("messages that did not come back", lost[1], Some(0)),
        ("received by the servers twice", twice[0], Some(0)),
        ("came back twice or out of order", twice[1], Some(0)),
    ]
}

fn counts_of_ours(verdict: &Verdict, summary: &Value) -> Vec<Count> {
    let jumps = field(summary, "jumps") + field(summary, "last_message_not_back");
    let lost = verdict.told - verdict.delivered_and_seen;
    let mut counts =
        counts(field(summary, "sent"), [lost, jumps], [verdict.repeated, field(summary, "repeated")]);
    counts.insert(1, ("gaps reported to clients", field(summary, "gaps"), Some(0)));
    counts
}

/// The record has lines `client number`, the list `client number whether-it-came-back`.
fn counts_of_socketio(record: &str, list: &str, summary: &Value) -> Vec<Count> {
    let mut received: HashMap<&str, u64> = HashMap::new();
    record.lines().for_each(|line| *received.entry(line).or_default() += 1);
    let (mut never, mut not_back) = (0, 0);
    for line in list.lines() {
        let (message, came_back) = line.rsplit_once(' ').unwrap_or((line, ""));
        never += u64::from(!received.contains_key(message));
        not_back += u64::from(came_back != "true");
    }
    let twice = received.values().map(|times| times - 1).sum();
    let back_twice = field(summary, "twice") + field(summary, "disordered");
    counts(field(summary, "sent"), [never, not_back], [twice, back_twice])
}
