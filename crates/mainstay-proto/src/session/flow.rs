//! What both ends of a session have in common: they number and keep what they send, count and deliver what they
//! receive, acknowledge, and check that both ends counted the same.
//!
//! A [`Lane`] is the position of one connection in the two streams. No number travels with a message, so the position
//! is all there is: it starts where HELLO and WELCOME say, and advances by one with every message that is written or
//! read. The flow outlives its lanes.
//!
//! Not here: which connection may attach ([`registry`](super::registry)), and what an attach does to either end
//! ([`server`](super::server), [`client`](super::client)).

use std::time::Instant;

use super::error::SessionError;
use super::inbox::{Delivery, Inbox};
use super::message::{Beat, Control, GapCause, Message, Window};
use super::outbox::{Next, Outbox};
use super::state::{Inbound, Outbound};
use super::transmit::Transmit;
use crate::queue::ByteQueue;

/// The position of one connection in each direction: the number of the message last written, and last read, there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Lane {
    pub(super) wrote: u64,
    pub(super) read: u64,
}

/// Messages outside the stream that wait for a slow connection, or for a slow application. The newest messages are
/// the most valuable. One word in size while it is empty.
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
    /// How much the peer may write above what this end acknowledged.
    pub accept: Window,
    /// Whether the application acknowledges messages itself (`true`), or a delivery counts as acknowledgement
    /// (`false`, the default).
    pub manual_ack: bool,
    /// The largest payload that this end accepts, announced to the peer. Default: no limit here, and none is
    /// announced.
    pub max_message: Option<u64>,
}

impl FlowConfig {
    /// Checks a message of the peer against the limit of this end.
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
    /// The nonce of the PONG to send; only the newest PING is answered.
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

    /// Continues the streams of a session that another node had.
    pub(super) fn from_state(inbound: &Inbound, outbound: Outbound) -> Self {
        Self { outbox: Outbox::from_state(outbound), inbox: Inbox::from_state(inbound), pong: None }
    }

    /// Reads a numbered message. A message that was received before advances the position and is dropped.
    pub(super) fn read_message(&mut self, lane: &mut Lane, message: Message) -> Result<(), SessionError> {
        if lane.read + 1 > self.inbox.received() {
            self.inbox.receive(message)?;
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
        self.inbox.receive_gap(lane.read + count, cause)?;
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

    /// Compares the positions, then applies the acknowledgement.
    pub(super) fn read_pong(&mut self, lane: &Lane, beat: Beat) -> Result<(), SessionError> {
        if beat.sent != lane.read {
            return Err(SessionError::PositionMismatch { sent: beat.sent, read: lane.read });
        }
        self.outbox.acknowledge(beat.acknowledged)
    }

    /// Returns the control message that is due now: a PONG, or an acknowledgement.
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

    /// Returns the next numbered message for this lane, if the peer's window has room.
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

    /// A connection is gone: forgets the PONG that it had to carry.
    pub(super) fn forget_owed(&mut self) {
        self.pong = None;
    }

    /// Whether everything that was sent is acknowledged.
    pub(super) fn is_flushed(&self) -> bool {
        self.outbox.acknowledged() == self.outbox.last()
    }
}
