//! One open WebSocket for experiments: it sends what it is asked to, and reports what it sees, with as little of its own as
//! possible. It neither reconnects nor pings by itself.
//!
//! A hostile server cannot make it grow: a message has a limit ([`Options::max_message`]), and it reads no further while
//! [`WAITING`] items wait for the experiment.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mainstay_proto::ws::{CloseCode, Connection, Incoming, Kind, Limits, Role, SendQueue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::dial::{self, Opened, Stream};
use super::first_message::FirstMessage;
use super::report::{HandshakeFacts, OpenError};
use super::target::{Target, seed};

/// How many items may wait for the experiment before the probe reads no further.
const WAITING: usize = 256;
/// The most fragments of one message that it accepts. It keeps their payloads only, which [`Options::max_message`] bounds.
const MAX_FRAGMENTS: u32 = 1 << 24;
/// How many bytes of answers may wait for a server that does not read before the probe reads no further.
const MAX_ANSWERS: usize = 64 * 1024;
/// The most bytes read at once.
const CHUNK: usize = 64 * 1024;

/// How a probe behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Whether it answers the server's Pings. Default: yes.
    pub(crate) answer_pings: bool,
    /// The longest message it accepts; a longer one ends it. Default: 16 MiB.
    pub(crate) max_message: usize,
    /// Whether it offers compression (permessage-deflate). Default: yes.
    pub(crate) compression: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { answer_pings: true, max_message: 16 << 20, compression: true }
    }
}

/// An open WebSocket.
pub(crate) struct Probe {
    target: Target,
    stream: Box<dyn Stream>,
    codec: Connection,
    /// Frames on their way to the server, in order.
    unsent: BytesMut,
    /// How many of them are answers that the experiment did not ask for. The server decides their number.
    answers: usize,
    seen: VecDeque<Seen>,
    answers_pings: bool,
    /// Writing failed: what can still be read is read, and then this is the end.
    broken: Option<End>,
    ended: Option<End>,
    opened_at: Instant,
    heard_at: Instant,
    handshake: Arc<HandshakeFacts>,
}

/// What a probe sees.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    Message {
        is_text: bool,
        data: Bytes,
    },
    Ping(Bytes),
    Pong(Bytes),
    /// The server's Close. The probe has answered it, and reports the end of the stream next.
    Close {
        code: Option<u16>,
        /// As the report may show it.
        reason: String,
    },
    /// Nothing follows; every further call returns the same.
    Ended(End),
}

/// How the byte stream of a probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The other end closed TCP; TLS, if there is one, was closed in order before.
    Fin,
    /// TCP was closed without the closing alert of TLS, as a machine on the way does that does not speak TLS.
    TlsCut,
    /// TCP was reset.
    Reset,
    /// The server violated the protocol, or a limit of the probe; or the system reported another error.
    Error(String),
}

/// The probe has ended: nothing more can be sent. [`Probe::next`] returns what was seen before that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended(pub(crate) End);

impl End {
    /// Returns the name of the end in the report.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Fin => "fin",
            Self::TlsCut => "tls-cut",
            Self::Reset => "reset",
            Self::Error(_) => "error",
        }
    }

    /// Returns what went wrong, for an end of another kind.
    pub(crate) fn words(&self) -> Option<&str> {
        match self {
            Self::Error(words) => Some(words),
            _ => None,
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::UnexpectedEof => Self::TlsCut,
            _ => Self::Error(error.to_string()),
        }
    }
}

impl Target {
    /// Opens a WebSocket with the default [`Options`]. Its first message is on its way before anything else.
    ///
    /// # Errors
    /// A step failed, or its time ran out (10 s each).
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn open(&self) -> Result<Probe, OpenError> {
        self.open_with(Options::default()).await
    }

    /// Opens a WebSocket.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn open_with(&self, options: Options) -> Result<Probe, OpenError> {
        Ok(Probe::new(self, dial::open(self, options.compression).await?, options))
    }
}

