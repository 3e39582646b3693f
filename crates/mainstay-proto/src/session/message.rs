//! The messages of `mainstay.v1` and their bytes.
//!
//! A text message is application text, untouched. A binary message starts with one type byte: `0x00`
//! is application binary, `0x01`-`0x80` are the control messages below, `0x81`-`0xff` are reserved
//! and ignored. Application messages are numbered (by position, the number does not travel), control
//! and volatile ones are not.
//!
//! Source: `docs/PROTOCOL.md` "Framing".

use std::fmt;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::error::{Malformed, SessionError};
use super::wire::{Reader, Writer};
use crate::ws::{Kind, Utf8Bytes};

pub use crate::ws::Message;

/// The version that this crate speaks, sent in [`Hello`].
pub const VERSION: u64 = 1;

/// How much may be written above what the receiver has acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Messages.
    pub messages: u64,
    /// Payload bytes. A single message may be larger.
    pub bytes: u64,
}

impl Window {
    /// What a server takes from a client before its WELCOME: 16 messages, 64 KiB.
    pub const BEFORE_WELCOME: Self = Self { messages: 16, bytes: 64 * 1024 };
    /// What a server announces by default: 1,024 messages, 1 MiB.
    pub const SERVER: Self = Self { messages: 1024, bytes: 1024 * 1024 };
    /// What waits outside the stream by default: 64 messages, 256 KiB.
    pub const VOLATILE: Self = Self { messages: 64, bytes: 256 * 1024 };
    /// What a client announces by default: 1,024 messages, 4 MiB.
    pub const CLIENT: Self = Self { messages: 1024, bytes: 4 * 1024 * 1024 };
}

/// The secret that proves ownership of a session. Never logged: `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ResumeToken(pub Bytes);

/// What proves who a client is: a token, a password. Never logged: `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials(pub Bytes);

/// The client's name for a session that has no token yet; a secret until the first epoch is confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientKey(pub [u8; 16]);

/// One running client (page, process). Public.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Instance(pub [u8; 8]);

/// The public name of a session, for logs and metrics; it opens nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 8]);

/// Why a session was lost, in an [`Account`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossCause {
    /// The server does not know, or does not tell.
    Unknown,
    /// The resume window passed.
    Expired,
    /// It was ended on purpose.
    Ended,
    /// The server needed the memory.
    Evicted,
    /// The server was restarted.
    Restarted,
    /// What stands behind the server lost its state: a gateway's connection to its backend ended.
    Replaced,
}

/// The fate of a lost session, told to the client that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Account {
    /// The client's messages up to here were delivered.
    pub acknowledged: u64,
    /// The client's messages above `acknowledged` up to here: unknown. Above: not delivered.
    pub delivered: u64,
    /// The first of the server's messages that the client will never get.
    pub first_lost: u64,
    /// How many of them; 0 is unknown.
    pub count: u64,
    /// Why the session was lost.
    pub cause: LossCause,
}

/// HELLO, the client's first message on every connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hello {
    /// What the server may write above what the client has acknowledged.
    pub window: Window,
    /// Names the session that is created if none is resumed.
    pub key: ClientKey,
    /// Time since the key's first HELLO, in whole milliseconds.
    pub key_age: Duration,
    /// Which running client this is.
    pub instance: Instance,
    /// Counts this instance's HELLOs, so that a late one is known to be stale.
    pub attempt: u64,
    /// Asks for an existing session.
    pub resume: Option<Resume>,
    /// Proves who the client is, where the opening handshake could not.
    pub credentials: Option<Credentials>,
    /// The resume window that the client would like.
    pub resume_window: Option<Duration>,
    /// The largest message that the client takes, in payload bytes.
    pub max_message: Option<u64>,
}

/// The part of [`Hello`] that asks for an existing session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resume {
    /// Proves ownership.
    pub token: ResumeToken,
    /// What the client received: the server replays from the next one.
    pub acknowledged: u64,
    /// The last number that the client gave to a message of its own.
    pub sent: u64,
    /// The lowest number that the client still holds.
    pub first_held: u64,
}

