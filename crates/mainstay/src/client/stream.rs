//! The byte stream to a server.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::transport::{Stream, Transport, one_kind};

/// A byte stream to a server, as a [`Connector`](super::Connector) opens one: TCP, a Unix socket, TLS over either, or any
/// other stream.
///
/// ```
/// use mainstay::client::ServerStream;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let (ours, theirs) = tokio::io::duplex(1024);
/// let stream = ServerStream::other(ours);
/// # }
/// ```
pub struct ServerStream(Kind);

enum Kind {
    /// TCP or a Unix socket: the system calls to read, write and shut down are the same.
    Socket(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Other(Box<dyn Stream>),
}

impl ServerStream {
    /// Wraps any other stream.
    pub fn other(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Kind::Other(Box::new(stream)))
    }

    #[cfg(feature = "tls")]
    pub(super) fn tls(stream: tokio_rustls::client::TlsStream<TcpStream>) -> Self {
        Self(Kind::Tls(Box::new(stream)))
    }

    /// Has the system break the connection when the peer's machine acknowledges nothing for the returned time. With it a peer
    /// that answers no Ping need not be called dead. `None`: this stream cannot do that.
    pub(super) fn guard(&self) -> Option<std::time::Duration> {
        match &self.0 {
            Kind::Socket(stream) => crate::transport::guard(stream),
            _ => None,
        }
    }

    pub(super) fn into_transport(self) -> Transport {
        match self.0 {
            Kind::Socket(stream) => Transport::tcp(stream),
            #[cfg(feature = "tls")]
            Kind::Tls(stream) => {
                let (socket, session) = stream.into_inner();
                Transport::tls(socket, session)
            }
            Kind::Other(stream) => Transport::other(stream),
        }
    }

    fn stream(&mut self) -> Pin<&mut dyn Stream> {
        match &mut self.0 {
            Kind::Socket(stream) => Pin::new(stream),
            #[cfg(feature = "tls")]
            Kind::Tls(stream) => Pin::new(stream),
            Kind::Other(stream) => Pin::new(stream),
        }
    }
}

impl From<TcpStream> for ServerStream {
    fn from(stream: TcpStream) -> Self {
        Self(Kind::Socket(stream))
    }
}

impl TryFrom<UnixStream> for ServerStream {
    type Error = io::Error;

    fn try_from(stream: UnixStream) -> io::Result<Self> {
        one_kind(stream).map(Self::from)
    }
}

impl std::fmt::Debug for ServerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerStream(..)")
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buffer)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Socket(stream) => stream.is_write_vectored(),
            #[cfg(feature = "tls")]
            Kind::Tls(stream) => stream.is_write_vectored(),
            Kind::Other(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
