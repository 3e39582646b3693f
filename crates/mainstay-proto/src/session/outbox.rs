//! Messages accepted but not yet acknowledged, kept so that an attach can write them again.
//!
//! `push` numbers and appends, `acknowledge` notes how far the peer got, `next` gives what follows a
//! position. Numbers in the buffer are contiguous, so a look-up is a subtraction and no message
//! stores its own. A full buffer refuses the push: dropping the oldest would turn "lossless" into
//! "usually".
//!
//! A message may be acknowledged and still be needed: no number travels, so a connection that was
//! told to begin at 4 must write 4 and 5 even when the peer acknowledges 5 in between. `trim` is
//! therefore told the lowest position that a living connection still stands at.
//!
//! Source: `docs/PROTOCOL.md` "Sequence rules" 1, 4 and 6.

use std::collections::VecDeque;

use super::error::SessionError;
use super::message::{Message, Window};
use crate::planted::{Rule, turned_back};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Outbox {
    items: VecDeque<Item>,
    /// The number before the first item.
    base: u64,
    /// Payload bytes of all messages up to and including `base`.
    base_bytes: u64,
    acknowledged: u64,
    /// The highest number that ever began to leave.
    written: u64,
    /// Our own bound on what is kept.
    limit: Window,
    /// What the peer lets us write above `acknowledged`.
    peer: Window,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Item {
    message: Message,
    /// Payload bytes of all messages up to and including this one: a difference of two tells what
    /// lies between them.
    bytes: u64,
}

impl Outbox {
    pub(super) fn new(limit: Window, peer: Window) -> Self {
        Self { items: VecDeque::new(), base: 0, base_bytes: 0, acknowledged: 0, written: 0, limit, peer }
    }

    /// Numbers a message, or gives it back when the buffer holds all it may. A single message always
    /// fits an empty buffer, whatever its size.
    pub(super) fn push(&mut self, message: Message) -> Result<u64, Message> {
        let length = message.payload.len() as u64;
        let kept = self.last() - self.acknowledged;
        let kept_bytes = self.bytes_upto(self.last()) - self.bytes_upto(self.acknowledged);
        if kept > 0 && (kept >= self.limit.messages || kept_bytes + length > self.limit.bytes) {
            return Err(message);
        }
        let bytes = self.bytes_upto(self.last()) + length;
        self.items.push_back(Item { message, bytes });
        Ok(self.last())
    }

    /// Whether a message of `length` bytes would be accepted.
    pub(super) fn has_room(&self, length: usize) -> bool {
        let kept = self.last() - self.acknowledged;
        let kept_bytes = self.bytes_upto(self.last()) - self.bytes_upto(self.acknowledged);
        kept == 0 || (kept < self.limit.messages && kept_bytes + length as u64 <= self.limit.bytes)
    }

    /// The message after `position`, if the peer's window lets it be written.
    pub(super) fn next(&self, position: u64) -> Option<&Message> {
        let item = self.item(position + 1)?;
        let ahead = (position + 1).saturating_sub(self.acknowledged);
        let fits = ahead <= 1
            || (ahead <= self.peer.messages
                && item.bytes - self.bytes_upto(self.acknowledged) <= self.peer.bytes);
        fits.then_some(&item.message)
    }

    pub(super) fn note_written(&mut self, number: u64) {
        self.written = self.written.max(number);
    }

    /// The peer received everything up to and including `received`. Lower than before is ignored.
    pub(super) fn acknowledge(&mut self, received: u64) -> Result<(), SessionError> {
        if received > self.written {
            return Err(SessionError::AckBeyondWritten { received, written: self.written });
        }
        self.acknowledged = self.acknowledged.max(received);
        Ok(())
    }

    /// Frees what is acknowledged and behind every position in use.
    pub(super) fn trim(&mut self, lowest_position: u64) {
        let early = turned_back(Rule::AcknowledgedIsKeptUntilWritten);
        let floor = if early { self.acknowledged } else { self.acknowledged.min(lowest_position) };
        while self.base < floor {
            let Some(item) = self.items.pop_front() else { break };
            self.base += 1;
            self.base_bytes = item.bytes;
        }
        if self.items.is_empty() {
            self.items = VecDeque::new();
        }
    }

    /// Gives up everything after `number` that is still kept, in order.
    pub(super) fn into_messages_after(self, number: u64) -> impl Iterator<Item = Message> {
        let skip = usize::try_from(number.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.items.into_iter().skip(skip).map(|item| item.message)
    }

    pub(super) fn set_peer_window(&mut self, window: Window) {
        self.peer = window;
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// The last number given.
    pub(super) fn last(&self) -> u64 {
        self.base + self.items.len() as u64
    }

    /// Payload bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_upto(self.last()) - self.base_bytes
    }

    fn item(&self, number: u64) -> Option<&Item> {
        let index = usize::try_from(number.checked_sub(self.base + 1)?).ok()?;
        self.items.get(index)
    }

    fn bytes_upto(&self, number: u64) -> u64 {
        self.item(number).map_or(self.base_bytes, |item| item.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outbox(messages: u64, bytes: u64) -> Outbox {
        Outbox::new(Window { messages, bytes }, Window { messages, bytes })
    }

    #[test]
    fn a_full_buffer_gives_the_message_back() {
        let mut outbox = outbox(2, 100);
        assert_eq!(outbox.push(Message::text("a")), Ok(1));
        assert_eq!(outbox.push(Message::text("b")), Ok(2));
        assert_eq!(outbox.push(Message::text("c")), Err(Message::text("c")));
        outbox.note_written(1);
        outbox.acknowledge(1).unwrap();
        assert_eq!(outbox.push(Message::text("c")), Ok(3));
    }

    #[test]
    fn one_message_larger_than_the_bound_is_let_through_alone() {
        let mut outbox = outbox(8, 4);
        assert_eq!(outbox.push(Message::text("larger than four")), Ok(1));
        assert!(outbox.push(Message::text("x")).is_err());
        assert!(outbox.next(0).is_some());
    }

    #[test]
    fn an_acknowledgement_above_what_was_written_is_an_error() {
        let mut outbox = outbox(8, 100);
        outbox.push(Message::text("a")).unwrap();
        assert_eq!(outbox.acknowledge(1), Err(SessionError::AckBeyondWritten { received: 1, written: 0 }));
        outbox.note_written(1);
        outbox.acknowledge(1).unwrap();
        outbox.acknowledge(0).unwrap();
        assert_eq!(outbox.acknowledged(), 1);
    }

    #[test]
    fn an_acknowledged_message_stays_while_a_position_is_behind_it() {
        let mut outbox = outbox(8, 100);
        for text in ["a", "b", "c"] {
            outbox.push(Message::text(text)).unwrap();
        }
        outbox.note_written(3);
        outbox.acknowledge(3).unwrap();
        outbox.trim(1);
        assert_eq!(outbox.next(1), Some(&Message::text("b")));
        outbox.trim(u64::MAX);
        assert_eq!(outbox.last(), 3);
        assert_eq!(outbox.bytes(), 0);
    }

    #[test]
    fn the_peers_window_holds_writing_back() {
        let mut outbox = Outbox::new(Window { messages: 8, bytes: 100 }, Window { messages: 2, bytes: 100 });
        for text in ["a", "b", "c"] {
            outbox.push(Message::text(text)).unwrap();
        }
        assert!(outbox.next(1).is_some());
        assert!(outbox.next(2).is_none());
        outbox.note_written(2);
        outbox.acknowledge(1).unwrap();
        assert!(outbox.next(2).is_some());
    }
}
