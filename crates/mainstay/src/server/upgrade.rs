//! The extractor: an upgrade request, and the application's options for the session that it asks for.

use std::any::Any;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, OptionalFromRequestParts, OriginalUri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, Uri, header};
use hyper::upgrade::OnUpgrade;
use mainstay_proto::ConfigError;
use mainstay_proto::admission::Refused;
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::session::LifetimeConfig;
use mainstay_proto::session::message::Delay;
use mainstay_proto::session::server::ServerConfig;
use mainstay_proto::throttle::ThrottleConfig;
use mainstay_proto::ws::handshake::{self, Accept, HandshakeError};
use mainstay_proto::ws::{DeflateParams, Limits, Origins};

use super::attach::SessionOptions;
use super::auth::{AuthError, Identity};
use super::config;
use super::group::{Group, Places};
use super::handle::Server;
use super::limits::{Permit, Refusal};
use super::open::{HeadDuration, Opening, open};
use super::peer::PeerInfo;
use super::session::Session;
use super::spelling;
use super::stats::Counters;
use crate::{Level, subprotocol};

/// Extracts an upgrade request. Answers any other request with the status and one line that states the reason.
///
/// The [`Server`] comes with the request: [`serve`](crate::serve) puts it there, and so does [`Server::layer`] on a router
/// or a route, behind any other server. The router's state is the application's.
///
/// ```no_run
/// use axum::extract::State;
/// use axum::{Router, response::Response, routing::any};
/// use mainstay::{Server, SessionUpgrade};
///
/// #[derive(Clone)]
/// struct App {
///     greeting: &'static str,
/// }
///
/// async fn greet(State(app): State<App>, upgrade: SessionUpgrade) -> Response {
///     upgrade.on_session(move |session| async move { drop(session.send(app.greeting).await) })
/// }
///
/// # async fn run() -> std::io::Result<()> {
/// let app = Router::new().route("/", any(greet)).with_state(App { greeting: "hello" });
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
/// mainstay::serve(listener, app, &Server::default()).await
/// # }
/// ```
///
/// A router whose state is a [`Server`] uses that one: `Router::new().route("/ws", any(handler)).with_state(server)`.
///
/// For a route that serves a page, too, `Option<SessionUpgrade>` is `None` where the request asks for no WebSocket, and
/// `Result<SessionUpgrade, UpgradeRejection>` lets the handler answer a request that is refused.
#[must_use = "answer the request with the response of `on_session`"]
pub struct SessionUpgrade {
    server: Server,
    request: Accept,
    on_upgrade: OnUpgrade,
    uri: Uri,
    headers: HeaderMap,
    info: PeerInfo,
    permit: Option<Arc<Permit>>,
    /// What a plain client counts for that was judged.
    places: Option<Places>,
    is_judged: bool,
    head_duration: Duration,
    options: SessionOptions,
    subprotocols: Option<Vec<String>>,
    /// Whether the client may agree on permessage-deflate.
    deflate: bool,
    /// Further fields of the 101, and the spelling of its names.
    answer: Option<Box<(HeaderMap, Extensions)>>,
}

