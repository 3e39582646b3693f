//! The client: one handle that stays, over as many connections as it takes.
//!
//! It dials, detects a dead connection, dials again with a jittered backoff, and resumes its session:
//! what was sent is delivered once and in order, what the server sent meanwhile is replayed. Where
//! that cannot be kept there is one [`Event::Gap`]. Towards a server that turns out to speak plain
//! WebSocket it reconnects, confirms what was taken in by Ping, and says what that could not keep. Where
//! that is known beforehand, use a [`Link`](crate::Link), which can be told how.
//!
//! ```no_run
//! use mainstay::{Client, Message};
//!
//! # async fn run() -> Result<(), mainstay::client::UrlError> {
//! let mut client = Client::builder("ws://127.0.0.1:8080/echo")?.connect();
//! client.send(Message::text("hello")).await.ok();
//! while let Some(message) = client.recv().await {
//!     println!("{:?}", message.as_text());
//! }
//! # Ok(())
//! # }
//! ```

mod builder;
mod connector;
mod core;
mod dial;
mod error;
mod events;
mod place;
mod proxy;
mod rejection;
mod sender;
mod sink;
mod stream;
mod task;
#[cfg(feature = "tls")]
mod tls;
mod watch;

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use mainstay_proto::connect::ConnectConfig;
use mainstay_proto::session::Message;
use mainstay_proto::session::message::SessionId;
use mainstay_proto::ws::CloseCode;
use tokio::sync::oneshot;

pub use self::builder::{Builder, Request};
pub use self::connector::Connector;
pub use self::dial::Upgraded;
pub use self::error::{AuthenticateError, BoxError, ConnectError, UrlError, UrlErrorKind};
pub use self::place::Place;
pub use self::proxy::Proxy;
pub use self::rejection::Rejection;
pub use self::sender::Sender;
pub use self::stream::ServerStream;
pub use self::watch::{Changes, Events};

pub use mainstay_proto::connect::{
    End, EndCause, EndsOn, Event, Incoming, Lost, Mode, ReasonCode, Report, State,
};
pub use mainstay_proto::endpoint::Follow;
pub use mainstay_proto::failure::Failure;
pub use mainstay_proto::reach::{ConnectFailure, FailureKind};
pub use mainstay_proto::ws::DeflateParams;
pub use mainstay_proto::ws::handshake::InvalidProtocol;
/// What [`Builder::tls`] takes its configuration from.
#[cfg(feature = "tls")]
pub use rustls;

use self::core::Core;
use crate::SendError;
use crate::clock::now;

/// What a [`Client`] expects of its peer: `mainstay.v1`, or plain WebSocket if it does not speak that.
#[derive(Debug)]
pub enum Sessions {}

/// A connection that stays. [`close`](Self::close) ends it in order and waits for that; dropping it does
/// the same in the background.
///
/// `P` is what is expected of the peer. Leave it away; [`Link`](crate::Link) is the other kind.
pub struct Client<P = Sessions> {
    pub(crate) core: Arc<Core>,
    /// Taken by `start_send`, given to the machine when there is room.
    sending: Option<Message>,
    /// What [`changed`](Self::changed) returned last.
    seen: State,
    peer: PhantomData<fn() -> P>,
}

/// What became of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The peer has it: its application (`mainstay.v1`), or its WebSocket stack (plain peers).
    Delivered,
    /// It certainly was not delivered, and will not be.
    NotDelivered,
    /// It may or may not have been.
    Unknown,
}

/// Settles when it is known what became of a message. Dropping it changes nothing.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Outcome>);

impl Future for Receipt {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        // A client that is gone cannot say any more.
        Pin::new(&mut self.0).poll(cx).map(|settled| settled.unwrap_or(Outcome::Unknown))
    }
}

