//! The resident memory of an idle client: `mainstay serve` under many, with heartbeats. Measures a plain
//! connection, a session, a parked session, whose client is gone, and a relay, whose session is at another node.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use crate::engines::{Brand, Program};
use crate::metrics::{self, metric};
use crate::programs::{self, MAINSTAY};
use crate::run::{Background, free_address, output};
use crate::{Outcome, Result};

const RELAY_CLIENT: &str = "target/release/relay_client";
/// The number of clients. Both ends of each connection need a descriptor, in two processes.
const CLIENTS: u32 = 10_000;

/// Bytes for each, 10 % above the measured figure, or 20 % for a relay. More is a regression on any machine.
const PLAIN: f64 = 800.0;
const SESSION: f64 = 1_540.0;
const PARKED: f64 = 1_350.0;
const RELAY: f64 = 250.0;

/// The number of relays. The node between needs two descriptors for each.
const RELAYS: u32 = 4_000;

/// How long any wait may take.
const LIMIT: Duration = Duration::from_secs(20);
/// How long the clients of relays may take: they attach one after the other.
const RELAYED: Duration = Duration::from_secs(120);
/// The server's allocator returns memory to the system this long after it was freed.
const SETTLE: Duration = Duration::from_millis(1500);

/// Measures each kind in a fresh server, prints all figures, and fails if one is above its limit.
pub(crate) fn step() -> Result<Outcome> {
    programs::mainstay()?;
    programs::peers(&["relay_client"])?;
    fs::create_dir_all("target/xtask")?;
    let mut above = Vec::new();
    for (count, what, each, limit) in [
        (CLIENTS, "idle plain connection", Server::start()?.idle(&[])?, PLAIN),
        (CLIENTS, "idle session", Server::start()?.idle(&["--session"])?, SESSION),
        (CLIENTS, "parked session", Server::start()?.parked()?, PARKED),
        (RELAYS, "relay at rest", relay()?, RELAY),
    ] {
        println!("{count} times {what}: {each:.0} bytes of resident memory each, at most {limit}");
        if each > limit {
            above.push(format!("{each:.0} bytes for each {what}, at most {limit} are allowed"));
        }
    }
    if above.is_empty() { Ok(Outcome::Passed) } else { Err(above.join("; ").into()) }
}

struct Server {
    process: Background,
    url: String,
    admin: SocketAddr,
}

impl Server {
    /// A server that has had a few clients: what it allocates once for the first ones is not a cost of each.
    fn start() -> Result<Self> {
        let (address, admin) = (free_address()?, free_address()?);
        let mut serve = Command::new(MAINSTAY);
        serve.args(["serve", "--heartbeat", "25s", "--listen", &address.to_string()]);
        serve.args(["--admin", &admin.to_string()]);
        let mut process = Background::start(&mut serve, Path::new("target/xtask/memory.log").to_owned())?;
        process.wait_listening(LIMIT, address)?;
        process.wait_listening(LIMIT, admin)?;
        let server = Self { process, url: format!("ws://{address}/echo"), admin };
        for flags in [&[][..], &["--session"]] {
            output(&mut server.clients(200, "100ms", flags))?;
        }
        sleep(SETTLE);
        Ok(server)
    }

    fn clients(&self, count: u32, duration: &str, flags: &[&str]) -> Command {
        let mut bench = Command::new(MAINSTAY);
        bench.args(["bench", "idle", &self.url, "--warm-up", "0s", "--duration", duration]).args(flags);
        bench.args(["--connections", &count.to_string()]);
        bench
    }

    /// The figure of `mainstay bench` for each.
    fn idle(self, flags: &[&str]) -> Result<f64> {
        let mut bench = self.clients(CLIENTS, "2s", flags);
        let printed = output(bench.args(["--json", "--pid", &self.process.id().to_string()]))?;
        let found: Value = serde_json::from_str(&printed)?;
        let each = found.get("resident_bytes_per_connection").and_then(Value::as_f64);
        each.ok_or_else(|| "`mainstay bench` gave no memory of a connection".into())
    }

    /// The clients are killed, so their sessions are neither ended nor resumed.
    fn parked(mut self) -> Result<f64> {
        let before = resident(self.process.id())?;
        let mut bench = self.clients(CLIENTS, "60s", &["--session"]);
        let clients = Background::start(&mut bench, Path::new("target/xtask/memory-clients.log").to_owned())?;
        self.wait_for("mainstay_sessions", CLIENTS.into())?;
        sleep(SETTLE);
        drop(clients);
        self.wait_for("mainstay_connections", 0)?;
        sleep(SETTLE);
        let held = resident(self.process.id())?.saturating_sub(before);
        self.wait_for("mainstay_sessions", CLIENTS.into())?;
        Ok(held as f64 / f64::from(CLIENTS))
    }

    fn wait_for(&mut self, name: &str, value: u64) -> Result<()> {
        let admin = self.admin;
        let is_there = |_: &Path| metrics::read(admin).is_ok_and(|text| metric(&text, name) == value);
        self.process
            .wait_until(LIMIT, is_there)
            .map_err(|error| format!("{name} is not {value}: {error}").into())
    }
}

/// What a relay takes of the node between a client and the owner of its session.
fn relay() -> Result<f64> {
    let home = Path::new("target/xtask/memory");
    let engine = Program::install(Brand::Redis)?.start(&env::current_dir()?.join(home), &[])?;
    let node = |name: &str| -> Result<(Background, String)> {
        let mut serve = Command::new(MAINSTAY);
        serve.args(["serve", "--heartbeat", "25s", "--listen", "127.0.0.1:0", "--cluster", &engine.url()]);
        let mut node = Background::start(&mut serve, home.join(name))?;
        let address = node.announced(LIMIT, "listening on ws://")?;
        Ok((node, format!("ws://{address}/echo")))
    };
    let ((_owner, first), (between, then)) = (node("owner.log")?, node("between.log")?);
    let clients = |count: u32| -> Result<Background> {
        let mut clients = Command::new(RELAY_CLIENT);
        clients.args(["--first", &first, "--then", &then, "--clients", &count.to_string()]);
        clients.args(["--reconnects", "0", "--every", "0", "--messages", "0"]);
        let mut clients = Background::start(&mut clients, home.join("clients.log"))?;
        clients.announced(RELAYED, "\"welcome_us\"")?;
        Ok(clients)
    };
    drop(clients(200)?); // what the first ones allocate once is not a cost of each
    sleep(SETTLE);
    let before = resident(between.id())?;
    let _clients = clients(RELAYS)?;
    sleep(SETTLE);
    Ok(resident(between.id())?.saturating_sub(before) as f64 / f64::from(RELAYS))
}

/// The memory of a process, as `mainstay bench` reads it.
fn resident(id: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kibibytes = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    Ok(1024 * kibibytes.ok_or("no Rss in smaps_rollup")?)
}
