//! The peer listener: it accepts other nodes, which relay clients of sessions that this node owns.
//!
//! Source: `docs/CLUSTER.md`.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::PeerKey;
use mainstay_proto::cluster::peer::{Admit, BLOCK_TIME, BlockError, First, MAX_BLOCK, PeerAnswer};
use mainstay_proto::session::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::{Figures, Node};
use crate::server::{Shared, attach_from_peer};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// Connections whose block may be incomplete at one time. Further ones wait to be accepted.
const INCOMPLETE: usize = 256;

/// Opens a peer listener.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What a peer listener needs for each connection.
pub(super) struct Listening {
    id: NodeId,
    key: PeerKey,
    figures: Arc<Figures>,
    server: Weak<Shared>,
    incomplete: Arc<Semaphore>,
    /// The kinds of errors that were logged at `warn`.
    logged: Mutex<BTreeSet<&'static str>>,
}

impl Listening {
    pub(super) fn new(node: &Node, server: Weak<Shared>) -> Arc<Self> {
        let incomplete = Arc::new(Semaphore::new(INCOMPLETE));
        let figures = Arc::clone(&node.figures);
        Arc::new(Self { id: node.id, key: node.key, figures, server, incomplete, logged: Mutex::default() })
    }

    /// Accepts until the task is dropped.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.incomplete).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let this = Arc::clone(&self);
                    tokio::spawn(async move {
                        let admitted = this.admit(stream, from).await;
                        drop(permit);
                        let (Some((first, stream, early)), Some(server)) = (admitted, this.server.upgrade())
                        else {
                            return;
                        };
                        match first {
                            First::Head(head) => {
                                let tracker = server.tracker.clone();
                                tracker.track_future(attach_from_peer(server, head, stream, early)).await;
                            }
                            First::Leave(leave) => server.ask_relayed_to_leave(leave.from, leave.within),
                        }
                    });
                }
                // Out of descriptors, for example: that passes when connections end.
                Err(error) => {
                    tracing::debug!(%error, "the peer listener cannot accept; retrying in 50 ms");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Reads the block of another node. `None`: the connection is dropped, or answered.
    async fn admit(&self, mut stream: TcpStream, from: SocketAddr) -> Option<(First, TcpStream, Bytes)> {
        let read = tokio::time::timeout(BLOCK_TIME, read_first(&mut stream)).await;
        let read = read.unwrap_or(Err(BlockError::Late));
        let admitted = read.and_then(|(first, early)| {
            let admit = match &first {
                First::Head(head) => head.admit(self.id, &self.key)?,
                First::Leave(leave) => leave.admit(self.id, &self.key)?,
            };
            Ok((admit, first, early))
        });
        match admitted {
            Ok((Admit::Hello, first, early)) => Some((first, stream, early)),
            Ok((Admit::OtherNode, ..)) => {
                Figures::add(&self.figures.answered, 1);
                let _ = stream.write_all(&PeerAnswer::OtherNode.encode()).await;
                None
            }
            Err(error) => {
                self.log_dropped(error, from);
                None
            }
        }
    }

    /// One warning for each kind of error; every one is counted.
    fn log_dropped(&self, error: BlockError, from: SocketAddr) {
        Figures::add(&self.figures.dropped, 1);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.insert(error.as_str()) {
            tracing::warn!(
                %from, %error,
                "the peer listener drops a connection that is not another node's; later ones of this kind are \
                 logged at debug and counted"
            );
        } else {
            tracing::debug!(%from, %error, "the peer listener drops a connection");
        }
    }
}

/// Returns the first block, and the bytes behind it.
async fn read_first(stream: &mut TcpStream) -> Result<(First, Bytes), BlockError> {
    let _ = stream.set_nodelay(true);
    let mut buffer = BytesMut::new();
    loop {
        if let Some(first) = First::decode(&mut buffer)? {
            return Ok((first, buffer.freeze()));
        }
        // The decoder refuses a block above the limit by its first bytes.
        debug_assert!(buffer.len() <= MAX_BLOCK);
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return Err(BlockError::Truncated),
            Ok(_) => {}
        }
    }
}
