//! Connections as the network sees them: two lanes each, between a socket that accepts bytes and one that provides
//! them.
//!
//! What a process writes waits in its memory (`unsent`) until its socket accepts it, perhaps in pieces. From there it
//! is in transit. Each piece that arrives is a sign of life, and the last one completes the packet. A socket accepts
//! no more than `socket` bytes that the other end has not read: so a reader that stops, a lane that stands still and
//! a black hole all fill it, and the writer notices.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_proto::cluster::peer::Head;
use mainstay_proto::cluster::{Lookup, PeerKey};
use mainstay_proto::session::message::Hello;
use mainstay_proto::session::{ConnectionId, Control, Frame, NodeId, Transmit};
use mainstay_proto::ws::Kind;

use crate::judge::Observed;
use crate::payload::{self, show};

/// A connection of one life of one client, or its continuation from the entry node to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) client: usize,
    pub(super) life: u64,
    pub(super) connection: ConnectionId,
    /// 0: from the client to its entry node. Above: the entry node's connections to other nodes, in order.
    pub(super) leg: u64,
}

impl Key {
    /// Copies of clients are numbered from here.
    pub(super) const COPIES: usize = 1_000_000;

    /// Whether a copy of a client opened the connection.
    pub(super) fn is_of_copy(self) -> bool {
        self.client > Self::COPIES && !self.is_of_leave()
    }

    /// The connections by which nodes tell each other that they leave are numbered from here.
    pub(super) const LEAVES: usize = 2_000_000;

    /// Whether a node opened the connection to tell another one that it leaves.
    pub(super) fn is_of_leave(self) -> bool {
        self.client >= Self::LEAVES
    }

    /// Whether this is the client's own connection.
    pub(super) fn is_outer(self) -> bool {
        self.leg == 0
    }
}

/// One connection, seen by the network.
pub(super) struct Wire {
    pub(super) server_id: ConnectionId,
    /// The node at the server's end.
    pub(super) node: usize,
    /// The node at the client's end, where a node opened the connection.
    pub(super) entry: Option<usize>,
    pub(super) up: Lane,
    pub(super) down: Lane,
    pub(super) client_open: bool,
    pub(super) client: Observed,
    /// The client opened it and waits for WELCOME until then.
    pub(super) opening: Option<Instant>,
    /// The client wrote HELLO on it and has no answer.
    pub(super) asks: bool,
    pub(super) server: ServerEnd,
    pub(super) server_observed: Observed,
    /// When the node at the client's end notices that the other one vanished.
    pub(super) gone_at: Option<Instant>,
}

/// The state of a connection on the server.
pub(super) enum ServerEnd {
    /// The server waits for HELLO until then.
    Opening(Instant),
    /// The credentials in HELLO are being judged: the verdict comes at the first time, and must come by the second.
    Judging {
        hello: Box<Hello>,
        at: Instant,
        until: Instant,
    },
    Bound(usize),
    /// Another connection has the session. What still arrives is given to the machine, which must ignore it.
    Fenced(usize),
    /// The way of the HELLO to its session is looked for.
    Routing(Box<Routing>),
    /// The node relays the client over this leg.
    Relay(Key),
    /// A peer listener waits for the head and the HELLO behind it until then.
    Peer(Instant, Option<Box<Head>>),
    /// A peer listener that answers once the session is released, or at this time.
    Moving([u8; 8], Instant),
    /// A peer listener that accepted the connection, and sends nothing.
    Mute,
    Closed,
}

/// A HELLO on its way.
pub(super) struct Routing {
    pub(super) hello: Box<Hello>,
    pub(super) principal: Vec<u8>,
    pub(super) lookup: Lookup,
    /// The node's registry has the token's name.
    pub(super) known: bool,
    /// The opening must be over by then.
    pub(super) until: Instant,
    pub(super) ask: Option<Ask>,
}

/// A node is asked.
pub(super) struct Ask {
    pub(super) node: NodeId,
    pub(super) slot: u16,
    pub(super) key: PeerKey,
    /// When to connect, and then when to give up.
    pub(super) at: Instant,
    pub(super) leg: Option<Key>,
}

/// Bytes that are written, and the packet that is complete with the last of them. A relay forwards pieces of packets.
struct Piece {
    bytes: usize,
    packet: Option<Packet>,
}

