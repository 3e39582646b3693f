//! Idle connections with heartbeats: as many servers as needed, and as many generators.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::machine::{self, Memory};
use super::{SCRATCH, tied};
use crate::Result;
use crate::metrics::{self, metric};
use crate::programs::MAINSTAY;
use crate::run::Background;

const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);
/// How long connections may take to open without any progress.
const STALLED: Duration = Duration::from_secs(30);
const SHOWN_EVERY: u32 = 10;

#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) per_process: u32,
    pub(super) rate: u32,
    /// The heartbeat interval, in seconds.
    pub(super) interval: u32,
}

/// Memory in bytes; growth counts from before the first process was started.
pub(super) struct Found {
    pub(super) connections: u32,
    pub(super) interval: u32,
    pub(super) processes: u32,
    /// User memory of the servers before the first connection.
    pub(super) servers_empty: u64,
    pub(super) servers: u64,
    pub(super) generators: u64,
    pub(super) slab: u64,
    pub(super) buffers: u64,
    /// The decrease of the memory that is available on this machine: all of the above and everything else.
    pub(super) all: u64,
    pub(super) opening: Duration,
    /// The following figures are for one interval, of length `took`.
    pub(super) took: Duration,
    pub(super) heartbeats: u64,
    pub(super) servers_cpu: Duration,
    pub(super) generators_cpu: Duration,
}

/// Opens `connections`, lets one interval pass, and measures the next.
pub(super) fn measure(connections: u32, load: &Load) -> Result<Found> {
    machine::wait_until_forgotten()?;
    let before = Memory::now()?;
    let mut stage = Stage::set(connections, load)?;
    let servers_empty = stage.servers_memory()?;
    let opening = stage.open(connections, load)?;
    let interval = Duration::from_secs(load.interval.into());
    stage.pass(interval)?; // the first beats come at a random time within it
    let from = stage.reading()?;
    stage.pass(interval)?;
    let (to, after) = (stage.reading()?, Memory::now()?);
    let tally = &to.tally;
    if tally.open != u64::from(connections) || tally.opened != tally.open || tally.dead > 0 {
        let (opened, open, dead) = (tally.opened, tally.open, tally.dead);
        return Err(format!("of {opened} connections {open} are left, {dead} were called dead").into());
    }
    Ok(Found {
        connections,
        interval: load.interval,
        processes: connections.div_ceil(load.per_process),
        servers_empty,
        servers: stage.servers_memory()?,
        generators: machine::memory(&stage.generators_pids())?,
        slab: after.slab.saturating_sub(before.slab),
        buffers: after.buffers.saturating_sub(before.buffers),
        all: before.available.saturating_sub(after.available),
        opening,
        took: to.at - from.at,
        heartbeats: tally.heartbeats.saturating_sub(from.tally.heartbeats),
        servers_cpu: to.servers_cpu.saturating_sub(from.servers_cpu),
        generators_cpu: to.generators_cpu.saturating_sub(from.generators_cpu),
    })
}

/// The command of a server; `page` shows it.
pub(super) fn server_words(listen: &str, load: &Load) -> Vec<String> {
    let interval = format!("{}s", load.interval);
    ["serve", "--listen", listen, "--admin", listen, "--heartbeat", &interval].map(str::to_owned).to_vec()
}

/// The command of a generator. It holds its connections until it is ended: the servers' metrics show whether one was
/// lost.
pub(super) fn generator_words(url: &str, connections: &str, rate: &str) -> Vec<String> {
    let words = ["bench", "idle", url, "--connections", connections, "--rate", rate, "--duration", "1h"];
    words.map(str::to_owned).to_vec()
}

/// All processes of one run.
struct Stage {
    servers: Vec<Server>,
    generators: Vec<Background>,
}

struct Server {
    process: Background,
    listening: SocketAddr,
    admin: SocketAddr,
}

struct Reading {
    at: Instant,
    servers_cpu: Duration,
    generators_cpu: Duration,
    tally: Tally,
}

impl Stage {
    /// Starts the servers, without a generator.
    fn set(connections: u32, load: &Load) -> Result<Self> {
        let numbers = 0..connections.div_ceil(load.per_process);
        let servers = numbers.map(|number| Server::start(number, load)).collect::<Result<_>>()?;
        Ok(Self { servers, generators: Vec::new() })
    }

