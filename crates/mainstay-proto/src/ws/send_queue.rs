//! Encoded frames on their way to the socket.
//!
//! Small frames are gathered in one contiguous buffer; a large body is shared, not copied. A driver
//! keeps one queue per worker, encodes everything that a turn produced, writes it in one (vectored)
//! write, and moves only a leftover into the connection.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// See the module.
#[derive(Debug, Default)]
pub struct SendQueue {
    ready: VecDeque<Bytes>,
    /// What follows `ready`.
    tail: Vec<u8>,
    /// How much of `tail` was consumed; more than 0 only while `ready` is empty.
    taken: usize,
    length: usize,
}

impl SendQueue {
    /// An empty queue; allocates nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether everything has left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Moves what waits into a queue of its own, and leaves this one empty with its buffer.
    #[must_use]
    pub fn take_rest(&mut self) -> Self {
        let mut rest =
            Self { length: self.length, ready: std::mem::take(&mut self.ready), ..Self::default() };
        rest.tail.extend_from_slice(&self.tail[self.taken..]);
        self.tail.clear();
        (self.taken, self.length) = (0, 0);
        rest
    }

    /// Writes through `write` into the contiguous buffer.
    pub(super) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.tail.len();
        write(&mut self.tail);
        self.length += self.tail.len() - before;
    }

    /// Appends without copying.
    pub(super) fn share(&mut self, body: Bytes) {
        if self.tail.len() > self.taken {
            let mut tail = Bytes::from(std::mem::take(&mut self.tail));
            tail.advance(self.taken);
            self.ready.push_back(tail);
        }
        self.taken = 0;
        self.tail.clear();
        self.length += body.len();
        self.ready.push_back(body);
    }
}

impl Buf for SendQueue {
    fn remaining(&self) -> usize {
        self.length
    }

    fn chunk(&self) -> &[u8] {
        self.ready.front().map_or(&self.tail[self.taken..], |bytes| bytes)
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let tail = &self.tail[self.taken..];
        let chunks =
            self.ready.iter().map(AsRef::as_ref).chain([tail]).filter(|chunk: &&[u8]| !chunk.is_empty());
        out.iter_mut().zip(chunks).map(|(slot, chunk)| *slot = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, mut count: usize) {
        self.length = self.length.saturating_sub(count);
        while let Some(front) = self.ready.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.ready.pop_front();
        }
        self.taken += count;
        if self.taken >= self.tail.len() {
            self.tail.clear();
            self.taken = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_they_were_queued_however_they_are_consumed() {
        for step in 1..20 {
            let mut queue = SendQueue::new();
            queue.append(|out| out.extend(b"small, "));
            queue.share(Bytes::from_static(b"large, "));
            queue.append(|out| out.extend(b"small"));
            let mut out = Vec::<u8>::new();
            while queue.has_remaining() {
                let chunk = queue.chunk();
                let count = chunk.len().min(step);
                out.extend(&chunk[..count]);
                queue.advance(count);
                if out.len() == 3 {
                    queue = queue.take_rest();
                }
            }
            assert_eq!(out, b"small, large, small");
        }
    }
}
