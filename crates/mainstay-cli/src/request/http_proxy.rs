//! Plain HTTP through the gateway: one request, one response, both streamed.
//!
//! Hop-by-hop parts (`Connection` and its like, `Expect`, the transfer coding) are handled for each hop; everything else
//! is forwarded unchanged.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version, request};
use hyper::body::{Body as _, Incoming};
use mainstay::client::FailureKind;
use mainstay::server::Proxies;

use crate::config::RouteSection;
use crate::request::forward::{self, Forwarding, Scheme};
use crate::request::request_body::{Broken, Upload};
use crate::request::response_body::Download;
use crate::request::retry_after;
use crate::upstream::error::UpstreamError;
use crate::upstream::links::Links;
use crate::upstream::stickiness::Stickiness;
use crate::upstream::{Address, PooledConnection, Upstream};
use crate::values;

/// Flags for requests to the backend.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub(crate) struct Arguments {
    /// The Host header of requests to the backend. Default: the client's.
    #[arg(long, value_name = "HOST", value_parser = values::host)]
    upstream_host: Option<HeaderValue>,
    /// How long the backend may take to respond to a request or an opening handshake, and between two pieces of a response.
    /// Range: 10ms to 1h.
    #[arg(long, value_name = "DURATION", value_parser = values::wait, default_value = "60s")]
    upstream_answer_timeout: Duration,
    /// Set this header on every request to the backend, as "Name: value"; it replaces the client's header of that name.
    /// "Name: @/path" reads the value from a file. May be repeated.
    #[arg(long = "upstream-header", value_name = "HEADER", value_parser = values::upstream_header)]
    upstream_headers: Vec<(HeaderName, HeaderValue)>,
    /// Offer permessage-deflate to the backend.
    #[arg(long)]
    upstream_deflate: bool,
    /// Maximum size of a request's body. A larger one gets 413. Default: no limit.
    #[arg(long, value_name = "SIZE", value_parser = values::body_size)]
    max_request_body: Option<u64>,
}

/// Forwards requests to the backend.
pub(crate) struct HttpProxy {
    pub(crate) forwarding: Forwarding,
    /// Which clients go to the same address.
    pub(crate) stickiness: Stickiness,
    pub(crate) upstream: Arc<Upstream>,
    /// Maximum size of a request's body.
    pub(crate) max_body: Option<u64>,
    pub(crate) links: Links,
}

impl HttpProxy {
    /// Builds the proxy of a route to these addresses.
    pub(crate) fn new(
        route: &RouteSection,
        addresses: Vec<Address>,
        stickiness: Stickiness,
        proxies: Proxies,
        links: &Links,
    ) -> Self {
        let section = &route.upstream;
        let rule = route.rule();
        // All addresses have the same path, and a request without a Host gets the first one's.
        let first = addresses.first().map(|address| address.url.clone());
        HttpProxy {
            stickiness,
            forwarding: Forwarding {
                upstream: first.unwrap_or_default(),
                strips: rule.stripped(),
                host: section.host.as_ref().map(|host| host.0.clone()),
                fields: section.fields(),
                proxies,
            },
            upstream: Upstream::new(addresses, section.answer_timeout, links.clone()),
            max_body: route.limits.request_body,
            links: links.clone(),
        }
    }

    /// Forwards a request and returns the response.
    pub(crate) async fn forward(&self, request: Request) -> Response {
        let response = self.respond(request).await;
        self.links.responded(response.status());
        response
    }

