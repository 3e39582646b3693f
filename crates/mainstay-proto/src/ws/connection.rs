//! One WebSocket connection after its opening handshake.

use std::ops::Deref;

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::close::{CloseCode, CloseFrame};
use super::deflate::{Deflate, DeflateParams};
use super::error::ProtocolError;
use super::frame::{self, Header, LONGEST_HEADER, apply_mask};
use super::send_queue::SendQueue;
use super::{Kind, Role};

/// Outgoing messages are cut at this size, so that a control frame is never further away than this.
const FRAGMENT: usize = 16 * 1024;
/// Bodies from this size on are shared with the send queue instead of copied into it.
const SHARE: usize = 4 * 1024;

/// What a peer may make this end keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of one message, after inflating. Default: 64 KiB.
    pub max_message: usize,
    /// Fragments of one message, empty ones too. Default: 1,024.
    pub max_fragments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_message: 64 * 1024, max_fragments: 1024 }
    }
}

/// Something that arrived whole.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A message; text is UTF-8.
    Message {
        /// Text or binary.
        kind: Kind,
        /// Its payload.
        payload: Payload<'a>,
    },
    /// Will be answered by [`Connection::flush_replies`].
    Ping(Payload<'a>),
    /// An answer to a ping of ours, or unasked.
    Pong(Payload<'a>),
    /// The peer's Close; it is the last thing that comes.
    Close(Option<CloseFrame>),
}

/// A payload, where it lies in the input if it arrived whole.
#[derive(Debug)]
pub enum Payload<'a> {
    /// In the input.
    Borrowed(&'a [u8]),
    /// Put together from several frames or reads.
    Owned(Bytes),
}

impl Payload<'_> {
    /// The bytes to keep; copies what is borrowed.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl PartialEq for Payload<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Payload<'_> {}

/// How far the closing handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Messages flow.
    Open,
    /// Our Close was sent.
    CloseSent,
    /// The peer's Close came; ours goes out with the next [`Connection::flush_replies`].
    CloseReceived,
    /// Both were sent, or the connection failed: the server closes TCP first.
    Closed,
}

/// See the module. At rest it is a few words: everything else is boxed and freed.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    state: State,
    limits: Limits,
    /// What is incomplete: a header, a frame, a message.
    partial: Option<Box<Partial>>,
    /// The body of the last unanswered Ping, or of the Close to answer with.
    reply: Option<Box<Reply>>,
    deflate: Option<Box<Deflate>>,
    /// Masking keys must not be foreseeable (RFC 6455 section 10.3); servers mask nothing.
    masks: Option<Box<StdRng>>,
}

#[derive(Debug, Default)]
struct Partial {
    head: [u8; LONGEST_HEADER],
    head_length: usize,
    frame: Option<OpenFrame>,
    control: Vec<u8>,
    message: Option<Assembly>,
}

/// A frame whose header was read and whose payload is on its way.
#[derive(Debug, Clone, Copy)]
struct OpenFrame {
    header: Header,
    read: u64,
}

/// A message whose last frame has not come.
#[derive(Debug)]
struct Assembly {
    kind: Kind,
    compressed: bool,
    fragments: u32,
    bytes: BytesMut,
    /// How far the text is known to be UTF-8.
    checked: usize,
}

#[derive(Debug, Default)]
struct Reply {
    pong: Option<Bytes>,
    close: Option<Option<CloseCode>>,
}

impl Connection {
    /// A connection whose opening handshake is done.
    ///
    /// `mask_seed`: 32 bytes of the operating system's randomness; used by clients only.
    #[must_use]
    pub fn new(role: Role, limits: Limits, deflate: Option<DeflateParams>, mask_seed: [u8; 32]) -> Self {
        Self {
            role,
            state: State::Open,
            limits,
            partial: None,
            reply: None,
            deflate: deflate.map(|params| Box::new(Deflate::new(role, params))),
            masks: (role == Role::Client).then(|| Box::new(StdRng::from_seed(mask_seed))),
        }
    }

