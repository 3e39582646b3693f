//! The extractor: from an upgrade request to a session's task.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::{ConnectInfo, FromRef, FromRequestParts};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use mainstay_proto::session::message::Hello;
use mainstay_proto::session::{Answer, ConnectionId, Control, Frame, PlainSession, SessionError};
use mainstay_proto::ws::handshake::{self, Accept, HandshakeError};
use mainstay_proto::ws::{CloseCode, CloseFrame, Connection, DeflateParams, Role};
use tokio::net::TcpStream;

use super::core::{Core, Cores, Peer};
use super::limits::Permit;
use super::session::Session;
use super::stats::Stats;
use super::task::SessionTask;
use super::{Mainstay, Shared};
use crate::driver::now;
use crate::driver::{Arrived, Framing, Reading, Wire};
use crate::transport::Transport;

/// The subprotocol of `mainstay.v1`; `mainstay.v1+name` carries an application's own name.
pub(crate) const SUBPROTOCOL: &str = "mainstay.v1";

/// Extracts an upgrade request. Answers anything else with the status and one line that says why.
///
/// The router's state must give a [`Mainstay`] (it is one, or has `FromRef` for it).
pub struct SessionUpgrade {
    mainstay: Mainstay,
    request: Accept,
    on_upgrade: OnUpgrade,
    uri: Uri,
    headers: HeaderMap,
    facts: PeerFacts,
    permit: Option<Arc<Permit>>,
    principal: Bytes,
    subprotocols: Option<Vec<String>>,
}

/// What is known of a session's client. Small, because every session holds it; the request's headers are
/// the upgrade's ([`SessionUpgrade::headers`]).
#[derive(Debug, Clone)]
pub struct PeerFacts {
    /// Where its first connection came from, as far as the server loop told.
    pub address: Option<SocketAddr>,
    /// The application's subprotocol, if one was agreed on.
    pub subprotocol: Option<Box<str>>,
    /// Whether it speaks `mainstay.v1`.
    pub resumable: bool,
}

/// Why a request did not become a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpgradeRejection {
    /// It is not a valid upgrade request.
    Request(HandshakeError),
    /// The server is draining.
    Draining,
    /// The HTTP server in use cannot upgrade connections.
    NotUpgradable,
}

impl<S> FromRequestParts<S> for SessionUpgrade
where
    Mainstay: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = UpgradeRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, UpgradeRejection> {
        let mainstay = Mainstay::from_ref(state);
        let stats = &mainstay.shared.stats;
        let request = handshake::check_request(&parts.method, parts.version, &parts.headers)
            .inspect_err(|_| Stats::add(&stats.openings_failed, 1))
            .map_err(UpgradeRejection::Request)?;
        mainstay
            .shared
            .config
            .origins
            .check(&parts.headers)
            .inspect_err(|_| Stats::add(&stats.refused_origin, 1))
            .map_err(UpgradeRejection::Request)?;
        if mainstay.shared.is_draining() {
            Stats::add(&stats.openings_failed, 1);
            return Err(UpgradeRejection::Draining);
        }
        let on_upgrade = parts.extensions.remove::<OnUpgrade>().ok_or(UpgradeRejection::NotUpgradable)?;
        let address = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0);
        Ok(Self {
            mainstay,
            request,
            on_upgrade,
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            facts: PeerFacts { address, subprotocol: None, resumable: false },
            permit: parts.extensions.remove::<Arc<Permit>>(),
            principal: Bytes::new(),
            subprotocols: None,
        })
    }
}

impl SessionUpgrade {
    /// Binds the session to whoever this request authenticated as: a resume token presented by
    /// another principal is answered like one that was never issued.
    #[must_use]
    pub fn principal(mut self, principal: impl Into<Bytes>) -> Self {
        self.principal = principal.into();
        self
    }

    /// The application's subprotocols, in order of preference. Without this call the first that the
    /// client offers is agreed on.
    #[must_use]
    pub fn subprotocols<I: IntoIterator<Item: Into<String>>>(mut self, names: I) -> Self {
        self.subprotocols = Some(names.into_iter().map(Into::into).collect());
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
        self.facts.address
    }