/// Why a request did not become a session. As a response it is the status and this text.
///
/// ```
/// use axum::response::{IntoResponse, Response};
/// use mainstay::{SessionUpgrade, server::UpgradeRejection};
///
/// async fn route(upgrade: Result<SessionUpgrade, UpgradeRejection>) -> Response {
///     match upgrade {
///         Ok(upgrade) => upgrade.on_session(|session| async move { session.closed().await }),
///         Err(UpgradeRejection::Draining) => "the next server is over there".into_response(),
///         Err(rejection) => rejection.into_response(),
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeRejection {
    /// The request is no valid upgrade request, or its origin is not allowed.
    #[error(transparent)]
    Request(#[from] HandshakeError),
    /// The server is draining (503).
    #[error("the server is going away, come back")]
    Draining,
    /// The memory budget leaves no room for a new session (503).
    #[error("the server is out of memory, come back")]
    NoMemory,
    /// The client exceeds a limit of [`Config::openings`](super::Config::openings) or of its [`Group`] (429 or 503).
    #[error("too many WebSockets, come back")]
    TooMany {
        /// The limit.
        why: Refused,
        /// When the client may try again.
        after: Duration,
    },
    /// The HTTP server in use cannot upgrade connections (500).
    #[error("this HTTP server cannot upgrade connections")]
    NotUpgradable,
    /// The request carries no [`Server`] (500).
    #[error("no server for sessions: use `mainstay::serve`, or add `.layer(server.layer())` to the router")]
    NoServer,
}

/// The server of a request: the router's state if that is one, otherwise what [`serve`](crate::serve) or
/// [`Server::layer`] put into the request.
fn server_of<S: 'static>(parts: &Parts, state: &S) -> Result<Server, UpgradeRejection> {
    let state = (state as &dyn Any).downcast_ref::<Server>();
    state.or_else(|| parts.extensions.get()).cloned().ok_or(UpgradeRejection::NoServer)
}

/// Checks an opening request of HTTP/1.1 or HTTP/2.
fn checked(parts: &Parts) -> Result<Accept, HandshakeError> {
    #[cfg(feature = "http2")]
    if let Some(protocol) = parts.extensions.get::<hyper::ext::Protocol>() {
        return handshake::check_connect(protocol.as_str(), &parts.headers);
    }
    handshake::check_request(&parts.method, parts.version, &parts.headers)
}

/// Whether a request asks for a WebSocket: by `Upgrade`, or over HTTP/2 by `:protocol`.
fn asks_for_websocket(parts: &Parts) -> bool {
    #[cfg(feature = "http2")]
    if parts.extensions.get::<hyper::ext::Protocol>().is_some() {
        return true;
    }
    let asks = |value: &HeaderValue| {
        let mut names = value.as_bytes().split(|byte| *byte == b',');
        names.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"websocket"))
    };
    parts.headers.get_all(header::UPGRADE).iter().any(asks)
}

impl<S: Send + Sync + 'static> FromRequestParts<S> for SessionUpgrade {
    type Rejection = UpgradeRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, UpgradeRejection> {
        let server = server_of(parts, state)
            .inspect_err(|error| tracing::error!(path = parts.uri.path(), "{error}"))?;
        let stats = &server.shared.stats;
        let request = checked(parts)
            .inspect_err(|_| Counters::add(&stats.openings_failed, 1))
            .map_err(UpgradeRejection::Request)?;
        server
            .shared
            .config
            .origins
            .check(&parts.headers)
            .inspect_err(|_| Counters::add(&stats.refused_origin, 1))
            .map_err(UpgradeRejection::Request)?;
        if server.shared.is_draining() {
            Counters::add(&stats.openings_failed, 1);
            Counters::add(&stats.refused_draining, 1);
            return Err(UpgradeRejection::Draining);
        }
        let may_resume = request.protocols().any(subprotocol::is_session);
        if !may_resume && !server.shared.config.budget.level().admits() {
            Counters::add(&stats.refused_memory, 1);
            return Err(UpgradeRejection::NoMemory);
        }
        let on_upgrade = parts.extensions.remove::<OnUpgrade>().ok_or(UpgradeRejection::NotUpgradable)?;
        // A router that is nested in another sees only the rest of the path.
        let original = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
        let (uri, path) = (parts.uri.clone(), original.path().into());
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        let address = server.shared.gate.client(peer, &parts.headers);
        let (settings, limits) = (Arc::clone(&server.shared.sessions), server.shared.config.limits);
        let deflate = server.shared.config.deflate;
        Ok(Self {
            server,
            request,
            on_upgrade,
            uri,
            headers: parts.headers.clone(),
            info: PeerInfo::new(address),
            permit: parts.extensions.remove::<Arc<Permit>>(),
            places: None,
            is_judged: false,
            head_duration: parts.extensions.get::<HeadDuration>().map_or(Duration::ZERO, |head| head.0),
            options: SessionOptions {
                path,
                identity: Identity::new(Bytes::new()),
                authenticate: None,
                settings,
                limits,
                group: None,
                throttle: ThrottleConfig::default(),
                manual: false,
                drops_oldest: false,
                #[cfg(feature = "cluster")]
                movable: false,
                deflate: None,
            },
            subprotocols: None,
            deflate,
            answer: None,
        })
    }
}

