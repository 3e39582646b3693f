//! The server: an axum extractor, a handler per session, and a shutdown that waits for both.
//!
//! [`Server`] is the application's handle on all of it: every connection and session is counted
//! there and can be drained. It is part of the router's state; [`SessionUpgrade`] takes it from there.
//!
//! ```no_run
//! use axum::{Router, routing::any};
//! use mainstay::{Server, SessionUpgrade};
//!
//! async fn echo(upgrade: SessionUpgrade) -> axum::response::Response {
//!     upgrade.on_session(|mut session| async move {
//!         while let Some(message) = session.recv().await {
//!             if session.send(message).await.is_err() {
//!                 break;
//!             }
//!         }
//!     })
//! }
//!
//! # async fn run() -> std::io::Result<()> {
//! let mainstay = Server::default();
//! let app = Router::new().route("/echo", any(echo)).with_state(mainstay.clone());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! mainstay::serve(listener, app, &mainstay).await
//! # }
//! ```

mod auth;
mod core;
mod limits;
mod meddle;
mod open;
mod pace;
mod room;
mod serve;
mod session;
mod spelling;
mod stats;
mod target;
mod task;
mod upgrade;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use mainstay_proto::ConfigError;
pub use mainstay_proto::admission::AdmissionConfig;
use mainstay_proto::admission::Source;
use mainstay_proto::budget::{Candidate, in_order};
use mainstay_proto::heartbeat::HeartbeatConfig;
pub use mainstay_proto::session::{End, EndCause, LifetimeConfig};
use mainstay_proto::session::{FlowConfig, Registry, RegistryConfig, ServerConfig, Window};
pub use mainstay_proto::ws::Origins;
pub use mainstay_proto::ws::handshake::HandshakeError;
use mainstay_proto::ws::{CloseCode, Limits};
use slab::Slab;
use tokio_util::task::TaskTracker;

pub use self::auth::AuthError;
use self::core::{Core, CoreRef, Cores, Peer};
use self::limits::Gate;
pub use self::room::{Membership, Room, SlowMember};
pub use self::serve::{DRAIN_WITHIN, MakeService, Serve, serve};
pub use self::session::{Changes, Received, Sender, Session, SessionState};
use self::stats::Counters;
pub use self::stats::{RTT_BUCKETS, Stats};
pub use self::upgrade::{PeerInfo, SessionUpgrade, UpgradeRejection};
use crate::Budget;