impl Client {
    /// A client for `url`: `ws://`, `wss://` or a Unix socket, as [`Place`] reads them.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn builder(url: &str) -> Result<Builder, UrlError> {
        Builder::new(url, ConnectConfig::default())
    }

    /// The public name of the session, for logs; `None` before the first attach and towards a plain peer.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.core.lock().machine.id()
    }

    /// With [`Builder::manual_ack`]: everything that [`recv`](Self::recv) has returned so far is
    /// handled. See `server::Session::confirm`.
    pub fn ack(&self) {
        self.core.change(|inner| inner.machine.acknowledge(now()));
    }

    /// Presents new credentials in place of [`Builder::credentials`], and waits for the verdict: on the live
    /// connection, or in the next HELLO while there is none. A server that speaks `mainstay.v1` asks the
    /// function that its application gave.
    ///
    /// # Errors
    /// See [`AuthenticateError`].
    ///
    /// # Cancel safety
    /// They are presented all the same, only the waiting ends.
    pub async fn authenticate(&self, credentials: impl Into<Bytes>) -> Result<(), AuthenticateError> {
        let verdict = self.core.change(|inner| inner.authenticate(credentials.into()))?;
        verdict.await.unwrap_or(Err(AuthenticateError::Replaced))
    }
}

impl<P> Client<P> {
    fn begun(core: Arc<Core>, seen: State) -> Self {
        Self { core, sending: None, seen, peer: PhantomData }
    }

