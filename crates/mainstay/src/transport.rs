//! What moves the bytes of a connection: TCP, TLS over TCP, or any other stream.
//!
//! A TCP socket is watched by tokio, or by the worker that its connection lives with. The worker's is the
//! cheaper one: it costs no memory, and no lock to look at.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::worker::TaskContext;

/// Any byte stream: an HTTP/2 stream, a test's duplex, a Unix socket.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The byte stream of one connection. The common case needs no box and no virtual call, and is 16 bytes.
pub(crate) enum Transport {
    /// Watched by a worker, which says what it is ready for.
    Own(mio::net::TcpStream, Readiness),
    Tcp(Box<TcpStream>),
    Other(Box<Box<dyn Stream>>),
    /// Nothing moves any more.
    Closed,
}

/// What a socket that a worker watches can do without waiting. Edges: each is reported once and holds
/// until it is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Readiness {
    readable: bool,
    writable: bool,
    /// The end has come, or an error: reading never waits again.
    ended: bool,
}

impl Readiness {
    /// What an event of the worker's epoll says.
    pub(crate) fn add(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable();
        self.writable |= event.is_writable();
        self.ended |= event.is_read_closed() || event.is_error();
    }

    fn merge(&mut self, other: Self) {
        self.readable |= other.readable | other.ended;
        self.writable |= other.writable;
        self.ended |= other.ended;
    }
}

impl Transport {
    pub(crate) fn tcp(stream: TcpStream) -> Self {
        Self::Tcp(Box::new(stream))
    }

    pub(crate) fn other(stream: impl Stream + 'static) -> Self {
        Self::Other(Box::new(Box::new(stream)))
    }

    /// Has the worker watch the socket from here on, if this is one, and hears what it says of it.
    pub(crate) fn settle(&mut self, context: &TaskContext<'_>) -> io::Result<()> {
        if let Self::Own(_, known) = self {
            known.merge(context.readiness);
            return Ok(());
        }
        match std::mem::replace(self, Self::Closed) {
            Self::Tcp(stream) => {
                keep_little_unsent(&stream);
                let mut stream = mio::net::TcpStream::from_std(stream.into_std()?);
                context.register(&mut stream)?;
                // A new socket takes bytes; whether it has some the worker will say. What it has said by now is about
                // another.
                *self = Self::Own(stream, Readiness { writable: true, ..Readiness::default() });
            }
            other => *self = other,
        }
        Ok(())
    }

    /// Has tokio watch the socket again, so that any task may poll it.
    pub(crate) fn leave(&mut self) -> io::Result<()> {
        match std::mem::replace(self, Self::Closed) {
            Self::Own(stream, _) => *self = Self::tcp(TcpStream::from_std(stream.into())?),
            other => *self = other,
        }
        Ok(())
    }

    /// Before [`leave`](Self::leave), where another socket of the resident stays or comes.
    pub(crate) fn depart(&mut self, context: &TaskContext<'_>) {
        if let Self::Own(stream, _) = self {
            context.deregister(stream);
        }
    }

    /// Whether there may be something to read: for sure not, if the worker that watches the socket has not said so.
    pub(crate) fn may_read(&self) -> bool {
        match self {
            Self::Own(_, readiness) => readiness.readable,
            _ => true,
        }
    }