/// WELCOME, the server's answer that binds the connection to a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Welcome {
    /// The session's public name.
    pub id: SessionId,
    /// What the client presents the next time.
    pub token: ResumeToken,
    /// Counts the session's attaches, from 1.
    pub epoch: u64,
    /// Whether this is the session that the client asked for.
    pub resumed: bool,
    /// What the server received: the client replays from the next one.
    pub acknowledged: u64,
    /// The number of the first message that the server will write.
    pub first: u64,
    /// How long the session is kept without a connection.
    pub resume_window: Duration,
    /// How often the server sends PING.
    pub heartbeat_interval: Duration,
    /// What the client may write above what the server has acknowledged.
    pub window: Window,
    /// The fate of the session that was asked for, when `resumed` is false.
    pub account: Option<Account>,
    /// Where to resume, if not here.
    pub resume_at: Option<String>,
    /// The largest message that the server takes, in payload bytes.
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
    /// Everything up to and including `acknowledged` was handed to the application.
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
    /// Stands in the stream for `count` messages that policy dropped.
    Gap {
        first: u64,
        count: u64,
        cause: GapCause,
    },
    /// The session is over on purpose; `acknowledged` and `delivered` are final.
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
    /// Whether they were accepted, and for how long (0: no limit known).
    AuthResult {
        accepted: bool,
        expires_in: Duration,
    },
    /// Unnumbered, never kept.
    Volatile(Message),
    /// Nothing was taken here, no session changed.
    Refuse {
        code: u64,
        temporary: bool,
        delay: Delay,
        account: Option<Account>,
    },
    /// The connection behind the server was replaced here, after message `after` of the server's stream, and for the
    /// `count`th time in this session. What was sent behind the server meanwhile may be missing.
    Replaced {
        after: u64,
        count: u64,
    },
}

/// Why a sender dropped messages of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapCause {
    /// The window was full and the policy says to drop.
    Overflow,
    /// A later message with the same key took their place.
    Coalesced,
}

/// What one WebSocket message is to the session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Frame {
    /// A numbered application message.
    Message(Message),
    /// A control message.
    Control(Control),
    /// A reserved type: ignored, not counted.
    Reserved,
}

/// The type byte in front of an application's binary message.
pub const APPLICATION_BINARY: u8 = 0;

impl Frame {
    /// Reads one WebSocket message.
    ///
    /// # Errors
    /// [`Malformed`] when the bytes are not those of a message of this version.
    pub fn decode(message: Message) -> Result<Self, SessionError> {
        let Message::Binary(mut payload) = message else { return Ok(Self::Message(message)) };
        let Some(&tag) = payload.first() else {
            return Err(Malformed::Empty.into());
        };
        payload.advance(1);
        match tag {
            APPLICATION_BINARY => Ok(Self::Message(Message::Binary(payload))),
            0x81.. => Ok(Self::Reserved),
            _ => Control::decode(tag, payload).map(Self::Control),
        }
    }
}

mod tag {
    pub(super) const HELLO: u8 = 0x01;
    pub(super) const WELCOME: u8 = 0x02;
    pub(super) const ACK: u8 = 0x03;
    pub(super) const PING: u8 = 0x04;
    pub(super) const PONG: u8 = 0x05;
    pub(super) const GOAWAY: u8 = 0x06;
    pub(super) const GAP: u8 = 0x07;
    pub(super) const END: u8 = 0x08;
    pub(super) const AUTH: u8 = 0x09;
    pub(super) const AUTH_RESULT: u8 = 0x0a;
    pub(super) const VOLATILE: u8 = 0x0b;
    pub(super) const REFUSE: u8 = 0x0c;
    /// In the range that ends before it ignore.
    pub(super) const REPLACED: u8 = 0x80;
}

/// The types of the optional fields, per message.
mod field {
    pub(super) const HELLO_RESUME: u64 = 1;
    pub(super) const HELLO_CREDENTIALS: u64 = 2;
    pub(super) const HELLO_RESUME_WINDOW: u64 = 3;
    pub(super) const HELLO_MAX_MESSAGE: u64 = 4;
    pub(super) const WELCOME_ACCOUNT: u64 = 1;
    pub(super) const WELCOME_RESUME_AT: u64 = 2;
    pub(super) const WELCOME_MAX_MESSAGE: u64 = 3;
    pub(super) const ACK_WINDOW: u64 = 1;
    pub(super) const GOAWAY_ENDPOINT: u64 = 1;
    pub(super) const REFUSE_ACCOUNT: u64 = 1;
}

