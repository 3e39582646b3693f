//! The extractor: an upgrade request, and what the application says of the session that it asks for.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, FromRef, FromRequestParts, OptionalFromRequestParts, OriginalUri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderValue, StatusCode, Uri, header};
use hyper::upgrade::OnUpgrade;
use mainstay_proto::heartbeat::HeartbeatConfig;
use mainstay_proto::ws::DeflateParams;
use mainstay_proto::ws::handshake::{self, Accept, HandshakeError};

use super::Server;
use super::auth::AuthError;
use super::limits::Permit;
use super::open::{HeadDuration, Opening, SessionOptions, open};
use super::peer::PeerInfo;
use super::session::Session;
use super::spelling;
use super::stats::Counters;

/// The subprotocol of `mainstay.v1`; `mainstay.v1+name` carries an application's own name.
pub(crate) const SUBPROTOCOL: &str = "mainstay.v1";

/// Extracts an upgrade request. Answers anything else with the status and one line that says why.
///
/// The router's state must give a [`Server`]: it is one, or says how it is taken out of it.
///
/// ```no_run
/// use axum::extract::{FromRef, State};
/// use axum::{Router, response::Response, routing::any};
/// use mainstay::{Server, SessionUpgrade};
///
/// #[derive(Clone, Default)]
/// struct App {
///     mainstay: Server,
///     greeting: &'static str,
/// }
///
/// impl FromRef<App> for Server {
///     fn from_ref(app: &App) -> Self {
///         app.mainstay.clone()
///     }
/// }
///
/// async fn greet(State(app): State<App>, upgrade: SessionUpgrade) -> Response {
///     upgrade.on_session(move |session| async move { drop(session.send(app.greeting).await) })
/// }
///
/// let app = App::default();
/// let routes: Router = Router::new().route("/", any(greet)).with_state(app.clone());
/// ```
///
/// Without `FromRef`, where the state is something else, an [`Extension`](axum::Extension) or a state of the route's own
/// does it: `Router::new().route("/ws", any(handler)).with_state(mainstay)` can be merged into a router of any state.
/// `Option<SessionUpgrade>` is `None` where the request asks for no WebSocket.
pub struct SessionUpgrade {
    mainstay: Server,
    request: Accept,
    on_upgrade: OnUpgrade,
    uri: Uri,
    headers: HeaderMap,
    info: PeerInfo,
    permit: Option<Arc<Permit>>,
    head_duration: Duration,
    options: SessionOptions,
    subprotocols: Option<Vec<String>>,
    /// What the 101 says besides, and how its names are spelled.
    answer: Option<Box<(HeaderMap, Extensions)>>,
}

/// Why a request did not become a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpgradeRejection {
    /// It is not a valid upgrade request.
    Request(HandshakeError),
    /// The server is draining.
    Draining,
    /// The memory budget is used up to where no newcomer is taken.
    NoMemory,
    /// The HTTP server in use cannot upgrade connections.
    NotUpgradable,
}

impl<S> FromRequestParts<S> for SessionUpgrade
where
    Server: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = UpgradeRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, UpgradeRejection> {
        let mainstay = Server::from_ref(state);
        let stats = &mainstay.shared.stats;
        let request = handshake::check_request(&parts.method, parts.version, &parts.headers)
            .inspect_err(|_| Counters::add(&stats.openings_failed, 1))
            .map_err(UpgradeRejection::Request)?;
        mainstay
            .shared
            .config
            .origins
            .check(&parts.headers)
            .inspect_err(|_| Counters::add(&stats.refused_origin, 1))
            .map_err(UpgradeRejection::Request)?;
        if mainstay.shared.is_draining() {
            Counters::add(&stats.openings_failed, 1);
            Counters::add(&stats.refused_draining, 1);
            return Err(UpgradeRejection::Draining);
        }
        let may_resume = request.protocols().any(is_ours);
        if !may_resume && !mainstay.shared.config.budget.level().admits() {
            Counters::add(&stats.refused_memory, 1);
            return Err(UpgradeRejection::NoMemory);
        }
        let on_upgrade = parts.extensions.remove::<OnUpgrade>().ok_or(UpgradeRejection::NotUpgradable)?;
        // A router that is nested in another sees the rest of the path only.
        let original = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
        let (uri, path) = (parts.uri.clone(), original.path().into());
        let address = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        let heartbeat = mainstay.shared.config.heartbeat;
        Ok(Self {
            mainstay,
            request,
            on_upgrade,
            uri,
            headers: parts.headers.clone(),
            info: PeerInfo::new(address),
            permit: parts.extensions.remove::<Arc<Permit>>(),
            head_duration: parts.extensions.get::<HeadDuration>().map_or(Duration::ZERO, |head| head.0),
            options: SessionOptions {
                path,
                principal: Bytes::new(),
                authenticate: None,
                heartbeat,
                manual: false,
                drops_oldest: false,
                deflate: None,
            },
            subprotocols: None,
            answer: None,
        })
    }
}

