//! The bytes of a [`Record`]: a session that another node continues, or the account of one that ended.
//!
//! The head is the names of both valid tokens (16 bytes each, zeros for one that is missing), then
//!
//! | | session | account |
//! |---|---|---|
//! | version | 1 | 1 |
//! | form | 1 | 2 |
//! | fields | id, epoch, key, principal, instance, attempt, whether an epoch was ever established, resume window, what is left of it; inbound: acknowledged, window, manual; outbound: acknowledged, written, bound, the peer's window, whether it drops the oldest, dropped | id, acknowledged, delivered, sent, cause |
//! | optional | 1 the largest message that the client accepts, 2 an account that is not confirmed, 3 marks of replaced connections | 1 the code of END, 2 the instance that has the account |
//!
//! Integers, byte strings and optional fields are those of `mainstay.v1`; times are milliseconds. An unknown optional
//! field is skipped; what must not be skipped gets another version. Each message of a record begins with its kind: 0
//! text, 1 binary, 2 a gap, of which only the count of its messages follows.
//!
//! Source: `docs/CLUSTER.md`, `conformance/vectors/records.json`.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::{
    cause_number, cause_of, get_account, get_millis, millis, put_account, put_window, take_window,
};
use super::error::Malformed;
use super::message::{Account, Instance, LossCause, Message, SessionId, Window};
use super::record::Record;
use super::wire::{MAX_INTEGER, Reader, Writer};
use crate::ws::Kind;

/// The version that this crate writes, and the only one that it reads.
pub const VERSION: u64 = 1;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A session that goes on.
    Session(Box<SessionState>),
    /// A session that ended.
    Account(AccountState),
}

/// A session as another node continues it. What the application saved is in the [`Record`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the server's session")]
pub struct SessionState {
    /// The names of the token with which the client attached, and of the newest one.
    pub tokens: [Option<[u8; 16]>; 2],
    pub id: SessionId,
    pub epoch: u64,
    /// The names of the client's key and of the principal.
    pub key: [u8; 16],
    pub principal: [u8; 16],
    pub instance: Instance,
    pub attempt: u64,
    /// An epoch was established: the key is no secret any more.
    pub was_established: bool,
    pub resume_window: Duration,
    /// What was left of the resume window when the session was released.
    pub left: Duration,
    pub inbound: Inbound,
    pub outbound: Outbound,
    /// The account of the session before, which the client has not confirmed.
    pub account: Option<Account>,
    /// Where the connection behind the server was replaced: the message before each mark, and its count.
    pub replaced: Vec<(u64, u64)>,
}

/// The client's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbound {
    /// What the server has acknowledged: the client sends again what follows.
    pub acknowledged: u64,
    /// How much the client may write above it.
    pub window: Window,
    /// Whether the application acknowledges messages itself.
    pub manual: bool,
}

/// The server's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// What the client has acknowledged.
    pub acknowledged: u64,
    /// The highest number that was written.
    pub written: u64,
    /// The bound on what is kept.
    pub limit: Window,
    /// How much the client accepts above what it has acknowledged.
    pub peer: Window,
    /// The largest message that the client accepts, if it announced one.
    pub largest: Option<u64>,
    /// Whether a full buffer drops the oldest message.
    pub drops_oldest: bool,
    /// How many messages were dropped.
    pub dropped: u64,
    /// What is kept above `acknowledged`, in order.
    pub kept: Vec<Unacknowledged>,
}

/// One item that the client has not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unacknowledged {
    /// A message.
    Message(Message),
    /// Messages that were dropped before they were written.
    Gap {
        /// How many.
        count: u64,
    },
}

/// The final counts of a session that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of a tombstone")]
pub struct AccountState {
    /// The names of the tokens that were valid at the end.
    pub tokens: [Option<[u8; 16]>; 2],
    pub id: SessionId,
    pub acknowledged: u64,
    pub delivered: u64,
    /// The number of the server's last message.
    pub sent: u64,
    pub cause: LossCause,
    /// The code of an END that the server sent.
    pub ended: Option<u64>,
    /// The instance that got the account.
    pub reported_to: Option<Instance>,
}

