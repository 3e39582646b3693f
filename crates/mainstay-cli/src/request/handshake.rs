//! Opening handshakes: the backend decides, and the client gets the backend's response.
//!
//! The handshake of a plain client is forwarded, not rebuilt: with its key, its subprotocols as written, and every field
//! that is not hop-by-hop. The response is forwarded too, whatever its status. After a 101, which keeps the spelling of its
//! fields, the connection to the backend becomes a link and the client's connection becomes a session. Extensions are
//! negotiated on each leg.
//!
//! A client that speaks `mainstay.v1` is accepted before the backend responds. Its request does not say whether it opens a
//! session or resumes one, and a backend that is asked for every resume would see connections come and go. WELCOME cannot
//! wait for the backend either: a HELLO is handled in one step, or two attempts of one client could open two sessions. If
//! the backend refuses, the client receives END.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use axum::extract::{ConnectInfo, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use base64::prelude::{BASE64_STANDARD, Engine};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mainstay::client::Upgraded;
use mainstay::{ConfigError, Server, Session, SessionUpgrade};
use mainstay_proto::ws::handshake::Offer;

use crate::clients::identity::ClientAddress;
use crate::config::limits::SlowClients;
use crate::credentials::{self, Admitted, Credentials};
use crate::observe::access_log::AccessEntry;
use crate::observe::spans::{self, LinkSpans};
use crate::protocols::moving::Restored;
use crate::request::client_request::ClientRequest;
use crate::request::exchange::exchange;
use crate::request::forward;
use crate::request::http_proxy;
use crate::request::retry_after;
use crate::request::session;
use crate::routes::Routes;
use crate::routes::route::Route;
use crate::upstream::UpstreamIo;
use crate::upstream::error::UpstreamError;
use crate::upstream::links::{Dialled, Lease};
use crate::values;

/// Responds to a request: accepts a WebSocket here, forwards anything else as plain HTTP.
pub(crate) async fn respond(mut request: Request, server: &Server, routes: &Routes) -> Response {
    let Some(route) = routes.find(host(&request), request.uri().path()) else {
        routes.unrouted.fetch_add(1, Relaxed);
        return (StatusCode::NOT_FOUND, "no route takes this host and path\n").into_response();
    };
    if route.credentials.is_some() {
        // The connect hook gets the request as the client sent it.
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        route.proxy.forwarding.remove_claims(request.headers_mut(), peer);
    }
    let span = spans::begin(
        &mut request,
        &spans::OnRoute {
            name: &route.name,
            path: &route.rule.path,
            proxies: &route.proxy.forwarding.proxies,
        },
    );
    if !asks_for_websocket(&request) {
        return span.passes(match &route.credentials {
            None => route.proxy.forward(request).await,
            // Boxed, as below.
            Some(credentials) => Box::pin(forward_admitted(request, credentials, &route)).await,
        });
    }
    let (mut head, _) = request.into_parts();
    let upgrade = SessionUpgrade::from_request_parts(&mut head, server).await;
    if head.version == Version::HTTP_2 {
        as_http_1(&mut head.headers);
    }
    if let Some(address) = upgrade.as_ref().ok().and_then(SessionUpgrade::address) {
        head.extensions.insert(ClientAddress(address.ip()));
    }
    let response = match upgrade.and_then(|upgrade| upgrade.origins(&route.origins)) {
        // Boxed, or the future of every request would be as large as this one.
        Ok(upgrade) => Box::pin(forward_handshake(upgrade, head, Arc::clone(&route))).await,
        Err(rejection) => rejection.into_response(),
    };
    route.links.responded(response.status());
    span.answered(&response);
    response
}

/// Returns the host that a request is for: that of its target, else its Host header (RFC 9112 section 3.2.2).
fn host(request: &Request) -> &str {
    let header = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    request.uri().authority().map(|authority| authority.as_str()).or_else(header).unwrap_or_default()
}

/// Forwards a plain HTTP request of a client that is admitted.
async fn forward_admitted(request: Request, credentials: &Credentials, route: &Route) -> Response {
    let (mut head, body) = request.into_parts();
    if !credentials.check_http() {
        credentials.strip(&mut head.headers);
        return route.proxy.forward(Request::from_parts(head, body)).await;
    }
    let client = credentials::client_of(&head);
    let admitted = match credentials.admit(&mut head).await {
        Ok(admitted) => {
            let response = route.proxy.forward(Request::from_parts(head, body));
            credentials.respond(&admitted, client, response).await
        }
        Err(refused) => Err(refused),
    };
    admitted.unwrap_or_else(|refused| {
        route.links.responded(refused.status());
        refused
    })
}

