//! The server loop: what `axum::serve` does, and what it leaves out for WebSockets.
//!
//! A connection that says nothing, or too slowly, is dropped at the opening deadline, and so is one that takes
//! nothing of its response. A request without a valid Host or target gets 400. A response whose body breaks off resets
//! its connection, or a client of HTTP/1.0 would take it for whole. Shutdown waits for sessions and for HTTP responses.

use std::convert::Infallible;
use std::future::{Future, IntoFuture};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use super::limits::Permit;
use super::pace::Paced;
use super::stats::Stats;
use super::{Mainstay, target};

/// The head of a request may be this large, in this many fields.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// Serves `app` on `listener`. Await it; it ends only after [`Serve::with_graceful_shutdown`]'s signal.
///
/// Requests carry [`ConnectInfo<SocketAddr>`](ConnectInfo). A peer has [`Config::opening_deadline`] for the head of a
/// request, and for what is left of it after 101 to present its session; what the application does between the two is
/// its own, neither counted nor bounded. A peer that takes nothing of a response for 30 s is dropped.
///
/// `TcpListener::bind` lets 1,024 connections wait to be accepted. When thousands come back at once that is too few:
/// the others wait for TCP to ask again, for seconds. Then bind with more, which the system bounds by a setting
/// of its own (`net.core.somaxconn` on Linux):
///
/// ```no_run
/// # fn bind() -> std::io::Result<tokio::net::TcpListener> {
/// let socket = tokio::net::TcpSocket::new_v4()?;
/// socket.set_reuseaddr(true)?;
/// socket.bind(([0, 0, 0, 0], 8080).into())?;
/// let listener = socket.listen(65_535)?;
/// # Ok(listener)
/// # }
/// ```
///
/// [`Config::opening_deadline`]: super::Config::opening_deadline
#[must_use = "await it"]
pub fn serve(listener: TcpListener, app: Router, mainstay: &Mainstay) -> Serve {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(mainstay.shared.config.opening_deadline)
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_FIELDS);
    let spread = Duration::from_secs(30);
    Serve { listener, app, mainstay: mainstay.clone(), http, shutdown: None, spread }
}

/// A server that is not running yet. See [`serve`].
pub struct Serve {
    listener: TcpListener,
    app: Router,
    mainstay: Mainstay,
    http: http1::Builder,
    shutdown: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    spread: Duration,
}

impl Serve {
    /// When `signal` completes: stops accepting, sends everyone away over `spread`, and waits for all sessions and for
    /// the responses that are under way, at most `spread` plus 5 s. HTTP connections without a request end at once,
    /// the others with their response. See [`Mainstay::drain`].
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
        spread: Duration,
    ) -> Self {
        self.shutdown = Some(Box::pin(signal));
        self.spread = spread;
        self
    }

    /// How large the head of a request may be, and how many fields it may have; one that is larger gets 431. Default:
    /// 16 KiB and 64. Range: at least 8 KiB, less counts as that.
    pub fn head_limits(mut self, bytes: usize, fields: usize) -> Self {
        // Less makes hyper panic.
        let bytes = bytes.max(8 * 1024);
        self.http.max_buf_size(bytes).max_header_size(bytes).max_headers(fields);
        self
    }

    /// How long a connection may wait for its next request, that request's head included. Its first request has
    /// [`Config::opening_deadline`](super::Config::opening_deadline). Default: the same for all.
    pub fn keep_alive(mut self, idle: Duration) -> Self {
        self.http.header_read_timeout(idle);
        self
    }

    /// Remembers how each request's field names were spelled, in an extension of the request, for a proxy that sends
    /// them on over hyper; a response that has that extension is spelled so, any other with capitals. Default: no, and
    /// lower case; it costs a second map for each request.
    pub fn preserve_header_case(mut self) -> Self {
        self.http.preserve_header_case(true).title_case_headers(true);
        self
    }

    async fn run(self) -> io::Result<()> {
        let Self { listener, app, mainstay, http, shutdown, spread } = self;
        let mut shutdown = shutdown.unwrap_or_else(|| Box::pin(std::future::pending()));
        let (visitors, leave) = (TaskTracker::new(), CancellationToken::new());
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        failing = false;
                        if let Ok(permit) = mainstay.shared.gate.arrive(address, &mainstay.shared.stats) {
                            let visitor = Visitor::new(address, permit, app.clone(), mainstay.clone());
                            // In a box, as tokio copies a task's future several times.
                            visitors.spawn(Box::pin(visitor.serve(stream, http.clone(), leave.clone())));
                        }
                    }
                    Err(error) if is_the_peers(&error) => {}
                    // Out of descriptors, for example: that passes when connections end. Logged once.
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(%error, "accept fails; retrying every 50 ms");
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        drop(listener);
        leave.cancel();
        visitors.close();
        mainstay.drain_after(visitors.wait(), spread).await;
        Ok(())
    }
}

