//! A route: which requests it takes, and everything that is done with them.
//!
//! Each request, link and session holds the route that it came by. After a reload the next requests find another table of
//! routes, and what is open goes on as it began.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mainstay::server::{Group, LifetimeConfig, Origins, Proxies, ThrottleConfig};
use mainstay::{Limits, Server};
use mainstay_proto::ws::DeflateParams;
use sha2::{Digest, Sha256};

use crate::clients::principal::PrincipalSource;
use crate::config::limits::SlowClients;
use crate::config::{Config, RouteSection};
use crate::credentials::{Access, Credentials};
use crate::protocols::profiles::Settings;
use crate::request::http_proxy::HttpProxy;
use crate::routes::heartbeats::Heartbeats;
use crate::routes::match_rule::MatchRule;
use crate::upstream::links::Links;
use crate::upstream::probe::Prober;
use crate::upstream::when_down::WhenDown;

/// A route and its settings.
pub(crate) struct Route {
    /// Its name in the log, in metrics and in the configuration.
    pub(crate) name: Box<str>,
    /// The requests that it takes.
    pub(crate) rule: MatchRule,
    /// Forwards requests and opening handshakes.
    pub(crate) proxy: HttpProxy,
    /// The compression to offer to the backend.
    pub(crate) deflate_upstream: Option<DeflateParams>,
    /// How long a plain client is kept while the backend cannot be reached.
    pub(crate) upstream_wait: Duration,
    /// What waits meanwhile.
    pub(crate) when_down: WhenDown,
    /// The link of a client that carried no message for this long is closed until the next one.
    pub(crate) hibernate_after: Option<Duration>,
    /// Probes the addresses of the backend.
    prober: Prober,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) limits: Limits,
    /// The settings of the backend's protocol.
    pub(crate) settings: Settings,
    /// The credentials that a resume must repeat.
    pub(crate) principal: PrincipalSource,
    /// What each client must present; `None`: nothing.
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) links: Links,
    /// Evicts a session where a link finds no local port.
    pub(crate) server: Server,
    /// Sessions continue at another node when this one ends.
    pub(crate) movable: bool,
    /// The pages that may open a WebSocket.
    pub(crate) origins: Origins,
    pub(crate) resume_window: Duration,
    pub(crate) lifetime: LifetimeConfig,
    /// Compress towards clients.
    pub(crate) deflate: bool,
    /// The WebSockets of this route, and of those that it replaced.
    pub(crate) group: Group,
    pub(crate) throttle: ThrottleConfig,
    pub(crate) slow_clients: SlowClients,
    /// What it was built from: a reload keeps it if that is the same.
    pub(crate) inputs: Inputs,
}

/// Everything that a route is built from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Inputs {
    section: RouteSection,
    proxies: Proxies,
    /// The contents of the files that the section names, as hashes.
    files: Vec<Option<[u8; 32]>>,
}

/// The hashes of files that routes are built from. One file may be that of many routes, and is read once.
#[derive(Default)]
pub(crate) struct Hashes(HashMap<PathBuf, Option<[u8; 32]>>);

impl Inputs {
    /// Returns what the route of a section is built from.
    pub(crate) fn of(section: &RouteSection, config: &Config, hashes: &mut Hashes) -> Self {
        Self {
            section: section.clone(),
            proxies: config.proxies.proxies(),
            files: section.files().into_iter().map(|file| hashes.of(file)).collect(),
        }
    }
}

impl Hashes {
    fn of(&mut self, file: PathBuf) -> Option<[u8; 32]> {
        let read = |file: &PathBuf| Some(Sha256::digest(std::fs::read(file).ok()?).into());
        *self.0.entry(file).or_insert_with_key(read)
    }
}

