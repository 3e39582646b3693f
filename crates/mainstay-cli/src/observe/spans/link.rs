//! The spans of one link: its dials, and each connection to the backend.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{HeaderMap, HeaderValue};
use http::request::Parts;
use http::{StatusCode, Uri};
use mainstay::SessionId;
use mainstay::client::{End, EndCause, Event, Lost};
use mainstay::server::timeline::Loss;
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanKind};

use super::parent::{self, TRACEPARENT, TRACESTATE};
use super::request::Traced;
use super::tracer::Span;
use crate::upstream::backend_health::Failure;
use crate::upstream::error::UpstreamError;

/// The spans of a link whose opening handshake is traced. Clones share everything.
///
/// A dial is one span over as many attempts as it takes, and the parent of what the backend does in the opening handshake. The
/// connection that it brings is another one below it.
#[derive(Clone, Default)]
pub(crate) struct LinkSpans(Option<Arc<Mutex<Link>>>);

struct Link {
    /// The span of the client's opening handshake.
    opening: SpanContext,
    /// What other systems know of that trace, as the client sent it.
    state: Vec<HeaderValue>,
    /// The attributes of every span.
    about: Vec<KeyValue>,
    /// The host and the port that are dialled, by the latest attempt.
    host: Option<(String, Option<u16>)>,
    phase: Phase,
    /// A connection was open before.
    was_open: bool,
}

enum Phase {
    Idle,
    Dialling { span: Span, attempts: i64, failure: Option<Failure> },
    Open(Span),
}

impl LinkSpans {
    /// Takes the trace of an opening handshake out of the fields for the backend: each attempt adds its own.
    pub(crate) fn of(head: &Parts, fields: &mut HeaderMap) -> Self {
        let Some(Traced { span: opening, route }) = head.extensions.get() else { return Self(None) };
        let state = fields.get_all(TRACESTATE).iter().cloned().collect();
        fields.remove(TRACEPARENT);
        fields.remove(TRACESTATE);
        let about = vec![KeyValue::new("mainstay.route", route.clone())];
        let (opening, phase) = (opening.clone(), Phase::Idle);
        Self(Some(Arc::new(Mutex::new(Link { opening, state, about, host: None, phase, was_open: false }))))
    }

    /// Whether there are any spans.
    pub(crate) fn are_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the span of the client's opening handshake.
    pub(super) fn opening(&self) -> Option<SpanContext> {
        self.lock().map(|link| link.opening.clone())
    }

    /// Returns the attributes of every span.
    pub(super) fn about(&self) -> Vec<KeyValue> {
        self.lock().map_or_else(Vec::new, |link| link.about.clone())
    }

    /// The link belongs to a session.
    pub(crate) fn belongs_to(&self, session: Option<SessionId>) {
        if let (Some(mut link), Some(session)) = (self.lock(), session) {
            link.about.push(KeyValue::new("mainstay.session.id", session.to_string()));
        }
    }

    /// An attempt to reach the backend at this URL begins. Adds the headers of its trace.
    pub(crate) fn begin_attempt(&self, url: &Uri, fields: &mut HeaderMap) {
        let Some(mut link) = self.lock() else { return };
        link.host = url.host().map(|host| (host.to_owned(), url.port_u16()));
        let context = link.dial();
        fields.insert(TRACEPARENT, parent::header(&context));
        if context.trace_id() == link.opening.trace_id() {
            fields.extend(link.state.iter().map(|line| (TRACESTATE, line.clone())));
        }
    }

    /// The backend at this URL accepted the opening handshake of a plain client.
    pub(crate) fn opened(&self, url: Option<&Uri>) {
        let Some(mut link) = self.lock() else { return };
        if let Some(host) = url.and_then(|url| Some((url.host()?.to_owned(), url.port_u16()))) {
            link.host = Some(host);
        }
        link.open();
    }

    /// The backend refused it with this status.
    pub(crate) fn refused(&self, status: StatusCode) {
        if let Some(mut link) = self.lock() {
            link.refuse(status);
        }
    }

    /// No address of the backend gave a valid response to it.
    pub(crate) fn failed(&self, error: &UpstreamError) {
        if let Some(mut link) = self.lock() {
            link.note_failure(Failure::of_request(error));
            link.give_up();
        }
    }

