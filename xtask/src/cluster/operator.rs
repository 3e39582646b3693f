//! The operator of three nodes asks one of them: it answers for all, names a node that is stopped, and a revocation reaches every
//! node, also one that starts later.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::DEBUG;
use super::rounds::{Cluster, NAME, Size};
use super::rows::{self, Must, row};
use super::stage::{self, LIMIT, Node};
use crate::engines::Program;
use crate::run::Background;
use crate::{Result, cluster};

/// The secret of the tokens, for HS256.
const SECRET: &str = "a secret of the proof of clusters, 32 bytes or more";
/// The tokens of `alice` and of `bob`, issued in 2023 and valid until 2100.
const ALICE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbGljZSIsImlhdCI6MTcwMDAwMDAwMCwiZXhwIjo0MTAyNDQ0ODAwfQ.WjX1djwCWLT9pDyNygrQtd0XFTkrAVjeHecB7ruRBmM";
const BOB: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJib2IiLCJpYXQiOjE3MDAwMDAwMDAsImV4cCI6NDEwMjQ0NDgwMH0.DYEjq4xY4vNtq1lNq-8p6F9pCuvLG1NsA-A4yCZeXw4";
/// Sessions of each of the two at each node.
const SESSIONS: usize = 2;

pub(super) fn operator(program: &Program, _size: &Size) -> Result<()> {
    let cluster = Cluster::start(program, "operator-engine")?;
    let folder = stage::folder("operator")?;
    let mut world = World::start(&folder, &cluster)?;
    let commands = cluster.server()?.monitor()?;
    let mut rows = Vec::new();

    let all = world.wait_listed(0, "", 3 * 2 * SESSIONS)?;
    let at_nodes = nodes_of(&all);
    rows.push(row("nodes in the list of one", at_nodes.len() as u64, Must::Be(3)));
    rows.push(row("sessions in pages of 5", pages(world.nodes[1].admin, 5)? as u64, Must::Be(12)));
    // A session of alice, as the others of hers end later.
    let all = world.wait_listed(0, "subject=alice", 3 * SESSIONS)?;
    let id = all.last().and_then(|session| session["id"].as_str()).ok_or("a session has no id")?;
    let far = world.place_of_other(&all)?;
    let (status, one) = ask(world.nodes[far].admin, "GET", &format!("/sessions/{id}"))?;
    let is_found = status == 200 && one["session"]["id"] == id && !one["timeline"][0]["node"].is_null();
    rows.push(row("its timeline at another node", u64::from(is_found), Must::Be(1)));
    let (status, ended) = ask(world.nodes[far].admin, "DELETE", &format!("/sessions/{id}"))?;
    rows.push(row("ended from another node", u64::from(status == 200 && ended["ended"] == 1), Must::Be(1)));
    world.wait_listed(0, "", 3 * 2 * SESSIONS - 1)?;

    // One node is stopped: it accepts TCP, and says nothing.
    world.nodes[2].process.signal("STOP")?;
    let started = Instant::now();
    let (status, partial) = ask(world.nodes[0].admin, "GET", "/sessions")?;
    println!("    the answer without a stopped node took {:.1} s", started.elapsed().as_secs_f64());
    let named = partial["unreachable"][0]["node"].as_str().unwrap_or_default().to_owned();
    let is_silent = partial["unreachable"][0]["why"].as_str().is_some_and(|why| why.contains("within 1 s"));
    rows.push(row(
        "a stopped node is named",
        u64::from(status == 200 && at_nodes.contains(&named) && is_silent),
        Must::Be(1),
    ));
    rows.push(row("... and the others are listed", nodes_of(sessions(&partial)).len() as u64, Must::Be(2)));
    let (status, revoked) = ask(world.nodes[0].admin, "POST", "/subjects/alice/revoke")?;
    rows.push(row("a revocation that a node did not get: status", status.into(), Must::Be(207)));
    rows.push(row("... kept for it", u64::from(revoked["stored"] == true), Must::Be(1)));
    rows.push(row("... token refused at the second node", world.status_with(1, ALICE)?, Must::Be(401)));

    // It learns what it has missed, and so does a node that starts later.
    world.nodes[2].process.signal("CONT")?;
    world.wait_refused(2)?;
    world.wait_listed(2, "subject=alice", 0)?;
    rows.push(row("sessions of alice anywhere", world.listed(0, "subject=alice")?.len() as u64, Must::Be(0)));
    let bobs = world.listed(0, "subject=bob")?.len();
    rows.push(row("sessions of bob", bobs as u64, Must::Be(3 * SESSIONS as u64)));
    world.add_node(&folder)?;
    world.wait_refused(3)?;
    rows.push(row(
        "... token of bob at the node that started later",
        world.status_with(3, BOB)?,
        Must::Be(101),
    ));

    let lines: Vec<String> = commands.try_iter().collect();
    let notes = |command: &str| {
        let is_note = |line: &&String| {
            line.contains(&format!("mainstay:{NAME}:{{notes}}")) && line.to_lowercase().contains(command)
        };
        lines.iter().filter(is_note).count() as u64
    };
    rows.push(row("writes of the engine for the revocation", notes("\"hset\""), Must::Be(1)));
    rows::judge(&format!("{:?}: one node answers the operator for all", program.brand), &rows)
}

struct World {
    nodes: Vec<Node>,
    flags: Vec<String>,
    upstream: String,
    _clients: Vec<Background>,
    _backend: Background,
}

