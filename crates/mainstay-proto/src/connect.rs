//! The client's life: connecting, attached, probing, waiting, ended.
//!
//! One machine for both kinds of peer. Towards `mainstay.v1` it drives a [`ClientSession`]. Towards a plain peer it
//! reconnects, probes, confirms by Ping, and reports every new connection as a fresh peer. It decides when to connect
//! and how long to wait. A driver opens the connections, moves bytes, and reports what happens to them.
//!
//! At most two connections live at a time: the attached one, and one that is being opened. The second replaces the
//! first (after GOAWAY, or when a probe stays unanswered) or follows it.
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
mod resting;
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

/// How long a probe stays unanswered before the client opens a replacement.
const REPLACE_AFTER: Duration = Duration::from_secs(1);
/// Marks the payload of a heartbeat's Ping, so that it is never read as a position.
const HEARTBEAT_PING: u64 = 1 << 63;

/// What to do to a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Open a connection and report with `handle_opened` or `handle_lost`.
    Dial(ConnectionId),
    /// Write to it, close it or drop it. After [`Transmit::Close`] and [`Transmit::Abort`] the driver reports nothing
    /// more about it.
    Transmit(ConnectionId, Transmit),
}

/// The machine of a client; the module describes it.
#[derive(Debug)]
pub struct Client {
    config: ConnectConfig,
    rng: StdRng,
    backoff: Backoff,
    peer: Peer,
    /// The subprotocol of a plain peer's first connection; `None` before that connection.
    agreed: Option<Option<String>>,
    attached: Option<Attached>,
    dial: Dial,
    next_connection: u64,
    epoch: u64,
    /// The public name of the session, from the newest WELCOME.
    id: Option<SessionId>,
    /// Where the server wants the next connection. Forgotten when an attempt fails there.
    endpoint: Option<String>,
    /// The server announced that it closes, and refuses connections until then.
    unwanted_until: Option<Instant>,
    closing: Option<Closing>,
    end: Option<Box<End>>,
    /// How many attempts in a row brought no connection.
    failed: u32,
    /// A session was lost, and the application has not received that yet.
    gap: Option<Box<Fate>>,
    /// Every message up to this number has left the process.
    left: u64,
    /// How long the client waited for an answer when it last declared a session's connection dead; zero once an
    /// answer came in time.
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
    /// When a replacement is opened, unless a byte arrives before. Set by a probe.
    replace_at: Option<Instant>,
    signs: Signs,
    unproven: Unproven,
    /// Since when no message has arrived.
    quiet_since: Instant,
    /// That was too long ago; everything readable is read before the verdict.
    is_judging: bool,
}

/// Which end probes: the server of a session, or this client.
#[derive(Debug)]
enum Pulse {
    Watched(Watch),
    Driven(Heartbeat, Option<u64>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dial {
    /// No connection is being opened.
    Rest,
    Waiting {
        until: Instant,
    },
    Connecting {
        connection: ConnectionId,
        until: Instant,
    },
    /// HELLO is sent; the client waits for WELCOME.
    Attaching {
        connection: ConnectionId,
        until: Instant,
    },
    /// While attached: the Close was sent, and is answered until then. Later: no connection is needed.
    Resting {
        until: Instant,
    },
}

#[derive(Debug)]
struct Closing {
    code: CloseCode,
    reason: String,
    until: Instant,
    /// Whether a plain peer is read until its own Close.
    reads: Reads,
}

/// What a client that closes receives of a plain peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// Nothing, or with [`ConnectConfig::reads_while_closing`] everything until this end's Close.
    UntilOurClose,
    /// Everything until the peer's Close. This end's Close is still to come.
    UntilTheirs,
    /// The same; this end's Close was sent.
    OnlyTheirs,
}

impl Client {
    /// Creates a client that connects at once. `seed`: 32 bytes of the operating system's randomness.
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

