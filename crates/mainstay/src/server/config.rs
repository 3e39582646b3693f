//! How a server behaves.

use std::time::Duration;

use mainstay_proto::ConfigError;
use mainstay_proto::admission::AdmissionConfig;
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::session::{LifetimeConfig, RegistryConfig, Window};
use mainstay_proto::ws::{Limits, Origins};

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
