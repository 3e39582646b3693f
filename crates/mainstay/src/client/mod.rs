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

mod answer;
mod connector;
mod dial;
mod events;
mod place;
mod stream;
mod task;
#[cfg(feature = "tls")]
mod tls;

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use mainstay_proto::backoff::BackoffConfig;
use mainstay_proto::connect::{Client as Machine, ConnectConfig};
use mainstay_proto::session::message::SessionId;
use mainstay_proto::session::{Credentials, Delivery, Message};
use mainstay_proto::ws::{CloseCode, Limits};
use tokio::sync::oneshot;

pub use self::answer::Refusal;
pub use self::connector::Connector;
pub use self::dial::Upgraded;
pub use self::place::Place;
pub use self::stream::ServerStream;

pub use mainstay_proto::connect::{EndsWith, Event, Lost, Mode, Report, State};
pub use mainstay_proto::endpoint::Follow;
pub use mainstay_proto::reach::{ConnectFailure, FailureKind};
pub use mainstay_proto::ws::DeflateParams;
pub use mainstay_proto::ws::handshake::InvalidProtocol;
/// What [`Builder::tls`] takes its configuration from.
#[cfg(feature = "tls")]
pub use rustls;

use self::dial::{Attempt, GiveUp, Opened};
use self::place::Server;
use self::task::{Core, Task};
use crate::clock::now;
use crate::link::Plain;
use crate::{Budget, SendError};

/// The subprotocol of `mainstay.v1`.
const SUBPROTOCOL: &str = "mainstay.v1";

/// A URL or header that no attempt could use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

/// Why new credentials did not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthenticateError {
    /// The server refused them. On a live session it goes on with those before; in HELLO that ends the client.
    #[error("the server refused the credentials")]
    Refused,
    /// Others were presented before these were judged.
    #[error("newer credentials took their place")]
    Replaced,
    /// The peer speaks plain WebSocket, where only the request carries credentials: see [`Builder::request`].
    #[error("a plain peer takes no credentials after its request")]
    Plain,
    /// The client has ended.
    #[error("the client has ended")]
    Over,
}

/// What an attempt is made with. Made anew before each by [`Builder::request`].
#[derive(Clone, Default)]
pub struct Request {
    /// Where to; `None`: the URL that the client was built with.
    pub url: Option<Uri>,
    /// Sent in addition to those of [`Builder::header`]; one of the same name takes their place.
    pub headers: HeaderMap,
    /// The application's subprotocols to offer, in order of preference; `None`: those of [`Builder::subprotocol`].
    pub subprotocols: Option<Vec<String>>,
    /// Sent inside the session's HELLO, as those of [`Builder::credentials`], and by later attempts too that bring
    /// none. Those of [`Client::authenticate`] that wait for their verdict come first. A plain peer gets none.
    pub credentials: Option<Bytes>,
}

/// Why [`Builder::connect_once`] came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct ConnectError {
    /// As in [`Event::Ended`]: below 1000 the status of the HTTP response that refused the opening handshake, else
    /// the code of the close or the refusal. `None`: nobody answered, or another attempt may succeed (503, 4413).
    pub code: Option<u64>,
    /// In words.
    pub reason: String,
    /// What the server answered, where it answered with anything but a WebSocket.
    pub refusal: Option<Box<Refusal>>,
}

type Factory = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Request, String>> + Send>> + Send + Sync>;

/// What a [`Client`] expects of its peer: `mainstay.v1`, or plain WebSocket if it does not speak that.
#[derive(Debug)]
pub enum Sessions {}

/// A client that is not connecting yet. `P` as in [`Client`].
pub struct Builder<P = Sessions> {
    target: Target,
    pub(crate) config: ConnectConfig,
    budget: Option<Budget>,
    peer: PhantomData<fn() -> P>,
}