impl Control {
    /// The bytes of the binary WebSocket message.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Hello(hello) => hello.encode(),
            Self::Welcome(welcome) => welcome.encode(),
            Self::Ack { acknowledged, window } => {
                let mut w = Writer::new(tag::ACK).integer(*acknowledged);
                if let Some(window) = window {
                    w = w.field(field::ACK_WINDOW, |w| put_window(w, *window));
                }
                w.finish()
            }
            Self::Ping(beat) => put_beat(Writer::new(tag::PING), *beat).finish(),
            Self::Pong(beat) => put_beat(Writer::new(tag::PONG), *beat).finish(),
            Self::GoAway { reason, delay, close_in, endpoint } => {
                let mut w = put_delay(Writer::new(tag::GOAWAY).bytes(reason.as_bytes()), *delay);
                w = w.integer(millis(*close_in));
                if let Some(endpoint) = endpoint {
                    w = w.field(field::GOAWAY_ENDPOINT, |w| w.rest(endpoint.as_bytes()));
                }
                w.finish()
            }
            Self::Gap { first, count, cause } => {
                let cause = match cause {
                    GapCause::Overflow => 1,
                    GapCause::Coalesced => 2,
                };
                Writer::new(tag::GAP).integer(*first).integer(*count).integer(cause).finish()
            }
            Self::End { code, reason, acknowledged, delivered } => Writer::new(tag::END)
                .integer(*code)
                .bytes(reason.as_bytes())
                .integer(*acknowledged)
                .integer(*delivered)
                .finish(),
            Self::Auth { credentials } => Writer::new(tag::AUTH).bytes(&credentials.0).finish(),
            Self::AuthResult { accepted, expires_in } => {
                Writer::new(tag::AUTH_RESULT).flag(*accepted).integer(millis(*expires_in)).finish()
            }
            Self::Volatile(message) => {
                let kind = u64::from(message.kind() == Kind::Binary);
                Writer::new(tag::VOLATILE).integer(kind).rest(message.payload()).finish()
            }
            Self::Refuse { code, temporary, delay, account } => {
                let mut w = put_delay(Writer::new(tag::REFUSE).integer(*code).flag(*temporary), *delay);
                if let Some(account) = account {
                    w = w.field(field::REFUSE_ACCOUNT, |w| put_account(w, *account));
                }
                w.finish()
            }
            Self::Replaced { after, count } => {
                Writer::new(tag::REPLACED).integer(*after).integer(*count).finish()
            }
        }
    }

    fn decode(tag: u8, body: Bytes) -> Result<Self, SessionError> {
        let mut r = Reader::new(body);
        Ok(match tag {
            tag::HELLO => Self::Hello(Box::new(Hello::decode(r)?)),
            tag::WELCOME => Self::Welcome(Box::new(Welcome::decode(r)?)),
            tag::ACK => {
                let acknowledged = r.integer()?;
                let mut window = None;
                r.optional_fields(|kind, value| {
                    if kind == field::ACK_WINDOW {
                        window = Some(get_window(value)?);
                    }
                    Ok(())
                })?;
                Self::Ack { acknowledged, window }
            }
            tag::PING => Self::Ping(get_beat(r)?),
            tag::PONG => Self::Pong(get_beat(r)?),
            tag::GOAWAY => {
                let (reason, delay, close_in) = (r.text()?, get_delay(&mut r)?, get_millis(&mut r)?);
                let mut endpoint = None;
                r.optional_fields(|kind, value| {
                    if kind == field::GOAWAY_ENDPOINT {
                        endpoint = Some(get_text(value)?);
                    }
                    Ok(())
                })?;
                Self::GoAway { reason, delay, close_in, endpoint }
            }
            tag::GAP => {
                let (first, count) = (r.integer()?, r.integer()?);
                let cause = match r.integer()? {
                    1 => GapCause::Overflow,
                    2 => GapCause::Coalesced,
                    _ => return Err(Malformed::BadValue.into()),
                };
                if first == 0
                    || count == 0
                    || first.checked_add(count).is_none_or(|end| end > super::wire::MAX_INTEGER)
                {
                    return Err(Malformed::BadValue.into());
                }
                r.optional_fields(|_, _| Ok(()))?;
                Self::Gap { first, count, cause }
            }
            tag::END => {
                let control = Self::End {
                    code: r.integer()?,
                    reason: r.text()?,
                    acknowledged: r.integer()?,
                    delivered: r.integer()?,
                };
                r.optional_fields(|_, _| Ok(()))?;
                control
            }
            tag::AUTH => {
                let credentials = Credentials(r.bytes()?);
                r.optional_fields(|_, _| Ok(()))?;
                Self::Auth { credentials }
            }
            tag::AUTH_RESULT => {
                let (accepted, expires_in) = (r.flag()?, get_millis(&mut r)?);
                r.optional_fields(|_, _| Ok(()))?;
                Self::AuthResult { accepted, expires_in }
            }
            tag::VOLATILE => {
                let (is_binary, payload) = (r.flag()?, r.rest());
                Self::Volatile(match is_binary {
                    true => Message::Binary(payload),
                    false => Message::Text(Utf8Bytes::try_from(payload).map_err(|_| Malformed::BadValue)?),
                })
            }
            tag::REFUSE => {
                let (code, temporary, delay) = (r.integer()?, r.flag()?, get_delay(&mut r)?);
                let mut account = None;
                r.optional_fields(|kind, value| {
                    if kind == field::REFUSE_ACCOUNT {
                        account = Some(get_account(value)?);
                    }
                    Ok(())
                })?;
                Self::Refuse { code, temporary, delay, account }
            }
            tag::REPLACED => {
                let (after, count) = (r.integer()?, r.integer()?);
                if count == 0 {
                    return Err(Malformed::BadValue.into());
                }
                r.optional_fields(|_, _| Ok(()))?;
                Self::Replaced { after, count }
            }
            unknown => return Err(Malformed::UnknownType(unknown).into()),
        })
    }

    /// The name in `docs/PROTOCOL.md`.
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

