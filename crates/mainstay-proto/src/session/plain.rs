//! The server's end towards a peer that speaks plain WebSocket: one connection, and no resume.
//!
//! It has the heartbeat, the bounds and the methods of a session, so that an application serves both kinds of peer
//! with one handler.
//!
//! Source: `docs/PROTOCOL.md` "Plain peers".

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::end::{self, EndCause, PeerClose};
use super::lifetime::{self, Expiry, Leave, Lifetime};
use super::message::{Message, Window};
use super::server::ServerConfig;
use super::transmit::Transmit;
use super::{ABORT_TIMEOUT, CLOSE_TIMEOUT};
use crate::budget::{Held, held};
use crate::due::earliest;
use crate::heartbeat::{Action, Heartbeat};
use crate::queue::ByteQueue;
use crate::ws::CloseCode;

/// The session of a plain peer; the module describes it.
#[derive(Debug, Clone)]
pub struct PlainSession {
    config: Arc<ServerConfig>,
    outbox: ByteQueue<Message>,
    inbox: ByteQueue<Message>,
    heartbeat: Heartbeat,
    lifetime: Option<Box<Lifetime>>,
    /// The nonce of a probe that waits to be polled. Nonces stay below 2^32.
    ping: Option<u32>,
    end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Open,
    /// The peer receives what was accepted, then the Close. The session is over once the connection is.
    Closing(Box<Closing>),
    /// The driver must drop the transport. `None`: the connection serves no purpose any more.
    Dead(Option<Box<end::End>>),
    /// The connection is gone. `None`: it was lost.
    Closed(Option<Box<end::End>>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Closing {
    cause: EndCause,
    code: CloseCode,
    reason: String,
    until: Instant,
    /// The Close was polled.
    sent: bool,
    /// Messages that are not written stay unwritten.
    is_aborted: bool,
    /// The application will not ask for undelivered messages.
    forgets: bool,
}

impl Closing {
    fn new(cause: EndCause, code: CloseCode, reason: &str, until: Instant) -> Self {
        let reason = reason.to_owned();
        Self { cause, code, reason, until, sent: false, is_aborted: false, forgets: false }
    }

    fn end(&self) -> end::End {
        end::End::new(self.cause, Some(self.code), self.reason.as_str())
    }
}

impl PlainSession {
    /// Creates a session on a connection that has just opened. `seed` sets the phase of the heartbeat.
    #[must_use]
    pub fn new(now: Instant, config: Arc<ServerConfig>, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            heartbeat: Heartbeat::new(now, &config.heartbeat, &mut rng),
            lifetime: Lifetime::new(now, &config.lifetime, &mut rng),
            config,
            outbox: ByteQueue::default(),
            inbox: ByteQueue::default(),
            ping: None,
            end: End::Open,
        }
    }

    /// Returns the settings that it was created with.
    #[must_use]
    pub fn settings(&self) -> &ServerConfig {
        &self.config
    }

    /// A message arrived. [`handle_bytes`](Self::handle_bytes) was called for its bytes before.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.lifetime.as_mut().into_iter().for_each(|lifetime| lifetime.handle_message(now));
        if self.end == End::Open {
            self.inbox.push(message);
        }
    }

