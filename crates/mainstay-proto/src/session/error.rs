//! What is wrong with a message of a peer.

use crate::ws::CloseCode;

/// A message that cannot be decoded, whatever the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A binary message without a type byte.
    #[error("binary message without bytes; the first byte names its type")]
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
    /// An optional field appears twice.
    #[error("optional field repeated")]
    RepeatedField,
    /// More than 32 optional fields.
    #[error("more than 32 optional fields")]
    TooManyFields,
}

/// A violation of `mainstay.v1` by the peer. Its connection is closed; its session is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// See [`Malformed`].
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The peer acknowledged a message that was never written to it.
    #[error("peer acknowledged message {acknowledged}, but the last written message is {written}")]
    AckBeyondWritten {
        /// The number that the peer acknowledged.
        acknowledged: u64,
        /// The highest number that was ever written to it.
        written: u64,
    },
    /// The two ends count the stream differently: a message was lost or duplicated between them.
    #[error("peer wrote {sent} messages on this connection, {read} were read")]
    PositionMismatch {
        /// The peer's position.
        sent: u64,
        /// This end's position.
        read: u64,
    },
    /// The peer wrote more than its window allows.
    #[error("peer wrote past the window that this end announced")]
    WindowExceeded,
    /// The peer sent a message that is larger than this end accepts.
    #[error("a message of {length} bytes is larger than the limit that this end announced: {limit}")]
    MessageTooBig {
        /// The payload bytes of the message.
        length: u64,
        /// The limit that this end announced.
        limit: u64,
    },
    /// A message that is not allowed here, for example a second HELLO.
    #[error("{0} is not allowed here")]
    Unexpected(&'static str),
    /// The peer speaks another version.
    #[error("version {0} is not supported; this end speaks version 1")]
    Version(u64),
}

impl SessionError {
    /// Returns the close code that ends the connection.
    #[must_use]
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::MessageTooBig { .. } => CloseCode::TOO_BIG,
            _ => CloseCode::PROTOCOL_VIOLATION,
        }
    }
}