/// How a server behaves. `docs/DEFAULTS.md` has the reasons.
#[derive(Debug, Clone)]
pub struct Config {
    /// When to probe and when to call a client dead. Default: every 25 s.
    pub heartbeat: HeartbeatConfig,
    /// How long a session is kept without a connection, unless its client asks for less.
    /// Default: 2 minutes.
    pub resume_window: Duration,
    /// What a peer may make this end keep per message. A client that speaks `mainstay.v1` is told the size of the largest,
    /// type bytes aside. Default: 1 MiB, 1,024 fragments.
    pub limits: Limits,
    /// What is kept for a client until it acknowledges; a full window makes `send` wait.
    /// Default: 1,024 messages, 1 MiB.
    pub keep: Window,
    /// What a client may send above what the handler has taken. Default: 1,024 messages, 1 MiB. Range: at least 16
    /// messages and 64 KiB, which a client may write before it knows of this; less counts as that.
    pub accept: Window,
    /// From accept to HELLO, and until credentials are judged; on a connection that was kept alive, and behind other
    /// servers than [`serve`], from the request on. What the application does between the request and its answer is
    /// neither counted nor bounded. Default: 5 s. Range: any; 0 lets nobody in.
    pub opening_deadline: Duration,
    /// How many may be connected at a time, altogether and from one address (one /64 of IPv6). Whoever is one
    /// too many gets 503 and a time to wait. Only [`serve`] counts. Default: no limits.
    pub admission: AdmissionConfig,
    /// For how long a connection may be without a message, and for how long it may live. Default: no limits.
    pub lifetime: LifetimeConfig,
    /// Sessions at a time, parked ones included, plain ones not. A newcomer above it takes the place of a session
    /// whose client has been away for 10 s or more; where there is none it is told to come back in 1 to 30 s
    /// (4413). Who has a session resumes it. Default: 1,000,000.
    pub max_sessions: usize,
    /// Sessions of one address (one /64 of IPv6) whose clients are away. An address that has more loses the one whose
    /// client has been away for the longest whenever it opens another. Behind a proxy all clients have its address.
    /// Default: no limit; where places run out, the address that has most of them loses its own first.
    pub max_parked_per_address: Option<usize>,
    /// What all sessions may keep together, in bytes. Default: one budget for the whole process, a quarter of the memory
    /// that it may use.
    pub budget: Budget,
    /// Whose pages may open a WebSocket. Default: with cookies or other credentials, those of the same host.
    pub origins: Origins,
    /// Whether permessage-deflate may be agreed on. Default: no; it costs memory per connection.
    pub deflate: bool,
    /// Whether the span that handlers run in (`session`, at `info`) names the [principal](PeerInfo::principal), beside
    /// `session` and `epoch`. Default: no; it may be a person's name.
    pub log_principal: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat: HeartbeatConfig::default(),
            resume_window: Duration::from_secs(120),
            limits: Limits::default(),
            keep: Window::SERVER,
            accept: Window::SERVER,
            opening_deadline: Duration::from_secs(5),
            admission: AdmissionConfig::default(),
            lifetime: LifetimeConfig::default(),
            max_sessions: RegistryConfig::default().sessions,
            max_parked_per_address: None,
            budget: Budget::default(),
            origins: Origins::default(),
            deflate: false,
            log_principal: false,
        }
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Config {
    /// Looks at each value. What has a type of its own (`heartbeat`, `lifetime`, `admission`) was checked where it was
    /// made.
    ///
    /// # Errors
    /// Names the first field that is out of range, and its bound.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Window { messages, bytes } = self.keep;
        let rules = [
            (self.resume_window <= 30 * DAY, "resume_window", "at most 30 days"),
            ((1..=1 << 30).contains(&self.limits.max_message), "limits.max_message", "1 byte to 1 GiB"),
            (self.limits.max_fragments >= 1, "limits.max_fragments", "at least 1"),
            (messages >= 1 && bytes >= 1, "keep", "at least 1 message and 1 byte"),
            (self.opening_deadline <= DAY, "opening_deadline", "at most a day"),
            (self.max_sessions >= 1, "max_sessions", "at least 1"),
            (self.max_parked_per_address != Some(0), "max_parked_per_address", "at least 1"),
        ];
        rules.into_iter().try_for_each(|(holds, field, bound)| ConfigError::unless(holds, field, bound))
    }
}

/// The owner of all sessions. Cheap to clone; every clone is the same.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) sessions: Arc<ServerConfig>,
    /// What sessions of routes with a heartbeat of their own are served by, while there are any.
    by_heartbeat: Mutex<Vec<Weak<ServerConfig>>>,
    registry: Mutex<Registry<CoreRef>>,
    pub(crate) tracker: TaskTracker,
    gate: Arc<Gate>,
    /// Every session that has a task, so that all can be told when the server goes away.
    cores: Mutex<Slab<Weak<Core>>>,
    /// Set once draining began: over what time those who are there are sent away.
    draining: OnceLock<Duration>,
    told_too_big: AtomicBool,
    pub(crate) stats: Counters,
}

