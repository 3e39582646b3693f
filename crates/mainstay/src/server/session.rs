//! The application's handle on one session.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use mainstay_proto::session::message::GapCause;
use mainstay_proto::session::{Delivery, EndCause, Message, PeerClose};
use mainstay_proto::timeline::{ClientName, Event};
use mainstay_proto::ws::CloseCode;

use super::changes::Seen;
use super::core::CoreRef;
use super::inner::Inner;
use super::peer::SessionState;
use super::sender::{Sender, shared_verbs};
use super::stats::Counters;
use crate::clock::now;

/// One session, owned by its handler.
///
/// A session outlives connections: while the client is away, [`recv`](Self::recv) waits and [`send`](Self::send) keeps
/// messages. The drop of this value, when the handler returns, ends the session in order, as [`close`](Self::close) does.
/// It is a `Stream` and a `Sink` of messages, too.
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
///     println!("{:?}, and {} messages were not delivered", session.end(), session.take_undelivered().len());
/// }
/// ```
pub struct Session {
    pub(super) core: CoreRef,
    /// The state that `changed` returned last.
    seen: Seen,
}

/// What the client sent.
///
/// ```no_run
/// # use mainstay::{Session, server::Received};
/// # async fn handler(mut session: Session) {
/// while let Some(received) = session.recv_any().await {
///     match received {
///         Received::Message(message) => println!("{message:?}"),
///         Received::Gap { count, cause, .. } => println!("the client dropped {count} messages: {cause:?}"),
///         Received::Volatile(position) => println!("cursor: {position:?}"),
///         _ => {}
///     }
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Received {
    /// A message.
    Message(Message),
    /// A gap: the client's policy dropped messages here.
    Gap {
        /// The number of the first.
        first: u64,
        /// How many.
        count: u64,
        /// Why.
        cause: GapCause,
    },
    /// A message outside the order: the client sent it with `send_volatile`.
    Volatile(Message),
}

shared_verbs!(Session);

impl Session {
    pub(super) fn new(core: CoreRef) -> Self {
        let seen = Seen::of(core.lock().peer.state());
        Self { core, seen }
    }