/// For a route that serves a page, too: `None` where the request asks for no WebSocket.
impl<S> OptionalFromRequestParts<S> for SessionUpgrade
where
    Server: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = UpgradeRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, UpgradeRejection> {
        let asks = |value: &HeaderValue| {
            let mut names = value.as_bytes().split(|byte| *byte == b',');
            names.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"websocket"))
        };
        if !parts.headers.get_all(header::UPGRADE).iter().any(asks) {
            return Ok(None);
        }
        <Self as FromRequestParts<S>>::from_request_parts(parts, state).await.map(Some)
    }
}

impl SessionUpgrade {
    /// Binds the session to whoever this request authenticated as: a resume token presented by
    /// another principal is answered like one that was never issued, and so is one that is presented at another
    /// path than its session's, query aside.
    #[must_use]
    pub fn principal(mut self, principal: impl Into<Bytes>) -> Self {
        self.options.principal = principal.into();
        self
    }

    /// Asks `judge` who the client is, by the credentials in its HELLO (`None` if it sent none, and for a
    /// plain peer, which cannot send any). What it returns is the [principal](Self::principal); what it
    /// denies gets no session.
    ///
    /// It is asked at every attach, and again when the client presents new credentials on a live session.
    /// There a refusal, or another principal, is told to the client and changes nothing: end the session
    /// with [`Session::close`] if it is to end. An answer that takes longer than
    /// [`Config::opening_deadline`](super::Config::opening_deadline), or a panic, is [`AuthError::Unavailable`].
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
    #[must_use]
    pub fn authenticate<A, F, P>(mut self, judge: A) -> Self
    where
        A: Fn(Option<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<P, AuthError>> + Send + 'static,
        P: Into<Bytes>,
    {
        self.options.authenticate = Some(Arc::new(move |credentials| {
            let judging = judge(credentials);
            Box::pin(async move { judging.await.map(Into::into) })
        }));
        self
    }

    /// The handler confirms what it has handled, with [`Session::confirm`]. Default: being returned by
    /// [`Session::recv`] counts as received.
    #[must_use]
    pub fn manual_ack(mut self) -> Self {
        self.options.manual = true;
        self
    }

    /// How often the client of this session is probed, where a route needs another interval than the rest. A client that
    /// speaks `mainstay.v1` is told, and derives its own deadline from it. It holds for the session's life: what a later
    /// connection asks for changes nothing. Default: [`Config::heartbeat`](super::Config::heartbeat).
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: HeartbeatConfig) -> Self {
        self.options.heartbeat = heartbeat;
        self
    }

    /// The application's subprotocols, in order of preference. Without this call the first that the
    /// client offers is agreed on.
    #[must_use]
    pub fn subprotocols<I: IntoIterator<Item: Into<String>>>(mut self, names: I) -> Self {
        self.subprotocols = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Fields for the 101 response besides those of the handshake, which stay ours, and extensions for it: hyper takes
    /// the spelling of field names from there, for example from the answer of a backend that is passed on. Default: no
    /// more fields, spelled as RFC 6455 does.
    #[must_use]
    pub fn response_fields(mut self, fields: HeaderMap, extensions: Extensions) -> Self {
        self.answer = Some(Box::new((fields, extensions)));
        self
    }

    /// A client that does not keep up loses messages instead of making [`Session::send`] wait: when what is
    /// kept for it is full ([`Config::keep`](super::Config::keep)), the oldest message that was never written
    /// is dropped, which may be the new one. The client is told of the gap, at its place in the order. For
    /// what one client's slowness must not hold up: a room, a feed. Default: `send` waits, and
    /// [`Session::try_send`] gives the message back.
    ///
    /// Towards a plain peer, which cannot be told of a gap, it changes nothing.
    #[must_use]
    pub fn drop_oldest(mut self) -> Self {
        self.options.drops_oldest = true;
        self
    }

    /// The request's path and query.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The request's headers. They share one buffer with each other: copy what you keep for the life of
    /// the session.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Where the request came from, as far as the server loop told.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.info.address
    }