    /// The next message, in order; `None` once nothing follows. What was lost with a session is an
    /// [`Event::Gap`], what the server dropped by its own policy an [`Event::Dropped`]: the event is there before the first
    /// message behind that place is returned. [`recv_any`](Self::recv_any) has both in one stream.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only when it is returned.
    pub async fn recv(&mut self) -> Option<Message> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next message, or what stands between two of them, in order; `None` once nothing follows.
    ///
    /// # Cancel safety
    /// Safe, as [`recv`](Self::recv).
    pub async fn recv_any(&mut self) -> Option<Incoming> {
        poll_fn(|cx| self.core.lock().poll_recv_any(&self.core.signal, cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let mut inner = self.core.lock();
        loop {
            if inner.waits_for_listener() {
                // In a `select!` over the events and this, the event has its turn first.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match std::task::ready!(inner.poll_recv_any(&self.core.signal, cx)) {
                None => return Poll::Ready(None),
                Some(Incoming::Message(message)) => return Poll::Ready(Some(message)),
                // An event tells of it, and has its turn before what follows.
                Some(_) => {}
            }
        }
    }

    /// As [`Sender::send`].
    ///
    /// # Errors
    /// The client has ended, its link's policy is to fail, or the server takes no message that is as large: the message
    /// comes back.
    ///
    /// # Cancel safety
    /// Safe: a message is accepted only when this returns.
    pub fn send(
        &self,
        message: impl Into<Message>,
    ) -> impl Future<Output = Result<(), SendError>> + Send + '_ {
        sender::send(&self.core, message.into())
    }

    /// As [`Sender::send_tracked`].
    ///
    /// # Errors
    /// The client has ended, its link's policy is to fail, or the server takes no message that is as large: the message
    /// comes back.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn send_tracked(
        &self,
        message: impl Into<Message>,
    ) -> impl Future<Output = Result<Receipt, SendError>> + Send + '_ {
        sender::send_tracked(&self.core, message.into())
    }

    /// Sends a message, or gives it back at once.
    ///
    /// # Errors
    /// The window is full, the client has ended, or the server takes no message that is as large.
    pub fn try_send(&self, message: impl Into<Message>) -> Result<(), SendError> {
        self.core.change(|inner| inner.send(message.into())).map(drop)
    }

    /// As [`Sender::send_volatile`].
    pub fn send_volatile(&self, message: impl Into<Message>) {
        self.core.change(|inner| inner.machine.send_volatile(message.into()));
    }

    /// A handle that sends from elsewhere.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender::new(&self.core)
    }

    /// The next event; `None` after [`Event::Ended`]. See [`Events::next`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn event(&self) -> Option<Event> {
        self.events().next().await
    }

    /// A handle on the events, to be awaited beside [`recv`](Self::recv).
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(&self.core)
    }

    /// Something suggests that the network changed: dials at once if waiting, probes if attached.
    pub fn probe_now(&self) {
        self.core.change(|inner| inner.machine.probe_now(now()));
    }

    /// Gives up the present connection for another, whatever it is worth, and dials at once: for an application that knows
    /// better, as that its URL or its rights changed. A session goes on over it; a plain peer is a
    /// [fresh one](Incoming::FreshPeer).
    pub fn reconnect(&self) {
        self.core.change(|inner| inner.machine.reconnect(now()));
    }

    /// Ends in order: what was accepted is delivered first, for at most 10 s. Nothing more is handed over:
    /// [`recv`](Self::recv) returns `None` from now on.
    ///
    /// # Cancel safety
    /// Safe: the closing goes on, only the waiting ends.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        close(&self.core, code, reason).await;
    }

    /// Ends now. The peer is told so where a connection is attached, and nothing is waited for: what was not acknowledged
    /// may have arrived or not. [`take_undelivered`](Self::take_undelivered) has it.
    pub fn abort(&self, code: CloseCode, reason: &str) {
        self.core.abort(code, reason);
    }

    /// Why it has ended; `None` as long as it has not.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        self.core.lock().machine.end().cloned()
    }

    /// After the end, once: what was accepted and is not known to be delivered, in the order in which it was sent. First
    /// what may have arrived and then what certainly did not, as [`Event::Report`] and [`End::fate`] number them.
    #[must_use]
    pub fn take_undelivered(&self) -> Vec<Message> {
        self.core.lock().machine.take_undelivered()
    }

    /// What the client is doing.
    #[must_use]
    pub fn state(&self) -> State {
        self.core.lock().machine.state()
    }

    /// Waits until the state differs from what was returned (or first seen) before, and returns it. A
    /// state that passed meanwhile is not returned; the [`events`](Self::events) tell of every one.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed(&mut self) -> State {
        self.seen = watch::changed(&self.core, self.seen).await;
        self.seen
    }

    /// A handle on the changes of the state, to be awaited beside [`recv`](Self::recv).
    ///
    /// ```no_run
    /// # async fn run(mut client: mainstay::Client) {
    /// let mut changes = client.changes();
    /// loop {
    ///     tokio::select! {
    ///         message = client.recv() => match message {
    ///             Some(message) => println!("{message:?}"),
    ///             None => break,
    ///         },
    ///         Some(state) = changes.next() => println!("{state:?}"),
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes::new(&self.core)
    }

    /// The smoothed round-trip time of this end's probes on the current connection. A session's server
    /// drives the heartbeat, so its client knows one only after a probe of its own.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.core.lock().machine.rtt()
    }

    /// The application's subprotocol that was agreed on with the newest connection.
    #[must_use]
    pub fn subprotocol(&self) -> Option<String> {
        self.core.lock().subprotocol.clone()
    }

    /// The fields of the response that opened the newest connection: a balancer's cookie, limits, the server's name.
    /// `None` before the first, where the builder [keeps none](Builder::keep_response), and with a connection that was
    /// adopted.
    #[must_use]
    pub fn response_headers(&self) -> Option<HeaderMap> {
        self.core.lock().response.as_deref().cloned()
    }

    /// The HTTP response to the newest attempt, where it opened no WebSocket: status, header fields and body. The reason
    /// in words is in [`Event::AttemptFailed`] and [`Event::Ended`].
    #[must_use]
    pub fn rejection(&self) -> Option<Rejection> {
        self.core.lock().rejection.as_deref().cloned()
    }
}

async fn close(core: &Core, code: CloseCode, reason: &str) {
    core.close(code, reason);
    poll_fn(|cx| core.lock().poll_finished(cx)).await;
}

impl<P> Drop for Client<P> {
    fn drop(&mut self) {
        self.core.change(|inner| {
            inner.abandoned = true;
            inner.machine.close(now(), CloseCode::GOING_AWAY, "");
        });
    }
}

impl<P> std::fmt::Debug for Client<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("state", &self.state()).finish_non_exhaustive()
    }
}
