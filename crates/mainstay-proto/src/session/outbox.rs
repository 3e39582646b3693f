//! Messages that are accepted and not acknowledged, kept so that a later connection can write them again.
//!
//! `push` numbers and appends a message, `acknowledge` records the peer's count, `next` returns what follows a
//! position. The numbers in the buffer are contiguous. A full buffer refuses the push, unless the application chose
//! to drop the oldest: then the oldest message that was never written makes room, and a gap takes its place. A gap is
//! replayed and acknowledged like a message.
//!
//! A message that is larger than the peer's limit is refused. If the peer announces its limit later, a gap takes the
//! place of each larger message that was accepted before.
//!
//! An acknowledged message may still be needed: no number travels, so a connection that begins at 4 must write 4 and
//! 5 even if the peer acknowledges 5 in between. Therefore `trim` gets the lowest position of all living connections.
//!
//! Source: `docs/PROTOCOL.md` "Sequence rules" 1, 4 and 6.

use std::collections::VecDeque;

use super::error::SessionError;
use super::message::{Message, Window};
use super::state::{Outbound, Unacknowledged};
use crate::queue::{append, take_first};

/// The buffer of sent messages; the module describes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Outbox {
    items: VecDeque<Item>,
    /// The number before the first item.
    base: u64,
    /// Payload bytes of all messages up to and including `base`.
    base_bytes: u64,
    acknowledged: u64,
    /// The highest number that was written on any connection.
    written: u64,
    /// This end's bound on what is kept.
    limit: Window,
    /// How much the peer lets this end write above `acknowledged`.
    peer: Window,
    /// The largest payload that the peer accepts, as far as it announced one: [`UNKNOWN`] or less than 4 GiB.
    largest: u32,
    /// A full buffer drops the oldest message that was never written, instead of refusing the new one.
    drops_oldest: bool,
    dropped: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Item {
    kept: Kept,
    /// The number of the message, or the last number of the gap.
    last: u64,
    /// Payload bytes of all messages up to and including this one: the difference of two items is the number of bytes
    /// between them.
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kept {
    Message(Message),
    /// A message stood here and was dropped before any byte of it was written.
    Gap,
}

impl Item {
    fn is_gap(&self) -> bool {
        self.kept == Kept::Gap
    }
}

/// The peer announced no limit on the size of messages.
const UNKNOWN: u32 = u32::MAX;

fn largest_of(announced: Option<u64>) -> u32 {
    announced.and_then(|largest| u32::try_from(largest).ok()).unwrap_or(UNKNOWN)
}

/// What follows a position.
pub(super) enum Next<'a> {
    Message(&'a Message),
    /// Every message up to and including this number was dropped.
    Gap {
        last: u64,
    },
}

/// How far a message that was accepted has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Progress {
    /// No connection wrote it yet.
    Queued,
    /// A connection wrote it.
    Written,
    /// The peer acknowledged it.
    Acknowledged,
    /// It was dropped before it was written.
    Dropped,
}

impl Outbox {
    pub(super) fn new(limit: Window, peer: Window) -> Self {
        Self {
            items: VecDeque::new(),
            base: 0,
            base_bytes: 0,
            acknowledged: 0,
            written: 0,
            limit,
            peer,
            largest: UNKNOWN,
            drops_oldest: false,
            dropped: 0,
        }
    }

    /// Returns what another node needs to go on: everything above what the peer acknowledged.
    pub(super) fn to_state(&self) -> Outbound {
        let mut before = self.acknowledged;
        let kept = self.items.iter().filter(|item| item.last > self.acknowledged).map(|item| {
            let count = item.last - before;
            before = item.last;
            match &item.kept {
                Kept::Message(message) => Unacknowledged::Message(message.clone()),
                Kept::Gap => Unacknowledged::Gap { count },
            }
        });
        Outbound {
            kept: kept.collect(),
            acknowledged: self.acknowledged,
            written: self.written,
            limit: self.limit,
            peer: self.peer,
            largest: (self.largest != UNKNOWN).then(|| self.largest.into()),
            drops_oldest: self.drops_oldest,
            dropped: self.dropped,
        }
    }

