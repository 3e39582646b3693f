//! The entry node's part: it asks the owner of a session, with the client's own bytes.
//!
//! Source: `docs/CLUSTER.md`.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::PeerOutcome;
use mainstay_proto::cluster::peer::{BLOCK_TIME, Head, Leave, PeerAnswer};
use rustix::io::Errno;
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
    let asked = tokio::time::timeout(BLOCK_TIME, async {
        let owner = TcpStream::connect(address).await.map_err(|error| not_connected(address, &error))?;
        exchange(owner, &head, client).await.map_err(|error| {
            tracing::debug!(%address, %error, "another node did not answer a HELLO");
            PeerOutcome::Silent
        })
    });
    asked.await.unwrap_or_else(|_| {
        tracing::debug!(%address, "another node was silent for 1 s");
        Err(PeerOutcome::Silent)
    })
}

/// Only a refused connection shows that the node is gone: one that drops a connection may live.
fn not_connected(address: SocketAddr, error: &io::Error) -> PeerOutcome {
    tracing::debug!(%address, %error, "another node cannot be reached");
    let no_descriptor = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
    match error.kind() {
        io::ErrorKind::ConnectionRefused => PeerOutcome::Refused,
        io::ErrorKind::AddrNotAvailable => PeerOutcome::NotAsked,
        _ if no_descriptor.contains(&error.raw_os_error()) => PeerOutcome::NotAsked,
        _ => PeerOutcome::Silent,
    }
}

async fn exchange(mut owner: TcpStream, head: &[u8], client: &[u8]) -> io::Result<Asked> {
    owner.set_nodelay(true)?;
    keep_alive(&owner);
    owner.write_all(&[head, client].concat()).await?;
    let mut buffer = BytesMut::new();
    loop {
        if let Some(answer) = PeerAnswer::decode(&mut buffer).map_err(io::Error::other)? {
            return Ok(Asked { answer, owner, rest: buffer.freeze() });
        }
        if owner.read_buf(&mut buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Tells an owner that this node cuts its relays soon. A hint: nothing depends on it.
pub(super) async fn tell_to_leave(address: SocketAddr, leave: Leave) {
    let told = tokio::time::timeout(BLOCK_TIME, async {
        let mut owner = TcpStream::connect(address).await?;
        owner.write_all(&leave.encode()).await?;
        // The owner ends the connection once it has read the block.
        owner.read(&mut [0]).await
    });
    if !matches!(told.await, Ok(Ok(_))) {
        tracing::debug!(%address, owner = %leave.to, "an owner was not informed that this node drains");
    }
}