    /// Whether to read more now: the application is not too far behind. Bytes that stay unread count as bytes that
    /// arrived: report them with [`handle_bytes`](Self::handle_bytes).
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.inbox.is_below(self.config.flow.accept)
    }

    /// Bytes arrived, or stayed unread because [`wants_input`](Self::wants_input) returned `false`.
    pub fn handle_bytes(&mut self, now: Instant) {
        if self.wants_input() {
            self.heartbeat.handle_bytes(now);
        } else {
            self.heartbeat.handle_unread(now);
        }
    }

    /// A Pong arrived.
    pub fn handle_pong(&mut self, now: Instant, payload: &[u8]) -> Option<Duration> {
        let nonce = payload.try_into().map(u64::from_be_bytes).ok()?;
        self.heartbeat.handle_pong(now, nonce)
    }

    /// Everything that was transmitted has left the process.
    pub fn handle_flushed(&mut self, now: Instant) {
        // A probe that was not polled has not left.
        if self.ping.is_none() {
            self.heartbeat.handle_flushed(now);
        }
        self.lifetime.as_mut().into_iter().for_each(|lifetime| lifetime.handle_progress(now));
    }

    /// The socket accepted part of what was transmitted.
    pub fn handle_write_progress(&mut self, now: Instant) {
        self.heartbeat.handle_write_progress(now);
        self.lifetime.as_mut().into_iter().for_each(|lifetime| lifetime.handle_progress(now));
    }

    /// The peer began the closing handshake.
    pub fn handle_peer_close(&mut self, close: PeerClose) {
        if self.end == End::Open {
            self.end = End::Closed(Some(Box::new(end::End::new(EndCause::Client, close.code, close.reason))));
        }
    }

    /// The peer violated the protocol, and the driver fails its connection with this code.
    pub fn handle_violation(&mut self, code: CloseCode, reason: &str) {
        if self.end == End::Open {
            let end = end::End::new(EndCause::ProtocolError, Some(code), reason);
            self.end = End::Closed(Some(Box::new(end)));
        }
    }

    /// Returns how the peer closed; `None` if it did not close, or if the connection was lost.
    #[must_use]
    pub fn peer_close(&self) -> Option<PeerClose> {
        let End::Closed(Some(end)) = &self.end else { return None };
        (end.cause == EndCause::Client).then(|| PeerClose { code: end.code, reason: end.reason.clone() })
    }

    /// Returns why nothing more is delivered; `None` while a delivery is still possible.
    #[must_use]
    pub fn end(&self) -> Option<end::End> {
        let lost = || end::End::new(EndCause::Lost, None, "");
        match &self.end {
            End::Open => None,
            End::Closing(closing) => Some(closing.end()),
            End::Dead(end) | End::Closed(end) => Some(end.as_deref().cloned().unwrap_or_else(lost)),
        }
    }

    /// Whether something may still be delivered: the session is open, or the peer ended it and earlier messages wait.
    /// After this end closed the session, nothing is delivered.
    #[must_use]
    pub fn delivers(&self) -> bool {
        self.end == End::Open || !self.inbox.items().is_empty()
    }

    /// Returns the messages that were not written, in order, once the session is over or aborted. Messages that were
    /// written may or may not have arrived. Returns nothing before that, and nothing on a second call.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        if !self.is_final() {
            return Vec::new();
        }
        self.outbox.take().into()
    }

    /// The connection is gone, and the session ends with it.
    pub fn handle_lost(&mut self) {
        self.end = match std::mem::replace(&mut self.end, End::Open) {
            End::Open => End::Closed(None),
            End::Closing(closing) => {
                if closing.forgets {
                    self.outbox = ByteQueue::default();
                }
                End::Closed(Some(Box::new(closing.end())))
            }
            End::Dead(end) | End::Closed(end) => End::Closed(end),
        };
    }

    /// Accepts a message for the peer.
    ///
    /// # Errors
    /// Returns the message if the buffer is full or the session is ending.
    pub fn send(&mut self, message: Message) -> Result<(), Message> {
        self.send_within(message, u64::MAX)
    }

    /// Like [`send`](Self::send), but keeps no more than `room` bytes.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_within(&mut self, message: Message, room: u64) -> Result<(), Message> {
        if self.end != End::Open || !self.has_room_within(message.len(), room) {
            return Err(message);
        }
        self.outbox.push(message);
        Ok(())
    }

    /// Whether `send` would accept a message of `length` bytes.
    #[must_use]
    pub fn has_room(&self, length: usize) -> bool {
        self.has_room_within(length, u64::MAX)
    }

    fn has_room_within(&self, length: usize, room: u64) -> bool {
        let window = self.config.flow.keep;
        self.outbox.has_room(length, Window { bytes: window.bytes.min(room), ..window })
    }

    /// Returns the next message for the application.
    pub fn deliver(&mut self) -> Option<Message> {
        self.inbox.pop()
    }

    /// Returns the payload bytes that wait to be written.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.outbox.bytes()
    }

    /// Returns the payload bytes that arrived from the peer and wait for the application.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.inbox.bytes()
    }

    /// Returns what the session keeps in memory, including the overhead of each message.
    #[must_use]
    pub fn held(&self) -> Held {
        Held {
            unread: held(self.inbox.bytes(), self.inbox.items().len()),
            kept: held(self.outbox.bytes(), self.outbox.items().len()),
        }
    }

    /// Ends the session in order: the peer receives everything that was accepted before. What has not left within 10
    /// s is dropped with the connection. From now on nothing is delivered to the application.
    pub fn close(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.close_for(now, EndCause::Closed, code, reason);
    }

    /// Like [`close`](Self::close), with the cause that [`end`](Self::end) reports to the application.
    pub fn close_for(&mut self, now: Instant, cause: EndCause, code: CloseCode, reason: &str) {
        if self.end == End::Open {
            let closing = Closing::new(cause, code, reason, now + CLOSE_TIMEOUT);
            self.end = End::Closing(Box::new(closing));
            self.stop_delivering();
        }
    }

    /// Ends the session now. Messages that are not written stay unwritten; the Close is written if the peer accepts
    /// it within a second. [`take_undelivered`](Self::take_undelivered) returns the rest.
    pub fn abort(&mut self, now: Instant, code: CloseCode, reason: &str) {
        self.abort_for(now, EndCause::Closed, code, reason);
    }

    /// As [`abort`](Self::abort), with the cause that [`end`](Self::end) reports to the application.
    pub fn abort_for(&mut self, now: Instant, cause: EndCause, code: CloseCode, reason: &str) {
        let until = now + ABORT_TIMEOUT;
        match &mut self.end {
            End::Open => {
                let closing = Closing::new(cause, code, reason, until);
                self.end = End::Closing(Box::new(Closing { is_aborted: true, ..closing }));
            }
            End::Closing(closing) if closing.sent => closing.until = closing.until.min(until),
            End::Closing(closing) => {
                let (until, forgets) = (closing.until.min(until), closing.forgets);
                let anew = Closing::new(cause, code, reason, until);
                **closing = Closing { is_aborted: true, forgets, ..anew };
            }
            End::Dead(_) | End::Closed(_) => {}
        }
        self.stop_delivering();
    }

    /// Declares that the application will not ask for [undelivered messages](Self::take_undelivered): they are freed
    /// once the session is over. Call it after [`close`](Self::close).
    pub fn forget_undelivered(&mut self) {
        match &mut self.end {
            End::Closing(closing) => closing.forgets = true,
            End::Open | End::Dead(_) | End::Closed(_) => drop(self.take_undelivered()),
        }
    }

    fn stop_delivering(&mut self) {
        self.inbox = ByteQueue::default();
    }

    /// Returns the next thing to write.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        if let End::Dead(end) = &mut self.end {
            self.end = End::Closed(end.take());
            return Some(Transmit::Abort);
        }
        if matches!(&self.end, End::Closing(closing) if closing.sent) {
            return None;
        }
        if let Some(nonce) = self.ping.take() {
            return Some(Transmit::Ping(nonce.into()));
        }
        if !self.is_aborted()
            && let Some(message) = self.outbox.pop()
        {
            self.lifetime.as_mut().into_iter().for_each(|lifetime| lifetime.handle_writing());
            return Some(Transmit::Message(message));
        }
        if let End::Closing(why) = &mut self.end {
            why.sent = true;
            return Some(Transmit::Close { code: why.code, reason: why.reason.clone() });
        }
        None
    }

    /// Like [`ServerSession::wants_abort`](super::ServerSession::wants_abort).
    #[must_use]
    pub fn wants_abort(&self) -> bool {
        matches!(self.end, End::Dead(_))
    }

    /// Does what is due. Call it until it returns `None`. [`Action::NotListening`] requires nothing: a connection
    /// that is dropped cannot be resumed, and a peer that sends bytes is alive.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Action> {
        if matches!(self.end, End::Dead(_) | End::Closed(_)) {
            return None;
        }
        if let Some(leave) = self.lifetime.as_mut().and_then(|lifetime| lifetime.handle_timeout(now)) {
            match leave {
                Leave::Idle => {
                    self.close_for(now, EndCause::Idle, CloseCode::SESSION_ENDED, lifetime::IDLE);
                }
                Leave::Old => self.close_for(now, EndCause::Old, CloseCode::RESTART, lifetime::OLD),
                // Without a grace, which `set_expiry` leaves out, nothing is due before the end.
                Leave::Expiring => {}
                Leave::Unauthorized => {
                    let cause = EndCause::Unauthorized;
                    self.close_for(now, cause, CloseCode::UNAUTHORIZED, lifetime::EXPIRED);
                }
            }
        }
        if self.closes_at().is_some_and(|at| at <= now) {
            self.die("");
            return None;
        }
        let action = self.heartbeat.handle_timeout(now, &self.config.heartbeat);
        match action {
            Some(Action::Probe { nonce }) => self.ping = u32::try_from(nonce).ok(),
            Some(Action::Dead(evidence)) => self.die(&evidence.to_string()),
            // The answers of the peer may lie unread here: this end is the one that does not read.
            Some(Action::NotListening) if !self.wants_input() => return None,
            _ => {}
        }
        action
    }

    /// Sets how long the peer's credentials hold: then the connection is closed with 4501. A plain peer can present no others,
    /// so the grace does not count. `None`: for as long as the connection.
    pub fn set_expiry(&mut self, now: Instant, expiry: Option<Expiry>) {
        let expiry = expiry.map(|expiry| Expiry { grace: Duration::ZERO, ..expiry });
        Lifetime::set_expiry(&mut self.lifetime, now, expiry);
    }

    /// Returns why the server ends the connection, once, for metrics.
    pub fn poll_leave(&mut self) -> Option<Leave> {
        self.lifetime.as_mut().and_then(|lifetime| lifetime.poll_leave())
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let until = match &self.end {
            End::Closed(_) => return None,
            End::Closing(closing) => Some(closing.until),
            End::Open | End::Dead(_) => None,
        };
        let beat = self.heartbeat.poll_timeout();
        let leave = self.lifetime.as_ref().and_then(|lifetime| lifetime.poll_timeout());
        earliest([Some(beat), until, leave])
    }

    /// `why`: the verdict in words, used if this end had not begun to close.
    fn die(&mut self, why: &str) {
        let End::Closing(closing) = &self.end else {
            self.end = End::Dead(Some(Box::new(end::End::new(EndCause::Lost, None, why))));
            return;
        };
        let (end, forgets) = (closing.end(), closing.forgets);
        self.end = End::Dead(Some(Box::new(end)));
        if forgets {
            self.outbox = ByteQueue::default();
        }
    }

    fn closes_at(&self) -> Option<Instant> {
        match &self.end {
            End::Closing(closing) => Some(closing.until),
            _ => None,
        }
    }

    /// Whether the session accepts new messages.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.end == End::Open
    }

    /// Whether no message that is sent from now on is written: the session is over, or was aborted.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.is_aborted() || self.is_closed()
    }

    fn is_aborted(&self) -> bool {
        matches!(&self.end, End::Closing(closing) if closing.is_aborted)
    }

    /// Whether nothing more is read or written.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.end, End::Closed(_))
    }

    /// Returns the smoothed round-trip time.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.heartbeat.rtt()
    }
}
