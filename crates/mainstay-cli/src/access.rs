//! One line for each visitor's end: who it was, how long it stayed, and who ended it why. Level info, target
//! `mainstay::access`; not shown unless `MAINSTAY_LOG` asks for it. A visitor that comes back to its session makes a
//! line too, by the library (`mainstay::server`).

use std::net::SocketAddr;
use std::time::Instant;

use mainstay::server::{End, EndCause};
use mainstay::{CloseCode, Session, SessionId};

/// A visitor that is there. Its line is written by [`ended`](Self::ended), or when this is dropped.
pub(crate) struct Visitor {
    session: Option<SessionId>,
    peer: Option<SocketAddr>,
    path: Box<str>,
    since: Instant,
    is_told: bool,
}

/// The end that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The visitor left, or did not come back in time.
    Visitor,
    /// The backend closed it, with what follows.
    Backend,
    /// The gateway did, with what follows.
    Gateway,
}

impl By {
    fn label(self) -> &'static str {
        match self {
            Self::Visitor => "visitor",
            Self::Backend => "backend",
            Self::Gateway => "gateway",
        }
    }
}

impl Visitor {
    /// From here on. `path`: what its request asked for, without the query.
    pub(crate) fn new(session: &Session, path: impl Into<Box<str>>) -> Self {
        Self {
            session: session.id(),
            peer: session.peer().address,
            path: path.into(),
            since: Instant::now(),
            is_told: false,
        }
    }

    /// Writes the line. `cause` is in words; the reason of a close, for example.
    pub(crate) fn ended(mut self, by: By, code: Option<CloseCode>, cause: &str) {
        self.write(by, code, cause);
    }

    /// Writes the line of a visitor that no longer sends anything, for the reason that ended its session.
    pub(crate) fn left(self, end: Option<&End>) {
        let (by, cause) = match end.map_or(EndCause::Lost, |end| end.cause) {
            EndCause::Client => (By::Visitor, "left"),
            EndCause::Lost => (By::Visitor, "is gone without a close"),
            EndCause::Expired => (By::Visitor, "did not come back"),
            EndCause::ProtocolError => (By::Visitor, "broke the protocol"),
            other => (By::Gateway, other.as_str()),
        };
        let reason = end.map_or("", |end| &end.reason);
        let cause = if reason.is_empty() { cause.to_owned() } else { format!("{cause}: {reason}") };
        self.ended(by, end.and_then(|end| end.code), &cause);
    }

    fn write(&mut self, by: By, code: Option<CloseCode>, cause: &str) {
        self.is_told = true;
        let session = name(self.session);
        let peer = self.peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
        let (code, stayed_ms) = (code.map(CloseCode::get), self.since.elapsed().as_millis() as u64);
        tracing::info!(
            session,
            peer,
            path = &*self.path,
            by = by.label(),
            code,
            cause,
            stayed_ms,
            "visitor ended"
        );
    }
}

/// A session in the log.
pub(crate) fn name(session: Option<SessionId>) -> String {
    session.map_or_else(|| "plain".to_owned(), |id| id.to_string())
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if !self.is_told {
            self.write(By::Gateway, None, "the gateway ended");
        }
    }
}
