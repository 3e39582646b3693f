//! All processes of one round: engine, nodes, backend, balancer and clients, and what may be done to them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::verdict::Verdict;
use crate::Result;
use crate::metrics::{self, metric};
use crate::run::Background;

/// How long any wait may take.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// How often clients and nodes are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long the counts of all clients must stay as they are before they count as settled.
const CALM: Duration = Duration::from_millis(500);

/// What a round starts with.
pub(super) struct Setup<'a> {
    /// The name of its folder.
    pub(super) name: &'a str,
    pub(super) nodes: usize,
    /// Flags of every node beside its addresses and its backend.
    pub(super) flags: Vec<String>,
    pub(super) clients: u64,
    /// Seconds between two messages of a client, and between two messages of the backend to one.
    pub(super) every: f64,
    /// The folder of the programs.
    pub(super) programs: &'static str,
}

/// See the module.
pub(super) struct Stage {
    pub(super) folder: PathBuf,
    pub(super) nodes: Vec<Node>,
    pub(super) clients: u64,
    flags: Vec<String>,
    client: Background,
    balancer: Balancer,
    backend: Background,
    upstream: String,
    programs: &'static str,
    started: usize,
    /// The longest time from SIGTERM to the end of a node.
    pub(super) slowest_drain: Duration,
}

/// One `mainstay serve`.
pub(super) struct Node {
    pub(super) process: Background,
    pub(super) listening: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) log: PathBuf,
}

struct Balancer {
    _process: Background,
    control: SocketAddr,
}

/// What the clients count; see `cluster_client`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) attached: u64,
    pub(super) resumed: u64,
    pub(super) fresh: u64,
    pub(super) detached: u64,
    pub(super) sent: u64,
    pub(super) settled: u64,
    pub(super) ended: u64,
}

impl Stage {
    /// Starts everything, and waits until every client is attached.
    pub(super) fn set(setup: &Setup<'_>) -> Result<Self> {
        let folder = folder(setup.name)?;
        let mut node = Command::new("node");
        node.args(["proof/cluster/backend.mjs", "0"]).arg(folder.join("record"));
        node.arg(((setup.every * 1000.0) as u64).to_string());
        let mut backend = Background::start_quietly(&mut node, folder.join("backend.log"))?;
        let upstream = format!("ws://127.0.0.1:{}", backend.announced(LIMIT, "listening ")?);
        let balancer = Balancer::start(&folder, setup.programs)?;
        let mut nodes = Vec::new();
        for number in 1..=setup.nodes {
            nodes.push(Node::start(&folder, number, setup.programs, &upstream, &setup.flags)?);
        }
        nodes.iter_mut().try_for_each(Node::wait_ready)?;
        balancer.lead_to(&nodes)?;
        let client = balancer.start_clients(&folder, setup)?;
        let mut stage = Self {
            folder,
            nodes,
            clients: setup.clients,
            flags: setup.flags.clone(),
            client,
            balancer,
            backend,
            upstream,
            programs: setup.programs,
            started: setup.nodes,
            slowest_drain: Duration::ZERO,
        };
        stage.wait_attached()?;
        Ok(stage)
    }

    /// Waits until every client is attached, and stays so for a moment.
    pub(super) fn wait_attached(&mut self) -> Result<Status> {
        let (clients, mut calm) = (self.clients, (Status::default(), Instant::now()));
        self.wait_status("not all clients came back", |status| {
            let movements = Status { sent: 0, settled: 0, ended: 0, ..*status };
            if movements != calm.0 {
                calm = (movements, Instant::now());
            }
            status.attached == clients && calm.1.elapsed() > CALM
        })
    }

    fn wait_status(&mut self, failure: &str, mut is_right: impl FnMut(&Status) -> bool) -> Result<Status> {
        let started = Instant::now();
        loop {
            let status = Status::read(&self.folder.join("status")).unwrap_or_default();
            if is_right(&status) {
                return Ok(status);
            }
            self.client.check_running()?;
            self.backend.check_running()?;
            if started.elapsed() > LIMIT {
                return Err(format!("{failure} after {LIMIT:?}: {status:?}").into());
            }
            sleep(LOOK);
        }
    }

    /// Waits until the log of each present node has these words.
    pub(super) fn wait_line(&mut self, words: &str) -> Result<()> {
        let is_there = |log: &Path| fs::read_to_string(log).is_ok_and(|log| log.contains(words));
        self.nodes.iter_mut().try_for_each(|node| node.process.wait_until(LIMIT, is_there))
    }

    /// How many lines of the present nodes' logs have these words.
    pub(super) fn lines_of_nodes(&self, words: &str) -> Result<u64> {
        let mut count = 0;
        for node in &self.nodes {
            count +=
                fs::read_to_string(&node.log)?.lines().filter(|line| line.contains(words)).count() as u64;
        }
        Ok(count)
    }

    /// Ends `count` of the clients' connections, picked at random.
    pub(super) fn cut(&self, count: u64) -> Result<()> {
        self.balancer.command(&format!("cut {count}")).map(drop)
    }

    /// Cuts, and waits until every client is back.
    pub(super) fn cut_and_wait(&mut self, count: u64) -> Result<Status> {
        self.cut(count)?;
        self.wait_attached()
    }

    /// Takes the node at this place out of the balancer: new connections go to the others.
    pub(super) fn take_out(&mut self, place: usize) -> Result<Node> {
        let node = self.nodes.remove(place);
        self.balancer.lead_to(&self.nodes)?;
        Ok(node)
    }

