//! The flags of a cluster, and of sessions that outlive this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mainstay::ConfigError;
use mainstay::cluster::{ClusterConfig, ClusterStatus, ClusterTls, Engine, JoinError, StateDirError};

use crate::config::{self, Config};
use crate::values;

/// Where sessions go when this process ends, and how other nodes reach it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ClusterFlags {
    /// The engine that all nodes share, Redis 7 or later or Valkey: redis://HOST:6379, rediss://, redis+unix:///SOCKET,
    /// redis+sentinel://HOST:26379/NAME or redis+cluster://HOST:6379. Any node then resumes the sessions of any other.
    /// Default: none.
    #[arg(long, value_name = "URL", value_parser = engine, env = "MAINSTAY_CLUSTER")]
    cluster: Option<Engine>,
    /// The cluster's name in the engine: nodes with the same name serve each other's sessions.
    #[arg(long, value_name = "NAME", value_parser = config::cluster::name, default_value = "mainstay")]
    cluster_name: String,
    /// Address to accept other nodes on. Without --cluster-tls it must be reachable for them and for nobody else. Default: a free
    /// port at the address by which this node reaches the engine.
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    cluster_listen: Option<SocketAddr>,
    /// Address by which other nodes reach this one, if it differs from --cluster-listen, as behind a NAT. Default: the
    /// listener's own.
    #[arg(long, value_name = "ADDRESS", value_parser = values::address)]
    cluster_advertise: Option<SocketAddr>,
    /// The public URL of this node alone, such as wss://n3.example.com: clients that can follow it resume there directly.
    /// Default: none, other nodes forward them.
    #[arg(long, value_name = "URL", value_parser = values::url)]
    cluster_url: Option<String>,
    /// A folder with tls.crt, tls.key and ca.crt (PEM): nodes then encrypt what they send to each other, and accept only nodes
    /// whose certificate this authority has signed; the name in it does not matter. All nodes need it, or none. Default: no
    /// encryption.
    #[arg(long, value_name = "DIR")]
    cluster_tls: Option<PathBuf>,
    /// A file with the engine's password, on one line: arguments and variables can be read by others. Default: none, or the
    /// URL's.
    #[arg(long, value_name = "FILE")]
    cluster_password_file: Option<PathBuf>,
    /// Sessions continue at another node, or in the next process, when this one ends: each gets a new connection to the
    /// backend there. For backends that need nothing but the request, so it requires --on-backend-loss keep (or a profile
    /// with it), and --cluster or --state-dir. Default: off, the sessions end with an exact account.
    #[arg(long)]
    movable: bool,
    /// A folder of this process alone, in which it leaves its sessions for the next process when it ends. For one node
    /// without an engine. Default: none.
    #[arg(long, value_name = "DIR", env = "MAINSTAY_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

/// Returns the library's configuration; `None` without a cluster and a folder. `purpose`: what this node's clients are
/// forwarded to. A node with another purpose belongs to another cluster.
///
/// # Errors
/// Begins with the key. A value is out of range, or the file of the password cannot be read.
pub(crate) fn config(
    config: &Config,
    purpose: &str,
) -> Result<Option<ClusterConfig>, (&'static str, String)> {
    let section = &config.cluster;
    let Some(engine) = &section.engine else {
        return Ok(config.state_dir.as_ref().map(ClusterConfig::state_dir));
    };
    let engine = match &section.password_file {
        Some(file) => {
            let read = password(file);
            (**engine).clone().password(read.map_err(|what| ("cluster.password-file", what))?)
        }
        None => (**engine).clone(),
    };
    let wrong =
        |key: &'static str| move |error: ConfigError| (key, format!("<{key}>: must be {}", error.bound));
    let mut cluster = ClusterConfig::new(engine).name(&section.name).map_err(wrong("cluster.name"))?;
    if let Some(address) = section.listen {
        cluster = cluster.listen(address);
    }
    if let Some(address) = section.advertise {
        cluster = cluster.advertise(address).map_err(wrong("cluster.advertise"))?;
    }
    if let Some(url) = &section.url {
        let url = values::url(url).map_err(|error| ("cluster.url", format!("<cluster.url>: {error}")))?;
        cluster = cluster.url(url).map_err(wrong("cluster.url"))?;
    }
    if let Some(folder) = &section.tls {
        let tls = ClusterTls::from_folder(folder);
        cluster = cluster.tls(tls.map_err(|error| ("cluster.tls", format!("<cluster.tls> {error}")))?);
    }
    let cluster = cluster.notes_kept(section.revocations_kept).map_err(wrong("cluster.revocations-kept"))?;
    Ok(Some(cluster.mark(purpose)))
}

/// Returns a line about this node for the banner.
pub(crate) fn banner(config: &Config, status: &ClusterStatus) -> String {
    let node = &status.node;
    let Some(engine) = &status.engine else {
        let folder = config.state_dir.as_deref().unwrap_or(Path::new("")).display();
        return format!("node {node}; the next process continues from {folder}");
    };
    let over = if status.tls { ", over TLS" } else { "" };
    let place =
        status.address.map_or_else(String::new, |address| format!(" for other nodes on {address}{over}"));
    let name = &config.cluster.name;
    match &status.incarnation {
        _ if !status.was_reached => {
            format!("node {node}{place}; cluster {name}: serving alone until {engine} answers")
        }
        Some(incarnation) => {
            format!("node {node}{place}; cluster {name} in {engine}, incarnation {incarnation}")
        }
        None => format!("node {node}{place}; cluster {name} in {engine}"),
    }
}

/// Returns the line that says why this node cannot join, and the exit code: 2 for what waiting does not change.
pub(crate) fn explain(error: &JoinError) -> (String, ExitCode) {
    let usage = ExitCode::from(2);
    match error {
        JoinError::Engine(error) => (format!("--cluster {error}"), usage),
        JoinError::StateDir(error @ StateDirError::InUse { .. }) => {
            (format!("--state-dir {error}"), ExitCode::FAILURE)
        }
        JoinError::StateDir(error) => (format!("--state-dir {error}"), usage),
        error => (error.to_string(), ExitCode::FAILURE),
    }
}

/// Parses the URL of an engine.
fn engine(text: &str) -> Result<Engine, String> {
    Engine::parse(text).map_err(|error| error.to_string())
}

/// Reads a password from the only line of a file. Errors never quote its content.
fn password(file: &Path) -> Result<String, String> {
    let wrong = |what: String| format!("<cluster.password-file> {}: {what}", file.display());
    let text =
        std::fs::read_to_string(file).map_err(|error| wrong(format!("{error}; name a readable file")))?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() || line.contains(['\r', '\n']) {
        return Err(wrong("must hold the password on one line".to_owned()));
    }
    Ok(line.to_owned())
}
