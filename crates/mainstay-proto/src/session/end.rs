//! Why a session ended, in the words of the end that serves it.

use crate::ws::CloseCode;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct End {
    /// Which side ended it, or what did.
    pub cause: EndCause,
    /// The code of END or Close: the client's, or ours. `None`: neither was sent, or its code is none that a Close may
    /// carry.
    pub code: Option<CloseCode>,
    /// The reason that went with the code, or the verdict on a plain client that was called dead; empty where there was
    /// none.
    pub reason: String,
}

/// What ended a session. A connection that gives way to a newer one ends no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndCause {
    /// The client: by END, or by the Close of a plain one.
    Client,
    /// This server's application closed or aborted it, or its handler returned.
    Closed,
    /// No message passed for [`idle_timeout`](super::LifetimeConfig::idle_timeout).
    Idle,
    /// The plain connection was older than [`max_lifetime`](super::LifetimeConfig::max_lifetime).
    Old,
    /// The server drains.
    Drained,
    /// The client stayed away for longer than the resume window.
    Expired,
    /// The server needed the memory, or the place.
    Evicted,
    /// What stood behind the server lost its state.
    Replaced,
    /// The client broke the protocol in a way that no reconnection mends.
    ProtocolError,
    /// The connection of a plain client ended, or was called dead, without a Close.
    Lost,
    /// The handler panicked.
    Panicked,
}

impl End {
    /// For this cause, with this code and reason.
    #[must_use]
    pub fn new(cause: EndCause, code: Option<CloseCode>, reason: impl Into<String>) -> Self {
        Self { cause, code, reason: reason.into() }
    }
}

impl EndCause {
    /// The cause in one word, for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::Old => "old",
            Self::Drained => "drained",
            Self::Expired => "expired",
            Self::Evicted => "evicted",
            Self::Replaced => "replaced",
            Self::ProtocolError => "protocol_error",
            Self::Lost => "lost",
            Self::Panicked => "panicked",
        }
    }
}
