//! What an idle connection costs in resident memory: `mainstay serve` under many plain connections, heartbeats on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::run::{Background, cargo, free_address, output};
use crate::{Outcome, Result};

const MAINSTAY: &str = "target/release/mainstay";
/// Connections; both ends of each need a descriptor, in two processes.
const CONNECTIONS: u32 = 10_000;
/// More than this is a regression, whatever the machine.
const LIMIT: f64 = 1_300.0;

/// Opens idle connections, prints what one of them costs, fails above [`LIMIT`].
pub(crate) fn step() -> Result<Outcome> {
    cargo("build --release --package mainstay-gateway")?;
    let address = free_address()?;
    let mut serve = Command::new(MAINSTAY);
    serve.args(["serve", "--heartbeat", "25s", "--listen"]).arg(address.to_string());
    fs::create_dir_all("target/xtask")?;
    let mut server = Background::start(&mut serve, Path::new("target/xtask/memory.log").to_owned())?;
    server.wait_listening(Duration::from_secs(20), address)?;
    let idle = |connections: u32| -> Result<f64> {
        let words = ["bench", "idle", "--json", "--warm-up", "0s", "--duration", "2s", "--connections"];
        let mut bench = Command::new(MAINSTAY);
        bench.args(words).args([&connections.to_string(), "--pid", &server.id().to_string()]);
        let printed = output(bench.arg(format!("ws://{address}/echo")))?;
        let found: Value = serde_json::from_str(&printed)?;
        let each = found.get("resident_bytes_per_connection").and_then(Value::as_f64);
        each.ok_or_else(|| "`mainstay bench` gave no memory of a connection".into())
    };
    // What the first connections make the process allocate once is not a cost per connection.
    idle(200)?;
    let each = idle(CONNECTIONS)?;
    println!("{CONNECTIONS} idle plain connections, heartbeats on: {each:.0} bytes of resident memory each");
    if each > LIMIT {
        return Err(format!("{each:.0} bytes for an idle connection, at most {LIMIT} are allowed").into());
    }
    Ok(Outcome::Passed)
}
