//! The application's handle on one session.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mainstay_proto::budget::Pressure;
use mainstay_proto::session::message::{GapCause, SessionId};
use mainstay_proto::session::server::BACKEND_LOST;
use mainstay_proto::session::{Delivery, Message, PeerClose};
use mainstay_proto::ws::CloseCode;

use super::core::{Core, CoreRef, Inner, Peer};
use super::stats::Stats;
use super::upgrade::PeerFacts;
use crate::SendError;
use crate::clock::now;

/// One session, in the hands of its handler.
///
/// It outlives connections: while the client is away, [`recv`](Self::recv) waits and
/// [`send`](Self::send) keeps. Dropping it (when the handler returns) ends the session in order.
pub struct Session {
    core: CoreRef,
    /// The state that `changed` returned last.
    seen: Seen,
}

/// Sends into a session from elsewhere. Cheap to clone; does not keep the session open.
///
/// Tests and demonstrations also break the session's connection with it: [`cut`](Self::cut), [`hold`](Self::hold),
/// [`go_away`](Self::go_away).
#[derive(Clone)]
pub struct Sender {
    pub(super) core: CoreRef,
}

/// Something from the client's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A message.
    Message(Message),
    /// The client's policy dropped messages here.
    Gap {
        /// The number of the first.
        first: u64,
        /// How many.
        count: u64,
        /// Why.
        cause: GapCause,
    },
    /// A message from outside the stream: the client sent it with `send_volatile`.
    Volatile(Message),
}

/// Whether a connection is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The client is there; `epoch` counts how often it came.
    Attached {
        /// From 1.
        epoch: u64,
    },
    /// The client is away, and its session is kept.
    Parked,
    /// Nothing follows.
    Over,
}

impl Session {
    pub(super) fn new(core: CoreRef) -> Self {
        let seen = Seen::of(core.lock().state());
        Self { core, seen }
    }

