//! The settings of a client that does not connect yet, and what its attempts are made from.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, InvalidHeaderValue};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use mainstay_proto::ConfigError;
use mainstay_proto::backoff::BackoffConfig;
use mainstay_proto::connect::{Client as Machine, ConnectConfig, End, EndCause, Event, Lost, Silence};
use mainstay_proto::endpoint::Follow;
use mainstay_proto::session::{Credentials, Message};
use mainstay_proto::ws::Limits;
use mainstay_proto::ws::handshake::InvalidProtocol;

use super::connector::{Connector, checked};
use super::core::Core;
use super::dial::{Opened, Upgraded};
use super::place::Place;
use super::proxy::Proxy;
use super::target::{Request, Target, bearer};
use super::task::ClientTask;
use super::{BoxError, ClientHandle, ConnectError, Sessions, UrlError};
use crate::Budget;
use crate::clock::now;

/// The settings of a client that does not connect yet. `P` is the kind of peer, as in [`ClientHandle`].
///
/// ```no_run
/// use std::time::Duration;
///
/// use mainstay::client::ConnectError;
/// use mainstay::{BackoffConfig, Client};
///
/// # async fn run() -> Result<(), ConnectError> {
/// let client = Client::builder("wss://chat.example/")?
///     .subprotocols(["chat.v2"])?
///     .credentials("alice:secret")
///     .backoff(BackoffConfig::new(Duration::from_millis(500), Duration::from_secs(30))?)
///     .silence(Duration::from_secs(60))?
///     .connect_ready(Duration::from_secs(10))
///     .await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a builder does nothing until it connects"]
pub struct Builder<P = Sessions> {
    target: Target,
    pub(crate) config: ConnectConfig,
    budget: Option<Budget>,
    peer: PhantomData<fn() -> P>,
}

impl Builder {
    /// Sends credentials inside the session's HELLO, where the request cannot carry them. [`ClientHandle::authenticate`]
    /// renews them. Default: none.
    pub fn credentials(mut self, credentials: impl Into<Bytes>) -> Self {
        self.config.session.credentials = Some(Credentials(credentials.into()));
        self
    }

    /// Has the application acknowledge the messages that it has handled, with [`ClientHandle::ack`]. Default: a message is
    /// acknowledged when [`ClientHandle::recv`] returns it.
    pub fn manual_ack(mut self) -> Self {
        self.config.session.flow.manual_ack = true;
        self
    }

    /// Asks the server for this resume window, in whole milliseconds. The server grants at most its own. Default: the
    /// server's own. Range: up to 1 week.
    ///
    /// # Errors
    /// It is out of range.
    pub fn resume_window(mut self, window: Duration) -> Result<Self, ConfigError> {
        let is_in_range = window <= Duration::from_secs(7 * 86_400);
        ConfigError::unless(is_in_range, "resume_window", "at most 1 week")?;
        self.config.session.resume_window = Some(window);
        Ok(self)
    }

