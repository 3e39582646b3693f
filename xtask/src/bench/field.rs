//! Who takes part: ours, and the peers of `benches/peers`, each built or installed by its own package manager.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;

use crate::Result;
use crate::install;
use crate::run::check;

const PEERS: &str = "benches/peers";

/// Every name that `--server` takes.
pub(super) const NAMES: [&str; 11] = [
    "mainstay",
    "mainstay, session",
    "mainstay serve",
    "mainstay serve, session",
    "axum, 4 KiB buffers",
    "axum",
    "tokio-websockets",
    "fastwebsockets",
    "ws",
    "@fastify/websocket",
    "uWebSockets",
];

pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with("mainstay")
}

/// One server that takes part.
pub(super) struct Server {
    pub(super) name: &'static str,
    /// What it is, with its versions.
    pub(super) about: String,
    program: Vec<String>,
    /// How it calls the interval of its heartbeat.
    interval: &'static str,
    /// Whether the generator speaks mainstay.v1 to it.
    pub(super) session: bool,
}

impl Server {
    fn new(name: &'static str, about: impl Into<String>, program: &str) -> Self {
        let program = program.split(' ').map(str::to_owned).collect();
        Self {
            name,
            about: about.into(),
            program,
            interval: "--interval",
            session: name.ends_with(", session"),
        }
    }

    /// The command that starts it.
    pub(super) fn command(&self, listen: SocketAddr, interval: u32) -> Vec<String> {
        let unit = if self.interval == "--heartbeat" { "s" } else { "" };
        let flags =
            ["--listen".into(), listen.to_string(), self.interval.into(), format!("{interval}{unit}")];
        self.program.iter().cloned().chain(flags).collect()
    }
}

/// Ours.
pub(super) fn ours() -> Vec<Server> {
    let app = "target/release/examples/bench_server";
    let serve = |name, about| Server {
        interval: "--heartbeat",
        ..Server::new(name, about, "target/release/mainstay serve")
    };
    vec![
        Server::new("mainstay", "an axum application with our extractor, plain WebSocket", app),
        Server::new("mainstay, session", "the same, with clients that speak mainstay.v1", app),
        serve("mainstay serve", "the gateway's built-in backend, plain WebSocket"),
        serve("mainstay serve, session", "the same, with clients that speak mainstay.v1"),
    ]
}

/// Builds and installs what is wanted; also says who cannot take part here, and why.
pub(super) fn prepare(wanted: impl Fn(&str) -> bool) -> Result<(Vec<Server>, Vec<String>)> {
    let mut servers: Vec<Server> = ours().into_iter().filter(|server| wanted(server.name)).collect();
    let mut missing = Vec::new();
    for family in [rust, node, python] {
        if let Err(error) = family(&wanted).map(|peers| servers.extend(peers)) {
            println!("--- LEFT OUT: {error}");
            missing.push(error.to_string().lines().next().unwrap_or_default().to_owned());
        }
    }
    if servers.is_empty() {
        return Err("no server is left to measure".into());
    }
    Ok((servers, missing))
}

fn rust(wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Server>> {
    let names = ["axum, 4 KiB buffers", "axum", "tokio-websockets", "fastwebsockets"];
    if !names.iter().any(|name| wanted(name)) {
        return Ok(Vec::new());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--release", "--locked"];
    check(std::process::Command::new(cargo).args(arguments).current_dir(PEERS))?;
    let versions = locked_crates(&fs::read_to_string(format!("{PEERS}/Cargo.lock"))?);
    let about = |what: &[&str]| {
        let named = |name: &&str| format!("{name} {}", versions.get(*name).map_or("?", String::as_str));
        what.iter().map(named).collect::<Vec<_>>().join(", ")
    };
    let axum = about(&["axum", "tungstenite", "tokio"]);
    let program = |name: &str| format!("{PEERS}/target/release/{name}");
    let all = [
        Server::new(
            names[0],
            format!("{axum}; read_buffer_size(4096)"),
            &(program("axum") + " --read-buffer 4096"),
        ),
        Server::new(names[1], format!("{axum}; as it comes"), &program("axum")),
        Server::new(names[2], about(&["tokio-websockets", "tokio"]), &program("tokio-websockets")),
        Server::new(names[3], about(&["fastwebsockets", "hyper", "tokio"]), &program("fastwebsockets")),
    ];
    Ok(all.into_iter().filter(|server| wanted(server.name)).collect())
}

fn node(wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Server>> {
    let names = ["ws", "@fastify/websocket"];
    if !names.iter().any(|name| wanted(name)) {
        return Ok(Vec::new());
    }
    let folder = format!("{PEERS}/node");
    install::node_packages(&folder)?;
    let lock: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(format!("{folder}/package-lock.json"))?)?;
    let version = |name: &str| {
        let version = lock.pointer(&format!("/packages/node_modules~1{}/version", name.replace('/', "~1")));
        format!("{name} {}", version.and_then(|version| version.as_str()).unwrap_or("?"))
    };
    let all = [
        Server::new(names[0], version("ws"), &format!("node {folder}/ws.mjs")),
        Server::new(
            names[1],
            format!("{}, {}", version("@fastify/websocket"), version("fastify")),
            &format!("node {folder}/fastify.mjs"),
        ),
    ];
    Ok(all.into_iter().filter(|server| wanted(server.name)).collect())
}

fn python(wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Server>> {
    if !wanted("uWebSockets") {
        return Ok(Vec::new());
    }
    let python = install::socketify()?;
    let program = format!("{} {PEERS}/python/uwebsockets.py", python.display());
    Ok(vec![Server::new("uWebSockets", format!("C++, through {}", install::SOCKETIFY), &program)])
}

/// Name and version of every package of a Cargo.lock; of several versions the last.
fn locked_crates(lock: &str) -> BTreeMap<String, String> {
    let value = |line: &str, key: &str| Some(line.strip_prefix(key)?.trim_matches('"').to_owned());
    let mut name = String::new();
    let mut versions = BTreeMap::new();
    for line in lock.lines() {
        if let Some(found) = value(line, "name = ") {
            name = found;
        } else if let Some(found) = value(line, "version = ") {
            versions.insert(std::mem::take(&mut name), found);
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_a_lock_file() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.2.3\"\nsource = \"x\"\n";
        assert_eq!(locked_crates(lock).get("a").map(String::as_str), Some("1.2.3"));
    }

    #[test]
    fn every_server_of_ours_can_be_named() {
        assert!(ours().iter().all(|server| NAMES.contains(&server.name) && is_ours(server.name)));
    }
}