    async fn respond(&self, request: Request) -> Response {
        let (head, body) = request.into_parts();
        if head.method == Method::TRACE {
            // TRACE would show the client the headers that the gateway adds for the backend.
            return (StatusCode::METHOD_NOT_ALLOWED, "TRACE is not forwarded\n").into_response();
        }
        let target = match self.forwarding.target(&head.uri) {
            Ok(target) => Uri::from(target),
            Err(reason) => return (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response(),
        };
        if self.max_body.is_some_and(|most| body.size_hint().lower() > most) {
            return UpstreamError::Client(Broken::TooLarge).into_response();
        }
        let key = self.stickiness.key(&head);
        let expects = head.headers.contains_key(header::EXPECT);
        let (upload, progress) = Upload::new(body, self.max_body, expects);
        let may_repeat =
            progress.is_none() && matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let fields = self.fields(&head);
        let kept = may_repeat.then(|| (head.method.clone(), target.clone(), fields.clone()));
        let first = outgoing((head.method, target, fields), upload, head.extensions);
        let again = || Some(outgoing(kept.clone()?, Upload::empty(), http::Extensions::new()));
        match self.upstream.send(key, first, progress.clone(), again).await {
            Ok((response, _)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                UpstreamError::BadResponse("the backend switched protocols unasked".to_owned())
                    .into_response()
            }
            Ok((response, connection)) => forward_response(response, connection, &self.upstream),
            Err(error) => error.into_response(),
        }
    }

    /// Returns the fields for the backend.
    fn fields(&self, head: &request::Parts) -> HeaderMap {
        let peer = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        let scheme = Scheme::Http.seen_by_client(&head.extensions);
        let mut fields = self.forwarding.fields(&head.headers, peer, scheme);
        forward::describe_certificate(&head.extensions, &mut fields);
        if forward::accepts_trailers(&head.headers) {
            fields.insert(header::TE, HeaderValue::from_static("trailers"));
            fields.insert(header::CONNECTION, HeaderValue::from_static("TE"));
        }
        fields
    }
}

/// Builds the request for the backend. The original spelling of its field names is in the extensions.
fn outgoing(
    (method, target, fields): (Method, Uri, HeaderMap),
    body: Upload,
    extensions: http::Extensions,
) -> http::Request<Upload> {
    let mut request = http::Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.headers_mut() = fields;
    *request.extensions_mut() = extensions;
    request
}

/// Converts the backend's response for the client: status, reason phrase and body unchanged, hop-by-hop fields removed.
pub(crate) fn forward_response(
    response: http::Response<Incoming>,
    connection: PooledConnection,
    upstream: &Upstream,
) -> Response {
    let (mut head, body) = response.into_parts();
    forward::response_fields(&mut head.headers, head.status);
    head.version = Version::HTTP_11;
    if body.is_end_stream() {
        connection.release();
        return Response::from_parts(head, Body::empty());
    }
    let body = Download::new(body, connection, upstream.answer_timeout);
    Response::from_parts(head, Body::new(body))
}

impl IntoResponse for UpstreamError {
    /// Responds as nginx does: 502 without a response of the backend, 504 without one in time. If the backend cannot be
    /// reached, `Retry-After` says when to try again.
    fn into_response(self) -> Response {
        let (status, line) = self.status();
        let mut response = (status, line).into_response();
        match self {
            Self::Client(_) => {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Self::Connect(failure)
                if !matches!(failure.kind, FailureKind::Certificate | FailureKind::Tls) =>
            {
                response.headers_mut().insert(header::RETRY_AFTER, retry_after::seconds());
            }
            _ => {}
        }
        response
    }
}

impl UpstreamError {
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Connect(failure) => match failure.kind {
                FailureKind::Certificate | FailureKind::Tls => {
                    (StatusCode::BAD_GATEWAY, "TLS with the backend failed\n")
                }
                FailureKind::TimedOut => {
                    (StatusCode::GATEWAY_TIMEOUT, "the backend could not be reached in time\n")
                }
                _ => (StatusCode::BAD_GATEWAY, "the backend cannot be reached; try again later\n"),
            },
            Self::ResponseTimeout => (StatusCode::GATEWAY_TIMEOUT, "the backend did not respond in time\n"),
            Self::NoAnswer(_) => {
                (StatusCode::BAD_GATEWAY, "the backend ended the connection without a response\n")
            }
            Self::BadResponse(_) => (StatusCode::BAD_GATEWAY, "the backend's response cannot be forwarded\n"),
            Self::Client(Broken::TooLarge) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "the request's body is larger than --max-request-body\n")
            }
            Self::Client(Broken::Stalled) => {
                (StatusCode::REQUEST_TIMEOUT, "the request's body did not arrive in time\n")
            }
            Self::Client(Broken::Gone) => (StatusCode::BAD_REQUEST, "the request's body is incomplete\n"),
        }
    }
}
