//! The client: one handle that stays, over as many connections as it takes.
//!
//! It dials, detects a dead connection, dials again with a jittered backoff, and resumes its session:
//! what was sent is delivered once and in order, what the server sent meanwhile is replayed. Where
//! that cannot be kept there is one [`Event::Gap`]. Towards a server that speaks plain WebSocket it
//! reconnects, confirms what was taken in by Ping, and says what that could not keep.
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

mod dial;
mod task;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use mainstay_proto::backoff::BackoffConfig;
use mainstay_proto::confirm::{Confirm, Guarantee};
use mainstay_proto::connect::{Client as Machine, ConnectConfig};
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::session::{Delivery, Message};
use mainstay_proto::ws::{CloseCode, Limits};
use tokio::sync::oneshot;

pub use mainstay_proto::connect::{Event, Lost, Mode, Report};

use self::dial::Attempt;
use self::task::{Core, Task};
use crate::SendError;
use crate::driver::now;

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
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Where to; `None`: the URL that the client was built with.
    pub url: Option<Uri>,
    /// Sent in addition.
    pub headers: HeaderMap,
}

type Factory = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Request, String>> + Send>> + Send + Sync>;

/// A client that is not connecting yet.
#[derive(Clone)]
pub struct Builder {
    url: Uri,
    headers: HeaderMap,
    subprotocols: Vec<String>,
    resumable: bool,
    deflate: bool,
    limits: Limits,
    config: ConnectConfig,
    factory: Option<Factory>,
}

/// A connection that stays. [`close`](Self::close) ends it in order and waits for that; dropping it does
/// the same in the background.
pub struct Client {
    core: Arc<Core>,
    /// Taken by `start_send`, given to the machine when there is room.
    sending: Option<Message>,
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
    /// A client for `url` (`ws://` or `wss://`).
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn builder(url: &str) -> Result<Builder, UrlError> {
        let url: Uri = url.parse().map_err(|error| UrlError(format!("{url}: {error}")))?;
        dial::check_url(&url).map_err(|lost| match lost {
            Lost::Refused(why) | Lost::Unreachable(why) | Lost::Broken(why) => UrlError(why),
            Lost::Closed { reason, .. } => UrlError(reason),
        })?;
        Ok(Builder {
            url,
            headers: HeaderMap::new(),
            subprotocols: Vec::new(),
            resumable: true,
            deflate: false,
            limits: Limits::default(),
            config: ConnectConfig::default(),
            factory: None,
        })
    }

    /// The next message, in order; `None` once nothing follows. What was lost with a session is an
    /// [`Event::Gap`], what the server dropped by its own policy an [`Event::Dropped`].
    ///
    /// # Cancel safety
    /// Safe: a message is taken only when it is returned.
    pub async fn recv(&mut self) -> Option<Message> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let mut inner = self.core.lock();
        while let Some(delivery) = inner.machine.hand_over(now()) {
            inner.wake_driver();
            // A gap is an event.
            if let Delivery::Message(message) = delivery {
                return Poll::Ready(Some(message));
            }
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
    /// The client has ended: the message comes back.
    ///
    /// # Cancel safety
    /// Safe: a message is accepted only when this returns.
    pub async fn send(&self, message: Message) -> Result<(), SendError> {
        self.send_tracked(message).await.map(drop)
    }

    /// As [`Sender::send_tracked`].
    ///
    /// # Errors
    /// The client has ended: the message comes back.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn send_tracked(&self, message: Message) -> Result<Tracked, SendError> {
        self.sender().send_tracked(message).await
    }

    /// Sends a message, or gives it back at once.
    ///
    /// # Errors
    /// The window is full, or the client has ended.
    pub fn try_send(&self, message: Message) -> Result<(), SendError> {
        self.core.lock().send(message).map(drop)
    }

    /// As [`Sender::send_volatile`].
    pub fn send_volatile(&self, message: Message) {
        self.core.lock().send_volatile(message);
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
        let mut inner = self.core.lock();
        inner.machine.retry_now(now());
        inner.wake_driver();
    }

    /// With [`Confirm::Reply`]: the application's answer to the oldest unanswered message came.
    pub fn confirm_reply(&self) {
        let mut inner = self.core.lock();
        inner.machine.handle_reply();
        inner.wake_driver();
    }

