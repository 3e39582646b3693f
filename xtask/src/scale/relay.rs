//! What a client pays that is not at the node of its session: the same clients directly, through a relay between two nodes,
//! and through nginx `stream` in the relay's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::nodes::{Column, Table};
use super::{SCRATCH, machine, tied};
use crate::Result;
use crate::engines::{Brand, Program};
use crate::install;
use crate::programs::MAINSTAY;
use crate::run::{Background, free_address, output};

pub(super) const CLIENT: &str = "target/release/relay_client";
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Load {
    pub(super) clients: u32,
    pub(super) reconnects: u32,
    /// Seconds between two messages of a client, and for how long.
    pub(super) every: f64,
    pub(super) seconds: f64,
}

/// What stands between the clients and the owner of their sessions.
struct Way<'a> {
    title: &'static str,
    /// Where the clients go.
    url: String,
    /// Its process, if it is not the owner itself.
    between: Option<&'a Background>,
}

/// Measures all three, one after the other, with the same owner.
pub(super) fn measure(load: &Load) -> Result<Table> {
    let folder = std::env::current_dir()?.join(SCRATCH).join("relay");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let engine = Program::install(Brand::Redis)?.start(&folder, &[])?;
    let (owner, owner_at) = node(&engine.url(), folder.join("owner.log"))?;
    let (entry, entry_at) = node(&engine.url(), folder.join("entry.log"))?;
    let (nginx, nginx_at) = nginx(&folder, &owner_at)?;
    let url = |address: &str| format!("ws://{address}/echo");
    let ways = [
        Way { title: "directly", url: url(&owner_at), between: None },
        Way { title: "relayed by another node", url: url(&entry_at), between: Some(&entry) },
        Way { title: "through nginx `stream`", url: url(&nginx_at), between: Some(&nginx) },
    ];
    let mut columns = Vec::new();
    for way in &ways {
        println!("--- {} clients {}", load.clients, way.title);
        columns.push(way.measure(load, &owner, &url(&owner_at), &folder)?);
    }
    Ok(Table {
        title: "Relays",
        about: "Clients of `mainstay serve`, whose sessions are at one node, and whose connections go there directly, through another\n\
                node, or through nginx. WELCOME: from the dial of a client that comes back to its next WELCOME, TCP and the opening\n\
                handshake included. CPU is that of the process, the kernel's share included.",
        columns,
    })
}

fn node(engine: &str, log: PathBuf) -> Result<(Background, String)> {
    let mut serve = tied(MAINSTAY);
    serve.args(["serve", "--listen", "127.0.0.1:0", "--cluster", engine]);
    let mut process = Background::start_quietly(&mut serve, log)?;
    let address = process.announced(LIMIT, "listening on ws://")?;
    Ok((process, address))
}

fn nginx(folder: &Path, upstream: &str) -> Result<(Background, String)> {
    let (nginx, module) = install::nginx_stream()?;
    let listen = free_address()?;
    let configuration = format!(
        "load_module {};\ndaemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 8192; }}\n\
         stream {{ server {{ listen {listen}; proxy_pass {upstream}; proxy_timeout 1h; }} }}\n",
        module.display()
    );
    fs::write(folder.join("nginx.conf"), configuration)?;
    let mut command = tied(nginx.to_str().ok_or("nginx has no name")?);
    command.args(["-e", "stderr", "-c", "nginx.conf", "-p"]).arg(folder);
    let mut process = Background::start_quietly(&mut command, folder.join("nginx.log"))?;
    process.wait_listening(LIMIT, listen)?;
    Ok((process, listen.to_string()))
}

impl Way<'_> {
    fn measure(&self, load: &Load, owner: &Background, first: &str, folder: &Path) -> Result<Column> {
        let mut client = tied(CLIENT);
        client.args(["--first", first, "--then", &self.url, "--clients", &load.clients.to_string()]);
        client.args(["--reconnects", &load.reconnects.to_string(), "--every", &load.every.to_string()]);
        client.args(["--messages", &load.seconds.to_string()]);
        let mut client = Background::start_quietly(&mut client, folder.join("client.log"))?;
        let cpu = |process: &Background| machine::cpu(&[process.id()]);
        let between = || self.between.map_or(Ok(Duration::ZERO), cpu);
        line(&mut client, "sending")?;
        let from = (cpu(owner)?, between()?);
        let returned = line(&mut client, "returned")?["returned"].as_u64().unwrap_or(0);
        let to = (cpu(owner)?, between()?);
        let welcome = line(&mut client, "welcome_us")?["welcome_us"].clone();
        client.signal("TERM")?;
        client.wait_success(LIMIT)?;
        if returned == 0 {
            return Err("no message came back".into());
        }
        let each = |from: Duration, to: Duration| {
            format!("{:.1} us", to.saturating_sub(from).as_secs_f64() * 1e6 / returned as f64)
        };
        let welcome = |name: &str| format!("{:.2} ms", welcome[name].as_f64().unwrap_or(0.0) / 1000.0);
        let values = vec![
            ("clients", load.clients.to_string()),
            ("until WELCOME, median", welcome("median")),
            ("until WELCOME, 90 % at most", welcome("p90")),
            ("messages there and back", returned.to_string()),
            ("CPU of the owner for each", each(from.0, to.0)),
            ("CPU of what is between for each", each(from.1, to.1)),
        ];
        values.iter().for_each(|(name, value)| println!("    {name:40} {value:>12}"));
        Ok(Column { title: self.title, values })
    }
}

/// Waits for the client's line about this.
fn line(client: &mut Background, name: &str) -> Result<Value> {
    let (mut found, start) = (None, format!("{{\"{name}\""));
    client.wait_until(LIMIT, |log| {
        let log = fs::read_to_string(log).unwrap_or_default();
        found = log
            .lines()
            .find(|line| line.starts_with(&start))
            .and_then(|line| serde_json::from_str(line).ok());
        found.is_some()
    })?;
    Ok(found.unwrap_or_default())
}

/// The version of nginx that takes part.
pub(super) fn nginx_version() -> Result<String> {
    let (nginx, _) = install::nginx_stream()?;
    let version = output(Command::new("sh").args(["-c", &format!("{} -v 2>&1", nginx.display())]))?;
    Ok(version.trim().trim_start_matches("nginx version: ").to_owned())
}
