//! Why a session ended, as the server reports it.

use crate::ws::CloseCode;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct End {
    /// The side or the event that ended the session.
    pub cause: EndCause,
    /// The code of END or Close, sent by either end. `None` if neither was sent, or if no Close may carry the code.
    pub code: Option<CloseCode>,
    /// The reason that came with the code, or the verdict on a plain client that was declared dead. Empty if there is
    /// none.
    pub reason: String,
}

/// How the peer ended: the code and the reason of its Close or END.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerClose {
    /// The code; `None` if the Close had none, or a code that no Close frame may carry.
    pub code: Option<CloseCode>,
    /// The reason.
    pub reason: String,
}

/// What ended a session. A connection that is replaced by a newer one ends no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndCause {
    /// The client: by END, or by the Close of a plain client.
    Client,
    /// This server's application closed or aborted it, or its handler returned.
    Closed,
    /// An operator ended it.
    Operator,
    /// No message passed for [`idle_timeout`](super::LifetimeConfig::idle_timeout).
    Idle,
    /// The plain connection was older than [`max_lifetime`](super::LifetimeConfig::max_lifetime).
    Old,
    /// The client's credentials have expired, and it presented no others in time.
    Unauthorized,
    /// The server drains its clients.
    Drained,
    /// The client was away for longer than the resume window.
    Expired,
    /// The server needed the memory, or the place for another session.
    Evicted,
    /// The backend behind the server lost its state.
    Replaced,
    /// None: the session goes on at another node, with a new handler.
    Moved,
    /// The client violated the protocol in a way that a reconnection does not repair.
    ProtocolError,
    /// The connection of a plain client ended without a Close, or was declared dead.
    Lost,
    /// The handler panicked.
    Panicked,
}

impl End {
    /// Creates an end with this cause, code and reason.
    #[must_use]
    pub fn new(cause: EndCause, code: Option<CloseCode>, reason: impl Into<String>) -> Self {
        Self { cause, code, reason: reason.into() }
    }
}

impl EndCause {
    /// Returns the cause in one word, for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Closed => "closed",
            Self::Operator => "operator",
            Self::Idle => "idle",
            Self::Old => "old",
            Self::Unauthorized => "unauthorized",
            Self::Drained => "drained",
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Replaced => "replaced",
            Self::Moved => "moved",
            Self::ProtocolError => "protocol_error",
            Self::Lost => "lost",
            Self::Panicked => "panicked",
        }
    }
}
