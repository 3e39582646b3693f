//! The client's life: dialling, attached, probing, waiting, ended.
//!
//! One machine for both kinds of peer. Towards `mainstay.v1` it drives a
//! [`ClientSession`]; towards a plain peer it reconnects, beats, confirms by Ping and reports every
//! re-attach as fresh. It decides when to dial and how long to wait; a driver opens connections when
//! told to, moves bytes, and reports what happened.
//!
//! At most two connections live at a time: the attached one, and one being opened, which replaces it
//! (after GOAWAY, or when a probe stays unanswered) or follows it.
//!
//! Source: `docs/PROTOCOL.md` "Attaching", "Heartbeat", "Closing"; `docs/DEFAULTS.md`.

mod pings;

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::pings::Signs;
use crate::backoff::{Advice, Backoff, BackoffConfig, Cause};
use crate::budget::{Held, held};
use crate::confirm::{self, ConfirmConfig, Confirmer};
use crate::heartbeat::{Action, Evidence, Heartbeat, HeartbeatConfig, Watch};
use crate::reach::{ConnectFailure, FailureKind};
use crate::session::message::{Delay, GapCause, SessionId};
use crate::session::{
    CLOSE_TIMEOUT, ClientConfig, ClientEvent, ClientSession, ConnectionId, Delivery, Fate, Frame, Message,
    SessionError, Transmit, Volatiles,
};
use crate::ws::CloseCode;
use crate::ws::close::Action as CloseAction;

/// What a connection turned out to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// `mainstay.v1`.
    Session,
    /// WebSocket without more.
    Plain,
}

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A connection is being opened.
    Connecting,
    /// Messages flow.
    Attached {
        /// What the peer speaks.
        mode: Mode,
        /// Counts the attaches, from 1.
        epoch: u64,
    },
    /// No connection; the next attempt is made then.
    Waiting {
        /// When.
        until: Instant,
    },
    /// Ending in order: what was accepted is still delivered, nothing more is accepted.
    Closing,
    /// Nothing follows.
    Ended,
}

/// How a client behaves.
#[derive(Debug, Clone)]
pub struct ConnectConfig {
    /// The peer is known to speak plain WebSocket: no session is begun. Default: false.
    pub link: bool,
    /// Towards peers that speak `mainstay.v1`.
    pub session: ClientConfig,
    /// Towards plain peers.
    pub confirm: ConfirmConfig,
    /// Towards plain peers, which we must probe ourselves; a session's server announces its own.
    pub heartbeat: HeartbeatConfig,
    /// When to try again.
    pub backoff: BackoffConfig,
    /// Give up after the first connection is lost or refused. Default: false.
    pub once: bool,
    /// What ends a client of a plain peer, besides what ends every client. Default: nothing.
    pub ends_with: EndsWith,
    /// Towards plain peers: every connection but the first is held back, see [`Client::send_ahead`]. Default: false.
    pub holds_replaced: bool,
    /// A message by which a plain peer announces that it restarts: whatever the code of the Close behind it, that counts
    /// as [`CloseCode::RESTART`]. Default: there is none.
    pub announces_restart: Option<fn(&Message) -> bool>,
    /// From dialling to WELCOME, or to the answer of a plain peer; then the attempt is given up. Default: 10 s.
    pub opening_timeout: Duration,
}

impl Default for ConnectConfig {
    fn default() -> Self {
        Self {
            link: false,
            session: ClientConfig::default(),
            confirm: ConfirmConfig::default(),
            heartbeat: HeartbeatConfig::default(),
            backoff: BackoffConfig::default(),
            once: false,
            ends_with: EndsWith::default(),
            holds_replaced: false,
            announces_restart: None,
            opening_timeout: Duration::from_secs(10),
        }
    }
}

/// What ends a client of a plain peer for good: what its application cannot go on after. Before there was a connection,
/// each of these dials again and again. (A refused opening handshake, and a code that says stop, end every client.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EndsWith {
    /// Nothing: a connection that ended is replaced.
    #[default]
    Nothing,
    /// The peer's Close, unless its code is one of a restart ([`CloseCode::is_restart`]); the fifth such Close in a
    /// row on a connection that brought no message and no confirmation; and a message of the peer that is too big.
    FinalClose,
    /// The peer's Close, whatever its code, and a message of the peer that is too big.
    Close,
    /// The end of the connection, however it comes about.
    Connection,
}

/// When a local port is looked for again: one comes free when a connection ends, and the peer is not asked meanwhile.
const PORT_AGAIN: Duration = Duration::from_millis(100);
/// A replacement is opened when a probe is unanswered for this long.
const REPLACE_AFTER: Duration = Duration::from_secs(1);
/// With [`EndsWith::FinalClose`]: connections that the peer may close in a row without having brought anything.
const BARREN_LIMIT: u32 = 5;
/// Marks the payload of a heartbeat's Ping, so that it is never read as a position.
const HEARTBEAT_PING: u64 = 1 << 63;