    /// Whether messages that a lost session certainly did not deliver are sent again in the next session, ahead of newer
    /// ones. [`Event::Gap`] states which they are. Default: yes.
    pub fn resend_undelivered(mut self, resend: bool) -> Self {
        self.config.session.resend_undelivered = resend;
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
            greeting: None,
            keeps_response: true,
            connector,
            answer_timeout: None,
            give_up: None,
        };
        Ok(Self { target, config, budget: None, peer: PhantomData })
    }

    /// Offers one more subprotocol of the application, behind those before. A client with a name that is not a token of
    /// HTTP ends before it dials anything; see [`subprotocols`](Self::subprotocols). Default: none.
    pub fn subprotocol(mut self, name: impl Into<String>) -> Self {
        self.target.subprotocols.push(name.into());
        self
    }

    /// Offers these subprotocols of the application, in order of preference, instead of those before.
    ///
    /// # Errors
    /// A name is not a token of HTTP, as base64 with `/` or `=` is not.
    pub fn subprotocols<S: Into<String>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self, InvalidProtocol> {
        self.target.subprotocols = names.into_iter().map(Into::into).collect();
        self.target.subprotocols.iter().try_for_each(|name| InvalidProtocol::check(name))?;
        Ok(self)
    }

    /// Adds a header field to the request of every attempt.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.target.headers.append(name, value);
        self
    }

    /// Sets the header field `Authorization` of every attempt to this bearer token. For a fresh token each time, see
    /// [`request`](Self::request).
    ///
    /// # Errors
    /// The token contains a control character or a character that is not ASCII.
    pub fn bearer(mut self, token: &str) -> Result<Self, InvalidHeaderValue> {
        self.target.headers.insert(AUTHORIZATION, bearer(token)?);
        Ok(self)
    }

    /// Makes the request of each attempt anew: another URL, a fresh token. The time that this needs counts as the
    /// attempt's. An error or a panic is an attempt that failed; another follows after the backoff. A URL that cannot be
    /// dialled ends the client.
    ///
    /// ```no_run
    /// use mainstay::Client;
    /// use mainstay::client::Request;
    ///
    /// # async fn fresh_token() -> std::io::Result<String> { Ok(String::new()) }
    /// # fn run() -> Result<(), mainstay::client::UrlError> {
    /// let client = Client::builder("wss://chat.example/")?
    ///     .request(|| async { Ok(Request::default().bearer(&fresh_token().await?)?) })
    ///     .connect();
    /// # Ok(())
    /// # }
    /// ```
    pub fn request<F, R>(mut self, make: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Request, BoxError>> + Send + 'static,
    {
        self.target.factory = Some(Arc::new(move || Box::pin(make())));
        self
    }

    /// Makes the first messages to a plain peer on each connection: a login, subscriptions. They are made anew for each
    /// connection, written ahead of every message that was kept, and lost with the connection. The time that this needs
    /// counts as the attempt's; an error or a panic is an attempt that failed. A server that speaks `mainstay.v1` gets no
    /// greeting: its session continues, and [`credentials`](Self::credentials) authenticate it. The connection of
    /// [`adopt`](Self::adopt) gets none either.
    ///
    /// Do not use it with [`Confirm::Reply`](crate::Confirm::Reply): the link would take the peer's answer to a greeting for
    /// the answer to another message.
    ///
    /// ```no_run
    /// # async fn token() -> std::io::Result<String> { Ok(String::new()) }
    /// # fn run() -> Result<(), mainstay::client::UrlError> {
    /// let link = mainstay::Link::builder("wss://feed.example/")?
    ///     .greeting(|| async { Ok([format!("AUTH {}", token().await?), "SUBSCRIBE book".to_owned()]) })
    ///     .connect();
    /// # Ok(())
    /// # }
    /// ```
    pub fn greeting<F, R, M>(mut self, make: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<M, BoxError>> + Send + 'static,
        M: IntoIterator<Item: Into<Message>>,
    {
        let make = Arc::new(make);
        self.target.greeting = Some(Arc::new(move || {
            let make = Arc::clone(&make);
            Box::pin(async move { Ok(make().await?.into_iter().map(Into::into).collect()) })
        }));
        self
    }

    /// Replaces a connection that brings no message for this long: for a feed that can stop although the connection lives,
    /// which no heartbeat detects. Messages that wait for [`ClientHandle::recv`] are no silence. Default: no connection is
    /// replaced for that. Range: 100 ms to 1 week.
    ///
    /// # Errors
    /// It is out of range.
    pub fn silence(mut self, limit: Duration) -> Result<Self, ConfigError> {
        self.config.silence = Some(Silence::limit(limit)?);
        Ok(self)
    }

    /// Ends the client after this many attempts in a row that brought no connection. A connection clears the count.
    /// Default: the client never gives up. Range: at least 1.
    ///
    /// # Errors
    /// It is 0.
    pub fn max_attempts(mut self, attempts: u32) -> Result<Self, ConfigError> {
        self.config.allow_attempts(attempts)?;
        Ok(self)
    }

    /// Reaches the server through this proxy. Default: directly. See [`Connector::proxy`].
    pub fn proxy(mut self, proxy: Proxy) -> Self {
        self.target.connector = self.target.connector.proxy(proxy);
        self
    }

    /// Whether the header fields for [`ClientHandle::response_headers`] are kept, some hundred bytes for each client.
    /// Default: yes.
    pub fn keep_response(mut self, keeps: bool) -> Self {
        self.target.keeps_response = keeps;
        self
    }

    /// Sets the waits between attempts. Default: 0.5 s doubling to 30 s, jittered.
    pub fn backoff(mut self, backoff: BackoffConfig) -> Self {
        self.config.backoff = backoff;
        self
    }

    /// Limits the size and the fragments of a message that the peer may send. A server that speaks `mainstay.v1` learns the
    /// largest size, without type bytes. Default: 1 MiB, 1,024 fragments.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.target.limits = limits;
        self
    }

    /// Counts what this client keeps in `budget`, so that it waits where the others that share the budget wait. For programs
    /// with many clients. When the budget is used up, a client whose memory is needed loses its connection. Default: no
    /// budget; the client's own windows bound it.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Offers permessage-deflate. Default: no.
    pub fn deflate(mut self, deflate: bool) -> Self {
        self.target.deflate = deflate;
        self
    }

    /// Sets the TLS of `wss://`: other root certificates, a certificate of the client. Leave its ALPN protocols empty, or
    /// name `http/1.1` alone. Default: TLS 1.2 and 1.3, and the certificates that the system trusts.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, config: Arc<rustls::ClientConfig>) -> Self {
        self.target.connector = self.target.connector.tls(config);
        self
    }

    /// Reaches the server by this connector. The Unix socket that this builder's URL names stays, unless the connector has
    /// one. Default: `Connector::default()`.
    pub fn connector(mut self, connector: Connector) -> Self {
        self.target.connector = connector.or_unix(&self.target.connector);
        self
    }

    /// Limits the time of an attempt: to reach the server and, without an [`answer_timeout`](Self::answer_timeout), to open
    /// the WebSocket. Default: 10 s. Range: 1 ms to 1 hour.
    ///
    /// # Errors
    /// It is out of range.
    pub fn connect_timeout(mut self, timeout: Duration) -> Result<Self, ConfigError> {
        self.target.connector = self.target.connector.timeout(timeout)?;
        Ok(self)
    }

    /// Limits the time from the moment the server is reached until it has answered the opening handshake; the time to reach
    /// it does not count. Default: the rest of the [`connect_timeout`](Self::connect_timeout). Range: 1 ms to 1 hour.
    ///
    /// # Errors
    /// It is out of range.
    pub fn answer_timeout(mut self, timeout: Duration) -> Result<Self, ConfigError> {
        self.target.answer_timeout = Some(checked("answer_timeout", timeout)?);
        Ok(self)
    }

    /// Chooses the statuses of an HTTP response that end the client. Any other status is an attempt that failed, and another
    /// follows after the backoff: for a proxy that answers 404 while the server behind it is replaced, or for a 401 where
    /// [`request`](Self::request) makes a fresh token each time. Default: every status ends it but 408, 425, 426, 429 and
    /// 5xx; 501 and 505 end it.
    ///
    /// ```no_run
    /// # fn run() -> Result<(), mainstay::client::UrlError> {
    /// let client = mainstay::Client::builder("wss://chat.example/")?.give_up(|status| status == 403).connect();
    /// # Ok(())
    /// # }
    /// ```
    pub fn give_up(mut self, ends: impl Fn(StatusCode) -> bool + Send + Sync + 'static) -> Self {
        self.target.give_up = Some(Arc::new(ends));
        self
    }

    /// Chooses which endpoints that the server names are dialled instead of the URL. An endpoint with TLS where the URL has
    /// none, or the other way round, is never dialled. Default: those on the URL's host.
    pub fn follow(mut self, follow: Follow) -> Self {
        self.target.follow = follow;
        self
    }

    /// Connects in the background; the first attempt follows the same policy as every later one. Needs a tokio runtime.
    #[must_use = "dropping a client closes it"]
    pub fn connect(self) -> ClientHandle<P> {
        self.begin(None)
    }

    /// Begins with a connection whose opening handshake is done.
    pub(crate) fn begin_upgraded(self, upgraded: Upgraded) -> ClientHandle<P> {
        let opened = upgraded.opened(self.target.limits, false);
        self.begin(Some(opened))
    }

    /// Connects, or continues with a connection that is open already.
    fn begin(mut self, ready: Option<Opened>) -> ClientHandle<P> {
        let to_answer = self.target.answer_timeout.unwrap_or_default();
        self.config.session.flow.max_message = Some(self.target.limits.max_message as u64);
        self.config.opening_timeout = self.target.connector.limit().saturating_add(to_answer);
        let core = Core::new(Machine::new(now(), self.config, crate::random_seed()), self.budget);
        ClientTask::begin(Arc::clone(&core), self.target, ready);
        let seen = core.lock().machine.state();
        ClientHandle::begun(core, seen)
    }

    /// Connects once, and returns when the connection is attached. The client ends when that connection is lost.
    ///
    /// # Errors
    /// The connection could not be opened.
    ///
    /// # Cancel safety
    /// Safe: the attempt is given up.
    pub async fn connect_once(mut self) -> Result<ClientHandle<P>, ConnectError> {
        self.config.once = true;
        let client = self.connect();
        attached_after(&client, &mut None).await.map(|()| client)
    }

    /// Connects as [`connect`](Self::connect) does, and returns when a connection is attached. After an attempt that fails
    /// others follow, within this time.
    ///
    /// # Errors
    /// No connection was attached within this time, or the client has ended: the server refused it finally, or
    /// [`max_attempts`](Self::max_attempts) failed. It makes no more attempts.
    ///
    /// # Cancel safety
    /// Safe: the client is closed.
    pub async fn connect_ready(self, within: Duration) -> Result<ClientHandle<P>, ConnectError> {
        let client = self.connect();
        let mut last = None;
        match tokio::time::timeout(within, attached_after(&client, &mut last)).await {
            Ok(Ok(())) => Ok(client),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let rejection = client.rejection().map(Box::new);
                Err(ConnectError::TimedOut { within, last: last.map(Box::new), rejection })
            }
        }
    }
}

