//! What `receive` hands out.

use std::{fmt, ops::Deref};

use bytes::Bytes;

use super::{CloseFrame, Kind};

/// What came from the peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole message; text is valid UTF-8.
    Message {
        /// Text or binary.
        kind: Kind,
        /// The message.
        payload: Payload<'a>,
    },
    /// A Ping. [`Connection::flush_replies`](super::Connection::flush_replies) answers it.
    Ping(Payload<'a>),
    /// A Pong, asked for or not.
    Pong(Payload<'a>),
    /// The peer's Close; nothing comes after it.
    /// [`Connection::flush_replies`](super::Connection::flush_replies) answers it.
    Close(Option<CloseFrame>),
}

/// Bytes in the caller's read buffer or, if they came in several reads or fragments, in their own memory.
///
/// Its `Debug` shows how long it is, never what is in it: payloads do not belong in logs.
pub enum Payload<'a> {
    /// Lies in the buffer given to [`Connection::receive`](super::Connection::receive).
    Borrowed(&'a [u8]),
    /// Was put together.
    Owned(Bytes),
}

impl Payload<'_> {
    /// The bytes to keep; copies only what is borrowed.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
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
        **self == **other
    }
}

impl Eq for Payload<'_> {}
