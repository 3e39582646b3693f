//! Engines and flags that a node cannot use: what it prints, and the code with which it ends. And an engine that is away at
//! the start: the node serves alone, and joins later.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread::{sleep, spawn};
use std::time::Duration;

use super::rounds::{Cluster, NAME, Size};
use super::rows::{self, Allowed, Must, row};
use super::stage::{LIMIT, Stage, folder};
use crate::engines::{Program, Server};
use crate::run::Background;
use crate::{Result, cluster};

/// Nothing listens there: the port of `discard`, which no proof uses.
const NOWHERE: &str = "ws://127.0.0.1:9";

/// Longer than the 3 s between two readings of the table.
const HEARTBEAT: Duration = Duration::from_secs(4);

/// A wrong start: what is wrong, the flags, and words of the one line that it must print.
struct Wrong<'a> {
    what: &'a str,
    flags: Vec<&'a str>,
    words: &'a [&'a str],
}

/// Engines that are there and cannot serve.
struct Engines {
    good: Server,
    guarded: Server,
    replica: Server,
    /// Speaks HTTP.
    other: String,
}

/// Every wrong start ends with code 2 and one line that says what to do.
pub(super) fn refused(program: &Program) -> Result<()> {
    let home = folder("startup")?;
    let engines = Engines::start(program, &home)?;
    let wrong_password = format!("redis://:wrong@{}", engines.guarded.address);
    let urls = [&engines.guarded, &engines.replica, &engines.good].map(Server::url);
    let file = home.join("file");
    fs::write(&file, "no folder")?;
    let file = file.to_str().unwrap_or_default();
    let engine = |url| vec!["--cluster", url];
    let more = |flags: &[&'static str]| [&engine(urls[2].as_str())[..], flags].concat();
    let cases = [
        Wrong { what: "another scheme", flags: engine("http://127.0.0.1:6379"), words: &["redis://"] },
        Wrong { what: "a URL without a host", flags: engine("redis://"), words: &["redis://"] },
        Wrong { what: "no URL", flags: engine("127.0.0.1:6379"), words: &["redis://"] },
        Wrong { what: "a missing password", flags: engine(&urls[0]), words: &["password"] },
        Wrong { what: "a wrong password", flags: engine(&wrong_password), words: &["password"] },
        Wrong { what: "a replica", flags: engine(&urls[1]), words: &["replica"] },
        Wrong { what: "a server that is no engine", flags: engine(&engines.other), words: &["no engine"] },
        Wrong {
            what: "a name that is none",
            flags: more(&["--cluster-name", "a b"]),
            words: &["--cluster-name"],
        },
        Wrong {
            what: "a file beside an engine",
            flags: more(&["--state-dir", "/tmp"]),
            words: &["--state-dir", "--cluster"],
        },
        Wrong { what: "a file instead of a folder", flags: vec!["--state-dir", file], words: &[file] },
        Wrong {
            what: "sessions that move, backends that do not",
            flags: more(&["--movable", "--upstream", NOWHERE]),
            words: &["--movable", "--on-backend-loss"],
        },
        Wrong {
            what: "sessions that move nowhere",
            flags: vec!["--movable"],
            words: &["--movable", "--cluster", "--state-dir"],
        },
    ];
    println!("--- starts that cannot become right");
    let failures: Vec<String> = cases.iter().filter_map(|case| case.play(&home).err()).collect();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

impl Engines {
    fn start(program: &Program, home: &Path) -> Result<Self> {
        let good = program.start(home, &[])?;
        let master = good.address.port().to_string();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let other = format!("redis://{}", listener.local_addr()?);
        spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            }
        });
        let guarded = program.start(home, &[])?;
        guarded.run(&["CONFIG", "SET", "requirepass", "correct"])?; // it answered a PING without one until now
        let replica = program.start(home, &["--replicaof", "127.0.0.1", &master])?;
        Ok(Self { good, guarded, replica, other })
    }
}

