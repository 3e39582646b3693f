//! Reads, parses, encodes and writes the bytes of one connection. The machines decide what they mean.
//!
//! A [`Wire`] holds no buffer while idle. It reads into a scratch buffer of the worker, after readiness. It encodes
//! everything that one poll produced into a queue of the worker and writes that with one vectored call; only what the
//! socket does not accept moves into the connection. While that waits, nothing more is encoded, so one poll bounds what a
//! connection keeps. A message that goes out on many connections is compressed once, for the first of them.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use mainstay_proto::connect::{Lost, Mode};
use mainstay_proto::failure::Failure;
use mainstay_proto::session::{Message, Transmit};
use mainstay_proto::ws::{
    CloseFrame, CloseState, Connection, Incoming, Limits, Packed, ProtocolError, SendQueue,
};

use crate::clock::now;
use crate::transport::Transport;
use crate::worker::{Scratch, TaskContext, with_scratch};

/// Bytes before the payload in a message of `mainstay.v1`: the type and, in a volatile message, the kind.
const BEFORE_PAYLOAD: usize = 2;
/// The largest control message of `mainstay.v1`: it carries credentials.
pub(crate) const LARGEST_CONTROL: usize = 64 * 1024;
/// Encoded bytes for each poll; the rest waits for the next poll.
const WRITE: usize = 256 * 1024;

/// A WebSocket connection on its transport.
pub(crate) struct Wire {
    transport: Transport,
    codec: Connection,
    /// Bytes that came with the opening handshake.
    early: Option<Box<Bytes>>,
    unsent: Option<Box<SendQueue>>,
    /// Counts this connection for as long as it exists.
    pub(crate) permit: Option<Arc<Permit>>,
    /// Set once a Close is queued: only the end of the stream is awaited.
    closing: bool,
}

/// Counts a connection while it exists: by its references, or by what it holds. Most connections have none, so it costs
/// them one word.
#[derive(Default)]
pub(crate) struct Permit {
    pub(crate) _held: Option<Arc<dyn Send + Sync>>,
}

/// What the peer sent, in the order in which it came.
pub(crate) enum Arrived {
    Message(Message),
    Pong([u8; 8]),
    /// Bytes of any frame: comes first in every read.
    Bytes,
    Close(Option<CloseFrame>),
}

/// The outcome of one read.
pub(crate) enum Reading {
    /// The socket has no more for now.
    Idle,
    /// There may be more, or the receiver of the messages asked to stop.
    More,
    /// The connection delivers nothing more.
    Ended(Lost),
}

impl Wire {
    pub(crate) fn new(transport: Transport, codec: Connection, early: Bytes) -> Self {
        let early = (!early.is_empty()).then(|| Box::new(early));
        Self { transport, codec, early, unsent: None, permit: None, closing: false }
    }

    /// Registers a new connection with the worker, or adds what the worker reports of it. Comes first in every poll.
    pub(crate) fn register(&mut self, context: &TaskContext<'_>) -> io::Result<()> {
        self.transport.register(context)
    }

    /// Deregisters the connection from the worker, for [`finish`](Self::finish) in a tokio task.
    pub(crate) fn deregister(mut self, context: &TaskContext<'_>) -> Self {
        self.transport.deregister(context);
        self
    }

    /// Whether there may be something to read.
    pub(crate) fn may_read(&self) -> bool {
        self.early.is_some() || self.transport.may_read()
    }

    /// Whether the worker has reported that the peer hung up.
    pub(crate) fn has_ended(&self) -> bool {
        self.transport.has_ended()
    }