    /// With [`Builder::confirm_manually`]: everything that [`recv`](Self::recv) has returned so far is
    /// handled. See `server::Session::confirm`.
    pub fn confirm(&self) {
        let mut inner = self.core.lock();
        inner.machine.confirm(now());
        inner.wake_driver();
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
        let verdict = self.core.lock().authenticate(credentials.into())?;
        verdict.await.unwrap_or(Err(AuthenticateError::Replaced))
    }

    /// Ends in order: what was accepted is delivered first, for at most 10 s. Then
    /// [`recv`](Self::recv) returns `None`.
    ///
    /// # Cancel safety
    /// Safe: the closing goes on, only the waiting ends.
    pub async fn close(&self, code: CloseCode, reason: &str) {
        {
            let mut inner = self.core.lock();
            inner.machine.close(now(), code, reason);
            inner.wake_driver();
        }
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

    /// What the peer speaks, while attached.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        let inner = self.core.lock();
        inner.machine.is_attached().then(|| inner.machine.mode())
    }

    /// The application's subprotocol that was agreed on with the newest connection.
    #[must_use]
    pub fn subprotocol(&self) -> Option<String> {
        self.core.lock().subprotocol.clone()
    }
}

/// What happens to a client.
pub struct Events {
    core: Arc<Core>,
}

