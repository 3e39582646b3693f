//! The client of a session, by what it speaks: two machines behind one set of verbs. Every question which of the two it is
//! has its answer here.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mainstay_proto::admission::{Opener, Source};
use mainstay_proto::budget::{Held, Pressure};
use mainstay_proto::connect::{Lost, Mode};
use mainstay_proto::heartbeat::Action;
#[cfg(feature = "fault-injection")]
use mainstay_proto::session::message::Delay;
use mainstay_proto::session::message::SessionId;
use mainstay_proto::session::server::BACKEND_LOST;
use mainstay_proto::session::{
    ConnectionId, Control, Delivery, End, EndCause, Frame, Leave, Message, PeerClose, PlainSession,
    ServerSession, SessionError, Transmit,
};
use mainstay_proto::ws::CloseCode;

use super::auth::Identity;
use super::paths::PathId;
use super::stats::Counters;
use crate::SendError;

/// The machine of one session.
pub(crate) enum Peer {
    /// The client speaks `mainstay.v1`.
    Session(Box<ServerSession>),
    /// The client speaks plain WebSocket.
    Plain(Box<PlainSession>),
}

/// Properties of a session's client. Small, because every session holds them; the request's headers belong to the upgrade
/// ([`SessionUpgrade::headers`](crate::SessionUpgrade::headers)).
///
/// ```no_run
/// # fn log(session: &mainstay::Session) {
/// let peer = session.peer();
/// println!("{:?}, {} a session", peer.address, if peer.resumable { "with" } else { "without" });
/// # }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Where its first connection came from, if the server loop reported that: behind a
    /// [trusted proxy](super::Config::proxies) the address that this reports, with port 0 if it reports none.
    pub address: Option<SocketAddr>,
    /// The application's subprotocol, if one was agreed on.
    pub subprotocol: Option<Box<str>>,
    /// Whether it speaks `mainstay.v1`.
    pub resumable: bool,
    /// Its identity, as given to [`SessionUpgrade::principal`](crate::SessionUpgrade::principal) or returned by
    /// [`SessionUpgrade::authenticate`](crate::SessionUpgrade::authenticate). Empty: anonymous.
    pub principal: Box<[u8]>,
    /// When its session began, in tenths of a second since the server's start.
    pub(super) came: u32,
    /// The path that its session was opened at.
    pub(super) path: PathId,
    /// How many bytes at the end of the principal limits do not count by.
    pub(super) uncounted: u8,
}

impl PeerInfo {
    pub(super) fn new(address: Option<SocketAddr>) -> Self {
        let (subprotocol, principal) = (None, Box::default());
        let path = PathId::default();
        Self { address, subprotocol, resumable: false, principal, came: 0, path, uncounted: 0 }
    }

    /// Notes what the credentials prove.
    pub(super) fn identify(&mut self, identity: &Identity) {
        self.principal = identity.principal.as_ref().into();
        self.uncounted = identity.uncounted;
    }

    /// Returns the subprotocol for a log or a list: one of more than 40 bytes only by its length, because some clients put a
    /// token there.
    pub fn shown_subprotocol(&self) -> Option<Cow<'_, str>> {
        let subprotocol = self.subprotocol.as_deref()?;
        Some(match subprotocol.len() {
            ..=LONGEST_SHOWN => subprotocol.into(),
            length => format!("({length} bytes)").into(),
        })
    }

    /// The client, as limits count it.
    pub(super) fn opener(&self) -> Opener<'_> {
        let source = self.address.map(|address| Source::of(address.ip()));
        let counted = self.principal.len().saturating_sub(self.uncounted.into());
        Opener { source, principal: self.principal.get(..counted).unwrap_or_default() }
    }
}

/// The longest subprotocol that is shown. Registered ones have at most 33 bytes, and tokens more.
const LONGEST_SHOWN: usize = 40;

/// The reason in the Close for a peer that keeps sending too fast.
pub(super) const TOO_FAST: &str = "messages come too fast";

/// Whether a connection is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionState {
    /// The client is connected; `epoch` counts its connections.
    Attached {
        /// From 1.
        epoch: u64,
    },
    /// The client is away, and its session is kept.
    Parked,
    /// The session is over.
    Closed,
}

/// What a client does at present, as [`Sessions`](super::Sessions) counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Presence {
    /// It is connected.
    Attached,
    /// It is away, and its session is kept.
    Parked,
    /// Its session is ending, or it was asked to leave.
    Draining,
}

