//! What the application sends, is delivered and acknowledges, and the credentials that it judges.

use std::time::Instant;

use bytes::Bytes;

use super::{Auth, Life, ServerSession};
use crate::session::inbox::Delivery;
use crate::session::message::Message;
use crate::session::names::Name;
use crate::session::transmit::ConnectionId;

impl ServerSession {
    /// Accepts a message for the peer and returns its number; it is kept until acknowledged.
    ///
    /// # Errors
    /// Gives the message back when the buffer is full, the session is ending, or the client does not
    /// [take](Self::largest) it.
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        self.send_within(message, u64::MAX)
    }

    /// As [`send`](Self::send), where no more than `room` bytes may be kept.
    ///
    /// # Errors
    /// As there.
    pub fn send_within(&mut self, message: Message, room: u64) -> Result<u64, Message> {
        match self.life {
            Life::Parked { .. } | Life::Attached => self.flow.outbox.push_within(message, room),
            _ => Err(message),
        }
    }

    /// As [`send_within`](Self::send_within), where a full buffer drops the oldest message that was never written, and the
    /// client is told of a gap.
    ///
    /// # Errors
    /// Gives the message back when the session is ending, or the client does not [take](Self::largest) it.
    pub fn send_dropping_oldest(&mut self, message: Message, room: u64) -> Result<u64, Message> {
        if self.is_open() { self.flow.outbox.push_dropping_oldest(message, room) } else { Err(message) }
    }

    /// Whether `send` would accept a message of this many bytes.
    #[must_use]
    pub fn has_room(&self, length: usize) -> bool {
        self.flow.outbox.has_room(length, u64::MAX)
    }

    /// The payload of the largest message that the client takes, as far as it said.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.flow.outbox.largest()
    }

    /// Writes a message that is not numbered, kept or replayed. Dropped while nobody is attached.
    pub fn send_volatile(&mut self, message: Message) {
        if let Some(attached) = &mut self.attached {
            attached.volatiles.push(message, self.config.volatile_queue);
        }
    }

    /// The next message or gap for the application, in order. Handed over means received, unless the
    /// application confirms by itself.
    pub fn deliver(&mut self, now: Instant) -> Option<Delivery> {
        self.forward.check(now);
        if !self.delivers() {
            return None;
        }
        let delivery = self.flow.deliver(now);
        self.answer_end_if_delivered();
        delivery
    }

    /// The next message from outside the stream. It was never counted: whoever asks for those of the
    /// stream first misses nothing that is kept.
    pub fn deliver_volatile(&mut self) -> Option<Message> {
        self.delivers().then(|| self.volatiles.pop()).flatten()
    }

    /// Whether something may still be handed over: the session is open, or its client ended it and what came before is
    /// waiting. The end that closes hands over nothing more.
    #[must_use]
    pub fn delivers(&self) -> bool {
        self.is_open() || matches!(self.life, Life::EndReceived { .. })
    }

    /// Credentials that the client sent for the live session, once each: the application judges them, and
    /// [`handle_verdict`](Self::handle_verdict) takes what it said.
    pub fn poll_auth(&mut self) -> Option<(ConnectionId, Bytes)> {
        let attached = self.attached.as_mut()?;
        match attached.auth.replace(Auth::Judging) {
            Some(Auth::Asked(credentials)) => Some((attached.connection, credentials.0)),
            other => {
                attached.auth = other;
                None
            }
        }
    }

    /// Who the credentials from `connection` prove that the client is; `None`: they were refused. Another
    /// principal than the session's is refused too. Tells the client, and returns whether they were
    /// accepted; either way the session goes on.
    pub fn handle_verdict(&mut self, connection: ConnectionId, principal: Option<&[u8]>) -> bool {
        let accepted = principal.is_some_and(|principal| Name::of_principal(principal) == self.principal);
        let attached = self.attached.as_mut().filter(|a| a.connection == connection);
        // A verdict that comes after its connection was lost tells nobody: the next HELLO has credentials.
        if let Some(attached) = attached.filter(|a| a.auth == Some(Auth::Judging)) {
            attached.auth = Some(Auth::Judged { accepted });
        }
        accepted
    }

    /// From now on the application confirms what it has handled, with [`confirm`](Self::confirm). Call it
    /// before anything is handed over.
    pub fn manual_ack(&mut self) {
        self.flow.inbox.manual_ack();
    }

    /// From now on a full buffer drops the oldest message that was never written, which may be the new one,
    /// and the client is told of a gap; [`send`](Self::send) refuses nothing while the session is open.
    pub fn drop_oldest_when_full(&mut self) {
        self.flow.outbox.drop_oldest_when_full();
    }

    /// How many messages were dropped to make room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.flow.outbox.dropped()
    }

    /// In manual mode: the `count` oldest messages that were handed over and are not confirmed are handled.
    pub fn acknowledge_oldest(&mut self, now: Instant, count: u64) {
        self.flow.inbox.acknowledge_oldest(now, count);
    }

    /// In manual mode: everything up to and including `number` is handled, as far as it was handed over.
    pub fn acknowledge(&mut self, now: Instant, number: u64) {
        self.flow.inbox.acknowledge(now, number);
    }

    /// The connection behind this server was replaced, after everything that was accepted for the client so far. The
    /// client is told in this place of its stream, over as many connections as that takes.
    pub fn note_replaced(&mut self) {
        let (after, acknowledged) = (self.flow.outbox.last(), self.flow.outbox.acknowledged());
        self.replaced.get_or_insert_default().add(after, acknowledged);
    }
}