    /// Puts a node into the balancer.
    pub(super) fn put_in(&mut self, node: Node) -> Result<()> {
        self.nodes.push(node);
        self.balancer.lead_to(&self.nodes)
    }

    /// Starts one more node. It is in the balancer once it is ready.
    pub(super) fn add_node(&mut self) -> Result<()> {
        self.started += 1;
        let mut node = Node::start(&self.folder, self.started, self.programs, &self.upstream, &self.flags)?;
        node.wait_ready()?;
        self.put_in(node)
    }

    /// Replaces the node at the first place, as a deploy does: the new one is ready before the old one is drained.
    pub(super) fn replace_first(&mut self) -> Result<()> {
        self.add_node()?;
        self.drain_first()?;
        self.wait_attached().map(drop)
    }

    /// Takes the node at the first place out of the balancer, and drains it.
    pub(super) fn drain_first(&mut self) -> Result<()> {
        let node = self.take_out(0)?;
        let started = Instant::now();
        node.drain()?;
        self.slowest_drain = self.slowest_drain.max(started.elapsed());
        Ok(())
    }

    /// Lets messages pass, waits for what is under way, ends all processes in order, and judges.
    pub(super) fn close(mut self) -> Result<Verdict> {
        self.wait_attached()?;
        self.client.signal("USR1")?; // the clients send nothing more
        self.wait_status("messages stay without an outcome", |status| status.settled == status.sent)?;
        self.backend.signal("USR1")?; // and the backend sends its last
        let clients = self.clients;
        self.wait_status("the last message did not come", |status| status.ended == clients)?;
        self.client.signal("TERM")?;
        self.client.wait_success(LIMIT)?;
        for node in self.nodes.drain(..) {
            node.drain()?;
        }
        self.backend.signal("TERM")?;
        self.backend.wait_success(LIMIT)?;
        let record = fs::read_to_string(self.folder.join("record"))?;
        Verdict::of(&record, &fs::read_to_string(self.folder.join("list"))?)
    }
}

impl Node {
    pub(super) fn start(
        folder: &Path,
        number: usize,
        programs: &str,
        upstream: &str,
        flags: &[String],
    ) -> Result<Self> {
        let log = folder.join(format!("node-{number}.log"));
        let mut serve = Command::new(Path::new(programs).join("mainstay"));
        serve.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", upstream]);
        serve.args(flags).env("MAINSTAY_LOG", "info").env("NO_COLOR", "1");
        let mut process = Background::start_quietly(&mut serve, log.clone())?;
        let listening = process.announced(LIMIT, "listening on ws://")?.parse()?;
        let admin = process.announced(LIMIT, "admin on http://")?.trim_end_matches(':').parse()?;
        Ok(Self { process, listening, admin, log })
    }

    /// Waits until /readyz returns 200, as a balancer does.
    pub(super) fn wait_ready(&mut self) -> Result<()> {
        let admin = self.admin;
        self.process.wait_until(LIMIT, |_| {
            metrics::get(admin, "/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
        })
    }

    /// SIGTERM, and its end in order.
    pub(super) fn drain(mut self) -> Result<()> {
        self.process.signal("TERM")?;
        self.process.wait_success(LIMIT)
    }

    /// A sample of its metrics.
    pub(super) fn metric(&self, name: &str) -> Result<u64> {
        Ok(metric(&metrics::read(self.admin)?, name))
    }
}

impl Balancer {
    fn start(folder: &Path, programs: &str) -> Result<Self> {
        let mut process = Background::start_quietly(
            &mut Command::new(Path::new(programs).join("cluster_balancer")),
            folder.join("balancer.log"),
        )?;
        let control = process.announced(LIMIT, "control ")?.parse()?;
        Ok(Self { _process: process, control })
    }

    fn start_clients(&self, folder: &Path, setup: &Setup<'_>) -> Result<Background> {
        let log = fs::read_to_string(folder.join("balancer.log"))?;
        let address = log.split_whitespace().nth(1).ok_or("the balancer listens nowhere")?;
        let mut client = Command::new(Path::new(setup.programs).join("cluster_client"));
        client.args(["--url", &format!("ws://{address}/ws"), "--clients", &setup.clients.to_string()]);
        client.args(["--every", &setup.every.to_string(), "--status"]).arg(folder.join("status"));
        client.arg("--list").arg(folder.join("list"));
        Background::start_quietly(&mut client, folder.join("client.log"))
    }

    fn lead_to(&self, nodes: &[Node]) -> Result<()> {
        let addresses: String = nodes.iter().map(|node| format!(" {}", node.listening)).collect();
        self.command(&format!("nodes{addresses}")).map(drop)
    }

    fn command(&self, line: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.control)?;
        writeln!(stream, "{line}")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }
}

impl Status {
    fn read(path: &Path) -> Result<Self> {
        let value: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let count = |name: &str| value[name].as_u64().unwrap_or(0);
        Ok(Self {
            attached: count("attached"),
            resumed: count("resumed"),
            fresh: count("fresh"),
            detached: count("detached"),
            sent: count("sent"),
            settled: count("settled"),
            ended: count("ended"),
        })
    }
}

/// An empty folder of this name: the record of an earlier run must not be taken for this one's.
pub(super) fn folder(name: &str) -> Result<PathBuf> {
    let folder = std::env::current_dir()?.join("target/xtask/cluster").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
