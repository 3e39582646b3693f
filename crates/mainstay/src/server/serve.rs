//! The server loop: what `axum::serve` does, and what it leaves out for WebSockets.
//!
//! A connection that says nothing, or too slowly, is dropped at the opening deadline. Shutdown waits
//! for sessions, not only for HTTP responses.

use std::convert::Infallible;
use std::future::{Future, IntoFuture};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::IntoResponse;
use http::{HeaderValue, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::Mainstay;
use super::limits::Permit;
use super::stats::Stats;

/// The head of a request may be this large, in this many headers.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// Serves `app` on `listener`. Await it; it ends only after [`Serve::with_graceful_shutdown`]'s signal.
///
/// Requests carry [`ConnectInfo<SocketAddr>`](ConnectInfo).
#[must_use = "await it"]
pub fn serve(listener: TcpListener, app: Router, mainstay: &Mainstay) -> Serve {
    Serve { listener, app, mainstay: mainstay.clone(), shutdown: None, spread: Duration::from_secs(30) }
}

/// A server that is not running yet. See [`serve`].
pub struct Serve {
    listener: TcpListener,
    app: Router,
    mainstay: Mainstay,
    shutdown: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    spread: Duration,
}

impl Serve {
    /// When `signal` completes: stops accepting, sends everyone away over `spread`, and waits for all
    /// sessions. See [`Mainstay::drain`].
    pub fn with_graceful_shutdown(
        mut self,
        signal: impl Future<Output = ()> + Send + 'static,
        spread: Duration,
    ) -> Self {
        self.shutdown = Some(Box::pin(signal));
        self.spread = spread;
        self
    }

    async fn run(self) -> io::Result<()> {
        let Self { listener, app, mainstay, shutdown, spread } = self;
        let mut shutdown = shutdown.unwrap_or_else(|| Box::pin(std::future::pending()));
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        failing = false;
                        if let Ok(permit) = mainstay.shared.gate.arrive(address, &mainstay.shared.stats) {
                            let served = connection(stream, address, permit, app.clone(), mainstay.clone());
                            // In a box, as tokio copies a task's future several times.
                            tokio::spawn(Box::pin(served));
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
        mainstay.drain(spread).await;
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

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    permit: Option<Permit>,
    app: Router,
    mainstay: Mainstay,
) {
    let deadline = mainstay.shared.config.opening_deadline;
    let spoke = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&spoke);
    let permit = permit.map(Arc::new);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(address));
        let refused = permit.as_ref().and_then(|permit| permit.refused());
        if let Some(permit) = &permit {
            // It goes with the connection, if that is upgraded.
            request.extensions_mut().insert(Arc::clone(permit));
        }
        let app = app.clone();
        async move {
            if let Some(refused) = refused {
                return Ok::<_, Infallible>(refused.into_response());
            }
            let is_upgrade = request.headers().contains_key(header::UPGRADE);
            let mut response = tower_call(app, request).await?;
            if is_upgrade && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                // What follows may be frames that a proxy let through; it must not be read as requests.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(deadline)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS);
    let served = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let silent = async {
        tokio::time::sleep(deadline).await;
        if spoke.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = served => {
            if let Err(error) = result {
                tracing::debug!(%error, %address, "HTTP connection ended");
            }
        }
        () = silent => {}
    }
    if !spoke.load(Ordering::Relaxed) {
        Stats::add(&mainstay.shared.stats.openings_failed, 1);
        tracing::debug!(%address, "no request within the opening deadline");
    }
}

/// The peer was gone before it was accepted: no reason to wait.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn tower_call(
    mut app: Router,
    request: hyper::Request<Body>,
) -> Result<axum::response::Response, Infallible> {
    use axum::extract::Request;
    use tower_service::Service;
    Service::<Request>::call(&mut app, request).await
}