impl Server {
    /// A server without sessions.
    ///
    /// # Errors
    /// A value of `config` is [out of range](Config::check).
    pub fn try_new(config: Config) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self::new(config))
    }

    /// As [`try_new`](Self::try_new), for values that are known to be right: what is out of range is logged as an error
    /// and taken as it is.
    #[must_use]
    pub fn new(config: Config) -> Self {
        if let Err(error) = config.check() {
            tracing::error!("the server's configuration is wrong: {error}");
        }
        let least = Window::BEFORE_WELCOME;
        let accept = Window {
            messages: config.accept.messages.max(least.messages),
            bytes: config.accept.bytes.max(least.bytes),
        };
        let max_message = Some(config.limits.max_message as u64);
        let flow = FlowConfig { keep: config.keep, accept, manual_ack: false, max_message };
        let sessions = Arc::new(ServerConfig {
            flow,
            resume_window: config.resume_window,
            heartbeat: config.heartbeat,
            lifetime: config.lifetime,
            ..ServerConfig::default()
        });
        let (now, seed) = (crate::clock::now(), crate::random_seed());
        let names = RegistryConfig {
            sessions: config.max_sessions,
            parked_per_source: config.max_parked_per_address,
            ..RegistryConfig::default()
        };
        let registry = Registry::new(now, names, Arc::clone(&sessions), seed);
        // The waits of those who are refused are no secret.
        let gate = Gate::new(config.admission, u64::from(std::process::id()));
        let shared = Shared {
            config,
            sessions,
            by_heartbeat: Mutex::default(),
            registry: Mutex::new(registry),
            tracker: TaskTracker::new(),
            gate,
            cores: Mutex::new(Slab::new()),
            draining: OnceLock::new(),
            told_too_big: AtomicBool::new(false),
            stats: Counters::default(),
        };
        let shared = Arc::new(shared);
        shared.config.budget.serve(&shared);
        Self { shared }
    }

    /// The byte budget: its level, and what of it is used.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.shared.config.budget
    }

    /// Figures since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.stats.snapshot()
    }

    /// Payload bytes that are kept for clients now, over all sessions. Walks the list of sessions.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.sum(|peer| match peer {
            Peer::Session(session) => session.kept_bytes(),
            Peer::Plain(plain) => plain.kept_bytes(),
        })
    }

    /// Payload bytes that came from clients and that no handler has received yet, over all sessions. Walks the list of
    /// sessions.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.sum(|peer| match peer {
            Peer::Session(session) => session.unread_bytes(),
            Peer::Plain(plain) => plain.unread_bytes(),
        })
    }

    fn sum(&self, bytes: impl Fn(&Peer) -> u64) -> u64 {
        let cores = self.shared.cores();
        cores.iter().filter_map(Weak::upgrade).map(|core| bytes(&core.lock().peer)).sum()
    }

    /// Gives up the session whose client has been away for the longest, of some that are compared, and for 10 s at
    /// least; of the address that has most of those first. For what every session takes and the system has no more
    /// of, such as local ports towards a backend. `false`: there is none.
    pub fn make_room(&self) -> bool {
        let mut cores = Cores::of_nobody(&self.shared);
        let evicted = self.shared.registry().evict(crate::clock::now(), &mut cores);
        if let Some(core) = &evicted {
            Counters::add(&self.shared.stats.evicted_resource, 1);
            core.look();
        }
        evicted.is_some()
    }

    /// How many sessions are in which state now. Walks the list of sessions.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        let mut sessions = Sessions::default();
        for core in self.shared.cores().iter().filter_map(Weak::upgrade) {
            *sessions.of(&core.lock().peer) += 1;
        }
        sessions
    }

    /// Whether new connections are accepted; `false` once draining began.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.shared.is_draining()
    }

    /// Sends everyone away in order and waits until all sessions ended, at most for `within`. The usual choice is 5 s:
    /// a drain with nowhere to go only lengthens the outage.
    ///
    /// New connections are refused with 503. The last two fifths of `within`, at most 5 s, are for the closing; over
    /// the time before it everyone is sent away. Clients that speak `mainstay.v1` are told to come back within that
    /// time; plain ones are closed with 1012, spread over it. A session without a connection ends, as no client can
    /// come back for it. Connections that are still open afterwards are dropped. Less than 1 s: everyone is sent away
    /// over three fifths of it, and the closing has the rest of that second. Calling it again changes nothing.
    ///
    /// # Cancel safety
    /// Safe: draining goes on, only the waiting ends.
    pub async fn drain(&self, within: Duration) {
        self.drain_after(std::future::ready(()), within).await;
    }

    /// As [`drain`](Self::drain); waits for `requests` first, which may still open sessions.
    async fn drain_after(&self, requests: impl Future<Output = ()>, within: Duration) {
        let closing = (within * 2 / 5).min(Duration::from_secs(5));
        // GOAWAY says with a zero that nothing is known about the end.
        let spread = (within - closing).max(Duration::from_millis(1));
        if self.shared.draining.set(spread).is_ok() {
            tokio::spawn(send_away(self.shared.cores(), spread));
        }
        self.shared.tracker.close();
        let left = async {
            requests.await;
            self.shared.tracker.wait().await;
        };
        if tokio::time::timeout(within.max(Duration::from_secs(1)), left).await.is_err() {
            tracing::warn!(
                tasks = self.shared.tracker.len(),
                "drain is over; the remaining connections are dropped"
            );
        }
    }
}