/// Why a connection ended, as the driver saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// It could not be opened, but may be another time.
    Unreachable(String),
    /// The server was not even reached, but may be another time.
    NotConnected(ConnectFailure),
    /// It could not be opened, and the server says when it may be (`Retry-After`).
    Unavailable {
        /// Not before.
        retry_after: Duration,
        /// In words.
        reason: String,
    },
    /// It could not be opened, and never will be: another attempt would get the same refusal.
    Refused {
        /// The status of the HTTP response, if it was one.
        status: Option<u16>,
        /// In words.
        reason: String,
    },
    /// The transport ended without a Close frame.
    Broken(String),
    /// The peer sent a message above [`Limits::max_message`](crate::ws::Limits::max_message), and was closed with 1009.
    /// A plain peer would send it again: with any [`EndsWith`] but `Nothing` the client ends, with 1009.
    TooBig {
        /// The limit, in bytes.
        limit: usize,
    },
    /// It was still there, and the heartbeat found nobody behind it.
    Dead(Evidence),
    /// The peer closed it.
    Closed {
        /// The code; `None` when the Close frame had none.
        code: Option<CloseCode>,
        /// The reason.
        reason: String,
    },
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(reason)
            | Self::Unavailable { reason, .. }
            | Self::Refused { reason, .. }
            | Self::Broken(reason) => f.write_str(reason),
            Self::TooBig { limit } => write!(f, "a message of more than {limit} bytes came"),
            Self::NotConnected(failure) => write!(f, "{failure}"),
            Self::Dead(evidence) => write!(f, "{evidence}"),
            Self::Closed { code, reason } => {
                match code {
                    Some(code) => write!(f, "closed with code {code}")?,
                    None => f.write_str("closed without a code")?,
                }
                if reason.is_empty() { Ok(()) } else { write!(f, ": {reason}") }
            }
        }
    }
}

/// What to do to connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open a connection and report with `handle_opened` or `handle_lost`.
    Dial(ConnectionId),
    /// Write to one, close it or drop it. After [`Transmit::Close`] and [`Transmit::Abort`] nothing
    /// about it need be reported any more.
    Transmit(ConnectionId, Transmit),
}

/// What became of messages to a plain peer, or of some to a session's server. A number that was reported before keeps its
/// first fate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// From the first to the second number: they may or may not have arrived, and are not sent again.
    Unknown(u64, u64),
    /// From the first to the second number: they were never written and never will be. Either the queue
    /// was full and they made room for newer ones, or this is the end. In a session: they are larger than the server
    /// takes, which was not known when they were accepted.
    NotDelivered(u64, u64),
    /// The connection ended three times with this message first in line; it is given up and comes back.
    Undeliverable(u64, Message),
}

/// What the application learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Messages flow.
    Attached {
        /// What the peer speaks.
        mode: Mode,
        /// The session continues: nothing was lost.
        resumed: bool,
        /// Counts the attaches, from 1.
        epoch: u64,
    },
    /// The connection was lost; the next attempt is under way or waits.
    Detached {
        /// Why.
        why: Lost,
        /// How long until the next attempt.
        retry_in: Duration,
    },
    /// An attempt failed.
    AttemptFailed {
        /// Why.
        why: Lost,
        /// How long until the next attempt.
        retry_in: Duration,
    },
    /// A session was lost: what became of what was sent, and what will never come.
    Gap(Fate),
    /// A plain peer was re-attached: what it sent meanwhile is lost, how much is not known.
    FreshPeer,
    /// What became of messages to a plain peer.
    Report(Report),
    /// A plain peer lives and answers no Ping. Until it does what is written to it is unknown, and not sent again.
    PingsUnanswered,
    /// It does.
    PingsAnswered,
    /// A message outside the stream.
    Volatile(Message),
    /// The server's policy dropped messages of its own before they were ever written. The messages that were
    /// handed over before and after this event stand before and after the gap.
    Dropped {
        /// The number of the first.
        first: u64,
        /// How many.
        count: u64,
        /// Why.
        cause: GapCause,
    },
    /// The connection behind the server was replaced: a gateway's to its backend. What the backend sent meanwhile may be
    /// missing, and how much is not known; the session itself lost nothing. The messages that were handed over before
    /// and after this event stand before and after the replacement.
    Replaced {
        /// How often so far in this session.
        count: u64,
    },
    /// The server judged the credentials that [`Client::authenticate`] presented.
    Authenticated {
        /// Whether it accepted them; otherwise those before them go on.
        accepted: bool,
    },
    /// Nothing follows.
    Ended {
        /// The code of END, of the close, or of the refusal; below 1000: the status of the HTTP response
        /// that refused the opening handshake.
        code: Option<u64>,
        /// In words.
        reason: String,
        /// What became of what was sent, where a session was lost with it. Towards a plain peer
        /// [`Event::Report`]s said it before.
        fate: Option<Fate>,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    config: ConnectConfig,
    rng: StdRng,
    backoff: Backoff,
    session: ClientSession,
    plain: Option<Plain>,
    /// The subprotocol of a plain peer's first connection; `None`: there was none yet.
    agreed: Option<Option<String>>,
    attached: Option<Attached>,
    dial: Dial,
    next_connection: u64,
    epoch: u64,
    /// The public name of the session, as the newest WELCOME said it.
    id: Option<SessionId>,
    /// Where the server wants the next connection. Forgotten when an attempt fails there.
    endpoint: Option<String>,
    closing: Option<Closing>,
    ended: bool,
    /// After the end: the connection that still has something to write, and until when it may.
    lingering: Option<(ConnectionId, Instant)>,
    commands: VecDeque<Command>,
    events: VecDeque<Event>,
}

/// What is known of a peer without sessions.
#[derive(Debug)]
struct Plain {
    confirmer: Confirmer<Message>,
    /// Messages, and marks where the connection was replaced.
    inbox: VecDeque<Delivery>,
    inbox_bytes: u64,
    /// The current connection brought a message or a confirmation.
    progressed: bool,
    /// Connections in a row that the peer closed without.
    barren: u32,
    /// While the current connection is held back, and until what goes ahead of the stream is written.
    ahead: Option<Box<Ahead>>,
    /// The peer announced that it restarts.
    restarts: bool,
    /// Written once, and neither confirmed nor written again.
    volatiles: Volatiles,
}

/// What is written to a connection ahead of the stream.
#[derive(Debug, Default)]
struct Ahead {
    queue: VecDeque<Message>,
    /// The stream follows.
    released: bool,
}

impl Plain {
    fn new(config: ConfirmConfig) -> Self {
        Self {
            confirmer: Confirmer::new(config),
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            progressed: false,
            barren: 0,
            ahead: None,
            restarts: false,
            volatiles: Volatiles::default(),
        }
    }
}

