//! Encoded frames on their way to the socket.

use std::{collections::VecDeque, io::IoSlice, mem, ops::Range};

use bytes::{Buf, Bytes};

use super::frame::{self, Opcode};

/// From this many bytes on, sharing a body is cheaper than copying it.
const SHARE_FROM: usize = 4 * 1024;
/// How much memory an emptied queue keeps for the next turn.
const KEEP: usize = 256 * 1024;
/// How many written bytes a queue that is never empty may still hold.
const KEEP_WRITTEN: usize = 16 * 1024;

/// Encoded frames that wait for the socket, read through [`bytes::Buf`].
///
/// Small frames lie one behind the other in one buffer; a large unmasked body is shared, not copied. In either case
/// the output of a turn leaves in one vectored write. A driver keeps one queue per worker and encodes every
/// connection's output through it: after a write that accepted everything the queue keeps its memory for the next
/// connection, and only a leftover moves out ([`take_rest`](Self::take_rest)).
#[derive(Debug, Default)]
pub struct SendQueue {
    /// Headers and copied payloads, of which the first `read` bytes are written.
    copied: Vec<u8>,
    read: usize,
    /// Bodies that belong between bytes of `copied`, in order.
    shared: VecDeque<Shared>,
    shared_len: usize,
}

#[derive(Debug)]
struct Shared {
    /// How much of `copied` precedes this body.
    at: usize,
    body: Bytes,
}

/// The first bytes of a frame, apart from its length.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) opcode: Opcode,
    pub(super) fin: bool,
    pub(super) compressed: bool,
    pub(super) mask: Option<[u8; 4]>,
}

impl SendQueue {
    /// Creates an empty queue, without memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the bytes that wait for the socket.
    pub fn len(&self) -> usize {
        self.copied.len() - self.read + self.shared_len
    }

    /// Returns those of them that are copied here, and not shared.
    pub fn copied(&self) -> usize {
        self.copied.len() - self.read
    }

    /// Whether no byte waits for the socket.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves the remaining bytes into a queue of their own, in memory that fits; this queue is empty then and keeps
    /// its memory.
    pub fn take_rest(&mut self) -> SendQueue {
        let rest = SendQueue {
            copied: self.copied[self.read..].to_vec(),
            read: 0,
            shared: self.shared.drain(..).map(|s| Shared { at: s.at - self.read, ..s }).collect(),
            shared_len: mem::take(&mut self.shared_len),
        };
        self.read = self.copied.len();
        self.forget_written();
        rest
    }

    /// Appends a frame whose payload is copied.
    pub(super) fn push_copied(&mut self, head: Head, prefix: &[u8], body: &[u8]) {
        let len = prefix.len() + body.len();
        self.copied.reserve(frame::MAX_HEADER + len);
        frame::put_header(&mut self.copied, head.opcode, head.fin, head.compressed, head.mask, len);
        let start = self.copied.len();
        self.copied.extend_from_slice(prefix);
        self.copied.extend_from_slice(body);
        if let (Some(mask), Some(payload)) = (head.mask, self.copied.get_mut(start..)) {
            frame::apply_mask(payload, mask);
        }
    }

    /// Appends a frame whose payload is `prefix` and a part of `body`, which is shared if that pays.
    pub(super) fn push(&mut self, head: Head, prefix: &[u8], body: &Bytes, part: Range<usize>) {
        if head.mask.is_some() || part.len() < SHARE_FROM {
            return self.push_copied(head, prefix, &body[part]);
        }
        let len = prefix.len() + part.len();
        self.copied.reserve(frame::MAX_HEADER + prefix.len());
        frame::put_header(&mut self.copied, head.opcode, head.fin, head.compressed, None, len);
        self.copied.extend_from_slice(prefix);
        self.shared_len += part.len();
        self.shared.push_back(Shared { at: self.copied.len(), body: body.slice(part) });
    }

    /// Returns the copied bytes that come next, up to the first shared body.
    fn next_copied(&self) -> &[u8] {
        let end = self.shared.front().map_or(self.copied.len(), |shared| shared.at);
        &self.copied[self.read..end]
    }

    fn forget_written(&mut self) {
        if self.is_empty() {
            self.copied.clear();
            self.copied.shrink_to(KEEP);
            self.read = 0;
        } else if self.read > KEEP_WRITTEN && self.read > self.copied.len() / 2 {
            // What moves is less than what was written since the last time: linear in total.
            self.copied.drain(..self.read);
            for shared in &mut self.shared {
                shared.at -= self.read;
            }
            self.read = 0;
        }
    }
}

impl Buf for SendQueue {
    fn remaining(&self) -> usize {
        self.len()
    }

