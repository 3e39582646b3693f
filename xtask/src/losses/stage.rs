//! One lane and one fault: the processes, the proxies between them, and the order of events.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mainstay_chaos::{ChaosProxy, Direction, Fault as Chaos, Target};

use super::verdict::{Logs, Measured};
use super::{Fault, Lane, SCRATCH};
use crate::Result;
use crate::run::Background;

const CUT: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);
const OFFLINE: Duration = Duration::from_secs(120);
const STOPPED: Duration = Duration::from_secs(60);

/// How long a process may take to begin or end: a server that drains takes 30 s.
const LIMIT: Duration = Duration::from_secs(60);
/// If nothing arrives for this long, everything has arrived.
const QUIET: Duration = Duration::from_secs(4);
/// How long messages may be under way when nothing more is sent: two heartbeats and 5 s notice any dead connection.
const SETTLED: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

/// The calm before a fault, and how long the run watches after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) calm: Duration,
    pub(super) watched: Duration,
}

pub(super) struct Stage {
    fault: Fault,
    lane: Lane,
    folder: PathBuf,
    /// The start of the servers' numbers, in milliseconds.
    since: u64,
    client: Background,
    /// In front of everything: what the client dials.
    network: ChaosProxy,
    gateway: Option<Gateway>,
    server: Background,
    port: u16,
    /// The number of servers so far.
    servers: usize,
}

/// The gateway, and what it dials in front of the server.
struct Gateway {
    _program: Background,
    network: ChaosProxy,
}

impl Stage {
    /// Starts everything, and waits until the client has received something.
    pub(super) fn set(fault: Fault, lane: Lane, mainstay: &Path) -> Result<Self> {
        let folder = Path::new(SCRATCH).join(format!("{}-{}", fault.name(), lane.name()));
        let _ = fs::remove_dir_all(&folder); // logs of an earlier run
        fs::create_dir_all(&folder)?;
        let since = now();
        let (server, address) = start_server(lane, &folder, since, 1, 0)?;
        let gateway = match lane {
            Lane::Recipe | Lane::Plugin => None,
            Lane::Gateway => Some(start_gateway(mainstay, &folder, address)?),
        };
        let entrance = gateway.as_ref().map_or(address, |(_, entrance)| *entrance);
        let network = ChaosProxy::builder(entrance.to_string()).start()?;
        let program = if lane == Lane::Recipe { "recipe-client" } else { "mainstay-client" };
        let mut client = Background::start_quietly(
            Command::new("node").arg(format!("clients/losses/{program}.mjs")).arg(network.url("/ws")),
            folder.join("client.jsonl"),
        )?;
        client.wait_until(LIMIT, |log| fs::read_to_string(log).is_ok_and(|text| text.contains("\"got\"")))?;
        let gateway = gateway.map(|(gateway, _)| gateway);
        Ok(Self {
            fault,
            lane,
            folder,
            since,
            client,
            network,
            gateway,
            server,
            port: address.port(),
            servers: 1,
        })
    }

    /// Plays the calm, the fault and the time after it, and waits for everything under way.
    pub(super) fn play(mut self, pace: Pace) -> Result<Measured> {
        sleep(pace.calm);
        let from = now();
        let old = self.strike()?;
        let until = now();
        sleep(pace.watched);
        for process in [&self.client, &self.server] {
            process.signal("USR2")?;
        }
        self.settle()?;
        drop(old);
        let measured = Measured::of(&self.logs()?, from, until)?;
        // Without Mainstay no message has an outcome.
        let pending = if self.lane == Lane::Recipe { 0 } else { measured.pending };
        Ok(Measured { pending, ..measured })
    }

