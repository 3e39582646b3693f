//! `[cluster]`: the engine that all nodes share, and how other nodes reach this one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use mainstay::cluster::Engine;

use super::text::{Expected, Text, Written};
use crate::values;

const DAY: u64 = 24 * 60 * 60;

/// The cluster of this node.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Section {
    /// The engine that all nodes share, Redis 7 or later or Valkey: redis://HOST:6379, rediss://, redis+unix:///SOCKET,
    /// redis+sentinel://HOST:26379/NAME or redis+cluster://HOST:6379. Any node then resumes the sessions of any other.
    /// Default: none.
    pub(crate) engine: Option<Text<Engine>>,
    /// The cluster's name in the engine: nodes with the same name serve each other's sessions. Required together with engine
    /// where routes have names.
    pub(crate) name: String,
    /// Address to accept other nodes on. Without tls it must be reachable for them and for nobody else. Default: a free port at
    /// the address by which this node reaches the engine.
    pub(crate) listen: Option<SocketAddr>,
    /// Address by which other nodes reach this one, if it differs from listen, as behind a NAT. Default: the listener's own.
    pub(crate) advertise: Option<SocketAddr>,
    /// The public URL of this node alone, such as wss://n3.example.com: clients that can follow it resume there directly.
    /// Default: none, other nodes forward them.
    pub(crate) url: Option<String>,
    /// A folder with tls.crt, tls.key and ca.crt (PEM): nodes then encrypt what they send to each other, and accept only nodes
    /// whose certificate this authority has signed; the name in it does not matter. All nodes need it, or none. Default: no
    /// encryption.
    pub(crate) tls: Option<PathBuf>,
    /// A file with the engine's password, on one line. Default: none, or the URL's.
    pub(crate) password_file: Option<PathBuf>,
    /// How long the engine keeps revocations, for nodes that start later: at least as long as the longest token is valid. All
    /// nodes have the same value. Default: 30days. Range: 1day to 1year.
    #[serde(with = "super::duration")]
    #[schemars(with = "String")]
    pub(crate) revocations_kept: Duration,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            engine: None,
            name: "mainstay".to_owned(),
            listen: None,
            advertise: None,
            url: None,
            tls: None,
            password_file: None,
            revocations_kept: Duration::from_secs(30 * DAY),
        }
    }
}

impl Section {
    pub(crate) fn check(&self) -> Result<(), String> {
        name(&self.name).map_err(|error| format!("name: {error}"))?;
        if let Some(url) = &self.url {
            values::url(url).map_err(|error| format!("url: {error}"))?;
        }
        let bounds = Duration::from_secs(DAY)..=Duration::from_secs(366 * DAY);
        if !bounds.contains(&self.revocations_kept) {
            return Err("revocations-kept: must be 1day to 1year; write for example 30days".to_owned());
        }
        let without_engine = [
            ("name", self.name != Self::default().name),
            ("listen", self.listen.is_some()),
            ("advertise", self.advertise.is_some()),
            ("url", self.url.is_some()),
            ("tls", self.tls.is_some()),
            ("password-file", self.password_file.is_some()),
            ("revocations-kept", self.revocations_kept != Self::default().revocations_kept),
        ];
        match without_engine.into_iter().find(|(_, is_set)| *is_set && self.engine.is_none()) {
            Some((field, _)) => Err(format!(
                "{field}: needs <cluster.engine>: without it it has no effect; add <cluster.engine>, or remove \
                 <cluster.{field}>"
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.password_file.iter().cloned().collect()
    }
}

/// Parses the name of a cluster, which is a part of the engine's keys.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let is_name = (1..=64).contains(&text.len()) && text.bytes().all(is_allowed);
    is_name
        .then(|| text.to_owned())
        .ok_or_else(|| "must be 1 to 64 letters, digits, _, . and - only".to_owned())
}

impl Written for Engine {
    const EXPECTED: Expected = Expected { kind: "URL", example: "redis://127.0.0.1:6379" };

    fn parse(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| error.to_string())
    }
}
