//! One connection's bytes: read, parsed, encoded and written. What they mean is the machines' affair.
//!
//! A [`Wire`] holds no buffer while idle. Reads go into a scratch buffer of the worker, after
//! readiness; everything that a turn produced is encoded into a queue of the worker and leaves in one
//! vectored write; only what the socket does not take is moved into the connection. While it waits,
//! nothing more is encoded, so what is kept is bounded by one turn. A message that goes out on many
//! connections is compressed for the first of them.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use mainstay_proto::connect::Lost;
use mainstay_proto::failure::Failure;
use mainstay_proto::session::{Message, Transmit};
use mainstay_proto::ws::{CloseFrame, Connection, Incoming, Limits, Packed, ProtocolError, SendQueue, State};

use crate::clock::now;
use crate::transport::Transport;
use crate::worker::TaskContext;

/// Bytes read per turn: a connection's share before the others have theirs.
const READ: usize = 64 * 1024;
/// What may stand before the payload in a message of `mainstay.v1`: the type, and of a volatile one its kind.
const BEFORE_PAYLOAD: usize = 2;
/// Encoded bytes per turn, at which the rest waits for the next.
const WRITE: usize = 256 * 1024;

struct Scratch {
    read: Vec<u8>,
    write: SendQueue,
    /// That of the worker which is at work on this thread.
    packed: Packed,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { read: vec![0; READ], write: SendQueue::new(), packed: Packed::new() });
}

/// Lends a worker's memory of what was compressed to the turns that it is about to give on this thread, and gives it
/// back: the next pass may be on another.
pub(crate) fn swap_packed(packed: &mut Packed) {
    SCRATCH.with_borrow_mut(|scratch| std::mem::swap(&mut scratch.packed, packed));
}

/// A WebSocket connection on its transport.
pub(crate) struct Wire {
    transport: Transport,
    codec: Connection,
    /// Bytes that came with the opening handshake.
    early: Option<Box<Bytes>>,
    unsent: Option<Box<SendQueue>>,
    /// Whatever counts this connection, for as long as there is one.
    pub(crate) permit: Option<Arc<Permit>>,
    /// Set when a Close is on its way out and only the end of the stream is awaited.
    closing: bool,
}

/// Counts a connection by being there: by its references, or by what it holds. Most connections have none, so it takes one
/// word of them.
#[derive(Default)]
pub(crate) struct Permit {
    pub(crate) _held: Option<Arc<dyn Send + Sync>>,
}

/// What the peer sent, in order.
pub(crate) enum Arrived {
    Message(Message),
    Pong([u8; 8]),
    /// Bytes, whatever they are part of: comes first in every read.
    Bytes,
    Close(Option<CloseFrame>),
}

/// How messages of the application are framed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// `mainstay.v1`: a type byte in front of binary messages.
    Session,
    Plain,
}

/// What a turn of reading came to.
pub(crate) enum Reading {
    /// The socket has no more for now.
    Idle,
    /// There may be more, or the handler of what was read asked to stop here.
    More,
    /// Nothing will come any more.
    Ended(Lost),
}

impl Wire {
    pub(crate) fn new(transport: Transport, codec: Connection, early: Bytes) -> Self {
        let early = (!early.is_empty()).then(|| Box::new(early));
        Self { transport, codec, early, unsent: None, permit: None, closing: false }
    }

    /// A turn begins at the worker that this connection lives with, or comes to live with.
    pub(crate) fn arrive(&mut self, context: &TaskContext<'_>) -> io::Result<()> {
        self.transport.settle(context)
    }

    /// It leaves the worker, to be [finished](Self::finish) elsewhere.
    pub(crate) fn depart(mut self, context: &TaskContext<'_>) -> Self {
        self.transport.depart(context);
        self
    }

    /// Whether there may be something to read.
    pub(crate) fn may_read(&self) -> bool {
        self.early.is_some() || self.transport.may_read()
    }

    /// The peer hung up, as far as that is known without reading.
    pub(crate) fn has_ended(&self) -> bool {
        self.transport.has_ended()
    }

