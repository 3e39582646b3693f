//! A write-stall timeout for HTTP: without it a peer that never reads its response would hold the connection, and the tasks
//! that wait for it, for ever. WebSockets have heartbeats; HTTP has nothing.
//!
//! A peer may read slowly, as long as it reads.

use std::any::Any;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::transport::{Stream, keep_little_unsent};

/// How long a peer may accept no byte of a response. The kernel holds little unsent data, and so reports progress for every
/// 64 KiB (Linux): a peer that reads 2 KiB a second is served.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// A stream whose writes fail once the peer has accepted no byte for too long.
pub(super) struct WriteTimeout<S> {
    stream: S,
    /// The timeout, while the stream is full.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Called with the stream at the timeout.
    give_up: fn(&S),
}

impl<S: 'static> WriteTimeout<S> {
    /// Wraps a stream. At the timeout, a TCP stream is reset, so that no unsent data stays in the kernel.
    pub(super) fn new(stream: S) -> Self {
        tcp(&stream).into_iter().for_each(keep_little_unsent);
        let give_up = |stream: &S| drop(tcp(stream).map(TcpStream::set_zero_linger));
        Self { stream, stalled: None, give_up }
    }

    /// Resets the connection, so that the peer does not take a part of the response for the whole.
    pub(super) fn reset(self) {
        (self.give_up)(&self.stream);
    }
}

/// The stream, if it is TCP itself, or TLS over TCP.
fn tcp<S: 'static>(stream: &S) -> Option<&TcpStream> {
    let stream: &dyn Any = stream;
    #[cfg(feature = "tls")]
    if let Some(tls) = stream.downcast_ref::<tokio_rustls::server::TlsStream<TcpStream>>() {
        return Some(tls.get_ref().0);
    }
    stream.downcast_ref()
}

impl<S> WriteTimeout<S> {
    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn check(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        std::task::ready!(stalled.as_mut().poll(cx));
        (self.give_up)(&self.stream);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its response")))
    }
}

impl<S: Stream> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.check(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Stream> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    fn with_timeout() -> (WriteTimeout<DuplexStream>, DuplexStream) {
        let (ours, peer) = duplex(16);
        (WriteTimeout { stream: ours, stalled: None, give_up: |_| {} }, peer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_the_peer_does_not_read_fails_after_30_s() {
        let (mut stream, _peer) = with_timeout();
        let start = Instant::now();
        let error = stream.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed().as_secs()), (io::ErrorKind::TimedOut, 30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_the_peer_reads_byte_by_byte_goes_on() {
        let (mut stream, mut peer) = with_timeout();
        let reading = tokio::spawn(async move {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(29)).await;
                peer.read_u8().await.unwrap();
            }
        });
        stream.write_all(&[0; 100]).await.unwrap();
        // No timeout runs while there is nothing to write.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        reading.await.unwrap();
    }
}
