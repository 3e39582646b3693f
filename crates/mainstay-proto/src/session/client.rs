//! The client's end of one session, over one connection after the other.
//!
//! At most two connections matter at a time: the *current* one, and a *pending* one that has sent HELLO and waits for
//! WELCOME. While an attempt is pending the client only reads from the current connection (make before break).
//! WELCOME ends the current connection. If the pending attempt is refused or lost, the client writes to the current
//! connection again.
//!
//! Not here: when to dial, what follows a loss, and how long to wait ([`connect`](crate::connect)).
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

/// The configuration of a client session. Every field has the default of `docs/DEFAULTS.md`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientConfig {
    /// Buffers and windows.
    pub flow: FlowConfig,
    /// Credentials in HELLO, for clients whose opening handshake cannot carry them.
    pub credentials: Option<Credentials>,
    /// The resume window that the client asks for; the server decides. Default: the server's.
    pub resume_window: Option<Duration>,
    /// Whether messages that a lost session certainly did not deliver are sent again in the next session. Default:
    /// true.
    pub resend_undelivered: bool,
    /// Bound of the volatile messages that wait for a slow connection. Above it the oldest are dropped. Default: 64,
    /// 256 KiB.
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

/// An event of a client session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClientEvent {
    /// The session is attached to a connection.
    Attached {
        /// The public name of the session.
        id: SessionId,
        /// The number of attaches of this session so far.
        epoch: u64,
        /// The session continues: nothing was lost.
        resumed: bool,
        /// How often the server sends PING.
        heartbeat_interval: Duration,
        /// How long the server keeps the session without a connection.
        resume_window: Duration,
        /// Where to resume, if the server announced an endpoint.
        resume_at: Option<String>,
    },
    /// The session is lost, and a new one follows. This is the only event about the loss; [`Fate`] has the details.
    Gap(Fate),
    /// The attempt was refused. The session, if there is one, did not change.
    Refused {
        /// The code, from the table in `docs/PROTOCOL.md` "Closing".
        code: u64,
        /// Whether a later attempt may succeed.
        temporary: bool,
        /// When to attempt again.
        delay: Delay,
    },
    /// A message was accepted before the client knew the limit of the server, and it is larger. It is not delivered.
    TooLarge {
        /// The number of the message.
        number: u64,
    },
    /// Leave the connection after `delay`; nothing is lost.
    GoAway {
        /// The connection on which GOAWAY arrived.
        connection: ConnectionId,
        /// When to leave.
        delay: Delay,
        /// When the server will close the connection; 0 if it announced no time.
        close_in: Duration,
        /// Where to connect next, if the server announced an endpoint.
        endpoint: Option<String>,
    },
    /// A message outside the stream.
    Volatile(Message),
    /// The server judged the credentials that [`authenticate`](ClientSession::authenticate) presented.
    Authenticated {
        /// Whether every later HELLO presents these credentials. Otherwise the previous ones stay in use.
        accepted: bool,
    },
    /// The session ended: an end closed it, or another instance attached to it. No event follows.
    Ended {
        /// The code of END or of the Close.
        code: u64,
        /// The reason in END or in the Close.
        reason: String,
        /// What became of the messages that were sent.
        fate: Fate,
        /// The end that ended the session.
        by: EndedBy,
    },
}

/// The end that ended a session.
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
    /// Another instance of this client, which attached to the session.
    OtherInstance,
    /// Both ends, because they counted differently.
    Protocol,
}