    /// Continues another node's outbox.
    pub(super) fn from_state(state: Outbound) -> Self {
        let mut outbox = Self {
            base: state.acknowledged,
            acknowledged: state.acknowledged,
            written: state.written,
            largest: largest_of(state.largest),
            drops_oldest: state.drops_oldest,
            dropped: state.dropped,
            ..Self::new(state.limit, state.peer)
        };
        for kept in state.kept {
            let (kept, count, length) = match kept {
                Unacknowledged::Gap { count } => (Kept::Gap, count, 0),
                Unacknowledged::Message(message) => {
                    let length = message.len() as u64;
                    (Kept::Message(message), 1, length)
                }
            };
            let (last, bytes) = (outbox.last() + count, outbox.all_bytes() + length);
            append(&mut outbox.items, Item { kept, last, bytes });
        }
        outbox
    }

    pub(super) fn drop_oldest_when_full(&mut self) {
        self.drops_oldest = true;
    }

    /// Doubles this end's bound on what is kept, unless the buffer makes room by itself. Returns the bound before.
    pub(super) fn double_limit(&mut self) -> Window {
        let before = self.limit;
        if !self.drops_oldest {
            let (messages, bytes) = (before.messages.saturating_mul(2), before.bytes.saturating_mul(2));
            self.limit = Window { messages, bytes };
        }
        before
    }

    /// Numbers and keeps a message, or returns it if the buffer is full. An empty buffer accepts every message that
    /// the peer accepts.
    pub(super) fn push(&mut self, message: Message) -> Result<u64, Message> {
        self.push_within(message, u64::MAX)
    }

    /// Like [`push`](Self::push), but the buffer holds no more than `room` bytes.
    pub(super) fn push_within(&mut self, message: Message, room: u64) -> Result<u64, Message> {
        let length = message.len();
        if !self.has_room(length, room) {
            return Err(message);
        }
        let (last, bytes) = (self.last() + 1, self.all_bytes() + length as u64);
        append(&mut self.items, Item { kept: Kept::Message(message), last, bytes });
        while self.drops_oldest && self.is_over_full(room) && self.drop_oldest() {}
        Ok(last)
    }

    /// Like [`push_within`](Self::push_within), but a full buffer drops its oldest messages for this one.
    pub(super) fn push_dropping_oldest(&mut self, message: Message, room: u64) -> Result<u64, Message> {
        let always = std::mem::replace(&mut self.drops_oldest, true);
        let pushed = self.push_within(message, room);
        self.drops_oldest = always;
        pushed
    }

    /// Numbers `count` messages that the application leaves out: a gap stands for them. It takes no room if the last item is
    /// a gap that was not written, which grows instead.
    pub(super) fn skip(&mut self, count: u64) {
        if count == 0 {
            return;
        }
        let (last, bytes, written) = (self.last() + count, self.all_bytes(), self.written);
        self.dropped += count;
        match self.items.back_mut().filter(|item| item.is_gap() && item.last > written) {
            Some(gap) => gap.last = last,
            None => append(&mut self.items, Item { kept: Kept::Gap, last, bytes }),
        }
    }

    /// Whether the buffer would accept a message of `length` bytes.
    pub(super) fn has_room(&self, length: usize, room: u64) -> bool {
        if length as u64 > self.largest() {
            return false;
        }
        if self.drops_oldest {
            return true;
        }
        let (kept, bytes) = self.kept();
        kept == 0 || (kept < self.limit.messages && bytes + length as u64 <= self.limit.bytes.min(room))
    }

    fn is_over_full(&self, room: u64) -> bool {
        let (kept, bytes) = self.kept();
        kept > 1 && (kept > self.limit.messages || bytes > self.limit.bytes.min(room))
    }

