//! The spans of a client's connections.

use mainstay::server::{Changes, End, Sender, SessionState};
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanKind};

use super::link::LinkSpans;
use super::tracer::Span;

/// Serves a client, and records each of its connections meanwhile.
pub(crate) async fn with_attaches(client: Sender, spans: LinkSpans, serve: impl Future<Output = ()>) {
    let Some(opening) = spans.opening() else { return serve.await };
    let mut about = spans.about();
    about.extend(client.id().map(|session| KeyValue::new("mainstay.session.id", session.to_string())));
    let mut attaches = Attaches { opening, about, open: None };
    attaches.note(client.state());
    let mut changes = client.changes();
    let mut serve = std::pin::pin!(serve);
    tokio::select! {
        biased;
        () = serve.as_mut() => {}
        () = attaches.watch(&mut changes) => serve.await,
    }
    attaches.end(client.end().as_ref());
}

struct Attaches {
    /// The span of the first connection's opening handshake.
    opening: SpanContext,
    about: Vec<KeyValue>,
    /// The connection now, and its number.
    open: Option<(u64, Span)>,
}

impl Attaches {
    /// Completes once the session is over.
    async fn watch(&mut self, changes: &mut Changes) {
        while let Some(state) = changes.next().await {
            self.note(state);
        }
    }

    fn note(&mut self, state: SessionState) {
        match state {
            SessionState::Attached { epoch } => self.attached(epoch),
            SessionState::Parked => self.left("lost"),
            // Its end says why.
            _ => {}
        }
    }

    fn attached(&mut self, epoch: u64) {
        if self.open.as_ref().is_some_and(|(number, _)| *number == epoch) {
            return;
        }
        self.left("replaced");
        let mut span = match epoch {
            0 | 1 => Span::below(&self.opening, "attach", SpanKind::Internal),
            _ => Span::linked(&self.opening, "attach", SpanKind::Internal),
        };
        span.set_all(&self.about);
        span.set("mainstay.epoch", i64::try_from(epoch).unwrap_or(i64::MAX));
        self.open = Some((epoch, span));
    }

    fn left(&mut self, cause: &'static str) {
        if let Some((_, mut span)) = self.open.take() {
            span.set("mainstay.cause", cause);
        }
    }

    fn end(&mut self, end: Option<&End>) {
        if let (Some((_, span)), Some(code)) = (&mut self.open, end.and_then(|end| end.code)) {
            span.set("mainstay.close_code", i64::from(code.get()));
        }
        self.left(end.map_or("closed", |end| end.cause.as_str()));
    }
}
