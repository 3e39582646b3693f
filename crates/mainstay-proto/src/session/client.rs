//! The client's end of one session, over one connection after the other.
//!
//! At most two connections matter at a time: the *current* one, and a *pending* one that has sent
//! HELLO and waits for WELCOME. From the pending HELLO on, the current one is only read (make before
//! break); WELCOME ends it, and if the pending one is refused or lost, it is written again.
//!
//! When to dial, what to do after a loss and how long to wait is not decided here
//! ([`connect`](crate::connect)).
//!
//! Source: `docs/PROTOCOL.md` "Attaching", "Closing".

mod attach;
mod credentials;
mod ending;
mod frames;
mod output;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::credentials::Fresh;
use super::flow::{Flow, FlowConfig, Lane, Volatiles};
use super::inbox::Delivery;
use super::message::{
    ClientKey, Credentials, Delay, Hello, Instance, LossCause, Message, ResumeToken, SessionId, Window,
};
use super::names::Secrets;
use super::transmit::{ConnectionId, Transmit};
use crate::budget::{Held, held};

/// What a client session is made of. Every field has the default of `docs/DEFAULTS.md`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientConfig {
    /// Buffers and windows.
    pub flow: FlowConfig,
    /// Sent in HELLO, where the opening handshake cannot carry them.
    pub credentials: Option<Credentials>,
    /// The resume window asked for; the server decides. Default: the server's.
    pub resume_window: Option<Duration>,
    /// Send again in the next session what a lost one certainly did not deliver. Default: true.
    pub resend_undelivered: bool,
    /// Volatile messages that wait for a slow connection; of more the oldest are dropped. Default: 64, 256 KiB.
    pub volatile_queue: Window,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            flow: FlowConfig {
                keep: Window::CLIENT,
                accept: Window::CLIENT,
                manual_ack: false,
                max_message: None,
            },
            credentials: None,
            resume_window: None,
            resend_undelivered: true,
            volatile_queue: Window::VOLATILE,
        }
    }
}

/// What became of every message that was sent in a session that is over: each number is in one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Fate {
    /// The messages from 1 up to this number were delivered.
    pub delivered: u64,
    /// The messages above `delivered` up to this number may or may not have been delivered. Those above it were not.
    pub unknown: u64,
    /// The number of the last message that was sent.
    pub last: u64,
    /// The messages that were not delivered are sent again in the next session, `unknown + 1` as its number 1.
    pub resent: bool,
    /// The peer's messages that will never come; `None`: none, or their number is unknown.
    pub lost: Option<LostMessages>,
    /// Why the session was lost, as far as the peer stated it.
    pub cause: LossCause,
}

/// A number of messages in a row that the peer sent and that will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LostMessages {
    /// The number of the first.
    pub first: u64,
    /// How many messages.
    pub count: u64,
}

impl Fate {
    /// The fate of `last` messages, none of which is known to be delivered or written.
    #[must_use]
    pub fn none_delivered(last: u64) -> Self {
        Self { delivered: 0, unknown: 0, last, resent: false, lost: None, cause: LossCause::Unknown }
    }
}