impl World {
    /// Three nodes that require tokens, with sessions of both users at each.
    fn start(folder: &Path, cluster: &Cluster) -> Result<Self> {
        let mut serve = Command::new(cluster::MAINSTAY);
        serve.args(["serve", "--listen", "127.0.0.1:0"]);
        let mut backend = Background::start_quietly(&mut serve, folder.join("backend.log"))?;
        let upstream = format!("ws://{}/echo", backend.announced(LIMIT, "listening on ws://")?);
        let (key, file) = (folder.join("key"), folder.join("mainstay.toml"));
        fs::write(&key, SECRET)?;
        let jwt = format!("algorithms = [\"HS256\"]\nkeys-file = \"{}\"\n", key.display());
        fs::write(&file, format!("[routes.default.credentials.jwt]\n{jwt}"))?;
        let config = file.display().to_string();
        let flags = cluster.flags(&["--config", &config]).into_iter().map(str::to_owned).collect();
        let mut world = Self { nodes: Vec::new(), flags, upstream, _clients: Vec::new(), _backend: backend };
        for _ in 0..3 {
            world.add_node(folder)?;
        }
        for node in 0..3 {
            for (token, number) in
                [ALICE, BOB].into_iter().flat_map(|token| (0..SESSIONS).map(move |n| (token, n)))
            {
                let log = folder.join(format!("client-{node}-{number}-{}.log", &token[token.len() - 6..]));
                world._clients.push(client(world.nodes[node].listening, token, &log)?);
            }
        }
        Ok(world)
    }

    fn add_node(&mut self, folder: &Path) -> Result<()> {
        let mut node = Node::start(folder, self.nodes.len() + 1, DEBUG, &self.upstream, &self.flags)?;
        node.wait_ready()?;
        self.nodes.push(node);
        Ok(())
    }

    fn listed(&self, node: usize, query: &str) -> Result<Vec<Value>> {
        let (_, answer) = ask(self.nodes[node].admin, "GET", &format!("/sessions?{query}"))?;
        Ok(sessions(&answer).to_vec())
    }

    /// Waits until a node lists so many sessions of all nodes, without any that is missing.
    fn wait_listed(&self, node: usize, query: &str, count: usize) -> Result<Vec<Value>> {
        wait(&format!("{count} sessions with {query:?}"), || {
            let (_, answer) = ask(self.nodes[node].admin, "GET", &format!("/sessions?{query}"))?;
            let is_whole = answer["unreachable"].as_array().is_some_and(Vec::is_empty)
                && answer["table_complete"] == true;
            let found = sessions(&answer).to_vec();
            Ok((is_whole && found.len() == count).then_some(found))
        })
    }

    /// A node that does not have the last session of the list.
    fn place_of_other(&self, all: &[Value]) -> Result<usize> {
        let owner = all.last().map(|session| session["node"].clone());
        for (place, node) in self.nodes.iter().enumerate() {
            let (_, cluster) = ask(node.admin, "GET", "/cluster")?;
            if Some(&cluster["node"]) != owner.as_ref() {
                return Ok(place);
            }
        }
        Err("every node has the session".into())
    }

    /// The status of an opening handshake with this token.
    fn status_with(&self, node: usize, token: &str) -> Result<u64> {
        let address = self.nodes[node].listening;
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer {token}\r\n\r\n"
        )?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(std::str::from_utf8(&status[9..])?.parse()?)
    }

    /// Waits until a node refuses the token that was revoked.
    fn wait_refused(&self, node: usize) -> Result<()> {
        wait("a refusal", || Ok((self.status_with(node, ALICE)? == 401).then_some(())))
    }
}

/// A session that stays.
fn client(node: SocketAddr, token: &str, log: &Path) -> Result<Background> {
    let mut connect = Command::new(cluster::MAINSTAY);
    connect.args(["connect", &format!("ws://{node}/"), "--once", "--linger", "1h"]);
    connect.args(["--header", &format!("Authorization: Bearer {token}")]);
    Background::start_quietly(&mut connect, log.to_owned())
}

/// Waits until the look finds something.
fn wait<T>(what: &str, look: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() > LIMIT {
            return Err(format!("no {what} within {LIMIT:?}").into());
        }
        sleep(Duration::from_millis(100));
    }
}

/// Asks an admin listener; returns the status and the object that it answers.
fn ask(admin: SocketAddr, method: &str, target: &str) -> Result<(u16, Value)> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let head = format!("Host: {admin}\r\nX-Mainstay-Admin: 1\r\nContent-Length: 0\r\nConnection: close");
    write!(stream, "{method} {target} HTTP/1.1\r\n{head}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    let status = head.split(' ').nth(1).ok_or("no status")?.parse()?;
    let body = serde_json::from_str(body).map_err(|_| format!("{method} {target}: {status} {body}"))?;
    Ok((status, body))
}

fn sessions(answer: &Value) -> &[Value] {
    answer["sessions"].as_array().map_or(&[], Vec::as_slice)
}

/// The nodes that the sessions are at, each once.
fn nodes_of(sessions: &[Value]) -> Vec<String> {
    let mut nodes: Vec<String> =
        sessions.iter().filter_map(|session| Some(session["node"].as_str()?.to_owned())).collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

/// Counts the sessions in pages of this size, each once.
fn pages(admin: SocketAddr, limit: usize) -> Result<usize> {
    let (mut ids, mut after) = (Vec::new(), String::new());
    loop {
        let (_, page) = ask(admin, "GET", &format!("/sessions?limit={limit}&after={after}"))?;
        ids.extend(sessions(&page).iter().filter_map(|session| Some(session["id"].as_str()?.to_owned())));
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    ids.sort();
    ids.dedup();
    Ok(ids.len())
}