/// `None` where the request asks for no WebSocket.
impl<S: Send + Sync + 'static> OptionalFromRequestParts<S> for SessionUpgrade {
    type Rejection = UpgradeRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, UpgradeRejection> {
        if !asks_for_websocket(parts) {
            return Ok(None);
        }
        <Self as FromRequestParts<S>>::from_request_parts(parts, state).await.map(Some)
    }
}

impl SessionUpgrade {
    /// Binds the session to the principal that this request authenticated as. A resume token that another principal presents
    /// is answered like one that was never issued, and so is one that is presented at another path than that of its session,
    /// query aside.
    ///
    /// An [`Identity`] says also for how long: a token in a cookie that expires ends the connection that it opened.
    pub fn principal(mut self, principal: impl Into<Identity>) -> Self {
        self.options.identity = principal.into();
        self
    }

    /// Has `judge` authenticate the client by the credentials in its HELLO (`None` if it sent none, and for a plain peer,
    /// which cannot send any). The value that it returns is the [principal](Self::principal), or an [`Identity`] that says also
    /// for how long; a client that it refuses gets no session.
    ///
    /// `judge` is called at every attach, and again when the client presents new credentials on a live session. There a
    /// refusal, or another principal, is reported to the client and changes nothing: end the session with
    /// [`Session::close`] if it is to end. An answer after [`Config::opening_deadline`](super::Config::opening_deadline), or
    /// a panic, is [`AuthError::Unavailable`].
    ///
    /// ```no_run
    /// # use mainstay::{SessionUpgrade, server::AuthError};
    /// async fn chat(upgrade: SessionUpgrade) -> axum::response::Response {
    ///     let upgrade = upgrade.authenticate(|credentials| async move {
    ///         match credentials.as_deref() {
    ///             Some(b"open sesame") => Ok("ali baba"),
    ///             _ => Err(AuthError::Refused),
    ///         }
    ///     });
    ///     upgrade.on_session(|session| async move { println!("{:?}", session.peer().principal) })
    /// }
    /// ```
    pub fn authenticate<A, F, P>(mut self, judge: A) -> Self
    where
        A: Fn(Option<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<P, AuthError>> + Send + 'static,
        P: Into<Identity>,
    {
        self.options.authenticate = Some(Arc::new(move |credentials| {
            let judging = judge(credentials);
            Box::pin(async move { judging.await.map(Into::into) })
        }));
        self
    }

    /// Lets the handler acknowledge messages, with [`Session::ack`]. Default: a message that [`Session::recv`] returns is
    /// acknowledged.
    ///
    /// When a node of a cluster drains, [`Session::recv`] returns `None`, and the handler has 5 s to acknowledge what it has
    /// finished and to return. After that the session ends with its account, or moves if it is `movable`.
    pub fn manual_ack(mut self) -> Self {
        self.options.manual = true;
        self
    }

    /// Sets the heartbeat of this session, where a route needs another than the rest. WELCOME announces the interval to a
    /// client that speaks `mainstay.v1`, which derives its own deadline from it. It holds for the session's life: a later
    /// connection does not change it. Default: [`Config::heartbeat`](super::Config::heartbeat).
    pub fn heartbeat(mut self, heartbeat: HeartbeatConfig) -> Self {
        self.settings().heartbeat = heartbeat;
        self
    }

    /// Sets how long this session is kept without a connection, where a route needs another time than the rest. Default:
    /// [`Config::resume_window`](super::Config::resume_window), which must be the longest of a server in a cluster. Range:
    /// up to 30 days.
    ///
    /// # Errors
    /// The window is out of range.
    pub fn resume_window(mut self, window: Duration) -> Result<Self, ConfigError> {
        config::check_resume_window(window)?;
        self.settings().resume_window = window;
        Ok(self)
    }

    /// Sets how large a message of this client may be, and of how many fragments, where a route needs other limits than the
    /// rest. WELCOME announces the size. Default: [`Config::limits`](super::Config::limits). Range: 1 byte to 1 GiB, at
    /// least 1 fragment.
    ///
    /// # Errors
    /// A limit is out of range.
    pub fn limits(mut self, limits: Limits) -> Result<Self, ConfigError> {
        config::check_limits(limits)?;
        self.options.limits = limits;
        self.settings().flow.max_message = Some(limits.max_message as u64);
        Ok(self)
    }

    /// Limits how long a connection of this session may be without a message, and how long it may live. Default:
    /// [`Config::lifetime`](super::Config::lifetime).
    pub fn lifetime(mut self, lifetime: LifetimeConfig) -> Self {
        self.settings().lifetime = lifetime;
        self
    }

    /// Sets whether the client may agree on permessage-deflate. Default: [`Config::deflate`](super::Config::deflate). While
    /// the memory budget is short, no new connection agrees on it.
    pub fn deflate(mut self, deflate: bool) -> Self {
        self.deflate = deflate;
        self
    }

    /// Checks the page that opens this WebSocket against the origins of its route. It comes in addition to
    /// [`Config::origins`](super::Config::origins), which was checked before: set that to [`Origins::Any`] where each route
    /// has its own.
    ///
    /// # Errors
    /// The page may not open a WebSocket here: the rejection is the response.
    pub fn origins(self, origins: &Origins) -> Result<Self, UpgradeRejection> {
        let checked = origins.check(&self.headers);
        checked.inspect_err(|_| Counters::add(&self.server.shared.stats.refused_origin, 1))?;
        Ok(self)
    }

    /// Has the client count for the limits of a group, beside those of the server.
    pub fn group(mut self, group: &Group) -> Self {
        self.options.group = Some(group.clone());
        self
    }

    /// Limits how fast the client may send. A client that sends faster is not read for a while, which loses nothing; one that
    /// goes on for the [patience](ThrottleConfig::patience) loses its connection (1008): a session resumes on the next.
    /// Default: no limit.
    pub fn throttle(mut self, throttle: ThrottleConfig) -> Self {
        self.options.throttle = throttle;
        self
    }

    /// Judges by the limits on opening WebSockets now, before the application spends anything on this client. Default:
    /// [`on_session`](Self::on_session) does, and answers a refused client. Call [`group`](Self::group) and
    /// [`principal`](Self::principal) before. A client that speaks `mainstay.v1` is judged by its HELLO, because that says
    /// whether it resumes.
    ///
    /// # Errors
    /// The client exceeds a limit: the rejection is the response.
    pub fn judge(mut self) -> Result<Self, UpgradeRejection> {
        if self.is_judged || self.is_resumable() {
            return Ok(self);
        }
        let shared = &self.server.shared;
        self.info.identify(&self.options.identity);
        let (groups, opener) = (shared.groups(self.options.group.as_ref()), self.info.opener());
        groups.judge(opener).map_err(|exceeded| {
            shared.gate.note_refused(exceeded.why, exceeded.is_of_route, &shared.stats);
            UpgradeRejection::TooMany { why: exceeded.why, after: drawn(exceeded.refuse(opener)) }
        })?;
        groups.open(opener);
        self.places = groups.enter(opener);
        self.is_judged = true;
        Ok(self)
    }

    /// The settings of this session alone.
    fn settings(&mut self) -> &mut ServerConfig {
        Arc::make_mut(&mut self.options.settings)
    }

    /// Sets the application's subprotocols, in order of preference. Without this call the server selects the first that the
    /// client offers.
    pub fn subprotocols<I: IntoIterator<Item: Into<String>>>(mut self, names: I) -> Self {
        self.subprotocols = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Sets further fields of the 101 response, which cannot replace those of the handshake, and its extensions: hyper takes
    /// the spelling of field names from there, for example from the answer of a backend that a proxy passes on. Default: no
    /// further fields, spelled as in RFC 6455.
    pub fn response_fields(mut self, fields: HeaderMap, extensions: Extensions) -> Self {
        self.answer = Some(Box::new((fields, extensions)));
        self
    }

    /// Makes a client that does not keep up lose messages instead of making [`Session::send`] wait: when its window
    /// ([`Config::keep`](super::Config::keep)) is full, the session drops its oldest message that was never written, which
    /// may be the new one, and reports the gap to the client at its place in the order. For data that the slowness of one
    /// client must not hold up: a room, a feed. Default: `send` waits, and [`Session::try_send`] returns the message.
    ///
    /// It changes nothing for a plain peer, to which no gap can be reported.
    pub fn drop_oldest(mut self) -> Self {
        self.options.drops_oldest = true;
        self
    }

    /// Sets the place where the session is opened, for example the route that a gateway chose, a space, and the path. A resume
    /// token that is presented at another place is answered like one that was never issued, and
    /// [`ClientInfo::path`](super::ClientInfo::path) shows it. The log has what stands before the space as `route`. Default:
    /// the path of the request.
    pub fn opened_at(mut self, place: impl Into<Box<str>>) -> Self {
        self.options.path = place.into();
        self
    }

    /// Lets the session move to another server: when this one drains, [`Session::recv`] returns `None`
    /// ([`Session::is_leaving`]), and once the handler has returned, another server of the cluster continues the session, with
    /// a new handler that starts with what this one [saved](Session::save). The client notices nothing. Default: a drain ends
    /// the session, and its client gets the exact account of it.
    ///
    /// The handler has 5 s to return; what it sends meanwhile moves along, up to once more what
    /// [`Config::keep`](super::Config::keep) allows: then [`Session::send`] returns the message. It changes nothing for a plain
    /// peer, and nothing without [`Config::cluster`](super::Config::cluster).
    ///
    /// ```no_run
    /// # use mainstay::SessionUpgrade;
    /// async fn count(upgrade: SessionUpgrade) -> axum::response::Response {
    ///     upgrade.movable().on_session(|mut session| async move {
    ///         let saved = session.restored().and_then(|saved| saved.as_ref().try_into().ok());
    ///         let mut count = saved.map_or(0, u64::from_be_bytes);
    ///         while session.recv().await.is_some() {
    ///             count += 1;
    ///             session.save(count.to_be_bytes().to_vec());
    ///             session.send(count.to_string()).await.ok();
    ///         }
    ///     })
    /// }
    /// ```
    #[cfg(feature = "cluster")]
    pub fn movable(mut self) -> Self {
        self.options.movable = true;
        self
    }

    /// The request's path and query.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The request's headers. They share one buffer: copy what you keep for the life of the session.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Where the request came from, if the server loop reported that; behind a [trusted proxy](super::Config::proxies), its
    /// client.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.info.address
    }

    /// The application's subprotocols that the client requests.
    pub fn requested_subprotocols(&self) -> impl Iterator<Item = &str> {
        requested(&self.request)
    }

    /// Whether the client will speak `mainstay.v1` once this is accepted.
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        self.choose().as_deref().is_some_and(subprotocol::is_session)
    }

