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

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::end::{End, EndCause};
use super::error::SessionError;
use super::flow::{Flow, FlowConfig, Lane, Volatiles};
use super::inbox::Delivery;
use super::lifetime::{self, Leave, Lifetime, LifetimeConfig};
use super::message::{
    Account, Control, Credentials, Delay, Frame, Hello, Instance, LossCause, Message, ResumeToken, SessionId,
    Welcome, Window,
};
use super::names::Name;
use super::outbox::Progress;
use super::plain::PeerClose;
use super::replaced::Replacements;
use super::transmit::{ConnectionId, Transmit};
use super::{ABORT_TIMEOUT, CLOSE_TIMEOUT, FINAL_WRITES};
use crate::budget::{Held, held};
use crate::heartbeat::{Action, Heartbeat, HeartbeatConfig};
use crate::planted::{Rule, turned_back};
use crate::ws::CloseCode;

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

/// How a session ends that is flushed first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Ending {
    /// By END, whatever the client acknowledges by then.
    End { code: CloseCode, reason: String, by: Instant },
    /// By a Close of the connection: the client comes back, and its account is exact.
    Replaced,
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Closed {
    /// END passed, with this code.
    Ended {
        /// The code of the END.
        code: u64,
        /// Whether we sent it first.
        by_us: bool,
    },
    /// The resume window passed.
    Expired,
    /// The server needed the memory, or was told to forget it.
    Evicted,
    /// What stood behind the server lost its state.
    Replaced,
}

/// What an attempt to attach came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attach {
    /// The session has a new connection. The one before it, if any, is fenced; the names in `dropped`
    /// lead here no longer.
    Done { fenced: Option<Fenced>, dropped: [Option<Name>; 2] },
    /// A later attempt of the same instance holds it already.
    Stale,
    /// The name is only a name by now, or belongs to another instance.
    NotYours,
    /// The counts are those of another copy of this client.
    Contradiction,
    /// END was sent: nobody attaches to this session again.
    Ending { code: u64 },
}

/// A connection that lost its session to a later attach. Close it with this, best effort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// Which connection.
    pub connection: ConnectionId,
    /// The reason of the SUPERSEDED close: the winner's instance, and what was received.
    pub reason: String,
}

/// What a dead session leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Remains {
    pub(super) acknowledged: u64,
    pub(super) delivered: u64,
    pub(super) sent: u64,
    pub(super) cause: LossCause,
    /// The code of an END that we sent.
    pub(super) ended: Option<u64>,
}

/// The identity of a new session.
pub(super) struct Identity {
    pub(super) id: SessionId,
    pub(super) principal: Name,
    pub(super) key: Name,
    pub(super) account: Option<Account>,
}