/// Sessions by state. A plain connection counts as a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sessions {
    /// Their client is there.
    pub attached: u64,
    /// Their client is away, and they are kept.
    pub parked: u64,
    /// They are ending, or were told to leave.
    pub draining: u64,
}

impl Sessions {
    fn of(&mut self, peer: &Peer) -> &mut u64 {
        let (is_open, is_attached) = match peer {
            Peer::Session(session) => {
                (session.is_open() && !session.is_retired(), session.connection().is_some())
            }
            Peer::Plain(plain) => (plain.is_open(), true),
        };
        match (is_open, is_attached) {
            (false, _) => &mut self.draining,
            (true, true) => &mut self.attached,
            (true, false) => &mut self.parked,
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

impl Shared {
    pub(crate) fn registry(&self) -> MutexGuard<'_, Registry<CoreRef>> {
        // A panic while it was held left no broken promise that a later call could make worse.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a session with this heartbeat is served by. All that have the same one share it.
    pub(crate) fn sessions_with(&self, heartbeat: HeartbeatConfig) -> Arc<ServerConfig> {
        if heartbeat == self.sessions.heartbeat {
            return Arc::clone(&self.sessions);
        }
        let mut known = self.by_heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|config| config.strong_count() > 0);
        let found = known.iter().filter_map(Weak::upgrade).find(|config| config.heartbeat == heartbeat);
        found.unwrap_or_else(|| {
            let config = Arc::new(ServerConfig { heartbeat, ..(*self.sessions).clone() });
            known.push(Arc::downgrade(&config));
            config
        })
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get().is_some()
    }

    /// Lists a session until [`unlist`](Self::unlist) is called with the slot that this returns.
    pub(crate) fn list(&self, core: &CoreRef) -> u32 {
        let slot = self.cores.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::downgrade(core));
        // Four thousand million sessions do not fit any machine.
        u32::try_from(slot).unwrap_or(u32::MAX)
    }

    pub(crate) fn unlist(&self, slot: u32) {
        let mut cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.try_remove(slot as usize);
        if cores.is_empty() {
            *cores = Slab::new();
        }
    }

    fn cores(&self) -> Vec<Weak<Core>> {
        let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.iter().map(|(_, core)| Weak::clone(core)).collect()
    }

    /// Whoever comes in while everybody is sent away, having asked before, is sent after them.
    pub(crate) fn dismiss_if_draining(&self, core: &Core) {
        if let Some(spread) = self.draining.get()
            && !core.dismiss(*spread)
        {
            core.close_for(EndCause::Drained, CloseCode::RESTART, REASON);
        }
    }

    /// Gives a session up for its memory. `false`: it is a plain connection.
    pub(crate) fn evict(self: &Arc<Self>, core: &CoreRef) -> bool {
        let is_session = matches!(core.lock().peer, Peer::Session(_));
        if is_session {
            self.registry().evict_this(crate::clock::now(), core, &mut Cores::of_nobody(self));
            Counters::add(&self.stats.evicted_memory, 1);
            core.look();
        }
        is_session
    }

    /// Sessions whose clients have been away for so long give up their memory, the largest first, until so many bytes are
    /// free; returns how many are.
    pub(crate) fn give_up_parked(self: &Arc<Self>, away_for: Duration, bytes: u64) -> u64 {
        let now = crate::clock::now();
        let parked = |core: Arc<Core>| {
            let inner = core.lock();
            let Peer::Session(session) = &inner.peer else { return None };
            let since = session.parked_since()?;
            let (charged, is_away) = (inner.charge.bytes(), now.saturating_duration_since(since) >= away_for);
            drop(inner);
            let source = core.facts.address.map(|address| Source::of(address.ip()));
            (charged > 0 && is_away).then_some(Candidate { source, bytes: charged, since, holder: core })
        };
        let mut candidates: Vec<_> =
            self.cores().iter().filter_map(Weak::upgrade).filter_map(parked).collect();
        in_order(&mut candidates);
        let (mut freed, mut count) = (0, 0_u32);
        for Candidate { bytes: charged, holder: core, .. } in candidates {
            if freed >= bytes {
                break;
            }
            self.evict(&core);
            (freed, count) = (freed + charged, count + 1);
        }
        if count > 0 {
            tracing::warn!(count, freed, "memory budget: sessions whose clients are away are given up");
        }
        freed
    }

    /// One line for the first client that sends more than it may; the others are counted with the errors.
    pub(crate) fn tell_too_big(&self, peer: &PeerInfo) {
        let (limit, address) = (self.config.limits.max_message, peer.address);
        if self.told_too_big.swap(true, Ordering::Relaxed) {
            tracing::debug!(limit, ?address, "a message is larger than max_message");
        } else {
            tracing::warn!(
                limit,
                ?address,
                "a message is larger than max_message (--max-message of `mainstay serve`): its sender is closed with \
                 1009; later ones are logged at debug"
            );
        }
    }

    /// The session is over: its names lead to a tombstone from here on.
    pub(crate) fn bury(&self, core: &Core) {
        let mut registry = self.registry();
        core.with_session(|session| registry.bury(crate::clock::now(), session));
    }
}

/// Clients that speak `mainstay.v1` are told at once and spread themselves; plain ones cannot be told,
/// so their closing is what is spread.
async fn send_away(cores: Vec<Weak<Core>>, spread: Duration) {
    let is_plain = |core: &Weak<Core>| core.upgrade().is_some_and(|core| !core.dismiss(spread));
    let plain: Vec<_> = cores.into_iter().filter(is_plain).collect();
    let pause = spread / u32::try_from(plain.len()).unwrap_or(u32::MAX).max(1);
    for core in plain {
        if let Some(core) = core.upgrade() {
            core.close_for(EndCause::Drained, CloseCode::RESTART, REASON);
        }
        tokio::time::sleep(pause).await;
    }
}

const REASON: &str = "the server is going away, come back";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_out_of_range_is_named_with_its_bound() {
        let check = |change: fn(&mut Config), expected: &str| {
            let mut config = Config::default();
            change(&mut config);
            let error = Server::try_new(config).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some(expected).filter(|expected| !expected.is_empty()));
        };
        check(|_| {}, "");
        check(|config| config.resume_window = Duration::MAX, "resume_window must be at most 30 days");
        check(|config| config.limits.max_message = 0, "limits.max_message must be 1 byte to 1 GiB");
        check(|config| config.limits.max_fragments = 0, "limits.max_fragments must be at least 1");
        check(|config| config.keep.messages = 0, "keep must be at least 1 message and 1 byte");
        check(|config| config.opening_deadline = Duration::MAX, "opening_deadline must be at most a day");
        check(|config| config.max_sessions = 0, "max_sessions must be at least 1");
        check(|config| config.max_parked_per_address = Some(0), "max_parked_per_address must be at least 1");
    }
}
