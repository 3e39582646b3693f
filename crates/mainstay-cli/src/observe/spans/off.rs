//! The same without the feature `otlp`: nothing, at no cost.

use axum::extract::Request;
use axum::response::Response;
use http::header::HeaderMap;
use http::request::Parts;
use http::{StatusCode, Uri};
use mainstay::SessionId;
use mainstay::client::Event;
use mainstay::server::Sender;

use super::{OnRoute, SpanFigures};
use crate::config::tracing::Section;
use crate::upstream::error::UpstreamError;

pub(crate) fn start(_: &Section) -> Result<(), String> {
    Ok(())
}

pub(crate) async fn flush() {}

pub(crate) fn figures() -> Option<SpanFigures> {
    None
}

pub(crate) fn begin(_: &mut Request, _: &OnRoute<'_>) -> RequestSpan {
    RequestSpan
}

pub(crate) struct RequestSpan;

impl RequestSpan {
    pub(crate) fn passes(self, response: Response) -> Response {
        response
    }

    pub(crate) fn answered(self, _: &Response) {}
}

#[derive(Clone, Default)]
pub(crate) struct LinkSpans(());

impl LinkSpans {
    pub(crate) fn of(_: &Parts, _: &mut HeaderMap) -> Self {
        Self(())
    }

    pub(crate) fn are_recorded(&self) -> bool {
        false
    }

    pub(crate) fn belongs_to(&self, _: Option<SessionId>) {}

    pub(crate) fn begin_attempt(&self, _: &Uri, _: &mut HeaderMap) {}

    pub(crate) fn opened(&self, _: Option<&Uri>) {}

    pub(crate) fn refused(&self, _: StatusCode) {}

    pub(crate) fn failed(&self, _: &UpstreamError) {}

    pub(crate) fn observe(&self, _: &Event) {}
}

pub(crate) async fn with_attaches(_: Sender, _: LinkSpans, serve: impl Future<Output = ()>) {
    serve.await;
}
