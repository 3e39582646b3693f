//! The application's handle on a server.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use mainstay_proto::admission::{AdmissionConfig, OpeningConfig};
use mainstay_proto::proxies::Proxies;

use super::config::Config;
use super::core::Shared;
use super::peer::{Peer, Presence};
#[cfg(feature = "test")]
use super::sender::Sender;
use super::stats::Stats;
use super::timeline::Timeline;
use crate::Budget;

/// A server: the owner of all its sessions. Cheap to clone; every clone is the same server.
///
/// ```no_run
/// # async fn run(app: axum::Router, listener: tokio::net::TcpListener) -> std::io::Result<()> {
/// let server = mainstay::Server::default();
/// let figures = server.clone();
/// let app = app.route("/figures", axum::routing::get(async move || format!("{:?}", figures.stats())));
/// mainstay::serve(listener, app, &server).await
/// # }
/// ```
#[derive(Clone)]
pub struct Server {
    pub(crate) shared: Arc<Shared>,
}

impl Server {
    /// Creates a server without sessions.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { shared: Shared::new(config) }
    }

    /// Returns a layer that gives this server to the requests of a router or a route, for [`SessionUpgrade`](crate::SessionUpgrade). Only needed
    /// behind another server than [`serve`](crate::serve), and for routes with a server of their own.
    ///
    /// ```no_run
    /// # use axum::{Router, routing::any};
    /// # use mainstay::{Server, SessionUpgrade};
    /// # async fn chat(upgrade: SessionUpgrade) -> axum::response::Response { upgrade.on_session(|_| async {}) }
    /// # async fn run(listener: tokio::net::TcpListener) -> std::io::Result<()> {
    /// let server = Server::default();
    /// let app = Router::new().route("/chat", any(chat)).layer(server.layer());
    /// axum::serve(listener, app).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// What such a server lacks, in comparison with [`serve`](crate::serve): a shutdown that waits for sessions (call
    /// [`drain`](Self::drain) by hand), the limits of [`Config::admission`], a deadline for the head of a request and for a
    /// response that its client does not read, limits of the head, and the client's address, unless
    /// `into_make_service_with_connect_info` provides it. Sessions are the same.
    pub fn layer(&self) -> axum::Extension<Self> {
        axum::Extension(self.clone())
    }

    /// Joins the cluster of [`Config::cluster`], if there is one: opens the peer listener and announces it, or reads what the
    /// process before this one left. [`serve`](crate::serve) calls it; beside other servers call it before they accept, and
    /// [`drain`](Self::drain) at the end. An engine that does not answer is no error: the server serves alone and joins when
    /// the engine answers. A second call changes nothing.
    ///
    /// # Errors
    /// What waiting does not change: an engine that cannot serve, an address that is in use, a folder that cannot be written.
    #[cfg(feature = "cluster")]
    pub async fn join(&self) -> Result<(), crate::cluster::JoinError> {
        match &self.shared.node {
            Some(node) => node.join(&self.shared).await,
            None => Ok(()),
        }
    }

    /// What this server is and does as a node; `None` without [`Config::cluster`].
    #[cfg(feature = "cluster")]
    #[must_use]
    pub fn cluster(&self) -> Option<crate::cluster::ClusterStatus> {
        self.shared.node.as_ref().map(|node| node.status())
    }

    /// The memory budget: its level, and how much of it is used.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.shared.config.budget
    }

    /// Changes the limits of [`Config::admission`] and [`Config::openings`] for what comes from now on. What is open stays, and
    /// counts for the limits that there were when it was opened.
    pub fn set_limits(&self, admission: AdmissionConfig, openings: OpeningConfig) {
        self.shared.gate.set_limits(admission, openings);
    }

    /// Changes the proxies of [`Config::proxies`] for the requests that come from now on.
    pub fn set_proxies(&self, proxies: Proxies) {
        self.shared.gate.set_proxies(proxies);
    }

    /// Whether a peer is one of the proxies that are trusted now. A peer that connects over a Unix socket has no address.
    #[must_use]
    pub fn trusts_proxy(&self, peer: Option<IpAddr>) -> bool {
        self.shared.gate.is_proxy(peer)
    }

    /// How many new clients a second are accepted, as [`OpeningConfig::rate`] says or as measured; `None`: no limit.
    #[must_use]
    pub fn accept_rate(&self) -> Option<f64> {
        self.shared.gate.openings.rate()
    }

    /// Reads the figures since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats.snapshot()
    }

    /// What happened to the clients, the newest events; off without [`Config::timeline`].
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.shared.timeline
    }

    /// Payload bytes that all sessions keep for their clients now. Walks the list of sessions.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.sum(Peer::kept_bytes)
    }

    /// Payload bytes that came from clients and that no handler has received yet, over all sessions. Walks the list of
    /// sessions.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.sum(Peer::unread_bytes)
    }

    fn sum(&self, bytes: impl Fn(&Peer) -> u64) -> u64 {
        let cores = self.shared.cores();
        cores.iter().filter_map(Weak::upgrade).map(|core| bytes(&core.lock().peer)).sum()
    }

    /// Gives up one session whose client has been away for 10 s or more: of a sample, the one that has been away for the
    /// longest, from the address that has most of those. For a resource that every session takes and the system has no
    /// more of, for example local ports towards a backend. Returns `false` if there is no such session.
    pub fn make_room(&self) -> bool {
        self.shared.make_room()
    }

    /// Counts the sessions by state. Walks the list of sessions.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        let mut sessions = Sessions::default();
        for core in self.shared.cores().iter().filter_map(Weak::upgrade) {
            *sessions.of(Presence::of(&core.lock().peer)) += 1;
        }
        sessions
    }

    /// The handle of the session with this name.
    #[cfg(feature = "test")]
    pub(crate) fn find(&self, id: mainstay_proto::session::message::SessionId) -> Option<Sender> {
        let mut cores = self.shared.cores().into_iter().filter_map(|core| core.upgrade());
        cores.find(|core| core.lock().peer.id() == Some(id)).map(|core| Sender::new(&core))
    }

    /// Whether the server accepts new connections; `false` once draining began.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.shared.is_draining()
    }
}

/// Sessions by state. A plain connection counts as a session.
///
/// ```
/// let sessions = mainstay::Server::default().sessions();
/// assert_eq!((sessions.attached, sessions.parked, sessions.draining), (0, 0, 0));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sessions {
    /// Sessions whose client is connected.
    pub attached: u64,
    /// Sessions whose client is away.
    pub parked: u64,
    /// Sessions that are ending, or whose client was asked to leave.
    pub draining: u64,
}

impl Sessions {
    fn of(&mut self, presence: Presence) -> &mut u64 {
        match presence {
            Presence::Attached => &mut self.attached,
            Presence::Parked => &mut self.parked,
            Presence::Draining => &mut self.draining,
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new(Config::default())
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