impl Presence {
    pub(super) fn of(peer: &Peer) -> Self {
        match peer.state() {
            _ if !peer.stays() => Self::Draining,
            SessionState::Parked => Self::Parked,
            _ => Self::Attached,
        }
    }

    /// Returns the word that lists and figures use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Parked => "parked",
            Self::Draining => "draining",
        }
    }
}

/// Calls the same verb of either machine.
macro_rules! either {
    ($peer:expr, $machine:ident => $call:expr) => {
        match $peer {
            Peer::Session($machine) => $call,
            Peer::Plain($machine) => $call,
        }
    };
}

/// What both are asked.
impl Peer {
    /// The machine of a client that speaks `mainstay.v1`.
    pub(super) fn session(&self) -> Option<&ServerSession> {
        match self {
            Self::Session(session) => Some(session),
            Self::Plain(_) => None,
        }
    }

    pub(super) fn session_mut(&mut self) -> Option<&mut ServerSession> {
        match self {
            Self::Session(session) => Some(session),
            Self::Plain(_) => None,
        }
    }

    pub(super) fn is_session(&self) -> bool {
        self.session().is_some()
    }

    pub(super) fn id(&self) -> Option<SessionId> {
        self.session().map(ServerSession::id)
    }

    pub(super) fn epoch(&self) -> Option<u64> {
        self.session().map(ServerSession::epoch)
    }

    /// The attached connection; `None` also for a plain peer, which has only one.
    pub(super) fn connection(&self) -> Option<ConnectionId> {
        self.session().and_then(ServerSession::connection)
    }

    pub(super) fn state(&self) -> SessionState {
        match self {
            Self::Session(session) if session.is_final() => SessionState::Closed,
            Self::Session(session) if session.connection().is_some() => {
                SessionState::Attached { epoch: session.epoch() }
            }
            Self::Session(_) => SessionState::Parked,
            Self::Plain(plain) if plain.is_final() => SessionState::Closed,
            Self::Plain(_) => SessionState::Attached { epoch: 1 },
        }
    }

    /// Whether the session accepts messages, and was not asked to leave.
    pub(super) fn stays(&self) -> bool {
        match self {
            Self::Session(session) => session.is_open() && !session.is_retired(),
            Self::Plain(plain) => plain.is_open(),
        }
    }

    /// Whether the application may still receive something.
    pub(super) fn delivers(&self) -> bool {
        either!(self, peer => peer.delivers())
    }

    pub(super) fn end(&self) -> Option<End> {
        either!(self, peer => peer.end())
    }

    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Session(session) => session.closed().is_some(),
            Self::Plain(plain) => plain.is_closed(),
        }
    }

    /// Whether the handler may start.
    #[cfg(feature = "cluster")]
    pub(super) fn is_confirmed(&self) -> bool {
        self.session().is_none_or(ServerSession::is_confirmed)
    }

    /// Whether nothing more happens here for the application: the session is over, or leaves this server.
    #[cfg(feature = "cluster")]
    pub(super) fn is_over(&self) -> bool {
        self.is_closed() || self.session().is_some_and(ServerSession::is_leaving)
    }

    pub(super) fn peer_close(&self) -> Option<PeerClose> {
        either!(self, peer => peer.peer_close())
    }

    pub(super) fn rtt(&self) -> Option<Duration> {
        either!(self, peer => peer.rtt())
    }

    /// The largest payload that it accepts from its peer.
    pub(super) fn max_message(&self) -> Option<u64> {
        either!(self, peer => peer.settings().flow.max_message)
    }

    pub(super) fn dropped(&self) -> u64 {
        self.session().map_or(0, ServerSession::dropped)
    }
}

/// What the machine keeps.
impl Peer {
    pub(super) fn held(&self) -> Held {
        either!(self, peer => peer.held())
    }

    pub(super) fn kept_bytes(&self) -> u64 {
        either!(self, peer => peer.kept_bytes())
    }

    pub(super) fn unread_bytes(&self) -> u64 {
        either!(self, peer => peer.unread_bytes())
    }

    /// Whether a connection may be read that has `assembling` bytes of an incomplete message.
    pub(super) fn lets_read(&self, pressure: Pressure, assembling: u64) -> bool {
        let Held { unread, kept } = self.held();
        // What is kept for a plain peer leaves without an acknowledgement.
        let owed = if self.is_session() { kept } else { 0 };
        pressure.lets_read(unread, assembling, owed)
    }

    /// Whether a connection has written every message that was accepted.
    pub(super) fn is_written(&self) -> bool {
        match self {
            Self::Session(session) => session.is_written(),
            Self::Plain(plain) => plain.kept_bytes() == 0,
        }
    }

