//! What can be wrong with what a peer of `mainstay.v1` sent.

use crate::ws::CloseCode;

/// A message that cannot be read. The bytes are at fault, whatever the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A binary message without the type byte that every one starts with.
    #[error("binary message of no bytes; the first byte names the type")]
    Empty,
    /// A control type (0x01-0x7f) that this version does not know.
    #[error("unknown control type {0:#04x}")]
    UnknownType(u8),
    /// A field or a length reaches past the end of the message.
    #[error("message ends within a field")]
    Truncated,
    /// An integer above 2^53 - 1.
    #[error("integer above 2^53-1")]
    IntegerTooLarge,
    /// A field holds a value outside its range.
    #[error("field value out of range")]
    BadValue,
    /// An optional field came twice.
    #[error("optional field repeated")]
    RepeatedField,
    /// More than 32 optional fields.
    #[error("more than 32 optional fields")]
    TooManyFields,
}

/// A peer of `mainstay.v1` broke the protocol: its connection is closed, its session is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// See [`Malformed`].
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The peer acknowledged what was never written to it.
    #[error("acknowledged {acknowledged}, but the last written is {written}")]
    AckBeyondWritten {
        /// What the peer says it received.
        acknowledged: u64,
        /// The highest number ever written to it.
        written: u64,
    },
    /// The peer's count of this stream and ours differ: something between lost or doubled a message.
    #[error("peer wrote {sent} messages on this connection, {read} were read")]
    PositionMismatch {
        /// The peer's position.
        sent: u64,
        /// Ours.
        read: u64,
    },
    /// The peer sent more than the window allows.
    #[error("peer sent past the window that was announced to it")]
    WindowExceeded,
    /// The peer sent a message that is larger than this end takes.
    #[error("a message of {length} bytes is larger than this end takes: {limit}")]
    MessageTooBig {
        /// Payload bytes.
        length: u64,
        /// What was announced.
        limit: u64,
    },
    /// A message that is not allowed here, for example a second HELLO.
    #[error("{0} is not allowed here")]
    Unexpected(&'static str),
    /// The opening of the session speaks another version.
    #[error("version {0} is not supported; this end speaks version 1")]
    Version(u64),
}

impl SessionError {
    /// The close code that ends the connection.
    #[must_use]
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::MessageTooBig { .. } => CloseCode::TOO_BIG,
            _ => CloseCode::PROTOCOL_VIOLATION,
        }
    }
}
