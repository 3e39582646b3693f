//! What a client is doing, what happened to it, and why it ended.

use std::fmt;
use std::time::{Duration, Instant};

use crate::heartbeat::Evidence;
use crate::reach::ConnectFailure;
use crate::session::message::GapCause;
use crate::session::{Fate, Message};
use crate::ws::CloseCode;

/// What a connection turned out to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// `mainstay.v1`.
    Session,
    /// WebSocket without more.
    Plain,
}

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
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

/// Why a connection ended, as the driver saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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
    /// A plain peer would send it again: with any [`EndsOn`](super::EndsOn) but `Nothing` the client ends, with 1009.
    TooBig {
        /// The limit, in bytes.
        limit: usize,
    },
    /// It was still there, and the heartbeat found nobody behind it.
    Dead(Evidence),
    /// It brought no message for as long as [`Silence`](super::Silence) allows.
    NoMessage {
        /// The limit.
        within: Duration,
    },
    /// The application asked for another ([`Client::reconnect`](super::Client::reconnect)).
    Asked,
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
            Self::NoMessage { within } => write!(f, "no message came within {within:?}"),
            Self::Asked => f.write_str("the application asked for another connection"),
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

impl std::error::Error for Lost {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NotConnected(failure) => Some(failure),
            _ => None,
        }
    }
}

/// Why a client has ended. As an error its source is the connection or the attempt that it ended with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct End {
    /// The kind of end.
    pub cause: EndCause,
    /// The code of END, of the close, or of the refusal; below 1000: the status of the HTTP response that refused the
    /// opening handshake. `None`: there is none.
    pub code: Option<u64>,
    /// In words.
    pub reason: String,
    /// What became of what was sent, where a session was lost with it. Towards a plain peer [`Event::Report`]s said it
    /// before.
    pub fate: Option<Fate>,
    /// How the last connection was lost, or the last attempt failed, where that was the end.
    #[source]
    pub lost: Option<Box<Lost>>,
}

/// Kinds of ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndCause {
    /// The application closed it, or dropped it, and it ended in order or after 10 s.
    Closed,
    /// The application aborted it.
    Aborted,
    /// The peer ended it: with END, or with a close code after which no client comes back.
    Peer,
    /// The peer refused it for good, before or in HELLO, or no attempt can be made with what the application gave.
    Refused,
    /// Another instance took its session.
    Superseded,
    /// As many attempts in a row failed as were allowed, or no connection came within the time that was allowed.
    Attempts,
    /// Its connection was lost, and one was all that was wanted.
    Lost,
    /// The two ends counted differently.
    Protocol,
    /// What drives it is gone: the runtime has shut down, or something panicked there.
    Abandoned,
}

/// What the application is handed, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incoming {
    /// A message.
    Message(Message),
    /// In this place the server's policy dropped messages of its own before they were written.
    Dropped {
        /// The number of the first.
        first: u64,
        /// How many.
        count: u64,
        /// Why.
        cause: GapCause,
    },
    /// In this place the connection behind the server was replaced: a gateway's to its backend. What the backend sent
    /// meanwhile may be missing, and how much is not known.
    Replaced {
        /// How often so far in this session.
        count: u64,
    },
    /// In this place a plain peer was attached again. What it sent meanwhile is lost, how much is not known, and it may
    /// have to be told again who asks and for what.
    FreshPeer {
        /// How often so far.
        count: u64,
    },
    /// In this place a session was lost: what follows is a new one's. Where several meet it is the newest.
    Gap(Box<Fate>),
}

/// What became of messages to a plain peer, or of some to a session's server. A number that was reported before keeps its
/// first fate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
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
        next_attempt_in: Duration,
    },
    /// An attempt failed.
    AttemptFailed {
        /// Why.
        why: Lost,
        /// How long until the next attempt.
        next_attempt_in: Duration,
    },
    /// A session was lost: what became of what was sent, and what will never come.
    Gap(Fate),
    /// A plain peer was attached again: what it sent meanwhile is lost, how much is not known. The messages that were
    /// handed over before and after this event came on the connection before and on the new one.
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
    /// The server judged the credentials that [`Client::authenticate`](super::Client::authenticate) presented.
    Authenticated {
        /// Whether it accepted them; otherwise those before them go on.
        accepted: bool,
    },
    /// Nothing follows. [`Client::end`](super::Client::end) has the same, and how the last connection was lost.
    Ended {
        /// The kind of end.
        cause: EndCause,
        /// As [`End::code`].
        code: Option<u64>,
        /// In words.
        reason: String,
        /// As [`End::fate`].
        fate: Option<Fate>,
    },
}
