//! What the bytes of a connection are: requests and answers of HTTP/1.1, and after the answer 101 the frames of RFC 6455.
//!
//! Each direction is read as it passes, in any cuts. Nothing is kept of it but the head that is being read and the header of one frame.
//! What is neither (TLS, HTTP/2, a head beyond the bound) is opaque from then on, in both directions.

use std::collections::VecDeque;

use crate::fault::Side;
use crate::http::{Body, Head, Parsed, Request, take};

/// Requests that may wait for their answers; a connection with more is unreadable.
const MOST_REQUESTS: usize = 64;

/// A run of bytes that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// At least 1.
    pub(crate) length: usize,
    pub(crate) part: Part,
}

/// What a run of bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A part of a head of HTTP.
    Head {
        /// Its first byte is in this piece.
        begins: bool,
        /// Its last byte is in this piece.
        ends: bool,
        /// The status, in the last piece of an answer.
        status: Option<u16>,
    },
    /// A part of a body of HTTP.
    Body,
    /// A part of a frame.
    Frame(Frame),
    /// Not readable.
    Opaque,
}

/// A part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) opcode: u8,
    /// The first byte of the frame is in this piece.
    pub(crate) begins: bool,
    /// The last byte of the frame is in this piece.
    pub(crate) ends: bool,
    /// The length of the payload, in pieces of the payload and in the last piece of the header.
    pub(crate) payload: Option<u64>,
    /// How much of the payload came before this piece; `None`: a piece of the header.
    pub(crate) offset: Option<u64>,
}

pub(crate) mod opcode {
    pub(crate) const CLOSE: u8 = 8;
    pub(crate) const PING: u8 = 9;
    pub(crate) const PONG: u8 = 10;
    /// Continuation, text and binary.
    pub(crate) const LAST_OF_DATA: u8 = 2;
}

/// Both directions of a connection.
#[derive(Debug)]
pub(crate) struct Dialogue {
    readers: [Reader; 2],
    /// Those that wait for their answer.
    requests: VecDeque<Request>,
    is_websocket: bool,
}

#[derive(Debug)]
enum Reader {
    Head(Head),
    Body(Body),
    Frames(Header),
    Opaque,
}

/// The frame that is being read.
#[derive(Debug, Default)]
struct Header {
    bytes: [u8; 14],
    have: usize,
    length: u64,
    left: u64,
    /// Frames were read before it.
    is_later: bool,
}

impl Dialogue {
    pub(crate) fn new() -> Self {
        let readers = [Reader::Head(Head::default()), Reader::Head(Head::default())];
        Self { readers, requests: VecDeque::new(), is_websocket: false }
    }

    pub(crate) fn is_websocket(&self) -> bool {
        self.is_websocket
    }

    pub(crate) fn is_opaque(&self) -> bool {
        matches!(self.readers[0], Reader::Opaque)
    }

    /// How many requests wait for their answer.
    pub(crate) fn waiting(&self) -> usize {
        self.requests.len()
    }

    /// Whether the answer to a request has no body: the request after `earlier` others that wait.
    pub(crate) fn asks_for_head(&self, earlier: usize) -> bool {
        self.requests.get(earlier).is_some_and(|request| request.is_head)
    }

    /// Whether the last byte that `side` wrote was the last of a head, a body or a frame; opaque bytes have no such end.
    pub(crate) fn is_between(&self, side: Side) -> bool {
        match &self.readers[side as usize] {
            Reader::Head(head) => head.is_empty(),
            Reader::Frames(header) => header.have == 0,
            Reader::Body(_) => false,
            Reader::Opaque => true,
        }
    }

    /// Reads the next bytes that `side` wrote, at least one: the piece that they begin with.
    pub(crate) fn read(&mut self, side: Side, bytes: &[u8]) -> Piece {
        let whole = |part| Piece { length: bytes.len(), part };
        match &mut self.readers[side as usize] {
            Reader::Opaque => whole(Part::Opaque),
            Reader::Frames(header) => header.read(bytes),
            Reader::Body(body) => {
                let Some(length) = body.read(bytes) else { return self.give_up(bytes) };
                if body.is_over() {
                    self.next_head(side);
                }
                Piece { length, part: Part::Body }
            }
            Reader::Head(head) if head.is_empty() && matches!(bytes.first(), Some(b'\r' | b'\n')) => {
                Piece { length: 1, part: Part::Body } // empty lines before a head, as some clients send them
            }
            Reader::Head(_) => self.read_head(side, bytes),
        }
    }

