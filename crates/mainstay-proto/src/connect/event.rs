//! What a client does, what happens to it, and why it ended.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::failure::Failure;
use crate::heartbeat::Evidence;
use crate::reach::ConnectFailure;
use crate::session::message::GapCause;
use crate::session::{Fate, Message};
use crate::ws::CloseCode;

/// The protocol that the peer speaks on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// `mainstay.v1`.
    Session,
    /// Plain WebSocket.
    Plain,
}

/// What a client does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// It opens a connection.
    Connecting,
    /// A connection is attached, and messages flow.
    Attached {
        /// The protocol that the peer speaks.
        mode: Mode,
        /// The number of this attach, from 1.
        epoch: u64,
    },
    /// It has no connection, and waits until it dials again.
    Waiting {
        /// The moment of the next attempt.
        until: Instant,
    },
    /// It has no connection, and dials when there is something to send ([`Client::rest`](super::Client::rest)).
    Resting,
    /// It ends in order: it delivers what was accepted, and accepts nothing more.
    Closing,
    /// It has ended. Nothing follows.
    Ended,
}

/// Why a connection ended, or why an attempt brought none.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lost {
    /// No byte stream to the server came about. Another attempt may bring one.
    NotConnected(ConnectFailure),
    /// The server was reached, but no WebSocket was opened: the opening handshake broke off, or what the application
    /// makes for an attempt (its request, its greeting) failed. Another attempt may succeed.
    NotOpened(Failure),
    /// The server was reached, and did not complete the opening handshake in time.
    NoAnswer {
        /// The time that it had.
        within: Duration,
    },
    /// The server refused the attempt for now: with the status of an HTTP response, or with REFUSE.
    Unavailable {
        /// The status, or the code of REFUSE.
        code: ReasonCode,
        /// The earliest moment of the next attempt, if an HTTP response named one (`Retry-After`).
        retry_after: Option<Duration>,
        /// In words.
        reason: String,
    },
    /// No attempt can succeed: the server refused with a status that is final, or what the application gave cannot be
    /// dialled.
    Refused {
        /// The status of the HTTP response, if the server sent one.
        status: Option<StatusCode>,
        /// In words.
        reason: String,
    },
    /// The transport ended without a Close frame.
    Broken(Failure),
    /// The peer sent a message above [`Limits::max_message`](crate::ws::Limits::max_message), and this end closed the
    /// connection with 1009. A plain peer would send the message again: with any [`EndsOn`](super::EndsOn) but `Nothing`
    /// the client ends, with 1009.
    TooBig {
        /// The limit, in bytes.
        limit: usize,
    },
    /// The heartbeat found the peer dead, although the transport had not ended.
    Dead(Evidence),
    /// The connection brought no message for as long as [`Silence`](super::Silence) allows.
    NoMessage {
        /// The limit.
        within: Duration,
    },
    /// The application asked for another connection ([`Client::reconnect`](super::Client::reconnect)).
    Asked,
    /// The peer closed the connection.
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
            Self::NotConnected(failure) => write!(f, "{failure}"),
            Self::NotOpened(failure) | Self::Broken(failure) => write!(f, "{failure}"),
            Self::NoAnswer { within } => write!(f, "no answer within {within:?}"),
            Self::Unavailable { reason, .. } | Self::Refused { reason, .. } => f.write_str(reason),
            Self::TooBig { limit } => write!(f, "the peer sent a message of more than {limit} bytes"),
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
            Self::NotConnected(failure) => failure.source(),
            Self::NotOpened(failure) | Self::Broken(failure) => failure.source(),
            _ => None,
        }
    }
}

/// The number by which a peer states why it ended or refused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReasonCode {
    /// A close code: of a Close frame, or of END or REFUSE where their code is one that a Close frame may carry.
    Close(CloseCode),
    /// Any other code of END or REFUSE.
    Other(u64),
    /// The status of an HTTP response.
    Http(StatusCode),
}

impl ReasonCode {
    /// The code of END or REFUSE.
    #[must_use]
    pub fn of_session(code: u64) -> Self {
        let close = u16::try_from(code).ok().and_then(CloseCode::new);
        close.map_or(Self::Other(code), Self::Close)
    }

    /// The close code; `None`: it is something else.
    #[must_use]
    pub fn close_code(self) -> Option<CloseCode> {
        match self {
            Self::Close(code) => Some(code),
            _ => None,
        }
    }

    /// The status of the HTTP response; `None`: it is something else.
    #[must_use]
    pub fn status(self) -> Option<StatusCode> {
        match self {
            Self::Http(status) => Some(status),
            _ => None,
        }
    }

    /// The number alone, for logs. A code and a status may be the same number.
    #[must_use]
    pub fn get(self) -> u64 {
        match self {
            Self::Close(code) => code.into(),
            Self::Other(code) => code,
            Self::Http(status) => status.as_u16().into(),
        }
    }
}

impl From<CloseCode> for ReasonCode {
    fn from(code: CloseCode) -> Self {
        Self::Close(code)
    }
}

