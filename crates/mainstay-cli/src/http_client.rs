//! HTTP requests that the gateway makes itself: to an issuer for its keys, to the connect hook, and to the collector of spans.
//!
//! `upstream` is not used: it serves requests of clients, whose connections and failures it counts as the backend's.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mainstay::client::{ConnectFailure, Connector, Place, ServerStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tower_service::Service;

use crate::tls;

/// Idle connections to one server, and for how long.
const MAX_IDLE: usize = 32;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends requests over pooled connections.
#[derive(Clone)]
pub(crate) struct HttpClient(Client<Dialer, Body>);

impl HttpClient {
    /// Returns a client for a place, and its URL in the scheme that HTTP has. `ca`: the certificates to trust, in place of the
    /// system's.
    ///
    /// # Errors
    /// Begins with `ca-file`.
    pub(crate) fn to(place: &Place, ca: Option<&Path>) -> Result<(Uri, Self), String> {
        let mut connector = Connector::default();
        if let Some(socket) = &place.socket {
            connector = connector.unix(socket);
        }
        if ca.is_some() {
            let config = tls::config(ca, None);
            connector =
                connector.tls(config.map_err(|error| format!("ca-file:{}", error.trim_start_matches("ca")))?);
        }
        let mut parts = place.url.clone().into_parts();
        let is_secure = matches!(place.url.scheme_str(), Some("https" | "wss"));
        parts.scheme = Some(if is_secure { Scheme::HTTPS } else { Scheme::HTTP });
        let url = Uri::from_parts(parts).map_err(|error| format!("ca-file: {error}"))?;
        Ok((url, Self::new(connector)))
    }

    pub(crate) fn new(connector: Connector) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(MAX_IDLE).pool_idle_timeout(IDLE_TIMEOUT);
        Self(builder.build(Dialer(connector)))
    }

    /// Sends a request and reads the whole response, `most` bytes of it at most, within `limit`.
    ///
    /// # Errors
    /// There is no such response, in words.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        most: usize,
        limit: Duration,
    ) -> Result<Response<Bytes>, String> {
        let exchange = async {
            let response = self.0.request(request).await.map_err(|error| in_words(&error))?;
            let (head, body) = response.into_parts();
            let body = to_bytes(Body::new(body), most).await;
            let body = body.map_err(|_| format!("no whole response of at most {most} bytes"))?;
            Ok(Response::from_parts(head, body))
        };
        timeout(limit, exchange).await.unwrap_or_else(|_| Err(format!("no response within {limit:?}")))
    }
}

fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words += &format!(": {error}");
        source = error.source();
    }
    words
}

/// Opens connections for the pool.
#[derive(Clone)]
struct Dialer(Connector);

impl Service<Uri> for Dialer {
    type Response = TokioIo<Dialed>;
    type Error = ConnectFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectFailure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectFailure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let connector = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(Dialed(connector.connect(&url).await?))) })
    }
}

struct Dialed(ServerStream);

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Dialed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