/// Waits for the first connection, and notes in `last` how the last attempt failed.
async fn attached_after<P>(client: &ClientHandle<P>, last: &mut Option<Lost>) -> Result<(), ConnectError> {
    loop {
        match client.event().await {
            Some(Event::Attached { .. }) => return Ok(()),
            Some(Event::AttemptFailed { why, .. }) => *last = Some(why),
            Some(Event::Ended(end)) => {
                return Err(ConnectError::Ended { end, rejection: client.rejection().map(Box::new) });
            }
            Some(_) => {}
            None => {
                let end = Box::new(End::new(EndCause::Abandoned, "ended before it began"));
                return Err(ConnectError::Ended { end, rejection: None });
            }
        }
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
    use http::Uri;

    use super::*;

    #[test]
    fn an_endpoint_that_the_server_names_is_dialled_if_it_may_be_followed() {
        let dialled = |builder: Builder, endpoint: Option<&str>, request: Request| {
            builder.target.attempt(request, endpoint).url.to_string()
        };
        let own = || crate::Client::builder("ws://example.com/a").unwrap();
        let (near, far) = (Some("ws://example.com:81/b"), Some("ws://other.example/b"));
        assert_eq!(dialled(own(), None, Request::default()), "ws://example.com/a");
        assert_eq!(dialled(own(), near, Request::default()), "ws://example.com:81/b");
        assert_eq!(dialled(own(), far, Request::default()), "ws://example.com/a");
        assert_eq!(dialled(own().follow(Follow::Anywhere), far, Request::default()), "ws://other.example/b");
        assert_eq!(dialled(own().follow(Follow::Never), near, Request::default()), "ws://example.com/a");
        // An endpoint that cannot be dialled.
        assert_eq!(
            dialled(own(), Some("ws://example.com:99999/b"), Request::default()),
            "ws://example.com/a"
        );
        // An endpoint is compared with the URL of this attempt.
        let moved = Request { url: Some(Uri::from_static("ws://other.example/")), ..Request::default() };
        assert_eq!(dialled(own(), near, moved.clone()), "ws://other.example/");
        assert_eq!(dialled(own(), far, moved), "ws://other.example/b");
    }
}
