//! LEAVE: a node that drains tells the owners to which it relays clients, before it cuts the relays.
//!
//! The owner sends GOAWAY to those clients, so that they replace their connections and notice no cut. LEAVE is a hint:
//! nothing depends on it, it gets no answer, and its connection ends behind it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::super::node_info::PeerKey;
use super::question::QUESTION;
use super::{Admit, BlockError, Head, Question, admit, take, whole};
use crate::session::NodeId;
use crate::session::wire::{MAX_INTEGER, Reader, Writer};

const LEAVE: [u8; 4] = *b"MSTL";

/// The word of a node that drains; the module describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leave {
    /// The node that drains, and relays.
    pub from: NodeId,
    /// The owner.
    pub to: NodeId,
    /// The key of the owner's peer listener.
    pub key: PeerKey,
    /// The time over which the clients should leave, in whole milliseconds: after it the relays are cut.
    pub within: Duration,
}

/// The first block on a connection to a peer listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// A client's HELLO follows.
    Head(Head),
    /// Nothing follows.
    Leave(Leave),
    /// Nothing follows, and a [`Reply`](super::Reply) is due.
    Question(Question),
}

impl First {
    /// Takes the first block from the front of `buffer`; `None`: it is not whole yet.
    ///
    /// # Errors
    /// The bytes so far show that no such block of this version can follow.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, BlockError> {
        match buffer.get(3) {
            last if last == LEAVE.last() => Ok(Leave::decode(buffer)?.map(Self::Leave)),
            last if last == QUESTION.last() => Ok(Question::decode(buffer)?.map(Self::Question)),
            _ => Ok(Head::decode(buffer)?.map(Self::Head)),
        }
    }
}

impl Leave {
    /// As [`Head::admit`].
    ///
    /// # Errors
    /// [`BlockError::WrongKey`]: drop the connection and count it.
    pub fn admit(&self, me: NodeId, key: &PeerKey) -> Result<Admit, BlockError> {
        admit((self.to, &self.key), (me, key))
    }

    /// Returns the bytes of the block.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let within = u64::try_from(self.within.as_millis()).unwrap_or(MAX_INTEGER).min(MAX_INTEGER);
        let w = Writer::untyped().bytes(&self.from.0).bytes(&self.to.0).bytes(&self.key.0);
        whole(LEAVE, &w.integer(within).finish())
    }

    fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, BlockError> {
        let Some(body) = take(LEAVE, buffer)? else { return Ok(None) };
        let mut r = Reader::new(body);
        let leave = Self {
            from: NodeId(r.array()?),
            to: NodeId(r.array()?),
            key: PeerKey(r.array()?),
            within: Duration::from_millis(r.integer()?),
        };
        r.optional_fields(|_, _| Ok(()))?;
        Ok(Some(leave))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leave() -> Leave {
        let key = PeerKey([3; 16]);
        Leave { from: NodeId([1; 8]), to: NodeId([2; 8]), key, within: Duration::from_millis(2500) }
    }

    #[test]
    fn leave_is_read_as_it_was_written_in_any_pieces() {
        let bytes = leave().encode();
        for cut in 0..bytes.len() {
            let mut buffer = BytesMut::from(&bytes[..cut]);
            assert_eq!(First::decode(&mut buffer), Ok(None), "{cut}");
            buffer.extend_from_slice(&bytes[cut..]);
            assert_eq!(First::decode(&mut buffer), Ok(Some(First::Leave(leave()))), "{cut}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn leave_with_a_wrong_key_or_for_another_node_is_not_followed() {
        assert_eq!(leave().admit(NodeId([2; 8]), &PeerKey([3; 16])), Ok(Admit::Hello));
        assert_eq!(leave().admit(NodeId([2; 8]), &PeerKey([4; 16])), Err(BlockError::WrongKey));
        assert_eq!(leave().admit(NodeId([9; 8]), &PeerKey([3; 16])), Ok(Admit::OtherNode));
    }

    #[test]
    fn bytes_that_are_no_block_are_refused_by_the_first_that_shows_it() {
        for bytes in [&b"X"[..], b"MSTX", b"MSTL\x02"] {
            assert!(First::decode(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
    }
}
