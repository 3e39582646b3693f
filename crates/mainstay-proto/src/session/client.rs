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

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::SessionError;
use super::flow::{Flow, FlowConfig, Lane, Volatiles};
use super::inbox::Delivery;
use super::message::{
    Account, ClientKey, Control, Credentials, Delay, Frame, Hello, Instance, LossCause, Message, Resume,
    ResumeToken, SessionId, Welcome, Window,
};
use super::names::Secrets;
use super::outbox::Outbox;
use super::transmit::{ConnectionId, Transmit};
use crate::budget::{Held, held};
use crate::planted::{Rule, turned_back};
use crate::ws::CloseCode;

/// Connections in a row that may end after WELCOME without progress before the session is given up.
const BARREN_LIMIT: u32 = 5;
/// Attempts in a row that may end without an answer after messages had followed HELLO. From then on HELLO goes alone: one
/// of them may be what ends the connection.
const HASTY_LIMIT: u32 = 3;

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

/// Credentials that the server has not judged yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Fresh {
    credentials: Credentials,
    /// Where they were presented, in HELLO or in AUTH.
    on: Option<ConnectionId>,
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
        let mut copy = Self { token: self.token.clone(), ..Self::new(self.config.clone(), seed) };
        if turned_back(Rule::KeyIsNotCopied) {
            (copy.key, copy.key_sent) = (self.key, self.key_sent);
        } else if self.token.is_none() {
            return None;
        }
        if !turned_back(Rule::CopyingCountsAsWriting) {
            self.flow.outbox.note_written(self.flow.outbox.last());
        }
        copy.flow = self.flow.clone();
        copy.flow.forget_owed();
        copy.flow.outbox.note_written(copy.flow.outbox.last());
        copy.replaced = self.replaced;
        copy.restored = true;
        Some(copy)
    }

    // ---- connections ----------------------------------------------------------------------------

    /// `connection` is open and speaks `mainstay.v1`: ask for the session on it. An attempt that was
    /// pending before is ignored from here on; close its connection. Ignored itself once END has passed:
    /// close every connection that is neither [`current`](Self::current) nor [`pending`](Self::pending).
    pub fn handle_opened(&mut self, now: Instant, connection: ConnectionId) {
        // A session that sent or got END is not attached again.
        if !matches!(self.life, Life::Open | Life::Closing { .. }) {
            return;
        }
        self.attempt += 1;
        let resume = self.token.clone().map(|token| Resume {
            token,
            acknowledged: self.flow.inbox.acknowledged(),
            sent: self.flow.outbox.last(),
            first_held: self.flow.outbox.acknowledged() + 1,
        });
        // Age 0 says "never sent before"; a second HELLO in the same millisecond must not say it.
        let key_age = match self.key_sent {
            None => Duration::ZERO,
            Some(sent) => now.saturating_duration_since(sent).max(Duration::from_millis(1)),
        };
        self.key_sent.get_or_insert(now);
        let opening = resume.is_none().then(Lane::default);
        if opening.is_some() {
            self.flow.outbox.set_peer_window(Window::BEFORE_WELCOME);
        }
        let waits = self.hasty >= HASTY_LIMIT;
        let credentials = match &mut self.fresh {
            Some(fresh) => {
                fresh.on = Some(connection);
                Some(fresh.credentials.clone())
            }
            None => self.config.credentials.clone(),
        };
        let hello = Hello {
            window: self.flow.inbox.window(),
            key: self.key,
            key_age,
            instance: self.instance,
            attempt: self.attempt,
            resume,
            credentials,
            resume_window: self.config.resume_window,
            max_message: self.config.flow.max_message,
        };
        self.pending = Some(Pending { connection, hello: Some(Box::new(hello)), opening, waits });
    }

    /// The connection is gone, however that came about.
    pub fn handle_lost(&mut self, connection: ConnectionId) {
        if let Some(pending) = self.pending.take_if(|pending| pending.connection == connection) {
            self.hasty += u32::from(pending.opening.is_some_and(|lane| lane.wrote > 0));
            self.present_again(connection);
            self.queue_end_if_flushed();
        }
        if self.current.as_ref().is_some_and(|c| c.connection == connection) {
            self.drop_current();
        }
    }

    /// The server closed `connection` with SUPERSEDED and this reason (the winner's instance, and
    /// what the server received).
    pub fn handle_superseded(&mut self, connection: ConnectionId, reason: &str) {
        let mut words = reason.split_ascii_whitespace();
        let by_us = !turned_back(Rule::SupersededNamesTheWinner)
            && words.next() == Some(self.instance.to_string().as_str());
        // A pending one counts too: its HELLO was taken, though WELCOME never got here. Coming back would
        // take the session from the winner, who would come back as well, for ever.
        let pending = self.pending().filter(|_| !turned_back(Rule::SupersededIsFinalBeforeWelcome));
        let ours = [self.current(), pending].contains(&Some(connection));
        if by_us || !ours || words.next().is_none() {
            return self.handle_lost(connection);
        }
        let acknowledged = reason.rsplit(' ').next().and_then(|count| count.parse().ok());
        let account = acknowledged.map(|acknowledged| Account {
            acknowledged,
            delivered: u64::MAX,
            first_lost: self.flow.inbox.received() + 1,
            count: 0,
            cause: LossCause::Unknown,
        });
        let fate = self.fate(account, false);
        let words = "another instance took the session".into();
        self.end(EndedBy::OtherInstance, CloseCode::SUPERSEDED.into(), words, fate);
    }

    fn drop_current(&mut self) {
        if self.current.take().is_none() {
            return;
        }
        self.flow.forget_owed();
        let mark = (self.flow.outbox.acknowledged(), self.flow.inbox.received());
        self.barren = if mark == self.mark { self.barren + 1 } else { 0 };
        self.flow.outbox.trim(u64::MAX);
        match std::mem::replace(&mut self.life, Life::Open) {
            // Nobody answers END any more.
            Life::EndSent { code, reason } => {
                let fate = self.fate(None, false);
                self.end(EndedBy::Us, code, reason, fate);
            }
            life => self.life = life,
        }
        if self.barren >= BARREN_LIMIT {
            self.barren = 0;
            self.start_over(None);
        }
    }

    // ---- what connections bring -----------------------------------------------------------------

    /// Takes one message that `connection` brought. One from a connection that matters no more is dropped.
    ///
    /// # Errors
    /// The peer broke the protocol: fail this connection; the session goes on over the next one.
    pub fn handle_frame(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        frame: Frame,
    ) -> Result<(), SessionError> {
        if self.pending.as_ref().is_some_and(|p| p.connection == connection) {
            return self.handle_answer(now, frame);
        }
        let Some(current) = self.current.as_mut().filter(|c| c.connection == connection) else {
            return Ok(());
        };
        match frame {
            Frame::Reserved => return Ok(()),
            Frame::Message(message) => {
                self.config.flow.check(&message)?;
                if matches!(self.life, Life::EndSent { .. } | Life::EndReceived { .. } | Life::Closed) {
                    current.lane.read += 1;
                    return Ok(());
                }
                return self.flow.read_message(&mut current.lane, message);
            }
            Frame::Control(control) => self.handle_control(control)?,
        }
        self.trim();
        self.queue_end_if_flushed();
        Ok(())
    }

    fn handle_control(&mut self, control: Control) -> Result<(), SessionError> {
        let Some(current) = self.current.as_mut() else { return Ok(()) };
        let outcome = match control {
            Control::Ack { acknowledged, window } => self.flow.read_acknowledgement(acknowledged, window),
            Control::Ping(beat) => self.flow.read_ping(&current.lane, beat),
            Control::Pong(beat) => self.flow.read_pong(&current.lane, beat),
            Control::Gap { first, count, cause } => {
                self.flow.read_gap(&mut current.lane, first, count, cause)
            }
            Control::GoAway { delay, close_in, endpoint, .. } => {
                let connection = current.connection;
                self.events.push_back(ClientEvent::GoAway { connection, delay, close_in, endpoint });
                Ok(())
            }
            Control::Volatile(message) => {
                self.config.flow.check(&message)?;
                self.events.push_back(ClientEvent::Volatile(message));
                Ok(())
            }
            Control::AuthResult { accepted, .. } if current.judging => {
                current.judging = false;
                let connection = current.connection;
                self.judged(connection, accepted);
                Ok(())
            }
            Control::End { code, reason, acknowledged, delivered } => {
                self.handle_end(code, reason, acknowledged, delivered)
            }
            Control::Replaced { after, .. } if after != current.lane.read => {
                Err(SessionError::PositionMismatch { sent: after, read: current.lane.read })
            }
            Control::Replaced { count, .. } => {
                // A session that ends delivers no more, and a resume writes again what the client may not have seen.
                if count > self.replaced && matches!(self.life, Life::Open | Life::Closing { .. }) {
                    self.replaced = count;
                    self.flow.inbox.take_replaced(count);
                }
                Ok(())
            }
            Control::Hello(_)
            | Control::Welcome(_)
            | Control::Auth { .. }
            | Control::AuthResult { .. }
            | Control::Refuse { .. } => Err(SessionError::Unexpected(control.name())),
        };
        if let Err(SessionError::PositionMismatch { .. }) = outcome {
            let fate = self.fate(None, false);
            self.end_now(CloseCode::PROTOCOL_VIOLATION.into(), "positions differ".into());
            let words = "the two ends counted differently".into();
            self.end(EndedBy::Protocol, CloseCode::PROTOCOL_VIOLATION.into(), words, fate);
        }
        outcome
    }

    fn handle_end(
        &mut self,
        code: u64,
        reason: String,
        acknowledged: u64,
        delivered: u64,
    ) -> Result<(), SessionError> {
        self.flow.outbox.acknowledge(acknowledged)?;
        match std::mem::replace(&mut self.life, Life::Closed) {
            // The answer to ours: the code and the reason are what we said.
            Life::EndSent { code, reason } => {
                let fate = self.fate(Some(self.final_account(acknowledged, delivered)), false);
                self.close_current();
                self.end(EndedBy::Us, code, reason, fate);
            }
            Life::Closed => {}
            before => {
                if matches!(before, Life::Closing { .. }) {
                    // After `close` nothing is handed over.
                    self.flow.inbox.discard_queue();
                }
                self.life = Life::EndReceived { code, reason, acknowledged, delivered };
                self.answer_end_if_delivered();
            }
        }
        Ok(())
    }

    /// WELCOME or REFUSE on the pending connection; nothing else may come there.
    fn handle_answer(&mut self, now: Instant, frame: Frame) -> Result<(), SessionError> {
        match frame {
            Frame::Control(Control::Welcome(welcome)) => self.handle_welcome(now, *welcome),
            Frame::Control(Control::Refuse { code, temporary, delay, account }) => {
                self.handle_refuse(code, temporary, delay, account);
                Ok(())
            }
            Frame::Reserved => Ok(()),
            Frame::Control(control) => Err(SessionError::Unexpected(control.name())),
            Frame::Message(_) => Err(SessionError::Unexpected("a message before WELCOME")),
        }
    }

    fn handle_welcome(&mut self, now: Instant, welcome: Welcome) -> Result<(), SessionError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        self.hasty = 0;
        if pending.hello.is_some() {
            return Err(SessionError::Unexpected("WELCOME before HELLO"));
        }
        // The server has fenced the old connection; whatever it still brings is a repetition.
        self.drop_old_connection();
        let lane = match (&pending.opening, welcome.resumed) {
            (Some(lane), false) => {
                self.flow.outbox.acknowledge(welcome.acknowledged)?;
                let again = turned_back(Rule::NewSessionIsNotReplayed);
                Lane { wrote: if again { welcome.acknowledged } else { lane.wrote }, read: welcome.first - 1 }
            }
            (None, true) => {
                if !self.is_continued_by(&welcome) {
                    self.start_over(None);
                    return Err(SessionError::Unexpected("WELCOME with impossible counts"));
                }
                self.flow.outbox.acknowledge(welcome.acknowledged)?;
                Lane { wrote: welcome.acknowledged, read: welcome.first - 1 }
            }
            (None, false) => {
                self.start_over(welcome.account);
                Lane { wrote: welcome.acknowledged, read: welcome.first - 1 }
            }
            (Some(_), true) => return Err(SessionError::Unexpected("resumed without being asked")),
        };
        self.flow.outbox.set_peer_window(welcome.window);
        for number in self.flow.outbox.set_largest(welcome.max_message) {
            self.events.push_back(ClientEvent::TooLarge { number });
        }
        self.flow.outbox.trim(lane.wrote);
        self.token = Some(welcome.token);
        self.restored = false;
        // The key has served; the next session, if this one is lost, gets another.
        if !welcome.resumed {
            self.renew_key();
        }
        self.mark = (self.flow.outbox.acknowledged(), self.flow.inbox.received());
        // ACK comes before anything else on this connection: it confirms the epoch.
        let queue = VecDeque::from([self.flow.write_acknowledgement()]);
        let volatiles = Volatiles::default();
        let connection = pending.connection;
        self.current = Some(Current { connection, lane, ping: None, queue, volatiles, judging: false });
        self.events.push_back(ClientEvent::Attached {
            id: welcome.id,
            epoch: welcome.epoch,
            resumed: welcome.resumed,
            heartbeat_interval: welcome.heartbeat_interval,
            resume_window: welcome.resume_window,
            resume_at: welcome.resume_at,
        });
        let _ = now;
        self.judged(connection, true);
        self.queue_end_if_flushed();
        Ok(())
    }

    /// Whether the counts in WELCOME can be those of the session we know.
    fn is_continued_by(&self, welcome: &Welcome) -> bool {
        let outbox = &self.flow.outbox;
        welcome.acknowledged >= outbox.acknowledged()
            && welcome.acknowledged <= outbox.written()
            && welcome.first - 1 <= self.flow.inbox.received()
    }

    fn handle_refuse(&mut self, code: u64, temporary: bool, delay: Delay, account: Option<Account>) {
        let Some(pending) = self.pending.take() else { return };
        let asked_to_resume = pending.opening.is_none();
        if temporary {
            self.present_again(pending.connection);
            self.events.push_back(ClientEvent::Refused { code, temporary, delay });
            self.queue_end_if_flushed();
            return;
        }
        if code == u64::from(CloseCode::KEY_REFUSED) {
            // The key may have named a session. With a token in hand only the key is at fault.
            if asked_to_resume {
                self.renew_key();
            } else {
                self.start_over(account);
            }
            self.present_again(pending.connection);
            self.queue_end_if_flushed();
            self.events.push_back(ClientEvent::Refused { code, temporary: true, delay });
            return;
        }
        let fate = self.fate(account, false);
        self.end(EndedBy::Refusal, code, format!("the server refused the session with code {code}"), fate);
    }

    // ---- what the application does --------------------------------------------------------------

    /// Accepts a message and returns its number; it is kept until acknowledged.
    ///
    /// # Errors
    /// Gives the message back when the buffer is full, the session is ending, or the server does not
    /// [take](Self::largest) it.
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        let numbers = !self.restored || turned_back(Rule::CopyNumbersNothing);
        if self.life == Life::Open && numbers { self.flow.outbox.push(message) } else { Err(message) }
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

    /// Presents new credentials: on the live connection, or in the next HELLO where there is none. What
    /// became of them is a [`ClientEvent::Authenticated`]; a HELLO that is refused ends the session. Of
    /// credentials that wait for a verdict the newest count, and only they get an event.
    pub fn authenticate(&mut self, credentials: Bytes) {
        self.fresh = Some(Fresh { credentials: Credentials(credentials), on: None });
        self.present();
    }

    /// What every HELLO from here on presents, except while others wait for their verdict.
    pub fn set_credentials(&mut self, credentials: Bytes) {
        self.config.credentials = Some(Credentials(credentials));
    }

    /// Writes AUTH, unless a HELLO has presented them, or another AUTH still waits for its result.
    fn present(&mut self) {
        let (Some(fresh), Some(current), None) = (&mut self.fresh, &mut self.current, &self.pending) else {
            return;
        };
        if fresh.on.is_none() && !current.judging && matches!(self.life, Life::Open | Life::Closing { .. }) {
            (fresh.on, current.judging) = (Some(current.connection), true);
            let auth = Control::Auth { credentials: fresh.credentials.clone() };
            current.queue.push_back(Transmit::control(&auth));
        }
    }

    /// The connection that they were presented on got no answer.
    fn present_again(&mut self, connection: ConnectionId) {
        if let Some(fresh) = self.fresh.as_mut().filter(|fresh| fresh.on == Some(connection)) {
            fresh.on = None;
        }
        self.present();
    }

    /// What was presented on this connection is accepted or refused; newer credentials have their turn.
    fn judged(&mut self, connection: ConnectionId, accepted: bool) {
        if let Some(fresh) = self.fresh.take_if(|fresh| fresh.on == Some(connection)) {
            if accepted {
                self.config.credentials = Some(fresh.credentials);
            }
            self.events.push_back(ClientEvent::Authenticated { accepted });
        }
        self.present();
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

    /// Sends a PING on the current connection, to see whether it lives.
    pub fn probe(&mut self, nonce: u64) {
        if let Some(current) = &mut self.current {
            current.ping = Some(nonce);
        }
    }

    /// A probe was asked for and is not transmitted yet.
    #[must_use]
    pub fn owes_probe(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.ping.is_some())
    }

    /// Ends the session in order: what was accepted before is delivered first, then END. Nothing more is handed over.
    pub fn close(&mut self, code: CloseCode, reason: &str) {
        if self.life == Life::Open {
            self.life = Life::Closing { code: code.into(), reason: reason.to_owned() };
            self.queue_end_if_flushed();
        }
    }

    /// Gives up waiting for an orderly end: the fate of what is unacknowledged is unknown.
    pub fn abandon(&mut self) {
        let (code, reason) = match std::mem::replace(&mut self.life, Life::Open) {
            Life::Closed => {
                self.life = Life::Closed;
                return;
            }
            Life::Closing { code, reason } | Life::EndSent { code, reason } => (code, reason),
            Life::EndReceived { code, reason, .. } => (code, reason),
            Life::Open => (CloseCode::GOING_AWAY.into(), "abandoned".into()),
        };
        let fate = self.fate(None, false);
        self.end(EndedBy::Us, code, reason, fate);
    }

    /// Ends the session now: END leaves where a connection is attached, and nothing is waited for. What was written and
    /// not acknowledged is unknown, the rest is not delivered.
    pub fn abort(&mut self, code: CloseCode, reason: &str) {
        match self.life {
            Life::Closed => return,
            Life::EndSent { .. } | Life::EndReceived { .. } => {}
            Life::Open | Life::Closing { .. } => {
                // The server would take no END on a connection that a HELLO may have fenced.
                if self.pending.take().is_none() {
                    self.end_now(code.into(), reason.to_owned());
                }
            }
        }
        self.close_current();
        let fate = self.fate(None, false);
        self.end(EndedBy::Abort, code.into(), reason.to_owned(), fate);
    }

    /// Once it is over: what was accepted and is not known to be delivered, in order, once. Of these the first
    /// `unknown - delivered` by the [`Fate`] may have been.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        let delivered = self.flow.outbox.acknowledged().max(self.delivered_at_the_end);
        let fresh = Outbox::new(self.config.flow.keep, Window::BEFORE_WELCOME);
        std::mem::replace(&mut self.flow.outbox, fresh).into_messages_after(delivered).collect()
    }

    /// The number of the last message that was written to the current connection.
    #[must_use]
    pub fn wrote(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.lane.wrote)
    }

    /// The peer turned out not to speak `mainstay.v1`: takes back what was never written, and says
    /// what became of the rest (messages may have left on an attempt that got no WELCOME).
    pub fn take_unsent(&mut self) -> (Fate, Vec<Message>) {
        let (written, last) = (self.flow.outbox.written(), self.flow.outbox.last());
        let delivered = self.flow.outbox.acknowledged();
        let fate = Fate {
            delivered,
            unknown: written,
            last,
            resent: written < last,
            lost: None,
            cause: LossCause::Unknown,
        };
        let fresh = Flow::new(&self.config.flow, Window::BEFORE_WELCOME);
        let unsent = std::mem::replace(&mut self.flow, fresh).outbox.into_messages_after(written);
        (fate, unsent.collect())
    }

    /// The connection that may be written now.
    #[must_use]
    pub fn writer(&self) -> Option<ConnectionId> {
        self.pending().or_else(|| self.current())
    }

    /// It is driven no more: what became of what was sent. What was received is still handed over.
    pub fn forsake(&mut self) -> Fate {
        let fate = self.fate(None, false);
        self.delivered_at_the_end = fate.delivered;
        fate
    }

    fn queue_end_if_flushed(&mut self) {
        // While an attempt is pending the current connection is not written, and WELCOME would drop its END.
        let waits = self.pending.is_some() && !turned_back(Rule::EndWaitsForTheAttempt);
        let writable = self.current.is_some() && !waits;
        if !matches!(self.life, Life::Closing { .. }) || !writable || !self.flow.is_flushed() {
            return;
        }
        if let Life::Closing { code, reason } = std::mem::replace(&mut self.life, Life::Open) {
            self.end_now(code, reason);
        }
    }

    fn end_now(&mut self, code: u64, reason: String) {
        self.flow.inbox.discard_queue();
        let (acknowledged, delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        if let Some(current) = &mut self.current {
            let end = Control::End { code, reason: reason.clone(), acknowledged, delivered };
            current.queue.push_back(Transmit::control(&end));
        }
        self.life = Life::EndSent { code, reason };
    }

    fn answer_end_if_delivered(&mut self) {
        if !matches!(self.life, Life::EndReceived { .. }) || !self.flow.inbox.is_empty() {
            return;
        }
        let Life::EndReceived { code, reason, acknowledged, delivered } =
            std::mem::replace(&mut self.life, Life::Closed)
        else {
            return;
        };
        let (ours, our_delivered) = (self.flow.inbox.acknowledged(), self.flow.inbox.delivered());
        if let Some(current) = &mut self.current {
            let end =
                Control::End { code, reason: String::new(), acknowledged: ours, delivered: our_delivered };
            current.queue.push_back(Transmit::control(&end));
        }
        self.close_current();
        let fate = self.fate(Some(self.final_account(acknowledged, delivered)), false);
        self.end(EndedBy::Server, code, reason, fate);
    }

    fn close_current(&mut self) {
        if let Some(current) = &mut self.current {
            current.queue.push_back(Transmit::Close { code: CloseCode::NORMAL, reason: String::new() });
        }
    }

    fn final_account(&self, acknowledged: u64, delivered: u64) -> Account {
        let first_lost = self.flow.inbox.received() + 1;
        Account { acknowledged, delivered, first_lost, count: 0, cause: LossCause::Ended }
    }

    // ---- losing a session -----------------------------------------------------------------------

    /// The session is lost: one gap event, and a new session takes over what was certainly not delivered.
    fn start_over(&mut self, account: Option<Account>) {
        let fate = self.fate(account, self.config.resend_undelivered);
        let fresh = Flow::new(&self.config.flow, Window::BEFORE_WELCOME);
        let lost = std::mem::replace(&mut self.flow, fresh);
        // Without anything to send again it takes over what the server takes.
        self.flow.outbox.adopt_after(lost.outbox, if fate.resent { fate.unknown } else { u64::MAX });
        self.token = None;
        self.replaced = 0;
        // The server may know the key, from a HELLO that asked to resume: it would tell of a loss that was told.
        self.renew_key();
        self.events.push_back(ClientEvent::Gap(fate));
    }

    fn fate(&self, account: Option<Account>, resend: bool) -> Fate {
        let (last, known) = (self.flow.outbox.last(), self.flow.outbox.acknowledged());
        // What was never written is nowhere but here, whatever the account says or leaves unsaid.
        let written = self.flow.outbox.written();
        let (acknowledged, handled) =
            account.map_or((0, written), |a| (a.acknowledged.min(written), a.delivered.min(written)));
        let delivered = acknowledged.max(known);
        let unknown = handled.max(delivered);
        Fate {
            delivered,
            unknown,
            last,
            resent: resend && unknown < last,
            lost: account
                .filter(|a| a.count > 0)
                .map(|a| LostMessages { first: a.first_lost, count: a.count }),
            cause: account.map_or(LossCause::Unknown, |a| a.cause),
        }
    }

    fn end(&mut self, by: EndedBy, code: u64, reason: String, fate: Fate) {
        self.life = Life::Closed;
        self.flow.inbox.discard_queue();
        self.pending = None;
        self.delivered_at_the_end = fate.delivered;
        self.events.push_back(ClientEvent::Ended { code, reason, fate, by });
    }

    fn renew_key(&mut self) {
        self.key = self.secrets.client_key();
        self.key_sent = None;
    }

    fn drop_old_connection(&mut self) {
        // One that was replaced while it lived was not barren; one that was lost before was counted then.
        if self.current.take().is_some() {
            self.barren = 0;
        }
        self.flow.forget_owed();
    }

    // ---- output ---------------------------------------------------------------------------------

    /// The next thing to do to some connection.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(ConnectionId, Transmit)> {
        if let Some(pending) = &mut self.pending {
            let connection = pending.connection;
            if let Some(hello) = pending.hello.take() {
                return Some((connection, Transmit::control(&Control::Hello(hello))));
            }
            if pending.opening.is_some() || !turned_back(Rule::OldConnectionIsOnlyRead) {
                // Nothing is written to the current connection from here on.
                let lane = pending.opening.as_mut().filter(|_| !pending.waits)?;
                let transmit = self.flow.write_message(lane)?;
                return Some((connection, transmit));
            }
        }
        let current = self.current.as_mut()?;
        let connection = current.connection;
        if let Some(transmit) = current.queue.pop_front() {
            return Some((connection, transmit));
        }
        if matches!(self.life, Life::EndSent { .. } | Life::Closed) {
            return None;
        }
        if let Some(nonce) = current.ping.take() {
            return Some((connection, self.flow.write_ping(nonce, &current.lane)));
        }
        let owed = current.volatiles.transmit().or_else(|| self.flow.write_owed(now, &current.lane));
        owed.or_else(|| self.flow.write_message(&mut current.lane)).map(|transmit| (connection, transmit))
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Does what is due. Call it when [`poll_timeout`](Self::poll_timeout) passed; earlier does nothing. A driver
    /// that does not is asked again and again for as long as its socket is full.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.flow.inbox.handle_timeout(now);
    }

    /// When an acknowledgement is due even if nothing more comes.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        // While an attempt is pending nothing is written, so nothing is due.
        let writable = self.current.is_some() && self.pending.is_none();
        writable.then(|| self.flow.inbox.acknowledge_by()).flatten()
    }

    fn trim(&mut self) {
        let current = self.current.as_ref().map_or(u64::MAX, |c| c.lane.wrote);
        let pending = self.pending.as_ref().and_then(|p| p.opening).map_or(u64::MAX, |lane| lane.wrote);
        self.flow.outbox.trim(current.min(pending));
    }

    // ---- facts ----------------------------------------------------------------------------------

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
