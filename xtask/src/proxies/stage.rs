//! One proxy on its stage: a client, the proxy by its recipe, a gateway, and a backend behind it. The client sends a message, is
//! silent for longer than the shortened limits, and sends another one.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::programs::MAINSTAY;
use crate::run::{Background, free_address, output};
use crate::{Result, metrics};

use super::LIMIT;
use super::proxy::{Place, Proxy};

/// Silence between the two messages of a client, in seconds: more than the limit.
const SILENCE: u32 = 7;
/// Asks over HTTP/2 without TLS, and prints the status and whether WebSockets over HTTP/2 are offered.
const ASK_HTTP2: &str = "
const client = require('node:http2').connect(process.argv[1]);
client.once('remoteSettings', (settings) => {
  const request = client.request({ ':path': '/' });
  request.once('response', (head) => {
    console.log(head[':status'], settings.enableConnectProtocol);
    client.destroy();
  });
});
";
/// The address that a client connects from, and the one that it claims to have.
const ADDRESS: &str = "127.0.0.5";
const CLAIM: &str = "203.0.113.9";

/// Plays the recipe of a proxy before the backend at this address.
pub(super) fn play(proxy: &Proxy, scratch: &Path, backend: &str) -> Result<()> {
    let folder = scratch.join(proxy.name);
    let _ = fs::remove_dir_all(&folder);
    let stage = |name: &str, heartbeat: &str| Stage::set(proxy, &folder.join(name), heartbeat, backend);
    let kept = stage("kept", "1s")?.converse(Stage::check_address)?;
    let cut = stage("cut", "60s")?.converse(|_| Ok(()))?;
    let reloaded = stage("reloaded", "1s")?.converse(Stage::reload)?;
    for (what, seen, loses) in [
        ("a heartbeat below the idle limit", &kept, Some(false)),
        ("a heartbeat above the idle limit", &cut, Some(proxy.has_idle_limit)),
        ("a reload of the proxy", &reloaded, proxy.keeps_at_reload.then_some(false)),
    ] {
        println!(
            "    {:8} {what:34} {} of 2 messages, connections lost: {}, gaps: {}",
            proxy.name, seen.messages, seen.lost, seen.gaps
        );
        if seen.messages != 2 || seen.gaps != 0 || loses.is_some_and(|loses| (seen.lost > 0) != loses) {
            return Err(
                format!("{what}: expected 2 messages, no gap, and connections lost: {loses:?}").into()
            );
        }
    }
    println!("    {:8} the client's address arrives, and what it claims does not", proxy.name);
    Ok(())
}

/// What a client saw.
pub(super) struct Seen {
    pub(super) messages: usize,
    pub(super) lost: usize,
    pub(super) gaps: usize,
}

impl Seen {
    /// Reads what `mainstay connect --json` printed.
    fn read(log: &Path) -> Result<Self> {
        let lines: Vec<Value> =
            fs::read_to_string(log)?.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
        let messages =
            lines.iter().filter(|line| ["one", "two"].iter().any(|text| line["message"] == *text)).count();
        Ok(Self { messages, lost: count("detached"), gaps: count("gap") })
    }
}

/// Sends a message to an echo, is silent, and sends another one. `meanwhile` is done in the silence.
pub(super) fn converse(
    at: SocketAddr,
    log: PathBuf,
    silence: u32,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Seen> {
    let script = format!(
        "(echo one; sleep {silence}; echo two) | {MAINSTAY} connect --json --linger 3s ws://{at}/echo"
    );
    let mut client = Background::start_quietly(Command::new("sh").args(["-c", &script]), log.clone())?;
    client.wait_until(LIMIT, |log| {
        fs::read_to_string(log).is_ok_and(|log| log.contains("\"message\":\"one\""))
    })?;
    meanwhile()?;
    client.wait_success(LIMIT)?;
    Seen::read(&log)
}

/// A gateway before a backend, and a proxy in front of it.
pub(super) struct Stage<'a> {
    proxy: &'a Proxy,
    folder: PathBuf,
    configuration: PathBuf,
    gateway: String,
    admin: SocketAddr,
    /// Where the proxy listens.
    pub(super) listening: SocketAddr,
    control: SocketAddr,
    running: Background,
    /// The process that took the place of the running one.
    _next: Option<Background>,
    _process: Background,
}

