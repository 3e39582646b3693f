//! Spans for a collector of OpenTelemetry, in a build with the feature `otlp`.
//!
//! A request or an opening handshake of a client is one span ([`begin`]), and so is the dial of the link that it opens. A session
//! has no span of its own, which would end days later: each connection of its client is one ([`with_attaches`]), and each
//! connection of its link ([`LinkSpans`]). They are sent when they end, with the cause of the end.
//!
//! The first dial and the first connections belong to the trace of the opening handshake. A later one begins a trace of its own,
//! with a span link to the handshake: a trace that goes on for days is one that no collector keeps together.
//!
//! A request that is not sampled costs the parsing of one header. No message is looked at, sampled or not. Without the feature,
//! or without `[tracing]`, headers pass as the client sent them.
//!
//! Not here: the settings (`config::tracing`).

#[cfg(feature = "otlp")]
mod attaches;
#[cfg(feature = "otlp")]
mod exporter;
#[cfg(feature = "otlp")]
mod link;
#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod parent;
#[cfg(feature = "otlp")]
mod request;
#[cfg(feature = "otlp")]
mod resource;
#[cfg(feature = "otlp")]
mod tracer;

#[cfg(not(feature = "otlp"))]
pub(crate) use self::off::{LinkSpans, begin, figures, flush, start, with_attaches};
use mainstay::server::Proxies;

use crate::routes::match_rule::PathPattern;

#[cfg(feature = "otlp")]
pub(crate) use self::{
    attaches::with_attaches,
    link::LinkSpans,
    request::begin,
    tracer::{figures, flush, start},
};

/// The route of a request, as its spans describe it. The type itself would make a circle of files: links record spans, too.
#[cfg_attr(not(feature = "otlp"), allow(dead_code))]
pub(crate) struct OnRoute<'a> {
    pub(crate) name: &'a str,
    pub(crate) path: &'a PathPattern,
    /// The proxies whose sampled flag decides.
    pub(crate) proxies: &'a Proxies,
}

/// What became of the spans.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpanFigures {
    /// Those that the collector accepted.
    pub(crate) exported: u64,
    /// Those that were dropped because too many waited for the collector.
    pub(crate) dropped: u64,
    /// Those that the collector refused for good.
    pub(crate) refused: u64,
}
