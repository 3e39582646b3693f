//! One frame: its header, and its mask.
//!
//! An error that a header shows by itself is refused here. Errors that depend on the frames before it are left to the
//! connection.

use super::{ProtocolError, Role};

/// The longest header: 2 bytes, a 64-bit length, a masking key.
pub(super) const MAX_HEADER: usize = 14;
/// The longest payload of a control frame.
pub(super) const MAX_CONTROL: usize = 125;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2_RSV3: u8 = 0x30;
const MASKED: u8 = 0x80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    pub(super) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// A frame's header; while its payload is read, the header of the remaining part.
///
/// ```text
/// FIN RSV1 RSV2 RSV3 opcode(4) | MASK length(7) | length(16 or 64, big endian) | masking key(32)
/// ```
///
/// Source: RFC 6455 section 5.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) opcode: Opcode,
    pub(super) fin: bool,
    /// RSV1: the message that starts here is compressed (RFC 7692 section 6).
    pub(super) compressed: bool,
    /// The masking key; zeros change nothing and stand for "not masked".
    pub(super) mask: [u8; 4],
    pub(super) len: u64,
}

impl Header {
    /// Returns the header at the start of `bytes` and its length, or `None` if more bytes are needed.
    pub(super) fn parse(
        bytes: &[u8],
        sender: Role,
        deflate: bool,
    ) -> Result<Option<(Self, usize)>, ProtocolError> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            reserved => return Err(ProtocolError::ReservedOpcode(reserved)),
        };
        let fin = first & FIN != 0;
        let compressed = first & RSV1 != 0;
        let starts_message = matches!(opcode, Opcode::Text | Opcode::Binary);
        if first & RSV2_RSV3 != 0 || compressed && !(deflate && starts_message) {
            return Err(ProtocolError::ReservedBit);
        }
        match (sender, second & MASKED != 0) {
            (Role::Client, false) => return Err(ProtocolError::Unmasked),
            (Role::Server, true) => return Err(ProtocolError::Masked),
            _ => {}
        }
        let short = second & 0x7f;
        if opcode.is_control() {
            if !fin {
                return Err(ProtocolError::ControlFragmented);
            }
            if usize::from(short) > MAX_CONTROL {
                return Err(ProtocolError::ControlTooLong);
            }
        }
        let Some((len, rest)) = parse_len(short, rest)? else {
            return Ok(None);
        };
        let (mask, rest) = match sender {
            Role::Server => ([0; 4], rest),
            Role::Client => match rest.split_first_chunk() {
                Some((mask, rest)) => (*mask, rest),
                None => return Ok(None),
            },
        };
        let header = Self { opcode, fin, compressed, mask, len };
        Ok(Some((header, bytes.len() - rest.len())))
    }

    /// Returns the header of what remains after `count` bytes of the payload: shorter, and with the key rotated.
    pub(super) fn after(mut self, count: usize) -> Self {
        self.len -= count as u64;
        self.mask.rotate_left(count % 4);
        self
    }
}

/// Reads the payload length, and returns what follows it. Refuses every form but the shortest.
fn parse_len(short: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, ProtocolError> {
    let (len, smallest, rest) = match short {
        126 => match rest.split_first_chunk() {
            Some((len, rest)) => (u16::from_be_bytes(*len).into(), 126, rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk() {
            Some((len, rest)) => (u64::from_be_bytes(*len), 1 << 16, rest),
            None => return Ok(None),
        },
        len => (len.into(), 0, rest),
    };
    if len >> 63 != 0 {
        return Err(ProtocolError::LengthOverflow);
    }
    if len < smallest {
        return Err(ProtocolError::LengthNotMinimal);
    }
    Ok(Some((len, rest)))
}

/// Writes a header. The caller writes the payload and masks it.
pub(super) fn put_header(
    out: &mut Vec<u8>,
    opcode: Opcode,
    fin: bool,
    compressed: bool,
    mask: Option<[u8; 4]>,
    len: usize,
) {
    let first = opcode as u8 | if fin { FIN } else { 0 } | if compressed { RSV1 } else { 0 };
    let masked = if mask.is_some() { MASKED } else { 0 };
    match len {
        0..=125 => out.extend_from_slice(&[first, masked | len as u8]),
        126..=0xffff => {
            let [high, low] = (len as u16).to_be_bytes();
            out.extend_from_slice(&[first, masked | 126, high, low]);
        }
        _ => {
            out.extend_from_slice(&[first, masked | 127]);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        out.extend_from_slice(&mask);
    }
}

/// Masks or unmasks `bytes` in place.
///
/// Blocks of constant size let the compiler use whatever vector registers there are.
///
/// Source: RFC 6455 section 5.3.
pub(super) fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    if mask == [0; 4] {
        return;
    }
    let block: [u8; 32] = std::array::from_fn(|i| mask[i % 4]);
    let (blocks, tail) = bytes.as_chunks_mut::<32>();
    for bytes in blocks {
        xor(bytes, &block);
    }
    let (words, tail) = tail.as_chunks_mut::<4>();
    for bytes in words {
        xor(bytes, &mask);
    }
    xor(tail, &mask);
}

#[inline]
fn xor(bytes: &mut [u8], mask: &[u8]) {
    for (byte, mask) in bytes.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_length_is_written_in_its_shortest_form_and_read_back() {
        for len in [0, 125, 126, 0xffff, 0x1_0000, usize::MAX >> 1] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let mut bytes = Vec::new();
                put_header(&mut bytes, Opcode::Text, false, true, mask, len);
                let sender = if mask.is_some() { Role::Client } else { Role::Server };
                let header = Header {
                    opcode: Opcode::Text,
                    fin: false,
                    compressed: true,
                    mask: mask.unwrap_or_default(),
                    len: len as u64,
                };
                assert_eq!(Header::parse(&bytes, sender, true), Ok(Some((header, bytes.len()))));
                for cut in 0..bytes.len() {
                    assert_eq!(Header::parse(&bytes[..cut], sender, true), Ok(None));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn masking_in_pieces_is_masking_byte_by_byte(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            mask in any::<[u8; 4]>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let expected: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| b ^ mask[i % 4]).collect();
            let mut masked = bytes.clone();
            let (first, second) = masked.split_at_mut(cut.index(bytes.len() + 1));
            let header = Header {
                opcode: Opcode::Text, fin: true, compressed: false, mask, len: bytes.len() as u64,
            };
            apply_mask(first, mask);
            apply_mask(second, header.after(first.len()).mask);
            prop_assert_eq!(masked, expected);
        }
    }
}