/// What happens to a client session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientEvent {
    /// Bound to a connection.
    Attached {
        /// The public name.
        id: SessionId,
        /// Counts the attaches of this session.
        epoch: u64,
        /// The session continues: nothing was lost.
        resumed: bool,
        /// How often the server sends PING.
        heartbeat_interval: Duration,
        /// How long the server keeps the session without a connection.
        resume_window: Duration,
        /// Where to resume, if the server said.
        resume_at: Option<String>,
    },
    /// The session is lost, and a new one follows. The one event about it: see [`Fate`].
    Gap(Fate),
    /// The attempt was refused; the session, if there is one, is as it was.
    Refused {
        /// From the table of codes.
        code: u64,
        /// Whether trying again makes sense.
        temporary: bool,
        /// When.
        delay: Delay,
    },
    /// A message that was accepted before it was known what the server takes is larger than that: it is not delivered.
    TooLarge {
        /// Its number.
        number: u64,
    },
    /// Leave the connection after the delay; nothing is lost.
    GoAway {
        /// The connection that said so.
        connection: ConnectionId,
        /// When to leave.
        delay: Delay,
        /// When the server will close it; 0: it did not say.
        close_in: Duration,
        /// Where to, if the server said.
        endpoint: Option<String>,
    },
    /// A message outside the stream.
    Volatile(Message),
    /// What became of the credentials that [`authenticate`](ClientSession::authenticate) presented.
    Authenticated {
        /// They are the ones that every later HELLO presents. Otherwise those before them go on.
        accepted: bool,
    },
    /// Over, on purpose or because another instance took the session; nothing follows.
    Ended {
        /// The code of END or of the close.
        code: u64,
        /// The reason given.
        reason: String,
        /// What became of what was sent.
        fate: Fate,
        /// Which end ended it.
        by: EndedBy,
    },
}