    /// Reads once and passes each complete message to `take`, until that returns `false`.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, take: impl FnMut(Arrived) -> bool) -> Reading {
        self.poll_read_raw(cx, |_| {}, take)
    }

    /// As [`poll_read`](Self::poll_read); `raw` gets the bytes before they are parsed. Bytes that were left over because
    /// `take` returned `false` come again at the next read.
    pub(crate) fn poll_read_raw(
        &mut self,
        cx: &mut Context<'_>,
        mut raw: impl FnMut(&[u8]),
        mut take: impl FnMut(Arrived) -> bool,
    ) -> Reading {
        if let Some(early) = self.early.take() {
            raw(&early);
            take(Arrived::Bytes);
            let (mut early, mut replies) = (early.to_vec(), SendQueue::new());
            let reading = self.parse(&mut early, &mut replies, take);
            self.queue(replies);
            return reading.unwrap_or(Reading::More);
        }
        with_scratch(|scratch| match self.transport.poll_read(cx, &mut scratch.read) {
            Poll::Pending => {
                if self.transport.took_part() {
                    take(Arrived::Bytes);
                }
                Reading::Idle
            }
            Poll::Ready(Ok(0)) => Reading::Ended(self.lost(None)),
            Poll::Ready(Err(error)) => Reading::Ended(self.lost(Some(error))),
            Poll::Ready(Ok(count)) => {
                take(Arrived::Bytes);
                if self.codec.wants_time() {
                    self.codec.pass_time(now());
                }
                let input = scratch.read.get_mut(..count).unwrap_or_default();
                raw(input);
                let reading = self.parse(input, &mut scratch.write, &mut take);
                if !scratch.write.is_empty() {
                    self.queue(scratch.write.take_rest());
                }
                reading.unwrap_or(Reading::More)
            }
        })
    }

    /// Answers each Ping while the socket accepts bytes; behind a full socket only the last one is answered.
    fn parse(
        &mut self,
        mut input: &mut [u8],
        replies: &mut SendQueue,
        mut take: impl FnMut(Arrived) -> bool,
    ) -> Option<Reading> {
        loop {
            let arrived = match self.codec.receive(&mut input) {
                Ok(None) => return None,
                Ok(Some(Incoming::Message(payload))) => Arrived::Message(payload.into_message()),
                Ok(Some(Incoming::Ping(_))) => {
                    if self.unsent.is_none() {
                        self.codec.flush_replies(replies);
                    }
                    continue;
                }
                Ok(Some(Incoming::Pong(payload))) => match payload.as_ref().try_into() {
                    Ok(payload) => Arrived::Pong(payload),
                    Err(_) => continue,
                },
                Ok(Some(Incoming::Close(frame))) => Arrived::Close(frame),
                Err(error) => {
                    self.codec.fail(&error, replies);
                    self.closing = true;
                    return Some(Reading::Ended(match error {
                        ProtocolError::MessageTooBig { limit } => Lost::TooBig { limit },
                        error => Lost::Broken(error.to_string().into()),
                    }));
                }
            };
            if !take(arrived) {
                // Rare: the receiver accepts no more for now. The rest is parsed at the next read.
                self.early = (!input.is_empty()).then(|| Box::new(Bytes::copy_from_slice(input)));
                return Some(Reading::More);
            }
        }
    }

    fn lost(&self, error: Option<io::Error>) -> Lost {
        // TLS reports a stream that ends in the middle as an error.
        let error = error.filter(|error| error.kind() != io::ErrorKind::UnexpectedEof);
        Lost::Broken(error.map_or_else(|| "connection ended without a close".into(), Failure::from))
    }

    /// Encodes what `next` returns and writes it with one call.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mode: Mode,
        mut next: impl FnMut() -> Option<Transmit>,
    ) -> Result<Written, Abort> {
        let mut progress = false;
        if let Some(unsent) = &mut self.unsent {
            let before = unsent.remaining();
            match self.transport.poll_write_all(cx, unsent.as_mut()) {
                Poll::Pending => return Ok(Written::waiting(unsent.remaining() < before)),
                Poll::Ready(Err(_)) => return Err(Abort),
                Poll::Ready(Ok(())) => (self.unsent, progress) = (None, true),
            }
        }
        with_scratch(|Scratch { write: out, packed, .. }| {
            self.codec.flush_replies(out);
            let mut is_all = false;
            while out.len() < WRITE {
                match next() {
                    None => {
                        is_all = true;
                        break;
                    }
                    Some(Transmit::Abort) => {
                        drop(out.take_rest());
                        return Err(Abort);
                    }
                    Some(transmit) => self.encode(mode, transmit, packed, out),
                }
            }
            if out.is_empty() {
                return Ok(Written::All);
            }
            let before = out.remaining();
            match self.transport.poll_write_all(cx, out) {
                Poll::Ready(Ok(())) if is_all => Ok(Written::All),
                Poll::Ready(Ok(())) => {
                    // No event of the socket follows: it accepted all there was.
                    cx.waker().wake_by_ref();
                    Ok(Written::Some)
                }
                Poll::Ready(Err(_)) => {
                    drop(out.take_rest());
                    Err(Abort)
                }
                Poll::Pending => {
                    progress |= out.remaining() < before;
                    self.unsent = Some(Box::new(out.take_rest()));
                    Ok(Written::waiting(progress))
                }
            }
        })
    }

    fn encode(&mut self, mode: Mode, transmit: Transmit, packed: &mut Packed, out: &mut SendQueue) {
        match (&transmit, mode) {
            (Transmit::Ping(nonce), _) => self.codec.ping(&nonce.to_be_bytes(), out),
            (Transmit::Close { code, reason }, _) => {
                self.codec.close(*code, reason, out);
                self.closing = true;
            }
            (Transmit::Message(message), Mode::Plain) => {
                self.codec.send_shared(message.kind(), &[], message.payload(), packed, out);
            }
            _ => {
                if let Some((kind, head, body)) = transmit.as_message() {
                    self.codec.send_shared(kind, head, body, packed, out);
                }
            }
        }
    }

    /// Closes with this code, best effort.
    pub(crate) fn close(&mut self, frame: &CloseFrame) {
        let mut out = SendQueue::new();
        self.codec.close(frame.code, &frame.reason, &mut out);
        self.queue(out);
        self.closing = true;
    }

    /// Queues the final writes of a connection. They are dropped if earlier bytes are still unsent: `out` then holds no
    /// more than a final Close.
    fn queue(&mut self, out: SendQueue) {
        if self.unsent.is_none() && !out.is_empty() {
            self.unsent = Some(Box::new(out));
        }
    }

    /// Writes these bytes before any frame: the answer to another node.
    #[cfg(feature = "cluster")]
    pub(crate) async fn write_first(&mut self, mut bytes: Bytes) -> io::Result<()> {
        std::future::poll_fn(|cx| self.transport.poll_write_all(cx, &mut bytes)).await
    }

    /// Gives up the WebSocket and returns what it ran on. Whatever is queued is dropped.
    #[cfg(feature = "cluster")]
    pub(crate) fn into_transport(self) -> (Transport, Option<Arc<Permit>>) {
        (self.transport, self.permit)
    }

    /// Begins `mainstay.v1` on this connection: messages may be as large as `limits` allows, and control messages as large as
    /// they get. The session refuses a smaller message of the application that is too large.
    pub(crate) fn begin_session(&mut self, limits: Limits) {
        let largest = limits.max_message.saturating_add(BEFORE_PAYLOAD);
        self.codec.set_max_message(largest.max(LARGEST_CONTROL));
    }

    /// Bytes of a message that is not complete yet.
    pub(crate) fn assembling(&self) -> u64 {
        self.codec.assembling() as u64
    }

    /// Bytes that this connection keeps: of a message that is not complete, of input that was not parsed, and of output
    /// that the socket did not accept. Messages that the session keeps until they are acknowledged do not count twice.
    pub(crate) fn held(&self, mode: Mode) -> u64 {
        let unsent = self.unsent.as_ref().map_or(0, |unsent| match mode {
            Mode::Session => unsent.copied(),
            _ => unsent.len(),
        });
        let early = self.early.as_ref().map_or(0, |early| early.len());
        self.assembling() + (unsent + early) as u64
    }

    /// Undoes the kernel's own timeout, once the peer has shown that it answers Pings.
    pub(crate) fn relax(&self) {
        self.transport.relax();
    }

    /// Whether the peer is in the middle of a frame, where it cannot answer.
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.codec.is_mid_frame()
    }

    /// Whether a Close was queued or the peer's was answered: only the end of the stream is awaited.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing || self.codec.state() != CloseState::Open
    }

    /// Ends a closing connection at once if its closing handshake is complete, the socket has accepted our Close and holds
    /// no unread bytes, so that its end is no reset. Returns a connection that needs [`finish`](Self::finish).
    ///
    /// Source: RFC 6455 section 7.1.1.
    pub(crate) fn end(mut self, cx: &mut Context<'_>) -> Option<Self> {
        let said = matches!(self.poll_write(cx, Mode::Plain, || None), Ok(Written::All));
        let is_closed = said && self.codec.ends_in_order() && !self.may_read();
        if is_closed {
            self.transport.announce_end(cx);
        }
        (!is_closed).then_some(self)
    }

    /// Completes a closing connection: writes what is queued, then shuts down both sides. Bounded in time, so that a peer
    /// that does neither keeps no resources.
    pub(crate) async fn finish(mut self) {
        self.transport = match self.transport.into_tokio() {
            Ok(transport) => transport,
            Err(_) => return,
        };
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
        let linger = std::future::poll_fn(|cx| {
            loop {
                match self.poll_write(cx, Mode::Plain, || None) {
                    Err(Abort) => return Poll::Ready(()),
                    Ok(Written::Some | Written::None) => return Poll::Pending,
                    Ok(Written::All) => {}
                }
                if self.codec.state() == CloseState::Closed && self.transport.poll_shutdown(cx).is_pending() {
                    return Poll::Pending;
                }
                match self.poll_read(cx, |_| true) {
                    Reading::Idle => return Poll::Pending,
                    // The peer's Close may have come: then it was answered, and a server ends the stream first.
                    Reading::More => {}
                    Reading::Ended(_) => return Poll::Ready(()),
                }
            }
        });
        let _ = tokio::time::timeout(LIMIT, linger).await;
    }

    /// Drops the connection at once.
    pub(crate) fn abort(self) {
        self.transport.abort();
    }
}

