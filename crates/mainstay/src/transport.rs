//! Moves the bytes of a connection: over TCP, TLS over TCP, or any other stream.
//!
//! Either tokio or the worker of the connection watches a TCP socket. The worker's way is the cheaper one: it needs no
//! memory and no lock. TLS has such a socket inside.

#[cfg(feature = "tls")]
mod tls;

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::worker::{Readiness, TaskContext};

/// Any byte stream: an HTTP/2 stream, a test's duplex, a Unix socket.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The byte stream of one connection. The common case needs no box and no virtual call, and is 16 bytes.
pub(crate) enum Transport {
    /// Registered with a worker, which reports its readiness.
    Own(mio::net::TcpStream, Readiness),
    Tcp(Box<TcpStream>),
    #[cfg(feature = "tls")]
    Tls(Box<tls::Tls>),
    Other(Box<Box<dyn Stream>>),
    /// Moves no more bytes.
    Closed,
}

impl Transport {
    pub(crate) fn tcp(stream: TcpStream) -> Self {
        Self::Tcp(Box::new(stream))
    }

    /// TLS over a socket, after its handshake.
    #[cfg(feature = "tls")]
    pub(crate) fn tls(socket: TcpStream, session: impl Into<rustls::Connection>) -> Self {
        Self::Tls(Box::new(tls::Tls::new(Self::tcp(socket), session.into())))
    }

    pub(crate) fn other(stream: impl Stream + 'static) -> Self {
        Self::Other(Box::new(Box::new(stream)))
    }

    /// Registers a TCP socket with the worker, or adds what the worker reports of it.
    #[inline]
    pub(crate) fn register(&mut self, context: &TaskContext<'_>) -> io::Result<()> {
        match self {
            Self::Own(_, known) => {
                known.merge(context.readiness);
                Ok(())
            }
            _ => self.register_other(context),
        }
    }

    fn register_other(&mut self, context: &TaskContext<'_>) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Self::Tls(tls) = self {
            return tls.socket.register(context);
        }
        match std::mem::replace(self, Self::Closed) {
            Self::Tcp(stream) => {
                keep_little_unsent(&stream);
                let mut stream = mio::net::TcpStream::from_std(stream.into_std()?);
                context.register(&mut stream)?;
                // A new socket accepts bytes; the worker will report whether it has any. What the worker has reported by
                // now concerns another socket.
                *self = Self::Own(stream, Readiness { writable: true, ..Readiness::default() });
            }
            other => *self = other,
        }
        Ok(())
    }

    /// Registers the socket with tokio again, so that any tokio task may poll it.
    pub(crate) fn into_tokio(self) -> io::Result<Self> {
        match self {
            Self::Own(stream, _) => Ok(Self::tcp(TcpStream::from_std(stream.into())?)),
            #[cfg(feature = "tls")]
            Self::Tls(mut tls) => {
                tls.socket = std::mem::replace(&mut tls.socket, Self::Closed).into_tokio()?;
                Ok(Self::Tls(tls))
            }
            other => Ok(other),
        }
    }

    /// Deregisters the socket from the worker. Comes before [`into_tokio`](Self::into_tokio) where the task goes on with
    /// another socket.
    pub(crate) fn deregister(&mut self, context: &TaskContext<'_>) {
        match self {
            Self::Own(stream, _) => context.deregister(stream),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.socket.deregister(context),
            _ => {}
        }
    }

    /// Whether there may be bytes to read: `false` is certain, because the worker has reported none.
    pub(crate) fn may_read(&self) -> bool {
        match self {
            Self::Own(_, readiness) => readiness.readable,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.may_read(),
            _ => true,
        }
    }

    /// Whether the worker has reported that the stream ended or failed.
    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Self::Own(_, readiness) => readiness.ended,
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.socket.has_ended(),
            _ => false,
        }
    }

    /// Whether bytes came since the last call that are not readable yet: a part of a record of TLS.
    pub(crate) fn took_part(&mut self) -> bool {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.took_part(),
            _ => false,
        }
    }

    /// Reads into the front of `buffer`; 0 is the end of the stream.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Own(stream, readiness) => {
                if !readiness.readable {
                    return Poll::Pending;
                }
                let read = without_waiting(|| stream.read(buffer));
                // A short read took all there was; bytes that come later are another edge.
                readiness.readable = match &read {
                    Poll::Ready(Ok(count)) => *count == buffer.len() || readiness.ended,
                    Poll::Ready(Err(_)) => true,
                    Poll::Pending => false,
                };
                read
            }
            Self::Tcp(stream) => poll_read(Pin::new(stream), cx, buffer),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_read(cx, buffer),
            Self::Other(stream) => poll_read(Pin::new(stream), cx, buffer),
            Self::Closed => Poll::Ready(Ok(0)),
        }
    }

    /// Writes from the front of `queue` in as few calls as possible; `Ready` once the socket has accepted all of it.
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
            // TLS may buffer bytes; TCP does not.
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_flush(cx),
            Self::Other(stream) => Pin::new(stream).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, queue: &impl Buf) -> Poll<io::Result<usize>> {
        let first = queue.chunk();
        match self {
            // Small messages on a socket of the worker, as most are.
            Self::Own(stream, readiness) if first.len() == queue.remaining() => {
                write_if_ready(readiness, || stream.write(first))
            }
            _ => self.poll_write_vectored(cx, queue),
        }
    }

    #[inline(never)] // Its 32 slices in one function with the above would make that slower.
    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, queue: &impl Buf) -> Poll<io::Result<usize>> {
        let mut slices = [io::IoSlice::new(&[]); 32];
        let count = queue.chunks_vectored(&mut slices);
        self.poll_write_slices(cx, slices.get(..count).unwrap_or_default())
    }

    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Own(stream, readiness) => write_if_ready(readiness, || match slices {
                [one] => stream.write(one), // cheaper than a vector of one
                many => stream.write_vectored(many),
            }),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_write(cx, slices),
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
            #[cfg(feature = "tls")]
            Self::Tls(tls) => return tls.socket.relax(),
            Self::Other(_) | Self::Closed => Ok(()),
        };
    }

    /// Shuts down the writing side.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Own(stream, _) => Poll::Ready(stream.shutdown(std::net::Shutdown::Write)),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.poll_shutdown(cx),
            Self::Other(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Closed => Poll::Ready(Ok(())),
        }
    }

    /// Drops the connection at once, with a reset where the transport can, so that no unsent data stays in the kernel.
    pub(crate) fn abort(self) {
        match self.into_tokio() {
            Ok(Self::Tcp(stream)) => drop(stream.set_zero_linger()),
            #[cfg(feature = "tls")]
            Ok(Self::Tls(tls)) => tls.socket.abort(),
            _ => {}
        }
    }

    /// Announces the end of the stream where the transport has a message for that, as far as the socket accepts it now.
    pub(crate) fn announce_end(&mut self, cx: &mut Context<'_>) {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.announce_end(cx),
            _ => {
                let _ = cx;
            }
        }
    }
}