    /// How far the closing handshake is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the peer is in the middle of a frame, where it can send nothing else: no answer, no Close.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.frame.is_some())
    }

    // ---- reading --------------------------------------------------------------------------------

    /// Takes bytes from the front of `input`, unmasking them where they lie, until something is
    /// complete; advances `input` past them. `None`: everything was taken and more is needed.
    ///
    /// # Errors
    /// The peer broke the protocol or a limit. Call [`fail`](Self::fail); nothing more can be read.
    ///
    /// Source: RFC 6455 sections 5 and 7.
    pub fn receive<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Incoming<'a>>, ProtocolError> {
        loop {
            if matches!(self.state, State::CloseReceived | State::Closed) {
                *input = &mut [];
                return Ok(None);
            }
            if self.partial.as_ref().is_none_or(|p| p.frame.is_none() && p.head_length == 0) {
                // The common case: a whole frame lies in the input.
                let Some((header, size)) = self.parse_header(input)? else {
                    return Ok(None);
                };
                self.check_frame(&header)?;
                let rest = &mut std::mem::take(input)[size..];
                if header.length <= rest.len() as u64 {
                    let (payload, rest) = rest.split_at_mut(header.length as usize);
                    *input = rest;
                    if let Some(mask) = header.mask {
                        apply_mask(payload, mask, 0);
                    }
                    if header.opcode >= frame::CLOSE {
                        return self.control(header.opcode, Payload::Borrowed(payload)).map(Some);
                    }
                    let alone = header.fin && header.opcode != frame::CONTINUATION && !header.compressed;
                    if alone {
                        return whole_message(header.opcode, payload).map(Some);
                    }
                    self.append(&header, payload)?;
                    if header.fin {
                        return self.complete_message().map(Some);
                    }
                    continue;
                }
                *input = rest;
                self.partial_mut().frame = Some(OpenFrame { header, read: 0 });
            } else if self.partial.as_ref().is_some_and(|p| p.frame.is_none())
                && !self.complete_header(input)?
            {
                return Ok(None);
            }
            match self.continue_frame(input)? {
                Progress::NeedMore => return Ok(None),
                Progress::FrameDone => {}
                Progress::Control(opcode, bytes) => {
                    return self.control(opcode, Payload::Owned(bytes)).map(Some);
                }
                Progress::MessageDone => return self.complete_message().map(Some),
            }
        }
    }

    /// Reads a header from the input, or keeps what there is of it.
    fn parse_header(&mut self, input: &mut &mut [u8]) -> Result<Option<(Header, usize)>, ProtocolError> {
        let parsed = Header::parse(input, self.role, self.deflate.is_some())?;
        if parsed.is_none() {
            if !input.is_empty() {
                let partial = self.partial_mut();
                partial.head_length = input.len();
                partial.head[..input.len()].copy_from_slice(input);
            }
            *input = &mut [];
        }
        Ok(parsed)
    }

    /// Completes a header that began in an earlier read. A few bytes at most, so one at a time.
    fn complete_header(&mut self, input: &mut &mut [u8]) -> Result<bool, ProtocolError> {
        let (role, may_compress) = (self.role, self.deflate.is_some());
        while !input.is_empty() {
            let (first, rest) = std::mem::take(input).split_at_mut(1);
            *input = rest;
            let partial = self.partial_mut();
            if let (Some(slot), Some(byte)) = (partial.head.get_mut(partial.head_length), first.first()) {
                *slot = *byte;
                partial.head_length += 1;
            }
            let parsed = Header::parse(&partial.head[..partial.head_length], role, may_compress)?;
            if let Some((header, _)) = parsed {
                partial.head_length = 0;
                partial.frame = Some(OpenFrame { header, read: 0 });
                self.check_frame(&header)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Everything that can be refused before a byte of the payload is there.
    fn check_frame(&self, header: &Header) -> Result<(), ProtocolError> {
        if header.opcode >= frame::CLOSE {
            return Ok(());
        }
        let open = self.partial.as_ref().and_then(|p| p.message.as_ref());
        if (header.opcode == frame::CONTINUATION) != open.is_some() {
            return Err(ProtocolError::Fragment);
        }
        let (held, fragments, compressed) =
            open.map_or((0, 0, header.compressed), |m| (m.bytes.len(), m.fragments, m.compressed));
        if fragments >= self.limits.max_fragments {
            return Err(ProtocolError::TooManyFragments { limit: self.limits.max_fragments });
        }
        // What deflate cannot make smaller it makes a little larger.
        let limit = self.limits.max_message;
        let allowed = if compressed { limit.saturating_add(limit / 64 + 64) } else { limit };
        if header.length > allowed.saturating_sub(held) as u64 {
            return Err(ProtocolError::MessageTooBig { limit });
        }
        Ok(())
    }

    /// Takes what the input has of the open frame's payload.
    fn continue_frame(&mut self, input: &mut &mut [u8]) -> Result<Progress, ProtocolError> {
        let Some(OpenFrame { header, read }) = self.partial.as_ref().and_then(|p| p.frame) else {
            return Ok(Progress::FrameDone);
        };
        let missing = usize::try_from(header.length - read).unwrap_or(usize::MAX);
        let count = missing.min(input.len());
        let (payload, rest) = std::mem::take(input).split_at_mut(count);
        *input = rest;
        if let Some(mask) = header.mask {
            apply_mask(payload, mask, read);
        }
        if header.opcode >= frame::CLOSE {
            self.partial_mut().control.extend_from_slice(payload);
        } else {
            // Only the first piece of a frame counts as a fragment.
            let header = if read == 0 { header } else { Header { opcode: frame::CONTINUATION, ..header } };
            self.append_piece(&header, payload, read == 0)?;
        }
        let partial = self.partial_mut();
        if count < missing {
            partial.frame = Some(OpenFrame { header, read: read + count as u64 });
            return Ok(Progress::NeedMore);
        }
        partial.frame = None;
        if header.opcode >= frame::CLOSE {
            let body = Bytes::from(std::mem::take(&mut partial.control));
            self.free_partial();
            return Ok(Progress::Control(header.opcode, body));
        }
        Ok(if header.fin { Progress::MessageDone } else { Progress::FrameDone })
    }

    fn append(&mut self, header: &Header, payload: &[u8]) -> Result<(), ProtocolError> {
        self.append_piece(header, payload, true)
    }

    /// Adds to the message under way, or begins it.
    fn append_piece(&mut self, header: &Header, payload: &[u8], first: bool) -> Result<(), ProtocolError> {
        let message = self.partial_mut().message.get_or_insert_with(|| Assembly {
            kind: if header.opcode == frame::TEXT { Kind::Text } else { Kind::Binary },
            compressed: header.compressed,
            fragments: 0,
            bytes: BytesMut::new(),
            checked: 0,
        });
        message.fragments += u32::from(first);
        message.bytes.extend_from_slice(payload);
        if message.kind == Kind::Text && !message.compressed {
            message.check_text()?;
        }
        Ok(())
    }

    fn complete_message(&mut self) -> Result<Incoming<'static>, ProtocolError> {
        let message = self.partial_mut().message.take();
        self.free_partial();
        let Some(Assembly { kind, compressed, mut bytes, checked, .. }) = message else {
            return Err(ProtocolError::Fragment);
        };
        if compressed {
            let deflate = self.deflate.as_mut().ok_or(ProtocolError::ReservedBit)?;
            bytes = deflate.inflate(&bytes, self.limits.max_message)?;
            if kind == Kind::Text && simdutf8::basic::from_utf8(&bytes).is_err() {
                return Err(ProtocolError::Utf8);
            }
        } else if kind == Kind::Text && checked < bytes.len() {
            return Err(ProtocolError::Utf8);
        }
        Ok(Incoming::Message { kind, payload: Payload::Owned(bytes.freeze()) })
    }

    fn control<'a>(&mut self, opcode: u8, body: Payload<'a>) -> Result<Incoming<'a>, ProtocolError> {
        match opcode {
            frame::PING => {
                let pong = Some(Bytes::copy_from_slice(&body));
                self.reply.get_or_insert_default().pong = pong;
                Ok(Incoming::Ping(body))
            }
            frame::PONG => Ok(Incoming::Pong(body)),
            _ => {
                let close = parse_close(&body)?;
                if self.state == State::CloseSent {
                    self.state = State::Closed;
                } else {
                    self.state = State::CloseReceived;
                    self.reply.get_or_insert_default().close = Some(close.as_ref().map(|close| close.code));
                }
                self.partial = None;
                Ok(Incoming::Close(close))
            }
        }
    }

    fn partial_mut(&mut self) -> &mut Partial {
        self.partial.get_or_insert_default()
    }

    fn free_partial(&mut self) {
        let at_rest = |p: &Partial| p.head_length == 0 && p.frame.is_none() && p.message.is_none();
        if self.partial.as_deref().is_some_and(at_rest) {
            self.partial = None;
        }
    }

    // ---- writing --------------------------------------------------------------------------------

    /// Encodes one message, whose payload is `head` followed by `body`. Nothing is encoded once a
    /// Close was sent or received.
    pub fn send(&mut self, kind: Kind, head: &[u8], body: &Bytes, out: &mut SendQueue) {
        if self.state != State::Open {
            return;
        }
        let opcode = if kind == Kind::Text { frame::TEXT } else { frame::BINARY };
        match self.deflate.as_mut().and_then(|deflate| deflate.deflate(head, body)) {
            Some(compressed) => self.send_fragments(opcode, true, &[], &compressed, out),
            None => self.send_fragments(opcode, false, head, body, out),
        }
    }

    fn send_fragments(
        &mut self,
        opcode: u8,
        compressed: bool,
        head: &[u8],
        body: &Bytes,
        out: &mut SendQueue,
    ) {
        let mut at = 0;
        loop {
            let first = at == 0;
            let head = if first { head } else { &[] };
            let count = (body.len() - at).min(FRAGMENT - head.len().min(FRAGMENT));
            let fin = at + count == body.len();
            let header = Header {
                fin,
                compressed: compressed && first,
                opcode: if first { opcode } else { frame::CONTINUATION },
                length: (head.len() + count) as u64,
                mask: self.next_mask(),
            };
            encode_frame(&header, head, body, at..at + count, out);
            at += count;
            if fin {
                return;
            }
        }
    }

    /// Encodes a Ping; at most 125 bytes of `payload` are sent.
    pub fn ping(&mut self, payload: &[u8], out: &mut SendQueue) {
        if self.state == State::Open {
            self.send_control(frame::PING, payload, out);
        }
    }

    /// Starts the closing handshake; only the peer's Close is awaited from here on.
    pub fn close(&mut self, code: CloseCode, reason: &str, out: &mut SendQueue) {
        match self.state {
            State::Open => self.state = State::CloseSent,
            State::CloseReceived => self.state = State::Closed,
            State::CloseSent | State::Closed => return,
        }
        self.reply = None;
        let mut body = u16::from(code).to_be_bytes().to_vec();
        body.extend_from_slice(&reason.as_bytes()[..reason.floor_char_boundary(123)]);
        self.send_control(frame::CLOSE, &body, out);
    }

    /// Fails the connection: queues the Close frame that the error asks for. Nothing is read any more.
    ///
    /// Source: RFC 6455 section 7.1.7.
    pub fn fail(&mut self, error: &ProtocolError, out: &mut SendQueue) {
        self.close(error.close_code(), &error.to_string(), out);
        self.state = State::Closed;
        self.partial = None;
    }

    /// Encodes the answers owed to the peer: a Pong for its last Ping, and the Close for its Close.
    /// Call it once per turn, after reading.
    pub fn flush_replies(&mut self, out: &mut SendQueue) {
        let Some(reply) = self.reply.take() else { return };
        if let (Some(body), State::Open | State::CloseReceived) = (&reply.pong, self.state) {
            self.send_control(frame::PONG, body, out);
        }
        if let (Some(code), State::CloseReceived) = (reply.close, self.state) {
            let body = code.map(|code| u16::from(code).to_be_bytes());
            self.send_control(frame::CLOSE, body.as_ref().map_or(&[], |body| body.as_slice()), out);
            self.state = State::Closed;
        }
    }

    fn send_control(&mut self, opcode: u8, body: &[u8], out: &mut SendQueue) {
        let body = &body[..body.len().min(125)];
        let header = Header {
            fin: true,
            compressed: false,
            opcode,
            length: body.len() as u64,
            mask: self.next_mask(),
        };
        encode_frame(&header, body, &Bytes::new(), 0..0, out);
    }

    fn next_mask(&mut self) -> Option<[u8; 4]> {
        self.masks.as_mut().map(|rng| rng.next_u32().to_ne_bytes())
    }
}

