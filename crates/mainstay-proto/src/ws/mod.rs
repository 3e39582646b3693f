//! RFC 6455 and RFC 7692 without IO: bytes from the peer go in, messages come out, and the other way round.
//!
//! A [`handshake`] turns HTTP headers into an agreement. From then on a [`Connection`] is the whole WebSocket, for
//! either [`Role`]:
//!
//! ```text
//! bytes read ──> receive() ──> Incoming (messages, Ping, Pong, Close)
//! send(), ping(), close(), flush_replies() ──> SendQueue ──> bytes to write
//! ```
//!
//! A message that arrives whole is returned where it lies in the caller's read buffer, unmasked in place, never
//! copied. Only an incomplete item is kept between two reads, in memory that grows with the bytes that arrived, not
//! with the length that a peer declared, and that is freed when the item completes. An idle connection owns no
//! buffer.
//!
//! Not here: when to ping, when a peer is dead, how long a closing handshake may take (the driver), and what messages
//! mean ([`session`](crate::session)).

pub mod close;
mod close_frame;
mod compress;
mod connection;
mod deflate;
mod error;
mod flood;
mod frame;
pub mod handshake;
mod incoming;
#[cfg(feature = "json")]
mod json;
mod message;
pub mod origin;
mod packed;
mod partial;
mod queue;

pub use close::{CloseAction, CloseCode};
pub use close_frame::CloseFrame;
pub use connection::{CloseState, Connection, Limits};
pub use deflate::DeflateParams;
pub use error::ProtocolError;
pub use incoming::{Incoming, Payload};
pub use message::{Message, NotUtf8, Utf8Bytes};
pub use origin::Origins;
pub use packed::Packed;
pub use queue::SendQueue;

/// The end of the connection: clients mask what they send, servers do not.
///
/// Source: RFC 6455 section 5.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The end that opened the connection.
    Client,
    /// The end that accepted the connection.
    Server,
}

impl Role {
    fn peer(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// The two kinds of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// UTF-8 text; the codec has checked it.
    Text,
    /// Any bytes.
    Binary,
}