/// Returns a Unix socket in the type that all sockets have here: the system calls to read, write and shut down are the same.
/// It has no address, and none is needed.
pub(crate) fn one_kind(stream: UnixStream) -> io::Result<TcpStream> {
    let descriptor = OwnedFd::from(stream.into_std()?);
    TcpStream::from_std(std::net::TcpStream::from(descriptor))
}

/// Bytes that the kernel may hold without having sent them.
const UNSENT: u32 = 128 * 1024;

/// Makes the socket refuse bytes while the kernel has many left to send. Otherwise the kernel accepts megabytes, a probe
/// waits behind them, and a slow peer that reads all the time looks dead: the bytes left to write would no longer show how
/// fast it reads. Best effort, and Linux only.
pub(crate) fn keep_little_unsent(stream: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
    #[cfg(not(target_os = "linux"))]
    let _ = (stream, UNSENT);
}

/// How long the kernel waits for a peer's kernel that acknowledges nothing.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: std::time::Duration = std::time::Duration::from_secs(20);

/// Sets [`UNACKNOWLEDGED`], and returns it where the system has that option. It also ends the connection of a peer that
/// accepts no bytes, so the client [undoes](Transport::relax) it once there is a better sign of life.
pub(crate) fn guard(stream: &TcpStream) -> Option<std::time::Duration> {
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        // The other end of a Unix socket is on this machine, so its end is seen at once.
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

/// Writes to a socket that the worker watches, unless the worker has yet to report that it accepts bytes again.
fn write_if_ready(
    readiness: &mut Readiness,
    write: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    if !readiness.writable {
        return Poll::Pending;
    }
    let written = without_waiting(write);
    readiness.writable = written.is_ready();
    written
}

/// Repeats a call of a non-blocking socket while a signal interrupts it.
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

    /// How many bytes a socket accepts for a peer that reads nothing and has a small receive buffer.
    async fn accepted(prepare: impl FnOnce(&TcpStream)) -> usize {
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
    async fn the_kernel_holds_less_than_400_kib_in_front_of_a_probe() {
        let unbounded = accepted(|_| {}).await;
        let bounded = accepted(keep_little_unsent).await;
        assert!(bounded < 400 * 1024 && bounded < unbounded / 2, "{bounded} of {unbounded}");
    }
}
