//! The blocks that two nodes exchange at a peer listener, one each way; what follows them is the client's stream.
//!
//! The entry node connects, sends a [`Head`], and behind it the client's bytes as they came, from the first byte of
//! HELLO on. The owner accepts the entry node's authentication result, queries its registry, and sends a
//! [`PeerAnswer`]. After [`PeerAnswer::Accepted`] the stream is the client's; after any other answer it ends. A node that
//! drains sends [`Leave`] instead of a head, to each owner of clients that it relays. A [`Question`] of an operator or an
//! application gets a [`Reply`].
//!
//! A block is four bytes of magic (`MSTN`, `MSTA`, `MSTL`, `MSTQ` or `MSTR`), a version (one byte), the length of the body (four bytes, the
//! highest first), and the body, whose fields are encoded as in `docs/PROTOCOL.md` "Framing". Decoders take a block from
//! the front of a buffer once it is whole, and leave what follows; they refuse as soon as the bytes show that they must.
//!
//! The time that a block may take ([`BLOCK_TIME`]) is the driver's to measure, and so is encryption.

mod leave;
mod question;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

pub use self::leave::{First, Leave};
pub use self::question::{MAX_BODY, Question, Reply};
use super::node_info::{PeerKey, get_address, put_address};
use crate::session::codec::{get_account, get_millis, millis, put_account};
use crate::session::message::Account;
use crate::session::wire::{Reader, Writer};
use crate::session::{Control, Expiry, Frame, Malformed, Message, NodeId};
use crate::ws::DeflateParams;

/// How long a block may take: the owner drops a connection that brought no [`Head`] in this time, and a peer listener
/// that sent no [`PeerAnswer`] in this time is *silent*.
pub const BLOCK_TIME: Duration = Duration::from_secs(1);
/// How long the owner waits for a session that leaves before it answers a [`Head`], with the REFUSE of
/// [`Moving`](crate::session::RefuseReason::Moving). An owner that is silent for [`BLOCK_TIME`] may be taken for a dead one, if it
/// is also cut from the engine, and its session for lost.
pub const ANSWER_TIME: Duration = Duration::from_millis(750);
/// The longest block, with its magic, version and length.
pub const MAX_BLOCK: usize = 128 * 1024;

const VERSION: u8 = 1;
/// Magic, version, length.
const PREFIX: usize = 4 + 1 + 4;
const HEAD: [u8; 4] = *b"MSTN";
const ANSWER: [u8; 4] = *b"MSTA";

mod field {
    pub(super) const SUBPROTOCOL: u64 = 1;
    pub(super) const DEFLATE: u64 = 2;
    pub(super) const EXPIRY: u64 = 3;
}

mod kind {
    pub(super) const ACCEPTED: u8 = 1;
    pub(super) const LOST: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const OTHER_NODE: u8 = 4;
    pub(super) const RELEASED: u8 = 5;
}

/// What the entry node states of a client before it relays the client's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The entry node.
    pub from: NodeId,
    /// The node that is asked.
    pub to: NodeId,
    /// The key of the peer listener, from the node table.
    pub key: PeerKey,
    /// The path of the client's opening request, without its query.
    pub path: String,
    /// The principal that the entry node authenticated; empty: none.
    pub principal: Bytes,
    /// The subprotocol that the entry node agreed with the client.
    pub subprotocol: Option<String>,
    /// The parameters of permessage-deflate that it agreed with the client; `None`: no compression.
    pub deflate: Option<DeflateParams>,
    /// The client's address.
    pub client: SocketAddr,
    /// How long the client's credentials hold; `None`: for as long as its connection.
    pub expiry: Option<Expiry>,
}

/// The owner's answer to a [`Head`] and the HELLO behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerAnswer {
    /// The client is attached: from here on the stream is the client's. WELCOME follows.
    Accepted,
    /// There is no such session, or it ended with this account: the entry node opens a new one.
    Lost(Option<Account>),
    /// A REFUSE, which the entry node sends to the client.
    Refused(Control),
    /// The node that was asked ended: another one listens at its address.
    OtherNode,
    /// The session was released, or is not here: the entry node claims it.
    Released,
}

