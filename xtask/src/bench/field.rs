//! The servers that take part: ours, and the peers of `benches/peers`, each built or installed by its own package manager.
//!
//! The generator connects to servers directly. Gateways stand before one more server, the same for all of them, which
//! the generator also measures without a gateway.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::process::Command;

use crate::Result;
use crate::install;
use crate::run::{check, output};

const PEERS: &str = "benches/peers";

/// Every name that `--server` takes.
pub(super) const NAMES: [&str; 19] = [
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
    SOCKETIFY,
    "mainstay gateway",
    "mainstay gateway, session",
    "nginx",
    "nginx, 32 KiB buffers",
    HTTP_PROXY,
    DIRECT,
    PLUGIN,
];

/// A Python server on uWebSockets: its figures are those of a call into CPython for each message.
pub(super) const SOCKETIFY: &str = "socketify (Python)";

/// The Fastify plugin; [`plugin`](super::plugin) measures it.
pub(super) const PLUGIN: &str = "@mainstay/fastify";

const HTTP_PROXY: &str = "@fastify/http-proxy";

/// The server behind the gateways, measured directly.
pub(super) const DIRECT: &str = "no gateway";

pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with("mainstay")
}

/// Which servers are to be prepared.
pub(super) struct Wanted<'a> {
    pub(super) quick: bool,
    /// The ones that the user named; all if the user named none.
    pub(super) named: &'a [String],
}

impl Wanted<'_> {
    /// A smoke test has our servers, and those that one `npm ci` installs, to prove that gateways are measured alike.
    pub(super) fn has(&self, name: &str) -> bool {
        match self.named {
            [] => !self.quick || is_ours(name) || name == HTTP_PROXY || name == PLUGIN,
            named => named.iter().any(|one| one == name),
        }
    }

    fn of(&self, servers: impl IntoIterator<Item = Server>) -> Vec<Server> {
        servers.into_iter().filter(|server| self.has(server.name)).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The generator connects to it; it has no upstream.
    Server,
    Gateway,
    /// Behind the gateways.
    Upstream,
}

/// One server or gateway that takes part.
pub(super) struct Server {
    pub(super) name: &'static str,
    /// What it is, with its versions.
    pub(super) about: String,
    /// The command line that starts it: `LISTEN` stands for an address, `INTERVAL` for the seconds between its heartbeats,
    /// `UPSTREAM` for the address of the server behind it.
    program: String,
    pub(super) place: Place,
    /// Whether the generator speaks mainstay.v1 to it.
    pub(super) session: bool,
    /// Whether the work is done by a child of the process that is started.
    pub(super) forks: bool,
}

impl Server {
    fn new(name: &'static str, about: impl Into<String>, program: impl Into<String>) -> Self {
        let session = name.ends_with(", session");
        let (about, program) = (about.into(), program.into());
        Self { name, about, program, place: Place::Server, session, forks: false }
    }

    /// A peer with the flags that all peers have.
    fn peer(name: &'static str, about: impl Into<String>, program: &str) -> Self {
        Self::new(name, about, format!("{program} --listen LISTEN --interval INTERVAL"))
    }

    fn gateway(name: &'static str, about: impl Into<String>, program: impl Into<String>) -> Self {
        Self { place: Place::Gateway, ..Self::new(name, about, program) }
    }

    /// The command that starts it.
    pub(super) fn command(&self, listen: &str, upstream: &str, interval: u32) -> Vec<String> {
        let interval = interval.to_string();
        let word = |word: &str| {
            word.replace("LISTEN", listen).replace("UPSTREAM", upstream).replace("INTERVAL", &interval)
        };
        self.program.split(' ').map(word).collect()
    }
}

/// Ours.
pub(super) fn ours() -> Vec<Server> {
    let app = "target/release/bench_server";
    let serve = "target/release/mainstay serve --listen LISTEN";
    let builtin = format!("{serve} --heartbeat INTERVALs");
    let gateway = format!("{serve} --upstream ws://UPSTREAM");
    vec![
        Server::peer("mainstay", "an axum application with our extractor, plain WebSocket", app),
        Server::peer("mainstay, session", "the same, with clients that speak mainstay.v1", app),
        Server::new("mainstay serve", "the gateway's built-in backend, plain WebSocket", &builtin),
        Server::new("mainstay serve, session", "the same, with clients that speak mainstay.v1", &builtin),
        Server::gateway("mainstay gateway", "all as it comes, plain WebSocket in front", &gateway),
        Server::gateway("mainstay gateway, session", "the same, mainstay.v1 in front", &gateway),
    ]
}

/// Builds and installs what is wanted; also returns which servers cannot take part here, and why.
pub(super) fn prepare(wanted: &Wanted) -> Result<(Vec<Server>, Vec<String>)> {
    let mut servers = wanted.of(ours());
    let mut missing = Vec::new();
    let mut left_out = |error: Box<dyn Error>| {
        println!("--- LEFT OUT: {error}");
        missing.push(error.to_string().lines().next().unwrap_or_default().to_owned());
    };
    for family in [rust, node, cpp, python, nginx] {
        family(wanted).map_or_else(&mut left_out, |peers| servers.extend(peers));
    }
    if wanted.has(DIRECT) || servers.iter().any(|server| server.place == Place::Gateway) {
        match upstream(wanted.quick) {
            Ok(upstream) => servers.push(upstream),
            Err(error) => {
                left_out(error);
                servers.retain(|server| server.place != Place::Gateway);
            }
        }
    }
    if servers.is_empty() {
        return Err("no server is left to measure".into());
    }
    Ok((servers, missing))
}

