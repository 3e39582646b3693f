//! The server's end of one session.
//!
//! A session is *attached* (bound to a connection) or *parked* (waiting for its client to come back). The application
//! sends and receives in both states; a parked session keeps the messages. An attach increments the epoch and fences
//! the previous connection: from then on the session ignores everything that still arrives there.
//! [`Registry`](super::registry::Registry) decides which session a HELLO names; this machine decides whether the
//! HELLO may attach to it.
//!
//! ```text
//! any mutation -> poll_transmit until None -> deliver until None -> poll_timeout
//! ```
//!
//! Source: `docs/PROTOCOL.md` "Attaching", "Closing".

mod attach;
mod ending;
mod frames;
mod messages;
mod moving;
mod output;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::attach::Fenced;
pub(super) use self::attach::{Attach, Attempt};
pub use self::ending::Closed;
use self::ending::Ending;
pub(super) use self::ending::FinalCounts;
use super::CLOSE_TIMEOUT;
use super::end::End;
use super::flow::{Flow, FlowConfig, Lane, Volatiles};
use super::lifetime::{Lifetime, LifetimeConfig};
use super::message::{Account, Credentials, Hello, Instance, SessionId, Welcome, Window};
use super::names::Name;
use super::outbox::Progress;
use super::replaced::Replacements;
use super::transmit::{ConnectionId, Transmit};
use crate::budget::{Held, held};
use crate::heartbeat::{Heartbeat, HeartbeatConfig};

/// The reason in the Close with which the server ends the connection of a session whose backend was lost.
pub const BACKEND_LOST: &str = "the backend was lost, come back";

/// The configuration that all sessions of a server share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerConfig {
    /// Buffers and windows.
    pub flow: FlowConfig,
    /// How long the server keeps a parked session, unless its client asks for less. Default: 2 minutes.
    pub resume_window: Duration,
    /// When the server probes a client, and when it declares the client dead.
    pub heartbeat: HeartbeatConfig,
    /// How long a connection may be idle, and how long it may live. Default: no limits.
    pub lifetime: LifetimeConfig,
    /// Bound of the volatile messages that wait for a slow connection, and of those that wait for a slow application.
    /// Above it the oldest are dropped. Default: 64, 256 KiB.
    pub volatile_queue: Window,
    /// The URL at which clients reach this server and no other: each WELCOME names it, so that the next resume comes
    /// straight back. Default: none.
    pub resume_at: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            flow: FlowConfig {
                keep: Window::SERVER,
                accept: Window::SERVER,
                manual_ack: false,
                max_message: None,
            },
            resume_window: Duration::from_secs(120),
            heartbeat: HeartbeatConfig::default(),
            lifetime: LifetimeConfig::default(),
            volatile_queue: Window::VOLATILE,
            resume_at: None,
        }
    }
}

/// One session on the server; the module describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerSession {
    config: Arc<ServerConfig>,
    id: SessionId,
    flow: Flow,
    /// A hash of the principal that owns the session.
    principal: Name,
    /// How long the session is kept without a connection: the client's wish or the server's limit, whichever is less.
    resume_window: Duration,
    /// The name of the client's key. The key is a secret until the first epoch is established; after that it only
    /// names the session.
    pub(super) key: Name,
    /// The token with which the client attached. It stays valid until the epoch is established.
    presented: Option<Name>,
    /// The token that the newest WELCOME issued.
    issued: Option<Name>,
    /// A token that is no longer valid. The registry still has its name, until the next attach.
    spent: Option<Name>,
    epoch: u64,
    established: Established,
    hold: Hold,
    instance: Instance,
    attempt: u64,
    /// The account of the session that this one replaces. Every WELCOME carries it until the epoch is established.
    account: Option<Box<Account>>,
    life: Life,
    /// No client can resume the session: it ends with its current connection.
    is_retired: bool,
    /// [`poll_closed`](Self::poll_closed) has reported the end.
    reported_closed: bool,
    /// The application will not ask for undelivered messages.
    forgets: bool,
    /// Boxed, because a parked session has none.
    attached: Option<Box<Attached>>,
    /// Messages outside the stream that wait for the application.
    volatiles: Volatiles,
    /// What few sessions have; `None`: this one has nothing of it.
    rare: Option<Box<Rare>>,
    /// Which end ended the session, and how; `None` while neither did.
    end: Option<Box<End>>,
}

/// Which epochs are established: in each, the client has sent a control message after WELCOME.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Established {
    /// None, at any node: the key is a secret.
    Never,
    /// An earlier one, perhaps at another node.
    Earlier,
    /// The current one.
    Current,
}

/// Why nothing is delivered to the application, although the session is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Hold {
    /// Everything is delivered.
    No,
    /// No control message of the client has confirmed an epoch at this node. Only where confirmation comes first.
    Unconfirmed,
    /// The session leaves this node: what arrived stays with the client, which sends it again.
    Leaving { was_confirmed: bool },
}

/// What few sessions have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rare {
    /// Where in the stream the connection behind this server was replaced.
    replaced: Replacements,
    /// A new handler may continue the session at another node.
    is_movable: bool,
    /// What the application saved for that handler.
    saved: Option<Bytes>,
    /// The claim by which this node has the session.
    claim: u64,
    /// The connection that the session left, until its Close is polled.
    fenced: Option<ConnectionId>,
    /// The bound on what is kept for the client, as it was before the session left.
    limit: Option<Window>,
}

/// The claim of the node where a session begins.
const FIRST_CLAIM: u64 = 1;

