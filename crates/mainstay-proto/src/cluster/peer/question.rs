//! QUESTION: what a node asks another for its operator or its application, and the REPLY.
//!
//! Both bodies are bytes that the machines do not read. A question changes nothing by itself, has one reply, and its
//! connection ends behind that. A node of an earlier version drops the connection: the node that asked finds it unanswered.

use bytes::{Bytes, BytesMut};

use super::super::node_info::PeerKey;
use super::{Admit, BlockError, MAX_BLOCK, PeerAnswer, admit, block, take, whole};
use crate::session::wire::{Reader, Writer};
use crate::session::{Malformed, NodeId};

pub(super) const QUESTION: [u8; 4] = *b"MSTQ";
const REPLY: [u8; 4] = *b"MSTR";

/// The longest body of a [`Question`] and of a [`Reply`]: what is left of [`MAX_BLOCK`] for it.
pub const MAX_BODY: usize = MAX_BLOCK - 64;

mod kind {
    pub(super) const ANSWER: u8 = 1;
    pub(super) const NO_ANSWER: u8 = 2;
}

/// A question of one node to another; the module describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The node that asks.
    pub from: NodeId,
    /// The node that is asked.
    pub to: NodeId,
    /// The key of its peer listener.
    pub key: PeerKey,
    /// What is asked.
    pub body: Bytes,
}

/// What came back on the connection of a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The answer.
    Answer(Bytes),
    /// The node has nothing that answers questions.
    NoAnswer,
    /// The node that was asked ended: another one listens at its address.
    OtherNode,
}

impl Question {
    /// As [`Head::admit`](super::Head::admit).
    ///
    /// # Errors
    /// [`BlockError::WrongKey`]: drop the connection and count it.
    pub fn admit(&self, me: NodeId, key: &PeerKey) -> Result<Admit, BlockError> {
        admit((self.to, &self.key), (me, key))
    }

    /// Returns the bytes of the block.
    ///
    /// # Errors
    /// [`BlockError::TooLong`]: the body is longer than [`MAX_BODY`].
    pub fn encode(&self) -> Result<Bytes, BlockError> {
        let w = Writer::untyped().bytes(&self.from.0).bytes(&self.to.0).bytes(&self.key.0);
        block(QUESTION, &w.bytes(&self.body).finish())
    }

    pub(super) fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, BlockError> {
        let Some(body) = take(QUESTION, buffer)? else { return Ok(None) };
        let mut r = Reader::new(body);
        let question = Self {
            from: NodeId(r.array()?),
            to: NodeId(r.array()?),
            key: PeerKey(r.array()?),
            body: r.bytes()?,
        };
        r.optional_fields(|_, _| Ok(()))?;
        Ok(Some(question))
    }
}

impl Reply {
    /// Returns the bytes of the block.
    ///
    /// # Errors
    /// [`BlockError::TooLong`]: the answer is longer than [`MAX_BODY`].
    pub fn encode(&self) -> Result<Bytes, BlockError> {
        match self {
            Self::Answer(answer) => block(REPLY, &Writer::new(kind::ANSWER).rest(answer).finish()),
            Self::NoAnswer => Ok(whole(REPLY, &Writer::new(kind::NO_ANSWER).finish())),
            Self::OtherNode => Ok(PeerAnswer::OtherNode.encode()),
        }
    }

    /// Takes a reply from the front of `buffer`; `None`: it is not whole yet.
    ///
    /// # Errors
    /// The bytes so far show that no reply of this version can follow.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, BlockError> {
        if buffer.get(3) == super::ANSWER.last() {
            return match PeerAnswer::decode(buffer)? {
                None => Ok(None),
                Some(PeerAnswer::OtherNode) => Ok(Some(Self::OtherNode)),
                Some(_) => Err(Malformed::BadValue.into()),
            };
        }
        let Some(body) = take(REPLY, buffer)? else { return Ok(None) };
        match body.first() {
            None => Err(Malformed::Empty.into()),
            Some(&kind::ANSWER) => Ok(Some(Self::Answer(body.slice(1..)))),
            Some(&kind::NO_ANSWER) => Ok(Some(Self::NoAnswer)),
            Some(&unknown) => Err(Malformed::UnknownType(unknown).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::First;
    use super::*;

    fn question(body: usize) -> Question {
        let body = vec![b'q'; body].into();
        Question { from: NodeId([1; 8]), to: NodeId([2; 8]), key: PeerKey([3; 16]), body }
    }

    #[test]
    fn a_question_and_its_reply_are_read_as_they_were_written_in_any_pieces() {
        let bytes = question(5).encode().unwrap();
        for cut in 0..bytes.len() {
            let mut buffer = BytesMut::from(&bytes[..cut]);
            assert_eq!(First::decode(&mut buffer), Ok(None), "{cut}");
            buffer.extend_from_slice(&bytes[cut..]);
            assert_eq!(First::decode(&mut buffer), Ok(Some(First::Question(question(5)))), "{cut}");
        }
        for reply in [Reply::Answer(Bytes::from_static(b"yes")), Reply::NoAnswer, Reply::OtherNode] {
            let bytes = reply.encode().unwrap();
            for cut in 0..bytes.len() {
                assert_eq!(Reply::decode(&mut BytesMut::from(&bytes[..cut])), Ok(None), "{reply:?} {cut}");
            }
            assert_eq!(Reply::decode(&mut BytesMut::from(&bytes[..])), Ok(Some(reply)));
        }
    }

    #[test]
    fn the_longest_bodies_pass_and_longer_ones_are_not_sent() {
        let mut bytes = BytesMut::from(&question(MAX_BODY).encode().unwrap()[..]);
        assert_eq!(First::decode(&mut bytes), Ok(Some(First::Question(question(MAX_BODY)))));
        assert!(matches!(question(MAX_BLOCK).encode(), Err(BlockError::TooLong(_))));
        let answer = Reply::Answer(vec![0; MAX_BODY].into());
        let mut bytes = BytesMut::from(&answer.encode().unwrap()[..]);
        assert_eq!(Reply::decode(&mut bytes), Ok(Some(answer)));
        let long = Reply::Answer(vec![0; MAX_BLOCK].into()).encode();
        assert!(matches!(long, Err(BlockError::TooLong(_))));
    }

    #[test]
    fn a_question_with_a_wrong_key_or_for_another_node_is_not_answered() {
        assert_eq!(question(1).admit(NodeId([2; 8]), &PeerKey([3; 16])), Ok(Admit::Hello));
        assert_eq!(question(1).admit(NodeId([2; 8]), &PeerKey([4; 16])), Err(BlockError::WrongKey));
        assert_eq!(question(1).admit(NodeId([9; 8]), &PeerKey([3; 16])), Ok(Admit::OtherNode));
    }

    #[test]
    fn bytes_that_are_no_reply_are_refused_by_the_first_that_shows_it() {
        let accepted = PeerAnswer::Accepted.encode();
        for bytes in [
            &b"H"[..],
            b"MSTX",
            b"MSTR\x02",
            b"MSTR\x01\x00\x02\x00\x00",
            b"MSTR\x01\x00\x00\x00\x00",
            b"MSTR\x01\x00\x00\x00\x01\x07",
            &accepted,
        ] {
            assert!(Reply::decode(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
        // The body of a question is longer than the block says.
        let block = whole(
            QUESTION,
            &Writer::untyped().bytes(&[1; 8]).bytes(&[2; 8]).bytes(&[3; 16]).integer(9).finish(),
        );
        assert!(First::decode(&mut BytesMut::from(&block[..])).is_err());
    }
}
