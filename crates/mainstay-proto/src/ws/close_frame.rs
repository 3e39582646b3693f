//! The body of a Close frame.
//!
//! Source: RFC 6455 section 5.5.1.

use super::{CloseCode, ProtocolError};

/// The body of a Close frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CloseFrame {
    /// Why.
    pub code: CloseCode,
    /// In words, at most 123 bytes.
    pub reason: String,
}

impl CloseFrame {
    /// Reads the body of a Close frame; an empty one says nothing.
    ///
    /// Source: RFC 6455 section 5.5.1.
    pub(super) fn parse(body: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let Some((code, reason)) = body.split_first_chunk() else {
            return if body.is_empty() { Ok(None) } else { Err(ProtocolError::CloseTooShort) };
        };
        let code = u16::from_be_bytes(*code);
        let code = CloseCode::new(code).ok_or(ProtocolError::CloseCodeNotAllowed(code))?;
        let reason = simdutf8::basic::from_utf8(reason).map_err(|_| ProtocolError::InvalidUtf8)?.to_owned();
        Ok(Some(Self { code, reason }))
    }
}