#[derive(Debug)]
struct Attached {
    connection: ConnectionId,
    pulse: Pulse,
    /// Set by a probe; a replacement is opened then.
    replace_at: Option<Instant>,
    signs: Signs,
}

/// Who drives the heartbeat: the server of a session, or we.
#[derive(Debug)]
enum Pulse {
    Watched(Watch),
    Driven(Heartbeat, Option<u64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    /// Nothing to open.
    Rest,
    Waiting {
        until: Instant,
    },
    Connecting {
        connection: ConnectionId,
        until: Instant,
    },
    /// HELLO is out.
    Attaching {
        connection: ConnectionId,
        until: Instant,
    },
}

#[derive(Debug)]
struct Closing {
    code: CloseCode,
    reason: String,
    until: Instant,
}

impl Client {
    /// A client that dials at once. `seed`: 32 bytes of the operating system's randomness.
    #[must_use]
    pub fn new(now: Instant, config: ConnectConfig, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let session = ClientSession::new(config.session.clone(), rng.random());
        Self {
            backoff: Backoff::new(config.backoff),
            plain: config.link.then(|| Plain::new(config.confirm)),
            config,
            rng,
            session,
            agreed: None,
            attached: None,
            dial: Dial::Waiting { until: now },
            next_connection: 1,
            epoch: 0,
            id: None,
            endpoint: None,
            closing: None,
            ended: false,
            lingering: None,
            commands: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    // ---- what happened to connections -----------------------------------------------------------

    /// Whether a dialled connection on which the peer agreed on `subprotocol` can go on with what was agreed on before.
    /// Ask before [`handle_opened`](Self::handle_opened), and report an error with [`handle_lost`](Self::handle_lost).
    ///
    /// # Errors
    /// A plain peer agrees on another one than on the first connection, and the application is in the middle of that.
    ///
    /// Source: RFC 6455 section 4.2.2: the subprotocol that was agreed on is the connection's.
    pub fn check_subprotocol(&mut self, mode: Mode, subprotocol: Option<&str>) -> Result<(), Lost> {
        if mode != Mode::Plain {
            return Ok(());
        }
        let agreed = self.agreed.get_or_insert_with(|| subprotocol.map(str::to_owned));
        if agreed.as_deref() == subprotocol {
            return Ok(());
        }
        let name = |name: Option<&str>| name.map_or_else(|| "none".to_owned(), |name| format!("`{name}`"));
        let reason = format!(
            "the peer agrees on another subprotocol than before: {} instead of {}",
            name(subprotocol),
            name(agreed.as_deref())
        );
        Err(Lost::Refused { status: None, reason })
    }

    /// A dialled connection finished its opening handshake.
    pub fn handle_opened(&mut self, now: Instant, connection: ConnectionId, mode: Mode) {
        let Dial::Connecting { connection: dialled, until } = self.dial else {
            return self.abort(connection);
        };
        if dialled != connection {
            return self.abort(connection);
        }
        match (mode, &self.plain) {
            (Mode::Session, None) => {
                self.dial = Dial::Attaching { connection, until };
                self.session.handle_opened(now, connection);
                if self.session.pending() != Some(connection) {
                    // END has passed: nothing is attached any more.
                    self.abort(connection);
                    self.dial = Dial::Rest;
                }
            }
            (Mode::Plain, _) if self.epoch == 0 || self.plain.is_some() => self.attach_plain(now, connection),
            // A server that spoke sessions before does not any more, or the other way round: what
            // was promised under the one cannot be kept under the other.
            _ => {
                self.abort(connection);
                let why = Lost::Unreachable("the server changed the protocol it speaks".into());
                self.dial_failed(now, why, None);
            }
        }
        self.collect(now);
    }

    /// A connection is gone, or could not be opened.
    pub fn handle_lost(&mut self, now: Instant, connection: ConnectionId, why: Lost) {
        if let Lost::Closed { code: Some(CloseCode::SUPERSEDED), reason } = &why {
            self.session.handle_superseded(connection, reason);
        } else {
            self.session.handle_lost(connection);
        }
        self.collect(now);
        if self.is_dialled(connection) {
            self.dial_failed(now, why, None);
        } else if self.attached.as_ref().is_some_and(|a| a.connection == connection) {
            self.lose_attached(now, why);
        }
        self.collect(now);
    }

    /// Any bytes arrived.
    pub fn handle_bytes(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            attached.replace_at = None;
            attached.signs.handle_bytes(now);
            match &mut attached.pulse {
                Pulse::Watched(watch) => watch.handle_bytes(now),
                Pulse::Driven(beat, _) => beat.handle_bytes(now),
            }
        }
    }

    /// Everything written so far has left the process.
    pub fn handle_flushed(&mut self, now: Instant, connection: ConnectionId) {
        let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) else { return };
        // A probe that was not even polled has not left.
        match &mut attached.pulse {
            Pulse::Watched(watch) if !self.session.owes_probe() => watch.handle_flushed(now),
            Pulse::Driven(beat, None) => beat.handle_flushed(now),
            _ => {}
        }
        if let Some(plain) = &mut self.plain {
            let outcome = plain.confirmer.handle_flushed(now);
            self.report(outcome);
            self.close_plain_if_done(now);
        }
    }

    /// The socket took some of what was to be written, but not all.
    pub fn handle_write_progress(&mut self, now: Instant, connection: ConnectionId) {
        if let Some(Attached { pulse: Pulse::Driven(beat, _), .. }) =
            self.attached.as_mut().filter(|a| a.connection == connection)
        {
            beat.handle_write_progress(now);
        }
    }

