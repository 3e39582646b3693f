//! What both ends of a session do alike: number and keep what goes out, count and hand over what
//! comes in, acknowledge, and check that both ends counted the same.
//!
//! A [`Lane`] is one connection's place in the two streams. No number travels with a message, so the
//! place is all there is: it starts where HELLO and WELCOME say and moves by one with every message
//! written or read. The flow outlives its lanes.
//!
//! Not here: who may attach ([`registry`](super::registry)), what an attach does to either end
//! ([`server`](super::server), [`client`](super::client)).

use std::time::Instant;

use super::error::SessionError;
use super::inbox::{Delivery, Inbox};
use super::message::{Beat, Control, GapCause, Message, Window};
use super::outbox::{Next, Outbox};
use super::transmit::Transmit;
use crate::queue::ByteQueue;

/// One connection's position in each direction: the number last written and last read there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Lane {
    pub(super) wrote: u64,
    pub(super) read: u64,
}

/// Messages outside the stream that wait for a slow connection, or for a slow application. The newest are worth most. One
/// word while there are none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Volatiles(Option<Box<ByteQueue<Message>>>);

impl Volatiles {
    /// Appends a message and drops the oldest above `limit`.
    pub(crate) fn push(&mut self, message: Message, limit: Window) {
        self.0.get_or_insert_default().push_dropping_oldest(message, limit);
    }

    /// Removes the oldest message.
    pub(crate) fn pop(&mut self) -> Option<Message> {
        let queue = self.0.as_mut()?;
        let message = queue.pop();
        if queue.items().is_empty() {
            self.0 = None;
        }
        message
    }

    /// The payload bytes of all messages.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |queue| queue.bytes())
    }

    pub(super) fn transmit(&mut self) -> Option<Transmit> {
        self.pop().map(|message| Transmit::control(&Control::Volatile(message)))
    }
}

/// Bounds of one end. Every field has the default of `docs/DEFAULTS.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowConfig {
    /// What this end keeps until it is acknowledged. A full buffer makes the sender wait.
    pub keep: Window,
    /// What this end lets the peer write above what it acknowledged.
    pub accept: Window,
    /// Whether the application confirms what it has handled (`true`), or being handed a message
    /// counts as received (`false`, the default).
    pub manual_ack: bool,
    /// The payload of the largest message that this end takes, which it tells the peer. Default: not bounded here, and
    /// nothing is told.
    pub max_message: Option<u64>,
}

impl FlowConfig {
    /// Whether this end takes a message of the peer.
    pub(super) fn check(&self, message: &Message) -> Result<(), SessionError> {
        let length = message.len() as u64;
        match self.max_message {
            Some(limit) if length > limit => Err(SessionError::MessageTooBig { length, limit }),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) outbox: Outbox,
    pub(super) inbox: Inbox,
    /// PONGs owed, by nonce; only the newest is answered.
    pong: Option<u64>,
}

impl Flow {
    pub(super) fn new(config: &FlowConfig, peer: Window) -> Self {
        Self {
            outbox: Outbox::new(config.keep, peer),
            inbox: Inbox::new(config.accept, config.manual_ack),
            pong: None,
        }
    }

    /// Reads a numbered message. What was taken before moves the position and is dropped.
    pub(super) fn read_message(&mut self, lane: &mut Lane, message: Message) -> Result<(), SessionError> {
        if lane.read + 1 > self.inbox.received() {
            self.inbox.take(message)?;
        }
        lane.read += 1;
        Ok(())
    }

    pub(super) fn read_gap(
        &mut self,
        lane: &mut Lane,
        first: u64,
        count: u64,
        cause: GapCause,
    ) -> Result<(), SessionError> {
        if first != lane.read + 1 {
            return Err(SessionError::PositionMismatch { sent: first.saturating_sub(1), read: lane.read });
        }
        self.inbox.take_gap(lane.read + count, cause)?;
        lane.read += count;
        Ok(())
    }

    pub(super) fn read_acknowledgement(
        &mut self,
        acknowledged: u64,
        window: Option<Window>,
    ) -> Result<(), SessionError> {
        self.outbox.acknowledge(acknowledged)?;
        if let Some(window) = window {
            self.outbox.set_peer_window(window);
        }
        Ok(())
    }

    pub(super) fn read_ping(&mut self, lane: &Lane, beat: Beat) -> Result<(), SessionError> {
        self.read_pong(lane, beat)?;
        self.pong = Some(beat.nonce);
        Ok(())
    }

    /// Compares positions, then takes the acknowledgement.
    pub(super) fn read_pong(&mut self, lane: &Lane, beat: Beat) -> Result<(), SessionError> {
        if beat.sent != lane.read {
            return Err(SessionError::PositionMismatch { sent: beat.sent, read: lane.read });
        }
        self.outbox.acknowledge(beat.acknowledged)
    }

    /// The control message that is owed now, if any: a PONG, or an acknowledgement.
    pub(super) fn write_owed(&mut self, now: Instant, lane: &Lane) -> Option<Transmit> {
        if let Some(pong) = self.write_pong(lane) {
            return Some(pong);
        }
        if self.inbox.acknowledgement_due(now) {
            return Some(self.write_acknowledgement());
        }
        None
    }

    pub(super) fn write_pong(&mut self, lane: &Lane) -> Option<Transmit> {
        let nonce = self.pong.take()?;
        Some(Transmit::control(&Control::Pong(self.beat(nonce, lane))))
    }

    pub(super) fn write_acknowledgement(&mut self) -> Transmit {
        Transmit::control(&Control::Ack { acknowledged: self.inbox.ack(), window: None })
    }

    pub(super) fn write_ping(&mut self, nonce: u64, lane: &Lane) -> Transmit {
        Transmit::control(&Control::Ping(self.beat(nonce, lane)))
    }

    fn beat(&mut self, nonce: u64, lane: &Lane) -> Beat {
        Beat { nonce, sent: lane.wrote, acknowledged: self.inbox.ack() }
    }

    /// The next numbered message for this lane, if the peer's window has room.
    pub(super) fn write_message(&mut self, lane: &mut Lane) -> Option<Transmit> {
        let (transmit, last) = match self.outbox.next(lane.wrote)? {
            Next::Message(message) => (Transmit::Message(message.clone()), lane.wrote + 1),
            Next::Gap { last } => {
                let (first, count) = (lane.wrote + 1, last - lane.wrote);
                let gap = Control::Gap { first, count, cause: GapCause::Overflow };
                (Transmit::control(&gap), last)
            }
        };
        lane.wrote = last;
        self.outbox.note_written(lane.wrote);
        Some(transmit)
    }

    pub(super) fn deliver(&mut self, now: Instant) -> Option<Delivery> {
        self.inbox.deliver(now)
    }

    /// A connection is gone: what it owed goes with it.
    pub(super) fn forget_owed(&mut self) {
        self.pong = None;
    }

    /// Everything sent was acknowledged.
    pub(super) fn is_flushed(&self) -> bool {
        self.outbox.acknowledged() == self.outbox.last()
    }
}
