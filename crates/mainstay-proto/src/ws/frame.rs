//! The frame header and the mask.
//!
//! Source: RFC 6455 section 5.2, 5.3.

use super::Role;
use super::error::ProtocolError;

/// A header is at most 2 + 8 + 4 bytes.
pub(super) const LONGEST_HEADER: usize = 14;

pub(super) const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fin: bool,
    pub(super) compressed: bool,
    pub(super) opcode: u8,
    pub(super) length: u64,
    pub(super) mask: Option<[u8; 4]>,
}

impl Header {
    /// Reads a header from the front of `bytes` and says how long it is; `None` if bytes are missing.
    /// What is wrong in the first two bytes is told before the rest is there.
    pub(super) fn parse(
        bytes: &[u8],
        role: Role,
        may_compress: bool,
    ) -> Result<Option<(Self, usize)>, ProtocolError> {
        let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
        let (fin, opcode, short) = (first & 0x80 != 0, first & 0x0f, second & 0x7f);
        let (compressed, masked) = (first & 0x40 != 0, second & 0x80 != 0);
        let is_control = opcode >= CLOSE;
        if first & 0x30 != 0 || (compressed && (!may_compress || is_control || opcode == CONTINUATION)) {
            return Err(ProtocolError::ReservedBit);
        }
        if matches!(opcode, 3..=7 | 11..) {
            return Err(ProtocolError::ReservedOpcode(opcode));
        }
        if is_control && (!fin || short > 125) {
            return Err(ProtocolError::ControlFrame);
        }
        match role {
            Role::Server if !masked => return Err(ProtocolError::Unmasked),
            Role::Client if masked => return Err(ProtocolError::Masked),
            _ => {}
        }
        let (length, rest, width) = match (short, rest) {
            (126, &[a, b, ref rest @ ..]) => (u64::from(u16::from_be_bytes([a, b])), rest, 2),
            (127, &[a, b, c, d, e, f, g, h, ref rest @ ..]) => {
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), rest, 8)
            }
            (126 | 127, _) => return Ok(None),
            (short, rest) => (u64::from(short), rest, 0),
        };
        let shortest = match width {
            0 => true,
            2 => length > 125,
            _ => length > 0xffff && length >> 63 == 0,
        };
        if !shortest {
            return Err(ProtocolError::Length);
        }
        let mask = match (masked, rest) {
            (false, _) => None,
            (true, &[a, b, c, d, ..]) => Some([a, b, c, d]),
            (true, _) => return Ok(None),
        };
        let size = 2 + width + if masked { 4 } else { 0 };
        Ok(Some((Self { fin, compressed, opcode, length, mask }, size)))
    }

    /// Writes the header into the front of `out` and returns its size.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let first = u8::from(self.fin) << 7 | u8::from(self.compressed) << 6 | self.opcode;
        let mask_bit = if self.mask.is_some() { 0x80 } else { 0 };
        match self.length {
            0..=125 => out.extend([first, mask_bit | self.length as u8]),
            126..=0xffff => {
                out.extend([first, mask_bit | 126]);
                out.extend((self.length as u16).to_be_bytes());
            }
            _ => {
                out.extend([first, mask_bit | 127]);
                out.extend(self.length.to_be_bytes());
            }
        }
        if let Some(mask) = self.mask {
            out.extend(mask);
        }
    }
}

/// Masks or unmasks `data`, which starts `offset` bytes into the frame's payload.
pub(super) fn apply_mask(data: &mut [u8], mask: [u8; 4], offset: u64) {
    let mut key = mask;
    key.rotate_left((offset % 4) as usize);
    let word = u64::from_ne_bytes([key[0], key[1], key[2], key[3], key[0], key[1], key[2], key[3]]);
    let mut words = data.chunks_exact_mut(8);
    for chunk in &mut words {
        if let Ok(bytes) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ word).to_ne_bytes());
        }
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: &[u8], expected: Result<Option<(u64, usize)>, ProtocolError>) {
        let got = Header::parse(bytes, Role::Server, false).map(|h| h.map(|(h, size)| (h.length, size)));
        assert_eq!(got, expected, "{bytes:02x?}");
    }

    #[test]
    fn headers_are_read_only_in_their_shortest_form() {
        check(&[0x81, 0x85, 1, 2, 3, 4], Ok(Some((5, 6))));
        check(&[0x81, 0xfe, 0, 126, 1, 2, 3, 4], Ok(Some((126, 8))));
        check(&[0x81, 0xfe, 0, 125, 1, 2, 3, 4], Err(ProtocolError::Length));
        check(&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4], Ok(Some((65536, 14))));
        check(&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 255, 255, 1, 2, 3, 4], Err(ProtocolError::Length));
        check(&[0x81, 0xff, 128, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], Err(ProtocolError::Length));
    }

    #[test]
    fn what_is_wrong_is_told_from_the_first_two_bytes() {
        check(&[0x81], Ok(None));
        check(&[0x81, 5], Err(ProtocolError::Unmasked));
        check(&[0xc1, 0x85], Err(ProtocolError::ReservedBit));
        check(&[0x91, 0x85], Err(ProtocolError::ReservedBit));
        for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
            check(&[0x80 | opcode, 0x80], Err(ProtocolError::ReservedOpcode(opcode)));
        }
        for opcode in [CLOSE, PING, PONG] {
            check(&[opcode, 0x80], Err(ProtocolError::ControlFrame));
            check(&[0x80 | opcode, 0xfe], Err(ProtocolError::ControlFrame));
        }
        let from_server = Header::parse(&[0x81, 0x80], Role::Client, false);
        assert_eq!(from_server, Err(ProtocolError::Masked));
    }

    #[test]
    fn masking_in_pieces_equals_masking_at_once() {
        let mask = [1, 2, 3, 4];
        let mut whole: Vec<u8> = (0..=255).collect();
        let mut pieces = whole.clone();
        apply_mask(&mut whole, mask, 0);
        let (a, b) = pieces.split_at_mut(101);
        apply_mask(a, mask, 0);
        apply_mask(b, mask, 101);
        assert_eq!(whole, pieces);
        assert_eq!(whole[5], 5 ^ 2);
    }
}
