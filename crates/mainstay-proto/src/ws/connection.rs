//! One WebSocket after its opening handshake.

use std::{fmt, time::Instant};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    CloseCode, CloseFrame, DeflateParams, Incoming, Kind, Packed, Payload, ProtocolError, Role, SendQueue,
    deflate::Deflate,
    flood::Flood,
    frame::{Header, MAX_CONTROL, Opcode, apply_mask},
    partial::{Message, Partial, advance},
    queue::Head,
};

/// A longer message is written in fragments of this size, so that a control frame never waits for more.
const FRAGMENT: usize = 16 * 1024;

/// Limits on what a peer may make this end keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest message in bytes, after decompression. Default: 1 MiB.
    pub max_message: usize,
    /// The maximum number of frames of one message, including empty ones. This end writes 16 KiB in each. Default:
    /// 1,024. Range: from 1.
    pub max_fragments: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_message: 1024 * 1024, max_fragments: 1024 }
    }
}

/// The state of the closing handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseState {
    /// No Close was sent or received.
    Open,
    /// One Close was sent or received, the other is outstanding.
    Closing,
    /// Both Closes were sent or received, or the connection was failed. Once the queue is written the server closes
    /// TCP; a client waits for that.
    Closed,
}

/// One WebSocket after its opening handshake, for either role.
///
/// ```
/// use bytes::{Buf, Bytes};
/// use mainstay_proto::ws::{Connection, Incoming, Kind, Limits, Role, SendQueue};
///
/// let mut client = Connection::new(Role::Client, Limits::default(), None, [7; 32]);
/// let mut server = Connection::new(Role::Server, Limits::default(), None, [0; 32]);
///
/// let mut queue = SendQueue::new();
/// client.send(Kind::Text, b"", &Bytes::from("hello"), &mut queue);
/// let mut wire = queue.copy_to_bytes(queue.remaining()).to_vec();
///
/// let mut input = wire.as_mut_slice();
/// while let Some(item) = server.receive(&mut input)? {
///     let Incoming::Message(payload) = item else { panic!("{item:?}") };
///     assert_eq!(payload.into_message().as_text(), Some("hello"));
/// }
/// # Ok::<(), mainstay_proto::ws::ProtocolError>(())
/// ```
pub struct Connection {
    role: Role,
    close_sent: bool,
    inbound: Inbound,
    limits: Limits,
    partial: Option<Box<Partial>>,
    /// Payload of the last Ping. Older ones need no answer (RFC 6455 section 5.5.3).
    owed_pong: Option<Box<Owed>>,
    flood: Flood,
    deflate: Option<Box<Deflate>>,
    /// A client's source of masking keys.
    masks: Option<Box<StdRng>>,
}

/// The payload of a Ping, in one thin box: the connection has a word for it.
struct Owed {
    len: u8,
    bytes: [u8; MAX_CONTROL],
}

impl Owed {
    fn new(payload: &[u8]) -> Self {
        let mut owed = Self { len: 0, bytes: [0; MAX_CONTROL] };
        for (to, from) in owed.bytes.iter_mut().zip(payload) {
            *to = *from;
            owed.len += 1;
        }
        owed
    }

    fn payload(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or_default()
    }
}

/// The receiving half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inbound {
    Open,
    /// The peer sent its Close with this code, and this end has not answered.
    CloseOwed(Option<CloseCode>),
    /// The peer sent its Close, and this end answered.
    Closed,
    /// The peer violated the protocol: nothing more is read.
    Failed,
}

impl Connection {
    /// Creates a connection that has just finished its opening handshake.
    ///
    /// `deflate` is the result of the handshake. `mask_seed` must be unpredictable and new for each connection (RFC
    /// 6455 section 5.3); only a client uses and keeps it.
    pub fn new(role: Role, limits: Limits, deflate: Option<DeflateParams>, mask_seed: [u8; 32]) -> Self {
        Self {
            role,
            close_sent: false,
            inbound: Inbound::Open,
            limits,
            partial: None,
            owed_pong: None,
            flood: Flood::default(),
            deflate: deflate.map(|params| Box::new(Deflate::new(role, params))),
            masks: (role == Role::Client).then(|| Box::new(StdRng::from_seed(mask_seed))),
        }
    }

    /// Sets the longest message from now on.
    pub fn set_max_message(&mut self, max_message: usize) {
        self.limits.max_message = max_message;
    }

    /// Returns the bytes that are kept of an incomplete message.
    #[must_use]
    pub fn assembling(&self) -> usize {
        let message = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        message.map_or(0, |message| message.bytes.capacity())
    }