    pub(super) fn take_undelivered(&mut self) -> Vec<Message> {
        either!(self, peer => peer.take_undelivered())
    }

    pub(super) fn forget_undelivered(&mut self) {
        either!(self, peer => peer.forget_undelivered());
    }
}

/// What the application does.
impl Peer {
    /// The next message, gap or volatile message.
    pub(super) fn deliver(&mut self, now: Instant) -> Option<Delivery> {
        match self {
            Self::Session(session) => match session.deliver(now) {
                // Only servers write it, and a client's is ignored.
                Some(Delivery::Replaced { .. }) => None,
                delivered => delivered,
            },
            Self::Plain(plain) => plain.deliver().map(Delivery::Message),
        }
    }

    pub(super) fn deliver_volatile(&mut self) -> Option<Message> {
        self.session_mut()?.deliver_volatile()
    }

    /// Sends a message where `pressure` leaves room for it. Returns its number; `None` for a plain peer.
    pub(super) fn send(
        &mut self,
        message: Message,
        pressure: Option<Pressure>,
    ) -> Result<Option<u64>, SendError> {
        self.send_with(message, pressure, ServerSession::send_within)
    }

    /// As [`send`](Self::send); a full window drops its oldest message that was never written. The window of a plain
    /// peer, to which no gap can be reported, may be full.
    pub(super) fn send_dropping_oldest(
        &mut self,
        message: Message,
        pressure: Option<Pressure>,
    ) -> Result<Option<u64>, SendError> {
        self.send_with(message, pressure, ServerSession::send_dropping_oldest)
    }

    fn send_with(
        &mut self,
        message: Message,
        pressure: Option<Pressure>,
        send: fn(&mut ServerSession, Message, u64) -> Result<u64, Message>,
    ) -> Result<Option<u64>, SendError> {
        let room = |is_away| pressure.map_or(u64::MAX, |pressure| pressure.room(is_away));
        let (open, largest, sent) = match self {
            Self::Session(session) => {
                let is_away = session.connection().is_none();
                let sent = send(session, message, room(is_away));
                // No client makes room in a session that leaves.
                (session.is_open() && !session.is_leaving(), session.largest(), sent.map(Some))
            }
            Self::Plain(plain) => {
                (plain.is_open(), u64::MAX, plain.send_within(message, room(false)).map(|()| None))
            }
        };
        sent.map_err(|message| match open {
            true if message.len() as u64 > largest => SendError::TooLarge { message, limit: largest },
            true => SendError::Full(message),
            false => SendError::Closed(message),
        })
    }

    pub(super) fn send_volatile(&mut self, message: Message) {
        match self {
            Self::Session(session) if message.len() as u64 > session.largest() => {
                tracing::debug!(
                    bytes = message.len(),
                    "a volatile message is larger than the client accepts"
                );
            }
            Self::Session(session) => session.send_volatile(message),
            Self::Plain(plain) => drop(plain.send(message)),
        }
    }

    pub(super) fn close(&mut self, now: Instant, cause: EndCause, code: CloseCode, reason: &str) {
        either!(self, peer => peer.close_for(now, cause, code, reason));
    }

    /// The application dropped its handle.
    pub(super) fn handle_dropped(&mut self, now: Instant) {
        match self {
            Self::Session(session) => session.handle_dropped(now),
            Self::Plain(plain) => plain.close(now, CloseCode::NORMAL, ""),
        }
    }

    pub(super) fn abort(&mut self, now: Instant, cause: EndCause, code: CloseCode, reason: &str) {
        either!(self, peer => peer.abort_for(now, cause, code, reason));
    }

    pub(super) fn renew(&mut self, now: Instant, passed_on: u64) {
        match self {
            Self::Session(session) => session.renew(now, passed_on),
            Self::Plain(plain) => plain.close(now, CloseCode::RESTART, BACKEND_LOST),
        }
    }

    /// Asks the client to replace its connection. Returns `false` for a plain peer, which cannot be asked.
    #[cfg(feature = "fault-injection")]
    pub(super) fn go_away(&mut self, now: Instant, reason: &str, delay: Delay, close_in: Duration) -> bool {
        let session = self.session_mut();
        session.map(|session| session.go_away(now, reason, delay, close_in)).is_some()
    }
}

/// What the connection brings, and what is due.
impl Peer {
    pub(super) fn mode(&self) -> Mode {
        match self {
            Self::Session(_) => Mode::Session,
            Self::Plain(_) => Mode::Plain,
        }
    }