/// What every attempt is made from.
#[derive(Clone)]
struct Target {
    url: Uri,
    headers: HeaderMap,
    subprotocols: Vec<String>,
    /// Whether `mainstay.v1` is offered.
    resumable: bool,
    deflate: bool,
    limits: Limits,
    follow: Follow,
    factory: Option<Factory>,
    connector: Connector,
    answer_timeout: Option<Duration>,
    give_up: Option<GiveUp>,
}

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The peer has it: its application (`mainstay.v1`), or its WebSocket stack (plain peers).
    Delivered,
    /// It certainly was not delivered, and will not be.
    Lost,
    /// It may or may not have been.
    Unknown,
}

/// Settles when it is known what became of a message. Dropping it changes nothing.
#[derive(Debug)]
pub struct Tracked(oneshot::Receiver<Outcome>);

impl Future for Tracked {
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

    /// With [`Builder::confirm_manually`]: everything that [`recv`](Self::recv) has returned so far is
    /// handled. See `server::Session::confirm`.
    pub fn confirm(&self) {
        self.core.change(|inner| inner.machine.confirm(now()));
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
    /// The next message, in order; `None` once nothing follows. What was lost with a session is an
    /// [`Event::Gap`], what the server dropped by its own policy an [`Event::Dropped`].
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
    pub async fn recv_any(&mut self) -> Option<Delivery> {
        poll_fn(|cx| self.poll_recv_any(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        loop {
            match std::task::ready!(self.poll_recv_any(cx)) {
                None => return Poll::Ready(None),
                Some(Delivery::Message(message)) => return Poll::Ready(Some(message)),
                // An event tells of it.
                Some(Delivery::Gap { .. } | Delivery::Replaced { .. }) => {}
            }
        }
    }

    fn poll_recv_any(&mut self, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let mut inner = self.core.lock();
        // A session may owe an acknowledgement now, and a peer that was not read may be read again.
        let matters = inner.machine.mode() != Mode::Plain || !inner.machine.wants_input();
        if let Some(delivery) = inner.machine.hand_over(now()) {
            if matters {
                self.core.signal.ask();
            }
            return Poll::Ready(Some(delivery));
        }
        if inner.is_finished() {
            return Poll::Ready(None);
        }
        inner.receiver = Some(cx.waker().clone());
        Poll::Pending
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
        send(&self.core, message.into())
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
    ) -> impl Future<Output = Result<Tracked, SendError>> + Send + '_ {
        send_tracked(&self.core, message.into())
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
        Sender { core: Arc::clone(&self.core) }
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
        Events { core: Arc::clone(&self.core) }
    }

    /// Something suggests that the network changed: dials at once if waiting, probes if attached.
    pub fn retry_now(&self) {
        self.core.change(|inner| inner.machine.retry_now(now()));
    }

    /// Ends in order: what was accepted is delivered first, for at most 10 s. Then
    /// [`recv`](Self::recv) returns `None`.
    ///
    /// # Cancel safety
    /// Safe: the closing goes on, only the waiting ends.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        self.core.change(|inner| inner.machine.close(now(), code, reason));
        poll_fn(|cx| {
            let mut inner = self.core.lock();
            if inner.is_finished() {
                return Poll::Ready(());
            }
            inner.closer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
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
        self.seen = poll_fn(|cx| {
            let mut inner = self.core.lock();
            let state = inner.machine.state();
            if state != self.seen {
                return Poll::Ready(state);
            }
            inner.watcher = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.seen
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

    /// What the server answered to the newest attempt, where that was no WebSocket: status, fields and body of the HTTP
    /// response. Beside [`Event::AttemptFailed`] and [`Event::Ended`], which have the reason.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.core.lock().refusal.as_deref().cloned()
    }
}

/// What happens to a client.
pub struct Events {
    core: Arc<Core>,
}

impl Events {
    /// The next event; `None` after [`Event::Ended`]. Nobody has to listen: at most 1,024 are kept, and of
    /// volatile messages the newest 64 (256 KiB); then the oldest go, those that tell of a loss last. Each event is
    /// returned once, whoever asks.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&self) -> Option<Event> {
        poll_fn(|cx| {
            let mut inner = self.core.lock();
            match inner.events.pop() {
                Some(event) => Poll::Ready(Some(event)),
                None if inner.is_finished() => Poll::Ready(None),
                None => {
                    inner.listener = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events(..)")
    }
}

/// Sends through a client from elsewhere. Cheap to clone; does not keep the client open.
#[derive(Clone)]
pub struct Sender {
    core: Arc<Core>,
}

fn send(core: &Arc<Core>, message: Message) -> impl Future<Output = Result<(), SendError>> + Send + '_ {
    let mut sending = Some(message);
    poll_fn(move |cx| core.poll_send(&mut sending, cx.waker()).map_ok(drop))
}

fn send_tracked(
    core: &Arc<Core>,
    message: Message,
) -> impl Future<Output = Result<Tracked, SendError>> + Send + '_ {
    let mut sending = Some(message);
    poll_fn(move |cx| {
        let sent = std::task::ready!(core.poll_send(&mut sending, cx.waker()));
        core.change(|inner| match sent {
            Ok(Some(number)) => Poll::Ready(Ok(inner.track(number))),
            Ok(None) => Poll::Pending,
            Err(refused) => Poll::Ready(Err(refused)),
        })
    })
}

impl Sender {
    /// Sends a message; waits while the window is full. It is kept until the peer acknowledges it.
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
        send(&self.core, message.into())
    }

    /// Sends a message and returns a future that settles when it is known what became of it.
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
    ) -> impl Future<Output = Result<Tracked, SendError>> + Send + '_ {
        send_tracked(&self.core, message.into())
    }

    /// Whether a plain peer answers Pings; `None`: it has not shown yet.
    #[must_use]
    pub fn answers_pings(&self) -> Option<bool> {
        self.core.lock().machine.answers_pings()
    }

    /// Waits until more messages than `above` are delivered (sessions) or have met their fate (plain peers: confirmed or
    /// reported), and returns up to which number they are. A link counts its messages from 1. Once the client has ended
    /// it waits for ever: what was still kept then is reported by events alone. One caller waits at a time.
    ///
    /// # Cancel safety
    /// Safe.
    pub fn settled(&self, above: u64) -> impl Future<Output = u64> + Send + '_ {
        poll_fn(move |cx| {
            let mut inner = self.core.lock();
            if inner.machine.is_ended() {
                return Poll::Pending;
            }
            let settled = inner.machine.settled();
            if settled > above {
                return Poll::Ready(settled);
            }
            inner.settling = Some(cx.waker().clone());
            Poll::Pending
        })
    }

    /// Payload bytes that are kept for the peer now: accepted, and neither acknowledged, confirmed nor reported.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        self.core.lock().machine.kept_bytes()
    }

    /// As [`Client::retry_now`].
    pub fn retry_now(&self) {
        self.core.change(|inner| inner.machine.retry_now(now()));
    }

    /// As [`Client::state`].
    #[must_use]
    pub fn state(&self) -> State {
        self.core.lock().machine.state()
    }

    /// Payload bytes that a plain peer sent and the application has not received yet. In a session: 0.
    #[must_use]
    pub fn unread_bytes(&self) -> u64 {
        self.core.lock().machine.unread_bytes()
    }

    /// Sends a message that is not kept: lost if no connection is attached, never sent again. For what the
    /// next one makes worthless: cursors, positions. Of more than 64 (256 KiB) that wait for a slow
    /// connection the oldest are dropped.
    ///
    /// With [`Confirm::Reply`] do not use it: the peer's answer to it would be taken for another's.
    pub fn send_volatile(&self, message: impl Into<Message>) {
        self.core.change(|inner| inner.machine.send_volatile(message.into()));
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(..)")
    }
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

impl<P> Stream for Client<P> {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_recv(cx)
    }
}

impl<P> Sink<Message> for Client<P> {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Self { core, sending, .. } = &mut *self;
        core.poll_send(sending, cx.waker()).map_ok(drop)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
        let Self { core, sending, .. } = &mut *self;
        core.change(|inner| match inner.send(message) {
            Err(SendError::Full(message)) if inner.machine.waits_when_full() => {
                *sending = Some(message);
                Ok(())
            }
            sent => sent.map(drop),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_ready(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        std::task::ready!(self.as_mut().poll_ready(cx))?;
        self.core.change(|inner| {
            inner.machine.close(now(), CloseCode::NORMAL, "");
            if inner.is_finished() {
                return Poll::Ready(Ok(()));
            }
            inner.closer = Some(cx.waker().clone());
            Poll::Pending
        })
    }
}

impl Builder {
    /// Credentials sent inside the session's HELLO, where the request cannot carry them. They are renewed with
    /// [`Client::authenticate`].
    #[must_use]
    pub fn credentials(mut self, credentials: impl Into<Bytes>) -> Self {
        self.config.session.credentials = Some(Credentials(credentials.into()));
        self
    }

    /// The application confirms what it has handled, with [`Client::confirm`]. Default: being returned by
    /// [`Client::recv`] counts as received.
    #[must_use]
    pub fn confirm_manually(mut self) -> Self {
        self.config.session.flow.manual_confirm = true;
        self
    }

    /// The resume window to ask the server for, in whole milliseconds. It gives no more than its own.
    /// Default: the server's own.
    #[must_use]
    pub fn resume_window(mut self, window: Duration) -> Self {
        self.config.session.resume_window = Some(window);
        self
    }
}

impl<P> Builder<P> {
    pub(crate) fn new(url: &str, config: ConnectConfig) -> Result<Self, UrlError> {
        let Place { url, socket } = url.parse()?;
        let connector = Connector::default();
        let connector = match socket {
            Some(socket) => connector.unix(socket),
            None => connector,
        };
        connector.check(&url)?;
        let target = Target {
            url,
            headers: HeaderMap::new(),
            subprotocols: Vec::new(),
            resumable: !config.link,
            deflate: false,
            limits: Limits::default(),
            follow: Follow::default(),
            factory: None,
            connector,
            answer_timeout: None,
            give_up: None,
        };
        Ok(Self { target, config, budget: None, peer: PhantomData })
    }

    /// An application subprotocol to offer; call it again for more, in order of preference. A client with one that
    /// is not a token of HTTP ends at once, before anything is dialled; see [`subprotocols`](Self::subprotocols).
    #[must_use]
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.target.subprotocols.push(name.into());
        self
    }

    /// The application subprotocols to offer, in order of preference, instead of those before: for names that
    /// somebody else chose.
    ///
    /// # Errors
    /// One is not a token of HTTP, as base64 with `/` or `=` is not.
    pub fn subprotocols<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self, InvalidProtocol> {
        self.target.subprotocols = names.into_iter().map(Into::into).collect();
        self.target.subprotocols.iter().try_for_each(|name| InvalidProtocol::check(name))?;
        Ok(self)
    }

    /// A header for every attempt's request.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.target.headers.append(name, value);
        self
    }