    /// Returns the state of the closing handshake.
    pub fn state(&self) -> CloseState {
        match (self.close_sent, self.inbound) {
            (false, Inbound::Open) => CloseState::Open,
            (true, Inbound::Closed | Inbound::Failed) => CloseState::Closed,
            _ => CloseState::Closing,
        }
    }

    /// Whether this is a server whose closing handshake is complete: once its bytes are written it may end TCP at
    /// once. A client waits for the server to do that, and a connection that was failed may have bytes in transit.
    ///
    /// Source: RFC 6455 section 7.1.1.
    #[must_use]
    pub fn ends_in_order(&self) -> bool {
        self.role == Role::Server && self.close_sent && self.inbound == Inbound::Closed
    }

    /// Whether the peer is in the middle of a frame, where it can send no answer and no Close.
    #[must_use]
    pub fn is_mid_frame(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.frame.is_some())
    }

    /// Whether [`pass_time`](Self::pass_time) has something to do: the peer sends many frames that carry nothing.
    /// Check it before each read; an honest peer never makes it true.
    #[must_use]
    pub fn wants_time(&self) -> bool {
        self.flood.wants_time()
    }

    /// Time passed: allows control frames and empty fragments again, 10 for each second.
    pub fn pass_time(&mut self, now: Instant) {
        self.flood.pass_time(now);
    }

    /// Consumes bytes from the front of `input` until one item is complete, unmasks them in place, and moves `input`
    /// past them.
    ///
    /// `Ok(None)`: all input was consumed and more is needed. The item borrows from the input, not from the
    /// connection, so that a caller may answer while it holds the item. Messages still arrive after this end sent its
    /// Close; after the peer's Close all input is ignored.
    ///
    /// # Errors
    ///
    /// The peer violated the protocol or a limit: call [`fail`](Self::fail) and write what it queued. All further
    /// input is ignored.
    pub fn receive<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Incoming<'a>>, ProtocolError> {
        if self.inbound != Inbound::Open {
            *input = &mut [];
            return Ok(None);
        }
        let item = self.receive_item(input);
        if item.is_err() {
            self.stop_reading();
        } else {
            self.partial.take_if(|partial| partial.is_done());
        }
        item
    }

    /// Encodes one message whose payload is `head` followed by `body`. Does nothing once a Close was sent.
    ///
    /// A large `body` is shared if it need not be masked, and copied otherwise. A message above 16 KiB is fragmented.
    /// If compression was agreed on and does not make the message smaller, the message is sent uncompressed.
    pub fn send(&mut self, kind: Kind, head: &[u8], body: &Bytes, out: &mut SendQueue) {
        self.send_shared(kind, head, body, &mut Packed::new(), out);
    }

    /// Like [`send`](Self::send), for a message that other connections send, too. The connections that agreed on the
    /// same compression without context takeover share the compressed bytes. They find them by the same `shared` and
    /// a `body` that is a clone of theirs.
    pub fn send_shared(
        &mut self,
        kind: Kind,
        head: &[u8],
        body: &Bytes,
        shared: &mut Packed,
        out: &mut SendQueue,
    ) {
        if self.close_sent {
            return;
        }
        match self.deflate.as_mut().and_then(|deflate| deflate.compress(head, body, shared)) {
            Some(packed) => self.send_frames(kind, true, &[], &packed, out),
            None => self.send_frames(kind, false, head, body, out),
        }
    }

    /// Encodes a Ping, whose payload is cut to 125 bytes. Does nothing once a Close was sent.
    ///
    /// It follows what was encoded before it, so that its Pong proves that the peer read all of that.
    pub fn ping(&mut self, payload: &[u8], out: &mut SendQueue) {
        if !self.close_sent {
            self.send_control(Opcode::Ping, &[], &payload[..payload.len().min(MAX_CONTROL)], out);
        }
    }

    /// Starts the closing handshake, or answers the peer's Close with another code than its own. Does
    /// nothing if a Close was sent before.
    ///
    /// A reason of more than 123 bytes is cut, at the end of a character.
    pub fn close(&mut self, code: CloseCode, reason: &str, out: &mut SendQueue) {
        let code = Some(code).filter(|code| *code != CloseCode::NO_STATUS);
        let reason = if code.is_some() { reason } else { "" };
        self.send_close(code, cut(reason, MAX_CONTROL - 2), out);
    }

    /// Encodes the answers that the peer expects: the Pong for its last Ping, and the echo of its Close.
    ///
    /// Called once per turn, after reading, it answers a burst of Pings with one Pong.
    ///
    /// Source: RFC 6455 sections 5.5.1 to 5.5.3.
    pub fn flush_replies(&mut self, out: &mut SendQueue) {
        if let Some(payload) = self.owed_pong.take() {
            self.send_control(Opcode::Pong, &[], payload.payload(), out);
        }
        if let Inbound::CloseOwed(code) = self.inbound {
            self.send_close(code, "", out);
        }
    }

    /// Fails the connection: queues the Close for `error`, unless one was sent, and ignores all further input. TCP
    /// can be closed once that is written.
    ///
    /// Source: RFC 6455 section 7.1.7.
    pub fn fail(&mut self, error: &ProtocolError, out: &mut SendQueue) {
        self.stop_reading();
        self.close(error.close_code(), &error.to_string(), out);
    }
}