impl Route {
    /// Builds a route. `before`: the route of the same name in the table that this one replaces. Its figures go on.
    ///
    /// # Errors
    /// Begins with the key below the route. A file cannot be used any more.
    pub(crate) fn new(
        name: &str,
        inputs: Inputs,
        server: &Server,
        access: &Arc<Access>,
        before: Option<&Self>,
    ) -> Result<Arc<Self>, String> {
        let section = &inputs.section;
        let upstream = &section.upstream;
        let addresses = upstream.connected().map_err(|error| format!("upstream.{error}"))?;
        let names: Vec<Box<str>> = addresses.iter().map(|address| address.name.clone()).collect();
        if names.is_empty() {
            return Err("upstream.addresses: is missing".to_owned());
        }
        let links = || Links::new(&names, upstream.health.pool(), upstream.health.interval());
        let links = match before {
            Some(before)
                if before.inputs.section.upstream == *upstream && before.inputs.files == inputs.files =>
            {
                before.links.clone()
            }
            Some(before) => links().continuing(&before.links),
            None => links(),
        };
        links.note_in(server.timeline());
        let settings = section.profile.settings().map_err(|error| format!("profile.{error}"))?;
        let stickiness = upstream.stickiness().unwrap_or_else(|| settings.stickiness.clone());
        let proxy = HttpProxy::new(section, addresses, stickiness, inputs.proxies.clone(), &links);
        let _ = proxy.upstream.server.set(server.clone());
        let credentials = credentials(name, &inputs, access, before)?;
        Ok(Arc::new(Self {
            name: name.into(),
            rule: section.rule(),
            proxy,
            deflate_upstream: upstream.deflate.then(DeflateParams::default),
            upstream_wait: upstream.wait,
            when_down: upstream.when_down(),
            hibernate_after: upstream.hibernate_after,
            prober: upstream.prober(),
            heartbeats: Heartbeats::new(&section.heartbeat).map_err(|error| format!("heartbeat.{error}"))?,
            limits: Limits { max_message: section.limits.message, max_fragments: section.limits.fragments },
            settings,
            principal: section.session.principal(),
            credentials,
            links,
            server: server.clone(),
            movable: section.session.movable,
            origins: section.origins.origins(),
            resume_window: section.session.resume_window,
            lifetime: section.session.lifetime().map_err(|error| format!("session.{error}"))?,
            deflate: section.session.deflate,
            group: before.map_or_else(Group::default, |before| before.group.clone()),
            throttle: section.limits.throttle(),
            slow_clients: section.limits.slow_clients().map_err(|error| format!("limits.{error}"))?,
            inputs,
        }))
    }

    /// Puts the limits of its WebSockets in force.
    pub(crate) fn set_limits(&self) {
        self.group.set_limits(self.inputs.section.limits.openings());
    }

    /// Returns the state of each address of the backend.
    pub(crate) fn backends(&self) -> Vec<BackendStatus> {
        let addresses = self.inputs.section.upstream.addresses.iter().zip(self.links.backends());
        addresses
            .map(|(address, (is_up, error))| BackendStatus { address: address.to_string(), is_up, error })
            .collect()
    }

    /// Probes the backend for as long as the route is in the table.
    pub(crate) fn start_probing(&self) {
        self.prober.start(&self.proxy.upstream, &self.links);
    }
}

/// Returns the credentials of a route: those that it had, unless the settings or a file have changed.
fn credentials(
    name: &str,
    inputs: &Inputs,
    access: &Arc<Access>,
    before: Option<&Route>,
) -> Result<Option<Arc<Credentials>>, String> {
    let (section, earlier) =
        (&inputs.section.credentials, before.and_then(|route| route.credentials.as_ref()));
    let is_same = before.is_some_and(|route| {
        route.inputs.section.credentials == *section && route.inputs.files == inputs.files
    });
    if is_same {
        return Ok(earlier.cloned());
    }
    Credentials::new(name, section, access, earlier).map_err(|error| format!("credentials.{error}"))
}

/// The state of one address of a backend, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackendStatus {
    pub(crate) address: String,
    pub(crate) is_up: bool,
    /// Why the latest attempt failed, while it is down.
    pub(crate) error: Option<String>,
}