    /// Whether the end has come, or an error, as far as a worker has said so.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self, Self::Own(_, readiness) if readiness.ended)
    }

    /// Reads into the front of `buffer`; 0 is the end of the stream.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Own(stream, readiness) => {
                if !readiness.readable {
                    return Poll::Pending;
                }
                let read = without_waiting(|| stream.read(buffer));
                // A short read took all there was; what comes later is another edge.
                readiness.readable = match &read {
                    Poll::Ready(Ok(count)) => *count == buffer.len() || readiness.ended,
                    Poll::Ready(Err(_)) => true,
                    Poll::Pending => false,
                };
                read
            }
            Self::Tcp(stream) => poll_read(Pin::new(stream), cx, buffer),
            Self::Other(stream) => poll_read(Pin::new(stream), cx, buffer),
            Self::Closed => Poll::Ready(Ok(0)),
        }
    }

    /// Writes from the front of `queue` in as few calls as it takes; `Ready` when all has left.
    pub(crate) fn poll_write_all(
        &mut self,
        cx: &mut Context<'_>,
        queue: &mut impl Buf,
    ) -> Poll<io::Result<()>> {
        while queue.has_remaining() {
            match self.poll_write(cx, queue) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => queue.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        match self {
            // TLS may hold bytes of its own; TCP does not.
            Self::Other(stream) => Pin::new(stream).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, queue: &impl Buf) -> Poll<io::Result<usize>> {
        let mut slices = [io::IoSlice::new(&[]); 32];
        let count = queue.chunks_vectored(&mut slices);
        let slices = slices.get(..count).unwrap_or_default();
        match self {
            Self::Own(stream, readiness) => {
                if !readiness.writable {
                    return Poll::Pending;
                }
                let written = without_waiting(|| match slices {
                    [one] => stream.write(one), // cheaper than a vector of one
                    many => stream.write_vectored(many),
                });
                readiness.writable = written.is_ready();
                written
            }
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Other(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Closed => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Undoes [`guard`].
    pub(crate) fn relax(&self) {
        #[cfg(target_os = "linux")]
        let _ = match self {
            Self::Own(stream, _) => socket2::SockRef::from(stream).set_tcp_user_timeout(None),
            Self::Tcp(stream) => socket2::SockRef::from(&**stream).set_tcp_user_timeout(None),
            Self::Other(_) | Self::Closed => Ok(()),
        };
    }

    /// Says that nothing more is written.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Own(stream, _) => Poll::Ready(stream.shutdown(std::net::Shutdown::Write)),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Other(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }

    /// Drops the connection at once: a reset where the transport can, so that nothing lingers.
    pub(crate) fn abort(mut self) {
        if self.leave().is_ok()
            && let Self::Tcp(stream) = &self
        {
            let _ = stream.set_zero_linger();
        }
    }
}

/// Bytes that the kernel may hold without having sent them.
const UNSENT: u32 = 128 * 1024;

/// Has the socket refuse bytes while the kernel has many left to send. Otherwise it takes megabytes, a probe
/// waits behind them, and a slow peer that reads all the time looks dead: what is left to write would no longer
/// tell how fast it reads. Best effort, and Linux only.
pub(crate) fn keep_little_unsent(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, UNSENT);
}

/// How long the system bears a peer's machine that acknowledges nothing.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: std::time::Duration = std::time::Duration::from_secs(20);

/// See [`UNACKNOWLEDGED`]; returns it where the system does so. Towards a peer that takes nothing it does the same, so it
/// is [undone](Transport::relax) once there is a better sign of life.
pub(crate) fn guard(stream: &TcpStream) -> Option<std::time::Duration> {
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        // The other end of a Unix socket is on this machine, and its end shows at once.
        let is_local = socket.domain().is_ok_and(|domain| domain == socket2::Domain::UNIX);
        let guarded = is_local || socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED)).is_ok();
        guarded.then_some(UNACKNOWLEDGED)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = stream;
        None
    }
}

fn poll_read(
    stream: Pin<&mut impl AsyncRead>,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    stream.poll_read(cx, &mut buffer).map_ok(|()| buffer.filled().len())
}

/// Calls a socket that does not block until it is not merely interrupted.
fn without_waiting(mut call: impl FnMut() -> io::Result<usize>) -> Poll<io::Result<usize>> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return Poll::Ready(done),
        }
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// How much a socket takes for a peer that reads nothing and has little room itself.
    async fn taken(prepare: impl FnOnce(&TcpStream)) -> usize {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpSocket::new_v4().unwrap();
        peer.set_recv_buffer_size(8 * 1024).unwrap();
        let _peer = peer.connect(listener.local_addr().unwrap()).await.unwrap();
        let (ours, _) = listener.accept().await.unwrap();
        prepare(&ours);
        ours.writable().await.unwrap();
        let mut sum = 0;
        while let Ok(count) = ours.try_write(&[0; 16 * 1024]) {
            sum += count;
        }
        sum
    }

    #[tokio::test]
    async fn a_probe_never_waits_behind_megabytes_in_the_kernel() {
        let unbounded = taken(|_| {}).await;
        let bounded = taken(keep_little_unsent).await;
        assert!(bounded < 400 * 1024 && bounded < unbounded / 2, "{bounded} of {unbounded}");
    }
}
