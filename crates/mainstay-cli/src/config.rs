//! The configuration of `mainstay serve`: one tree of settings for file, environment and flags.
//!
//! `mainstay.toml`, `MAINSTAY_...` and the flags are layers over the defaults, in this order: a later one wins
//! ([`layers`]). Every value keeps the file and line, the variable or the flag that it is from ([`Origin`]), so that a
//! mistake is one line that names its place ([`Problem`]). The docstrings of the fields are the reference
//! (`mainstay config reference`) and the descriptions of the JSON Schema ([`schema`]).
//!
//! Each part has its section in a file of its own, and three lines here: a field of [`Config`] or [`RouteSection`], its
//! check, and its files.
//!
//! Not here: what is built from the tree (`serve`), and when it is read again (`reload`).

pub(crate) mod admin;
pub(crate) mod cluster;
mod command;
pub(crate) mod duration;
mod flags;
mod guess;
pub(crate) mod health;
pub(crate) mod heartbeat;
pub(crate) mod layers;
pub(crate) mod limits;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod origins;
mod problem;
pub(crate) mod profile;
pub(crate) mod proxies;
mod reference;
pub(crate) mod route;
mod schema;
pub(crate) mod session;
mod show;
pub(crate) mod size;
pub(crate) mod text;
pub(crate) mod tracing;
pub(crate) mod upstream;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use self::command::{AFTER_HELP, Arguments, run};
pub(crate) use self::load::{Loaded, Sources};
pub(crate) use self::problem::Problem;
pub(crate) use self::route::RouteSection;
pub(crate) use self::text::Text;
use crate::clients::client_tls::TlsSection;
use crate::clients::listen_address::ListenAddress;

/// All settings of `mainstay serve`.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// Addresses to accept clients on: 127.0.0.1:8080, or a Unix socket, as unix:/run/mainstay.sock?mode=660 (660 is the
    /// default). With a certificate, TCP speaks TLS; plain:127.0.0.1:8080 does not.
    pub(crate) listen: Vec<Text<ListenAddress>>,
    /// Maximum duration of a drain after SIGTERM: clients are asked to reconnect, and responses are finished. A supervisor
    /// must wait longer than this before it kills the process. Range: 0s to 1h.
    #[serde(with = "duration")]
    #[schemars(with = "String")]
    pub(crate) drain: Duration,
    /// A folder of this process alone, in which it leaves its sessions for the next process when it ends. For one node
    /// without a cluster.
    pub(crate) state_dir: Option<PathBuf>,
    /// Read the configuration again when its file, or a file that it names, changes. SIGHUP does it in any case.
    pub(crate) watch: bool,
    /// TLS towards clients. Without a certificate every listener is plain.
    pub(crate) tls: TlsSection,
    /// The listener of health checks and metrics.
    pub(crate) admin: admin::Section,
    /// Limits of the whole process. Each route has its own, too.
    pub(crate) limits: limits::Section,
    /// The proxies in front of the gateway.
    pub(crate) proxies: proxies::Section,
    /// The log on standard error.
    pub(crate) log: log::Section,
    /// Spans of requests and links for a collector of OpenTelemetry, in a build with the feature `otlp`.
    pub(crate) tracing: tracing::Section,
    /// The engine that all nodes share, and how other nodes reach this one.
    pub(crate) cluster: cluster::Section,
    /// The routes by their names, of letters in lower case, digits and `-`. A request goes to the route with the most
    /// specific host, then the most specific path; without any, to 404. Without a route the gateway serves a demonstration.
    pub(crate) routes: BTreeMap<String, RouteSection>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Text::new("127.0.0.1:8080").into_iter().collect(),
            drain: Duration::from_secs(5),
            state_dir: None,
            watch: true,
            tls: TlsSection::default(),
            admin: admin::Section::default(),
            limits: limits::Section::default(),
            proxies: proxies::Section::default(),
            log: log::Section::default(),
            tracing: tracing::Section::default(),
            cluster: cluster::Section::default(),
            routes: BTreeMap::new(),
        }
    }
}

/// The sections that a restart changes and a reload does not, by the first names of their keys.
pub(crate) const NEEDS_RESTART: [&[&str]; 10] = [
    &["listen"],
    &["state-dir"],
    &["admin"],
    &["cluster"],
    &["log"],
    &["tracing"],
    &["limits", "sessions"],
    &["limits", "parked-per-address"],
    &["limits", "memory-budget"],
    &["proxies", "proxy-protocol"],
];

impl Config {
    /// Checks each section by itself. Returns each mistake with the key of its section; the text begins with the field.
    fn check_sections(&self) -> Vec<(String, String)> {
        let mut wrong = vec![
            (String::new(), self.check()),
            ("tls".to_owned(), self.tls.check()),
            ("admin".to_owned(), self.admin.check()),
            ("admin.tls".to_owned(), self.admin.tls.check()),
            ("limits".to_owned(), self.limits.check()),
            ("log".to_owned(), self.log.check()),
            ("tracing".to_owned(), self.tracing.check()),
            ("cluster".to_owned(), self.cluster.check()),
        ];
        for (name, route) in &self.routes {
            let sections = [
                ("", route.check(name)),
                (".upstream", route.upstream.check()),
                (".session", route.session.check()),
                (".heartbeat", route.heartbeat.check()),
                (".profile", route.profile.check()),
                (".limits", route.limits.check()),
                (".origins", route.origins.check()),
                (".credentials", route.credentials.check()),
            ];
            wrong.extend(sections.map(|(section, checked)| (format!("routes.{name}{section}"), checked)));
        }
        wrong.into_iter().filter_map(|(section, checked)| Some((section, checked.err()?))).collect()
    }

    /// Returns the addresses to accept clients on.
    pub(crate) fn addresses(&self) -> Vec<ListenAddress> {
        self.listen.iter().map(|address| (**address).clone()).collect()
    }

    /// Returns the files that the sections name: a change of one is a reload.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let global = [self.tls.files(), self.admin.files(), self.cluster.files()];
        let routes = self.routes.values().flat_map(RouteSection::files);
        global.into_iter().flatten().chain(routes).collect()
    }

    /// Returns the settings of the whole process.
    fn without_routes(&self) -> Self {
        Self {
            listen: self.listen.clone(),
            drain: self.drain,
            state_dir: self.state_dir.clone(),
            watch: self.watch,
            tls: self.tls.clone(),
            admin: self.admin.clone(),
            limits: self.limits.clone(),
            proxies: self.proxies.clone(),
            log: self.log.clone(),
            tracing: self.tracing.clone(),
            cluster: self.cluster.clone(),
            routes: BTreeMap::new(),
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.listen.is_empty() {
            return Err("listen: must name an address, for example [\"127.0.0.1:8080\"]".to_owned());
        }
        let places: HashSet<_> = self.listen.iter().map(|address| &address.place).collect();
        if places.len() < self.listen.len() {
            return Err("listen: must name each address once".to_owned());
        }
        match self.drain > Duration::from_secs(3600) {
            true => Err("drain: must be at most 1h".to_owned()),
            false => Ok(()),
        }
    }
}