/// The outcome of one write.
pub(crate) enum Written {
    /// The socket accepted everything.
    All,
    /// The socket accepted a part, or there is more to write: the task is woken in either case.
    Some,
    /// The socket accepted nothing.
    None,
}

impl Written {
    fn waiting(progress: bool) -> Self {
        if progress { Self::Some } else { Self::None }
    }
}

/// The transport failed, or the machine asked for the connection to be dropped.
pub(crate) struct Abort;

#[cfg(test)]
mod tests {
    use mainstay_proto::ws::{Limits, Role};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn wire(capacity: usize) -> (Wire, DuplexStream) {
        let (ours, theirs) = duplex(capacity);
        let codec = Connection::new(Role::Server, Limits::default(), None, [0; 32]);
        (Wire::new(Transport::other(ours), codec, Bytes::new()), theirs)
    }

    #[tokio::test]
    async fn a_piece_of_a_frame_is_a_sign_of_life() {
        let (mut wire, mut peer) = wire(1024);
        // A masked binary frame of 200 bytes, of which 3 have come.
        peer.write_all(&[0x82, 0x80 | 126, 0, 200, 1, 2, 3, 4, 9, 9, 9]).await.unwrap();
        let mut arrived = Vec::new();
        std::future::poll_fn(|cx| {
            wire.poll_read(cx, |what| {
                arrived.push(matches!(what, Arrived::Bytes));
                true
            });
            Poll::Ready(())
        })
        .await;
        assert_eq!(arrived, [true]);
        assert!(wire.is_mid_frame());
    }

