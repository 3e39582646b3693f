//! A client that is not connecting yet, and what its attempts are made from.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use mainstay_proto::ConfigError;
use mainstay_proto::backoff::BackoffConfig;
use mainstay_proto::connect::{Client as Machine, ConnectConfig, End, EndCause, Event, Lost, Silence};
use mainstay_proto::endpoint::Follow;
use mainstay_proto::session::{Credentials, Message};
use mainstay_proto::ws::Limits;
use mainstay_proto::ws::handshake::InvalidProtocol;

use super::connector::{Connector, checked};
use super::core::Core;
use super::dial::{Attempt, GiveUp, Greeting, Opened, Upgraded};
use super::place::{Place, Server};
use super::proxy::Proxy;
use super::task::ClientTask;
use super::{BoxError, Client, ConnectError, Sessions, UrlError};
use crate::Budget;
use crate::clock::now;
use crate::link::Plain;

/// The subprotocol of `mainstay.v1`.
pub(super) const SUBPROTOCOL: &str = "mainstay.v1";

/// What an attempt is made with. Made anew before each by [`Builder::request`].
#[derive(Clone, Default)]
#[non_exhaustive]
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

type Factory = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Request, BoxError>> + Send>> + Send + Sync>;

/// A client that is not connecting yet. `P` as in [`Client`].
pub struct Builder<P = Sessions> {
    pub(super) target: Target,
    pub(crate) config: ConnectConfig,
    budget: Option<Budget>,
    peer: PhantomData<fn() -> P>,
}

/// What every attempt is made from.
#[derive(Clone)]
pub(super) struct Target {
    url: Uri,
    headers: HeaderMap,
    subprotocols: Vec<String>,
    /// Whether `mainstay.v1` is offered.
    resumable: bool,
    deflate: bool,
    limits: Limits,
    follow: Follow,
    pub(super) factory: Option<Factory>,
    pub(super) greeting: Option<Greeting>,
    keeps_response: bool,
    connector: Connector,
    answer_timeout: Option<Duration>,
    give_up: Option<GiveUp>,
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
    pub fn manual_ack(mut self) -> Self {
        self.config.session.flow.manual_ack = true;
        self
    }

    /// The resume window to ask the server for, in whole milliseconds. It gives no more than its own.
    /// Default: the server's own. Range: up to 1 week.
    ///
    /// # Errors
    /// It is out of range.
    pub fn resume_window(mut self, window: Duration) -> Result<Self, ConfigError> {
        let is_in_range = window <= Duration::from_secs(7 * 86_400);
        ConfigError::unless(is_in_range, "resume_window", "at most 1 week")?;
        self.config.session.resume_window = Some(window);
        Ok(self)
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
        R: Future<Output = Result<Request, BoxError>> + Send + 'static,
    {
        self.target.factory = Some(Arc::new(move || Box::pin(make())));
        self
    }

    /// What a plain peer is told first on each connection: who asks, and for what. The messages are made anew for each,
    /// written ahead of everything that was kept, and lost with it: the next connection gets its own. They count against
    /// the time that an attempt may take; an `Err` is an attempt that failed, and so is a panic. A server that speaks
    /// `mainstay.v1` gets none: its session goes on, and [`credentials`](Self::credentials) say who asks. Nor does the
    /// connection of [`adopt`](Self::adopt), whose handshake was somebody else's.
    ///
    /// With [`Confirm::Reply`](crate::Confirm::Reply) the peer's answer to them would be taken for another's.
    ///
    /// ```no_run
    /// # async fn token() -> std::io::Result<String> { Ok(String::new()) }
    /// # fn run() -> Result<(), mainstay::client::UrlError> {
    /// let link = mainstay::Link::to("wss://feed.example/")?
    ///     .greeting(|| async { Ok([format!("AUTH {}", token().await?), "SUBSCRIBE book".to_owned()]) })
    ///     .connect();
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
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

    /// A connection that brings no message for so long is replaced by another: for a feed that can stop behind a connection
    /// that lives, which no heartbeat finds. Messages that wait for [`Client::recv`] are no silence. Default: none is.
    /// Range: 100 ms to 1 week.
    ///
    /// # Errors
    /// It is out of range.
    pub fn silence(mut self, limit: Duration) -> Result<Self, ConfigError> {
        self.config.silence = Some(Silence::limit(limit)?);
        Ok(self)
    }

    /// Ends the client when so many attempts in a row brought no connection. A connection that came about clears the
    /// count. Default: it never gives up. Range: at least 1.
    ///
    /// # Errors
    /// It is 0.
    pub fn max_attempts(mut self, attempts: u32) -> Result<Self, ConfigError> {
        self.config.allow_attempts(attempts)?;
        Ok(self)
    }

    /// Reaches the server through this proxy. Default: directly. See [`Connector::proxy`].
    #[must_use]
    pub fn proxy(mut self, proxy: Proxy) -> Self {
        self.target.connector = self.target.connector.proxy(proxy);
        self
    }

    /// Whether [`Client::response_headers`] keeps them, some hundred bytes for each client. Default: yes.
    #[must_use]
    pub fn keep_response(mut self, keeps: bool) -> Self {
        self.target.keeps_response = keeps;
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
    /// open the WebSocket. Default: 10 s. Range: 1 ms to 1 hour.
    ///
    /// # Errors
    /// It is out of range.
    pub fn connect_timeout(mut self, timeout: Duration) -> Result<Self, ConfigError> {
        self.target.connector = self.target.connector.timeout(timeout)?;
        Ok(self)
    }

    /// How long the server may take for its answer to the opening handshake, from when it was reached, in addition to
    /// what reaching it took. Default: what the [`connect_timeout`](Self::connect_timeout) leaves. Range: 1 ms to 1 hour.
    ///
    /// # Errors
    /// It is out of range.
    pub fn answer_timeout(mut self, timeout: Duration) -> Result<Self, ConfigError> {
        self.target.answer_timeout = Some(checked("answer_timeout", timeout)?);
        Ok(self)
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
        ClientTask::begin(Arc::clone(&core), self.target, ready);
        let seen = core.lock().machine.state();
        Client::begun(core, seen)
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
        attached_after(&client, &mut None).await.map(|()| client)
    }

    /// As [`connect`](Self::connect), and returns once a connection is attached. Attempts that fail before are followed by
    /// others, within this time.
    ///
    /// # Errors
    /// There was none within this time, or the client has ended: it was refused for good, or
    /// [`max_attempts`](Self::max_attempts) failed. It tries no more.
    ///
    /// # Cancel safety
    /// Safe: nothing stays behind.
    pub async fn connect_ready(self, within: Duration) -> Result<Client<P>, ConnectError> {
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

/// Waits for the first connection; `last`: how the last attempt failed.
async fn attached_after<P>(client: &Client<P>, last: &mut Option<Lost>) -> Result<(), ConnectError> {
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
    pub(super) fn attempt(&self, request: Request, endpoint: Option<&str>) -> Attempt {
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
            keeps_response: self.keeps_response,
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
