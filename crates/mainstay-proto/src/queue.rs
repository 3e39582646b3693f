//! Queues that count the bytes they hold, and own no memory while they are empty, as most queues are most of the time.
//! One that fills grows once for a handful, not three times.

use std::collections::VecDeque;

use crate::session::message::{Message, Window};

/// How many items the first buffer holds.
const HANDFUL: usize = 16;

/// An item that a [`ByteQueue`] counts.
pub(crate) trait Counted {
    /// The payload bytes of the item.
    fn bytes(&self) -> u64;
}

impl Counted for Message {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// First in, first out; the sum of the items' bytes is at hand. The bound is the caller's: it refuses the item, stops
/// reading, or drops the oldest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ByteQueue<T> {
    items: VecDeque<T>,
    bytes: u64,
}

impl<T> Default for ByteQueue<T> {
    fn default() -> Self {
        Self { items: VecDeque::new(), bytes: 0 }
    }
}

impl<T: Counted> ByteQueue<T> {
    /// Appends an item.
    pub(crate) fn push(&mut self, item: T) {
        self.bytes += item.bytes();
        append(&mut self.items, item);
    }

    /// Appends an item and drops the oldest above `limit`. The newest stays if it alone is above the bytes of the limit.
    pub(crate) fn push_dropping_oldest(&mut self, item: T, limit: Window) {
        self.push(item);
        while self.items.len() as u64 > limit.messages || (self.items.len() > 1 && self.bytes > limit.bytes) {
            self.pop();
        }
    }

    /// Removes the oldest item. The queue frees its buffer with the last one.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let item = take_first(&mut self.items)?;
        self.bytes -= item.bytes();
        Some(item)
    }

    /// Removes the item at `index`, counted from the oldest.
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        let item = self.items.remove(index)?;
        self.bytes -= item.bytes();
        Some(item)
    }

    /// Removes everything, and returns it in order.
    pub(crate) fn take(&mut self) -> VecDeque<T> {
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }

    /// Whether an item of `length` bytes fits `limit`. An empty queue has room for any item.
    pub(crate) fn has_room(&self, length: usize, limit: Window) -> bool {
        self.items.is_empty()
            || ((self.items.len() as u64) < limit.messages
                && self.bytes.saturating_add(length as u64) <= limit.bytes)
    }

    /// Whether the queue is below both bounds of `limit`.
    pub(crate) fn is_below(&self, limit: Window) -> bool {
        (self.items.len() as u64) < limit.messages && self.bytes < limit.bytes
    }

    /// The bytes of all items.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The items, from the oldest to the newest.
    pub(crate) fn items(&self) -> &VecDeque<T> {
        &self.items
    }

    /// The newest item, to be replaced by one of as many bytes.
    pub(crate) fn newest_mut(&mut self) -> Option<&mut T> {
        self.items.back_mut()
    }
}

/// Appends to a queue that is not counted.
pub(crate) fn append<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.capacity() == 0 {
        queue.reserve(HANDFUL);
    }
    queue.push_back(item);
}

/// Removes the oldest item of a queue that is not counted, and frees its buffer with the last one.
pub(crate) fn take_first<T>(queue: &mut VecDeque<T>) -> Option<T> {
    let first = queue.pop_front()?;
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_queue_owns_nothing_and_one_that_fills_grows_once() {
        let mut queue = VecDeque::new();
        append(&mut queue, 1);
        let room = queue.capacity();
        (2..=HANDFUL).for_each(|item| append(&mut queue, item));
        assert_eq!(queue.capacity(), room);
        (1..=HANDFUL).for_each(|item| assert_eq!(take_first(&mut queue), Some(item)));
        assert_eq!((take_first(&mut queue), queue.capacity()), (None, 0));
    }

    #[test]
    fn the_bytes_are_those_of_the_items() {
        let mut queue = ByteQueue::default();
        for text in ["a", "bc", "def", "ghij"] {
            queue.push(Message::text(text));
        }
        assert_eq!(queue.bytes(), 10);
        assert_eq!(queue.remove(1), Some(Message::text("bc")));
        assert_eq!((queue.bytes(), queue.items().len()), (8, 3));
        assert_eq!(queue.pop(), Some(Message::text("a")));
        assert_eq!(queue.take().len(), 2);
        assert_eq!((queue.bytes(), queue.items().capacity()), (0, 0));
    }

    #[test]
    fn an_item_above_the_bound_fits_an_empty_queue_alone() {
        let limit = Window { messages: 2, bytes: 10 };
        let mut queue = ByteQueue::default();
        assert!(queue.has_room(11, limit));
        queue.push(Message::text("larger than ten bytes"));
        assert!(!queue.has_room(0, limit));
        assert!(!queue.is_below(limit));
    }

    #[test]
    fn above_the_bound_the_oldest_items_are_dropped() {
        let mut queue = ByteQueue::default();
        for text in ["old", "newer", "newest"] {
            queue.push_dropping_oldest(Message::text(text), Window { messages: 2, bytes: 100 });
        }
        let left: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(left, ["newer", "newest"].map(Message::text));
        for text in ["old", "newer", "larger than ten bytes"] {
            queue.push_dropping_oldest(Message::text(text), Window { messages: 8, bytes: 10 });
        }
        assert_eq!(queue.pop(), Some(Message::text("larger than ten bytes")), "one always fits");
        queue.push_dropping_oldest(Message::text("none"), Window { messages: 0, bytes: 10 });
        assert_eq!(queue.pop(), None);
    }
}
