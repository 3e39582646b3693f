//! What moves the bytes of a connection: TCP, TLS over TCP, or any other stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Any byte stream: an HTTP/2 stream, a test's duplex, a Unix socket.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The byte stream of one connection. The common case needs no box and no virtual call.
pub(crate) enum Transport {
    Tcp(TcpStream),
    Other(Box<dyn Stream>),
}

impl Transport {
    /// Reads into the front of `buffer`; 0 is the end of the stream.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let polled = match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
            Self::Other(stream) => Pin::new(stream).poll_read(cx, &mut buffer),
        };
        polled.map_ok(|()| buffer.filled().len())
    }

    /// Writes from the front of `queue` in as few calls as it takes; `Ready` when all has left.
    pub(crate) fn poll_write_all(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut impl Buf,
    ) -> Poll<io::Result<()>> {
        while queue.has_remaining() {
            let mut slices = [io::IoSlice::new(&[]); 32];
            let count = queue.chunks_vectored(&mut slices);
            let slices = slices.get(..count).unwrap_or_default();
            let polled = match self {
                Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
                Self::Other(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            };
            match polled {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => queue.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // TLS may hold bytes of its own; TCP does not.
        match self {
            Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Says that nothing more is written.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Other(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    /// Drops the connection at once: a reset where the transport can, so that nothing lingers.
    pub(crate) fn abort(self) {
        if let Self::Tcp(stream) = &self {
            let _ = stream.set_zero_linger();
        }
    }
}
