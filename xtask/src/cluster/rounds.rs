//! The rounds with clients: what is done to a cluster, and what that may cost.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::rows::{self, Allowed, Must, row};
use super::stage::{self, Setup, Stage};
use super::verdict::Verdict;
use super::{DEBUG, RELEASE};
use crate::engines::{Program, Server};
use crate::run::check;
use crate::{Depth, Result};

/// The cluster's name in the engine.
pub(super) const NAME: &str = "proof";
/// Messages of clients that may be unconfirmed on a link to the backend: `docs/DEFAULTS.md`.
const UNCONFIRMED: u64 = 64;
/// How long the engine is away, paused or empty before something else happens.
const ENGINE_FAULT: Duration = Duration::from_secs(2);
/// How long a node is stopped: longer than the 10 s after which the others consider it dead.
const PAUSE: Duration = Duration::from_secs(15);
/// How long messages pass between two faults.
const CALM: Duration = Duration::from_secs(2);

/// How much is done.
pub(super) struct Size {
    pub(super) clients: u64,
    /// Seconds between two messages of a client, and between two of the backend to it.
    pub(super) every: f64,
    pub(super) cuts: u64,
    /// The folder of the programs.
    pub(super) programs: &'static str,
    /// How long a drain may take.
    pub(super) drain: &'static str,
}

impl Size {
    /// Drains of as many sessions as a node of middling size has. The clients send less often and the drain may take longer,
    /// since the backend, the clients and all nodes share one machine.
    pub(super) const DRAIN: Self =
        Self { clients: 5_000, every: 4.0, cuts: 0, programs: RELEASE, drain: "30s" };

    pub(super) fn of(depth: Depth) -> Self {
        match depth {
            Depth::Test => Self { clients: 300, every: 1.0, cuts: 10, programs: DEBUG, drain: "5s" },
            Depth::Nightly => Self { clients: 1_000, every: 1.0, cuts: 10, programs: DEBUG, drain: "5s" },
        }
    }

    pub(super) fn setup<'a>(&self, name: &'a str, nodes: usize, flags: &[&str]) -> Setup<'a> {
        let flags = flags.iter().chain(&["--drain", self.drain]).map(|flag| (*flag).to_owned()).collect();
        Setup { name, nodes, flags, clients: self.clients, every: self.every, programs: self.programs }
    }
}

/// An engine, and what a node needs to find it.
pub(super) struct Cluster {
    server: Option<Server>,
    program: Program,
    url: String,
}

impl Cluster {
    pub(super) fn start(program: &Program, folder: &str) -> Result<Self> {
        let server = program.start(&stage::folder(folder)?, &[])?;
        Ok(Self { url: server.url(), server: Some(server), program: program.clone() })
    }

    /// The flags of a node of this cluster.
    pub(super) fn flags<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["--cluster", &self.url, "--cluster-name", NAME], more].concat()
    }

    pub(super) fn server(&self) -> Result<&Server> {
        self.server.as_ref().ok_or_else(|| "the engine is not running".into())
    }

    fn kill(&mut self) -> Result<Killed> {
        let address = self.server()?.address;
        self.server = None;
        Ok(Killed(address))
    }

    /// At its old address, with nothing in its memory.
    fn start_again(&mut self, Killed(address): Killed, folder: &Path) -> Result<()> {
        self.server = Some(self.program.start_at(address, folder, &[])?);
        Ok(())
    }
}

/// Where a killed engine was.
struct Killed(std::net::SocketAddr);