impl Hello {
    fn encode(&self) -> Bytes {
        let mut w = put_window(Writer::new(tag::HELLO).integer(VERSION), self.window)
            .bytes(&self.key.0)
            .integer(millis(self.key_age))
            .bytes(&self.instance.0)
            .integer(self.attempt);
        if let Some(resume) = &self.resume {
            w = w.field(field::HELLO_RESUME, |w| {
                w.bytes(&resume.token.0)
                    .integer(resume.acknowledged)
                    .integer(resume.sent)
                    .integer(resume.first_held)
            });
        }
        if let Some(credentials) = &self.credentials {
            w = w.field(field::HELLO_CREDENTIALS, |w| w.rest(&credentials.0));
        }
        if let Some(window) = self.resume_window {
            w = w.field(field::HELLO_RESUME_WINDOW, |w| w.integer(millis(window)));
        }
        if let Some(limit) = self.max_message {
            w = w.field(field::HELLO_MAX_MESSAGE, |w| w.integer(limit));
        }
        w.finish()
    }

    fn decode(mut r: Reader) -> Result<Self, SessionError> {
        let version = r.integer()?;
        if version != VERSION {
            return Err(SessionError::Version(version));
        }
        let mut hello = Self {
            window: take_window(&mut r)?,
            key: ClientKey(r.array()?),
            key_age: get_millis(&mut r)?,
            instance: Instance(r.array()?),
            attempt: r.integer()?,
            resume: None,
            credentials: None,
            resume_window: None,
            max_message: None,
        };
        r.optional_fields(|kind, mut value| {
            match kind {
                field::HELLO_RESUME => {
                    hello.resume = Some(Resume {
                        token: ResumeToken(value.bytes()?),
                        acknowledged: value.integer()?,
                        sent: value.integer()?,
                        first_held: value.integer()?,
                    });
                }
                field::HELLO_CREDENTIALS => hello.credentials = Some(Credentials(value.rest())),
                field::HELLO_RESUME_WINDOW => hello.resume_window = Some(get_millis(&mut value)?),
                field::HELLO_MAX_MESSAGE => hello.max_message = Some(value.integer()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(hello)
    }
}

impl Welcome {
    fn encode(&self) -> Bytes {
        let mut w = Writer::new(tag::WELCOME)
            .bytes(&self.id.0)
            .bytes(&self.token.0)
            .integer(self.epoch)
            .flag(self.resumed)
            .integer(self.acknowledged)
            .integer(self.first)
            .integer(millis(self.resume_window))
            .integer(millis(self.heartbeat_interval));
        w = put_window(w, self.window);
        if let Some(account) = self.account {
            w = w.field(field::WELCOME_ACCOUNT, |w| put_account(w, account));
        }
        if let Some(endpoint) = &self.resume_at {
            w = w.field(field::WELCOME_RESUME_AT, |w| w.rest(endpoint.as_bytes()));
        }
        if let Some(limit) = self.max_message {
            w = w.field(field::WELCOME_MAX_MESSAGE, |w| w.integer(limit));
        }
        w.finish()
    }

    fn decode(mut r: Reader) -> Result<Self, SessionError> {
        let mut welcome = Self {
            id: SessionId(r.array()?),
            token: ResumeToken(r.bytes()?),
            epoch: r.integer()?,
            resumed: r.flag()?,
            acknowledged: r.integer()?,
            first: r.integer()?,
            resume_window: get_millis(&mut r)?,
            heartbeat_interval: get_millis(&mut r)?,
            window: take_window(&mut r)?,
            account: None,
            resume_at: None,
            max_message: None,
        };
        if welcome.first == 0 || welcome.epoch == 0 {
            return Err(Malformed::BadValue.into());
        }
        r.optional_fields(|kind, mut value| {
            match kind {
                field::WELCOME_ACCOUNT => welcome.account = Some(get_account(value)?),
                field::WELCOME_RESUME_AT => welcome.resume_at = Some(get_text(value)?),
                field::WELCOME_MAX_MESSAGE => welcome.max_message = Some(value.integer()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(welcome)
    }
}

fn put_window(w: Writer, window: Window) -> Writer {
    w.integer(window.messages).integer(window.bytes)
}

fn take_window(r: &mut Reader) -> Result<Window, Malformed> {
    let window = Window { messages: r.integer()?, bytes: r.integer()? };
    if window.messages == 0 { Err(Malformed::BadValue) } else { Ok(window) }
}

fn get_window(mut r: Reader) -> Result<Window, Malformed> {
    take_window(&mut r)
}

fn put_beat(w: Writer, beat: Beat) -> Writer {
    w.integer(beat.nonce).integer(beat.sent).integer(beat.acknowledged)
}

fn get_beat(mut r: Reader) -> Result<Beat, Malformed> {
    let beat = Beat { nonce: r.integer()?, sent: r.integer()?, acknowledged: r.integer()? };
    r.optional_fields(|_, _| Ok(()))?;
    Ok(beat)
}

fn put_delay(w: Writer, delay: Delay) -> Writer {
    w.integer(millis(delay.min)).integer(millis(delay.max))
}

fn get_delay(r: &mut Reader) -> Result<Delay, Malformed> {
    Ok(Delay { min: get_millis(r)?, max: get_millis(r)? })
}

fn put_account(w: Writer, account: Account) -> Writer {
    let cause = match account.cause {
        LossCause::Unknown => 0,
        LossCause::Expired => 1,
        LossCause::Ended => 2,
        LossCause::Evicted => 3,
        LossCause::Restarted => 4,
        LossCause::Replaced => 5,
    };
    w.integer(account.acknowledged)
        .integer(account.delivered)
        .integer(account.first_lost)
        .integer(account.count)
        .integer(cause)
}

fn get_account(mut r: Reader) -> Result<Account, Malformed> {
    Ok(Account {
        acknowledged: r.integer()?,
        delivered: r.integer()?,
        first_lost: r.integer()?,
        count: r.integer()?,
        cause: match r.integer()? {
            1 => LossCause::Expired,
            2 => LossCause::Ended,
            3 => LossCause::Evicted,
            4 => LossCause::Restarted,
            5 => LossCause::Replaced,
            // A later version may know more causes; the counts are what matters.
            _ => LossCause::Unknown,
        },
    })
}

fn get_text(r: Reader) -> Result<String, Malformed> {
    String::from_utf8(r.rest().to_vec()).map_err(|_| Malformed::BadValue)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(super::wire::MAX_INTEGER)
}

fn get_millis(r: &mut Reader) -> Result<Duration, Malformed> {
    r.integer().map(Duration::from_millis)
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
