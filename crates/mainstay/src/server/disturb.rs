//! Fault injection from outside: the verbs of a [`Sender`] that tests and demonstrations need.

use std::ops::RangeInclusive;
use std::time::Duration;

use mainstay_proto::session::EndCause;
use mainstay_proto::session::message::Delay;
use mainstay_proto::ws::CloseCode;

use super::fault::Fault;
use super::sender::Sender;
use crate::clock::now;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Fault injection, for tests and demonstrations.
impl Sender {
    /// Drops the session's connection now, without a closing handshake, as a cut cable does: the client sees a reset, and
    /// data in flight is lost. The session is kept and can be resumed; the session of a plain peer is over. While no
    /// connection is attached it does nothing.
    pub fn cut(&self) {
        self.core.inject(Fault::Cut, now());
    }

    /// Stalls the attached connection for `duration`: it neither reads nor writes, as if this process were frozen. Then it
    /// goes on, and the pause is not held against the client. The handler runs meanwhile, and a client that opens another
    /// connection resumes its session there: the stall does not concern that one. A second call replaces the time, and zero
    /// ends it; so does a client that hangs up, where the connection is TCP without TLS in this process. While no connection
    /// is attached it does nothing. Range: up to a day, and more is a day.
    pub fn hold(&self, duration: Duration) {
        self.core.inject(Fault::Stall, now() + duration.min(DAY));
    }

    /// Asks the client to replace its connection after a time between the two of `delay`, as a server does that goes away
    /// (GOAWAY); nothing is lost. A connection that is still open after `close_in` is closed with 1012; with zero it is not.
    /// A plain peer cannot be asked: its connection is closed with 1012 at once, and its session is over. While no
    /// connection is attached it does nothing. [`Server::drain`](crate::Server::drain) asks every client.
    ///
    /// Source: `docs/PROTOCOL.md` "GOAWAY".
    pub fn go_away(&self, reason: &str, delay: RangeInclusive<Duration>, close_in: Duration) {
        let delay = Delay { min: *delay.start(), max: *delay.end().max(delay.start()) };
        if !self.core.change(|peer| peer.go_away(now(), reason, delay, close_in)) {
            self.core.close(EndCause::Closed, CloseCode::RESTART, reason);
        }
    }
}