/// A record that this node cannot continue. Its session is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRecord {
    /// Another version wrote it.
    #[error("the record has version {0}, and this node reads only version {VERSION}")]
    Version(u64),
    /// The bytes are not those of a record.
    #[error("the record is damaged: {0}")]
    Malformed(#[from] Malformed),
    /// The fields contradict each other.
    #[error("the record is damaged: {0}")]
    Contradiction(&'static str),
}

mod form {
    pub(super) const SESSION: u64 = 1;
    pub(super) const ACCOUNT: u64 = 2;
}

mod field {
    pub(super) const LARGEST: u64 = 1;
    pub(super) const ACCOUNT: u64 = 2;
    pub(super) const REPLACED: u64 = 3;
    pub(super) const ENDED: u64 = 1;
    pub(super) const REPORTED_TO: u64 = 2;
}

mod kind {
    pub(super) const TEXT: u8 = 0;
    pub(super) const BINARY: u8 = 1;
    pub(super) const GAP: u8 = 2;
}

impl Record {
    /// Reads a record.
    ///
    /// # Errors
    /// The record is of another version, or damaged.
    pub fn content(&self) -> Result<Content, BadRecord> {
        let mut r = Reader::new(self.head.clone());
        let tokens = [get_name(&mut r)?, get_name(&mut r)?];
        match r.integer()? {
            VERSION => {}
            other => return Err(BadRecord::Version(other)),
        }
        match r.integer()? {
            form::SESSION => {
                SessionState::decode(tokens, r, &self.messages).map(|state| Content::Session(Box::new(state)))
            }
            form::ACCOUNT => Ok(Content::Account(AccountState::decode(tokens, r)?)),
            _ => Err(Malformed::BadValue.into()),
        }
    }
}

impl SessionState {
    /// Returns the record of this session.
    #[must_use]
    pub fn to_record(&self, saved: Option<Bytes>) -> Record {
        let (inbound, outbound) = (&self.inbound, &self.outbound);
        let mut w = begin(self.tokens, form::SESSION)
            .bytes(&self.id.0)
            .integer(self.epoch)
            .bytes(&self.key)
            .bytes(&self.principal)
            .bytes(&self.instance.0)
            .integer(self.attempt)
            .flag(self.was_established)
            .integer(millis(self.resume_window))
            .integer(millis(self.left))
            .integer(inbound.acknowledged);
        w = put_window(w, inbound.window)
            .flag(inbound.manual)
            .integer(outbound.acknowledged)
            .integer(outbound.written);
        w = put_window(put_window(w, outbound.limit), outbound.peer)
            .flag(outbound.drops_oldest)
            .integer(outbound.dropped);
        if let Some(largest) = outbound.largest {
            w = w.field(field::LARGEST, |w| w.integer(largest));
        }
        if let Some(account) = self.account {
            w = w.field(field::ACCOUNT, |w| put_account(w, account));
        }
        if !self.replaced.is_empty() {
            let marks = self.replaced.iter();
            w = w.field(field::REPLACED, |w| marks.fold(w, |w, mark| w.integer(mark.0).integer(mark.1)));
        }
        let messages = outbound.kept.iter().map(Unacknowledged::encode).collect();
        Record { head: w.finish(), saved, messages }
    }

    fn decode(tokens: [Option<[u8; 16]>; 2], mut r: Reader, messages: &[Bytes]) -> Result<Self, BadRecord> {
        let mut state = Self {
            tokens,
            id: SessionId(r.array()?),
            epoch: r.integer()?,
            key: r.array()?,
            principal: r.array()?,
            instance: Instance(r.array()?),
            attempt: r.integer()?,
            was_established: r.flag()?,
            resume_window: get_millis(&mut r)?,
            left: get_millis(&mut r)?,
            inbound: Inbound { acknowledged: r.integer()?, window: take_window(&mut r)?, manual: r.flag()? },
            outbound: Outbound {
                acknowledged: r.integer()?,
                written: r.integer()?,
                limit: take_window(&mut r)?,
                peer: take_window(&mut r)?,
                drops_oldest: r.flag()?,
                dropped: r.integer()?,
                largest: None,
                kept: messages.iter().map(Unacknowledged::decode).collect::<Result<_, _>>()?,
            },
            account: None,
            replaced: Vec::new(),
        };
        r.optional_fields(|kind, mut value| {
            match kind {
                field::LARGEST => state.outbound.largest = Some(value.integer()?),
                field::ACCOUNT => state.account = Some(get_account(value)?),
                field::REPLACED => {
                    while !value.is_empty() {
                        state.replaced.push((value.integer()?, value.integer()?));
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        state.check()?;
        Ok(state)
    }

    /// Checks what the machines rely on.
    fn check(&self) -> Result<(), BadRecord> {
        let Outbound { acknowledged, written, kept, .. } = &self.outbound;
        let last = kept.iter().try_fold(*acknowledged, |last, one| {
            last.checked_add(one.count()).filter(|last| *last <= MAX_INTEGER)
        });
        let last = last.ok_or(BadRecord::Contradiction("it has more messages than numbers"))?;
        if written < acknowledged || *written > last {
            return Err(BadRecord::Contradiction("what was written is not between acknowledged and last"));
        }
        if self.left > self.resume_window {
            return Err(BadRecord::Contradiction("more is left of the resume window than it is long"));
        }
        let rises = self.replaced.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1);
        if !rises || self.replaced.last().is_some_and(|mark| mark.0 > last) {
            return Err(BadRecord::Contradiction("its marks do not follow its messages"));
        }
        Ok(())
    }
}

impl Unacknowledged {
    /// How many numbers it has.
    fn count(&self) -> u64 {
        match self {
            Self::Message(_) => 1,
            Self::Gap { count } => *count,
        }
    }

    fn encode(&self) -> Bytes {
        let (kind, payload) = match self {
            Self::Gap { count } => return Writer::new(kind::GAP).integer(*count).finish(),
            Self::Message(Message::Text(text)) => (kind::TEXT, text.as_bytes()),
            Self::Message(Message::Binary(payload)) => (kind::BINARY, payload.as_ref()),
        };
        let mut out = BytesMut::with_capacity(1 + payload.len());
        out.put_u8(kind);
        out.put_slice(payload);
        out.freeze()
    }

    fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let kind = *bytes.first().ok_or(Malformed::Empty)?;
        let mut payload = bytes.clone();
        payload.advance(1);
        let kind = match kind {
            kind::TEXT => Kind::Text,
            kind::BINARY => Kind::Binary,
            kind::GAP => {
                let count = Reader::new(payload).integer()?;
                return if count == 0 { Err(Malformed::BadValue) } else { Ok(Self::Gap { count }) };
            }
            unknown => return Err(Malformed::UnknownType(unknown)),
        };
        Message::new(kind, payload).map(Self::Message).map_err(|_| Malformed::BadValue)
    }
}

impl AccountState {
    /// Returns the record of this account.
    #[must_use]
    pub fn to_record(&self) -> Record {
        let mut w = begin(self.tokens, form::ACCOUNT)
            .bytes(&self.id.0)
            .integer(self.acknowledged)
            .integer(self.delivered)
            .integer(self.sent)
            .integer(cause_number(self.cause));
        if let Some(code) = self.ended {
            w = w.field(field::ENDED, |w| w.integer(code));
        }
        if let Some(instance) = self.reported_to {
            w = w.field(field::REPORTED_TO, |w| w.rest(&instance.0));
        }
        Record { head: w.finish(), saved: None, messages: Vec::new() }
    }

    fn decode(tokens: [Option<[u8; 16]>; 2], mut r: Reader) -> Result<Self, Malformed> {
        let mut state = Self {
            tokens,
            id: SessionId(r.array()?),
            acknowledged: r.integer()?,
            delivered: r.integer()?,
            sent: r.integer()?,
            cause: cause_of(r.integer()?),
            ended: None,
            reported_to: None,
        };
        if state.delivered < state.acknowledged {
            return Err(Malformed::BadValue);
        }
        r.optional_fields(|kind, mut value| {
            match kind {
                field::ENDED => state.ended = Some(value.integer()?),
                field::REPORTED_TO => state.reported_to = Some(Instance(value.fixed()?)),
                _ => {}
            }
            Ok(())
        })?;
        Ok(state)
    }
}

fn begin(tokens: [Option<[u8; 16]>; 2], form: u64) -> Writer {
    let names = tokens.into_iter().map(Option::unwrap_or_default);
    names.fold(Writer::untyped(), |w, name| w.rest(&name)).integer(VERSION).integer(form)
}

fn get_name(r: &mut Reader) -> Result<Option<[u8; 16]>, Malformed> {
    r.fixed().map(|name| Some(name).filter(|name| *name != [0; 16]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::session::server::{ServerConfig, ServerSession};
    use crate::session::tests::start;

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..100_u64, 0..MAX_INTEGER / 4]
    }

    fn window() -> impl Strategy<Value = Window> {
        (1..MAX_INTEGER, 0..MAX_INTEGER).prop_map(|(messages, bytes)| Window { messages, bytes })
    }

    fn cause() -> impl Strategy<Value = LossCause> {
        (0..=5_u64).prop_map(cause_of)
    }

    /// A name of zeros is none.
    fn tokens() -> impl Strategy<Value = [Option<[u8; 16]>; 2]> {
        any::<[Option<[u8; 16]>; 2]>().prop_map(|both| both.map(|one| one.filter(|name| *name != [0; 16])))
    }

    fn kept() -> impl Strategy<Value = Unacknowledged> {
        prop_oneof![
            ".{0,20}".prop_map(|text| Unacknowledged::Message(Message::text(text))),
            vec(any::<u8>(), 0..20).prop_map(|bytes| Unacknowledged::Message(Message::binary(bytes))),
            (1..1000_u64).prop_map(|count| Unacknowledged::Gap { count }),
        ]
    }

    fn outbound() -> impl Strategy<Value = Outbound> {
        let bounds = (window(), window(), option::of(0..u64::from(u32::MAX)));
        let counts = (number(), 0..=100_u64, any::<bool>(), number());
        (vec(kept(), 0..6), counts, bounds).prop_map(|(kept, counts, (limit, peer, largest))| {
            let (acknowledged, written, drops_oldest, dropped) = counts;
            let last: u64 = kept.iter().map(Unacknowledged::count).sum();
            let written = acknowledged + last * written / 100;
            Outbound { acknowledged, written, limit, peer, largest, drops_oldest, dropped, kept }
        })
    }

    fn account() -> impl Strategy<Value = Account> {
        (number(), number(), number(), number(), cause()).prop_map(
            |(acknowledged, delivered, first_lost, count, cause)| Account {
                acknowledged,
                delivered,
                first_lost,
                count,
                cause,
            },
        )
    }

    prop_compose! {
        fn session()(
            tokens in tokens(),
            (id, instance) in any::<([u8; 8], [u8; 8])>(),
            (key, principal, was_established) in any::<([u8; 16], [u8; 16], bool)>(),
            (epoch, attempt, acknowledged) in (number(), number(), number()),
            (window, manual, outbound) in (window(), any::<bool>(), outbound()),
            (left, more) in (0..1_000_000_u64, 0..1_000_000_u64),
            (account, marks) in (option::of(account()), 0..4_u64),
        ) -> SessionState {
            let last = outbound.acknowledged + outbound.kept.iter().map(Unacknowledged::count).sum::<u64>();
            SessionState {
                tokens,
                id: SessionId(id),
                epoch,
                key,
                principal,
                instance: Instance(instance),
                attempt,
                was_established,
                resume_window: Duration::from_millis(left + more),
                left: Duration::from_millis(left),
                inbound: Inbound { acknowledged, window, manual },
                outbound,
                account,
                replaced: (0..marks.min(last + 1)).map(|after| (after, after + 1)).collect(),
            }
        }
    }

    prop_compose! {
        fn ended()(
            tokens in tokens(),
            (id, reported_to) in any::<([u8; 8], Option<[u8; 8]>)>(),
            (acknowledged, more, sent) in (number(), number(), number()),
            (cause, ended) in (cause(), option::of(number())),
        ) -> AccountState {
            let (id, reported_to) = (SessionId(id), reported_to.map(Instance));
            AccountState { tokens, id, acknowledged, delivered: acknowledged + more, sent, cause, ended, reported_to }
        }
    }

    /// A driver and an application use the session, whatever its record said.
    fn use_it(session: &mut ServerSession) {
        let now = start();
        let _ = session.send(Message::text("more"));
        session.acknowledge(now, u64::MAX);
        let _ = session.deliver(now);
        session.note_replaced();
        session.handle_timeout(now + Duration::from_secs(1));
        let _ = session.poll_timeout();
        session.close(now, crate::ws::CloseCode::NORMAL, "");
        session.evict();
        session.take_undelivered();
    }

    proptest! {
        #[test]
        fn every_session_is_read_back_as_it_was(state in session(), saved in option::of(vec(any::<u8>(), 0..9))) {
            let record = state.to_record(saved.map(Bytes::from));
            prop_assert_eq!(record.content(), Ok(Content::Session(Box::new(state))));
        }

        #[test]
        fn every_account_is_read_back_as_it_was(state in ended()) {
            prop_assert_eq!(state.to_record().content(), Ok(Content::Account(state)));
        }

        #[test]
        fn any_bytes_are_read_or_refused(head in vec(any::<u8>(), 0..300), messages in vec(vec(any::<u8>(), 0..9), 0..4)) {
            let messages = messages.into_iter().map(Bytes::from).collect();
            let _ = Record { head: head.into(), saved: None, messages }.content();
        }

        #[test]
        fn a_damaged_record_is_refused_or_its_session_goes_on(
            state in session(),
            damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in option::weighted(0.2, any::<prop::sample::Index>()),
        ) {
            let Record { head, saved, messages } = state.to_record(None);
            let mut head = head.to_vec();
            for (at, byte) in damage {
                let at = at.index(head.len());
                head[at] = byte;
            }
            if let Some(cut) = cut {
                head.truncate(cut.index(head.len()));
            }
            let record = Record { head: head.into(), saved, messages };
            if let Ok(Content::Session(state)) = record.content() {
                let config = Arc::new(ServerConfig::default());
                use_it(&mut ServerSession::from_state(config, start(), *state, None, (2, true)));
            }
        }
    }

    #[test]
    fn a_record_shows_sizes_and_no_content() {
        let record = Record {
            head: Bytes::from_static(b"names"),
            saved: Some(Bytes::from_static(b"secret")),
            messages: vec![Bytes::from_static(b"\0secret")],
        };
        assert_eq!(format!("{record:?}"), "Record { head: 5, saved: Some(6), messages: 1 }");
    }
}