impl Probe {
    pub(super) fn new(target: &Target, opened: Opened, options: Options) -> Self {
        let limits = Limits { max_message: options.max_message, max_fragments: MAX_FRAGMENTS };
        let now = Instant::now();
        let mut probe = Self {
            target: target.clone(),
            stream: opened.stream,
            codec: Connection::new(Role::Client, limits, opened.deflate, seed()),
            unsent: BytesMut::new(),
            answers: 0,
            seen: VecDeque::new(),
            answers_pings: options.answer_pings,
            broken: None,
            ended: None,
            opened_at: now,
            heard_at: now,
            handshake: Arc::new(opened.handshake),
        };
        if let Some(FirstMessage { kind, body }) = target.first_message() {
            probe.encode(|codec, queue| codec.send(*kind, &[], body, queue));
        }
        let mut early = opened.early;
        probe.decode(&mut early);
        probe
    }

    /// Waits for the server's first message, which answers the one that this client sent first, and takes it. Returns false if the
    /// connection ends before; why is seen next.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost but Pings and Pongs.
    pub(crate) async fn greeting(&mut self) -> bool {
        poll_fn(|cx| self.poll_greeting(cx)).await
    }

    /// Returns when the opening handshake was done.
    pub(crate) fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Returns when the last bytes arrived.
    pub(crate) fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Returns what the server answered to the opening handshake.
    pub(crate) fn handshake(&self) -> &HandshakeFacts {
        &self.handshake
    }

    /// Sends a text message, compressed if that was agreed on. A message above 16 KiB is sent in several frames.
    ///
    /// # Errors
    /// The connection has ended.
    ///
    /// # Cancel safety
    /// Safe: what is not written yet is written by the next call of any method. This holds for all methods that send.
    pub(crate) async fn send_text(&mut self, text: &str) -> Result<(), Ended> {
        let body = Bytes::copy_from_slice(text.as_bytes());
        self.encode(|codec, queue| codec.send(Kind::Text, &[], &body, queue));
        self.flush().await
    }