/// Clients are cut off again and again, all of them or half of them; the balancer leads each to any node.
pub(super) fn cuts(program: &Program, size: &Size) -> Result<()> {
    let title = format!("{:?}: clients cut {} times, three nodes", program.brand, size.cuts);
    let cluster = Cluster::start(program, "cuts-engine")?;
    let mut stage = Stage::set(&size.setup("cuts", 3, &cluster.flags(&[])))?;
    let commands = cluster.server()?.monitor()?;
    let started = Instant::now();
    for cut in 0..size.cuts {
        stage.cut_and_wait(if cut % 2 == 0 { size.clients } else { size.clients / 2 })?;
    }
    let heartbeats = Must::BeAtMost(3 * 4 * (started.elapsed().as_secs() + 2));
    let lines: Vec<String> = commands.try_iter().collect();
    let (table, others): (Vec<_>, Vec<_>) = lines.iter().partition(|line| concerns_the_table(line));
    others.iter().take(5).for_each(|line| println!("    {line}"));
    let relayed =
        stage.nodes.iter().map(|node| node.metric("mainstay_relayed_total")).sum::<Result<u64>>()?;
    let verdict = stage.close()?;
    let mut rows = rows::of(&verdict, &Allowed::NOTHING);
    rows.push(row("relayed to another node", relayed, Must::BeAtLeast(size.clients)));
    rows.push(row(
        "resumed",
        verdict.attached - verdict.fresh,
        Must::BeAtLeast(size.clients * size.cuts / 2),
    ));
    rows.push(row("commands of the engine for attaches", others.len() as u64, Must::Be(0)));
    rows.push(row("commands of the engine for its nodes", table.len() as u64, heartbeats));
    rows::judge(&title, &rows)
}

/// Whether a command that MONITOR shows belongs to a node's heartbeat, whatever clients do.
fn concerns_the_table(line: &str) -> bool {
    let lower = line.to_lowercase();
    lower.contains(&format!("mainstay:{NAME}:nodes"))
        || ["\"info\"", "\"ping\"", "\"role\"", "\"client\"", "\"hello\"", "\"script\"", "\"monitor\""]
            .iter()
            .any(|name| lower.contains(name))
}

/// The engine is killed and comes back empty, is paused, and is emptied, and clients are cut off all the time.
pub(super) fn engine_faults(program: &Program, size: &Size) -> Result<()> {
    let title = format!("{:?}: the engine killed, restarted empty, paused and emptied", program.brand);
    let mut cluster = Cluster::start(program, "faults-engine")?;
    let home = std::env::current_dir()?.join("target/xtask/cluster/faults-engine");
    let mut stage = Stage::set(&size.setup("faults", 3, &cluster.flags(&[])))?;
    let killed = cluster.kill()?;
    stage.cut_and_wait(size.clients)?;
    sleep(ENGINE_FAULT);
    stage.cut_and_wait(size.clients)?;
    cluster.start_again(killed, &home)?;
    stage.cut_and_wait(size.clients)?; // while the nodes find it again
    sleep(ENGINE_FAULT);
    cluster.server()?.pause()?;
    stage.cut_and_wait(size.clients)?;
    sleep(ENGINE_FAULT);
    stage.cut_and_wait(size.clients / 2)?;
    cluster.server()?.resume()?;
    stage.cut_and_wait(size.clients / 2)?;
    sleep(CALM);
    for _ in 0..3 {
        cluster.server()?.run(&["FLUSHALL"])?;
        stage.cut_and_wait(size.clients)?;
    }
    rows::judge(&title, &rows::of(&stage.close()?, &Allowed::NOTHING))
}

/// Each of three nodes is drained, after a new one was started. Sessions that cannot move end with exact accounts.
pub(super) fn deploy(program: &Program, size: &Size) -> Result<()> {
    let title = format!("{:?}: three nodes drained in turn", program.brand);
    let cluster = Cluster::start(program, "deploy-engine")?;
    let mut stage = Stage::set(&size.setup("deploy", 3, &cluster.flags(&[])))?;
    replace_all(&mut stage)?;
    let slowest = stage.slowest_drain;
    let verdict = stage.close()?;
    let allowed =
        Allowed { gaps: Must::BeAtLeast(1), gaps_of_one: 3, missed: Must::Anything, ..Allowed::NOTHING };
    let mut rows = rows::of(&verdict, &allowed);
    let restarted = verdict.causes.get("Restarted").copied().unwrap_or(0);
    rows.push(row("gaps that name the restart as their cause", restarted, Must::Be(verdict.gaps)));
    rows.push(row("gaps: messages of the backend counted", verdict.counted_at_gaps, Must::Anything));
    rows.extend(times(&verdict, slowest));
    rows::judge(&title, &rows)
}