/// Why a block is refused. The connection that brought it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The first bytes are not those of a block: no node is at the other end.
    #[error("the bytes are not a block of a node")]
    NotABlock,
    /// The other node's program is of another version.
    #[error("version {0} of the peer protocol is not known; this node speaks version 1")]
    Version(u8),
    /// The block is longer than [`MAX_BLOCK`].
    #[error("a block of {0} bytes is longer than 131072")]
    TooLong(u64),
    /// A field of the body is damaged.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The connection ended within the block.
    #[error("the connection ended within a block")]
    Truncated,
    /// No whole block came within [`BLOCK_TIME`].
    #[error("no whole block came within 1 s")]
    Late,
    /// The key is not that of this peer listener.
    #[error("the key is not that of this peer listener")]
    WrongKey,
}

impl BlockError {
    /// Returns the error in one word, for a label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotABlock => "not_a_block",
            Self::Version(_) => "version",
            Self::TooLong(_) => "too_long",
            Self::Malformed(_) => "malformed",
            Self::Truncated => "truncated",
            Self::Late => "late",
            Self::WrongKey => "wrong_key",
        }
    }
}

/// What a peer listener does with a [`Head`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// Read the HELLO behind it, follow LEAVE, or answer the question.
    Hello,
    /// Send [`PeerAnswer::OtherNode`] and close.
    OtherNode,
}

impl Head {
    /// Judges the head at the peer listener of the node `me`. The node id comes before the key: a node that listens where
    /// another one listened before reports that, although it never had the other's key.
    ///
    /// # Errors
    /// [`BlockError::WrongKey`]: drop the connection and count it.
    pub fn admit(&self, me: NodeId, key: &PeerKey) -> Result<Admit, BlockError> {
        admit((self.to, &self.key), (me, key))
    }

    /// Returns the bytes of the block.
    ///
    /// # Errors
    /// [`BlockError::TooLong`]: the client's path and principal do not fit. Treat the owner as silent.
    pub fn encode(&self) -> Result<Bytes, BlockError> {
        let w = Writer::untyped().bytes(&self.from.0).bytes(&self.to.0).bytes(&self.key.0);
        let mut w = put_address(w.bytes(self.path.as_bytes()).bytes(&self.principal), self.client);
        if let Some(subprotocol) = &self.subprotocol {
            w = w.field(field::SUBPROTOCOL, |w| w.rest(subprotocol.as_bytes()));
        }
        if let Some(deflate) = self.deflate {
            w = w.field(field::DEFLATE, |w| put_deflate(w, deflate));
        }
        if let Some(Expiry { expires_in, grace }) = self.expiry {
            w = w.field(field::EXPIRY, |w| w.integer(millis(expires_in)).integer(millis(grace)));
        }
        block(HEAD, &w.finish())
    }

    /// Takes a head from the front of `buffer`; `None`: it is not whole yet.
    ///
    /// # Errors
    /// The bytes so far show that no head of this version can follow.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, BlockError> {
        let Some(body) = take(HEAD, buffer)? else { return Ok(None) };
        let mut r = Reader::new(body);
        let mut head = Self {
            from: NodeId(r.array()?),
            to: NodeId(r.array()?),
            key: PeerKey(r.array()?),
            path: r.text()?,
            principal: r.bytes()?,
            client: get_address(&mut r)?,
            subprotocol: None,
            deflate: None,
            expiry: None,
        };
        r.optional_fields(|kind, value| {
            match kind {
                field::SUBPROTOCOL => head.subprotocol = Some(value.rest_text()?),
                field::DEFLATE => head.deflate = Some(get_deflate(value)?),
                field::EXPIRY => head.expiry = Some(get_expiry(value)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(Some(head))
    }
}

impl PeerAnswer {
    /// Returns the bytes of the block.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let body = match self {
            Self::Accepted => Writer::new(kind::ACCEPTED).finish(),
            Self::Lost(None) => Writer::new(kind::LOST).finish(),
            Self::Lost(Some(account)) => put_account(Writer::new(kind::LOST), *account).finish(),
            Self::Refused(refuse) => Writer::new(kind::REFUSED).rest(&refuse.encode()).finish(),
            Self::OtherNode => Writer::new(kind::OTHER_NODE).finish(),
            Self::Released => Writer::new(kind::RELEASED).finish(),
        };
        whole(ANSWER, &body)
    }

    /// Takes an answer from the front of `buffer`; `None`: it is not whole yet.
    ///
    /// # Errors
    /// The bytes so far show that no answer of this version can follow.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, BlockError> {
        let Some(body) = take(ANSWER, buffer)? else { return Ok(None) };
        let kind = *body.first().ok_or(Malformed::Empty)?;
        let rest = body.slice(1..);
        Ok(Some(match kind {
            kind::ACCEPTED => Self::Accepted,
            kind::LOST if rest.is_empty() => Self::Lost(None),
            kind::LOST => Self::Lost(Some(get_account(Reader::new(rest))?)),
            kind::REFUSED => Self::Refused(get_refuse(rest)?),
            kind::OTHER_NODE => Self::OtherNode,
            kind::RELEASED => Self::Released,
            unknown => return Err(Malformed::UnknownType(unknown).into()),
        }))
    }
}