    fn read_head(&mut self, side: Side, bytes: &[u8]) -> Piece {
        let Reader::Head(head) = &mut self.readers[side as usize] else { return self.give_up(bytes) };
        let begins = head.is_empty();
        let (length, status) = match side {
            Side::Client => match head.read_request(bytes) {
                Parsed::Partial => (None, None),
                Parsed::Complete(length, (request, body)) if self.requested(request, body) => {
                    (Some(length), None)
                }
                _ => return self.give_up(bytes),
            },
            Side::Upstream => match head.read_response(bytes, self.requests.front().copied()) {
                Parsed::Partial => (None, None),
                Parsed::Complete(length, (status, body)) if self.answered(status, body) => {
                    (Some(length), Some(status))
                }
                _ => return self.give_up(bytes),
            },
        };
        let part = Part::Head { begins, ends: length.is_some(), status };
        Piece { length: length.unwrap_or(bytes.len()), part }
    }

    /// Returns whether the connection stays readable.
    fn requested(&mut self, request: Request, body: Body) -> bool {
        if self.requests.len() == MOST_REQUESTS {
            return false;
        }
        self.requests.push_back(request);
        // Frames that come before the answer are read as such: after a request to upgrade, no client sends another request.
        self.readers[Side::Client as usize] = match body {
            _ if request.is_upgrade => Reader::Frames(Header::default()),
            body if body.is_over() => Reader::Head(Head::default()),
            body => Reader::Body(body),
        };
        true
    }

    /// Returns whether the connection stays readable.
    fn answered(&mut self, status: u16, body: Body) -> bool {
        let is_interim = (100..200).contains(&status) && status != 101;
        if is_interim {
            return true;
        }
        let request = self.requests.pop_front();
        let is_upgrade = request.is_some_and(|request| request.is_upgrade);
        match status {
            101 if is_upgrade => {
                self.is_websocket = true;
                self.readers[Side::Upstream as usize] = Reader::Frames(Header::default());
                true
            }
            101 => false,
            _ => {
                if !body.is_over() {
                    self.readers[Side::Upstream as usize] = Reader::Body(body);
                }
                !is_upgrade || self.take_back_upgrade()
            }
        }
    }

    /// The upgrade was refused: the client's next bytes are a request. Returns whether none came that were read as frames.
    fn take_back_upgrade(&mut self) -> bool {
        let reader = &mut self.readers[Side::Client as usize];
        let is_clean = matches!(reader, Reader::Frames(header) if header.have == 0 && !header.is_later);
        if is_clean {
            *reader = Reader::Head(Head::default());
        }
        is_clean
    }

    fn next_head(&mut self, side: Side) {
        self.readers[side as usize] = Reader::Head(Head::default());
    }

    fn give_up(&mut self, bytes: &[u8]) -> Piece {
        self.readers = [Reader::Opaque, Reader::Opaque];
        self.requests = VecDeque::new();
        self.is_websocket = false;
        Piece { length: bytes.len(), part: Part::Opaque }
    }
}

impl Header {
    fn read(&mut self, bytes: &[u8]) -> Piece {
        let begins = self.have == 0;
        let is_payload = !begins && self.have == self.needed();
        let (length, offset) = if is_payload {
            let offset = self.length - self.left;
            (take(&mut self.left, bytes), Some(offset))
        } else {
            (self.read_header(bytes), None)
        };
        let is_whole = self.have == self.needed();
        let ends = is_whole && self.left == 0;
        let payload = is_whole.then_some(self.length);
        let frame = Frame { opcode: self.bytes[0] & 0x0f, begins, ends, payload, offset };
        if ends {
            *self = Self { is_later: true, ..Self::default() };
        }
        Piece { length, part: Part::Frame(frame) }
    }

    fn read_header(&mut self, bytes: &[u8]) -> usize {
        let mut read = 0;
        // The first two bytes say how many follow.
        while read < bytes.len() && self.have < self.needed() {
            let more = (self.needed() - self.have).min(bytes.len() - read);
            self.bytes[self.have..self.have + more].copy_from_slice(&bytes[read..read + more]);
            self.have += more;
            read += more;
        }
        if self.have == self.needed() {
            self.length = match self.bytes[1] & 0x7f {
                126 => u64::from(u16::from_be_bytes([self.bytes[2], self.bytes[3]])),
                127 => self.bytes[2..10].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
                short => u64::from(short),
            };
            self.left = self.length;
        }
        read
    }

    /// Returns the length of the header, as far as it is known.
    fn needed(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let extended = match self.bytes[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.bytes[1] & 0x80 == 0 { 0 } else { 4 };
        2 + extended + mask
    }
}