/// The same with sessions that move: nothing is lost, and nothing is reported.
pub(super) fn deploy_movable(program: &Program, size: &Size) -> Result<()> {
    let title = format!("{:?}: three nodes drained in turn, --movable", program.brand);
    let cluster = Cluster::start(program, "movable-engine")?;
    let flags = cluster.flags(&["--movable", "--on-backend-loss", "keep"]);
    let mut stage = Stage::set(&size.setup("movable", 3, &flags))?;
    replace_all(&mut stage)?;
    let slowest = stage.slowest_drain;
    let verdict = stage.close()?;
    let mut rows = rows::of(&verdict, &Allowed::NOTHING);
    rows.extend(times(&verdict, slowest));
    rows::judge(&title, &rows)
}

/// Nodes that encrypt what they send to each other, with certificates made by the commands of the documents: clients are cut off,
/// and each node is drained.
pub(super) fn encrypted(program: &Program, size: &Size) -> Result<()> {
    let title = format!("{:?}: --cluster-tls, clients cut twice, three nodes drained in turn", program.brand);
    let cluster = Cluster::start(program, "encrypted-engine")?;
    let folder = stage::folder("encrypted-certificates")?;
    make_certificates(&folder)?;
    let folder = folder.to_str().ok_or("a folder without a name")?;
    let flags = cluster.flags(&["--cluster-tls", folder, "--movable", "--on-backend-loss", "keep"]);
    let mut stage = Stage::set(&size.setup("encrypted", 3, &flags))?;
    for _ in 0..2 {
        stage.cut_and_wait(size.clients)?;
    }
    let relayed =
        stage.nodes.iter().map(|node| node.metric("mainstay_relayed_total")).sum::<Result<u64>>()?;
    replace_all(&mut stage)?;
    let slowest = stage.slowest_drain;
    let verdict = stage.close()?;
    let mut rows = rows::of(&verdict, &Allowed::NOTHING);
    rows.push(row("relayed to another node, over TLS", relayed, Must::BeAtLeast(size.clients / 2)));
    rows.extend(times(&verdict, slowest));
    rows::judge(&title, &rows)
}

/// Runs the commands of docs/CLUSTER.md that make an authority and a certificate.
fn make_certificates(folder: &Path) -> Result<()> {
    let document = std::fs::read_to_string("docs/CLUSTER.md")?;
    let block = document.split("```sh\n").find(|block| block.starts_with("openssl req -x509"));
    let commands =
        block.and_then(|block| block.split("```").next()).ok_or("docs/CLUSTER.md has no certificates")?;
    check(Command::new("sh").args(["-e", "-c", commands]).current_dir(folder)).map(drop)
}

fn replace_all(stage: &mut Stage) -> Result<()> {
    for _ in 0..3 {
        sleep(CALM);
        stage.replace_first()?;
    }
    sleep(CALM);
    Ok(())
}

fn times(verdict: &Verdict, slowest_drain: Duration) -> [rows::Row; 2] {
    [
        row("99 % were without a connection for at most, ms", verdict.interrupted(99), Must::Anything),
        row("from SIGTERM to the end, the slowest, ms", slowest_drain.as_millis() as u64, Must::Anything),
    ]
}

