//! How many instructions a server executes for a message, counted by callgrind, which no other load on the machine disturbs. A
//! system call counts as one instruction: the kernel's work is not counted.
//!
//! Each kind of work is compared with connections that do nothing: the additional instructions are for the
//! messages. Starting, opening and closing cancel out. The check of a token is counted too ([`tokens`]).

mod tokens;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::programs::{self, MAINSTAY};
use crate::run::{Background, free_address, output};
use crate::{Outcome, Result, install};

/// What is counted, with the most instructions for each message, or delivery of a fan-out: of a plain client, and of one that
/// speaks mainstay.v1. About 5 % above what was measured: how many messages come in one pass of a worker differs.
const WORK: [Work; 4] = [
    Work { load: "echo", in_flight: "1", plain: 4_600.0, session: 6_150.0, ..LIBRARY },
    Work { load: "echo", in_flight: "16", plain: 1_750.0, session: 3_100.0, ..LIBRARY },
    Work { load: "fanout", in_flight: "1", plain: 2_650.0, session: 3_000.0, ..ROOM },
    Work { load: "echo", in_flight: "1", plain: 15_500.0, session: 17_500.0, ..GATEWAY },
];

const LIBRARY: Work = Work {
    server: Server::Library,
    load: "idle",
    at: "/echo",
    connections: "10",
    in_flight: "1",
    plain: 0.0,
    session: 0.0,
};
const ROOM: Work = Work { at: "/broadcast", connections: "100", ..LIBRARY };
const GATEWAY: Work = Work { server: Server::Gateway, ..LIBRARY };

/// How long the load lasts: longer if the machine was too busy for [`ENOUGH`].
const DURATIONS: [&str; 3] = ["1s", "4s", "30s"];
/// How long the connections that do nothing stay.
const IDLE: &str = "100ms";
/// So many messages that those still under way at the end do not matter.
const ENOUGH: u64 = 5_000;
/// How long the server may take to start under callgrind, and to end.
const LIMIT: Duration = Duration::from_secs(60);
const BENCH_SERVER: &str = "target/release/bench_server";
const SCRATCH: &str = "target/xtask/instructions";
const PROFILE: &str = "target/xtask/instructions/callgrind.out";

/// Which server is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    /// One that uses the library.
    Library,
    /// `mainstay serve` with its defaults, before such a server.
    Gateway,
}

/// The arguments of `mainstay bench`.
struct Work {
    server: Server,
    load: &'static str,
    at: &'static str,
    connections: &'static str,
    in_flight: &'static str,
    plain: f64,
    session: f64,
}

/// Counts, prints, and fails if a figure is above its limit.
pub(crate) fn step() -> Result<Outcome> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Outcome::Skipped("the limits are for x86-64".into()));
    }
    if let Err(error) = install::valgrind() {
        return Ok(Outcome::Skipped(error.to_string()));
    }
    programs::mainstay()?;
    programs::peers(&["bench_server", "token_check"])?;
    fs::create_dir_all(SCRATCH)?;
    let mut counts = Counts::new()?;
    let mut above = Vec::new();
    for work in &WORK {
        for (kind, flags, limit) in
            [("plain", &[][..], work.plain), ("session", &["--session"], work.session)]
        {
            let (each, count) = counts.each(work, flags)?;
            let what = format!("{:?}, {}, {} in flight, {kind}", work.server, work.load, work.in_flight);
            let line = format!("{what}: {each:.0} instructions each of {count}, at most {limit}");
            println!("{line}");
            above.extend((each > limit).then_some(line));
        }
    }
    above.extend(tokens::above()?);
    if above.is_empty() { Ok(Outcome::Passed) } else { Err(above.join("; ").into()) }
}

/// Counts the instructions of servers.
struct Counts {
    /// The gateway's backend, which is not counted.
    backend: (Background, SocketAddr),
    /// What connections cost that do nothing, and which ones: several kinds of work have the same.
    idle: Vec<(Key, u64)>,
}