    /// The application's subprotocols that the client offers.
    pub fn requested_subprotocols(&self) -> impl Iterator<Item = &str> {
        requested(&self.request)
    }

    /// Whether the client will speak `mainstay.v1` once this is accepted.
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        self.choose().as_deref().is_some_and(is_ours)
    }

    /// Accepts. `handler` runs once per session, not per connection: it goes on while the client is
    /// away and comes back. It need not be a tokio task of its own.
    pub fn on_session<H, F>(mut self, handler: H) -> Response
    where
        H: FnOnce(Session) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let chosen = self.choose();
        let shared = &self.mainstay.shared;
        let deflate = shared.config.deflate.then(DeflateParams::default);
        let (handshake, agreed) = self.request.response(chosen.as_deref(), deflate);
        self.info.resumable = chosen.as_deref().is_some_and(is_ours);
        self.info.subprotocol = chosen.and_then(|name| application_name(&name).map(Box::from));
        self.options.deflate = agreed.deflate;
        let tracker = shared.tracker.clone();
        let Self { on_upgrade, permit, head_duration, info, options, .. } = self;
        // A task for the opening alone: once it is over, the session lives with a worker.
        let opened =
            open(self.mainstay.shared, Opening { on_upgrade, permit, info, options, head_duration }, handler);
        tracker.spawn(Box::pin(opened));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
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
        let with_name = |ours: &&&str| application_name(ours).is_none_or(|name| wanted.contains(&name));
        let ours = list.iter().filter(|name| is_ours(name)).find(with_name);
        ours.or_else(|| wanted.iter().find(|name| list.contains(name))).map(|name| (*name).to_owned())
    }
}

/// These fields, and those of the handshake instead of any that have their names.
fn with_handshake(mut fields: HeaderMap, handshake: HeaderMap) -> HeaderMap {
    for name in
        [&header::SEC_WEBSOCKET_ACCEPT, &header::SEC_WEBSOCKET_PROTOCOL, &header::SEC_WEBSOCKET_EXTENSIONS]
    {
        fields.remove(name);
    }
    fields.extend(handshake);
    fields
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(SUBPROTOCOL).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

fn application_name(name: &str) -> Option<&str> {
    if !is_ours(name) {
        return Some(name);
    }
    name.strip_prefix(SUBPROTOCOL)?.strip_prefix('+')
}

fn requested(request: &Accept) -> impl Iterator<Item = &str> {
    request.protocols().filter_map(application_name)
}

impl IntoResponse for UpgradeRejection {
    fn into_response(self) -> Response {
        let (status, line, headers) = match self {
            Self::Request(error) => (error.status(), error.to_string(), error.headers()),
            Self::Draining => {
                let headers = [
                    (header::RETRY_AFTER, HeaderValue::from_static("1")),
                    (header::CONNECTION, HeaderValue::from_static("close")),
                ];
                let line = "the server is going away, come back".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, line, HeaderMap::from_iter(headers))
            }
            Self::NoMemory => {
                // Spread, so that a crowd does not come back at once.
                static REFUSED: AtomicU64 = AtomicU64::new(0);
                let after = 1 + REFUSED.fetch_add(7, Ordering::Relaxed) % 10;
                let headers = [
                    (header::RETRY_AFTER, HeaderValue::from(after)),
                    (header::CONNECTION, HeaderValue::from_static("close")),
                ];
                let line = "the server is out of memory, come back".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, line, HeaderMap::from_iter(headers))
            }
            Self::NotUpgradable => {
                let line = "this HTTP server cannot upgrade connections".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, line, HeaderMap::new())
            }
        };
        (status, headers, line + "\n").into_response()
    }
}