    /// Causes the fault. Returns a server that is still ending.
    fn strike(&mut self) -> Result<Option<Background>> {
        match self.fault {
            Fault::Cut => self.silence(CUT),
            Fault::Minute => self.silence(MINUTE),
            Fault::Offline => self.silence(OFFLINE),
            Fault::Stopped => {
                self.client.signal("STOP")?;
                sleep(STOPPED);
                self.client.signal("CONT")?;
            }
            Fault::Restart => {
                self.server.signal("TERM")?;
                self.server.wait_end(LIMIT)?;
                self.start_again(self.port)?;
            }
            Fault::Kill => {
                self.server.signal("KILL")?;
                self.server.wait_end(LIMIT)?;
                self.start_again(self.port)?;
            }
            Fault::Deploy => return self.deploy().map(Some),
        }
        Ok(None)
    }

    /// Every connection is dead from now on, and neither end notices; what the client sends on new ones arrives at the end.
    fn silence(&self, duration: Duration) {
        self.network.inject(Chaos::Stall(Direction::Both), Target::New, None);
        self.network.inject(Chaos::BlackHole(Direction::Both), Target::Open, None);
        sleep(duration);
        self.network.lift_all();
    }

    /// The new server gets the new connections from the moment in which the old one gets SIGTERM.
    fn deploy(&mut self) -> Result<Background> {
        let (address, old) = self.start_again(0)?;
        let network = self.gateway.as_ref().map_or(&self.network, |gateway| &gateway.network);
        network.set_upstream(&address.to_string())?;
        old.signal("TERM")?;
        Ok(old)
    }

    /// Replaces the server by a new one. Returns the new address, and the old server.
    fn start_again(&mut self, port: u16) -> Result<(SocketAddr, Background)> {
        self.servers += 1;
        let (server, address) = start_server(self.lane, &self.folder, self.since, self.servers, port)?;
        Ok((address, std::mem::replace(&mut self.server, server)))
    }

    /// Waits until nothing arrives any more and the client knows the outcome of each message.
    fn settle(&mut self) -> Result<()> {
        let (started, mut changed, mut size) = (Instant::now(), Instant::now(), 0);
        while started.elapsed() < SETTLED {
            self.client.check_running()?;
            let written = self.logs()?;
            if written.size() != size {
                (changed, size) = (Instant::now(), written.size());
            }
            if changed.elapsed() > QUIET && (self.lane == Lane::Recipe || written.pending()? == 0) {
                return Ok(());
            }
            sleep(POLL);
        }
        Ok(())
    }

    fn logs(&self) -> Result<Logs> {
        let servers = (1..=self.servers).map(|number| fs::read_to_string(server_log(&self.folder, number)));
        Ok(Logs {
            client: fs::read_to_string(self.folder.join("client.jsonl"))?,
            servers: servers.collect::<std::io::Result<_>>()?,
        })
    }
}

fn start_server(
    lane: Lane,
    folder: &Path,
    since: u64,
    number: usize,
    port: u16,
) -> Result<(Background, SocketAddr)> {
    let program = if lane == Lane::Plugin { "mainstay-server" } else { "recipe-server" };
    let mut server = Background::start_quietly(
        Command::new("node")
            .arg(format!("clients/losses/{program}.mjs"))
            .arg(port.to_string())
            .env("FACTS_SINCE", since.to_string()),
        server_log(folder, number),
    )?;
    let address = server.announced(LIMIT, "listening ")?.parse()?;
    Ok((server, address))
}

/// The gateway with its defaults, and where it listens.
fn start_gateway(mainstay: &Path, folder: &Path, server: SocketAddr) -> Result<(Gateway, SocketAddr)> {
    let network = ChaosProxy::builder(server.to_string()).start()?;
    let mut program = Background::start_quietly(
        Command::new(mainstay)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(["--upstream", &network.url("")]),
        folder.join("gateway.log"),
    )?;
    let entrance = program.announced(LIMIT, "listening on ws://")?.parse()?;
    Ok((Gateway { _program: program, network }, entrance))
}

fn server_log(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("server-{number}.jsonl"))
}

/// The time in milliseconds, as the programs count it.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0))
}
