//! What can be wrong with the bytes of a WebSocket connection.

use super::close::CloseCode;

/// The peer broke RFC 6455 or a limit: the connection is failed with [`close_code`](Self::close_code).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Section 5.2: a reserved bit is set without an extension that gives it a meaning.
    #[error("reserved bit set")]
    ReservedBit,
    /// Section 5.2: opcode 3-7 or 11-15.
    #[error("reserved opcode {0}")]
    ReservedOpcode(u8),
    /// Section 5.1: a client must mask.
    #[error("unmasked frame from a client")]
    Unmasked,
    /// Section 5.1: a server must not mask.
    #[error("masked frame from a server")]
    Masked,
    /// Section 5.5: a control frame is at most 125 bytes and never fragmented.
    #[error("control frame fragmented or longer than 125 bytes")]
    ControlFrame,
    /// Section 5.2: the shortest form of the length is required, and its top bit is 0.
    #[error("length not in its shortest form, or above 2^63")]
    Length,
    /// Section 5.4: a continuation without a beginning, or a beginning within a message.
    #[error("fragment out of order")]
    Fragment,
    /// Section 5.5.1: a close body of one byte, or a code that may not be sent.
    #[error("close frame with an invalid body")]
    CloseBody,
    /// Section 8.1: text, or a close reason, that is not UTF-8.
    #[error("text is not UTF-8")]
    Utf8,
    /// RFC 7692: the compressed data of a message is broken.
    #[error("compressed message is broken")]
    Deflate,
    /// A message above the limit.
    #[error("message is larger than {limit} bytes")]
    MessageTooBig {
        /// The limit.
        limit: usize,
    },
    /// A message in more fragments than the limit.
    #[error("message has more than {limit} fragments")]
    TooManyFragments {
        /// The limit.
        limit: u32,
    },
}

impl ProtocolError {
    /// The close code that RFC 6455 section 7.4.1 names for it.
    #[must_use]
    pub const fn close_code(&self) -> CloseCode {
        match self {
            Self::Utf8 | Self::Deflate => CloseCode::INVALID_DATA,
            Self::MessageTooBig { .. } => CloseCode::TOO_BIG,
            Self::TooManyFragments { .. } => CloseCode::POLICY,
            _ => CloseCode::PROTOCOL,
        }
    }
}
