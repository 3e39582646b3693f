//! The messages of `mainstay.v1`; their bytes are in the codec.
//!
//! A text message is application text, unchanged. A binary message starts with a type byte: `0x00` is an
//! application's binary message, `0x01`-`0x80` are the control messages below, `0x81`-`0xff` are reserved and
//! ignored. Application messages are numbered by position; the number does not travel. Control and volatile messages
//! are not numbered.
//!
//! Source: `docs/PROTOCOL.md` "Framing".

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

pub use crate::ws::Message;

/// The version that this crate speaks, sent in [`Hello`].
pub const VERSION: u64 = 1;

/// How much an end may write above what the receiver has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// The number of messages.
    pub messages: u64,
    /// The number of payload bytes. A single message may be larger.
    pub bytes: u64,
}

impl Window {
    /// What a server accepts from a client before its WELCOME: 16 messages, 64 KiB.
    pub const BEFORE_WELCOME: Self = Self { messages: 16, bytes: 64 * 1024 };
    /// What a server announces by default: 1,024 messages, 1 MiB.
    pub const SERVER: Self = Self { messages: 1024, bytes: 1024 * 1024 };
    /// What may wait outside the stream by default: 64 messages, 256 KiB.
    pub const VOLATILE: Self = Self { messages: 64, bytes: 256 * 1024 };
    /// What a client announces by default: 1,024 messages, 4 MiB.
    pub const CLIENT: Self = Self { messages: 1024, bytes: 4 * 1024 * 1024 };
}

/// The secret that proves ownership of a session. Never logged: `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ResumeToken(pub Bytes);

/// Proof of who a client is: a token, a password. Never logged: `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials(pub Bytes);

/// The client's name for a session that has no token yet; a secret until the first epoch is established.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientKey(pub [u8; 16]);

/// The identity of one running client (page, process). Public.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(pub [u8; 8]);

/// The public name of a session, for logs and metrics. It gives no access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 8]);

/// Why a session was lost, in an [`Account`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossCause {
    /// The server does not know, or does not state it.
    Unknown,
    /// The resume window passed.
    Expired,
    /// An end closed it on purpose.
    Ended,
    /// The server needed the memory.
    Evicted,
    /// The server was restarted.
    Restarted,
    /// The backend behind the server lost its state: a gateway's connection to its backend ended.
    Replaced,
}

/// The fate of a lost session, reported to the client that asks for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Account {
    /// The client's messages up to this number were delivered and acknowledged.
    pub acknowledged: u64,
    /// The fate of the client's messages above `acknowledged` up to this number is unknown. Those above were not
    /// delivered.
    pub delivered: u64,
    /// The number of the first of the server's messages that the client will never receive.
    pub first_lost: u64,
    /// How many messages the client will never receive; 0 if the number is unknown.
    pub count: u64,
    /// Why the session was lost.
    pub cause: LossCause,
}

/// HELLO, the client's first message on every connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hello {
    /// How much the server may write above what the client has acknowledged.
    pub window: Window,
    /// Names the session that is created if none is resumed.
    pub key: ClientKey,
    /// Time since the key's first HELLO, in whole milliseconds.
    pub key_age: Duration,
    /// The identity of this running client.
    pub instance: Instance,
    /// Counts this instance's HELLOs, so that the server recognizes a stale one.
    pub attempt: u64,
    /// Asks for an existing session.
    pub resume: Option<Resume>,
    /// Proof of who the client is, if the opening handshake could not carry it.
    pub credentials: Option<Credentials>,
    /// The resume window that the client asks for.
    pub resume_window: Option<Duration>,
    /// The largest message that the client accepts, in payload bytes.
    pub max_message: Option<u64>,
}

/// The part of [`Hello`] that asks for an existing session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resume {
    /// Proof of ownership.
    pub token: ResumeToken,
    /// The number that the client acknowledges: the server replays from the next one.
    pub acknowledged: u64,
    /// The last number that the client gave to one of its own messages.
    pub sent: u64,
    /// The lowest number that the client still keeps.
    pub first_held: u64,
}