#[derive(Default)]
pub(super) struct Lane {
    /// What is written, and not yet accepted by the socket, and how many bytes of the first it accepted.
    unsent: VecDeque<Piece>,
    taken: usize,
    /// The socket accepted bytes since the writer was last notified.
    progress: bool,
    /// The last RFC Ping that must be answered behind the unsent packets.
    pub(super) pong: Option<u64>,
    flying: VecDeque<Flying>,
    flying_bytes: usize,
    /// Nothing that is written arrives; the socket is full after this many bytes.
    pub(super) hole: Option<usize>,
    pub(super) stalled_until: Option<Instant>,
    pub(super) jammed_until: Option<Instant>,
    /// The socket accepts a few bytes at a time.
    pub(super) trickles_until: Option<Instant>,
    /// When the network last did not carry bytes as it should.
    trouble: Option<Instant>,
}

/// The outcome of a turn of writing.
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

/// How many bytes at a time, while it trickles.
const TRICKLE: usize = 60;

impl Lane {
    /// Returns how many bytes its socket would accept now.
    fn room(&self, now: Instant, socket: usize) -> usize {
        if self.jammed_until.is_some_and(|until| until > now) {
            return 0;
        }
        let trickles = self.trickles_until.is_some_and(|until| until > now);
        let most = if trickles { TRICKLE } else { socket };
        most.saturating_sub(self.flying_bytes + self.hole.unwrap_or(0))
    }

    /// The socket accepts what it can of the waiting bytes; they arrive at `at`. Returns the packets that left
    /// completely.
    pub(super) fn drain(&mut self, now: Instant, at: Instant, socket: usize) -> (bool, Vec<Packet>) {
        let (mut progress, mut left) = (false, Vec::new());
        while let Some(first) = self.unsent.front() {
            let missing = first.bytes - self.taken;
            let bytes = missing.min(self.room(now, socket));
            if bytes == 0 {
                break;
            }
            (progress, self.progress) = (true, true);
            self.taken += bytes;
            let whole = if bytes == missing { self.unsent.pop_front() } else { None };
            if whole.is_some() {
                self.taken = 0;
            }
            let packet = whole.and_then(|piece| piece.packet);
            left.extend(packet.clone());
            self.fly(at, bytes, packet);
        }
        if !self.unsent.is_empty() && self.is_disturbed(now) {
            self.trouble(now);
        }
        (progress, left)
    }

    /// Writes a packet, behind what waits.
    pub(super) fn push(&mut self, packet: Packet) {
        self.push_piece(packet.len(), Some(packet));
    }

    /// Writes what a relay read: bytes, and the packet that they complete.
    pub(super) fn push_piece(&mut self, bytes: usize, packet: Option<Packet>) {
        self.unsent.push_back(Piece { bytes, packet });
    }

    /// Whether bytes wait for the socket.
    pub(super) fn waits(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(super) fn drop_unsent(&mut self) {
        self.taken = 0;
        self.unsent.clear();
    }

    fn is_disturbed(&self, now: Instant) -> bool {
        [self.jammed_until, self.trickles_until].into_iter().flatten().any(|until| until >= now)
    }

    /// Returns what a writer learns at the end of its turn.
    pub(super) fn outcome(&mut self) -> Written {
        match (self.unsent.is_empty(), std::mem::take(&mut self.progress)) {
            (true, _) => Written::All,
            (false, true) => Written::Some,
            (false, false) => Written::None,
        }
    }

    /// Puts a packet behind all that are in transit.
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

    /// Returns when the socket may accept more although nothing arrives.
    pub(super) fn next_room(&self, now: Instant) -> Option<Instant> {
        let until = [self.jammed_until, self.trickles_until];
        until.into_iter().flatten().filter(|at| *at > now && !self.unsent.is_empty()).min()
    }

    /// Returns what has arrived: its bytes, and the packet that is complete with them.
    pub(super) fn arrive(&mut self, now: Instant) -> Option<(usize, Option<Packet>)> {
        self.flying.front().filter(|flying| flying.at <= now)?;
        let Flying { bytes, packet, .. } = self.flying.pop_front()?;
        self.flying_bytes -= bytes;
        Some((bytes, packet))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unsent.is_empty() && self.flying.is_empty()
    }

    /// Everything in transit is lost.
    pub(super) fn drop_flying(&mut self) {
        self.flying.clear();
        self.flying_bytes = 0;
    }

    /// From now on nothing arrives.
    pub(super) fn swallow(&mut self) {
        let swallowed = self.flying_bytes;
        self.drop_flying();
        self.hole.get_or_insert(swallowed);
    }

    /// Nothing arrives before `until`, whatever is in transit.
    pub(super) fn hold(&mut self, until: Instant) {
        self.stalled_until = Some(self.stalled_until.map_or(until, |at| at.max(until)));
        self.flying.iter_mut().for_each(|flying| flying.at = flying.at.max(until));
    }

    pub(super) fn trouble(&mut self, until: Instant) {
        self.trouble = Some(self.trouble.map_or(until, |at| at.max(until)));
    }

    /// Whether it did not carry bytes as it should at some time since `since`.
    pub(super) fn had_trouble(&self, since: Instant) -> bool {
        self.hole.is_some() || self.trouble.is_some_and(|at| at >= since)
    }
}

impl Wire {
    pub(super) fn new(
        now: Instant,
        (server_id, node): (ConnectionId, usize),
        connect: Duration,
        opening: Duration,
    ) -> Self {
        Self {
            server_id,
            node,
            entry: None,
            up: Lane::default(),
            down: Lane::default(),
            client_open: true,
            client: Observed::new(now),
            opening: Some(now + connect),
            asks: false,
            server: ServerEnd::Opening(now + opening),
            server_observed: Observed::new(now),
            gone_at: None,
        }
    }