/// One node is killed: each of its sessions gets one gap, and no other session notices.
pub(super) fn kill(program: &Program, size: &Size) -> Result<()> {
    let title = format!("{:?}: one of three nodes killed", program.brand);
    let cluster = Cluster::start(program, "kill-engine")?;
    let mut stage = Stage::set(&size.setup("kill", 3, &cluster.flags(&[])))?;
    sleep(CALM);
    let victim = stage.take_out(0)?;
    let owned = victim.metric("mainstay_sessions")?;
    victim.process.signal("KILL")?;
    stage.wait_attached()?;
    sleep(CALM);
    stage.add_node()?;
    stage.cut_and_wait(size.clients)?;
    drop(victim);
    let verdict = stage.close()?;
    let allowed = Allowed {
        gaps: Must::Be(owned),
        gaps_of_one: 1,
        unknown: Must::BeAtMost(owned * UNCONFIRMED),
        missed: Must::Anything,
        ..Allowed::NOTHING
    };
    let mut rows = rows::of(&verdict, &allowed);
    rows.push(row("sessions of the killed node", owned, Must::BeAtLeast(1)));
    rows::judge(&title, &rows)
}

/// One node is stopped for longer than the others wait for it. A client that comes back meanwhile gets one gap if that node
/// has its session: half of all are cut off, and a client that sends finds out by itself that nothing is acknowledged.
pub(super) fn pause(program: &Program, size: &Size) -> Result<()> {
    let title = format!("{:?}: one of three nodes stopped for {PAUSE:?}", program.brand);
    let cluster = Cluster::start(program, "pause-engine")?;
    let mut stage = Stage::set(&size.setup("pause", 3, &cluster.flags(&[])))?;
    sleep(CALM);
    let stopped = stage.take_out(0)?;
    let owned = stopped.metric("mainstay_sessions")?;
    stopped.process.signal("STOP")?;
    let since = Instant::now();
    stage.cut(size.clients / 2)?;
    sleep(PAUSE.saturating_sub(since.elapsed()));
    stopped.process.signal("CONT")?;
    stage.wait_attached()?;
    stage.put_in(stopped)?;
    stage.cut_and_wait(size.clients)?;
    let verdict = stage.close()?;
    let allowed = Allowed {
        gaps: Must::BeAtMost(owned),
        gaps_of_one: 1,
        unknown: Must::BeAtMost(owned * UNCONFIRMED),
        missed: Must::Anything,
        ..Allowed::NOTHING
    };
    let mut rows = rows::of(&verdict, &allowed);
    rows.push(row("sessions of the stopped node", owned, Must::BeAtLeast(1)));
    rows::judge(&title, &rows)
}

/// One node without an engine is restarted; its sessions go through a file.
pub(super) fn restart_with_file(size: &Size) -> Result<()> {
    let folder = stage::folder("file-state")?;
    let state = folder.to_str().ok_or("a folder without a name")?;
    let flags = ["--state-dir", state, "--movable", "--on-backend-loss", "keep"];
    let mut stage = Stage::set(&size.setup("file", 1, &flags))?;
    for _ in 0..3 {
        sleep(CALM);
        stage.drain_first()?;
        stage.add_node()?;
        stage.wait_attached()?;
    }
    let slowest = stage.slowest_drain;
    let verdict = stage.close()?;
    let mut rows = rows::of(&verdict, &Allowed::NOTHING);
    rows.extend(times(&verdict, slowest));
    rows::judge("no engine: one node restarted three times, --state-dir and --movable", &rows)
}

/// The harness itself: three servers that know nothing of each other lose sessions at each cut, and the judge must see that.
pub(super) fn without_a_cluster(size: &Size) -> Result<()> {
    let mut stage = Stage::set(&size.setup("alone", 3, &[]))?;
    stage.cut_and_wait(size.clients)?;
    sleep(CALM);
    let verdict = stage.close()?;
    let (lost, least) = (verdict.gaps, Must::BeAtLeast(size.clients / 3));
    let mut rows = rows::of(
        &verdict,
        &Allowed {
            gaps: least,
            gaps_of_one: 9,
            unknown: Must::Anything,
            missed: Must::Anything,
            ..Allowed::NOTHING
        },
    );
    rows.push(row("gaps that a cluster would have prevented", lost, least));
    rows::judge("no cluster: the judge finds the gaps of three servers that share nothing", &rows)
}