impl Default for Rare {
    fn default() -> Self {
        Self {
            replaced: Replacements::default(),
            is_movable: false,
            saved: None,
            claim: FIRST_CLAIM,
            fenced: None,
            limit: None,
        }
    }
}

/// The connection that a session is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Attached {
    connection: ConnectionId,
    lane: Lane,
    welcome: Option<Box<Welcome>>,
    heartbeat: Heartbeat,
    lifetime: Option<Box<Lifetime>>,
    /// When the server closes the connection, if the client does not follow the GOAWAY before.
    gone_by: Option<Instant>,
    probe: Option<Probe>,
    /// Control messages in order: GOAWAY, END and what follows END.
    queue: VecDeque<Transmit>,
    volatiles: Volatiles,
    auth: Option<Auth>,
}

/// The two messages of a probe, as long as they wait to be written. A newer probe replaces one that waits: a client
/// that answers only once returns only the newest nonce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Probe {
    /// The RFC Ping goes first: a peer that answers nothing else is alive, although its application does not listen.
    Both(u64),
    Ping(u64),
}

/// New credentials, until AUTH_RESULT is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Auth {
    Asked(Credentials),
    Judging,
    /// AUTH_RESULT waits to be written. Until then another AUTH is a protocol error; otherwise results would pile up
    /// for a client that does not read.
    Judged {
        accepted: bool,
        /// Zero: no limit known.
        expires_in: Duration,
    },
}

/// How far a session is from its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Life {
    Parked {
        since: Instant,
    },
    Attached,
    /// This end ends the session once the client has acknowledged everything, and at `until` at the latest. Until
    /// then a session without a connection waits for its client.
    Closing {
        how: Box<Ending>,
        until: Instant,
    },
    /// END is written. The session waits for the client's END, until `until` at the latest.
    EndSent {
        code: u64,
        until: Instant,
    },
    /// The client's END arrived. The application still receives what arrived before it.
    EndReceived {
        code: u64,
    },
    Closed(Closed),
}

/// The identity of a new session.
pub(super) struct Identity {
    pub(super) id: SessionId,
    pub(super) principal: Name,
    pub(super) key: Name,
    pub(super) account: Option<Account>,
    /// Nothing is delivered before the first confirmation.
    pub(super) confirmation_first: bool,
}

impl ServerSession {
    pub(super) fn new(config: Arc<ServerConfig>, now: Instant, identity: Identity, hello: &Hello) -> Self {
        Self {
            id: identity.id,
            principal: identity.principal,
            resume_window: config.resume_window,
            flow: Flow::new(&config.flow, hello.window),
            config,
            key: identity.key,
            presented: None,
            issued: None,
            spent: None,
            epoch: 0,
            established: Established::Never,
            hold: if identity.confirmation_first { Hold::Unconfirmed } else { Hold::No },
            instance: hello.instance,
            attempt: 0,
            account: identity.account.map(Box::new),
            life: Life::Parked { since: now },
            is_retired: false,
            reported_closed: false,
            forgets: false,
            attached: None,
            volatiles: Volatiles::default(),
            rare: None,
            end: None,
        }
    }

    /// Returns the settings that it was created with.
    #[must_use]
    pub fn settings(&self) -> &ServerConfig {
        &self.config
    }

    /// Returns the public name of the session.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns how many times a connection was attached.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the connection that the session is attached to; `None` while it is parked.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionId> {
        self.attached.as_ref().map(|a| a.connection)
    }

    /// Returns since when no connection is attached. For a session that is being ended, the time is derived from the
    /// time of its end.
    #[must_use]
    pub fn parked_since(&self) -> Option<Instant> {
        match self.life {
            Life::Parked { since } => Some(since),
            Life::Closing { until, .. } if self.attached.is_none() => {
                until.checked_sub(self.resume_window.max(CLOSE_TIMEOUT))
            }
            _ => None,
        }
    }

    /// Whether the session accepts new messages.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.life, Life::Parked { .. } | Life::Attached)
    }

    /// How far the message has come that [`send`](Self::send) gave this number.
    #[must_use]
    pub fn progress(&self, number: u64) -> Progress {
        self.flow.outbox.progress(number)
    }

    /// Whether a connection has written every message that was accepted.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.flow.outbox.written() >= self.flow.outbox.last()
    }

    /// Returns the highest number of this end's messages that the client has acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.flow.outbox.acknowledged()
    }

    /// Returns the highest number of the client's messages that this end acknowledges.
    #[must_use]
    pub fn acknowledged_inbound(&self) -> u64 {
        self.flow.inbox.acknowledged()
    }

    /// Returns the smoothed round-trip time of the current connection's heartbeats.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.attached.as_ref().and_then(|a| a.heartbeat.rtt())
    }

    /// Returns the payload bytes that are kept for the client.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.flow.outbox.bytes()
    }

    /// Returns the payload bytes that arrived from the client and were not delivered yet.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.flow.inbox.queued_bytes()
    }

    /// Returns what the session keeps in memory, including the overhead of each message.
    #[must_use]
    pub fn held(&self) -> Held {
        let waiting = self.attached.as_ref().map_or(0, |attached| attached.volatiles.bytes());
        Held {
            unread: held(self.flow.inbox.queued_bytes() + self.volatiles.bytes(), self.flow.inbox.len()),
            kept: held(self.flow.outbox.bytes() + waiting, self.flow.outbox.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_session_is_small_and_an_attached_one_little_larger() {
        assert!(size_of::<ServerSession>() <= 496, "{}", size_of::<ServerSession>());
        assert!(size_of::<Attached>() <= 200, "{}", size_of::<Attached>());
    }
}