/// Which end ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndedBy {
    /// This end, with [`close`](ClientSession::close).
    Us,
    /// This end, with [`abort`](ClientSession::abort).
    Abort,
    /// The server, with END.
    Server,
    /// The server, with a REFUSE.
    Refusal,
    /// Another instance.
    OtherInstance,
    /// The two ends counted differently.
    Protocol,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientSession {
    config: ClientConfig,
    secrets: Secrets,
    instance: Instance,
    attempt: u64,
    flow: Flow,
    /// Names the session that the next HELLO may create.
    key: ClientKey,
    /// When the key was first sent.
    key_sent: Option<Instant>,
    token: Option<ResumeToken>,
    fresh: Option<Fresh>,
    current: Option<Current>,
    pending: Option<Pending>,
    /// Where the client and the server stood when the current connection was attached.
    mark: (u64, u64),
    barren: u32,
    /// Attempts in a row that ended without an answer after messages had followed HELLO.
    hasty: u32,
    /// How often the connection behind the server was replaced, as the server last said.
    replaced: u64,
    /// Started from the stored state of another instance, and not attached yet: it numbers nothing new.
    restored: bool,
    life: Life,
    /// By the fate that the end told.
    delivered_at_the_end: u64,
    events: VecDeque<ClientEvent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Current {
    connection: ConnectionId,
    lane: Lane,
    ping: Option<u64>,
    queue: VecDeque<Transmit>,
    volatiles: Volatiles,
    /// An AUTH waits for its AUTH_RESULT here.
    judging: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pending {
    connection: ConnectionId,
    hello: Option<Box<Hello>>,
    /// Set while this HELLO asks for a new session: messages follow it at once.
    opening: Option<Lane>,
    /// They do not: it goes alone.
    waits: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Life {
    Open,
    /// END leaves once everything before it is acknowledged.
    Closing {
        code: u64,
        reason: String,
    },
    EndSent {
        code: u64,
        reason: String,
    },
    /// The peer's END came, with its final counts; what came before it is still being handed over.
    EndReceived {
        code: u64,
        reason: String,
        acknowledged: u64,
        delivered: u64,
    },
    Closed,
}

impl ClientSession {
    /// A session of a new instance. `seed`: 32 bytes of the operating system's randomness.
    #[must_use]
    pub fn new(config: ClientConfig, seed: [u8; 32]) -> Self {
        let mut secrets = Secrets::new(seed);
        let (instance, key) = (secrets.instance(), secrets.client_key());
        Self {
            flow: Flow::new(&config.flow, Window::BEFORE_WELCOME),
            config,
            secrets,
            instance,
            attempt: 0,
            key,
            key_sent: None,
            token: None,
            fresh: None,
            current: None,
            pending: None,
            mark: (0, 0),
            barren: 0,
            hasty: 0,
            replaced: 0,
            restored: false,
            life: Life::Open,
            delivered_at_the_end: 0,
            events: VecDeque::new(),
        }
    }

    /// A new instance that goes on from the state of this one: a second tab, a restored process.
    /// Token, counts and buffer go over together, instance and key do not. `None` before the first WELCOME,
    /// when there is nothing to go on from. It accepts no message until its own WELCOME.
    /// From then on everything in the buffer counts as written, here as in the copy: either may write it
    /// without the other's knowledge. `seed` as in [`new`](Self::new).
    ///
    /// Source: `docs/PROTOCOL.md` "Attaching", "What was never written".
    #[must_use]
    pub fn restored(&mut self, seed: [u8; 32]) -> Option<Self> {
        let token = Some(self.token.clone()?);
        let mut copy = Self { token, ..Self::new(self.config.clone(), seed) };
        self.flow.outbox.note_written(self.flow.outbox.last());
        copy.flow = self.flow.clone();
        copy.flow.forget_owed();
        copy.flow.outbox.note_written(copy.flow.outbox.last());
        copy.replaced = self.replaced;
        copy.restored = true;
        Some(copy)
    }

    /// Accepts a message and returns its number; it is kept until acknowledged.
    ///
    /// # Errors
    /// Gives the message back when the buffer is full, the session is ending, or the server does not
    /// [take](Self::largest) it.
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        if self.life == Life::Open && !self.restored { self.flow.outbox.push(message) } else { Err(message) }
    }

    /// Whether `send` would accept a message of this many bytes.
    #[must_use]
    pub fn has_room(&self, length: usize) -> bool {
        self.flow.outbox.has_room(length, u64::MAX)
    }

    /// The payload of the largest message that the server takes, as far as it said.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.flow.outbox.largest()
    }

    /// Writes a message that is not numbered, kept or replayed. Dropped while detached.
    pub fn send_volatile(&mut self, message: Message) {
        if let (Some(current), true) = (&mut self.current, self.pending.is_none()) {
            current.volatiles.push(message, self.config.volatile_queue);
        }
    }

    /// The next message or gap for the application, in order.
    pub fn deliver(&mut self, now: Instant) -> Option<Delivery> {
        if matches!(self.life, Life::Closing { .. } | Life::EndSent { .. } | Life::Closed) {
            return None;
        }
        let delivery = self.flow.deliver(now);
        self.answer_end_if_delivered();
        delivery
    }

    /// In manual mode: everything up to and including `number` is handled.
    pub fn acknowledge(&mut self, now: Instant, number: u64) {
        self.flow.inbox.acknowledge(now, number);
    }

    /// The number of the last message that was written to the current connection.
    #[must_use]
    pub fn wrote(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.lane.wrote)
    }

    /// The connection that the session is bound to.
    #[must_use]
    pub fn current(&self) -> Option<ConnectionId> {
        self.current.as_ref().map(|c| c.connection)
    }

    /// The connection that waits for WELCOME.
    #[must_use]
    pub fn pending(&self) -> Option<ConnectionId> {
        self.pending.as_ref().map(|p| p.connection)
    }

    /// The highest number that the server acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.flow.outbox.acknowledged()
    }

    /// Payload bytes kept for the server.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.flow.outbox.bytes()
    }

    /// What the session keeps, with what each message costs beside its payload.
    #[must_use]
    pub fn held(&self) -> Held {
        Held {
            unread: held(self.flow.inbox.queued_bytes(), self.flow.inbox.len()),
            kept: held(self.flow.outbox.bytes(), self.flow.outbox.len()),
        }
    }

    /// The last number given.
    #[must_use]
    pub fn last_sent(&self) -> u64 {
        self.flow.outbox.last()
    }

    /// The session is over and has nothing more to write.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.life == Life::Closed
    }

    /// Whether the server's END came, and what came before it is still being handed over.
    #[must_use]
    pub fn is_ended_by_peer(&self) -> bool {
        matches!(self.life, Life::EndReceived { .. })
    }

    /// Which running client this is.
    #[must_use]
    pub fn instance(&self) -> Instance {
        self.instance
    }
}