    /// Makes each attempt's request anew: another URL, a fresh token. It counts against the time that an attempt may
    /// take. An `Err` is an attempt that failed, and is tried again after the backoff; so is a panic. A URL that cannot
    /// be used ends the client.
    #[must_use]
    pub fn request<F, R>(mut self, make: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Request, String>> + Send + 'static,
    {
        self.target.factory = Some(Arc::new(move || Box::pin(make())));
        self
    }

    /// When to try again. Default: 0.5 s doubling to 30 s, jittered.
    #[must_use]
    pub fn backoff(mut self, backoff: BackoffConfig) -> Self {
        self.config.backoff = backoff;
        self
    }

    /// What the peer may make this end keep per message. A server that speaks `mainstay.v1` is told the size of the
    /// largest, type bytes aside. Default: 1 MiB, 1,024 fragments.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.target.limits = limits;
        self
    }

    /// What this client keeps counts in `budget`, and it waits where others that share the budget do. For programs that
    /// hold many. A client whose memory is needed when all is used loses its connection. Default: it counts in none, and
    /// is bounded by its own windows.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Offers permessage-deflate. Default: no.
    #[must_use]
    pub fn deflate(mut self, deflate: bool) -> Self {
        self.target.deflate = deflate;
        self
    }

    /// How TLS is spoken on `wss://`: with a root certificate of one's own, with a certificate of the client. Leave
    /// its ALPN protocols empty, or name `http/1.1` alone. Default: TLS 1.2 and 1.3, and what the system trusts.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, config: Arc<rustls::ClientConfig>) -> Self {
        self.target.connector = self.target.connector.tls(config);
        self
    }

