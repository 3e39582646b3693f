//! The spans of this process: which are recorded, their ids, and where they go when they end.

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::SystemTime;

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, Sampler, SamplingDecision, ShouldSample, SpanData, SpanEvents, SpanLinks,
};

use super::SpanFigures;
use super::exporter::{self, Exporter};
use crate::config::tracing::{SampledFlag, Section};

static TRACER: OnceLock<Tracer> = OnceLock::new();

pub(super) struct Tracer {
    ratio: Sampler,
    pub(super) sampled_flag: SampledFlag,
    scope: InstrumentationScope,
    pub(super) exporter: Exporter,
}

/// Starts to record and to send spans, if the settings name a collector. Call it once, in the runtime.
///
/// # Errors
/// Begins with the field. A file or a variable cannot be used.
pub(crate) fn start(section: &Section) -> Result<(), String> {
    let Some(exporter) = exporter::start(section)? else { return Ok(()) };
    let scope = InstrumentationScope::builder("mainstay").with_version(env!("CARGO_PKG_VERSION")).build();
    let ratio = Sampler::TraceIdRatioBased(section.ratio);
    let _ = TRACER.set(Tracer { ratio, sampled_flag: section.sampled_flag, scope, exporter });
    Ok(())
}

/// Sends the spans that are left, for 2 s at most.
pub(crate) async fn flush() {
    if let Some(tracer) = tracer() {
        tracer.exporter.flush().await;
    }
}

/// Returns what became of the spans; `None` if none are recorded.
pub(crate) fn figures() -> Option<SpanFigures> {
    tracer().map(|tracer| tracer.exporter.figures())
}

/// Returns the tracer, if spans are recorded.
pub(super) fn tracer() -> Option<&'static Tracer> {
    TRACER.get()
}

impl Tracer {
    /// Returns the trace of a new span and its flags; `None` if it is not sampled. `is_honoured`: the flag of the parent decides.
    pub(super) fn sample(
        &self,
        parent: Option<&SpanContext>,
        is_honoured: bool,
    ) -> Option<(TraceId, TraceFlags)> {
        let trace = parent.map_or_else(new_trace, SpanContext::trace_id);
        let is_sampled = match parent {
            Some(parent) if is_honoured => parent.is_sampled(),
            _ => {
                let judged = self.ratio.should_sample(None, trace, "", &SpanKind::Server, &[], &[]).decision;
                judged == SamplingDecision::RecordAndSample
            }
        };
        let flags = parent.map(SpanContext::trace_flags).unwrap_or_default();
        is_sampled.then_some((trace, flags | TraceFlags::SAMPLED))
    }
}

fn new_trace() -> TraceId {
    RandomIdGenerator::default().new_trace_id()
}

/// A span that has begun. It is sent when it is dropped.
pub(super) struct Span(Option<Box<SpanData>>);

impl Span {
    /// Begins a span in a trace, below a span or as the first.
    pub(super) fn begin(
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        (trace, flags): (TraceId, TraceFlags),
        parent: Option<&SpanContext>,
    ) -> Self {
        let Some(tracer) = tracer() else { return Self(None) };
        let state = parent.map_or_else(TraceState::default, |parent| parent.trace_state().clone());
        let span = RandomIdGenerator::default().new_span_id();
        let now = SystemTime::now();
        Self(Some(Box::new(SpanData {
            span_context: SpanContext::new(trace, span, flags, false, state),
            parent_span_id: parent.map_or(SpanId::INVALID, SpanContext::span_id),
            parent_span_is_remote: parent.is_some_and(SpanContext::is_remote),
            span_kind: kind,
            name: name.into(),
            start_time: now,
            end_time: now,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: tracer.scope.clone(),
        })))
    }

    /// Begins a span below another of this process.
    pub(super) fn below(parent: &SpanContext, name: &'static str, kind: SpanKind) -> Self {
        Self::begin(name, kind, (parent.trace_id(), parent.trace_flags()), Some(parent))
    }

    /// Begins a span in a trace of its own that refers to another one.
    pub(super) fn linked(other: &SpanContext, name: &'static str, kind: SpanKind) -> Self {
        let mut span = Self::begin(name, kind, (new_trace(), TraceFlags::SAMPLED), None);
        if let Some(data) = &mut span.0 {
            data.links.links.push(Link::with_context(other.clone()));
        }
        span
    }

    /// Returns its name in its trace.
    pub(super) fn context(&self) -> SpanContext {
        self.0.as_ref().map_or_else(|| SpanContext::NONE.clone(), |data| data.span_context.clone())
    }

    /// Adds an attribute.
    pub(super) fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(data) = &mut self.0 {
            data.attributes.push(KeyValue::new(name, value));
        }
    }

    /// Adds attributes.
    pub(super) fn set_all(&mut self, attributes: &[KeyValue]) {
        if let Some(data) = &mut self.0 {
            data.attributes.extend_from_slice(attributes);
        }
    }

    /// Marks it as failed. `kind`: of few values, for figures.
    pub(super) fn fail(&mut self, kind: impl Into<Value>, description: impl Into<Cow<'static, str>>) {
        self.set("error.type", kind);
        if let Some(data) = &mut self.0 {
            data.status = Status::Error { description: description.into() };
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let (Some(mut data), Some(tracer)) = (self.0.take(), tracer()) {
            data.end_time = SystemTime::now();
            tracer.exporter.send(data);
        }
    }
}