    /// The application's subprotocols that the client offers.
    pub fn offered(&self) -> impl Iterator<Item = &str> {
        offered(&self.request)
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
        let (headers, agreed) = self.request.response(chosen.as_deref(), deflate);
        self.facts.resumable = chosen.as_deref().is_some_and(is_ours);
        self.facts.subprotocol = chosen.and_then(|name| application_name(&name).map(Box::from));
        let deflate = agreed.deflate;
        let tracker = shared.tracker.clone();
        // Cold state, boxed: it is freed before the session begins, and what stays is the session's task.
        let handshake = Handshake {
            on_upgrade: self.on_upgrade,
            permit: self.permit,
            resumable: self.facts.resumable,
            principal: self.principal,
            deflate,
        };
        let opening = Box::pin(open(self.mainstay, handshake, self.facts, handler));
        tracker.spawn(async move {
            if let Some(task) = opening.await {
                task.await;
            }
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        response
    }

    /// `mainstay.v1` wins over plain, then the application's order.
    fn choose(&self) -> Option<String> {
        let wanted: Vec<&str> = match &self.subprotocols {
            Some(names) => names.iter().map(String::as_str).collect(),
            None => self.offered().collect(),
        };
        let list: Vec<&str> = self.request.protocols().collect();
        let with_name = |ours: &&&str| application_name(ours).is_none_or(|name| wanted.contains(&name));
        let ours = list.iter().filter(|name| is_ours(name)).find(with_name);
        ours.or_else(|| wanted.iter().find(|name| list.contains(name))).map(|name| (*name).to_owned())
    }
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

fn offered(request: &Accept) -> impl Iterator<Item = &str> {
    request.protocols().filter_map(application_name)
}

static NEXT_CONNECTION: AtomicU64 = AtomicU64::new(1);

/// What the opening handshake came to.
struct Handshake {
    on_upgrade: OnUpgrade,
    permit: Option<Arc<Permit>>,
    /// Whether the peer speaks `mainstay.v1`.
    resumable: bool,
    principal: Bytes,
    deflate: Option<DeflateParams>,
}

/// From 101 to a session's task, if this connection is the one that makes it.
async fn open<H, F>(
    mainstay: Mainstay,
    handshake: Handshake,
    facts: PeerFacts,
    handler: H,
) -> Option<SessionTask<F>>
where
    H: FnOnce(Session) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (connection, core, wire) = bind(&mainstay.shared, handshake).await?;
    let handler = handler(Session::new(Arc::clone(&core), &mainstay, facts));
    Some(SessionTask::new(core, mainstay.shared, connection, wire, handler))
}

/// Binds a new connection to a session. `None`: to one that has its task already, or to none.
async fn bind(shared: &Arc<Shared>, handshake: Handshake) -> Option<(ConnectionId, Arc<Core>, Wire)> {
    let Handshake { on_upgrade, permit, resumable, principal, deflate } = handshake;
    let stats = &shared.stats;
    let upgraded = match on_upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!(%error, "upgrade failed");
            Stats::add(&stats.openings_failed, 1);
            return None;
        }
    };
    let (transport, early) = raw(upgraded);
    let codec = Connection::new(Role::Server, shared.config.limits, deflate, [0; 32]);
    let mut wire = Wire::new(transport, codec, early);
    wire.permit = permit.map(|permit| Box::new(permit as _));
    let connection = ConnectionId(NEXT_CONNECTION.fetch_add(1, Ordering::Relaxed));
    Stats::add(&stats.connections_opened, 1);
    if !resumable {
        Stats::add(&stats.connections, 1);
        let plain = PlainSession::new(now(), Arc::clone(&shared.sessions), connection.0);
        return Some((connection, Core::new(Peer::Plain(Box::new(plain))), wire));
    }
    let hello = match tokio::time::timeout(shared.config.opening_deadline, read_hello(&mut wire)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(Some(error))) => {
            Stats::add(&stats.session_errors, 1);
            wire.close(&CloseFrame { code: error.close_code(), reason: error.to_string() });
            wire.finish().await;
            return None;
        }
        Ok(Err(None)) => {
            Stats::add(&stats.openings_failed, 1);
            wire.finish().await;
            return None;
        }
        Err(_) => {
            Stats::add(&stats.openings_failed, 1);
            wire.close(&CloseFrame { code: CloseCode::OPENING_TIMEOUT, reason: "no HELLO in time".into() });
            wire.finish().await;
            return None;
        }
    };
    attach(shared, connection, &principal, &hello, wire).await
}

