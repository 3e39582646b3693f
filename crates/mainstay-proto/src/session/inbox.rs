//! Messages that arrived and wait for the application, and the acknowledgements that the peer gets for them.
//!
//! Three counts, each at most the one before: `received` (read from a connection), `delivered` (returned by the
//! application's receive call) and `acknowledged` (equal to `delivered`; in manual mode what the application
//! acknowledged). The queue between `received` and `delivered` outlives connections. The receive path decides when to
//! acknowledge; the deadline is only the fallback.
//!
//! Source: `docs/PROTOCOL.md` "Sequence rules" 2 and 5.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::error::SessionError;
use super::message::{GapCause, Message, Window};
use super::state::Inbound;
use crate::queue::{ByteQueue, Counted};

/// Acknowledge at the latest after this many messages.
const ACK_MESSAGES: u64 = 32;
/// Acknowledge at the latest after this many payload bytes: the peer keeps all of them, and memory that is reused
/// soon is still in the cache of its processor.
const ACK_BYTES: u64 = 64 * 1024;
/// Acknowledge at the latest this long after a message was delivered.
const ACK_DELAY: Duration = Duration::from_millis(250);

/// An item of a session's stream, in the order in which the application receives it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// A message.
    Message(Message),
    /// Here the peer dropped `count` messages, by its own policy.
    Gap {
        /// The number of the first dropped message.
        first: u64,
        /// How many messages.
        count: u64,
        /// Why they were dropped.
        cause: GapCause,
    },
    /// Here the connection behind the peer was replaced: messages that were sent there in the meantime may be
    /// missing.
    Replaced {
        /// How many times so far.
        count: u64,
    },
}

/// The receiving side of a session; the module describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Inbox {
    queue: ByteQueue<Queued>,
    received: u64,
    delivered: u64,
    acknowledged: u64,
    /// Payload bytes of messages that are received and not acknowledged.
    open_bytes: u64,
    /// Messages and gaps that are delivered and not acknowledged (manual mode only).
    unacknowledged: VecDeque<Unacknowledged>,
    window: Window,
    manual: bool,
    /// The count that the peer was sent last on the current connection.
    acked: u64,
    /// Payload bytes that were acknowledged since then; above 4 GiB the exact number makes no difference.
    unacked_bytes: u32,
    unacked_since: Option<Instant>,
    /// The time for an acknowledgement has passed; it leaves as soon as the connection accepts it.
    is_overdue: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Queued {
    delivery: Delivery,
    /// The last number that the item covers.
    number: u64,
}

impl Counted for Delivery {
    fn bytes(&self) -> u64 {
        match self {
            Self::Message(message) => message.bytes(),
            Self::Gap { .. } | Self::Replaced { .. } => 0,
        }
    }
}