    /// A message arrived.
    ///
    /// # Errors
    /// The peer broke `mainstay.v1`: fail that connection and report it lost.
    pub fn handle_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Message,
    ) -> Result<(), SessionError> {
        self.handle_bytes(now, connection);
        if let Some(plain) = &mut self.plain {
            if self.attached.as_ref().is_some_and(|a| a.connection == connection) {
                plain.restarts |= self.config.announces_restart.is_some_and(|announces| announces(&message));
                plain.inbox_bytes += message.len() as u64;
                plain.inbox.push_back(Delivery::Message(message));
                plain.progressed = true;
                plain.confirmer.handle_peer_message();
            }
            return Ok(());
        }
        let frame = Frame::decode(message)?;
        if let (Frame::Control(crate::session::Control::Pong(beat)), Some(attached)) =
            (&frame, &mut self.attached)
            && attached.connection == connection
            && let Pulse::Watched(watch) = &mut attached.pulse
        {
            watch.handle_pong(now, beat.nonce);
        }
        let outcome = self.session.handle_frame(now, connection, frame);
        self.collect(now);
        outcome
    }

    /// An RFC 6455 Pong arrived.
    pub fn handle_pong(&mut self, now: Instant, connection: ConnectionId, payload: &[u8]) {
        self.handle_bytes(now, connection);
        let Ok(nonce) = payload.try_into().map(u64::from_be_bytes) else { return };
        let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) else { return };
        let (Pulse::Driven(beat, _), Some(plain)) = (&mut attached.pulse, &mut self.plain) else { return };
        let missed = plain.confirmer.answers_pings() == Some(false);
        let outcome = if nonce & HEARTBEAT_PING != 0 {
            beat.handle_pong(now, nonce & !HEARTBEAT_PING);
            plain.confirmer.handle_other_pong();
            None
        } else {
            plain.confirmer.handle_pong(payload)
        };
        plain.progressed |= outcome.is_some();
        if missed && plain.confirmer.answers_pings() == Some(true) {
            self.events.push_back(Event::PingsAnswered);
        }
        self.report(outcome);
        self.close_plain_if_done(now);
    }

    /// The peer began the closing handshake: Pongs prove nothing any more.
    pub fn handle_peer_close(&mut self, connection: ConnectionId, code: Option<CloseCode>) {
        let is_attached = self.attached.as_ref().is_some_and(|a| a.connection == connection);
        let Some(plain) = self.plain.as_mut().filter(|_| is_attached) else { return };
        let goes_on = match self.config.ends_with {
            EndsWith::Nothing => true,
            EndsWith::FinalClose => plain.restarts || CloseCode::is_restart(code),
            EndsWith::Close | EndsWith::Connection => false,
        };
        let outcome = plain.confirmer.handle_peer_close(goes_on);
        self.report(outcome);
    }

    // ---- what the application does --------------------------------------------------------------

    /// Accepts a message and returns its number.
    ///
    /// # Errors
    /// Gives the message back when what may be kept is kept already ([`waits_when_full`] says whether to
    /// wait for room), or nothing more is sent.
    ///
    /// [`waits_when_full`]: Self::waits_when_full
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        match &mut self.plain {
            _ if self.ended || self.closing.is_some() => Err(message),
            Some(plain) => {
                let length = message.len();
                let (number, dropped) =
                    plain.confirmer.push(message, length).map_err(|confirm::Full(message)| message)?;
                self.report(dropped);
                Ok(number)
            }
            None => self.session.send(message),
        }
    }

    /// Writes a message that is not numbered, kept or sent again. Dropped while nobody is attached.
    pub fn send_volatile(&mut self, message: Message) {
        match &mut self.plain {
            _ if self.ended || self.closing.is_some() => {}
            Some(plain) if self.attached.is_some() => {
                plain.volatiles.push(message, self.config.session.volatile_queue);
            }
            Some(_) => {}
            None => self.session.send_volatile(message),
        }
    }

    /// Writes a message ahead of the stream: not numbered, not kept, lost with the connection. With
    /// [`ConnectConfig::holds_replaced`] a connection that replaced another carries nothing else until it is
    /// [released](Self::release), so that the peer can be told first what it knew on the connection before.
    /// `replacement`: the count of the [`Delivery::Replaced`] that announced the connection; one that is not held back
    /// any more, or was replaced itself, is written nothing.
    pub fn send_ahead(&mut self, replacement: u64, message: Message) {
        if let Some(ahead) = self.held_back(replacement) {
            ahead.queue.push_back(message);
        }
    }

    /// The stream flows on the connection that was held back, behind what was sent ahead.
    pub fn release(&mut self, replacement: u64) {
        if let Some(ahead) = self.held_back(replacement) {
            ahead.released = true;
        }
    }

    /// The next message or gap, in order.
    pub fn hand_over(&mut self, now: Instant) -> Option<Delivery> {
        let delivery = match &mut self.plain {
            Some(plain) => plain.inbox.pop_front().inspect(|delivery| {
                if let Delivery::Message(message) = delivery {
                    plain.inbox_bytes -= message.len() as u64;
                }
            }),
            None => self.session.hand_over(now),
        };
        match delivery {
            Some(Delivery::Gap { first, count, cause }) => {
                self.events.push_back(Event::Dropped { first, count, cause });
            }
            // A plain peer's is [`Event::FreshPeer`], which came at once.
            Some(Delivery::Replaced { count }) if self.plain.is_none() => {
                self.events.push_back(Event::Replaced { count })
            }
            _ => {}
        }
        self.collect(now);
        delivery
    }

    /// In manual mode: everything that was handed over is handled. Nothing to a plain peer.
    pub fn confirm(&mut self, now: Instant) {
        self.session.confirm(now, u64::MAX);
    }

    /// Presents new credentials: at once where a connection is attached, else in the next HELLO. See
    /// [`Event::Authenticated`]. Nothing to a plain peer.
    pub fn authenticate(&mut self, now: Instant, credentials: Bytes) {
        self.session.authenticate(credentials);
        self.collect(now);
    }

    /// What every HELLO from here on presents, except while others wait for their verdict. Nothing to a plain peer.
    pub fn set_credentials(&mut self, credentials: Bytes) {
        self.session.set_credentials(credentials);
    }

    /// The application answered the oldest unanswered message (plain peers with `confirm = reply`).
    pub fn handle_reply(&mut self, now: Instant) {
        if let Some(plain) = &mut self.plain {
            let outcome = plain.confirmer.handle_reply(None);
            self.report(outcome);
            self.close_plain_if_done(now);
        }
    }

    /// Something suggests that the network changed: dial now if waiting, probe if attached.
    pub fn retry_now(&mut self, now: Instant) {
        if let Dial::Waiting { until } = &mut self.dial {
            *until = now;
        }
        if let Some(attached) = &mut self.attached {
            attached.replace_at.get_or_insert(now + REPLACE_AFTER);
            match &mut attached.pulse {
                Pulse::Watched(watch) => watch.probe(),
                Pulse::Driven(beat, _) => beat.probe(now),
            }
        }
    }

    /// Ends in order: what was accepted is delivered first. What is not within 10 s is unknown.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        if self.ended || self.closing.is_some() {
            return;
        }
        self.closing = Some(Closing { code, reason: reason.to_owned(), until: now + CLOSE_TIMEOUT });
        self.session.close(code, reason);
        if self.epoch == 0 && self.plain.is_none() && self.session.last_sent() == 0 {
            self.give_up(None, reason.to_owned());
        }
        self.collect(now);
        self.close_plain_if_done(now);
    }

    /// Ends at once, where nobody drives this client any more or its connection is of no use: what was written and not
    /// confirmed is reported as unknown, the rest as not delivered.
    pub fn abandon(&mut self, reason: &str) {
        self.give_up(None, reason.to_owned());
    }

    // ---- time and output ------------------------------------------------------------------------

    /// Does what is due. After the end: drops a connection that did not take within 10 s what was still to be written.
    /// `true`: this process was paused; read what is readable and call it again.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.ended {
            if let Some((connection, _)) = self.lingering.take_if(|(_, until)| *until <= now) {
                self.abort(connection);
            }
            return false;
        }
        if self.closing.as_ref().is_some_and(|closing| closing.until <= now) {
            if self.plain.is_none() {
                let attached = self.attached.as_ref().map(|attached| attached.connection);
                self.session.abandon();
                self.collect(now);
                attached.into_iter().for_each(|connection| self.abort(connection));
            }
            if let Some(closing) = self.closing.take() {
                self.give_up(Some(closing.code.into()), closing.reason);
            }
            return false;
        }
        match self.dial {
            Dial::Waiting { until } if until <= now => self.dial(now),
            Dial::Connecting { connection, until } | Dial::Attaching { connection, until }
                if until <= now =>
            {
                self.session.handle_lost(connection);
                self.abort(connection);
                let why = format!("no answer within {:?}", self.config.opening_timeout);
                self.dial_failed(now, Lost::Unreachable(why), None);
            }
            _ => {}
        }
        self.session.handle_timeout(now);
        self.judge_pings(now);
        let drain = self.beat(now);
        self.collect(now);
        drain
    }

    fn beat(&mut self, now: Instant) -> bool {
        let Some(attached) = &mut self.attached else { return false };
        if attached.replace_at.is_some_and(|at| at <= now) {
            attached.replace_at = None;
            if self.dial == Dial::Rest {
                self.dial = Dial::Waiting { until: now };
            }
        }
        match attached.signs.doubt_until() {
            Some(until) if until > now => return false,
            Some(_) => {
                self.end_doubt(now);
                return false;
            }
            None => {}
        }
        loop {
            let action = match &mut attached.pulse {
                Pulse::Watched(watch) => watch.handle_timeout(now),
                Pulse::Driven(beat, _) => beat.handle_timeout(now, &self.config.heartbeat),
            };
            match (action, &mut attached.pulse) {
                (None, _) => return false,
                (Some(Action::Drain), _) => return true,
                (Some(Action::Probe { nonce }), Pulse::Driven(_, ping)) => {
                    *ping = Some(nonce | HEARTBEAT_PING);
                }
                (Some(Action::Probe { nonce }), Pulse::Watched(_)) => {
                    attached.replace_at = Some(now + REPLACE_AFTER);
                    self.session.probe(nonce);
                }
                // No verdict: a plain peer that answers no Ping is kept for what it sends.
                (Some(Action::NotListening), _) => {
                    self.expect_no_pongs(now);
                    return false;
                }
                (Some(Action::Dead(evidence)), _) => {
                    let connection = attached.connection;
                    if self.is_spared(now, evidence) {
                        return false;
                    }
                    self.abort(connection);
                    self.handle_lost(now, connection, Lost::Dead(evidence));
                    return false;
                }
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.ended {
            return self.lingering.map(|(_, until)| until);
        }
        let dial = match self.dial {
            Dial::Rest => None,
            Dial::Waiting { until } | Dial::Connecting { until, .. } | Dial::Attaching { until, .. } => {
                Some(until)
            }
        };
        let pulse =
            self.attached.as_ref().map(|attached| match (attached.signs.doubt_until(), &attached.pulse) {
                (Some(until), _) => until,
                (None, Pulse::Watched(watch)) => watch.poll_timeout(),
                (None, Pulse::Driven(beat, _)) => beat.poll_timeout(),
            });
        let pings = self.pings_judged_at();
        let replace = self.attached.as_ref().and_then(|attached| attached.replace_at);
        let owed = match &self.plain {
            Some(plain) => plain.confirmer.poll_timeout(),
            None => self.session.poll_timeout(),
        };
        let closing = self.closing.as_ref().map(|closing| closing.until);
        [dial, pulse, pings, replace, owed, closing].into_iter().flatten().min()
    }

    /// The next connection to open, close or drop, and what an ended session still has to say.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The next thing to write to `connection`; `None` if it is not the one to be written.
    pub fn poll_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        let Some(plain) = &mut self.plain else {
            let writes = self.session.writer() == Some(connection);
            return writes.then(|| self.session.poll_transmit(now)).flatten().map(|(_, transmit)| transmit);
        };
        let attached = self.attached.as_mut().filter(|attached| attached.connection == connection)?;
        if let Pulse::Driven(_, ping) = &mut attached.pulse
            && let Some(ping) = ping.take()
        {
            return Some(Transmit::Ping(ping));
        }
        if let Some(ahead) = &mut plain.ahead {
            match ahead.queue.pop_front() {
                Some(message) => return Some(Transmit::Message(message)),
                None if ahead.released => plain.ahead = None,
                None => return None,
            }
        }
        if let Some(message) = plain.volatiles.pop() {
            return Some(Transmit::Message(message));
        }
        Some(match plain.confirmer.poll_transmit(now)? {
            confirm::Transmit::Message(_, message) => Transmit::Message(message.clone()),
            confirm::Transmit::Ping(position) => Transmit::Ping(u64::from_be_bytes(position)),
        })
    }

    /// The connection that may be written now.
    #[must_use]
    pub fn writer(&self) -> Option<ConnectionId> {
        match &self.plain {
            Some(_) => self.attached.as_ref().map(|attached| attached.connection),
            None => self.session.writer(),
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How a message of the application is written: `mainstay.v1` puts a byte in front of binary ones.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.plain.is_some() { Mode::Plain } else { Mode::Session }
    }

    /// What it is doing.
    #[must_use]
    pub fn state(&self) -> State {
        match self.dial {
            _ if self.ended => State::Ended,
            _ if self.closing.is_some() => State::Closing,
            _ if self.attached.is_some() => State::Attached { mode: self.mode(), epoch: self.epoch },
            // The first attempt is merely due.
            Dial::Waiting { until } if self.next_connection > 1 => State::Waiting { until },
            _ => State::Connecting,
        }
    }

    /// The public name of the session; `None` before the first attach and towards plain peers.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.id
    }

    /// Where the server wants the next connection, if it said so. Whether to follow is
    /// [`Follow`](crate::endpoint::Follow)'s to decide.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// Whether a sender that got its message back is to wait for room.
    #[must_use]
    pub fn waits_when_full(&self) -> bool {
        self.plain.as_ref().is_none_or(|plain| plain.confirmer.waits_when_full())
    }

    /// Whether a connection is attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Whether the application asked to end; nothing more is accepted.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.is_some() || self.ended
    }

    /// Whether more should be read now: the application is not too far behind. (A session's server is
    /// held back by its window.) What is left unread counts as bytes that arrived: report it with
    /// [`handle_bytes`](Self::handle_bytes).
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let bound = self.config.session.flow.accept;
        self.plain.as_ref().is_none_or(|plain| {
            (plain.inbox.len() as u64) < bound.messages && plain.inbox_bytes < bound.bytes
        })
    }

    /// Nothing follows.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Everything up to this number is delivered (sessions) or confirmed (plain peers).
    #[must_use]
    pub fn settled(&self) -> u64 {
        match &self.plain {
            Some(plain) => plain.confirmer.settled(),
            None => self.session.acknowledged(),
        }
    }

    /// The payload of the largest message that the peer takes, as far as it said.
    #[must_use]
    pub fn largest(&self) -> u64 {
        match &self.plain {
            Some(_) => u64::MAX,
            None => self.session.largest(),
        }
    }

    /// Payload bytes that came from a plain peer and wait for the application. A session's are bounded by its window.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.plain.as_ref().map_or(0, |plain| plain.inbox_bytes)
    }

    /// What is kept of and for the peer, with what each message costs beside its payload.
    #[must_use]
    pub fn held(&self) -> Held {
        let Some(plain) = &self.plain else { return self.session.held() };
        Held {
            unread: held(plain.inbox_bytes, plain.inbox.len()),
            kept: held(plain.confirmer.kept_bytes() + plain.volatiles.bytes(), plain.confirmer.kept()),
        }
    }

    /// Payload bytes that are kept for the peer until it acknowledges or confirms them.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        match &self.plain {
            Some(plain) => plain.confirmer.kept_bytes(),
            None => self.session.kept_bytes(),
        }
    }

    /// The smoothed round-trip time of this end's probes.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match &self.attached.as_ref()?.pulse {
            Pulse::Driven(beat, _) => beat.rtt(),
            Pulse::Watched(watch) => watch.rtt(),
        }
    }

    // ---- helpers --------------------------------------------------------------------------------

    fn dial(&mut self, now: Instant) {
        let connection = ConnectionId(self.next_connection);
        self.next_connection += 1;
        self.dial = Dial::Connecting { connection, until: now + self.config.opening_timeout };
        self.commands.push_back(Command::Dial(connection));
    }

    fn attach_plain(&mut self, now: Instant, connection: ConnectionId) {
        let first = self.epoch == 0;
        let config = self.config.confirm;
        let plain = self.plain.get_or_insert_with(|| {
            // What was sent before it was known what the peer speaks.
            let (fate, unsent) = self.session.take_unsent();
            if fate.unknown > 0 {
                self.events.push_back(Event::Gap(fate));
            }
            let mut plain = Plain::new(config);
            for message in unsent {
                let length = message.len();
                plain.confirmer.adopt(message, length);
            }
            plain
        });
        plain.volatiles = Volatiles::default();
        (plain.progressed, plain.restarts) = (false, false);
        plain.ahead = (self.config.holds_replaced && !first).then(Box::default);
        if !first {
            plain.inbox.push_back(Delivery::Replaced { count: self.epoch });
        }
        // A replacement: what the old connection was told and did not confirm is told again.
        let outcome = self.attached.is_some().then(|| plain.confirmer.handle_lost()).flatten();
        plain.confirmer.handle_attached();
        self.report(outcome);
        let beat = Heartbeat::new(now, &self.config.heartbeat, &mut self.rng);
        self.set_attached(now, connection, Pulse::Driven(beat, None));
        self.epoch += 1;
        self.events.push_back(Event::Attached { mode: Mode::Plain, resumed: false, epoch: self.epoch });
        if !first {
            self.events.push_back(Event::FreshPeer);
        }
    }

    /// What goes ahead on the connection that `replacement` announced, if that is the current one.
    fn held_back(&mut self, replacement: u64) -> Option<&mut Ahead> {
        let is_current = self.attached.is_some() && self.epoch == replacement + 1;
        let ahead = self.plain.as_mut().filter(|_| is_current)?.ahead.as_deref_mut();
        ahead.filter(|ahead| !ahead.released)
    }

    fn set_attached(&mut self, now: Instant, connection: ConnectionId, pulse: Pulse) {
        let interval = match &pulse {
            Pulse::Watched(watch) => watch.announced(),
            Pulse::Driven(..) => self.config.heartbeat.interval(),
        };
        if let Some(old) =
            self.attached.replace(Attached { connection, pulse, replace_at: None, signs: Signs::default() })
        {
            self.abort(old.connection);
            self.backoff.handle_lost(now);
        }
        self.dial = Dial::Rest;
        self.backoff.handle_connected(now, interval);
    }

    /// Takes what the session machine has to say.
    fn collect(&mut self, now: Instant) {
        while let Some(event) = self.session.poll_event() {
            match event {
                ClientEvent::Attached { id, epoch, resumed, heartbeat_interval, resume_at, .. } => {
                    (self.id, self.endpoint) = (Some(id), resume_at);
                    if let Some(connection) = self.session.current() {
                        let pulse = Pulse::Watched(Watch::new(now, heartbeat_interval));
                        self.set_attached(now, connection, pulse);
                        self.epoch = epoch;
                        self.events.push_back(Event::Attached { mode: Mode::Session, resumed, epoch });
                    }
                }
                ClientEvent::Gap(fate) => self.events.push_back(Event::Gap(fate)),
                ClientEvent::TooLarge { number } => {
                    self.events.push_back(Event::Report(Report::NotDelivered(number, number)));
                }
                ClientEvent::Refused { code, delay, .. } => {
                    if let Dial::Attaching { connection, .. } = self.dial {
                        self.abort(connection);
                        self.dial_failed(
                            now,
                            Lost::Unreachable(format!("refused with code {code}")),
                            Some(delay),
                        );
                    }
                }
                ClientEvent::GoAway { delay, close_in, endpoint, .. } => {
                    self.endpoint = endpoint.or(self.endpoint.take());
                    let leave = Some(advice(before(delay, close_in)));
                    let wait = self.backoff.next_delay(Cause::Shared, leave, &mut self.rng);
                    if self.dial == Dial::Rest {
                        self.dial = Dial::Waiting { until: now + wait };
                    }
                }
                ClientEvent::Volatile(message) => self.events.push_back(Event::Volatile(message)),
                ClientEvent::Authenticated { accepted } => {
                    self.events.push_back(Event::Authenticated { accepted });
                }
                ClientEvent::Ended { code, reason, fate } => {
                    // What is still owed (the answer to END, the Close) leaves before the end.
                    let mut closed = None;
                    while let Some((id, transmit)) = self.session.poll_transmit(now) {
                        closed = closed.or(matches!(transmit, Transmit::Close { .. }).then_some(id));
                        self.commands.push_back(Command::Transmit(id, transmit));
                        self.lingering = Some((id, now + CLOSE_TIMEOUT));
                    }
                    if let Dial::Connecting { connection, .. } | Dial::Attaching { connection, .. } =
                        self.dial
                    {
                        self.abort(connection);
                        // If the attempt was refused for good, nothing is told to the one it was to replace.
                        let old = self.attached.as_ref().map(|old| old.connection);
                        old.filter(|old| Some(*old) != closed).into_iter().for_each(|old| self.abort(old));
                    }
                    self.ended = true;
                    (self.attached, self.dial, self.closing) = (None, Dial::Rest, None);
                    self.events.push_back(Event::Ended { code: Some(code), reason, fate: Some(fate) });
                }
            }
        }
        self.close_plain_if_done(now);
    }

    /// Takes what the confirmer has to say.
    fn report(&mut self, outcome: Option<confirm::Event<Message>>) {
        let report = match outcome {
            // `settled` tells.
            None | Some(confirm::Event::Confirmed(_)) => return,
            Some(confirm::Event::Unknown(first, last)) => Report::Unknown(first, last),
            Some(confirm::Event::NotDelivered(first, last)) => Report::NotDelivered(first, last),
            Some(confirm::Event::Undeliverable(number, message)) => Report::Undeliverable(number, message),
        };
        self.events.push_back(Event::Report(report));
    }

    fn lose_attached(&mut self, now: Instant, why: Lost) {
        self.attached = None;
        self.backoff.handle_lost(now);
        let outcome = self.plain.as_mut().and_then(|plain| plain.confirmer.handle_lost());
        self.report(outcome);
        if self.ends_with(&why) {
            let (code, reason) = match &why {
                Lost::Closed { code, reason } => (code.map(u64::from), reason.clone()),
                Lost::TooBig { .. } => (Some(CloseCode::TOO_BIG.into()), why.to_string()),
                _ => (None, why.to_string()),
            };
            self.events.push_back(Event::Detached { why, retry_in: Duration::ZERO });
            return self.give_up(code, reason);
        }
        if self.ends_here(&why) {
            return;
        }
        if self.dial != Dial::Rest {
            // A replacement is on its way already.
            let retry_in = match self.dial {
                Dial::Waiting { until } => until.saturating_duration_since(now),
                _ => Duration::ZERO,
            };
            self.events.push_back(Event::Detached { why, retry_in });
            return;
        }
        let retry_in = self.schedule(now, &why, None);
        self.events.push_back(Event::Detached { why, retry_in });
    }

    fn dial_failed(&mut self, now: Instant, why: Lost, advice: Option<Delay>) {
        self.dial = Dial::Rest;
        self.endpoint = None;
        if self.ended || (self.attached.is_none() && self.ends_here(&why)) {
            return;
        }
        let retry_in = self.schedule(now, &why, advice);
        self.events.push_back(Event::AttemptFailed { why, retry_in });
    }

    fn schedule(&mut self, now: Instant, why: &Lost, delay: Option<Delay>) -> Duration {
        let cause = match why {
            Lost::Dead(_) => Cause::Individual,
            Lost::Closed { code, .. } if CloseCode::action(*code) == CloseAction::ReconnectAlone => {
                Cause::Individual
            }
            _ => Cause::Shared,
        };
        let at = match why {
            Lost::Unavailable { retry_after, .. } => Some(*retry_after),
            Lost::Closed { code, reason } => code.and_then(|code| code.retry_after(reason)),
            _ => None,
        };
        let no_port = |failure: &ConnectFailure| failure.kind == FailureKind::NoLocalPort;
        let at = at.or(matches!(why, Lost::NotConnected(failure) if no_port(failure)).then_some(PORT_AGAIN));
        let delay = at.map(|at| Delay { min: at, max: at }).or(delay.filter(|delay| !delay.max.is_zero()));
        let advice = delay.map(advice);
        let wait = self.backoff.next_delay(cause, advice, &mut self.rng);
        self.dial = Dial::Waiting { until: now + wait };
        wait
    }

    /// Whether the end of a plain peer's connection is the end of this client, by its configuration.
    fn ends_with(&mut self, why: &Lost) -> bool {
        let Some(plain) = &mut self.plain else { return false };
        if let Lost::Closed { .. } = why {
            plain.barren = if plain.progressed { 0 } else { plain.barren + 1 };
        }
        match (self.config.ends_with, why) {
            (EndsWith::Connection, _) | (EndsWith::Close, Lost::Closed { .. }) => true,
            // The next connection would bring it again.
            (EndsWith::Close | EndsWith::FinalClose, Lost::TooBig { .. }) => true,
            (EndsWith::FinalClose, Lost::Closed { code, .. }) => {
                let restarts = plain.restarts || CloseCode::is_restart(*code);
                !restarts || plain.barren >= BARREN_LIMIT
            }
            _ => false,
        }
    }

    /// Whether this loss is the end: the peer said so, or one connection was all that was wanted.
    fn ends_here(&mut self, why: &Lost) -> bool {
        let (code, reason) = match why {
            Lost::Refused { status, reason } => {
                self.give_up(status.map(u64::from), reason.clone());
                return true;
            }
            Lost::Closed { code, reason } if CloseCode::action(*code) == CloseAction::Stop => {
                (*code, reason.clone())
            }
            Lost::TooBig { .. } if self.config.once => (Some(CloseCode::TOO_BIG), why.to_string()),
            Lost::Closed { code, reason } if self.config.once => (*code, reason.clone()),
            Lost::Unreachable(reason) | Lost::Broken(reason) | Lost::Unavailable { reason, .. }
                if self.config.once =>
            {
                (None, reason.clone())
            }
            Lost::NotConnected(failure) if self.config.once => (None, failure.reason.clone()),
            Lost::Dead(evidence) if self.config.once => (None, evidence.to_string()),
            _ => return false,
        };
        self.give_up(code.map(u64::from), reason);
        true
    }

    fn close_plain_if_done(&mut self, now: Instant) {
        let (Some(plain), Some(closing), false) = (&self.plain, &self.closing, self.ended) else { return };
        if plain.confirmer.is_flushed() {
            let (code, reason) = (closing.code, closing.reason.clone());
            if let Some(attached) = &self.attached {
                let close = Transmit::Close { code, reason: reason.clone() };
                self.commands.push_back(Command::Transmit(attached.connection, close));
                self.lingering = Some((attached.connection, now + CLOSE_TIMEOUT));
                self.attached = None;
            }
            self.give_up(Some(code.into()), reason);
        }
    }

    fn give_up(&mut self, code: Option<u64>, reason: String) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Dial::Connecting { connection, .. } | Dial::Attaching { connection, .. } = self.dial {
            self.abort(connection);
        }
        if let Some(attached) = self.attached.take() {
            self.abort(attached.connection);
        }
        self.dial = Dial::Rest;
        let told = self.plain.as_mut().map(|plain| plain.confirmer.abandon());
        told.into_iter().flatten().for_each(|outcome| self.report(outcome));
        let fate = self.plain.is_none().then(|| self.session.fate_if_lost());
        self.events.push_back(Event::Ended { code, reason, fate });
    }

    fn abort(&mut self, connection: ConnectionId) {
        self.commands.push_back(Command::Transmit(connection, Transmit::Abort));
    }

    fn is_dialled(&self, connection: ConnectionId) -> bool {
        matches!(self.dial,
            Dial::Connecting { connection: dialled, .. } | Dial::Attaching { connection: dialled, .. }
            if dialled == connection)
    }
}

/// The part of a delay that is over before the server closes the connection, if there is one. (0 says
/// nothing of when that will be; an earliest moment after it is one before which nobody is wanted.)
fn before(delay: Delay, close_in: Duration) -> Delay {
    if delay.min < close_in { Delay { max: delay.max.min(close_in), ..delay } } else { delay }
}

fn advice(delay: Delay) -> Advice {
    Advice { min: delay.min, max: delay.max }
}
