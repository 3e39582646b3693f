//! HTTP/2 for clients over TLS that ask for it: requests, and WebSockets by extended CONNECT, each in a stream.
//!
//! A WebSocket is one stream, so its session runs over whatever carries the stream, and a client opens many on one
//! connection. Each counts as a connection of its own where connections are limited.
//!
//! Source: RFC 8441, RFC 9113.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::connection::HttpConnection;
use super::write_timeout::WriteTimeout;
use crate::transport::Stream;

/// Streams that a client may have open, WebSockets among them.
const STREAMS: u32 = 250;
/// Bytes that a client may send in a stream before they are read, and in all streams of a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a stream that wait for the client.
const UNSENT: usize = 64 * 1024;
/// How often a connection is probed, and the silence that ends it. A WebSocket in it has its own heartbeat.
const PROBE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(20);

/// The limits that [`Serve`](super::Serve) sets.
pub(super) struct Limits {
    /// The largest head of a request, in bytes.
    pub(super) head: usize,
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
    let since = Arc::new(AtomicBool::new(true));
    let (each, noted) = (Arc::clone(&connection), Arc::clone(&since));
    let service = service_fn(move |request| {
        noted.store(true, Ordering::Relaxed);
        answer(Arc::clone(&each), app.clone(), request)
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
                }
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
) -> Result<Response, Infallible>
where
    S: Service<Request, Response: IntoResponse, Error = Infallible>,
{
    join_cookies(request.headers_mut());
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