enum Progress {
    NeedMore,
    FrameDone,
    Control(u8, Bytes),
    MessageDone,
}

impl Assembly {
    /// Checks what was added; a character that is cut off is looked at again when more is there.
    fn check_text(&mut self) -> Result<(), ProtocolError> {
        let unchecked = self.bytes.get(self.checked..).unwrap_or_default();
        match simdutf8::compat::from_utf8(unchecked) {
            Ok(_) => self.checked = self.bytes.len(),
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(ProtocolError::Utf8),
        }
        // A character cut off so that no continuation could save it is told at once.
        match self.bytes.get(self.checked..) {
            Some(&[first, second, ..]) if !may_follow(first, second) => Err(ProtocolError::Utf8),
            _ => Ok(()),
        }
    }
}

/// Whether `second` may follow `first` in UTF-8 (Unicode table 3-7). The standard library calls some
/// such pairs merely incomplete.
const fn may_follow(first: u8, second: u8) -> bool {
    match first {
        0xe0 => second >= 0xa0 && second <= 0xbf,
        0xed => second >= 0x80 && second <= 0x9f,
        0xf0 => second >= 0x90 && second <= 0xbf,
        0xf4 => second >= 0x80 && second <= 0x8f,
        _ => second >= 0x80 && second <= 0xbf,
    }
}