/// Receiving.
impl Connection {
    fn receive_item<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Incoming<'a>>, ProtocolError> {
        while !input.is_empty() {
            let Some(header) = self.next_header(input)? else {
                break;
            };
            let count = usize::try_from(header.len).map_or(input.len(), |len| len.min(input.len()));
            let payload = advance(input, count);
            apply_mask(payload, header.mask);
            let item = match header.opcode {
                Opcode::Text => self.receive_data(Kind::Text, header, payload)?,
                Opcode::Binary => self.receive_data(Kind::Binary, header, payload)?,
                // The kind is that of the message which this frame continues.
                Opcode::Continuation => self.receive_data(Kind::Binary, header, payload)?,
                Opcode::Close | Opcode::Ping | Opcode::Pong => self.receive_control(header, payload)?,
            };
            if item.is_some() {
                return Ok(item);
            }
        }
        Ok(None)
    }

    /// Returns the frame that is being read, or the next one, once its header is complete and acceptable.
    fn next_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Header>, ProtocolError> {
        let (sender, deflate) = (self.role.peer(), self.deflate.is_some());
        let partial = self.partial.as_deref_mut();
        if let Some(header) = partial.and_then(|partial| partial.frame.take()) {
            return Ok(Some(header));
        }
        let in_header = self.partial.as_ref().is_some_and(|partial| partial.in_header());
        if !in_header && let Some((header, used)) = Header::parse(input, sender, deflate)? {
            advance(input, used);
            self.admit(&header)?;
            return Ok(Some(header));
        }
        let header = self.partial_mut().read_header(input, sender, deflate)?;
        if let Some(header) = &header {
            self.admit(header)?;
        }
        Ok(header)
    }

    /// Checks whether a frame may follow the ones before it, before any of its payload is kept.
    fn admit(&mut self, header: &Header) -> Result<(), ProtocolError> {
        match header.opcode {
            Opcode::Close => return Ok(()),
            Opcode::Ping | Opcode::Pong => return self.flood.spend(),
            _ if header.len > 0 => self.flood.earn(),
            _ if !header.fin => self.flood.spend()?,
            _ => {}
        }
        let message = self.partial.as_deref_mut().and_then(|partial| partial.message.as_mut());
        let (so_far, compressed) = match (message, header.opcode) {
            (None, Opcode::Continuation) => return Err(ProtocolError::UnexpectedContinuation),
            (None, _) => (0, header.compressed),
            (Some(message), Opcode::Continuation) => {
                if message.fragments >= self.limits.max_fragments {
                    let limit = self.limits.max_fragments;
                    return Err(ProtocolError::TooManyFragments { limit });
                }
                message.fragments += 1;
                (message.bytes.len(), message.compressed)
            }
            (Some(_), _) => return Err(ProtocolError::UnfinishedMessage),
        };
        let limit = self.limits.max_message;
        // Data that cannot be compressed grows a little by the attempt.
        let limit_here = if compressed { limit.saturating_add(limit / 256 + 64) } else { limit };
        if header.len > limit_here.saturating_sub(so_far) as u64 {
            return Err(ProtocolError::MessageTooBig { limit });
        }
        Ok(())
    }

    fn receive_data<'a>(
        &mut self,
        kind: Kind,
        header: Header,
        payload: &'a [u8],
    ) -> Result<Option<Incoming<'a>>, ProtocolError> {
        let frame_ends = payload.len() as u64 == header.len;
        let in_message = self.partial.as_ref().is_some_and(|partial| partial.message.is_some());
        if frame_ends && header.fin && !in_message {
            let payload = match header.compressed {
                true => Payload::apart(kind, self.inflate(payload)?),
                false => Payload::in_buffer(kind, payload),
            };
            return finish_message(payload, false).map(Some);
        }
        let partial = self.partial_mut();
        let message = partial.message.get_or_insert_with(|| Message::new(kind, header.compressed));
        message.append(payload, header.len)?;
        if !frame_ends {
            partial.frame = Some(header.after(payload.len()));
            return Ok(None);
        }
        if !header.fin {
            return Ok(None);
        }
        let Some(mut message) = partial.message.take() else {
            return Ok(None);
        };
        let checked = !message.compressed && message.is_valid_text();
        let payload = match message.compressed {
            true => self.inflate(&message.bytes)?,
            false => {
                message.bytes.shrink_to_fit();
                Bytes::from(message.bytes)
            }
        };
        finish_message(Payload::apart(message.kind, payload), checked).map(Some)
    }

    fn receive_control<'a>(
        &mut self,
        header: Header,
        payload: &'a [u8],
    ) -> Result<Option<Incoming<'a>>, ProtocolError> {
        let frame_ends = payload.len() as u64 == header.len;
        let begun = self.partial.as_ref().is_some_and(|partial| !partial.control.is_empty());
        if frame_ends && !begun {
            return self.finish_control(header.opcode, Payload::in_buffer(Kind::Binary, payload)).map(Some);
        }
        let partial = self.partial_mut();
        partial.control.extend_from_slice(payload);
        if !frame_ends {
            partial.frame = Some(header.after(payload.len()));
            return Ok(None);
        }
        let payload = Bytes::from(std::mem::take(&mut partial.control));
        self.finish_control(header.opcode, Payload::apart(Kind::Binary, payload)).map(Some)
    }

    fn finish_control<'a>(
        &mut self,
        opcode: Opcode,
        payload: Payload<'a>,
    ) -> Result<Incoming<'a>, ProtocolError> {
        match opcode {
            Opcode::Ping => {
                self.owed_pong = Some(Box::new(Owed::new(&payload)));
                Ok(Incoming::Ping(payload))
            }
            Opcode::Close => {
                let close = CloseFrame::parse(&payload)?;
                self.partial = None;
                self.inbound = match self.close_sent {
                    true => Inbound::Closed,
                    false => Inbound::CloseOwed(close.as_ref().map(|close| close.code)),
                };
                Ok(Incoming::Close(close))
            }
            _ => Ok(Incoming::Pong(payload)),
        }
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<Bytes, ProtocolError> {
        match &mut self.deflate {
            Some(deflate) => deflate.inflate(packed, self.limits.max_message).map(Bytes::from),
            None => Err(ProtocolError::ReservedBit),
        }
    }

    fn partial_mut(&mut self) -> &mut Partial {
        self.partial.get_or_insert_default()
    }

    fn stop_reading(&mut self) {
        self.inbound = Inbound::Failed;
        self.partial = None;
        self.owed_pong = None;
    }
}

