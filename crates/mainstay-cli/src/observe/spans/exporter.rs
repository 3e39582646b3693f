//! The way of spans to the collector: a bounded queue, and a task that sends them in batches as OTLP over HTTP.
//!
//! The data path never waits: a span that finds the queue full is dropped and counted. While the collector is away, the batch
//! that it did not take is sent again after growing pauses, and later spans wait in the queue.
//!
//! `opentelemetry-otlp` was rejected: its clients of HTTP are further ones beside hyper, and its queue counts no dropped spans.
//!
//! Source: OTLP 1.9, "OTLP/HTTP".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Uri};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::trace::SpanData;
use prost::Message;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::SpanFigures;
use super::resource::resource;
use crate::config::tracing::Section;
use crate::http_client::HttpClient;

/// How many spans wait at most, and how many are sent together: the defaults of OpenTelemetry.
const QUEUE: usize = 2048;
const BATCH: usize = 512;
/// How long a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How long the collector may take, and how large its answer may be.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 * 1024;
/// The pause after the first failure; it doubles up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The least time between two lines about spans that were dropped or refused.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// How long the end of the process waits for the spans that are left.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes spans that have ended.
pub(super) struct Exporter {
    queue: mpsc::Sender<Item>,
    counts: Arc<Counts>,
    /// The process ends: no pause is kept.
    hurry: Arc<Notify>,
}

enum Item {
    Span(Box<SpanData>),
    /// Answered once all spans before it were sent.
    Flush(oneshot::Sender<()>),
}

#[derive(Default)]
struct Counts {
    exported: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

/// Starts the task that sends spans, if the settings name a collector.
///
/// # Errors
/// Begins with the field.
pub(super) fn start(section: &Section) -> Result<Option<Exporter>, String> {
    let Some(collector) = Collector::new(section)? else { return Ok(None) };
    let (queue, spans) = mpsc::channel(QUEUE);
    let (counts, hurry) = (Arc::clone(&collector.counts), Arc::clone(&collector.hurry));
    tokio::spawn(run(spans, collector));
    Ok(Some(Exporter { queue, counts, hurry }))
}

impl Exporter {
    /// Puts a span into the queue; drops it if the queue is full.
    pub(super) fn send(&self, span: Box<SpanData>) {
        if self.queue.try_send(Item::Span(span)).is_err() {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Sends the spans that are left, for 2 s at most.
    pub(super) async fn flush(&self) {
        let (done, sent) = oneshot::channel();
        let flushing = async {
            self.hurry.notify_one();
            if self.queue.send(Item::Flush(done)).await.is_ok() {
                let _ = sent.await;
            }
        };
        if timeout(FLUSH_TIMEOUT, flushing).await.is_err() {
            tracing::warn!("the process ends with spans that the collector did not take in time");
        }
    }

    /// Returns what became of the spans.
    pub(super) fn figures(&self) -> SpanFigures {
        let read = |count: &AtomicU64| count.load(Relaxed);
        let Counts { exported, dropped, refused } = &*self.counts;
        SpanFigures { exported: read(exported), dropped: read(dropped), refused: read(refused) }
    }
}

/// Sends batches until the process ends.
async fn run(mut items: mpsc::Receiver<Item>, mut collector: Collector) {
    while let Some((spans, flush)) = next_batch(&mut items).await {
        if !spans.is_empty() {
            collector.export(spans).await;
        }
        if let Some(flushed) = flush {
            let _ = flushed.send(());
        }
    }
}

/// Waits for a span and collects those that follow it: a full batch, what comes within [`DELAY`], or what comes before a flush.
async fn next_batch(
    items: &mut mpsc::Receiver<Item>,
) -> Option<(Vec<SpanData>, Option<oneshot::Sender<()>>)> {
    let mut spans = Vec::new();
    match items.recv().await? {
        Item::Span(span) => spans.push(*span),
        Item::Flush(flush) => return Some((spans, Some(flush))),
    }
    let until = Instant::now() + DELAY;
    while spans.len() < BATCH {
        match timeout_at(until, items.recv()).await {
            Ok(Some(Item::Span(span))) => spans.push(*span),
            Ok(Some(Item::Flush(flush))) => return Some((spans, Some(flush))),
            Ok(None) | Err(_) => break,
        }
    }
    Some((spans, None))
}

/// The collector, and how it fares.
struct Collector {
    url: Uri,
    client: HttpClient,
    fields: HeaderMap,
    resource: ResourceAttributesWithSchema,
    counts: Arc<Counts>,
    hurry: Arc<Notify>,
    is_failing: bool,
    /// What the log knows of dropped spans, and since when.
    logged: (u64, Option<Instant>),
    /// The latest line about refused spans.
    logged_refusal: Option<Instant>,
}

/// Why the collector did not take a batch.
enum Fault {
    /// It may take it later, and asks for this pause at least.
    Away { why: String, wait: Duration },
    /// It will never take it.
    Refused(String),
}

impl Collector {
    fn new(section: &Section) -> Result<Option<Self>, String> {
        let Some(endpoint) = &section.endpoint else { return Ok(None) };
        let (url, client) = HttpClient::to(&endpoint.0, section.ca_file.as_deref())?;
        let url = with_path(url)
            .ok_or("endpoint: the path cannot be used, write for example \"http://127.0.0.1:4318\"")?;
        let mut fields = HeaderMap::new();
        for variable in ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"] {
            let text = std::env::var(variable).unwrap_or_default();
            fields.extend(of_variable(&text).map_err(|error| format!("headers: {variable}: {error}"))?);
        }
        for (name, value) in section.fields()? {
            fields.insert(name, value);
        }
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        fields.insert(USER_AGENT, HeaderValue::from_static(concat!("mainstay/", env!("CARGO_PKG_VERSION"))));
        Ok(Some(Self {
            url,
            client,
            fields,
            resource: (&resource(section.service_name.as_deref())).into(),
            counts: Arc::default(),
            hurry: Arc::default(),
            is_failing: false,
            logged: (0, None),
            logged_refusal: None,
        }))
    }

    /// Sends a batch, again and again while the collector is away.
    async fn export(&mut self, spans: Vec<SpanData>) {
        let count = spans.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(spans, &self.resource);
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        let mut pause = PAUSE;
        loop {
            match self.post(body.clone()).await {
                Ok(refused) => return self.note_taken(count, refused.min(count)),
                Err(Fault::Refused(why)) => return self.note_refused(count, &why),
                Err(Fault::Away { why, wait }) => {
                    self.note_away(&why);
                    pause = pause.max(wait).min(LONGEST_PAUSE);
                }
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.hurry.notified() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Sends a batch once. Returns how many of its spans were refused.
    async fn post(&self, body: Bytes) -> Result<u64, Fault> {
        let mut request = Request::new(Body::from(body));
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, self.url.clone());
        *request.headers_mut() = self.fields.clone();
        let away = |why: String, wait: Duration| Fault::Away { why, wait };
        let answer = self.client.send(request, MAX_ANSWER, TIMEOUT).await;
        let answer = answer.map_err(|why| away(why, Duration::ZERO))?;
        match answer.status() {
            status if status.is_success() => Ok(refused_in(answer.body())),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let asked =
                    answer.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
                Err(away(
                    format!("status {}", answer.status().as_u16()),
                    Duration::from_secs(asked.unwrap_or(0)),
                ))
            }
            status => Err(Fault::Refused(format!("status {}", status.as_u16()))),
        }
    }

    fn note_taken(&mut self, spans: u64, refused: u64) {
        self.counts.exported.fetch_add(spans - refused, Relaxed);
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(endpoint = %self.url, "the collector takes spans again");
        }
        if refused > 0 {
            self.note_refused(refused, "it accepted the others of their batch");
        }
        self.note_dropped();
    }

    fn note_refused(&mut self, spans: u64, why: &str) {
        self.counts.refused.fetch_add(spans, Relaxed);
        if self.logged_refusal.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged_refusal = Some(Instant::now());
            let refused = self.counts.refused.load(Relaxed);
            tracing::warn!(endpoint = %self.url, why, refused, "the collector refuses spans, which are lost");
        }
    }