    /// Whether more may be read. The window of `mainstay.v1` holds its client back; TCP holds back a plain one.
    pub(super) fn wants_input(&self) -> bool {
        match self {
            Self::Session(_) => true,
            Self::Plain(plain) => plain.wants_input(),
        }
    }

    /// Handles a message of the connection. Returns the length of its payload if it is the application's.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        message: Message,
        stats: &Counters,
    ) -> Result<Option<usize>, SessionError> {
        match self {
            Self::Plain(plain) => {
                let length = message.len();
                plain.handle_message(now, message);
                Ok(Some(length))
            }
            Self::Session(session) => {
                let frame = Frame::decode(message)?;
                let (length, round_trip) = match &frame {
                    Frame::Message(message) => (Some(message.len()), None),
                    Frame::Control(Control::Pong(beat)) => {
                        (None, session.round_trip(now, connection, beat.nonce))
                    }
                    _ => (None, None),
                };
                session.handle_frame(now, connection, frame)?;
                round_trip.into_iter().for_each(|sample| stats.rtt(sample));
                Ok(length)
            }
        }
    }

    pub(super) fn handle_pong(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        payload: [u8; 8],
        stats: &Counters,
    ) {
        match self {
            Self::Session(session) => session.handle_bytes(now, connection),
            Self::Plain(plain) => {
                plain.handle_pong(now, &payload).into_iter().for_each(|sample| stats.rtt(sample));
            }
        }
    }

    pub(super) fn handle_bytes(&mut self, now: Instant, connection: ConnectionId) {
        match self {
            Self::Session(session) => session.handle_bytes(now, connection),
            Self::Plain(plain) => plain.handle_bytes(now),
        }
    }

    pub(super) fn handle_flushed(&mut self, now: Instant, connection: ConnectionId) {
        match self {
            Self::Session(session) => session.handle_flushed(now, connection),
            Self::Plain(plain) => plain.handle_flushed(now),
        }
    }

    pub(super) fn handle_write_progress(&mut self, now: Instant, connection: ConnectionId) {
        match self {
            Self::Session(session) => session.handle_write_progress(now, connection),
            Self::Plain(plain) => plain.handle_write_progress(now),
        }
    }

    /// A Close ends a plain peer's session; a session of `mainstay.v1` outlives its connection, and only END ends it.
    pub(super) fn handle_peer_close(&mut self, code: Option<CloseCode>, reason: &str) {
        if let Self::Plain(plain) = self {
            plain.handle_peer_close(PeerClose { code, reason: reason.to_owned() });
        }
    }

    /// A violation ends a plain peer's session; a client of `mainstay.v1` opens another connection.
    pub(super) fn handle_violation(&mut self, why: &Lost) {
        let Self::Plain(plain) = self else { return };
        match why {
            Lost::TooBig { .. } => plain.handle_violation(CloseCode::TOO_BIG, "a message is too big"),
            Lost::Broken(failure) => plain.handle_violation(CloseCode::PROTOCOL_ERROR, failure.message()),
            _ => {}
        }
    }

    /// The peer kept sending faster than it may: a session goes on with its next connection.
    pub(super) fn handle_too_fast(&mut self) {
        if let Self::Plain(plain) = self {
            plain.handle_violation(CloseCode::POLICY, TOO_FAST);
        }
    }

    pub(super) fn handle_lost(&mut self, now: Instant, connection: ConnectionId) {
        match self {
            Self::Session(session) => session.handle_lost(now, connection),
            Self::Plain(plain) => plain.handle_lost(),
        }
    }

    pub(super) fn poll_transmit(&mut self, now: Instant, connection: ConnectionId) -> Option<Transmit> {
        match self {
            Self::Session(session) => session.poll_transmit(now, connection),
            Self::Plain(plain) => plain.poll_transmit(),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        either!(self, peer => peer.handle_timeout(now))
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        either!(self, peer => peer.poll_timeout())
    }

    pub(super) fn poll_leave(&mut self) -> Option<Leave> {
        either!(self, peer => peer.poll_leave())
    }

    pub(super) fn wants_abort(&self) -> bool {
        either!(self, peer => peer.wants_abort())
    }

    /// Whether a session is over since the last call: the registry buries it then, even if its handler goes on. A plain
    /// peer has no name there.
    pub(super) fn poll_closed(&mut self) -> bool {
        self.session_mut().is_some_and(ServerSession::poll_closed)
    }

    /// WELCOME is still to be written.
    pub(super) fn owes_welcome(&self) -> bool {
        self.session().is_some_and(ServerSession::owes_welcome)
    }
}