fn whole_message(opcode: u8, payload: &[u8]) -> Result<Incoming<'_>, ProtocolError> {
    let kind = if opcode == frame::TEXT { Kind::Text } else { Kind::Binary };
    if kind == Kind::Text && simdutf8::basic::from_utf8(payload).is_err() {
        return Err(ProtocolError::Utf8);
    }
    Ok(Incoming::Message { kind, payload: Payload::Borrowed(payload) })
}

fn parse_close(body: &[u8]) -> Result<Option<CloseFrame>, ProtocolError> {
    match body {
        [] => Ok(None),
        [_] => Err(ProtocolError::CloseBody),
        &[a, b, ref reason @ ..] => {
            let code = CloseCode::new(u16::from_be_bytes([a, b])).ok_or(ProtocolError::CloseBody)?;
            let reason = simdutf8::basic::from_utf8(reason).map_err(|_| ProtocolError::Utf8)?;
            Ok(Some(CloseFrame { code, reason: reason.to_owned() }))
        }
    }
}

fn encode_frame(
    header: &Header,
    head: &[u8],
    body: &Bytes,
    range: std::ops::Range<usize>,
    out: &mut SendQueue,
) {
    let share = header.mask.is_none() && range.len() >= SHARE;
    out.append(|out| {
        header.encode(out);
        let start = out.len();
        out.extend_from_slice(head);
        if !share {
            out.extend_from_slice(&body[range.clone()]);
        }
        if let Some(mask) = header.mask {
            apply_mask(&mut out[start..], mask, 0);
        }
    });
    if share {
        out.share(body.slice(range));
    }
}
