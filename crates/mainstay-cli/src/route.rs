//! A route: which requests it takes, and everything that is done with them.
//!
//! Each request, link and session holds the route that it came by. After a reload the next requests find another table of
//! routes, and what is open goes on as it began.

use std::sync::Arc;
use std::time::Duration;

use mainstay::client::Connector;
use mainstay::{Limits, Server};
use mainstay_proto::ws::DeflateParams;

use crate::credentials::Credentials;
use crate::heartbeats::Heartbeats;
use crate::http_proxy::HttpProxy;
use crate::links::Links;
use crate::principal::PrincipalSource;
use crate::profiles::Settings;
use crate::routes::MatchRule;

/// A route and its settings.
pub(crate) struct Route {
    /// Its name in the log, in metrics and in the configuration.
    #[allow(dead_code)] // The log and the metrics name it.
    pub(crate) name: Box<str>,
    /// The requests that it takes.
    pub(crate) rule: MatchRule,
    /// Forwards requests and opening handshakes.
    pub(crate) proxy: HttpProxy,
    /// Opens connections to the backend.
    pub(crate) connector: Connector,
    /// The compression to offer to the backend.
    pub(crate) deflate_upstream: Option<DeflateParams>,
    /// How long a plain client is kept while the backend cannot be reached.
    pub(crate) upstream_wait: Duration,
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
}
