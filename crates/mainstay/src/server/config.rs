//! How a server behaves.

use std::time::Duration;

use mainstay_proto::ConfigError;
use mainstay_proto::admission::{AdmissionConfig, OpeningConfig};
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::proxies::Proxies;
use mainstay_proto::session::{LifetimeConfig, RegistryConfig, Window};
use mainstay_proto::ws::{Limits, Origins};

use crate::Budget;
#[cfg(feature = "cluster")]
use crate::cluster::ClusterConfig;

/// How a server behaves. Each setter checks its value, so every `Config` is valid. `docs/DEFAULTS.md` has the reasons for
/// the defaults.
///
/// ```
/// use std::time::Duration;
/// use mainstay::server::Config;
/// use mainstay::{HeartbeatConfig, Server};
///
/// let config = Config::new()
///     .heartbeat(HeartbeatConfig::every(Duration::from_secs(10))?)
///     .resume_window(Duration::from_secs(600))?;
/// let server = Server::new(config);
///
/// let error = Config::new().max_sessions(0).unwrap_err();
/// assert_eq!(error.to_string(), "max_sessions must be at least 1");
/// # Ok::<(), mainstay::ConfigError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Config {
    pub(crate) heartbeat: HeartbeatConfig,
    pub(crate) resume_window: Duration,
    pub(crate) limits: Limits,
    pub(crate) keep: Window,
    pub(crate) accept: Window,
    pub(crate) opening_deadline: Duration,
    pub(crate) admission: AdmissionConfig,
    pub(crate) openings: OpeningConfig,
    pub(crate) proxies: Proxies,
    pub(crate) lifetime: LifetimeConfig,
    pub(crate) max_sessions: usize,
    pub(crate) max_parked_per_address: Option<usize>,
    pub(crate) budget: Budget,
    pub(crate) origins: Origins,
    pub(crate) deflate: bool,
    pub(crate) log_principal: bool,
    pub(crate) timeline: usize,
    #[cfg(feature = "cluster")]
    pub(crate) cluster: Option<ClusterConfig>,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Config {
    /// Creates a configuration of defaults.
    pub fn new() -> Self {
        Self {
            heartbeat: HeartbeatConfig::default(),
            resume_window: Duration::from_secs(120),
            limits: Limits::default(),
            keep: Window::SERVER,
            accept: Window::SERVER,
            opening_deadline: Duration::from_secs(5),
            admission: AdmissionConfig::default(),
            openings: OpeningConfig::default(),
            proxies: Proxies::default(),
            lifetime: LifetimeConfig::default(),
            max_sessions: RegistryConfig::default().sessions,
            max_parked_per_address: None,
            budget: Budget::default(),
            origins: Origins::default(),
            deflate: false,
            log_principal: false,
            timeline: 0,
            #[cfg(feature = "cluster")]
            cluster: None,
        }
    }

    /// Sets when the server probes a client and when it calls the client dead. Default: a probe every 25 s.
    pub fn heartbeat(mut self, heartbeat: HeartbeatConfig) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Sets how long a session is kept without a connection, unless its client asks for less. Default: 2 minutes. Range:
    /// up to 30 days.
    ///
    /// # Errors
    /// The window is out of range.
    pub fn resume_window(mut self, window: Duration) -> Result<Self, ConfigError> {
        check_resume_window(window)?;
        self.resume_window = window;
        Ok(self)
    }

    /// Sets how large a message of a client may be, type bytes aside, and of how many fragments. WELCOME announces the size
    /// to clients that speak `mainstay.v1`. Default: 1 MiB, 1,024 fragments. Range: 1 byte to 1 GiB, at least 1 fragment.
    ///
    /// # Errors
    /// A limit is out of range.
    pub fn limits(mut self, limits: Limits) -> Result<Self, ConfigError> {
        check_limits(limits)?;
        self.limits = limits;
        Ok(self)
    }

    /// Sets how much the server keeps for a client until that acknowledges it; a full window makes `send` wait. Default:
    /// 1,024 messages, 1 MiB. Range: at least 1 message and 1 byte.
    ///
    /// # Errors
    /// The window is out of range.
    pub fn keep(mut self, keep: Window) -> Result<Self, ConfigError> {
        let is_valid = keep.messages >= 1 && keep.bytes >= 1;
        ConfigError::unless(is_valid, "keep", "at least 1 message and 1 byte")?;
        self.keep = keep;
        Ok(self)
    }

    /// Sets how much a client may send beyond what the handler has received. Default: 1,024 messages, 1 MiB. Range: at least
    /// 16 messages and 64 KiB, which a client may write before it knows this window; less counts as that.
    pub fn accept(mut self, accept: Window) -> Self {
        self.accept = accept;
        self
    }

    /// Sets the time from accept to HELLO and to the verdict on credentials; on a connection that was kept alive, and behind
    /// other servers than [`serve`](crate::serve), it begins with the request. The time that the application needs between
    /// the request and its answer is neither counted nor bounded. Default: 5 s. Range: up to a day; with 0 no client gets
    /// in.
    ///
    /// # Errors
    /// The deadline is out of range.
    pub fn opening_deadline(mut self, deadline: Duration) -> Result<Self, ConfigError> {
        ConfigError::unless(deadline <= DAY, "opening_deadline", "at most a day")?;
        self.opening_deadline = deadline;
        Ok(self)
    }

    /// Limits concurrent connections, altogether and from one address (one /64 of IPv6). A connection over a limit gets 503
    /// or, for its address, 429, and a time to wait. A client over the limit of its address can still resume its session.
    /// Only [`serve`](crate::serve) counts. A connection of a [trusted proxy](Self::proxies) counts for its client from the
    /// moment at which that opens a WebSocket. Default: no limits.
    pub fn admission(mut self, admission: AdmissionConfig) -> Self {
        self.admission = admission;
        self
    }

    /// Limits the opening of WebSockets: how many are open of one address and of one principal, how many each opens a
    /// minute, and how many clients a second are accepted. A client over a limit gets 429 or 503 with a time to wait, or a
    /// REFUSE with it (4413); the delays of a crowd are one after the other. A client that resumes its session is refused by
    /// [`OpeningConfig::rate`] alone, and has four times of it. Default: no limits.
    pub fn openings(mut self, openings: OpeningConfig) -> Self {
        self.openings = openings;
        self
    }

    /// Sets which proxies are in front of this server and report its clients: their addresses are those of
    /// [`PeerInfo`](super::PeerInfo) and of every limit by address. Default: none, and the address that connects counts.
    pub fn proxies(mut self, proxies: Proxies) -> Self {
        self.proxies = proxies;
        self
    }

    /// Limits how long a connection may be without a message, and how long it may live. Default: no limits.
    pub fn lifetime(mut self, lifetime: LifetimeConfig) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Limits concurrent sessions, parked ones included, plain ones not. A new client above the limit gets the place of a
    /// session whose client has been away for 10 s or more; where there is none, the server asks it to come back in 1 to
    /// 30 s (4413). A client that has a session can always resume it. Default: 1,000,000. Range: at least 1.
    ///
    /// # Errors
    /// The limit is out of range.
    pub fn max_sessions(mut self, sessions: usize) -> Result<Self, ConfigError> {
        ConfigError::unless(sessions >= 1, "max_sessions", "at least 1")?;
        self.max_sessions = sessions;
        Ok(self)
    }

    /// Limits the sessions of one address (one /64 of IPv6) whose clients are away. An address above the limit loses the
    /// one whose client has been away for the longest whenever it opens another. Behind a proxy all clients have its
    /// address, unless it is [trusted](Self::proxies). Default: no limit; when places run out, the address that has most of them loses its own first. Range: at
    /// least 1.
    ///
    /// # Errors
    /// The limit is out of range.
    pub fn max_parked_per_address(mut self, sessions: usize) -> Result<Self, ConfigError> {
        ConfigError::unless(sessions >= 1, "max_parked_per_address", "at least 1")?;
        self.max_parked_per_address = Some(sessions);
        Ok(self)
    }

    /// Sets how many bytes all sessions may keep together. Default: one budget for the whole process, a quarter of the
    /// memory that it may use.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Sets whose pages may open a WebSocket. Default: a request with cookies or other credentials must come from a page of
    /// the same host.
    pub fn origins(mut self, origins: Origins) -> Self {
        self.origins = origins;
        self
    }

    /// Sets whether clients may agree on permessage-deflate. Default: no; it costs memory for each connection.
    pub fn deflate(mut self, deflate: bool) -> Self {
        self.deflate = deflate;
        self
    }

    /// Sets whether the span that handlers run in (`session`, at `info`) names the [principal](super::PeerInfo::principal),
    /// beside `session` and `epoch`. Default: no; it may be a person's name.
    pub fn log_principal(mut self, log_principal: bool) -> Self {
        self.log_principal = log_principal;
        self
    }

    /// Keeps the newest events of all clients, for [`Server::timeline`](crate::Server::timeline): attaches, lost connections
    /// with their evidence, gaps, refusals, ends; and the path of each session, for
    /// [`ClientInfo::path`](super::ClientInfo::path). An entry takes at most 80 bytes, whether it is used or not; a full
    /// timeline forgets the oldest. Default: 0, off. Range: up to 10,000,000 entries; more count as that.
    pub fn timeline(mut self, entries: usize) -> Self {
        self.timeline = entries.min(10_000_000);
        self
    }

    /// Makes the server a node of a cluster, whose nodes resume one another's sessions, or lets its sessions move to the next
    /// process on this machine: see [`ClusterConfig`]. [`serve`](crate::serve) joins; behind another server, call
    /// [`Server::join`](crate::Server::join). Default: neither.
    ///
    /// In a cluster with an engine a handler starts, and receives, one round trip later: once its client has confirmed the
    /// session.
    #[cfg(feature = "cluster")]
    pub fn cluster(mut self, cluster: ClusterConfig) -> Self {
        self.cluster = Some(cluster);
        self
    }
}

