//! How many instructions the server executes for a message, counted by callgrind, which no other load on the
//! machine disturbs. A system call counts as one instruction: the kernel's work is not counted.
//!
//! Each kind of work is compared with connections that do nothing: the additional instructions are for the
//! messages. Starting, opening and closing cancel out.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::run::{Background, cargo, free_address, output};
use crate::{Outcome, Result, install};

/// The most instructions for each message, or delivery of a fan-out: of a plain client, and of one that speaks
/// mainstay.v1. About 10 % above what was measured.
const WORK: [Work; 3] = [
    Work { load: "echo", at: "/echo", connections: "10", in_flight: "1", plain: 4_800.0, session: 6_250.0 },
    Work { load: "echo", at: "/echo", connections: "10", in_flight: "16", plain: 1_750.0, session: 3_100.0 },
    Work {
        load: "fanout",
        at: "/broadcast",
        connections: "100",
        in_flight: "1",
        plain: 2_850.0,
        session: 3_200.0,
    },
];

/// How long the load lasts: longer if the machine was too busy for [`ENOUGH`].
const DURATIONS: [&str; 3] = ["2s", "8s", "30s"];
/// So many messages that those still under way at the end do not matter.
const ENOUGH: u64 = 10_000;
/// How long the server may take to start under callgrind, and to end.
const LIMIT: Duration = Duration::from_secs(60);
const MAINSTAY: &str = "target/release/mainstay";
const SERVER: &str = "target/release/bench_server";
const SCRATCH: &str = "target/xtask/instructions";
const PROFILE: &str = "target/xtask/instructions/callgrind.out";

/// The arguments of `mainstay bench`.
struct Work {
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
    cargo("build --release --package mainstay-cli")?;
    cargo("build --release --package mainstay-peers --bin bench_server")?;
    fs::create_dir_all(SCRATCH)?;
    let mut above = Vec::new();
    for work in &WORK {
        for (kind, flags, limit) in
            [("plain", &[][..], work.plain), ("session", &["--session"], work.session)]
        {
            let (each, count) = work.each(flags)?;
            let what = format!("{}, {} in flight, {kind}", work.load, work.in_flight);
            let line = format!("{what}: {each:.0} instructions each of {count}, at most {limit}");
            println!("{line}");
            above.extend((each > limit).then_some(line));
        }
    }
    if above.is_empty() { Ok(Outcome::Passed) } else { Err(above.join("; ").into()) }
}

impl Work {
    /// The mean of instructions for each message, and the number of messages.
    fn each(&self, flags: &[&str]) -> Result<(f64, u64)> {
        let idle = self.run("idle", "200ms", flags)?;
        for duration in DURATIONS {
            let busy = self.run(self.load, duration, flags)?;
            if busy.count >= ENOUGH {
                let more = busy.instructions.saturating_sub(idle.instructions);
                return Ok((more as f64 / busy.count as f64, busy.count));
            }
        }
        Err(format!("{}: fewer than {ENOUGH} messages in {DURATIONS:?}", self.load).into())
    }

    fn run(&self, load: &str, duration: &str, flags: &[&str]) -> Result<Life> {
        let (mut server, address) = start()?;
        let mut bench = Command::new(MAINSTAY);
        bench.args(["bench", load, &format!("ws://{address}{}", self.at), "--json", "--warm-up", "0s"]);
        bench.args(["--duration", duration, "--connections", self.connections]);
        bench.args(["--in-flight", self.in_flight]).args(flags);
        let found: Value = serde_json::from_str(&output(&mut bench)?)?;
        let count = ["messages", "deliveries"].iter().find_map(|key| found.get(key)?.as_u64());
        server.signal("TERM")?;
        server.wait_end(LIMIT)?;
        let profile = fs::read_to_string(PROFILE)?;
        let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok());
        Ok(Life { instructions: total.ok_or("callgrind wrote no total")?, count: count.unwrap_or(0) })
    }
}

/// The work of a server from its start to its end.
struct Life {
    instructions: u64,
    /// Messages, or deliveries.
    count: u64,
}

/// A server under callgrind.
fn start() -> Result<(Background, SocketAddr)> {
    let address = free_address()?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", &format!("--callgrind-out-file={PROFILE}"), SERVER]);
    valgrind.args(["--listen", &address.to_string(), "--interval", "25"]);
    // With one worker no thread steals another's work, on any number of cores.
    valgrind.env("TOKIO_WORKER_THREADS", "1");
    let mut server = Background::start(&mut valgrind, Path::new(SCRATCH).join("server.log"))?;
    server.wait_listening(LIMIT, address)?;
    Ok((server, address))
}
