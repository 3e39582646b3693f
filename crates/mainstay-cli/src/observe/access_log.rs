//! The access log: one line for each client that ended, with its session, peer, subject and path, how long it stayed, which end
//! ended it and why. Level info, target `mainstay::access_log`; shown only if `MAINSTAY_LOG` selects it. The library
//! (`mainstay::server`) logs each resume in a line of its own.

use std::time::Instant;

use mainstay::server::{End, EndCause, Sender};
use mainstay::{CloseCode, Session, SessionId};

use crate::clients::identity::subject_of;

/// A connected client. [`ended`](Self::ended) writes its line; dropping it does too.
pub(crate) struct AccessEntry {
    client: Sender,
    path: Box<str>,
    since: Instant,
    is_written: bool,
}

/// The end that ended the client's session or connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// The client closed, disappeared, or did not reconnect in time.
    Client,
    /// The backend closed its connection, or refused the client.
    Backend,
    /// The gateway closed it.
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
    /// Starts the entry. `path`: the path of the client's request, without the query.
    pub(crate) fn new(session: &Session, path: impl Into<Box<str>>) -> Self {
        Self { client: session.sender(), path: path.into(), since: Instant::now(), is_written: false }
    }

    /// Writes the line. `cause` is a phrase, for example the reason of a Close.
    pub(crate) fn ended(mut self, by: EndedBy, code: Option<CloseCode>, cause: &str) {
        self.write(by, code, cause);
    }

    /// Writes the line with the reason that ended the session.
    pub(crate) fn left(self, end: Option<&End>) {
        let (by, cause) = match end.map_or(EndCause::Lost, |end| end.cause) {
            EndCause::Client => (EndedBy::Client, "closed"),
            EndCause::Lost => (EndedBy::Client, "disappeared without a Close"),
            EndCause::Expired => (EndedBy::Client, "did not reconnect within the resume window"),
            EndCause::ProtocolError => (EndedBy::Client, "violated the protocol"),
            other => (EndedBy::Gateway, other.as_str()),
        };
        let reason = end.map_or("", |end| &end.reason);
        let cause = if reason.is_empty() { cause.to_owned() } else { format!("{cause}: {reason}") };
        self.ended(by, end.and_then(|end| end.code), &cause);
    }

    fn write(&mut self, by: EndedBy, code: Option<CloseCode>, cause: &str) {
        self.is_written = true;
        let session = session_name(self.client.id());
        let peer = self.client.peer();
        let subject = subject_of(&peer.principal);
        let peer = peer.address.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
        let (code, stayed_ms) = (code.map(CloseCode::get), self.since.elapsed().as_millis() as u64);
        tracing::info!(
            target: "mainstay::access_log",
            session,
            peer,
            subject,
            path = &*self.path,
            by = by.label(),
            code,
            cause,
            stayed_ms,
            "client ended"
        );
    }
}

/// Returns the name of a session in the log.
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
