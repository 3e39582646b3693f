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

mod application;
mod attempts;
mod config;
mod connections;
mod ending;
mod event;
mod peer;
mod pings;
mod plain;
mod session;
mod time;
mod unproven;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use self::config::{ConnectConfig, EndsOn, Silence};
pub use self::event::{End, EndCause, Event, Incoming, Lost, Mode, ReasonCode, Report, State};
use self::peer::{Peer, Plain};
use self::pings::Signs;
use self::unproven::Unproven;
use crate::backoff::Backoff;
use crate::budget::Held;
use crate::forward::Forward;
use crate::heartbeat::{Heartbeat, Watch};
use crate::session::message::SessionId;
use crate::session::{ClientSession, ConnectionId, Fate, Transmit};
use crate::ws::CloseCode;

/// A replacement is opened when a probe is unanswered for this long.
const REPLACE_AFTER: Duration = Duration::from_secs(1);
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
    peer: Peer,
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
    forward: Forward,
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
        let session_seed = rng.random();
        let peer = if config.link {
            Peer::Plain(Plain::new(config.confirm))
        } else {
            Peer::Session(ClientSession::new(config.session.clone(), session_seed))
        };
        Self {
            backoff: Backoff::new(config.backoff),
            peer,
            config,
            rng,
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
            forward: Forward::default(),
        }
    }

    /// The next connection to open, close or drop, and what an ended session still has to say.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The next thing to write to `connection`; `None` if it is not the one to be written.
    pub fn poll_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        self.forward.check(now);
        match self.peer {
            Peer::Session(_) => self.poll_session_transmit(now, connection),
            Peer::Plain(_) => self.poll_plain_transmit(now, connection),
        }
    }

    /// The connection that may be written now.
    #[must_use]
    pub fn writer(&self) -> Option<ConnectionId> {
        match &self.peer {
            Peer::Plain(_) => self.attached.as_ref().map(|attached| attached.connection),
            Peer::Session(session) => session.writer(),
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// How a message of the application is written: `mainstay.v1` puts a byte in front of binary ones.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.peer.is_plain() { Mode::Plain } else { Mode::Session }
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
        self.peer.plain().is_none_or(|plain| plain.confirmer.waits_when_full())
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
        self.closing.is_some()
            || self.end.is_some()
            || matches!(&self.peer, Peer::Session(session) if session.is_ended_by_peer())
    }

    /// Whether more should be read now: the application is not too far behind. (A session's server is
    /// held back by its window.) What is left unread counts as bytes that arrived: report it with
    /// [`handle_bytes`](Self::handle_bytes).
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let bound = self.config.session.flow.accept;
        self.peer.plain().is_none_or(|plain| plain.inbox.is_below(bound))
    }

    /// Everything that was accepted has left this process, or met its fate before.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.end.is_some() || self.left.max(self.settled()) >= self.peer.last()
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
        self.peer.settled()
    }

    /// The payload of the largest message that the peer takes, as far as it said.
    #[must_use]
    pub fn largest(&self) -> u64 {
        match &self.peer {
            Peer::Plain(_) => u64::MAX,
            Peer::Session(session) => session.largest(),
        }
    }

    /// Payload bytes that came from a plain peer and wait for the application. A session's are bounded by its window.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.peer.plain().map_or(0, |plain| plain.inbox.bytes())
    }

    /// What is kept of and for the peer, with what each message costs beside its payload.
    #[must_use]
    pub fn held(&self) -> Held {
        self.peer.held()
    }

    /// Payload bytes that are kept for the peer until it acknowledges or confirms them.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        match &self.peer {
            Peer::Plain(plain) => plain.confirmer.kept_bytes(),
            Peer::Session(session) => session.kept_bytes(),
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
}