    /// How the server is reached. The Unix socket that the URL of this builder names stays, unless this has one.
    /// Default: `Connector::default()`.
    #[must_use]
    pub fn connector(mut self, connector: Connector) -> Self {
        self.target.connector = connector.or_unix(&self.target.connector);
        self
    }

    /// How long an attempt may take: to reach the server and, without an [`answer_timeout`](Self::answer_timeout), to
    /// open the WebSocket. Default: 10 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.target.connector = self.target.connector.timeout(timeout);
        self
    }

    /// How long the server may take for its answer to the opening handshake, from when it was reached, in addition to
    /// what reaching it took. Default: what the [`connect_timeout`](Self::connect_timeout) leaves.
    #[must_use]
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.target.answer_timeout = Some(timeout);
        self
    }

    /// Which statuses of an HTTP response end the client. All others are attempts that failed, and are tried again
    /// after the backoff: for servers behind a proxy that answers 404 while they are replaced, or for a 401 where
    /// [`request`](Self::request) makes a fresh token each time. Default: all but 408, 425, 426, 429 and 5xx, of which 501
    /// and 505 end it.
    #[must_use]
    pub fn give_up(mut self, ends: impl Fn(StatusCode) -> bool + Send + Sync + 'static) -> Self {
        self.target.give_up = Some(Arc::new(ends));
        self
    }

    /// Which of the endpoints that the server names are dialled instead of the URL. Default: those on the
    /// URL's host. Never one that has TLS where the URL has none, or the other way round.
    #[must_use]
    pub fn follow(mut self, follow: Follow) -> Self {
        self.target.follow = follow;
        self
    }

    /// Connects in the background; the first connect follows the same policy as every later one.
    /// Needs a tokio runtime.
    #[must_use]
    pub fn connect(self) -> Client<P> {
        self.begin(None)
    }

    /// Connects, or goes on with a connection that is open already.
    fn begin(mut self, ready: Option<Opened>) -> Client<P> {
        let to_answer = self.target.answer_timeout.unwrap_or_default();
        self.config.session.flow.max_message = Some(self.target.limits.max_message as u64);
        self.config.opening_timeout = self.target.connector.limit().saturating_add(to_answer);
        let core = Core::new(Machine::new(now(), self.config, crate::random_seed()), self.budget);
        Task::begin(Arc::clone(&core), self.target, ready);
        let seen = core.lock().machine.state();
        Client { core, sending: None, seen, peer: PhantomData }
    }

    /// Connects, and ends with the first connection that is lost or cannot be opened.
    ///
    /// # Errors
    /// Why the connection could not be opened.
    ///
    /// # Cancel safety
    /// Safe: nothing stays behind.
    pub async fn connect_once(mut self) -> Result<Client<P>, ConnectError> {
        self.config.once = true;
        let client = self.connect();
        loop {
            match client.event().await {
                Some(Event::Attached { .. }) => return Ok(client),
                Some(Event::Ended { code, reason, .. }) => {
                    let refusal = client.refusal().map(Box::new);
                    return Err(ConnectError { code, reason, refusal });
                }
                Some(_) => {}
                None => {
                    let reason = "ended before it began".into();
                    return Err(ConnectError { code: None, reason, refusal: None });
                }
            }
        }
    }
}

