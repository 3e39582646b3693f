//! TLS towards clients: the handshake between the accept and HTTP.
//!
//! The handshake has a deadline. Its expensive part, the key exchange and the signature, is computed by few connections at a
//! time, so that a storm of new clients does not take all processors from the clients that are here. A connection waits
//! for that part without a thread.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;
use std::time::Duration;

use mainstay_proto::ConfigError;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use rustls::{HandshakeKind, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::stats::Counters;
use crate::transport::Stream;

/// TLS for [`Serve::tls`](super::Serve::tls). Clones share one configuration, which [`replace`](Self::replace) exchanges
/// while the server runs.
///
/// ```no_run
/// # fn configure(config: mainstay::server::rustls::ServerConfig, renewed: mainstay::server::rustls::ServerConfig) {
/// use mainstay::server::Tls;
///
/// let tls = Tls::new(std::sync::Arc::new(config));
/// // Later, when the certificate was renewed: connections that are open stay.
/// tls.replace(std::sync::Arc::new(renewed));
/// # }
/// ```
#[derive(Clone)]
pub struct Tls {
    shared: Arc<Shared>,
    deadline: Duration,
}

struct Shared {
    config: RwLock<Arc<ServerConfig>>,
    /// The handshakes that may compute now.
    computing: Semaphore,
}

/// How long a handshake may take, unless [`Tls::handshake_deadline`] sets it.
const DEADLINE: Duration = Duration::from_secs(10);

impl Tls {
    /// Uses this configuration. Its ALPN decides between HTTP/1.1 and HTTP/2.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let computing = Semaphore::new(processors.div_ceil(2));
        Self { shared: Arc::new(Shared { config: RwLock::new(config), computing }), deadline: DEADLINE }
    }

    /// Sets how long a handshake may take. Default: 10 s. Range: 100 ms to 1 min.
    ///
    /// # Errors
    /// Outside the range.
    pub fn handshake_deadline(mut self, deadline: Duration) -> Result<Self, ConfigError> {
        let range = Duration::from_millis(100)..=Duration::from_secs(60);
        ConfigError::unless(range.contains(&deadline), "handshake_deadline", "between 100 ms and 1 min")?;
        self.deadline = deadline;
        Ok(self)
    }

    /// Uses another configuration for each handshake that begins from now on. Open connections stay.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        *self.shared.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shared.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Performs the handshake, and counts how it ended. `None`: it failed, and the connection must be closed.
    pub(super) async fn accept<S: Stream>(&self, stream: S, stats: &Counters) -> Option<TlsStream<S>> {
        let failed = match tokio::time::timeout(self.deadline, self.handshake(stream)).await {
            Ok(Ok(stream)) => {
                let kind = stream.get_ref().1.handshake_kind();
                let is_resumed = kind == Some(HandshakeKind::Resumed);
                let counter = if is_resumed { &stats.tls_resumed } else { &stats.tls_full };
                Counters::add(counter, 1);
                return Some(stream);
            }
            Ok(Err(error)) => {
                Counters::add(&stats.tls_failed, 1);
                error.to_string()
            }
            Err(_) => {
                Counters::add(&stats.tls_timed_out, 1);
                "it took too long".to_owned()
            }
        };
        // Not a warning: on the open internet anyone makes handshakes fail.
        tracing::debug!(error = failed, "a TLS handshake failed");
        None
    }

    /// Performs the handshake on a connection that another listener than [`serve`](crate::serve)'s accepted. Returns what to speak
    /// HTTP on, and the client's certificate, if it presented one that this configuration accepts.
    ///
    /// # Errors
    /// The handshake failed, or took longer than its deadline: close the connection.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn open<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<(impl AsyncRead + AsyncWrite + Unpin + use<S>, Option<ClientCertificates>)> {
        let opened = tokio::time::timeout(self.deadline, self.handshake(stream)).await;
        let stream = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let certificates = ClientCertificates::of(&stream);
        Ok((stream, certificates))
    }

    async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let turn = self.shared.computing.acquire().await;
        let mut accepting = hello.into_stream(self.config());
        // The first poll writes this end's part; all that follows is cheap and waits for the client.
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut accepting).poll(cx))).await;
        drop(turn);
        match first {
            Poll::Ready(done) => done,
            Poll::Pending => accepting.await,
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// An extension of each request whose client presented a certificate that the server's [`Tls`] accepted: the certificate,
/// and those of its issuers that the client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificates(pub Arc<[CertificateDer<'static>]>);

impl ClientCertificates {
    pub(super) fn of<S>(stream: &TlsStream<S>) -> Option<Self> {
        stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| Self(chain.iter().cloned().map(CertificateDer::into_owned).collect()))
    }
}