    /// Returns the largest payload that the peer accepts; `u64::MAX` if the peer announced no limit.
    pub(super) fn largest(&self) -> u64 {
        if self.largest == UNKNOWN { u64::MAX } else { self.largest.into() }
    }

    /// Sets the largest payload that the peer accepts. Returns the numbers of larger messages that were accepted
    /// before: they are dropped and written as gaps. The peer has received none of them, because it would have
    /// refused them.
    pub(super) fn set_largest(&mut self, largest: Option<u64>) -> Vec<u64> {
        self.largest = largest_of(largest);
        let largest = self.largest();
        let (mut before, mut gone, mut dropped) = (self.base_bytes, 0, Vec::new());
        for item in &mut self.items {
            let length = item.bytes - before;
            before = item.bytes;
            if length > largest && item.last > self.acknowledged {
                item.kept = Kept::Gap;
                gone += length;
                dropped.push(item.last);
            }
            item.bytes -= gone;
        }
        self.dropped += dropped.len() as u64;
        dropped
    }

    /// Takes over the messages that another buffer kept after `number`, in order, whatever this buffer holds. A gap
    /// stays a gap, so that the messages behind it keep their places.
    pub(super) fn adopt_after(&mut self, other: Self, number: u64) {
        self.largest = other.largest;
        for item in other.items.into_iter().filter(|item| item.last > number) {
            let length = match &item.kept {
                Kept::Message(message) => message.len() as u64,
                Kept::Gap => 0,
            };
            let (last, bytes) = (self.last() + 1, self.all_bytes() + length);
            append(&mut self.items, Item { kept: item.kept, last, bytes });
        }
    }

    /// Returns the number of messages and gaps above `acknowledged`, and their payload bytes. A gap that was not
    /// written does not count: there is at most one, and it must leave room for the newest message.
    fn kept(&self) -> (u64, u64) {
        let unwritten_gap =
            self.drops_oldest && self.items.get(self.index(self.written + 1)).is_some_and(Item::is_gap);
        let first = self.index(self.acknowledged + 1);
        let kept = self.items.len() - first - usize::from(unwritten_gap);
        (kept as u64, self.all_bytes() - self.bytes_upto(self.acknowledged))
    }

    /// Adds the oldest message that was never written to the gap before it, or turns it into a gap. Returns `false`
    /// if there is no such message.
    fn drop_oldest(&mut self) -> bool {
        let first = self.index(self.written + 1);
        let gap_before = self.items.get(first).is_some_and(Item::is_gap);
        let oldest = first + usize::from(gap_before);
        let Some(Kept::Message(message)) = self.items.get(oldest).map(|item| &item.kept) else {
            return false;
        };
        let length = message.len() as u64;
        self.items.range_mut(oldest..).for_each(|item| item.bytes -= length);
        if gap_before {
            let dropped = self.items.remove(oldest);
            if let (Some(gap), Some(dropped)) = (self.items.get_mut(first), dropped) {
                gap.last = dropped.last;
            }
        } else if let Some(item) = self.items.get_mut(oldest) {
            item.kept = Kept::Gap;
        }
        self.dropped += 1;
        true
    }