async fn attach(
    shared: &Arc<Shared>,
    connection: ConnectionId,
    principal: &Bytes,
    hello: &Hello,
    mut wire: Wire,
) -> Option<(ConnectionId, Arc<Core>, Wire)> {
    let stats = &shared.stats;
    let answer = shared.registry().hello(now(), connection, principal, hello, &mut Cores);
    match answer {
        Answer::Refused { refuse, why } => {
            tracing::debug!(?why, "HELLO refused");
            Stats::add(&stats.attach_refused, 1);
            wire.say(&refuse).await;
            wire.close(&CloseFrame { code: why.code(), reason: String::new() });
            wire.finish().await;
            None
        }
        Answer::Attached { session: core, created, lost, fenced } => {
            Stats::add(&stats.connections, 1);
            let counter = match (created, lost) {
                (true, false) => &stats.attached_new,
                (_, true) => &stats.attached_lost,
                (false, false) => &stats.attached_resumed,
            };
            Stats::add(counter, 1);
            if created {
                return Some((connection, core, wire));
            }
            let replayed = core.with_session(|session| session.to_replay()).unwrap_or(0);
            Stats::add(&stats.replayed, replayed);
            let mut inner = core.lock();
            inner.supersede(fenced, (connection, wire));
            inner.wake_driver();
            inner.wake_application();
            None
        }
    }
}

/// The first message, which must be HELLO. `None`: the connection ended first.
async fn read_hello(wire: &mut Wire) -> Result<Hello, Option<SessionError>> {
    std::future::poll_fn(|cx| {
        let mut first = None;
        loop {
            let reading = wire.poll_read(cx, |arrived| match arrived {
                Arrived::Message(message) => {
                    first = Some(Frame::decode(message.kind, message.payload));
                    false
                }
                Arrived::Pong(_) | Arrived::Bytes => true,
                Arrived::Close(_) => {
                    first = Some(Err(SessionError::Unexpected("a close before HELLO")));
                    false
                }
            });
            match first.take() {
                Some(Ok(Frame::Control(Control::Hello(hello)))) => return std::task::Poll::Ready(Ok(*hello)),
                Some(Ok(_)) => {
                    return std::task::Poll::Ready(Err(Some(SessionError::Unexpected(
                        "a message before HELLO",
                    ))));
                }
                Some(Err(error)) => return std::task::Poll::Ready(Err(Some(error))),
                None => {}
            }
            match reading {
                Reading::Idle => return std::task::Poll::Pending,
                Reading::More => {}
                Reading::Ended(_) => return std::task::Poll::Ready(Err(None)),
            }
        }
    })
    .await
}

/// The stream under an upgraded connection, without hyper's state around it where that is possible.
fn raw(upgraded: Upgraded) -> (Transport, Bytes) {
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner();
            let _ = stream.set_nodelay(true);
            (Transport::Tcp(stream), parts.read_buf)
        }
        Err(upgraded) => (Transport::Other(Box::new(TokioIo::new(upgraded))), Bytes::new()),
    }
}

impl Wire {
    /// Writes one control message, best effort.
    async fn say(&mut self, control: &Control) {
        let mut message = Some(mainstay_proto::session::Transmit::Control(control.encode()));
        let _ = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(self.poll_write(cx, Framing::Session, || message.take()))
        })
        .await;
    }
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
            Self::NotUpgradable => {
                let line = "this HTTP server cannot upgrade connections".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, line, HeaderMap::new())
            }
        };
        (status, headers, line + "\n").into_response()
    }
}