impl Builder<Plain> {
    /// A link that begins with a connection whose opening handshake is done, for who passes on a handshake of
    /// somebody else's. It is attached at once. When that connection is lost the link dials as every other, with what
    /// this builder says.
    #[must_use]
    pub fn adopt(self, upgraded: Upgraded) -> Client<Plain> {
        let opened = upgraded.opened(self.target.limits, false);
        self.begin(Some(opened))
    }
}

impl Target {
    /// What to ask for at `endpoint`, where the server named one and it may be followed.
    fn attempt(&self, request: Request, endpoint: Option<&str>) -> Attempt {
        let mut headers = self.headers.clone();
        headers.extend(request.headers);
        let names = request.subprotocols.as_ref().unwrap_or(&self.subprotocols);
        let ours = self.resumable.then(|| match names.as_slice() {
            [] => vec![SUBPROTOCOL.to_owned()],
            names => names.iter().map(|name| format!("{SUBPROTOCOL}+{name}")).collect(),
        });
        let subprotocols = ours.into_iter().flatten().chain(names.iter().cloned()).collect();
        let own = request.url.unwrap_or_else(|| self.url.clone());
        let named = endpoint.and_then(|endpoint| {
            let named = self.follow.allows(&own, endpoint).filter(|named| Server::of(named).is_ok());
            if named.is_none() {
                tracing::warn!(endpoint, "the server names an endpoint that is not followed");
            }
            named
        });
        Attempt {
            url: named.unwrap_or(own),
            headers,
            subprotocols,
            resumable: self.resumable,
            credentials: request.credentials,
            deflate: self.deflate,
            limits: self.limits,
            connector: self.connector.clone(),
            answer_timeout: self.answer_timeout,
            give_up: self.give_up.clone(),
        }
    }
}

