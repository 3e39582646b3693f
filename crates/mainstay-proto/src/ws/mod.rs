//! RFC 6455 and RFC 7692 without IO: one WebSocket connection, as bytes.
//!
//! [`Connection`] takes bytes as they arrive and gives messages, pings, pongs and the close; what is
//! sent is encoded into a [`SendQueue`]. A frame that arrived whole is unmasked where it lies and
//! handed out borrowed; only an incomplete tail is kept, and freed when it completes. An idle
//! connection holds no buffer. Nothing is ever allocated because a length was declared.
//!
//! - [`frame`]: the header, and masking.
//! - [`close`]: close codes, ours among them, and what a client does about each.
//! - [`deflate`][]: permessage-deflate.
//! - [`handshake`]: the rules of the opening handshake.

pub mod close;
mod connection;
pub mod deflate;
mod error;
mod frame;
pub mod handshake;
mod send_queue;

pub use close::{CloseCode, CloseFrame};
pub use connection::{Connection, Incoming, Limits, Payload, State};
pub use error::ProtocolError;
pub use send_queue::SendQueue;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Masks what it sends.
    Client,
    /// Requires what it reads to be masked.
    Server,
}

/// What a message's payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}
