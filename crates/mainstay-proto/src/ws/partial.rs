//! The part of an incomplete item that was read. An idle connection has none.

use std::mem;

use super::{
    Kind, ProtocolError, Role,
    frame::{Header, MAX_HEADER},
};

/// An incomplete header, an incomplete frame, a message that lacks fragments: any of them, between two reads.
#[derive(Debug, Default)]
pub(super) struct Partial {
    header: [u8; MAX_HEADER],
    header_len: usize,
    /// The frame whose payload is being read, as the header of the remaining part.
    pub(super) frame: Option<Header>,
    /// The beginning of a control frame's payload.
    pub(super) control: Vec<u8>,
    /// The beginning of a message; control frames may come in between.
    pub(super) message: Option<Message>,
}

impl Partial {
    /// Whether nothing is incomplete any more.
    pub(super) fn is_done(&self) -> bool {
        self.header_len == 0 && self.frame.is_none() && self.message.is_none()
    }

    /// Consumes from `input` what a header lacks. Returns `None` if all input was consumed and more is needed.
    pub(super) fn read_header(
        &mut self,
        input: &mut &mut [u8],
        sender: Role,
        deflate: bool,
    ) -> Result<Option<Header>, ProtocolError> {
        let had = self.header_len;
        let len = MAX_HEADER.min(had + input.len());
        self.header[had..len].copy_from_slice(&input[..len - had]);
        let parsed = Header::parse(&self.header[..len], sender, deflate)?;
        let (header, used) = match parsed {
            Some((header, used)) => (Some(header), used),
            None => (None, len),
        };
        advance(input, used - had);
        self.header_len = if header.is_some() { 0 } else { used };
        Ok(header)
    }

    /// Whether a header has begun.
    pub(super) fn in_header(&self) -> bool {
        self.header_len > 0
    }
}

/// Moves `input` past its first `count` bytes, and returns them.
pub(super) fn advance<'a>(input: &mut &'a mut [u8], count: usize) -> &'a mut [u8] {
    let (taken, rest) = mem::take(input).split_at_mut(count);
    *input = rest;
    taken
}

/// A message in several fragments, or in several reads.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) compressed: bool,
    pub(super) fragments: u32,
    pub(super) bytes: Vec<u8>,
    /// How much of a text is known to be UTF-8; at most the start of one character is missing.
    valid: usize,
}

/// When its memory is full it grows by this, or by as much again as has arrived, if the frame is that long.
const GROW: usize = 16 * 1024;

impl Message {
    pub(super) fn new(kind: Kind, compressed: bool) -> Self {
        Self { kind, compressed, fragments: 1, bytes: Vec::new(), valid: 0 }
    }

    /// Appends the bytes that arrived of a frame with `expected` more bytes, including these.
    pub(super) fn append(&mut self, bytes: &[u8], expected: u64) -> Result<(), ProtocolError> {
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            let ahead = GROW.max(self.bytes.len()).max(bytes.len());
            self.bytes.reserve(usize::try_from(expected).map_or(ahead, |all| all.min(ahead)));
        }
        self.bytes.extend_from_slice(bytes);
        if self.kind == Kind::Text && !self.compressed { self.validate() } else { Ok(()) }
    }

    /// Whether the message ends with the end of a character.
    pub(super) fn is_valid_text(&self) -> bool {
        self.valid == self.bytes.len()
    }

    /// Checks the bytes that arrived since the last check. Fails at the first byte that no continuation can repair.
    fn validate(&mut self) -> Result<(), ProtocolError> {
        match simdutf8::compat::from_utf8(&self.bytes[self.valid..]) {
            Ok(_) => self.valid = self.bytes.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(ProtocolError::InvalidUtf8),
        }
        Ok(())
    }
}
