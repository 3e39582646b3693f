//! Connections as the network has them: two lanes each, between a socket that takes bytes and one that has them.
//!
//! What a process writes waits in its memory (`unsent`) until its socket takes it, perhaps in pieces. From there
//! it flies; each piece that arrives is life, the last one brings the packet. A socket takes no more than `socket`
//! bytes that the other end has not read: so a reader that stops, a lane that stands still and a black hole all
//! fill it, and the writer notices.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::session::message::Hello;
use mainstay_proto::session::{ConnectionId, Control, Frame, Transmit};
use mainstay_proto::ws::Kind;

use crate::judge::Ear;
use crate::letter::{self, show};

/// A connection of one life of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) client: usize,
    pub(super) life: u64,
    pub(super) connection: ConnectionId,
}

/// One connection, seen by the network.
pub(super) struct Wire {
    pub(super) server_id: ConnectionId,
    pub(super) up: Lane,
    pub(super) down: Lane,
    pub(super) client_open: bool,
    pub(super) client: Ear,
    /// The client dialled it and waits for WELCOME until then.
    pub(super) opening: Option<Instant>,
    /// The client wrote HELLO on it and has no answer yet.
    pub(super) asks: bool,
    pub(super) server: ServerEnd,
    pub(super) server_ear: Ear,
}

/// What a connection is to the server.
pub(super) enum ServerEnd {
    /// HELLO is awaited until then.
    Opening(Instant),
    /// The credentials in HELLO are being judged: the verdict comes at the first moment, and must at the second.
    Judging {
        hello: Box<Hello>,
        at: Instant,
        until: Instant,
    },
    Bound(usize),
    /// Another connection has the session. What still comes is given to the machine, which must not care.
    Fenced(usize),
    Closed,
}

#[derive(Default)]
pub(super) struct Lane {
    /// Written, and not yet taken by the socket. Of the first it took so many bytes.
    pub(super) unsent: VecDeque<Packet>,
    taken: usize,
    /// The socket took something since the writer was told.
    progress: bool,
    /// The last RFC Ping that is to be answered behind what is unsent.
    pub(super) pong: Option<u64>,
    flying: VecDeque<Flying>,
    flying_bytes: usize,
    /// Nothing that is written arrives; the socket is full after so many bytes.
    pub(super) hole: Option<usize>,
    pub(super) stalled_until: Option<Instant>,
    pub(super) jammed_until: Option<Instant>,
    /// The socket takes a few bytes at a time.
    pub(super) trickles_until: Option<Instant>,
    /// When the network last did not carry as it should.
    trouble: Option<Instant>,
}

/// What a turn of writing came to.
pub(super) enum Written {
    All,
    Some,
    None,
}

struct Flying {
    at: Instant,
    bytes: usize,
    packet: Option<Packet>,
}

/// At a time, while it trickles.
const TRICKLE: usize = 60;

impl Lane {
    /// What its socket would take now.
    fn room(&self, now: Instant, socket: usize) -> usize {
        if self.jammed_until.is_some_and(|until| until > now) {
            return 0;
        }
        let trickles = self.trickles_until.is_some_and(|until| until > now);
        let most = if trickles { TRICKLE } else { socket };
        most.saturating_sub(self.flying_bytes + self.hole.unwrap_or(0))
    }

    /// The socket takes what it can of what waits; it arrives at `at`. Returns what left as a whole.
    pub(super) fn drain(&mut self, now: Instant, at: Instant, socket: usize) -> (bool, Vec<Packet>) {
        let (mut progress, mut left) = (false, Vec::new());
        while let Some(first) = self.unsent.front() {
            let missing = first.len() - self.taken;
            let bytes = missing.min(self.room(now, socket));
            if bytes == 0 {
                break;
            }
            (progress, self.progress) = (true, true);
            self.taken += bytes;
            let whole = if bytes == missing { self.unsent.pop_front() } else { None };
            if let Some(packet) = &whole {
                self.taken = 0;
                left.push(packet.clone());
            }
            self.fly(at, bytes, whole);
        }
        if !self.unsent.is_empty() && self.is_disturbed(now) {
            self.trouble(now);
        }
        (progress, left)
    }

    fn is_disturbed(&self, now: Instant) -> bool {
        [self.jammed_until, self.trickles_until].into_iter().flatten().any(|until| until >= now)
    }

    /// What a writer learns at the end of its turn.
    pub(super) fn outcome(&mut self) -> Written {
        match (self.unsent.is_empty(), std::mem::take(&mut self.progress)) {
            (true, _) => Written::All,
            (false, true) => Written::Some,
            (false, false) => Written::None,
        }
    }

    /// Puts something behind everything that flies already.
    pub(super) fn fly(&mut self, at: Instant, bytes: usize, packet: Option<Packet>) {
        if let Some(swallowed) = &mut self.hole {
            *swallowed += bytes;
            return;
        }
        let behind = self.flying.back().map(|flying| flying.at);
        let at = [behind, self.stalled_until].into_iter().flatten().fold(at, Instant::max);
        self.flying_bytes += bytes;
        self.flying.push_back(Flying { at, bytes, packet });
    }