impl Ending {
    /// How long a client has for what precedes the end, if it has until `at` by other reasons.
    fn waits_until(&self, at: Instant) -> Instant {
        match self {
            Self::End { by, .. } => at.min(*by),
            Self::Replaced => at,
        }
    }
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
        }
    }

    // ---- attaching ------------------------------------------------------------------------------

    /// A HELLO without `resume`, or whose token led nowhere: it names this session by its key.
    pub(super) fn attach_by_key(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        hello: &Hello,
        token: (ResumeToken, Name),
        seed: u64,
    ) -> Attach {
        if let Some(refusal) = self.refusal(hello) {
            return refusal;
        }
        if self.confirmed || hello.instance != self.instance {
            return Attach::NotYours;
        }
        // A client that sent `resume` has written nothing and starts where WELCOME says; one that did
        // not is already writing from 1.
        let read = if hello.resume.is_some() { self.flow.inbox.acknowledged() } else { 0 };
        self.take_over(now, connection, hello, Lane { wrote: 0, read }, None, token, seed)
    }

    /// A HELLO that presents a token of this session.
    pub(super) fn attach_by_token(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        hello: &Hello,
        presented: Name,
        token: (ResumeToken, Name),
        seed: u64,
    ) -> Attach {
        let Some(resume) = &hello.resume else { return Attach::NotYours };
        if self.presented != Some(presented) && self.issued != Some(presented) {
            return Attach::NotYours;
        }
        if let Some(refusal) = self.refusal(hello) {
            return refusal;
        }
        let contradiction = resume.acknowledged > self.flow.outbox.written()
            || resume.acknowledged < self.flow.outbox.acknowledged()
            || (resume.sent < self.flow.inbox.received() && !turned_back(Rule::SentInHelloIsCompared))
            || resume.first_held > self.flow.inbox.acknowledged() + 1;
        if contradiction {
            if turned_back(Rule::ContradictionChangesNothing) {
                self.over(Closed::Evicted);
            }
            return Attach::Contradiction;
        }
        let lane = Lane { wrote: resume.acknowledged, read: self.flow.inbox.acknowledged() };
        // `acknowledged` was checked against `written` above.
        let _ = self.flow.outbox.acknowledge(resume.acknowledged);
        self.take_over(now, connection, hello, lane, Some(presented), token, seed)
    }

    fn refusal(&self, hello: &Hello) -> Option<Attach> {
        match self.life {
            Life::EndSent { code, .. } | Life::EndReceived { code }
                if !turned_back(Rule::EndedIsNotAttached) =>
            {
                return Some(Attach::Ending { code });
            }
            Life::Closed(_) => return Some(Attach::NotYours),
            _ => {}
        }
        let stale = hello.instance == self.instance && hello.attempt <= self.attempt;
        (stale && !turned_back(Rule::StaleAttemptIsRefused)).then_some(Attach::Stale)
    }

    /// The one step in which a session changes hands: fence first, then look at our own `acknowledged`.
    #[allow(clippy::too_many_arguments, reason = "one step, one call")]
    fn take_over(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        hello: &Hello,
        lane: Lane,
        presented: Option<Name>,
        token: (ResumeToken, Name),
        seed: u64,
    ) -> Attach {
        let old = self.attached.take();
        self.flow.forget_owed();
        self.epoch += 1;
        self.confirmed = false;
        // Of the two that were valid, only the one that was presented stays so.
        let kept = if turned_back(Rule::PresentedTokenStaysValid) { self.issued } else { presented };
        let other = [self.presented, self.issued].into_iter().flatten().find(|name| Some(*name) != kept);
        let dropped = [self.spent.take(), other];
        self.presented = kept;
        self.issued = Some(token.1);
        self.instance = hello.instance;
        self.attempt = hello.attempt;
        let fenced = old.map(|old| Fenced { connection: old.connection, reason: self.superseded_reason() });
        self.flow.outbox.set_peer_window(hello.window);
        // What this client does not take stands as a gap in its stream, and is counted as dropped.
        self.flow.outbox.set_largest(hello.max_message);
        self.flow.outbox.trim(lane.wrote);
        let most = self.config.resume_window;
        self.resume_window = hello.resume_window.map_or(most, |asked| asked.min(most));
        let welcome = Welcome {
            id: self.id,
            token: token.0,
            epoch: self.epoch,
            resumed: presented.is_some(),
            acknowledged: self.flow.inbox.ack(),
            first: lane.wrote + 1,
            resume_window: self.resume_window,
            heartbeat_interval: self.config.heartbeat.interval(),
            window: self.flow.inbox.window(),
            account: self.account.as_deref().copied(),
            resume_at: None,
            max_message: self.config.flow.max_message,
        };
        let mut rng = StdRng::seed_from_u64(seed);
        self.attached = Some(Box::new(Attached {
            connection,
            lane,
            welcome: Some(Box::new(welcome)),
            heartbeat: Heartbeat::new(now, &self.config.heartbeat, &mut rng),
            lifetime: Lifetime::new(now, &self.config.lifetime, &mut rng),
            gone_by: None,
            probe: None,
            queue: VecDeque::new(),
            volatiles: Volatiles::default(),
            auth: None,
        }));
        self.replaced.as_mut().into_iter().for_each(|replaced| replaced.begin_connection());
        self.life = match std::mem::replace(&mut self.life, Life::Attached) {
            Life::Closing { how, .. } if *how == Ending::Replaced => {
                Life::Closing { how, until: now + CLOSE_TIMEOUT }
            }
            Life::Closing { how, .. } => {
                let until = how.waits_until(now + FINAL_WRITES);
                Life::Closing { how, until }
            }
            _ => Life::Attached,
        };
        self.queue_end_if_due(now);
        Attach::Done { fenced, dropped }
    }

    /// The reason of a SUPERSEDED close: who has the session now, and what was received.
    #[must_use]
    pub fn superseded_reason(&self) -> String {
        format!("{} {}", self.instance, self.flow.inbox.acknowledged())
    }

    /// The client's first control message after WELCOME: the token it presented is spent.
    fn confirm_epoch(&mut self) {
        self.confirmed = true;
        self.spent = self.presented.take();
        self.account = None;
    }

    /// The names under which this session may be attached now, its key included.
    pub(super) fn names(&self) -> impl Iterator<Item = Name> + '_ {
        [Some(self.key), self.presented, self.issued].into_iter().flatten()
    }

    pub(super) fn spent(&self) -> Option<Name> {
        self.spent
    }

    // ---- what connections bring -----------------------------------------------------------------

    /// Takes one message that `connection` brought. One from a fenced connection is dropped.
    ///
    /// # Errors
    /// The peer broke the protocol: fail this connection with
    /// [`close_code`](SessionError::close_code). The session is kept, except after a
    /// [`PositionMismatch`](SessionError::PositionMismatch), which ends it: the counts of both ends
    /// differ, so nothing more can be promised.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        frame: Frame,
    ) -> Result<(), SessionError> {
        let is_open = self.is_open();
        let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) else {
            return Ok(());
        };
        attached.heartbeat.handle_bytes(now);
        let (lane, acknowledged) = (&mut attached.lane, self.flow.outbox.acknowledged());
        match frame {
            Frame::Reserved => return Ok(()),
            Frame::Message(message) => {
                self.config.flow.check(&message)?;
                attached.lifetime.as_mut().into_iter().for_each(|lifetime| lifetime.handle_message(now));
                // After our close, or an END, nothing is handed over any more, but the position moves.
                if !is_open && !turned_back(Rule::NothingIsDeliveredAfterEnd) {
                    lane.read += 1;
                    return Ok(());
                }
                if turned_back(Rule::DataConfirmsNothing) && !self.confirmed {
                    self.confirmed = true;
                    self.spent = self.presented.take();
                }
                return self.flow.read_message(lane, message);
            }
            Frame::Control(control) => {
                if !self.confirmed {
                    self.confirm_epoch();
                }
                self.handle_control(now, control)?;
            }
        }
        self.put_off_end(now, acknowledged);
        self.trim();
        self.queue_end_if_due(now);
        Ok(())
    }

    fn handle_control(&mut self, now: Instant, control: Control) -> Result<(), SessionError> {
        let Some(attached) = self.attached.as_mut() else { return Ok(()) };
        let outcome = match control {
            Control::Ack { acknowledged, window } => self.flow.read_acknowledgement(acknowledged, window),
            Control::Ping(beat) => self.flow.read_ping(&attached.lane, beat),
            Control::Pong(beat) => {
                attached.heartbeat.handle_pong(now, beat.nonce);
                self.flow.read_pong(&attached.lane, beat)
            }
            Control::Gap { first, count, cause } => {
                self.flow.read_gap(&mut attached.lane, first, count, cause)
            }
            Control::End { code, acknowledged, reason, .. } => {
                let outcome = self.flow.outbox.acknowledge(acknowledged);
                self.handle_end(code, reason);
                outcome
            }
            Control::Auth { .. } if attached.auth.is_some() => {
                Err(SessionError::Unexpected("AUTH before AUTH_RESULT"))
            }
            Control::Auth { credentials } => {
                attached.auth = Some(Auth::Asked(credentials));
                Ok(())
            }
            Control::Volatile(message) => {
                self.config.flow.check(&message)?;
                self.volatiles.push(message, self.config.volatile_queue);
                Ok(())
            }
            Control::Hello(_)
            | Control::Welcome(_)
            | Control::GoAway { .. }
            | Control::AuthResult { .. }
            | Control::Refuse { .. } => Err(SessionError::Unexpected(control.name())),
            // A type that ends before it ignore stays ignored where it means nothing.
            Control::Replaced { .. } => Ok(()),
        };
        if let Err(SessionError::PositionMismatch { .. }) = outcome {
            let (code, reason) = (CloseCode::PROTOCOL_VIOLATION, "positions differ");
            self.note_end(EndCause::ProtocolError, Some(code), reason);
            self.end_now(now, code.into(), reason.into(), CLOSE_TIMEOUT);
        }
        outcome
    }

    fn handle_end(&mut self, code: u64, reason: String) {
        match self.life {
            Life::EndSent { code, .. } => self.over(Closed::Ended { code, by_us: true }),
            Life::Closed(_) => {}
            _ => {
                let allowed = u16::try_from(code).ok().and_then(CloseCode::new);
                self.note_end(EndCause::Client, allowed, &reason);
                if !self.is_open() {
                    // We were about to end it ourselves.
                    self.flow.inbox.discard_queue();
                }
                self.life = Life::EndReceived { code };
                self.answer_end_if_delivered();
            }
        }
    }

    /// Any bytes arrived on the attached connection, for example an RFC 6455 Pong.
    pub fn handle_bytes(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            attached.heartbeat.handle_bytes(now);
        }
    }

    /// The round trip that a PONG with this nonce measures, if `connection` brings it now; `None` if it answers no
    /// probe. Ask before [`handle_frame`](Self::handle_frame) takes it.
    #[must_use]
    pub fn round_trip(&self, now: Instant, connection: ConnectionId, nonce: u64) -> Option<Duration> {
        let attached = self.attached.as_ref().filter(|a| a.connection == connection)?;
        attached.heartbeat.round_trip(now, nonce)
    }

    /// Everything transmitted so far has left the process: probes count from here.
    pub fn handle_flushed(&mut self, now: Instant, connection: ConnectionId) {
        let attached = self.attached.as_mut().filter(|a| a.connection == connection);
        // A probe that was not even polled has not left.
        if let Some(attached) = attached.filter(|a| a.probe.is_none()) {
            attached.heartbeat.handle_flushed(now);
        }
    }

    /// The socket took some of what was transmitted, but not all.
    pub fn handle_write_progress(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            attached.heartbeat.handle_write_progress(now);
        }
    }

    /// The connection is gone, however that came about. The session parks.
    pub fn handle_lost(&mut self, now: Instant, connection: ConnectionId) {
        if self.attached.as_ref().is_none_or(|a| a.connection != connection) {
            return;
        }
        self.attached = None;
        self.flow.forget_owed();
        self.flow.outbox.trim(u64::MAX);
        self.life = match std::mem::replace(&mut self.life, Life::Attached) {
            Life::Attached | Life::Parked { .. } => Life::Parked { since: now },
            // The client may still come for what it did not acknowledge.
            Life::Closing { how, .. } if *how == Ending::Replaced => {
                Life::Closing { how, until: now + self.resume_window }
            }
            Life::Closing { how, .. } => {
                let until = how.waits_until(now + self.resume_window.max(CLOSE_TIMEOUT));
                Life::Closing { how, until }
            }
            // Our END may or may not have arrived; the tombstone tells a client that asks.
            Life::EndSent { code, .. } => Life::Closed(Closed::Ended { code, by_us: true }),
            Life::EndReceived { code } => Life::Closed(Closed::Ended { code, by_us: false }),
            over @ Life::Closed(_) => over,
        };
        if self.forgets {
            self.forget_undelivered();
        }
        if self.is_retired {
            self.evict();
        }
    }

    // ---- what the application does --------------------------------------------------------------

    /// Accepts a message for the peer and returns its number; it is kept until acknowledged.
    ///
    /// # Errors
    /// Gives the message back when the buffer is full, the session is ending, or the client does not
    /// [take](Self::largest) it.
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        self.send_within(message, u64::MAX)
    }

    /// As [`send`](Self::send), where no more than `room` bytes may be kept.
    ///
    /// # Errors
    /// As there.
    pub fn send_within(&mut self, message: Message, room: u64) -> Result<u64, Message> {
        match self.life {
            Life::Parked { .. } | Life::Attached => self.flow.outbox.push_within(message, room),
            _ => Err(message),
        }
    }

    /// As [`send_within`](Self::send_within), where a full buffer drops the oldest message that was never written, and the
    /// client is told of a gap.
    ///
    /// # Errors
    /// Gives the message back when the session is ending, or the client does not [take](Self::largest) it.
    pub fn send_dropping_oldest(&mut self, message: Message, room: u64) -> Result<u64, Message> {
        if self.is_open() { self.flow.outbox.push_dropping_oldest(message, room) } else { Err(message) }
    }

    /// Whether `send` would accept a message of this many bytes.
    #[must_use]
    pub fn has_room(&self, length: usize) -> bool {
        self.flow.outbox.has_room(length, u64::MAX)
    }

    /// The payload of the largest message that the client takes, as far as it said.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.flow.outbox.largest()
    }

    /// Writes a message that is not numbered, kept or replayed. Dropped while nobody is attached.
    pub fn send_volatile(&mut self, message: Message) {
        if let Some(attached) = &mut self.attached {
            attached.volatiles.push(message, self.config.volatile_queue);
        }
    }

    /// The next message or gap for the application, in order. Handed over means received, unless the
    /// application confirms by itself.
    pub fn deliver(&mut self, now: Instant) -> Option<Delivery> {
        if !self.delivers() && !turned_back(Rule::NothingIsDeliveredAfterEnd) {
            return None;
        }
        let delivery = self.flow.deliver(now);
        self.answer_end_if_delivered();
        delivery
    }

    /// The next message from outside the stream. It was never counted: whoever asks for those of the
    /// stream first misses nothing that is kept.
    pub fn deliver_volatile(&mut self) -> Option<Message> {
        self.delivers().then(|| self.volatiles.pop()).flatten()
    }

    /// Whether something may still be handed over: the session is open, or its client ended it and what came before is
    /// waiting. The end that closes hands over nothing more.
    #[must_use]
    pub fn delivers(&self) -> bool {
        self.is_open() || matches!(self.life, Life::EndReceived { .. })
    }

    /// Credentials that the client sent for the live session, once each: the application judges them, and
    /// [`handle_verdict`](Self::handle_verdict) takes what it said.
    pub fn poll_auth(&mut self) -> Option<(ConnectionId, Bytes)> {
        let attached = self.attached.as_mut()?;
        match attached.auth.replace(Auth::Judging) {
            Some(Auth::Asked(credentials)) => Some((attached.connection, credentials.0)),
            other => {
                attached.auth = other;
                None
            }
        }
    }

    /// Who the credentials from `connection` prove that the client is; `None`: they were refused. Another
    /// principal than the session's is refused too. Tells the client, and returns whether they were
    /// accepted; either way the session goes on.
    pub fn handle_verdict(&mut self, connection: ConnectionId, principal: Option<&[u8]>) -> bool {
        let accepted = principal.is_some_and(|principal| Name::of_principal(principal) == self.principal);
        let attached = self.attached.as_mut().filter(|a| a.connection == connection);
        // A verdict that comes after its connection was lost tells nobody: the next HELLO has credentials.
        if let Some(attached) = attached.filter(|a| a.auth == Some(Auth::Judging)) {
            attached.auth = Some(Auth::Judged { accepted });
        }
        accepted
    }

    /// From now on the application confirms what it has handled, with [`confirm`](Self::confirm). Call it
    /// before anything is handed over.
    pub fn manual_ack(&mut self) {
        self.flow.inbox.manual_ack();
    }

    /// From now on a full buffer drops the oldest message that was never written, which may be the new one,
    /// and the client is told of a gap; [`send`](Self::send) refuses nothing while the session is open.
    pub fn drop_oldest_when_full(&mut self) {
        self.flow.outbox.drop_oldest_when_full();
    }

    /// How many messages were dropped to make room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.flow.outbox.dropped()
    }

    /// In manual mode: the `count` oldest messages that were handed over and are not confirmed are handled.
    pub fn acknowledge_oldest(&mut self, now: Instant, count: u64) {
        self.flow.inbox.acknowledge_oldest(now, count);
    }

    /// In manual mode: everything up to and including `number` is handled, as far as it was handed over.
    pub fn acknowledge(&mut self, now: Instant, number: u64) {
        self.flow.inbox.acknowledge(now, number);
    }

    /// Ends the session in order: what was accepted before is delivered first, then END. Nothing more is handed over. A
    /// client that is attached and acknowledges nothing for 5 s, or not everything within the resume window (10 s at
    /// least), gets END without: nobody can put off its end. An END that is not answered within 10 s (5 s, if END could
    /// not wait for the client) ends the connection too.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.close_for(now, EndCause::Closed, code, reason);
    }

    /// As [`close`](Self::close), for a cause that the application is to see in [`end`](Self::end).
    pub fn close_for(&mut self, now: Instant, cause: EndCause, code: CloseCode, reason: &str) {
        let (by, until) = match self.life {
            // It has the resume window to come back, and then time to take what waits.
            Life::Parked { since } => {
                (since + self.resume_window + CLOSE_TIMEOUT, since + self.resume_window)
            }
            Life::Attached => (now + self.resume_window.max(CLOSE_TIMEOUT), now + FINAL_WRITES),
            _ => return,
        };
        self.note_end(cause, Some(code), reason);
        let how = Box::new(Ending::End { code, reason: reason.to_owned(), by });
        self.stop_delivering();
        self.life = Life::Closing { how, until };
        self.queue_end_if_due(now);
    }

    /// Ends the session now: what was not written yet is not written, and a client that is attached gets END at once. It
    /// has a second to answer; then its connection is dropped. [`take_undelivered`](Self::take_undelivered) has the rest.
    pub fn abort(&mut self, now: Instant, code: CloseCode, reason: &str) {
        match self.life {
            Life::Closed(_) => return,
            Life::EndSent { code, until } => {
                self.life = Life::EndSent { code, until: until.min(now + ABORT_TIMEOUT) };
                return;
            }
            Life::EndReceived { .. } => {
                self.flow.inbox.discard_queue();
                return self.answer_end_if_delivered();
            }
            Life::Parked { .. } | Life::Attached | Life::Closing { .. } => {}
        }
        self.end = None;
        self.note_end(EndCause::Closed, Some(code), reason);
        self.stop_delivering();
        if self.attached.is_some() {
            self.end_now(now, code.into(), reason.to_owned(), ABORT_TIMEOUT);
        } else {
            self.over(Closed::Ended { code: code.into(), by_us: true });
        }
    }

    /// A client that goes on acknowledging what precedes END has more time for it.
    fn put_off_end(&mut self, now: Instant, acknowledged: u64) {
        if let Life::Closing { how, until } = &mut self.life
            && self.flow.outbox.acknowledged() > acknowledged
        {
            *until = how.waits_until(now + FINAL_WRITES).max(*until);
        }
    }

    fn stop_delivering(&mut self) {
        self.flow.inbox.discard_queue();
        self.volatiles = Volatiles::default();
    }

    /// The first who ends a session is who ended it.
    fn note_end(&mut self, cause: EndCause, code: Option<CloseCode>, reason: &str) {
        self.end.get_or_insert_with(|| Box::new(End::new(cause, code, reason)));
    }

    /// Ends the session because what stands behind this server lost its state. What was accepted for the client is
    /// delivered first, for at most 10 s while it is attached; then its connection is closed with 1012. When it comes
    /// back it gets a fresh session and the exact account of this one. `passed_on`: how many messages went on to what
    /// stood there, of those that were handed over and are not confirmed, the oldest first; the others count as never
    /// handed over. Only for a session that confirms by hand; otherwise everything that was handed over is received.
    pub fn renew(&mut self, now: Instant, passed_on: u64) {
        let until = match self.life {
            Life::Parked { since } => since + self.resume_window,
            Life::Attached => now + CLOSE_TIMEOUT,
            _ => return,
        };
        self.flow.inbox.retract(passed_on);
        self.note_end(EndCause::Replaced, None, "");
        self.stop_delivering();
        self.life = Life::Closing { how: Box::new(Ending::Replaced), until };
        self.queue_end_if_due(now);
    }

    /// The connection behind this server was replaced, after everything that was accepted for the client so far. The
    /// client is told in this place of its stream, over as many connections as that takes.
    pub fn note_replaced(&mut self) {
        let (after, acknowledged) = (self.flow.outbox.last(), self.flow.outbox.acknowledged());
        self.replaced.get_or_insert_default().add(after, acknowledged);
    }

    /// Asks the client to leave this connection after a delay; nothing is lost. A connection that is still there
    /// after `close_in` is closed; zero: it is not, and the client is not told when. While parked it does nothing.
    pub fn go_away(&mut self, now: Instant, reason: &str, delay: Delay, close_in: Duration) {
        if let Some(attached) = &mut self.attached {
            let control = Control::GoAway { reason: reason.to_owned(), delay, close_in, endpoint: None };
            attached.queue.push_back(Transmit::control(&control));
            attached.gone_by = if close_in.is_zero() { None } else { now.checked_add(close_in) };
        }
    }

    /// The server takes nobody in any more: the session is over once it has no connection, at once if it has
    /// none now.
    pub fn retire(&mut self) {
        self.is_retired = true;
        if self.attached.is_none() {
            self.evict();
        }
    }

    /// Whether [`retire`](Self::retire) was called.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.is_retired
    }

    /// Gives the session up without END, as if its resume window had passed.
    pub fn evict(&mut self) {
        if !matches!(self.life, Life::Closed(_)) {
            self.over(Closed::Evicted);
        }
    }

    /// END leaves once everything is acknowledged, or when it was waited for long enough.
    fn queue_end_if_due(&mut self, now: Instant) {
        let Life::Closing { how, until } = &mut self.life else { return };
        let is_due = self.flow.is_flushed() || (self.attached.is_some() && *until <= now);
        match &mut **how {
            Ending::End { code, reason, .. } if is_due && self.attached.is_some() => {
                let (code, reason) = (*code, std::mem::take(reason));
                let patience = if self.flow.is_flushed() { CLOSE_TIMEOUT } else { FINAL_WRITES };
                self.end_now(now, code.into(), reason, patience);
            }
            Ending::Replaced if is_due => self.over(Closed::Replaced),
            _ => {}
        }
    }

    /// Final: nothing more is written or handed over. The client has so long for its answer.
    fn end_now(&mut self, now: Instant, code: u64, reason: String, patience: Duration) {
        self.flow.inbox.discard_queue();
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        self.life = Life::EndSent { code, until: now + patience };
        if let Some(attached) = &mut self.attached {
            let end = Control::End { code, reason, acknowledged, delivered };
            attached.queue.push_back(Transmit::control(&end));
        }
    }

    fn answer_end_if_delivered(&mut self) {
        let Life::EndReceived { code } = self.life else { return };
        if !self.flow.inbox.is_empty() {
            return;
        }
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        if let Some(attached) = &mut self.attached {
            let end = Control::End { code, reason: String::new(), acknowledged, delivered };
            attached.queue.push_back(Transmit::control(&end));
        }
        self.over(Closed::Ended { code, by_us: false });
    }

    fn over(&mut self, over: Closed) {
        self.stop_delivering();
        self.life = Life::Closed(over);
        if self.forgets {
            self.flow.outbox.discard();
        }
        if let Some(attached) = &mut self.attached {
            attached.queue.push_back(match over {
                Closed::Ended { .. } => Transmit::Close { code: CloseCode::NORMAL, reason: String::new() },
                Closed::Replaced => {
                    Transmit::Close { code: CloseCode::RESTART, reason: BACKEND_LOST.to_owned() }
                }
                Closed::Expired | Closed::Evicted => Transmit::Abort,
            });
        }
    }

    // ---- output and time ------------------------------------------------------------------------

    /// The next thing to do to `connection`. A fenced connection gets nothing.
    pub fn poll_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        let attached = self.attached.as_mut().filter(|a| a.connection == connection)?;
        if let Some(welcome) = attached.welcome.take() {
            return Some(Transmit::control(&Control::Welcome(welcome)));
        }
        match attached.probe.take() {
            Some(Probe::Both(nonce)) => {
                attached.probe = Some(Probe::Ping(nonce));
                return Some(Transmit::Ping(nonce));
            }
            Some(Probe::Ping(nonce)) => return Some(self.flow.write_ping(nonce, &attached.lane)),
            None => {}
        }
        if let Some(Auth::Judged { accepted }) = attached.auth {
            attached.auth = None;
            let result = Control::AuthResult { accepted, expires_in: Duration::ZERO };
            return Some(Transmit::control(&result));
        }
        if let Some(transmit) = attached.queue.pop_front() {
            return Some(transmit);
        }
        match self.life {
            // A client that still hands over what came before END asks whether anybody is there.
            Life::EndSent { .. } => return self.flow.write_pong(&attached.lane),
            Life::Closed(_) => return None,
            _ => {}
        }
        if let Some(transmit) =
            attached.volatiles.transmit().or_else(|| self.flow.write_owed(now, &attached.lane))
        {
            return Some(transmit);
        }
        if let Some(replaced) = &mut self.replaced
            && let Some(mark) = replaced.transmit(attached.lane.wrote)
        {
            return Some(mark);
        }
        let message = self.flow.write_message(&mut attached.lane)?;
        attached.lifetime.as_mut().into_iter().for_each(|lifetime| lifetime.handle_message(now));
        Some(message)
    }

    /// The transport is to be dropped, whatever still waits to be written: a socket that takes nothing must
    /// not keep the [`Transmit::Abort`] from being polled.
    #[must_use]
    pub fn wants_abort(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.queue.contains(&Transmit::Abort))
    }

    /// Does what is due. Call it when [`poll_timeout`](Self::poll_timeout) passed, until it returns `None`
    /// or [`Action::Dead`]; earlier does nothing. After [`Action::NotListening`] drop the transport and
    /// call [`handle_lost`](Self::handle_lost), unless the client is in the middle of a frame: the session
    /// parks, and a client that lives resumes it.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        if self.expires_at().is_some_and(|at| at <= now) {
            let replaced = matches!(&self.life, Life::Closing { how, .. } if **how == Ending::Replaced);
            self.over(if replaced { Closed::Replaced } else { Closed::Expired });
        }
        self.queue_end_if_due(now);
        if let Life::EndSent { code, until } = self.life
            && until <= now
        {
            self.over(Closed::Ended { code, by_us: true });
            let attached = self.attached.as_mut()?;
            (attached.probe, attached.queue) = (None, VecDeque::from([Transmit::Abort]));
            return None;
        }
        self.flow.inbox.handle_timeout(now);
        self.send_away(now);
        let attached = self.attached.as_mut()?;
        let action = attached.heartbeat.handle_timeout(now, &self.config.heartbeat);
        match &action {
            Some(Action::Probe { nonce }) => attached.probe = Some(Probe::Both(*nonce)),
            Some(Action::Dead(_)) => attached.queue.push_front(Transmit::Abort),
            _ => {}
        }
        action
    }

    /// Begins to send the connection away if it has been there, or idle, for too long.
    fn send_away(&mut self, now: Instant) {
        let Some(attached) = &mut self.attached else { return };
        if attached.gone_by.take_if(|at| *at <= now).is_some() {
            let code = CloseCode::RESTART;
            attached.queue.push_back(Transmit::Close { code, reason: lifetime::STILL_THERE.to_owned() });
        }
        let leave = attached.lifetime.as_mut().and_then(|lifetime| lifetime.handle_timeout(now));
        match leave {
            None => {}
            Some(Leave::Idle) => {
                self.close_for(now, EndCause::Idle, CloseCode::SESSION_ENDED, lifetime::IDLE);
            }
            Some(Leave::Old) => {
                self.go_away(now, lifetime::OLD, lifetime::GO_AWAY_WITHIN, lifetime::GONE_BY);
            }
        }
    }

    /// Why the connection is being sent away, once it is. Told once, for metrics.
    pub fn poll_leave(&mut self) -> Option<Leave> {
        self.attached.as_mut()?.lifetime.as_mut()?.poll_leave()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let leave = self.attached.as_ref().and_then(|attached| {
            let due = attached.lifetime.as_ref().and_then(|lifetime| lifetime.poll_timeout());
            [due, attached.gone_by].into_iter().flatten().min()
        });
        let beat = self.attached.as_ref().map(|a| a.heartbeat.poll_timeout());
        let acknowledge = self.attached.as_ref().and_then(|_| self.flow.inbox.acknowledge_by());
        let end = match self.life {
            Life::EndSent { until, .. } | Life::Closing { until, .. } => Some(until),
            _ => self.expires_at(),
        };
        [leave, beat, acknowledge, end].into_iter().flatten().min()
    }

    fn expires_at(&self) -> Option<Instant> {
        match self.life {
            Life::Parked { since } => Some(since + self.resume_window),
            Life::Closing { until, .. } if self.attached.is_none() => Some(until),
            _ => None,
        }
    }

    fn trim(&mut self) {
        self.flow.outbox.trim(self.attached.as_ref().map_or(u64::MAX, |a| a.lane.wrote));
    }

    // ---- facts ----------------------------------------------------------------------------------

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

    /// Set once the session is over.
    #[must_use]
    pub fn is_closed(&self) -> Option<Closed> {
        match self.life {
            Life::Closed(over) => Some(over),
            _ => None,
        }
    }

    /// Whether nothing that is sent from now on gets anywhere: END was sent, or the session is over.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.life, Life::EndSent { .. } | Life::Closed(_))
    }

    /// Whether the session is over since the last call: it is to be [buried](super::Registry::bury) then, even if its
    /// handler goes on for a while.
    pub fn poll_over(&mut self) -> bool {
        self.is_closed().is_some() && !std::mem::replace(&mut self.told_over, true)
    }

    /// What the client's END said; `None` while there was none, and where this end was the first to end the session.
    #[must_use]
    pub fn peer_close(&self) -> Option<PeerClose> {
        let end = self.end.as_ref().filter(|end| end.cause == EndCause::Client)?;
        Some(PeerClose { code: end.code, reason: end.reason.clone() })
    }

    /// Why nothing more is handed over; `None` while something may be.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        if let Some(end) = self.end.as_deref() {
            return (!self.is_open()).then(|| end.clone());
        }
        let cause = match self.is_closed()? {
            Closed::Expired => EndCause::Expired,
            Closed::Evicted if self.is_retired => EndCause::Drained,
            Closed::Evicted => EndCause::Evicted,
            Closed::Replaced => EndCause::Replaced,
            Closed::Ended { by_us: true, .. } => EndCause::Closed,
            Closed::Ended { by_us: false, .. } => EndCause::Client,
        };
        Some(End::new(cause, None, ""))
    }

    /// What the client never acknowledged, in order, once END was sent or the session is over; some of it may have
    /// arrived. Empty before, and the second time.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        match self.life {
            Life::EndSent { .. } | Life::Closed(_) => self.flow.outbox.take_unacknowledged(),
            _ => Vec::new(),
        }
    }

    /// The application will not ask for what is [undelivered](Self::take_undelivered): it is not kept once the session is over.
    pub fn forget_undelivered(&mut self) {
        self.forgets = true;
        if matches!(self.life, Life::Closed(_)) {
            self.flow.outbox.discard();
        }
    }

    /// Whether new messages are accepted.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.life, Life::Parked { .. } | Life::Attached)
    }

    /// WELCOME is still to be written. It goes before anything is read: what follows HELLO may end the connection, and
    /// the client has to know why.
    #[must_use]
    pub fn owes_welcome(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.welcome.is_some())
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

    /// How many messages the current connection has to write again: an earlier one wrote them, and the
    /// client did not say that it received them.
    #[must_use]
    pub fn to_replay(&self) -> u64 {
        self.attached.as_ref().map_or(0, |a| self.flow.outbox.written().saturating_sub(a.lane.wrote))
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

    pub(super) fn remains(&self) -> Remains {
        let (cause, ended) = match self.life {
            Life::Closed(Closed::Expired) => (LossCause::Expired, None),
            Life::Closed(Closed::Evicted) => (LossCause::Evicted, None),
            Life::Closed(Closed::Replaced) => (LossCause::Replaced, None),
            Life::Closed(Closed::Ended { code, by_us }) => (LossCause::Ended, by_us.then_some(code)),
            Life::EndSent { code, .. } => (LossCause::Ended, Some(code)),
            _ => (LossCause::Unknown, None),
        };
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        Remains {
            acknowledged,
            delivered: if turned_back(Rule::AccountStatesDelivered) { acknowledged } else { delivered },
            sent: self.flow.outbox.last(),
            cause,
            ended,
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
