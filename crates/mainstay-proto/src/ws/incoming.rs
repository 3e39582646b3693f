//! The items that `receive` returns.

use std::{fmt, ops::Deref};

use bytes::Bytes;

use super::{CloseFrame, Kind, Message, Utf8Bytes};

/// An item from the peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole message; text is valid UTF-8.
    Message(Payload<'a>),
    /// A Ping. [`Connection::flush_replies`](super::Connection::flush_replies) answers it.
    Ping(Payload<'a>),
    /// A Pong, solicited or not.
    Pong(Payload<'a>),
    /// The peer's Close; no item follows it.
    /// [`Connection::flush_replies`](super::Connection::flush_replies) answers it.
    Close(Option<CloseFrame>),
}

/// Bytes in the caller's read buffer or, if they arrived in several reads or fragments, in their own memory.
///
/// Only the codec makes one, so text is UTF-8. `Debug` shows the length, never the content: payloads do not belong in
/// logs.
pub struct Payload<'a> {
    kind: Kind,
    bytes: Lies<'a>,
}

/// Where the bytes are.
enum Lies<'a> {
    /// In the buffer given to [`Connection::receive`](super::Connection::receive).
    InBuffer(&'a [u8]),
    /// In memory of their own.
    Apart(Bytes),
}

impl<'a> Payload<'a> {
    /// Lies in the buffer given to [`Connection::receive`](super::Connection::receive). If `kind` is text, it was checked.
    pub(super) fn in_buffer(kind: Kind, bytes: &'a [u8]) -> Self {
        Self { kind, bytes: Lies::InBuffer(bytes) }
    }

    /// Was put together. If `kind` is text, it was checked.
    pub(super) fn apart(kind: Kind, bytes: Bytes) -> Self {
        Self { kind, bytes: Lies::Apart(bytes) }
    }

    /// Returns whether it is text or binary; a control frame's payload is binary.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it lies in the buffer given to [`Connection::receive`](super::Connection::receive).
    #[must_use]
    pub fn is_borrowed(&self) -> bool {
        matches!(self.bytes, Lies::InBuffer(_))
    }

    /// Returns the bytes to keep; copies only borrowed ones.
    pub fn into_bytes(self) -> Bytes {
        match self.bytes {
            Lies::InBuffer(bytes) => Bytes::copy_from_slice(bytes),
            Lies::Apart(bytes) => bytes,
        }
    }

    /// Returns the message to keep; copies only borrowed bytes.
    pub fn into_message(self) -> Message {
        match self.kind {
            Kind::Text => Message::Text(Utf8Bytes::checked(self.into_bytes())),
            Kind::Binary => Message::Binary(self.into_bytes()),
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Lies::InBuffer(bytes) => bytes,
            Lies::Apart(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

impl PartialEq for Payload<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && **self == **other
    }
}

impl Eq for Payload<'_> {}
