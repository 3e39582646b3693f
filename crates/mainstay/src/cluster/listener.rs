//! The peer listener: it accepts other nodes, which relay clients of sessions that this node owns.
//!
//! Source: `docs/CLUSTER.md`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::PeerKey;
use mainstay_proto::cluster::peer::{Admit, BLOCK_TIME, BlockError, First, MAX_BLOCK, PeerAnswer};
use mainstay_proto::session::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::ask::Answering;
use super::notices::Notices;
use super::{ClusterTls, Figures, Node, tls};
use crate::server::{Shared, attach_from_peer};
use crate::transport::Transport;

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
    tls: Option<ClusterTls>,
    figures: Arc<Figures>,
    server: Weak<Shared>,
    incomplete: Arc<Semaphore>,
    notices: Notices,
    answering: Answering,
}

/// A connection that another node has opened, with its first block and the bytes behind that.
struct Admitted {
    first: First,
    transport: Transport,
    early: Bytes,
}

/// Why a connection is dropped.
enum Dropped {
    Block(BlockError),
    /// This listener speaks TLS, and what connects is a node that does not.
    NoTls,
    /// What connects speaks TLS, and this listener does not.
    Tls,
    /// No TLS came about.
    Handshake(io::Error),
}

impl Listening {
    pub(super) fn new(node: &Node, server: Weak<Shared>, tls: Option<ClusterTls>) -> Arc<Self> {
        let incomplete = Arc::new(Semaphore::new(INCOMPLETE));
        let figures = Arc::clone(&node.figures);
        let (notices, answering) = (Notices::default(), node.answering.clone());
        Arc::new(Self { id: node.id, key: node.key, tls, figures, server, incomplete, notices, answering })
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
                        let (Some(admitted), Some(server)) = (admitted, this.server.upgrade()) else {
                            return;
                        };
                        let Admitted { first, transport, early } = admitted;
                        match first {
                            First::Head(head) => {
                                let tracker = server.tracker.clone();
                                let attach = attach_from_peer(server, head, transport, early);
                                tracker.track_future(attach).await;
                            }
                            First::Leave(leave) => server.ask_relayed_to_leave(leave.from, leave.within),
                            // It was answered.
                            First::Question(_) => {}
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

    /// Opens the connection of another node, and reads its block. `None`: the connection is dropped, or answered.
    async fn admit(&self, stream: TcpStream, from: SocketAddr) -> Option<Admitted> {
        let _ = stream.set_nodelay(true);
        let until = Instant::now() + BLOCK_TIME;
        let admitted = match &self.tls {
            None => self.admit_on(stream, until, Transport::tcp).await,
            Some(tls) => match opened(tls, stream, until).await {
                Ok(stream) => self.admit_on(stream, until, Transport::other).await,
                Err(dropped) => Err(dropped),
            },
        };
        admitted.unwrap_or_else(|dropped| {
            self.log_dropped(&dropped, from);
            None
        })
    }

    async fn admit_on<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        until: Instant,
        transport: impl FnOnce(S) -> Transport,
    ) -> Result<Option<Admitted>, Dropped> {
        let read = timeout_at(until, read_first(&mut stream)).await;
        let (first, early) = read.unwrap_or(Err(Dropped::Block(BlockError::Late)))?;
        let admit = match &first {
            First::Head(head) => head.admit(self.id, &self.key),
            First::Leave(leave) => leave.admit(self.id, &self.key),
            First::Question(question) => question.admit(self.id, &self.key),
        };
        match admit.map_err(Dropped::Block)? {
            Admit::Hello => match first {
                First::Question(question) => {
                    self.answer(&mut stream, question.body, until).await;
                    Ok(None)
                }
                first => Ok(Some(Admitted { first, transport: transport(stream), early })),
            },
            Admit::OtherNode => {
                Figures::add(&self.figures.answered, 1);
                let answer = PeerAnswer::OtherNode.encode();
                if stream.write_all(&answer).await.is_ok() {
                    // TLS may buffer bytes, and its end is announced.
                    let _ = stream.shutdown().await;
                }
                Ok(None)
            }
        }
    }

    /// Answers a question, if that takes no longer than this.
    async fn answer(&self, stream: &mut (impl AsyncWrite + Unpin), question: Bytes, until: Instant) {
        let answered = timeout_at(until, async {
            let Some(Ok(reply)) = self.answering.answer(question).await.map(|reply| reply.encode()) else {
                tracing::error!("a question of another node has no answer that can be sent");
                return Ok(());
            };
            stream.write_all(&reply).await?;
            // TLS may buffer bytes, and its end is announced.
            stream.shutdown().await
        });
        if !matches!(answered.await, Ok(Ok(()))) {
            tracing::debug!("the answer to a question of another node came too late");
        }
    }

    /// One warning for each kind of error; every one is counted.
    fn log_dropped(&self, dropped: &Dropped, from: SocketAddr) {
        Figures::add(&self.figures.dropped, 1);
        if dropped.is_telling() && self.notices.is_first(dropped.as_str()) {
            tracing::warn!(
                %from, error = %dropped,
                "the peer listener drops a connection that is not another node's; later ones of this kind are \
                 logged at debug and counted"
            );
        } else {
            tracing::debug!(%from, error = %dropped, "the peer listener drops a connection");
        }
    }
}

/// Speaks TLS to what has connected. A node without TLS shows itself by its first byte, and gets an alert.
async fn opened(
    tls: &ClusterTls,
    mut stream: TcpStream,
    until: Instant,
) -> Result<tokio_rustls::server::TlsStream<TcpStream>, Dropped> {
    let open = async {
        let mut first = [0];
        if stream.peek(&mut first).await.map_err(Dropped::Handshake)? == 1 && first == *b"M" {
            refuse(&mut stream).await;
            return Err(Dropped::NoTls);
        }
        tls.accept(stream).await.map_err(Dropped::Handshake)
    };
    timeout_at(until, open).await.unwrap_or_else(|_| Err(Dropped::Handshake(io::ErrorKind::TimedOut.into())))
}

/// Sends the alert by which the other node finds out that TLS is what differs. Best effort.
async fn refuse(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    // What is not read would reset the connection, and the alert with it.
    let mut unread = BytesMut::with_capacity(MAX_BLOCK);
    let _ = stream.read_buf(&mut unread).await;
    if stream.write_all(&tls::ALERT).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}

/// Returns the first block, and the bytes behind it.
async fn read_first(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(First, Bytes), Dropped> {
    let mut buffer = BytesMut::new();
    loop {
        match First::decode(&mut buffer) {
            Ok(Some(first)) => return Ok((first, buffer.freeze())),
            Ok(None) => {}
            Err(BlockError::NotABlock) if tls::is_record(&buffer) => {
                let _ = stream.write_all(&tls::ALERT).await;
                return Err(Dropped::Tls);
            }
            Err(error) => return Err(Dropped::Block(error)),
        }
        // The decoder refuses a block above the limit by its first bytes.
        debug_assert!(buffer.len() <= MAX_BLOCK);
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return Err(Dropped::Block(BlockError::Truncated)),
            Ok(_) => {}
        }
    }
}

impl Dropped {
    /// Whether it shows that something is wrong. A handshake that was broken off or took too long may be that of a busy node.
    fn is_telling(&self) -> bool {
        !matches!(self, Self::Handshake(error) if tls::of_handshake(error).is_none())
    }

    /// Returns the kind in one word.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Block(error) => error.as_str(),
            Self::NoTls => "no_tls",
            Self::Tls => "tls",
            Self::Handshake(_) => "handshake",
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(error) => error.fmt(f),
            Self::NoTls => f.write_str("it is a node without TLS; start it with --cluster-tls, as this one"),
            Self::Tls => {
                f.write_str("it speaks TLS; if it is a node, start this one with --cluster-tls, too")
            }
            Self::Handshake(error) => match tls::of_handshake(error) {
                Some(error) => f.write_str(&tls::words(error)),
                None => error.fmt(f),
            },
        }
    }
}
