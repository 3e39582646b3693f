//! The application's handle on one session.

use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;

use mainstay_proto::budget::Pressure;
use mainstay_proto::session::message::{GapCause, SessionId};
use mainstay_proto::session::server::BACKEND_LOST;
use mainstay_proto::session::{Delivery, End, EndCause, Message, PeerClose, ServerSession};
use mainstay_proto::ws::CloseCode;

use super::core::{Core, CoreRef, Inner, Peer};
use super::stats::Counters;
use super::upgrade::PeerInfo;
use crate::SendError;
use crate::clock::now;

/// One session, in the hands of its handler.
///
/// It outlives connections: while the client is away, [`recv`](Self::recv) waits and
/// [`send`](Self::send) keeps. Dropping it (when the handler returns) ends the session in order, as
/// [`close`](Self::close) does. It is a [`Stream`] of messages, too.
///
/// ```no_run
/// # use mainstay::{Session, server::SessionState};
/// async fn member(mut session: Session) {
///     let mut changes = session.changes();
///     loop {
///         tokio::select! {
///             message = session.recv() => match message {
///                 Some(message) => drop(session.send(message).await),
///                 None => break,
///             },
///             Some(state) = changes.next() => println!("away: {}", state == SessionState::Parked),
///         }
///     }
///     println!("{:?}, and {} messages never arrived", session.end(), session.take_undelivered().len());
/// }
/// ```
pub struct Session {
    core: CoreRef,
    /// The state that `changed` returned last.
    seen: Seen,
}

/// Sends into a session from elsewhere. Cheap to clone; does not keep the session open.
///
/// Two senders are equal if they send into the same session.
///
/// Tests and demonstrations also break the session's connection with it: [`cut`](Self::cut), [`hold`](Self::hold),
/// [`go_away`](Self::go_away).
#[derive(Clone)]
pub struct Sender {
    pub(super) core: CoreRef,
}

/// Changes of a session's state, apart from the [`Session`], so that both can be waited for in one `select!`. A
/// [`Stream`], too. Does not keep the session open.
pub struct Changes {
    core: CoreRef,
    seen: Seen,
}

/// Something from the client's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionState {
    /// The client is there; `epoch` counts how often it came.
    Attached {
        /// From 1.
        epoch: u64,
    },
    /// The client is away, and its session is kept.
    Parked,
    /// Nothing follows.
    Closed,
}

impl Session {
    pub(super) fn new(core: CoreRef) -> Self {
        let seen = Seen::of(core.lock().state());
        Self { core, seen }
    }