fn admit(asked: (NodeId, &PeerKey), me: (NodeId, &PeerKey)) -> Result<Admit, BlockError> {
    if asked.0 != me.0 {
        Ok(Admit::OtherNode)
    } else if asked.1 == me.1 {
        Ok(Admit::Hello)
    } else {
        Err(BlockError::WrongKey)
    }
}

fn put_deflate(w: Writer, deflate: DeflateParams) -> Writer {
    w.flag(deflate.server_no_context_takeover)
        .flag(deflate.client_no_context_takeover)
        .integer(u64::from(deflate.server_max_window_bits))
        .integer(u64::from(deflate.client_max_window_bits))
}

fn get_expiry(mut r: Reader) -> Result<Expiry, Malformed> {
    Ok(Expiry { expires_in: get_millis(&mut r)?, grace: get_millis(&mut r)? })
}

fn get_deflate(mut r: Reader) -> Result<DeflateParams, Malformed> {
    Ok(DeflateParams {
        server_no_context_takeover: r.flag()?,
        client_no_context_takeover: r.flag()?,
        server_max_window_bits: get_window_bits(&mut r)?,
        client_max_window_bits: get_window_bits(&mut r)?,
    })
}

fn get_window_bits(r: &mut Reader) -> Result<u8, Malformed> {
    u8::try_from(r.integer()?).ok().filter(|bits| (8..=15).contains(bits)).ok_or(Malformed::BadValue)
}

/// A REFUSE and no other message: the entry node sends it to a client that was promised nothing else.
fn get_refuse(bytes: Bytes) -> Result<Control, Malformed> {
    match Frame::decode(Message::Binary(bytes)) {
        Ok(Frame::Control(refuse @ Control::Refuse { .. })) => Ok(refuse),
        _ => Err(Malformed::BadValue),
    }
}

fn block(magic: [u8; 4], body: &[u8]) -> Result<Bytes, BlockError> {
    let length = PREFIX + body.len();
    if length > MAX_BLOCK { Err(BlockError::TooLong(length as u64)) } else { Ok(whole(magic, body)) }
}

/// `body` is shorter than [`MAX_BLOCK`].
fn whole(magic: [u8; 4], body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + body.len());
    out.put_slice(&magic);
    out.put_u8(VERSION);
    out.put_u32(body.len() as u32);
    out.put_slice(body);
    out.freeze()
}

/// Takes the body of a block from the front of `buffer`, once the block is whole.
fn take(magic: [u8; 4], buffer: &mut BytesMut) -> Result<Option<Bytes>, BlockError> {
    if buffer.iter().zip(magic).any(|(byte, expected)| *byte != expected) {
        return Err(BlockError::NotABlock);
    }
    if let Some(&version) = buffer.get(4)
        && version != VERSION
    {
        return Err(BlockError::Version(version));
    }
    let Some(length) = buffer.get(5..PREFIX).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) else {
        return Ok(None);
    };
    let length = u64::from(u32::from_be_bytes(length)) + PREFIX as u64;
    if length > MAX_BLOCK as u64 {
        return Err(BlockError::TooLong(length));
    }
    let length = length as usize;
    if buffer.len() < length {
        return Ok(None);
    }
    Ok(Some(buffer.split_to(length).freeze().slice(PREFIX..)))
}