impl Events {
    /// The next event; `None` after [`Event::Ended`]. Nobody has to listen: at most 1,024 are kept,
    /// then the oldest go. Each event is returned once, whoever asks.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&self) -> Option<Event> {
        poll_fn(|cx| {
            let mut inner = self.core.lock();
            match inner.events.pop_front() {
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

impl Sender {
    /// Sends a message; waits while the window is full. It is kept until the peer acknowledges it.
    ///
    /// # Errors
    /// The client has ended: the message comes back.
    ///
    /// # Cancel safety
    /// Safe: a message is accepted only when this returns.
    pub async fn send(&self, message: Message) -> Result<(), SendError> {
        self.send_tracked(message).await.map(drop)
    }

    /// Sends a message and returns a future that settles when it is known what became of it.
    ///
    /// # Errors
    /// The client has ended: the message comes back.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn send_tracked(&self, message: Message) -> Result<Tracked, SendError> {
        let mut waiting = Some(message);
        poll_fn(|cx| {
            let Some(message) = waiting.take() else { return Poll::Pending };
            let mut inner = self.core.lock();
            match inner.send(message) {
                Ok(tracked) => Poll::Ready(Ok(tracked)),
                Err(SendError::Full(message)) => {
                    waiting = Some(message);
                    inner.wait_for_room(cx.waker());
                    Poll::Pending
                }
                Err(over) => Poll::Ready(Err(over)),
            }
        })
        .await
    }

    /// Sends a message that is not kept: lost if no connection is attached, never sent again. For what the
    /// next one makes worthless: cursors, positions. Of more than 64 (256 KiB) that wait for a slow
    /// connection the oldest are dropped.
    ///
    /// With [`Confirm::Reply`] do not use it: the peer's answer to it would be taken for another's.
    pub fn send_volatile(&self, message: Message) {
        self.core.lock().send_volatile(message);
    }
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender(..)")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut inner = self.core.lock();
        inner.abandoned = true;
        inner.machine.close(now(), CloseCode::GOING_AWAY, "");
        inner.wake_driver();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("mode", &self.mode()).finish_non_exhaustive()
    }
}

impl Stream for Client {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_recv(cx)
    }
}

impl Sink<Message> for Client {
    type Error = SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        let Some(message) = self.sending.take() else { return Poll::Ready(Ok(())) };
        let core = Arc::clone(&self.core);
        let mut inner = core.lock();
        match inner.send(message) {
            Ok(_) => Poll::Ready(Ok(())),
            Err(SendError::Full(message)) => {
                self.sending = Some(message);
                inner.wait_for_room(cx.waker());
                Poll::Pending
            }
            Err(over) => Poll::Ready(Err(over)),
        }
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<(), SendError> {
        let sent = self.core.lock().send(message);
        match sent {
            Ok(_) => Ok(()),
            Err(SendError::Full(message)) => {
                self.sending = Some(message);
                Ok(())
            }
            Err(over) => Err(over),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        self.poll_ready(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        std::task::ready!(self.as_mut().poll_ready(cx))?;
        let mut inner = self.core.lock();
        inner.machine.close(now(), CloseCode::NORMAL, "");
        inner.wake_driver();
        if inner.is_finished() {
            return Poll::Ready(Ok(()));
        }
        inner.closer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Builder {
    /// An application subprotocol to offer; call it again for more, in order of preference.
    #[must_use]
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.subprotocols.push(name.into());
        self
    }

    /// A header for every attempt's request.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    /// Makes each attempt's request anew: another URL, a fresh token. An `Err` is an attempt that
    /// failed, and is tried again after the backoff.
    #[must_use]
    pub fn request<F, R>(mut self, make: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Request, String>> + Send + 'static,
    {
        self.factory = Some(Arc::new(move || Box::pin(make())));
        self
    }

    /// Credentials sent inside the session's HELLO, where the request cannot carry them. They are renewed with
    /// [`Client::authenticate`].
    #[must_use]
    pub fn credentials(mut self, credentials: impl Into<Bytes>) -> Self {
        self.config.session.credentials = Some(credentials.into());
        self
    }

    /// Does not offer `mainstay.v1`: the peer is known to speak plain WebSocket. This is a *link*.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.resumable = false;
        self
    }

    /// Towards plain peers: what ends a message's keeping. Default: the Pong.
    #[must_use]
    pub fn confirm(mut self, confirm: Confirm) -> Self {
        self.config.confirm = self.config.confirm.confirm(confirm);
        self
    }

    /// Towards plain peers: what becomes of unconfirmed messages. Default: sent again.
    #[must_use]
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.config.confirm = self.config.confirm.guarantee(guarantee);
        self
    }

    /// Towards plain peers: how often to probe. Default: every 25 s. A session's server says itself.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: HeartbeatConfig) -> Self {
        self.config.heartbeat = heartbeat;
        self
    }

    /// When to try again. Default: 0.5 s doubling to 30 s, jittered.
    #[must_use]
    pub fn backoff(mut self, backoff: BackoffConfig) -> Self {
        self.config.backoff = backoff;
        self
    }

    /// Ends when the peer closes with 1000 or an application's code (3000-4999), instead of dialling
    /// again: the peer meant it. For links that pass a backend's close on. Default: no.
    #[must_use]
    pub fn ends_with_peer(mut self, ends: bool) -> Self {
        self.config.ends_with_peer = ends;
        self
    }

    /// What the peer may make this end keep per message. Default: 64 KiB, 1,024 fragments.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Offers permessage-deflate. Default: no.
    #[must_use]
    pub fn deflate(mut self, deflate: bool) -> Self {
        self.deflate = deflate;
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

    /// Connects in the background; the first connect follows the same policy as every later one.
    /// Needs a tokio runtime.
    #[must_use]
    pub fn connect(self) -> Client {
        let machine = Machine::new(now(), self.config.clone(), crate::random_seed());
        let core = Core::new(machine);
        tokio::spawn(Task::new(Arc::clone(&core), self));
        Client { core, sending: None }
    }

    /// Connects, and ends with the first connection that is lost or cannot be opened.
    ///
    /// # Errors
    /// Why the connection could not be opened.
    ///
    /// # Cancel safety
    /// Safe: nothing stays behind.
    pub async fn connect_once(mut self) -> Result<Client, UrlError> {
        self.config.once = true;
        let client = self.connect();
        loop {
            match client.event().await {
                Some(Event::Attached { .. }) => return Ok(client),
                Some(Event::Ended { reason, .. }) => return Err(UrlError(reason)),
                Some(_) => {}
                None => return Err(UrlError("ended before it began".into())),
            }
        }
    }

    fn attempt(&self, request: Request) -> Attempt {
        let mut headers = self.headers.clone();
        headers.extend(request.headers);
        let ours = self.resumable.then(|| match self.subprotocols.as_slice() {
            [] => vec![SUBPROTOCOL.to_owned()],
            names => names.iter().map(|name| format!("{SUBPROTOCOL}+{name}")).collect(),
        });
        let subprotocols = ours.into_iter().flatten().chain(self.subprotocols.iter().cloned()).collect();
        Attempt {
            url: request.url.unwrap_or_else(|| self.url.clone()),
            headers,
            subprotocols,
            deflate: self.deflate,
            limits: self.limits,
        }
    }
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("url", &self.url).finish_non_exhaustive()
    }
}
