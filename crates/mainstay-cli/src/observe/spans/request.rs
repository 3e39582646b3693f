//! The span of a client's request: from its head to the end of the response, or to the answer to its opening handshake.
//!
//! Source: the semantic conventions of OpenTelemetry for HTTP. The query is left out: it may hold a token.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, Version, header};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use mainstay::server::Encrypted;
use opentelemetry::trace::{SpanContext, SpanKind};

use super::tracer::{Span, Tracer, tracer};
use super::{OnRoute, parent};
use crate::config::tracing::SampledFlag;
use crate::routes::match_rule::PathPattern;

/// An extension of requests that are traced: the span of the request.
#[derive(Clone)]
pub(super) struct Traced {
    pub(super) span: SpanContext,
    /// The name of its route.
    pub(super) route: String,
}

/// The span of a request, if it is traced.
pub(crate) struct RequestSpan(Option<Span>);

/// Begins the span of a request, and makes it the parent of what the backend does. Without a valid parent the client's headers of
/// a trace are removed.
pub(crate) fn begin(request: &mut Request, route: &OnRoute<'_>) -> RequestSpan {
    match tracer() {
        Some(tracer) => RequestSpan(sampled(tracer, request, route)),
        None => RequestSpan(None),
    }
}

fn sampled(tracer: &Tracer, request: &mut Request, route: &OnRoute<'_>) -> Option<Span> {
    let parent = parent::take(request.headers_mut());
    let is_honoured = match tracer.sampled_flag {
        SampledFlag::All => true,
        SampledFlag::None => false,
        SampledFlag::Proxies => {
            let peer = peer(request).map(|peer| peer.ip().to_canonical());
            parent.is_some() && route.proxies.trusts_peer(peer)
        }
    };
    let trace = tracer.sample(parent.as_ref(), is_honoured)?;
    let pattern = pattern(route.path);
    let method = method(request.method());
    let mut span = Span::begin(format!("{method} {pattern}"), SpanKind::Server, trace, parent.as_ref());
    span.set("http.request.method", method);
    span.set("http.route", pattern);
    describe(&mut span, request, route);
    let context = span.context();
    request.headers_mut().insert(parent::TRACEPARENT, parent::header(&context));
    request.extensions_mut().insert(Traced { span: context, route: route.name.to_owned() });
    Some(span)
}

fn describe(span: &mut Span, request: &Request, route: &OnRoute<'_>) {
    let (fields, extensions) = (request.headers(), request.extensions());
    span.set("mainstay.route", route.name.to_owned());
    span.set("url.path", request.uri().path().to_owned());
    span.set("url.scheme", if extensions.get::<Encrypted>().is_some() { "https" } else { "http" });
    span.set("network.protocol.version", if request.version() == Version::HTTP_2 { "2" } else { "1.1" });
    if let Some(agent) = text(fields, &header::USER_AGENT) {
        span.set("user_agent.original", agent.to_owned());
    }
    let authority = text(fields, &header::HOST).and_then(|host| host.parse().ok());
    if let Some(host) = request.uri().authority().cloned().or(authority) {
        span.set("server.address", host.host().to_owned());
        host.port_u16().into_iter().for_each(|port| span.set("server.port", i64::from(port)));
    }
    let client = route.proxies.client(peer(request), fields);
    if let Some(client) = client {
        span.set("client.address", client.ip().to_canonical().to_string());
    }
}

fn text<'a>(fields: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    fields.get(name).and_then(|value| value.to_str().ok())
}

fn peer(request: &Request) -> Option<SocketAddr> {
    request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0)
}

/// Returns a name of few values for the paths of a route.
fn pattern(path: &PathPattern) -> String {
    match path {
        PathPattern::Exact(path) => path.to_string(),
        PathPattern::Prefix(path) => format!("{}/*", path.trim_end_matches('/')),
    }
}

/// Returns a method; any client can invent others.
fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

impl RequestSpan {
    /// The response of a plain request goes to the client: the span ends with its body.
    pub(crate) fn passes(self, response: Response) -> Response {
        let Some(mut span) = self.0 else { return response };
        note(&mut span, response.status());
        if response.body().is_end_stream() {
            return response;
        }
        let (head, body) = response.into_parts();
        Response::from_parts(head, Body::new(Observed { body, span: Some(span) }))
    }

    /// The opening handshake was answered: the span ends.
    pub(crate) fn answered(self, response: &Response) {
        if let Some(mut span) = self.0 {
            note(&mut span, response.status());
        }
    }
}

fn note(span: &mut Span, status: StatusCode) {
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(status.as_u16().to_string(), "");
    }
}

/// A response's body on its way to the client.
struct Observed {
    body: Body,
    span: Option<Span>,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.span = None,
            Some(Err(error)) => {
                if let Some(mut span) = self.span.take() {
                    span.fail("incomplete", error.to_string());
                }
            }
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Observed {
    /// The client did not wait for the end.
    fn drop(&mut self) {
        if let Some(span) = self.span.as_mut().filter(|_| !self.body.is_end_stream()) {
            span.fail("cancelled", "the client did not take the whole response");
        }
    }
}
