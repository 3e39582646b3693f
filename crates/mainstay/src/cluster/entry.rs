//! The entry node's part: it asks the owner of a session, with the client's own bytes.
//!
//! Source: `docs/CLUSTER.md`.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::PeerOutcome;
use mainstay_proto::cluster::peer::{BLOCK_TIME, Head, PeerAnswer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::relay::keep_alive;

/// What the owner answered, on which connection, and what it sent behind that.
pub(crate) struct Asked {
    pub(crate) answer: PeerAnswer,
    pub(crate) owner: TcpStream,
    pub(crate) rest: Bytes,
}

/// Sends a HELLO to the node that may own its session. `client`: the client's bytes, from the first byte of HELLO on.
///
/// # Errors
/// The node did not answer: why, in the words of the lookup.
pub(crate) async fn ask(address: SocketAddr, head: &Head, client: &[u8]) -> Result<Asked, PeerOutcome> {
    let Ok(head) = head.encode() else {
        tracing::warn!("the path and the principal of a client are too long for another node");
        return Err(PeerOutcome::Silent);
    };
    let asked = tokio::time::timeout(BLOCK_TIME, exchange(address, &head, client)).await;
    match asked {
        Ok(Ok(asked)) => Ok(asked),
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "another node did not answer a HELLO");
            Err(outcome(&error))
        }
        Err(_) => {
            tracing::debug!(%address, "another node was silent for 1 s");
            Err(PeerOutcome::Silent)
        }
    }
}

async fn exchange(address: SocketAddr, head: &[u8], client: &[u8]) -> io::Result<Asked> {
    let mut owner = TcpStream::connect(address).await?;
    owner.set_nodelay(true)?;
    keep_alive(&owner);
    owner.write_all(&[head, client].concat()).await?;
    let mut buffer = BytesMut::new();
    loop {
        if let Some(answer) = PeerAnswer::decode(&mut buffer).map_err(io::Error::other)? {
            return Ok(Asked { answer, owner, rest: buffer.freeze() });
        }
        if owner.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
    }
}

/// A connection that was refused, or dropped without an answer: no node of this id is there.
fn outcome(error: &io::Error) -> PeerOutcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => PeerOutcome::Refused,
        _ => PeerOutcome::Silent,
    }
}