impl From<StatusCode> for ReasonCode {
    fn from(status: StatusCode) -> Self {
        Self::Http(status)
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// Why a client has ended. As an error its source is the connection or the attempt that it ended with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct End {
    /// What ended it.
    pub cause: EndCause,
    /// The code of END or of the close, or the status of the HTTP response that refused the opening handshake. `None`:
    /// there is neither.
    pub code: Option<ReasonCode>,
    /// In words.
    pub reason: String,
    /// What became of the messages that were sent in the session that ended with the client. `None` towards a plain peer,
    /// where [`Event::Report`]s stated it before.
    pub fate: Option<Fate>,
    /// How the last connection was lost, or why the last attempt failed, where that was the end.
    #[source]
    pub lost: Option<Box<Lost>>,
}

impl End {
    /// For this cause, without a code, a fate or a loss.
    #[must_use]
    pub fn new(cause: EndCause, reason: impl Into<String>) -> Self {
        Self { cause, code: None, reason: reason.into(), fate: None, lost: None }
    }
}

/// What ended a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndCause {
    /// The application closed or dropped it, and it ended in order, or after 10 s.
    Closed,
    /// The application aborted it.
    Aborted,
    /// The peer ended it: with END, or with a close code after which no client reconnects.
    Peer,
    /// The peer refused it finally, before or in HELLO; or no attempt can be made with what the application gave.
    Refused,
    /// Another instance resumed its session.
    Superseded,
    /// As many attempts in a row failed as were allowed, or no connection came about within the time that was allowed.
    Attempts,
    /// Its connection was lost, and the application wanted one connection only.
    Lost,
    /// The two ends counted messages differently.
    Protocol,
    /// The task that drives it is gone: its runtime has shut down, or something in it panicked.
    Abandoned,
}

/// What the application receives, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incoming {
    /// A message.
    Message(Message),
    /// In this place the server dropped messages of its own before it wrote them, as its policy says.
    Dropped {
        /// The number of the first.
        first: u64,
        /// How many messages.
        count: u64,
        /// Why.
        cause: GapCause,
    },
    /// In this place the connection behind the server was replaced: a gateway's to its backend. Messages that the backend
    /// sent meanwhile may be missing, and their number is unknown.
    Replaced {
        /// How often so far in this session.
        count: u64,
    },
    /// In this place a plain peer was attached again. The messages that it sent meanwhile are lost, and their number is
    /// unknown. The application may have to log in and subscribe again.
    FreshPeer {
        /// How often so far.
        count: u64,
    },
    /// In this place a session was lost: what follows belongs to a new one. Where several such places meet, the newest is
    /// returned.
    Gap(Box<Fate>),
}

/// What became of messages to a plain peer, or of messages that a session's server would not accept. A number that was
/// reported before keeps its first fate.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Report {
    /// The messages with these numbers may or may not have been delivered, and are not sent again.
    Unknown(RangeInclusive<u64>),
    /// The messages with these numbers were never written and never will be: the queue was full and they made room for
    /// newer ones, or the client has ended. In a session: they are larger than the server accepts, which was not known
    /// when they were accepted.
    NotDelivered(RangeInclusive<u64>),
    /// The connection ended three times with this message first in line. It is given up.
    Undeliverable {
        /// Its number.
        number: u64,
        /// The message.
        message: Message,
    },
}

/// What happens to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A connection is attached, and messages flow.
    Attached {
        /// The protocol that the peer speaks.
        mode: Mode,
        /// The session continues: nothing was lost.
        resumed: bool,
        /// The number of this attach, from 1.
        epoch: u64,
    },
    /// The connection was lost; the next attempt is under way or waits.
    Detached {
        /// Why.
        why: Lost,
        /// The time until the next attempt.
        next_attempt_in: Duration,
    },
    /// The connection was closed because the application lets the client [rest](super::Client::rest); the next one is dialled
    /// when there is something to send.
    Rested,
    /// An attempt failed.
    AttemptFailed {
        /// Why.
        why: Lost,
        /// The time until the next attempt.
        next_attempt_in: Duration,
    },
    /// A session was lost: what became of the messages that were sent, and which messages of the server will never come.
    Gap(Fate),
    /// A plain peer was attached again. The messages that it sent meanwhile are lost, and their number is unknown. Messages
    /// that were delivered before this event came on the connection before, those after it come on the new one.
    FreshPeer,
    /// What became of messages to a plain peer.
    Report(Report),
    /// A plain peer lives and answers no Ping. Until it does, the fate of what is written to it is unknown, and nothing is
    /// sent again.
    PingsUnanswered,
    /// The plain peer answers Pings.
    PingsAnswered,
    /// A message outside the stream.
    Volatile(Message),
    /// The server dropped messages of its own before it wrote them, as its policy says. Messages that were delivered before
    /// this event stand before the gap, those after it behind.
    Dropped {
        /// The number of the first.
        first: u64,
        /// How many messages.
        count: u64,
        /// Why.
        cause: GapCause,
    },
    /// The connection behind the server was replaced: a gateway's to its backend. Messages that the backend sent meanwhile
    /// may be missing, and their number is unknown; the session itself lost nothing. Messages that were delivered before
    /// this event stand before the replacement, those after it behind.
    Replaced {
        /// How often so far in this session.
        count: u64,
    },
    /// The server judged the credentials that [`Client::authenticate`](super::Client::authenticate) presented.
    Authenticated {
        /// Whether it accepted them; otherwise those before them stay in force.
        accepted: bool,
    },
    /// The client has ended. Nothing follows. [`Client::end`](super::Client::end) returns the same.
    Ended(Box<End>),
}