    /// Accepts the request. `handler` runs once for each session, not for each connection: it goes on while the client is
    /// away and comes back. It is not promised to be a tokio task of its own.
    #[must_use = "the upgrade happens when this response is returned from the axum handler"]
    pub fn on_session<H, F>(self, handler: H) -> Response
    where
        H: FnOnce(Session) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        match self.judge() {
            Ok(judged) => judged.accept(handler),
            Err(rejection) => rejection.into_response(),
        }
    }

    fn accept<H, F>(mut self, handler: H) -> Response
    where
        H: FnOnce(Session) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let chosen = self.choose();
        let shared = &self.server.shared;
        // The contexts of a compressed connection are memory, too.
        let has_memory = shared.config.budget.level() == Level::Calm;
        let deflate = (self.deflate && has_memory).then(DeflateParams::default);
        let status = self.request.status();
        let (handshake, agreed) = self.request.response(chosen.as_deref(), deflate);
        self.info.resumable = chosen.as_deref().is_some_and(subprotocol::is_session);
        self.info.subprotocol = chosen.and_then(|name| subprotocol::application(&name).map(Box::from));
        self.options.deflate = agreed.deflate;
        let tracker = shared.tracker.clone();
        let Self { on_upgrade, permit, places, head_duration, info, options, .. } = self;
        // A tokio task for the opening alone: after it, a worker polls the session.
        let opened = open(
            self.server.shared,
            Opening { on_upgrade, permit, places, info, options, head_duration },
            handler,
        );
        tracker.spawn(Box::pin(opened));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        let (headers, extensions) =
            self.answer.map_or_else(|| (HeaderMap::new(), spelling::of_rfc_6455()), |answer| *answer);
        *response.headers_mut() = with_handshake(headers, handshake);
        *response.extensions_mut() = extensions;
        response
    }

    /// `mainstay.v1` wins over plain, then the application's order.
    fn choose(&self) -> Option<String> {
        let wanted: Vec<&str> = match &self.subprotocols {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => self.requested_subprotocols().collect(),
        };
        let list: Vec<&str> = self.request.protocols().collect();
        let with_name =
            |ours: &&&str| subprotocol::application(ours).is_none_or(|name| wanted.contains(&name));
        let ours = list.iter().filter(|name| subprotocol::is_session(name)).find(with_name);
        ours.or_else(|| wanted.iter().find(|name| list.contains(name))).map(|name| (*name).to_owned())
    }
}

