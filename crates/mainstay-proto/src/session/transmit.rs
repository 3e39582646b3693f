//! What a machine wants to be written to a connection.

use std::fmt;

use bytes::Bytes;

use super::message::{APPLICATION_BINARY, Control, Message};
use crate::ws::{CloseCode, Kind};

/// A connection, named by the driver that opened or accepted it. Unique for the life of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// One thing to do to a connection, in order.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Transmit {
    /// A numbered application message.
    Message(Message),
    /// A control message, encoded.
    Control(Bytes),
    /// An RFC 6455 Ping with these eight bytes.
    Ping(u64),
    /// Start the closing handshake.
    Close {
        /// The code.
        code: CloseCode,
        /// The reason.
        reason: String,
    },
    /// Drop the transport at once: the peer is dead, or a closing handshake would serve no purpose.
    Abort,
}

impl Transmit {
    pub(crate) fn control(control: &Control) -> Self {
        Self::Control(control.encode())
    }

    /// Returns the WebSocket message that carries this in `mainstay.v1`: its kind, the byte in front, the body.
    /// Returns `None` for what is not a message.
    #[must_use]
    pub fn as_message(&self) -> Option<(Kind, &'static [u8], &Bytes)> {
        match self {
            Self::Message(message @ Message::Text(_)) => Some((Kind::Text, &[], message.payload())),
            Self::Message(Message::Binary(payload)) => Some((Kind::Binary, &[APPLICATION_BINARY], payload)),
            Self::Control(body) => Some((Kind::Binary, &[], body)),
            Self::Ping(_) | Self::Close { .. } | Self::Abort => None,
        }
    }
}

impl fmt::Debug for Transmit {
    /// Prints only the type of a control message, because HELLO and AUTH carry secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(message) => f.debug_tuple("Message").field(message).finish(),
            Self::Control(body) => {
                let tag = body.first().copied().unwrap_or_default();
                write!(f, "Control(type {tag:#04x}, {} bytes)", body.len())
            }
            Self::Ping(nonce) => f.debug_tuple("Ping").field(nonce).finish(),
            Self::Close { code, reason } => {
                f.debug_struct("Close").field("code", code).field("reason", reason).finish()
            }
            Self::Abort => f.write_str("Abort"),
        }
    }
}
