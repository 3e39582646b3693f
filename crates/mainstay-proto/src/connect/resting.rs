//! Towards a plain peer: a client at rest, without a connection until there is something to send.
//!
//! A gateway with many idle clients needs no connection to the server for each of them. The connection is closed in order,
//! and what the peer sends before its Close is still delivered. The next connection is a replacement as any other: the peer
//! is fresh, and what it sent to others meanwhile did not reach this client.

use std::time::Instant;

use super::peer::Plain;
use super::{Client, Command, Dial, Event, Lost, Reads};
use crate::session::{CLOSE_TIMEOUT, ConnectionId, Transmit};
use crate::ws::CloseCode;

impl Client {
    /// Closes the connection to a plain peer, and dials no other before a message waits to be sent or
    /// [`probe_now`](Self::probe_now) is called. Returns whether it did: only on an attached connection that is not held back,
    /// once every message is confirmed, and while the client is not closing. [`Event::Rested`] follows the peer's Close, or 10 s without it.
    pub fn rest(&mut self, now: Instant, code: CloseCode, reason: &str) -> bool {
        self.forward.check(now);
        let is_idle = self.closing.is_none() && self.end.is_none() && self.dial == Dial::Rest;
        let flushed = |plain: &&mut Plain| plain.ahead.is_none() && plain.confirmer.is_flushed();
        let plain = self.peer.plain_mut().filter(flushed);
        let (Some(attached), Some(plain), true) = (&self.attached, plain, is_idle) else { return false };
        plain.confirmer.settle_confirmed();
        let close = Transmit::Close { code, reason: reason.to_owned() };
        self.commands.push_back(Command::Transmit(attached.connection, close));
        self.dial = Dial::Resting { until: now + CLOSE_TIMEOUT };
        true
    }

    /// The connection of a client that rests, or is about to, has ended.
    pub(super) fn handle_rested(&mut self, now: Instant) {
        self.dial = Dial::Resting { until: now };
        self.events.push_back(Event::Rested);
    }

    /// The time of a rest: its Close was not answered, or something waits to be sent.
    pub(super) fn end_rest(&mut self, now: Instant) {
        match self.attached.as_ref().map(|attached| attached.connection) {
            Some(connection) => self.drop_resting(now, connection),
            None => self.dial(now),
        }
    }

    /// The application needs the peer now. Returns whether the client was at rest.
    pub(super) fn wake(&mut self, now: Instant) -> bool {
        if !self.is_resting() {
            return false;
        }
        if let Some(connection) = self.attached.as_ref().map(|attached| attached.connection) {
            self.drop_resting(now, connection);
        }
        self.dial = Dial::Waiting { until: now };
        true
    }

    fn drop_resting(&mut self, now: Instant, connection: ConnectionId) {
        self.abort_connection(connection);
        self.handle_lost(now, connection, Lost::NoAnswer { within: CLOSE_TIMEOUT });
    }

    pub(super) fn is_resting(&self) -> bool {
        matches!(self.dial, Dial::Resting { .. })
    }

    /// Whether messages are kept that need a connection.
    fn has_kept(&self) -> bool {
        self.settled() < self.peer.last()
    }

    /// Returns when a rest needs [`end_rest`](Self::end_rest).
    pub(super) fn rest_due(&self, until: Instant) -> Option<Instant> {
        (self.attached.is_some() || self.has_kept()).then_some(until)
    }

    /// The application closes a client whose Close for a rest is not answered yet: no other Close is sent on that connection.
    pub(super) fn close_rest(&mut self, now: Instant) {
        let (true, Some(attached)) = (self.is_resting(), &self.attached) else { return };
        let (connection, has_kept) = (attached.connection, self.has_kept());
        match &mut self.closing {
            Some(closing) if closing.reads == Reads::UntilTheirs => closing.reads = Reads::OnlyTheirs,
            // A message that was sent meanwhile needs another connection.
            _ if has_kept => return,
            _ => {
                self.attached = None;
                self.lingering = Some((connection, now + CLOSE_TIMEOUT));
            }
        }
        self.dial = Dial::Rest;
    }
}
