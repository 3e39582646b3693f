//! What an idle connection costs in resident memory: `mainstay serve` under many plain connections, heartbeats on.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::run::{Background, cargo, free_address};
use crate::{Outcome, Result};

/// Connections; both ends of each need a descriptor, in two processes.
const CONNECTIONS: u64 = 10_000;
/// More than this is a regression, whatever the machine.
const LIMIT: u64 = 1_300;

/// Opens idle connections, prints what one of them costs, fails above [`LIMIT`].
pub(crate) fn step() -> Result<Outcome> {
    cargo("build --release --package mainstay-gateway")?;
    let address = free_address()?;
    let mut serve = Command::new("target/release/mainstay");
    serve.args(["serve", "--heartbeat", "25s", "--listen"]).arg(address.to_string());
    fs::create_dir_all("target/xtask")?;
    let mut server = Background::start(&mut serve, Path::new("target/xtask/memory.log").to_owned())?;
    server.wait_listening(Duration::from_secs(20), address)?;
    // What the first connections make the process allocate once is not a cost per connection.
    let warm = open(address, 200)?;
    sleep(Duration::from_secs(1));
    let before = resident(server.id())?;
    let idle = open(address, CONNECTIONS)?;
    sleep(Duration::from_secs(2));
    let each = resident(server.id())?.saturating_sub(before) / CONNECTIONS;
    drop((warm, idle));
    println!("{CONNECTIONS} idle plain connections, heartbeats on: {each} bytes of resident memory each");
    if each > LIMIT {
        return Err(format!("{each} bytes for an idle connection, at most {LIMIT} are allowed").into());
    }
    Ok(Outcome::Passed)
}

fn open(address: SocketAddr, count: u64) -> Result<Vec<TcpStream>> {
    (0..count).map(|_| upgrade(address)).collect()
}

fn upgrade(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(
        b"GET /echo HTTP/1.1\r\nHost: idle\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    if head.starts_with(b"HTTP/1.1 101 ") { Ok(stream) } else { Err("the upgrade was refused".into()) }
}

/// Resident bytes of a process.
fn resident(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no VmRSS")?.parse()?;
    Ok(kilobytes * 1024)
}
