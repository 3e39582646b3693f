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

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, Request};
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use mainstay::client::{Builder, EndsOn, Event, ReasonCode, Upgraded};
use mainstay::link::Plain;
use mainstay::{Link, Server, SessionUpgrade};
use mainstay_proto::ws::handshake::Offer;

use crate::access_log::AccessEntry;
use crate::body::Upload;
use crate::forward::{self, Scheme};
use crate::http_proxy;
use crate::limits;
use crate::links::LinkMonitor;
use crate::relay::{BackendLoss, relay};
use crate::retry_after;
use crate::session::{self, LinkConfig};
use crate::upstream::{UpstreamError, UpstreamIo};
use crate::values;

/// Responds to a request: accepts a WebSocket here, forwards anything else as plain HTTP.
pub(crate) async fn respond(request: Request, server: &Server, config: Arc<LinkConfig>) -> Response {
    if !lists(request.headers(), &header::UPGRADE, "websocket") {
        return config.proxy.forward(request).await;
    }
    let (mut head, _) = request.into_parts();
    let response = match SessionUpgrade::from_request_parts(&mut head, server).await {
        // Boxed, or the future of every request would be as large as this one.
        Ok(upgrade) => Box::pin(forward_handshake(upgrade, head, Arc::clone(&config))).await,
        Err(rejection) => rejection.into_response(),
    };
    config.links.responded(response.status());
    response
}

/// Forwards an opening handshake and relays between both ends if the backend accepts.
async fn forward_handshake(
    upgrade: SessionUpgrade,
    mut head: http::request::Parts,
    config: Arc<LinkConfig>,
) -> Response {
    let request = match ClientRequest::of(&head, &config) {
        Ok(request) => request,
        Err(reason) => return cannot_be_forwarded(&reason),
    };
    let upgrade = upgrade.heartbeat(config.heartbeats.for_path(&request.path));
    if upgrade.is_resumable() {
        let principal = config.principal.of(upgrade.headers());
        return upgrade
            .principal(principal)
            .manual_ack()
            .on_session(move |session| session::serve_session(session, request, config));
    }
    let Some(offer) = Offer::of_request(&head.headers, config.deflate_upstream) else {
        return cannot_be_forwarded("the request has no valid Sec-WebSocket-Key");
    };
    // The client's spelling of its field names is in the extensions.
    let spelling = std::mem::take(&mut head.extensions);
    let asked = || request.handshake(&head.headers, spelling.clone(), &offer);
    let upstream = &config.proxy.upstream;
    let (response, connection) = match upstream.upgrade(config.upstream_wait, asked).await {
        Ok(response) => response,
        Err(error) if error.may_pass() => {
            config.links.refused_unreachable();
            return backend_unreachable();
        }
        Err(error) => return error.into_response(),
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        config.links.refused(response.status());
        return http_proxy::relay_response(response, connection, upstream);
    }
    let (mut fields, extensions, upgraded) = match accept_response(response, &offer).await {
        Ok(accepted) => accepted,
        Err(wrong) => return upstream.fail(UpstreamError::BadResponse(wrong)).into_response(),
    };
    forward::switching_fields(&mut fields);
    let agreed = upgraded.subprotocol.clone();
    // A later connection offers the same subprotocols: some clients put a credential there.
    let offered: Vec<String> = upgrade
        .requested_subprotocols()
        .filter(|name| values::token(name).is_ok())
        .map(str::to_owned)
        .collect();
    let path = request.path.clone();
    let link = match request.builder(&offered, &config, true) {
        Ok(builder) => builder.adopt(upgraded),
        Err(reason) => return cannot_be_forwarded(&reason),
    };
    let monitor = config.links.open(link.sender(), None);
    upgrade.subprotocols(agreed).response_fields(fields, extensions).on_session(move |session| {
        let entry = AccessEntry::new(&session, path);
        relay(session, link, monitor, entry, config)
    })
}