    #[tokio::test]
    async fn a_write_reports_whether_the_socket_accepted_anything() {
        let (mut wire, mut peer) = wire(16);
        let mut messages = vec![Transmit::Message(Message::text("x".repeat(40)))];
        let mut write = async |wire: &mut Wire| {
            std::future::poll_fn(|cx| Poll::Ready(wire.poll_write(cx, Mode::Plain, || messages.pop()))).await
        };
        assert!(matches!(write(&mut wire).await, Ok(Written::Some)));
        assert!(matches!(write(&mut wire).await, Ok(Written::None)));
        peer.read_exact(&mut [0; 16]).await.unwrap();
        assert!(matches!(write(&mut wire).await, Ok(Written::Some)));
        peer.read_exact(&mut [0; 16]).await.unwrap();
        assert!(matches!(write(&mut wire).await, Ok(Written::All)));
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(std::sync::atomic::AtomicU32);

    impl std::task::Wake for Woken {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    #[tokio::test]
    async fn a_task_with_more_to_write_than_one_poll_writes_is_woken_although_the_socket_accepted_all() {
        let (mut wire, _peer) = wire(1 << 20);
        let mut messages = vec![Transmit::Message(Message::text("x".repeat(64 * 1024))); 5];
        let woken = std::sync::Arc::new(Woken::default());
        let waker = std::sync::Arc::clone(&woken).into();
        let mut cx = Context::from_waker(&waker);
        let mut write = || wire.poll_write(&mut cx, Mode::Plain, || messages.pop());
        assert!(matches!(write(), Ok(Written::Some)));
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert!(matches!(write(), Ok(Written::All)));
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
