//! One line for each client's end: who it was, how long it stayed, and who ended it why. Level info, target
//! `mainstay::access`; not shown unless `MAINSTAY_LOG` asks for it. A client that comes back to its session makes a
//! line too, by the library (`mainstay::server`).

use std::net::SocketAddr;
use std::time::Instant;

use mainstay::server::{End, EndCause, Session};
use mainstay::{CloseCode, SessionId};

/// A client that is there. Its line is written by [`ended`](Self::ended), or when this is dropped.
pub(crate) struct AccessEntry {
    session: Option<SessionId>,
    peer: Option<SocketAddr>,
    path: Box<str>,
    since: Instant,
    is_written: bool,
}

/// The end that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// The client left, or did not come back in time.
    Client,
    /// The backend closed it, with what follows.
    Backend,
    /// The gateway did, with what follows.
    Gateway,
}

impl EndedBy {
    fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
            Self::Gateway => "gateway",
        }
    }
}

impl AccessEntry {
    /// From here on. `path`: what its request asked for, without the query.
    pub(crate) fn new(session: &Session, path: impl Into<Box<str>>) -> Self {
        Self {
            session: session.id(),
            peer: session.peer().address,
            path: path.into(),
            since: Instant::now(),
            is_written: false,
        }
    }

    /// Writes the line. `cause` is in words; the reason of a close, for example.
    pub(crate) fn ended(mut self, by: EndedBy, code: Option<CloseCode>, cause: &str) {
        self.write(by, code, cause);
    }

    /// Writes the line of a client that no longer sends anything, for the reason that ended its session.
    pub(crate) fn left(self, end: Option<&End>) {
        let (by, cause) = match end.map_or(EndCause::Lost, |end| end.cause) {
            EndCause::Client => (EndedBy::Client, "left"),
            EndCause::Lost => (EndedBy::Client, "is gone without a close"),
            EndCause::Expired => (EndedBy::Client, "did not come back"),
            EndCause::ProtocolError => (EndedBy::Client, "broke the protocol"),
            other => (EndedBy::Gateway, other.as_str()),
        };
        let reason = end.map_or("", |end| &end.reason);
        let cause = if reason.is_empty() { cause.to_owned() } else { format!("{cause}: {reason}") };
        self.ended(by, end.and_then(|end| end.code), &cause);
    }

    fn write(&mut self, by: EndedBy, code: Option<CloseCode>, cause: &str) {
        self.is_written = true;
        let session = session_name(self.session);
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
            "client ended"
        );
    }
}

/// A session in the log.
pub(crate) fn session_name(session: Option<SessionId>) -> String {
    session.map_or_else(|| "plain".to_owned(), |id| id.to_string())
}

impl Drop for AccessEntry {
    fn drop(&mut self) {
        if !self.is_written {
            self.write(EndedBy::Gateway, None, "the gateway ended");
        }
    }
}
