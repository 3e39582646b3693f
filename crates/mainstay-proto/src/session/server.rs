//! The server's end of one session.
//!
//! A session is *attached* (bound to a connection) or *parked* (waiting for its client to come
//! back). Messages go in and out all the same; while parked they are kept. An attach bumps the
//! epoch and fences the connection before it: from then on nothing that the old one still brings is
//! looked at. [`Registry`](super::registry::Registry) decides which session a HELLO belongs to; this
//! machine decides whether that HELLO may have it.
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
mod output;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::attach::Fenced;
pub(super) use self::attach::{Attach, Attempt};
pub use self::ending::Closed;
use self::ending::Ending;
pub(super) use self::ending::Remains;
use super::CLOSE_TIMEOUT;
use super::end::End;
use super::flow::{Flow, FlowConfig, Lane, Volatiles};
use super::lifetime::{Lifetime, LifetimeConfig};
use super::message::{Account, Credentials, Hello, Instance, SessionId, Welcome, Window};
use super::names::Name;
use super::replaced::Replacements;
use super::transmit::{ConnectionId, Transmit};
use crate::budget::{Held, held};
use crate::forward::Forward;
use crate::heartbeat::{Heartbeat, HeartbeatConfig};

/// The reason of the Close that ends the connection of a session whose backend was lost.
pub const BACKEND_LOST: &str = "the backend was lost, come back";

/// What all sessions of a server share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerConfig {
    /// Buffers and windows.
    pub flow: FlowConfig,
    /// How long a parked session is kept, unless its client asks for less. Default: 2 minutes.
    pub resume_window: Duration,
    /// When to probe and when to call a client dead.
    pub heartbeat: HeartbeatConfig,
    /// For how long connections may be idle, and for how long they may live. Default: no limits.
    pub lifetime: LifetimeConfig,
    /// Volatile messages that wait for a slow connection, and as many that wait for a slow application;
    /// of more the oldest are dropped. Default: 64, 256 KiB.
    pub volatile_queue: Window,
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
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerSession {
    config: Arc<ServerConfig>,
    id: SessionId,
    flow: Flow,
    /// Whose it is: a hash of the principal.
    principal: Name,
    /// How long it is kept without a connection: what its client asked for, or the server's, if that is less.
    resume_window: Duration,
    /// Where the client's key leads; a secret until the first epoch is confirmed, then only a name.
    pub(super) key: Name,
    /// The token that was presented to attach, valid until the epoch is confirmed.
    presented: Option<Name>,
    /// The token issued with the newest WELCOME.
    issued: Option<Name>,
    /// A token that is valid no longer but still stands in the registry, until the next attach.
    spent: Option<Name>,
    epoch: u64,
    confirmed: bool,
    instance: Instance,
    attempt: u64,
    /// The fate of the session that this one replaces; rides in WELCOME until the epoch is confirmed.
    account: Option<Box<Account>>,
    life: Life,
    /// Nobody can come back for it: the connection it has is its last.
    is_retired: bool,
    /// [`poll_over`](Self::poll_over) said so.
    told_over: bool,
    /// The application will not ask for what was not delivered.
    forgets: bool,
    /// In a box, as a parked session has none.
    attached: Option<Box<Attached>>,
    /// What came outside the stream and waits for the application.
    volatiles: Volatiles,
    /// Where the connection behind this server was replaced; `None`: it never was.
    replaced: Option<Box<Replacements>>,
    /// Which end ended it and how, once one did.
    end: Option<Box<End>>,
    forward: Forward,
}

/// The connection that a session is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Attached {
    connection: ConnectionId,
    lane: Lane,
    welcome: Option<Box<Welcome>>,
    heartbeat: Heartbeat,
    lifetime: Option<Box<Lifetime>>,
    /// It was asked to leave, and is closed then.
    gone_by: Option<Instant>,
    probe: Option<Probe>,
    /// Control messages in order: GOAWAY, END and what follows it.
    queue: VecDeque<Transmit>,
    volatiles: Volatiles,
    auth: Option<Auth>,
}

/// A probe's two messages, as far as they are still to be written. A newer probe takes the place of one that waits: only
/// the newest nonce comes back from a client that answers once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Probe {
    /// The RFC Ping goes first: a peer that answers only that is alive, if not listening.
    Both(u64),
    Ping(u64),
}

/// New credentials, until AUTH_RESULT.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Auth {
    Asked(Credentials),
    Judging,
    /// Its result is still to be written; until then another AUTH is too early, or results would pile up for a
    /// client that reads nothing.
    Judged {
        accepted: bool,
    },
}

/// How far a session is from its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Life {
    Parked {
        since: Instant,
    },
    Attached,
    /// Ended by us once everything before is acknowledged, and at the latest `until` then. Until then a session
    /// without a connection waits for its client.
    Closing {
        how: Box<Ending>,
        until: Instant,
    },
    /// END is written; only the peer's END is awaited, and not for ever.
    EndSent {
        code: u64,
        until: Instant,
    },
    /// The peer's END came; what was taken before it is still being handed over.
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
            confirmed: false,
            instance: hello.instance,
            attempt: 0,
            account: identity.account.map(Box::new),
            life: Life::Parked { since: now },
            is_retired: false,
            told_over: false,
            forgets: false,
            attached: None,
            volatiles: Volatiles::default(),
            replaced: None,
            end: None,
            forward: Forward::default(),
        }
    }

    /// The public name.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// How often a connection was attached.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The connection it is bound to, `None` while parked.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionId> {
        self.attached.as_ref().map(|a| a.connection)
    }

    /// Since when nobody is attached; of a session that is being ended, as far as its end tells.
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

    /// Whether new messages are accepted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.life, Life::Parked { .. } | Life::Attached)
    }

    /// The highest number of ours that the client acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.flow.outbox.acknowledged()
    }

    /// The highest number of the client's that counts as received.
    #[must_use]
    pub fn acknowledged_to_client(&self) -> u64 {
        self.flow.inbox.acknowledged()
    }

    /// The smoothed round-trip time of the current connection's heartbeats.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.attached.as_ref().and_then(|a| a.heartbeat.rtt())
    }

    /// Payload bytes kept for the client.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.flow.outbox.bytes()
    }

    /// Payload bytes that came from the client and that the application was not handed yet.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.flow.inbox.queued_bytes()
    }

    /// What the session keeps, with what each message costs beside its payload.
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
        let size = size_of::<ServerSession>() - size_of::<Forward>();
        assert!(size <= 496, "{size}");
        assert!(size_of::<Attached>() <= 200, "{}", size_of::<Attached>());
    }
}