impl std::fmt::Debug for Request {
    /// The names of headers alone: values are often secrets, and credentials always.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("url", &self.url)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("subprotocols", &self.subprotocols)
            .finish_non_exhaustive()
    }
}

impl<P> Clone for Builder<P> {
    fn clone(&self) -> Self {
        Self {
            target: self.target.clone(),
            config: self.config.clone(),
            budget: self.budget.clone(),
            peer: PhantomData,
        }
    }
}

impl<P> std::fmt::Debug for Builder<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("url", &self.target.url).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_goes_where_the_server_says_if_that_may_be_followed() {
        let dialled = |builder: Builder, endpoint: Option<&str>, request: Request| {
            builder.target.attempt(request, endpoint).url.to_string()
        };
        let own = || Client::builder("ws://example.com/a").unwrap();
        let (near, far) = (Some("ws://example.com:81/b"), Some("ws://other.example/b"));
        assert_eq!(dialled(own(), None, Request::default()), "ws://example.com/a");
        assert_eq!(dialled(own(), near, Request::default()), "ws://example.com:81/b");
        assert_eq!(dialled(own(), far, Request::default()), "ws://example.com/a");
        assert_eq!(dialled(own().follow(Follow::Anywhere), far, Request::default()), "ws://other.example/b");
        assert_eq!(dialled(own().follow(Follow::Never), near, Request::default()), "ws://example.com/a");
        // Where nobody can be dialled.
        assert_eq!(
            dialled(own(), Some("ws://example.com:99999/b"), Request::default()),
            "ws://example.com/a"
        );
        // What counts is the URL of this attempt.
        let moved = Request { url: Some(Uri::from_static("ws://other.example/")), ..Request::default() };
        assert_eq!(dialled(own(), near, moved.clone()), "ws://other.example/");
        assert_eq!(dialled(own(), far, moved), "ws://other.example/b");
    }
}