/// WELCOME, the server's answer that attaches the connection to a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Welcome {
    /// The session's public name.
    pub id: SessionId,
    /// The token that the client presents the next time.
    pub token: ResumeToken,
    /// Counts the session's attaches, from 1.
    pub epoch: u64,
    /// Whether this is the session that the client asked for.
    pub resumed: bool,
    /// The number that the server acknowledges: the client replays from the next one.
    pub acknowledged: u64,
    /// The number of the first message that the server will write.
    pub first: u64,
    /// How long the session is kept without a connection.
    pub resume_window: Duration,
    /// How often the server sends PING.
    pub heartbeat_interval: Duration,
    /// How much the client may write above what the server has acknowledged.
    pub window: Window,
    /// The fate of the session that was asked for, when `resumed` is false.
    pub account: Option<Account>,
    /// Where to resume, if not at this server.
    pub resume_at: Option<String>,
    /// The largest message that the server accepts, in payload bytes.
    pub max_message: Option<u64>,
}

/// PING and PONG: liveness, integrity check and acknowledgement in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Beat {
    /// Pairs a PONG with its PING.
    pub nonce: u64,
    /// The writer's position on this connection.
    pub sent: u64,
    /// The writer's `acknowledged`.
    pub acknowledged: u64,
}

/// When to come back: uniformly between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Delay {
    /// The earliest.
    pub min: Duration,
    /// The latest.
    pub max: Duration,
}

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the fields are those of docs/PROTOCOL.md and of the structs above")]
pub enum Control {
    Hello(Box<Hello>),
    Welcome(Box<Welcome>),
    /// Everything up to and including `acknowledged` was delivered to the application.
    Ack {
        acknowledged: u64,
        window: Option<Window>,
    },
    Ping(Beat),
    Pong(Beat),
    /// Leave this connection after the delay; nothing is lost.
    GoAway {
        reason: String,
        delay: Delay,
        close_in: Duration,
        endpoint: Option<String>,
    },
    /// Takes the place of `count` messages that the sender dropped by its policy.
    Gap {
        first: u64,
        count: u64,
        cause: GapCause,
    },
    /// An end closed the session on purpose; `acknowledged` and `delivered` are final.
    End {
        code: u64,
        reason: String,
        acknowledged: u64,
        delivered: u64,
    },
    /// New credentials for the live session.
    Auth {
        credentials: Credentials,
    },
    /// Whether the server accepted the credentials, and for how long (0: no known limit).
    AuthResult {
        accepted: bool,
        expires_in: Duration,
    },
    /// Neither numbered nor kept.
    Volatile(Message),
    /// The server refuses the HELLO; no session changed.
    Refuse {
        code: u64,
        temporary: bool,
        delay: Delay,
        account: Option<Account>,
    },
    /// Here, after message `after` of the server's stream, the connection behind the server was replaced, for the
    /// `count`th time in this session. What the backend sent in the meantime may be missing.
    Replaced {
        after: u64,
        count: u64,
    },
}

/// Why a sender dropped messages of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapCause {
    /// The window was full, and the policy is to drop messages.
    Overflow,
    /// A later message with the same key took their place.
    Coalesced,
}

/// What a WebSocket message means to the session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Frame {
    /// A numbered application message.
    Message(Message),
    /// A control message.
    Control(Control),
    /// A message of a reserved type: ignored, not counted.
    Reserved,
}
/// The type byte in front of an application's binary message.
pub const APPLICATION_BINARY: u8 = 0;

impl Control {
    /// Returns the name in `docs/PROTOCOL.md`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "HELLO",
            Self::Welcome(_) => "WELCOME",
            Self::Ack { .. } => "ACK",
            Self::Ping(_) => "PING",
            Self::Pong(_) => "PONG",
            Self::GoAway { .. } => "GOAWAY",
            Self::Gap { .. } => "GAP",
            Self::End { .. } => "END",
            Self::Auth { .. } => "AUTH",
            Self::AuthResult { .. } => "AUTH_RESULT",
            Self::Volatile(_) => "VOLATILE",
            Self::Refuse { .. } => "REFUSE",
            Self::Replaced { .. } => "REPLACED",
        }
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(..)")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKey(..)")
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(f, &self.0)
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instance({self})")
    }
}

fn hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}