    /// The next message of the client, in order; `None` once the session is over.
    ///
    /// Being returned counts as received: the client may forget the message. Not so where the application
    /// [confirms](Self::confirm) by itself. A gap that the client's
    /// own policy made is counted and skipped, and what came outside the stream is dropped;
    /// [`recv_any`](Self::recv_any) returns both.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only when it is returned.
    pub fn recv(&mut self) -> impl Future<Output = Option<Message>> + Send + '_ {
        // A handler's future is held for as long as its connection: no state machine where a closure will do.
        poll_fn(|cx| {
            loop {
                match ready!(self.poll_recv(cx)) {
                    None => return Poll::Ready(None),
                    Some(Received::Message(message)) => return Poll::Ready(Some(message)),
                    Some(Received::Gap { first, count, .. }) => {
                        // A GAP costs a client a few bytes: above `debug` it would flood the log. It is counted.
                        tracing::debug!(session = ?self.id(), first, count, "the client dropped messages of its own");
                    }
                    Some(Received::Volatile(_)) => {}
                }
            }
        })
    }

    /// The next message or gap, in order; when there is none, the next volatile message, of which the
    /// newest 64 (256 KiB) wait; `None` once the session is over.
    ///
    /// # Cancel safety
    /// Safe, as [`recv`](Self::recv).
    pub fn recv_any(&mut self) -> impl Future<Output = Option<Received>> + Send + '_ {
        poll_fn(|cx| self.poll_recv(cx))
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        let mut inner = self.core.lock();
        let received = match &mut inner.peer {
            Peer::Session(session) => match session.hand_over(now()) {
                Some(Delivery::Message(message)) => Some(Received::Message(message)),
                Some(Delivery::Gap { first, count, cause }) => {
                    Stats::add(&self.core.shared.stats.gaps, 1);
                    Some(Received::Gap { first, count, cause })
                }
                // Only servers write it, and a client's is ignored.
                Some(Delivery::Replaced { .. }) => None,
                None => session.hand_over_volatile().map(Received::Volatile),
            },
            Peer::Plain(plain) => plain.hand_over().map(Received::Message),
        };
        if received.is_some() {
            drop(inner);
            // An acknowledgement may be due now, or a full inbox may have room again.
            self.core.signal.ask();
            return Poll::Ready(received);
        }
        if inner.state() == SessionState::Over {
            return Poll::Ready(None);
        }
        inner.wait_for_message(cx.waker());
        Poll::Pending
    }

    /// Everything that [`recv`](Self::recv) has returned so far is handled: from here on the client may
    /// forget it. Only for a session that
    /// [`confirm_manually`](super::SessionUpgrade::confirm_manually) was called for; otherwise, and towards a
    /// plain peer, it does nothing.
    ///
    /// Whether confirmed or not, a message is returned once. What differs is what a client learns that loses
    /// its session: what was returned and not confirmed is *unknown* to it. Confirm before a quarter of
    /// [`Config::accept`](super::Config::accept) lies unconfirmed: when all of it does, nothing more comes.
    pub fn confirm(&self) {
        let mut inner = self.core.lock();
        if let Peer::Session(session) = &mut inner.peer {
            session.confirm(now(), u64::MAX);
        }
        drop(inner);
        self.core.signal.ask();
    }

    /// As [`confirm`](Self::confirm), for the `count` oldest messages that [`recv`](Self::recv) has returned and
    /// nobody confirmed.
    pub fn confirm_oldest(&self, count: u64) {
        self.core.confirm_oldest(count);
    }

    /// Ends the session because what the application keeps for it is gone: a gateway's connection to its backend, an
    /// actor that crashed. What was sent to the client is delivered first, for at most 10 s while it is attached. Then a
    /// plain client is closed with 1012. A client that speaks `mainstay.v1` gets one gap event with the exact fate of
    /// each of its messages (cause [`Replaced`](mainstay_proto::session::message::Cause::Replaced)) and a fresh session,
    /// in which its application begins anew.
    ///
    /// `passed_on` counts those of the returned and not [confirmed](Self::confirm_oldest) messages that may have had an
    /// effect, the oldest first: their fate is unknown. The client sends those above them again. Without
    /// [`confirm_manually`](super::SessionUpgrade::confirm_manually) everything that was returned counts as delivered.
    ///
    /// Source: `docs/PROTOCOL.md` "Closing".
    pub fn renew(&self, passed_on: u64) {
        let mut inner = self.core.lock();
        match &mut inner.peer {
            Peer::Session(session) => session.renew(now(), passed_on),
            Peer::Plain(plain) => plain.close(now(), CloseCode::RESTART, BACKEND_LOST),
        }
        if inner.state() == SessionState::Over {
            inner.wake_application();
        }
        drop(inner);
        self.core.signal.ask();
    }

    /// What the application keeps for the session was replaced, and the session goes on: what was sent from there
    /// meanwhile may be missing. A client that speaks `mainstay.v1` gets an event in this place of its stream
    /// ([`Event::Replaced`](crate::client::Event::Replaced)); a plain one cannot be told.
    ///
    /// Source: `docs/PROTOCOL.md` "80 REPLACED".
    pub fn note_replaced(&self) {
        self.core.note_replaced();
    }

    /// How the client left: the Close of a plain one, the END of one that speaks `mainstay.v1`. `None` while it did not,
    /// and for good where it vanished.
    #[must_use]
    pub fn peer_close(&self) -> Option<PeerClose> {
        match &self.core.lock().peer {
            Peer::Session(session) => session.peer_close().cloned(),
            Peer::Plain(plain) => plain.peer_close().cloned(),
        }
    }

    /// Sends a message; waits while the window is full. It is kept until the client acknowledges it,
    /// over as many connections as that takes. Towards a plain peer it is kept until it is written.
    ///
    /// # Errors
    /// The session is over, or the client takes no message that is as large: the message comes back.
    ///
    /// # Cancel safety
    /// Safe: a message is accepted only when this returns.
    pub fn send(
        &self,
        message: impl Into<Message>,
    ) -> impl Future<Output = Result<(), SendError>> + Send + '_ {
        send(&self.core, message.into())
    }

    /// Sends a message, or gives it back at once.
    ///
    /// # Errors
    /// The window is full, the session is over, or the client takes no message that is as large.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.core.try_send(message.into())
    }

    /// Sends a message that is not kept: lost if the client is away, never replayed. For what the
    /// next one makes worthless: cursors, prices.
    pub fn send_volatile(&self, message: impl Into<Message>) {
        self.core.send_volatile(message.into());
    }

    /// Ends the session in order: what was accepted before is delivered first.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.core.close(code, reason);
    }

    /// A handle that sends from elsewhere.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender { core: Arc::clone(&self.core) }
    }

    /// Waits until the state differs from what was returned (or first seen) before, and returns it.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed(&mut self) -> SessionState {
        let state = poll_fn(|cx| {
            let mut inner = self.core.lock();
            let state = inner.state();
            if Seen::of(state) != self.seen {
                return Poll::Ready(state);
            }
            inner.wait_for_change(cx.waker());
            Poll::Pending
        })
        .await;
        self.seen = Seen::of(state);
        state
    }

    /// Whether a connection is attached.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.core.lock().state()
    }

    /// What is known of the client.
    #[must_use]
    pub fn peer(&self) -> &PeerFacts {
        &self.core.facts
    }

    /// The public name; `None` for a plain peer.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.core.with_session(|session| session.id())
    }

    /// How many messages were dropped because the client did not keep up; see
    /// [`drop_oldest`](super::SessionUpgrade::drop_oldest).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.core.with_session(|session| session.dropped()).unwrap_or(0)
    }

    /// The smoothed round-trip time of the heartbeats on the current connection.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        match &self.core.lock().peer {
            Peer::Session(session) => session.rtt(),
            Peer::Plain(plain) => plain.rtt(),
        }
    }
}