    /// Reads once and hands over what is complete, until `take` says stop.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(Arrived) -> bool,
    ) -> Reading {
        if let Some(early) = self.early.take() {
            take(Arrived::Bytes);
            let (mut early, mut replies) = (early.to_vec(), SendQueue::new());
            let reading = self.parse(&mut early, &mut replies, take);
            self.queue(replies);
            return reading.unwrap_or(Reading::More);
        }
        SCRATCH.with_borrow_mut(|scratch| match self.transport.poll_read(cx, &mut scratch.read) {
            Poll::Pending => Reading::Idle,
            Poll::Ready(Ok(0)) => Reading::Ended(self.lost(None)),
            Poll::Ready(Err(error)) => Reading::Ended(self.lost(Some(error))),
            Poll::Ready(Ok(count)) => {
                take(Arrived::Bytes);
                if self.codec.wants_time() {
                    self.codec.pass_time(now());
                }
                let input = scratch.read.get_mut(..count).unwrap_or_default();
                let reading = self.parse(input, &mut scratch.write, &mut take);
                if !scratch.write.is_empty() {
                    self.queue(scratch.write.take_rest());
                }
                reading.unwrap_or(Reading::More)
            }
        })
    }

    /// Pings are answered one by one while the socket takes what is written; behind a full socket only
    /// the last one is.
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
                // Rare: the receiver changed hands in the middle. The rest is read again later.
                self.early = (!input.is_empty()).then(|| Box::new(Bytes::copy_from_slice(input)));
                return Some(Reading::More);
            }
        }
    }

    fn lost(&self, error: Option<io::Error>) -> Lost {
        // TLS has words of its own for a stream that ends in the middle.
        let error = error.filter(|error| error.kind() != io::ErrorKind::UnexpectedEof);
        Lost::Broken(error.map_or_else(|| "connection ended without a close".into(), Failure::from))
    }

    /// Encodes what `next` gives and writes it, in one go.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        framing: Framing,
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
        SCRATCH.with_borrow_mut(|Scratch { write: out, packed, .. }| {
            self.codec.flush_replies(out);
            while out.len() < WRITE {
                match next() {
                    None => break,
                    Some(Transmit::Abort) => {
                        drop(out.take_rest());
                        return Err(Abort);
                    }
                    Some(transmit) => self.encode(framing, transmit, packed, out),
                }
            }
            if out.is_empty() {
                return Ok(Written::All);
            }
            let before = out.remaining();
            match self.transport.poll_write_all(cx, out) {
                Poll::Ready(Ok(())) => Ok(Written::All),
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

    fn encode(&mut self, framing: Framing, transmit: Transmit, packed: &mut Packed, out: &mut SendQueue) {
        match (&transmit, framing) {
            (Transmit::Ping(nonce), _) => self.codec.ping(&nonce.to_be_bytes(), out),
            (Transmit::Close { code, reason }, _) => {
                self.codec.close(*code, reason, out);
                self.closing = true;
            }
            (Transmit::Message(message), Framing::Plain) => {
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

    /// What is queued behind bytes that wait is lost with the connection: these are last words.
    fn queue(&mut self, out: SendQueue) {
        if self.unsent.is_none() && !out.is_empty() {
            self.unsent = Some(Box::new(out));
        }
    }

    /// From here on the peer speaks `mainstay.v1`, and its messages may be as large as `limits` says.
    pub(crate) fn begin_session(&mut self, limits: Limits) {
        self.codec.set_max_message(limits.max_message.saturating_add(BEFORE_PAYLOAD));
    }

    /// Bytes that are kept of a message that is not complete.
    pub(crate) fn assembling(&self) -> u64 {
        self.codec.assembling() as u64
    }

    /// What is kept here: of a message that is not complete, of what was read and not looked at, and of what the socket
    /// did not take. What a session keeps anyway until it is acknowledged does not count again.
    pub(crate) fn held(&self, framing: Framing) -> u64 {
        let unsent = self.unsent.as_ref().map_or(0, |unsent| match framing {
            Framing::Session => unsent.copied(),
            Framing::Plain => unsent.len(),
        });
        let early = self.early.as_ref().map_or(0, |early| early.len());
        self.assembling() + (unsent + early) as u64
    }

    /// The peer has shown that it answers Pings: the system need not judge it.
    pub(crate) fn relax(&self) {
        self.transport.relax();
    }

    /// The peer is in the middle of a frame, where it cannot answer.
    pub(crate) fn is_mid_frame(&self) -> bool {
        self.codec.is_mid_frame()
    }

    /// A Close was written, or the peer's was answered: only the end of the stream is awaited.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing || self.codec.state() != State::Open
    }

    /// Ends a closing connection at once, if nothing is missing: both Closes are said, and the socket took ours and
    /// has nothing unread, so that its end is no reset. Gives back one that needs [`finish`](Self::finish).
    ///
    /// Source: RFC 6455 section 7.1.1.
    pub(crate) fn end(mut self, cx: &mut Context<'_>) -> Option<Self> {
        let said = matches!(self.poll_write(cx, Framing::Plain, || None), Ok(Written::All));
        let is_closed = said && self.codec.ends_in_order() && !self.may_read();
        (!is_closed).then_some(self)
    }

    /// Sees a closing connection to its end: what is queued leaves, then both sides shut down. Bounded,
    /// so that a peer that does neither holds nothing.
    pub(crate) async fn finish(mut self) {
        if self.transport.leave().is_err() {
            return;
        }
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(5);
        let linger = std::future::poll_fn(|cx| {
            loop {
                match self.poll_write(cx, Framing::Plain, || None) {
                    Err(Abort) => return Poll::Ready(()),
                    Ok(Written::Some | Written::None) => return Poll::Pending,
                    Ok(Written::All) => {}
                }
                if self.codec.state() == State::Closed && self.transport.poll_shutdown(cx).is_pending() {
                    return Poll::Pending;
                }
                match self.poll_read(cx, |_| true) {
                    Reading::Idle => return Poll::Pending,
                    // The peer's Close may have come: it is answered, and a server ends the stream first.
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

/// What a turn of writing came to.
pub(crate) enum Written {
    /// Everything has left.
    All,
    /// The socket took some of it.
    Some,
    /// The socket takes nothing.
    None,
}

impl Written {
    fn waiting(progress: bool) -> Self {
        if progress { Self::Some } else { Self::None }
    }
}

/// The transport failed or is to be dropped.
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
    async fn a_write_says_whether_the_socket_took_anything() {
        let (mut wire, mut peer) = wire(16);
        let mut messages = vec![Transmit::Message(Message::text("x".repeat(40)))];
        let mut write = async |wire: &mut Wire| {
            std::future::poll_fn(|cx| Poll::Ready(wire.poll_write(cx, Framing::Plain, || messages.pop())))
                .await
        };
        assert!(matches!(write(&mut wire).await, Ok(Written::Some)));
        assert!(matches!(write(&mut wire).await, Ok(Written::None)));
        peer.read_exact(&mut [0; 16]).await.unwrap();
        assert!(matches!(write(&mut wire).await, Ok(Written::Some)));
        peer.read_exact(&mut [0; 16]).await.unwrap();
        assert!(matches!(write(&mut wire).await, Ok(Written::All)));
    }
}
