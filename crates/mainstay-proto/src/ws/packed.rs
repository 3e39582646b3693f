//! A cache of compressed messages, so that one message to many is compressed once; and the compressor, so that it is
//! set up once: some 300 KiB, which cost more than most messages.
//!
//! Two connections may send the same compressed bytes if neither keeps context between messages and their windows
//! have one size: then the result of compression depends on the message alone. A message is identified by the address
//! of its body, not by its content: a fan-out shares the body, and two pointers are compared where a hash would read
//! all of it. The cache holds the body, so no other message can have that address meanwhile.
//!
//! Not here: how a message is compressed (`deflate`).

use std::collections::VecDeque;

use bytes::Bytes;
use flate2::Compress;

use super::compress::{compressor, pack_alone};

/// Maximum number of remembered messages: more than one receiver gets in a turn. All receivers get the same messages
/// in the same order; with fewer, the oldest would be gone whenever the next receiver comes.
const MOST: usize = 256;
/// Maximum number of their bytes, compressed and not. The last message is remembered whatever its size.
const MOST_BYTES: usize = 1024 * 1024;

/// Messages that were compressed recently, for the connections that send the same.
///
/// A driver that serves many connections passes one to each [`send_shared`](super::Connection::send_shared), and
/// calls [`forget_unused`](Self::forget_unused) after every connection had its turn. It holds up to 256 messages and
/// 1 MiB of them, or one that is larger; and from the first message on a compressor, some 300 KiB.
#[derive(Debug, Default)]
pub struct Packed {
    kept: VecDeque<Kept>,
    bytes: usize,
    /// For the window that was used last.
    compressor: Option<(u8, Box<Compress>)>,
}

#[derive(Debug)]
struct Kept {
    window_bits: u8,
    head: Vec<u8>,
    body: Bytes,
    /// `None`: compression does not make it smaller.
    packed: Option<Bytes>,
    /// Whether it was sent since unused messages were last forgotten.
    used: bool,
}

impl Packed {
    /// Creates an empty cache, without memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the messages that no connection sent since the last call.
    pub fn forget_unused(&mut self) {
        self.kept.retain_mut(|kept| std::mem::take(&mut kept.used));
        self.bytes = self.kept.iter().map(Kept::bytes).sum();
    }

    /// Returns this message compressed by itself in a window of this size; `None` if that does not make it smaller.
    /// Remembers either result.
    pub(super) fn get_or_compress(&mut self, window_bits: u8, head: &[u8], body: &Bytes) -> Option<Bytes> {
        if let Some(kept) = self.kept.iter_mut().find(|kept| kept.is(window_bits, head, body)) {
            kept.used = true;
            return kept.packed.clone();
        }
        let packed = pack_alone(self.compressor(window_bits), head, body);
        let (head, body) = (head.to_vec(), body.clone());
        let kept = Kept { window_bits, head, body, packed: packed.clone(), used: true };
        self.bytes += kept.bytes();
        self.kept.push_back(kept);
        while self.kept.len() > MOST || (self.bytes > MOST_BYTES && self.kept.len() > 1) {
            self.bytes -= self.kept.pop_front().map_or(0, |kept| kept.bytes());
        }
        packed
    }

    /// Returns a compressor without context.
    fn compressor(&mut self, window_bits: u8) -> &mut Compress {
        let fits = self.compressor.take_if(|(bits, _)| *bits == window_bits);
        let (_, compress) = self.compressor.insert(match fits {
            Some((bits, mut compress)) => {
                compress.reset();
                (bits, compress)
            }
            None => (window_bits, Box::new(compressor(window_bits))),
        });
        compress
    }
}

impl Kept {
    fn is(&self, window_bits: u8, head: &[u8], body: &Bytes) -> bool {
        (self.body.as_ptr(), self.body.len()) == (body.as_ptr(), body.len())
            && self.window_bits == window_bits
            && self.head == head
    }

