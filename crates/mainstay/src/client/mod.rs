//! The client: one handle that stays, over as many connections as it takes.
//!
//! It dials, detects a dead connection, dials again with a jittered backoff, and resumes its session: messages are delivered
//! once and in order, and the server replays what it sent meanwhile. Where a session is lost, one [`Event::Gap`] states the
//! fate of every message. Towards a server that turns out to speak plain WebSocket the client reconnects, confirms messages
//! by Ping, and reports what it could not keep. Where that is known beforehand, use a [`Link`](crate::Link), which has
//! settings for it.
//!
//! ```no_run
//! use mainstay::Client;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::builder("ws://127.0.0.1:8080/echo")?.connect();
//! client.send("hello").await?;
//! while let Some(message) = client.recv().await {
//!     println!("{:?}", message.as_text());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] and [`Link`](crate::Link) are one type, [`ClientHandle`], for two kinds of peers. A function
//! that needs neither kind in particular is generic: `async fn run<P>(client: ClientHandle<P>)`.

mod ascii;
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
mod target;
mod task;
#[cfg(feature = "tls")]
mod tls;
mod verbs;
mod watch;

use std::future::poll_fn;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use mainstay_proto::connect::ConnectConfig;
use mainstay_proto::session::Message;
use mainstay_proto::session::message::SessionId;
use mainstay_proto::ws::CloseCode;

pub use self::builder::Builder;
pub use self::connector::Connector;
pub use self::dial::Upgraded;
pub use self::error::{AuthenticateError, BoxError, ConnectError, UrlError, UrlErrorKind};
pub use self::place::Place;
pub use self::proxy::Proxy;
pub use self::rejection::Rejection;
pub use self::sender::Sender;
pub use self::stream::ServerStream;
pub use self::target::Request;
pub use self::verbs::Closing;
pub use self::watch::{Changes, Events};

pub use mainstay_proto::connect::{
    End, EndCause, EndsOn, Event, Incoming, Lost, Mode, ReasonCode, Report, State,
};
pub use mainstay_proto::endpoint::Follow;
pub use mainstay_proto::failure::Failure;
pub use mainstay_proto::reach::{ConnectFailure, FailureKind};
pub use mainstay_proto::ws::DeflateParams;
pub use mainstay_proto::ws::handshake::InvalidProtocol;
/// The TLS library that [`Builder::tls`] has its configuration from.
#[cfg(feature = "tls")]
pub use rustls;

use self::core::Core;
use self::verbs::shared_verbs;
use crate::clock::now;

/// The kind of peer that a [`Client`] expects: one that speaks `mainstay.v1`, or plain WebSocket if it does
/// not.
#[derive(Debug)]
pub enum Sessions {}

/// A connection that stays, to a server that is expected to speak `mainstay.v1`. See the [module](crate::client).
pub type Client = ClientHandle<Sessions>;

/// A connection that stays: what [`Client`] and [`Link`](crate::Link) are. `P` is the kind of peer.
///
/// [`close`](Self::close) ends it in order; a drop does the same in the background.
pub struct ClientHandle<P> {
    pub(crate) core: Arc<Core>,
    /// The message that `start_send` accepted and the machine had no room for.
    sending: Option<Message>,
    /// The state that [`changed`](Self::changed) returned last.
    seen: State,
    peer: PhantomData<fn() -> P>,
}

shared_verbs!([P] ClientHandle<P>);

impl ClientHandle<Sessions> {
    /// Returns a builder of a client for `url`: `ws://`, `wss://` or a Unix socket, in the forms that [`Place`] reads.
    ///
    /// # Errors
    /// The URL cannot be dialled.
    pub fn builder(url: &str) -> Result<Builder, UrlError> {
        Builder::new(url, ConnectConfig::default())
    }

    /// The public name of the session, for logs; `None` before the first attach and towards a plain peer.
    #[must_use]
    pub fn id(&self) -> Option<SessionId> {
        self.core.lock().machine.id()
    }

    /// Acknowledges every message that [`recv`](Self::recv) has returned so far: the application has handled it, and the
    /// server may forget it. Only with [`Builder::manual_ack`]; otherwise a message is acknowledged when it is returned.
    pub fn ack(&self) {
        self.core.change(|inner| inner.machine.acknowledge(now()));
    }