/// A [`SessionState`] in half of its size.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen(u64);

impl Seen {
    fn of(state: SessionState) -> Self {
        match state {
            SessionState::Attached { epoch } => Self(epoch),
            SessionState::Parked => Self(0),
            SessionState::Over => Self(u64::MAX),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close(CloseCode::NORMAL, "");
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Sender {
    /// As [`Session::send`].
    ///
    /// # Errors
    /// The session is over.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn send(
        &self,
        message: impl Into<Message>,
    ) -> impl Future<Output = Result<(), SendError>> + Send + '_ {
        send(&self.core, message.into())
    }

    /// As [`Session::try_send`].
    ///
    /// # Errors
    /// The window is full, the session is over, or the client takes no message that is as large.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.core.try_send(message.into())
    }

    /// As [`Session::send_volatile`].
    pub fn send_volatile(&self, message: impl Into<Message>) {
        self.core.send_volatile(message.into());
    }

    /// As [`Session::close`].
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.core.close(code, reason);
    }

    /// As [`Session::confirm_oldest`].
    pub fn confirm_oldest(&self, count: u64) {
        self.core.confirm_oldest(count);
    }

    /// As [`Session::note_replaced`].
    pub fn note_replaced(&self) {
        self.core.note_replaced();
    }

    /// Waits until the session is over: nothing that is sent from then on gets anywhere.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + '_ {
        poll_fn(|cx| {
            let mut inner = self.core.lock();
            if inner.state() == SessionState::Over {
                return Poll::Ready(());
            }
            inner.wait_for_change(cx.waker());
            Poll::Pending
        })
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(..)")
    }
}

fn send(core: &CoreRef, message: Message) -> impl Future<Output = Result<(), SendError>> + Send + '_ {
    let mut waiting = Some(message);
    poll_fn(move |cx| {
        let Some(message) = waiting.take() else { return Poll::Ready(Ok(())) };
        let mut inner = core.lock();
        let pressure = core.shared.config.budget.pressure();
        match inner.try_send(message, pressure) {
            Err(SendError::Full(message)) => {
                waiting = Some(message);
                inner.wait_for_room(cx.waker());
                if pressure.is_some() && core.wait_for_memory(&mut inner).is_none() {
                    // It fell just now, and nobody else would say so.
                    inner.wake_senders();
                }
                Poll::Pending
            }
            done => {
                drop(inner);
                core.signal.ask();
                Poll::Ready(done)
            }
        }
    })
}

impl Core {
    fn confirm_oldest(&self, count: u64) {
        self.with_session(|session| session.confirm_oldest(now(), count));
        self.signal.ask();
    }

    fn note_replaced(&self) {
        self.with_session(|session| session.note_replaced());
        self.signal.ask();
    }

    fn try_send(&self, message: Message) -> Result<(), SendError> {
        let sent = self.lock().try_send(message, self.shared.config.budget.pressure());
        self.signal.ask();
        sent
    }

    fn send_volatile(&self, message: Message) {
        match &mut self.lock().peer {
            Peer::Session(session) if message.len() as u64 > session.largest() => {
                tracing::debug!(bytes = message.len(), "a volatile message is larger than the client takes");
            }
            Peer::Session(session) => session.send_volatile(message),
            Peer::Plain(plain) => drop(plain.send(message)),
        }
        self.signal.ask();
    }

    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        match &mut self.lock().peer {
            Peer::Session(session) => session.close(now(), code, reason),
            Peer::Plain(plain) => plain.close(now(), code, reason),
        }
        self.signal.ask();
    }
}

impl Inner {
    pub(super) fn state(&self) -> SessionState {
        match &self.peer {
            Peer::Session(session) if session.is_over().is_some() => SessionState::Over,
            Peer::Session(session) if session.connection().is_some() => {
                SessionState::Attached { epoch: session.epoch() }
            }
            Peer::Session(_) => SessionState::Parked,
            Peer::Plain(plain) if plain.is_over() => SessionState::Over,
            Peer::Plain(_) => SessionState::Attached { epoch: 1 },
        }
    }

    fn try_send(&mut self, message: Message, pressure: Option<Pressure>) -> Result<(), SendError> {
        let room = |is_away| pressure.map_or(u64::MAX, |pressure| pressure.room(is_away));
        let (open, largest, sent) = match &mut self.peer {
            Peer::Session(session) => {
                let is_away = session.connection().is_none();
                let sent = session.send_within(message, room(is_away));
                (session.is_open(), session.largest(), sent.map(|_| ()))
            }
            Peer::Plain(plain) => (plain.is_open(), u64::MAX, plain.send_within(message, room(false))),
        };
        sent.map_err(|message| match open {
            true if message.len() as u64 > largest => SendError::TooLarge { message, limit: largest },
            true => SendError::Full(message),
            false => SendError::Over(message),
        })
    }
}
