//! The Fastify plugin beside what it replaces. `clients/bench` measures: its servers run at the same time and get their
//! load in short turns: a Node process needs no fresh start, but the same disturbance as the others.

use std::fmt::Write;
use std::process::Command;

use serde::Deserialize;

use super::field::PLUGIN;
use super::figures::shown;
use crate::Result;
use crate::clients;
use crate::run::output;

/// The server that the plugin replaces.
const REPLACED: &str = "@fastify/websocket";

/// What `clients/bench/measure.mjs --json` prints.
#[derive(Deserialize)]
pub(super) struct Found {
    versions: String,
    figures: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    figure: String,
    servers: Vec<Measured>,
}

#[derive(Deserialize)]
struct Measured {
    name: String,
    /// Missing: nothing came in that time.
    value: Option<f64>,
}

/// Builds the packages and measures.
pub(super) fn measure(quick: bool) -> Result<Found> {
    clients::build()?;
    let mut node = Command::new("node");
    node.args(["bench/measure.mjs", "--json"]).args(quick.then_some("--quick")).current_dir("clients");
    let found: Found = serde_json::from_str(&output(&mut node)?)?;
    let unmeasured = found.figures.iter().find(|row| row.servers.iter().any(|server| server.value.is_none()));
    match unmeasured {
        Some(row) => Err(format!("the Fastify plugin's benchmark gave no `{}`", row.figure).into()),
        None => Ok(found),
    }
}

/// The section of the page.
pub(super) fn section(found: &Found) -> Result<String> {
    let mut page = format!(
        "\n## The Fastify plugin\n\n\
         `{PLUGIN}` compared with the plugin that it replaces, `{REPLACED}` with the heartbeat from the README of\n\
         `ws` and plain clients, and with Socket.IO over WebSocket alone ({}). All run at\n\
         the same time on one core and get their load in turns of 200 ms from a generator on another core; figures are\n\
         medians of the turns. 100 connections; heartbeats of 2,500 connections every 2 s; memory is the heap after a\n\
         collection. `--server {PLUGIN}` runs this alone; in `clients` it is `node bench/measure.mjs`.\n\n\
         A loop over all connections, as in the README of `ws`, is the cheapest heartbeat, and it sends all probes at once. The\n\
         plugin spreads its probes; a process that wakes 60 times a second for 20 probes each finds cold caches if other processes\n\
         share the core.\n",
        found.versions
    );
    for Row { figure, servers } in &found.figures {
        let replaced = servers.iter().find(|server| server.name == REPLACED).and_then(|server| server.value);
        writeln!(page, "\n### Fastify: {figure}\n\n| server | | of {REPLACED}'s |\n|---|---:|---:|")?;
        for Measured { name, value } in servers {
            let Some(value) = value else { continue };
            let ratio = replaced.map_or("-".to_owned(), |replaced| format!("{:.2} x", value / replaced));
            let name = if name.starts_with(PLUGIN) { format!("**{name}**") } else { name.clone() };
            writeln!(page, "| {name} | {} | {ratio} |", shown(*value))?;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_stands_beside_what_it_replaces() {
        let json = r#"{"versions": "ws 8", "figures": [{"figure": "echo, us", "servers":
            [{"name": "@mainstay/fastify", "value": 12.0}, {"name": "@fastify/websocket", "value": 10.0}]}]}"#;
        let page = section(&serde_json::from_str(json).unwrap()).unwrap();
        assert!(
            page.contains(
                "| **@mainstay/fastify** | 12.0 | 1.20 x |\n| @fastify/websocket | 10.0 | 1.00 x |"
            )
        );
    }
}