    /// Presents new credentials in place of [`Builder::credentials`], and waits until the server judges them: on the live
    /// connection, or in the next HELLO while there is none. A server that speaks `mainstay.v1` asks the `authenticate`
    /// function of its application.
    ///
    /// # Errors
    /// The server refused them, or cannot judge them: see [`AuthenticateError`].
    ///
    /// # Cancel safety
    /// Safe: the credentials are presented all the same, only the wait ends.
    ///
    /// ```no_run
    /// use mainstay::client::AuthenticateError;
    ///
    /// # async fn run(client: mainstay::Client, fresh_token: String) {
    /// match client.authenticate(fresh_token).await {
    ///     Ok(()) => println!("the session continues with the new token"),
    ///     Err(AuthenticateError::Refused) => println!("log in again"),
    ///     Err(error) => println!("{error}"),
    /// }
    /// # }
    /// ```
    pub async fn authenticate(&self, credentials: impl Into<Bytes>) -> Result<(), AuthenticateError> {
        let verdict = self.core.change(|inner| inner.authenticate(credentials.into()))?;
        verdict.await.unwrap_or(Err(AuthenticateError::Replaced))
    }
}

impl<P> ClientHandle<P> {
    fn begun(core: Arc<Core>, seen: State) -> Self {
        Self { core, sending: None, seen, peer: PhantomData }
    }

    /// Receives the next message, in order; `None` once nothing follows.
    ///
    /// Where messages were lost with a session, or dropped by the server's own policy, an [`Event::Gap`] or an
    /// [`Event::Dropped`] reports it before the first message behind that place is returned.
    /// [`recv_any`](Self::recv_any) returns both in one stream.
    ///
    /// # Cancel safety
    /// Safe: a message is taken only when it is returned.
    pub async fn recv(&mut self) -> Option<Message> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Receives the next message as [`recv`](Self::recv) does, and parses it as JSON, whether it is text or binary.
    ///
    /// # Errors
    /// The message is not JSON, or not of this type. The message itself is gone: where it matters, use
    /// [`Message::parse_json`] on what [`recv`](Self::recv) returns.
    ///
    /// # Cancel safety
    /// Safe, as [`recv`](Self::recv).
    ///
    /// ```no_run
    /// #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Price {
    ///     symbol: String,
    ///     cents: u64,
    /// }
    ///
    /// # async fn run(mut client: mainstay::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// client.send_json(&Price { symbol: "BTC".into(), cents: 100 }).await?;
    /// while let Some(price) = client.recv_json::<Price>().await {
    ///     println!("{}", price?.cents);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "json")]
    pub async fn recv_json<T: serde::de::DeserializeOwned>(
        &mut self,
    ) -> Option<Result<T, serde_json::Error>> {
        crate::json::parse(self.recv().await)
    }

    /// Receives the next message, or what stands between two messages, in order; `None` once nothing follows.
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
                // An event reports it, and has its turn before the next message.
                Some(_) => {}
            }
        }
    }

    /// Returns a handle that sends from elsewhere.
    #[must_use]
    pub fn sender(&self) -> Sender {
        Sender::new(&self.core)
    }

    /// Returns the next event; `None` after [`Event::Ended`]. See [`Events`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn event(&self) -> Option<Event> {
        self.events().next().await
    }

    /// Takes the messages that were accepted and are not known to be delivered, once the client has ended, in the order in
    /// which they were sent: first those that may have been delivered, then those that were not, as [`Event::Report`] and
    /// [`End::fate`] number them. Empty before the end, and at the second call.
    #[must_use]
    pub fn take_undelivered(&self) -> Vec<Message> {
        self.core.lock().machine.take_undelivered()
    }

    /// Waits until the state differs from the one that this call returned last (the first time: from the state when the
    /// client was made), and returns it. States that came and went meanwhile are left out; [`events`](Self::events) report
    /// every one. To wait for messages in the same `select!`, use [`changes`](Self::changes).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn changed(&mut self) -> State {
        let Self { core, seen, .. } = self;
        poll_fn(|cx| watch::poll_change(core, seen, cx)).await
    }

    /// The subprotocol of the application that the newest connection agreed on, without the part that `mainstay.v1` adds.
    #[must_use]
    pub fn subprotocol(&self) -> Option<String> {
        self.core.lock().subprotocol.clone()
    }

    /// The header fields of the response that opened the newest connection: a balancer's cookie, limits, the server's name.
    /// `None` before the first connection, where the builder [keeps none](Builder::keep_response), and with a connection that
    /// was adopted.
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

impl<P> Drop for ClientHandle<P> {
    fn drop(&mut self) {
        self.core.change(|inner| {
            inner.abandoned = true;
            inner.machine.close(now(), CloseCode::GOING_AWAY, "");
        });
    }
}

impl<P> std::fmt::Debug for ClientHandle<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("state", &self.state()).finish_non_exhaustive()
    }
}