    /// Sends a Ping. The payload is cut to 125 bytes.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) async fn send_ping(&mut self, payload: &[u8]) -> Result<(), Ended> {
        self.encode(|codec, queue| codec.ping(payload, queue));
        self.flush().await
    }

    /// Sends a Close and waits for nothing: [`next`](Self::next) sees the answer.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) async fn send_close(&mut self, code: CloseCode, reason: &str) -> Result<(), Ended> {
        self.encode(|codec, queue| codec.close(code, reason, queue));
        self.flush().await
    }

    /// Sends a Pong that nothing asked for. The payload is cut to 125 bytes.
    ///
    /// # Errors
    /// The connection has ended.
    ///
    /// Source: RFC 6455 section 5.5.3.
    pub(crate) async fn send_pong(&mut self, payload: &[u8]) -> Result<(), Ended> {
        self.send_frame(0xa, true, payload.get(..125).unwrap_or(payload)).await
    }

    /// Sends one frame as it is given, never compressed: for fragments. `opcode`: 0 continues, 1 text, 2 binary.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) async fn send_frame(&mut self, opcode: u8, fin: bool, payload: &[u8]) -> Result<(), Ended> {
        put_frame(&mut self.unsent, opcode, fin, payload);
        self.flush().await
    }

    /// Returns what is seen next. Answers the server's Close, and its Pings if the options say so.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost.
    pub(crate) async fn next(&mut self) -> Seen {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Returns the server's Close if it has arrived and [`next`](Self::next) has not returned it.
    pub(crate) fn received_close(&self) -> Option<(Option<u16>, String)> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Close { code, reason } => Some((*code, reason.clone())),
            _ => None,
        })
    }

    /// Writes everything, and reads meanwhile: the server may have to be read before it reads on, and its Close is not lost.
    async fn flush(&mut self) -> Result<(), Ended> {
        poll_fn(|cx| self.poll_sent(cx)).await
    }

    /// Encodes behind everything that waits to be written.
    fn encode(&mut self, encode: impl FnOnce(&mut Connection, &mut SendQueue)) -> usize {
        let mut queue = SendQueue::new();
        encode(&mut self.codec, &mut queue);
        let count = queue.remaining();
        self.unsent.put(queue);
        count
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Seen> {
        loop {
            if let Some(seen) = self.seen.pop_front() {
                return Poll::Ready(seen);
            }
            if let Some(end) = &self.ended {
                return Poll::Ready(Seen::Ended(end.clone()));
            }
            ready!(self.poll_more(cx));
        }
    }

    fn poll_greeting(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match self.seen.front() {
                Some(Seen::Close { .. } | Seen::Ended(_)) => return Poll::Ready(false),
                Some(seen) => {
                    let is_message = matches!(seen, Seen::Message { .. });
                    self.seen.pop_front();
                    if is_message {
                        return Poll::Ready(true);
                    }
                }
                None if self.ended.is_some() => return Poll::Ready(false),
                None => ready!(self.poll_more(cx)),
            }
        }
    }

    /// Writes what waits, and reads once. A server that does not read is not read either.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _ = self.poll_write(cx);
        if self.answers > MAX_ANSWERS {
            return Poll::Pending;
        }
        self.poll_read(cx)
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let written = self.poll_write(cx);
        while self.ended.is_none() && self.seen.len() < WAITING && self.answers <= MAX_ANSWERS {
            if self.poll_read(cx).is_pending() {
                break;
            }
        }
        match (&self.ended, written) {
            (Some(end), _) => Poll::Ready(Err(Ended(end.clone()))),
            (None, Poll::Ready(())) => Poll::Ready(Ok(())),
            (None, Poll::Pending) => Poll::Pending,
        }
    }

    /// Writes until nothing is left.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.unsent.is_empty() && self.broken.is_none() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent)) {
                Ok(count) => self.unsent.advance(count),
                Err(error) => self.broken = Some(End::of(&error)),
            }
        }
        if self.broken.is_none()
            && let Err(error) = ready!(Pin::new(&mut self.stream).poll_flush(cx))
        {
            self.broken = Some(End::of(&error));
        }
        self.answers = 0;
        Poll::Ready(())
    }

    /// Reads once; ready if something came, which may be the end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut chunk = vec![0; CHUNK];
        let mut buffer = ReadBuf::new(&mut chunk);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => match self.broken.take() {
                None => return Poll::Pending,
                broken => self.ended = broken,
            },
            Poll::Ready(Err(error)) => self.ended = Some(End::of(&error)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => self.ended = Some(End::Fin),
            Poll::Ready(Ok(())) => {
                self.heard_at = Instant::now();
                self.decode(buffer.filled_mut());
            }
        }
        Poll::Ready(())
    }

    /// Reads the items in these bytes. An item that is not complete is kept by the codec.
    fn decode(&mut self, mut input: &mut [u8]) {
        if self.codec.wants_time() {
            self.codec.pass_time(std::time::Instant::now());
        }
        loop {
            let seen = match self.codec.receive(&mut input) {
                Ok(None) => return,
                Ok(Some(item)) => seen(item, &self.target),
                Err(error) => {
                    self.ended = Some(End::Error(error.to_string()));
                    return;
                }
            };
            let is_answered =
                matches!(seen, Seen::Ping(_)) && self.answers_pings || matches!(seen, Seen::Close { .. });
            if is_answered {
                self.answers += self.encode(|codec, queue| codec.flush_replies(queue));
            }
            self.seen.push_back(seen);
        }
    }
}

fn seen(item: Incoming<'_>, target: &Target) -> Seen {
    match item {
        Incoming::Message(payload) => {
            Seen::Message { is_text: payload.kind() == Kind::Text, data: payload.into_bytes() }
        }
        Incoming::Ping(payload) => Seen::Ping(payload.into_bytes()),
        Incoming::Pong(payload) => Seen::Pong(payload.into_bytes()),
        Incoming::Close(None) => Seen::Close { code: None, reason: String::new() },
        Incoming::Close(Some(close)) => {
            Seen::Close { code: Some(close.code.get()), reason: target.shown(&close.reason) }
        }
    }
}