fn rust(wanted: &Wanted) -> Result<Vec<Server>> {
    let names = ["axum, 4 KiB buffers", "axum", "tokio-websockets", "fastwebsockets"];
    if !names.iter().any(|name| wanted.has(name)) {
        return Ok(Vec::new());
    }
    let about = rust_packages()?;
    let axum = about(&["axum", "tungstenite", "tokio"]);
    let program = |name: &str| format!("{PEERS}/target/release/{name}");
    Ok(wanted.of([
        Server::peer(
            names[0],
            format!("{axum}; read_buffer_size(4096)"),
            &(program("axum") + " --read-buffer 4096"),
        ),
        Server::peer(names[1], format!("{axum}; as it comes"), &program("axum")),
        Server::peer(names[2], about(&["tokio-websockets", "tokio"]), &program("tokio-websockets")),
        Server::peer(names[3], about(&["fastwebsockets", "hyper", "tokio"]), &program("fastwebsockets")),
    ]))
}

/// Builds them, and returns the versions of some.
fn rust_packages() -> Result<impl Fn(&[&str]) -> String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["build", "--release", "--locked"];
    check(Command::new(cargo).args(arguments).current_dir(PEERS))?;
    let versions = locked_crates(&fs::read_to_string(format!("{PEERS}/Cargo.lock"))?);
    Ok(move |what: &[&str]| {
        let named = |name: &&str| format!("{name} {}", versions.get(*name).map_or("?", String::as_str));
        what.iter().map(named).collect::<Vec<_>>().join(", ")
    })
}

fn node(wanted: &Wanted) -> Result<Vec<Server>> {
    let names = ["ws", "@fastify/websocket", HTTP_PROXY];
    if !names.iter().any(|name| wanted.has(name)) {
        return Ok(Vec::new());
    }
    let locked = node_packages()?;
    let on_fastify = |name: &str| format!("{}, {}", locked(name), locked("fastify"));
    let proxy = format!("node {PEERS}/node/http-proxy.mjs --listen LISTEN --upstream http://UPSTREAM");
    Ok(wanted.of([
        ws()?,
        Server::peer(names[1], on_fastify(names[1]), &format!("node {PEERS}/node/fastify.mjs")),
        Server::gateway(names[2], on_fastify(names[2]), proxy),
    ]))
}

fn ws() -> Result<Server> {
    let about = node_packages()?("ws");
    Ok(Server::peer("ws", about, &format!("node {PEERS}/node/ws.mjs")))
}

/// Installs them, and returns the version of one.
fn node_packages() -> Result<impl Fn(&str) -> String> {
    let folder = format!("{PEERS}/node");
    install::node_packages(&folder)?;
    let lock: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(format!("{folder}/package-lock.json"))?)?;
    Ok(move |name: &str| {
        let version = lock.pointer(&format!("/packages/node_modules~1{}/version", name.replace('/', "~1")));
        format!("{name} {}", version.and_then(|version| version.as_str()).unwrap_or("?"))
    })
}

fn cpp(wanted: &Wanted) -> Result<Vec<Server>> {
    if !wanted.has("uWebSockets") {
        return Ok(Vec::new());
    }
    let (program, version) = install::uwebsockets(PEERS)?;
    let about = format!("C++, no TLS, no zlib; the sources in libuwebsockets-sys {version}");
    Ok(vec![Server::peer("uWebSockets", about, &program.display().to_string())])
}

fn python(wanted: &Wanted) -> Result<Vec<Server>> {
    if !wanted.has(SOCKETIFY) {
        return Ok(Vec::new());
    }
    let python = install::socketify()?;
    let program = format!("{} {PEERS}/python/uwebsockets.py", python.display());
    let about = format!("uWebSockets called from CPython, {}", install::SOCKETIFY.replace("==", " "));
    Ok(vec![Server::peer(SOCKETIFY, about, &program)])
}

fn nginx(wanted: &Wanted) -> Result<Vec<Server>> {
    let names = ["nginx", "nginx, 32 KiB buffers"];
    if !names.iter().any(|name| wanted.has(name)) {
        return Ok(Vec::new());
    }
    let nginx = install::nginx()?;
    let version = output(Command::new("sh").args(["-c", &format!("{} -v 2>&1", nginx.display())]))?;
    let version = version.trim().trim_start_matches("nginx version: nginx/").to_owned();
    let gateway = |name, about: &str, buffer: &str| {
        let program = format!("sh {PEERS}/nginx/start.sh {}", nginx.display());
        let flags = format!("--listen LISTEN --upstream UPSTREAM --buffer {buffer}");
        let about = format!("{version}, one worker, {about}");
        Server { forks: true, ..Server::gateway(name, about, format!("{program} {flags}")) }
    };
    Ok(wanted.of([
        gateway(names[0], "buffers as they come", "4k"),
        gateway(names[1], "`proxy_buffer_size 32k`", "32k"),
    ]))
}

/// The server behind all gateways. The smoke test uses the one that came with [`HTTP_PROXY`].
fn upstream(quick: bool) -> Result<Server> {
    let server = if quick {
        ws()?
    } else {
        let about =
            rust_packages()?(&["tokio-websockets", "tokio"]) + "; one write for all that came at once";
        Server::peer(DIRECT, about, &format!("{PEERS}/target/release/upstream"))
    };
    let about = format!("what the gateways stand before: {}", server.about);
    Ok(Server { name: DIRECT, about, place: Place::Upstream, ..server })
}

/// The name and version of every package in a Cargo.lock; the last if there are several versions.
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
