//! Plain HTTP on its way through: one request, one answer, both streamed.
//!
//! What is right for one hop is done for one hop (`Connection` and its kin, `Expect`, the coding of bodies); all else
//! comes out as it went in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri, Version, request};
use hyper::body::{Body as _, Incoming};
use mainstay::client::Connector;
use mainstay_proto::ws::DeflateParams;

use crate::body::{Broken, Download, Upload};
use crate::forward::{self, Forwarding, Network, Scheme};
use crate::join::{SPREAD, jitter};
use crate::links::Links;
use crate::upstream::{Failure, Kept, Upstream};
use crate::values;

/// Flags for requests on their way to the backend.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub(crate) struct Arguments {
    /// What the backend gets as Host. Default: what the client sent.
    #[arg(long, value_name = "HOST", value_parser = values::host)]
    upstream_host: Option<HeaderValue>,
    /// How long the backend may take to answer a request, for a WebSocket too, and between two pieces of an answer.
    #[arg(long, value_name = "DURATION", value_parser = values::wait, default_value = "60s")]
    upstream_answer_timeout: Duration,
    /// A header for every request to the backend, as "Name: value", instead of the client's of that name; "Name: @/path"
    /// reads the value from a file. May be repeated.
    #[arg(long = "upstream-header", value_name = "HEADER", value_parser = values::upstream_header)]
    upstream_headers: Vec<(HeaderName, HeaderValue)>,
    /// Offer permessage-deflate to the backend.
    #[arg(long)]
    upstream_deflate: bool,
    /// The largest body of a request. A larger one gets 413. Default: any.
    #[arg(long, value_name = "SIZE", value_parser = values::body_size)]
    max_request_body: Option<u64>,
}

impl Arguments {
    /// The compression that the backend is offered.
    pub(crate) fn deflate(&self) -> Option<DeflateParams> {
        self.upstream_deflate.then(DeflateParams::default)
    }

    /// As these flags say.
    pub(crate) fn passing(
        &self,
        upstream: &Uri,
        connector: &Connector,
        trusted_proxies: &[Network],
        links: &Links,
    ) -> Passing {
        let (answer_timeout, links) = (self.upstream_answer_timeout, links.clone());
        Passing {
            forwarding: Forwarding {
                upstream: upstream.clone(),
                host: self.upstream_host.clone(),
                fields: self.upstream_headers.clone(),
                trusted_proxies: trusted_proxies.to_vec(),
            },
            upstream: Upstream::new(upstream.clone(), connector.clone(), answer_timeout, links.clone()),
            max_body: self.max_request_body,
            links,
        }
    }
}

/// Where requests go, and how.
pub(crate) struct Passing {
    pub(crate) forwarding: Forwarding,
    pub(crate) upstream: Arc<Upstream>,
    /// The largest body of a request.
    pub(crate) max_body: Option<u64>,
    pub(crate) links: Links,
}

impl Passing {
    /// Passes a request on, and its answer back.
    pub(crate) async fn pass(&self, request: Request) -> Response {
        let response = self.answer(request).await;
        self.links.passed(response.status());
        response
    }

    async fn answer(&self, request: Request) -> Response {
        let (mut head, body) = request.into_parts();
        if head.method == Method::TRACE {
            // It would show the client what only the backend is told.
            return (StatusCode::METHOD_NOT_ALLOWED, "TRACE is not passed on\n").into_response();
        }
        let target = match self.forwarding.target(&head.uri) {
            Ok(target) => Uri::from(target),
            Err(reason) => return (StatusCode::BAD_REQUEST, format!("{reason}\n")).into_response(),
        };
        if self.max_body.is_some_and(|most| body.size_hint().lower() > most) {
            return Failure::Client(Broken::TooLarge).into_response();
        }
        let expects = head.headers.contains_key(header::EXPECT);
        let (upload, progress) = Upload::new(body, self.max_body, expects);
        let first = self.outgoing(&mut head, target.clone(), upload);
        let may_repeat =
            progress.is_none() && matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let again = || may_repeat.then(|| self.outgoing(&mut head, target.clone(), Upload::empty()));
        match self.upstream.ask(first, progress.clone(), again).await {
            Ok((answer, _)) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Failure::Nonsense("it switched protocols without being asked".to_owned()).into_response()
            }
            Ok((answer, connection)) => passed_back(answer, connection, &self.upstream),
            Err(failure) => failure.into_response(),
        }
    }

    /// The request as the backend gets it. Its fields' spelling is in the extensions, which go with it.
    fn outgoing(&self, head: &mut request::Parts, target: Uri, body: Upload) -> http::Request<Upload> {
        let peer = head.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
        let mut fields = self.forwarding.fields(&head.headers, peer, Scheme::Http);
        if forward::takes_trailers(&head.headers) {
            fields.insert(header::TE, HeaderValue::from_static("trailers"));
            fields.insert(header::CONNECTION, HeaderValue::from_static("TE"));
        }
        let mut request = http::Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = target;
        *request.headers_mut() = fields;
        *request.extensions_mut() = std::mem::take(&mut head.extensions);
        request
    }
}

/// The backend's answer for the client: status, reason, fields less those of one hop, body as it comes.
pub(crate) fn passed_back(
    answer: http::Response<Incoming>,
    connection: Kept,
    upstream: &Upstream,
) -> Response {
    let (mut head, body) = answer.into_parts();
    forward::answer_fields(&mut head.headers, head.status);
    head.version = Version::HTTP_11;
    if body.is_end_stream() {
        connection.keep();
        return Response::from_parts(head, Body::empty());
    }
    let body = Download::new(body, connection, upstream.answer_timeout);
    Response::from_parts(head, Body::new(body))
}

impl IntoResponse for Failure {
    /// As nginx: 502 without an answer, 504 without one in time. Without a backend the client is told when to come back.
    fn into_response(self) -> Response {
        let (status, line) = match &self {
            Self::Unreachable(_) => (StatusCode::BAD_GATEWAY, "the backend cannot be reached, come back\n"),
            Self::Untrusted(_) => (StatusCode::BAD_GATEWAY, "TLS with the backend fails\n"),
            Self::ConnectTimeout => (StatusCode::GATEWAY_TIMEOUT, "the backend cannot be reached in time\n"),
            Self::AnswerTimeout => (StatusCode::GATEWAY_TIMEOUT, "the backend did not answer in time\n"),
            Self::NoAnswer(_) => (StatusCode::BAD_GATEWAY, "the backend ended the connection unanswered\n"),
            Self::Nonsense(_) => (StatusCode::BAD_GATEWAY, "the backend's answer cannot be passed on\n"),
            Self::Client(Broken::TooLarge) => {
                (StatusCode::PAYLOAD_TOO_LARGE, "the request's body is larger than may be passed on\n")
            }
            Self::Client(Broken::Stalled) => {
                (StatusCode::REQUEST_TIMEOUT, "the request's body did not come\n")
            }
            Self::Client(Broken::Gone) => (StatusCode::BAD_REQUEST, "the request's body is not whole\n"),
        };
        let mut response = (status, line).into_response();
        if let Self::Client(_) = self {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Self::Unreachable(_) | Self::ConnectTimeout = self {
            response.headers_mut().insert(header::RETRY_AFTER, (1 + jitter(SPREAD).as_secs()).into());
        }
        response
    }
}
