//! What a peer can do wrong, and the close code that answers it.

use super::CloseCode;

/// The peer violated the protocol or a limit: fail the connection ([`Connection::fail`](super::Connection::fail)).
///
/// A normal close is no error, but [`Incoming::Close`](super::Incoming::Close).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A client sent an unmasked frame.
    #[error("unmasked frame from a client")]
    Unmasked,
    /// A server sent a masked frame.
    #[error("masked frame from a server")]
    Masked,
    /// A reserved bit is set that no agreed extension gives a meaning, or RSV1 where compression may not mark it.
    #[error("reserved bit set")]
    ReservedBit,
    /// Opcodes 3-7 and 11-15 are reserved.
    #[error("reserved opcode {0}")]
    ReservedOpcode(u8),
    /// A control frame carries more than 125 bytes.
    #[error("control frame longer than 125 bytes")]
    ControlTooLong,
    /// A control frame is not final.
    #[error("fragmented control frame")]
    ControlFragmented,
    /// A length does not use the shortest form.
    #[error("length not in its shortest form")]
    LengthNotMinimal,
    /// A 64-bit length has its top bit set.
    #[error("length above 2^63")]
    LengthOverflow,
    /// A continuation frame without a message to continue.
    #[error("continuation without a message")]
    UnexpectedContinuation,
    /// A new message began inside a fragmented one.
    #[error("message inside a fragmented message")]
    UnfinishedMessage,
    /// A Close frame with a body of one byte.
    #[error("close frame with half a code")]
    CloseTooShort,
    /// A Close frame with a code that may not travel.
    #[error("close code {0} may not be sent")]
    CloseCodeNotAllowed(u16),
    /// Text, or the reason of a Close frame, is not UTF-8.
    #[error("invalid UTF-8")]
    InvalidUtf8,
    /// A compressed message does not inflate.
    #[error("invalid compressed data")]
    InvalidDeflate,
    /// A message is longer than [`Limits::max_message`](super::Limits::max_message) bytes.
    #[error("message longer than {limit} bytes")]
    MessageTooBig {
        /// The limit.
        limit: usize,
    },
    /// Control frames and empty fragments without end, and nothing between them that carries data.
    #[error("a flood of control frames or empty fragments: more than 2,000 at once and 10 a second")]
    Flood,
    /// A message consists of more than [`Limits::max_fragments`](super::Limits::max_fragments) frames.
    #[error("message of more than {limit} fragments")]
    TooManyFragments {
        /// The limit.
        limit: u32,
    },
}

impl ProtocolError {
    /// Returns the code to fail the connection with: 1002, 1007, 1008 or 1009.
    ///
    /// Source: RFC 6455 section 7.4.1.
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::InvalidUtf8 | Self::InvalidDeflate => CloseCode::INVALID_DATA,
            Self::MessageTooBig { .. } => CloseCode::TOO_BIG,
            Self::TooManyFragments { .. } | Self::Flood => CloseCode::POLICY,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }
}
