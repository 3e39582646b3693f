//! What tests and demonstrations do to the connection of a session: cut it, hold it, send it away.
//!
//! A handle says what is to be done, and the session's task does it at its next turn. It concerns the one connection
//! that is attached then, never the next one of the session. A session that nobody meddles with pays for this with an
//! empty pointer.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use mainstay_proto::session::ConnectionId;
use mainstay_proto::session::message::Delay;
use mainstay_proto::ws::CloseCode;

use super::core::{Core, Inner, Peer};
use super::session::Sender;
use crate::clock::now;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Until `at` the connection neither reads nor writes.
pub(super) struct Act {
    /// `None`: a plain peer's only one.
    connection: Option<ConnectionId>,
    pub(super) at: Instant,
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Cut,
    GoOn,
}

impl Sender {
    /// Drops the session's connection now, without a closing handshake, as a cable that is cut: the client sees it
    /// reset, and what was under way is lost with it. The session is kept and can be resumed; a plain peer's is over.
    /// While no connection is attached it does nothing.
    ///
    /// For tests and demonstrations.
    pub fn cut(&self) {
        self.core.meddle(now(), Then::Cut);
    }

    /// Has the connection that is attached now neither read nor write for so long, as if this process were frozen;
    /// then it goes on, and knows that the pause was no fault of the client. The handler runs on meanwhile, and a
    /// client that opens another connection resumes its session there: that one is not held. Holding again replaces
    /// the time, and zero ends it; so does a client that hangs up, where the connection is TCP without TLS in this
    /// process. While no connection is attached it does nothing. Range: up to a day, and more is a day.
    ///
    /// For tests and demonstrations.
    pub fn hold(&self, duration: Duration) {
        self.core.meddle(now() + duration.min(DAY), Then::GoOn);
    }

    /// Asks the client to replace its connection after a time between the two of `delay`, as a server does that goes
    /// away (GOAWAY); nothing is lost. A connection that is still there after `close_in` is closed with 1012;
    /// zero: it is not. Plain peers cannot be asked: theirs is closed with 1012 at once, and their session is over.
    /// While no connection is attached it does nothing.
    ///
    /// For tests and demonstrations; [`Server::drain`](super::Server::drain) sends everyone away.
    ///
    /// Source: `docs/PROTOCOL.md` "GOAWAY".
    pub fn go_away(&self, reason: &str, delay: RangeInclusive<Duration>, close_in: Duration) {
        let delay = Delay { min: *delay.start(), max: *delay.end().max(delay.start()) };
        match self.core.with_session(|session| session.go_away(now(), reason, delay, close_in)) {
            Some(()) => self.core.signal.ask(),
            None => self.core.close(CloseCode::RESTART, reason),
        }
    }
}

impl Core {
    fn meddle(&self, at: Instant, then: Then) {
        let mut inner = self.lock();
        let connection = inner.connection();
        if connection.is_some() || matches!(inner.peer, Peer::Plain(_)) {
            inner.act = Some(Box::new(Act { connection, at, then }));
        }
        drop(inner);
        self.signal.ask();
    }
}

impl Inner {
    fn connection(&self) -> Option<ConnectionId> {
        match &self.peer {
            Peer::Session(session) => session.connection(),
            Peer::Plain(_) => None,
        }
    }

    /// Whether nothing is to be read from this connection, or written to it.
    pub(super) fn is_held(&self, connection: ConnectionId) -> bool {
        self.act.as_ref().is_some_and(|act| act.concerns(connection))
    }

    /// What is to be done to this connection now. An act is forgotten when its connection was replaced, or has nobody
    /// at its other end.
    pub(super) fn take_act(&mut self, now: Instant, connection: ConnectionId, hung_up: bool) -> Option<Then> {
        let attached = self.connection();
        let is_closed = |act: &mut Box<Act>| {
            act.connection != attached || (act.concerns(connection) && (hung_up || act.at <= now))
        };
        let act = self.act.take_if(is_closed)?;
        act.concerns(connection).then_some(act.then)
    }
}

impl Act {
    pub(super) fn concerns(&self, connection: ConnectionId) -> bool {
        self.connection.is_none_or(|meant| meant == connection)
    }
}