/// Forwards an opening handshake and exchanges messages between both ends if the backend accepts.
async fn forward_handshake(
    upgrade: SessionUpgrade,
    mut head: http::request::Parts,
    route: Arc<Route>,
) -> Response {
    if upgrade.is_resumable() {
        return accept_session(upgrade, head, route);
    }
    let principal = route.principal.of(&head.headers);
    let address = credentials::client_of(&head);
    let mut admitted = None;
    if let Some(credentials) = &route.credentials {
        match credentials.admit(&mut head).await {
            Ok(client) => admitted = Some((Arc::clone(credentials), client)),
            Err(refused) => return refused,
        }
    }
    let request = match ClientRequest::of(&head, &route) {
        Ok(request) => request,
        Err(reason) => return cannot_be_forwarded(&reason),
    };
    let upgrade = match with_settings(upgrade, &route, &request.path) {
        Ok(upgrade) => upgrade.opened_at(format!("{} {}", route.name, request.path)),
        Err(error) => return cannot_be_forwarded(&error.to_string()),
    };
    let upgrade = match &admitted {
        Some((credentials, client)) => upgrade.principal(credentials.identity(client, &principal)),
        None => upgrade.principal(principal),
    };
    // Before the backend does anything for this client.
    let upgrade = match upgrade.judge() {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.into_response(),
    };
    let Some(offer) = Offer::of_request(&head.headers, route.deflate_upstream) else {
        return cannot_be_forwarded("the request has no valid Sec-WebSocket-Key");
    };
    // The client's spelling of its field names is in the extensions.
    let spelling = std::mem::take(&mut head.extensions);
    let asked = || request.handshake(&head.headers, spelling.clone(), &offer);
    let upstream = &route.proxy.upstream;
    // A client that may not wait is refused once no address can be reached.
    let wait = route.when_down.waits().then_some(route.upstream_wait);
    let (response, connection) = match upstream.upgrade(request.key, wait, asked).await {
        Ok(response) => response,
        Err(error) => {
            request.spans.failed(&error);
            if error.may_pass() || (wait.is_none() && error.is_of_address()) {
                route.links.refused_unreachable();
                return backend_unreachable();
            }
            return error.into_response();
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        request.spans.refused(response.status());
        route.links.refused(connection.address(), response.status());
        let response = http_proxy::forward_response(response, connection, upstream);
        return match &admitted {
            None => response,
            // A backend that takes no WebSocket here may respond with a stream.
            Some((credentials, client)) => {
                let response = credentials.respond(client, address, ready(response)).await;
                response.unwrap_or_else(|refused| refused)
            }
        };
    }
    let accepted = match accept_response(response, &offer).await {
        Ok(accepted) => accepted,
        Err(wrong) => {
            let error = upstream.fail(connection.address(), UpstreamError::BadResponse(wrong));
            request.spans.failed(&error);
            return error.into_response();
        }
    };
    request.spans.opened(upstream.address(connection.address()).map(|address| &address.url));
    accept_client(upgrade, request, accepted, connection.into_lease(), route, admitted)
}

/// Accepts a client that speaks `mainstay.v1`; its credentials, where the route requires some, are judged with its HELLO.
fn accept_session(upgrade: SessionUpgrade, mut head: http::request::Parts, route: Arc<Route>) -> Response {
    let principal = route.principal.of(upgrade.headers());
    let mut presented = None;
    if let Some(credentials) = &route.credentials {
        match credentials.present(&mut head) {
            Ok(taken) => presented = Some((Arc::clone(credentials), taken)),
            Err(refusal) => {
                return credentials
                    .refuse(upgrade.address().map(|address| address.ip()), &refusal)
                    .into_response();
            }
        }
    }
    let mut request = match ClientRequest::of(&head, &route) {
        Ok(request) => request,
        Err(reason) => return cannot_be_forwarded(&reason),
    };
    let upgrade = match with_settings(upgrade, &route, &request.path) {
        Ok(upgrade) => upgrade.opened_at(format!("{} {}", route.name, request.path)).manual_ack(),
        Err(error) => return cannot_be_forwarded(&error.to_string()),
    };
    let upgrade = if route.movable { upgrade.movable() } else { upgrade };
    let drops_oldest = route.slow_clients == SlowClients::DropOldest;
    let upgrade = if drops_oldest { upgrade.drop_oldest() } else { upgrade };
    let Some((credentials, presented)) = presented else {
        let spans = request.spans.clone();
        let serve = move |session| session::serve_session(session, request, route);
        return begin(upgrade.principal(principal), spans, serve);
    };
    let admitted = Arc::new(OnceLock::new());
    let judges = credentials.judges_session(presented, principal, Arc::clone(&admitted));
    begin(upgrade.authenticate(judges), request.spans.clone(), move |session| {
        let admitted = admitted.get().cloned();
        admitted.iter().for_each(|admitted| request.admit(admitted));
        credentials.serve(admitted, session, |session| session::serve_session(session, request, route))
    })
}

/// Accepts a client and serves it; records its connections if it is traced.
fn begin<F: Future<Output = ()> + Send + 'static>(
    upgrade: SessionUpgrade,
    spans: LinkSpans,
    serve: impl FnOnce(Session) -> F + Send + 'static,
) -> Response {
    if !spans.are_recorded() {
        return upgrade.on_session(serve);
    }
    // Another type of handler: the others are not larger for it.
    upgrade.on_session(move |session| {
        let client = session.sender();
        Box::pin(spans::with_attaches(client, spans, serve(session)))
    })
}