    pub(super) fn lane(&mut self, up: bool) -> &mut Lane {
        if up { &mut self.up } else { &mut self.down }
    }

    /// Returns the observations of the end that writes this lane.
    pub(super) fn writer(&mut self, up: bool) -> &mut Observed {
        if up { &mut self.client } else { &mut self.server_observed }
    }

    /// Whether the node at the server's end reads it, once the node runs.
    pub(super) fn is_read(&self) -> bool {
        !matches!(self.server, ServerEnd::Judging { .. } | ServerEnd::Routing(_) | ServerEnd::Moving(..))
    }

    /// From now on nothing arrives in either direction.
    pub(super) fn swallow(&mut self) {
        self.up.swallow();
        self.down.swallow();
    }

    /// Whether bytes are lost on it.
    pub(super) fn has_hole(&self) -> bool {
        self.up.hole.is_some() || self.down.hole.is_some()
    }

    /// Returns a description for a failing seed.
    pub(super) fn describe(&self) -> String {
        let server = match self.server {
            ServerEnd::Opening(_) => "opening",
            ServerEnd::Judging { .. } => "judging",
            ServerEnd::Bound(_) => "bound",
            ServerEnd::Fenced(_) => "fenced",
            ServerEnd::Routing(_) => "routing",
            ServerEnd::Relay(_) => "relay",
            ServerEnd::Peer(..) => "peer",
            ServerEnd::Moving(..) => "moving",
            ServerEnd::Mute => "mute",
            ServerEnd::Closed => "closed",
        };
        let (up, down) = (self.up.is_empty(), self.down.is_empty());
        format!(
            "entry {:?} open: {}, node {} {server}, empty: {up} {down}",
            self.entry, self.client_open, self.node
        )
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
    /// A block of the peer protocol.
    Block(Bytes),
    Ping(u64),
    Pong(u64),
    Close(u16, String),
    Reset,
}

impl Packet {
    /// Returns `None` for what does not travel as a packet.
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

    /// Returns the size on the wire, without headers; never 0, so that every packet needs room.
    fn len(&self) -> usize {
        match self {
            Self::Message(_, payload) | Self::Block(payload) => payload.len().max(1),
            Self::Ping(_) | Self::Pong(_) => 8,
            Self::Close(_, reason) => 2 + reason.len(),
            Self::Opened | Self::Reset => 1,
        }
    }

    /// Returns the control message in it, if it is one of these types.
    pub(super) fn control(&self, types: &[u8]) -> Option<Control> {
        let Self::Message(Kind::Binary, payload) = self else { return None };
        payload.first().filter(|kind| types.contains(kind))?;
        match payload::frame(Kind::Binary, payload.clone()) {
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
            Self::Block(block) => write!(f, "block of {} bytes", block.len()),
            Self::Ping(nonce) => write!(f, "Ping {nonce}"),
            Self::Pong(nonce) => write!(f, "Pong {nonce}"),
            Self::Close(code, reason) => write!(f, "Close {code} {reason:?}"),
            Self::Reset => write!(f, "reset"),
        }
    }
}
