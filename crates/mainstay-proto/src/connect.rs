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

mod config;
mod event;
mod pings;
mod unproven;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use self::config::{ConnectConfig, EndsOn, Silence};
pub use self::event::{End, EndCause, Event, Incoming, Lost, Mode, ReasonCode, Report, State};
use self::pings::Signs;
use self::unproven::Unproven;
use crate::backoff::{Advice, Backoff, Scope};
use crate::budget::{Held, held};
use crate::confirm::{self, ConfirmConfig, Confirmer};
use crate::heartbeat::{Action, Heartbeat, Watch};
use crate::reach::{ConnectFailure, FailureKind};
use crate::session::message::{Delay, SessionId};
use crate::session::{
    CLOSE_TIMEOUT, ClientEvent, ClientSession, ConnectionId, Control, Delivery, EndedBy, Fate, Frame,
    Message, SessionError, Transmit, Volatiles,
};
use crate::ws::CloseCode;
use crate::ws::close::CloseAction;

/// When a local port is looked for again: one comes free when a connection ends, and the peer is not asked meanwhile.
const PORT_AGAIN: Duration = Duration::from_millis(100);
/// A replacement is opened when a probe is unanswered for this long.
const REPLACE_AFTER: Duration = Duration::from_secs(1);
/// With [`EndsOn::FinalClose`]: connections that the peer may close in a row without having brought anything.
const BARREN_LIMIT: u32 = 5;
/// Marks the payload of a heartbeat's Ping, so that it is never read as a position.
const HEARTBEAT_PING: u64 = 1 << 63;

/// What to do to connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open a connection and report with `handle_opened` or `handle_lost`.
    Dial(ConnectionId),
    /// Write to one, close it or drop it. After [`Transmit::Close`] and [`Transmit::Abort`] nothing
    /// about it need be reported any more.
    Transmit(ConnectionId, Transmit),
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
    /// A server that was to close said that nobody is wanted before.
    unwanted_until: Option<Instant>,
    closing: Option<Closing>,
    end: Option<Box<End>>,
    /// Attempts in a row that brought no connection.
    failed: u32,
    /// A session was lost, and the application has not been handed that yet.
    gap: Option<Box<Fate>>,
    /// Up to here everything that was sent has left the process.
    left: u64,
    /// How long an answer was waited for when a session's connection was last called dead, if nothing came in time since.
    slow: Duration,
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
    /// How often it was attached again, as far as an event told.
    reported_fresh: u64,
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

impl Ahead {
    fn bytes(&self) -> u64 {
        self.queue.iter().map(|message| message.len() as u64).sum()
    }
}

impl Plain {
    fn take(&mut self) -> Option<Delivery> {
        let delivery = self.inbox.pop_front()?;
        if let Delivery::Message(message) = &delivery {
            self.inbox_bytes -= message.len() as u64;
        }
        Some(delivery)
    }

    fn new(config: ConfirmConfig) -> Self {
        Self {
            confirmer: Confirmer::new(config),
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            progressed: false,
            barren: 0,
            ahead: None,
            reported_fresh: 0,
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
    unproven: Unproven,
    /// Since when no message came.
    quiet_since: Instant,
    /// It has been so for too long, and what was readable is being read first.
    is_judging: bool,
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
            unwanted_until: None,
            closing: None,
            end: None,
            failed: 0,
            gap: None,
            left: 0,
            slow: Duration::ZERO,
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
            return self.abort_connection(connection);
        };
        if dialled != connection {
            return self.abort_connection(connection);
        }
        match (mode, &self.plain) {
            (Mode::Session, None) => {
                self.dial = Dial::Attaching { connection, until };
                self.session.handle_opened(now, connection);
                if self.session.pending() != Some(connection) {
                    // END has passed: nothing is attached any more.
                    self.abort_connection(connection);
                    self.dial = Dial::Rest;
                }
            }
            (Mode::Plain, _) if self.epoch == 0 || self.plain.is_some() => self.attach_plain(now, connection),
            // A server that spoke sessions before does not any more, or the other way round: what
            // was promised under the one cannot be kept under the other.
            _ => {
                self.abort_connection(connection);
                let why = Lost::NotOpened("the server changed the protocol it speaks".into());
                self.dial_failed(now, why, None);
            }
        }
        self.collect(now);
    }