    /// Starts the generators and waits until every connection is open. Returns how long that took.
    fn open(&mut self, connections: u32, load: &Load) -> Result<Duration> {
        let started = Instant::now();
        let processes = self.servers.len() as u32;
        for (server, number) in self.servers.iter().zip(0..) {
            let share = connections / processes + u32::from(number < connections % processes);
            let (url, rate) = (format!("ws://{}/echo", server.listening), load.rate.div_ceil(processes));
            let words = generator_words(&url, &share.to_string(), &rate.to_string());
            let log = Path::new(SCRATCH).join(format!("idle-{number}.log"));
            self.generators.push(Background::start_quietly(tied(MAINSTAY).args(words), log)?);
        }
        let (mut last, mut changed) = (0, Instant::now());
        for look in 0_u32.. {
            let (open, memory) = (Tally::of(&self.servers)?.open, machine::check_memory()?);
            if look % SHOWN_EVERY == 0 {
                let available = memory.available as f64 / f64::from(1 << 30);
                println!("    {open} of {connections} open, {available:.1} GiB available");
            }
            if open >= u64::from(connections) {
                break;
            }
            if open != last {
                (last, changed) = (open, Instant::now());
            }
            if changed.elapsed() > STALLED {
                return Err(format!("{open} of {connections} are open, and no more in {STALLED:?}").into());
            }
            self.check_running()?;
            sleep(LOOK);
        }
        Ok(started.elapsed())
    }

    /// Waits. It is an error if a process ends or memory runs out.
    fn pass(&mut self, time: Duration) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < time {
            sleep(LOOK.min(time.saturating_sub(started.elapsed())));
            machine::check_memory()?;
        }
        self.check_running()
    }

    fn check_running(&mut self) -> Result<()> {
        self.servers.iter_mut().try_for_each(|server| server.process.check_running())?;
        self.generators.iter_mut().try_for_each(Background::check_running)
    }

    fn reading(&self) -> Result<Reading> {
        Ok(Reading {
            at: Instant::now(),
            servers_cpu: machine::cpu(&self.servers_pids())?,
            generators_cpu: machine::cpu(&self.generators_pids())?,
            tally: Tally::of(&self.servers)?,
        })
    }

    fn servers_memory(&self) -> Result<u64> {
        machine::memory(&self.servers_pids())
    }

    fn servers_pids(&self) -> Vec<u32> {
        self.servers.iter().map(|server| server.process.id()).collect()
    }

    fn generators_pids(&self) -> Vec<u32> {
        self.generators.iter().map(Background::id).collect()
    }
}

impl Server {
    fn start(number: u32, load: &Load) -> Result<Self> {
        let listen = format!("127.0.{}.{}:0", 1 + number / 250, 1 + number % 250);
        let log = Path::new(SCRATCH).join(format!("serve-{number}.log"));
        let mut process = Background::start_quietly(tied(MAINSTAY).args(server_words(&listen, load)), log)?;
        let listening = process.announced(START, "listening on ws://")?.parse()?;
        let admin = process.announced(START, "admin on http://")?.trim_end_matches(':').parse()?;
        Ok(Self { process, listening, admin })
    }
}

/// The sum of all servers' metrics.
struct Tally {
    open: u64,
    opened: u64,
    heartbeats: u64,
    dead: u64,
}

impl Tally {
    fn of(servers: &[Server]) -> Result<Self> {
        let mut sum = Self { open: 0, opened: 0, heartbeats: 0, dead: 0 };
        for server in servers {
            let text = metrics::read(server.admin)?;
            sum.open += metric(&text, "mainstay_connections ");
            sum.opened += metric(&text, "mainstay_connections_opened_total");
            sum.heartbeats += metric(&text, "mainstay_heartbeat_rtt_seconds_count");
            for evidence in ["silent", "frozen", "stalled"] {
                let name = format!("mainstay_dead_peers_total{{leg=\"client\",evidence=\"{evidence}\"}}");
                sum.dead += metric(&text, &name);
            }
        }
        Ok(sum)
    }
}

impl Found {
    pub(super) fn each(&self, bytes: u64) -> f64 {
        bytes as f64 / f64::from(self.connections)
    }

    pub(super) fn us_per_heartbeat(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.heartbeats.max(1) as f64
    }

    pub(super) fn percent(&self, cpu: Duration) -> f64 {
        100.0 * cpu.as_secs_f64() / self.took.as_secs_f64()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |bytes| self.each(bytes);
        write!(
            f,
            "    a connection: {:.0} B of a server, {:.0} B of a generator, {:.0} B of slab, {:.0} B in all\n    \
             {} heartbeats in {:.1} s: {:.1} us of a server's CPU each, {:.1} % of a core",
            each(self.servers.saturating_sub(self.servers_empty)),
            each(self.generators),
            each(self.slab),
            each(self.all),
            self.heartbeats,
            self.took.as_secs_f64(),
            self.us_per_heartbeat(self.servers_cpu),
            self.percent(self.servers_cpu),
        )
    }
}