impl IntoFuture for Serve {
    type Output = io::Result<()>;
    type IntoFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

/// How long the peer took for its request, of the time that it has to present its session. An extension of requests.
#[derive(Clone, Copy)]
pub(super) struct HeadTook(pub(super) Duration);

/// One connection, for as long as it speaks HTTP.
struct Visitor {
    address: SocketAddr,
    permit: Option<Arc<Permit>>,
    app: Router,
    mainstay: Mainstay,
    accepted: Instant,
    /// Whether there was a request.
    spoke: AtomicBool,
}

impl Visitor {
    fn new(address: SocketAddr, permit: Option<Permit>, app: Router, mainstay: Mainstay) -> Self {
        let permit = permit.map(Arc::new);
        Self { address, permit, app, mainstay, accepted: Instant::now(), spoke: AtomicBool::new(false) }
    }

    async fn serve(self, stream: TcpStream, http: http1::Builder, leave: CancellationToken) {
        let shared = &self.mainstay.shared;
        let deadline = shared.config.opening_deadline;
        let service = service_fn(|request| self.answer(request));
        let io = TokioIo::new(Paced::tcp(stream));
        let mut served = http.serve_connection(io, service).with_upgrades();
        let silent = async {
            tokio::time::sleep_until(self.accepted + deadline).await;
            if self.spoke.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        let (mut silent, mut leaving) = (pin!(silent), false);
        loop {
            tokio::select! {
                result = &mut served => {
                    if let Err(error) = result {
                        tracing::debug!(%error, address = %self.address, "HTTP connection ended");
                        if error.is_user() && let Some(parts) = served.into_parts() {
                            parts.io.into_inner().reset();
                        }
                    }
                    break;
                }
                () = silent.as_mut() => break,
                () = leave.cancelled(), if !leaving => {
                    leaving = true;
                    Pin::new(&mut served).graceful_shutdown();
                }
            }
        }
        if !self.spoke.load(Ordering::Relaxed) {
            Stats::add(&shared.stats.openings_failed, 1);
            tracing::debug!(address = %self.address, "no request within the opening deadline");
        }
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> Result<Response, Infallible> {
        let is_first = !self.spoke.swap(true, Ordering::Relaxed);
        if let Some(refused) = self.permit.as_ref().and_then(|permit| permit.refused()) {
            return Ok(refused.into_response());
        }
        let (mut head, body) = request.into_parts();
        if let Err(line) = target::settle(&mut head) {
            Stats::add(&self.mainstay.shared.stats.openings_failed, 1);
            let headers = [(header::CONNECTION, HeaderValue::from_static("close"))];
            return Ok((StatusCode::BAD_REQUEST, headers, format!("{line}\n")).into_response());
        }
        let mut request = Request::from_parts(head, Body::new(body));
        let is_upgrade = request.headers().contains_key(header::UPGRADE);
        let extensions = request.extensions_mut();
        extensions.insert(ConnectInfo(self.address));
        // Of a connection that was kept alive, this request's peer has all of the time again.
        extensions.insert(HeadTook(if is_first { self.accepted.elapsed() } else { Duration::ZERO }));
        if let Some(permit) = &self.permit {
            // It goes with the connection, if that is upgraded.
            extensions.insert(Arc::clone(permit));
        }
        let mut response = self.app.clone().call(request).await?;
        if is_upgrade && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // What follows may be frames that a proxy let through; it must not be read as requests.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// The peer was gone before it was accepted: no reason to wait.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
