//! The server loop: what `axum::serve` does, and what it leaves out for WebSockets.
//!
//! A connection that says nothing, or too slowly, is dropped at the opening deadline. Shutdown waits
//! for sessions, not only for HTTP responses.

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
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::Mainstay;
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
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        tokio::spawn(connection(stream, address, app.clone(), mainstay.clone()));
                    }
                    // Out of descriptors, or the peer is gone already: neither ends the server.
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
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

async fn connection(stream: TcpStream, address: SocketAddr, app: Router, mainstay: Mainstay) {
    let deadline = mainstay.shared.config.opening_deadline;
    let spoke = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&spoke);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(address));
        tower_call(app.clone(), request)
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
        () = silent => {
            Stats::add(&mainstay.shared.stats.openings_failed, 1);
            tracing::debug!(%address, "no request within the opening deadline");
        }
    }
}

async fn tower_call(
    mut app: Router,
    request: hyper::Request<Body>,
) -> Result<axum::response::Response, std::convert::Infallible> {
    use axum::extract::Request;
    use tower_service::Service;
    Service::<Request>::call(&mut app, request).await
}