impl Wrong<'_> {
    /// Returns what is not as it must be.
    fn play(&self, home: &Path) -> std::result::Result<(), String> {
        let wrong = |what: String| format!("{}: {what}", self.what);
        let log = home.join("refused.log");
        let mut serve = Command::new(cluster::MAINSTAY);
        serve.args(["serve", "--listen", "127.0.0.1:0"]).args(&self.flags);
        let mut process =
            Background::start_quietly(&mut serve, log.clone()).map_err(|e| wrong(e.to_string()))?;
        let status = process.wait_end(LIMIT).map_err(|error| wrong(error.to_string()))?;
        let printed = fs::read_to_string(log).map_err(|error| wrong(error.to_string()))?;
        println!("    {:44} {}", self.what, printed.trim_end());
        let missing = self.words.iter().find(|word| !printed.contains(**word));
        match (status.code(), printed.lines().count(), missing) {
            (Some(2), 1, None) => Ok(()),
            (Some(2), 1, Some(word)) => Err(wrong(format!("the line does not name {word}: {printed}"))),
            (Some(2), lines, _) => Err(wrong(format!("{lines} lines: {printed}"))),
            _ => Err(wrong(format!("{status}, not code 2: {printed}"))),
        }
    }
}

/// No engine answers when the nodes start: each serves alone and says so. Once it answers, they are a cluster.
pub(super) fn engine_comes_later(program: &Program, size: &Size) -> Result<()> {
    let (home, address) = (folder("later-engine")?, unused_address()?);
    let url = format!("redis://{address}");
    let flags = ["--cluster", &url, "--cluster-name", NAME];
    let mut stage = Stage::set(&size.setup("later", 2, &flags))?;
    let alone = stage.lines_of_nodes("this node serves alone")?;
    let engine = program.start_at(address, &home, &[])?;
    stage.wait_line("node seen")?;
    stage.cut_and_wait(size.clients)?;
    let verdict = stage.close()?;
    drop(engine);
    let mut rows = rows::of(&verdict, &Allowed::NOTHING);
    rows.push(row("nodes that said that they serve alone", alone, Must::Be(2)));
    rows::judge(&format!("{:?}: it answers only after the nodes have started", program.brand), &rows)
}

/// A free address whose port the kernel gives to no connection: a node that dials a port of its own range again and again
/// would reach itself one day.
fn unused_address() -> Result<SocketAddr> {
    let free = (7_000..10_000).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut free = free.filter(|address| TcpListener::bind(address).is_ok());
    free.next().ok_or_else(|| "no port below 10,000 is free".into())
}

/// Two clusters use one engine under one name, which each node notices; no client of either is harmed.
pub(super) fn two_clusters(program: &Program, size: &Size) -> Result<()> {
    let cluster = Cluster::start(program, "two-engine")?;
    let mut stage = Stage::set(&size.setup("two", 2, &cluster.flags(&[])))?;
    let others = size.setup("two-others", 1, &cluster.flags(&["--session-header", "x-tenant"]));
    let mut other = Stage::set(&others)?;
    other.wait_line("node seen")?;
    sleep(HEARTBEAT); // and the first has seen the second
    stage.cut_and_wait(size.clients)?;
    other.cut_and_wait(size.clients)?;
    let words = "under the same name";
    let noticed = [stage.lines_of_nodes(words)?, other.lines_of_nodes(words)?];
    for (name, stage) in [("the first of two clusters under one name", stage), ("the second of them", other)]
    {
        rows::judge(name, &rows::of(&stage.close()?, &Allowed::NOTHING))?;
    }
    let rows = [
        row("lines of the first that notice the second", noticed[0], Must::BeAtLeast(1)),
        row("lines of the second that notice the first", noticed[1], Must::BeAtLeast(1)),
    ];
    rows::judge("two clusters under one name", &rows)
}
