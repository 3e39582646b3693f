//! Messages that the application sends, receives and acknowledges, and credentials that it judges.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Auth, Hold, Life, ServerSession};
use crate::session::inbox::Delivery;
use crate::session::lifetime::{Expiry, Lifetime};
use crate::session::message::Message;
use crate::session::names::Name;
use crate::session::transmit::ConnectionId;

/// AUTH_RESULT counts in whole milliseconds, and 0 means no limit.
const SHORTEST: Duration = Duration::from_millis(1);

impl ServerSession {
    /// Accepts a message for the peer and returns its number. The session keeps the message until the peer
    /// acknowledges it.
    ///
    /// # Errors
    /// Returns the message if the buffer is full, the session is ending, or the message is [larger than the client
    /// accepts](Self::largest).
    pub fn send(&mut self, message: Message) -> Result<u64, Message> {
        self.send_within(message, u64::MAX)
    }

    /// Like [`send`](Self::send), but keeps no more than `room` bytes.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_within(&mut self, message: Message, room: u64) -> Result<u64, Message> {
        match self.life {
            Life::Parked { .. } | Life::Attached => self.flow.outbox.push_within(message, room),
            _ => Err(message),
        }
    }

    /// Like [`send_within`](Self::send_within), but a full buffer drops the oldest message that was never written.
    /// The client receives a gap in its place.
    ///
    /// # Errors
    /// Returns the message if the session is ending, or the message is [larger than the client
    /// accepts](Self::largest).
    pub fn send_dropping_oldest(&mut self, message: Message, room: u64) -> Result<u64, Message> {
        if self.is_open() { self.flow.outbox.push_dropping_oldest(message, room) } else { Err(message) }
    }

    /// Reports that the application leaves out `count` messages at this place of the stream, because the client does not
    /// keep up: the client receives a gap.
    pub fn skip(&mut self, count: u64) {
        if self.is_open() {
            self.flow.outbox.skip(count);
        }
    }

    /// Whether `send` would accept a message of `length` bytes.
    #[must_use]
    pub fn has_room(&self, length: usize) -> bool {
        self.flow.outbox.has_room(length, u64::MAX)
    }

    /// Returns the largest payload that the client accepts; `u64::MAX` if the client announced no limit.
    #[must_use]
    pub fn largest(&self) -> u64 {
        self.flow.outbox.largest()
    }

    /// Sends a message that is not numbered, kept or replayed. It is dropped while no connection is attached.
    pub fn send_volatile(&mut self, message: Message) {
        if let Some(attached) = &mut self.attached {
            attached.volatiles.push(message, self.config.volatile_queue);
        }
    }

    /// Returns the next message or gap for the application, in order. Its delivery counts as its acknowledgement,
    /// except in manual mode.
    pub fn deliver(&mut self, now: Instant) -> Option<Delivery> {
        let may_deliver = self.is_open() || matches!(self.life, Life::EndReceived { .. });
        if self.hold != Hold::No || !may_deliver {
            return None;
        }
        let delivery = self.flow.deliver(now);
        self.answer_end_if_delivered();
        delivery
    }

    /// Returns the next message from outside the stream. These messages have no numbers: an application that polls
    /// the stream first misses no numbered message.
    pub fn deliver_volatile(&mut self) -> Option<Message> {
        self.delivers().then(|| self.volatiles.pop()).flatten()
    }

    /// Whether something may still be delivered: the session is open, or the client ended it and earlier messages
    /// wait. After this end closed the session, and once it [leaves](Self::leave), nothing is delivered.
    #[must_use]
    pub fn delivers(&self) -> bool {
        (self.is_open() && !matches!(self.hold, Hold::Leaving { .. }))
            || matches!(self.life, Life::EndReceived { .. })
    }

    /// Returns credentials that the client sent for the live session, once each. The application judges them and
    /// reports the verdict with [`handle_verdict`](Self::handle_verdict).
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

    /// Reports what the credentials from `connection` prove, a principal and for how long; `None` refuses them. A principal
    /// other than the session's is refused too. The client receives the verdict. Returns whether the credentials were
    /// accepted; the session goes on in either case, until those that it had expire.
    pub fn handle_verdict(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        proof: Option<(&[u8], Option<Expiry>)>,
    ) -> bool {
        let proof = proof.filter(|(principal, _)| Name::of_principal(principal) == self.principal);
        let attached = self.attached.as_mut().filter(|a| a.connection == connection);
        // A verdict that comes after the connection was lost is not sent: the next HELLO carries credentials.
        if let Some(attached) = attached.filter(|a| a.auth == Some(Auth::Judging)) {
            let expiry = proof.and_then(|(_, expiry)| expiry);
            let expires_in = expiry.map_or(Duration::ZERO, |expiry| expiry.expires_in.max(SHORTEST));
            attached.auth = Some(Auth::Judged { accepted: proof.is_some(), expires_in });
            if proof.is_some() {
                Lifetime::set_expiry(&mut attached.lifetime, now, expiry);
            }
        }
        proof.is_some()
    }

    /// Sets how long the credentials hold with which the client attached `connection`; `None`: for as long as the
    /// connection. Once they have expired, GOAWAY asks the client to come back with others; one that does not within the
    /// grace is ended with 4501. While the session is parked, nothing expires: the next HELLO is judged.
    pub fn set_expiry(&mut self, now: Instant, connection: ConnectionId, expiry: Option<Expiry>) {
        if let Some(attached) = self.attached.as_mut().filter(|a| a.connection == connection) {
            Lifetime::set_expiry(&mut attached.lifetime, now, expiry);
        }
    }

    /// Switches to manual mode: from now on the application acknowledges with [`acknowledge`](Self::acknowledge).
    /// Call it before anything is delivered.
    pub fn manual_ack(&mut self) {
        self.flow.inbox.manual_ack();
    }

    /// From now on a full buffer drops the oldest message that was never written, which may be the new one. The
    /// client receives a gap. [`send`](Self::send) accepts every message while the session is open.
    pub fn drop_oldest_when_full(&mut self) {
        self.flow.outbox.drop_oldest_when_full();
    }

    /// Returns how many messages were dropped to make room.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.flow.outbox.dropped()
    }

    /// In manual mode: acknowledges the `count` oldest messages that were delivered and are not acknowledged.
    pub fn acknowledge_oldest(&mut self, now: Instant, count: u64) {
        self.flow.inbox.acknowledge_oldest(now, count);
    }

    /// In manual mode: acknowledges everything up to and including `number`, as far as it was delivered.
    pub fn acknowledge(&mut self, now: Instant, number: u64) {
        self.flow.inbox.acknowledge(now, number);
    }

    /// Records that the connection behind this server was replaced, after everything that was accepted for the client
    /// so far. The client receives the mark at this place of its stream; if a connection is lost, the next one
    /// carries the mark again.
    pub fn note_replaced(&mut self) {
        let (after, acknowledged) = (self.flow.outbox.last(), self.flow.outbox.acknowledged());
        self.rare.get_or_insert_default().replaced.add(after, acknowledged);
    }
}
