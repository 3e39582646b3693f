//! The entry node's part: it asks the owner of a session, with the client's own bytes.
//!
//! Source: `docs/CLUSTER.md`.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use mainstay_proto::cluster::PeerOutcome;
use mainstay_proto::cluster::peer::{BLOCK_TIME, BlockError, Head, Leave, PeerAnswer, Question, Reply};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::answers::NoAnswer;
use super::notices::Notices;
use super::relay::keep_alive;
use super::{ClusterTls, tls};
use crate::transport::Transport;

/// What the owner answered, on which connection, and what it sent behind that.
pub(crate) struct Asked {
    pub(crate) answer: PeerAnswer,
    pub(crate) owner: Transport,
    pub(crate) rest: Bytes,
}

/// How this node speaks to the peer listeners of others.
#[derive(Default)]
pub(crate) struct Speech {
    pub(super) tls: Option<ClusterTls>,
    notices: Notices,
}

/// Why the owner did not answer.
#[derive(Debug, thiserror::Error)]
enum Unanswered {
    #[error(transparent)]
    Lost(#[from] io::Error),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error("it speaks TLS; start this node with --cluster-tls, too")]
    SpeaksTls,
    #[error("{}", tls::words(.0))]
    Tls(rustls::Error),
}

impl Speech {
    pub(super) fn new(tls: Option<ClusterTls>) -> Self {
        Self { tls, notices: Notices::default() }
    }

    /// Sends a HELLO to the node that may own its session. `client`: the client's bytes, from the first byte of HELLO on.
    ///
    /// # Errors
    /// The node did not answer: why, in the words of the lookup.
    pub(crate) async fn ask(
        &self,
        address: SocketAddr,
        head: &Head,
        client: &[u8],
    ) -> Result<Asked, PeerOutcome> {
        let Ok(head) = head.encode() else {
            tracing::warn!("the path and the principal of a client are too long for another node");
            return Err(PeerOutcome::Silent);
        };
        let asked = tokio::time::timeout(BLOCK_TIME, async {
            let owner = TcpStream::connect(address).await.map_err(|error| not_connected(address, &error))?;
            self.exchange(owner, &[&head, client].concat()).await.map_err(|unanswered| {
                self.log_unanswered(address, &unanswered);
                PeerOutcome::Silent
            })
        });
        asked.await.unwrap_or_else(|_| {
            tracing::debug!(%address, "another node was silent for 1 s");
            Err(PeerOutcome::Silent)
        })
    }

    async fn exchange(&self, mut owner: TcpStream, question: &[u8]) -> Result<Asked, Unanswered> {
        owner.set_nodelay(true)?;
        keep_alive(&owner);
        let Some(tls) = &self.tls else {
            let (answer, rest) = exchange(&mut owner, question, PeerAnswer::decode).await?;
            return Ok(Asked { answer, owner: Transport::tcp(owner), rest });
        };
        let mut owner = tls.connect(owner).await.map_err(not_opened)?;
        let (answer, rest) = exchange(&mut owner, question, PeerAnswer::decode).await?;
        Ok(Asked { answer, owner: Transport::other(owner), rest })
    }

    /// Asks a node what concerns all of them.
    ///
    /// # Errors
    /// Why there is no reply.
    pub(super) async fn question(&self, address: SocketAddr, question: &Question) -> Result<Reply, NoAnswer> {
        let Ok(question) = question.encode() else { return Err(NoAnswer::Silent) };
        let asked = tokio::time::timeout(BLOCK_TIME, async {
            let mut node =
                TcpStream::connect(address).await.map_err(|error| match not_connected(address, &error) {
                    PeerOutcome::Refused => NoAnswer::Refused,
                    _ => NoAnswer::Silent,
                })?;
            let reply = match &self.tls {
                None => exchange(&mut node, &question, Reply::decode).await,
                Some(tls) => match tls.connect(node).await {
                    Ok(mut node) => exchange(&mut node, &question, Reply::decode).await,
                    Err(error) => Err(not_opened(error)),
                },
            };
            reply.map(|(reply, _)| reply).map_err(|unanswered| {
                self.log_unanswered(address, &unanswered);
                match unanswered {
                    Unanswered::Lost(_) => NoAnswer::Closed,
                    _ => NoAnswer::NotANode,
                }
            })
        });
        asked.await.unwrap_or(Err(NoAnswer::Silent))
    }

    /// A connection that was lost shows nothing. What differs between two nodes is one warning.
    fn log_unanswered(&self, address: SocketAddr, unanswered: &Unanswered) {
        let kind = match unanswered {
            Unanswered::SpeaksTls => Some("speaks_tls"),
            Unanswered::Tls(_) => Some("tls"),
            Unanswered::Lost(_) | Unanswered::Block(_) => None,
        };
        if kind.is_some_and(|kind| self.notices.is_first(kind)) {
            tracing::warn!(
                %address, error = %unanswered,
                "another node cannot be asked for its sessions: all nodes of a cluster have --cluster-tls with certificates of \
                 one authority, or none has; later ones of this kind are logged at debug and counted"
            );
        } else {
            tracing::debug!(%address, error = %unanswered, "another node did not answer");
        }
    }

    /// Informs an owner that this node cuts its relays soon. A hint: nothing depends on it.
    pub(super) async fn announce_leave(&self, address: SocketAddr, leave: Leave) {
        let announced = tokio::time::timeout(BLOCK_TIME, async {
            let mut owner = TcpStream::connect(address).await?;
            match &self.tls {
                None => announce(&mut owner, &leave).await,
                Some(tls) => announce(&mut tls.connect(owner).await?, &leave).await,
            }
        });
        if !matches!(announced.await, Ok(Ok(_))) {
            tracing::debug!(%address, owner = %leave.to, "an owner was not informed that this node drains");
        }
    }
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

/// No TLS came about.
fn not_opened(error: io::Error) -> Unanswered {
    match tls::of_handshake(&error) {
        Some(error) => Unanswered::Tls(error.clone()),
        None => Unanswered::Lost(error),
    }
}

/// Returns what the other node answers, and the bytes behind it.
async fn exchange<T>(
    owner: &mut (impl AsyncRead + AsyncWrite + Unpin),
    question: &[u8],
    decode: fn(&mut BytesMut) -> Result<Option<T>, BlockError>,
) -> Result<(T, Bytes), Unanswered> {
    owner.write_all(question).await?;
    // TLS may buffer bytes.
    owner.flush().await?;
    let mut buffer = BytesMut::new();
    loop {
        match decode(&mut buffer) {
            Ok(Some(answer)) => return Ok((answer, buffer.freeze())),
            Ok(None) => {}
            Err(BlockError::NotABlock) if tls::is_record(&buffer) => return Err(Unanswered::SpeaksTls),
            Err(error) => return Err(error.into()),
        }
        if owner.read_buf(&mut buffer).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

async fn announce(owner: &mut (impl AsyncRead + AsyncWrite + Unpin), leave: &Leave) -> io::Result<()> {
    owner.write_all(&leave.encode()).await?;
    owner.flush().await?;
    // The owner ends the connection once it has read the block.
    owner.read(&mut [0]).await.map(drop)
}