pub(super) fn check_resume_window(window: Duration) -> Result<(), ConfigError> {
    ConfigError::unless(window <= 30 * DAY, "resume_window", "at most 30 days")
}

pub(super) fn check_limits(limits: Limits) -> Result<(), ConfigError> {
    let is_valid = (1..=1 << 30).contains(&limits.max_message);
    ConfigError::unless(is_valid, "limits.max_message", "1 byte to 1 GiB")?;
    ConfigError::unless(limits.max_fragments >= 1, "limits.max_fragments", "at least 1")
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setter_names_the_field_that_is_out_of_range_and_its_bound() {
        let check = |set: fn(Config) -> Result<Config, ConfigError>, expected: &str| {
            let error = set(Config::new()).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some(expected));
        };
        check(|config| config.resume_window(Duration::MAX), "resume_window must be at most 30 days");
        assert!(Config::new().limits(Limits { max_message: 1, max_fragments: 1 }).is_ok());
        check(
            |config| config.limits(Limits { max_message: 0, ..Limits::default() }),
            "limits.max_message must be 1 byte to 1 GiB",
        );
        check(
            |config| config.limits(Limits { max_fragments: 0, ..Limits::default() }),
            "limits.max_fragments must be at least 1",
        );
        check(
            |config| config.keep(Window { messages: 0, bytes: 1 }),
            "keep must be at least 1 message and 1 byte",
        );
        check(|config| config.opening_deadline(Duration::MAX), "opening_deadline must be at most a day");
        check(|config| config.max_sessions(0), "max_sessions must be at least 1");
        check(|config| config.max_parked_per_address(0), "max_parked_per_address must be at least 1");
    }
}