/// Writes a masked frame.
///
/// Source: RFC 6455 section 5.2.
fn put_frame(out: &mut BytesMut, opcode: u8, fin: bool, payload: &[u8]) {
    out.put_u8(u8::from(fin) << 7 | opcode & 0xf);
    match u16::try_from(payload.len()) {
        Ok(len @ 0..=125) => out.put_slice(&[0x80 | len.to_be_bytes()[1]]),
        Ok(len) => {
            out.put_u8(0x80 | 126);
            out.put_u16(len);
        }
        Err(_) => {
            out.put_u8(0x80 | 127);
            out.put_u64(payload.len() as u64);
        }
    }
    let mask: [u8; 4] = std::array::from_fn({
        let seed = seed();
        move |at| seed.get(at).copied().unwrap_or_default()
    });
    out.put_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::{Duration, timeout};

    use super::*;

    /// A probe on a connection that holds so many bytes each way, and its server.
    fn connected(bytes: usize) -> (Probe, DuplexStream) {
        let target = Target::new("ws://h/".parse().unwrap(), Vec::new(), Vec::new(), None, None).unwrap();
        let (ours, theirs) = duplex(bytes);
        let handshake = HandshakeFacts::default();
        let opened = Opened { stream: Box::new(ours), early: Vec::new(), deflate: None, handshake };
        (Probe::new(&target, opened, Options::default()), theirs)
    }

    async fn moment<T>(future: impl Future<Output = T>) -> Option<T> {
        timeout(Duration::from_millis(1), future).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_pings_and_never_reads_cannot_make_the_probe_grow() {
        let (mut probe, mut server) = connected(4096);
        let ping = [&[0x89, 125][..], &[b'x'; 125]].concat();
        let flood = tokio::spawn(async move {
            // Data between them: only a stream of nothing else is refused.
            while server.write_all(&ping).await.is_ok() && server.write_all(b"\x81\x01x").await.is_ok() {}
        });
        let mut seen = 0;
        while seen < 20_000 && moment(probe.next()).await.is_some() {
            seen += 1;
        }
        assert!((500..20_000).contains(&seen) && probe.ended.is_none(), "{seen}");
        assert!(probe.unsent.len() < 2 * MAX_ANSWERS, "{}", probe.unsent.len());
        flood.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn pings_without_an_end_before_the_answer_to_a_first_message_do_not_make_the_probe_grow() {
        let (mut probe, mut server) = connected(4096);
        let ping = [&[0x89, 125][..], &[b'x'; 125]].concat();
        let flood = tokio::spawn(async move { while server.write_all(&ping).await.is_ok() {} });
        assert_eq!(moment(probe.greeting()).await, None);
        assert!(probe.unsent.len() < 2 * MAX_ANSWERS, "{}", probe.unsent.len());
        flood.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_a_first_message_is_taken_and_a_close_is_left() {
        let (mut probe, mut server) = connected(4096);
        server.write_all(b"\x89\x00\x81\x02ok\x88\x02\x03\xe8").await.unwrap();
        assert!(probe.greeting().await);
        assert!(!probe.greeting().await);
        assert_eq!(probe.next().await, Seen::Close { code: Some(1000), reason: String::new() });
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_that_comes_while_a_message_is_sent_is_seen() {
        let (mut probe, mut server) = connected(1024);
        server.write_all(b"\x88\x02\x03\xf1").await.unwrap();
        let ending = tokio::spawn(async move {
            let mut scratch = [0; 5000];
            server.read_exact(&mut scratch).await.unwrap();
        });
        let sent = probe.send_text(&"x".repeat(1 << 20)).await;
        assert!(sent.is_err());
        assert_eq!(probe.received_close(), Some((Some(1009), String::new())));
        assert_eq!(probe.next().await, Seen::Close { code: Some(1009), reason: String::new() });
        assert!(matches!(probe.next().await, Seen::Ended(_)));
        ending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_cancelled_call_has_not_written_is_written_by_the_next_one() {
        let (mut probe, mut server) = connected(16);
        assert_eq!(moment(probe.send_text(&"x".repeat(100))).await, None);
        let reading = tokio::spawn(async move {
            let mut message = [0; 106];
            server.read_exact(&mut message).await.unwrap();
            (message, server)
        });
        assert_eq!(moment(probe.next()).await, None);
        let ([first, len, mask @ ..], _server) = reading.await.unwrap();
        assert_eq!((first, len), (0x81, 0x80 | 100));
        let (mask, payload) = mask.split_at(4);
        assert!(payload.iter().zip(mask.iter().cycle()).all(|(byte, mask)| byte ^ mask == b'x'));
    }

    #[tokio::test(start_paused = true)]
    async fn frames_have_the_shortest_length_and_may_be_fragments() {
        let (mut probe, mut server) = connected(1 << 20);
        for (len, head) in [
            (125, &[1, 0xfd][..]),
            (126, &[1, 0xfe, 0, 126]),
            (70_000, &[1, 0xff, 0, 0, 0, 0, 0, 1, 0x11, 0x70]),
        ] {
            probe.send_frame(1, false, &vec![b'x'; len]).await.unwrap();
            let mut frame = vec![0; head.len() + 4 + len];
            server.read_exact(&mut frame).await.unwrap();
            assert_eq!(&frame[..head.len()], head);
        }
    }
}