    /// Notes an event of the link.
    pub(crate) fn observe(&self, event: &Event) {
        let Some(mut link) = self.lock() else { return };
        match event {
            Event::Attached { .. } => link.open(),
            Event::AttemptFailed { why, .. } => link.note_failure(Failure::of(why)),
            Event::Detached { why, .. } => link.lose(why),
            Event::Rested => link.close("rested"),
            Event::Ended(end) => link.end(end),
            _ => {}
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, Link>> {
        Some(self.0.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Link {
    /// Returns the span of the dial that an attempt belongs to.
    fn dial(&mut self) -> SpanContext {
        if let Phase::Dialling { span, attempts, .. } = &mut self.phase {
            *attempts += 1;
            return span.context();
        }
        let mut span = match self.was_open {
            false => Span::below(&self.opening, "dial", SpanKind::Client),
            true => Span::linked(&self.opening, "dial", SpanKind::Client),
        };
        span.set_all(&self.about);
        let context = span.context();
        self.phase = Phase::Dialling { span, attempts: 1, failure: None };
        context
    }

    /// The dial brought a connection, whose span begins.
    fn open(&mut self) {
        let Some(mut dial) = self.end_dial() else { return };
        dial.set("http.response.status_code", i64::from(StatusCode::SWITCHING_PROTOCOLS.as_u16()));
        let mut span = Span::below(&dial.context(), "link", SpanKind::Internal);
        span.set_all(&self.about);
        self.phase = Phase::Open(span);
        self.was_open = true;
    }

    /// Returns the span of the dial with what is known at its end.
    fn end_dial(&mut self) -> Option<Span> {
        let Phase::Dialling { mut span, attempts, .. } = self.take_if(Phase::is_dialling)? else {
            return None;
        };
        span.set("http.request.method", "GET");
        span.set("mainstay.attempts", attempts);
        if let Some((host, port)) = self.host.take() {
            span.set("server.address", host);
            port.into_iter().for_each(|port| span.set("server.port", i64::from(port)));
        }
        Some(span)
    }

    fn refuse(&mut self, status: StatusCode) {
        if let Some(mut span) = self.end_dial() {
            span.set("http.response.status_code", i64::from(status.as_u16()));
            span.fail(status.as_u16().to_string(), "");
        }
    }

    fn note_failure(&mut self, why: Option<Failure>) {
        if let Phase::Dialling { failure, .. } = &mut self.phase {
            *failure = why;
        }
    }

    /// The dial ends without a connection.
    fn give_up(&mut self) {
        let latest = match &mut self.phase {
            Phase::Dialling { failure, .. } => failure.take(),
            _ => return,
        };
        if let Some(mut span) = self.end_dial() {
            match latest {
                Some(Failure { reason, why }) => span.fail(reason.label(), why),
                None => span.fail("cancelled", "the client ended before the backend responded"),
            }
        }
    }

    fn lose(&mut self, why: &Lost) {
        if let Some(Phase::Open(mut span)) = self.take_if(Phase::is_open) {
            let cause = Loss::of(why).as_str();
            span.set("mainstay.cause", cause);
            match why {
                Lost::Closed { code, .. } => {
                    code.iter().for_each(|code| span.set("mainstay.close_code", i64::from(code.get())));
                }
                Lost::Asked => {}
                _ => span.fail(cause, why.to_string()),
            }
        }
    }

    fn close(&mut self, cause: &'static str) {
        if let Some(Phase::Open(mut span)) = self.take_if(Phase::is_open) {
            span.set("mainstay.cause", cause);
        }
    }

    fn end(&mut self, end: &End) {
        match (end.code.and_then(|code| code.status()), end.code.and_then(|code| code.close_code())) {
            (Some(status), _) => self.refuse(status),
            (None, Some(code)) => {
                if let Phase::Open(span) = &mut self.phase {
                    span.set("mainstay.close_code", i64::from(code.get()));
                }
            }
            (None, None) => {}
        }
        self.close(match end.cause {
            EndCause::Closed | EndCause::Aborted => "client",
            EndCause::Peer => "backend",
            EndCause::Lost => end.lost.as_ref().map_or("lost", |lost| Loss::of(lost).as_str()),
            _ => "ended",
        });
        self.give_up();
    }

    fn take_if(&mut self, is_it: fn(&Phase) -> bool) -> Option<Phase> {
        is_it(&self.phase).then(|| std::mem::replace(&mut self.phase, Phase::Idle))
    }
}

impl Phase {
    fn is_dialling(&self) -> bool {
        matches!(self, Self::Dialling { .. })
    }

    fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close("dropped");
        self.give_up();
    }
}
