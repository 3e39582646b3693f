//! The primitive encodings of `mainstay.v1`: QUIC varints, byte strings and optional fields.
//!
//! A reader never allocates and never trusts a length: every byte string is a slice of the message that it arrived
//! in, and a length that reaches past the end is an error before anything else happens.
//!
//! Source: `docs/PROTOCOL.md` "Framing", RFC 9000 section 16.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::error::Malformed;

/// The largest number on the wire, 2^53 - 1: a JavaScript number holds it exactly.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// Reads the fields of one control message, front to back.
pub(crate) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(crate) fn new(body: Bytes) -> Self {
        Self { rest: body }
    }

    pub(crate) fn integer(&mut self) -> Result<u64, Malformed> {
        let first = *self.rest.first().ok_or(Malformed::Truncated)?;
        let length = 1_usize << (first >> 6);
        if self.rest.len() < length {
            return Err(Malformed::Truncated);
        }
        let mut value = u64::from(first & 0x3f);
        self.rest.advance(1);
        for _ in 1..length {
            value = value << 8 | u64::from(self.rest.get_u8());
        }
        if value > MAX_INTEGER { Err(Malformed::IntegerTooLarge) } else { Ok(value) }
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.integer()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::BadValue),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Malformed> {
        let length = usize::try_from(self.integer()?).map_err(|_| Malformed::Truncated)?;
        if self.rest.len() < length {
            return Err(Malformed::Truncated);
        }
        Ok(self.rest.split_to(length))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes()?.as_ref().try_into().map_err(|_| Malformed::BadValue)
    }

    /// Reads bytes whose number both ends know, without a length.
    pub(crate) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        if self.rest.len() < N {
            return Err(Malformed::Truncated);
        }
        self.rest.split_to(N).as_ref().try_into().map_err(|_| Malformed::Truncated)
    }

    pub(crate) fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| Malformed::BadValue)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn rest(self) -> Bytes {
        self.rest
    }

    pub(crate) fn rest_text(self) -> Result<String, Malformed> {
        String::from_utf8(self.rest.to_vec()).map_err(|_| Malformed::BadValue)
    }

    /// Reads the optional fields at the end of a message. `field` is called once for each field and ignores types
    /// that it does not know. A type below 64 that appears twice is an error: two implementations must not disagree
    /// on which one counts. (Types are one-byte varints; a larger one is unknown and skipped.)
    pub(crate) fn optional_fields(
        mut self,
        mut field: impl FnMut(u64, Reader) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let mut seen = Vec::new();
        while !self.rest.is_empty() {
            let kind = self.integer()?;
            let value = self.bytes()?;
            if seen.contains(&kind) {
                return Err(Malformed::RepeatedField);
            }
            if seen.len() == MAX_FIELDS {
                return Err(Malformed::TooManyFields);
            }
            seen.push(kind);
            field(kind, Reader::new(value))?;
        }
        Ok(())
    }
}

/// More optional fields than any message has; bounds the check for repeated ones.
const MAX_FIELDS: usize = 32;

/// Writes the fields of one control message.
pub(crate) struct Writer {
    out: BytesMut,
}

impl Writer {
    pub(crate) fn new(kind: u8) -> Self {
        let mut out = BytesMut::with_capacity(64);
        out.put_u8(kind);
        Self { out }
    }

    /// Begins without a type.
    pub(crate) fn untyped() -> Self {
        Self { out: BytesMut::with_capacity(256) }
    }

    pub(crate) fn integer(mut self, value: u64) -> Self {
        put_integer(&mut self.out, value);
        self
    }

    pub(crate) fn flag(self, value: bool) -> Self {
        self.integer(u64::from(value))
    }

    pub(crate) fn bytes(mut self, value: &[u8]) -> Self {
        put_integer(&mut self.out, value.len() as u64);
        self.out.put_slice(value);
        self
    }

    /// Bytes up to the end of the message, without a length.
    pub(crate) fn rest(mut self, value: &[u8]) -> Self {
        self.out.put_slice(value);
        self
    }

    /// An optional field whose value is written by `fields`.
    pub(crate) fn field(self, kind: u64, fields: impl FnOnce(Writer) -> Writer) -> Self {
        let value = fields(Writer { out: BytesMut::new() });
        self.integer(kind).bytes(&value.out)
    }

    pub(crate) fn finish(self) -> Bytes {
        self.out.freeze()
    }
}

/// Writes the shortest form. Every value is at most [`MAX_INTEGER`]: counts stay below it by construction, and
/// durations and sizes are checked where they are configured.
fn put_integer(out: &mut BytesMut, value: u64) {
    let value = value.min(MAX_INTEGER);
    match value {
        0..0x40 => out.put_u8(value as u8),
        0x40..0x4000 => out.put_u16(value as u16 | 0x4000),
        0x4000..0x4000_0000 => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}
