//! The messages that applications send in the simulator: the sender, the owner, a number, and a body that follows
//! from these.

use bytes::Bytes;
use mainstay_proto::session::{Delivery, Frame, Malformed, Message, SessionError};
use mainstay_proto::ws::Kind;

/// One message of an application, before it is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Payload {
    /// `c`: from a client, `s`: from the server; upper case outside the stream.
    pub(crate) from: char,
    /// The client, or the session, that the message belongs to.
    pub(crate) owner: usize,
    pub(crate) number: u64,
}

impl Payload {
    /// Encodes the message, with up to `longest` bytes of body. Every third is binary.
    pub(crate) fn write(self, longest: usize) -> Message {
        let mut text = format!("{} {} {} ", self.from, self.owner, self.number);
        let body = if longest == 0 { 0 } else { (self.number as usize * 7919 + self.owner * 31) % longest };
        text.extend(std::iter::repeat_n('x', body));
        if self.number.is_multiple_of(3) { Message::binary(text) } else { Message::text(text) }
    }

    /// Decodes a message and compares every byte.
    pub(crate) fn read(message: &Message, from: char, longest: usize) -> Result<Self, String> {
        let corrupt = || format!("corrupt message {}", show(message.kind(), message.payload()));
        let text = std::str::from_utf8(message.payload()).map_err(|_| corrupt())?;
        let mut words = text.split(' ').skip(1);
        let mut word = || words.next().and_then(|word| word.parse::<u64>().ok()).ok_or_else(corrupt);
        let payload = Self { from, owner: word()? as usize, number: word()? };
        if payload.write(longest) == *message { Ok(payload) } else { Err(corrupt()) }
    }

    pub(crate) fn from_delivery(delivery: &Delivery, from: char, longest: usize) -> Result<Self, String> {
        match delivery {
            Delivery::Message(message) => Self::read(message, from, longest),
            Delivery::Gap { .. } | Delivery::Replaced { .. } => Err(format!("unexpected {delivery:?}")),
        }
    }
}

/// Returns what a WebSocket message means to the session.
pub(crate) fn frame(kind: Kind, payload: Bytes) -> Result<Frame, SessionError> {
    Frame::decode(Message::new(kind, payload).map_err(|_| Malformed::BadValue)?)
}

/// Returns a form that is short enough for a trace.
pub(crate) fn show(kind: Kind, payload: &[u8]) -> String {
    let head = &payload[..payload.len().min(24)];
    format!("{kind:?} {} bytes \"{}\"", payload.len(), head.escape_ascii())
}
