//! The configuration of all links to the backend.

use std::time::Duration;

use mainstay::client::Connector;
use mainstay::{Limits, Server};
use mainstay_proto::ws::DeflateParams;

use crate::heartbeats::Heartbeats;
use crate::http_proxy::HttpProxy;
use crate::links::Links;
use crate::principal::PrincipalSource;
use crate::profiles::Settings;

/// The configuration of all links.
pub(crate) struct LinkConfig {
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
    pub(crate) links: Links,
    /// Evicts a session where a link finds no local port.
    pub(crate) server: Server,
    /// Sessions continue at another node when this one ends.
    pub(crate) movable: bool,
}