impl<'a> Stage<'a> {
    pub(super) fn set(proxy: &'a Proxy, folder: &Path, heartbeat: &str, backend: &str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let mut serve = Command::new("setpriv");
        serve.args(["--pdeathsig", "KILL", MAINSTAY, "serve", "--listen", "127.0.0.1:0"]);
        serve.args(["--admin", "127.0.0.1:0", "--upstream", backend, "--trusted-proxy", "127.0.0.1"]);
        serve.args(["--heartbeat", heartbeat]);
        let mut process = Background::start_quietly(&mut serve, folder.join("gateway.log"))?;
        let gateway = process.announced(LIMIT, "listening on ws://")?;
        let admin: SocketAddr =
            process.announced(LIMIT, "admin on http://")?.trim_end_matches(':').parse()?;
        let (listening, control) = (free_address()?, free_address()?);
        let place = Place { folder, gateway: &gateway, admin, listening, control };
        let configuration = proxy.configure(&place)?;
        let running = proxy.start(&configuration, &place)?;
        let folder = folder.to_owned();
        Ok(Self {
            proxy,
            folder,
            configuration,
            gateway,
            admin,
            listening,
            control,
            running,
            _next: None,
            _process: process,
        })
    }

    fn converse(mut self, meanwhile: impl FnOnce(&mut Self) -> Result<()>) -> Result<Seen> {
        let (at, log) = (self.listening, self.folder.join("client.log"));
        converse(at, log, SILENCE, || meanwhile(&mut self))
    }

    fn reload(&mut self) -> Result<()> {
        let Self { proxy, folder, configuration, gateway, admin, listening, control, running, .. } = self;
        let (admin, listening, control) = (*admin, *listening, *control);
        let place = Place { folder, gateway, admin, listening, control };
        self._next = proxy.reload(running, configuration, &place)?;
        Ok(())
    }

    /// Opens a WebSocket from one address that claims to come from another. The gateway must list the first.
    fn check_address(&mut self) -> Result<()> {
        let claim = format!("X-Forwarded-For: {CLAIM}");
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer", "--http1.1", "--max-time", "60", "--interface", ADDRESS]);
        for header in [
            claim.as_str(),
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ] {
            curl.args(["--header", header]);
        }
        curl.arg(format!("http://{}/echo", self.listening));
        let mut client = Background::start_quietly(&mut curl, self.folder.join("curl.log"))?;
        let mut listed = String::new();
        client.wait_until(LIMIT, |_| {
            listed = metrics::get(self.admin, "/sessions").unwrap_or_default();
            listed.contains(ADDRESS) || listed.contains(CLAIM)
        })?;
        if listed.contains(CLAIM) {
            return Err(format!("the gateway believes a client that claims to be {CLAIM}").into());
        }
        if self.proxy.speaks_http2 { self.check_http2() } else { Ok(()) }
    }

    /// Requests pass over HTTP/2, and browsers open their WebSockets over HTTP/1.1, as the proxy offers nothing else.
    fn check_http2(&self) -> Result<()> {
        let url = format!("http://{}", self.listening);
        let seen = output(Command::new("timeout").args(["30", "node", "-e", ASK_HTTP2, &url]))?;
        if seen.trim() != "200 false" {
            return Err(format!("over HTTP/2 expected \"200 false\", got {seen:?}").into());
        }
        println!(
            "    {:8} passes requests over HTTP/2, and offers WebSockets over HTTP/1.1 alone",
            self.proxy.name
        );
        Ok(())
    }
}