/// One session on the client; the module describes it.
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
    /// A HELLO with this key was answered by no REFUSE.
    key_may_name: bool,
    token: Option<ResumeToken>,
    fresh: Option<Fresh>,
    current: Option<Current>,
    pending: Option<Pending>,
    /// The counts of both ends when the current connection was attached.
    mark: (u64, u64),
    /// A heartbeat arrived on the current connection.
    had_beat: bool,
    barren: u32,
    /// How many attempts in a row ended without an answer after messages followed HELLO.
    hasty: u32,
    /// How many times the connection behind the server was replaced, as the server announced last.
    replaced: u64,
    /// The session was restored from another instance's state and is not attached yet: it accepts no new message.
    restored: bool,
    life: Life,
    /// The delivered count of the final fate.
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
    /// An AUTH waits for its AUTH_RESULT.
    judging: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Pending {
    connection: ConnectionId,
    hello: Option<Box<Hello>>,
    /// Set if this HELLO asks for a new session: messages follow it at once.
    opening: Option<Lane>,
    /// The messages wait for WELCOME; HELLO goes alone.
    waits: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Life {
    Open,
    /// END is sent once everything before it is acknowledged.
    Closing {
        code: u64,
        reason: String,
    },
    EndSent {
        code: u64,
        reason: String,
    },
    /// The server's END arrived with its final counts. The application still receives what arrived before it.
    EndReceived {
        code: u64,
        reason: String,
        acknowledged: u64,
        delivered: u64,
    },
    Closed,
}

impl ClientSession {
    /// Creates a session of a new instance. `seed`: 32 bytes of the operating system's randomness.
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
            key_may_name: false,
            token: None,
            fresh: None,
            current: None,
            pending: None,
            mark: (0, 0),
            had_beat: false,
            barren: 0,
            hasty: 0,
            replaced: 0,
            restored: false,
            life: Life::Open,
            delivered_at_the_end: 0,
            events: VecDeque::new(),
        }
    }

    /// Creates a new instance that continues from the state of this one: a second tab, a restored process. The copy
    /// takes the token, the counts and the buffer together; it gets its own instance and key. Returns `None` before
    /// the first WELCOME, because there is no state to continue from. The copy accepts no message until its own
    /// WELCOME.
    ///
    /// From then on every message in the buffer counts as written, here and in the copy: either instance may write
    /// it, and the other does not know. `seed` as in [`new`](Self::new).
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

    /// Accepts a message and returns its number. The session keeps the message until the server acknowledges it.
    ///
    /// # Errors
    /// Returns the message if the buffer is full, the session is ending, or the message is [larger than the server
    /// accepts](Self::largest).
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        if self.life == Life::Open && !self.restored { self.flow.outbox.push(message) } else { Err(message) }
    }

    /// Whether `send` would accept a message of `length` bytes.
    #[must_use]
    pub fn has_room(&self, length: usize) -> bool {
        self.flow.outbox.has_room(length, u64::MAX)
    }

    /// Returns the largest payload that the server accepts; `u64::MAX` if the server announced no limit.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.flow.outbox.largest()
    }

    /// Sends a message that is not numbered, kept or replayed. It is dropped while the session is detached.
    pub fn send_volatile(&mut self, message: Message) {
        if let (Some(current), true) = (&mut self.current, self.pending.is_none()) {
            current.volatiles.push(message, self.config.volatile_queue);
        }
    }

    /// Returns the next message or gap for the application, in order.
    pub fn deliver(&mut self, now: Instant) -> Option<Delivery> {
        if matches!(self.life, Life::Closing { .. } | Life::EndSent { .. } | Life::Closed) {
            return None;
        }
        let delivery = self.flow.deliver(now);
        self.answer_end_if_delivered();
        delivery
    }

    /// In manual mode: acknowledges everything up to and including `number`.
    pub fn acknowledge(&mut self, now: Instant, number: u64) {
        self.flow.inbox.acknowledge(now, number);
    }

    /// Returns the number of the last message that was written to the current connection.
    #[must_use]
    pub fn wrote(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.lane.wrote)
    }

    /// Returns the connection that the session is attached to.
    #[must_use]
    pub fn current(&self) -> Option<ConnectionId> {
        self.current.as_ref().map(|c| c.connection)
    }

    /// Returns the connection that waits for WELCOME.
    #[must_use]
    pub fn pending(&self) -> Option<ConnectionId> {
        self.pending.as_ref().map(|p| p.connection)
    }

    /// Returns the highest number that the server acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.flow.outbox.acknowledged()
    }

    /// Returns the payload bytes that are kept for the server.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.flow.outbox.bytes()
    }

    /// Returns what the session keeps in memory, including the overhead of each message.
    #[must_use]
    pub fn held(&self) -> Held {
        Held {
            unread: held(self.flow.inbox.queued_bytes(), self.flow.inbox.len()),
            kept: held(self.flow.outbox.bytes(), self.flow.outbox.len()),
        }
    }

    /// Returns the number of the last message that was sent.
    #[must_use]
    pub fn last_sent(&self) -> u64 {
        self.flow.outbox.last()
    }

    /// Whether the session is over and has nothing more to write.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.life == Life::Closed
    }

    /// Whether the server's END arrived, and the application still receives what arrived before it.
    #[must_use]
    pub fn is_ended_by_peer(&self) -> bool {
        matches!(self.life, Life::EndReceived { .. })
    }

    /// Returns the identity of this running client.
    #[must_use]
    pub fn instance(&self) -> Instance {
        self.instance
    }
}