    fn bytes(&self) -> usize {
        self.head.len() + self.body.len() + self.packed.as_ref().map_or(0, Bytes::len)
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Whether a message has to be compressed, in a window of this size.
    fn compresses(packed: &mut Packed, window_bits: u8, head: &[u8], body: &Bytes) -> bool {
        // The compressor is looked for only then.
        packed.compressor = None;
        packed.get_or_compress(window_bits, head, body);
        packed.compressor.is_some()
    }

    #[test]
    fn a_compressor_is_set_up_once_and_remembers_no_message() {
        let (mut packed, text) = (Packed::new(), "as it was said before, ".repeat(10));
        let bodies = [Bytes::from(text.clone()), Bytes::from(text)];
        let alone = bodies.clone().map(|body| Packed::new().get_or_compress(15, b"", &body));
        let first = packed.get_or_compress(15, b"", &bodies[0]);
        let compressor = std::ptr::from_ref(packed.compressor.as_ref().unwrap().1.as_ref());
        assert_eq!([first, packed.get_or_compress(15, b"", &bodies[1])], alone);
        assert_eq!(std::ptr::from_ref(packed.compressor.as_ref().unwrap().1.as_ref()), compressor);
        // What does not get smaller stops half-way.
        let mut noise = vec![0; 1000];
        StdRng::seed_from_u64(1).fill_bytes(&mut noise);
        assert_eq!(packed.get_or_compress(15, b"", &Bytes::from(noise)), None);
        assert_eq!(
            packed.get_or_compress(15, b"", &bodies[0].slice(1..)),
            Packed::new().get_or_compress(15, b"", &bodies[0].slice(1..))
        );
        assert!(packed.get_or_compress(9, b"", &bodies[0]).is_some());
        assert_eq!(packed.compressor.as_ref().map(|(bits, _)| *bits), Some(9));
    }

    #[test]
    fn a_message_is_compressed_once_for_each_window_and_head() {
        let (mut packed, body) = (Packed::new(), Bytes::from(vec![0; 100]));
        for (window_bits, head) in [(15, &b""[..]), (15, b"\0"), (9, b"\0")] {
            assert!(compresses(&mut packed, window_bits, head, &body));
            assert!(!compresses(&mut packed, window_bits, head, &body.clone()));
        }
        assert!(!compresses(&mut packed, 15, b"", &body), "the others did not push it out");
    }

    #[test]
    fn a_body_is_known_by_where_it_lies_and_how_long_it_is() {
        let (mut packed, body) = (Packed::new(), Bytes::from(vec![0; 100]));
        assert!(compresses(&mut packed, 15, b"", &body));
        assert!(compresses(&mut packed, 15, b"", &body.slice(..99)));
        assert!(compresses(&mut packed, 15, b"", &Bytes::from(vec![0; 100])));
    }

    #[test]
    fn where_a_message_lay_no_other_can_lie_while_it_is_remembered() {
        let mut packed = Packed::new();
        for _ in 0..100 {
            assert!(compresses(&mut packed, 15, b"", &Bytes::from(vec![0; 1000])));
        }
    }

    #[test]
    fn messages_that_every_connection_gets_in_one_turn_are_all_remembered() {
        let mut packed = Packed::new();
        let bodies: Vec<_> = (0..MOST).map(|_| Bytes::from(vec![0; 100])).collect();
        assert!(bodies.iter().all(|body| compresses(&mut packed, 15, b"", body)));
        assert!(bodies.iter().all(|body| !compresses(&mut packed, 15, b"", body)));
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_bytes() {
        let mut packed = Packed::new();
        let body = |len| Bytes::from(vec![0; len]);
        for _ in 0..2 * MOST {
            compresses(&mut packed, 15, b"", &body(100));
            assert!(packed.kept.len() <= MOST);
        }
        for _ in 0..2 * MOST {
            compresses(&mut packed, 15, b"", &body(MOST_BYTES / 10));
            let bytes = packed.kept.iter().map(Kept::bytes).sum::<usize>();
            assert!(bytes == packed.bytes && bytes <= MOST_BYTES, "{bytes}, {}", packed.bytes);
        }
        let large = body(2 * MOST_BYTES);
        assert!(compresses(&mut packed, 15, b"", &large));
        assert!(!compresses(&mut packed, 15, b"", &large));
        assert_eq!(packed.kept.len(), 1);
    }

    #[test]
    fn a_message_is_forgotten_once_no_connection_sent_it_for_a_whole_round() {
        let (mut packed, body) = (Packed::new(), Bytes::from(vec![0; 100]));
        assert!(compresses(&mut packed, 15, b"", &body));
        for _ in 0..3 {
            packed.forget_unused();
            assert!(!compresses(&mut packed, 15, b"", &body));
        }
        packed.forget_unused();
        packed.forget_unused();
        assert!(body.is_unique() && packed.bytes == 0);
        assert!(compresses(&mut packed, 15, b"", &body));
    }
}