    /// The first words to the plain peer that [`handle_opened`](Self::handle_opened) has just attached: written ahead of
    /// the stream, in this order, not numbered, not kept, lost with the connection. Ignored anywhere else.
    pub fn greet(&mut self, connection: ConnectionId, words: Vec<Message>) {
        let is_current = self.attached.as_ref().is_some_and(|attached| attached.connection == connection);
        if let Some(plain) = self.plain.as_mut().filter(|_| is_current && !words.is_empty()) {
            let ahead =
                plain.ahead.get_or_insert_with(|| Box::new(Ahead { released: true, ..Ahead::default() }));
            ahead.queue.extend(words);
        }
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
        let Some(plain) = &mut self.plain else {
            self.left = self.left.max(self.session.wrote().unwrap_or(0));
            return;
        };
        self.left = self.left.max(plain.confirmer.written());
        let outcome = plain.confirmer.handle_flushed(now);
        self.report(outcome);
        self.close_plain_if_done(now);
    }

    /// The socket took some of what was to be written, but not all.
    pub fn handle_write_progress(&mut self, now: Instant, connection: ConnectionId) {
        match self.attached.as_mut().filter(|a| a.connection == connection).map(|a| &mut a.pulse) {
            Some(Pulse::Driven(beat, _)) => beat.handle_write_progress(now),
            Some(Pulse::Watched(watch)) => watch.handle_write_progress(now),
            None => {}
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
        let attached = self.attached.as_mut().filter(|attached| attached.connection == connection);
        if let Some(plain) = &mut self.plain {
            if let Some(attached) = attached {
                (attached.quiet_since, attached.is_judging) = (now, false);
                self.backoff.handle_progress(now);
                plain.restarts |= self.config.announces_restart.is_some_and(|announces| announces(&message));
                if self.closing.is_some() && !self.config.reads_while_closing {
                    // Nothing more is handed over, and nothing may fill up: the confirming Pongs are still to come.
                    return Ok(());
                }
                plain.inbox_bytes += message.len() as u64;
                plain.inbox.push_back(Delivery::Message(message));
                plain.progressed = true;
                plain.confirmer.handle_peer_message();
            }
            return Ok(());
        }
        let frame = Frame::decode(message)?;
        let is_attached = attached.is_some();
        let mut progressed = false;
        if let Some(attached) = attached {
            match &frame {
                Frame::Control(Control::Pong(beat)) => {
                    attached.unproven.handle_pong(beat.nonce);
                    if let Pulse::Watched(watch) = &mut attached.pulse {
                        watch.handle_pong(now, beat.nonce);
                    }
                }
                Frame::Message(_) | Frame::Control(Control::Volatile(_)) => {
                    (attached.quiet_since, attached.is_judging) = (now, false);
                    progressed = true;
                }
                _ => {}
            }
        }
        let before = self.session.acknowledged();
        let outcome = self.session.handle_frame(connection, frame);
        // What WELCOME acknowledges came over the connection before.
        if progressed || (is_attached && self.session.acknowledged() > before) {
            self.note_progress(now);
        }
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
        if outcome.is_some() {
            plain.progressed = true;
            self.backoff.handle_progress(now);
        }
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
        let goes_on = match self.config.ends_on {
            EndsOn::Nothing => true,
            EndsOn::FinalClose => plain.restarts || CloseCode::is_restart(code),
            EndsOn::Close | EndsOn::Connection => false,
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
            _ if self.end.is_some() || self.closing.is_some() => Err(message),
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
            _ if self.end.is_some() || self.closing.is_some() => {}
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

    /// The next message, or what stands between two of them, in order. Nothing after [`close`](Self::close).
    pub fn deliver(&mut self, now: Instant) -> Option<Incoming> {
        if self.delivers_nothing() {
            return None;
        }
        if let Some(fate) = self.gap.take() {
            return Some(Incoming::Gap(fate));
        }
        let delivery = match &mut self.plain {
            Some(plain) => plain.take(),
            None => self.session.deliver(now),
        };
        let incoming = match delivery {
            None => None,
            Some(Delivery::Message(message)) => Some(Incoming::Message(message)),
            Some(Delivery::Gap { first, count, cause }) => {
                self.events.push_back(Event::Dropped { first, count, cause });
                Some(Incoming::Dropped { first, count, cause })
            }
            Some(Delivery::Replaced { count }) if self.plain.is_some() => {
                self.report_fresh_peer(count);
                Some(Incoming::FreshPeer { count })
            }
            Some(Delivery::Replaced { count }) => {
                self.events.push_back(Event::Replaced { count });
                Some(Incoming::Replaced { count })
            }
        };
        self.collect(now);
        incoming
    }

    /// The application has ended it: whatever comes is not for it any more.
    #[must_use]
    pub fn delivers_nothing(&self) -> bool {
        let is_aborted = self.end().is_some_and(|end| end.cause == EndCause::Aborted);
        is_aborted || (self.closing.is_some() && !self.reads_while_closing())
    }

    fn reads_while_closing(&self) -> bool {
        self.plain.is_some() && self.config.reads_while_closing
    }

    /// Once for each time that a plain peer was attached again: at once where nothing waits that came before, and otherwise
    /// when that was handed over.
    fn report_fresh_peer(&mut self, count: u64) {
        if let Some(plain) = self.plain.as_mut().filter(|plain| plain.reported_fresh < count) {
            plain.reported_fresh = count;
            self.events.push_back(Event::FreshPeer);
        }
    }

    /// In manual mode: everything that was handed over is handled. Nothing to a plain peer.
    pub fn acknowledge(&mut self, now: Instant) {
        self.session.acknowledge(now, u64::MAX);
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
    pub fn probe_now(&mut self, now: Instant) {
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

    /// Another connection, whatever the present one is worth: that is dropped and the next one dialled, at once. An attempt
    /// under way begins anew.
    pub fn reconnect(&mut self, now: Instant) {
        if self.end.is_some() {
            return;
        }
        if let Dial::Connecting { connection, .. } | Dial::Attaching { connection, .. } = self.dial {
            self.session.handle_lost(connection);
            self.abort_connection(connection);
        }
        self.dial = Dial::Waiting { until: now };
        if let Some(attached) = self.attached.as_ref() {
            let connection = attached.connection;
            let goodbye = match self.plain {
                Some(_) => Transmit::Close { code: CloseCode::GOING_AWAY, reason: String::new() },
                // To a session's server that would be no more than the loss of a connection.
                None => Transmit::Abort,
            };
            self.commands.push_back(Command::Transmit(connection, goodbye));
            self.handle_lost(now, connection, Lost::Asked);
        }
    }

    /// Ends in order: what was accepted is delivered first, and nothing more is handed over. What is not within 10 s is
    /// unknown.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        if self.end.is_some() || self.closing.is_some() {
            return;
        }
        self.closing = Some(Closing { code, reason: reason.to_owned(), until: now + CLOSE_TIMEOUT });
        if let Some(plain) = self.plain.as_mut().filter(|_| !self.config.reads_while_closing) {
            (plain.inbox, plain.inbox_bytes) = (VecDeque::new(), 0);
        }
        self.session.close(code, reason);
        if self.epoch == 0 && self.plain.is_none() && self.session.last_sent() == 0 {
            self.give_up(EndCause::Closed, None, reason.to_owned(), None);
        }
        self.collect(now);
        self.close_plain_if_done(now);
    }

    /// Ends at once: the peer is told so where a connection is attached, and nothing is waited for. What was written and
    /// not acknowledged or confirmed is unknown, the rest is not delivered.
    pub fn abort(&mut self, now: Instant, code: CloseCode, reason: &str) {
        if self.end.is_some() {
            return;
        }
        if self.plain.is_none() && self.attached.is_some() {
            self.session.abort(code, reason);
            return self.collect(now);
        }
        if let Some(plain) = &mut self.plain {
            (plain.inbox, plain.inbox_bytes) = (VecDeque::new(), 0);
        }
        self.begin_close(now, code, reason);
        self.give_up(EndCause::Aborted, Some(code.into()), reason.to_owned(), None);
    }

    /// Ends at once, without a word to the peer, where nobody drives this client any more or its connection is of no use:
    /// what was written and not confirmed is reported as unknown, the rest as not delivered.
    pub fn abandon(&mut self, reason: &str) {
        self.give_up(EndCause::Abandoned, None, reason.to_owned(), None);
    }

    /// After the end: what was accepted and is not known to be delivered, in order, once. First what may have arrived, by
    /// the reports or the [`Fate`], then what certainly did not.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        match &mut self.plain {
            _ if self.end.is_none() => Vec::new(),
            Some(plain) => plain.confirmer.take_undelivered(),
            None => self.session.take_undelivered(),
        }
    }

    // ---- time and output ------------------------------------------------------------------------

    /// Does what is due. After the end: drops a connection that did not take within 10 s what was still to be written.
    /// `true`: this process was paused; read what is readable and call it again.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.end.is_some() {
            if let Some((connection, _)) = self.lingering.take_if(|(_, until)| *until <= now) {
                self.abort_connection(connection);
            }
            return false;
        }
        if self.closing.as_ref().is_some_and(|closing| closing.until <= now) {
            if self.plain.is_none() {
                let attached = self.attached.as_ref().map(|attached| attached.connection);
                self.session.abandon();
                self.collect(now);
                // The end of an attempt has dropped it already.
                let is_kept = |connection: &ConnectionId| {
                    !self.commands.contains(&Command::Transmit(*connection, Transmit::Abort))
                };
                let kept = attached.filter(is_kept);
                kept.into_iter().for_each(|connection| self.abort_connection(connection));
            }
            if let Some(Closing { code, reason, .. }) = &self.closing {
                self.give_up(EndCause::Closed, Some((*code).into()), reason.clone(), None);
            }
            return false;
        }
        match self.dial {
            Dial::Waiting { until } if until <= now => self.dial(now),
            Dial::Connecting { connection, until } | Dial::Attaching { connection, until }
                if until <= now =>
            {
                self.session.handle_lost(connection);
                self.abort_connection(connection);
                let within = self.config.opening_timeout;
                self.dial_failed(now, Lost::NoAnswer { within }, None);
            }
            _ => {}
        }
        self.session.handle_timeout(now);
        self.judge_pings(now);
        self.probe_for_unproven(now);
        let drain = self.beat(now) || self.judge_quiet(now);
        self.collect(now);
        drain
    }

    /// When the connection has brought no message for too long.
    fn quiet_at(&self) -> Option<Instant> {
        Some(self.attached.as_ref()?.quiet_since + self.config.silence?.get())
    }

    /// `true`: read what is readable first.
    fn judge_quiet(&mut self, now: Instant) -> bool {
        // What waits for the application keeps the peer from sending more.
        let is_held_up = self.held().unread > 0 || !self.wants_input();
        let due = self.quiet_at().is_some_and(|at| at <= now);
        let (Some(attached), Some(silence)) = (self.attached.as_mut().filter(|_| due), self.config.silence)
        else {
            return false;
        };
        if is_held_up {
            (attached.quiet_since, attached.is_judging) = (now, false);
            return false;
        }
        if !std::mem::replace(&mut attached.is_judging, true) {
            return true;
        }
        let connection = attached.connection;
        self.abort_connection(connection);
        self.handle_lost(now, connection, Lost::NoMessage { within: silence.get() });
        false
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
                    attached.unproven.note_probe(nonce, self.session.wrote().unwrap_or(0));
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
                    self.allow_for_verdict();
                    self.abort_connection(connection);
                    self.handle_lost(now, connection, Lost::Dead(evidence));
                    return false;
                }
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.end.is_some() {
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
        let (unproven, quiet) = (self.unproven_at(), self.quiet_at());
        [dial, pulse, pings, replace, owed, closing, unproven, quiet].into_iter().flatten().min()
    }

    /// The next connection to open, close or drop, and what an ended session still has to say.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The next thing to write to `connection`; `None` if it is not the one to be written.
    pub fn poll_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        let Some(plain) = &mut self.plain else {
            if self.session.writer() != Some(connection) {
                return None;
            }
            let (_, transmit) = self.session.poll_transmit(now)?;
            if let (Transmit::Message(_), Some(attached), Some(number)) =
                (&transmit, &mut self.attached, self.session.wrote())
            {
                attached.unproven.note_written(now, number, self.session.acknowledged());
            }
            return Some(transmit);
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
            _ if self.end.is_some() => State::Ended,
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

    /// Whether nothing more is accepted: the application asked to end, or the server ended the session, though what it
    /// sent before is not read yet.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.is_some() || self.end.is_some() || self.session.is_ended_by_peer()
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

    /// Everything that was accepted has left this process, or met its fate before.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        let last = match &self.plain {
            Some(plain) => plain.confirmer.last(),
            None => self.session.last_sent(),
        };
        self.end.is_some() || self.left.max(self.settled()) >= last
    }

    /// Why it has ended.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_deref()
    }

    /// Nothing follows.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.end.is_some()
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
            kept: held(
                plain.confirmer.kept_bytes()
                    + plain.volatiles.bytes()
                    + plain.ahead.as_ref().map_or(0, |ahead| ahead.bytes()),
                plain.confirmer.kept(),
            ),
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
                self.gap = Some(Box::new(fate));
                self.events.push_back(Event::Gap(fate));
            }
            self.left = 0;
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
        let is_next = !plain.inbox.iter().any(|delivery| matches!(delivery, Delivery::Message(_)));
        if !first && (self.closing.is_none() || self.config.reads_while_closing) {
            // Marks that meet are one.
            if let Some(Delivery::Replaced { .. }) = plain.inbox.back() {
                plain.inbox.pop_back();
            }
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
        if !first && is_next {
            self.report_fresh_peer(self.epoch - 1);
        }
    }

    /// What goes ahead on the connection that `replacement` announced, if that is the current one.
    fn held_back(&mut self, replacement: u64) -> Option<&mut Ahead> {
        let is_current = self.attached.is_some() && self.epoch == replacement + 1;
        let ahead = self.plain.as_mut().filter(|_| is_current)?.ahead.as_deref_mut();
        ahead.filter(|ahead| !ahead.released)
    }

    fn set_attached(&mut self, now: Instant, connection: ConnectionId, pulse: Pulse) {
        let attached = Attached {
            connection,
            pulse,
            replace_at: None,
            signs: Signs::default(),
            unproven: Unproven::default(),
            quiet_since: now,
            is_judging: false,
        };
        if let Some(old) = self.attached.replace(attached) {
            self.abort_connection(old.connection);
            self.backoff.handle_lost(now);
        }
        (self.dial, self.failed, self.unwanted_until) = (Dial::Rest, 0, None);
        self.backoff.handle_connected(now);
    }

    /// Takes what the session machine has to say.
    fn collect(&mut self, now: Instant) {
        while let Some(event) = self.session.poll_event() {
            match event {
                ClientEvent::Attached { id, epoch, resumed, heartbeat_interval, resume_at, .. } => {
                    (self.id, self.endpoint) = (Some(id), resume_at);
                    if let Some(connection) = self.session.current() {
                        let mut watch = Watch::new(now, heartbeat_interval);
                        watch.allow(self.slow);
                        self.set_attached(now, connection, Pulse::Watched(watch));
                        self.epoch = epoch;
                        self.events.push_back(Event::Attached { mode: Mode::Session, resumed, epoch });
                    }
                }
                ClientEvent::Gap(fate) => {
                    // What was received and not handed over went with it.
                    (self.gap, self.left) = (Some(Box::new(fate)), 0);
                    self.events.push_back(Event::Gap(fate));
                }
                ClientEvent::TooLarge { number } => {
                    self.events.push_back(Event::Report(Report::NotDelivered(number..=number)));
                }
                ClientEvent::Refused { code, delay, .. } => {
                    if let Dial::Attaching { connection, .. } = self.dial {
                        self.abort_connection(connection);
                        let (code, reason) =
                            (ReasonCode::of_session(code), format!("refused with code {code}"));
                        let why = Lost::Unavailable { code, retry_after: None, reason };
                        self.dial_failed(now, why, Some(delay));
                    }
                }
                ClientEvent::GoAway { delay, close_in, endpoint, .. } => {
                    self.endpoint = endpoint.or(self.endpoint.take());
                    self.unwanted_until =
                        (delay.min >= close_in && !delay.min.is_zero()).then(|| now + delay.min);
                    let leave = Some(advice(before(delay, close_in)));
                    let wait = self.backoff.next_delay(Scope::Shared, leave, &mut self.rng);
                    if self.dial == Dial::Rest {
                        self.dial = Dial::Waiting { until: now + wait };
                    }
                }
                ClientEvent::Volatile(message) => self.events.push_back(Event::Volatile(message)),
                ClientEvent::Authenticated { accepted } => {
                    self.events.push_back(Event::Authenticated { accepted });
                }
                ClientEvent::Ended { code, reason, fate, by } => {
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
                        self.abort_connection(connection);
                        // If the attempt was refused for good, nothing is told to the one it was to replace.
                        let old = self.attached.as_ref().map(|old| old.connection);
                        old.filter(|old| Some(*old) != closed)
                            .into_iter()
                            .for_each(|old| self.abort_connection(old));
                    }
                    (self.attached, self.dial) = (None, Dial::Rest);
                    self.end_with(End {
                        cause: cause_of(by),
                        code: Some(ReasonCode::of_session(code)),
                        reason,
                        fate: Some(fate),
                        lost: None,
                    });
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
            Some(confirm::Event::Unknown(first, last)) => Report::Unknown(first..=last),
            Some(confirm::Event::NotDelivered(first, last)) => Report::NotDelivered(first..=last),
            Some(confirm::Event::Undeliverable(number, message)) => Report::Undeliverable { number, message },
        };
        self.events.push_back(Event::Report(report));
    }

    fn lose_attached(&mut self, now: Instant, why: Lost) {
        self.attached = None;
        self.backoff.handle_lost(now);
        let outcome = self.plain.as_mut().and_then(|plain| plain.confirmer.handle_lost());
        self.report(outcome);
        if self.ends_on(&why) {
            let (code, reason) = match &why {
                Lost::Closed { code, reason } => (code.map(ReasonCode::from), reason.clone()),
                Lost::TooBig { .. } => (Some(CloseCode::TOO_BIG.into()), why.to_string()),
                _ => (None, why.to_string()),
            };
            self.events.push_back(Event::Detached { why: why.clone(), next_attempt_in: Duration::ZERO });
            let cause = if matches!(why, Lost::Closed { .. }) { EndCause::Peer } else { EndCause::Lost };
            return self.give_up(cause, code, reason, Some(why));
        }
        if self.ends_here(&why) {
            return;
        }
        let next_attempt_in = match self.dial {
            Dial::Rest => self.schedule(now, &why, None),
            // A replacement was to follow later, or failed before: the loss is a new start.
            Dial::Waiting { until } => {
                let own = (now + self.schedule(now, &why, None)).max(self.unwanted_until.unwrap_or(now));
                let until = own.min(until);
                self.dial = Dial::Waiting { until };
                until.saturating_duration_since(now)
            }
            // One is on its way already.
            Dial::Connecting { .. } | Dial::Attaching { .. } => Duration::ZERO,
        };
        self.events.push_back(Event::Detached { why, next_attempt_in });
    }

    fn dial_failed(&mut self, now: Instant, why: Lost, advice: Option<Delay>) {
        self.dial = Dial::Rest;
        self.endpoint = None;
        if self.end.is_some()
            || (self.attached.is_none() && (self.ends_here(&why) || self.is_last_attempt(&why)))
        {
            return;
        }
        let next_attempt_in = self.schedule(now, &why, advice);
        self.events.push_back(Event::AttemptFailed { why, next_attempt_in });
    }

    /// Whether so many attempts have failed in a row that this one was the last.
    fn is_last_attempt(&mut self, why: &Lost) -> bool {
        self.failed = self.failed.saturating_add(1);
        let Some(limit) = self.config.max_attempts.filter(|limit| self.failed >= limit.get()) else {
            return false;
        };
        let reason = match limit.get() {
            1 => format!("the only attempt failed: {why}"),
            limit => format!("{limit} attempts in a row failed; the last one: {why}"),
        };
        self.give_up(EndCause::Attempts, None, reason, Some(why.clone()));
        true
    }

    fn schedule(&mut self, now: Instant, why: &Lost, delay: Option<Delay>) -> Duration {
        let cause = match why {
            Lost::Dead(_) | Lost::NoMessage { .. } | Lost::Asked => Scope::Individual,
            Lost::Closed { code, .. } if CloseCode::action(*code) == CloseAction::ReconnectAlone => {
                Scope::Individual
            }
            _ => Scope::Shared,
        };
        let at = match why {
            Lost::Unavailable { retry_after, .. } => *retry_after,
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
    fn ends_on(&mut self, why: &Lost) -> bool {
        let Some(plain) = &mut self.plain else { return false };
        if let Lost::Closed { .. } = why {
            plain.barren = if plain.progressed { 0 } else { plain.barren + 1 };
        }
        match (self.config.ends_on, why) {
            (EndsOn::Connection, _) | (EndsOn::Close, Lost::Closed { .. }) => true,
            // The next connection would bring it again.
            (EndsOn::Close | EndsOn::FinalClose, Lost::TooBig { .. }) => true,
            (EndsOn::FinalClose, Lost::Closed { code, .. }) => {
                let restarts = plain.restarts || CloseCode::is_restart(*code);
                !restarts || plain.barren >= BARREN_LIMIT
            }
            _ => false,
        }
    }

    /// Whether this loss is the end: the peer said so, or one connection was all that was wanted.
    fn ends_here(&mut self, why: &Lost) -> bool {
        let (cause, code, reason) = match why {
            Lost::Refused { status, reason } => {
                (EndCause::Refused, status.map(ReasonCode::from), reason.clone())
            }
            Lost::Closed { code, reason } if CloseCode::action(*code) == CloseAction::Stop => {
                (EndCause::Peer, code.map(ReasonCode::from), reason.clone())
            }
            Lost::TooBig { .. } if self.config.once => {
                (EndCause::Lost, Some(CloseCode::TOO_BIG.into()), why.to_string())
            }
            Lost::Closed { code, reason } if self.config.once => {
                (EndCause::Peer, code.map(ReasonCode::from), reason.clone())
            }
            _ if self.config.once => (EndCause::Lost, None, why.to_string()),
            _ => return false,
        };
        self.give_up(cause, code, reason, Some(why.clone()));
        true
    }

    fn close_plain_if_done(&mut self, now: Instant) {
        let (Some(plain), Some(closing), false) = (&self.plain, &self.closing, self.end.is_some()) else {
            return;
        };
        if plain.confirmer.is_flushed() {
            let (code, reason) = (closing.code, closing.reason.clone());
            self.begin_close(now, code, &reason);
            self.give_up(EndCause::Closed, Some(code.into()), reason, None);
        }
    }

    /// The closing handshake on the attached connection begins; the client itself is done with it.
    fn begin_close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        if let Some(attached) = self.attached.take() {
            let close = Transmit::Close { code, reason: reason.to_owned() };
            self.commands.push_back(Command::Transmit(attached.connection, close));
            self.lingering = Some((attached.connection, now + CLOSE_TIMEOUT));
        }
    }

    fn give_up(&mut self, cause: EndCause, code: Option<ReasonCode>, reason: String, lost: Option<Lost>) {
        if self.end.is_some() {
            return;
        }
        if let Dial::Connecting { connection, .. } | Dial::Attaching { connection, .. } = self.dial {
            self.abort_connection(connection);
        }
        if let Some(attached) = self.attached.take() {
            self.abort_connection(attached.connection);
        }
        self.dial = Dial::Rest;
        let outcomes = self.plain.as_mut().map(|plain| plain.confirmer.abandon());
        outcomes.into_iter().flatten().for_each(|outcome| self.report(outcome));
        let fate = self.plain.is_none().then(|| self.session.final_fate());
        self.end_with(End { cause, code, reason, fate, lost: lost.map(Box::new) });
    }

    fn end_with(&mut self, end: End) {
        let end = Box::new(end);
        self.end = Some(end.clone());
        self.events.push_back(Event::Ended(end));
    }

    fn abort_connection(&mut self, connection: ConnectionId) {
        self.commands.push_back(Command::Transmit(connection, Transmit::Abort));
    }

    fn is_dialled(&self, connection: ConnectionId) -> bool {
        matches!(self.dial,
            Dial::Connecting { connection: dialled, .. } | Dial::Attaching { connection: dialled, .. }
            if dialled == connection)
    }
}

fn cause_of(by: EndedBy) -> EndCause {
    match by {
        EndedBy::Us => EndCause::Closed,
        EndedBy::Abort => EndCause::Aborted,
        EndedBy::Server => EndCause::Peer,
        EndedBy::Refusal => EndCause::Refused,
        EndedBy::OtherInstance => EndCause::Superseded,
        EndedBy::Protocol => EndCause::Protocol,
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