    fn note_away(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                endpoint = %self.url,
                why,
                "the collector of spans cannot be reached; {QUEUE} spans wait for it, and later ones are dropped"
            );
        }
        self.note_dropped();
    }

    /// Logs dropped spans, at most every [`LOG_INTERVAL`].
    fn note_dropped(&mut self) {
        let (known, at) = self.logged;
        let dropped = self.counts.dropped.load(Relaxed);
        if dropped > known && at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            self.logged = (dropped, Some(Instant::now()));
            tracing::warn!(
                dropped = dropped - known,
                "spans were dropped: too many waited for the collector"
            );
        }
    }
}

/// Returns how many spans of a batch the collector refused.
fn refused_in(answer: &[u8]) -> u64 {
    let partial = ExportTraceServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
    partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0))
}

/// Adds the path of OTLP to a URL without one.
fn with_path(url: Uri) -> Option<Uri> {
    if !matches!(url.path(), "" | "/") {
        return Some(url);
    }
    let mut parts = url.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("/v1/traces"));
    Uri::from_parts(parts).ok()
}

/// Reads `name=value,name=value`, with values in the encoding of URLs.
///
/// Source: OpenTelemetry, "OTLP Exporter", "Specifying headers via environment variables".
fn of_variable(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, &'static str> {
    const WRONG: &str = "must be NAME=VALUE, several separated by commas";
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let header = |pair: &str| {
        let (name, value) = pair.split_once('=').ok_or(WRONG)?;
        let name = name.trim().parse().map_err(|_| WRONG)?;
        let mut value = HeaderValue::from_bytes(&crate::request::forward::decode(value.trim().as_bytes()))
            .map_err(|_| WRONG)?;
        value.set_sensitive(true);
        Ok((name, value))
    };
    pairs.map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_without_a_path_gets_that_of_otlp() {
        for (written, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://api.example/otlp/v1/traces", "https://api.example/otlp/v1/traces"),
        ] {
            assert_eq!(with_path(written.parse().unwrap()).unwrap(), expected);
        }
    }

    #[test]
    fn headers_are_read_from_the_variable_of_opentelemetry() {
        let read = |text| {
            let fields = of_variable(text)?;
            let text = |(name, value): &(HeaderName, HeaderValue)| {
                assert!(value.is_sensitive());
                format!("{name}: {}", value.to_str().unwrap())
            };
            Ok::<_, &str>(fields.iter().map(text).collect::<Vec<_>>())
        };
        assert_eq!(read(""), Ok(vec![]));
        let two = Ok(vec!["authorization: Bearer t".to_owned(), "x-tenant: a=b".to_owned()]);
        assert_eq!(read("Authorization=Bearer%20t, X-Tenant=a=b"), two);
        for wrong in ["Authorization", "a b=c", "a=%0a"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