    fn chunk(&self) -> &[u8] {
        match (self.next_copied(), self.shared.front()) {
            ([], Some(shared)) => &shared.body,
            (copied, _) => copied,
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut filled, most) = (0, slices.len());
        let mut put = |bytes: &'a [u8]| {
            if !bytes.is_empty()
                && let Some(slice) = slices.get_mut(filled)
            {
                *slice = IoSlice::new(bytes);
                filled += 1;
            }
        };
        let mut read = self.read;
        for shared in self.shared.iter().take(most) {
            put(&self.copied[read..shared.at]);
            put(&shared.body);
            read = shared.at;
        }
        put(&self.copied[read..]);
        filled
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len(), "advanced past the end");
        while count > 0 {
            let step = count.min(self.next_copied().len());
            self.read += step;
            count -= step;
            let Some(shared) = self.shared.front_mut() else {
                continue;
            };
            let step = count.min(shared.body.len());
            shared.body.advance(step);
            self.shared_len -= step;
            count -= step;
            if shared.body.is_empty() {
                self.shared.pop_front();
            }
        }
        self.forget_written();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: Head = Head { opcode: Opcode::Binary, fin: true, compressed: false, mask: None };

    fn queue_of(bodies: &[usize]) -> (SendQueue, Vec<u8>) {
        let mut queue = SendQueue::new();
        let mut expected = Vec::new();
        for (n, &len) in bodies.iter().enumerate() {
            let body = Bytes::from(vec![n as u8; len]);
            queue.push(HEAD, b"!", &body, 0..len);
            frame::put_header(&mut expected, Opcode::Binary, true, false, None, len + 1);
            expected.push(b'!');
            expected.extend_from_slice(&body);
        }
        (queue, expected)
    }

    fn gather(queue: &SendQueue, most: usize) -> Vec<u8> {
        let mut slices = vec![IoSlice::new(&[]); most];
        let filled = queue.chunks_vectored(&mut slices);
        slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect()
    }

    #[test]
    fn large_bodies_are_shared_and_small_ones_copied() {
        let mut queue = SendQueue::new();
        for (len, shared) in [(SHARE_FROM - 1, false), (SHARE_FROM, true)] {
            let body = Bytes::from(vec![1; len]);
            queue.push(HEAD, b"", &body, 0..len);
            assert_eq!(!body.is_unique(), shared);
        }
        let body = Bytes::from(vec![1; SHARE_FROM]);
        queue.push(Head { mask: Some([1; 4]), ..HEAD }, b"", &body, 0..SHARE_FROM);
        assert!(body.is_unique(), "what is masked cannot be shared");
    }

    #[test]
    fn an_emptied_queue_keeps_a_bounded_buffer() {
        let (mut queue, _) = queue_of(&[100; 10]);
        queue.advance(queue.len());
        assert!(queue.is_empty() && queue.copied.capacity() > 0);
        let (mut queue, _) = queue_of(&[SHARE_FROM - 1; 1000]);
        queue.advance(queue.len());
        assert!(queue.copied.capacity() <= KEEP);
    }

    #[test]
    fn a_queue_that_never_runs_empty_forgets_what_it_wrote() {
        let (mut queue, _) = queue_of(&[1000; 10]);
        for _ in 0..1000 {
            queue.push(HEAD, b"", &Bytes::from(vec![0; 1000]), 0..1000);
            queue.advance(1004);
        }
        assert!(queue.copied.capacity() < 4 * KEEP_WRITTEN, "{}", queue.copied.capacity());
    }

    proptest! {
        #[test]
        fn bytes_leave_in_order_however_they_are_read(
            bodies in prop::collection::vec(prop_oneof![0usize..200, 1000usize..6000], 0..40),
            steps in prop::collection::vec((1usize..10_000, 1usize..6, prop::bool::weighted(0.1)), 1..40),
        ) {
            let (mut queue, expected) = queue_of(&bodies);
            prop_assert_eq!(queue.len(), expected.len());
            let mut rest = &expected[..];
            for (step, most, moves) in steps {
                let ahead = gather(&queue, most);
                prop_assert!(rest.starts_with(&ahead));
                prop_assert_eq!(ahead.is_empty(), rest.is_empty());
                prop_assert!(rest.starts_with(queue.chunk()));
                prop_assert_eq!(queue.chunk().is_empty(), rest.is_empty());
                let step = step.min(rest.len());
                queue.advance(step);
                rest = &rest[step..];
                if moves {
                    let moved = queue.take_rest();
                    prop_assert!(queue.is_empty());
                    queue = moved;
                }
                prop_assert_eq!(queue.len(), rest.len());
            }
            prop_assert_eq!(&queue.copy_to_bytes(rest.len())[..], rest);
        }
    }
}
