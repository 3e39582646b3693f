//! HTTP/2 for clients over TLS that ask for it: requests, and WebSockets by extended CONNECT, each in a stream.
//!
//! A WebSocket is one stream, so its session runs over whatever carries the stream, and a client opens many on one
//! connection. Each counts as a connection of its own where connections are limited.
//!
//! A flood closes its connection: the crate h2 counts what it handles itself (headers without end, empty frames, requests
//! that are reset before they are read), and this module counts the requests that a client cancels later.
//!
//! Source: RFC 8441, RFC 9113.

use std::convert::Infallible;
use std::error::Error;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mainstay_proto::cancellations::Cancellations;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::connection::HttpConnection;
use super::stats::Counters;
use super::write_timeout::WriteTimeout;
use crate::transport::Stream;

/// Streams that a client may have open, WebSockets among them.
const STREAMS: u32 = 100;
/// Bytes that a client may send in a stream before they are read.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same in all streams of a connection: enough that no WebSocket waits for another whose handler is busy. The crate h2
/// derives from it how many small frames may wait to be read before it takes them for a flood: enough that a stream may be
/// full of the smallest messages.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// Bytes of a stream that wait for the client.
const UNSENT: usize = 64 * 1024;
/// How often a connection is probed, and the silence that ends it. A WebSocket in it has its own heartbeat.
const PROBE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(20);

/// The limits that [`Serve`](super::Serve) sets.
pub(super) struct Limits {
    /// The largest head of a request, in bytes.
    pub(super) head: usize,
    /// The most fields of a request, cookies counted as one.
    pub(super) fields: usize,
    /// How long a connection may be without a new request. Then it accepts no more, and ends with its last stream.
    pub(super) idle: Duration,
}

/// Serves the streams of a connection.
pub(super) async fn serve<I, S>(
    connection: HttpConnection,
    stream: I,
    app: S,
    limits: Limits,
    leave: CancellationToken,
) where
    I: Stream + 'static,
    S: Service<Request, Response: IntoResponse, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let connection = Arc::new(connection);
    let (since, cancelled) = (Arc::new(AtomicBool::new(true)), Arc::new(Cancelled::default()));
    let (each, noted, counted) = (Arc::clone(&connection), Arc::clone(&since), Arc::clone(&cancelled));
    let service = service_fn(move |request| {
        noted.store(true, Ordering::Relaxed);
        let unanswered = Unanswered(Some(Arc::clone(&counted)));
        let answer = answer(Arc::clone(&each), app.clone(), request, limits.fields);
        async move {
            let response = answer.await;
            unanswered.settle();
            response
        }
    });
    let served = builder(&limits).serve_connection(TokioIo::new(WriteTimeout::new(stream)), service);
    let silent = connection.stayed_silent();
    let leave = async {
        let idle = async {
            while since.swap(false, Ordering::Relaxed) {
                tokio::time::sleep(limits.idle).await;
            }
        };
        tokio::select! {
            () = idle => {}
            () = connection.must_leave(&leave) => {}
        }
    };
    let (mut served, mut silent, mut leave, mut leaving) = (pin!(served), pin!(silent), pin!(leave), false);
    loop {
        tokio::select! {
            result = served.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, address = ?connection.address, "HTTP/2 connection ended");
                    if is_flood(&error) {
                        report_flood(&connection, "frames of no use");
                    }
                }
                break;
            }
            () = cancelled.too_many.notified() => {
                report_flood(&connection, "requests that were cancelled");
                break;
            }
            () = silent.as_mut() => break,
            () = leave.as_mut(), if !leaving => {
                leaving = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
    connection.note_silence();
}

/// The requests that the client of a connection cancelled.
#[derive(Default)]
struct Cancelled {
    count: Mutex<Cancellations>,
    too_many: Notify,
}

/// A request without a response yet; dropped with it if the client cancels it.
struct Unanswered(Option<Arc<Cancelled>>);

impl Unanswered {
    fn settle(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let Some(cancelled) = &self.0 else { return };
        let mut count = cancelled.count.lock().unwrap_or_else(PoisonError::into_inner);
        if !count.cancel(Instant::now().into_std()) {
            cancelled.too_many.notify_one();
        }
    }
}

/// Whether the crate h2 ended a connection because of a flood.
fn is_flood(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_library() && cause.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// Counts a flood, and logs it unless another was logged just now.
fn report_flood(connection: &HttpConnection, what: &str) {
    let shared = &connection.server.shared;
    Counters::add(&shared.stats.http2_floods, 1);
    if let Some(more) = shared.floods.due() {
        let address = connection.address.map_or_else(|| "unix".to_owned(), |address| address.to_string());
        tracing::warn!(
            address,
            more,
            what,
            "a connection of HTTP/2 was closed because its client flooded it"
        );
    }
}

fn builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .enable_connect_protocol()
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(UNSENT)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .keep_alive_interval(PROBE)
        .keep_alive_timeout(SILENCE);
    http
}

/// Answers a request. What belongs to a connection of HTTP/1.1 is left out of the response.
async fn answer<S>(
    connection: Arc<HttpConnection>,
    app: S,
    mut request: hyper::Request<Incoming>,
    most_fields: usize,
) -> Result<Response, Infallible>
where
    S: Service<Request, Response: IntoResponse, Error = Infallible>,
{
    join_cookies(request.headers_mut());
    if request.headers().len() > most_fields {
        return Ok(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response());
    }
    let mut response = connection.answer(app, request).await?;
    for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING] {
        response.headers_mut().remove(name);
    }
    Ok(response)
}

/// Joins cookies that came in several fields, which only HTTP/2 allows.
///
/// Source: RFC 9113 section 8.2.3.
fn join_cookies(fields: &mut HeaderMap) {
    let pieces: Vec<_> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pieces.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..]))
    {
        fields.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_in_several_fields_become_one() {
        let mut fields = HeaderMap::new();
        join_cookies(&mut fields);
        assert!(fields.is_empty());
        for cookie in ["a=1", "b=2; c=3", "d=4"] {
            fields.append(header::COOKIE, HeaderValue::from_static(cookie));
        }
        join_cookies(&mut fields);
        assert_eq!(fields.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3; d=4"]);
    }
}