/// Adds the fields of the handshake, which replace any of the same name.
fn with_handshake(mut fields: HeaderMap, handshake: HeaderMap) -> HeaderMap {
    for name in
        [&header::SEC_WEBSOCKET_ACCEPT, &header::SEC_WEBSOCKET_PROTOCOL, &header::SEC_WEBSOCKET_EXTENSIONS]
    {
        fields.remove(name);
    }
    fields.extend(handshake);
    fields
}

/// Returns a time within a delay. The times are spread, so that a crowd does not come back at once.
fn drawn(delay: Delay) -> Duration {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let tenth = (DRAWN.fetch_add(7, Ordering::Relaxed) % 10) as u32;
    delay.min + delay.max.saturating_sub(delay.min) / 10 * tenth
}

fn requested(request: &Accept) -> impl Iterator<Item = &str> {
    request.protocols().filter_map(subprotocol::application)
}

impl IntoResponse for UpgradeRejection {
    fn into_response(self) -> Response {
        let line = format!("{self}\n");
        let come_back = |seconds: u64| {
            HeaderMap::from_iter([
                (header::RETRY_AFTER, HeaderValue::from(seconds)),
                (header::CONNECTION, HeaderValue::from_static("close")),
            ])
        };
        let (status, headers) = match self {
            Self::Request(error) => (error.status(), error.headers()),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, come_back(1)),
            Self::NoMemory => {
                let spread = Delay { min: Duration::from_secs(1), max: Duration::from_secs(11) };
                (StatusCode::SERVICE_UNAVAILABLE, come_back(drawn(spread).as_secs()))
            }
            Self::TooMany { why, after } => return Refusal { why, wait: after }.into_response(),
            Self::NotUpgradable | Self::NoServer => (StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new()),
        };
        (status, headers, line).into_response()
    }
}
