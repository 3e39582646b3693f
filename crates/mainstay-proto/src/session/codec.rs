//! The bytes of the messages of `mainstay.v1`.
//!
//! Source: `docs/PROTOCOL.md` "Framing".

use std::time::Duration;

use bytes::{Buf, Bytes};

use super::error::{Malformed, SessionError};
use super::message::{
    APPLICATION_BINARY, Account, Beat, ClientKey, Control, Credentials, Delay, Frame, GapCause, Hello,
    Instance, LossCause, Message, Resume, ResumeToken, SessionId, VERSION, Welcome, Window,
};
use super::wire::{MAX_INTEGER, Reader, Writer};
use crate::ws::{Kind, Utf8Bytes};

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
                        endpoint = Some(value.rest_text()?);
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
                if first == 0 || count == 0 || first.checked_add(count).is_none_or(|end| end > MAX_INTEGER) {
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
                field::WELCOME_RESUME_AT => welcome.resume_at = Some(value.rest_text()?),
                field::WELCOME_MAX_MESSAGE => welcome.max_message = Some(value.integer()?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(welcome)
    }
}

pub(super) fn put_window(w: Writer, window: Window) -> Writer {
    w.integer(window.messages).integer(window.bytes)
}

pub(super) fn take_window(r: &mut Reader) -> Result<Window, Malformed> {
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

pub(crate) fn put_account(w: Writer, account: Account) -> Writer {
    w.integer(account.acknowledged)
        .integer(account.delivered)
        .integer(account.first_lost)
        .integer(account.count)
        .integer(cause_number(account.cause))
}

pub(super) fn cause_number(cause: LossCause) -> u64 {
    match cause {
        LossCause::Unknown => 0,
        LossCause::Expired => 1,
        LossCause::Ended => 2,
        LossCause::Evicted => 3,
        LossCause::Restarted => 4,
        LossCause::Replaced => 5,
    }
}

pub(super) fn cause_of(number: u64) -> LossCause {
    match number {
        1 => LossCause::Expired,
        2 => LossCause::Ended,
        3 => LossCause::Evicted,
        4 => LossCause::Restarted,
        5 => LossCause::Replaced,
        // A later version may know more causes; the counts are what matters.
        _ => LossCause::Unknown,
    }
}

pub(crate) fn get_account(mut r: Reader) -> Result<Account, Malformed> {
    Ok(Account {
        acknowledged: r.integer()?,
        delivered: r.integer()?,
        first_lost: r.integer()?,
        count: r.integer()?,
        cause: cause_of(r.integer()?),
    })
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(MAX_INTEGER)
}

pub(crate) fn get_millis(r: &mut Reader) -> Result<Duration, Malformed> {
    r.integer().map(Duration::from_millis)
}