    /// Receives the next message of the client, in order; `None` once the session is over, and after
    /// [`close`](Self::close): a closed session receives nothing more. [`end`](Self::end) returns the reason.
    ///
    /// A returned message counts as received, so the client may forget it, unless the application
    /// [acknowledges](Self::ack) by itself. `recv` counts and skips a gap that the client's own policy made, and drops
    /// volatile messages; [`recv_any`](Self::recv_any) returns both.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only when it is returned.
    pub fn recv(&mut self) -> impl Future<Output = Option<Message>> + Send + '_ {
        // A handler's future is held for as long as its connection: no state machine where a closure will do.
        poll_fn(|cx| self.poll_message(cx))
    }

    pub(super) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
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

    /// As [`recv`](Self::recv), parsed as JSON. A message that is no JSON of this type is received all the same.
    ///
    /// # Cancel safety
    /// Safe, as [`recv`](Self::recv).
    #[cfg(feature = "json")]
    pub async fn recv_json<T: serde::de::DeserializeOwned>(
        &mut self,
    ) -> Option<Result<T, serde_json::Error>> {
        crate::json::parse(self.recv().await)
    }

    /// Receives the next message or gap, in order; when there is none, the next volatile message. The newest 64 volatile
    /// messages (256 KiB) wait. `None` once the session is over.
    ///
    /// # Cancel safety
    /// Safe, as [`recv`](Self::recv).
    pub fn recv_any(&mut self) -> impl Future<Output = Option<Received>> + Send + '_ {
        poll_fn(|cx| self.poll_recv(cx))
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        let mut inner = self.core.lock();
        let received = match inner.peer.deliver(now()) {
            Some(Delivery::Message(message)) => Some(Received::Message(message)),
            Some(Delivery::Gap { first, count, cause }) => {
                Counters::add(&self.core.shared.stats.gaps, 1);
                self.note_gap(&inner, count);
                Some(Received::Gap { first, count, cause })
            }
            _ => inner.peer.deliver_volatile().map(Received::Volatile),
        };
        if received.is_some() {
            drop(inner);
            // An acknowledgement may be due now, or a full inbox may have room again.
            self.core.signal.ask();
            return Poll::Ready(received);
        }
        if !inner.peer.delivers() {
            return Poll::Ready(None);
        }
        inner.wait_for_message(cx.waker());
        Poll::Pending
    }

    fn note_gap(&self, inner: &Inner, count: u64) {
        if let Some(id) = inner.peer.id() {
            self.core.shared.timeline.note(Some(ClientName::Session(id)), Event::Gap { count });
        }
    }

    /// Acknowledges everything that [`recv`](Self::recv) has returned so far: from here on the client may forget it. Only
    /// for a session with [`manual_ack`](crate::SessionUpgrade::manual_ack); otherwise, and towards a plain peer, it does
    /// nothing.
    ///
    /// A message is returned once, acknowledged or not. The difference is what a client learns that loses its session: a
    /// message that was returned and not acknowledged is *unknown* to it. Acknowledge before a quarter of
    /// [`Config::accept`](super::Config::accept) is unacknowledged: when all of it is, the client sends nothing more.
    pub fn ack(&self) {
        self.core.change(|peer| {
            if let Some(session) = peer.session_mut() {
                session.acknowledge(now(), u64::MAX);
            }
        });
    }

    /// Ends the session because the application lost the state behind it: the connection to a backend, an actor that
    /// crashed. Messages to the client are delivered first, for at most 10 s while it is attached. Then a plain client is
    /// closed with 1012. A client that speaks `mainstay.v1` gets one gap event with the exact fate of each of its messages
    /// (cause [`Replaced`](crate::LossCause::Replaced)) and a fresh session, in which its application begins anew.
    ///
    /// `passed_on` is the number of returned and not [acknowledged](Self::ack_oldest) messages, the oldest first, that may
    /// have had an effect: their fate is unknown. The client sends the later ones again. Without
    /// [`manual_ack`](crate::SessionUpgrade::manual_ack) every returned message counts as delivered.
    ///
    /// Source: `docs/PROTOCOL.md` "Closing".
    pub fn renew(&self, passed_on: u64) {
        self.core.change_state(|peer| peer.renew(now(), passed_on));
    }

    /// Keeps what the next handler starts with, if the session [moves](crate::SessionUpgrade::movable) to another server. It
    /// replaces what was saved before, and moves together with the messages that were sent and received before this call:
    /// save right behind what changes the state, with no `await` in between. It does nothing for a plain peer.
    #[cfg(feature = "cluster")]
    pub fn save(&self, state: impl Into<bytes::Bytes>) {
        let state = state.into();
        self.core.with_session(|session| session.save(state));
    }

    /// Returns what was [saved](Self::save) last. A handler that starts with a session that moved here finds what the handler
    /// before it saved on the other server; `None` in a session that begins here.
    #[cfg(feature = "cluster")]
    #[must_use]
    pub fn restored(&self) -> Option<bytes::Bytes> {
        self.core.with_session(|session| session.saved().cloned()).flatten()
    }

    /// Whether the session leaves this server: [`recv`](Self::recv) returned `None` because of that. Once the handler has
    /// returned, a [movable](crate::SessionUpgrade::movable) session goes on elsewhere, and what the handler sends until then
    /// moves along; only [`close`](Self::close) and [`abort`](Self::abort) still end it. One in manual mode that may not move ends
    /// with its account, which counts what the handler acknowledges until then.
    #[cfg(feature = "cluster")]
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.core.with_session(|session| session.is_leaving()) == Some(true)
    }

    /// Returns how the client left: the Close of a plain client, the END of one that speaks `mainstay.v1`. `None` before
    /// that, and if the client vanished.
    #[must_use]
    pub fn peer_close(&self) -> Option<PeerClose> {
        self.core.lock().peer.peer_close()
    }

    /// Takes the messages that the client never acknowledged, in order, once the session is over: for a push notification,
    /// a mailbox, another day. Some of them may have arrived, if their acknowledgement did not. A plain client acknowledges
    /// nothing: then these are the messages that were not written.
    ///
    /// Empty while the session still delivers, which it does for a while after [`close`](Self::close): wait for
    /// [`closed`](Self::closed) first. Empty also at the second call.
    pub fn take_undelivered(&mut self) -> Vec<Message> {
        self.core.lock().peer.take_undelivered()
    }

    /// Returns a handle that sends from elsewhere.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender::new(&self.core)
    }

    /// Waits until the state differs from the one that this call returned last, and returns it. To wait for messages in the
    /// same `select!`, use [`changes`](Self::changes).
    ///
    /// # Cancel safety
    /// Safe.
    pub fn changed(&mut self) -> impl Future<Output = SessionState> + Send + '_ {
        poll_fn(|cx| self.seen.poll_change(&self.core, cx))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.core.close(EndCause::Panicked, CloseCode::INTERNAL_ERROR, "the handler panicked");
        } else {
            self.core.change_state(|peer| peer.handle_dropped(now()));
        }
        self.core.lock().peer.forget_undelivered();
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