    /// The next message of the client, in order; `None` once the session is over, and from [`close`](Self::close) on:
    /// nothing is received that comes after it. [`end`](Self::end) says why.
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
        poll_fn(|cx| self.poll_message(cx))
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
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
            Peer::Session(session) => match session.deliver(now()) {
                Some(Delivery::Message(message)) => Some(Received::Message(message)),
                Some(Delivery::Gap { first, count, cause }) => {
                    Counters::add(&self.core.shared.stats.gaps, 1);
                    Some(Received::Gap { first, count, cause })
                }
                // Only servers write it, and a client's is ignored.
                Some(Delivery::Replaced { .. }) => None,
                None => session.deliver_volatile().map(Received::Volatile),
            },
            Peer::Plain(plain) => plain.deliver().map(Received::Message),
        };
        if received.is_some() {
            drop(inner);
            // An acknowledgement may be due now, or a full inbox may have room again.
            self.core.signal.ask();
            return Poll::Ready(received);
        }
        if !inner.delivers() {
            return Poll::Ready(None);
        }
        inner.wait_for_message(cx.waker());
        Poll::Pending
    }

    /// Everything that [`recv`](Self::recv) has returned so far is handled: from here on the client may
    /// forget it. Only for a session that
    /// [`manual_ack`](super::SessionUpgrade::manual_ack) was called for; otherwise, and towards a
    /// plain peer, it does nothing.
    ///
    /// Whether confirmed or not, a message is returned once. What differs is what a client learns that loses
    /// its session: what was returned and not confirmed is *unknown* to it. Confirm before a quarter of
    /// [`Config::accept`](super::Config::accept) lies unconfirmed: when all of it does, nothing more comes.
    pub fn ack(&self) {
        let mut inner = self.core.lock();
        if let Peer::Session(session) = &mut inner.peer {
            session.acknowledge(now(), u64::MAX);
        }
        drop(inner);
        self.core.signal.ask();
    }

    /// As [`confirm`](Self::confirm), for the `count` oldest messages that [`recv`](Self::recv) has returned and
    /// nobody confirmed.
    pub fn ack_oldest(&self, count: u64) {
        self.core.ack_oldest(count);
    }

    /// Ends the session because what the application keeps for it is gone: a gateway's connection to its backend, an
    /// actor that crashed. What was sent to the client is delivered first, for at most 10 s while it is attached. Then a
    /// plain client is closed with 1012. A client that speaks `mainstay.v1` gets one gap event with the exact fate of
    /// each of its messages (cause [`Replaced`](mainstay_proto::session::message::LossCause::Replaced)) and a fresh session,
    /// in which its application begins anew.
    ///
    /// `passed_on` counts those of the returned and not [confirmed](Self::ack_oldest) messages that may have had an
    /// effect, the oldest first: their fate is unknown. The client sends those above them again. Without
    /// [`manual_ack`](super::SessionUpgrade::manual_ack) everything that was returned counts as delivered.
    ///
    /// Source: `docs/PROTOCOL.md` "Closing".
    pub fn renew(&self, passed_on: u64) {
        let mut inner = self.core.lock();
        match &mut inner.peer {
            Peer::Session(session) => session.renew(now(), passed_on),
            Peer::Plain(plain) => plain.close(now(), CloseCode::RESTART, BACKEND_LOST),
        }
        inner.wake_application();
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
            Peer::Session(session) => session.peer_close(),
            Peer::Plain(plain) => plain.peer_close(),
        }
    }

    /// Why the session ended, and with which code and reason; `None` while [`recv`](Self::recv) may return something.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.core.end()
    }

    /// What the client never acknowledged, in order, once the session is over: for a push notification, a mailbox, another
    /// day. Some of it may have arrived, if its acknowledgement did not. Of a plain client, which acknowledges nothing:
    /// what no connection took.
    ///
    /// Empty while the session still delivers, which it does for a while after [`close`](Self::close): wait for
    /// [`closed`](Self::closed) then. Empty the second time, too.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        match &mut self.core.lock().peer {
            Peer::Session(session) => session.take_undelivered(),
            Peer::Plain(plain) => plain.take_undelivered(),
        }
    }

    /// Waits until the session is over: nothing that is sent from then on gets anywhere.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + '_ {
        closed(&self.core)
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

    /// Ends the session in order: what was accepted before is delivered first, for as long as the client goes on
    /// acknowledging it (5 s without an acknowledgement are too many; `docs/DEFAULTS.md`). A client that is away has the
    /// resume window to come for it. From here on nothing more is received.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.core.close(code, reason);
    }

    /// Ends the session now: nothing more is received, and what was not written is not written any more. A client that is
    /// there is told code and reason.
    pub fn abort(&self, code: CloseCode, reason: &str) {
        self.core.abort(code, reason);
    }

    /// A handle that sends from elsewhere.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender { core: Arc::clone(&self.core) }
    }

    /// Waits until the state differs from what was returned (or first seen) before, and returns it. To wait for messages
    /// in the same `select!`, use [`changes`](Self::changes).
    ///
    /// # Cancel safety
    /// Safe.
    pub fn changed(&mut self) -> impl Future<Output = SessionState> + Send + '_ {
        poll_fn(|cx| self.seen.poll_change(&self.core, cx))
    }

    /// A handle that tells of changes of the state, from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.core.changes()
    }

    /// Whether a connection is attached.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.core.lock().state()
    }

    /// What is known of the client.
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
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
    fn poll_change(&mut self, core: &Core, cx: &mut Context<'_>) -> Poll<SessionState> {
        let mut inner = core.lock();
        let state = inner.state();
        if Self::of(state) == *self {
            inner.wait_for_change(cx.waker());
            return Poll::Pending;
        }
        *self = Self::of(state);
        Poll::Ready(state)
    }

    fn of(state: SessionState) -> Self {
        match state {
            SessionState::Attached { epoch } => Self(epoch),
            SessionState::Parked => Self(0),
            SessionState::Closed => Self(u64::MAX),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.core.close_for(EndCause::Panicked, CloseCode::INTERNAL_ERROR, "the handler panicked");
        } else {
            self.close(CloseCode::NORMAL, "");
        }
        self.core.lock().forget_undelivered();
    }
}

impl Stream for Session {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_message(cx)
    }
}

impl Changes {
    /// The next state that differs from the one before; `None` after [`Closed`](SessionState::Over). States that came and
    /// went meanwhile are left out.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Option<SessionState> {
        poll_fn(|cx| self.poll_change(cx)).await
    }

    fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<Option<SessionState>> {
        if self.seen == Seen::of(SessionState::Closed) {
            return Poll::Ready(None);
        }
        self.seen.poll_change(&self.core, cx).map(Some)
    }
}

impl Stream for Changes {
    type Item = SessionState;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SessionState>> {
        self.poll_change(cx)
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes(..)")
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

    /// As [`Session::abort`].
    pub fn abort(&self, code: CloseCode, reason: &str) {
        self.core.abort(code, reason);
    }

    /// As [`Session::id`].
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.core.with_session(|session| session.id())
    }

