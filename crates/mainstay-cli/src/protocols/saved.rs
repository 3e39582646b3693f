//! What a session of the gateway takes along to another node or process: bytes of a version.
//!
//! ```text
//! version u8, the messages of the backend that the session had no room for, and the prologue if there is one
//! a number is 8 bytes, big-endian; bytes are their length as a number, and themselves
//! ```

use mainstay::{Message, Utf8Bytes};

/// The version of the bytes; of any other version, a session is not continued.
pub(crate) const VERSION: u8 = 1;

/// The bytes of another version, of other flags, or damaged: the session's client has to start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what the session was saved with is of another version of the gateway, of other flags, or damaged")]
pub(crate) struct Malformed;

/// Writes the bytes.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Self {
        Self(vec![VERSION])
    }

    pub(crate) fn flag(&mut self, flag: bool) {
        self.0.push(flag.into());
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.0.extend(number.to_be_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }

    pub(crate) fn message(&mut self, message: &Message) {
        self.flag(matches!(message, Message::Text(_)));
        self.bytes(message.payload());
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads the bytes.
#[derive(Debug)]
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Begins behind the version.
    ///
    /// # Errors
    /// It is another one.
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => Ok(Self(rest)),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed)?;
        Ok(u64::from_be_bytes(bytes))
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.number()?.try_into().map_err(|_| Malformed)?;
        self.take(length)
    }

    /// Copies a message, so that it does not keep all of the bytes in memory.
    pub(crate) fn message(&mut self) -> Result<Message, Malformed> {
        let (is_text, payload) = (self.flag()?, self.bytes()?);
        if !is_text {
            return Ok(Message::binary(payload.to_vec()));
        }
        let text = String::from_utf8(payload.to_vec()).map_err(|_| Malformed)?;
        Ok(Message::Text(Utf8Bytes::from(text)))
    }

    /// Ends behind the last byte.
    ///
    /// # Errors
    /// More follow.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        self.0.is_empty().then_some(()).ok_or(Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}