/// Gives a client what its route says of sessions and connections. The configuration was checked for all of it.
fn with_settings(upgrade: SessionUpgrade, route: &Route, path: &str) -> Result<SessionUpgrade, ConfigError> {
    let upgrade = upgrade.limits(route.limits)?.resume_window(route.resume_window)?;
    Ok(upgrade
        .heartbeat(route.heartbeats.for_path(path))
        .lifetime(route.lifetime)
        .deflate(route.deflate)
        .group(&route.group)
        .throttle(route.throttle))
}

/// Accepts a plain client as the backend did, and exchanges messages.
fn accept_client(
    upgrade: SessionUpgrade,
    request: ClientRequest,
    (mut fields, spelling, upgraded): Accepted,
    lease: Lease,
    route: Arc<Route>,
    admitted: Option<(Arc<Credentials>, Admitted)>,
) -> Response {
    forward::switching_fields(&mut fields);
    let agreed = upgraded.subprotocol.clone();
    // A later connection offers the same subprotocols: some clients put a credential there.
    let offered: Vec<String> = upgrade
        .requested_subprotocols()
        .filter(|name| values::token(name).is_ok())
        .map(str::to_owned)
        .collect();
    let (path, spans) = (request.path.clone(), request.spans.clone());
    let dialled = (route.links.count() > 1).then(|| Arc::new(Dialled::with(lease)));
    let link = match request.builder(&offered, &route, true, dialled.as_ref()) {
        Ok(builder) => builder.adopt(upgraded),
        Err(reason) => return cannot_be_forwarded(&reason),
    };
    let monitor = route.links.open(link.sender(), None, dialled, spans.clone());
    let upgrade = upgrade.subprotocols(agreed).response_fields(fields, spelling);
    let serve = move |session| {
        let entry = AccessEntry::new(&session, path);
        exchange(session, link, monitor, entry, route, Restored::default())
    };
    match admitted {
        None => begin(upgrade, spans, serve),
        // Another type of handler: only clients of such routes hold what it needs.
        Some((credentials, client)) => {
            begin(upgrade, spans, move |session| credentials.serve(Some(client), session, serve))
        }
    }
}

/// The fields of a 101, their spelling, and the upgraded connection.
type Accepted = (HeaderMap, http::Extensions, Upgraded);

/// Checks a 101 against the offer.
///
/// # Errors
/// The response does not match the offer.
async fn accept_response(mut response: http::Response<Incoming>, offer: &Offer) -> Result<Accepted, String> {
    let upgrading = hyper::upgrade::on(&mut response);
    let (head, _) = response.into_parts();
    let agreed = offer.check_response(head.status, &head.headers).map_err(|error| error.to_string())?;
    let parts = upgrading
        .await
        .map_err(|error| format!("the backend ended the connection after its 101: {error}"))?
        .downcast::<TokioIo<UpstreamIo>>()
        .map_err(|_| "the connection cannot be upgraded".to_owned())?;
    let upgraded = Upgraded {
        stream: parts.io.into_inner().into_inner(),
        early: parts.read_buf,
        subprotocol: agreed.protocol,
        deflate: agreed.deflate,
    };
    Ok((head.headers, head.extensions, upgraded))
}

/// Returns whether a request opens a WebSocket: by `Upgrade`, or by CONNECT over HTTP/2.
fn asks_for_websocket(request: &Request) -> bool {
    request.extensions().get::<hyper::ext::Protocol>().is_some()
        || lists(request.headers(), &header::UPGRADE, "websocket")
}

/// Adds the key that HTTP/2 does not have and the backend expects. A key that a proxy passes on is the client's affair: it is answered
/// by the gateway.
fn as_http_1(fields: &mut HeaderMap) {
    let mut key = [0; 16];
    // Its randomness protects caches that take part in no handshake; any key is right for the backend.
    let _ = getrandom::fill(&mut key);
    if let Ok(key) = HeaderValue::try_from(BASE64_STANDARD.encode(key)) {
        fields.insert(header::SEC_WEBSOCKET_KEY, key);
    }
}

/// Returns whether a field lists this token.
fn lists(fields: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = fields.get_all(name).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    lines.map(<[u8]>::trim_ascii).any(|listed| listed.eq_ignore_ascii_case(token.as_bytes()))
}

fn cannot_be_forwarded(reason: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response()
}

fn backend_unreachable() -> Response {
    let headers = [(header::RETRY_AFTER, retry_after::seconds())];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "the backend cannot be reached; try again later\n")
        .into_response()
}
