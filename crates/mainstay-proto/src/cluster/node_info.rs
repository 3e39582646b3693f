//! What a node announces of itself in the node table: its peer listener, and a count that shows that it lives.
//!
//! The bytes of a field, encoded as in `docs/PROTOCOL.md` "Framing": a version (one byte), the address (4 or 16 bytes
//! with their length), the port, the key, the mark, the count, then optional fields: 1 the public URL, 2 the node has
//! left, 3 how many notes it stored. A later program adds optional fields, which this one skips, or raises the version, which this one reports.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};

use crate::session::Malformed;
use crate::session::wire::{Reader, Writer};

/// The version of the bytes.
const VERSION: u8 = 1;

/// The longest field that a node reads.
pub const MAX_FIELD: usize = 4096;

mod field {
    pub(super) const URL: u64 = 1;
    pub(super) const LEFT: u64 = 2;
    pub(super) const NOTES: u64 = 3;
}

/// The secret of a peer listener: 16 random bytes, drawn at the start of the node. A process that may read the engine
/// may connect to peer listeners. Never logged: `Debug` hides it.
#[derive(Clone, Copy)]
pub struct PeerKey(pub [u8; 16]);

impl PartialEq for PeerKey {
    /// Compares hashes, which a peer cannot choose: the time that it takes reveals nothing about the key.
    fn eq(&self, other: &Self) -> bool {
        Sha256::digest(self.0) == Sha256::digest(other.0)
    }
}

impl Eq for PeerKey {}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerKey(..)")
    }
}

/// What all nodes of one cluster have in common, hashed. Nodes with another mark in the same table show that two
/// clusters use one engine under one name. A mark opens nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Mark(pub [u8; 8]);

impl Mark {
    /// Returns the mark of these parts, each hashed with its length.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        let mut mark = [0; 8];
        mark.iter_mut().zip(digest.finalize()).for_each(|(to, from)| *to = from);
        Self(mark)
    }
}

/// A node's field of the node table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Where other nodes reach the node's peer listener.
    pub address: SocketAddr,
    /// The key of the peer listener.
    pub key: PeerKey,
    /// What the nodes of the cluster have in common.
    pub mark: Mark,
    /// The URL at which clients reach this node and no other; `None`: there is none.
    pub url: Option<String>,
    /// Raised by every node heartbeat. Range: 0 to 2^53-1.
    pub count: u64,
    /// The node has ended in order: its peer listener is closed, and what it released may be claimed.
    pub left: bool,
    /// How many notes the node has stored: others read the notes once it grows. Range: 0 to 2^53-1.
    pub notes: u64,
}

/// Why a field of the node table cannot be read. The node that wrote it counts as one that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadField {
    /// A later program wrote it.
    #[error("version {0} of the node table is not known; this node reads version 1")]
    Version(u8),
    /// It is longer than [`MAX_FIELD`].
    #[error("a field of {0} bytes is longer than 4096")]
    TooLong(usize),
    /// Its bytes are damaged, or another program wrote them.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl NodeInfo {
    /// Returns the bytes of the field.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut w = put_address(Writer::new(VERSION), self.address)
            .bytes(&self.key.0)
            .bytes(&self.mark.0)
            .integer(self.count);
        if let Some(url) = &self.url {
            w = w.field(field::URL, |w| w.rest(url.as_bytes()));
        }
        if self.left {
            w = w.field(field::LEFT, |w| w);
        }
        if self.notes > 0 {
            w = w.field(field::NOTES, |w| w.integer(self.notes));
        }
        w.finish()
    }

    /// Reads the bytes of a field.
    ///
    /// # Errors
    /// The bytes are not those of a field of this version.
    pub fn from_bytes(mut bytes: Bytes) -> Result<Self, BadField> {
        if bytes.len() > MAX_FIELD {
            return Err(BadField::TooLong(bytes.len()));
        }
        match bytes.first() {
            None => return Err(Malformed::Empty.into()),
            Some(&VERSION) => bytes.advance(1),
            Some(&other) => return Err(BadField::Version(other)),
        }
        let mut r = Reader::new(bytes);
        let mut info = Self {
            address: get_address(&mut r)?,
            key: PeerKey(r.array()?),
            mark: Mark(r.array()?),
            url: None,
            count: r.integer()?,
            left: false,
            notes: 0,
        };
        r.optional_fields(|kind, mut value| {
            match kind {
                field::URL => info.url = Some(value.rest_text()?),
                field::LEFT => info.left = true,
                field::NOTES => info.notes = value.integer()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(info)
    }
}

pub(super) fn put_address(w: Writer, address: SocketAddr) -> Writer {
    let w = match address.ip() {
        IpAddr::V4(ip) => w.bytes(&ip.octets()),
        IpAddr::V6(ip) => w.bytes(&ip.octets()),
    };
    w.integer(u64::from(address.port()))
}

pub(super) fn get_address(r: &mut Reader) -> Result<SocketAddr, Malformed> {
    let ip = r.bytes()?;
    let ip = <[u8; 4]>::try_from(ip.as_ref())
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(ip.as_ref()).map(IpAddr::from))
        .map_err(|_| Malformed::BadValue)?;
    let port = u16::try_from(r.integer()?).map_err(|_| Malformed::BadValue)?;
    Ok(SocketAddr::new(ip, port))
}