/// Sending.
impl Connection {
    fn send_frames(
        &mut self,
        kind: Kind,
        mut compressed: bool,
        mut head: &[u8],
        body: &Bytes,
        out: &mut SendQueue,
    ) {
        let mut opcode = match kind {
            Kind::Text => Opcode::Text,
            Kind::Binary => Opcode::Binary,
        };
        let mut sent = 0;
        loop {
            let end = body.len().min(sent + FRAGMENT.saturating_sub(head.len()));
            let fin = end == body.len();
            let mask = self.next_mask();
            out.push(Head { opcode, fin, compressed, mask }, head, body, sent..end);
            if fin {
                return;
            }
            (opcode, compressed, head, sent) = (Opcode::Continuation, false, &[], end);
        }
    }

    fn send_control(&mut self, opcode: Opcode, head: &[u8], body: &[u8], out: &mut SendQueue) {
        let mask = self.next_mask();
        out.push_copied(Head { opcode, fin: true, compressed: false, mask }, head, body);
    }

    fn send_close(&mut self, code: Option<CloseCode>, reason: &str, out: &mut SendQueue) {
        if self.close_sent {
            return;
        }
        match code {
            Some(code) => {
                let code = code.get().to_be_bytes();
                self.send_control(Opcode::Close, &code, reason.as_bytes(), out);
            }
            None => self.send_control(Opcode::Close, &[], &[], out),
        }
        self.close_sent = true;
        if let Inbound::CloseOwed(_) = self.inbound {
            self.inbound = Inbound::Closed;
        }
    }

    fn next_mask(&mut self) -> Option<[u8; 4]> {
        self.masks.as_mut().map(|masks| masks.next_u32().to_ne_bytes())
    }
}

/// `checked`: a text is known to be UTF-8.
fn finish_message(payload: Payload<'_>, checked: bool) -> Result<Incoming<'_>, ProtocolError> {
    if payload.kind() == Kind::Text && !checked && simdutf8::basic::from_utf8(&payload).is_err() {
        return Err(ProtocolError::InvalidUtf8);
    }
    Ok(Incoming::Message(payload))
}

/// Returns the start of `text`: at most `max` bytes, and whole characters.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("role", &self.role)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