    pub(super) fn next_arrival(&self) -> Option<Instant> {
        self.flying.front().map(|flying| flying.at)
    }

    /// When the socket may take more though nothing arrives.
    pub(super) fn next_room(&self, now: Instant) -> Option<Instant> {
        let until = [self.jammed_until, self.trickles_until];
        until.into_iter().flatten().filter(|at| *at > now && !self.unsent.is_empty()).min()
    }

    /// What has arrived: `Some(None)` is bytes of a packet that is not complete.
    pub(super) fn arrive(&mut self, now: Instant) -> Option<Option<Packet>> {
        self.flying.front().filter(|flying| flying.at <= now)?;
        let Flying { bytes, packet, .. } = self.flying.pop_front()?;
        self.flying_bytes -= bytes;
        Some(packet)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.flying.is_empty()
    }

    /// What is under way is lost.
    pub(super) fn drop_flying(&mut self) {
        self.flying.clear();
        self.flying_bytes = 0;
    }

    /// Nothing arrives any more.
    pub(super) fn swallow(&mut self) {
        let swallowed = self.flying_bytes;
        self.drop_flying();
        self.hole.get_or_insert(swallowed);
    }

    /// Nothing arrives before `until`, whatever is under way.
    pub(super) fn hold(&mut self, until: Instant) {
        self.stalled_until = Some(self.stalled_until.map_or(until, |at| at.max(until)));
        self.flying.iter_mut().for_each(|flying| flying.at = flying.at.max(until));
    }

    pub(super) fn trouble(&mut self, until: Instant) {
        self.trouble = Some(self.trouble.map_or(until, |at| at.max(until)));
    }

    /// Whether it has not carried as it should at some time since.
    pub(super) fn had_trouble(&self, since: Instant) -> bool {
        self.hole.is_some() || self.trouble.is_some_and(|at| at >= since)
    }
}

impl Wire {
    pub(super) fn new(now: Instant, server_id: ConnectionId, connect: Duration, opening: Duration) -> Self {
        Self {
            server_id,
            up: Lane::default(),
            down: Lane::default(),
            client_open: true,
            client: Ear::new(now),
            opening: Some(now + connect),
            asks: false,
            server: ServerEnd::Opening(now + opening),
            server_ear: Ear::new(now),
        }
    }

    pub(super) fn lane(&mut self, up: bool) -> &mut Lane {
        if up { &mut self.up } else { &mut self.down }
    }

    /// The ear at the end that writes this lane.
    pub(super) fn writer(&mut self, up: bool) -> &mut Ear {
        if up { &mut self.client } else { &mut self.server_ear }
    }

    pub(super) fn is_closed(&self) -> bool {
        let server = matches!(self.server, ServerEnd::Closed | ServerEnd::Fenced(_));
        !self.client_open && server && self.up.is_empty() && self.down.is_empty()
    }
}

#[derive(Clone, Hash)]
pub(super) enum Packet {
    Opened,
    Message(Kind, Bytes),
    Ping(u64),
    Pong(u64),
    Close(u16, String),
    Reset,
}

impl Packet {
    /// `None`: nothing that travels as such.
    pub(super) fn of(transmit: &Transmit) -> Option<Self> {
        if let Some((kind, head, body)) = transmit.as_message() {
            return Some(Self::Message(kind, [head, body.as_ref()].concat().into()));
        }
        match transmit {
            Transmit::Ping(nonce) => Some(Self::Ping(*nonce)),
            Transmit::Close { code, reason } => Some(Self::Close(u16::from(*code), reason.clone())),
            Transmit::Abort => Some(Self::Reset),
            Transmit::Message(_) | Transmit::Control(_) => None,
        }
    }

    /// On the wire, headers left out; never 0, so that everything needs room.
    fn len(&self) -> usize {
        match self {
            Self::Message(_, payload) => payload.len().max(1),
            Self::Ping(_) | Self::Pong(_) => 8,
            Self::Close(_, reason) => 2 + reason.len(),
            Self::Opened | Self::Reset => 1,
        }
    }

    /// The control message in it, if it is one of these types.
    pub(super) fn control(&self, types: &[u8]) -> Option<Control> {
        let Self::Message(Kind::Binary, payload) = self else { return None };
        payload.first().filter(|kind| types.contains(kind))?;
        match letter::frame(Kind::Binary, payload.clone()) {
            Ok(Frame::Control(control)) => Some(control),
            _ => None,
        }
    }
}

impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Opened => write!(f, "opened"),
            Self::Message(kind, payload) => write!(f, "{}", show(*kind, payload)),
            Self::Ping(nonce) => write!(f, "Ping {nonce}"),
            Self::Pong(nonce) => write!(f, "Pong {nonce}"),
            Self::Close(code, reason) => write!(f, "Close {code} {reason:?}"),
            Self::Reset => write!(f, "reset"),
        }
    }
}