impl Counted for Queued {
    fn bytes(&self) -> u64 {
        self.delivery.bytes()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Unacknowledged {
    /// The last number that the item covers.
    number: u64,
    /// The payload bytes; `None` for a gap.
    length: Option<u64>,
}

impl Inbox {
    pub(super) fn new(window: Window, manual: bool) -> Self {
        Self {
            queue: ByteQueue::default(),
            received: 0,
            delivered: 0,
            acknowledged: 0,
            open_bytes: 0,
            unacknowledged: VecDeque::new(),
            window,
            manual,
            acked: 0,
            unacked_bytes: 0,
            unacked_since: None,
            is_overdue: false,
        }
    }

    /// Returns what another node needs to go on. What was not acknowledged stays behind: the peer sends it again.
    pub(super) fn to_state(&self) -> Inbound {
        Inbound { acknowledged: self.acknowledged, window: self.window, manual: self.manual }
    }

    /// Begins where another node's inbox had acknowledged.
    pub(super) fn from_state(state: &Inbound) -> Self {
        let Inbound { acknowledged, window, manual } = *state;
        Self {
            received: acknowledged,
            delivered: acknowledged,
            acknowledged,
            acked: acknowledged,
            ..Self::new(window, manual)
        }
    }

    /// Receives the message with number `received + 1`.
    pub(super) fn receive(&mut self, message: Message) -> Result<(), SessionError> {
        let length = message.len() as u64;
        let open = self.received - self.acknowledged;
        if open > 0 && (open >= self.window.messages || self.open_bytes + length > self.window.bytes) {
            return Err(SessionError::WindowExceeded);
        }
        self.open_bytes += length;
        self.received += 1;
        self.queue.push(Queued { delivery: Delivery::Message(message), number: self.received });
        Ok(())
    }

    /// Receives a gap that ends at `last`. Messages that were received before are left out of it.
    pub(super) fn receive_gap(&mut self, last: u64, cause: GapCause) -> Result<(), SessionError> {
        if last <= self.received {
            return Ok(());
        }
        // A gap may reach past the window, but must not begin behind it; otherwise gaps could fill the queue.
        let open = self.received - self.acknowledged;
        if open > 0 && open >= self.window.messages {
            return Err(SessionError::WindowExceeded);
        }
        let (first, count) = (self.received + 1, last - self.received);
        self.received = last;
        self.queue.push(Queued { delivery: Delivery::Gap { first, count, cause }, number: last });
        Ok(())
    }

    /// Receives a mark behind the last received item. Marks that follow each other become one, so no peer fills the
    /// queue with them.
    pub(super) fn receive_replaced(&mut self, count: u64) {
        match self.queue.newest_mut() {
            Some(Queued { delivery: Delivery::Replaced { count: before }, .. }) => *before = count,
            _ => self.queue.push(Queued { delivery: Delivery::Replaced { count }, number: self.received }),
        }
    }

    /// Delivers the next item in order. It counts as delivered from now on, whatever the application does with it.
    pub(super) fn deliver(&mut self, now: Instant) -> Option<Delivery> {
        let Queued { delivery, number } = self.queue.pop()?;
        self.delivered = number;
        let length = match &delivery {
            Delivery::Message(message) => Some(message.len() as u64),
            Delivery::Gap { .. } => None,
            Delivery::Replaced { .. } => return Some(delivery),
        };
        if self.manual {
            self.unacknowledged.push_back(Unacknowledged { number, length });
        } else {
            self.note_acknowledged(now, number, length.unwrap_or(0));
        }
        Some(delivery)
    }

    pub(super) fn is_manual(&self) -> bool {
        self.manual
    }

    /// The application acknowledges everything up to and including `number` (manual mode).
    pub(super) fn acknowledge(&mut self, now: Instant, number: u64) {
        while self.unacknowledged.front().is_some_and(|oldest| oldest.number <= number) {
            self.acknowledge_first(now);
        }
    }

    /// The application acknowledges the `count` oldest messages that are delivered and not acknowledged, and the gaps
    /// before them (manual mode).
    pub(super) fn acknowledge_oldest(&mut self, now: Instant, mut count: u64) {
        while count > 0 && !self.unacknowledged.is_empty() {
            count -= u64::from(self.acknowledge_first(now));
        }
    }

    /// The application passed on no more than the `count` oldest of the delivered and unacknowledged messages: those
    /// above count as never delivered (manual mode).
    pub(super) fn retract(&mut self, count: u64) {
        let messages = self.unacknowledged.iter().filter(|one| one.length.is_some());
        let last = messages.take(usize::try_from(count).unwrap_or(usize::MAX)).last();
        self.delivered = last.map_or(self.acknowledged, |last| last.number);
        let delivered = self.delivered;
        self.unacknowledged.retain(|one| one.number <= delivered);
    }

    /// Returns whether it was a message.
    fn acknowledge_first(&mut self, now: Instant) -> bool {
        let Some(Unacknowledged { number, length }) = self.unacknowledged.pop_front() else { return false };
        self.note_acknowledged(now, number, length.unwrap_or(0));
        if self.unacknowledged.is_empty() {
            self.unacknowledged = VecDeque::new();
        }
        length.is_some()
    }

    pub(super) fn manual_ack(&mut self) {
        self.manual = true;
    }

    fn note_acknowledged(&mut self, now: Instant, number: u64, length: u64) {
        self.acknowledged = number;
        self.open_bytes = self.open_bytes.saturating_sub(length);
        self.unacked_bytes = self.unacked_bytes.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
        if !self.is_overdue {
            self.unacked_since.get_or_insert(now);
        }
    }

    pub(super) fn acknowledgement_due(&self, now: Instant) -> bool {
        let unacked = self.acknowledged - self.acked;
        let quarter = (self.window.messages / 4).clamp(1, ACK_MESSAGES);
        unacked > 0
            && (unacked >= quarter
                || u64::from(self.unacked_bytes) >= (self.window.bytes / 4).min(ACK_BYTES)
                || self.is_overdue
                || self.acknowledge_by().is_some_and(|by| by <= now))
    }

    /// Records that an acknowledgement is overdue: from now on it waits only for the connection.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.acknowledge_by().is_some_and(|by| by <= now) {
            self.is_overdue = true;
            self.unacked_since = None;
        }
    }

    /// Returns when an acknowledgement is due even if nothing else happens.
    pub(super) fn acknowledge_by(&self) -> Option<Instant> {
        self.unacked_since.map(|since| since + ACK_DELAY)
    }

    /// Returns the count for the acknowledgement that the peer is sent now.
    pub(super) fn ack(&mut self) -> u64 {
        self.acked = self.acknowledged;
        self.unacked_bytes = 0;
        self.unacked_since = None;
        self.is_overdue = false;
        self.acknowledged
    }