    /// As [`Session::state`].
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.core.lock().state()
    }

    /// Whether the session is over: nothing that is sent from now on gets anywhere.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state() == SessionState::Closed
    }

    /// As [`Session::end`].
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.core.end()
    }

    /// As [`Session::changes`].
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.core.changes()
    }

    /// As [`Session::peer`].
    #[must_use]
    pub fn peer(&self) -> &PeerInfo {
        &self.core.facts
    }

    /// As [`Session::ack_oldest`].
    pub fn ack_oldest(&self, count: u64) {
        self.core.ack_oldest(count);
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
        closed(&self.core)
    }
}

impl PartialEq for Sender {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.core, &other.core)
    }
}

impl Eq for Sender {}

impl Hash for Sender {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.core).hash(state);
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(..)")
    }
}

fn closed(core: &CoreRef) -> impl Future<Output = ()> + Send + '_ {
    poll_fn(|cx| {
        let mut inner = core.lock();
        if inner.state() == SessionState::Closed {
            return Poll::Ready(());
        }
        inner.wait_for_change(cx.waker());
        Poll::Pending
    })
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
    fn ack_oldest(&self, count: u64) {
        self.with_session(|session| session.acknowledge_oldest(now(), count));
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

    /// A plain client, which cannot be told of a gap, may be full.
    pub(super) fn send_dropping_oldest(&self, message: Message) -> Result<(), SendError> {
        let sent = self.lock().send_dropping_oldest(message, self.shared.config.budget.pressure());
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
        self.close_for(EndCause::Closed, code, reason);
    }

    pub(super) fn close_for(&self, cause: EndCause, code: CloseCode, reason: &str) {
        let mut inner = self.lock();
        match &mut inner.peer {
            Peer::Session(session) => session.close_for(now(), cause, code, reason),
            Peer::Plain(plain) => plain.close_for(now(), cause, code, reason),
        }
        inner.wake_application();
        drop(inner);
        self.signal.ask();
    }

    fn abort(&self, code: CloseCode, reason: &str) {
        let mut inner = self.lock();
        match &mut inner.peer {
            Peer::Session(session) => session.abort(now(), code, reason),
            Peer::Plain(plain) => plain.abort(now(), code, reason),
        }
        inner.wake_application();
        drop(inner);
        self.signal.ask();
    }

    fn end(&self) -> Option<End> {
        self.lock().end()
    }

    fn changes(self: &Arc<Self>) -> Changes {
        let seen = Seen::of(self.lock().state());
        Changes { core: Arc::clone(self), seen }
    }
}

impl Inner {
    pub(super) fn state(&self) -> SessionState {
        match &self.peer {
            Peer::Session(session) if session.is_final() => SessionState::Closed,
            Peer::Session(session) if session.connection().is_some() => {
                SessionState::Attached { epoch: session.epoch() }
            }
            Peer::Session(_) => SessionState::Parked,
            Peer::Plain(plain) if plain.is_final() => SessionState::Closed,
            Peer::Plain(_) => SessionState::Attached { epoch: 1 },
        }
    }

    /// Whether something may still be received.
    pub(super) fn delivers(&self) -> bool {
        match &self.peer {
            Peer::Session(session) => session.delivers(),
            Peer::Plain(plain) => plain.delivers(),
        }
    }

    pub(super) fn end(&self) -> Option<End> {
        match &self.peer {
            Peer::Session(session) => session.end(),
            Peer::Plain(plain) => plain.end(),
        }
    }

    fn forget_undelivered(&mut self) {
        match &mut self.peer {
            Peer::Session(session) => session.forget_undelivered(),
            Peer::Plain(plain) => plain.forget_undelivered(),
        }
    }

    fn try_send(&mut self, message: Message, pressure: Option<Pressure>) -> Result<(), SendError> {
        self.send_with(message, pressure, ServerSession::send_within)
    }

    fn send_dropping_oldest(
        &mut self,
        message: Message,
        pressure: Option<Pressure>,
    ) -> Result<(), SendError> {
        self.send_with(message, pressure, ServerSession::send_dropping_oldest)
    }

    fn send_with(
        &mut self,
        message: Message,
        pressure: Option<Pressure>,
        send: fn(&mut ServerSession, Message, u64) -> Result<u64, Message>,
    ) -> Result<(), SendError> {
        let room = |is_away| pressure.map_or(u64::MAX, |pressure| pressure.room(is_away));
        let (open, largest, sent) = match &mut self.peer {
            Peer::Session(session) => {
                let is_away = session.connection().is_none();
                let sent = send(session, message, room(is_away));
                (session.is_open(), session.largest(), sent.map(|_| ()))
            }
            Peer::Plain(plain) => (plain.is_open(), u64::MAX, plain.send_within(message, room(false))),
        };
        sent.map_err(|message| match open {
            true if message.len() as u64 > largest => SendError::TooLarge { message, limit: largest },
            true => SendError::Full(message),
            false => SendError::Closed(message),
        })
    }
}