    /// Returns what follows `position`, if the peer's window allows writing it.
    pub(super) fn next(&self, position: u64) -> Option<Next<'_>> {
        let item = self.item(position + 1)?;
        let ahead = (position + 1).saturating_sub(self.acknowledged);
        let fits = ahead <= 1
            || (ahead <= self.peer.messages
                && item.bytes - self.bytes_upto(self.acknowledged) <= self.peer.bytes);
        fits.then_some(match &item.kept {
            Kept::Message(message) => Next::Message(message),
            Kept::Gap => Next::Gap { last: item.last },
        })
    }

    pub(super) fn note_written(&mut self, number: u64) {
        self.written = self.written.max(number);
    }

    /// The peer acknowledged everything up to and including `acknowledged`. A count below an earlier one is ignored.
    pub(super) fn acknowledge(&mut self, acknowledged: u64) -> Result<(), SessionError> {
        if acknowledged > self.written {
            return Err(SessionError::AckBeyondWritten { acknowledged, written: self.written });
        }
        self.acknowledged = self.acknowledged.max(acknowledged);
        Ok(())
    }

    /// Frees the messages that are acknowledged and behind every position in use.
    pub(super) fn trim(&mut self, lowest_position: u64) {
        let floor = self.acknowledged.min(lowest_position);
        while let Some(first) = self.items.front().filter(|item| item.last <= floor) {
            (self.base, self.base_bytes) = (first.last, first.bytes);
            take_first(&mut self.items);
        }
    }

    /// Frees what is kept, and keeps the counts: the session is over.
    pub(super) fn discard(&mut self) {
        (self.base, self.base_bytes) = (self.last(), self.all_bytes());
        self.items = VecDeque::new();
    }

    /// Removes and returns the messages that the peer did not acknowledge, in order. Keeps nothing.
    pub(super) fn take_unacknowledged(&mut self) -> Vec<Message> {
        let (last, bytes) = (self.last(), self.all_bytes());
        let items = std::mem::take(&mut self.items).into_iter().filter(|item| item.last > self.acknowledged);
        let messages = items.filter_map(|item| match item.kept {
            Kept::Message(message) => Some(message),
            Kept::Gap => None,
        });
        let messages = messages.collect();
        (self.base, self.base_bytes) = (last, bytes);
        messages
    }

    /// Returns every message after `number` that is still kept, in order.
    pub(super) fn into_messages_after(self, number: u64) -> impl Iterator<Item = Message> {
        self.items.into_iter().filter(move |item| item.last > number).filter_map(|item| match item.kept {
            Kept::Message(message) => Some(message),
            Kept::Gap => None,
        })
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

    /// Returns the progress of the message with this number. A dropped one is reported until its gap is acknowledged.
    pub(super) fn progress(&self, number: u64) -> Progress {
        match self.item(number) {
            Some(item) if item.is_gap() => Progress::Dropped,
            _ if number <= self.acknowledged => Progress::Acknowledged,
            _ if number <= self.written => Progress::Written,
            _ => Progress::Queued,
        }
    }

    /// Returns the number of the last message.
    pub(super) fn last(&self) -> u64 {
        self.items.back().map_or(self.base, |item| item.last)
    }

    /// Returns how many messages were dropped to make room.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns the payload bytes that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.all_bytes() - self.base_bytes
    }

    /// Returns the number of messages and gaps that are kept.
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns the payload bytes of all messages that were ever accepted.
    fn all_bytes(&self) -> u64 {
        self.items.back().map_or(self.base_bytes, |item| item.bytes)
    }

    fn item(&self, number: u64) -> Option<&Item> {
        if number <= self.base { None } else { self.items.get(self.index(number)) }
    }

    /// Returns the index of the first item whose last number is `number` or above. Without a gap before it that is a
    /// subtraction.
    fn index(&self, number: u64) -> usize {
        let guess = usize::try_from(number.saturating_sub(self.base + 1)).unwrap_or(usize::MAX);
        match self.items.get(guess) {
            Some(item) if item.last == number => guess,
            _ => self.items.partition_point(|item| item.last < number),
        }
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
    fn messages_that_are_left_out_are_one_gap_between_their_neighbours() {
        let mut outbox = outbox(8, 100);
        outbox.push(Message::text("a")).unwrap();
        outbox.skip(0);
        outbox.skip(2);
        outbox.skip(3);
        assert_eq!(outbox.push(Message::text("b")), Ok(7));
        assert_eq!((outbox.len(), outbox.dropped(), outbox.bytes()), (3, 5, 2));
        assert!(matches!(outbox.next(0), Some(Next::Message(message)) if message.as_text() == Some("a")));
        assert!(matches!(outbox.next(1), Some(Next::Gap { last: 6 })));
        assert!(matches!(outbox.next(6), Some(Next::Message(message)) if message.as_text() == Some("b")));
        assert_eq!(outbox.progress(4), Progress::Dropped);
        outbox.note_written(7);
        outbox.skip(1);
        assert!(matches!(outbox.next(7), Some(Next::Gap { last: 8 })), "a written gap does not grow");
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
        assert_eq!(
            outbox.acknowledge(1),
            Err(SessionError::AckBeyondWritten { acknowledged: 1, written: 0 })
        );
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
        assert!(matches!(outbox.next(1), Some(Next::Message(message)) if message.as_text() == Some("b")));
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

    /// Returns what is written after `position`, up to the end: texts, and the last numbers of gaps.
    fn rest(outbox: &mut Outbox, mut position: u64) -> Vec<String> {
        let mut rest = Vec::new();
        while let Some(next) = outbox.next(position) {
            let (line, last) = match next {
                Next::Message(message) => (message.as_text().unwrap().to_owned(), position + 1),
                Next::Gap { last } => (format!("gap {}-{last}", position + 1), last),
            };
            rest.push(line);
            outbox.note_written(last);
            position = last;
        }
        rest
    }

    #[test]
    fn the_oldest_that_was_never_written_makes_room_and_a_gap_takes_its_numbers() {
        let (limit, peer) = (Window { messages: 3, bytes: 100 }, Window { messages: 8, bytes: 100 });
        let mut outbox = Outbox::new(limit, peer);
        outbox.drop_oldest_when_full();
        outbox.push(Message::text("1")).unwrap();
        outbox.note_written(1);
        for number in 2..=6 {
            assert_eq!(outbox.push(Message::text(number.to_string())), Ok(number));
        }
        assert_eq!((outbox.dropped(), outbox.last(), outbox.bytes()), (3, 6, 3));
        assert_eq!(rest(&mut outbox, 0), ["1", "gap 2-4", "5", "6"]);
        // A gap that is written is replayed as it is; a later gap is another one.
        outbox.push(Message::text("7")).unwrap();
        assert_eq!(rest(&mut outbox, 1), ["gap 2-4", "5", "6", "gap 7-7"]);
        outbox.acknowledge(6).unwrap();
        outbox.trim(u64::MAX);
        outbox.push(Message::text("8")).unwrap();
        assert_eq!(rest(&mut outbox, 6), ["gap 7-7", "8"]);
        outbox.acknowledge(8).unwrap();
        outbox.trim(u64::MAX);
        assert_eq!((outbox.last(), outbox.bytes(), outbox.kept()), (8, 0, (0, 0)));
    }

    #[test]
    fn one_message_may_make_room_where_the_next_is_refused() {
        let (limit, peer) = (Window { messages: 2, bytes: 100 }, Window { messages: 8, bytes: 100 });
        let mut outbox = Outbox::new(limit, peer);
        for text in ["1", "2"] {
            outbox.push(Message::text(text)).unwrap();
        }
        assert_eq!(outbox.push_dropping_oldest(Message::text("3"), u64::MAX), Ok(3));
        assert!(outbox.push(Message::text("4")).is_err());
        assert_eq!(rest(&mut outbox, 0), ["gap 1-1", "2", "3"]);
        assert_eq!(outbox.dropped(), 1);
    }

    #[test]
    fn bytes_make_room_too_and_one_large_message_stays() {
        let mut outbox = outbox(8, 10);
        outbox.drop_oldest_when_full();
        for text in ["aaaa", "bbbb", "cc", "larger than all of it"] {
            outbox.push(Message::text(text)).unwrap();
        }
        assert_eq!((outbox.bytes(), outbox.dropped()), (21, 3));
        outbox.push(Message::text("d")).unwrap();
        assert_eq!(rest(&mut outbox, 0), ["gap 1-4", "d"]);
        assert_eq!(outbox.bytes(), 1);
    }

    /// Returns what follows each position, as the length of its message; a gap is `None`.
    fn lengths(outbox: &Outbox) -> Vec<Option<usize>> {
        let follows = |position| match outbox.next(position)? {
            Next::Message(message) => Some(Some(message.len())),
            Next::Gap { .. } => Some(None),
        };
        (0..outbox.last()).filter_map(follows).collect()
    }

    #[test]
    fn a_message_above_the_peers_limit_is_refused_and_one_accepted_before_becomes_a_gap() {
        let mut outbox = outbox(100, 10_000);
        for length in [3, 11, 10, 12, 13] {
            outbox.push(Message::text("x".repeat(length))).unwrap();
        }
        // As a client does that writes its first messages before WELCOME.
        outbox.note_written(2);
        assert_eq!(outbox.set_largest(Some(10)), [2, 4, 5]);
        assert_eq!(lengths(&outbox), [Some(3), None, Some(10), None, None]);
        assert_eq!((outbox.bytes(), outbox.dropped(), outbox.last()), (13, 3, 5));
        assert!(outbox.push(Message::text("x".repeat(11))).is_err());
        assert_eq!(outbox.push(Message::text("x".repeat(10))), Ok(6));
        assert_eq!(outbox.bytes(), 23);
        outbox.note_written(6);
        outbox.acknowledge(3).unwrap();
        outbox.trim(3);
        assert_eq!(outbox.bytes(), 10);
        // A message that was acknowledged before a smaller limit is not affected.
        outbox.acknowledge(6).unwrap();
        assert!(outbox.set_largest(Some(1)).is_empty());
        outbox.trim(6);
        assert_eq!((outbox.bytes(), outbox.len()), (0, 0));
    }

    #[test]
    fn a_peer_that_announces_no_limit_accepts_every_message() {
        let mut outbox = outbox(100, 10);
        for largest in [None, Some(u64::from(u32::MAX)), Some(u64::MAX)] {
            assert!(outbox.set_largest(largest).is_empty());
            assert_eq!(outbox.largest(), u64::MAX);
        }
        assert_eq!(outbox.push(Message::text("longer than the buffer")), Ok(1));
    }

    #[test]
    fn a_buffer_that_takes_over_another_keeps_places_and_the_limit_of_the_peer() {
        let mut old = outbox(100, 10_000);
        for length in [1, 2, 30, 4] {
            old.push(Message::text("x".repeat(length))).unwrap();
        }
        old.set_largest(Some(10));
        let mut new = outbox(2, 3);
        new.adopt_after(old, 1);
        assert_eq!((new.last(), new.bytes(), new.largest()), (3, 6, 10));
        assert_eq!(lengths(&new).first(), Some(&Some(2)));
    }

    #[test]
    fn where_less_room_is_given_than_the_limit_that_counts_and_one_message_always_fits() {
        let mut outbox = outbox(100, 1000);
        assert_eq!(outbox.push_within(Message::text("x".repeat(50)), 10), Ok(1));
        assert!(outbox.push_within(Message::text("x"), 50).is_err());
        assert_eq!(outbox.push_within(Message::text("x"), 51), Ok(2));
        outbox.drop_oldest_when_full();
        outbox.note_written(1);
        assert_eq!(outbox.push_within(Message::text("y"), 51), Ok(3));
        assert_eq!(
            (outbox.dropped(), outbox.bytes()),
            (1, 51),
            "the oldest that was never written makes room"
        );
    }

    #[test]
    fn what_is_discarded_is_known_and_not_kept() {
        let mut outbox = outbox(100, 1000);
        outbox.push(Message::text("abc")).unwrap();
        outbox.push(Message::text("de")).unwrap();
        outbox.discard();
        assert_eq!((outbox.last(), outbox.bytes(), outbox.len()), (2, 0, 0));
    }
}