    /// Frees what was received and not delivered: the session is over.
    pub(super) fn discard_queue(&mut self) {
        self.queue = ByteQueue::default();
    }

    /// Returns the payload bytes that wait for delivery.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.queue.bytes()
    }

    /// Returns the number of items that wait for delivery.
    pub(super) fn len(&self) -> usize {
        self.queue.items().len()
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.items().is_empty()
    }

    pub(super) fn window(&self) -> Window {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::start;

    fn window(messages: u64, bytes: u64) -> Window {
        Window { messages, bytes }
    }

    #[test]
    fn a_delivery_acknowledges_except_in_manual_mode() {
        let now = start();
        let mut inbox = Inbox::new(Window::SERVER, false);
        inbox.receive(Message::text("a")).unwrap();
        assert_eq!((inbox.received(), inbox.delivered(), inbox.acknowledged()), (1, 0, 0));
        inbox.deliver(now).unwrap();
        assert_eq!((inbox.received(), inbox.delivered(), inbox.acknowledged()), (1, 1, 1));

        let mut manual = Inbox::new(Window::SERVER, true);
        manual.receive(Message::text("a")).unwrap();
        manual.deliver(now).unwrap();
        assert_eq!(manual.acknowledged(), 0);
        manual.acknowledge(now, 7);
        assert_eq!(manual.acknowledged(), 1, "no more than was delivered");

        manual.receive_gap(4, GapCause::Overflow).unwrap();
        manual.receive(Message::text("b")).unwrap();
        while manual.deliver(now).is_some() {}
        manual.acknowledge(now, 3);
        assert_eq!(manual.acknowledged(), 1, "a gap is acknowledged whole");
        manual.acknowledge(now, 4);
        assert_eq!(manual.acknowledged(), 4);
        manual.acknowledge(now, 5);
        assert_eq!((manual.acknowledged(), manual.open_bytes), (5, 0));
    }

    #[test]
    fn acknowledges_after_32_messages_a_quarter_of_the_bytes_or_250_ms() {
        let now = start();
        let mut inbox = Inbox::new(window(1024, 4000), false);
        for n in 1..=32 {
            inbox.receive(Message::text("x")).unwrap();
            inbox.deliver(now);
            assert_eq!(inbox.acknowledgement_due(now), n == 32);
        }
        assert_eq!(inbox.ack(), 32);
        inbox.receive(Message::text("x".repeat(1000))).unwrap();
        inbox.deliver(now);
        assert!(inbox.acknowledgement_due(now));
        inbox.ack();
        inbox.receive(Message::text("x")).unwrap();
        inbox.deliver(now);
        assert!(!inbox.acknowledgement_due(now + Duration::from_millis(249)));
        assert!(inbox.acknowledgement_due(now + Duration::from_millis(250)));
    }

    #[test]
    fn large_messages_are_acknowledged_every_64_kib() {
        let now = start();
        let mut inbox = Inbox::new(Window::CLIENT, false);
        for n in 1..=4 {
            inbox.receive(Message::text("x".repeat(16 * 1024))).unwrap();
            inbox.deliver(now);
            assert_eq!(inbox.acknowledgement_due(now), n == 4);
        }
    }

    #[test]
    fn a_small_window_is_acknowledged_message_by_message() {
        let now = start();
        let mut inbox = Inbox::new(window(2, 100), false);
        inbox.receive(Message::text("x")).unwrap();
        inbox.deliver(now);
        assert!(inbox.acknowledgement_due(now));
    }

    #[test]
    fn more_than_the_window_is_refused() {
        let mut inbox = Inbox::new(window(2, 10), false);
        inbox.receive(Message::text("longer than the window")).unwrap();
        assert_eq!(inbox.receive(Message::text("x")), Err(SessionError::WindowExceeded));
        let mut inbox = Inbox::new(window(2, 10), false);
        inbox.receive_gap(5, GapCause::Overflow).unwrap();
        assert_eq!(inbox.receive_gap(6, GapCause::Overflow), Err(SessionError::WindowExceeded));
    }

    #[test]
    fn a_gap_leaves_out_messages_that_were_received_before() {
        let now = start();
        let mut inbox = Inbox::new(Window::SERVER, false);
        inbox.receive(Message::text("a")).unwrap();
        inbox.receive_gap(3, GapCause::Overflow).unwrap();
        inbox.receive_gap(2, GapCause::Overflow).unwrap();
        inbox.deliver(now);
        assert_eq!(inbox.deliver(now), Some(Delivery::Gap { first: 2, count: 2, cause: GapCause::Overflow }));
        assert_eq!(inbox.deliver(now), None);
        assert_eq!(inbox.acknowledged(), 3);
    }
}