/// The server, where its clients are and how many, and their flags.
type Key = (Server, &'static str, &'static str, Vec<&'static str>);

impl Counts {
    fn new() -> Result<Self> {
        let address = free_address()?;
        let log = Path::new(SCRATCH).join("backend.log");
        let mut backend = Background::start(bench_server(&mut Command::new(BENCH_SERVER), address), log)?;
        backend.wait_listening(LIMIT, address)?;
        Ok(Self { backend: (backend, address), idle: Vec::new() })
    }

    /// The mean of instructions for each message, and the number of messages.
    fn each(&mut self, work: &Work, flags: &[&'static str]) -> Result<(f64, u64)> {
        let idle = self.idle(work, flags)?;
        for duration in DURATIONS {
            let busy = self.run(work, work.load, duration, flags)?;
            if busy.count >= ENOUGH {
                let more = busy.instructions.saturating_sub(idle);
                return Ok((more as f64 / busy.count as f64, busy.count));
            }
        }
        Err(format!("{}: fewer than {ENOUGH} messages in {DURATIONS:?}", work.load).into())
    }

    fn idle(&mut self, work: &Work, flags: &[&'static str]) -> Result<u64> {
        let key = (work.server, work.at, work.connections, flags.to_vec());
        if let Some((_, known)) = self.idle.iter().find(|(known, _)| *known == key) {
            return Ok(*known);
        }
        let counted = self.run(work, "idle", IDLE, flags)?.instructions;
        self.idle.push((key, counted));
        Ok(counted)
    }

    fn run(&self, work: &Work, load: &str, duration: &str, flags: &[&str]) -> Result<Life> {
        let (mut server, address) = self.start(work.server)?;
        let mut bench = Command::new(MAINSTAY);
        bench.args(["bench", load, &format!("ws://{address}{}", work.at), "--json", "--warm-up", "0s"]);
        bench.args(["--duration", duration, "--connections", work.connections]);
        bench.args(["--in-flight", work.in_flight]).args(flags);
        let found: Value = serde_json::from_str(&output(&mut bench)?)?;
        let count = ["messages", "deliveries"].iter().find_map(|key| found.get(key)?.as_u64());
        server.signal("TERM")?;
        server.wait_end(LIMIT)?;
        Ok(Life { instructions: instructions()?, count: count.unwrap_or(0) })
    }

    /// A server under callgrind.
    fn start(&self, server: Server) -> Result<(Background, SocketAddr)> {
        let address = free_address()?;
        let mut valgrind = callgrind();
        match server {
            Server::Library => bench_server(valgrind.arg(BENCH_SERVER), address),
            Server::Gateway => {
                let upstream = format!("ws://{}", self.backend.1);
                valgrind.args([MAINSTAY, "serve", "--listen", &address.to_string(), "--upstream", &upstream])
            }
        };
        // With one worker no thread steals another's work, on any number of cores.
        valgrind.env("TOKIO_WORKER_THREADS", "1");
        let mut server = Background::start(&mut valgrind, Path::new(SCRATCH).join("server.log"))?;
        server.wait_listening(LIMIT, address)?;
        Ok((server, address))
    }
}

/// The work of a server from its start to its end.
struct Life {
    instructions: u64,
    /// Messages, or deliveries.
    count: u64,
}

fn bench_server(command: &mut Command, address: SocketAddr) -> &mut Command {
    command.args(["--listen", &address.to_string(), "--interval", "25"])
}

/// The beginning of a command whose instructions are counted.
fn callgrind() -> Command {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", &format!("--callgrind-out-file={PROFILE}")]);
    valgrind
}

/// How many instructions the last counted program executed.
fn instructions() -> Result<u64> {
    let profile = fs::read_to_string(PROFILE)?;
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
    Ok(total.ok_or("callgrind wrote no total")?)
}