    /// Returns the next connection to open, close or drop, or the last transmit of an ended session.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Returns the next thing to write to `connection`; `None` if it is not the connection to write to.
    pub fn poll_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        self.forward.check(now);
        match self.peer {
            Peer::Session(_) => self.poll_session_transmit(now, connection),
            Peer::Plain(_) => self.poll_plain_transmit(now, connection),
        }
    }

    /// Returns the connection that may be written now.
    #[must_use]
    pub fn writer(&self) -> Option<ConnectionId> {
        match &self.peer {
            Peer::Plain(_) => self.attached.as_ref().map(|attached| attached.connection),
            Peer::Session(session) => session.writer(),
        }
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the protocol of the peer, which decides how messages are written: `mainstay.v1` puts a byte in front
    /// of binary ones.
    #[must_use]
    pub fn mode(&self) -> Mode {
        if self.peer.is_plain() { Mode::Plain } else { Mode::Session }
    }

    /// Returns what the client is doing.
    #[must_use]
    pub fn state(&self) -> State {
        match self.dial {
            _ if self.end.is_some() => State::Ended,
            _ if self.closing.is_some() => State::Closing,
            _ if self.attached.is_some() => State::Attached { mode: self.mode(), epoch: self.epoch },
            // The first attempt is due at once; nothing is waited for.
            Dial::Waiting { until } if self.next_connection > 1 => State::Waiting { until },
            Dial::Resting { .. } => State::Resting,
            _ => State::Connecting,
        }
    }

    /// Returns the public name of the session; `None` before the first attach and towards plain peers.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.id
    }

    /// Returns where the server wants the next connection, if it announced an endpoint.
    /// [`Follow`](crate::endpoint::Follow) decides whether to connect there.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// Whether a sender whose message was returned has to wait for room.
    #[must_use]
    pub fn waits_when_full(&self) -> bool {
        self.peer.plain().is_none_or(|plain| plain.confirmer.waits_when_full())
    }

    /// Whether a connection is attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached.is_some()
    }

    /// Whether no message is accepted any more: the application closed the client, or the server ended the session,
    /// although earlier messages of the server may not be read yet.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
            || self.end.is_some()
            || matches!(&self.peer, Peer::Session(session) if session.is_ended_by_peer())
    }

    /// Whether to read more now: the application is not too far behind. (A session's server is limited by its
    /// window.) Bytes that stay unread count as bytes that arrived: report them with
    /// [`handle_bytes`](Self::handle_bytes).
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let bound = self.config.session.flow.accept;
        self.peer.plain().is_none_or(|plain| plain.inbox.is_below(bound))
    }

    /// Whether every accepted message has left this process, or has its fate already.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.end.is_some() || self.left.max(self.settled()) >= self.peer.last()
    }

    /// Returns why the client has ended; `None` while it has not.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_deref()
    }

    /// Whether the client has ended. No event follows.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Returns the number up to which every message is acknowledged (sessions) or confirmed (plain peers).
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.peer.settled()
    }

    /// Returns the largest payload that the peer accepts; `u64::MAX` if the peer announced no limit.
    #[must_use]
    pub fn largest(&self) -> u64 {
        match &self.peer {
            Peer::Plain(_) => u64::MAX,
            Peer::Session(session) => session.largest(),
        }
    }

    /// Returns the payload bytes that arrived from a plain peer and wait for the application. For a session the
    /// window bounds them.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.peer.plain().map_or(0, |plain| plain.inbox.bytes())
    }

    /// Returns what the client keeps in memory, including the overhead of each message.
    #[must_use]
    pub fn held(&self) -> Held {
        self.peer.held()
    }

    /// Returns the payload bytes that are kept until the peer acknowledges or confirms them.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        match &self.peer {
            Peer::Plain(plain) => plain.confirmer.kept_bytes(),
            Peer::Session(session) => session.kept_bytes(),
        }
    }

    /// Returns the smoothed round-trip time of this end's probes.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match &self.attached.as_ref()?.pulse {
            Pulse::Driven(beat, _) => beat.rtt(),
            Pulse::Watched(watch) => watch.rtt(),
        }
    }
}