/// Checks a 101. Returns its fields, their spelling, and the upgraded connection.
///
/// # Errors
/// The response does not match the offer.
async fn accept_response(
    mut response: http::Response<Incoming>,
    offer: &Offer,
) -> Result<(HeaderMap, http::Extensions, Upgraded), String> {
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

/// Returns whether a field lists this token.
fn lists(fields: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let lines = fields.get_all(name).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    lines.map(<[u8]>::trim_ascii).any(|listed| listed.eq_ignore_ascii_case(token.as_bytes()))
}

/// A client's opening handshake, prepared for the backend.
pub(crate) struct ClientRequest {
    /// The client's path, for the log.
    pub(crate) path: Box<str>,
    url: Uri,
    fields: HeaderMap,
}

impl ClientRequest {
    fn of(head: &http::request::Parts, config: &LinkConfig) -> Result<Self, String> {
        let forwarding = &config.proxy.forwarding;
        let url = forwarding.url(&head.uri)?;
        let peer = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        let mut fields = forwarding.fields(&head.headers, peer, Scheme::WebSocket);
        fields.remove(header::CONTENT_LENGTH);
        // Copied, because a link keeps them for its whole life.
        Ok(Self { path: head.uri.path().into(), url, fields: forward::copied(&fields) })
    }

    /// Builds the request for the backend.
    fn handshake(
        &self,
        asked: &HeaderMap,
        spelling: http::Extensions,
        offer: &Offer,
    ) -> http::Request<Upload> {
        let mut request = http::Request::new(Upload::empty());
        *request.uri_mut() = self.url.path_and_query().cloned().map_or_else(Uri::default, Uri::from);
        *request.extensions_mut() = spelling;
        let fields = request.headers_mut();
        *fields = self.fields.clone();
        fields.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        for (name, value) in asked.iter().filter(|(name, _)| name.as_str().starts_with("sec-websocket-")) {
            if *name != header::SEC_WEBSOCKET_EXTENSIONS {
                fields.append(name, value.clone());
            }
        }
        if let Some(ours) = offer.extensions() {
            fields.insert(header::SEC_WEBSOCKET_EXTENSIONS, ours);
        }
        request
    }

    /// Opens a link that dials and offers these subprotocols.
    ///
    /// # Errors
    /// The URL or a subprotocol is invalid.
    pub(crate) fn link(self, subprotocols: &[String], config: &LinkConfig) -> Result<Link, String> {
        Ok(self.builder(subprotocols, config, false)?.connect())
    }

    /// Configures a link with the client's path, query, fields and these subprotocols.
    fn builder(
        self,
        subprotocols: &[String],
        config: &LinkConfig,
        is_plain: bool,
    ) -> Result<Builder<Plain>, String> {
        let settings = &config.settings;
        let ends_on = match settings.on_backend_loss {
            BackendLoss::Renew => EndsOn::Connection,
            BackendLoss::Keep if is_plain && !settings.closes.keep_plain => EndsOn::Close,
            BackendLoss::Keep => EndsOn::FinalClose,
        };
        let mut builder = Link::builder(&self.url.to_string())
            .map_err(|error| error.to_string())?
            .connector(config.connector.clone())
            .answer_timeout(config.proxy.upstream.answer_timeout)
            .map_err(|error| error.to_string())?
            .deflate(config.deflate_upstream.is_some())
            .ends_on(ends_on)
            .keep_response(false)
            // A near backend may stall for seconds; when it ends, its connection ends visibly.
            .probes_unconfirmed(false)
            .reads_while_closing(true)
            .heartbeat(config.heartbeats.for_path(&self.path))
            .limits(config.limits)
            .budget(config.server.budget().clone())
            .confirm(settings.confirm)
            .guarantee(settings.guarantee)
            .read_ahead(limits::READ_AHEAD)
            .budget(config.server.budget().clone())
            .holds_replaced(settings.prologue.is_some());
        if let Some(announces) = settings.prologue.as_ref().and_then(|rules| rules.announces_restart) {
            builder = builder.announces_restart(announces);
        }
        builder = builder.subprotocols(subprotocols).map_err(|error| error.to_string())?;
        for (name, value) in &self.fields {
            builder = builder.header(name.clone(), value.clone());
        }
        if let Some(answers) = config.links.answers_pings() {
            builder = builder.expects_pongs(answers);
        }
        Ok(builder)
    }
}

/// How the backend refused a link.
pub(crate) struct BackendRefusal {
    pub(crate) status: Option<StatusCode>,
    pub(crate) reason: String,
}

/// Waits until the backend accepts a link or refuses it for good, over as many attempts as that takes.
pub(crate) async fn accepted(
    link: &Link,
    monitor: &mut LinkMonitor,
    config: &LinkConfig,
) -> Result<(), BackendRefusal> {
    while let Some(event) = link.event().await {
        monitor.observe(&event);
        limits::handle_event(&event, &config.server);
        match event {
            Event::Attached { .. } => return Ok(()),
            Event::Ended(end) => {
                let status = end.code.and_then(ReasonCode::status);
                return Err(BackendRefusal { status, reason: end.reason });
            }
            _ => {}
        }
    }
    Err(BackendRefusal { status: None, reason: "the link ended".into() })
}

fn cannot_be_forwarded(reason: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response()
}

fn backend_unreachable() -> Response {
    let headers = [(header::RETRY_AFTER, retry_after::seconds())];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "the backend cannot be reached; try again later\n")
        .into_response()
}
